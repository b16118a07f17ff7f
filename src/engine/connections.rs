//! The connections that are being served: how many there are, and how to make all of them finish.
//!
//! Invariant: a connection is counted from before its thread starts until after its socket is closed; the count is
//! made of guards and cannot drift.

use crate::context::{Control, Peer};
use crate::event::{Event, Observer};
use crate::protocol::ending::Ending;
use crate::sys::linger::Socket;
use crate::sys::socket;
use std::collections::{BTreeSet, HashMap};
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
    live: HashMap<u64, Live>,
    /// How many of them a stream's handler has.
    dedicated: usize,
    /// Those that have not shown the password yet; the first has been here for longest.
    strangers: BTreeSet<u64>,
    last_id: u64,
    draining: bool,
}

struct Live {
    socket: Arc<Socket>,
    dedicated: bool,
    /// It had to make room for others.
    crowded_out: bool,
}

/// Why a connection cannot be a stream's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotDedicated {
    /// The server is stopping.
    Stopping,
    /// There are as many streams as there may be.
    Full,
}

/// What is left of the connections of a server that is stopping.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// Handlers of streams, and nothing else.
    Dedicated,
    Calls,
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
    pub(crate) fn enter(
        self: &Arc<Connections>,
        socket: &Arc<Socket>,
        listener: &Arc<str>,
        peer: Peer,
    ) -> Option<Entry> {
        let mut state = self.lock();
        if state.draining {
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        let live = Live {
            socket: Arc::clone(socket),
            dedicated: false,
            crowded_out: false,
        };
        state.live.insert(id, live);
        state.strangers.insert(id);
        self.control.gate().entered();
        if state.strangers.len() > self.max_strangers {
            // The oldest goes, so that those who say nothing keep nobody out.
            let oldest = state.strangers.pop_first();
            if let Some(live) = oldest.and_then(|oldest| state.live.get_mut(&oldest)) {
                live.crowded_out = true;
                socket::shut_down(&*live.socket);
            }
        }
        Some(Entry {
            id,
            listener: Arc::clone(listener),
            peer,
            is_known: false,
            ending: Ending::Broken,
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
    /// finished. Calls that have arrived can still be read, and are answered. Streams go on.
    pub(crate) fn drain(&self) {
        let mut state = self.lock();
        state.draining = true;
        self.draining.store(true, Ordering::SeqCst);
        let ordinary = state.live.values().filter(|live| !live.dedicated);
        ordinary.for_each(|live| socket::shut_down_reading(&*live.socket));
    }

    /// Waits until no connection is left that is not a stream's, or until the deadline, and says what is left.
    pub(crate) fn wait_for_calls(&self, deadline: Instant) -> Left {
        self.wait(deadline, |state| state.live.len() > state.dedicated)
    }

    /// As [`Connections::wait_for_calls`], for all connections.
    pub(crate) fn wait_for_all(&self, deadline: Instant) -> Left {
        self.wait(deadline, |state| !state.live.is_empty())
    }

    fn wait(&self, deadline: Instant, more: impl Fn(&State) -> bool) -> Left {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .changed
            .wait_timeout_while(self.lock(), left, |state| more(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        match state.live.len() - state.dedicated {
            0 if state.dedicated == 0 => Left::Nothing,
            0 => Left::Dedicated,
            _ => Left::Calls,
        }
    }

    /// Ends all connections, whatever is under way.
    pub(crate) fn cut(&self) {
        let state = self.lock();
        let sockets = state.live.values().map(|live| &live.socket);
        sockets.for_each(|socket| socket::shut_down(&**socket));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among those that are served.
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) listener: Arc<str>,
    pub(crate) peer: Peer,
    /// The client has shown the password, and somebody has been told so.
    is_known: bool,
    /// Why the connection ends, as soon as somebody knows better than that.
    pub(crate) ending: Ending,
    connections: Arc<Connections>,
}

impl Entry {
    /// The client has shown the password.
    pub(crate) fn authenticated(&mut self) {
        self.is_no_stranger();
        self.is_known = true;
        self.observer().tell(|| Event::Connected {
            session: self.id,
            listener: Arc::clone(&self.listener),
            peer: self.peer,
        });
    }

    /// The connection is the owner's, and has not to hurry.
    pub(crate) fn is_no_stranger(&self) {
        self.connections.lock().strangers.remove(&self.id);
    }

    /// Whether the client has shown the password.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known
    }

    pub(crate) fn observer(&self) -> &Observer {
        self.connections.control.observer()
    }

    /// The connection becomes a stream's, until [`Entry::undedicate`].
    pub(crate) fn dedicate(&self, max: usize) -> Result<(), NotDedicated> {
        let mut state = self.connections.lock();
        if state.draining {
            return Err(NotDedicated::Stopping);
        }
        if state.dedicated >= max {
            return Err(NotDedicated::Full);
        }
        self.set_dedicated(&mut state, true);
        Ok(())
    }

    /// The connection serves calls again.
    pub(crate) fn undedicate(&self) {
        let mut state = self.connections.lock();
        self.set_dedicated(&mut state, false);
        match state.live.get(&self.id) {
            // As those that were there when the drain began.
            Some(live) if state.draining => socket::shut_down_reading(&*live.socket),
            _ => {}
        }
    }

    fn set_dedicated(&self, state: &mut State, dedicated: bool) {
        let Some(live) = state.live.get_mut(&self.id) else {
            return;
        };
        match (std::mem::replace(&mut live.dedicated, dedicated), dedicated) {
            (false, true) => state.dedicated += 1,
            (true, false) => state.dedicated -= 1,
            _ => {}
        }
        self.connections.control.gate().set_streams(state.dedicated);
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
        self.set_dedicated(&mut state, false);
        let gone = state.live.remove(&self.id);
        drop(state);
        // With it goes the last share in the socket, and what is unread in that, which may linger for as long as a
        // client likes: nobody else must wait with us.
        let crowded_out = gone.is_some_and(|live| live.crowded_out);
        let mut state = connections.lock();
        connections.control.gate().left();
        state.strangers.remove(&self.id);
        if state.draining && state.live.len() == state.dedicated {
            connections.changed.notify_all();
        }
        drop(state);
        if connections.expected.swap(false, Ordering::SeqCst) {
            connections.ended.store(true, Ordering::SeqCst);
            connections.control.gate().waker().wake();
        }
        let ending = std::mem::replace(&mut self.ending, Ending::Broken);
        let reason = if crowded_out { Ending::Crowded } else { ending };
        let (listener, peer) = (Arc::clone(&self.listener), self.peer);
        self.observer().tell(|| match self.is_known {
            true => Event::Disconnected {
                session: self.id,
                listener,
                peer,
                reason,
            },
            false => Event::Refused {
                listener,
                peer: Some(peer),
                reason,
            },
        });
    }
}
