//! What one peer has sent: bytes as they arrive, and the frames and descriptors in them.
//!
//! Invariant: descriptors stay with the frame that announces them, in order, or the connection ends; received
//! bytes cost memory only as they arrive, whatever a header announces. A frame that has been opened stays where it is
//! until it is closed, or the next one opened.

use super::frame::{Frame, HEADER_LEN, Header, LAST, ProtocolError, STREAM};
use super::message::Value;
use crate::descriptor::Descriptor;
use crate::limits::Bounds;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::num::NonZeroUsize;

/// What the first read of a connection makes room for: a password and a small call.
const FIRST_READ: usize = 256;
/// What a read makes room for when no long frame is under way.
const SMALL_READ: usize = 4096;
/// What a read makes room for at most when no frame is under way.
const MAX_READ: usize = 128 << 10;
/// Frames up to this size are read where they have been received. Longer ones are taken out, so that byte strings in
/// them can be kept without a copy.
const READ_IN_PLACE: usize = 4096;
/// The step in which room for a long frame begins to grow; it doubles from there.
const LONG_READ: usize = 64 << 10;

/// The direction towards us.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: BytesMut,
    /// The place in the stream where `bytes` begins.
    position: u64,
    arrivals: VecDeque<Arrival>,
    /// The frame that is being read.
    opened: Opened,
    /// How long the payload of the last frame was.
    last_len: u32,
    /// How long the message under way is at least, where it is no frame, and only its reader knows.
    expected: Option<NonZeroUsize>,
    eof: bool,
    bounds: Bounds,
}

/// A frame that is being read.
#[derive(Debug)]
enum Opened {
    Nothing,
    /// It is the first that `bytes` has.
    InPlace(Header),
    /// It has been taken out.
    Apart(Box<Frame>),
}

/// Descriptors that came in one receive, with the part of the stream that came with them: the frame they
/// belong to begins in it (the kernel never delivers bytes after a message that carries rights with it).
#[derive(Debug)]
struct Arrival {
    begin: u64,
    end: u64,
    fds: VecDeque<Descriptor>,
}

impl Inbox {
    pub(crate) fn new(bounds: Bounds) -> Inbox {
        Inbox {
            bytes: BytesMut::new(),
            position: 0,
            arrivals: VecDeque::new(),
            opened: Opened::Nothing,
            last_len: 0,
            expected: None,
            eof: false,
            bounds,
        }
    }

    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// The buffer to receive into, with some room behind its content. Report with [`Inbox::received`].
    pub(crate) fn receive_buffer(&mut self) -> &mut BytesMut {
        let room = match self.announced() {
            // Before the password is known to be right.
            _ if self.position == 0 => FIRST_READ.saturating_sub(self.bytes.len()).max(64),
            Some(total) if total > SMALL_READ => total
                .saturating_sub(self.bytes.len())
                .clamp(SMALL_READ, self.bytes.len().max(LONG_READ)),
            // The next one may be like the last: then it comes in one read. Room for a longer one grows as it comes.
            _ if self.last_len as usize <= MAX_READ => {
                (HEADER_LEN + self.last_len as usize).max(SMALL_READ)
            }
            _ => SMALL_READ,
        };
        if self.bytes.capacity() - self.bytes.len() < room {
            self.bytes.reserve(room);
        }
        &mut self.bytes
    }

    /// `len` bytes were appended to the buffer and `fds` came with them. No bytes: the peer has finished.
    pub(crate) fn received(&mut self, len: usize, fds: Vec<Descriptor>) {
        self.eof |= len == 0;
        if !fds.is_empty() {
            let end = self.position + self.bytes.len() as u64;
            self.arrivals.push_back(Arrival {
                begin: end - len as u64,
                end,
                fds: fds.into(),
            });
        }
    }

    /// What has been received and not been taken as a frame, or opened as one, yet.
    pub(crate) fn unread(&self) -> &[u8] {
        match &self.opened {
            Opened::InPlace(header) => &self.bytes[header.total()..],
            _ => &self.bytes,
        }
    }

    pub(crate) fn has_unread(&self) -> bool {
        !self.unread().is_empty()
    }

    /// Whether a whole frame has been received, or something that is none.
    pub(crate) fn has_frame(&self) -> bool {
        match self.header() {
            Ok(Some(header)) => self.unread().len() >= header.total(),
            Ok(None) => false,
            Err(_) => true,
        }
    }

    /// Whether a whole frame has been received after which the peer will send nothing, as it says.
    pub(crate) fn is_next_the_last(&self) -> bool {
        let is_last = |header: Header| header.flags & (LAST | STREAM) == LAST;
        self.has_frame() && self.header().ok().flatten().is_some_and(is_last)
    }

