//! Telling handlers to stop, with the reason, by something that can be waited for.
//!
//! Invariant: once told, a token stays told, and so do all that depend on it.

use crate::error::StopReason;
use crate::session::Mailbox;
use crate::sys::poll::Waker;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// What tells a stream's handler to stop. Cheap to clone, and of use from any thread.
///
/// As a descriptor it is readable when the handler shall stop: poll it together with the channel's.
#[derive(Clone, Debug)]
pub struct StopToken(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reason: OnceLock<StopReason>,
    waker: Waker,
    /// Those that are told when this one is: of a server its listeners', of a listener its connections'.
    dependents: Mutex<Vec<Dependent>>,
}

#[derive(Debug)]
enum Dependent {
    Token(Weak<Inner>),
    Session(Weak<Mailbox>),
}

impl Dependent {
    fn is_gone(&self) -> bool {
        match self {
            Dependent::Token(token) => token.strong_count() == 0,
            Dependent::Session(mailbox) => mailbox.strong_count() == 0,
        }
    }

    fn stop(&self, reason: StopReason) {
        match self {
            Dependent::Token(token) => token.upgrade().map_or((), |token| token.stop(reason)),
            Dependent::Session(mailbox) => {
                mailbox.upgrade().map_or((), |mailbox| mailbox.stop(reason))
            }
        }
    }
}

impl StopToken {
    pub(crate) fn new() -> io::Result<StopToken> {
        Ok(StopToken(Arc::new(Inner {
            reason: OnceLock::new(),
            waker: Waker::new()?,
            dependents: Mutex::default(),
        })))
    }

    /// A token that is told when this one is, and maybe before.
    pub(crate) fn child(&self) -> io::Result<StopToken> {
        let child = StopToken::new()?;
        self.add(Dependent::Token(Arc::downgrade(&child.0)));
        Ok(child)
    }

    /// Tells a session that is served by callbacks when this token is told.
    pub(crate) fn tell(&self, mailbox: &Arc<Mailbox>) {
        self.add(Dependent::Session(Arc::downgrade(mailbox)));
    }

    fn add(&self, dependent: Dependent) {
        let mut dependents = self.0.dependents();
        // Under the lock, so that it is told once.
        if let Some(reason) = self.reason() {
            drop(dependents);
            return dependent.stop(reason);
        }
        if dependents.len() == dependents.capacity() {
            // Instead of growing for those that are gone.
            dependents.retain(|dependent| !dependent.is_gone());
        }
        dependents.push(dependent);
    }

    /// Tells all who have the token, or one that depends on it. Only the first reason counts.
    pub(crate) fn stop(&self, reason: StopReason) {
        self.0.stop(reason);
    }

    /// Why the handler shall stop, if it shall.
    pub fn reason(&self) -> Option<StopReason> {
        self.0.reason.get().copied()
    }

    /// Whether the handler shall stop.
    pub fn is_stopped(&self) -> bool {
        self.reason().is_some()
    }
}

impl Inner {
    fn stop(&self, reason: StopReason) {
        if self.reason.set(reason).is_ok() {
            self.waker.wake();
        }
        let dependents = std::mem::take(&mut *self.dependents());
        dependents
            .iter()
            .for_each(|dependent| dependent.stop(reason));
    }

    fn dependents(&self) -> MutexGuard<'_, Vec<Dependent>> {
        self.dependents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for StopToken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.waker.as_fd()
    }
}
