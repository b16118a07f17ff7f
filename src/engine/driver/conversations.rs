//! Sessions that are served by callbacks.
//!
//! Invariant: whatever a callback does, its handler hears of the end, once, and the connection goes on or ends as it
//! would have.

use super::{Driver, Turn};
use crate::engine::talk::{Stream, Talk};
use crate::event::Event;
use crate::fault::Fault;
use crate::listener::Records;
use crate::panics::{self, Panicked};
use crate::protocol::ending::Ending;
use crate::protocol::message::{Class, ErrorBody};
use crate::service;
use crate::session::{Conversation, EventHandler, Leftover, Outlook, Wants};
use crate::sys::epoll::Interest;
use crate::sys::poll;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

/// What panicked, as the observer is told.
const HANDLER: &str = "a session's handler";

impl Driver {
    /// The connection speaks another protocol. `false`: it is refused.
    pub(in crate::engine) fn begin_records(&mut self, records: &Records) -> bool {
        self.entry.authenticated();
        // It takes no descriptors, whatever the kernel lets pass.
        self.socket().set_may_hold_rights(!self.refuses_rights);
        self.open_context();
        let Some(mut context) = self.context.take() else {
            return false;
        };
        let made = panics::catch(|| (records.make)(&mut context));
        let (handler, framing) = match self.heard(made) {
            Ok(Ok(made)) => made,
            Ok(Err(fault)) => {
                self.fail_records(&fault);
                return false;
            }
            Err(_) => {
                self.entry.ending = Ending::Faulted;
                return false;
            }
        };
        if self.entry.dedicate(usize::MAX).is_err() {
            self.entry.ending = Ending::Stopping;
            return false;
        }
        let (limits, office) = (&self.entry.port.limits, &self.site.office);
        let talk = Conversation::of_records(handler, context, limits, office, framing);
        self.stop_token().tell(talk.mailbox());
        self.talk = Talk::Records(Box::new(talk));
        true
    }

    fn fail_records(&mut self, fault: &Fault) {
        self.entry.ending = Ending::Faulted;
        self.tell_unanswered(&self.entry.port.bound.name, &fault.text());
    }

    /// Opens the stream that was asked for; its handler has been made for it.
    pub(super) fn open_conversation(&mut self, name: Arc<str>, handler: Box<dyn EventHandler>) {
        let dedicated = self.entry.dedicate(usize::MAX);
        let stop = self.stop_token();
        let Talk::Native { session, stream } = &mut self.talk else {
            return;
        };
        let context = self.context.take();
        let (Ok(()), Some(context)) = (dedicated, context) else {
            let id = session.call_id();
            session.finish(ErrorBody::new(Class::Stopping, Vec::new()).write(id));
            // Which runs the user's code.
            let dropped = panics::catch(|| drop(handler));
            return drop(self.heard(dropped));
        };
        let parts = session.open_stream();
        let (limits, office) = (&self.entry.port.limits, &self.site.office);
        let conversation = Conversation::of_stream(handler, context, limits, office, parts);
        stop.tell(conversation.mailbox());
        *stream = Some(Box::new(Stream {
            name,
            conversation,
            panicked: None,
        }));
        let session = self.entry.id;
        let observer = self.entry.observer();
        observer.tell(|| Event::StreamOpened { session });
    }

    /// Does the one thing that the conversation wants. Nobody waits.
    pub(super) fn converse(&mut self) -> Turn {
        let now = Instant::now();
        let Some(conversation) = self.talk.conversation_mut() else {
            return Turn::Over;
        };
        let outlook = conversation.outlook();
        // A framing of the user's is asked here.
        let wants = panics::catch(|| conversation.poll(now));
        let Ok(wants) = self.heard(wants) else {
            if let Some(conversation) = self.talk.conversation_mut() {
                conversation.has_panicked();
            }
            return Turn::Delivered;
        };
        match wants {
            Wants::Deliver => self.deliver(),
            Wants::Transmit => match self.transmit(false) {
                Turn::Waits(_) => {
                    if let Some(conversation) = self.talk.conversation_mut() {
                        conversation.set_blocked(true);
                    }
                    Turn::Moved
                }
                turn => turn,
            },
            Wants::Receive => match self.receive(false) {
                Turn::Waits(_) => self.wait(outlook),
                turn => turn,
            },
            Wants::Rest(outlook) => self.wait(outlook),
            Wants::Over { ending, gracefully } => self.end_conversation(ending, gracefully),
        }
    }

