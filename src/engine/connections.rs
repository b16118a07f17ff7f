//! The connections that are being served: how many there are, and how to make all of them finish.
//!
//! Invariant: a connection is counted from before its thread starts until after its socket is closed; the count is
//! made of guards and cannot drift.

mod live;

use self::live::Live;
use super::Port;
use super::numbered::Numbered;
use crate::Password;
use crate::channel::StopToken;
use crate::context::{Control, Peer};
use crate::error::StopReason;
use crate::event::{Event, Observer};
use crate::protocol::ending::Ending;
use crate::sys::linger::Socket;
use crate::sys::socket;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A session's number has its worker's generation above so many bits; the highest two are of use to others.
const SESSION_BITS: u32 = 40;
const MAX_NUMBERED: u32 = 1 << (62 - SESSION_BITS);

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
    live: Numbered<Live>,
    /// By listener.
    ports: Vec<PortState>,
    /// How many of them a stream's handler has.
    dedicated: usize,
    /// Those that have not shown the password yet; the first has been here for longest.
    strangers: BTreeSet<u64>,
    last_id: u64,
    draining: bool,
}

/// Those who came through one listener.
#[derive(Default)]
struct PortState {
    /// Nobody comes in.
    stopped: bool,
    current: usize,
    /// Those who were there when it stopped.
    former: usize,
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
    pub(crate) fn new(control: Control, max_strangers: usize, ports: usize) -> Arc<Connections> {
        // Numbers that no other worker gives.
        let worker = control.worker().map_or(0, |worker| worker.generation);
        let state = State {
            last_id: u64::from(worker % MAX_NUMBERED) << SESSION_BITS,
            ports: (0..ports).map(|_| PortState::default()).collect(),
            ..State::default()
        };
        Arc::new(Connections {
            state: Mutex::new(state),
            changed: Condvar::new(),
            control,
            max_strangers,
            draining: AtomicBool::new(false),
            expected: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        })
    }

