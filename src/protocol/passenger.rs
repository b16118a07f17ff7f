//! Passenger's wire: arrays of byte strings, and scalars, without type tags: both sides know which comes next.
//!
//! Invariant: what cannot be said in this format is refused, never written wrongly; sizes are judged by the header
//! alone, before a byte of the message is waited for.

pub(crate) mod session;

use bytes::{Buf, BytesMut};

/// Bytes in the header of an array: the length of its body, big-endian.
pub(crate) const ARRAY_HEAD: usize = 2;
/// Bytes in the header of a scalar: its length, big-endian.
pub(crate) const SCALAR_HEAD: usize = 4;
/// The longest body that the header of an array can announce.
pub(crate) const MAX_BODY: usize = u16::MAX as usize;
/// The array with which whoever wants a descriptor asks for it.
pub(crate) const PASS_IO: &str = "pass IO";
/// The array with which it says that the descriptor has arrived.
pub(crate) const GOT_IO: &str = "got IO";

/// Why a message cannot be written in this format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unsendable {
    /// An array without elements, which the other side would take for the end.
    NoElements,
    /// The element with this index has a zero byte, which would end it there.
    ZeroByte { index: usize },
    /// The body has this many bytes, which its header cannot say.
    TooLarge { size: usize, limit: usize },
}

/// A message is announced that is longer than it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong {
    pub(crate) size: usize,
    pub(crate) limit: usize,
}

/// Appends an array to `out`.
///
/// # Errors
/// It cannot be written; `out` is as it was.
pub(crate) fn write_array<E: AsRef<[u8]>>(
    elements: &[E],
    out: &mut Vec<u8>,
) -> Result<(), Unsendable> {
    if elements.is_empty() {
        return Err(Unsendable::NoElements);
    }
    let sizes = elements.iter().map(|element| element.as_ref().len() + 1);
    let size = sizes.fold(0, usize::saturating_add);
    let Ok(announced) = u16::try_from(size) else {
        let limit = MAX_BODY;
        return Err(Unsendable::TooLarge { size, limit });
    };
    let has_zero = |element: &E| element.as_ref().contains(&0);
    if let Some(index) = elements.iter().position(has_zero) {
        return Err(Unsendable::ZeroByte { index });
    }
    out.reserve(ARRAY_HEAD + size);
    out.extend_from_slice(&announced.to_be_bytes());
    for element in elements {
        out.extend_from_slice(element.as_ref());
        out.push(0);
    }
    Ok(())
}

/// The header of a scalar of `size` bytes.
///
/// # Errors
/// A header cannot say that many.
pub(crate) fn scalar_head(size: usize) -> Result<[u8; SCALAR_HEAD], Unsendable> {
    let limit = u32::MAX as usize;
    let announced = u32::try_from(size).map_err(|_| Unsendable::TooLarge { size, limit })?;
    Ok(announced.to_be_bytes())
}

/// What is at the beginning of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// A part of a message, which is this long at least, header and all.
    Partial(usize),
    /// A whole message, whose header and body are this long together.
    Whole(usize),
}

impl Front {
    fn of(have: usize, head: usize, body: Option<usize>) -> Front {
        match body {
            None => Front::Partial(head),
            Some(body) if have < head + body => Front::Partial(head + body),
            Some(body) => Front::Whole(head + body),
        }
    }
}

/// Looks for an array whose body has `max` bytes at most.
///
/// # Errors
/// The header announces more.
pub(crate) fn find_array(bytes: &[u8], max: usize) -> Result<Front, TooLong> {
    let head = bytes.first_chunk::<ARRAY_HEAD>();
    let body = head.map(|head| usize::from(u16::from_be_bytes(*head)));
    within(body, max)?;
    Ok(Front::of(bytes.len(), ARRAY_HEAD, body))
}

/// Looks for a scalar of `max` bytes at most.
///
/// # Errors
/// The header announces more.
pub(crate) fn find_scalar(bytes: &[u8], max: usize) -> Result<Front, TooLong> {
    let head = bytes.first_chunk::<SCALAR_HEAD>();
    let body = head.map(|head| u32::from_be_bytes(*head) as usize);
    within(body, max)?;
    Ok(Front::of(bytes.len(), SCALAR_HEAD, body))
}

fn within(size: Option<usize>, limit: usize) -> Result<(), TooLong> {
    match size {
        Some(size) if size > limit => Err(TooLong { size, limit }),
        _ => Ok(()),
    }
}

/// The elements in the body of an array. Bytes behind the last zero byte belong to none, and are dropped, as the
/// original's readers do.
pub(crate) fn elements(body: &[u8]) -> Vec<Vec<u8>> {
    let mut elements: Vec<_> = body.split(|&byte| byte == 0).map(Vec::from).collect();
    elements.pop();
    elements
}

/// Takes a whole array from the beginning of a buffer, of which [`find_array`] has found `len` bytes.
pub(crate) fn take_array(bytes: &mut BytesMut, len: usize) -> Vec<Vec<u8>> {
    elements(&bytes.split_to(len)[ARRAY_HEAD..])
}

/// Takes a whole scalar from the beginning of a buffer, of which [`find_scalar`] has found `len` bytes.
pub(crate) fn take_scalar(bytes: &mut BytesMut, len: usize) -> Vec<u8> {
    // A long one that is all there is need not be copied.
    let mut scalar = match len == bytes.len() {
        true => std::mem::take(bytes),
        false => bytes.split_to(len),
    };
    scalar.advance(SCALAR_HEAD);
    scalar.into()
}

#[cfg(test)]
mod tests;
