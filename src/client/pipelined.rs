//! Several calls under way on one connection.
//!
//! Invariant: what is begun leaves with the next wait at the latest; no more are under way than may be.

use super::pending::Pending;
use super::{Client, errors, is_answered_late};
use crate::error::CallError;
use crate::protocol::message::Form;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::time::Instant;

/// Calls that are begun while others are under way are gathered up to this size before they leave.
const GATHERED: usize = 16 << 10;

impl Client {
    /// Begins a call; others can be begun before it is finished, and finished in any order.
    ///
    /// The first leaves at once. Those that are begun while others are under way leave together, with the next
    /// [`finish`](Client::finish), [`call`](Client::call) or [`flush`](Client::flush), or when 16 KiB have
    /// gathered. The server takes the calls of a connection one after the other.
    ///
    /// # Errors
    /// The arguments cannot be sent, or the connection is gone.
    pub fn begin<A, R>(&mut self, name: &str, args: &A) -> Result<Pending<R>, CallError>
    where
        A: Serialize + ?Sized,
    {
        let mut turns = 0;
        loop {
            match self.begin_once(name, args) {
                Err(err) if self.turns_elsewhere(&err, &mut turns) => {}
                begun => {
                    let (id, deadline) = begun?;
                    return Ok(self.begun.add(id, name, deadline));
                }
            }
        }
    }

    /// Sends a call. Returns its id, and when it is given up.
    fn begin_once<A: Serialize + ?Sized>(
        &mut self,
        name: &str,
        args: &A,
    ) -> Result<(u32, Option<Instant>), CallError> {
        let idle = self.in_flight == 0;
        let id = self.send(name, args, Form::Call)?;
        let deadline = self.deadline();
        if idle || self.session.outbox.queued() > GATHERED {
            if let Err(err) = self.flush() {
                let err = self.with_delivery(err, id);
                if is_answered_late(&err) {
                    self.begun.give_up(id);
                }
                return Err(err);
            }
        }
        Ok((id, deadline))
    }

    /// Waits for the result of a call that was begun. The timeout counts from when it was.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn finish<R: DeserializeOwned>(&mut self, mut pending: Pending<R>) -> Result<R, CallError> {
        let kept = self.begun.take(&pending).ok_or(CallError::NoSuchCall)?;
        pending.finished();
        match kept {
            Some(kept) => self.kept_result(pending.name(), kept),
            None => {
                let failure = self.wait(pending.id, pending.deadline)?;
                self.result(pending.name(), failure)
            }
        }
    }

    /// Sends what has been begun and gathered.
    ///
    /// # Errors
    /// The connection is gone, or the server took nothing within the timeout.
    pub fn flush(&mut self) -> Result<(), CallError> {
        self.check()?;
        let deadline = self.deadline();
        while (self.session.outbox.queued() > 0 || self.session.holds_calls()) && !self.deaf {
            if let Some(answered) = self.step(deadline)? {
                self.keep(answered);
            }
        }
        Ok(())
    }

    /// Waits until fewer calls than [`max_in_flight`](crate::Limits::max_in_flight) are unanswered.
    pub(super) fn wait_for_place(&mut self) -> Result<(), CallError> {
        let deadline = self.deadline();
        while self.in_flight >= self.limits.max_in_flight.max(1) {
            match self.step(deadline) {
                Ok(Some(answered)) => self.keep(answered),
                Ok(None) => {}
                Err(err) => return Err(errors::not_sent(err)),
            }
        }
        Ok(())
    }
}
