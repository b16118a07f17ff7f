//! What is spoken behind a listener.
//!
//! Invariant: whatever it is, connections are admitted, counted and ended in the same way.

use crate::channel::StopToken;
use crate::context::{Context, Peer};
use crate::fault::Fault;
use crate::protocol::framing::Framing;
use crate::session::EventHandler;
use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// What is spoken behind a listener.
#[derive(Clone, Debug, Default)]
pub(crate) enum Wire {
    #[default]
    Native,
    Passenger,
    /// Another protocol, in records.
    Records(Arc<Records>),
    /// Whatever the user makes of it.
    Raw(Arc<Acceptor>),
}

impl Wire {
    /// Whether a client is a stranger until it has shown the password.
    pub(crate) fn asks_for_password(&self) -> bool {
        matches!(self, Wire::Native | Wire::Passenger)
    }
}

type Make = dyn Fn(&mut Context) -> Result<Made, Fault> + Send + Sync;
type Made = (Box<dyn EventHandler>, Box<dyn Framing>);

/// How the handlers of clients are made that speak another protocol.
pub(crate) struct Records {
    pub(crate) make: Box<Make>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Records")
    }
}

/// What takes accepted connections.
pub(crate) struct Acceptor {
    pub(crate) take: Box<dyn Fn(AcceptedConn, Permit) + Send + Sync>,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// A connection that was accepted and admitted, and has not been read from: see
/// [`Listener::accept_with`](crate::Listener::accept_with).
#[derive(Debug)]
pub struct AcceptedConn {
    pub(crate) socket: OwnedFd,
    pub(crate) peer: Peer,
    pub(crate) listener: Arc<str>,
    pub(crate) session: u64,
}

impl AcceptedConn {
    /// Who connected.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The listener's name.
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// A number that no other connection to this server has or had.
    pub fn session_id(&self) -> u64 {
        self.session
    }

    /// The connection itself, in blocking mode.
    pub fn into_stream(self) -> UnixStream {
        self.socket.into()
    }
}

impl AsFd for AcceptedConn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl From<AcceptedConn> for OwnedFd {
    fn from(accepted: AcceptedConn) -> OwnedFd {
        accepted.socket
    }
}

/// The place of an accepted connection among those that are served. Keep it for as long as the connection: dropping it
/// makes room for another one, and tells the observer that this one has ended. A server that stops waits for it, for its
/// grace; then the connection is shut down.
pub struct Permit {
    /// Counts the connection.
    pub(crate) _place: Box<dyn Any + Send>,
    pub(crate) stop: StopToken,
}

impl Permit {
    /// What tells when the server or the listener stops.
    pub fn stop_token(&self) -> &StopToken {
        &self.stop
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permit")
    }
}
