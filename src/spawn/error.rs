//! Why a process was not started, or nothing can be learnt of it.
//!
//! Invariant: what the system said is told with its number and with what it was about.

use crate::error::{CallError, ConnectError};
use std::io;
use std::path::PathBuf;

/// Why a process was not started, or nothing can be learnt of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// The program does not run.
    #[error("cannot {action} for {}: {source}", program.display())]
    Failed {
        /// What the new process was about to do: `execute the program`, `change the directory` and so on.
        action: String,
        /// The program.
        program: PathBuf,
        /// What the system said, with its number.
        source: io::Error,
    },
    /// The spawner has been stopped, or has died. What it was asked last may have been done.
    #[error("the spawner is gone")]
    SpawnerGone,
    /// The spawner or its handle belongs to another process.
    #[error("the spawner belongs to another process, of which this one is a forked copy")]
    WrongProcess,
    /// The spawner could not be asked.
    #[error("cannot ask the spawner: {0}")]
    Call(#[source] CallError),
    /// The operating system refused something here.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl SpawnError {
    pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> SpawnError {
        move |source| SpawnError::Io { action, source }
    }

    pub(super) fn from_connect(err: ConnectError) -> SpawnError {
        match err {
            ConnectError::WrongProcess => SpawnError::WrongProcess,
            ConnectError::Io { action, source } => SpawnError::Io { action, source },
            _ => SpawnError::SpawnerGone,
        }
    }

    pub(super) fn from_call(err: CallError) -> SpawnError {
        match err {
            CallError::WrongProcess => SpawnError::WrongProcess,
            CallError::Disconnected { .. } | CallError::Stopping => SpawnError::SpawnerGone,
            CallError::Io { action, source } => SpawnError::Io { action, source },
            err => SpawnError::Call(err),
        }
    }
}
