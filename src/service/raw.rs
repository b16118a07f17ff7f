//! A value that is passed on without being looked into.
//!
//! Invariant: its descriptors go with it, each once.

use crate::fault::Fault;
use crate::limits::Limits;
use crate::protocol::codec;
use crate::protocol::frame::Outgoing;
use crate::protocol::message::{EncodedValue, write_reply};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// An argument or a result as it travels, for a [`fallback`](crate::Server::fallback) that passes it on or decodes
/// it itself.
#[derive(Debug)]
pub struct Raw {
    value: RawValue,
    limits: Limits,
}

#[derive(Debug)]
enum RawValue {
    Received(EncodedValue),
    Written {
        frame: Outgoing,
        start: usize,
        hash: u64,
    },
}

impl Raw {
    /// Encodes a value.
    ///
    /// # Errors
    /// It has a form that cannot be sent.
    pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Raw, Fault> {
        let limits = Limits::default();
        let (mut frame, _) = write_reply(0);
        let start = frame.buf.len();
        let hash = codec::encode(value, &mut frame, &limits).map_err(Fault::new)?;
        Ok(Raw {
            value: RawValue::Written { frame, start, hash },
            limits,
        })
    }

    /// Decodes the value.
    ///
    /// # Errors
    /// It is not a `T`.
    pub fn decode<T: DeserializeOwned>(self) -> Result<T, Fault> {
        match self.value {
            RawValue::Received(mut value) => {
                codec::decode(&mut value, &self.limits).map_err(Fault::new)
            }
            RawValue::Written { .. } => Err(Fault::new("only a received value can be decoded")),
        }
    }

    pub(super) fn received(value: EncodedValue, limits: Limits) -> Raw {
        Raw {
            value: RawValue::Received(value),
            limits,
        }
    }

    /// The reply to call `id` that carries the value on.
    pub(super) fn into_reply(self, id: u32) -> Outgoing {
        let (mut reply, slot) = write_reply(id);
        match self.value {
            RawValue::Received(value) => {
                match value.hash {
                    Some(hash) => slot.fill(&mut reply, hash),
                    None => slot.give_up(&mut reply),
                }
                let place = reply.buf.len();
                reply.pieces.push((place, value.bytes));
                reply.fds = value.fds.into_iter().map(Arc::new).collect();
            }
            RawValue::Written {
                mut frame,
                start,
                hash,
            } => {
                slot.fill(&mut reply, hash);
                let shift = reply.buf.len();
                reply.buf.extend_from_slice(&frame.buf[start..]);
                let moved = |(at, piece)| (at - start + shift, piece);
                reply.pieces = frame.pieces.drain(..).map(moved).collect();
                reply.fds = std::mem::take(&mut frame.fds);
            }
        }
        reply
    }
}
