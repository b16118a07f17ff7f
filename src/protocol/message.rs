//! The layouts of the payloads that are not users' values: the head of a call, and errors.
//!
//! Invariant: reading them allocates nothing that the payload itself does not hold.

use super::frame::{DEADLINE, Frame, HASHED, Kind, LAST, Outgoing, ProtocolError, STREAM};
use crate::descriptor::Descriptor;
use bytes::{Buf, Bytes};
use std::sync::Arc;
use std::time::Duration;

/// A call as the server receives it.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: u32,
    /// How long the caller is going to wait, counted from its sending.
    pub(crate) timeout: Option<Duration>,
    pub(crate) last: bool,
    /// The caller asks for a stream, and not for an answer.
    pub(crate) stream: bool,
    /// The name and, behind it, the arguments.
    content: EncodedValue,
    name_len: usize,
}

impl Call {
    /// A call of a handler that is known already, by somebody who has no number for it.
    pub(crate) fn of_value(value: EncodedValue) -> Call {
        Call {
            id: 0,
            timeout: None,
            last: false,
            stream: false,
            content: value,
            name_len: 0,
        }
    }
}

/// What a caller asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Call,
    /// A call after which the caller sends nothing.
    LastCall,
    Stream,
}

/// A value as it travels: bytes, descriptors, and the hash of its types if the sender gave it.
#[derive(Debug, Default)]
pub(crate) struct EncodedValue {
    pub(crate) hash: Option<u64>,
    pub(crate) bytes: Bytes,
    pub(crate) fds: Vec<Descriptor>,
}

/// Begins a call; its arguments are to be appended, and the hash put where [`HashSlot`] says.
pub(crate) fn write_call(
    id: u32,
    name: &str,
    timeout: Option<Duration>,
    form: Form,
) -> (Outgoing, HashSlot) {
    let mut frame = Outgoing::new(Kind::Call, id);
    let slot = HashSlot::reserve(&mut frame);
    if let Some(timeout) = timeout {
        frame.set_flag(DEADLINE);
        // Rounded up: zero would mean that nobody waits any more.
        let millis = timeout.as_micros().div_ceil(1000).min(u128::from(u32::MAX)) as u32;
        frame.buf.extend_from_slice(&millis.to_le_bytes());
    }
    match form {
        Form::Call => {}
        Form::LastCall => frame.set_flag(LAST),
        Form::Stream => frame.set_flag(STREAM),
    }
    let name = &name.as_bytes()[..name.len().min(u8::MAX.into())];
    frame.buf.push(name.len() as u8);
    frame.buf.extend_from_slice(name);
    (frame, slot)
}

/// Begins a reply to the call of that id.
pub(crate) fn write_reply(id: u32) -> (Outgoing, HashSlot) {
    let mut frame = Outgoing::new(Kind::Reply, id);
    let slot = HashSlot::reserve(&mut frame);
    (frame, slot)
}

/// Begins an item of the stream of that id.
pub(crate) fn write_item(id: u32) -> (Outgoing, HashSlot) {
    let mut frame = Outgoing::new(Kind::Item, id);
    let slot = HashSlot::reserve(&mut frame);
    (frame, slot)
}

/// The place in a frame where the hash of its value goes, once the value has been written.
#[must_use]
pub(crate) struct HashSlot(usize);

impl HashSlot {
    fn reserve(frame: &mut Outgoing) -> HashSlot {
        let place = frame.buf.len();
        frame.set_flag(HASHED);
        frame.buf.extend_from_slice(&[0; 8]);
        HashSlot(place)
    }

    /// The value has no hash after all. Its place must be the last thing in the frame.
    pub(crate) fn give_up(self, frame: &mut Outgoing) {
        frame.buf.truncate(self.0);
        frame.clear_flag(HASHED);
    }

    pub(crate) fn fill(self, frame: &mut Outgoing, hash: u64) {
        frame.buf[self.0..self.0 + 8].copy_from_slice(&hash.to_le_bytes());
    }
}

impl Call {
    #[inline]
    pub(crate) fn read(frame: Frame) -> Result<Call, ProtocolError> {
        const MALFORMED: ProtocolError = ProtocolError::Malformed("call");
        let header = frame.header;
        let mut content = EncodedValue::read(frame).map_err(|_| MALFORMED)?;
        let payload = &mut content.bytes;
        let timeout = match header.flags & DEADLINE {
            0 => None,
            _ => Some(Duration::from_millis(
                payload.try_get_u32_le().map_err(|_| MALFORMED)?.into(),
            )),
        };
        let name_len = payload.try_get_u8().map_err(|_| MALFORMED)?.into();
        let name = payload.get(..name_len).ok_or(MALFORMED)?;
        if !name.is_ascii() && std::str::from_utf8(name).is_err() {
            return Err(MALFORMED);
        }
        Ok(Call {
            id: header.id,
            timeout,
            last: header.flags & LAST != 0,
            stream: header.flags & STREAM != 0,
            content,
            name_len,
        })
    }

    pub(crate) fn name(&self) -> &str {
        std::str::from_utf8(self.name_bytes()).unwrap_or_default()
    }

    /// The name, which has been seen to be a text.
    pub(crate) fn name_bytes(&self) -> &[u8] {
        &self.content.bytes[..self.name_len]
    }

    /// How many bytes the arguments have, as long as they have not been taken.
    pub(crate) fn arguments_len(&self) -> usize {
        self.content.bytes.len() - self.name_len
    }

    /// The arguments, once; the name goes with them.
    #[inline]
    pub(crate) fn take_value(&mut self) -> EncodedValue {
        let mut value = std::mem::take(&mut self.content);
        value.bytes.advance(std::mem::take(&mut self.name_len));
        value
    }
}

