//! What drives one session, in whatever thread it is.
//!
//! Invariant: the four-armed `match` over a session's steps, and nothing about which thread should do it when.

mod calls;
mod conversations;
mod greeting;
mod requests;

use super::Site;
use super::connections::Entry;
use super::loans::Loan;
use super::talk::Talk;
use crate::channel::StopToken;
use crate::connection::{Connection, ReceiveError, is_gone, is_timeout};
use crate::context::Context;
use crate::event::Event;
use crate::listener::Wire;
use crate::panics;
use crate::protocol::Step;
use crate::protocol::passenger::session::PassengerSession;
use crate::protocol::server::{Happening, ServerSession};
use crate::session::Conversation;
use crate::sys::epoll::Interest;
use crate::sys::linger::{self, Socket};
use crate::sys::rights::Rights;
use crate::sys::socket;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a thread sleeps in the kernel for one client before the session is parked. The kernel makes 8 to 12 ms
/// of it, at 250 ticks a second.
const NAP: Duration = Duration::from_millis(5);

/// One session with its connection.
pub(super) struct Driver {
    site: Arc<Site>,
    talk: Talk,
    /// Made for the first call: a client that never calls shall cost little.
    context: Option<Box<Context>>,
    connection: Connection,
    is_known_to_events: bool,
    /// Where the output is while a call is being answered, once there was any.
    loan: Option<Arc<Loan>>,
    /// What it waits for while it is parked.
    interest: Interest,
    /// Where a worker shows how this connection stands, and what its client calls it.
    shown: Option<Box<(usize, u64)>>,
    /// The kernel lets nobody send descriptors before the password was right.
    refuses_rights: bool,
    /// Counts the connection; the last field, so that it goes after the socket.
    entry: Entry,
}

pub(super) use self::requests::Request;

/// What came of a turn.
pub(super) enum Turn {
    /// Something has moved.
    Moved,
    /// A call is to be answered with [`Driver::answer`].
    Call,
    /// A request in Passenger's format is to be answered with [`Driver::answer_request`].
    Request(Request),
    /// A callback has been called.
    Delivered,
    /// The client must do something first.
    Waits(Interest),
    /// The session is over.
    Over,
}

impl Driver {
    /// Drives a connection; `native`, whatever its listener speaks.
    pub(super) fn new(
        site: Arc<Site>,
        socket: Arc<Socket>,
        entry: Entry,
        native: bool,
    ) -> Box<Driver> {
        let port = &entry.port;
        let (password, limits) = (entry.password(), Arc::clone(&port.limits));
        let now = Instant::now();
        let talk = match &port.bound.wire {
            Wire::Passenger if !native => {
                Talk::Passenger(Box::new(PassengerSession::new(password, limits, now)))
            }
            // What speaks another protocol begins behind this: see `begin_records`.
            _ => {
                let mut session = ServerSession::new(password, limits, now);
                session.close_on_error(site.close_on_error);
                Talk::Native {
                    session,
                    stream: None,
                }
            }
        };
        let refuses_rights = port.bound.refuses_rights();
        socket.set_may_hold_rights(!refuses_rights);
        let mut connection = Connection::new(socket);
        connection.set_wait(site.wait);
        Box::new(Driver {
            refuses_rights,
            site,
            talk,
            context: None,
            connection,
            is_known_to_events: false,
            loan: None,
            interest: Interest::Readable,
            shown: None,
            entry,
        })
    }

    /// The connection is the owner's, who is no stranger and may take its time.
    pub(super) fn is_the_owners(&mut self) {
        if let Talk::Native { session, .. } = &mut self.talk {
            session.has_time();
        }
        self.has_another_socket();
        self.entry.is_no_stranger();
    }

    /// The socket did not come from the listener, whose sockets refuse descriptors.
    pub(super) fn has_another_socket(&mut self) {
        self.refuses_rights = false;
        self.socket().set_may_hold_rights(true);
    }

    pub(super) fn id(&self) -> u64 {
        self.entry.id
    }

    pub(super) fn socket(&self) -> Arc<Socket> {
        self.connection.share()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.talk.deadline()
    }

    pub(super) fn is_known_to_events(&self) -> bool {
        self.is_known_to_events
    }

    /// What it was parked for last.
    pub(super) fn interest(&self) -> Interest {
        self.interest
    }

