//! What can go wrong with a stream.
//!
//! Invariant: each says whether the channel is still in order.

use super::StopReason;
use crate::RemoteFault;
use crate::protocol::frame::ProtocolError;
use std::io;
use std::time::Duration;

/// Why nothing more can be sent or received on a [`Channel`](crate::Channel), unless it says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The handler returned a [`Fault`](crate::Fault).
    #[error("{0}")]
    Fault(#[source] RemoteFault),
    /// The handler panicked. The server lives.
    #[error("the handler panicked at {location}: {message}")]
    Panicked {
        /// What it said.
        message: String,
        /// Source file, line and column.
        location: String,
    },
    /// The handler was told to stop, and nothing has arrived that could still be received. The channel is in order.
    #[error("{0}")]
    Stopped(StopReason),
    /// Nothing can be sent any more: this side has finished, or the handler has returned.
    #[error("the stream has been finished")]
    Finished,
    /// The other side is gone, and has not finished.
    #[error("the other side hung up")]
    Disconnected,
    /// Nothing came, or nothing could be sent, in time. The channel is in order; what was sent and has not left
    /// yet leaves with the next `send` or `flush`.
    #[error("nothing moved within {0:?}")]
    TimedOut(Duration),
    /// An item that came has another type. The channel is in order.
    #[error("the item does not have the expected type: {0}")]
    TypeMismatch(String),
    /// The item has a form that cannot be sent. The channel is in order.
    #[error("the item cannot be encoded: {0}")]
    Encode(String),
    /// The item exceeds a limit. The channel is in order.
    #[error("the item cannot be sent: {0}")]
    TooLarge(ProtocolError),
    /// The other side broke the protocol, or says that we did.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The channel was made in another process.
    #[error("the channel belongs to another process, of which this one is a forked copy")]
    WrongProcess,
    /// The operating system refused something.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
