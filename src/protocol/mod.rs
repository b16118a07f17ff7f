//! The protocol: what may be said on a connection, by whom, and when.
//!
//! Invariant: nothing here does input or output, reads a clock or starts a thread. Bytes, descriptors and `now`
//! are arguments, so that every driver (blocking client, threads, an event loop) shares one set of rules.

pub(crate) mod client;
pub(crate) mod codec;
pub(crate) mod ending;
pub(crate) mod frame;
pub(crate) mod framing;
pub(crate) mod greeting;
pub(crate) mod inbox;
pub(crate) mod message;
pub(crate) mod outbox;
pub(crate) mod passenger;
mod patience;
pub(crate) mod server;
pub(crate) mod stream;

#[cfg(test)]
mod tests;

/// What a session needs next. Drivers differ in how they do these four things, and in nothing else.
#[derive(Debug)]
pub(crate) enum Step<E> {
    /// Something for the user of the session.
    Event(E),
    /// Write what `Outbox::transmit` gives.
    Transmit,
    /// Wait for input until `deadline`, and receive.
    Receive,
    /// It is over.
    Closed,
}
