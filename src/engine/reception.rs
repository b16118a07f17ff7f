//! Taking connections in, or not: when a listener is looked at, who is let in, who is turned away.
//!
//! Invariant: a listener that has nothing to give, because of a limit or of the system, is not looked at, so that
//! it costs no time; the kernel's backlog holds the rest. One that stops turns everybody away.

use super::connections::{Connections, Entry};
use super::door::{Door, LISTENERS, Way};
use super::driver::Driver;
use super::{Port, Site};
use crate::arrival::Arrival;
use crate::context::{Control, Peer};
use crate::control::Wish;
use crate::event::{Event, PauseReason};
use crate::listener::{AcceptedConn, Acceptor, Permit, Wire};
use crate::panics;
use crate::protocol::ending::Ending;
use crate::protocol::greeting::Denied;
use crate::sys::epoll::EventSet;
use crate::sys::linger::Socket;
use crate::sys::{fdtable, socket};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A shortage that lasts for longer than about this is told to those who wait: they are turned away.
const LASTING: Duration = Duration::from_millis(100);
/// No more than this wait in a backlog (the kernel's usual `somaxconn`); those who come back at once may wait.
const MAX_BACKLOG: usize = 4096;

/// All listeners of an engine.
pub(super) struct Reception {
    site: Arc<Site>,
    connections: Arc<Connections>,
    /// Given up for a moment when there is no other descriptor, to tell those who wait that there is none.
    reserve: Mutex<Option<OwnedFd>>,
    /// The server stops.
    stopping: AtomicBool,
}

/// As many connections as the descriptor table has room for, with some left for orders and
/// handlers.
fn most_connections() -> io::Result<usize> {
    const LEFT: usize = 64;
    let capacity = fdtable::capacity()?;
    Ok(capacity.saturating_sub(LEFT).max(capacity / 2))
}

/// A descriptor that is of no use, and holds a place in the table for when there is no other.
fn reserve(control: &Control) -> Option<OwnedFd> {
    control.gate().waker().as_fd().try_clone_to_owned().ok()
}

/// The place of the listener that an event is about, if it is about one.
pub(super) fn listener_of(event: u64) -> Option<usize> {
    (event & LISTENERS != 0).then_some((event & !LISTENERS) as usize)
}

impl Reception {
    /// Looks at all listeners, in `events`.
    pub(super) fn open(
        site: Arc<Site>,
        connections: Arc<Connections>,
        events: Arc<EventSet>,
    ) -> io::Result<Reception> {
        site.control.gate().lower_ceiling(most_connections()?);
        for port in &site.ports {
            port.open_door(&events)?;
            let listener = Arc::clone(&port.bound.name);
            let observer = site.control.observer();
            observer.tell(|| Event::ListenerStarted { listener });
        }
        Ok(Reception {
            reserve: Mutex::new(reserve(&site.control)),
            stopping: AtomicBool::new(false),
            site,
            connections,
        })
    }

    /// Takes one connection of a listener's.
    pub(super) fn accept(&self, listener: usize) -> Option<Box<Driver>> {
        let port = &self.site.ports[listener];
        if let Some(reason) = self.site.control.gate().closed(listener) {
            if !matches!(port.door().way(), Way::TurnsAway(_)) {
                self.stop_accepting(port, reason);
                return None;
            }
        }
        match socket::accept(&port.bound.socket) {
            Ok(None) => None,
            Ok(Some(socket)) => {
                self.end_accept(port);
                // One about which the kernel tells nothing is gone.
                self.admit(socket, port, true).ok().flatten()
            }
            // No descriptors or memory: there will be some when something has ended.
            Err(err) => {
                self.site.control.observer().failed(None, "accept4", &err);
                self.tell_of_shortage(port);
                self.stop_accepting(port, PauseReason::NoResources);
                None
            }
        }
    }

