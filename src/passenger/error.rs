//! What can go wrong on Passenger's wire.
//!
//! Invariant: one variant for each cause; where the place in the stream is lost, every later operation says so.

use crate::StopReason;
use crate::protocol::passenger::{TooLong, Unsendable};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a message of Passenger's was not sent, or not received. Unless it says otherwise, nothing was sent and
/// the channel is in order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An array must have at least one element: an empty one looks like the end to readers.
    #[error("an array without elements cannot be sent")]
    NoElements,
    /// An element has a zero byte, which would end it there.
    #[error("element {index} has a zero byte, which would end it there")]
    ZeroByte {
        /// The element's place, from 0.
        index: usize,
    },
    /// A message to be sent is larger than its header can say: for an array, whose elements take one byte more than
    /// they have, 65 535 bytes; for a scalar, 4 294 967 295.
    #[error("a message of {size} bytes cannot be sent: its header can say {limit} at most")]
    TooLarge {
        /// How many bytes it has, in its body.
        size: usize,
        /// How many it may have.
        limit: usize,
    },
    /// A message that comes announces more than the reader allows. It has not been received: read it with a larger
    /// limit, or drop the channel.
    #[error("a message of {size} bytes comes where {limit} are allowed")]
    OverLimit {
        /// What was announced, in bytes.
        size: usize,
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// A hash must have as many values as keys. The message has been received.
    #[error("a hash of {count} elements has a key without a value")]
    OddHash {
        /// How many elements came.
        count: usize,
    },
    /// The other side hung up in the middle of a message, or where it had to answer.
    #[error("the other side hung up in the middle of a message")]
    EndOfStream,
    /// The other side is gone, and has not received this.
    #[error("the other side is gone")]
    Disconnected,
    /// The server closed the connection without an answer: the password is wrong, it does not know the request, or
    /// has nothing to say. The original does not tell which.
    #[error("the server closed the connection without an answer")]
    NoAnswer,
    /// The operation took longer than the channel's timeout. A part of a message that has come is kept for the next
    /// `read`. A message that has left in part leaves the direction, and a descriptor half passed the channel,
    /// [out of step](Error::OutOfStep).
    #[error("the operation took longer than {0:?}")]
    TimedOut(Duration),
    /// The handler was told to stop, and nothing has arrived that could still be received. As with
    /// [`Error::TimedOut`], nothing that has come is lost.
    #[error("{0}")]
    Stopped(StopReason),
    /// Whoever passes or takes a descriptor said something else than it must. The channel is out of step.
    #[error("the other side did not say {expected:?}, and no descriptor can be passed")]
    NotNegotiated {
        /// What it had to say.
        expected: &'static str,
    },
    /// A byte came without a descriptor where one was to come with it. The channel is out of step.
    #[error("no descriptor came with the byte that was to carry one")]
    NoDescriptor,
    /// More than one descriptor came; all have been closed. The channel is out of step.
    #[error("{count} descriptors came where one was to come")]
    TooManyDescriptors {
        /// How many.
        count: usize,
    },
    /// A descriptor came for which this process has no room. The channel is out of step.
    #[error("the descriptor that came was lost (no room in the descriptor table?)")]
    LostDescriptor,
    /// A descriptor cannot be the next thing that comes, because something else has come already: read that first.
    #[error("{count} bytes have come before a descriptor could")]
    Buffered {
        /// How many bytes have been received and not been read.
        count: usize,
    },
    /// An earlier operation ended in the middle of something: where in the stream the next message begins is not
    /// known any more. If it was in sending a message, what the other side sends can still be read; otherwise the
    /// channel is of no use.
    #[error("an earlier operation was cut off, and the two sides have lost each other")]
    OutOfStep,
    /// Nobody listens there.
    #[error("no server listens at {}", path.display())]
    NotRunning {
        /// Where.
        path: PathBuf,
    },
    /// The channel was made in another process.
    #[error("the channel belongs to another process, of which this one is a forked copy")]
    WrongProcess,
    /// The operating system refused something. The channel is of no use.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl From<Unsendable> for Error {
    fn from(reason: Unsendable) -> Error {
        match reason {
            Unsendable::NoElements => Error::NoElements,
            Unsendable::ZeroByte { index } => Error::ZeroByte { index },
            Unsendable::TooLarge { size, limit } => Error::TooLarge { size, limit },
        }
    }
}

impl From<TooLong> for Error {
    fn from(TooLong { size, limit }: TooLong) -> Error {
        Error::OverLimit { size, limit }
    }
}
