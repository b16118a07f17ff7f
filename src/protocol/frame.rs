//! One message on the wire: a twelve-byte header, a payload, and the descriptors that travel with it.
//!
//! Invariant: bytes from a peer are judged here first, sizes before any memory is set aside for them.

use crate::descriptor::Descriptor;
use crate::limits::MAX_FDS;
use bytes::Bytes;
use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

/// Bytes in a header: kind, number of descriptors, flags, call id, payload length.
pub(crate) const HEADER_LEN: usize = 12;

/// Bytes in the hash of a value's types.
pub(crate) const HASH_LEN: usize = 8;

/// What a frame is. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Welcome = 2,
    Denied = 3,
    Call = 4,
    Reply = 5,
    Error = 6,
    Opened = 7,
    Item = 8,
    End = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Result<Kind, ProtocolError> {
        Ok(match byte {
            1 => Kind::Hello,
            2 => Kind::Welcome,
            3 => Kind::Denied,
            4 => Kind::Call,
            5 => Kind::Reply,
            6 => Kind::Error,
            7 => Kind::Opened,
            8 => Kind::Item,
            9 => Kind::End,
            _ => return Err(ProtocolError::UnknownKind(byte)),
        })
    }
}

/// The payload begins with the type hash of its value.
pub(crate) const HASHED: u16 = 1;
/// A call carries a deadline.
pub(crate) const DEADLINE: u16 = 2;
/// The caller will send nothing after this call.
pub(crate) const LAST: u16 = 4;
/// The caller asks for a stream.
pub(crate) const STREAM: u16 = 8;
const KNOWN_FLAGS: u16 = HASHED | DEADLINE | LAST | STREAM;

/// The fixed part of a frame, little-endian throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) fds: u8,
    pub(crate) flags: u16,
    pub(crate) id: u32,
    pub(crate) len: u32,
}

impl Header {
    /// Reads a header and holds it against the limits, before any byte of the payload is waited for.
    pub(crate) fn parse(
        bytes: &[u8; HEADER_LEN],
        max_frame: usize,
        max_fds: usize,
    ) -> Result<Header, ProtocolError> {
        let [kind, fds, f0, f1, i0, i1, i2, i3, l0, l1, l2, l3] = *bytes;
        let header = Header {
            kind: Kind::from_byte(kind)?,
            fds,
            flags: u16::from_le_bytes([f0, f1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
            len: u32::from_le_bytes([l0, l1, l2, l3]),
        };
        if header.flags & !KNOWN_FLAGS != 0 {
            return Err(ProtocolError::UnknownFlags(header.flags));
        }
        if header.len as usize > max_frame {
            return Err(ProtocolError::FrameTooLarge {
                size: header.len as usize,
                limit: max_frame,
            });
        }
        if usize::from(fds) > max_fds {
            return Err(ProtocolError::TooManyFds {
                count: fds.into(),
                limit: max_fds,
            });
        }
        Ok(header)
    }

    /// How long the whole frame is.
    pub(crate) fn total(self) -> usize {
        HEADER_LEN + self.len as usize
    }

    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0] = self.kind as u8;
        bytes[1] = self.fds;
        bytes[2..4].copy_from_slice(&self.flags.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }
}

/// A whole frame, as received.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) header: Header,
    pub(crate) payload: Bytes,
    pub(crate) fds: Vec<Descriptor>,
}

/// A frame that is being written: the header's place is kept free until its length is known. It passes through
/// many hands, so that it is small itself; its memory serves the thread's next frame.
#[derive(Debug)]
pub(crate) struct Outgoing(Box<Draft>);

/// What an [`Outgoing`] frame consists of.
#[derive(Debug)]
pub(crate) struct Draft {
    kind: Kind,
    flags: u16,
    id: u32,
    /// Header, then everything that was written byte by byte.
    pub(crate) buf: Vec<u8>,
    /// Large byte strings that are sent from where they are: each belongs at that place of `buf`.
    pub(crate) pieces: Vec<(usize, Bytes)>,
    /// Shared with the values they come from, so that sending costs no duplicate.
    pub(crate) fds: Vec<Arc<Descriptor>>,
}

