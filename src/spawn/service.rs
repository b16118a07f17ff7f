//! The spawner's own side: starts processes, reaps them, and remembers how they ended until somebody asks.
//!
//! Invariant: a process is in the table from its start until its status has been told, or nobody can ask for it any
//! more.

use super::wire::{Answer, Group, Request, Started, Status};
use crate::context::{Context, Peer};
use crate::fault::Fault;
use crate::server::Server;
use crate::sys::launch::{self, LaunchError, Program, Stage, User};
use crate::sys::pidfd::{self, PidFd};
use crate::sys::process;
use crate::{Bytes, Fd, Signal};
use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long killed processes may take to be gone when the spawner ends.
const DYING: Duration = Duration::from_millis(500);

/// Makes a server a spawner as well: it answers what a [`Spawner`](super::Spawner) asks, reaps what it starts, and
/// kills what is tied to it at its end. It takes `SIGCHLD`.
pub fn service(server: Server) -> Server {
    let children = Arc::new(Children::default());
    let (spawning, asked, forgetting) = (children.clone(), children.clone(), children.clone());
    let ending = children.clone();
    server
        .handle("spawn", move |ctx, request: Request| {
            spawning.spawn(ctx, request)
        })
        .handle("status", move |_, number: u64| Ok(asked.tell(number)))
        .handle("forget", move |_, number: u64| {
            forgetting.forget(number);
            Ok(())
        })
        .handle_signal(Signal::SIGCHLD, move |_| children.reap())
        .finalize(move |_| ending.end())
}

/// All processes that were started and are remembered.
#[derive(Default)]
struct Children(Mutex<Table>);

#[derive(Default)]
struct Table {
    last: u64,
    processes: HashMap<u64, Process>,
}

struct Process {
    pidfd: PidFd,
    status: Option<pidfd::Status>,
    is_tied: bool,
    /// Nobody will ask how it ended.
    is_forgotten: bool,
}

impl Children {
    fn spawn(&self, context: &Context, request: Request) -> Result<Answer, Fault> {
        let user = match allowed_user(context.peer(), request.user.clone()) {
            Ok(user) => user,
            Err(errno) => return Ok(failed(Stage::User, errno)),
        };
        let is_tied = request.tied;
        // Kept open until the process has them.
        let Some((program, _descriptors)) = program(request, user)? else {
            return Ok(failed(Stage::Execute, launch::INVALID));
        };
        let (pid, child) = match launch::launch(&program) {
            Ok(child) => child,
            Err(LaunchError { stage, source }) => {
                let errno = source.raw_os_error().unwrap_or(launch::UNKNOWN);
                return Ok(failed(stage, errno));
            }
        };
        let copy = child.as_fd().try_clone_to_owned();
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        let process = Process {
            pidfd: child,
            status: None,
            is_tied,
            is_forgotten: copy.is_err(),
        };
        // It may have ended before it was in the table.
        let process = process.look();
        table
            .processes
            .extend(process.map(|process| (number, process)));
        Ok(Answer::Started(Started {
            pid,
            pidfd: Fd::from(copy?),
            number,
        }))
    }

    /// How a process ended, told once.
    fn tell(&self, number: u64) -> Status {
        let mut table = self.lock();
        let Some(process) = table.processes.remove(&number) else {
            return Status::Unknown;
        };
        match process.look() {
            Some(Process {
                status: Some(status),
                ..
            }) => match status {
                pidfd::Status::Exited(code) => Status::Exited(code),
                pidfd::Status::Signaled(signal) => Status::Signaled(signal),
                pidfd::Status::Unknown => Status::Unknown,
            },
            Some(process) => {
                table.processes.insert(number, process);
                Status::Runs
            }
            None => Status::Unknown,
        }
    }

    fn forget(&self, number: u64) {
        let mut table = self.lock();
        if let Some(mut process) = table.processes.remove(&number) {
            process.is_forgotten = true;
            let process = process.look();
            table
                .processes
                .extend(process.map(|process| (number, process)));
        }
    }

