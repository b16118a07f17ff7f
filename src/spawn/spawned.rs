//! A process that was started by a spawner, in the hands of whoever asked for it.
//!
//! Invariant: the pidfd is for waiting and for signals; how the process ended, the spawner alone can tell, and does
//! once: it is remembered here.

use super::Line;
use super::command::Pipes;
use super::error::SpawnError;
use super::wire::{Started, Status};
use crate::Signal;
use crate::exit::Exit;
use crate::sys::pidfd::PidFd;
use crate::sys::{poll, process};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A process that was started by a [`Spawner`](super::Spawner). As a descriptor it is its pidfd: readable when the
/// process has ended.
///
/// Dropped, the process goes on, and the spawner reaps it.
#[derive(Debug)]
pub struct Spawned {
    /// The pipe to its standard input, if that is piped.
    pub stdin: Option<File>,
    /// The pipe from its standard output, if that is piped.
    pub stdout: Option<File>,
    /// The pipe from its standard error, if that is piped.
    pub stderr: Option<File>,
    pid: u32,
    pidfd: PidFd,
    number: u64,
    /// The names of the calls that ask how it ended, and say that nobody will.
    names: [&'static str; 2],
    exit: Option<Exit>,
    line: Arc<Line>,
    generation: u32,
}

/// How a process has ended, and what it wrote to the streams that were piped.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How it has ended.
    pub exit: Exit,
    /// What it wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its standard error.
    pub stderr: Vec<u8>,
}

impl Spawned {
    pub(super) fn new(
        started: Started,
        pipes: Pipes,
        line: Arc<Line>,
    ) -> Result<Spawned, SpawnError> {
        let pidfd = started.pidfd.into_owned();
        let [stdin, stdout, stderr] = pipes.map(|pipe| pipe.map(File::from));
        Ok(Spawned {
            stdin,
            stdout,
            stderr,
            pid: started.pid,
            pidfd: PidFd::from_fd(pidfd.map_err(SpawnError::io("take the process"))?),
            number: started.number,
            names: Line::PROCESS,
            exit: None,
            line,
            generation: process::generation(),
        })
    }

    /// A process that was forked.
    pub(super) fn of_job(started: Started, line: Arc<Line>) -> Result<Spawned, SpawnError> {
        let mut process = Spawned::new(started, Pipes::default(), line)?;
        process.names = Line::JOB;
        Ok(process)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended, and says how. Its standard input is closed first, if it is a pipe in our hands.
    ///
    /// # Errors
    /// The spawner is gone, and nobody else knows.
    pub fn wait(&mut self) -> Result<Exit, SpawnError> {
        drop(self.stdin.take());
        loop {
            if let Some(exit) = self.wait_until(None)? {
                return Ok(exit);
            }
        }
    }

    /// Closes its standard input, if that is a pipe in our hands, reads what it writes to its piped streams, both at
    /// once, and waits for its end.
    ///
    /// # Errors
    /// As [`Spawned::wait`]; a pipe cannot be read.
    pub fn wait_with_output(mut self) -> Result<Output, SpawnError> {
        drop(self.stdin.take());
        let mut streams = [self.stdout.take(), self.stderr.take()];
        let mut texts = [Vec::new(), Vec::new()];
        let mut buffer = [0; 16 << 10];
        while streams.iter().any(Option::is_some) {
            let waited = streams.each_ref();
            let waited = waited.map(|stream| stream.as_ref().map(AsFd::as_fd));
            let readable =
                poll::readable(waited, None).map_err(SpawnError::io("wait for output"))?;
            for ((stream, text), _) in streams
                .iter_mut()
                .zip(&mut texts)
                .zip(readable)
                .filter(|(_, readable)| *readable)
            {
                match stream.as_mut().map_or(Ok(0), |file| file.read(&mut buffer)) {
                    Ok(0) => *stream = None,
                    Ok(len) => text.extend_from_slice(&buffer[..len]),
                    Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                    Err(err) => return Err(SpawnError::io("read the output")(err)),
                }
            }
        }
        let [stdout, stderr] = texts;
        let exit = self.wait()?;
        Ok(Output {
            exit,
            stdout,
            stderr,
        })
    }

    /// As [`Spawned::wait`], for no longer than `limit`. `None`: it still runs, or is a job that has just ended and whose
    /// end the spawner has not heard of.
    ///
    /// # Errors
    /// As [`Spawned::wait`].
    pub fn wait_timeout(&mut self, limit: Duration) -> Result<Option<Exit>, SpawnError> {
        drop(self.stdin.take());
        self.wait_until(Instant::now().checked_add(limit))
    }

    /// How it has ended, if it has.
    ///
    /// # Errors
    /// As [`Spawned::wait`].
    pub fn try_wait(&mut self) -> Result<Option<Exit>, SpawnError> {
        self.wait_until(Some(Instant::now()))
    }

    /// Kills it.
    ///
    /// # Errors
    /// It has ended, or has become another user's.
    pub fn kill(&self) -> Result<(), SpawnError> {
        self.signal(Signal::SIGKILL)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// As [`Spawned::kill`].
    pub fn signal(&self, signal: Signal) -> Result<(), SpawnError> {
        self.pidfd
            .signal(signal as i32)
            .map_err(SpawnError::io("send a signal"))
    }

    fn wait_until(&mut self, deadline: Option<Instant>) -> Result<Option<Exit>, SpawnError> {
        if self.exit.is_some() {
            return Ok(self.exit);
        }
        let ended = self.pidfd.wait(deadline);
        if !ended.map_err(SpawnError::io("wait for the process"))? {
            return Ok(None);
        }
        self.exit = match self.line.call(self.names[0], &self.number)? {
            Status::Runs => None,
            Status::Exited(code) => Some(Exit::Code(code)),
            Status::Signaled(signal) => Some(Exit::Signal(signal)),
            Status::Unknown => Some(Exit::Unknown),
        };
        Ok(self.exit)
    }
}

impl AsFd for Spawned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if self.exit.is_none() && self.generation == process::generation() {
            // A spawner that is gone remembers nothing.
            let _ = self.line.tell(self.names[1], &self.number);
        }
    }
}
