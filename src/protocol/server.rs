//! The server's side of one connection: greeting, then one call after the other.
//!
//! Invariant: nothing that was received is decoded, and no descriptor is accepted, before the password is right;
//! a session is a value that any thread may go on with between two calls.

mod batch;
mod leaving;

pub(crate) use self::leaving::Close;

use super::Step;
use super::ending::Ending;
use super::frame::{HEADER_LEN, Header, Kind, Outgoing, ProtocolError};
use super::greeting::{BINCODE, Denied, HELLO_MAX, Hello, VERSION, Welcome};
use super::inbox::Inbox;
use super::message::{Arrived, Call, Class, ErrorBody};
use super::outbox::Outbox;
use super::patience::Patience;
use super::stream::{self, Side, StreamIn, StreamOut};
use crate::limits::{Bounds, Limits};
use crate::password::Password;
use std::sync::Arc;
use std::time::Instant;

/// What a server session reports.
#[derive(Debug)]
pub(crate) enum Happening {
    /// The password was right. With `fds` the client wants to send descriptors: allow them before going on.
    /// `tag`: its name for the connection.
    Authenticated { fds: bool, tag: u64 },
    /// A call, [`ServerSession::call`], is to be answered with [`ServerSession::finish`].
    Call,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Greeting,
    /// Between calls, or in the middle of receiving one.
    Ready,
    /// A call is being answered, or its stream is open.
    Calling(Arrived),
    /// Flush what is queued, then it is over.
    Closing(Ending),
}

/// One connection, seen by the server.
#[derive(Debug)]
pub(crate) struct ServerSession {
    password: Arc<Password>,
    limits: Arc<Limits>,
    pub(crate) inbox: Inbox,
    /// Boxed, because it is lent with every call of a batch.
    pub(crate) outbox: Box<Outbox>,
    state: State,
    patience: Patience,
    /// The welcome is queued and waits for the first reply to travel with.
    holds_welcome: bool,
    /// Why no further call is begun, if so.
    leaving: Option<Ending>,
    /// The driver shall end the input.
    is_to_stop_reading: bool,
    /// A call that is answered with an error is the last.
    closes_on_error: bool,
    /// Calls that were begun.
    calls: u64,
    /// Answers that are queued and have not left.
    held: u32,
    /// More is queued than `high_watermark`, and not yet as little as `low_watermark`.
    is_pressed: bool,
    /// The last answer must leave before the next call is taken.
    is_urgent: bool,
    /// The stream whose answer is given and whose client may not know it yet.
    leftover: Option<u32>,
}

impl ServerSession {
    pub(crate) fn new(password: Arc<Password>, limits: Arc<Limits>, now: Instant) -> ServerSession {
        ServerSession {
            inbox: Inbox::new(limits.bounds()),
            outbox: Box::new(Outbox::new(limits.bounds())),
            patience: Patience::with_stranger(&limits, now),
            state: State::Greeting,
            holds_welcome: false,
            leaving: None,
            is_to_stop_reading: false,
            closes_on_error: false,
            calls: 0,
            held: 0,
            is_pressed: false,
            is_urgent: false,
            leftover: None,
            password,
            limits,
        }
    }

    /// The client is known to be the owner's, and may say hello when it likes.
    pub(crate) fn has_time(&mut self) {
        self.patience.lift();
    }

    /// What to do next. `now` is asked only where something has to be done in time.
    pub(crate) fn poll(&mut self, now: impl Fn() -> Instant) -> Step<Happening> {
        loop {
            match self.state {
                State::Greeting => match self.greet() {
                    Ok(Some((fds, tag))) => {
                        return Step::Event(Happening::Authenticated { fds, tag });
                    }
                    Ok(None) if self.state == State::Greeting => return self.wait_for_hello(now),
                    Ok(None) => {}
                    Err(_) => self.end(Ending::Denied),
                },
                State::Ready => {
                    if let Some(step) = self.serve(&now) {
                        return step;
                    }
                }
                State::Calling(_) => return Step::Receive,
                State::Closing(_) if self.outbox.queued() == 0 => return Step::Closed,
                State::Closing(_) => return self.flush(now),
            }
        }
    }

    /// Descriptors may be received from now on, because the kernel was told so or never refuses them.
    pub(crate) fn welcome(&mut self, welcome: Welcome) {
        self.queue(welcome.write());
    }

