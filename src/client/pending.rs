//! Calls that have been begun and not been finished, and the answers that came meanwhile.
//!
//! Invariant: an answer is kept only as long as somebody can ask for it.

use crate::protocol::message::{EncodedValue, ErrorBody};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasherDefault, Hasher};
use std::marker::PhantomData;
use std::sync::{Arc, Weak};
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
    /// What was called; that it is still held tells the client that somebody still waits.
    name: Arc<str>,
    result: PhantomData<fn() -> R>,
}

/// All begun calls of a client, by their ids.
#[derive(Debug, Default)]
pub(super) struct BegunCalls {
    calls: HashMap<u32, Begun, BuildHasherDefault<IdHasher>>,
    /// When there are so many, those that nobody waits for any more are looked for.
    prune_at: usize,
}

#[derive(Debug)]
struct Begun {
    name: Weak<str>,
    answer: Option<RawAnswer>,
}

impl BegunCalls {
    pub(super) fn add<R>(&mut self, id: u32, name: &str, deadline: Option<Instant>) -> Pending<R> {
        if self.calls.len() >= self.prune_at {
            self.calls.retain(|_, call| call.name.strong_count() > 0);
            self.prune_at = (self.calls.len() * 2).max(64);
        }
        let name: Arc<str> = name.into();
        self.calls.insert(
            id,
            Begun {
                name: Arc::downgrade(&name),
                answer: None,
            },
        );
        Pending {
            id,
            deadline,
            name,
            result: PhantomData,
        }
    }

    /// Keeps an answer for whoever will ask for it, if anybody can.
    pub(super) fn keep(&mut self, id: u32, answer: RawAnswer) {
        match self.calls.get_mut(&id) {
            Some(call) if call.name.strong_count() > 0 => call.answer = Some(answer),
            Some(_) => drop(self.calls.remove(&id)),
            None => {}
        }
    }

    /// Forgets a call, and gives its answer if that has come. `None`: the call is not this client's.
    pub(super) fn take<R>(&mut self, pending: &Pending<R>) -> Option<Option<RawAnswer>> {
        match self.calls.entry(pending.id) {
            Entry::Occupied(call) if pending.is_of(call.get()) => Some(call.remove().answer),
            _ => None,
        }
    }
}

impl<R> Pending<R> {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    fn is_of(&self, call: &Begun) -> bool {
        std::ptr::addr_eq(call.name.as_ptr(), Arc::as_ptr(&self.name))
    }
}

/// Ids are the client's own, one after the other: they need no protection from whoever would choose them badly.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, id: u32) {
        // Spreads the bits over the whole word, as the table looks at the highest as well: 2^64 by the golden ratio.
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
