//! Where the two directions of a handler's channel go when it drops them.
//!
//! Invariant: whoever waits here gets both directions, and nobody else has them then.

use crate::protocol::stream::{StreamIn, StreamOut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The place to which a connection's directions come back from a handler.
#[derive(Debug, Default)]
pub(crate) struct Home {
    parts: Mutex<(Option<StreamIn>, Option<StreamOut>)>,
    came: Condvar,
}

impl Home {
    pub(super) fn take_in(&self, input: StreamIn) {
        self.lock().0 = Some(input);
        self.came.notify_all();
    }

    pub(super) fn take_out(&self, output: StreamOut) {
        self.lock().1 = Some(output);
        self.came.notify_all();
    }

    /// Waits until the handler, and whatever threads it has given a half to, have dropped both.
    pub(crate) fn wait(&self) -> (StreamIn, StreamOut) {
        let mut parts = self.lock();
        loop {
            match std::mem::take(&mut *parts) {
                (Some(input), Some(output)) => return (input, output),
                some => *parts = some,
            }
            parts = self
                .came
                .wait(parts)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Option<StreamIn>, Option<StreamOut>)> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