    /// A connection was taken: see [`Port::end_accept`].
    fn end_accept(&self, port: &Port) {
        let gate = self.site.control.gate();
        let last = gate.connections_last();
        if port.end_accept(&mut port.door(), last, || gate.has_idler()) {
            // Somebody else may lead by now, and sleep without knowing of the time.
            gate.waker().wake();
        }
    }

    /// To be called before this process sleeps: see [`Port::end_turn`].
    pub(super) fn end_turns(&self) {
        self.site.ports.iter().for_each(|port| port.end_turn());
    }

    /// Takes a connection of the owner's in.
    pub(super) fn take_on(&self, socket: OwnedFd) -> io::Result<Option<Box<Driver>>> {
        let mut driver = self.admit(socket, &self.site.ports[0], false)?;
        if let Some(driver) = &mut driver {
            driver.is_the_owners();
        }
        Ok(driver)
    }

    /// Counts a connection in, if its user may connect and nothing stops. `came`: through that listener.
    fn admit(
        &self,
        socket: OwnedFd,
        port: &Arc<Port>,
        came: bool,
    ) -> io::Result<Option<Box<Driver>>> {
        let peer = Peer::from(socket::peer_credentials(&socket)?);
        if !port.bound.admitted.contains(&peer.uid) {
            let reason = Ending::NotAdmitted;
            self.tell(port, |listener| Event::Refused {
                listener,
                peer: Some(peer),
                reason,
            });
            return Ok(None);
        }
        let socket = Arc::new(Socket::from(socket));
        // From the moment on at which the door says so: whoever had to wait until now is not let in by the way.
        let is_late = came && matches!(port.door().way(), Way::TurnsAway(_));
        let entry = match is_late {
            true => None,
            false => self.connections.enter(&socket, port, came, peer),
        };
        let Some(mut entry) = entry else {
            self.turn_away(port, socket, Denied::Stopping, !came);
            return Ok(None);
        };
        let is_asked = came && !self.site.admit.is_empty();
        let (socket, is_replaced) = match is_asked {
            false => (socket, false),
            true => match self.ask(&mut entry, socket) {
                Some(arrival) => (arrival.socket(), arrival.is_replaced()),
                None => return Ok(None),
            },
        };
        if let (Wire::Raw(acceptor), true) = (&port.bound.wire, came) {
            let given = self.give_away(acceptor, &socket, entry);
            return given.map(|()| None).inspect_err(|err| {
                self.site.control.observer().failed(None, "fcntl", err);
            });
        }
        let mut driver = Driver::new(Arc::clone(&self.site), socket, entry, !came);
        if is_replaced {
            driver.has_another_socket();
        }
        Ok(match (&port.bound.wire, came) {
            (Wire::Records(records), true) => driver.begin_records(records).then_some(driver),
            _ => Some(driver),
        })
    }

    /// Asks the hooks about a connection. `None`: one refuses it.
    fn ask(&self, entry: &mut Entry, socket: Arc<Socket>) -> Option<Arrival> {
        let control = &self.site.control;
        let listener = Arc::clone(&entry.port.bound.name);
        let mut arrival = Arrival::new(control.clone(), listener, entry.peer, socket);
        for hook in &self.site.admit {
            let reason = match panics::catch(|| hook(&mut arrival)) {
                Ok(Ok(())) => continue,
                Ok(Err(fault)) => fault.text(),
                Err(panicked) => {
                    control.observer().panicked(None, "admit", &panicked);
                    format!("panicked at {}: {}", panicked.location, panicked.message)
                }
            };
            entry.ending = Ending::Rejected(reason);
            // Somebody else may have it, too.
            arrival.shut_down();
            return None;
        }
        if arrival.is_replaced() {
            entry.replace_socket(&arrival.socket());
        }
        Some(arrival)
    }

