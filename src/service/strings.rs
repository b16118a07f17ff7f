//! Calling handlers whose arguments and results have types by lists of byte strings, which have none.
//!
//! Invariant: a handler is given only what a client of ours could have sent it, with the same strings; and what it
//! returns is taken for strings only if its types say so.

use super::Failure;
use crate::bytes::Bytes as ByteString;
use crate::limits::Limits;
use crate::protocol::codec;
use crate::protocol::frame::{Frame, HEADER_LEN, Header, Outgoing};
use crate::protocol::message::{EncodedValue, write_reply};
use bytes::Bytes;
use serde::ser::{Serialize, SerializeTuple, Serializer};

/// In tuples of up to this many parts, each may be text or bytes on its own; in longer ones, and in sequences, all
/// are the one or the other.
const MAX_MIXED: usize = 4;

/// How the strings stand in a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// A tuple of them, an array, or a struct; without any, a unit.
    Tuple,
    /// The only one, by itself.
    Alone,
    /// As many as there are.
    Seq,
}

/// A value that a list of strings can be.
struct Form<'a> {
    layout: Layout,
    parts: &'a [Vec<u8>],
    /// Which parts are `Bytes` and not `String`, the first in the lowest bit.
    bytes: u32,
}

struct Part<'a> {
    part: &'a [u8],
    is_bytes: bool,
}

impl Serialize for Part<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match std::str::from_utf8(self.part) {
            _ if self.is_bytes => serializer.serialize_bytes(self.part),
            Ok(text) => serializer.serialize_str(text),
            Err(err) => Err(serde::ser::Error::custom(err)),
        }
    }
}

impl Serialize for Form<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut parts = self.parts.iter().enumerate().map(|(index, part)| Part {
            part,
            is_bytes: self.is_bytes(index),
        });
        match self.layout {
            Layout::Alone => match parts.next() {
                Some(part) => part.serialize(serializer),
                None => Err(serde::ser::Error::custom("there is none")),
            },
            Layout::Seq => serializer.collect_seq(parts),
            Layout::Tuple => {
                let mut tuple = serializer.serialize_tuple(self.parts.len())?;
                parts.try_for_each(|part| tuple.serialize_element(&part))?;
                tuple.end()
            }
        }
    }
}

impl Form<'_> {
    fn is_bytes(&self, index: usize) -> bool {
        match self.parts.len() {
            0..=MAX_MIXED => self.bytes & 1 << index != 0,
            _ => self.bytes != 0,
        }
    }

    /// As it would travel. `None`: what is to be text is none, or a limit is exceeded.
    fn encode(&self, limits: &Limits) -> Option<EncodedValue> {
        let (mut frame, _) = write_reply(0);
        let start = frame.buf.len();
        let hash = codec::encode(self, &mut frame, limits).ok()?;
        Some(EncodedValue {
            hash: Some(hash),
            bytes: frame.buf.split_off(start).into(),
            fds: Vec::new(),
        })
    }
}

/// The forms of `parts` in a layout, text first.
fn forms(layout: Layout, parts: &[Vec<u8>]) -> impl Iterator<Item = Form<'_>> {
    let count: usize = match (layout, parts.len()) {
        (Layout::Alone, 1) => 2,
        (Layout::Alone, _) => 0,
        (_, 0) => 1,
        (Layout::Tuple, len @ 1..=MAX_MIXED) => 1 << len,
        // All text, or all bytes.
        (Layout::Tuple | Layout::Seq, _) => 2,
    };
    let last = count.saturating_sub(1);
    (0..count).map(move |number| Form {
        layout,
        parts,
        bytes: if number > 0 && number == last {
            u32::MAX
        } else {
            number as u32
        },
    })
}

/// All values that a list of strings can be to a handler, the likeliest first: a tuple of text, the only text by
/// itself, a sequence of text; then the same with `Bytes` in the place of text. What is no UTF-8 is no text.
pub(crate) fn candidates(args: &[Vec<u8>], limits: &Limits) -> impl Iterator<Item = EncodedValue> {
    let all = || {
        let layouts = [Layout::Tuple, Layout::Alone, Layout::Seq].into_iter();
        layouts.flat_map(|layout| forms(layout, args))
    };
    let text = all().filter(|form| form.bytes == 0);
    let other = all().filter(|form| form.bytes != 0);
    text.chain(other).filter_map(|form| form.encode(limits))
}

