//! What can go wrong with a server that runs, and why it tells its handlers to stop.
//!
//! Invariant: as for all errors, each names its cause.

use std::io;
use std::time::Duration;

/// Why a handler is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopReason {
    /// The server stops.
    #[error("the server is stopping")]
    ServerStopping,
    /// The listener stops through which the client came.
    #[error("the listener is stopping")]
    ListenerStopping,
}

/// Why a running server did not do what its owner asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The handle was made in another process.
    #[error("the handle belongs to another process, of which this one is a forked copy")]
    WrongProcess,
    /// The server is gone, or stops.
    #[error("the server is gone")]
    NotRunning,
    /// It has no listener of that name.
    #[error("there is no listener {0:?}")]
    NoSuchListener(String),
    /// The listener cannot go on: what has its path now is not its socket, or the system refused something.
    #[error("the listener {0:?} cannot be started again")]
    NotStarted(String),
    /// It has no workers.
    #[error("the server has no workers")]
    NoWorkers,
    /// No such number of workers can be had.
    #[error("{0} workers cannot be had: 1 to 255")]
    WorkerCount(usize),
    /// A new worker did not serve, so that the others stay: its `worker_started` failed, or it died.
    #[error("the reload was given up, because a new worker did not serve")]
    NotReloaded,
    /// It did not answer in time; it may do what it was asked for later.
    #[error("the server did not answer within {0:?}")]
    TimedOut(Duration),
    /// The operating system refused something.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why a server could not be stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StopError {
    /// The handle was made in another process.
    #[error("the handle belongs to another process, of which this one is a forked copy")]
    WrongProcess,
    /// The server is still there: it can be neither killed nor left to its dead-man switch.
    #[error("the server did not end within {0:?}")]
    StillRunning(Duration),
    /// The operating system refused something.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
