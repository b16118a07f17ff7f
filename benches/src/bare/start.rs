//! The least that starting a process, hearing from it and waiting for its end takes; in a small process and in a large one.

use crate::contestant::{Connect, Contestant, Kind, timed};
use crate::process::{Child, pair};
use crate::task::Task;
use nix::libc;
use nix::unistd::{ForkResult, fork};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// `fork`, a byte through a pipe, `waitpid`.
pub struct Fork;
/// A process that stays small, and starts others in the usual way when it is told to.
pub struct Tiny;
/// What the large program would do without anybody's help.
pub struct ForkFromLarge;

impl Contestant for Fork {
    fn name(&self) -> &'static str {
        "fork, pipe, waitpid"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        (task == Task::Lifetime).then(|| Box::new(|_| timed(fork_and_wait)) as Connect)
    }
}

impl Contestant for Tiny {
    fn name(&self) -> &'static str {
        "in a tiny process"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let work = match task {
            Task::Spawn => || assert!(true_command().status().expect("a process").success()),
            Task::Start => fork_and_wait,
            _ => return None,
        };
        let (ours, mut theirs) = pair();
        let child = Child::fork(move || {
            while theirs.read_exact(&mut [0]).is_ok() {
                work();
                let _ = theirs.write_all(&[0]);
            }
        });
        let line = RefCell::new(Some(ours));
        Some(Box::new(move |_| {
            let _keep = &child;
            let mut line = line.borrow_mut().take().expect("one client");
            timed(move || {
                line.write_all(&[0]).expect("it listens");
                line.read_exact(&mut [0]).expect("it answers");
            })
        }))
    }
}

impl Contestant for ForkFromLarge {
    fn name(&self) -> &'static str {
        "fork in the large process"
    }

    fn kind(&self) -> Kind {
        Kind::Limit
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let work = match task {
            Task::Spawn => fork_and_execute,
            Task::Start => fork_and_wait,
            _ => return None,
        };
        Some(Box::new(move |_| timed(work)))
    }
}

fn true_command() -> Command {
    Command::new("/bin/true")
}

fn fork_and_execute() {
    let mut command = true_command();
    // SAFETY: the hook does nothing; having one makes std fork.
    unsafe { command.pre_exec(|| Ok(())) };
    assert!(command.status().expect("a process").success());
}

fn fork_and_wait() {
    let (mut read, mut write) = std::io::pipe().expect("a pipe");
    // SAFETY: the child does nothing but system calls, and leaves by `_exit`.
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