/// Calls a handler with the first candidate that is of its types. A mismatch is found before a handler runs, so that
/// to try the next one is safe.
///
/// # Errors
/// None is: what the likeliest one lacks. Or what the handler says.
pub(super) fn call_with<T>(
    args: &[Vec<u8>],
    limits: &Limits,
    mut handler: impl FnMut(EncodedValue) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut mismatch = None;
    for candidate in candidates(args, limits) {
        match handler(candidate) {
            Err(Failure::Mismatch(reason)) => {
                mismatch.get_or_insert(reason);
            }
            result => return result,
        }
    }
    let reason = mismatch.unwrap_or_else(|| "the arguments exceed a limit".into());
    Err(Failure::Mismatch(reason))
}

/// What a handler returned, as a list of strings. `None`: it returned a unit, and where the original's handlers say
/// nothing, nothing is said.
///
/// # Errors
/// It returned something that is not made of strings alone, or of more than 16 in a tuple.
pub(crate) fn strings_of(reply: Outgoing, limits: &Limits) -> Result<Option<Vec<Vec<u8>>>, String> {
    if !reply.fds.is_empty() {
        return Err("the result has descriptors, which an array of strings cannot carry".into());
    }
    let value = received(reply, limits)?;
    if forms(Layout::Tuple, &[]).any(|form| is_same(&form, &value, limits)) {
        return Ok(None);
    }
    for (layout, parts) in parts_of(&value, limits) {
        if forms(layout, &parts).any(|form| is_same(&form, &value, limits)) {
            return Ok(Some(parts));
        }
    }
    Err("the result is not made of strings alone".into())
}

/// The value in a reply, as whoever receives it has it.
fn received(reply: Outgoing, limits: &Limits) -> Result<EncodedValue, String> {
    let reply = reply
        .seal(limits.max_frame, 0)
        .map_err(|err| err.to_string())?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + reply.payload_len());
    let mut taken = 0;
    for (place, piece) in &reply.pieces {
        bytes.extend_from_slice(&reply.buf[taken..*place]);
        bytes.extend_from_slice(piece);
        taken = *place;
    }
    bytes.extend_from_slice(&reply.buf[taken..]);
    let malformed = || "the result has no header".to_string();
    let header = bytes.first_chunk().ok_or_else(malformed)?;
    let header = Header::parse(header, limits.max_frame, 0).map_err(|err| err.to_string())?;
    let payload = Bytes::from(bytes).slice(HEADER_LEN..);
    let frame = Frame {
        header,
        payload,
        fds: Vec::new(),
    };
    EncodedValue::read(frame).map_err(|err| err.to_string())
}

/// Whether the value is this form of its parts, and was sent as such.
fn is_same(form: &Form<'_>, value: &EncodedValue, limits: &Limits) -> bool {
    let encoded = form.encode(limits);
    encoded.is_some_and(|encoded| encoded.hash == value.hash && encoded.bytes == value.bytes)
}

/// What the parts of a value are in each layout, if it has that layout: text and bytes are written alike, and which of them
/// it is, only the hash tells.
fn parts_of(value: &EncodedValue, limits: &Limits) -> Vec<(Layout, Vec<Vec<u8>>)> {
    let bare = || EncodedValue {
        hash: None,
        bytes: value.bytes.clone(),
        fds: Vec::new(),
    };
    let list = |parts: Vec<ByteString>| parts.into_iter().map(Vec::from).collect();
    let mut found = Vec::new();
    if let Ok(part) = codec::decode::<ByteString>(&mut bare(), limits) {
        found.push((Layout::Alone, vec![part.into()]));
    }
    if let Ok(parts) = codec::decode::<Vec<ByteString>>(&mut bare(), limits) {
        found.push((Layout::Seq, list(parts)));
    }
    macro_rules! tuples {
        ($($len:literal)*) => {$(
            if let Ok(parts) = codec::decode::<[ByteString; $len]>(&mut bare(), limits) {
                found.push((Layout::Tuple, list(parts.into())));
            }
        )*};
    }
    // The longest that is looked for; each is a type of its own.
    tuples!(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16);
    found
}

#[cfg(test)]
mod tests;
