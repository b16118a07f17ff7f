//! Starting processes for a program that must not fork, or would rather not: it has threads, or a large heap, or has
//! given up its rights.
//!
//! Invariant: every process that was started here is the spawner's child, is reaped by it and by nobody else, and its
//! status is told once, to whoever started it.
//!
//! ```no_run
//! use forkserver::spawn::{Command, Spawner, Stdio};
//! use std::io::Read;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! forkserver::init(&[&forkserver::spawn::SPAWNER]); // first thing in main
//! let spawner = Spawner::launch()?; // from any thread; or `Spawner::start`, before there are threads
//! let mut date = spawner.spawn(Command::new("date").arg("-u").stdout(Stdio::Piped))?;
//! let mut text = String::new();
//! date.stdout.take().expect("it is piped").read_to_string(&mut text)?;
//! println!("{text}, and it ended with {}", date.wait()?);
//! # Ok(()) }
//! ```

mod command;
mod error;
mod jobs;
mod mold;
mod service;
mod spawned;
mod wire;

pub use self::command::{Command, Stdio};
pub use self::error::SpawnError;
pub use self::jobs::{Job, Jobs, Requester};
pub use self::service::service;
pub use self::spawned::{Output, Spawned};

use crate::client::Client;
use crate::entry::Entry;
use crate::exit::Exit;
use crate::handle::ServerHandle;
use crate::server::Server;
use crate::sys::file;
use crate::{StartError, StopError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The spawner as an entry, to be listed with [`init`](crate::init) by programs that [launch](Spawner::launch) it.
pub static SPAWNER: Entry<()> = Entry::new("forkserver spawner", |()| Ok(service(Server::new())));

/// A server that starts processes. It can be used by many threads at once; dropping it stops it, and kills the
/// processes that are [tied](Command::tied) to it.
///
/// If the spawner's process is stopped (`SIGSTOP`), whatever asks it something waits until it goes on, or is stopped
/// for good by [`Spawner::stop`], which kills it after 4 s. If it is dead nothing waits.
#[derive(Debug)]
#[must_use = "dropping the spawner stops it"]
pub struct Spawner {
    line: Arc<Line>,
}

impl Spawner {
    /// Forks the spawner. To be done early: the less this process has by then, the less the spawner has.
    ///
    /// # Errors
    /// As [`Server::start`](crate::Server::start).
    pub fn start() -> Result<Spawner, StartError> {
        Ok(Spawner::over(service(Server::new()).start()?))
    }

    /// Launches the spawner: works with threads, and at any time. [`SPAWNER`] must be listed with
    /// [`init`](crate::init).
    ///
    /// # Errors
    /// As [`Entry::start`].
    pub fn launch() -> Result<Spawner, StartError> {
        Ok(Spawner::over(SPAWNER.start(&())?))
    }

    /// A spawner in a server of one's own, whose definition has been given to [`service()`].
    pub fn over(server: ServerHandle) -> Spawner {
        Spawner {
            line: Arc::new(Line {
                server: Mutex::new(Some(server)),
                idle: Mutex::default(),
            }),
        }
    }

    /// Starts a process. Returns when the program runs.
    ///
    /// # Errors
    /// What kept the program from running, with the system's number for it; or the spawner is gone.
    pub fn spawn(&self, command: &mut Command) -> Result<Spawned, SpawnError> {
        let (request, pipes) = command.to_request()?;
        let place =
            file::memory_file(c"place").map_err(SpawnError::io("keep a place for the process"))?;
        match self.line.start("spawn", request, place)? {
            wire::Answer::Started(started) => Spawned::new(started, pipes, Arc::clone(&self.line)),
            wire::Answer::Failed { action, errno } => Err(SpawnError::Failed {
                action,
                program: command.program().into(),
                source: std::io::Error::from_raw_os_error(errno),
            }),
        }
    }

    /// The spawner's process id; `None` if it has been stopped.
    pub fn pid(&self) -> Option<u32> {
        self.line.server().as_ref().map(ServerHandle::pid)
    }

    /// Stops the spawner: tied processes are killed, others go on, and their status cannot be had any more.
    ///
    /// # Errors
    /// As [`ServerHandle::stop`].
    pub fn stop(self) -> Result<Exit, StopError> {
        self.line.stop().unwrap_or(Ok(Exit::Unknown))
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        // Whoever wants to know calls `stop`.
        let _ = self.line.stop();
    }
}

/// The way to a spawner, shared by all that was started there.
#[derive(Debug)]
struct Line {
    /// Taken out when the spawner is stopped.
    server: Mutex<Option<ServerHandle>>,
    /// Connections that nobody uses at the moment.
    idle: Mutex<Vec<Client>>,
}

impl Line {
    /// Calls the spawner, on a connection that nobody else uses meanwhile.
    fn call<A: Serialize, R: DeserializeOwned>(
        &self,
        name: &str,
        args: &A,
    ) -> Result<R, SpawnError> {
        let mut client = self.client()?;
        let result = client.call(name, args).map_err(SpawnError::from_call)?;
        self.idle().push(client);
        Ok(result)
    }

    /// Has the spawner start a process. What goes there is closed here before the answer comes, and so is `place`:
    /// without room for its descriptor, the process would run and nobody would know it.
    fn start<A: Serialize>(
        &self,
        name: &str,
        request: A,
        place: OwnedFd,
    ) -> Result<wire::Answer, SpawnError> {
        let mut client = self.client()?;
        let begun = client.begin(name, &request);
        let begun = begun.and_then(|begun| client.flush().map(|()| begun));
        drop((request, place));
        let result = begun.and_then(|begun| client.finish(begun));
        let answer = result.map_err(SpawnError::from_call)?;
        self.idle().push(client);
        Ok(answer)
    }

    /// Tells the spawner something, and does not wait for what it says to that.
    fn tell<A: Serialize>(&self, name: &str, args: &A) -> Result<(), SpawnError> {
        let mut client = self.client()?;
        let unwanted = client.begin::<_, ()>(name, args);
        drop(unwanted.map_err(SpawnError::from_call)?);
        client.flush().map_err(SpawnError::from_call)?;
        self.idle().push(client);
        Ok(())
    }

    fn client(&self) -> Result<Client, SpawnError> {
        if let Some(client) = self.idle().pop() {
            return Ok(client);
        }
        let server = self.server();
        let server = server.as_ref().ok_or(SpawnError::SpawnerGone)?;
        server.connect().map_err(SpawnError::from_connect)
    }

    fn stop(&self) -> Option<Result<Exit, StopError>> {
        let server = self.server().take()?;
        self.idle().clear();
        Some(server.stop())
    }

    fn server(&self) -> MutexGuard<'_, Option<ServerHandle>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Client>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
