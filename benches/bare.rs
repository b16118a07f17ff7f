//! The kernel's limit: the same exchange in bare system calls, with no more than the shape demands.

pub mod epoll;

use nix::libc;
use nix::unistd::{ForkResult, fork};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

/// A child that ends with this process, because its socket does.
pub fn child(body: impl FnOnce()) {
    // SAFETY: the benchmark has one thread when it forks; the child leaves by `_exit`.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            // SAFETY: the parent's death shall be ours.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            body();
            // SAFETY: leaves without the parent's destructors.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { .. } => {}
    }
}

/// Answers each message of `ask` bytes with one of `answer` bytes.
pub fn ping_pong(ask: usize, answer: usize) -> impl FnMut() {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    child(move || {
        let (mut buffer, reply) = (vec![0; ask], vec![1; answer]);
        while theirs.read_exact(&mut buffer).is_ok() && theirs.write_all(&reply).is_ok() {}
    });
    exchange(ours, ask, answer)
}

/// The client's side of a ping-pong.
fn exchange(mut stream: UnixStream, ask: usize, answer: usize) -> impl FnMut() {
    let (message, mut buffer) = (vec![1; ask], vec![0; answer]);
    move || {
        stream.write_all(&message).expect("a message");
        stream.read_exact(&mut buffer).expect("an answer");
    }
}

/// `count` messages in one write, and their answers in one.
pub fn batched(count: usize, size: usize) -> impl FnMut() {
    ping_pong(count * size, count * size)
}

/// One message of 100 bytes on a connection of its own.
pub fn connect_each(path: PathBuf, identity: bool) -> impl FnMut() {
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).expect("a listener");
    child(move || {
        let mut buffer = [0; 4096];
        while let Ok((mut stream, _)) = listener.accept() {
            let len = stream.read(&mut buffer).unwrap_or(0);
            let _ = stream.write(&buffer[..len]);
            let _ = stream.read(&mut buffer);
        }
    });
    connect_and_exchange(path, identity)
}

fn connect_and_exchange(path: PathBuf, identity: bool) -> impl FnMut() {
    move || {
        let mut stream = UnixStream::connect(&path).expect("a connection");
        if identity {
            check_identity(&stream);
        }
        stream.write_all(&[7; 100]).expect("a message");
        let mut buffer = [0; 200];
        let _ = stream.read(&mut buffer).expect("an answer");
    }
}

/// The identity check that forkserver's client makes.
fn check_identity(stream: &UnixStream) {
    use nix::sys::socket::{getsockopt, sockopt};
    let _ = getsockopt(stream, sockopt::PeerCredentials).expect("credentials");
    if let Ok(pidfd) = getsockopt(stream, sockopt::PeerPidfd) {
        let _ = nix::sys::statfs::fstatfs(&pidfd).expect("a file system");
        let _ = nix::sys::stat::fstat(&pidfd).expect("a pidfd");
    }
}

/// An answer that carries a descriptor.
pub fn pass_descriptor() -> impl FnMut() {
    let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
    child(move || {
        let null = std::fs::File::open("/dev/null").expect("a file");
        let mut byte = [0; 16];
        while theirs.read_exact(&mut byte).is_ok() && send_fd(&theirs, null.as_raw_fd()) {}
    });
    move || {
        ours.write_all(&[1; 16]).expect("a message");
        drop(receive_fd(&ours));
    }
}

fn send_fd(stream: &UnixStream, fd: RawFd) -> bool {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let (fds, bytes) = ([fd], [1; 16]);
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(
        stream.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        &rights,
        MsgFlags::empty(),
        None,
    )
    .is_ok()
}

fn receive_fd(stream: &UnixStream) -> OwnedFd {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::FromRawFd;
    let mut bytes = [0; 16];
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    );
    let message = message.expect("an answer");
    match message.cmsgs().expect("control data").next() {
        // SAFETY: the kernel has just installed it.
        Some(ControlMessageOwned::ScmRights(fds)) => unsafe { OwnedFd::from_raw_fd(fds[0]) },
        other => panic!("no descriptor: {other:?}"),
    }
}

/// Eight processes that play ping-pong with eight children, `calls` each.
pub fn eight_pairs(calls: u32) -> impl FnMut() {
    eight(calls, |_, calls| {
        let mut exchange = ping_pong(16, 16);
        Box::new(move || (0..calls).for_each(|_| exchange()))
    })
}

/// Eight children that do `work`, which is told their place, whenever they are told to; a round is over when all are
/// done.
pub fn eight(calls: u32, work: impl Fn(usize, u32) -> Box<dyn FnMut()>) -> impl FnMut() {
    let mut lines: Vec<UnixStream> = (0..8)
        .map(|place| {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            child(|| {
                let mut work = work(place, calls);
                let mut byte = [0];
                theirs.write_all(&byte).expect("ready");
                while theirs.read_exact(&mut byte).is_ok() {
                    work();
                    if theirs.write_all(&byte).is_err() {
                        return;
                    }
                }
            });
            ours
        })
        .collect();
    let wait = |lines: &mut Vec<UnixStream>| {
        lines
            .iter_mut()
            .for_each(|line| line.read_exact(&mut [0]).expect("done"))
    };
    wait(&mut lines);
    move || {
        lines
            .iter_mut()
            .for_each(|line| line.write_all(b"!").expect("go"));
        wait(&mut lines);
    }
}

/// The least that starting a process, hearing from it and waiting for its end takes.
pub fn fork_and_wait() {
    let (mut read, mut write) = std::io::pipe().expect("a pipe");
    // SAFETY: one thread; the child leaves by `_exit`.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Child => {
            let _ = write.write_all(b"!");
            // SAFETY: as above.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            read.read_exact(&mut [0]).expect("a byte");
            nix::sys::wait::waitpid(child, None).expect("a child");
        }
    }
}
