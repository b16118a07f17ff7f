//! The receiving half of a channel.
//!
//! Invariant: items that have arrived are given out before anything else is reported.

use super::{End, Home, Served};
use crate::connection::{Connection, ReceiveError, is_gone};
use crate::error::StreamError;
use crate::fault::RemoteFault;
use crate::limits::Limits;
use crate::protocol::codec;
use crate::protocol::message::{Class, ErrorBody};
use crate::protocol::stream::{Incoming, StreamIn};
use crate::sys::rights::Rights;
use crate::sys::{poll, process};
use serde::de::DeserializeOwned;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The half of a [`Channel`](super::Channel) that receives.
#[derive(Debug)]
pub struct ReceiveHalf<E: End = Served> {
    /// Taken out when the half is dropped or given up.
    parts: Option<Parts<E>>,
    limits: Arc<Limits>,
    timeout: Option<Duration>,
    generation: u32,
    home: Option<Arc<Home>>,
}

#[derive(Debug)]
pub(crate) struct Parts<E> {
    pub(crate) input: StreamIn,
    pub(crate) connection: Connection,
    pub(crate) end: E,
}

impl<E: End> ReceiveHalf<E> {
    pub(crate) fn new(
        parts: Parts<E>,
        limits: &Arc<Limits>,
        home: Option<Arc<Home>>,
    ) -> ReceiveHalf<E> {
        ReceiveHalf {
            parts: Some(parts),
            limits: Arc::clone(limits),
            timeout: None,
            generation: process::generation(),
            home,
        }
    }

    /// Waits for the next item. `None`: the other side has finished, or the handler has returned.
    ///
    /// # Errors
    /// See [`StreamError`]. In a handler it is [`StreamError::Stopped`] when the server stops and nothing has
    /// arrived; at a client, an error or a panic of the handler, once.
    pub fn recv<T: DeserializeOwned>(&mut self) -> Result<Option<T>, StreamError> {
        self.check()?;
        let deadline = self.deadline();
        match self.next(deadline)? {
            Incoming::Item(mut value) => {
                let item = codec::decode(&mut value, &self.limits).map_err(|reason| {
                    let expected = std::any::type_name::<T>();
                    StreamError::TypeMismatch(format!("{reason} (the receiver expects {expected})"))
                })?;
                Ok(Some(item))
            }
            Incoming::End | Incoming::Result(Ok(_)) => Ok(None),
            Incoming::Result(Err(body)) => Err(failed(body)),
        }
    }

    /// The next thing that the other side says; behind its last item always [`Incoming::End`].
    fn next(&mut self, deadline: Option<Instant>) -> Result<Incoming, StreamError> {
        loop {
            if self.parts().input.has_ended() {
                return Ok(Incoming::End);
            }
            // What has arrived is no reason to wait, however late it is.
            if let Some(incoming) = self.pull(deadline, true)? {
                return Ok(incoming);
            }
        }
    }

    /// Waits for the handler's answer; what comes before it is dropped.
    pub(crate) fn answer(&mut self) -> Result<(), StreamError> {
        self.check()?;
        let deadline = self.deadline();
        while !self.parts().input.is_answered() {
            if let Some(Incoming::Result(Err(body))) = self.pull(deadline, false)? {
                return Err(failed(body));
            }
        }
        Ok(())
    }

