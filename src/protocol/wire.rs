//! Both directions of one connection, as buffers.
//!
//! Invariant: descriptors stay with the frame that announces them, in order, or the connection ends; received
//! bytes cost memory only as they arrive, whatever a header announces.

use super::frame::{Frame, HEADER_LEN, Header, Outgoing, ProtocolError};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What the first read of a connection makes room for: a password and a small call.
const FIRST_READ: usize = 256;
/// What a read makes room for when no long frame is under way.
const SMALL_READ: usize = 4096;
/// The step in which room for a long frame begins to grow; it doubles from there.
const LONG_READ: usize = 64 << 10;
/// Frames up to this size are gathered in one buffer, so that a batch of them leaves in one write.
const GATHERED: usize = 16 << 10;
/// How many pieces one write is made of at most: a message with a long byte string has three. Small messages are
/// gathered in one piece.
const MAX_SLICES: usize = 4;

/// The buffers of one connection.
#[derive(Debug)]
pub(crate) struct Wire {
    inbox: BytesMut,
    /// The place in the stream where `inbox` begins.
    position: u64,
    arrivals: VecDeque<Arrival>,
    eof: bool,
    outbox: VecDeque<Chunk>,
    /// How much of the first chunk is gone already.
    sent: usize,
    queued: usize,
    /// How many bytes have ever been queued.
    written: u64,
    max_frame: usize,
    max_fds: usize,
}

/// Descriptors that came in one receive, with the part of the stream that came with them: the frame they
/// belong to begins in it (the kernel never delivers bytes after a message that carries rights with it).
#[derive(Debug)]
struct Arrival {
    begin: u64,
    end: u64,
    fds: VecDeque<OwnedFd>,
}

#[derive(Debug)]
struct Chunk {
    bytes: ChunkBytes,
    fds: Vec<Arc<OwnedFd>>,
}

#[derive(Debug)]
enum ChunkBytes {
    Gathered(Vec<u8>),
    Shared(Bytes),
}

impl ChunkBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            ChunkBytes::Gathered(bytes) => bytes,
            ChunkBytes::Shared(bytes) => bytes,
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            ChunkBytes::Gathered(bytes) => bytes.truncate(len),
            ChunkBytes::Shared(bytes) => bytes.truncate(len),
        }
    }
}

/// What to write next: some bytes, and the descriptors that ride on the first of them.
pub(crate) struct Transmit<'a> {
    slices: [IoSlice<'a>; MAX_SLICES],
    count: usize,
    pub(crate) fds: &'a [Arc<OwnedFd>],
}

impl<'a> Transmit<'a> {
    pub(crate) fn slices(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.count]
    }
}

impl Wire {
    pub(crate) fn new(max_frame: usize, max_fds: usize) -> Wire {
        Wire {
            inbox: BytesMut::new(),
            position: 0,
            arrivals: VecDeque::new(),
            eof: false,
            outbox: VecDeque::new(),
            sent: 0,
            queued: 0,
            written: 0,
            max_frame,
            max_fds,
        }
    }

    pub(crate) fn set_limits(&mut self, max_frame: usize, max_fds: usize) {
        (self.max_frame, self.max_fds) = (max_frame, max_fds);
    }

    // --- in ------------------------------------------------------------------------------------------------

    /// The buffer to receive into, with some room behind its content. Report with [`Wire::received`].
    pub(crate) fn receive_buffer(&mut self) -> &mut BytesMut {
        let room = match self.announced() {
            // Before the password is known to be right.
            _ if self.position == 0 => FIRST_READ.saturating_sub(self.inbox.len()).max(64),
            Some(total) if total > SMALL_READ => total
                .saturating_sub(self.inbox.len())
                .clamp(SMALL_READ, self.inbox.len().max(LONG_READ)),
            _ => SMALL_READ,
        };
        if self.inbox.capacity() - self.inbox.len() < room {
            self.inbox.reserve(room);
        }
        &mut self.inbox
    }

    /// `len` bytes were appended to the buffer and `fds` came with them. No bytes: the peer has finished.
    pub(crate) fn received(&mut self, len: usize, fds: Vec<OwnedFd>) {
        self.eof |= len == 0;
        if !fds.is_empty() {
            let end = self.position + self.inbox.len() as u64;
            self.arrivals.push_back(Arrival {
                begin: end - len as u64,
                end,
                fds: fds.into(),
            });
        }
    }

