//! Sessions that are served by callbacks: whoever has something is called, and nobody waits.
//!
//! Invariant: nothing here does input or output. What a handler sends is queued, and leaves when the engine says so; a
//! handler's callbacks come one at a time, in the order of the connection, and `disconnected` is the last, once.

mod conversation;
mod due;
mod input;
mod item;
mod mailbox;

pub(crate) use self::conversation::{Conversation, Outlook, Wants};
pub(crate) use self::due::Leftover;
pub use self::item::Item;
pub(crate) use self::mailbox::{Mailbox, Office};
pub use self::mailbox::{PostError, SessionHandle};

use crate::bytes::Bytes;
use crate::context::Context;
use crate::error::{StopReason, StreamError};
use crate::fault::Fault;
use crate::limits::Limits;
use crate::protocol::codec;
use crate::protocol::ending::Ending;
use crate::protocol::frame::ProtocolError;
use crate::protocol::framing::{Framing, FramingError, Unframed};
use crate::protocol::message::write_item;
use crate::protocol::outbox::Outbox;
use crate::protocol::stream::StreamOut;
use serde::Serialize;
use std::any::Any;
use std::sync::Arc;

/// One client's part in a server that is served by callbacks: made for it when it comes, kept until it goes.
///
/// A callback must not wait: with [`Engine::Evented`](crate::Engine::Evented) all clients would. An error that one
/// returns ends the session: a stream's client receives it, and otherwise the observer is told. So does a panic.
#[expect(unused_variables, reason = "names for the documentation")]
pub trait EventHandler: Send + 'static {
    /// The client is there. A server that speaks first does it here.
    ///
    /// # Errors
    /// Ends the session.
    fn connected(&mut self, session: &mut Session) -> Result<(), Fault> {
        Ok(())
    }

    /// The client has sent something.
    ///
    /// # Errors
    /// Ends the session.
    fn received(&mut self, session: &mut Session, item: Item) -> Result<(), Fault>;

    /// The client sends nothing more, but may still receive. By default, the session is closed behind what is queued.
    ///
    /// # Errors
    /// Ends the session.
    fn finished(&mut self, session: &mut Session) -> Result<(), Fault> {
        session.close();
        Ok(())
    }

    /// All that was queued has left, for the kernel's buffers at least.
    ///
    /// # Errors
    /// Ends the session.
    fn flushed(&mut self, session: &mut Session) -> Result<(), Fault> {
        Ok(())
    }

    /// No more is queued than [`Limits::low_watermark`], after it was more than [`Limits::high_watermark`]: see
    /// [`Session::is_pressed`].
    ///
    /// # Errors
    /// Ends the session.
    fn relieved(&mut self, session: &mut Session) -> Result<(), Fault> {
        Ok(())
    }

    /// Somebody has [posted](SessionHandle::post) something.
    ///
    /// # Errors
    /// Ends the session.
    fn posted(&mut self, session: &mut Session, event: Box<dyn Any + Send>) -> Result<(), Fault> {
        Ok(())
    }

    /// What came is no record. `true`: go on behind it, if the framing can; by default, the session ends.
    fn malformed(&mut self, session: &mut Session, error: &FramingError) -> bool {
        false
    }

    /// The server or the listener stops. By default, the session is closed behind what is queued; one that goes on is cut off
    /// when the grace is over.
    fn stopping(&mut self, session: &mut Session, reason: StopReason) {
        session.close();
    }

    /// The session is over: the last callback, once, whatever has happened.
    fn disconnected(&mut self, context: &mut Context, reason: &Ending) {}
}

/// What a callback can do with its session.
pub struct Session {
    /// Taken out when the session is over.
    context: Option<Box<Context>>,
    limits: Arc<Limits>,
    output: Output,
    mailbox: Arc<Mailbox>,
    closing: Option<Closing>,
    /// The handler wants nothing more for now.
    is_paused: bool,
    /// More is queued than `high_watermark`, and not yet as little as `low_watermark`.
    is_pressed: bool,
}

/// How a session is about to end.
enum Closing {
    /// Behind what is queued.
    Flushing(Ending),
    Now(Ending),
}

enum Output {
    /// Of a stream: typed items.
    Items(StreamOut),
    /// Records, as the framing writes them.
    Records(Outbox, Box<dyn Framing>),
}

impl Output {
    fn outbox(&self) -> &Outbox {
        match self {
            Output::Items(output) => &output.outbox,
            Output::Records(outbox, _) => outbox,
        }
    }

