//! What a server does: message names and their handlers.
//!
//! Invariant: whatever a handler does, and whatever it is called with, each call has exactly one answer; the
//! session never sees a panic.

mod name;
mod raw;
mod requests;
mod restrictions;
mod strings;

pub use self::raw::Raw;
pub(crate) use self::requests::Requested;
pub use self::restrictions::Restrictions;

use self::name::{Name, NameHasher};
use self::requests::MessageHandler;
use self::restrictions::Ward;
use crate::channel::Channel;
use crate::context::Context;
use crate::fault::Fault;
use crate::limits::Limits;
use crate::panics::{self, Panicked};
use crate::passenger::MessageChannel;
use crate::protocol::codec;
use crate::protocol::frame::Outgoing;
use crate::protocol::message::{Call, Class, ErrorBody, write_reply};
use crate::session::EventHandler;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

/// The longest name that a call can carry.
pub(crate) const MAX_NAME: usize = 255;

/// What a server with workers answers besides: what the pool is doing, and what became of a connection.
pub(crate) const STATUS: &str = "forkserver.status";
pub(crate) const FATE: &str = "forkserver.fate";

/// Why a call has no result, before it is put into words for the caller.
enum Failure {
    Mismatch(String),
    Fault(Fault),
    BadReply(String),
}

/// What a call comes to.
pub(crate) enum Outcome {
    Answer(Outgoing),
    /// A stream is to be opened and handed to this, in a thread of its own.
    // What is rare is boxed: what is frequent is handed on in registers then.
    Stream(Box<StreamTask>),
    /// A stream is to be opened and served by this, which has that name.
    Events(Box<(Arc<str>, Box<dyn EventHandler>)>),
}

/// A stream's handler with its arguments. See [`end_of_stream`] for what it returns.
pub(crate) struct StreamTask {
    pub(crate) name: Arc<str>,
    pub(crate) run: Run,
}

/// What has a connection for itself.
pub(crate) enum Run {
    Stream(RunStream),
    Messages(RunMessages),
}

pub(crate) type RunStream = Box<dyn FnOnce(&mut Context, Channel) -> Result<(), Fault> + Send>;
pub(crate) type RunMessages =
    Box<dyn FnOnce(&mut Context, MessageChannel) -> Result<(), Fault> + Send>;

