//! What a process shall be.
//!
//! Invariant: nothing is done here but written down; what the caller has (environment, directory, streams) is looked
//! up when the process is started.

use super::error::SpawnError;
use super::wire::{Group, Request};
use crate::sys::{fdtable, file, socket};
use crate::{Bytes, Fd, Resource};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Where a shell looks for programs if nothing else is said.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// A process to be started by a [`Spawner`](super::Spawner), in the manner of [`std::process::Command`]: unless
/// something else is said, it has the caller's environment, working directory and standard streams.
#[derive(Debug)]
pub struct Command {
    program: OsString,
    arguments: Vec<OsString>,
    clears_environment: bool,
    environment: BTreeMap<OsString, Option<OsString>>,
    directory: Option<PathBuf>,
    streams: [Stdio; 3],
    descriptors: Vec<(Fd, RawFd)>,
    user: Option<(u32, u32, Vec<u32>)>,
    umask: Option<u32>,
    limits: Vec<(u32, u64, u64)>,
    group: Group,
    no_new_privileges: bool,
    tied: bool,
}

/// What a standard stream of a new process is.
#[derive(Debug)]
pub enum Stdio {
    /// The caller's own.
    Inherit,
    /// `/dev/null`.
    Null,
    /// A pipe to the caller: the field of [`Spawned`](super::Spawned) with the same name.
    Piped,
    /// This.
    Fd(Fd),
}

impl<T: Into<OwnedFd>> From<T> for Stdio {
    fn from(fd: T) -> Stdio {
        Stdio::Fd(Fd::from(fd.into()))
    }
}

/// The caller's ends of pipes to the standard streams.
pub(super) type Pipes = [Option<OwnedFd>; 3];

