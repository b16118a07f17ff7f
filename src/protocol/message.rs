//! The layouts of the payloads that are not users' values: the head of a call, and errors.
//!
//! Invariant: reading them allocates nothing that the payload itself does not hold.

use super::frame::{
    DEADLINE, Frame, HASH_LEN, HASHED, Header, Kind, LAST, Outgoing, ProtocolError, STREAM,
};
use crate::descriptor::Descriptor;
use bytes::{Buf, Bytes};
use std::sync::Arc;
use std::time::Duration;

/// A call that has arrived, as its head says. The rest stays in the inbox until it has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrived {
    pub(crate) id: u32,
    pub(crate) last: bool,
    /// The caller asks for a stream, and not for an answer.
    stream: bool,
    /// Where in the payload the name begins, and how long it is. The arguments are behind it.
    name_at: u8,
    name_len: u8,
    /// How many milliseconds the caller is going to wait, counted from when the call is taken up.
    timeout: Option<u32>,
    hash: Option<u64>,
}

/// A call to be answered.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    pub(crate) id: u32,
    /// How long the caller is going to wait, counted from when the call is taken up.
    pub(crate) timeout: Option<Duration>,
    /// The caller asks for a stream, and not for an answer.
    pub(crate) stream: bool,
    name: &'a [u8],
    args: Value<'a>,
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

/// The same where it has been received: for as long as the message that brought it is there.
#[derive(Debug, Default)]
pub(crate) struct Value<'a> {
    pub(crate) hash: Option<u64>,
    pub(crate) bytes: &'a [u8],
    /// What `bytes` is a part of, if that can be shared.
    pub(crate) whole: Option<&'a Bytes>,
    /// To be taken by whoever reads the value.
    pub(crate) fds: Option<&'a mut Vec<Descriptor>>,
}

impl<'a> Value<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Value<'a> {
        Value {
            bytes,
            ..Value::default()
        }
    }

    pub(crate) fn shared(whole: &'a Bytes, fds: &'a mut Vec<Descriptor>) -> Value<'a> {
        Value {
            hash: None,
            bytes: whole,
            whole: Some(whole),
            fds: Some(fds),
        }
    }

    pub(crate) fn take_fds(&mut self) -> Vec<Descriptor> {
        self.fds.take().map(std::mem::take).unwrap_or_default()
    }

    /// The value in the payload of a reply, or of an item, with these flags.
    ///
    /// # Errors
    /// It is too short.
    #[inline]
    pub(crate) fn behind_hash(mut self, flags: u16) -> Result<Value<'a>, ProtocolError> {
        const MALFORMED: ProtocolError = ProtocolError::Malformed("value");
        (self.hash, self.bytes) = split_hash(flags, self.bytes).ok_or(MALFORMED)?;
        Ok(self)
    }

    /// The same, to be kept: shared, or else copied.
    pub(crate) fn into_owned(mut self) -> EncodedValue {
        EncodedValue {
            fds: self.take_fds(),
            hash: self.hash,
            bytes: match self.whole {
                Some(whole) => whole.slice_ref(self.bytes),
                None => Bytes::copy_from_slice(self.bytes),
            },
        }
    }
}

impl<'a> From<&'a mut EncodedValue> for Value<'a> {
    fn from(value: &'a mut EncodedValue) -> Value<'a> {
        Value {
            hash: value.hash,
            ..Value::shared(&value.bytes, &mut value.fds)
        }
    }
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

impl Arrived {
    #[inline]
    pub(crate) fn read(header: Header, payload: &[u8]) -> Result<Arrived, ProtocolError> {
        const MALFORMED: ProtocolError = ProtocolError::Malformed("call");
        let (hash, mut rest) = split_hash(header.flags, payload).ok_or(MALFORMED)?;
        let timeout = match header.flags & DEADLINE {
            0 => None,
            _ => Some(rest.try_get_u32_le().map_err(|_| MALFORMED)?),
        };
        let name_len = rest.try_get_u8().map_err(|_| MALFORMED)?;
        let name = rest.get(..name_len.into()).ok_or(MALFORMED)?;
        if !name.is_ascii() && std::str::from_utf8(name).is_err() {
            return Err(MALFORMED);
        }
        Ok(Arrived {
            id: header.id,
            last: header.flags & LAST != 0,
            stream: header.flags & STREAM != 0,
            name_at: (payload.len() - rest.len()) as u8,
            name_len,
            timeout,
            hash,
        })
    }
}

/// Whether a payload with these flags is as long as it must be.
#[inline]
pub(crate) fn has_value(flags: u16, payload: &[u8]) -> bool {
    flags & HASHED == 0 || payload.len() >= HASH_LEN
}

impl<'a> Call<'a> {
    /// The call that has arrived with this payload.
    #[inline]
    pub(crate) fn new(arrived: &Arrived, payload: Value<'a>) -> Call<'a> {
        let (_, rest) = payload.bytes.split_at(arrived.name_at.into());
        let (name, bytes) = rest.split_at(arrived.name_len.into());
        Call {
            id: arrived.id,
            timeout: arrived
                .timeout
                .map(|millis| Duration::from_millis(millis.into())),
            stream: arrived.stream,
            name,
            args: Value {
                hash: arrived.hash,
                bytes,
                ..payload
            },
        }
    }

    /// A call of a handler that is known already, by somebody who has no number for it.
    pub(crate) fn of_value(value: &'a mut EncodedValue) -> Call<'a> {
        Call {
            id: 0,
            timeout: None,
            stream: false,
            name: &[],
            args: value.into(),
        }
    }

    pub(crate) fn name(&self) -> &str {
        std::str::from_utf8(self.name).unwrap_or_default()
    }

    /// The name, which has been seen to be a text.
    pub(crate) fn name_bytes(&self) -> &[u8] {
        self.name
    }

    /// How many bytes the arguments have, as long as they have not been taken.
    pub(crate) fn arguments_len(&self) -> usize {
        self.args.bytes.len()
    }

    /// The arguments, once.
    #[inline]
    pub(crate) fn take_value(&mut self) -> Value<'a> {
        std::mem::take(&mut self.args)
    }
}

impl EncodedValue {
    /// The payload of a reply, or of an item.
    pub(crate) fn read(frame: Frame) -> Result<EncodedValue, ProtocolError> {
        let mut frame = frame;
        let value = Value::shared(&frame.payload, &mut frame.fds);
        value.behind_hash(frame.header.flags).map(Value::into_owned)
    }
}

/// The hash at the beginning of a payload with these flags, and the rest. `None`: it is too short.
#[inline]
fn split_hash(flags: u16, payload: &[u8]) -> Option<(Option<u64>, &[u8])> {
    match flags & HASHED {
        0 => Some((None, payload)),
        _ => payload
            .split_first_chunk()
            .map(|(hash, rest)| (Some(u64::from_le_bytes(*hash)), rest)),
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

    pub(crate) fn read(mut content: Value<'_>) -> Result<ErrorBody, ProtocolError> {
        const MALFORMED: ProtocolError = ProtocolError::Malformed("error");
        let (mut payload, fds) = (content.bytes, content.take_fds());
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
            let (text, rest) = payload.split_at_checked(len).ok_or(MALFORMED)?;
            texts.push(String::from_utf8_lossy(text).into_owned());
            payload = rest;
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
