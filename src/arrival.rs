//! A connection that has just come through a listener, for those who decide whether it stays.
//!
//! Invariant: nothing has been read from it, and nothing written to it; whoever connected is known by the kernel's word,
//! whatever takes the socket's place.

use crate::context::{Control, Peer};
use crate::fault::Fault;
use crate::sys::linger::Socket;
use crate::sys::socket;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// A connection that has just come through a listener: see [`Server::admit`](crate::Server::admit). As a descriptor it
/// is its socket.
#[derive(Debug)]
pub struct Arrival {
    control: Control,
    listener: Arc<str>,
    peer: Peer,
    socket: Arc<Socket>,
    is_replaced: bool,
}

pub(crate) type Admit = Arc<dyn Fn(&mut Arrival) -> Result<(), Fault> + Send + Sync>;

impl Arrival {
    pub(crate) fn new(
        control: Control,
        listener: Arc<str>,
        peer: Peer,
        socket: Arc<Socket>,
    ) -> Arrival {
        Arrival {
            control,
            listener,
            peer,
            socket,
            is_replaced: false,
        }
    }

    /// Who connected.
    pub fn peer(&self) -> Peer {
        self.peer
    }

    /// The name of the listener that it came through, `default` if that has no other.
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// The server.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Has the server talk to `socket` instead, one end of a pair, for example, whose other end a filter has. The result
    /// is the client's own connection, from now on the caller's to read, to write, and to close. The kernel may refuse
    /// descriptors that are sent to it; the server takes those that come through `socket`, as from any client.
    ///
    /// # Errors
    /// `InvalidInput`: it is no connected Unix stream socket. There are no descriptors left. Nothing is replaced then.
    pub fn replace(&mut self, socket: UnixStream) -> io::Result<UnixStream> {
        let socket = OwnedFd::from(socket);
        if !socket::is_connected_stream(&socket) {
            let reason = "it is no connected Unix stream socket";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let clients = self.socket.as_fd().try_clone_to_owned()?;
        self.socket = Arc::new(Socket::from(socket));
        self.is_replaced = true;
        Ok(UnixStream::from(clients))
    }

    /// The socket to talk to.
    pub(crate) fn socket(&self) -> Arc<Socket> {
        Arc::clone(&self.socket)
    }

    /// Whether that is another one than at first.
    pub(crate) fn is_replaced(&self) -> bool {
        self.is_replaced
    }

    /// Whoever has the other end sees the end of the connection.
    pub(crate) fn shut_down(&self) {
        socket::shut_down(&*self.socket);
    }
}

impl AsFd for Arrival {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
