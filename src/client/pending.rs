//! Calls that have been begun and not been finished, and the answers that came meanwhile.
//!
//! Invariant: an answer is kept only as long as somebody can ask for it. A call that is finished in the order in which
//! it was begun, as most are, is found nowhere here: what is looked up are the exceptions.

use crate::protocol::message::{EncodedValue, ErrorBody};
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// An answer that has not been decoded.
pub(super) type RawAnswer = Result<EncodedValue, ErrorBody>;

/// A call that has been begun; [`Client::finish`](super::Client::finish) gets its result. Dropped, the result is
/// not wanted any more.
#[derive(Debug)]
#[must_use = "the result of the call is lost otherwise"]
pub struct Pending<R> {
    pub(super) id: u32,
    /// When the client gives it up.
    pub(super) deadline: Option<Instant>,
    name: Arc<str>,
    /// The client's: there its id goes when it is dropped.
    dropped: Arc<Dropped>,
    is_finished: bool,
    result: PhantomData<fn() -> R>,
}

/// Ids of calls that nobody waits for any more, as their client will learn.
type Dropped = Mutex<Vec<u32>>;

/// What a client knows of the calls that it has begun.
#[derive(Debug, Default)]
pub(super) struct BegunCalls {
    /// Answers that came before somebody asked for them.
    kept: HashMap<u32, RawAnswer>,
    /// Calls whose answers nobody waits for, and which have not come.
    given_up: HashSet<u32>,
    dropped: Arc<Dropped>,
    /// The last name; the next is mostly the same.
    name: Option<Arc<str>>,
}

impl BegunCalls {
    pub(super) fn add<R>(&mut self, id: u32, name: &str, deadline: Option<Instant>) -> Pending<R> {
        let name = match &self.name {
            Some(last) if **last == *name => Arc::clone(last),
            _ => Arc::clone(self.name.insert(name.into())),
        };
        Pending {
            id,
            deadline,
            name,
            dropped: Arc::clone(&self.dropped),
            is_finished: false,
            result: PhantomData,
        }
    }

    /// Whether somebody may still ask for an answer.
    pub(super) fn has_askers(&self) -> bool {
        Arc::strong_count(&self.dropped) > 1
    }

    /// Keeps an answer for whoever will ask for it, if anybody can. A server that answers what was not asked cannot
    /// have more kept than there are calls to ask for.
    pub(super) fn keep(&mut self, id: u32, answer: RawAnswer) {
        self.hear_of_dropped();
        let askers = Arc::strong_count(&self.dropped) - 1;
        if askers == 0 {
            self.kept.clear();
        }
        if !self.given_up.remove(&id) && self.kept.len() < askers {
            self.kept.insert(id, answer);
        }
    }

    /// Nobody waits for the answer to that call any more, which has been sent.
    pub(super) fn give_up(&mut self, id: u32) {
        self.given_up.insert(id);
    }

    /// The answer to a call, if it has come. `None`: the call is not this client's.
    pub(super) fn take<R>(&mut self, pending: &Pending<R>) -> Option<Option<RawAnswer>> {
        if !Arc::ptr_eq(&self.dropped, &pending.dropped) {
            return None;
        }
        Some(match self.kept.is_empty() {
            true => None,
            false => self.kept.remove(&pending.id),
        })
    }

    /// Whether an answer with that id waits to be asked for: then no other call may have the id.
    pub(super) fn has_kept(&self, id: u32) -> bool {
        !self.kept.is_empty() && self.kept.contains_key(&id)
    }

    fn hear_of_dropped(&mut self) {
        let mut dropped = lock(&self.dropped);
        for id in dropped.drain(..) {
            if self.kept.remove(&id).is_none() {
                self.given_up.insert(id);
            }
        }
    }
}

impl<R> Pending<R> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its answer has been received, or none will come.
    pub(super) fn finished(&mut self) {
        self.is_finished = true;
    }
}

impl<R> Drop for Pending<R> {
    fn drop(&mut self) {
        if !self.is_finished {
            lock(&self.dropped).push(self.id);
        }
    }
}

fn lock(dropped: &Dropped) -> std::sync::MutexGuard<'_, Vec<u32>> {
    dropped.lock().unwrap_or_else(PoisonError::into_inner)
}