type Handler = dyn Fn(&mut Context, &mut Call<'_>, &Limits) -> Outgoing + Send + Sync;
type StreamHandler = dyn Fn(&mut Call<'_>, &Limits) -> Result<RunStream, Failure> + Send + Sync;
type EventMaker = dyn Fn(&mut Context, &mut Call<'_>, &Limits) -> Result<Box<dyn EventHandler>, Failure>
    + Send
    + Sync;
type Fallback = dyn Fn(&mut Context, &str, Raw) -> Result<Raw, Fault> + Send + Sync;

/// What holds for calls that come through one listener.
pub(crate) struct Scope<'a> {
    pub(crate) limits: &'a Limits,
    /// The only names that there are.
    pub(crate) only: Option<&'a HashSet<String>>,
}

impl Scope<'_> {
    fn admits(&self, name: &str) -> bool {
        self.only
            .is_none_or(|only| only.contains(name) || name == FATE)
    }
}

/// The handlers of a server. Cheap to clone: a definition and all servers started from it share them.
#[derive(Clone, Default)]
pub(crate) struct Service {
    handlers: HashMap<Name, Registered, BuildHasherDefault<NameHasher>>,
    /// Those that have a conversation in Passenger's format.
    messages: HashMap<String, Arc<MessageHandler>>,
    fallback: Option<Arc<Fallback>>,
    /// By name; the last one holds.
    restrictions: HashMap<String, Restrictions>,
    /// The same, in a server that runs.
    wards: HashMap<String, Arc<Ward>>,
    /// The first name that was given twice.
    duplicate: Option<String>,
}

#[derive(Clone)]
struct Registered {
    entry: Entry,
    /// Its place among the names, in a server that runs.
    number: u32,
    /// In a server that runs, if the handler is restricted.
    ward: Option<Arc<Ward>>,
}

#[derive(Clone)]
enum Entry {
    Call(Arc<Handler>),
    Stream(Arc<StreamHandler>),
    Events(Arc<EventMaker>),
}

impl Service {
    pub(crate) fn add<A, R>(
        &mut self,
        name: String,
        handler: impl Fn(&mut Context, A) -> Result<R, Fault> + Send + Sync + 'static,
    ) where
        A: DeserializeOwned,
        R: Serialize,
    {
        let run = move |context: &mut Context, call: &mut Call<'_>, limits: &Limits| {
            let args = decode_arguments(call, limits)?;
            let result = handler(context, args).map_err(Failure::Fault)?;
            let (mut reply, slot) = write_reply(call.id);
            let hash = codec::encode(&result, &mut reply, limits).map_err(Failure::BadReply)?;
            slot.fill(&mut reply, hash);
            Ok(reply)
        };
        let erased = move |context: &mut Context, call: &mut Call<'_>, limits: &Limits| {
            run(context, call, limits).unwrap_or_else(|failure: Failure| failure.answer(call.id))
        };
        self.insert(name, Entry::Call(Arc::new(erased)));
    }

    pub(crate) fn add_stream<A>(
        &mut self,
        name: String,
        handler: impl Fn(&mut Context, A, Channel) -> Result<(), Fault> + Send + Sync + 'static,
    ) where
        A: DeserializeOwned + Send + 'static,
    {
        let handler = Arc::new(handler);
        let erased = move |call: &mut Call<'_>, limits: &Limits| {
            let args = decode_arguments::<A>(call, limits)?;
            let handler = Arc::clone(&handler);
            let task =
                move |context: &mut Context, channel: Channel| handler(context, args, channel);
            Ok(Box::new(task) as RunStream)
        };
        self.insert(name, Entry::Stream(Arc::new(erased)));
    }

    pub(crate) fn add_events<A, H>(
        &mut self,
        name: String,
        make: impl Fn(&mut Context, A) -> Result<H, Fault> + Send + Sync + 'static,
    ) where
        A: DeserializeOwned,
        H: EventHandler,
    {
        let erased = move |context: &mut Context, call: &mut Call<'_>, limits: &Limits| {
            let args = decode_arguments::<A>(call, limits)?;
            let handler = make(context, args).map_err(Failure::Fault)?;
            Ok(Box::new(handler) as Box<dyn EventHandler>)
        };
        self.insert(name, Entry::Events(Arc::new(erased)));
    }

    fn is_taken(&self, name: &str) -> bool {
        self.handlers.contains_key(name.as_bytes()) || self.messages.contains_key(name)
    }

    fn insert(&mut self, name: String, entry: Entry) {
        let is_taken = self.is_taken(&name);
        let known = Name(name.as_str().into());
        let registered = Registered {
            entry,
            number: 0,
            ward: None,
        };
        if self.handlers.insert(known, registered).is_some() || is_taken {
            self.duplicate.get_or_insert(name);
        }
    }

    pub(crate) fn set_fallback(&mut self, fallback: Arc<Fallback>) {
        self.fallback = Some(fallback);
    }

    pub(crate) fn restrict(&mut self, name: String, restrictions: Restrictions) {
        self.restrictions.insert(name, restrictions);
    }

    /// Names with restrictions.
    pub(crate) fn restricted(&self) -> impl Iterator<Item = &String> {
        self.restrictions.keys()
    }

    /// The handlers for one server that runs: what is counted is counted there alone.
    pub(crate) fn open(&self) -> Service {
        let mut service = self.clone();
        let wards = self.restrictions.iter();
        let wards =
            wards.map(|(name, restrictions)| (name.clone(), Arc::new(Ward::new(restrictions))));
        service.wards = wards.collect();
        let names = self.names();
        for (Name(name), registered) in &mut service.handlers {
            registered.ward = service.wards.get(&**name).map(Arc::clone);
            let number = names.binary_search_by(|known| (**known).cmp(name));
            registered.number = number.unwrap_or_default() as u32;
        }
        service
    }

    /// The names that can be called, in order: so each has a number.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .handlers
            .keys()
            .map(|Name(name)| name.to_string())
            .collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.is_taken(name)
    }

    pub(crate) fn duplicate(&self) -> Option<&str> {
        self.duplicate.as_deref()
    }

    pub(crate) fn too_long(&self) -> Option<&str> {
        self.handlers
            .keys()
            .map(|Name(name)| &**name)
            .find(|name| name.len() > MAX_NAME)
    }

    /// Answers a call, or says what its stream is to be handed to.
    pub(crate) fn answer(
        &self,
        context: &mut Context,
        call: &mut Call<'_>,
        scope: &Scope<'_>,
    ) -> Outcome {
        let id = call.id;
        if call.timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Outcome::Answer(ErrorBody::too_late(None).write(id));
        }
        let known = self.handlers.get_key_value(call.name_bytes());
        let mut pass = None;
        let (name, caught) = match known.filter(|(Name(name), _)| scope.admits(name)) {
            Some((
                Name(name),
                Registered {
                    entry,
                    number,
                    ward,
                },
            )) => {
                if let Some(ward) = ward {
                    match ward.admit(name, context, call.arguments_len()) {
                        Ok(admitted) => pass = Some(admitted),
                        Err(body) => return Outcome::Answer(body.write(id)),
                    }
                }
                let limits = scope.limits;
                context.begins(Some(*number), id);
                let caught = panics::catch(|| entry.dispatch(name, context, call, limits));
                (Cow::Borrowed(&**name), caught)
            }
            None => {
                let name = call.name().to_owned();
                context.begins(None, id);
                let caught = panics::catch(|| self.fall_back(&name, context, call, scope));
                (Cow::Owned(name), caught)
            }
        };
        context.ends();
        let outcome = match caught {
            Ok(outcome) => outcome,
            Err(panicked) => {
                let (session, control) = (Some(context.session_id()), context.control());
                control.observer().panicked(session, &name, &panicked);
                Outcome::Answer(ErrorBody::from(*panicked).write(id))
            }
        };
        match pass {
            None => outcome,
            Some(pass) => pass.settle(outcome, id, context),
        }
    }

    fn fall_back(
        &self,
        name: &str,
        context: &mut Context,
        call: &mut Call<'_>,
        scope: &Scope<'_>,
    ) -> Outcome {
        let (id, fallback) = match &self.fallback {
            Some(fallback) if !call.stream && scope.admits(name) => (call.id, fallback),
            _ => return Outcome::Answer(self.unknown(name, scope).write(call.id)),
        };
        let raw = Raw::received(call.take_value().into_owned(), scope.limits.clone());
        Outcome::Answer(match fallback(context, name, raw) {
            Ok(result) => result.into_reply(id),
            Err(fault) => Failure::Fault(fault).answer(id),
        })
    }

    fn unknown(&self, name: &str, scope: &Scope<'_>) -> ErrorBody {
        let nearest = self.nearest(name, scope);
        ErrorBody::new(Class::UnknownName, nearest.into_iter().collect())
    }

    /// The known name that is most like `name`, if one is like it at all.
    fn nearest(&self, name: &str, scope: &Scope<'_>) -> Option<String> {
        const ALIKE: f64 = 0.6;
        let alike = |Name(known): &Name| {
            (
                strsim::normalized_damerau_levenshtein(name, known),
                Arc::clone(known),
            )
        };
        let nearest = self
            .handlers
            .keys()
            .filter(|Name(known)| scope.admits(known))
            .map(alike)
            .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        nearest
            .filter(|(likeness, _)| *likeness >= ALIKE)
            .map(|(_, known)| known.to_string())
    }
}

