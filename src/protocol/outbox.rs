//! What is to be sent to one peer: frames, gathered into as few writes as possible.
//!
//! Invariant: descriptors ride on the first byte of their frame; what is queued leaves in order and once.

use super::frame::{Outgoing, ProtocolError};
use crate::descriptor::Descriptor;
use crate::limits::Bounds;
use bytes::Bytes;
use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

/// Frames up to this size are gathered in one buffer, so that a batch of them leaves in one write.
const GATHERED: usize = 16 << 10;
/// How many pieces one write is made of at most: a message with a long byte string has three. Small messages are
/// gathered in one piece.
const MAX_SLICES: usize = 4;

/// The direction away from us.
#[derive(Debug)]
pub(crate) struct Outbox {
    chunks: VecDeque<Chunk>,
    /// How much of the first chunk is gone already.
    sent: usize,
    queued: usize,
    /// How many bytes have ever been queued.
    written: u64,
    bounds: Bounds,
    /// The memory of a chunk that has left, for the next frames that are gathered.
    spare: Vec<u8>,
}

#[derive(Debug)]
struct Chunk {
    bytes: ChunkBytes,
    fds: Vec<Arc<Descriptor>>,
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
    pub(crate) fds: &'a [Arc<Descriptor>],
}

impl<'a> Transmit<'a> {
    pub(crate) fn slices(&self) -> &[IoSlice<'a>] {
        &self.slices[..self.count]
    }
}

impl Outbox {
    pub(crate) fn new(bounds: Bounds) -> Outbox {
        Outbox {
            chunks: VecDeque::new(),
            sent: 0,
            queued: 0,
            written: 0,
            bounds,
            spare: Vec::new(),
        }
    }

    pub(crate) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
    }

    /// Queues a frame.
    ///
    /// # Errors
    /// It exceeds the limits; nothing is queued then.
    pub(crate) fn send(&mut self, mut frame: Outgoing) -> Result<(), ProtocolError> {
        let len = frame.fill_header(self.bounds.max_frame, self.bounds.max_fds)?;
        self.account(len)?;
        if frame.pieces.is_empty() {
            let fds = std::mem::take(&mut frame.fds);
            self.gather(&mut frame.buf, fds);
        } else {
            self.push_pieces(&mut frame);
        }
        frame.recycle();
        Ok(())
    }

    /// Queues bytes that are no frame.
    ///
    /// # Errors
    /// They exceed the limits; nothing is queued then.
    pub(crate) fn send_bytes(&mut self, mut bytes: Vec<u8>) -> Result<(), ProtocolError> {
        self.account(bytes.len())?;
        self.gather(&mut bytes, Vec::new());
        Ok(())
    }

    fn account(&mut self, len: usize) -> Result<(), ProtocolError> {
        let (size, limit) = (self.queued + len, self.bounds.max_queued);
        if size > limit {
            return Err(ProtocolError::TooMuchQueued { size, limit });
        }
        self.queued = size;
        self.written += len as u64;
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
        while let Some(last) = self.chunks.back_mut() {
            let len = last.bytes.as_slice().len();
            if surplus < len {
                last.bytes.truncate(len - surplus);
                break;
            }
            surplus -= len;
            self.chunks.pop_back();
            if surplus == 0 {
                break;
            }
        }
        true
    }

    /// What to write next, if anything. Report with [`Outbox::transmitted`].
    pub(crate) fn transmit(&self) -> Option<Transmit<'_>> {
        let first = self.chunks.front()?;
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        slices[0] = IoSlice::new(&first.bytes.as_slice()[self.sent..]);
        let mut count = 1;
        // A chunk with descriptors must begin a write of its own: they ride on the first byte of a write.
        for chunk in self
            .chunks
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
        while let Some(first) = self.chunks.front_mut() {
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
            self.keep_spare();
            if left == 0 {
                return;
            }
        }
    }

    /// Gives memory back that is not used; for connections that will wait for long.
    pub(crate) fn rest(&mut self) {
        self.spare = Vec::new();
    }

    /// The first chunk has left.
    fn keep_spare(&mut self) {
        if let Some(Chunk {
            bytes: ChunkBytes::Gathered(mut bytes),
            ..
        }) = self.chunks.pop_front()
        {
            if bytes.capacity() <= GATHERED && bytes.capacity() > self.spare.capacity() {
                bytes.clear();
                self.spare = bytes;
            }
        }
    }

    /// Adds a frame that is in one piece to the last chunk, if it may be, or as one of its own.
    fn gather(&mut self, buf: &mut Vec<u8>, fds: Vec<Arc<Descriptor>>) {
        if fds.is_empty() && buf.len() <= GATHERED {
            if let Some(Chunk {
                bytes: ChunkBytes::Gathered(last),
                ..
            }) = self.chunks.back_mut()
            {
                last.extend_from_slice(buf);
                return;
            }
        }
        let bytes = match buf.len() <= self.spare.capacity() {
            true => {
                let mut gathered = std::mem::take(&mut self.spare);
                gathered.extend_from_slice(buf);
                gathered
            }
            false => std::mem::take(buf),
        };
        self.push(ChunkBytes::Gathered(bytes), fds);
    }

    /// Adds a frame that has long byte strings in it, which are not copied.
    fn push_pieces(&mut self, frame: &mut Outgoing) {
        let mut written = Bytes::from(std::mem::take(&mut frame.buf));
        let (mut taken, mut fds) = (0, std::mem::take(&mut frame.fds));
        for (place, piece) in frame.pieces.drain(..) {
            let before = written.split_to(place - taken);
            taken = place;
            self.push(ChunkBytes::Shared(before), std::mem::take(&mut fds));
            self.push(ChunkBytes::Shared(piece), Vec::new());
        }
        self.push(ChunkBytes::Shared(written), Vec::new());
    }

    fn push(&mut self, bytes: ChunkBytes, fds: Vec<Arc<Descriptor>>) {
        if !bytes.as_slice().is_empty() {
            self.chunks.push_back(Chunk { bytes, fds });
        }
    }
}