    /// Gives a connection to whoever takes them all from this listener.
    fn give_away(
        &self,
        acceptor: &Acceptor,
        socket: &Arc<Socket>,
        mut entry: Entry,
    ) -> io::Result<()> {
        let accepted = AcceptedConn {
            socket: socket.as_fd().try_clone_to_owned()?,
            peer: entry.peer,
            listener: Arc::clone(&entry.port.bound.name),
            session: entry.id,
        };
        let stop = entry.stop_token(&self.site.stop).child()?;
        entry.authenticated();
        entry.ending = Ending::Finished;
        // If the server has just begun to stop, the token says so.
        let _ = entry.dedicate(usize::MAX);
        let observer = self.site.control.observer();
        let session = Some(entry.id);
        let permit = Permit {
            _place: Box::new(entry),
            stop,
        };
        if let Err(panicked) = panics::catch(|| (acceptor.take)(accepted, permit)) {
            observer.panicked(session, "an acceptor", &panicked);
        }
        Ok(())
    }

    /// The system has no room. If that lasts, those who wait shall not do so without knowing for what.
    fn tell_of_shortage(&self, port: &Port) {
        // Others may have room.
        if port.bound.is_lent() || port.door().shortage() <= LASTING {
            return;
        }
        let mut kept = self.reserve.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = None;
        self.turn_away_backlog(port, Denied::NoRoom);
        // If others were quicker, there is none until the next time.
        *kept = reserve(&self.site.control);
    }

    /// Takes nobody from a listener any more, until there is a reason to.
    fn stop_accepting(&self, port: &Port, reason: PauseReason) {
        let mut door = port.door();
        let until = (reason == PauseReason::NoResources).then(|| door.back_off());
        let way = match door.way() {
            Way::Open | Way::Left(_) => Way::Shut(until),
            Way::TurnsAway(None) => Way::TurnsAway(until),
            Way::Shut(_) | Way::TurnsAway(_) | Way::Gone => return,
        };
        let led_in = door.way().leads_in();
        port.set_way(&mut door, way);
        self.has_others_look(port);
        if led_in {
            // Under the lock, so that what is told is told in order.
            self.tell(port, |listener| Event::Paused { listener, reason });
        }
        drop(door);
        self.connections.tell_when_one_ends();
        // Somebody else may lead by now, and sleep without knowing of the time.
        self.site.control.gate().waker().wake();
    }

    /// The server stops: nobody is let in any more. Told before anything else of its end is.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.review();
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Looks at the listeners, or does not, and lets nobody in or everybody, as the gate has it.
    pub(super) fn review(&self) {
        let gate = self.site.control.gate();
        for port in &self.site.ports {
            let mut door = port.door();
            while let Some(time) = door.next_cut() {
                self.connections.cut_listener(port, time);
            }
            let is_stopped = gate.is_stopped(port.index) || self.is_stopping();
            match door.way() {
                Way::TurnsAway(_) | Way::Gone if !is_stopped => self.open_again(port, door),
                Way::TurnsAway(Some(at)) if at <= Instant::now() => {
                    port.set_way(&mut door, Way::TurnsAway(None));
                }
                Way::TurnsAway(_) | Way::Gone => {}
                _ if is_stopped => self.close(port, door),
                Way::Shut(not_before) => self.accept_again(port, door, not_before),
                Way::Open | Way::Left(_) => {
                    port.come_back(&mut door, || gate.has_idler());
                    drop(door);
                    if let Some(reason) = gate.closed(port.index) {
                        self.stop_accepting(port, reason);
                    }
                }
            }
        }
    }

    /// Looks whether somebody waits for a listener that others look at, too: the kernel tells one of them only, who may not
    /// have got round to it.
    pub(super) fn look_again(&self) {
        let lent = self.site.ports.iter().filter(|port| port.bound.is_lent());
        lent.for_each(|port| port.queue_anew());
    }

    /// This process may have been told of somebody whom it does not take: the others shall look.
    fn has_others_look(&self, port: &Port) {
        if port.bound.is_lent() {
            self.site.control.wish(Wish::Look);
        }
    }

