//! One session with its handler: what is due next, and what becomes of it.
//!
//! Invariant: asked what it wants, a conversation says one thing; callbacks happen in [`Conversation::deliver`] alone, so
//! that whoever drives it can contain what they do.

use super::due::{Due, Leftover};
use super::input::{Incoming, Input};
use super::mailbox::{LETTERS, Letter};
use super::{Closing, EventHandler, Mailbox, Office, Output, Session};
use crate::context::Context;
use crate::fault::Fault;
use crate::limits::Limits;
use crate::protocol::ending::Ending;
use crate::protocol::frame::ProtocolError;
use crate::protocol::framing::Framing;
use crate::protocol::inbox::Inbox;
use crate::protocol::outbox::Outbox;
use crate::protocol::stream::{StreamIn, StreamOut};
use std::sync::Arc;
use std::time::Instant;

/// A session and its handler.
pub(crate) struct Conversation {
    /// Taken out when the session is over.
    handler: Option<Box<dyn EventHandler>>,
    session: Session,
    input: Input,
    due: Option<Due>,
    has_begun: bool,
    /// The end of the input has been delivered.
    has_finished: bool,
    /// `disconnected` has been called.
    is_told: bool,
    /// The kernel takes no output for now.
    is_blocked: bool,
    /// How many letters have come in a row.
    letters: u32,
    was_flushed: bool,
    was_relieved: bool,
    deadline: Option<Instant>,
    phase: Phase,
    /// What a callback returned as an error.
    fault: Option<Fault>,
}

/// What the deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    None,
    Idle,
    Receiving,
    Sending,
}

/// What a conversation wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wants {
    /// [`Conversation::deliver`].
    Deliver,
    Transmit,
    Receive,
    /// Something must happen first.
    Rest(Outlook),
    /// It is over: `gracefully`, all that was queued has left, and a stream's connection goes on.
    Over {
        ending: Ending,
        gracefully: bool,
    },
}

/// What a conversation waits for, besides letters and its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outlook {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
}

impl Conversation {
    /// A stream that stays with the engine.
    pub(crate) fn of_stream(
        handler: Box<dyn EventHandler>,
        context: Box<Context>,
        limits: &Arc<Limits>,
        office: &Arc<Office>,
        (input, output): (StreamIn, StreamOut),
    ) -> Conversation {
        let output = Output::Items(output);
        Conversation::new(
            handler,
            context,
            limits,
            office,
            Input::Items(input),
            output,
        )
    }

    /// A connection that speaks another protocol.
    pub(crate) fn of_records(
        handler: Box<dyn EventHandler>,
        context: Box<Context>,
        limits: &Arc<Limits>,
        office: &Arc<Office>,
        framing: Box<dyn Framing>,
    ) -> Conversation {
        let inbox = Inbox::new(limits.bounds());
        let output = Output::Records(Outbox::new(limits.bounds()), framing);
        let input = Input::Records(inbox);
        Conversation::new(handler, context, limits, office, input, output)
    }

    fn new(
        handler: Box<dyn EventHandler>,
        context: Box<Context>,
        limits: &Arc<Limits>,
        office: &Arc<Office>,
        input: Input,
        output: Output,
    ) -> Conversation {
        let mailbox = Mailbox::new(context.session_id(), limits.max_posted, office);
        Conversation {
            handler: Some(handler),
            session: Session {
                context: Some(context),
                limits: Arc::clone(limits),
                output,
                mailbox,
                closing: None,
                is_paused: false,
                is_pressed: false,
            },
            input,
            due: None,
            has_begun: false,
            has_finished: false,
            is_told: false,
            is_blocked: false,
            letters: 0,
            was_flushed: false,
            was_relieved: false,
            deadline: None,
            phase: Phase::None,
            fault: None,
        }
    }

