//! The connections that are being served: how many there are, and how to make all of them finish.
//!
//! Invariant: a connection is counted from before its thread starts until after its socket is closed; the count is
//! made of guards and cannot drift.

use crate::sys::socket;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// All connections of an engine.
#[derive(Default)]
pub(crate) struct Connections {
    state: Mutex<State>,
    changed: Condvar,
    /// The same as in the state, for those who look before every step.
    draining: AtomicBool,
}

#[derive(Default)]
struct State {
    live: HashMap<u64, Arc<OwnedFd>>,
    last_id: u64,
    draining: bool,
}

impl Connections {
    /// Counts a connection in. `None`: the server is stopping.
    pub(crate) fn enter(self: &Arc<Connections>, socket: &Arc<OwnedFd>) -> Option<Entry> {
        let mut state = self.lock();
        if state.draining {
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        state.live.insert(id, Arc::clone(socket));
        Some(Entry {
            id,
            connections: Arc::clone(self),
        })
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Lets no connection in any more, and makes those that wait for a call look up: for them, the client has
    /// finished. Calls that have arrived can still be read, and are answered.
    pub(crate) fn drain(&self) {
        let mut state = self.lock();
        state.draining = true;
        self.draining.store(true, Ordering::SeqCst);
        state
            .live
            .values()
            .for_each(|socket| socket::shut_down_reading(&**socket));
        self.changed.notify_all();
    }

    /// Waits until fewer than `count` connections are there, or the connections are draining.
    pub(crate) fn wait_below(&self, count: usize) {
        let waited = self.changed.wait_while(self.lock(), |state| {
            state.live.len() >= count && !state.draining
        });
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until no connection is left. `false`: the deadline passed before.
    pub(crate) fn wait_empty(&self, deadline: Option<Instant>) -> bool {
        let is_busy = |state: &mut State| !state.live.is_empty();
        let Some(deadline) = deadline else {
            let waited = self.changed.wait_while(self.lock(), is_busy);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            return true;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.changed.wait_timeout_while(self.lock(), left, is_busy);
        waited
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .live
            .is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among those that are served.
pub(crate) struct Entry {
    pub(crate) id: u64,
    connections: Arc<Connections>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.connections.lock().live.remove(&self.id);
        self.connections.changed.notify_all();
    }
}
