//! An answer that carries a descriptor, by `sendmsg` and `recvmsg`.

use crate::contestant::{Connect, Contestant, Kind, timed};
use crate::process::{Child, pair};
use crate::task::Task;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::cell::RefCell;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

pub struct Passing;

impl Contestant for Passing {
    fn name(&self) -> &'static str {
        "SCM_RIGHTS ping-pong"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        (task == Task::Descriptor).then(serve)
    }
}

fn serve() -> Connect {
    let (ours, mut theirs) = pair();
    let child = Child::fork(move || {
        let null = File::open("/dev/null").expect("a file");
        let mut message = [0; 16];
        while theirs.read_exact(&mut message).is_ok() && send(&theirs, null.as_raw_fd()) {}
    });
    let line = RefCell::new(Some(ours));
    Box::new(move |_| {
        let _keep = &child;
        let mut line = line.borrow_mut().take().expect("one client");
        timed(move || {
            line.write_all(&[1; 16]).expect("a message");
            drop(receive(&line));
        })
    })
}

fn send(stream: &UnixStream, fd: RawFd) -> bool {
    let (fds, bytes) = ([fd], [1; 16]);
    let rights = [ControlMessage::ScmRights(&fds)];
    let parts = [IoSlice::new(&bytes)];
    sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).is_ok()
}

fn receive(stream: &UnixStream) -> OwnedFd {
    let mut bytes = [0; 16];
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags);
    let message = message.expect("an answer");
    match message.cmsgs().expect("control data").next() {
        // SAFETY: the kernel has just installed it.
        Some(ControlMessageOwned::ScmRights(fds)) => unsafe { OwnedFd::from_raw_fd(fds[0]) },
        other => panic!("no descriptor: {other:?}"),
    }
}
