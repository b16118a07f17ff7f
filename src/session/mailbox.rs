//! Reaching a session from outside: from any thread, a signal's handler, another session.
//!
//! Invariant: what has been posted is delivered once, in order, or dropped with the session; whoever posts never
//! waits.

use crate::context::Control;
use crate::error::StopReason;
use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A session that is served by callbacks, seen from elsewhere. Cheap to clone; it keeps nothing alive.
#[derive(Clone, Debug)]
pub struct SessionHandle(pub(super) Arc<Mailbox>);

/// Why nothing was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The session is over.
    #[error("the session is over")]
    Gone,
    /// As many events as [`Limits::max_posted`](crate::Limits::max_posted) wait for it.
    #[error("{limit} events wait already (max_posted)")]
    Full {
        /// How many may.
        limit: usize,
    },
}

impl SessionHandle {
    /// The session's number: [`Context::session_id`](crate::Context::session_id).
    pub fn session_id(&self) -> u64 {
        self.0.session
    }

    /// Has [`EventHandler::posted`](crate::EventHandler::posted) called with `event`, soon, on the thread that serves
    /// the session then.
    ///
    /// # Errors
    /// The session is over, or too many wait; the event is dropped.
    pub fn post<E: Any + Send>(&self, event: E) -> Result<(), PostError> {
        self.0.put(Letter::Event(Box::new(event)), true)
    }

    /// Closes the session as [`Session::close`](crate::Session::close) does, soon. One that is over stays so.
    pub fn close(&self) {
        let _ = self.0.put(Letter::Close, false);
    }

    /// Closes the session as [`Session::close_now`](crate::Session::close_now) does, soon.
    pub fn close_now(&self) {
        let _ = self.0.put(Letter::CloseNow, false);
    }
}

/// After so many letters in a row, it is the client's turn.
pub(super) const LETTERS: u32 = 32;

/// What waits for a session.
pub(crate) enum Letter {
    Event(Box<dyn Any + Send>),
    Close,
    CloseNow,
    Stop(StopReason),
}

/// What waits for one session.
pub(crate) struct Mailbox {
    session: u64,
    limit: usize,
    /// `None`: the session is over.
    letters: Mutex<Option<VecDeque<Letter>>>,
    office: Arc<Office>,
}

impl Mailbox {
    pub(super) fn new(session: u64, limit: usize, office: &Arc<Office>) -> Arc<Mailbox> {
        Arc::new(Mailbox {
            session,
            limit,
            letters: Mutex::new(Some(VecDeque::new())),
            office: Arc::clone(office),
        })
    }

    /// Tells the session to stop.
    pub(crate) fn stop(&self, reason: StopReason) {
        let _ = self.put(Letter::Stop(reason), false);
    }

    fn put(&self, letter: Letter, is_counted: bool) -> Result<(), PostError> {
        let mut letters = self.letters();
        let Some(waiting) = &mut *letters else {
            return Err(PostError::Gone);
        };
        if is_counted && waiting.len() >= self.limit {
            return Err(PostError::Full { limit: self.limit });
        }
        waiting.push_back(letter);
        let is_first = waiting.len() == 1;
        drop(letters);
        if is_first {
            self.office.call(self.session);
        }
        Ok(())
    }

    pub(crate) fn has_letters(&self) -> bool {
        let letters = self.letters();
        letters.as_ref().is_some_and(|waiting| !waiting.is_empty())
    }

    pub(super) fn take(&self) -> Option<Letter> {
        self.letters().as_mut()?.pop_front()
    }

    /// Nothing is delivered any more; what waits is given back.
    pub(super) fn close(&self) -> VecDeque<Letter> {
        self.letters().take().unwrap_or_default()
    }

    fn letters(&self) -> MutexGuard<'_, Option<VecDeque<Letter>>> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mailbox({})", self.session)
    }
}

/// Where an engine learns for which sessions something waits.
#[derive(Debug)]
pub(crate) struct Office {
    called: Mutex<Vec<u64>>,
    control: Control,
}

impl Office {
    /// The office of the engine of a server with this control.
    pub(crate) fn new(control: Control) -> Arc<Office> {
        Arc::new(Office {
            called: Mutex::default(),
            control,
        })
    }

    fn call(&self, session: u64) {
        self.called().push(session);
        self.control.gate().waker().wake();
    }

    /// The sessions for which something has come since this was asked last.
    pub(crate) fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.called())
    }

    fn called(&self) -> MutexGuard<'_, Vec<u64>> {
        self.called.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
