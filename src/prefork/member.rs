//! A worker in its pool.
//!
//! Invariant: it goes through its phases in one direction.

use crate::scoreboard::{PoolEvent, ReplaceReason};
use crate::worker::Worker;
use std::time::{Duration, Instant};

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
    /// It is being killed, and does not count any more.
    Killed,
}

/// A life that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It has not served yet.
    Starting,
    /// It has served for so long.
    Serving(Duration),
    /// It was to end.
    Over,
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

    pub(super) fn life(&self, now: Instant) -> Life {
        match self.phase {
            Phase::Starting => Life::Starting,
            Phase::Ready => Life::Serving(now.saturating_duration_since(self.since)),
            Phase::Leaving | Phase::Killed => Life::Over,
        }
    }
}

/// One that is being replaced, and by whom.
#[derive(Debug)]
pub(super) struct Transit {
    pub(super) old: u32,
    pub(super) new: u32,
    pub(super) reason: ReplaceReason,
}
