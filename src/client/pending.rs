//! Calls that have been begun and not been finished, and the answers that came meanwhile.
//!
//! Invariant: an answer is kept only as long as somebody can ask for it.

use crate::protocol::message::{EncodedValue, ErrorBody};
use std::collections::HashMap;
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
    pub(super) name: Box<str>,
    pub(super) begun: Instant,
    /// Tells the client that somebody still waits.
    token: Arc<()>,
    result: PhantomData<fn() -> R>,
}

/// All begun calls of a client, by their ids.
#[derive(Debug, Default)]
pub(super) struct BegunCalls {
    calls: HashMap<u32, Begun>,
    /// When there are so many, those that nobody waits for any more are looked for.
    prune_at: usize,
}

#[derive(Debug)]
struct Begun {
    token: Weak<()>,
    answer: Option<RawAnswer>,
}

impl BegunCalls {
    pub(super) fn add<R>(&mut self, id: u32, name: &str) -> Pending<R> {
        if self.calls.len() >= self.prune_at {
            self.calls.retain(|_, call| call.token.strong_count() > 0);
            self.prune_at = (self.calls.len() * 2).max(64);
        }
        let token = Arc::new(());
        self.calls.insert(
            id,
            Begun {
                token: Arc::downgrade(&token),
                answer: None,
            },
        );
        Pending {
            id,
            name: name.into(),
            begun: Instant::now(),
            token,
            result: PhantomData,
        }
    }

    /// Keeps an answer for whoever will ask for it, if anybody can.
    pub(super) fn keep(&mut self, id: u32, answer: RawAnswer) {
        match self.calls.get_mut(&id) {
            Some(call) if call.token.strong_count() > 0 => call.answer = Some(answer),
            Some(_) => drop(self.calls.remove(&id)),
            None => {}
        }
    }

    /// Forgets a call, and gives its answer if that has come. `None`: the call is not this client's.
    pub(super) fn take<R>(&mut self, pending: &Pending<R>) -> Option<Option<RawAnswer>> {
        let call = self.calls.get(&pending.id)?;
        if call.token.as_ptr() != Arc::as_ptr(&pending.token) {
            return None;
        }
        Some(self.calls.remove(&pending.id)?.answer)
    }
}
