//! Answering calls, and running the handlers of streams.
//!
//! Invariant: between the call and its answer the session belongs to the handler, and to nobody else.

use super::Driver;
use crate::channel::{Channel, StopToken};
use crate::context::Context;
use crate::engine::connections::NotDedicated;
use crate::engine::loans::Loans;
use crate::engine::talk::Talk;
use crate::event::Event;
use crate::panics;
use crate::protocol::message::{Class, ErrorBody};
use crate::service::{self, Outcome, Run, RunStream, Scope, StreamTask};
use std::sync::Arc;
use std::time::Instant;

impl Driver {
    /// Lends what waits to be sent while the next call is being answered. `false`: there is nothing.
    pub(in crate::engine) fn lend(&mut self, loans: &Loans) -> bool {
        let Talk::Native { session, .. } = &mut self.talk else {
            return false;
        };
        if !session.has_to_lend() {
            return false;
        }
        let connection = &self.connection;
        let loan = self
            .loan
            .get_or_insert_with(|| loans.register(connection.share()));
        loans.lend(loan, session);
        true
    }

    /// Answers the call that the last turn gave, or says what its stream is to be handed to: then
    /// [`Driver::run_stream`] or [`Driver::refuse`] must follow. `loans`: where what was lent is.
    pub(in crate::engine) fn answer(&mut self, loans: Option<&Loans>) -> Option<StreamTask> {
        self.open_context();
        let (Talk::Native { session, .. }, Some(context)) = (&mut self.talk, &mut self.context)
        else {
            return None;
        };
        let service = &self.site.service;
        let port = &self.entry.port;
        self.site.call_begins();
        let mut call = session.call()?;
        if let Some((place, tag)) = self.shown.as_deref().copied() {
            let counts = self.site.control.gate().counts();
            counts.begins(place, tag, call.id);
        }
        let deadline = |timeout| Instant::now().checked_add(timeout);
        context.begin_call(call.timeout.and_then(deadline));
        let scope = Scope {
            limits: &port.limits,
            only: port.bound.only.as_deref(),
        };
        let outcome = service.answer(context, &mut call, &scope);
        let (is_urgent, close) = (context.has_deferred(), context.take_close());
        if let (Some(loan), Some(loans)) = (&self.loan, loans) {
            loans.reclaim(loan, session);
        }
        match outcome {
            Outcome::Answer(answer) => {
                if answer.is_error() {
                    self.site.control.gate().call_fails();
                }
                session.finish(answer);
                if is_urgent {
                    // What was put off until the answer has left comes before the next call.
                    session.hurry();
                }
                if let Some(close) = close {
                    session.close(close);
                }
                self.tell_pressure(false);
            }
            Outcome::Events(events) => {
                let (name, handler) = *events;
                self.open_conversation(name, handler);
            }
            Outcome::Stream(task) => match self.entry.dedicate(self.site.limits.max_dedicated) {
                Ok(()) => return Some(*task),
                Err(NotDedicated::Full) => self.refuse(*task, ErrorBody::busy("max_dedicated")),
                Err(NotDedicated::Stopping) => {
                    self.refuse(*task, ErrorBody::new(Class::Stopping, Vec::new()));
                }
            },
        }
        None
    }

    /// What handlers know of the connection is made for the first of them.
    #[inline]
    pub(super) fn open_context(&mut self) {
        if self.context.is_none() {
            let port = &self.entry.port;
            let (control, name) = (self.site.control.clone(), Arc::clone(&port.bound.name));
            let (peer, id) = (self.entry.peer, self.entry.id);
            let socket = self.connection.share();
            self.context = Some(Box::new(Context::new(control, name, peer, id, socket)));
        }
    }

    /// The stream that was asked for cannot be had. Its arguments may panic when they are dropped, which must not
    /// end the thread.
    pub(in crate::engine) fn refuse(&mut self, task: StreamTask, body: ErrorBody) {
        let StreamTask { name, run } = task;
        if let Err(panicked) = panics::catch(|| drop(run)) {
            let (session, observer) = (Some(self.entry.id), self.entry.observer());
            observer.panicked(session, &name, &panicked);
        }
        self.entry.undedicate();
        match &mut self.talk {
            Talk::Native { session, .. } => {
                let id = session.call_id();
                session.finish(body.write(id));
                self.tell_pressure(false);
            }
            _ => self.fail_request(&name, &body.texts.join(": ")),
        }
    }

    /// Hands the connection to a handler; returns when it is ours again.
    pub(in crate::engine) fn run_stream(&mut self, task: StreamTask, stop: StopToken) {
        match task.run {
            Run::Stream(run) => self.run_channel(&task.name, run, stop),
            Run::Messages(run) => self.run_messages(&task.name, run, stop),
        }
        self.entry.undedicate();
    }

    /// Opens the stream and hands it to its handler; returns when the connection is ours again.
    fn run_channel(&mut self, name: &str, run: RunStream, stop: StopToken) {
        let (Talk::Native { session: talk, .. }, Some(context)) =
            (&mut self.talk, &mut self.context)
        else {
            return;
        };
        let (id, home) = (talk.call_id(), Arc::default());
        let limits = &self.entry.port.limits;
        let parts = talk.open_stream();
        let mut channel = Channel::serve(parts, &self.connection, limits, stop, &home);
        let session = self.entry.id;
        let observer = self.entry.observer();
        observer.tell(|| Event::StreamOpened { session });
        let result = panics::catch(|| {
            channel.flush()?;
            run(context, channel)
        });
        if let Err(panicked) = &result {
            observer.panicked(Some(session), name, panicked);
        }
        let (input, output) = home.wait();
        observer.tell(|| Event::StreamClosed { session });
        let answer = service::end_of_stream(id, result);
        talk.close_stream(input, output, answer);
        if context.has_deferred() {
            // As behind any answer.
            talk.hurry();
        }
        if let Some(close) = context.take_close() {
            talk.close(close);
        }
        // What the handler could not send still waits.
        self.tell_pressure(false);
    }
}