    /// What to do next.
    pub(crate) fn poll(&mut self, now: Instant) -> Wants {
        if let Some(Closing::Now(ending)) = &self.session.closing {
            return over(ending, false);
        }
        if self.due.is_none() {
            self.due = self.next_due();
        }
        if self.due.is_some() {
            return Wants::Deliver;
        }
        if let Some(Closing::Now(ending)) = &self.session.closing {
            // By a letter, or by what came.
            return over(ending, false);
        }
        let queued = self.session.queued();
        if queued > 0 && !self.is_blocked {
            self.enter(Phase::Sending, now);
            return Wants::Transmit;
        }
        if let (0, Some(Closing::Flushing(ending))) = (queued, &self.session.closing) {
            return over(ending, true);
        }
        if queued == 0 {
            self.enter(self.phase_of_input(), now);
        }
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return match self.phase {
                Phase::Idle => over(&Ending::Idle, false),
                _ => over(&Ending::TimedOut, false),
            };
        }
        match self.may_receive() {
            true => Wants::Receive,
            false => Wants::Rest(self.outlook()),
        }
    }

    /// Whether the client has finished, and the handler knows.
    pub(crate) fn has_finished(&self) -> bool {
        self.has_finished
    }

    /// What it waits for when nothing can be moved.
    pub(crate) fn outlook(&self) -> Outlook {
        Outlook {
            readable: self.may_receive(),
            writable: self.session.queued() > 0,
        }
    }

    fn next_due(&mut self) -> Option<Due> {
        if !self.has_begun {
            return Some(Due::Connected);
        }
        // Whoever posts without end keeps no client from its own.
        self.letters = (self.letters + 1) % LETTERS;
        while self.letters > 0 {
            let Some(letter) = self.session.mailbox.take() else {
                self.letters = 0;
                break;
            };
            match letter {
                Letter::Event(event) if self.session.closing.is_none() => {
                    return Some(Due::Posted(event));
                }
                Letter::Stop(reason) if self.session.closing.is_none() => {
                    return Some(Due::Stopping(reason));
                }
                Letter::Close => self.session.close(),
                Letter::CloseNow => self.session.close_now(),
                Letter::Event(_) | Letter::Stop(_) => {}
            }
        }
        if self.session.closing.is_some() {
            return None;
        }
        if std::mem::take(&mut self.was_relieved) {
            return Some(Due::Relieved);
        }
        if std::mem::take(&mut self.was_flushed) {
            return Some(Due::Flushed);
        }
        match self.session.is_paused || self.session.is_pressed {
            true => None,
            false => self.next_input(),
        }
    }

    fn next_input(&mut self) -> Option<Due> {
        if self.has_finished {
            return None;
        }
        let framing = match &mut self.session.output {
            Output::Records(_, framing) => Some(&mut **framing),
            Output::Items(_) => None,
        };
        match self.input.next(framing, &self.session.limits) {
            Ok(Some(Incoming::Item(item))) => Some(Due::Received(item)),
            Ok(Some(Incoming::End)) => Some(Due::Finished),
            Ok(Some(Incoming::Malformed(error))) => Some(Due::Malformed(error)),
            Ok(None) => None,
            Err(Ending::Broken) => {
                self.session.closing = Some(Closing::Now(Ending::Broken));
                None
            }
            // What was sent before is still of use.
            Err(ending) => {
                self.session.closing = Some(Closing::Flushing(ending));
                None
            }
        }
    }

    /// Whether anything that comes would be looked at.
    fn may_receive(&self) -> bool {
        let session = &self.session;
        let is_at_end = self.inbox().is_at_end() || self.has_finished;
        session.closing.is_none() && !session.is_paused && !session.is_pressed && !is_at_end
    }

    /// Calls the handler with what is due.
    pub(crate) fn deliver(&mut self) {
        let (Some(handler), session) = (&mut self.handler, &mut self.session) else {
            return;
        };
        let said = match self.due.take() {
            None => Ok(()),
            Some(Due::Connected) => {
                self.has_begun = true;
                handler.connected(session)
            }
            Some(Due::Received(item)) => handler.received(session, item),
            Some(Due::Finished) => {
                self.has_finished = true;
                handler.finished(session)
            }
            Some(Due::Flushed) => handler.flushed(session),
            Some(Due::Relieved) => handler.relieved(session),
            Some(Due::Posted(event)) => handler.posted(session, event),
            Some(Due::Stopping(reason)) => {
                handler.stopping(session, reason);
                Ok(())
            }
            Some(Due::Malformed(error)) => {
                let goes_on = handler.malformed(session, &error);
                match (error.skip(), &mut self.input) {
                    (Some(len), Input::Records(inbox)) if goes_on => {
                        drop(inbox.take(len.min(inbox.unread().len())));
                    }
                    _ => {
                        let reason = ProtocolError::Framing(error.to_string());
                        session.closing = Some(Closing::Flushing(Ending::Protocol(reason)));
                    }
                }
                Ok(())
            }
        };
        if let Err(fault) = said {
            self.fault = Some(fault);
            self.session.closing = Some(Closing::Flushing(Ending::Faulted));
        }
    }

    /// A callback has panicked.
    pub(crate) fn has_panicked(&mut self) {
        self.session.closing = Some(Closing::Flushing(Ending::Faulted));
    }

    /// So much of the output is gone. `true`: no more than the lower watermark is left, for the first time again.
    pub(crate) fn transmitted(&mut self, len: usize, now: Instant) -> bool {
        self.session.output.outbox_mut().transmitted(len);
        let queued = self.session.queued();
        let is_relieved = self.session.is_pressed && queued <= self.session.limits.low_watermark;
        if is_relieved {
            (self.session.is_pressed, self.was_relieved) = (false, true);
        }
        self.was_flushed |= queued == 0;
        if self.phase == Phase::Sending {
            self.deadline = now.checked_add(self.session.limits.write_timeout);
        }
        is_relieved
    }

    /// The kernel takes no output for now; or there is a reason to try again.
    pub(crate) fn set_blocked(&mut self, is_blocked: bool) {
        self.is_blocked = is_blocked;
    }

    /// The other side broke a rule that only the driver could see.
    pub(crate) fn fail(&mut self, error: ProtocolError) {
        self.session.closing = Some(Closing::Now(Ending::Protocol(error)));
    }

    /// What [`Conversation::deliver`] would do is waiting, or something has come that has not been looked at.
    pub(crate) fn has_more(&self) -> bool {
        let has_input = self.may_receive() && self.inbox().has_unread();
        self.due.is_some()
            || has_input
            || self.was_flushed
            || self.session.closing.is_some()
            || self.session.mailbox.has_letters()
    }

    pub(crate) fn is_pressed(&self) -> bool {
        self.session.is_pressed
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn mailbox(&self) -> &Arc<Mailbox> {
        &self.session.mailbox
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        self.input.inbox()
    }

    pub(crate) fn inbox_mut(&mut self) -> &mut Inbox {
        self.input.inbox_mut()
    }

    pub(crate) fn outbox(&self) -> &Outbox {
        self.session.output.outbox()
    }

    pub(crate) fn outbox_mut(&mut self) -> &mut Outbox {
        self.session.output.outbox_mut()
    }

    pub(crate) fn context_mut(&mut self) -> Option<&mut Context> {
        self.session.context.as_deref_mut()
    }

    /// What the callback returned that ended the session.
    pub(crate) fn take_fault(&mut self) -> Option<Fault> {
        self.fault.take()
    }

    /// Says good-bye to the handler, once. Nothing is delivered any more.
    pub(crate) fn tell_end(&mut self, ending: &Ending) {
        let is_first = !std::mem::replace(&mut self.is_told, true);
        if let (Some(handler), Some(context)) = (&mut self.handler, &mut self.session.context) {
            if is_first && self.has_begun {
                handler.disconnected(context, ending);
            }
        }
    }

    /// Whatever of it is the user's, and may panic as it is dropped.
    pub(crate) fn take_leftovers(&mut self) -> Vec<Leftover> {
        let letters = self.session.mailbox.close();
        let handler = self.handler.take().map(Leftover::Handler);
        let framing = self.session.drop_framing().map(Leftover::Framing);
        let others = [handler, framing, self.due.take().map(Leftover::Due)];
        let letters = letters.into_iter().map(Leftover::Letter);
        others.into_iter().flatten().chain(letters).collect()
    }

    /// What was given to it, once it is over.
    pub(crate) fn take_context(&mut self) -> Option<Box<Context>> {
        self.session.context.take()
    }

    /// Both directions of a stream, and what was given to it.
    pub(crate) fn into_parts(self) -> (Option<Box<Context>>, Option<(StreamIn, StreamOut)>) {
        let parts = match (self.input, self.session.output) {
            (Input::Items(input), Output::Items(output)) => Some((input, output)),
            _ => None,
        };
        (self.session.context, parts)
    }

    fn phase_of_input(&self) -> Phase {
        match &self.input {
            Input::Records(inbox) if inbox.has_unread() && self.may_receive() => Phase::Receiving,
            Input::Records(_) if self.may_receive() => Phase::Idle,
            _ => Phase::None,
        }
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        if self.phase == phase {
            return;
        }
        self.phase = phase;
        let limits = &self.session.limits;
        let limit = match phase {
            Phase::None => None,
            Phase::Idle => limits.idle_timeout,
            Phase::Receiving => Some(limits.frame_timeout),
            Phase::Sending => Some(limits.write_timeout),
        };
        self.deadline = limit.and_then(|limit| now.checked_add(limit));
    }
}

fn over(ending: &Ending, gracefully: bool) -> Wants {
    let ending = ending.clone();
    Wants::Over { ending, gracefully }
}
