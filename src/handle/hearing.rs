//! What an owner hears from its server: answers to what its threads ask, and what the server tells by itself.
//!
//! Invariant: of all threads that wait, one listens, and what it hears reaches the one that it is for. Whoever leaves has
//! another listen.

use crate::PoolEvent;
use crate::control::{ControlLine, Refusal, Report};
use crate::gate::Status;
use crate::sys::poll;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// So many events are kept that nobody has asked for: as many as a server keeps itself.
const KEPT: usize = 64;

pub(super) type Answer = Result<Status, Refusal>;

/// What has been heard, and who listens.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Heard {
    /// The number of the last question.
    last: u64,
    /// By number: what is waited for, and has perhaps come while another thread was listening.
    answers: BTreeMap<u64, Option<Answer>>,
    events: VecDeque<PoolEvent>,
    has_listener: bool,
}

impl Heard {
    fn keep(&mut self, report: Report) {
        match report {
            Report::Answer { number, result } => {
                // Nobody waits any more for the answer to an earlier question.
                if let Some(place) = self.answers.get_mut(&number) {
                    *place = Some(result);
                }
            }
            Report::Happened(event) => {
                if self.events.len() >= KEPT {
                    self.events.pop_front();
                }
                self.events.push_back(event);
            }
            _ => {}
        }
    }
}

impl Hearing {
    /// The number of a new question. Its answer is waited for until [`Hearing::forget`].
    pub(super) fn expect(&self) -> u64 {
        let mut heard = self.heard();
        heard.last += 1;
        let number = heard.last;
        heard.answers.insert(number, None);
        number
    }

    pub(super) fn forget(&self, number: u64) {
        self.heard().answers.remove(&number);
    }

    /// # Errors
    /// `TimedOut` at the deadline, `BrokenPipe` at the end of the line.
    pub(super) fn answer(
        &self,
        number: u64,
        line: &ControlLine,
        deadline: Option<Instant>,
    ) -> io::Result<Answer> {
        self.wait(line, deadline, |heard| {
            heard.answers.get_mut(&number).and_then(Option::take)
        })
    }

    /// # Errors
    /// As [`Hearing::answer`].
    pub(super) fn event(
        &self,
        line: &ControlLine,
        deadline: Option<Instant>,
    ) -> io::Result<PoolEvent> {
        self.wait(line, deadline, |heard| heard.events.pop_front())
    }

    fn wait<T>(
        &self,
        line: &ControlLine,
        deadline: Option<Instant>,
        take: impl Fn(&mut Heard) -> Option<T>,
    ) -> io::Result<T> {
        let mut heard = self.heard();
        loop {
            // Whatever has come by now counts, also at the deadline, and at the end of the line.
            let line_ends = match heard.has_listener {
                true => Ok(()),
                false => hear_all(line, &mut heard),
            };
            self.changed.notify_all();
            if let Some(found) = take(&mut heard) {
                return Ok(found);
            }
            line_ends?;
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(io::ErrorKind::TimedOut.into());
            }
            heard = match heard.has_listener {
                true => self.wait_for_another(heard, deadline),
                false => self.listen(heard, line, deadline)?,
            };
        }
    }

    /// Waits, without the lock, until there is something to hear.
    fn listen<'a>(
        &'a self,
        mut heard: MutexGuard<'a, Heard>,
        line: &ControlLine,
        deadline: Option<Instant>,
    ) -> io::Result<MutexGuard<'a, Heard>> {
        heard.has_listener = true;
        drop(heard);
        let result = poll::readable([Some(line.as_fd())], deadline);
        let mut heard = self.heard();
        heard.has_listener = false;
        self.changed.notify_all();
        result.map(|_| heard)
    }

    fn wait_for_another<'a>(
        &self,
        heard: MutexGuard<'a, Heard>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, Heard> {
        match deadline {
            Some(deadline) => {
                let waited = self
                    .changed
                    .wait_timeout(heard, deadline.saturating_duration_since(Instant::now()));
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => {
                let waited = self.changed.wait(heard);
                waited.unwrap_or_else(PoisonError::into_inner)
            }
        }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps all that has come.
fn hear_all(line: &ControlLine, heard: &mut Heard) -> io::Result<()> {
    loop {
        match line.receive(Some(Instant::now())) {
            Ok(Some(report)) => heard.keep(report),
            Ok(None) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(err) if err.kind() == io::ErrorKind::TimedOut => return Ok(()),
            Err(err) => return Err(err),
        }
    }
}
