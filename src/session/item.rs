//! What a client of a session has sent.
//!
//! Invariant: an item is decoded once, as the type that its sender gave it, or not at all.

use crate::bytes::Bytes;
use crate::error::StreamError;
use crate::limits::Limits;
use crate::protocol::codec;
use crate::protocol::message::EncodedValue;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// What a client has sent: an item of a stream, or a record of a listener with a framing.
#[derive(Debug)]
pub struct Item(Content);

#[derive(Debug)]
enum Content {
    Value(EncodedValue, Arc<Limits>),
    Record(bytes::Bytes),
}

impl Item {
    pub(super) fn of_value(value: EncodedValue, limits: &Arc<Limits>) -> Item {
        Item(Content::Value(value, Arc::clone(limits)))
    }

    pub(super) fn of_record(record: bytes::Bytes) -> Item {
        Item(Content::Record(record))
    }

    /// The value that a stream's client has [sent](crate::Channel::send).
    ///
    /// # Errors
    /// It has another type; the session goes on, unless the callback returns the error.
    pub fn decode<T: DeserializeOwned>(self) -> Result<T, StreamError> {
        let mismatch = |reason: String| {
            let expected = std::any::type_name::<T>();
            StreamError::TypeMismatch(format!("{reason} (the handler expects {expected})"))
        };
        match self.0 {
            Content::Value(mut value, limits) => {
                codec::decode(&mut value, &limits).map_err(mismatch)
            }
            Content::Record(_) => Err(mismatch("a record has no type".into())),
        }
    }

    /// The record, or the item as it has travelled.
    pub fn as_slice(&self) -> &[u8] {
        match &self.0 {
            Content::Value(value, _) => &value.bytes,
            Content::Record(record) => record,
        }
    }

    /// As [`Item::as_slice`], to be kept. Nothing is copied.
    pub fn into_bytes(self) -> Bytes {
        Bytes::of(match self.0 {
            Content::Value(value, _) => value.bytes,
            Content::Record(record) => record,
        })
    }
}

impl AsRef<[u8]> for Item {
    fn as_ref(&self) -> &[u8] {
        self.as_slice()
    }
}
