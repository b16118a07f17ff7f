//! What drives one session, in whatever thread it is.
//!
//! Invariant: the four-armed `match` over a session's steps, and nothing about which thread should do it when.

use super::Site;
use super::connections::{Entry, NotDedicated};
use super::loans::{Loan, Loans};
use crate::channel::{Channel, StopToken};
use crate::connection::{Connection, ReceiveError, is_gone, is_timeout};
use crate::context::Context;
use crate::event::Event;
use crate::panics;
use crate::protocol::Step;
use crate::protocol::message::{Call, Class, ErrorBody};
use crate::protocol::server::{Happening, ServerSession};
use crate::service::{self, Outcome, Scope, StreamTask};
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
    session: ServerSession,
    /// Made for the first call: a client that never calls shall cost little.
    context: Option<Box<Context>>,
    connection: Connection,
    is_known_to_events: bool,
    /// Where the output is while a call is being answered, once there was any.
    loan: Option<Arc<Loan>>,
    /// What it waits for while it is parked.
    interest: Interest,
    /// The kernel lets nobody send descriptors before the password was right.
    refuses_rights: bool,
    /// Counts the connection; the last field, so that it goes after the socket.
    entry: Entry,
}

/// What came of a turn.
pub(super) enum Turn {
    /// Something has moved.
    Moved,
    /// A call is to be answered with [`Driver::answer`].
    Call(Call),
    /// The client must do something first.
    Waits(Interest),
    /// The session is over.
    Over,
}

impl Driver {
    pub(super) fn new(site: Arc<Site>, socket: Arc<Socket>, entry: Entry) -> Box<Driver> {
        let port = &entry.port;
        let (password, limits) = (Arc::clone(&port.bound.password), Arc::clone(&port.limits));
        let session = ServerSession::new(password, limits, Instant::now());
        let refuses_rights = port.bound.refuses_rights();
        socket.set_may_hold_rights(!refuses_rights);
        let connection = Connection::new(socket);
        Box::new(Driver {
            refuses_rights,
            site,
            session,
            context: None,
            connection,
            is_known_to_events: false,
            loan: None,
            interest: Interest::Readable,
            entry,
        })
    }

    /// The connection is the owner's, who is no stranger and may take its time.
    pub(super) fn is_the_owners(&mut self) {
        self.session.has_time();
        // It did not come from the listener, which says so.
        self.refuses_rights = false;
        self.socket().set_may_hold_rights(true);
        self.entry.is_no_stranger();
    }

    pub(super) fn id(&self) -> u64 {
        self.entry.id
    }

    pub(super) fn socket(&self) -> Arc<Socket> {
        self.connection.share()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.session.deadline()
    }

    pub(super) fn is_known_to_events(&self) -> bool {
        self.is_known_to_events
    }

    /// Whether something waits to be sent.
    pub(super) fn has_output(&self) -> bool {
        self.session.outbox.queued() > 0
    }

    /// Whether nothing is to be done until the client begins something. If so, it has begun to be silent.
    pub(super) fn falls_silent(&mut self) -> bool {
        let is_idle = !self.has_output()
            && !self.has_input()
            && self.session.ending().is_none()
            && !self.entry.is_draining();
        if is_idle {
            self.session.falls_silent(Instant::now);
        }
        is_idle
    }

    /// What tells its stream to stop.
    pub(super) fn stop_token(&self) -> StopToken {
        self.entry.stop_token(&self.site.stop)
    }

    /// Whether something has been received and not been looked at.
    pub(super) fn has_input(&self) -> bool {
        self.session.inbox.has_unread()
    }

    /// Gives back what a parked session does not need, and says until when it may be parked.
    pub(super) fn prepare_to_rest(&mut self, interest: Interest) -> Option<Instant> {
        self.is_known_to_events = true;
        self.interest = interest;
        self.session.inbox.rest();
        self.session.outbox.rest();
        self.session.deadline()
    }

    /// Does the one thing that the session wants. With `sleep`, it waits a moment for the client.
    #[inline]
    pub(super) fn turn(&mut self, sleep: bool) -> Turn {
        if self.entry.is_draining() {
            self.session.drain();
        }
        match self.session.next_arrived() {
            Some(call) => Turn::Call(call),
            None => self.step(sleep),
        }
    }

