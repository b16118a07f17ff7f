//! The client's side of one connection: say hello with the first call, then calls and answers in any order.
//!
//! Invariant: no descriptor leaves before the server has said that it takes them.

use super::Step;
use super::frame::{Header, Kind, Outgoing, ProtocolError};
use super::greeting::{Denied, Hello, Welcome};
use super::inbox::Inbox;
use super::message::{ErrorBody, Value, has_value};
use super::outbox::Outbox;
use super::stream::{Side, StreamIn, StreamOut};
use crate::limits::Bounds;
use crate::password::Password;
use std::collections::VecDeque;

/// What a client session reports.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The password was right.
    Welcome,
    /// The server refuses the connection.
    Denied(Denied),
    /// The stream of that id is open: [`ClientSession::open_stream`].
    Opened(u32),
    /// The call of that id has been answered: [`ClientSession::value`].
    Value(u32),
    /// The call of that id has no value.
    Failed(u32, Box<ErrorBody>),
}

/// One connection, seen by the client.
#[derive(Debug)]
pub(crate) struct ClientSession {
    pub(crate) inbox: Inbox,
    pub(crate) outbox: Outbox,
    hello: Greeting,
    /// The worker that serves the connection, as the welcome names it.
    worker: Option<(u32, u32)>,
    /// Frames with descriptors, and those behind them, which wait for the welcome.
    held: VecDeque<(u32, Outgoing)>,
    /// Calls whose frames have not left completely: id, and where in the stream they begin and end.
    leaving: VecDeque<(u32, u64, u64)>,
    bounds: Bounds,
    /// The flags of the last answer.
    flags: u16,
}

#[derive(Debug)]
enum Greeting {
    /// With the name for the connection that is to be said, 0 if none is.
    Unsaid(Password, u64),
    Said,
    Welcomed {
        fds: bool,
    },
}

impl ClientSession {
    pub(crate) fn new(password: Password, bounds: Bounds) -> ClientSession {
        ClientSession {
            inbox: Inbox::new(bounds),
            outbox: Outbox::new(bounds),
            hello: Greeting::Unsaid(password, 0),
            worker: None,
            held: VecDeque::new(),
            leaving: VecDeque::new(),
            bounds,
            flags: 0,
        }
    }

    /// Queues a call.
    ///
    /// # Errors
    /// It exceeds the limits, or carries descriptors and the server takes none; nothing is queued then.
    pub(crate) fn send(&mut self, id: u32, call: Outgoing) -> Result<(), ProtocolError> {
        let has_fds = !call.fds.is_empty();
        match self.hello {
            Greeting::Welcomed { fds: false } if has_fds => Err(ProtocolError::TooManyFds {
                count: call.fds.len(),
                limit: 0,
            }),
            Greeting::Welcomed { .. } => self.queue(id, call),
            _ => {
                self.say_hello(has_fds)?;
                if has_fds || !self.held.is_empty() {
                    // What is wrong with it shall be known now.
                    let call = call.seal(self.bounds.max_frame(), self.bounds.max_fds())?;
                    self.held.push_back((id, call));
                    return Ok(());
                }
                self.queue(id, call)
            }
        }
    }

    /// Queues the hello, if it has not been said yet. With `wait` the welcome comes at once.
    pub(crate) fn say_hello(&mut self, wait: bool) -> Result<(), ProtocolError> {
        if let Greeting::Unsaid(password, tag) = &self.hello {
            self.outbox.send(Hello::write(password, true, wait, *tag))?;
            self.hello = Greeting::Said;
        }
        Ok(())
    }

    /// Gives the connection a name of this side's, before it says hello.
    pub(crate) fn set_tag(&mut self, new: u64) {
        if let Greeting::Unsaid(_, tag) = &mut self.hello {
            *tag = new;
        }
    }

    /// The worker that serves the connection, by slot and generation, once it is known.
    pub(crate) fn worker(&self) -> Option<(u32, u32)> {
        self.worker
    }

