//! Taking connections in, or not: when the listener is looked at, who is let in, who is turned away.
//!
//! Invariant: a listener that has nothing to give, because of a limit or of the system, is not looked at, so that
//! it costs no time; the kernel's backlog holds the rest.

use super::driver::Driver;
use super::parking::LISTENER;
use super::threaded::Shared;
use crate::connection::Connection;
use crate::context::Peer;
use crate::event::{Event, PauseReason};
use crate::protocol::ending::Ending;
use crate::protocol::message::Denied;
use crate::protocol::outbox::Outbox;
use crate::sys::epoll::Interest;
use crate::sys::linger::Socket;
use crate::sys::{fdtable, socket};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long nobody is accepted after the system refused a connection, at first and at most.
const BACK_OFF: Duration = Duration::from_millis(10);
const MAX_BACK_OFF: Duration = Duration::from_secs(1);
/// No more than this wait in a backlog (the kernel's usual `somaxconn`); those who come back at once may wait.
const MAX_BACKLOG: usize = 4096;

/// Whether the listener is looked at.
pub(super) struct Acceptance {
    watched: bool,
    /// Nobody is let in any more; who comes is turned away.
    stopping: bool,
    /// Not before then, because the system had no room for one more.
    pub(super) not_before: Option<Instant>,
    back_off: Duration,
}

impl Default for Acceptance {
    fn default() -> Acceptance {
        Acceptance {
            watched: true,
            stopping: false,
            not_before: None,
            back_off: BACK_OFF,
        }
    }
}

/// As many connections as the descriptor table has room for, with some left for orders and
/// handlers.
pub(super) fn most_connections() -> io::Result<usize> {
    const LEFT: usize = 64;
    let capacity = fdtable::capacity()?;
    Ok(capacity.saturating_sub(LEFT).max(capacity / 2))
}

impl Shared {
    /// Takes one connection and serves it.
    pub(super) fn accept(self: &Arc<Shared>, token: u64) {
        match self.site.control.gate().closed() {
            Some(reason) if !self.acceptance().stopping => return self.stop_accepting(reason),
            _ => {}
        }
        match socket::accept(&self.site.listener.socket) {
            Ok(None) => {}
            Ok(Some(socket)) => {
                self.acceptance().back_off = BACK_OFF;
                if let Ok(Some(driver)) = self.admit(socket) {
                    self.serve(driver, Some(token));
                }
            }
            // No descriptors or memory: there will be some when something has ended.
            Err(err) => {
                self.site.control.observer().failed(None, "accept4", &err);
                self.stop_accepting(PauseReason::NoResources);
            }
        }
    }

    /// Serves a connection of the owner's. Called on the control thread, which reads no client's bytes.
    pub(super) fn take_on(&self, socket: OwnedFd) -> io::Result<()> {
        match self.admit(socket)? {
            Some(mut driver) => {
                driver.is_the_owners();
                self.parking.park(driver, Interest::Readable)
            }
            None => Ok(()),
        }
    }

    /// Counts a connection in, if its user may connect and the server is not stopping.
    fn admit(&self, socket: OwnedFd) -> io::Result<Option<Box<Driver>>> {
        let peer = socket::peer_credentials(&socket)?;
        let peer = Peer::from(peer);
        if !self.site.listener.admitted.contains(&peer.uid) {
            self.refused(peer, Ending::NotAdmitted);
            return Ok(None);
        }
        let socket = Arc::new(Socket::from(socket));
        match self
            .connections
            .enter(&socket, &self.site.listener.name, peer)
        {
            Some(entry) => Ok(Some(Driver::new(Arc::clone(&self.site), socket, entry))),
            None => {
                self.turn_away(socket);
                Ok(None)
            }
        }
    }

    /// Looks at the listener no more, until there is a reason to.
    fn stop_accepting(&self, reason: PauseReason) {
        let mut acceptance = self.acceptance();
        if !acceptance.watched {
            return;
        }
        acceptance.not_before = None;
        if reason == PauseReason::NoResources {
            acceptance.not_before = Some(Instant::now() + acceptance.back_off);
            acceptance.back_off = (acceptance.back_off * 2).min(MAX_BACK_OFF);
        }
        self.watch_listener(&mut acceptance, false);
        if !acceptance.stopping {
            // Under the lock, so that what is told is told in order.
            self.tell(|listener| Event::Paused { listener, reason });
        }
        drop(acceptance);
        self.connections.tell_when_one_ends();
        // Somebody else may lead by now, and sleep without knowing of the time.
        self.wake();
    }

    /// Looks at the listener, or does not, as the gate has it.
    pub(super) fn review_acceptance(&self) {
        let gate = self.site.control.gate();
        let acceptance = self.acceptance();
        if acceptance.stopping {
            return;
        }
        if !acceptance.watched {
            return self.accept_again(acceptance);
        }
        drop(acceptance);
        if let Some(reason) = gate.closed() {
            self.stop_accepting(reason);
        }
    }

    /// Looks at the listener again, if there is a reason to.
    fn accept_again(&self, mut acceptance: MutexGuard<'_, Acceptance>) {
        let too_early = acceptance
            .not_before
            .is_some_and(|time| Instant::now() < time);
        if too_early && !self.connections.has_one_ended() {
            return;
        }
        acceptance.not_before = None;
        let gate = self.site.control.gate();
        if gate.closed().is_some() {
            self.connections.tell_when_one_ends();
            // One may have ended before we asked to be told.
            if gate.closed().is_some() {
                return;
            }
        }
        self.watch_listener(&mut acceptance, true);
        self.tell(|listener| Event::Resumed { listener });
    }

    /// The server stops.
    pub(super) fn accept_no_more(&self) {
        let mut acceptance = self.acceptance();
        acceptance.stopping = true;
        if acceptance.watched {
            let reason = PauseReason::Stopping;
            self.tell(|listener| Event::Paused { listener, reason });
        }
    }

    fn watch_listener(&self, acceptance: &mut Acceptance, watched: bool) {
        acceptance.watched = watched;
        let listener = self.site.listener.socket.as_fd();
        // It is in the set, so that this cannot fail.
        let _ = self.parking.events.set_watched(listener, LISTENER, watched);
    }

    fn tell(&self, event: impl FnOnce(Arc<str>) -> Event) {
        let name = || Arc::clone(&self.site.listener.name);
        self.site.control.observer().tell(|| event(name()));
    }

    pub(super) fn acceptance(&self) -> MutexGuard<'_, Acceptance> {
        self.acceptance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, peer: Peer, reason: Ending) {
        self.tell(|listener| Event::Refused {
            listener,
            peer: Some(peer),
            reason,
        });
    }

    /// Tells those who wait in the backlog that it was in vain, so that they know that nothing was executed.
    pub(super) fn turn_away_all(&self) {
        for _ in 0..MAX_BACKLOG {
            let Ok(Some(socket)) = socket::accept(&self.site.listener.socket) else {
                return;
            };
            self.turn_away(Arc::new(Socket::from(socket)));
        }
    }

    fn turn_away(&self, socket: Arc<Socket>) {
        let reason = Ending::Stopping;
        let peer = socket::peer_credentials(&*socket).ok().map(Peer::from);
        self.tell(|listener| Event::Refused {
            listener,
            peer,
            reason,
        });
        let mut outbox = Outbox::new(self.site.limits.bounds());
        if outbox.send(Denied::Stopping.write()).is_ok() {
            // A client that is gone needs no answer.
            let _ = Connection::new(socket).transmit_now(&outbox);
        }
    }
}
