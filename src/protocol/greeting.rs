//! The layouts of what is said before the first call: hello, welcome, denial.
//!
//! Invariant: a hello is read without memory of its own, and without trust.

#[cfg(test)]
mod tests;

use super::frame::{Kind, Outgoing, ProtocolError};
use crate::password::Password;
use bytes::Buf;

/// The version of the native protocol.
pub(crate) const VERSION: u8 = 1;
/// The code of the one codec there is so far: serde through bincode.
pub(crate) const BINCODE: u8 = 0;
const MAGIC: &[u8; 4] = b"FKSV";
const HELLO_HEAD: usize = 8;
/// A hello, header and all, is never longer: with it ends what a stranger can make the server keep.
pub(crate) const HELLO_MAX: usize = 128;

/// In a hello: the client may send descriptors later, please allow it. In a welcome: it is allowed.
const FDS: u8 = 1;
/// In a hello: please welcome me at once, not with the first reply.
const WAIT: u8 = 2;
/// In a hello: my name for this connection stands before the password.
const TAGGED: u8 = 4;

/// What the client says first.
pub(crate) struct Hello<'a> {
    pub(crate) version: u8,
    pub(crate) codec: u8,
    pub(crate) fds: bool,
    pub(crate) wait: bool,
    /// The client's name for the connection, so that it can ask what became of it; 0: none.
    pub(crate) tag: u64,
    pub(crate) password: &'a [u8],
}

impl Hello<'_> {
    pub(crate) fn write(password: &Password, fds: bool, wait: bool, tag: u64) -> Outgoing {
        let mut frame = Outgoing::new(Kind::Hello, 0);
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(fds, FDS) | flag(wait, WAIT) | flag(tag != 0, TAGGED);
        frame.buf.extend_from_slice(MAGIC);
        frame.buf.extend_from_slice(&[VERSION, BINCODE, flags, 0]);
        if tag != 0 {
            frame.buf.extend_from_slice(&tag.to_le_bytes());
        }
        frame.buf.extend_from_slice(password.as_bytes());
        frame
    }

    pub(crate) fn read(payload: &[u8]) -> Result<Hello<'_>, ProtocolError> {
        let (head, password) = payload
            .split_at_checked(HELLO_HEAD)
            .ok_or(ProtocolError::Malformed("hello"))?;
        if &head[..4] != MAGIC {
            return Err(ProtocolError::Malformed("hello"));
        }
        let (version, codec, flags) = (head[4], head[5], head[6]);
        let (tag, password) = match flags & TAGGED {
            0 => (0, password),
            _ => {
                let (tag, password) = password
                    .split_first_chunk()
                    .ok_or(ProtocolError::Malformed("hello"))?;
                (u64::from_le_bytes(*tag), password)
            }
        };
        Ok(Hello {
            version,
            codec,
            fds: flags & FDS != 0,
            wait: flags & WAIT != 0,
            tag,
            password,
        })
    }
}

/// What the server says to a client that knows the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) fds: bool,
    /// The worker that serves the connection, by slot and generation; 0 and 0 if there are none.
    pub(crate) worker: (u32, u32),
}

impl Welcome {
    pub(crate) fn write(self) -> Outgoing {
        let mut frame = Outgoing::new(Kind::Welcome, 0);
        let flags = if self.fds { FDS } else { 0 };
        let (slot, generation) = self.worker;
        frame.buf.extend_from_slice(&[VERSION, BINCODE, flags, 0]);
        frame.buf.extend_from_slice(&slot.to_le_bytes());
        frame.buf.extend_from_slice(&generation.to_le_bytes());
        frame
    }

    /// Later versions may append; what this one does not know is passed over.
    pub(crate) fn read(payload: &[u8]) -> Result<Welcome, ProtocolError> {
        match payload {
            [VERSION, BINCODE, flags, _, rest @ ..] if rest.len() >= 8 => {
                let mut rest = rest;
                Ok(Welcome {
                    fds: flags & FDS != 0,
                    worker: (rest.get_u32_le(), rest.get_u32_le()),
                })
            }
            _ => Err(ProtocolError::Malformed("welcome")),
        }
    }
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Denied {
    Password = 1,
    Version = 2,
    Codec = 3,
    Stopping = 4,
    NoRoom = 5,
}

impl Denied {
    pub(crate) fn write(self) -> Outgoing {
        let mut frame = Outgoing::new(Kind::Denied, 0);
        frame.buf.push(self as u8);
        frame
    }

    pub(crate) fn read(payload: &[u8]) -> Result<Denied, ProtocolError> {
        Ok(match payload.first() {
            Some(1) => Denied::Password,
            Some(2) => Denied::Version,
            Some(3) => Denied::Codec,
            Some(4) => Denied::Stopping,
            Some(5) => Denied::NoRoom,
            _ => return Err(ProtocolError::Malformed("denial")),
        })
    }
}
