//! The last things that happened to a pool, for whoever asks.
//!
//! Invariant: the monitor writes, anybody reads; one that is being overwritten while it is read is left out.

use super::status::PoolEvent;
use super::{Board, EVENTS};
use crate::limits::Limits;
use crate::protocol::codec;
use crate::protocol::message::{EncodedValue, write_reply};
use crate::sys::clock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

/// How many are kept.
const KEPT: usize = 64;
/// One has a number, a time, a length, and its bytes.
const NUMBER: usize = 0;
const TIME: usize = 1;
const SIZE: usize = 2;
const BYTES: usize = 3;
const WORDS: usize = 64;
const MAX_BYTES: usize = (WORDS - BYTES) * 8;
/// In front of them, the number of the last.
const LAST: usize = EVENTS;
pub(super) const LEN: usize = 1 + KEPT * WORDS;

fn encode(event: &PoolEvent) -> Option<Vec<u8>> {
    let (mut frame, _) = write_reply(0);
    codec::encode(event, &mut frame, &Limits::default()).ok()?;
    Some(frame.value_parts().collect::<Vec<_>>().concat())
}

/// Leaves out what matters least. `false`: there is nothing of that kind.
fn shorten(event: &mut PoolEvent) -> bool {
    let halve = |text: &mut String| *text = text.chars().take(text.chars().count() / 2).collect();
    match event {
        PoolEvent::Hung { trace, .. } if !trace.is_empty() => drop(trace.pop()),
        PoolEvent::Hung {
            name: Some(text), ..
        }
        | PoolEvent::NotStarted { reason: text, .. }
        | PoolEvent::NotForked { reason: text }
            if !text.is_empty() =>
        {
            halve(text);
        }
        _ => return false,
    }
    true
}

impl Board {
    /// Keeps what has happened. Texts for which there is no room are cut.
    pub(crate) fn note(&self, event: &PoolEvent) {
        let mut event = event.clone();
        let bytes = loop {
            match encode(&event) {
                Some(bytes) if bytes.len() <= MAX_BYTES => break bytes,
                Some(_) if shorten(&mut event) => {}
                _ => return,
            }
        };
        let number = self.load(LAST) + 1;
        let words = self.event(number);
        words[NUMBER].store(0, Ordering::Release);
        fence(Ordering::SeqCst);
        words[TIME].store(clock::coarse(), Ordering::Relaxed);
        words[SIZE].store(bytes.len() as u64, Ordering::Relaxed);
        for (word, chunk) in words[BYTES..].iter().zip(bytes.chunks(8)) {
            let mut eight = [0; 8];
            eight[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_le_bytes(eight), Ordering::Relaxed);
        }
        words[NUMBER].store(number, Ordering::Release);
        self.store(LAST, number);
    }

    fn event(&self, number: u64) -> &[AtomicU64] {
        let place = LAST + 1 + (number as usize % KEPT) * WORDS;
        &self.words()[place..place + WORDS]
    }

    /// What has happened, the oldest first, and when.
    pub(super) fn events(&self) -> Vec<(u64, PoolEvent)> {
        let last = self.load(LAST);
        let first = last.saturating_sub(KEPT as u64 - 1).max(1);
        (first..=last)
            .filter_map(|number| self.read(number))
            .collect()
    }

    fn read(&self, number: u64) -> Option<(u64, PoolEvent)> {
        let words = self.event(number);
        let is_whole = || words[NUMBER].load(Ordering::Acquire) == number;
        if !is_whole() {
            return None;
        }
        let time = words[TIME].load(Ordering::Relaxed);
        let size = usize::try_from(words[SIZE].load(Ordering::Relaxed)).ok()?;
        let eights = words[BYTES..]
            .iter()
            .map(|word| word.load(Ordering::Relaxed));
        let mut bytes: Vec<u8> = eights.flat_map(u64::to_le_bytes).collect();
        fence(Ordering::SeqCst);
        if !is_whole() || size > bytes.len() {
            return None;
        }
        bytes.truncate(size);
        let mut value = EncodedValue {
            bytes: bytes.into(),
            ..EncodedValue::default()
        };
        let event = codec::decode(&mut value, &Limits::default()).ok()?;
        Some((time, event))
    }
}