    /// Counts a connection in, which `came` through the listener, or is treated as if it had. `None`: the server, or
    /// that listener, is stopping.
    pub(crate) fn enter(
        self: &Arc<Connections>,
        socket: &Arc<Socket>,
        port: &Arc<Port>,
        came: bool,
        peer: Peer,
    ) -> Option<Entry> {
        let mut state = self.lock();
        if state.draining || came && state.ports[port.index].stopped {
            return None;
        }
        state.last_id += 1;
        let id = state.last_id;
        let stops = came.then(|| port.stops());
        // Of the same time: under the lock, no stop comes between the two.
        let stop = came.then(|| port.stop_token());
        if came {
            state.ports[port.index].current += 1;
        }
        state.live.insert(id, Live::new(socket, port, stops));
        if came && port.bound.wire.asks_for_password() {
            state.strangers.insert(id);
        }
        self.control.gate().entered(came.then_some(port.index));
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
            port: Arc::clone(port),
            stops,
            stop,
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
    pub(crate) fn drain(&self, ports: &[Arc<Port>]) {
        let mut state = self.lock();
        state.draining = true;
        self.draining.store(true, Ordering::SeqCst);
        let ordinary = state.live.values().filter(|live| !live.dedicated);
        ordinary.for_each(|live| socket::shut_down_reading(&*live.socket));
        let stopped = ports.iter().filter(|port| state.stop_port(port.index));
        let stopped: Vec<_> = stopped.collect();
        drop(state);
        stopped.into_iter().for_each(|port| self.tell_stopped(port));
    }

    /// As [`Connections::drain`], for one listener; its streams are told to stop.
    pub(crate) fn drain_listener(&self, port: &Port) {
        let mut state = self.lock();
        let theirs = |live: &&Live| live.came_through(port).is_some();
        let ordinary = state.live.values().filter(|live| !live.dedicated);
        // What the others have sent by now is still answered, or refused.
        ordinary
            .filter(theirs)
            .for_each(|live| socket::shut_down_reading(&*live.socket));
        port.has_stopped();
        let has_none = state.stop_port(port.index);
        drop(state);
        port.stop_token().stop(StopReason::ListenerStopping);
        if has_none {
            self.tell_stopped(port);
        }
    }

    fn tell_stopped(&self, port: &Port) {
        let listener = Arc::clone(&port.bound.name);
        let observer = self.control.observer();
        observer.tell(|| Event::ListenerStopped { listener });
    }

    /// Lets connections in again through a listener that had stopped.
    pub(crate) fn undrain_listener(&self, port: &Port) {
        self.lock().ports[port.index].stopped = false;
    }

    /// Ends the connections that a listener had when it stopped for that time, whatever is under way.
    pub(crate) fn cut_listener(&self, port: &Port, time: u64) {
        let state = self.lock();
        let is_former = |live: &&Live| live.came_through(port).is_some_and(|stops| stops < time);
        let former = state.live.values().filter(is_former);
        former.for_each(|live| socket::shut_down(&*live.socket));
    }

    /// Whether the server is stopping.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
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

impl State {
    /// Lets nobody in through a listener. `true`: it has no connections.
    fn stop_port(&mut self, index: usize) -> bool {
        let counts = &mut self.ports[index];
        if std::mem::replace(&mut counts.stopped, true) {
            return false;
        }
        counts.former += std::mem::take(&mut counts.current);
        counts.former == 0
    }
}

/// A connection's place among those that are served.
pub(crate) struct Entry {
    pub(crate) id: u64,
    pub(crate) port: Arc<Port>,
    /// How often its listener had stopped when it came through it.
    stops: Option<u64>,
    /// Told when that listener stops.
    stop: Option<StopToken>,
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
            listener: Arc::clone(&self.port.bound.name),
            peer: self.peer,
        });
    }

    /// What its client must know. An owner knows the password of the start, and needs no other.
    pub(crate) fn password(&self) -> Arc<Password> {
        match self.stops {
            Some(_) => self.connections.control.password(self.port.index),
            None => Arc::clone(&self.port.bound.password),
        }
    }

    /// The connection goes on over another socket.
    pub(crate) fn replace_socket(&self, socket: &Arc<Socket>) {
        let mut state = self.connections.lock();
        let Some(live) = state.live.get_mut(&self.id) else {
            return;
        };
        let former = std::mem::replace(&mut live.socket, Arc::clone(socket));
        // What was done to the other one.
        match live.crowded_out {
            true => socket::shut_down(&**socket),
            false if self.is_draining() => socket::shut_down_reading(&**socket),
            false => {}
        }
        // It may linger, and nobody else must wait with us.
        drop(state);
        drop(former);
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
        if self.is_draining() {
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
            Some(live) if self.is_draining() => socket::shut_down_reading(&*live.socket),
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
        self.connections.is_draining() || self.stops.is_some_and(|stops| stops != self.port.stops())
    }

    /// What tells the connection's stream to stop.
    pub(crate) fn stop_token(&self, server: &StopToken) -> StopToken {
        self.stop.as_ref().unwrap_or(server).clone()
    }

    /// The connection is over, for its listener. `true`: it was the last that a stopped one had.
    fn leave_port(&self, state: &mut State) -> bool {
        let Some(stops) = self.stops else {
            return false;
        };
        let counts = &mut state.ports[self.port.index];
        if stops == self.port.stops() && !counts.stopped {
            counts.current -= 1;
            return false;
        }
        counts.former -= 1;
        counts.former == 0
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
        let port = self.stops.map(|_| self.port.index);
        connections.control.gate().left(port);
        state.strangers.remove(&self.id);
        let was_last = self.leave_port(&mut state);
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
        let (listener, peer) = (Arc::clone(&self.port.bound.name), self.peer);
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
        if was_last {
            connections.tell_stopped(&self.port);
        }
    }
}