    /// The peer has finished sending.
    pub(crate) fn is_at_end(&self) -> bool {
        self.eof
    }

    /// Opens the next whole frame, to be read with [`Inbox::payload`] and [`Inbox::content`].
    ///
    /// # Errors
    /// As [`Inbox::next_frame`].
    // Most frames are read where they are: to share their memory with their content would cost more than to read it.
    #[inline]
    pub(crate) fn open(&mut self) -> Result<Option<Header>, ProtocolError> {
        self.close();
        let header = match self.header()? {
            None if self.arrivals.is_empty() => return Ok(None),
            Some(header) if self.is_plain(header) => {
                if self.bytes.len() < header.total() {
                    return Ok(None);
                }
                self.opened = Opened::InPlace(header);
                header
            }
            _ => match self.next_frame()? {
                None => return Ok(None),
                Some(frame) => {
                    let header = frame.header;
                    self.opened = Opened::Apart(Box::new(frame));
                    header
                }
            },
        };
        Ok(Some(header))
    }

    fn is_plain(&self, header: Header) -> bool {
        header.fds == 0 && header.total() <= READ_IN_PLACE && self.arrivals.is_empty()
    }

    /// What the open frame has behind its header.
    #[inline]
    pub(crate) fn payload(&self) -> &[u8] {
        match &self.opened {
            Opened::Nothing => &[],
            Opened::InPlace(header) => &self.bytes[HEADER_LEN..header.total()],
            Opened::Apart(frame) => &frame.payload,
        }
    }

