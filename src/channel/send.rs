//! The sending half of a channel.
//!
//! Invariant: what was queued leaves in order and whole, or the connection is of no use any more.

use super::{End, Home, ReceiveHalf};
use crate::connection::{Connection, is_gone, is_timeout};
use crate::error::StreamError;
use crate::limits::Limits;
use crate::protocol::codec;
use crate::protocol::message::write_item;
use crate::protocol::stream::StreamOut;
use crate::sys::{poll, process, socket};
use serde::Serialize;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The half of a [`Channel`](super::Channel) that sends. At a client, dropping it without
/// [`finish`](SendHalf::finish) breaks the stream off: the handler sees that it is
/// [disconnected](StreamError::Disconnected).
#[derive(Debug)]
pub struct SendHalf {
    /// Taken out when the half is dropped or given up.
    output: Option<StreamOut>,
    connection: Connection,
    limits: Arc<Limits>,
    timeout: Option<Duration>,
    generation: u32,
    home: Option<Arc<Home>>,
}

impl SendHalf {
    pub(crate) fn new(
        output: StreamOut,
        connection: &Connection,
        limits: &Arc<Limits>,
        home: Option<Arc<Home>>,
    ) -> SendHalf {
        SendHalf {
            output: Some(output),
            connection: Connection::new(connection.share()),
            limits: Arc::clone(limits),
            timeout: None,
            generation: process::generation(),
            home,
        }
    }

    /// Sends an item, and everything that was queued before, and waits until it has left.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn send<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), StreamError> {
        self.add(item)?;
        self.flush()
    }

    /// Queues an item. It leaves with the next [`send`](SendHalf::send), [`flush`](SendHalf::flush) or
    /// [`finish`](SendHalf::finish), or when more than [`Limits::high_watermark`] bytes wait: many small items
    /// leave in one write.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn queue<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), StreamError> {
        self.add(item)?;
        match self.output().outbox.queued() > self.limits.high_watermark {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn add<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), StreamError> {
        self.check()?;
        if self.output().has_ended() {
            return Err(StreamError::Finished);
        }
        let (mut frame, slot) = write_item(self.output().id());
        let hash = codec::encode(item, &mut frame, &self.limits).map_err(StreamError::Encode)?;
        slot.fill(&mut frame, hash);
        self.output_mut().send(frame).map_err(StreamError::TooLarge)
    }

    /// Sends what has been queued, and waits until it has left.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn flush(&mut self) -> Result<(), StreamError> {
        self.check()?;
        while self.output().outbox.queued() > 0 {
            match self.connection.transmit_now(&self.output().outbox) {
                Ok(len) => self.output_mut().outbox.transmitted(len),
                Err(err) if is_timeout(&err) => self.wait_for_room()?,
                Err(err) if is_gone(&err) => return Err(StreamError::Disconnected),
                Err(source) => {
                    return Err(StreamError::Io {
                        action: "send an item",
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Says that no more items will be sent: the other side receives `None` behind the last. Items can still be
    /// received. Doing it twice is doing it once.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.check()?;
        self.output_mut().end().map_err(StreamError::TooLarge)?;
        self.flush()
    }

    /// How long a `send` may wait without any progress. `None`: for ever. See
    /// [`Channel::set_timeout`](super::Channel::set_timeout) for the default.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    pub(super) fn is_of<E: End>(&self, receive: &ReceiveHalf<E>) -> bool {
        self.connection.is_same(receive.connection())
    }

    /// The direction itself; the half is of no use any more.
    pub(crate) fn into_output(mut self) -> StreamOut {
        self.output.take().expect("taken once, when it is given up")
    }

    fn wait_for_room(&self) -> Result<(), StreamError> {
        let deadline = self
            .timeout
            .and_then(|timeout| Instant::now().checked_add(timeout));
        match poll::writable(self.connection.as_fd(), deadline) {
            Ok(true) => Ok(()),
            Ok(false) => Err(StreamError::TimedOut(self.timeout.unwrap_or_default())),
            Err(source) => Err(StreamError::Io {
                action: "wait for room",
                source,
            }),
        }
    }

    fn check(&self) -> Result<(), StreamError> {
        match self.generation == process::generation() {
            true => Ok(()),
            false => Err(StreamError::WrongProcess),
        }
    }

    fn output(&self) -> &StreamOut {
        self.output.as_ref().expect("there until it is given up")
    }

    fn output_mut(&mut self) -> &mut StreamOut {
        self.output.as_mut().expect("there until it is given up")
    }
}

impl AsFd for SendHalf {
    /// The socket, for waiting until it is writable: writing it breaks the stream.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

impl Drop for SendHalf {
    fn drop(&mut self) {
        let Some(output) = self.output.take() else {
            return;
        };
        match &self.home {
            Some(home) => home.take_out(output),
            // The other side shall not wait for more. A forked copy has no say.
            None if self.check().is_ok()
                && !(output.has_ended() && output.outbox.queued() == 0) =>
            {
                socket::shut_down_writing(&self.connection);
            }
            None => {}
        }
    }
}
