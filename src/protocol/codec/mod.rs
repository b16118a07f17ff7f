//! Values to bytes and back: serde through bincode, with the descriptors, large byte strings and the hash of the
//! types beside it.
//!
//! Invariant: the only module that knows bincode. Whatever the bytes, decoding ends with a value or an error,
//! within the limits on depth, elements and memory.

mod decoding;
mod deserializer;
pub(crate) mod handover;
mod serializer;
mod shape;
mod variants;

use self::deserializer::Part;
use self::serializer::Encoding;
use super::frame::Outgoing;
use super::message::Value;
use crate::limits::Limits;
use bincode::config::Configuration;
use bincode::enc::write::Writer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::marker::PhantomData;

/// Little-endian, integers of variable length: bincode's standard, written down in PROTOCOL.md.
const CONFIG: Configuration = bincode::config::standard();

/// Appends `value` to `frame`, which has none yet, with its descriptors; returns the hash of its types.
///
/// # Errors
/// The value has a form that serde or bincode cannot write, or is nested too deeply; the text says which.
#[inline]
pub(crate) fn encode<T>(value: &T, frame: &mut Outgoing, limits: &Limits) -> Result<u64, String>
where
    T: Serialize + ?Sized,
{
    let mut encoding = Encoding::new(limits.max_depth);
    let sink = Sink {
        buf: &mut frame.buf,
        encoding: &encoding,
    };
    let result = bincode::serde::encode_into_writer(encoding.typed(value), sink, CONFIG);
    match result {
        Ok(()) => Ok(encoding.finish(frame)),
        Err(err) => Err(encoding.problem().unwrap_or_else(|| err.to_string())),
    }
}

/// Reads a value; its descriptors that do not become part of the value are closed.
///
/// # Errors
/// The bytes are not a `T` and nothing but a `T`, the types differ from the sender's, a descriptor is missing or
/// left over, or a limit is exceeded; the text says which.
#[inline]
pub(crate) fn decode<'a, T: DeserializeOwned>(
    value: impl Into<Value<'a>>,
    limits: &Limits,
) -> Result<T, String> {
    let value = value.into();
    let (hash, bytes) = (value.hash, value.bytes);
    let decoding = decoding::Decoding::new(value, limits);
    let whole = Part {
        seed: PhantomData::<T>,
        decoding: &decoding,
    };
    match bincode::serde::seed_decode_from_slice(whole, bytes, CONFIG) {
        Ok((value, used)) => decoding.accept(hash, bytes.len() - used).map(|()| value),
        Err(err) => Err(decoding.problem(&err.to_string())),
    }
}

/// Where bincode writes to. The serializer is told how far it has come.
struct Sink<'a> {
    buf: &'a mut Vec<u8>,
    encoding: &'a Encoding,
}

impl Writer for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.buf.extend_from_slice(bytes);
        self.encoding.has_written_to(self.buf.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests;
