//! How a connection takes leave: no further call is begun, what was answered leaves, and then it is over.
//!
//! Invariant: a call that has arrived and is not begun is refused, so that its client knows that it may be repeated.

use super::{ServerSession, State};
use crate::protocol::ending::Ending;
use crate::protocol::message::{Arrived, Class, ErrorBody};
use crate::protocol::outbox::Outbox;

/// How a handler wants its connection closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// When the answers have left.
    Gracefully,
    /// Without a further byte.
    Now,
}

impl ServerSession {
    /// Calls that have not been begun are refused from now on, because the server stops. The driver sees to it that the
    /// input ends, by `shutdown(SHUT_RD)`: what the client has sent by then is still read, and refused.
    pub(crate) fn drain(&mut self) {
        self.leaving.get_or_insert(Ending::Stopping);
    }

    /// A call that is answered with an error is the last.
    pub(crate) fn close_on_error(&mut self, close: bool) {
        self.closes_on_error = close;
    }

    /// Whether the driver shall end the input now, as for a drain. Said once.
    pub(crate) fn stops_reading(&mut self) -> bool {
        std::mem::take(&mut self.is_to_stop_reading)
    }

    /// Whether no further call is begun.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaving.is_some()
    }

    /// What the handler of the call that was answered last wants.
    pub(crate) fn close(&mut self, close: Close) {
        match close {
            Close::Gracefully => self.leave_if(true, Ending::Closed),
            Close::Now => {
                *self.outbox = Outbox::new(self.limits.bounds());
                self.has_left();
                self.end(Ending::Closed);
            }
        }
    }

    /// As many calls as there may be have been begun.
    pub(super) fn leave_at_limit(&mut self) {
        let is_reached = self.limits.max_calls.is_some_and(|most| self.calls >= most);
        self.leave_if(is_reached, Ending::CallLimit);
    }

    pub(super) fn leave_if(&mut self, reason: bool, ending: Ending) {
        if reason && self.state == State::Ready && self.leaving.is_none() {
            self.leaving = Some(ending);
            self.is_to_stop_reading = true;
        }
    }

    /// Answers a call that is not begun any more.
    pub(super) fn refuse_to_begin(&mut self, call: &Arrived) {
        let class = match self.leaving {
            Some(Ending::Stopping) => Class::Stopping,
            _ => Class::Closing,
        };
        self.queue(ErrorBody::new(class, Vec::new()).write(call.id));
    }
}