    /// Lets clients in again, if there is a reason to.
    fn accept_again(
        &self,
        port: &Port,
        mut door: MutexGuard<'_, Door>,
        not_before: Option<Instant>,
    ) {
        let too_early = not_before.is_some_and(|time| Instant::now() < time);
        if too_early && !self.connections.has_one_ended() {
            return;
        }
        port.set_way(&mut door, Way::Shut(None));
        let gate = self.site.control.gate();
        if gate.closed(port.index).is_some() {
            self.connections.tell_when_one_ends();
            // One may have ended before we asked to be told.
            if gate.closed(port.index).is_some() {
                return;
            }
        }
        port.set_way(&mut door, Way::Open);
        if door.way() == Way::Open {
            self.tell(port, |listener| Event::Resumed { listener });
        }
    }

    /// A listener was told to stop: nobody finds it, and who has found it is turned away. Who came through it before
    /// may finish what is under way.
    fn close(&self, port: &Port, mut door: MutexGuard<'_, Door>) {
        if door.way().leads_in() {
            let reason = PauseReason::Stopping;
            self.tell(port, |listener| Event::Paused { listener, reason });
        }
        if self.is_stopping() && port.bound.is_lent() {
            port.set_way(&mut door, Way::Gone);
            self.has_others_look(port);
            return;
        }
        port.set_way(&mut door, Way::TurnsAway(None));
        if self.is_stopping() {
            return;
        }
        if let Err(err) = port.bound.set_hidden(true) {
            self.site.control.observer().failed(None, "renameat2", &err);
        }
        // Under the lock: whoever starts it again comes behind this.
        self.connections.drain_listener(port);
        let cut = Instant::now().checked_add(self.site.grace);
        door.cuts.extend(cut.map(|at| (at, port.stops())));
        drop(door);
        // Whoever sleeps does not know of the time.
        self.site.control.gate().waker().wake();
    }

    /// A listener that was stopped shall go on.
    fn open_again(&self, port: &Port, mut door: MutexGuard<'_, Door>) {
        let shown = port.bound.set_hidden(false);
        let token = shown.and_then(|()| self.site.stop.child());
        let token = token.map(|token| port.renew_stop_token(token));
        if let Err(err) = token {
            // Something else is in its place, or there is no room for it: it stays as it was, until somebody says so again.
            let _ = port.bound.set_hidden(true);
            self.site.control.observer().failed(None, "renameat2", &err);
            let name = &port.bound.name;
            self.site.control.gate().set_stopped(name, true);
            return;
        }
        port.set_way(&mut door, Way::Open);
        self.connections.undrain_listener(port);
        self.tell(port, |listener| Event::ListenerStarted { listener });
        self.tell(port, |listener| Event::Resumed { listener });
    }

    /// Until when the engine may sleep because of the listeners.
    pub(super) fn sleep_until(&self) -> Option<Instant> {
        let ports = self.site.ports.iter();
        ports.filter_map(|port| port.door().next_time()).min()
    }

    fn tell(&self, port: &Port, event: impl FnOnce(Arc<str>) -> Event) {
        let name = || Arc::clone(&port.bound.name);
        self.site.control.observer().tell(|| event(name()));
    }

    /// Tells those who wait in the backlogs that it was in vain, so that they know that nothing was executed.
    pub(super) fn turn_away_all(&self) {
        // Those that others may serve are left to them.
        for port in self.site.ports.iter().filter(|port| !port.bound.is_lent()) {
            self.turn_away_backlog(port, Denied::Stopping);
        }
    }

    fn turn_away_backlog(&self, port: &Port, denied: Denied) {
        for _ in 0..MAX_BACKLOG {
            let Ok(Some(socket)) = socket::accept(&port.bound.socket) else {
                return;
            };
            self.turn_away(port, Arc::new(Socket::from(socket)), denied, false);
        }
    }

    /// `native`: the client is one of ours, whatever is spoken behind the listener.
    fn turn_away(&self, port: &Port, socket: Arc<Socket>, denied: Denied, native: bool) {
        let observer = self.site.control.observer();
        port.bound.turn_away(socket, denied, native, observer);
    }
}