impl EncodedValue {
    /// The payload of a reply, or of an item.
    #[inline]
    pub(crate) fn read(frame: Frame) -> Result<EncodedValue, ProtocolError> {
        let Frame {
            header,
            mut payload,
            fds,
        } = frame;
        let hash =
            read_hash(header.flags, &mut payload).ok_or(ProtocolError::Malformed("value"))?;
        Ok(EncodedValue {
            hash,
            bytes: payload,
            fds,
        })
    }
}

#[inline]
fn read_hash(flags: u16, payload: &mut Bytes) -> Option<Option<u64>> {
    match flags & HASHED {
        0 => Some(None),
        _ => payload.try_get_u64_le().ok().map(Some),
    }
}

/// What kind of answer an error is. The numbers are the wire's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Class {
    /// The handler said so.
    Fault = 0,
    /// No handler has that name. Texts: the nearest known name, if there is one.
    UnknownName = 1,
    /// The arguments are not of the handler's types. Texts: what is wrong.
    TypeMismatch = 2,
    /// The handler panicked. Texts: message, place.
    Panicked = 3,
    /// The server stops; the call has not been begun.
    Stopping = 4,
    /// The caller's time was over before the call was begun, or the handler's own, the code in milliseconds, before it
    /// had an answer.
    TooLate = 5,
    /// The handler ran, but its answer cannot be sent. Texts: why.
    BadReply = 6,
    /// The client broke a rule of the protocol; the server hangs up. Texts: which.
    Protocol = 7,
    /// The name is a stream's and was called, or is not and was to be opened.
    WrongForm = 8,
    /// A limit of the server's has been reached. Texts: its name.
    Busy = 9,
    /// This connection takes no further calls, others do; the call has not been begun.
    Closing = 10,
    /// The handler's restrictions forbid the call, which has not been begun. Texts: why.
    Refused = 11,
}

/// Any answer that is not a value.
#[derive(Debug)]
pub(crate) struct ErrorBody {
    pub(crate) class: Class,
    pub(crate) code: i32,
    pub(crate) texts: Vec<String>,
    pub(crate) fds: Vec<Arc<Descriptor>>,
}

/// Texts are cut to this length, and their number is bounded, so that an error is never too large to be sent.
const MAX_TEXT: usize = 16 << 10;
const MAX_TEXTS: usize = 32;

impl ErrorBody {
    pub(crate) fn new(class: Class, texts: Vec<String>) -> ErrorBody {
        ErrorBody {
            class,
            code: 0,
            texts,
            fds: Vec::new(),
        }
    }

    /// `limit` is reached.
    pub(crate) fn busy(limit: &str) -> ErrorBody {
        ErrorBody::new(Class::Busy, vec![limit.into()])
    }

    /// Somebody's time was over: the handler's, of that length, or the caller's.
    pub(crate) fn too_late(handlers: Option<Duration>) -> ErrorBody {
        let millis = |after: Duration| after.as_millis().clamp(1, i32::MAX as u128) as i32;
        ErrorBody {
            code: handlers.map_or(0, millis),
            ..ErrorBody::new(Class::TooLate, Vec::new())
        }
    }

    /// The name `is_stream`, and was used as if it were not, or the other way round.
    pub(crate) fn wrong_form(is_stream: bool) -> ErrorBody {
        ErrorBody {
            code: is_stream.into(),
            ..ErrorBody::new(Class::WrongForm, Vec::new())
        }
    }

    pub(crate) fn write(self, id: u32) -> Outgoing {
        let mut frame = Outgoing::new(Kind::Error, id);
        let texts = &self.texts[..self.texts.len().min(MAX_TEXTS)];
        frame.buf.push(self.class as u8);
        frame.buf.extend_from_slice(&self.code.to_le_bytes());
        frame.buf.push(texts.len() as u8);
        for text in texts {
            let text = cut(text).as_bytes();
            frame
                .buf
                .extend_from_slice(&(text.len() as u32).to_le_bytes());
            frame.buf.extend_from_slice(text);
        }
        frame.fds = self.fds;
        frame
    }

    pub(crate) fn read(frame: Frame) -> Result<ErrorBody, ProtocolError> {
        const MALFORMED: ProtocolError = ProtocolError::Malformed("error");
        let Frame {
            mut payload, fds, ..
        } = frame;
        let class = match payload.try_get_u8().map_err(|_| MALFORMED)? {
            0 => Class::Fault,
            1 => Class::UnknownName,
            2 => Class::TypeMismatch,
            3 => Class::Panicked,
            4 => Class::Stopping,
            5 => Class::TooLate,
            6 => Class::BadReply,
            7 => Class::Protocol,
            8 => Class::WrongForm,
            9 => Class::Busy,
            10 => Class::Closing,
            11 => Class::Refused,
            _ => return Err(MALFORMED),
        };
        let code = payload.try_get_i32_le().map_err(|_| MALFORMED)?;
        let count = payload.try_get_u8().map_err(|_| MALFORMED)?;
        let mut texts = Vec::new();
        for _ in 0..count {
            let len = payload.try_get_u32_le().map_err(|_| MALFORMED)? as usize;
            if payload.len() < len {
                return Err(MALFORMED);
            }
            texts.push(String::from_utf8_lossy(&payload.split_to(len)).into_owned());
        }
        if !payload.is_empty() {
            return Err(MALFORMED);
        }
        Ok(ErrorBody {
            class,
            code,
            texts,
            fds: fds.into_iter().map(Arc::new).collect(),
        })
    }
}

/// The longest part of `text` from its beginning that is within [`MAX_TEXT`].
fn cut(text: &str) -> &str {
    let end = (0..=text.len().min(MAX_TEXT))
        .rev()
        .find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}