impl Entry {
    #[inline]
    fn dispatch(
        &self,
        name: &Arc<str>,
        context: &mut Context,
        call: &mut Call<'_>,
        limits: &Limits,
    ) -> Outcome {
        Outcome::Answer(match (self, call.stream) {
            (Entry::Call(handler), false) => handler(context, call, limits),
            (Entry::Stream(handler), true) => match handler(call, limits) {
                Ok(run) => {
                    let (name, run) = (Arc::clone(name), Run::Stream(run));
                    return Outcome::Stream(Box::new(StreamTask { name, run }));
                }
                Err(failure) => failure.answer(call.id),
            },
            (Entry::Events(make), true) => match make(context, call, limits) {
                Ok(handler) => {
                    return Outcome::Events(Box::new((Arc::clone(name), handler)));
                }
                Err(failure) => failure.answer(call.id),
            },
            (_, asked_for_stream) => ErrorBody::wrong_form(!asked_for_stream).write(call.id),
        })
    }
}

fn decode_arguments<A: DeserializeOwned>(
    call: &mut Call<'_>,
    limits: &Limits,
) -> Result<A, Failure> {
    codec::decode(call.take_value(), limits).map_err(|reason| {
        Failure::Mismatch(format!(
            "{reason} (the handler takes {})",
            std::any::type_name::<A>()
        ))
    })
}

/// The answer to the call whose stream a handler has had.
pub(crate) fn end_of_stream(id: u32, result: Result<Result<(), Fault>, Box<Panicked>>) -> Outgoing {
    match result {
        Ok(Ok(())) => {
            let (mut reply, slot) = write_reply(id);
            // Nothing can be written more easily than a unit.
            match codec::encode(&(), &mut reply, &Limits::default()) {
                Ok(hash) => slot.fill(&mut reply, hash),
                Err(_) => slot.give_up(&mut reply),
            }
            reply
        }
        Ok(Err(fault)) => Failure::Fault(fault).answer(id),
        Err(panicked) => ErrorBody::from(*panicked).write(id),
    }
}

impl From<Panicked> for ErrorBody {
    fn from(panicked: Panicked) -> ErrorBody {
        ErrorBody::new(Class::Panicked, vec![panicked.message, panicked.location])
    }
}

impl Failure {
    fn text(self) -> String {
        match self {
            Failure::Mismatch(text) | Failure::BadReply(text) => text,
            Failure::Fault(fault) => fault.text(),
        }
    }

    /// What the caller of `id` is told.
    #[cold]
    fn answer(self, id: u32) -> Outgoing {
        let body = match self {
            Failure::Mismatch(reason) => ErrorBody::new(Class::TypeMismatch, vec![reason]),
            Failure::BadReply(reason) => ErrorBody::new(Class::BadReply, vec![reason]),
            Failure::Fault(fault) => ErrorBody {
                class: Class::Fault,
                code: fault.code,
                texts: fault.texts,
                fds: fault.fds.iter().map(crate::Fd::share).collect(),
            },
        };
        body.write(id)
    }
}