thread_local! {
    /// The memory of the last frame that this thread has sent.
    static SPARE: Cell<Option<Box<Draft>>> = const { Cell::new(None) };
}

/// What most frames fit in.
const SMALL: usize = 128;
/// No more than this is kept for the next frame.
const MAX_SPARE: usize = 4096;

impl Draft {
    /// Whether it says that a call has failed.
    pub(crate) fn is_error(&self) -> bool {
        self.kind == Kind::Error
    }
}

impl Deref for Outgoing {
    type Target = Draft;

    fn deref(&self) -> &Draft {
        &self.0
    }
}

impl DerefMut for Outgoing {
    fn deref_mut(&mut self) -> &mut Draft {
        &mut self.0
    }
}

impl Outgoing {
    pub(crate) fn new(kind: Kind, id: u32) -> Outgoing {
        let mut draft = SPARE.take().unwrap_or_else(|| {
            Box::new(Draft {
                kind,
                flags: 0,
                id,
                buf: Vec::new(),
                pieces: Vec::new(),
                fds: Vec::new(),
            })
        });
        (draft.kind, draft.flags, draft.id) = (kind, 0, id);
        // The last frame may have left with its memory.
        draft.buf.reserve(SMALL);
        draft.buf.extend_from_slice(&[0; HEADER_LEN]);
        Outgoing(draft)
    }

    /// Its content has been copied, or taken out.
    pub(crate) fn recycle(self) {
        let Outgoing(mut draft) = self;
        if draft.buf.capacity() <= MAX_SPARE {
            debug_assert!(draft.pieces.is_empty() && draft.fds.is_empty());
            draft.buf.clear();
            SPARE.set(Some(draft));
        }
    }

    pub(crate) fn set_flag(&mut self, flag: u16) {
        self.flags |= flag;
    }

    pub(crate) fn clear_flag(&mut self, flag: u16) {
        self.flags &= !flag;
    }

    pub(crate) fn payload_len(&self) -> usize {
        self.buf.len() - HEADER_LEN
            + self
                .pieces
                .iter()
                .map(|(_, piece)| piece.len())
                .sum::<usize>()
    }

    /// What was written behind the header and the hash, in order.
    pub(crate) fn value_parts(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = HEADER_LEN + HASH_LEN;
        let pieces = self.pieces.iter().flat_map(move |(place, piece)| {
            let before = &self.buf[std::mem::replace(&mut at, *place)..*place];
            [before, piece.as_ref()]
        });
        let last = self
            .pieces
            .last()
            .map_or(HEADER_LEN + HASH_LEN, |(place, _)| *place);
        pieces.chain([&self.buf[last..]])
    }

    /// The same frame with its header: see [`Outgoing::fill_header`].
    pub(crate) fn seal(
        mut self,
        max_frame: usize,
        max_fds: usize,
    ) -> Result<Outgoing, ProtocolError> {
        self.fill_header(max_frame, max_fds)?;
        Ok(self)
    }

    /// Fills the header in, and says how long the whole frame is. What is too large for the receiver is refused
    /// here, before a byte of it leaves.
    pub(crate) fn fill_header(
        &mut self,
        max_frame: usize,
        max_fds: usize,
    ) -> Result<usize, ProtocolError> {
        let size = self.payload_len();
        let limit = max_frame.min(u32::MAX as usize);
        if size > limit {
            return Err(ProtocolError::FrameTooLarge { size, limit });
        }
        let count = self.fds.len();
        let limit = max_fds.min(MAX_FDS);
        if count > limit {
            return Err(ProtocolError::TooManyFds { count, limit });
        }
        let header = Header {
            kind: self.kind,
            fds: count as u8,
            flags: self.flags,
            id: self.id,
            len: size as u32,
        };
        self.buf[..HEADER_LEN].copy_from_slice(&header.to_bytes());
        Ok(HEADER_LEN + size)
    }
}

