//! Telling handlers to stop, with the reason, by something that can be waited for.
//!
//! Invariant: once told, a token stays told.

use crate::error::StopReason;
use crate::sys::poll::Waker;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

/// What tells a stream's handler to stop. Cheap to clone, and of use from any thread.
///
/// As a descriptor it is readable when the handler shall stop: poll it together with the channel's.
#[derive(Clone, Debug)]
pub struct StopToken(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reason: OnceLock<StopReason>,
    waker: Waker,
}

impl StopToken {
    pub(crate) fn new() -> io::Result<StopToken> {
        let (reason, waker) = (OnceLock::new(), Waker::new()?);
        Ok(StopToken(Arc::new(Inner { reason, waker })))
    }

    /// Tells all who have the token. Only the first reason counts.
    pub(crate) fn stop(&self, reason: StopReason) {
        if self.0.reason.set(reason).is_ok() {
            self.0.waker.wake();
        }
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

impl AsFd for StopToken {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.waker.as_fd()
    }
}
