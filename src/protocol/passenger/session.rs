//! The server's side of one connection of Passenger's `AbstractServer`: password, one request, and then whatever
//! its handler says.
//!
//! Invariant: nothing of the request is looked at before the password is right, and no descriptor is accepted here;
//! who does not know the password, or says nothing, is left without a byte, as the original does.

use super::{Front, MAX_BODY, TooLong, elements, find_array, find_scalar};
use crate::limits::Limits;
use crate::password::Password;
use crate::protocol::Step;
use crate::protocol::ending::Ending;
use crate::protocol::frame::ProtocolError;
use crate::protocol::inbox::Inbox;
use crate::protocol::outbox::Outbox;
use crate::protocol::passenger::{ARRAY_HEAD, SCALAR_HEAD};
use crate::protocol::patience::Patience;
use bytes::BytesMut;
use std::sync::Arc;
use std::time::Instant;

/// The longest password that is waited for. The original's have 86 bytes at most, ours [`Password::MAX`].
pub(crate) const MAX_PASSWORD: usize = 128;

/// What a session reports.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    /// The password was right.
    Authenticated,
    /// The request, to be answered with [`PassengerSession::finish`] or handed on with
    /// [`PassengerSession::hand_over`].
    Request { name: Vec<u8>, args: Vec<Vec<u8>> },
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// Waiting for the request, or in the middle of receiving it.
    Ready,
    /// The request is being answered.
    Calling,
    /// Flush what is queued, then it is over.
    Closing(Ending),
}

/// One connection, seen by the server.
#[derive(Debug)]
pub(crate) struct PassengerSession {
    password: Arc<Password>,
    limits: Arc<Limits>,
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    state: State,
    patience: Patience,
    draining: bool,
}

impl PassengerSession {
    pub(crate) fn new(
        password: Arc<Password>,
        limits: Arc<Limits>,
        now: Instant,
    ) -> PassengerSession {
        PassengerSession {
            inbox: Inbox::new(limits.bounds()),
            outbox: Outbox::new(limits.bounds()),
            state: State::Greeting,
            patience: Patience::with_stranger(&limits, now),
            draining: false,
            password,
            limits,
        }
    }

    /// What to do next. [`Step::Transmit`] comes only behind [`PassengerSession::finish`].
    pub(crate) fn poll(&mut self, now: Instant) -> Step<Happening> {
        loop {
            let step = match self.state {
                State::Greeting => self.greet(now),
                State::Ready => self.serve(now),
                State::Calling => Some(Step::Receive),
                State::Closing(_) if self.outbox.queued() == 0 => Some(Step::Closed),
                State::Closing(_) => Some(self.flush(now)),
            };
            if let Some(step) = step {
                return step;
            }
        }
    }

    /// Answers the request with the bytes of whole messages, if with any, and ends.
    pub(crate) fn finish(&mut self, answer: Vec<u8>) {
        let queued = self.outbox.send_bytes(answer);
        self.end(queued.map_or_else(Ending::Protocol, |()| Ending::Finished));
    }

    /// Gives the connection to a handler, with what has been received behind the request. The session is over, and
    /// closes nothing.
    pub(crate) fn hand_over(&mut self) -> BytesMut {
        self.end(Ending::Finished);
        self.inbox.take_unread()
    }

    /// A request that has not been reported yet will not be. The driver sees to it that the input ends.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
    }

    /// When the session wants to be polled again even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.patience.deadline()
    }

    /// Why the session is over, once it is.
    pub(crate) fn ending(&self) -> Option<&Ending> {
        match &self.state {
            State::Closing(ending) => Some(ending),
            _ => None,
        }
    }

    /// Output made progress: the write timeout begins anew.
    pub(crate) fn transmitted(&mut self, len: usize, now: Instant) {
        self.outbox.transmitted(len);
        let all = self.outbox.queued() == 0;
        self.patience.has_sent(all, &self.limits, || now);
    }

    /// One turn of the state `Greeting`. `None`: the state has changed, look again.
    fn greet(&mut self, now: Instant) -> Option<Step<Happening>> {
        if self.draining {
            self.end(Ending::Stopping);
            return None;
        }
        match find_scalar(self.inbox.unread(), MAX_PASSWORD) {
            Ok(Front::Whole(len)) => {
                let given = self.inbox.take(len);
                if self.password.matches(&given[SCALAR_HEAD..]) {
                    self.state = State::Ready;
                    self.patience.rest();
                    return Some(Step::Event(Happening::Authenticated));
                }
                self.end(Ending::Denied);
                None
            }
            Ok(Front::Partial(_)) => self.receive(now, Ending::TimedOut, Ending::Denied),
            Err(TooLong { .. }) => {
                self.end(Ending::Denied);
                None
            }
        }
    }

    /// One turn of the state `Ready`, as above.
    fn serve(&mut self, now: Instant) -> Option<Step<Happening>> {
        if self.draining {
            self.end(Ending::Stopping);
            return None;
        }
        let max = MAX_BODY.min(self.limits.max_frame);
        match find_array(self.inbox.unread(), max) {
            Ok(Front::Whole(len)) => self.begin(len),
            Ok(Front::Partial(least)) => {
                self.inbox.expect(least);
                let has_begun = self.inbox.has_unread();
                let late = self
                    .patience
                    .wait_for_input(has_begun, &self.limits, || now);
                self.receive(now, late, Ending::Finished)
            }
            Err(TooLong { size, limit }) => {
                self.end(Ending::Protocol(ProtocolError::FrameTooLarge {
                    size,
                    limit,
                }));
                None
            }
        }
    }

    /// The request is whole.
    fn begin(&mut self, len: usize) -> Option<Step<Happening>> {
        let mut elements = elements(&self.inbox.take(len)[ARRAY_HEAD..]).into_iter();
        let Some(name) = elements.next() else {
            let reason = ProtocolError::Malformed("request: it has no name");
            self.end(Ending::Protocol(reason));
            return None;
        };
        self.state = State::Calling;
        self.patience.lift();
        let args = elements.collect();
        Some(Step::Event(Happening::Request { name, args }))
    }

    /// More must come, unless it is too late or the other side has finished.
    fn receive(&mut self, now: Instant, late: Ending, eof: Ending) -> Option<Step<Happening>> {
        if self.inbox.is_at_end() {
            self.end(eof);
        } else if self.patience.is_over(|| now) {
            self.end(late);
        } else {
            return Some(Step::Receive);
        }
        None
    }

    fn flush(&mut self, now: Instant) -> Step<Happening> {
        self.patience.wait_for_room(&self.limits, || now);
        if self.patience.is_over(|| now) {
            self.end(Ending::TimedOut);
            return Step::Closed;
        }
        Step::Transmit
    }

    fn end(&mut self, ending: Ending) {
        self.state = State::Closing(ending);
    }
}

#[cfg(test)]
mod tests;
