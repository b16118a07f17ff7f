//! How a connection can end.
//!
//! Invariant: one value for each thing that an observer may want to tell apart.

use super::frame::ProtocolError;

/// Why a connection has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ending {
    /// The client has finished.
    #[error("the client has finished")]
    Finished,
    /// Its user may not connect here.
    #[error("the user may not connect")]
    NotAdmitted,
    /// A hook refused it, and said this: [`Server::admit`](crate::Server::admit).
    #[error("{0}")]
    Rejected(String),
    /// A wrong password, another version, or no hello at all.
    #[error("no valid hello")]
    Denied,
    /// There were more without a password than `max_unauthenticated`, and this one was the oldest.
    #[error("too many others had not shown the password either")]
    Crowded,
    /// The client was too slow: to authenticate, to complete a frame, to read its answers.
    #[error("the client was too slow")]
    TimedOut,
    /// The client was silent for longer than `idle_timeout`.
    #[error("the client was idle")]
    Idle,
    /// The system had no descriptor for it, and had had none for a while.
    #[error("there was no room for another connection")]
    NoRoom,
    /// The server stops.
    #[error("the server is stopping")]
    Stopping,
    /// As many calls as [`Limits::max_calls`](crate::Limits::max_calls) allows have been answered.
    #[error("max_calls is reached")]
    CallLimit,
    /// A handler closed it: [`Context::close`](crate::Context::close), [`Context::close_now`](crate::Context::close_now).
    #[error("a handler closed the connection")]
    Closed,
    /// A call was answered with an error, and [`Server::close_on_error`](crate::Server::close_on_error) was asked for.
    #[error("a call failed")]
    CallFailed,
    /// The client broke a rule of the protocol, or a limit.
    #[error("{0}")]
    Protocol(ProtocolError),
    /// Its handler returned an error, or panicked, and the client could be told nothing but the end.
    #[error("the handler failed")]
    Faulted,
    /// The connection broke, or ended within a message.
    #[error("the connection broke")]
    Broken,
}
