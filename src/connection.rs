//! A connected socket that moves what a [`Inbox`] or an [`Outbox`] holds, and waits no longer than it is told.
//!
//! Invariant: each method is at most one exchange with the kernel that moves data. All that a connection
//! remembers is which timeout the socket has for receiving, because setting it costs a call, and whether it is worth spinning.

use crate::descriptor::Descriptor;
use crate::protocol::frame::ProtocolError;
use crate::protocol::inbox::Inbox;
use crate::protocol::outbox::Outbox;
use crate::sys::linger::Socket;
use crate::sys::rights::{self, Rights};
use crate::sys::socket;
use crate::wait::{Spinner, Wait};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// One end of a connection.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Arc<Socket>,
    /// In milliseconds, rounded up: each connection has this.
    receive_timeout: Option<u32>,
    spinner: Spinner,
}

/// Why nothing was received.
#[derive(Debug)]
pub(crate) enum ReceiveError {
    Io(io::Error),
    Protocol(ProtocolError),
}

impl From<io::Error> for ReceiveError {
    fn from(err: io::Error) -> ReceiveError {
        ReceiveError::Io(err)
    }
}

impl Connection {
    pub(crate) fn new(socket: Arc<Socket>) -> Connection {
        Connection {
            socket,
            receive_timeout: None,
            spinner: Spinner::new(Wait::Sleep),
        }
    }

    /// How it waits from now on.
    pub(crate) fn set_wait(&mut self, wait: Wait) {
        self.spinner = Spinner::new(wait);
    }

    /// Writes once, without waiting. Returns how much is gone; it is for the caller to tell the outbox.
    pub(crate) fn transmit_now(&self, outbox: &Outbox) -> io::Result<usize> {
        match outbox.transmit() {
            Some(transmit) => rights::send(&self.socket, transmit.slices(), transmit.fds, true),
            None => Ok(0),
        }
    }

    /// Writes once, and waits `patience` for room; if there is none by then, the error is `WouldBlock`.
    pub(crate) fn transmit(
        &self,
        outbox: &Outbox,
        patience: Option<Duration>,
    ) -> io::Result<usize> {
        match self.transmit_now(outbox) {
            Err(err) if is_timeout(&err) => {}
            result => return result,
        }
        let Some(transmit) = outbox.transmit() else {
            return Ok(0);
        };
        socket::set_send_timeout(&self.socket, patience)?;
        rights::send(&self.socket, transmit.slices(), transmit.fds, false)
    }

    /// Receives once, and waits `patience` for something to come; `false`: nothing has by then, or
    /// a signal came.
    pub(crate) fn receive(
        &mut self,
        inbox: &mut Inbox,
        rights: Rights,
        patience: Option<Duration>,
    ) -> Result<bool, ReceiveError> {
        if let Some(found) = self.look_for_input(inbox, rights) {
            return found;
        }
        self.limit_receive(patience)?;
        self.receive_once(inbox, rights, false)
    }

    /// Receives as soon as something comes, if that is worth looking for.
    fn look_for_input(
        &mut self,
        inbox: &mut Inbox,
        rights: Rights,
    ) -> Option<Result<bool, ReceiveError>> {
        let mut spinner = self.spinner;
        let found = spinner.spin(|| match self.receive_once(inbox, rights, true) {
            Ok(false) => None,
            found => Some(found),
        });
        self.spinner = spinner;
        found
    }

    /// As [`Connection::receive`], without waiting.
    pub(crate) fn receive_now(
        &self,
        inbox: &mut Inbox,
        rights: Rights,
    ) -> Result<bool, ReceiveError> {
        self.receive_once(inbox, rights, true)
    }

    fn receive_once(
        &self,
        inbox: &mut Inbox,
        rights: Rights,
        now: bool,
    ) -> Result<bool, ReceiveError> {
        match rights::receive(&self.socket, inbox.receive_buffer(), rights, now) {
            Ok(received) => {
                let fds = match received.fds.is_empty() {
                    true => Vec::new(),
                    false => received.fds.into_iter().map(Descriptor::from).collect(),
                };
                if received.lost {
                    return Err(ReceiveError::Protocol(ProtocolError::LostFds));
                }
                if received.len == 0 {
                    self.socket.set_may_hold_rights(false);
                }
                inbox.received(received.len, fds);
                Ok(true)
            }
            Err(err) if is_timeout(&err) || err.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(err) => Err(err.into()),
        }
    }

    /// Another holder of the socket.
    pub(crate) fn share(&self) -> Arc<Socket> {
        Arc::clone(&self.socket)
    }

    /// Whether both are the same socket.
    pub(crate) fn is_same(&self, other: &Connection) -> bool {
        Arc::ptr_eq(&self.socket, &other.socket)
    }

    /// A timeout that is shorter than need be only makes the caller look once more; a longer one is too long.
    fn limit_receive(&mut self, limit: Option<Duration>) -> io::Result<()> {
        let fits = match (self.receive_timeout, limit) {
            (None, None) => true,
            (Some(set), Some(limit)) => Duration::from_millis(set.into()) <= limit,
            _ => false,
        };
        if !fits {
            socket::set_receive_timeout(&self.socket, limit)?;
            let millis = |limit: Duration| limit.as_micros().div_ceil(1000);
            self.receive_timeout =
                limit.map(|limit| u32::try_from(millis(limit)).unwrap_or(u32::MAX));
        }
        Ok(())
    }
}

/// Whether nothing could be moved for now.
pub(crate) fn is_timeout(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// The other side has closed the connection.
pub(crate) fn is_gone(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
