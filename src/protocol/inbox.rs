//! What one peer has sent: bytes as they arrive, and the frames and descriptors in them.
//!
//! Invariant: descriptors stay with the frame that announces them, in order, or the connection ends; received
//! bytes cost memory only as they arrive, whatever a header announces.

use super::frame::{Frame, HEADER_LEN, Header, LAST, ProtocolError, STREAM};
use crate::descriptor::Descriptor;
use crate::limits::Bounds;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;

/// What the first read of a connection makes room for: a password and a small call.
const FIRST_READ: usize = 256;
/// What a read makes room for when no long frame is under way.
const SMALL_READ: usize = 4096;
/// What a read makes room for at most when no frame is under way.
const MAX_READ: usize = 128 << 10;
/// The step in which room for a long frame begins to grow; it doubles from there.
const LONG_READ: usize = 64 << 10;

/// The direction towards us.
#[derive(Debug)]
pub(crate) struct Inbox {
    bytes: BytesMut,
    /// The place in the stream where `bytes` begins.
    position: u64,
    arrivals: VecDeque<Arrival>,
    /// How long the last frame was.
    last_total: usize,
    /// How long the message under way is at least, where it is no frame, and only its reader knows.
    expected: Option<usize>,
    eof: bool,
    bounds: Bounds,
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
            last_total: 0,
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
            _ if self.last_total <= MAX_READ => self.last_total.max(SMALL_READ),
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

    /// What has been received and not been taken as a frame yet.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn has_unread(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// Whether a whole frame has been received, or something that is none.
    pub(crate) fn has_frame(&self) -> bool {
        match self.header() {
            Ok(Some(header)) => self.bytes.len() >= HEADER_LEN + header.len as usize,
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

    /// Takes the next whole frame.
    ///
    /// # Errors
    /// A header beyond the limits, or descriptors that belong to no frame.
    // What it gives is large, and to copy a thing that has just been written in parts is slow: this and what
    // hands it on are inlined, up to the decoding.
    #[inline]
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        if self.bytes.is_empty() && self.arrivals.is_empty() {
            return Ok(None);
        }
        let Some(header) = self.header()? else {
            return self.no_fds_inside(None).map(|()| None);
        };
        let total = HEADER_LEN + header.len as usize;
        if self.bytes.len() < total {
            self.no_fds_inside(Some(header.fds.into()))?;
            return Ok(None);
        }
        let fds = self.take_fds(header.fds.into())?;
        let mut payload = self.bytes.split_to(total).freeze();
        payload.advance(HEADER_LEN);
        self.position += total as u64;
        self.last_total = total;
        self.no_stray_fds()?;
        Ok(Some(Frame {
            header,
            payload,
            fds,
        }))
    }

    /// The message under way is no frame, and `total` bytes long at least.
    pub(crate) fn expect(&mut self, total: usize) {
        self.expected = Some(total);
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
        match self.bytes.first_chunk() {
            Some(bytes) => {
                Header::parse(bytes, self.bounds.max_frame(), self.bounds.max_fds()).map(Some)
            }
            None => Ok(None),
        }
    }

    fn announced(&self) -> Option<usize> {
        if self.expected.is_some() {
            return self.expected;
        }
        let header = self.header().ok()??;
        Some(HEADER_LEN + header.len as usize)
    }

    #[inline]
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
}
