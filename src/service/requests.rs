//! Answering requests whose arguments are byte strings.
//!
//! Invariant: as for calls, each request has exactly one outcome, whatever its handler does.

use super::{Entry, Failure, Name, Registered, Run, Scope, Service, StreamTask, strings};
use crate::context::Context;
use crate::fault::Fault;
use crate::panics;
use crate::passenger::MessageChannel;
use crate::protocol::frame::{HEADER_LEN, Outgoing};
use crate::protocol::message::{Call, Class, ErrorBody, Value};
use crate::protocol::passenger;
use std::sync::Arc;

/// What a request comes to.
pub(crate) enum Requested {
    /// The bytes of whole messages, if of any.
    Answer(Vec<u8>),
    /// The connection is to be handed to this, in a thread of its own.
    Task(StreamTask),
    /// Nothing can be answered.
    Failed(String),
}

pub(super) type MessageHandler =
    dyn Fn(&mut Context, Vec<Vec<u8>>, MessageChannel) -> Result<(), Fault> + Send + Sync;

impl Service {
    pub(crate) fn add_messages(&mut self, name: String, handler: Arc<MessageHandler>) {
        if self.is_taken(&name) {
            self.duplicate.get_or_insert(name);
        } else {
            self.messages.insert(name, handler);
        }
    }

    /// Answers a request, or says what its connection is to be handed to.
    pub(crate) fn answer_request(
        &self,
        context: &mut Context,
        name: &[u8],
        args: Vec<Vec<u8>>,
        scope: &Scope<'_>,
    ) -> Requested {
        let text = String::from_utf8_lossy(name);
        if !scope.admits(&text) {
            return Requested::Failed("unknown name".into());
        }
        let Some(ward) = self.wards.get(&*text) else {
            return self.answer_admitted(context, name, args, scope);
        };
        let len = args.iter().map(Vec::len).sum();
        let pass = match ward.admit(&text, context, len) {
            Ok(pass) => pass,
            Err(body) => return Requested::Failed(body.texts.join(": ")),
        };
        match self.answer_admitted(context, name, args, scope) {
            Requested::Answer(_) if pass.is_late() => Requested::Failed("it took too long".into()),
            Requested::Task(task) => Requested::Task(pass.hand_on(task)),
            requested => requested,
        }
    }

    /// As [`Service::answer_request`], for a request that the handler's restrictions let through.
    fn answer_admitted(
        &self,
        context: &mut Context,
        name: &[u8],
        args: Vec<Vec<u8>>,
        scope: &Scope<'_>,
    ) -> Requested {
        let text = String::from_utf8_lossy(name);
        if let Some(handler) = std::str::from_utf8(name)
            .ok()
            .and_then(|name| self.messages.get(name))
        {
            let handler = Arc::clone(handler);
            let run = move |context: &mut Context, channel| handler(context, args, channel);
            return Requested::Task(StreamTask {
                name: text.as_ref().into(),
                run: Run::Messages(Box::new(run)),
            });
        }
        let found = self.handlers.get_key_value(name);
        let Some((
            Name(known),
            Registered {
                entry: Entry::Call(handler),
                number,
                ..
            },
        )) = found
        else {
            return Requested::Failed("unknown name".into());
        };
        context.begins(Some(*number), 0);
        let called = panics::catch(|| {
            strings::call_with(&args, scope.limits, |mut value| {
                let answer = handler(context, &mut Call::of_value(&mut value), scope.limits);
                error_of(&answer).map_or(Ok(answer), Err)
            })
        });
        context.ends();
        match called {
            Ok(Ok(answer)) => match write(answer, scope) {
                Ok(bytes) => Requested::Answer(bytes),
                Err(reason) => Requested::Failed(reason),
            },
            Ok(Err(failure)) => Requested::Failed(failure.text()),
            Err(panicked) => {
                let (session, control) = (Some(context.session_id()), context.control());
                control.observer().panicked(session, known, &panicked);
                Requested::Failed("it panicked".into())
            }
        }
    }
}

/// What an answer says went wrong, if it says so.
fn error_of(answer: &Outgoing) -> Option<Failure> {
    if !answer.is_error() {
        return None;
    }
    let body = ErrorBody::read(Value::new(&answer.buf[HEADER_LEN..])).ok()?;
    let text = body.texts.join(": ");
    Some(match body.class {
        Class::TypeMismatch => Failure::Mismatch(text),
        _ => Failure::BadReply(text),
    })
}

/// An answer as an array. Nothing is said where a handler returned a unit, as by the original's handlers.
fn write(answer: Outgoing, scope: &Scope<'_>) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    if let Some(strings) = strings::strings_of(answer, scope.limits)? {
        passenger::write_array(&strings, &mut bytes).map_err(|err| format!("{err:?}"))?;
    }
    Ok(bytes)
}
