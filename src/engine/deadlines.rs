//! When sessions want to be looked at, whatever their clients do.
//!
//! Invariant: each session is here at most once for each moment that was asked for.

use std::collections::BTreeSet;
use std::time::Instant;

/// Moments, and the sessions that they are about.
#[derive(Default)]
pub(super) struct Deadlines(BTreeSet<(Instant, u64)>);

impl Deadlines {
    pub(super) fn insert(&mut self, moment: Instant, session: u64) {
        self.0.insert((moment, session));
    }

    pub(super) fn remove(&mut self, moment: Instant, session: u64) {
        self.0.remove(&(moment, session));
    }

    /// A session wants to be looked at at another moment than before, or at none.
    pub(super) fn change(&mut self, session: u64, before: Option<Instant>, now: Option<Instant>) {
        if let Some(moment) = before {
            self.remove(moment, session);
        }
        if let Some(moment) = now {
            self.insert(moment, session);
        }
    }

    /// The first moment.
    pub(super) fn first(&self) -> Option<Instant> {
        self.0.first().map(|(moment, _)| *moment)
    }

    /// A session whose moment has come.
    pub(super) fn expired(&self, now: Instant) -> Option<u64> {
        let (moment, session) = self.0.first()?;
        (*moment <= now).then_some(*session)
    }
}