    /// Whether something waits to be sent.
    pub(super) fn has_output(&self) -> bool {
        self.talk.outbox().queued() > 0
    }

    /// Whether no further call is going to be taken.
    pub(super) fn is_ending(&self) -> bool {
        self.talk.ending().is_some()
    }

    /// Whether nothing is to be done until the client begins something. If so, it has begun to be silent.
    pub(super) fn falls_silent(&mut self) -> bool {
        let Talk::Native {
            session,
            stream: None,
        } = &mut self.talk
        else {
            return false;
        };
        let is_idle = session.outbox.queued() == 0
            && !session.inbox.has_unread()
            && session.ending().is_none()
            && !session.is_leaving()
            && !self.entry.is_draining();
        if is_idle {
            session.falls_silent(Instant::now);
        }
        is_idle
    }

    /// Whether something waits for it that no event of its socket will tell of.
    pub(super) fn has_letters(&self) -> bool {
        let conversation = self.talk.conversation();
        conversation.is_some_and(|conversation| conversation.mailbox().has_letters())
    }

    /// What tells its stream to stop.
    pub(super) fn stop_token(&self) -> StopToken {
        self.entry.stop_token(&self.site.stop)
    }

    /// Whether something has been received and not been looked at.
    pub(super) fn has_input(&self) -> bool {
        match self.talk.conversation() {
            Some(conversation) => conversation.has_more(),
            None => self.talk.inbox().has_unread(),
        }
    }

    /// Gives back what a parked session does not need, and says until when it may be parked.
    pub(super) fn prepare_to_rest(&mut self, interest: Interest) -> Option<Instant> {
        self.is_known_to_events = true;
        self.interest = interest;
        self.talk.inbox_mut().rest();
        self.talk.outbox_mut().rest();
        if let Some(conversation) = self.talk.conversation_mut() {
            conversation.set_blocked(false);
        }
        self.talk.deadline()
    }

    /// Does the one thing that the session wants. With `sleep`, it waits a moment for the client.
    #[inline]
    pub(super) fn turn(&mut self, sleep: bool) -> Turn {
        if self.entry.is_draining() {
            self.talk.drain();
        }
        let Talk::Native {
            session,
            stream: None,
        } = &mut self.talk
        else {
            return self.turn_of_others(sleep);
        };
        match session.next_arrived() {
            true => Turn::Call,
            false => self.step(sleep),
        }
    }

    /// What is to be done where no calls come.
    #[cold]
    fn turn_of_others(&mut self, sleep: bool) -> Turn {
        match &self.talk {
            Talk::Passenger(_) => self.request_step(sleep),
            _ => self.converse(),
        }
    }

    /// What is to be done when no call has arrived that could be answered.
    fn step(&mut self, sleep: bool) -> Turn {
        let Talk::Native { session, .. } = &mut self.talk else {
            return Turn::Over;
        };
        if session.stops_reading() {
            socket::shut_down_reading(&self.connection);
        }
        match session.poll(Instant::now) {
            Step::Event(Happening::Authenticated { fds, tag }) => {
                self.welcome(fds, tag);
                Turn::Moved
            }
            Step::Event(Happening::Call) => Turn::Call,
            Step::Transmit => self.transmit(sleep),
            Step::Receive => self.receive(sleep),
            Step::Closed => self.is_over(),
        }
    }

    fn is_over(&mut self) -> Turn {
        if let Some(ending) = self.talk.ending() {
            self.entry.ending = ending.clone();
        }
        Turn::Over
    }

    /// Sends what waits to be sent, as far as the kernel takes it. If the connection is broken, the next turn finds out.
    pub(super) fn send_now(&mut self) {
        if let Ok(len @ 1..) = self.connection.transmit_now(self.talk.outbox()) {
            self.has_sent(len);
        }
    }

    /// Goes on after a rest. A session of calls need not be asked for what it was waiting for.
    pub(super) fn resume(&mut self) -> Turn {
        match self.talk.conversation() {
            Some(_) => Turn::Moved,
            None => self.move_on(),
        }
    }

    /// Whether what the session was parked for has come after all. Its deadline is then no reason to end it.
    pub(super) fn moves_after_all(&mut self) -> bool {
        matches!(self.move_on(), Turn::Moved)
    }

