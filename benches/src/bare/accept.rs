//! A connection for each message: accept, receive, send, and the wait for the client's end.

use crate::contestant::{Connect, Contestant, Kind, Rounds, timed};
use crate::process::Child;
use crate::task::{CROWD, Task};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// One process with one thread.
pub struct Single;
/// The same, with a client that asks the kernel who listens, as forkserver's does.
pub struct Known;
/// One process with two threads in `accept`.
pub struct Pool;
/// Eight processes in `accept`.
pub struct Processes;
/// The same, with the client of [`Known`].
pub struct KnownProcesses;

impl Contestant for Single {
    fn name(&self) -> &'static str {
        "accept, echo, close"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        (task == Task::Connect).then(|| serve(1, false, echo_each))
    }
}

impl Contestant for Known {
    fn name(&self) -> &'static str {
        "accept, with identity"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        (task == Task::ConnectKnown).then(|| serve(1, true, echo_each))
    }
}

impl Contestant for Pool {
    fn name(&self) -> &'static str {
        "accept by 2 threads"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let two = |listener: &UnixListener| {
            std::thread::scope(|scope| {
                scope.spawn(|| echo_each(listener));
                echo_each(listener);
            });
        };
        (task == Task::Connect).then(|| serve(1, false, two))
    }
}

impl Contestant for Processes {
    fn name(&self) -> &'static str {
        "accept by 8 processes"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        (task == Task::Connect).then(|| serve(CROWD, false, echo_each))
    }
}

impl Contestant for KnownProcesses {
    fn name(&self) -> &'static str {
        "8 processes, identity"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        (task == Task::ConnectKnown).then(|| serve(CROWD, true, echo_each))
    }
}

fn serve(processes: usize, identity: bool, work: impl Fn(&UnixListener)) -> Connect {
    let (listener, path) = listen();
    let start = |_| Child::fork(|| work(&listener));
    let children: Vec<_> = (0..processes).map(start).collect();
    Box::new(move |_| {
        let _keep = &children;
        connect_each(path.clone(), identity)
    })
}

/// A socket in the directory of this run.
pub fn listen() -> (UnixListener, PathBuf) {
    let path = std::env::temp_dir().join(format!("bare.{}", std::process::id()));
    (UnixListener::bind(&path).expect("a listener"), path)
}

fn echo_each(listener: &UnixListener) {
    let mut buffer = [0; 4096];
    while let Ok((mut stream, _)) = listener.accept() {
        let len = stream.read(&mut buffer).unwrap_or(0);
        let _ = stream.write(&buffer[..len]);
        let _ = stream.read(&mut buffer);
    }
}

pub fn connect_each(path: impl AsRef<Path> + 'static, identity: bool) -> Rounds {
    timed(move || {
        let mut stream = UnixStream::connect(&path).expect("a connection");
        if identity {
            check_identity(&stream);
        }
        stream.write_all(&[7; 100]).expect("a message");
        let mut buffer = [0; 200];
        let _ = stream.read(&mut buffer).expect("an answer");
    })
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