    /// What has been received and not been taken as a frame yet.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.inbox
    }

    pub(crate) fn has_unread(&self) -> bool {
        !self.inbox.is_empty()
    }

    /// The peer has finished sending.
    pub(crate) fn is_at_end(&self) -> bool {
        self.eof
    }

    /// Takes the next whole frame.
    ///
    /// # Errors
    /// A header beyond the limits, or descriptors that belong to no frame.
    pub(crate) fn next_frame(&mut self) -> Result<Option<Frame>, ProtocolError> {
        let Some(header) = self.header()? else {
            return self.no_fds_inside(None).map(|()| None);
        };
        let total = HEADER_LEN + header.len as usize;
        if self.inbox.len() < total {
            self.no_fds_inside(Some(header.fds.into()))?;
            return Ok(None);
        }
        let fds = self.take_fds(header.fds.into())?;
        let mut payload = self.inbox.split_to(total).freeze();
        payload.advance(HEADER_LEN);
        self.position += total as u64;
        self.no_stray_fds()?;
        Ok(Some(Frame {
            header,
            payload,
            fds,
        }))
    }

    /// Gives the memory of the empty receive buffer back; for connections that will wait for long.
    pub(crate) fn rest(&mut self) {
        if self.inbox.is_empty() {
            self.inbox = BytesMut::new();
        }
    }

    fn header(&self) -> Result<Option<Header>, ProtocolError> {
        match self.inbox.first_chunk() {
            Some(bytes) => Header::parse(bytes, self.max_frame, self.max_fds).map(Some),
            None => Ok(None),
        }
    }

    fn announced(&self) -> Option<usize> {
        let header = self.header().ok()??;
        Some(HEADER_LEN + header.len as usize)
    }

    fn take_fds(&mut self, count: usize) -> Result<Vec<OwnedFd>, ProtocolError> {
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

    // --- out -----------------------------------------------------------------------------------------------

    /// Queues a frame.
    ///
    /// # Errors
    /// It exceeds the limits; nothing is queued then.
    pub(crate) fn send(&mut self, frame: Outgoing) -> Result<(), ProtocolError> {
        let frame = frame.seal(self.max_frame, self.max_fds)?;
        let len = HEADER_LEN + frame.payload_len();
        self.queued += len;
        self.written += len as u64;
        let Outgoing {
            buf, pieces, fds, ..
        } = frame;
        if pieces.is_empty() {
            self.gather(buf, fds);
            return Ok(());
        }
        let mut written = Bytes::from(buf);
        let (mut taken, mut fds) = (0, fds);
        for (place, piece) in pieces {
            let before = written.split_to(place - taken);
            taken = place;
            self.push(ChunkBytes::Shared(before), std::mem::take(&mut fds));
            self.push(ChunkBytes::Shared(piece), Vec::new());
        }
        self.push(ChunkBytes::Shared(written), Vec::new());
        Ok(())
    }

    /// How many bytes wait to be written.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// How many bytes have ever been queued; a frame that is queued now ends there.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// How many bytes have left.
    pub(crate) fn departed(&self) -> u64 {
        self.written - self.queued as u64
    }

    /// Takes back everything that was queued when `written` was what it says here. `false`: some of it has left.
    pub(crate) fn retract(&mut self, written: u64) -> bool {
        if written < self.departed() {
            return false;
        }
        let mut surplus = (self.written - written) as usize;
        (self.written, self.queued) = (written, self.queued - surplus);
        while let Some(last) = self.outbox.back_mut() {
            let len = last.bytes.as_slice().len();
            if surplus < len {
                last.bytes.truncate(len - surplus);
                break;
            }
            surplus -= len;
            self.outbox.pop_back();
            if surplus == 0 {
                break;
            }
        }
        true
    }

    /// What to write next, if anything. Report with [`Wire::transmitted`].
    pub(crate) fn transmit(&self) -> Option<Transmit<'_>> {
        let first = self.outbox.front()?;
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        slices[0] = IoSlice::new(&first.bytes.as_slice()[self.sent..]);
        let mut count = 1;
        // A chunk with descriptors must begin a write of its own: they ride on the first byte of a write.
        for chunk in self
            .outbox
            .iter()
            .skip(1)
            .take_while(|chunk| chunk.fds.is_empty())
            .take(MAX_SLICES - 1)
        {
            slices[count] = IoSlice::new(chunk.bytes.as_slice());
            count += 1;
        }
        Some(Transmit {
            slices,
            count,
            fds: &first.fds,
        })
    }

    /// `len` bytes are gone, and with the first of them the descriptors of the first chunk (the kernel sends
    /// them with whatever part of a write it takes).
    pub(crate) fn transmitted(&mut self, len: usize) {
        self.queued -= len;
        let mut left = len;
        while let Some(first) = self.outbox.front_mut() {
            if left > 0 {
                first.fds.clear();
            }
            let rest = first.bytes.as_slice().len() - self.sent;
            if left < rest {
                self.sent += left;
                return;
            }
            left -= rest;
            self.sent = 0;
            self.outbox.pop_front();
            if left == 0 {
                return;
            }
        }
    }

    fn gather(&mut self, buf: Vec<u8>, fds: Vec<Arc<OwnedFd>>) {
        if fds.is_empty() && buf.len() <= GATHERED {
            if let Some(Chunk {
                bytes: ChunkBytes::Gathered(last),
                ..
            }) = self.outbox.back_mut()
            {
                last.extend_from_slice(&buf);
                return;
            }
        }
        self.push(ChunkBytes::Gathered(buf), fds);
    }

    fn push(&mut self, bytes: ChunkBytes, fds: Vec<Arc<OwnedFd>>) {
        if !bytes.as_slice().is_empty() {
            self.outbox.push_back(Chunk { bytes, fds });
        }
    }
}