    /// Nothing can be moved. If nothing ever will, it is over.
    fn wait(&mut self, outlook: Outlook) -> Turn {
        if self.has_letters() {
            // Of which it has had so many that the client was looked at in between.
            return Turn::Moved;
        }
        let interest = interest_in(outlook);
        let conversation = self.talk.conversation();
        let has_finished = conversation.is_some_and(Conversation::has_finished);
        let is_draining = self.entry.is_draining();
        // What nobody waits for tells nobody that it is gone. A paused session may still want what its client has sent
        // before, unless it was cut off.
        if interest == Interest::Nothing
            && (has_finished || is_draining)
            && poll::is_hung_up(self.connection.as_fd())
        {
            self.entry.ending = match is_draining {
                true => Ending::Stopping,
                false => Ending::Broken,
            };
            return Turn::Over;
        }
        Turn::Waits(interest)
    }

    fn deliver(&mut self) -> Turn {
        let was_pressed = self.talk.is_pressed();
        let Some(conversation) = self.talk.conversation_mut() else {
            return Turn::Over;
        };
        let delivered = panics::catch(|| conversation.deliver());
        if let Err(panicked) = self.heard(delivered) {
            if let Some(conversation) = self.talk.conversation_mut() {
                conversation.has_panicked();
            }
            if let Talk::Native {
                stream: Some(stream),
                ..
            } = &mut self.talk
            {
                stream.panicked = Some(panicked);
            }
        }
        self.tell_pressure(was_pressed);
        Turn::Delivered
    }

    /// Tells the observer if something has panicked.
    fn heard<T>(&self, result: Result<T, Box<Panicked>>) -> Result<T, Box<Panicked>> {
        let (session, observer) = (Some(self.entry.id), self.entry.observer());
        result.inspect_err(|panicked| observer.panicked(session, HANDLER, panicked))
    }

    fn end_conversation(&mut self, ending: Ending, gracefully: bool) -> Turn {
        if let (Talk::Native { stream, .. }, true) = (&mut self.talk, gracefully) {
            if let Some(stream) = stream.take() {
                self.end_stream(*stream, &ending);
                return Turn::Moved;
            }
        }
        let conversation = self.talk.conversation_mut();
        if let Some(fault) = conversation.and_then(Conversation::take_fault) {
            self.tell_unanswered(&self.entry.port.bound.name, &fault.text());
        }
        self.entry.ending = ending;
        Turn::Over
    }

    /// The stream is answered, and the session goes on.
    fn end_stream(&mut self, stream: Stream, ending: &Ending) {
        let Stream {
            name,
            mut conversation,
            panicked,
        } = stream;
        let result = match (panicked, conversation.take_fault()) {
            (Some(panicked), _) => Err(panicked),
            (None, Some(fault)) => Ok(Err(fault)),
            (None, None) => Ok(Ok(())),
        };
        let told = panics::catch(|| conversation.tell_end(ending));
        let (id, observer) = (self.entry.id, self.entry.observer());
        if let Err(panicked) = told {
            observer.panicked(Some(id), &name, &panicked);
        }
        self.drop_leftovers(conversation.take_leftovers());
        observer.tell(|| Event::StreamClosed { session: id });
        let Talk::Native { session, .. } = &mut self.talk else {
            return;
        };
        let answer = service::end_of_stream(session.call_id(), result);
        let (context, parts) = conversation.into_parts();
        self.context = context;
        if let Some((input, output)) = parts {
            session.close_stream(input, output, answer);
            if let Some(context) = &mut self.context {
                context.let_go();
                if let Some(close) = context.take_close() {
                    session.close(close);
                }
            }
        }
        self.tell_pressure(false);
        self.entry.undedicate();
    }

    /// The connection is over. A handler that has not heard of it does now.
    pub(super) fn say_goodbye(&mut self) {
        let ending = self.entry.ending.clone();
        let Some(conversation) = self.talk.conversation_mut() else {
            return;
        };
        let told = panics::catch(|| conversation.tell_end(&ending));
        let leftovers = conversation.take_leftovers();
        // What the user keeps in it is dropped as that of any other session.
        self.context = conversation.take_context();
        let _ = self.heard(told);
        self.drop_leftovers(leftovers);
    }
}

impl Driver {
    /// Drops what is the user's, each under a guard of its own.
    fn drop_leftovers(&self, leftovers: Vec<Leftover>) {
        for leftover in leftovers {
            let dropped = panics::catch(|| drop(leftover));
            let _ = self.heard(dropped);
        }
    }
}

fn interest_in(outlook: Outlook) -> Interest {
    match (outlook.readable, outlook.writable) {
        (true, true) => Interest::Both,
        (true, false) => Interest::Readable,
        (false, true) => Interest::Writable,
        (false, false) => Interest::Nothing,
    }
}