    /// One turn: something that the other side says, or some progress towards it; `late` if need be.
    fn pull(
        &mut self,
        deadline: Option<Instant>,
        late: bool,
    ) -> Result<Option<Incoming>, StreamError> {
        let input = &mut self.parts_mut().input;
        match input.next().map_err(protocol)? {
            Some(incoming) => Ok(Some(incoming)),
            None if input.inbox.is_at_end() => Err(StreamError::Disconnected),
            None => self.receive(deadline, late).map(|()| None),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let timeout = self.timeout?;
        Instant::now().checked_add(timeout)
    }

    /// Receives once, and waits for something to come until the deadline, or until the handler is to stop. After the
    /// deadline, a client looks for what has come only if it may be `late`.
    fn receive(&mut self, deadline: Option<Instant>, late: bool) -> Result<(), StreamError> {
        let timeout = self.timeout.unwrap_or_default();
        let Parts {
            input,
            connection,
            end,
        } = self.parts_mut();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let is_over = left.is_some_and(|left| left.is_zero());
        let received = match end.stop_token() {
            None if is_over && !late => return Err(StreamError::TimedOut(timeout)),
            None if !is_over => connection.receive(&mut input.inbox, Rights::Accept, left),
            _ => connection.receive_now(&mut input.inbox, Rights::Accept),
        };
        match (received, end.stop_token()) {
            (Ok(false), Some(token)) => {
                let waited = [Some(connection.as_fd()), Some(token.as_fd())];
                let [readable, told] =
                    poll::readable(waited, deadline).map_err(|source| StreamError::Io {
                        action: "wait for an item",
                        source,
                    })?;
                match token.reason() {
                    _ if readable => Ok(()),
                    Some(reason) if told => Err(StreamError::Stopped(reason)),
                    _ => Err(StreamError::TimedOut(timeout)),
                }
            }
            (Ok(false), None) if is_over => Err(StreamError::TimedOut(timeout)),
            // Where nothing has come in time, the next turn looks at the clock.
            (Ok(_), _) => Ok(()),
            (Err(ReceiveError::Protocol(err)), _) => Err(protocol(err)),
            (Err(ReceiveError::Io(err)), _) if is_gone(&err) => Err(StreamError::Disconnected),
            (Err(ReceiveError::Io(source)), _) => Err(StreamError::Io {
                action: "receive an item",
                source,
            }),
        }
    }

    /// Whether something has been received already that a `recv` would look at first. The descriptor tells only of
    /// what has not been received.
    pub fn has_buffered(&self) -> bool {
        self.parts().input.inbox.has_unread()
    }

    /// How long a `recv` may wait. `None`: for ever. See [`Channel::set_timeout`](super::Channel::set_timeout) for
    /// the default.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.parts().connection
    }

    pub(super) fn end(&self) -> &E {
        &self.parts().end
    }

    pub(crate) fn parts(&self) -> &Parts<E> {
        self.parts.as_ref().expect("there until they are given up")
    }

    /// The direction itself, and what belongs to it; the half is of no use any more.
    pub(crate) fn into_parts(mut self) -> Parts<E> {
        self.parts.take().expect("taken once, when it is given up")
    }

    fn parts_mut(&mut self) -> &mut Parts<E> {
        self.parts.as_mut().expect("there until they are given up")
    }

    fn check(&self) -> Result<(), StreamError> {
        match self.generation == process::generation() {
            true => Ok(()),
            false => Err(StreamError::WrongProcess),
        }
    }
}

fn protocol(err: crate::ProtocolError) -> StreamError {
    StreamError::Protocol(err.to_string())
}

/// An answer that is no value, in the words of whoever has the stream.
fn failed(body: ErrorBody) -> StreamError {
    match body.class {
        Class::Panicked => {
            let mut texts = body.texts.into_iter();
            StreamError::Panicked {
                message: texts.next().unwrap_or_default(),
                location: texts.next().unwrap_or_default(),
            }
        }
        Class::Fault => StreamError::Fault(RemoteFault::from(body)),
        _ => StreamError::Protocol(body.texts.join(": ")),
    }
}

impl<E: End> AsFd for ReceiveHalf<E> {
    /// The socket, readable when something can be received. For waiting: reading it breaks the stream.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection().as_fd()
    }
}

impl<E: End> Drop for ReceiveHalf<E> {
    fn drop(&mut self) {
        if let (Some(Parts { input, .. }), Some(home)) = (self.parts.take(), &self.home) {
            home.take_in(input);
        }
    }
}
