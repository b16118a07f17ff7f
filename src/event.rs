//! What a server tells about itself while it serves.
//!
//! Invariant: whoever is told can neither fail nor panic what is told about.

use crate::context::Peer;
use crate::panics::{self, Panicked};
use crate::protocol::ending::Ending;
use crate::scoreboard::PoolEvent;
use std::io;
use std::sync::Arc;

/// Something that happened in a server: see [`Server::observe`](crate::Server::observe).
///
/// Of each connection that was accepted, either `Refused` is told, once, or `Connected`, once, then what happens to
/// it, in order, and at last `Disconnected`, once, when its socket is closed and its place is free.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Clients can connect through a listener: at the start, and again after it was stopped.
    ListenerStarted {
        /// The listener's name.
        listener: Arc<str>,
    },
    /// A listener has stopped, and the last of its connections has ended.
    ListenerStopped {
        /// The listener's name.
        listener: Arc<str>,
    },
    /// A client has shown the password.
    Connected {
        /// The connection: [`Context::session_id`](crate::Context::session_id).
        session: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The client.
        peer: Peer,
    },
    /// Somebody was not let in.
    Refused {
        /// The listener's name.
        listener: Arc<str>,
        /// Who it was, if the kernel could tell.
        peer: Option<Peer>,
        /// Why.
        reason: Ending,
    },
    /// All answers that were queued on a connection have left, for the kernel's buffers at least.
    Flushed {
        /// The connection.
        session: u64,
    },
    /// So many bytes of answers wait that no further call is taken from the client, above
    /// [`Limits::high_watermark`](crate::Limits::high_watermark). `LowWatermark` follows, unless the connection ends.
    HighWatermark {
        /// The connection.
        session: u64,
        /// How many bytes.
        queued: usize,
    },
    /// Calls are taken again.
    LowWatermark {
        /// The connection.
        session: u64,
        /// How many bytes still wait.
        queued: usize,
    },
    /// A stream's handler has the connection for itself from now on.
    StreamOpened {
        /// The connection.
        session: u64,
    },
    /// It serves calls again.
    StreamClosed {
        /// The connection.
        session: u64,
    },
    /// A connection has ended.
    Disconnected {
        /// The connection.
        session: u64,
        /// The listener's name.
        listener: Arc<str>,
        /// The client.
        peer: Peer,
        /// Why.
        reason: Ending,
    },
    /// Nobody is accepted until `Resumed`. The two take turns.
    Paused {
        /// The listener's name.
        listener: Arc<str>,
        /// Why.
        reason: PauseReason,
    },
    /// Clients are accepted again.
    Resumed {
        /// The listener's name.
        listener: Arc<str>,
    },
    /// The system refused something. If it was about a connection, that ends.
    Failed {
        /// The connection, if it was about one.
        session: Option<u64>,
        /// The system call.
        call: &'static str,
        /// The error's number.
        errno: Option<i32>,
        /// The error's text.
        text: String,
    },
    /// A handler failed, and its client cannot be told why: what is spoken with it has no errors.
    Unanswered {
        /// The connection.
        session: u64,
        /// What was called, or the listener's name.
        name: String,
        /// What the handler said, or why it was not called.
        reason: String,
    },
    /// Something happened to the [workers](crate::Server::prefork). Told in the monitor, all others in the worker in which they
    /// happen.
    Pool(PoolEvent),
    /// A handler or hook panicked.
    Panicked {
        /// The connection, if it was for one.
        session: Option<u64>,
        /// What panicked: the handler's name, or what else it was.
        what: String,
        /// What it said.
        message: String,
        /// Source file, line and column.
        location: String,
    },
}

/// Why nobody is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PauseReason {
    /// It was asked for.
    #[error("it was asked for")]
    Requested,
    /// There are as many connections as there may be.
    #[error("max_connections is reached")]
    MaxConnections,
    /// The system has no descriptors or no memory for one more.
    #[error("the system has no room for another connection")]
    NoResources,
    /// The server stops.
    #[error("the server is stopping")]
    Stopping,
}

type Tell = Arc<dyn Fn(&Event) + Send + Sync>;

/// Those who want to be told.
#[derive(Clone, Default)]
pub(crate) struct Observer(Vec<Tell>);

impl Observer {
    pub(crate) fn add(&mut self, observer: Tell) {
        self.0.push(observer);
    }

    /// Tells what happened; it is put into words only if somebody wants to know.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if self.0.is_empty() {
            return;
        }
        let event = event();
        for observer in &self.0 {
            // There is nobody to tell of a panic of whoever is told of panics.
            let _ = panics::catch(|| observer(&event));
        }
    }

    pub(crate) fn failed(&self, session: Option<u64>, call: &'static str, err: &io::Error) {
        self.tell(|| Event::Failed {
            session,
            call,
            errno: err.raw_os_error(),
            text: err.to_string(),
        });
    }

    pub(crate) fn panicked(&self, session: Option<u64>, what: &str, panicked: &Panicked) {
        self.tell(|| Event::Panicked {
            session,
            what: what.to_owned(),
            message: panicked.message.clone(),
            location: panicked.location.clone(),
        });
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Observer({})", self.0.len())
    }
}