    fn move_on(&mut self) -> Turn {
        match self.interest {
            Interest::Readable => self.receive(false),
            Interest::Writable => self.transmit(false),
            Interest::Both => match self.transmit(false) {
                Turn::Waits(_) => self.receive(false),
                turn => turn,
            },
            Interest::Nothing => Turn::Waits(Interest::Nothing),
        }
    }

    fn transmit(&mut self, sleep: bool) -> Turn {
        let written = match sleep {
            true => self.connection.transmit(self.talk.outbox(), Some(NAP)),
            false => self.connection.transmit_now(self.talk.outbox()),
        };
        match written {
            Ok(len) => {
                self.has_sent(len);
                Turn::Moved
            }
            Err(err) if is_timeout(&err) => {
                if let Talk::Native {
                    session,
                    stream: None,
                } = &mut self.talk
                {
                    session.waits_for_room(Instant::now);
                }
                Turn::Waits(Interest::Writable)
            }
            Err(err) => self.broke("sendmsg", &err),
        }
    }

    fn has_sent(&mut self, len: usize) {
        let was_pressed = self.talk.is_pressed();
        self.talk.transmitted(len, Instant::now);
        self.tell_pressure(was_pressed);
        if !self.has_output() {
            self.flushed();
        }
    }

    fn receive(&mut self, sleep: bool) -> Turn {
        let rights = if self.talk.accepts_fds() {
            Rights::Accept
        } else {
            Rights::Discard
        };
        let inbox = self.talk.inbox_mut();
        let received = match (sleep, rights) {
            // The kernel closes what is discarded before it returns.
            (_, Rights::Discard) if !self.refuses_rights => {
                linger::interrupted(|| self.connection.receive_now(inbox, rights))
            }
            (true, _) => self.connection.receive(inbox, rights, Some(NAP)),
            (false, _) => self.connection.receive_now(inbox, rights),
        };
        match received {
            Ok(true) => Turn::Moved,
            Ok(false) => Turn::Waits(Interest::Readable),
            Err(ReceiveError::Protocol(err)) => {
                self.talk.fail(err);
                Turn::Moved
            }
            Err(ReceiveError::Io(err)) => self.broke("recvmsg", &err),
        }
    }

    /// The connection is of no use any more. That the client hung up is no failure of ours.
    fn broke(&self, call: &'static str, err: &io::Error) -> Turn {
        let session = Some(self.entry.id);
        if !is_gone(err) {
            self.entry.observer().failed(session, call, err);
        }
        Turn::Over
    }

    /// Tells if the watermarks have been crossed since `was_pressed`.
    fn tell_pressure(&self, was_pressed: bool) {
        let (session, queued) = (self.entry.id, self.talk.outbox().queued());
        match (was_pressed, self.talk.is_pressed()) {
            (false, true) => self
                .entry
                .observer()
                .tell(|| Event::HighWatermark { session, queued }),
            (true, false) => self
                .entry
                .observer()
                .tell(|| Event::LowWatermark { session, queued }),
            _ => {}
        }
    }

    /// All answers have left.
    fn flushed(&mut self) {
        if self.entry.is_known() {
            let session = self.entry.id;
            self.entry.observer().tell(|| Event::Flushed { session });
        }
        self.run_deferred();
    }

    /// Runs what the handlers have put off until their answers were sent.
    fn run_deferred(&mut self) {
        let conversation = self.talk.conversation_mut();
        let context = conversation.and_then(Conversation::context_mut);
        let Some(context) = context.or(self.context.as_deref_mut()) else {
            return;
        };
        let tasks = context.take_deferred();
        if tasks.is_empty() {
            return;
        }
        context.goes_on();
        for task in tasks {
            // The answer is gone already: the client need not know.
            if let Err(panicked) = panics::catch(task) {
                let (session, observer) = (Some(self.entry.id), self.entry.observer());
                observer.panicked(session, "a deferred task", &panicked);
            }
        }
        context.ends();
    }
}

impl Drop for Driver {
    /// What users have kept in a session may panic when it is dropped, which must not end the thread.
    fn drop(&mut self) {
        self.say_goodbye();
        if let Some((place, tag)) = self.shown.as_deref().copied() {
            self.site.control.gate().counts().close_session(place, tag);
        }
        self.run_deferred();
        let context = self.context.take();
        if let Err(panicked) = panics::catch(|| drop(context)) {
            let (session, observer) = (Some(self.entry.id), self.entry.observer());
            observer.panicked(session, "a value kept in the session", &panicked);
        }
    }
}
