//! A thread for each connection, in blocking reads.
//!
//! Invariant: threads share nothing but the site and the table of connections; what a client does to its thread,
//! no other client notices.

use super::connections::{Connections, Entry};
use super::{Site, run_deferred};
use crate::connection::{Connection, ReceiveError, is_timeout};
use crate::context::{Context, Peer};
use crate::protocol::Step;
use crate::protocol::message::Denied;
use crate::protocol::server::{Happening, ServerSession};
use crate::protocol::wire::Wire;
use crate::sys::poll::{self, Waker};
use crate::sys::rights::Rights;
use crate::sys::socket;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long the acceptor waits after the system refused a connection or a thread, at first and at most.
const BACK_OFF: Duration = Duration::from_millis(10);
const MAX_BACK_OFF: Duration = Duration::from_secs(1);

/// A running engine.
pub(crate) struct Threaded {
    shared: Arc<Shared>,
    acceptor: JoinHandle<()>,
}

struct Shared {
    site: Arc<Site>,
    connections: Arc<Connections>,
    /// Ends the acceptor.
    stop: Waker,
}

impl Threaded {
    pub(crate) fn start(site: Arc<Site>) -> io::Result<Threaded> {
        let shared = Arc::new(Shared {
            site,
            connections: Arc::default(),
            stop: Waker::new()?,
        });
        let acceptor = Arc::clone(&shared);
        let acceptor = thread::Builder::new()
            .name("acceptor".into())
            .spawn(move || acceptor.accept_all())?;
        Ok(Threaded { shared, acceptor })
    }

    /// Serves a connection that did not come through the listener.
    pub(crate) fn serve(&self, socket: OwnedFd) -> io::Result<()> {
        self.shared.start_session(socket)
    }

    /// Begins no call any more, and accepts nobody. Returns at once.
    pub(crate) fn begin_drain(&self) {
        self.shared.stop.wake();
        self.shared.connections.drain();
    }

    /// Waits until the connections have finished what they had begun. `false`: some had not by the deadline.
    pub(crate) fn finish_drain(self, deadline: Option<Instant>) -> bool {
        // The acceptor ends at once, because it waits for nothing without the waker or the table of connections.
        let _ = self.acceptor.join();
        self.shared.connections.wait_empty(deadline)
    }
}

impl Shared {
    fn accept_all(self: &Arc<Shared>) {
        let listener = &self.site.listener.socket;
        let mut back_off = BACK_OFF;
        loop {
            // Above the limit the listener is not looked at: the kernel's backlog holds the rest.
            self.connections
                .wait_below(self.site.limits.max_connections);
            let Ok([stop, _]) =
                poll::readable([Some(self.stop.as_fd()), Some(listener.as_fd())], None)
            else {
                return;
            };
            if stop {
                return self.turn_away_all();
            }
            match socket::accept(listener)
                .and_then(|socket| socket.map_or(Ok(()), |socket| self.start_session(socket)))
            {
                Ok(()) => back_off = BACK_OFF,
                Err(_) => {
                    // No descriptors, memory or threads: more will be there when something has ended.
                    let _ =
                        poll::readable([Some(self.stop.as_fd())], Some(Instant::now() + back_off));
                    back_off = (back_off * 2).min(MAX_BACK_OFF);
                }
            }
        }
    }

    /// Tells those who wait in the backlog that it was in vain, so that they know that nothing was executed.
    fn turn_away_all(&self) {
        while let Ok(Some(socket)) = socket::accept(&self.site.listener.socket) {
            let mut wire = Wire::new(self.site.limits.max_frame, 0);
            if wire.send(Denied::Stopping.write()).is_ok() {
                // A client that is gone needs no answer.
                let _ = Connection::new(Arc::new(socket)).transmit_now(&wire);
            }
        }
    }

    /// Serves a connection in a thread of its own, unless its user must not connect.
    fn start_session(self: &Arc<Shared>, socket: OwnedFd) -> io::Result<()> {
        let peer = socket::peer_credentials(&socket)?;
        if !self.site.listener.admitted.contains(&peer.uid) {
            return Ok(());
        }
        let socket = Arc::new(socket);
        let Some(entry) = self.connections.enter(&socket) else {
            return Ok(());
        };
        let shared = Arc::clone(self);
        let session = move || shared.serve_session(socket, entry, peer.into());
        thread::Builder::new()
            .name("session".into())
            .spawn(session)
            .map(drop)
    }

    fn serve_session(&self, socket: Arc<OwnedFd>, entry: Entry, peer: Peer) {
        let Site {
            listener,
            limits,
            control,
            ..
        } = &*self.site;
        let name = Arc::clone(&listener.name);
        let mut driver = Driver {
            site: &self.site,
            session: ServerSession::new(
                Arc::clone(&listener.password),
                Arc::clone(limits),
                Instant::now(),
            ),
            context: Context::new(control.clone(), name, peer, entry.id, Arc::clone(&socket)),
            connection: Connection::new(socket),
        };
        loop {
            if self.connections.is_draining() {
                driver.session.drain();
            }
            let goes_on = driver.turn();
            if !goes_on || driver.session.wire.queued() == 0 {
                run_deferred(&mut driver.context);
            }
            if !goes_on {
                break;
            }
        }
        // The socket must be closed before the connection is counted out.
        drop(driver);
        drop(entry);
    }
}

/// What drives one session: the thread that it is in.
struct Driver<'a> {
    site: &'a Site,
    session: ServerSession,
    context: Context,
    connection: Connection,
}

impl Driver<'_> {
    /// Does the one thing that the session wants. `false`: it is over.
    fn turn(&mut self) -> bool {
        let Driver {
            site,
            session,
            context,
            connection,
        } = self;
        let now = Instant::now();
        let step = session.poll(now);
        let patience = session
            .deadline()
            .map(|deadline| deadline.saturating_duration_since(now));
        match step {
            Step::Event(Happening::Authenticated { fds }) => {
                let allowed = fds && socket::allow_rights(connection, true).is_ok();
                session.welcome(allowed);
            }
            Step::Event(Happening::Call(call)) => {
                context.begin_call(call.timeout.and_then(|timeout| now.checked_add(timeout)));
                session.finish(site.service.answer(context, call, &site.limits));
            }
            Step::Transmit => match connection.transmit(&session.wire, patience) {
                Ok(len) => session.transmitted(len, Instant::now()),
                Err(err) if is_timeout(&err) => {}
                Err(_) => return false,
            },
            Step::Receive => {
                let rights = if session.accepts_fds() {
                    Rights::Accept
                } else {
                    Rights::Discard
                };
                match connection.receive(&mut session.wire, rights, patience) {
                    Ok(()) => {}
                    Err(ReceiveError::Protocol(err)) => session.fail(err),
                    Err(ReceiveError::Io(_)) => return false,
                }
            }
            Step::Closed => return false,
        }
        true
    }
}
