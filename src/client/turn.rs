//! What drives a client's session: one exchange with the kernel at a time.
//!
//! Invariant: the four-armed `match` over a session's steps. A connection that broke is never used again.

use super::pending::Answered;
use super::{Client, errors};
use crate::connection::{ReceiveError, is_gone, is_timeout};
use crate::error::{CallError, Delivery};
use crate::protocol::Step;
use crate::protocol::client::Answer;
use crate::protocol::message::Class;
use crate::sys::poll;
use crate::sys::rights::Rights;
use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

impl Client {
    /// One turn: an answer to a call, or some progress towards it.
    #[inline]
    pub(super) fn step(
        &mut self,
        deadline: Option<Instant>,
    ) -> Result<Option<Answered>, CallError> {
        match self.session.poll() {
            Ok(Step::Event(Answer::Value(id))) => {
                self.in_flight = self.in_flight.saturating_sub(1);
                Ok(Some(Answered { id, failure: None }))
            }
            Ok(Step::Event(Answer::Failed(_, body))) if body.class == Class::Protocol => {
                self.breaks();
                Err(CallError::Protocol(body.texts.join(": ")))
            }
            Ok(Step::Event(Answer::Failed(id, body))) => {
                self.in_flight = self.in_flight.saturating_sub(1);
                let failure = Some(body);
                Ok(Some(Answered { id, failure }))
            }
            Ok(Step::Event(Answer::Opened(id))) => {
                self.opened = Some(id);
                Ok(None)
            }
            Ok(Step::Event(Answer::Welcome)) => Ok(None),
            Ok(Step::Event(Answer::Denied(denied))) => {
                self.breaks();
                Err(errors::denied(denied))
            }
            Ok(Step::Transmit) if !self.deaf => self.transmit(deadline).map(|()| None),
            Ok(Step::Transmit | Step::Receive) if !self.session.inbox.is_at_end() => {
                self.receive(deadline).map(|()| None)
            }
            Ok(_) => {
                self.breaks();
                Err(CallError::Disconnected {
                    delivery: Delivery::MaybeExecuted,
                })
            }
            Err(err) => {
                self.breaks();
                Err(CallError::Protocol(err.to_string()))
            }
        }
    }

    /// Writes some of what is queued. A server that reads nothing because it waits for us to read is read from.
    fn transmit(&mut self, deadline: Option<Instant>) -> Result<(), CallError> {
        match self.connection.transmit_now(&self.session.outbox) {
            Ok(len) => self.session.transmitted(len),
            Err(err) if is_timeout(&err) => {
                let at_end = self.session.inbox.is_at_end();
                let ready = poll::ready(self.connection.as_fd(), !at_end, deadline);
                let (readable, writable) =
                    ready.map_err(|err| self.io("wait for the server", err))?;
                if readable && !at_end {
                    self.receive(deadline)?;
                } else if !writable {
                    return Err(self.timed_out());
                }
            }
            // It may have said why before it closed.
            Err(err) if is_gone(&err) => {
                self.deaf = true;
                self.session.outbox.let_go();
            }
            Err(source) => return Err(self.io("send to the server", source)),
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<(), CallError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(self.timed_out());
        }
        match self
            .connection
            .receive(&mut self.session.inbox, Rights::Accept, left)
        {
            // Nothing came in time: the next turn looks at the clock.
            Ok(_) => Ok(()),
            Err(ReceiveError::Protocol(err)) => {
                self.breaks();
                Err(CallError::Protocol(err.to_string()))
            }
            Err(ReceiveError::Io(err)) if err.kind() == io::ErrorKind::ConnectionReset => {
                self.breaks();
                Err(CallError::Disconnected {
                    delivery: Delivery::MaybeExecuted,
                })
            }
            Err(ReceiveError::Io(source)) => Err(self.io("receive from the server", source)),
        }
    }

    /// Nothing is sent any more: what was to be handed over is closed as soon as its owner closes it.
    fn breaks(&mut self) {
        self.broken = true;
        self.session.outbox.let_go();
    }

    fn timed_out(&self) -> CallError {
        CallError::TimedOut {
            after: self.timeout.unwrap_or_default(),
            delivery: Delivery::MaybeExecuted,
        }
    }

    fn io(&mut self, action: &'static str, source: io::Error) -> CallError {
        self.breaks();
        CallError::Io { action, source }
    }
}
