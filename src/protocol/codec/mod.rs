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
use super::frame::Outgoing;
use super::message::EncodedValue;
use crate::limits::Limits;
use bincode::config::Configuration;
use bincode::enc::write::Writer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::marker::PhantomData;

/// Little-endian, integers of variable length: bincode's standard, written down in PROTOCOL.md.
const CONFIG: Configuration = bincode::config::standard();

/// Appends `value` to `frame`, with its descriptors, and returns the hash of its types.
///
/// # Errors
/// The value has a form that serde or bincode cannot write, or is nested too deeply; the text says which.
pub(crate) fn encode<T>(value: &T, frame: &mut Outgoing, limits: &Limits) -> Result<u64, String>
where
    T: Serialize + ?Sized,
{
    let shared = RefCell::new(std::mem::replace(frame, Outgoing::empty()));
    let encoding = serializer::Encoding::new(&shared, limits.max_depth);
    let result =
        match bincode::serde::encode_into_writer(encoding.typed(value), Sink(&shared), CONFIG) {
            Ok(()) => Ok(encoding.hash()),
            Err(err) => Err(encoding.problem().unwrap_or_else(|| err.to_string())),
        };
    *frame = shared.into_inner();
    result
}

/// Reads a value; its descriptors that do not become part of the value are closed.
///
/// # Errors
/// The bytes are not a `T` and nothing but a `T`, the types differ from the sender's, a descriptor is missing or
/// left over, or a limit is exceeded; the text says which.
pub(crate) fn decode<T: DeserializeOwned>(
    value: EncodedValue,
    limits: &Limits,
) -> Result<T, String> {
    let EncodedValue { hash, bytes, fds } = value;
    let decoding = decoding::Decoding::new(&bytes, fds, limits);
    let whole = Part {
        seed: PhantomData::<T>,
        decoding: &decoding,
    };
    match bincode::serde::seed_decode_from_slice(whole, &bytes, CONFIG) {
        Ok((value, used)) => decoding.accept(hash, bytes.len() - used).map(|()| value),
        Err(err) => Err(decoding.problem(&err.to_string())),
    }
}

/// Where bincode writes to. The serializer looks at the same frame between two writes.
struct Sink<'a>(&'a RefCell<Outgoing>);

impl Writer for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), bincode::error::EncodeError> {
        self.0.borrow_mut().buf.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
