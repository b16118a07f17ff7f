//! Taking connections in, or not: when the listener is looked at, who is let in, who is turned away.
//!
//! Invariant: a listener that has nothing to give, because of a limit or of the system, is not looked at, so that
//! it costs no time; the kernel's backlog holds the rest.

use super::driver::Driver;
use super::parking::LISTENER;
use super::threaded::Shared;
use crate::connection::Connection;
use crate::protocol::message::Denied;
use crate::protocol::outbox::Outbox;
use crate::sys::epoll::Interest;
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
    /// Not before then, because the system had no room for one more.
    pub(super) not_before: Option<Instant>,
    back_off: Duration,
}

impl Default for Acceptance {
    fn default() -> Acceptance {
        Acceptance {
            watched: true,
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
        if !self.site.control.gate().is_open() {
            return self.stop_accepting(None);
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
            Err(_) => {
                let back_off = self.acceptance().back_off;
                self.stop_accepting(Some(Instant::now() + back_off));
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
        if !self.site.listener.admitted.contains(&peer.uid) {
            return Ok(None);
        }
        let socket = Arc::new(socket);
        match self.connections.enter(&socket) {
            Some(entry) => Ok(Some(Driver::new(
                Arc::clone(&self.site),
                socket,
                entry,
                peer.into(),
            ))),
            None => {
                self.turn_away(socket);
                Ok(None)
            }
        }
    }

    /// Looks at the listener no more, until a connection ends or the time has come.
    fn stop_accepting(&self, not_before: Option<Instant>) {
        let mut acceptance = self.acceptance();
        acceptance.not_before = not_before;
        acceptance.back_off = (acceptance.back_off * 2).min(MAX_BACK_OFF);
        acceptance.watched = false;
        let listener = self.site.listener.socket.as_fd();
        // It is in the set, so that this cannot fail.
        let _ = self.parking.events.set_watched(listener, LISTENER, false);
        drop(acceptance);
        self.connections.tell_when_one_ends();
        // Somebody else may lead by now, and sleep without knowing of the time.
        self.wake();
    }

    /// Looks at the listener again, if there is a reason to.
    pub(super) fn accept_again(&self) {
        let mut acceptance = self.acceptance();
        if acceptance.watched {
            return;
        }
        let too_early = acceptance
            .not_before
            .is_some_and(|time| Instant::now() < time);
        if too_early && !self.connections.has_one_ended() {
            return;
        }
        acceptance.not_before = None;
        if !self.site.control.gate().is_open() {
            self.connections.tell_when_one_ends();
            // One may have ended before we asked to be told.
            if !self.site.control.gate().is_open() {
                return;
            }
        }
        acceptance.watched = true;
        let listener = self.site.listener.socket.as_fd();
        // As above.
        let _ = self.parking.events.set_watched(listener, LISTENER, true);
    }

    pub(super) fn acceptance(&self) -> MutexGuard<'_, Acceptance> {
        self.acceptance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait in the backlog that it was in vain, so that they know that nothing was executed.
    pub(super) fn turn_away_all(&self) {
        for _ in 0..MAX_BACKLOG {
            let Ok(Some(socket)) = socket::accept(&self.site.listener.socket) else {
                return;
            };
            self.turn_away(Arc::new(socket));
        }
    }

    fn turn_away(&self, socket: Arc<OwnedFd>) {
        let mut outbox = Outbox::new(self.site.limits.max_frame, 0);
        if outbox.send(Denied::Stopping.write()).is_ok() {
            // A client that is gone needs no answer.
            let _ = Connection::new(socket).transmit_now(&outbox);
        }
    }
}
