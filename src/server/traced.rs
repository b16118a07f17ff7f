//! What is observed, as spans and events of the crate `tracing`.
//!
//! Invariant: [`Event`]s are the only source; nothing is told here that an observer would not be told.

use super::Server;
use crate::event::{Event, PauseReason};
use crate::protocol::ending::Ending;
use crate::scoreboard::PoolEvent;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tracing::{Level, Span};

impl Server {
    /// Tells what happens to the process's `tracing` subscriber, as [`Server::observe`] would tell it: a span `session`
    /// for each connection, from the password to the end, with `session`, `listener`, `peer.pid` and `peer.uid`, and an
    /// event within it, or on its own, for each [`Event`]. Needs the feature `tracing`.
    ///
    /// Panics of handlers, and what the system refuses, are errors. Whoever is not let in, a connection that ended in
    /// disorder, a failure that its client cannot be told, and a pause for lack of room, are warnings. What is about listeners is information; the rest is for
    /// debugging, and that answers have left for tracing.
    ///
    /// A forked server has its owner's subscriber, whose threads and pipes it has not: set one in
    /// [`Server::initialize`].
    ///
    /// ```
    /// # use forkserver::Server;
    /// let server = Server::new().handle("echo", |_, text: String| Ok(text)).traced();
    /// ```
    pub fn traced(self) -> Server {
        let sessions = Sessions::default();
        self.observe(move |event| sessions.tell(event))
    }
}

/// The spans of the connections that there are.
#[derive(Default)]
struct Sessions(Mutex<HashMap<u64, Span>>);

/// One event, of a level that is known at run time.
macro_rules! tell {
    ($level:expr, $span:expr, $($rest:tt)+) => {
        match $level {
            Level::ERROR => tracing::error!(target: "forkserver", parent: $span, $($rest)+),
            Level::WARN => tracing::warn!(target: "forkserver", parent: $span, $($rest)+),
            Level::INFO => tracing::info!(target: "forkserver", parent: $span, $($rest)+),
            Level::DEBUG => tracing::debug!(target: "forkserver", parent: $span, $($rest)+),
            Level::TRACE => tracing::trace!(target: "forkserver", parent: $span, $($rest)+),
        }
    };
}

impl Sessions {
    fn tell(&self, event: &Event) {
        let level = level(event);
        let (root, span) = (&Span::none(), &self.span_of(event));
        match event {
            Event::ListenerStarted { listener } => tell!(level, root, %listener, "started"),
            Event::ListenerStopped { listener } => tell!(level, root, %listener, "stopped"),
            Event::Connected { .. } => tell!(level, span, "connected"),
            Event::Refused {
                listener,
                peer,
                reason,
            } => {
                let (pid, uid) = (peer.map(|peer| peer.pid), peer.map(|peer| peer.uid));
                tell!(level, root, %listener, peer.pid = pid, peer.uid = uid, %reason, "refused");
            }
            Event::Unanswered { name, reason, .. } => {
                tell!(level, span, name, error = reason, "unanswered");
            }
            Event::Flushed { .. } => tell!(level, span, "flushed"),
            Event::HighWatermark { queued, .. } => tell!(level, span, queued, "high watermark"),
            Event::LowWatermark { queued, .. } => tell!(level, span, queued, "low watermark"),
            Event::StreamOpened { .. } => tell!(level, span, "stream opened"),
            Event::StreamClosed { .. } => tell!(level, span, "stream closed"),
            Event::Disconnected { reason, .. } => tell!(level, span, %reason, "disconnected"),
            Event::Paused { listener, reason } => tell!(level, root, %listener, %reason, "paused"),
            Event::Resumed { listener } => tell!(level, root, %listener, "resumed"),
            Event::Failed {
                call, errno, text, ..
            } => tell!(level, span, call, errno, error = text, "failed"),
            Event::Pool(event) => tell!(level, root, %event, "pool"),
            Event::Panicked {
                what,
                message,
                location,
                ..
            } => tell!(level, span, what, error = message, location, "panicked"),
        }
    }

    /// The span of the connection that an event is about. It begins with the first, and is forgotten with the last.
    fn span_of(&self, event: &Event) -> Span {
        let session = match event {
            Event::Connected {
                session,
                listener,
                peer,
            } => {
                let span = tracing::info_span!(
                    target: "forkserver",
                    parent: None,
                    "session",
                    session,
                    %listener,
                    peer.pid = peer.pid,
                    peer.uid = peer.uid
                );
                self.lock().insert(*session, span.clone());
                return span;
            }
            Event::Disconnected { session, .. } => {
                return self.lock().remove(session).unwrap_or_else(Span::none);
            }
            Event::Flushed { session }
            | Event::HighWatermark { session, .. }
            | Event::LowWatermark { session, .. }
            | Event::StreamOpened { session }
            | Event::StreamClosed { session }
            | Event::Unanswered { session, .. } => Some(*session),
            Event::Failed { session, .. } | Event::Panicked { session, .. } => *session,
            _ => None,
        };
        let span = session.and_then(|session| self.lock().get(&session).cloned());
        span.unwrap_or_else(Span::none)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Span>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn level(event: &Event) -> Level {
    match event {
        Event::Failed { .. } | Event::Panicked { .. } => Level::ERROR,
        Event::Refused { reason, .. } if *reason != Ending::Stopping => Level::WARN,
        Event::Disconnected {
            reason: Ending::Protocol(_) | Ending::Broken | Ending::TimedOut | Ending::Faulted,
            ..
        }
        | Event::Unanswered { .. } => Level::WARN,
        Event::Paused {
            reason: PauseReason::MaxConnections | PauseReason::NoResources,
            ..
        } => Level::WARN,
        Event::Pool(
            PoolEvent::Ready { .. }
            | PoolEvent::Replaced { .. }
            | PoolEvent::Left { .. }
            | PoolEvent::Recovered
            | PoolEvent::Reloaded,
        ) => Level::INFO,
        Event::Pool(PoolEvent::CrashLoop { .. }) => Level::ERROR,
        Event::Pool(_) => Level::WARN,
        Event::ListenerStarted { .. }
        | Event::ListenerStopped { .. }
        | Event::Refused { .. }
        | Event::Paused { .. }
        | Event::Resumed { .. } => Level::INFO,
        Event::Connected { .. }
        | Event::Disconnected { .. }
        | Event::HighWatermark { .. }
        | Event::LowWatermark { .. }
        | Event::StreamOpened { .. }
        | Event::StreamClosed { .. } => Level::DEBUG,
        Event::Flushed { .. } => Level::TRACE,
    }
}
