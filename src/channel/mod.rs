//! A connection that one handler has for itself: items, descriptors and byte strings, both ways, for as long as
//! both sides like.
//!
//! Invariant: each direction belongs to one value, and nothing is shared between the two but the socket. At the
//! server's end, both directions come home when they are dropped, and the connection serves further calls.

mod home;
mod receive;
mod send;
mod stop;

pub(crate) use self::home::Home;
pub(crate) use self::receive::Parts;
pub use self::receive::ReceiveHalf;
pub use self::send::SendHalf;
pub use self::stop::StopToken;

use crate::connection::Connection;
use crate::error::StreamError;
use crate::limits::Limits;
use crate::protocol::stream::{StreamIn, StreamOut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

/// A stream of items, both ways. A handler gets it from [`Server::handle_stream`](crate::Server::handle_stream), a
/// client from [`Client::open`](crate::Client::open).
///
/// Each item has a type of its own, which both sides must agree on, as with calls. What is sent while the other
/// side does not read waits in the kernel, and then in `send`: a side that sends much and never receives can make
/// the other wait for ever. Where both send much, [`Channel::split`] gives each direction to a thread.
///
/// `E` tells the two ends apart: [`Served`] in a handler, [`Client`](crate::Client) where the stream was opened.
#[derive(Debug)]
pub struct Channel<E: End = Served> {
    send: SendHalf,
    receive: ReceiveHalf<E>,
}

/// One of the two ends of a channel.
pub trait End: sealed::End {}

impl<E: sealed::End> End for E {}

pub(crate) mod sealed {
    use super::StopToken;

    /// What the two ends do differently.
    pub trait End {
        /// What interrupts a wait for items.
        fn stop_token(&self) -> Option<&StopToken>;
    }
}

/// The end of a channel that a handler has.
#[derive(Debug)]
pub struct Served {
    stop: StopToken,
}

impl sealed::End for Served {
    fn stop_token(&self) -> Option<&StopToken> {
        Some(&self.stop)
    }
}

impl Channel<Served> {
    /// A handler's channel, whose directions go `home` in the end.
    pub(crate) fn serve(
        (input, output): (StreamIn, StreamOut),
        connection: &Connection,
        limits: &Arc<Limits>,
        stop: StopToken,
        home: &Arc<Home>,
    ) -> Channel<Served> {
        let mut send = SendHalf::new(output, connection, limits, Some(Arc::clone(home)));
        send.set_timeout(Some(limits.write_timeout));
        Channel {
            send,
            receive: ReceiveHalf::new(
                Parts {
                    input,
                    connection: Connection::new(connection.share()),
                    end: Served { stop },
                },
                limits,
                Some(Arc::clone(home)),
            ),
        }
    }

    /// What tells the handler to stop, to be waited for together with this channel and whatever else. Streams are
    /// told when all calls have been answered, at the latest after half of the grace.
    pub fn stop_token(&self) -> &StopToken {
        &self.receive.end().stop
    }
}

impl<E: End> Channel<E> {
    pub(crate) fn from_halves(send: SendHalf, receive: ReceiveHalf<E>) -> Channel<E> {
        Channel { send, receive }
    }

    pub(crate) fn into_halves(self) -> (SendHalf, ReceiveHalf<E>) {
        (self.send, self.receive)
    }

    /// Sends an item. See [`SendHalf::send`].
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn send<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), StreamError> {
        self.send.send(item)
    }

    /// Queues an item that leaves with others. See [`SendHalf::queue`].
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn queue<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), StreamError> {
        self.send.queue(item)
    }

    /// Sends what has been queued. See [`SendHalf::flush`].
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn flush(&mut self) -> Result<(), StreamError> {
        self.send.flush()
    }

    /// Says that no more items will be sent. See [`SendHalf::finish`].
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.send.finish()
    }

    /// Waits for the next item. See [`ReceiveHalf::recv`].
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, StreamError> {
        self.receive.recv()
    }

    /// Whether something has been received that no descriptor tells of. See [`ReceiveHalf::has_buffered`].
    pub fn has_buffered(&self) -> bool {
        self.receive.has_buffered()
    }

    /// How long each `recv` may wait for an item, and each `send` for some progress. `None`: for ever.
    /// Default: in a handler, for ever and [`Limits::write_timeout`](crate::Limits::write_timeout); at a client, its timeout for both.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.send.set_timeout(timeout);
        self.receive.set_timeout(timeout);
    }

    /// The two directions, for two threads. In a handler, the connection is this stream's until both have been dropped:
    /// a half that is kept for good keeps connection and thread.
    pub fn split(self) -> (SendHalf, ReceiveHalf<E>) {
        self.into_halves()
    }

    /// Joins the two directions again.
    ///
    /// # Errors
    /// They belong to two channels, and are given back.
    #[expect(
        clippy::result_large_err,
        reason = "both results are the halves themselves"
    )]
    pub fn unite(
        send: SendHalf,
        receive: ReceiveHalf<E>,
    ) -> Result<Channel<E>, (SendHalf, ReceiveHalf<E>)> {
        match send.is_of(&receive) {
            true => Ok(Channel { send, receive }),
            false => Err((send, receive)),
        }
    }
}

impl<E: End> AsFd for Channel<E> {
    /// The socket, readable when an item can be received, if none [is buffered](Channel::has_buffered). For
    /// waiting: reading or writing it breaks the stream.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receive.as_fd()
    }
}
