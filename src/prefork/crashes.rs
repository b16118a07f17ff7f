//! How soon another worker is started after some have died young.
//!
//! Invariant: one that lives for long enough ends all pauses; no pause is longer than half a minute.

use std::time::{Duration, Instant};

/// So many may die young in a row before there are pauses.
const FREE: u32 = 3;
/// So many mean that something is wrong with all of them.
const LOOP: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(30);
const GROWTH: f64 = 1.5;
/// So much more or less, so that several servers do not go on at the same time.
const JITTER: f64 = 0.2;

/// Deaths in a row.
#[derive(Debug)]
pub(super) struct Crashes {
    count: u32,
    /// When the first of them was.
    since: Option<Instant>,
    not_before: Option<Instant>,
    /// For the pauses' jitter.
    random: u64,
}

impl Crashes {
    pub(super) fn new(seed: u64) -> Crashes {
        Crashes {
            count: 0,
            since: None,
            not_before: None,
            random: seed,
        }
    }

    /// A worker has died young. `true`: so many have by now that it is a loop.
    pub(super) fn add(&mut self, now: Instant) -> bool {
        self.count = self.count.saturating_add(1);
        self.since.get_or_insert(now);
        self.not_before = now.checked_add(self.pause());
        self.count == LOOP
    }

    fn pause(&mut self) -> Duration {
        let Some(over) = self.count.checked_sub(FREE + 1) else {
            return Duration::ZERO;
        };
        let grown = FIRST_PAUSE.as_secs_f64() * GROWTH.powi(over.min(64) as i32);
        let middle = grown.min(MAX_PAUSE.as_secs_f64() / (1.0 + JITTER));
        let jitter = 1.0 + JITTER * (2.0 * self.next_random() - 1.0);
        Duration::from_secs_f64(middle * jitter).min(MAX_PAUSE)
    }

    /// A number from 0 to 1 (the generator is SplitMix64).
    fn next_random(&mut self) -> f64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// One that was started since the first of them has lived for long enough. `true`: that ends a loop.
    pub(super) fn end(&mut self) -> bool {
        let was_loop = self.is_loop();
        (self.count, self.since, self.not_before) = (0, None, None);
        was_loop
    }

    /// When the first of them was.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    pub(super) fn is_loop(&self) -> bool {
        self.count >= LOOP
    }

    /// Until when none is started.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.not_before
    }

    pub(super) fn is_pause(&self, now: Instant) -> bool {
        self.not_before.is_some_and(|time| now < time)
    }
}