    /// What is to be done when no call has arrived that could be answered.
    fn step(&mut self, sleep: bool) -> Turn {
        let now = Instant::now();
        match self.session.poll(now) {
            Step::Event(Happening::Authenticated { fds }) => {
                if !self.refuses_rights {
                    // They may come at any time. It cannot fail.
                    let _ = socket::keep_urgent_bytes(&self.connection);
                }
                // Who has said already that nothing will follow needs no permission.
                let allowed = fds && !self.session.inbox.is_next_the_last() && self.allow_rights();
                self.session.welcome(allowed);
                self.entry.authenticated();
                Turn::Moved
            }
            Step::Event(Happening::Call(call)) => Turn::Call(call),
            Step::Transmit => self.transmit(sleep, now),
            Step::Receive => self.receive(sleep),
            Step::Closed => {
                if let Some(ending) = self.session.ending() {
                    self.entry.ending = ending.clone();
                }
                Turn::Over
            }
        }
    }

    /// Lets the client send descriptors.
    fn allow_rights(&self) -> bool {
        self.socket().set_may_hold_rights(true);
        let kept = socket::keep_urgent_bytes(&self.connection);
        kept.is_ok() && socket::allow_rights(&self.connection, true).is_ok()
    }

    /// Sends what waits to be sent, as far as the kernel takes it. If the connection is broken, the next turn finds out.
    pub(super) fn send_now(&mut self) {
        if let Ok(len @ 1..) = self.connection.transmit_now(&self.session.outbox) {
            self.has_sent(len, Instant::now());
        }
    }

    /// Whether what the session was parked for has come after all. Its deadline is then no reason to end it.
    pub(super) fn moves_after_all(&mut self) -> bool {
        let turn = match self.interest {
            Interest::Readable => self.receive(false),
            Interest::Writable => self.transmit(false, Instant::now()),
        };
        matches!(turn, Turn::Moved)
    }

    /// Lends what waits to be sent while the next call is being answered. `false`: there is nothing.
    pub(super) fn lend(&mut self, loans: &Loans) -> bool {
        if !self.has_output() {
            return false;
        }
        let connection = &self.connection;
        let loan = self
            .loan
            .get_or_insert_with(|| loans.register(connection.share()));
        loans.lend(loan, &mut self.session);
        true
    }

    /// Answers the call that the last turn gave, or says what its stream is to be handed to: then
    /// [`Driver::run_stream`] or [`Driver::refuse`] must follow. `loans`: where what was lent is.
    pub(super) fn answer(&mut self, mut call: Call, loans: Option<&Loans>) -> Option<StreamTask> {
        let Site {
            control, service, ..
        } = &*self.site;
        let port = &self.entry.port;
        let context = self.context.get_or_insert_with(|| {
            let (control, name) = (control.clone(), Arc::clone(&port.bound.name));
            Box::new(Context::new(
                control,
                name,
                self.entry.peer,
                self.entry.id,
                self.connection.share(),
            ))
        });
        control.gate().call_begins();
        let deadline = |timeout| Instant::now().checked_add(timeout);
        context.begin_call(call.timeout.and_then(deadline));
        let scope = Scope {
            limits: &port.limits,
            only: port.bound.only.as_deref(),
        };
        let outcome = service.answer(context, &mut call, &scope);
        let is_urgent = context.has_deferred();
        if let (Some(loan), Some(loans)) = (&self.loan, loans) {
            loans.reclaim(loan, &mut self.session);
        }
        match outcome {
            Outcome::Answer(answer) => {
                self.session.finish(answer);
                if is_urgent {
                    // What was put off until the answer has left comes before the next call.
                    self.session.hurry();
                }
                self.tell_pressure(false);
            }
            Outcome::Stream(task) => match self.entry.dedicate(self.site.limits.max_dedicated) {
                Ok(()) => return Some(task),
                Err(NotDedicated::Full) => self.refuse(task, ErrorBody::busy("max_dedicated")),
                Err(NotDedicated::Stopping) => {
                    self.refuse(task, ErrorBody::new(Class::Stopping, Vec::new()));
                }
            },
        }
        None
    }

