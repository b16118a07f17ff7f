//! What can go wrong, one enum for each phase of a server's life.
//!
//! Invariant: every error names its cause or its limit, and a failed call says whether its handler may have run.

mod running;
mod stream;

pub use self::running::{ControlError, StopError, StopReason};
pub use self::stream::StreamError;

use crate::exit::Exit;
use crate::protocol::frame::ProtocolError;
use crate::worker::Worker;
use crate::{RemoteFault, Signal};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A `Result` with this crate's [`Error`], unless another is given.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of this crate, for programs that pass errors on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A server could not be started.
    #[error("cannot start the server: {0}")]
    Start(#[from] StartError),
    /// A server could not be reached.
    #[error("cannot connect to the server: {0}")]
    Connect(#[from] ConnectError),
    /// A call got no answer, or another one than hoped for.
    #[error("the call failed: {0}")]
    Call(#[from] CallError),
    /// A stream was broken off.
    #[error("the stream failed: {0}")]
    Stream(#[from] StreamError),
    /// A running server did not do what its owner asked for.
    #[error("cannot control the server: {0}")]
    Control(#[from] ControlError),
    /// A server could not be stopped.
    #[error("cannot stop the server: {0}")]
    Stop(#[from] StopError),
    /// A password is too short or too long.
    #[error(transparent)]
    Password(#[from] crate::PasswordError),
    /// An error of the operating system, outside the phases above.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Why a server was not started. Nothing of it is left: no process, no socket, no descriptor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// This process has other threads, and a forked copy of it could wait for ever for locks that they hold.
    #[error(
        "this process has {threads} threads, and only a process with one can be forked: \
         start the server first thing in main, or declare it as an `Entry`, call `forkserver::init` first thing in \
         main, and start the entry, which works with threads"
    )]
    MultiThreaded {
        /// How many, as far as `/proc` tells; at least 2.
        threads: usize,
    },
    /// The entry cannot be launched: [`init`](crate::init) has not been called in this process, or does not list it.
    #[error("`forkserver::init` must be called first thing in main, and list the entry {entry:?}")]
    NotInitialised {
        /// Its name.
        entry: &'static str,
    },
    /// A live server has this path, or something that is not ours to remove is there.
    #[error("{} is in use: {reason}", path.display())]
    AddressInUse {
        /// Where the socket was to be.
        path: PathBuf,
        /// What is there.
        reason: &'static str,
    },
    /// The path's last part does not fit into a socket address.
    #[error("the name of the socket {} is longer than {limit} bytes", path.display())]
    PathTooLong {
        /// Where the socket was to be.
        path: PathBuf,
        /// How long the name may be, in bytes.
        limit: usize,
    },
    /// Others could replace what is in this directory.
    #[error("{} is no safe place for a socket: {reason}", path.display())]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: &'static str,
    },
    /// Two handlers have the same name.
    #[error("there are two handlers for {name:?}")]
    DuplicateHandler {
        /// The name.
        name: String,
    },
    /// Two listeners have the same name.
    #[error("there are two listeners with the name {name:?}")]
    DuplicateListener {
        /// The name.
        name: String,
    },
    /// A name that was given to [`Listener::only`](crate::Listener::only) or
    /// [`Server::restrict`](crate::Server::restrict) has no handler.
    #[error("there is no handler for {name:?}")]
    NoSuchHandler {
        /// The name.
        name: String,
    },
    /// [`Limits::low_watermark`](crate::Limits::low_watermark) is above `high_watermark`: a client would be relieved before
    /// it is pressed.
    #[error("low_watermark, {0}, is above high_watermark, {1}")]
    Watermarks(usize, usize),
    /// No such number of workers can be had.
    #[error("{0} workers cannot be had: 1 to 255")]
    WorkerCount(usize),
    /// A handler's name has more than 255 bytes.
    #[error("the handler's name {name:?} is longer than 255 bytes")]
    NameTooLong {
        /// The name.
        name: String,
    },
    /// This signal cannot be handled, or is reserved.
    #[error("{signal} cannot have a handler: {reason}")]
    ForbiddenSignal {
        /// Which.
        signal: Signal,
        /// Why.
        reason: &'static str,
    },
    /// A descriptor that the server was to keep has been closed since, or its number stands for something else.
    #[error("descriptor {fd}, which the server was to keep, is not what it was")]
    KeptFdClosed {
        /// Its number.
        fd: i32,
    },
    /// A descriptor that the service manager handed in is of no use: [`Listener::activated`](crate::Listener::activated).
    #[error("descriptor {fd}, which was handed in, cannot be listened on: {reason}")]
    NotAListener {
        /// Its number.
        fd: i32,
        /// Why.
        reason: &'static str,
    },
    /// An environment variable that the service manager has set is of no use.
    #[error("the environment variable {name} is malformed: {value:?}")]
    BadVariable {
        /// Its name.
        name: &'static str,
        /// What it is.
        value: String,
    },
    /// A hook of the definition failed.
    #[error("{hook} failed: {message}")]
    Hook {
        /// Which: `before_fork` or `initialize`.
        hook: String,
        /// What it said.
        message: String,
    },
    /// The server's process could not be set up.
    #[error("the server's set-up failed ({stage}): {message}")]
    Child {
        /// What it was about to do.
        stage: String,
        /// What went wrong.
        message: String,
    },
    /// The server's process ended before it was ready.
    #[error("the server ended before it was ready: {0}")]
    Died(Exit),
    /// The server was not ready in time, and was killed.
    #[error("the server was not ready within {0:?}")]
    TimedOut(Duration),
    /// The operating system refused something.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Why there is no connection. Nothing has been sent to anybody, except where it says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("no server listens at {}", path.display())]
    NotRunning {
        /// Where.
        path: PathBuf,
    },
    /// Somebody else listens there. The password was not sent.
    #[error("{} is not the server's: another process listens there", path.display())]
    Impostor {
        /// Where.
        path: PathBuf,
    },
    /// The server did not take the connection in time: its backlog is full.
    #[error("the server did not take the connection within {0:?}")]
    TimedOut(Duration),
    /// The server refuses this client; the password was sent and is wrong, or the versions do not match.
    #[error("the server refuses the connection: {0}")]
    Denied(&'static str),
    /// The server is stopping.
    #[error("the server is stopping")]
    Stopping,
    /// The server has had no descriptor for another connection for a while.
    #[error("the server has no room for another connection")]
    Busy,
    /// The handle was made in another process.
    #[error("the handle belongs to another process, of which this one is a forked copy")]
    WrongProcess,
    /// An address that was read is malformed, or readable by others.
    #[error("the address is no good: {0}")]
    BadAddress(String),
    /// The operating system refused something.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// Whether the handler of a failed call has run: may the call be repeated?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// The handler has not run and will not.
    NotSent,
    /// Nobody knows.
    MaybeExecuted,
    /// The handler has run, perhaps not to its end.
    Executed,
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
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
    /// The server has no handler of that name.
    #[error("the server has no handler {name:?}{}", similar.as_ref().map(|s| format!(", but {s:?}")).unwrap_or_default())]
    UnknownName {
        /// What was called.
        name: String,
        /// The handler whose name is nearest, if one is near.
        similar: Option<String>,
    },
    /// The name is a stream's and was called, or is not and was to be opened.
    #[error("{name:?} {}", if *.is_stream { "is a stream: use `Client::open`" } else { "is no stream: use `Client::call`" })]
    WrongForm {
        /// What was called or opened.
        name: String,
        /// Whether the name is a stream's.
        is_stream: bool,
    },
    /// The server does as much as it may at a time, and has not begun this.
    #[error("the server is busy: {limit} is reached")]
    Busy {
        /// The limit that is reached: a field of [`Limits`](crate::Limits), the handler's
        /// [`max_concurrent`](crate::Restrictions::max_concurrent), or what the system lacks.
        limit: String,
    },
    /// The handler's [`Restrictions`](crate::Restrictions) forbid this call.
    #[error("{name:?} refuses the call: {reason}")]
    Refused {
        /// What was called.
        name: String,
        /// Who may not call it, or which limit the arguments exceed.
        reason: String,
    },
    /// Caller and handler do not agree on types.
    #[error("{what} do not have the expected types: {reason}")]
    TypeMismatch {
        /// `the arguments of ...` or `the results of ...`.
        what: String,
        /// How they differ.
        reason: String,
        /// `NotSent` if it was the arguments, `Executed` if it was the results.
        delivery: Delivery,
    },
    /// The arguments have a form that cannot be sent.
    #[error("the arguments cannot be encoded: {0}")]
    Encode(String),
    /// The arguments exceed a limit of the client.
    #[error("the arguments cannot be sent: {0}")]
    TooLarge(ProtocolError),
    /// The handler ran, but its result cannot be sent.
    #[error("the result cannot be sent: {0}")]
    BadReply(String),
    /// The client's timeout, the one sent with the call, or the [handler's](crate::Restrictions::deadline) is over.
    #[error("no answer within {after:?}")]
    TimedOut {
        /// How long the client has waited, or the handler may take.
        after: Duration,
        /// `NotSent` if the server refused to begin so late, or nothing of the call had left; `Executed` if the handler
        /// took too long.
        delivery: Delivery,
    },
    /// The server is stopping and has not begun the call.
    #[error("the server is stopping")]
    Stopping,
    /// The server is closing this connection, has not begun the call, and may serve it on another one:
    /// [`Limits::max_calls`](crate::Limits::max_calls), [`Context::close`](crate::Context::close),
    /// [`Server::close_on_error`](crate::Server::close_on_error).
    #[error("the server takes no further calls on this connection")]
    Closing,
    /// The server refuses the connection: wrong password, or another version.
    #[error("the server refuses the connection: {0}")]
    Denied(&'static str),
    /// The connection is gone.
    #[error("the server hung up")]
    Disconnected {
        /// `NotSent` if the call had not left yet.
        delivery: Delivery,
    },
    /// The [worker](crate::Server::prefork) died that had the call. The connection is gone; others serve. It is told within
    /// 100 ms of when the connection's last descriptor is closed, which a process that a handler has forked may have, too.
    #[error("{worker} died: {exit}")]
    WorkerDied {
        /// Which worker.
        worker: Worker,
        /// How it ended.
        exit: Exit,
        /// `NotSent` if it had not begun the call.
        delivery: Delivery,
    },
    /// The other side broke the protocol, or says that we did. The connection is gone.
    #[error("protocol error: {0}")]
    Protocol(String),
    /// The client was made in another process.
    #[error("the client belongs to another process, of which this one is a forked copy")]
    WrongProcess,
    /// A `Pending` of another client, or one whose answer was given up.
    #[error("this client has no such call")]
    NoSuchCall,
    /// The operating system refused something. The connection is gone.
    #[error("{action}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl CallError {
    /// Whether the handler has run, and so whether the call may be repeated.
    pub fn delivery(&self) -> Delivery {
        match self {
            CallError::Fault(_) | CallError::Panicked { .. } | CallError::BadReply(_) => {
                Delivery::Executed
            }
            CallError::UnknownName { .. }
            | CallError::WrongForm { .. }
            | CallError::Busy { .. }
            | CallError::Refused { .. }
            | CallError::Encode(_)
            | CallError::TooLarge(_)
            | CallError::Stopping
            | CallError::Closing
            | CallError::Denied(_)
            | CallError::WrongProcess
            | CallError::NoSuchCall => Delivery::NotSent,
            CallError::TypeMismatch { delivery, .. }
            | CallError::TimedOut { delivery, .. }
            | CallError::WorkerDied { delivery, .. }
            | CallError::Disconnected { delivery } => *delivery,
            CallError::Protocol(_) | CallError::Io { .. } => Delivery::MaybeExecuted,
        }
    }
}

/// Names the action that an `io::Error` belongs to.
pub(crate) trait Context<T> {
    fn start(self, action: &'static str) -> Result<T, StartError>;
    fn connect(self, action: &'static str) -> Result<T, ConnectError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn start(self, action: &'static str) -> Result<T, StartError> {
        self.map_err(|source| StartError::Io {
            action,
            source: source.into(),
        })
    }

    fn connect(self, action: &'static str) -> Result<T, ConnectError> {
        self.map_err(|source| ConnectError::Io {
            action,
            source: source.into(),
        })
    }
}
