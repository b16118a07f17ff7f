//! What is spoken on a connection: one of several sessions, of which a driver needs the same few things.
//!
//! Invariant: a driver that does not care which it is asks here; no rule of any of them is here.

use crate::panics::Panicked;
use crate::protocol::ending::Ending;
use crate::protocol::frame::ProtocolError;
use crate::protocol::inbox::Inbox;
use crate::protocol::outbox::Outbox;
use crate::protocol::passenger::session::PassengerSession;
use crate::protocol::server::ServerSession;
use crate::session::Conversation;
use std::sync::Arc;
use std::time::Instant;

/// What is spoken on a connection.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are the first, and a pointer less is worth more"
)]
pub(super) enum Talk {
    Native {
        session: ServerSession,
        /// Its stream, if that stays with the engine; the session goes on behind it.
        stream: Option<Box<Stream>>,
    },
    /// Another protocol altogether.
    Records(Box<Conversation>),
    Passenger(Box<PassengerSession>),
}

/// A stream that is served by callbacks.
pub(super) struct Stream {
    pub(super) name: Arc<str>,
    pub(super) conversation: Conversation,
    /// What a callback said as it panicked.
    pub(super) panicked: Option<Box<Panicked>>,
}

impl Talk {
    pub(super) fn inbox(&self) -> &Inbox {
        match self {
            Talk::Native {
                stream: Some(stream),
                ..
            } => stream.conversation.inbox(),
            Talk::Native { session, .. } => &session.inbox,
            Talk::Records(conversation) => conversation.inbox(),
            Talk::Passenger(session) => &session.inbox,
        }
    }

    pub(super) fn inbox_mut(&mut self) -> &mut Inbox {
        match self {
            Talk::Native {
                stream: Some(stream),
                ..
            } => stream.conversation.inbox_mut(),
            Talk::Native { session, .. } => &mut session.inbox,
            Talk::Records(conversation) => conversation.inbox_mut(),
            Talk::Passenger(session) => &mut session.inbox,
        }
    }

    pub(super) fn outbox(&self) -> &Outbox {
        match self {
            Talk::Native {
                stream: Some(stream),
                ..
            } => stream.conversation.outbox(),
            Talk::Native { session, .. } => &session.outbox,
            Talk::Records(conversation) => conversation.outbox(),
            Talk::Passenger(session) => &session.outbox,
        }
    }

    pub(super) fn outbox_mut(&mut self) -> &mut Outbox {
        match self {
            Talk::Native {
                stream: Some(stream),
                ..
            } => stream.conversation.outbox_mut(),
            Talk::Native { session, .. } => &mut session.outbox,
            Talk::Records(conversation) => conversation.outbox_mut(),
            Talk::Passenger(session) => &mut session.outbox,
        }
    }

    /// What is served by callbacks.
    pub(super) fn conversation(&self) -> Option<&Conversation> {
        match self {
            Talk::Native { stream, .. } => Some(&stream.as_ref()?.conversation),
            Talk::Records(conversation) => Some(conversation),
            Talk::Passenger(_) => None,
        }
    }

    pub(super) fn conversation_mut(&mut self) -> Option<&mut Conversation> {
        match self {
            Talk::Native { stream, .. } => Some(&mut stream.as_mut()?.conversation),
            Talk::Records(conversation) => Some(conversation),
            Talk::Passenger(_) => None,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match self {
            Talk::Native {
                stream: Some(stream),
                ..
            } => stream.conversation.deadline(),
            Talk::Native { session, .. } => session.deadline(),
            Talk::Records(conversation) => conversation.deadline(),
            Talk::Passenger(session) => session.deadline(),
        }
    }

    /// Why it is over, once it is.
    pub(super) fn ending(&self) -> Option<&Ending> {
        match self {
            Talk::Native { session, .. } => session.ending(),
            Talk::Passenger(session) => session.ending(),
            // It says so when it is asked what it wants.
            Talk::Records(_) => None,
        }
    }

    /// Whether descriptors may be received.
    pub(super) fn accepts_fds(&self) -> bool {
        match self {
            Talk::Native { session, .. } => session.accepts_fds(),
            Talk::Records(_) | Talk::Passenger(_) => false,
        }
    }

    /// Whether so much is queued that nothing more is taken.
    pub(super) fn is_pressed(&self) -> bool {
        match self {
            Talk::Native {
                stream: Some(stream),
                ..
            } => stream.conversation.is_pressed(),
            Talk::Native { session, .. } => session.is_pressed(),
            Talk::Records(conversation) => conversation.is_pressed(),
            Talk::Passenger(_) => false,
        }
    }

    /// Nothing that has not been begun is begun any more. Who is served by callbacks is told by other means.
    pub(super) fn drain(&mut self) {
        match self {
            Talk::Native { session, .. } => session.drain(),
            Talk::Passenger(session) => session.drain(),
            Talk::Records(_) => {}
        }
    }

    /// The other side broke a rule that only the driver could see.
    pub(super) fn fail(&mut self, error: ProtocolError) {
        match self {
            Talk::Native {
                stream: Some(stream),
                ..
            } => stream.conversation.fail(error),
            Talk::Native { session, .. } => session.fail(error),
            Talk::Records(conversation) => conversation.fail(error),
            // Which takes no descriptors, so that none can be lost.
            Talk::Passenger(_) => {}
        }
    }

    /// So much of the output is gone.
    pub(super) fn transmitted(&mut self, len: usize, now: impl FnOnce() -> Instant) {
        match self {
            Talk::Native {
                stream: Some(stream),
                ..
            } => drop(stream.conversation.transmitted(len, now())),
            Talk::Native { session, .. } => session.transmitted(len, now),
            Talk::Records(conversation) => drop(conversation.transmitted(len, now())),
            Talk::Passenger(session) => session.transmitted(len, now()),
        }
    }
}