impl Command {
    /// A program, by its path or by a name to be found in `PATH`.
    pub fn new(program: impl AsRef<OsStr>) -> Command {
        Command {
            program: program.as_ref().into(),
            arguments: Vec::new(),
            clears_environment: false,
            environment: BTreeMap::new(),
            directory: None,
            streams: [Stdio::Inherit, Stdio::Inherit, Stdio::Inherit],
            descriptors: Vec::new(),
            user: None,
            umask: None,
            limits: Vec::new(),
            group: Group::Same,
            no_new_privileges: false,
            tied: false,
        }
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Command {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Adds arguments.
    pub fn args(&mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> &mut Command {
        let arguments = arguments.into_iter();
        self.arguments
            .extend(arguments.map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Command {
        let value = Some(value.as_ref().into());
        self.environment.insert(name.as_ref().into(), value);
        self
    }

    /// Takes a variable out of the environment.
    pub fn env_remove(&mut self, name: impl AsRef<OsStr>) -> &mut Command {
        self.environment.insert(name.as_ref().into(), None);
        self
    }

    /// Begins with an empty environment instead of the caller's.
    pub fn env_clear(&mut self) -> &mut Command {
        self.clears_environment = true;
        self.environment.clear();
        self
    }

    /// The working directory, from the caller's own.
    pub fn current_dir(&mut self, directory: impl AsRef<Path>) -> &mut Command {
        self.directory = Some(directory.as_ref().into());
        self
    }

    /// Standard input.
    pub fn stdin(&mut self, stream: impl Into<Stdio>) -> &mut Command {
        self.streams[0] = stream.into();
        self
    }

    /// Standard output.
    pub fn stdout(&mut self, stream: impl Into<Stdio>) -> &mut Command {
        self.streams[1] = stream.into();
        self
    }

    /// Standard error.
    pub fn stderr(&mut self, stream: impl Into<Stdio>) -> &mut Command {
        self.streams[2] = stream.into();
        self
    }

    /// A further descriptor, and its number there. Of two with the same number the last counts.
    pub fn fd(&mut self, fd: impl Into<Fd>, number: RawFd) -> &mut Command {
        self.descriptors.push((fd.into(), number));
        self
    }

    /// Its user and group; supplementary groups are none but `groups`. The spawner needs the rights of root for that,
    /// even if they are its own, and grants a caller without them nothing but the caller's own.
    pub fn user(&mut self, uid: u32, gid: u32, groups: &[u32]) -> &mut Command {
        self.user = Some((uid, gid, groups.to_vec()));
        self
    }

    /// Its umask. Default: the spawner's.
    pub fn umask(&mut self, mode: u32) -> &mut Command {
        self.umask = Some(mode);
        self
    }

    /// A limit on a resource, soft and hard.
    pub fn rlimit(&mut self, resource: Resource, soft: u64, hard: u64) -> &mut Command {
        self.limits.push((resource as u32, soft, hard));
        self
    }

    /// The process group that it joins; 0: one of its own. Default: the spawner's.
    pub fn process_group(&mut self, group: i32) -> &mut Command {
        self.group = Group::Join(group);
        self
    }

    /// A session of its own, and with it a process group.
    pub fn new_session(&mut self) -> &mut Command {
        self.group = Group::Session;
        self
    }

    /// Neither it nor what it executes can gain rights by executing a program.
    pub fn no_new_privileges(&mut self) -> &mut Command {
        self.no_new_privileges = true;
        self
    }

    /// Whether it is killed when the spawner ends, which is when its owner does, however that comes. Default: it
    /// goes on. A program that changes its user, or is set-user-id, gets away if the spawner is killed.
    pub fn tied(&mut self, tied: bool) -> &mut Command {
        self.tied = tied;
        self
    }

    pub(super) fn program(&self) -> &OsStr {
        &self.program
    }

    /// The request for this process, and the caller's ends of the pipes that it asks for.
    pub(super) fn to_request(&self) -> Result<(Request, Pipes), SpawnError> {
        let environment = self.whole_environment();
        let directory = match &self.directory {
            Some(directory) if directory.is_absolute() => directory.clone(),
            wanted => {
                // One that has been removed has no name; the spawner's own would be a surprise.
                let here = std::env::current_dir();
                let here = here.map_err(SpawnError::io("find the working directory"))?;
                wanted
                    .as_ref()
                    .map_or(here.clone(), |wanted| here.join(wanted))
            }
        };
        let (mut descriptors, mut pipes) = (Vec::new(), Pipes::default());
        for (number, (stream, pipe)) in (0..).zip(self.streams.iter().zip(&mut pipes)) {
            let (theirs, ours) = stream
                .open(number)
                .map_err(SpawnError::io("open a stream"))?;
            descriptors.extend(theirs.map(|fd| (fd, number)));
            *pipe = ours;
        }
        for (fd, number) in &self.descriptors {
            descriptors.retain(|(_, other)| other != number);
            descriptors.push((Fd::from_shared(fd.share()), *number));
        }
        let request = Request {
            paths: self.places(&environment),
            arguments: [&self.program]
                .into_iter()
                .chain(&self.arguments)
                .map(|argument| bytes(argument))
                .collect(),
            environment: environment
                .into_iter()
                .map(|(mut name, value)| {
                    name.push("=");
                    name.push(value);
                    Bytes::from(name.into_vec())
                })
                .collect(),
            directory: Some(bytes(directory.as_os_str())),
            descriptors,
            user: self.user.clone(),
            umask: self.umask,
            limits: self.limits.clone(),
            group: self.group,
            no_new_privileges: self.no_new_privileges,
            tied: self.tied,
        };
        Ok((request, pipes))
    }

    fn whole_environment(&self) -> BTreeMap<OsString, OsString> {
        let mut environment = BTreeMap::new();
        if !self.clears_environment {
            environment.extend(std::env::vars_os());
        }
        for (name, value) in &self.environment {
            match value {
                Some(value) => drop(environment.insert(name.clone(), value.clone())),
                None => drop(environment.remove(name)),
            }
        }
        environment
    }

    /// Where the program may be.
    fn places(&self, environment: &BTreeMap<OsString, OsString>) -> Vec<Bytes> {
        if self.program.is_empty() {
            return Vec::new();
        }
        if self.program.as_bytes().contains(&b'/') {
            return vec![bytes(&self.program)];
        }
        let path = environment.get(OsStr::new("PATH"));
        let path = path.map_or(OsStr::new(DEFAULT_PATH), OsString::as_os_str);
        std::env::split_paths(path)
            .map(|directory| bytes(directory.join(&self.program).as_os_str()))
            .collect()
    }
}

fn bytes(text: &OsStr) -> Bytes {
    Bytes::from(text.as_bytes())
}

impl Stdio {
    /// The new process's end, and the caller's. A stream that the caller does not have, the process has not either.
    fn open(&self, number: RawFd) -> io::Result<(Option<Fd>, Option<OwnedFd>)> {
        Ok(match self {
            Stdio::Inherit => (Some(Fd::from(inherited(number)?)), None),
            Stdio::Null => (Some(Fd::from(file::open_null()?)), None),
            Stdio::Fd(fd) => (Some(Fd::from_shared(fd.share())), None),
            Stdio::Piped => {
                let (reader, writer) = socket::pipe()?;
                match number {
                    0 => (Some(Fd::from(reader)), Some(writer)),
                    _ => (Some(Fd::from(writer)), Some(reader)),
                }
            }
        })
    }
}

/// The caller's own stream; `/dev/null` where that is closed, so that nothing else takes its place. What is closed when
/// a program is executed is no stream, but something that found the number free.
fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if !fdtable::is_inheritable(number) {
        return file::open_null();
    }
    let copy = match number {
        0 => io::stdin().as_fd().try_clone_to_owned(),
        1 => io::stdout().as_fd().try_clone_to_owned(),
        _ => io::stderr().as_fd().try_clone_to_owned(),
    };
    copy.or_else(|_| file::open_null())
}
