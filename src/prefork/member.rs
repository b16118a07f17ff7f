//! A worker in its pool.
//!
//! Invariant: it goes through its phases in one direction.

use crate::scoreboard::{PoolEvent, ReplaceReason};
use crate::worker::Worker;
use std::time::Instant;

/// Something to be done.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Fork(Worker),
    /// Have it finish, and end.
    Stop(Worker),
    Kill(Worker),
    Tell(PoolEvent),
}

/// How far a worker's life has come, for whoever looks after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Starting,
    Ready,
    /// It was told to finish.
    Leaving,
    /// It is being killed; whether it had served.
    Killed {
        ready: Option<Instant>,
    },
}

/// One worker.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) worker: Worker,
    pub(super) phase: Phase,
    /// When the phase began.
    pub(super) since: Instant,
}

impl Member {
    /// It holds its slot.
    pub(super) fn stays(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Ready)
    }
}

/// One that is being replaced, and by whom.
#[derive(Debug)]
pub(super) struct Transit {
    pub(super) old: u32,
    pub(super) new: u32,
    pub(super) reason: ReplaceReason,
}
