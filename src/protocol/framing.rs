//! Where records begin and end in a stream of bytes that is not ours.
//!
//! Invariant: what a framing has found is never looked at again, and what it has not found costs no more memory than
//! `max_frame`.

use std::ops::Range;

/// How records are cut out of what is received, and put into what is sent, on a listener with
/// [events](crate::Listener::handle_events). Each connection has one of its own.
pub trait Framing: Send + 'static {
    /// Looks for the next record at the front of `received`, which is not empty. Called again when more has come, or
    /// after that record has been taken. A record longer than [`Limits::max_frame`](crate::Limits::max_frame) ends the
    /// session.
    ///
    /// # Errors
    /// What has been received can be no record.
    fn find(&mut self, received: &[u8]) -> Result<Found, FramingError>;

    /// Appends a record to `out`, as it travels.
    ///
    /// # Errors
    /// The record cannot be sent; `out` is dropped then.
    fn write(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError>;
}

/// What a [`Framing`] has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The record is not complete.
    Partial,
    /// A record.
    Record {
        /// Where its content is.
        content: Range<usize>,
        /// How much belongs to it, from the front; at least 1.
        len: usize,
    },
    /// So many bytes that are to be passed over; at least 1.
    Skip(usize),
}

/// Why there is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FramingError {
    /// It is longer than [`Limits::max_frame`](crate::Limits::max_frame), or than its framing allows.
    #[error("the record is longer than {limit} bytes")]
    TooLong {
        /// How long it may be.
        limit: usize,
    },
    /// It cannot be a record.
    #[error("{reason}")]
    Malformed {
        /// Why.
        reason: String,
        /// How many bytes to pass over if the handler [goes on](crate::EventHandler::malformed) all the same. 0: where
        /// the next record begins cannot be told, and the session ends.
        skip: usize,
    },
    /// The other side has finished in the middle of a record.
    #[error("the other side finished within a record")]
    CutShort,
}

impl FramingError {
    /// How much to pass over to go on, if that is possible.
    pub(crate) fn skip(&self) -> Option<usize> {
        match self {
            FramingError::Malformed { skip, .. } => Some(*skip).filter(|skip| *skip > 0),
            _ => None,
        }
    }
}

/// Lines: what ends with a newline, with or without a carriage return before it. What is written gets a newline.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// How much has been seen to have no newline.
    seen: usize,
}

impl Framing for Lines {
    fn find(&mut self, received: &[u8]) -> Result<Found, FramingError> {
        let from = self.seen.min(received.len());
        let Some(place) = received[from..].iter().position(|byte| *byte == b'\n') else {
            self.seen = received.len();
            return Ok(Found::Partial);
        };
        self.seen = 0;
        let end = from + place;
        let line = &received[..end];
        let content = 0..line.strip_suffix(b"\r").unwrap_or(line).len();
        Ok(Found::Record {
            content,
            len: end + 1,
        })
    }

    fn write(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        if record.contains(&b'\n') {
            let reason = "a line has no newline in it".into();
            return Err(FramingError::Malformed { reason, skip: 0 });
        }
        out.extend_from_slice(record);
        out.push(b'\n');
        Ok(())
    }
}

/// Records behind their length, which is four bytes, the highest first.
#[derive(Clone, Debug)]
pub struct LengthPrefixed {
    max: usize,
}

impl LengthPrefixed {
    /// Records of at most `max` bytes.
    pub fn new(max: usize) -> LengthPrefixed {
        LengthPrefixed { max }
    }
}

impl Framing for LengthPrefixed {
    fn find(&mut self, received: &[u8]) -> Result<Found, FramingError> {
        const HEAD: usize = 4;
        let Some(head) = received.first_chunk::<HEAD>() else {
            return Ok(Found::Partial);
        };
        let size = u32::from_be_bytes(*head) as usize;
        if size > self.max {
            return Err(FramingError::TooLong { limit: self.max });
        }
        Ok(match received.len() >= HEAD + size {
            true => Found::Record {
                content: HEAD..HEAD + size,
                len: HEAD + size,
            },
            false => Found::Partial,
        })
    }

    fn write(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        let limit = self.max.min(u32::MAX as usize);
        match u32::try_from(record.len()) {
            Ok(size) if record.len() <= limit => out.extend_from_slice(&size.to_be_bytes()),
            _ => return Err(FramingError::TooLong { limit }),
        }
        out.extend_from_slice(record);
        Ok(())
    }
}

/// No records: bytes as they come, and as they are.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unframed;

impl Framing for Unframed {
    fn find(&mut self, received: &[u8]) -> Result<Found, FramingError> {
        let len = received.len();
        Ok(Found::Record {
            content: 0..len,
            len,
        })
    }

    fn write(&mut self, record: &[u8], out: &mut Vec<u8>) -> Result<(), FramingError> {
        out.extend_from_slice(record);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All records of `bytes`, which come in pieces of `step`.
    fn records(framing: &mut dyn Framing, bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
        let (mut records, mut received) = (Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            received.extend_from_slice(piece);
            while !received.is_empty() {
                match framing.find(&received).unwrap() {
                    Found::Partial => break,
                    Found::Skip(len) => drop(received.drain(..len)),
                    Found::Record { content, len } => {
                        records.push(received[content].to_vec());
                        received.drain(..len);
                    }
                }
            }
        }
        assert!(received.is_empty(), "nothing is left: {received:?}");
        records
    }

    #[test]
    fn records_are_the_same_however_they_come() {
        let texts: [&[u8]; 4] = [b"one", b"", b"\0\xff", b"three"];
        let framings: [fn() -> Box<dyn Framing>; 2] = [
            || Box::new(Lines::default()),
            || Box::new(LengthPrefixed::new(5)),
        ];
        for framing in framings {
            let mut bytes = Vec::new();
            for text in texts {
                framing().write(text, &mut bytes).unwrap();
            }
            for step in 1..=bytes.len() {
                assert_eq!(records(&mut *framing(), &bytes, step), texts);
            }
        }
        assert_eq!(
            records(&mut Lines::default(), b"a\r\nb\rc\n", 3),
            [&b"a"[..], b"b\rc"]
        );
        assert_eq!(records(&mut Unframed, b"abc", 2), [&b"ab"[..], b"c"]);
    }

    #[test]
    fn a_record_may_be_as_long_as_the_limit_and_not_one_byte_longer() {
        let mut framing = LengthPrefixed::new(3);
        let too_long = FramingError::TooLong { limit: 3 };
        let mut out = Vec::new();
        framing.write(b"abc", &mut out).unwrap();
        assert_eq!(records(&mut framing, &out, 7), [b"abc"]);
        assert_eq!(framing.write(b"abcd", &mut out), Err(too_long.clone()));
        assert_eq!(
            framing.find(&[0, 0, 0, 4]),
            Err(too_long),
            "by its head alone"
        );
        assert!(Lines::default().write(b"a\nb", &mut out).is_err());
    }
}