/// What a peer did that the protocol does not allow. It ends the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProtocolError {
    /// A frame's first byte names no kind of frame.
    #[error("unknown kind of frame: {0}")]
    UnknownKind(u8),
    /// A frame has flags that this version does not know.
    #[error("unknown flags: {0:#06x}")]
    UnknownFlags(u16),
    /// A frame of this kind is not allowed here.
    #[error("unexpected frame: {0}")]
    Unexpected(&'static str),
    /// What came is no record of the listener's framing, or the framing itself is wrong.
    #[error("{0}")]
    Framing(String),
    /// A frame is larger than `Limits::max_frame`.
    #[error("a message of {size} bytes exceeds max_frame, {limit} bytes")]
    FrameTooLarge {
        /// What was announced, in bytes.
        size: usize,
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// A frame carries more descriptors than `Limits::max_fds`.
    #[error("a message with {count} descriptors exceeds max_fds, {limit}")]
    TooManyFds {
        /// What was announced.
        count: usize,
        /// What is allowed.
        limit: usize,
    },
    /// More bytes would wait to be sent than `Limits::max_queued`.
    #[error("{size} bytes that wait to be sent exceed max_queued, {limit} bytes")]
    TooMuchQueued {
        /// How many there would be.
        size: usize,
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// A frame announces descriptors that did not come, or descriptors came that no frame announces.
    #[error("descriptors do not match the frame that announces them")]
    StrayFds,
    /// The kernel could not deliver all descriptors (the receiver's descriptor table is full, most likely).
    #[error("descriptors were lost on the way (no room in the receiver's descriptor table?)")]
    LostFds,
    /// A frame's payload does not have the layout of its kind.
    #[error("malformed {0}")]
    Malformed(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_trip() {
        let header = Header {
            kind: Kind::Call,
            fds: 3,
            flags: HASHED | LAST,
            id: 0x0102_0304,
            len: 0x0a0b,
        };
        let bytes = header.to_bytes();
        assert_eq!(bytes, [4, 3, 5, 0, 4, 3, 2, 1, 0x0b, 0x0a, 0, 0]);
        assert_eq!(Header::parse(&bytes, 1 << 20, 253), Ok(header));
    }

    #[test]
    fn a_length_at_the_limit_passes_and_one_more_does_not() {
        let header = |len| {
            Header {
                kind: Kind::Reply,
                fds: 0,
                flags: 0,
                id: 1,
                len,
            }
            .to_bytes()
        };
        assert!(Header::parse(&header(1024), 1024, 253).is_ok());
        let refused = ProtocolError::FrameTooLarge {
            size: 1025,
            limit: 1024,
        };
        assert_eq!(Header::parse(&header(1025), 1024, 253), Err(refused));
        let huge = ProtocolError::FrameTooLarge {
            size: u32::MAX as usize,
            limit: 1024,
        };
        assert_eq!(Header::parse(&header(u32::MAX), 1024, 253), Err(huge));
    }

    #[test]
    fn descriptors_at_the_limit_pass_and_one_more_does_not() {
        let header = |fds| {
            Header {
                kind: Kind::Call,
                fds,
                flags: 0,
                id: 1,
                len: 0,
            }
            .to_bytes()
        };
        assert!(Header::parse(&header(253), 0, 253).is_ok());
        assert_eq!(
            Header::parse(&header(254), 0, 253),
            Err(ProtocolError::TooManyFds {
                count: 254,
                limit: 253
            })
        );
    }

    #[test]
    fn unknown_kinds_and_flags_are_refused() {
        assert_eq!(
            Header::parse(&[0; 12], 0, 0),
            Err(ProtocolError::UnknownKind(0))
        );
        assert_eq!(
            Header::parse(&[99; 12], 0, 0),
            Err(ProtocolError::UnknownKind(99))
        );
        let flagged = [4, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            Header::parse(&flagged, 0, 0),
            Err(ProtocolError::UnknownFlags(0x8000))
        );
    }
}
