//! How long a session waits for what it waits for.
//!
//! Invariant: a deadline is about one thing; it begins when the session turns to that, and only progress there moves it.

use super::ending::Ending;
use crate::limits::Limits;
use std::time::{Duration, Instant};

/// What a session waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Greeting,
    Idle,
    Receiving,
    Sending,
}

/// What a session waits for, and until when.
#[derive(Debug)]
pub(super) struct Patience {
    phase: Phase,
    deadline: Option<Instant>,
}

impl Patience {
    /// With a client that has just come, and is to show the password.
    pub(super) fn with_stranger(limits: &Limits, now: Instant) -> Patience {
        Patience {
            phase: Phase::Greeting,
            deadline: now.checked_add(limits.auth_timeout),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The clock is looked at only if there is a deadline; so here and below.
    pub(super) fn is_over(&self, now: impl FnOnce() -> Instant) -> bool {
        self.deadline.is_some_and(|deadline| now() >= deadline)
    }

    /// Waits for ever, for the same thing.
    pub(super) fn lift(&mut self) {
        self.deadline = None;
    }

    /// Waits for nothing in particular.
    pub(super) fn rest(&mut self) {
        (self.phase, self.deadline) = (Phase::Idle, None);
    }

    /// Waits for the rest of a message that has begun, or for the next one. Says how it ends if that does not come.
    pub(super) fn wait_for_input(
        &mut self,
        has_begun: bool,
        limits: &Limits,
        now: impl FnOnce() -> Instant,
    ) -> Ending {
        let (phase, limit, ending) = match has_begun {
            true => (
                Phase::Receiving,
                Some(limits.frame_timeout),
                Ending::TimedOut,
            ),
            false => (Phase::Idle, limits.idle_timeout, Ending::Idle),
        };
        self.enter(phase, limit, now);
        ending
    }

    /// Whether it waits for nothing in particular, or for the next message.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Output is about to leave, and most times it does at once.
    pub(super) fn turn_to_sending(&mut self) {
        if self.phase != Phase::Sending {
            (self.phase, self.deadline) = (Phase::Sending, None);
        }
    }

    /// Waits for output to leave, for which there was no room.
    pub(super) fn wait_for_room(&mut self, limits: &Limits, now: impl FnOnce() -> Instant) {
        self.enter(Phase::Sending, Some(limits.write_timeout), now);
    }

    /// Some output has left; is that `all`?
    pub(super) fn has_sent(&mut self, all: bool, limits: &Limits, now: impl FnOnce() -> Instant) {
        if self.phase == Phase::Sending {
            self.deadline = match all {
                true => None,
                false => now().checked_add(limits.write_timeout),
            };
        }
    }

    fn enter(&mut self, phase: Phase, limit: Option<Duration>, now: impl FnOnce() -> Instant) {
        if self.phase != phase || self.deadline.is_none() {
            self.phase = phase;
            self.deadline = limit.and_then(|limit| now().checked_add(limit));
        }
    }
}