    /// Some child has ended, perhaps several.
    fn reap(&self) {
        let mut table = self.lock();
        let processes = std::mem::take(&mut table.processes);
        let looked = |(number, process): (u64, Process)| Some((number, process.look()?));
        table.processes = processes.into_iter().filter_map(looked).collect();
    }

    /// The spawner ends: what is tied to it ends as well, and is reaped.
    fn end(&self) {
        self.reap();
        let table = self.lock();
        let tied = || table.processes.values().filter(|process| process.is_tied);
        for process in tied() {
            // It fails for one that has ended, and for one that became somebody else.
            let _ = process.pidfd.signal(Signal::SIGKILL as i32);
        }
        let deadline = Instant::now() + DYING;
        for process in tied() {
            let _ = process.pidfd.wait_and_reap(Some(deadline));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    /// Reaps it if it has ended. `None`: nobody wants to know.
    fn look(mut self) -> Option<Process> {
        if self.status.is_none() {
            // What cannot be asked now is asked at the next end of a child.
            self.status = self.pidfd.reap().unwrap_or(None);
        }
        (!self.is_forgotten || self.status.is_none()).then_some(self)
    }
}

/// Whose rights the process shall have. A caller that is neither root nor the spawner's own user gets its own, and no
/// others.
fn allowed_user(peer: Peer, wanted: Option<(u32, u32, Vec<u32>)>) -> Result<Option<User>, i32> {
    let to_user = |(uid, gid, groups)| User { uid, gid, groups };
    let own = process::effective_user();
    if peer.uid == 0 || peer.uid == own {
        return Ok(wanted.map(to_user));
    }
    let theirs = (peer.uid, peer.gid, vec![peer.gid]);
    match wanted {
        None => Ok(Some(to_user(theirs))),
        Some((uid, gid, groups))
            if (uid, gid) == (peer.uid, peer.gid) && groups.iter().all(|group| *group == gid) =>
        {
            Ok(Some(to_user((uid, gid, groups))))
        }
        Some(_) => Err(launch::NOT_PERMITTED),
    }
}

/// The request in the form in which it can be launched, with the descriptors that it names. `None`: a text has a zero
/// byte.
fn program(request: Request, user: Option<User>) -> Result<Option<(Program, Vec<Fd>)>, Fault> {
    let text = |bytes: Bytes| CString::new(bytes.into_vec()).ok();
    let texts = |list: Vec<Bytes>| list.into_iter().map(text).collect::<Option<Vec<_>>>();
    let directory = request.directory.map(text);
    let (Some(paths), Some(arguments), Some(environment), false) = (
        texts(request.paths),
        texts(request.arguments),
        texts(request.environment),
        matches!(directory, Some(None)),
    ) else {
        return Ok(None);
    };
    let numbers = request
        .descriptors
        .iter()
        .map(|(fd, number)| (fd.as_fd().as_raw_fd(), *number));
    let program = Program {
        paths,
        arguments,
        environment,
        descriptors: numbers.collect(),
        directory: directory.flatten(),
        user,
        umask: request.umask,
        limits: request.limits,
        group: match request.group {
            Group::Same => launch::Group::Same,
            Group::Join(group) => launch::Group::Join(group),
            Group::Session => launch::Group::Session,
        },
        no_new_privileges: request.no_new_privileges,
        death_signal: request.tied.then_some(Signal::SIGKILL as i32),
    };
    let descriptors = request.descriptors.into_iter().map(|(fd, _)| fd);
    Ok(Some((program, descriptors.collect())))
}

fn failed(stage: Stage, errno: i32) -> Answer {
    let action = match stage {
        Stage::Fork => "make a process",
        Stage::Signals => "reset the signals",
        Stage::Group => "set the process group",
        Stage::Limits => "set the limits",
        Stage::Umask => "set the umask",
        Stage::User => "change the user",
        Stage::Directory => "change the directory",
        Stage::Descriptors => "place the descriptors",
        Stage::Privileges => "renounce privileges",
        Stage::DeathSignal => "tie the process",
        Stage::Execute => "execute the program",
    };
    Answer::Failed {
        action: action.into(),
        errno,
    }
}
