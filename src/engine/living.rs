//! How many threads of an engine are alive, and a wait for their end that has an end itself.
//!
//! Invariant: a thread is counted from before it starts until it does nothing of ours any more, or has not been
//! started after all; the count is made of guards and cannot drift.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The threads that are alive.
#[derive(Clone, Default)]
pub(super) struct Living(Arc<Count>);

#[derive(Default)]
struct Count {
    number: Mutex<usize>,
    ended: Condvar,
}

/// One of them, for as long as it has this.
pub(super) struct Life(Arc<Count>);

impl Living {
    pub(super) fn begin(&self) -> Life {
        *self.0.lock() += 1;
        Life(Arc::clone(&self.0))
    }

    /// `false`: some are still alive at the deadline.
    pub(super) fn wait_until_none(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .0
            .ended
            .wait_timeout_while(self.0.lock(), left, |number| *number > 0);
        let (number, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *number == 0
    }
}

impl Count {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let mut number = self.0.lock();
        *number -= 1;
        let was_last = *number == 0;
        // Whoever waits would wake up only to wait for the lock.
        drop(number);
        if was_last {
            self.0.ended.notify_all();
        }
    }
}