    /// The same with its descriptors.
    #[inline]
    pub(crate) fn content(&mut self) -> Value<'_> {
        match &mut self.opened {
            Opened::Nothing => Value::default(),
            Opened::InPlace(header) => Value::new(&self.bytes[HEADER_LEN..header.total()]),
            Opened::Apart(frame) => Value::shared(&frame.payload, &mut frame.fds),
        }
    }

    /// The open frame has been read.
    #[inline]
    pub(crate) fn close(&mut self) {
        match self.opened {
            Opened::Nothing => return,
            Opened::InPlace(header) => {
                self.bytes.advance(header.total());
                self.position += header.total() as u64;
                self.last_len = header.len;
            }
            Opened::Apart(_) => {}
        }
        self.opened = Opened::Nothing;
    }

    /// Takes the next whole frame.
    ///
    /// # Errors
    /// A header beyond the limits, or descriptors that belong to no frame.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        self.close();
        let Some(header) = self.header()? else {
            return self.no_fds_inside(None).map(|()| None);
        };
        let total = header.total();
        if self.bytes.len() < total {
            self.no_fds_inside(Some(header.fds.into()))?;
            return Ok(None);
        }
        let fds = self.take_fds(header.fds.into())?;
        let mut payload = self.bytes.split_to(total).freeze();
        payload.advance(HEADER_LEN);
        self.position += total as u64;
        self.last_len = header.len;
        self.no_stray_fds()?;
        Ok(Some(Frame {
            header,
            payload,
            fds,
        }))
    }

    /// The message under way is no frame, and `total` bytes long at least.
    pub(crate) fn expect(&mut self, total: usize) {
        self.expected = NonZeroUsize::new(total);
    }

    /// Takes a message of `len` bytes that is no frame.
    ///
    /// # Panics
    /// They have not been received.
    pub(crate) fn take(&mut self, len: usize) -> Bytes {
        self.position += len as u64;
        self.expected = None;
        self.bytes.split_to(len).freeze()
    }

    /// Takes all that has been received and not been taken yet.
    pub(crate) fn take_unread(&mut self) -> BytesMut {
        self.position += self.bytes.len() as u64;
        std::mem::take(&mut self.bytes)
    }

    /// Gives the memory of the empty receive buffer back; for connections that will wait for long.
    pub(crate) fn rest(&mut self) {
        if self.bytes.is_empty() {
            self.bytes = BytesMut::new();
        }
    }

    fn header(&self) -> Result<Option<Header>, ProtocolError> {
        match self.unread().first_chunk() {
            Some(bytes) => {
                Header::parse(bytes, self.bounds.max_frame(), self.bounds.max_fds()).map(Some)
            }
            None => Ok(None),
        }
    }

    fn announced(&self) -> Option<usize> {
        if let Some(expected) = self.expected {
            return Some(expected.get());
        }
        let header = self.header().ok()??;
        Some(header.total())
    }

    fn take_fds(&mut self, count: usize) -> Result<Vec<Descriptor>, ProtocolError> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let arrival = self.arrivals.front_mut().ok_or(ProtocolError::StrayFds)?;
        let begins_here = (arrival.begin..arrival.end).contains(&self.position);
        if !begins_here || arrival.fds.len() != count {
            return Err(ProtocolError::StrayFds);
        }
        let fds = std::mem::take(&mut arrival.fds).into();
        self.arrivals.pop_front();
        Ok(fds)
    }

    /// All that is here belongs to one frame that is not complete: descriptors came with its first byte or not
    /// at all, and as many as it announces. Otherwise one frame could bring any number of them.
    fn no_fds_inside(&self, announced: Option<usize>) -> Result<(), ProtocolError> {
        self.no_stray_fds()?;
        let count = self.arrivals.front().map_or(0, |arrival| arrival.fds.len());
        let wrong = announced.is_some_and(|announced| count != announced);
        match self.arrivals.back() {
            Some(last) if wrong || last.begin > self.position => Err(ProtocolError::StrayFds),
            None if wrong => Err(ProtocolError::StrayFds),
            _ => Ok(()),
        }
    }

    /// Descriptors left over whose part of the stream has been consumed belong to nobody.
    fn no_stray_fds(&self) -> Result<(), ProtocolError> {
        match self.arrivals.front() {
            Some(arrival) if arrival.end <= self.position => Err(ProtocolError::StrayFds),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::tests::{feed, null};
    use std::os::fd::OwnedFd;

    #[test]
    fn descriptors_belong_to_the_frame_they_came_with() {
        let fd = || vec![OwnedFd::from(null())];
        let frame = |fds: u8| {
            let mut bytes = vec![4, fds, 0, 0, 1, 0, 0, 0, 6, 0, 0, 0];
            bytes.extend_from_slice(b"\x05count");
            bytes
        };
        let inbox = || Inbox::new(Bounds::new(100, 10, 0));
        let stray = Some(ProtocolError::StrayFds);

        let mut good = inbox();
        feed(&mut good, &[frame(0), frame(1)].concat(), fd());
        assert!(good.next_frame().unwrap().unwrap().fds.is_empty());
        assert_eq!(good.next_frame().unwrap().unwrap().fds.len(), 1);
        assert!(good.next_frame().unwrap().is_none());

        let mut late = inbox();
        feed(&mut late, &frame(1)[..5], Vec::new());
        feed(&mut late, &frame(1)[5..], fd());
        assert_eq!(
            late.next_frame().err(),
            stray,
            "they came after the frame's first byte"
        );

        let mut unannounced = inbox();
        feed(&mut unannounced, &frame(0), fd());
        assert_eq!(unannounced.next_frame().err(), stray);

        let mut too_few = inbox();
        feed(&mut too_few, &frame(2), fd());
        assert_eq!(too_few.next_frame().err(), stray);

        let mut missing = inbox();
        feed(&mut missing, &frame(1), Vec::new());
        assert_eq!(missing.next_frame().err(), stray);
    }

    #[test]
    fn an_open_frame_stays_until_the_next_is_opened() {
        let frame = |len: usize, fds: u8, fill: u8| {
            let mut bytes = vec![4, fds, 0, 0, 1, 0, 0, 0];
            bytes.extend_from_slice(&(len as u32).to_le_bytes());
            bytes.resize(HEADER_LEN + len, fill);
            bytes
        };
        let mut inbox = Inbox::new(Bounds::new(1 << 20, 10, 0));
        let long = 2 * READ_IN_PLACE;
        feed(
            &mut inbox,
            &[frame(3, 0, b'a'), frame(2, 0, b'b'), frame(long, 0, b'c')].concat(),
            Vec::new(),
        );
        assert_eq!(inbox.open().unwrap().map(|header| header.len), Some(3));
        let content = inbox.content();
        assert_eq!(content.bytes, b"aaa");
        assert!(content.whole.is_none(), "it is read where it is");
        assert!(inbox.has_frame(), "there is another behind it");
        assert!(inbox.open().unwrap().is_some());
        assert_eq!(inbox.payload(), b"bb");
        inbox.close();
        assert_eq!(inbox.payload(), b"");
        assert_eq!(inbox.unread().len(), HEADER_LEN + long);
        assert!(inbox.open().unwrap().is_some());
        let content = inbox.content();
        assert_eq!(content.bytes.len(), long);
        assert!(content.whole.is_some(), "a part of it can be kept");
        assert!(inbox.open().unwrap().is_none() && !inbox.has_unread());

        feed(&mut inbox, &frame(2, 1, b'd'), vec![null().into()]);
        assert!(inbox.open().unwrap().is_some());
        assert_eq!(inbox.content().take_fds().len(), 1);
        assert!(inbox.content().take_fds().is_empty(), "they are given once");
        feed(&mut inbox, &frame(2, 0, b'e'), vec![null().into()]);
        assert_eq!(inbox.open(), Err(ProtocolError::StrayFds));
    }
}