    /// The stream that was asked for cannot be had. Its arguments may panic when they are dropped, which must not
    /// end the thread.
    pub(super) fn refuse(&mut self, task: StreamTask, body: ErrorBody) {
        let StreamTask { name, run } = task;
        if let Err(panicked) = panics::catch(|| drop(run)) {
            let (session, observer) = (Some(self.entry.id), self.entry.observer());
            observer.panicked(session, &name, &panicked);
        }
        self.entry.undedicate();
        let id = self.session.call_id();
        self.session.finish(body.write(id));
        self.tell_pressure(false);
    }

    /// Opens the stream and hands it to its handler; returns when the connection is ours again.
    pub(super) fn run_stream(&mut self, task: StreamTask, stop: StopToken) {
        let Some(context) = &mut self.context else {
            return;
        };
        let (id, home) = (self.session.call_id(), Arc::default());
        let parts = self.session.open_stream();
        let mut channel = Channel::serve(
            parts,
            &self.connection,
            &self.entry.port.limits,
            stop,
            &home,
        );
        let session = self.entry.id;
        let observer = self.entry.observer();
        observer.tell(|| Event::StreamOpened { session });
        let result = panics::catch(|| {
            channel.flush()?;
            (task.run)(context, channel)
        });
        if let Err(panicked) = &result {
            observer.panicked(Some(session), &task.name, panicked);
        }
        let (input, output) = home.wait();
        observer.tell(|| Event::StreamClosed { session });
        let answer = service::end_of_stream(id, result);
        self.session.close_stream(input, output, answer);
        if context.has_deferred() {
            // As behind any answer.
            self.session.hurry();
        }
        // What the handler could not send still waits.
        self.tell_pressure(false);
        self.entry.undedicate();
    }

    fn transmit(&mut self, sleep: bool, now: Instant) -> Turn {
        let written = match sleep {
            true => self.connection.transmit(&self.session.outbox, Some(NAP)),
            false => self.connection.transmit_now(&self.session.outbox),
        };
        match written {
            Ok(len) => {
                self.has_sent(len, now);
                Turn::Moved
            }
            Err(err) if is_timeout(&err) => Turn::Waits(Interest::Writable),
            Err(err) => self.broke("sendmsg", &err),
        }
    }

    fn has_sent(&mut self, len: usize, now: Instant) {
        let was_pressed = self.session.is_pressed();
        self.session.transmitted(len, now);
        self.tell_pressure(was_pressed);
        if self.session.outbox.queued() == 0 {
            self.flushed();
        }
    }

    fn receive(&mut self, sleep: bool) -> Turn {
        let rights = if self.session.accepts_fds() {
            Rights::Accept
        } else {
            Rights::Discard
        };
        let inbox = &mut self.session.inbox;
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
                self.session.fail(err);
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
        let (session, queued) = (self.entry.id, self.session.outbox.queued());
        match (was_pressed, self.session.is_pressed()) {
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
        self.run_deferred();
        if self.entry.is_known() {
            let session = self.entry.id;
            self.entry.observer().tell(|| Event::Flushed { session });
        }
    }

    /// Runs what the handlers have put off until their answers were sent.
    fn run_deferred(&mut self) {
        let Some(context) = &mut self.context else {
            return;
        };
        for task in context.take_deferred() {
            // The answer is gone already: the client need not know.
            if let Err(panicked) = panics::catch(task) {
                let (session, observer) = (Some(self.entry.id), self.entry.observer());
                observer.panicked(session, "a deferred task", &panicked);
            }
        }
    }
}

impl Drop for Driver {
    /// What users have kept in a session may panic when it is dropped, which must not end the thread.
    fn drop(&mut self) {
        self.run_deferred();
        let context = self.context.take();
        if let Err(panicked) = panics::catch(|| drop(context)) {
            let (session, observer) = (Some(self.entry.id), self.entry.observer());
            observer.panicked(session, "a value kept in the session", &panicked);
        }
    }
}