    fn outbox_mut(&mut self) -> &mut Outbox {
        match self {
            Output::Items(output) => &mut output.outbox,
            Output::Records(outbox, _) => outbox,
        }
    }
}

impl Session {
    /// What surrounds it: peer, listener, state, values of the session.
    pub fn context(&mut self) -> &mut Context {
        self.context.as_mut().expect("there while callbacks run")
    }

    /// What reaches this session from elsewhere.
    pub fn handle(&self) -> SessionHandle {
        SessionHandle(Arc::clone(&self.mailbox))
    }

    /// Queues an item for a stream's client, which [receives](crate::Channel::recv) a `T`.
    ///
    /// # Errors
    /// It has a form that cannot be sent or exceeds a limit, or the session is closing. What would make more wait than
    /// [`Limits::max_queued`] ends the session: its client does not read.
    pub fn send<T: Serialize + ?Sized>(&mut self, item: &T) -> Result<(), StreamError> {
        self.check()?;
        let Output::Items(output) = &mut self.output else {
            let reason = "its listener has a framing: use `write`";
            return Err(StreamError::Encode(reason.into()));
        };
        let (mut frame, slot) = write_item(output.id());
        let hash = codec::encode(item, &mut frame, &self.limits).map_err(StreamError::Encode)?;
        slot.fill(&mut frame, hash);
        let queued = output.send(frame);
        self.has_queued(queued)
    }

    /// Queues a record, as the listener's framing writes it. A stream's client receives it as [`Bytes`].
    ///
    /// # Errors
    /// As [`Session::send`].
    pub fn write(&mut self, record: impl AsRef<[u8]>) -> Result<(), StreamError> {
        self.check()?;
        let record = record.as_ref();
        let Output::Records(outbox, framing) = &mut self.output else {
            return self.send(&Bytes::from(record.to_vec()));
        };
        let mut bytes = Vec::with_capacity(record.len() + 8);
        let written = framing.write(record, &mut bytes);
        written.map_err(|err| StreamError::Encode(err.to_string()))?;
        let queued = outbox.send_bytes(bytes);
        self.has_queued(queued)
    }

    fn has_queued(&mut self, queued: Result<(), ProtocolError>) -> Result<(), StreamError> {
        if let Err(err @ ProtocolError::TooMuchQueued { .. }) = &queued {
            self.closing = Some(Closing::Now(Ending::Protocol(err.clone())));
        }
        self.is_pressed |= self.queued() > self.limits.high_watermark;
        queued.map_err(StreamError::TooLarge)
    }

    /// How many bytes wait to be sent.
    pub fn queued(&self) -> usize {
        self.output.outbox().queued()
    }

    /// Whether so many bytes wait that nothing more is received from this client, until
    /// [`EventHandler::relieved`]. A good time to stop producing.
    pub fn is_pressed(&self) -> bool {
        self.is_pressed
    }

    /// Receives nothing more until [`Session::resume_input`]. What has come waits, and so does the news that the client has
    /// gone: it keeps its place among the connections meanwhile.
    pub fn pause_input(&mut self) {
        self.is_paused = true;
    }

    /// Receives again.
    pub fn resume_input(&mut self) {
        self.is_paused = false;
    }

    /// Reads and writes records in another way from now on, beginning with what has been received and not been
    /// delivered. A stream has no framing of its own, and stays as it is.
    pub fn set_framing(&mut self, framing: impl Framing) {
        if let Output::Records(_, current) = &mut self.output {
            *current = Box::new(framing);
        }
    }

    /// Closes the session when all that is queued has left; nothing more is received. The client's stream ends with an
    /// answer, and its connection goes on.
    pub fn close(&mut self) {
        let finished = Closing::Flushing(Ending::Finished);
        self.closing.get_or_insert(finished);
    }

    /// Closes the connection. What is queued is dropped.
    pub fn close_now(&mut self) {
        self.closing = Some(Closing::Now(Ending::Finished));
    }

    /// Takes out the user's part of the output.
    fn drop_framing(&mut self) -> Option<Box<dyn Framing>> {
        match &mut self.output {
            Output::Items(_) => None,
            Output::Records(_, framing) => Some(std::mem::replace(framing, Box::new(Unframed))),
        }
    }

    fn check(&self) -> Result<(), StreamError> {
        match self.closing {
            None => Ok(()),
            Some(_) => Err(StreamError::Finished),
        }
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("mailbox", &self.mailbox)
            .field("queued", &self.queued())
            .finish_non_exhaustive()
    }
}
