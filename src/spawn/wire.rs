//! What a spawner is asked, and what it answers.
//!
//! Invariant: texts are bytes, as the system has them.

use crate::{Bytes, Fd};
use serde::{Deserialize, Serialize};

/// A process to be started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Request {
    pub(super) paths: Vec<Bytes>,
    pub(super) arguments: Vec<Bytes>,
    pub(super) environment: Vec<Bytes>,
    pub(super) directory: Option<Bytes>,
    pub(super) descriptors: Vec<(Fd, i32)>,
    /// User, group, supplementary groups.
    pub(super) user: Option<(u32, u32, Vec<u32>)>,
    pub(super) umask: Option<u32>,
    pub(super) limits: Vec<(u32, u64, u64)>,
    pub(super) group: Group,
    pub(super) no_new_privileges: bool,
    pub(super) tied: bool,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) enum Group {
    #[default]
    Same,
    Join(i32),
    Session,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Started(Started),
    Failed { action: String, errno: i32 },
}

/// A process that has been started.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Started {
    pub(super) pid: u32,
    pub(super) pidfd: Fd,
    /// By which the spawner knows it.
    pub(super) number: u64,
}

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Status {
    Runs,
    Exited(i32),
    Signaled(i32),
    Unknown,
}
