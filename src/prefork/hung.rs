//! Calls that take too long: first their threads are asked where they are, then their workers are killed.
//!
//! Invariant: nobody is blamed for time in which the monitor itself did not run.

use super::MOMENT;
use crate::scoreboard::{Doing, Region};
use crate::sys::clock;
use crate::worker::Worker;
use std::collections::HashMap;
use std::time::Duration;

/// What is to be done about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Measure {
    /// Its thread shall say where it is.
    Ask(Worker, Doing),
    Kill(Worker, Doing),
}

/// What is known about calls that take long. Times are those of the coarse clock, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Hung {
    timeout: u64,
    kill_after: u64,
    /// When whom was asked, by worker and cell; and when the call began, so that it is not taken for another one.
    asked: HashMap<(u32, usize), (u64, u64)>,
    /// Nothing is too late before that.
    not_before: u64,
}

impl Hung {
    pub(crate) fn new(timeout: Duration, kill_after: Duration) -> Hung {
        let nanos = |time: Duration| clock::nanos(time.max(MOMENT));
        Hung {
            timeout: nanos(timeout),
            kill_after: nanos(kill_after),
            asked: HashMap::new(),
            not_before: 0,
        }
    }

    /// The monitor did not run, and has just begun again: everybody has all the time once more.
    pub(crate) fn was_away(&mut self, now: u64) {
        self.not_before = now.saturating_add(self.timeout);
        for (asked, _) in self.asked.values_mut() {
            *asked = now;
        }
    }

    /// A worker is gone.
    pub(crate) fn forget(&mut self, worker: Worker) {
        self.asked
            .retain(|(generation, _), _| *generation != worker.generation);
    }

    /// What is to be done now, and when to look again, even if nothing happens.
    pub(crate) fn look<'a>(
        &mut self,
        now: u64,
        workers: impl Iterator<Item = (Worker, &'a Region)>,
    ) -> (Vec<Measure>, u64) {
        let mut measures = Vec::new();
        // A call that begins now is not too late before that.
        let mut next = now.saturating_add(self.timeout);
        for (worker, region) in workers {
            let mut busy = Vec::new();
            for doing in region.doing().filter(|doing| doing.deadline != 0) {
                busy.push(doing.cell);
                let due = self.look_at(now, worker, doing, &mut measures);
                next = next.min(due);
            }
            self.asked.retain(|(generation, cell), _| {
                *generation != worker.generation || busy.contains(cell)
            });
        }
        (measures, next)
    }

    /// Looks at one call, and says when to look at it again.
    fn look_at(
        &mut self,
        now: u64,
        worker: Worker,
        doing: Doing,
        measures: &mut Vec<Measure>,
    ) -> u64 {
        let key = (worker.generation, doing.cell);
        // A worker cannot give itself more than the timeout at once.
        let latest = now.saturating_add(self.timeout);
        let deadline = doing.deadline.max(self.not_before).min(latest);
        if deadline > now {
            self.asked.remove(&key);
            return deadline;
        }
        match self.asked.get_mut(&key) {
            Some((asked, since)) if *since == doing.since => {
                let due = asked.saturating_add(self.kill_after);
                if due > now {
                    return due;
                }
                // Once more after as long, should it still be there.
                *asked = now;
                measures.push(Measure::Kill(worker, doing));
            }
            _ => {
                self.asked.insert(key, (now, doing.since));
                measures.push(Measure::Ask(worker, doing));
            }
        }
        now.saturating_add(self.kill_after)
    }
}
