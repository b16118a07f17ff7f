//! The connections that are being served: how many there are, and how to make all of them finish.
//!
//! Invariant: a connection is counted from before its thread starts until after its socket is closed; the count is
//! made of guards and cannot drift.

use crate::context::Control;
use crate::sys::socket;
use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// All connections of an engine.
pub(crate) struct Connections {
    state: Mutex<State>,
    changed: Condvar,
    control: Control,
    max_strangers: usize,
    /// The same as in the state, for those who look before every step.
    draining: AtomicBool,
    /// Somebody wants to know when a connection ends.
    expected: AtomicBool,
    /// One has ended since somebody wanted to know.
    ended: AtomicBool,
}

#[derive(Default)]
struct State {
    live: HashMap<u64, Arc<OwnedFd>>,
    /// Those that have not shown the password yet; the first has been here for longest.
    strangers: BTreeSet<u64>,
    last_id: u64,
    draining: bool,
}

impl Connections {
    /// None yet; of those that come, at most `max_strangers` without the password.
    pub(crate) fn new(control: Control, max_strangers: usize) -> Arc<Connections> {
        Arc::new(Connections {
            state: Mutex::default(),
            changed: Condvar::new(),
            control,
            max_strangers,
            draining: AtomicBool::new(false),
            expected: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    /// Counts a connection in. `None`: the server is stopping.
    pub(crate) fn enter(self: &Arc<Connections>, socket: &Arc<OwnedFd>) -> Option<Entry> {
        let mut state = self.lock();
        if state.draining {
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        state.live.insert(id, Arc::clone(socket));
        state.strangers.insert(id);
        self.control.gate().entered();
        if state.strangers.len() > self.max_strangers {
            // The oldest goes, so that those who say nothing keep nobody out.
            let oldest = state
                .strangers
                .pop_first()
                .and_then(|oldest| state.live.get(&oldest));
            oldest.inspect(|socket| socket::shut_down(&***socket));
        }
        Some(Entry {
            id,
            connections: Arc::clone(self),
        })
    }

    /// Wakes the engine when the next connection ends.
    pub(crate) fn tell_when_one_ends(&self) {
        self.ended.store(false, Ordering::SeqCst);
        self.expected.store(true, Ordering::SeqCst);
    }

    /// Whether one has ended since that was asked for.
    pub(crate) fn has_one_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
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
    }

    /// Waits until no connection is left. `false`: the deadline passed before.
    pub(crate) fn wait_empty(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), left, |state| !state.live.is_empty());
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

impl Entry {
    /// The client has shown the password.
    pub(crate) fn authenticated(&self) {
        self.connections.lock().strangers.remove(&self.id);
    }

    /// Whether the connection is to end as soon as nothing is under way.
    pub(crate) fn is_draining(&self) -> bool {
        self.connections.draining.load(Ordering::SeqCst)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let connections = &self.connections;
        let mut state = connections.lock();
        state.live.remove(&self.id);
        connections.control.gate().left();
        state.strangers.remove(&self.id);
        if state.draining && state.live.is_empty() {
            connections.changed.notify_all();
        }
        drop(state);
        if connections.expected.swap(false, Ordering::SeqCst) {
            connections.ended.store(true, Ordering::SeqCst);
            connections.control.gate().waker().wake();
        }
    }
}
