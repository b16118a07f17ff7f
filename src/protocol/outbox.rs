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
/// So much that has left stays in that buffer at most, or as much as is still in it.
const MAX_GONE: usize = 64 << 10;
/// How many pieces one write is made of at most: a message with a long byte string has three. Small messages are
/// gathered in one piece.
const MAX_SLICES: usize = 4;

/// The direction away from us.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// What leaves first.
    chunks: VecDeque<Chunk>,
    /// What leaves behind them: the one place that most frames pass through, whose memory is used again.
    tail: Vec<u8>,
    /// What rides on the first byte of `tail`.
    tail_fds: Vec<Arc<Descriptor>>,
    /// How much of the first chunk is gone already, or of `tail` if there are no chunks.
    sent: usize,
    queued: usize,
    /// How many bytes have ever been queued.
    written: u64,
    bounds: Bounds,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    fds: Vec<Arc<Descriptor>>,
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
            tail: Vec::new(),
            tail_fds: Vec::new(),
            sent: 0,
            queued: 0,
            written: 0,
            bounds,
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
        let len = frame.fill_header(self.bounds.max_frame(), self.bounds.max_fds())?;
        self.account(len)?;
        if frame.pieces.is_empty() {
            let draft = &mut *frame;
            self.gather(&mut draft.buf, &mut draft.fds);
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
        self.gather(&mut bytes, &mut Vec::new());
        Ok(())
    }

    fn account(&mut self, len: usize) -> Result<(), ProtocolError> {
        let (size, limit) = (self.queued + len, self.bounds.max_queued());
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
        let from_tail = surplus.min(self.tail.len());
        self.tail.truncate(self.tail.len() - from_tail);
        surplus -= from_tail;
        if self.tail.is_empty() {
            self.tail_fds.clear();
        }
        while let (Some(last), 1..) = (self.chunks.back_mut(), surplus) {
            let kept = last.bytes.len().saturating_sub(surplus);
            surplus -= last.bytes.len() - kept;
            last.bytes.truncate(kept);
            if kept == 0 {
                self.chunks.pop_back();
            }
        }
        if self.queued == 0 {
            // What is left of them has left.
            self.chunks.clear();
            self.tail.clear();
            self.sent = 0;
        }
        true
    }

    /// What to write next, if anything. Report with [`Outbox::transmitted`].
    #[inline]
    pub(crate) fn transmit(&self) -> Option<Transmit<'_>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let Some(first) = self.chunks.front() else {
            slices[0] = IoSlice::new(&self.tail[self.sent..]);
            return (self.queued > 0).then_some(Transmit {
                slices,
                count: 1,
                fds: &self.tail_fds,
            });
        };
        slices[0] = IoSlice::new(&first.bytes[self.sent..]);
        // What has descriptors must begin a write of its own: they ride on the first byte of a write.
        let tail = (&self.tail[..], &self.tail_fds);
        let behind = self.chunks.iter().skip(1);
        let behind = behind
            .map(|chunk| (&chunk.bytes[..], &chunk.fds))
            .chain([tail]);
        let behind = behind.take_while(|(_, fds)| fds.is_empty());
        let mut count = 1;
        for (slice, (bytes, _)) in slices[1..].iter_mut().zip(behind) {
            *slice = IoSlice::new(bytes);
            count += usize::from(!bytes.is_empty());
        }
        Some(Transmit {
            slices,
            count,
            fds: &first.fds,
        })
    }

    /// `len` bytes are gone, and with the first of them the descriptors that rode on it (the kernel sends
    /// them with whatever part of a write it takes).
    #[inline]
    pub(crate) fn transmitted(&mut self, len: usize) {
        self.queued -= len;
        let left = match self.chunks.is_empty() {
            true => len,
            false => self.chunks_transmitted(len),
        };
        if left > 0 {
            self.tail_fds.clear();
            self.sent += left;
            if self.sent == self.tail.len() {
                self.sent = 0;
                self.tail.clear();
                if self.tail.capacity() > GATHERED {
                    self.tail = Vec::new();
                }
            } else if self.sent > MAX_GONE && self.sent > self.tail.len() / 2 {
                // Somebody may queue as fast as it leaves, and never be through.
                self.tail.drain(..std::mem::take(&mut self.sent));
            }
        }
    }

    /// Takes what is gone off the chunks. Returns how much of it was behind them.
    fn chunks_transmitted(&mut self, mut left: usize) -> usize {
        while let (Some(first), 1..) = (self.chunks.front_mut(), left) {
            first.fds.clear();
            let rest = first.bytes.len() - self.sent;
            if left < rest {
                self.sent += left;
                return 0;
            }
            left -= rest;
            self.sent = 0;
            self.chunks.pop_front();
        }
        left
    }

    /// Nothing leaves any more: lets the descriptors go.
    pub(crate) fn let_go(&mut self) {
        self.chunks.iter_mut().for_each(|chunk| chunk.fds.clear());
        self.tail_fds.clear();
    }

    /// Gives memory back that is not used; for connections that will wait for long.
    pub(crate) fn rest(&mut self) {
        if self.queued == 0 {
            (self.chunks, self.tail) = (VecDeque::new(), Vec::new());
        }
    }

    /// Adds what is in one piece to the tail, or makes it the tail. What it leaves behind is empty.
    #[inline]
    fn gather(&mut self, bytes: &mut Vec<u8>, fds: &mut Vec<Arc<Descriptor>>) {
        if !self.tail.is_empty() {
            if fds.is_empty() && bytes.len() <= GATHERED {
                self.tail.extend_from_slice(bytes);
                bytes.clear();
                return;
            }
            self.close_tail();
        }
        std::mem::swap(&mut self.tail, bytes);
        std::mem::swap(&mut self.tail_fds, fds);
    }

    /// Makes what is in the tail a chunk, so that something else can follow it.
    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let bytes = Bytes::from(std::mem::take(&mut self.tail));
            let fds = std::mem::take(&mut self.tail_fds);
            self.chunks.push_back(Chunk { bytes, fds });
        }
    }

    /// Adds a frame that has long byte strings in it, which are not copied.
    fn push_pieces(&mut self, frame: &mut Outgoing) {
        self.close_tail();
        let mut written = Bytes::from(std::mem::take(&mut frame.buf));
        let (mut taken, mut fds) = (0, std::mem::take(&mut frame.fds));
        for (place, piece) in frame.pieces.drain(..) {
            let before = written.split_to(place - taken);
            taken = place;
            self.push(before, std::mem::take(&mut fds));
            self.push(piece, Vec::new());
        }
        self.push(written, Vec::new());
    }

    fn push(&mut self, bytes: Bytes, fds: Vec<Arc<Descriptor>>) {
        if !bytes.is_empty() {
            self.chunks.push_back(Chunk { bytes, fds });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::message::write_reply;

    fn outbox() -> Outbox {
        Outbox::new(Bounds::new(1 << 20, 0, 1 << 24))
    }

    fn frame(id: u32, len: usize) -> Outgoing {
        let (mut frame, slot) = write_reply(id);
        slot.give_up(&mut frame);
        frame.buf.resize(len, id as u8);
        frame
    }

    #[test]
    fn what_is_taken_back_behind_what_has_left_leaves_nothing() {
        let mut outbox = outbox();
        outbox.send(frame(1, 100)).unwrap();
        let behind_first = outbox.written();
        outbox.send(frame(2, 100)).unwrap();
        let behind_second = outbox.written();
        outbox.send(frame(3, 2 * GATHERED)).unwrap();
        outbox.transmitted(100);
        assert!(outbox.retract(behind_second));
        assert!(outbox.retract(behind_first));
        assert_eq!(outbox.queued(), 0);
        assert!(outbox.transmit().is_none());
        outbox.send(frame(4, 50)).unwrap();
        let next = outbox.transmit().unwrap();
        let next: Vec<u8> = next
            .slices()
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect();
        assert_eq!((next.len(), next[49]), (50, 4));
    }

    #[test]
    fn what_has_left_takes_no_room_though_something_always_waits() {
        let mut outbox = outbox();
        outbox.send(frame(0, 1000)).unwrap();
        for id in 1..10_000 {
            outbox.send(frame(id, 1000)).unwrap();
            let next = outbox.transmit().unwrap();
            assert_eq!(next.slices()[0][999], (id - 1) as u8);
            outbox.transmitted(1000);
        }
        assert_eq!(outbox.queued(), 1000);
        assert!(
            outbox.tail.len() <= MAX_GONE + 2000,
            "{}",
            outbox.tail.len()
        );
    }
}