    /// The call that is to be answered.
    #[inline]
    pub(crate) fn call(&mut self) -> Option<Call<'_>> {
        match &self.state {
            State::Calling(arrived) => Some(Call::new(arrived, self.inbox.content())),
            _ => None,
        }
    }

    /// The answer to the call that [`ServerSession::poll`] reported last.
    ///
    /// # Panics
    /// Without such a call, in debug builds.
    pub(crate) fn finish(&mut self, answer: Outgoing) {
        let State::Calling(Arrived { id, last, .. }) = self.state else {
            debug_assert!(false, "no call is waiting for an answer");
            return;
        };
        self.inbox.close();
        self.held += 1;
        let has_failed = self.closes_on_error && answer.is_error();
        // Descriptors need a write of their own, and shall not stay open for longer than need be.
        self.is_urgent |= !answer.fds.is_empty();
        if let Err(err) = self.outbox.send(answer) {
            let body = ErrorBody::new(Class::BadReply, vec![err.to_string()]);
            self.queue(body.write(id));
        }
        self.holds_welcome = false;
        self.is_pressed |= self.outbox.queued() > self.limits.high_watermark;
        self.state = if last {
            State::Closing(Ending::Finished)
        } else {
            State::Ready
        };
        self.patience.rest();
        self.leave_at_limit();
        self.leave_if(has_failed, Ending::CallFailed);
    }

    /// The id of the call that is being answered, 0 if none is.
    pub(crate) fn call_id(&self) -> u32 {
        match self.state {
            State::Calling(Arrived { id, .. }) => id,
            _ => 0,
        }
    }

    /// Opens a stream instead of answering the call that [`ServerSession::poll`] reported last. Both directions
    /// come back with [`ServerSession::close_stream`].
    pub(crate) fn open_stream(&mut self) -> (StreamIn, StreamOut) {
        let id = self.call_id();
        self.queue(stream::opened(id));
        self.holds_welcome = false;
        self.inbox.close();
        let inbox = std::mem::replace(&mut self.inbox, Inbox::new(Bounds::default()));
        let outbox = std::mem::replace(&mut *self.outbox, Outbox::new(Bounds::default()));
        (
            StreamIn::new(inbox, id, Side::Server),
            // A client needs to ask nobody before it receives descriptors.
            StreamOut::new(outbox, id, true),
        )
    }

    /// Ends a stream with the answer to its call; the connection goes on with the next call.
    pub(crate) fn close_stream(&mut self, input: StreamIn, output: StreamOut, answer: Outgoing) {
        self.leftover = (!input.has_ended()).then_some(input.id());
        let broken = input.broken().cloned();
        (self.inbox, *self.outbox) = (input.inbox, output.outbox);
        self.finish(answer);
        if let Some(err) = broken {
            self.break_off(err);
        }
    }

    /// When the session wants to be polled again even if nothing happens.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.patience.deadline()
    }

    /// Whether descriptors may be received: never before the password was right.
    pub(crate) fn accepts_fds(&self) -> bool {
        self.state != State::Greeting
    }

    /// Why the session is over, once it is.
    pub(crate) fn ending(&self) -> Option<&Ending> {
        match &self.state {
            State::Closing(ending) => Some(ending),
            _ => None,
        }
    }

    /// The connection broke, or a rule was broken that only the driver could see.
    pub(crate) fn fail(&mut self, error: ProtocolError) {
        self.end(Ending::Protocol(error));
    }

    /// Reads the hello. `Some`: the password is right, and what was asked for is this.
    fn greet(&mut self) -> Result<Option<(bool, u64)>, ProtocolError> {
        if self.leaving.is_some() {
            self.deny(Denied::Stopping, Ending::Stopping);
            return Ok(None);
        }
        let unread = self.inbox.unread();
        match unread.first() {
            Some(&kind) if kind != Kind::Hello as u8 => {
                return Err(ProtocolError::Unexpected("no hello"));
            }
            _ => {}
        }
        let Some(bytes) = unread.first_chunk() else {
            return Ok(None);
        };
        let header = Header::parse(bytes, HELLO_MAX - HEADER_LEN, 0)?;
        if unread.len() < HEADER_LEN + header.len as usize {
            return Ok(None);
        }
        let frame = self
            .inbox
            .next_frame()?
            .ok_or(ProtocolError::Malformed("hello"))?;
        let hello = Hello::read(&frame.payload)?;
        if !self.password.matches(hello.password) {
            self.deny(Denied::Password, Ending::Denied);
        } else if hello.version != VERSION {
            self.deny(Denied::Version, Ending::Denied);
        } else if hello.codec != BINCODE {
            self.deny(Denied::Codec, Ending::Denied);
        } else {
            self.state = State::Ready;
            self.holds_welcome = !hello.wait;
            self.patience.rest();
            self.leave_at_limit();
            return Ok(Some((hello.fds, hello.tag)));
        }
        Ok(None)
    }

    fn wait_for_hello(&mut self, now: impl Fn() -> Instant) -> Step<Happening> {
        if self.patience.is_over(now) {
            self.end(Ending::TimedOut);
            return Step::Closed;
        }
        if self.inbox.is_at_end() {
            self.end(Ending::Denied);
            return Step::Closed;
        }
        Step::Receive
    }

    /// Whether the next call has arrived, and nothing must be done before it. [`ServerSession::poll`] would report it
    /// as well, with more to look at.
    #[inline]
    pub(crate) fn next_arrived(&mut self) -> bool {
        let is_ready = matches!(self.state, State::Ready) && self.leaving.is_none();
        if !is_ready || self.has_output() && !self.may_hold() {
            return false;
        }
        match self.next_call() {
            Ok(Some(call)) => {
                self.begin(call);
                true
            }
            Ok(None) => false,
            Err(err) => {
                self.break_off(err);
                false
            }
        }
    }

    #[inline]
    fn begin(&mut self, call: Arrived) {
        self.state = State::Calling(call);
        self.patience.lift();
        self.calls += 1;
    }

    /// One turn of the state `Ready`. `None`: the state has changed, look again.
    fn serve(&mut self, now: impl Fn() -> Instant) -> Option<Step<Happening>> {
        if self.next_arrived() {
            return Some(Step::Event(Happening::Call));
        }
        if self.state != State::Ready {
            return None;
        }
        if self.has_output() {
            return Some(self.flush(now));
        }
        match self.next_call() {
            Ok(Some(call)) if self.leaving.is_some() => {
                self.refuse_to_begin(&call);
                None
            }
            Ok(Some(call)) => {
                self.begin(call);
                Some(Step::Event(Happening::Call))
            }
            Ok(None) if self.inbox.is_at_end() => {
                let within_a_frame = self.inbox.has_unread();
                let ending = self.leaving.clone().unwrap_or(match within_a_frame {
                    true => Ending::Broken,
                    false => Ending::Finished,
                });
                self.end(ending);
                None
            }
            Ok(None) => self.wait_for_call(now),
            Err(err) => {
                self.break_off(err);
                None
            }
        }
    }

    /// Whether there is something to be sent that waits for nothing.
    fn has_output(&self) -> bool {
        self.outbox.queued() > 0 && !self.holds_welcome
    }

    /// Tells the client which rule it broke, and ends.
    fn break_off(&mut self, err: ProtocolError) {
        let body = ErrorBody::new(Class::Protocol, vec![err.to_string()]);
        self.queue(body.write(0));
        self.end(Ending::Protocol(err));
    }

    #[inline]
    fn next_call(&mut self) -> Result<Option<Arrived>, ProtocolError> {
        while let Some(header) = self.inbox.open()? {
            if header.kind == Kind::Call && self.leftover.is_none() {
                return Arrived::read(header, self.inbox.payload()).map(Some);
            }
            let leftover = self.leftover.and_then(|id| stream::leftover(header, id));
            let is_last = leftover.ok_or(ProtocolError::Unexpected("a client sends calls only"))?;
            self.leftover = self.leftover.filter(|_| !is_last);
        }
        Ok(None)
    }

    fn wait_for_call(&mut self, now: impl Fn() -> Instant) -> Option<Step<Happening>> {
        let has_begun = self.inbox.has_unread();
        let ending = self.patience.wait_for_input(has_begun, &self.limits, &now);
        if self.patience.is_over(now) {
            self.end(ending);
            return None;
        }
        Some(Step::Receive)
    }

    /// Nothing is under way, and nothing has come: the time of silence begins. [`ServerSession::poll`] would see to it
    /// as well, behind a look at the clock, which is needed only if that time has an end.
    pub(crate) fn falls_silent(&mut self, now: impl FnOnce() -> Instant) {
        match self.limits.idle_timeout {
            Some(_) => drop(self.patience.wait_for_input(false, &self.limits, now)),
            // What was sent has left: its deadline is nobody's any more.
            None => self.patience.rest(),
        }
    }

    fn flush(&mut self, now: impl Fn() -> Instant) -> Step<Happening> {
        self.patience.turn_to_sending();
        if self.patience.is_over(now) {
            self.state = State::Closing(Ending::TimedOut);
            return Step::Closed;
        }
        Step::Transmit
    }

    /// There is no room for what is to be sent: the write timeout begins.
    pub(crate) fn waits_for_room(&mut self, now: impl FnOnce() -> Instant) {
        self.patience.wait_for_room(&self.limits, now);
    }

    /// Output made progress: the write timeout begins anew if some is left.
    pub(crate) fn transmitted(&mut self, len: usize, now: impl FnOnce() -> Instant) {
        self.outbox.transmitted(len);
        let all = self.has_left();
        self.patience.has_sent(all, &self.limits, now);
    }

    fn deny(&mut self, denied: Denied, ending: Ending) {
        self.queue(denied.write());
        self.end(ending);
    }

    fn end(&mut self, ending: Ending) {
        self.state = State::Closing(ending);
    }

    /// Queues a frame of our own making, which is small: it can exceed no limit that lets calls through.
    fn queue(&mut self, frame: Outgoing) {
        if let Err(err) = self.outbox.send(frame) {
            self.end(Ending::Protocol(err));
        }
    }
}
