//! Answering requests in Passenger's format.
//!
//! Invariant: the format has no errors: what cannot be answered is told to the observer, and its client sees the end.

use super::{Driver, Turn};
use crate::channel::StopToken;
use crate::engine::connections::NotDedicated;
use crate::engine::talk::Talk;
use crate::event::Event;
use crate::panics;
use crate::passenger::MessageChannel;
use crate::protocol::Step;
use crate::protocol::passenger::session::Happening;
use crate::service::{Requested, RunMessages, Scope, StreamTask};
use std::time::Instant;

/// A request, as it came.
pub(in crate::engine) struct Request {
    name: Vec<u8>,
    args: Vec<Vec<u8>>,
}

impl Driver {
    pub(super) fn request_step(&mut self, sleep: bool) -> Turn {
        let now = Instant::now();
        let Talk::Passenger(session) = &mut self.talk else {
            return Turn::Over;
        };
        match session.poll(now) {
            Step::Event(Happening::Authenticated) => {
                self.entry.authenticated();
                Turn::Moved
            }
            Step::Event(Happening::Request { name, args }) => Turn::Request(Request { name, args }),
            Step::Transmit => self.transmit(sleep),
            Step::Receive => self.receive(sleep),
            Step::Closed => self.is_over(),
        }
    }

    /// Answers the request that the last turn gave, or says what the connection is to be handed to: then
    /// [`Driver::run_stream`] or [`Driver::refuse`] must follow.
    pub(in crate::engine) fn answer_request(&mut self, request: Request) -> Option<StreamTask> {
        self.open_context();
        let port = &self.entry.port;
        let scope = Scope {
            limits: &port.limits,
            only: port.bound.only.as_deref(),
        };
        let context = self.context.as_mut()?;
        self.site.call_begins();
        context.begin_call(None);
        let Request { name, args } = request;
        let service = &self.site.service;
        let outcome = service.answer_request(context, &name, args, &scope);
        let name = String::from_utf8_lossy(&name);
        match outcome {
            Requested::Answer(answer) => {
                if let Talk::Passenger(session) = &mut self.talk {
                    session.finish(answer);
                }
            }
            Requested::Failed(reason) => self.fail_request(&name, &reason),
            Requested::Task(task) => match self.entry.dedicate(self.site.limits.max_dedicated) {
                Ok(()) => return Some(task),
                Err(NotDedicated::Full) => self.fail_request(&name, "max_dedicated is reached"),
                Err(NotDedicated::Stopping) => self.fail_request(&name, "the server is stopping"),
            },
        }
        None
    }

    /// A request has no answer.
    pub(super) fn fail_request(&mut self, name: &str, reason: &str) {
        self.tell_unanswered(name, reason);
        if let Talk::Passenger(session) = &mut self.talk {
            session.finish(Vec::new());
        }
    }

    /// A handler has failed, and its client cannot be told.
    pub(super) fn tell_unanswered(&self, name: &str, reason: &str) {
        let session = self.entry.id;
        self.entry.observer().tell(|| Event::Unanswered {
            session,
            name: name.to_owned(),
            reason: reason.to_owned(),
        });
    }

    /// Gives the connection to a handler, for good.
    pub(super) fn run_messages(&mut self, name: &str, run: RunMessages, stop: StopToken) {
        let (Talk::Passenger(talk), Some(context)) = (&mut self.talk, &mut self.context) else {
            return;
        };
        let session = self.entry.id;
        let observer = self.entry.observer();
        observer.tell(|| Event::StreamOpened { session });
        let timeout = self.entry.port.limits.write_timeout;
        let (socket, received) = (self.connection.share(), talk.hand_over());
        let channel = MessageChannel::serve(socket, received, timeout, stop);
        let result = panics::catch(|| run(context, channel));
        observer.tell(|| Event::StreamClosed { session });
        match result {
            Ok(Ok(())) => {}
            Ok(Err(fault)) => self.tell_unanswered(name, &fault.text()),
            Err(panicked) => observer.panicked(Some(session), name, &panicked),
        }
    }
}
