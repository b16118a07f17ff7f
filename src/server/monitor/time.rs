//! A monitor's time: how long it waits, and whether it was away.
//!
//! Invariant: nothing is decided by a time that passed while this process did not run, as when it was stopped, or the machine
//! had no processor for it: everybody has all the time once more then.

use super::Monitor;
use crate::prefork::Act;
use crate::sys::clock;
use std::io;
use std::time::{Duration, Instant};

/// Nobody is to blame for less.
const NOTICEABLE: Duration = Duration::from_millis(250);

impl Monitor<'_> {
    /// Waits for one event, or for the time at which something is to be done.
    pub(super) fn wait(&mut self) -> io::Result<Option<u64>> {
        let look = self.hung.as_ref().map(|_| {
            let left = self.next_look.saturating_sub(clock::coarse());
            Instant::now() + Duration::from_nanos(left)
        });
        let of_questions = self.questions.iter().map(|question| question.deadline);
        let times = self.pool.deadline().into_iter().chain(look);
        let of_deaf = self.deaf.iter().map(|(_, until)| *until);
        let until = times.chain(of_questions).chain(of_deaf).min();
        // An absence before the wait.
        self.now();
        let event = self.events.next(until);
        // It has slept for as long as it wanted to at most; the rest was an absence, too.
        let expected = until.map_or_else(Instant::now, |until| until.min(Instant::now()));
        self.awake = self.awake.max(expected);
        self.now();
        event
    }

    /// What time it is. Whatever is decided by a time asks here.
    pub(super) fn now(&mut self) -> Instant {
        let now = Instant::now();
        if now.saturating_duration_since(self.awake) > NOTICEABLE {
            self.pool.was_away(now);
            if let Some(hung) = &mut self.hung {
                hung.was_away(clock::coarse());
            }
        }
        self.awake = now;
        now
    }

    pub(super) fn next_act(&mut self) -> Option<Act> {
        let now = self.now();
        self.pool.next_act(now)
    }
}
