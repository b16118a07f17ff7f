//! What a session still has to do for its handler, or leaves undone.
//!
//! Invariant: each is delivered once, or dropped by whoever contains the user's panics.

use super::mailbox::Letter;
use super::{EventHandler, Item};
use crate::error::StopReason;
use crate::protocol::framing::{Framing, FramingError};
use std::any::Any;

/// The callback that comes next.
pub(crate) enum Due {
    Connected,
    Received(Item),
    Finished,
    Flushed,
    Relieved,
    Posted(Box<dyn Any + Send>),
    Stopping(StopReason),
    Malformed(FramingError),
}

/// Something of the user's that a session leaves behind.
#[expect(dead_code, reason = "they are only dropped, one by one")]
pub(crate) enum Leftover {
    Handler(Box<dyn EventHandler>),
    Framing(Box<dyn Framing>),
    Due(Due),
    Letter(Letter),
}