    /// New bounds, for frames that have not been queued or received yet.
    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.inbox.set_bounds(bounds);
        self.outbox.set_bounds(bounds);
        self.bounds = bounds;
    }

    fn queue(&mut self, id: u32, call: Outgoing) -> Result<(), ProtocolError> {
        let begin = self.outbox.written();
        self.outbox.send(call)?;
        self.leaving.push_back((id, begin, self.outbox.written()));
        Ok(())
    }

    /// `len` bytes are gone.
    pub(crate) fn transmitted(&mut self, len: usize) {
        self.outbox.transmitted(len);
        let departed = self.outbox.departed();
        while self
            .leaving
            .front()
            .is_some_and(|(_, _, end)| *end <= departed)
        {
            self.leaving.pop_front();
        }
    }

    /// Whether the whole of a call has left: nobody knows then whether it will be executed.
    pub(crate) fn has_left(&self, id: u32) -> bool {
        self.leaving.iter().all(|(leaving, _, _)| *leaving != id)
            && self.held.iter().all(|(held, _)| *held != id)
    }

    /// Takes a call back that has not begun to leave, and was the last one sent. `false`: it cannot be.
    pub(crate) fn retract(&mut self, id: u32) -> bool {
        if self.held.back().is_some_and(|(held, _)| *held == id) {
            self.held.pop_back();
            return true;
        }
        match self.leaving.back() {
            Some(&(last, begin, _))
                if last == id && self.held.is_empty() && self.outbox.retract(begin) =>
            {
                self.leaving.pop_back();
                true
            }
            _ => false,
        }
    }

    /// Whether calls wait for the welcome, because of descriptors.
    pub(crate) fn holds_calls(&self) -> bool {
        !self.held.is_empty()
    }

    pub(crate) fn is_welcome(&self) -> bool {
        matches!(self.hello, Greeting::Welcomed { .. })
    }

    /// What to do next.
    ///
    /// # Errors
    /// The server broke the protocol; the connection is of no use any more.
    #[inline]
    pub(crate) fn poll(&mut self) -> Result<Step<Answer>, ProtocolError> {
        if let Some(answer) = self.next_answer()? {
            return Ok(Step::Event(answer));
        }
        if self.outbox.queued() > 0 {
            return Ok(Step::Transmit);
        }
        Ok(if self.inbox.is_at_end() {
            Step::Closed
        } else {
            Step::Receive
        })
    }

    /// The next answer among what has been received already.
    #[inline]
    pub(crate) fn next_answer(&mut self) -> Result<Option<Answer>, ProtocolError> {
        let Some(header) = self.inbox.open()? else {
            return Ok(None);
        };
        let id = header.id;
        if header.kind == Kind::Reply {
            self.flags = header.flags;
            // What is wrong with it shall be known now.
            if !has_value(header.flags, self.inbox.payload()) {
                return Err(ProtocolError::Malformed("value"));
            }
            return Ok(Some(Answer::Value(id)));
        }
        let answer = self.other_answer(header)?;
        self.inbox.close();
        Ok(Some(answer))
    }

    #[cold]
    fn other_answer(&mut self, header: Header) -> Result<Answer, ProtocolError> {
        let payload = self.inbox.payload();
        Ok(match header.kind {
            Kind::Welcome => {
                let welcome = Welcome::read(payload)?;
                self.welcomed(welcome)?;
                Answer::Welcome
            }
            Kind::Denied => Answer::Denied(Denied::read(payload)?),
            Kind::Opened => Answer::Opened(header.id),
            Kind::Error => {
                let body = ErrorBody::read(self.inbox.content())?;
                Answer::Failed(header.id, Box::new(body))
            }
            _ => return Err(ProtocolError::Unexpected("a server only answers")),
        })
    }

    /// The value that the last answer has, once: until the next one is looked for.
    #[inline]
    pub(crate) fn value(&mut self) -> Value<'_> {
        let value = self.inbox.content().behind_hash(self.flags);
        // It has been looked at, and is whole.
        value.unwrap_or_default()
    }

    /// Both directions of the connection, for the stream that the server has just opened. They come back with
    /// [`ClientSession::close_stream`].
    pub(crate) fn open_stream(&mut self, id: u32) -> (StreamIn, StreamOut) {
        let fds = matches!(self.hello, Greeting::Welcomed { fds: true });
        let inbox = std::mem::replace(&mut self.inbox, Inbox::new(Bounds::default()));
        let outbox = std::mem::replace(&mut self.outbox, Outbox::new(Bounds::default()));
        (
            StreamIn::new(inbox, id, Side::Client),
            StreamOut::new(outbox, id, fds),
        )
    }

    /// The stream is over, and the connection is there for further calls.
    pub(crate) fn close_stream(&mut self, input: StreamIn, output: StreamOut) {
        (self.inbox, self.outbox) = (input.inbox, output.outbox);
    }

    fn welcomed(&mut self, welcome: Welcome) -> Result<(), ProtocolError> {
        self.hello = Greeting::Welcomed { fds: welcome.fds };
        // Generations begin at 1.
        self.worker = Some(welcome.worker).filter(|(_, generation)| *generation != 0);
        for (id, frame) in std::mem::take(&mut self.held) {
            if !frame.fds.is_empty() && !welcome.fds {
                return Err(ProtocolError::TooManyFds {
                    count: frame.fds.len(),
                    limit: 0,
                });
            }
            self.queue(id, frame)?;
        }
        Ok(())
    }
}
