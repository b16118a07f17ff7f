//! Calls that have been begun and not been finished, and the answers that came meanwhile.
//!
//! Invariant: an answer is kept only as long as somebody can ask for it. A call that is finished in the order in which
//! it was begun, as most are, is found nowhere here: what is looked up are the exceptions.

use crate::protocol::message::{EncodedValue, ErrorBody};
use std::collections::{HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// That a call has been answered, and why it has no value if it has none.
pub(super) struct Answered {
    pub(super) id: u32,
    pub(super) failure: Option<Box<ErrorBody>>,
}

/// An answer that is kept until somebody asks for it.
pub(super) type Kept = Result<EncodedValue, Box<ErrorBody>>;

/// A call that has been begun; [`Client::finish`](super::Client::finish) gets its result. Dropped, the result is
/// not wanted any more.
#[derive(Debug)]
#[must_use = "the result of the call is lost otherwise"]
pub struct Pending<R> {
    pub(super) id: u32,
    /// When the client gives it up.
    pub(super) deadline: Option<Instant>,
    /// The client's, and shared with its other calls of that name.
    asked: Arc<Asked>,
    is_finished: bool,
    result: PhantomData<fn() -> R>,
}

/// What calls of the same name have in common.
#[derive(Debug)]
struct Asked {
    name: Box<str>,
    /// There its id goes when one is dropped.
    dropped: Arc<Dropped>,
}

/// Ids of calls that nobody waits for any more, as their client will learn.
type Dropped = Mutex<Vec<u32>>;

/// What a client knows of the calls that it has begun.
#[derive(Debug, Default)]
pub(super) struct BegunCalls {
    /// Answers that came before somebody asked for them.
    kept: HashMap<u32, Kept>,
    /// Calls whose answers nobody waits for, and which have not come.
    given_up: HashSet<u32>,
    dropped: Arc<Dropped>,
    /// How many can still be asked for, as far as it is known.
    count: usize,
    /// With the last name; the next is mostly the same.
    asked: Option<Arc<Asked>>,
}

impl BegunCalls {
    pub(super) fn add<R>(&mut self, id: u32, name: &str, deadline: Option<Instant>) -> Pending<R> {
        let asked = match &self.asked {
            Some(asked) if *asked.name == *name => asked,
            _ => self.asked.insert(Arc::new(Asked {
                name: name.into(),
                dropped: Arc::clone(&self.dropped),
            })),
        };
        self.count += 1;
        Pending {
            id,
            deadline,
            asked: Arc::clone(asked),
            is_finished: false,
            result: PhantomData,
        }
    }

    /// Whether somebody may still ask for an answer.
    pub(super) fn has_askers(&mut self) -> bool {
        self.hear_of_dropped();
        self.count > 0
    }

    /// Keeps an answer for whoever will ask for it, if anybody can. A server that answers what was not asked cannot
    /// have more kept than there are calls to ask for.
    pub(super) fn keep(&mut self, id: u32, answer: Kept) {
        self.hear_of_dropped();
        if self.count == 0 {
            self.kept.clear();
        }
        if !self.given_up.remove(&id) && self.kept.len() < self.count {
            self.kept.insert(id, answer);
        }
    }

    /// Nobody waits for the answer to that call any more, which has been sent.
    pub(super) fn give_up(&mut self, id: u32) {
        self.given_up.insert(id);
    }

    /// The answer to a call, if it has come. `None`: the call is not this client's.
    pub(super) fn take<R>(&mut self, pending: &Pending<R>) -> Option<Option<Kept>> {
        if !Arc::ptr_eq(&self.dropped, &pending.asked.dropped) {
            return None;
        }
        self.count -= 1;
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
            self.count -= 1;
            if self.kept.remove(&id).is_none() {
                self.given_up.insert(id);
            }
        }
    }
}

impl<R> Pending<R> {
    pub(super) fn name(&self) -> &str {
        &self.asked.name
    }

    /// Its answer has been received, or none will come.
    pub(super) fn finished(&mut self) {
        self.is_finished = true;
    }
}

impl<R> Drop for Pending<R> {
    fn drop(&mut self) {
        if !self.is_finished {
            lock(&self.asked.dropped).push(self.id);
        }
    }
}

fn lock(dropped: &Dropped) -> std::sync::MutexGuard<'_, Vec<u32>> {
    dropped.lock().unwrap_or_else(PoisonError::into_inner)
}
