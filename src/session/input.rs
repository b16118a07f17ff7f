//! What comes to a session: the items of a stream, or the records of another protocol.
//!
//! Invariant: what has been given out is never looked at again, and the end comes last.

use super::Item;
use crate::limits::Limits;
use crate::protocol::ending::Ending;
use crate::protocol::frame::ProtocolError;
use crate::protocol::framing::{Found, Framing, FramingError};
use crate::protocol::inbox::Inbox;
use crate::protocol::stream::{Incoming as Said, StreamIn};
use std::sync::Arc;

/// Where it comes from.
pub(super) enum Input {
    Items(StreamIn),
    Records(Inbox),
}

/// What has come.
pub(super) enum Incoming {
    Item(Item),
    End,
    Malformed(FramingError),
}

impl Input {
    /// What has come next. `framing` cuts records out.
    ///
    /// # Errors
    /// Nothing more can come, for this reason.
    pub(super) fn next(
        &mut self,
        framing: Option<&mut dyn Framing>,
        limits: &Arc<Limits>,
    ) -> Result<Option<Incoming>, Ending> {
        match (self, framing) {
            (Input::Items(input), _) => next_item(input, limits),
            (Input::Records(inbox), Some(framing)) => next_record(inbox, framing, limits),
            // Records have a framing.
            (Input::Records(_), None) => Ok(None),
        }
    }

    pub(super) fn inbox(&self) -> &Inbox {
        match self {
            Input::Items(input) => &input.inbox,
            Input::Records(inbox) => inbox,
        }
    }

    pub(super) fn inbox_mut(&mut self) -> &mut Inbox {
        match self {
            Input::Items(input) => &mut input.inbox,
            Input::Records(inbox) => inbox,
        }
    }
}

fn next_item(input: &mut StreamIn, limits: &Arc<Limits>) -> Result<Option<Incoming>, Ending> {
    if input.has_ended() {
        return Ok(Some(Incoming::End));
    }
    match input.next().map_err(Ending::Protocol)? {
        Some(Said::Item(value)) => Ok(Some(Incoming::Item(Item::of_value(value, limits)))),
        Some(Said::End | Said::Result(_)) => Ok(Some(Incoming::End)),
        // Without having said so.
        None if input.inbox.is_at_end() => Err(Ending::Broken),
        None => Ok(None),
    }
}

fn next_record(
    inbox: &mut Inbox,
    framing: &mut dyn Framing,
    limits: &Limits,
) -> Result<Option<Incoming>, Ending> {
    let limit = limits.max_frame;
    loop {
        let received = inbox.unread().len();
        if received == 0 {
            return Ok(inbox.is_at_end().then_some(Incoming::End));
        }
        let malformed = match framing.find(inbox.unread()) {
            Ok(Found::Partial) if received > limit => FramingError::TooLong { limit },
            Ok(Found::Partial) if inbox.is_at_end() => {
                drop(inbox.take_unread());
                FramingError::CutShort
            }
            Ok(Found::Partial) => {
                inbox.expect(received + 1);
                return Ok(None);
            }
            Ok(Found::Skip(len)) if (1..=received).contains(&len) => {
                drop(inbox.take(len));
                continue;
            }
            Ok(Found::Record { content, len })
                if content.start <= content.end
                    && content.end <= len
                    && (1..=received).contains(&len) =>
            {
                if content.len() > limit {
                    FramingError::TooLong { limit }
                } else {
                    let record = inbox.take(len).slice(content);
                    return Ok(Some(Incoming::Item(Item::of_record(record))));
                }
            }
            Ok(_) => {
                let reason = ProtocolError::Framing("the framing found what is not there".into());
                return Err(Ending::Protocol(reason));
            }
            Err(err) => err,
        };
        return Ok(Some(Incoming::Malformed(malformed)));
    }
}
