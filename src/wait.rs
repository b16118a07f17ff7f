//! How a side waits for the other: asleep, or looking again and again.
//!
//! Invariant: nobody looks for longer than was said, nor at all for a while after that was in vain, or the processor was
//! needed by others.

use std::time::{Duration, Instant};

/// How to wait for the other side of a connection: see [`Client::with_wait`](crate::Client::with_wait) and
/// [`Server::wait`](crate::Server::wait).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wait {
    /// Asleep. It costs nothing, and some microseconds to wake up. The default.
    #[default]
    Sleep,
    /// Looks again and again for this long, and then sleeps. Between two looks the processor is offered to others. This buys
    /// latency with processor time: where both sides have a processor of their own and do it, a call takes less than half
    /// the time; where they share one, about the same.
    ///
    /// After a wait that was longer, the next ones are spent asleep, more of them each time, up to 64; and so is a while after
    /// others took the processor for more than 100 µs. 20 µs is a good bound: about twice a call.
    Spin(Duration),
}

/// After so many waits at most it is tried again.
const MAX_PAUSE: u16 = 64;
/// Whoever was given the processor for longer than this needs it.
const NEEDED: Duration = Duration::from_micros(100);

/// Looks again and again, for as long as that is worth it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spinner {
    /// In microseconds: each connection has one. 0: never.
    bound: u32,
    /// So many waits are spent asleep.
    pause: u16,
    /// And so many after the next one that is in vain.
    next_pause: u16,
}

impl Spinner {
    pub(crate) fn new(wait: Wait) -> Spinner {
        Spinner {
            bound: match wait {
                Wait::Sleep => 0,
                Wait::Spin(Duration::ZERO) => 0,
                // A part of one is one.
                Wait::Spin(bound) => u32::try_from(bound.as_micros().max(1)).unwrap_or(u32::MAX),
            },
            pause: 0,
            next_pause: 1,
        }
    }

    /// Looks until something is found. `None`: sleep.
    #[inline]
    pub(crate) fn spin<T>(&mut self, look: impl FnMut() -> Option<T>) -> Option<T> {
        match self.bound {
            0 => None,
            bound => self.spin_on(Duration::from_micros(bound.into()), look),
        }
    }

    fn spin_on<T>(&mut self, bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        let begun = Instant::now();
        let mut before = begun;
        loop {
            if let Some(found) = look() {
                self.next_pause = 1;
                return Some(found);
            }
            std::thread::yield_now();
            let now = Instant::now();
            let is_needed = now.duration_since(before) > NEEDED;
            if is_needed || now.duration_since(begun) >= bound {
                self.next_pause = match is_needed {
                    true => MAX_PAUSE,
                    false => (self.next_pause * 2).min(MAX_PAUSE),
                };
                self.pause = self.next_pause;
                return None;
            }
            before = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn never() -> Option<()> {
        None
    }

    #[test]
    fn what_is_found_is_found_at_once() {
        let mut spinner = Spinner::new(Wait::Spin(Duration::from_secs(60)));
        let mut looks = 0;
        let found = spinner.spin(|| {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        // Unless the machine had something better to do in between.
        assert!(found == Some(3) || spinner.pause == MAX_PAUSE);
    }

    #[test]
    fn who_sleeps_does_not_look() {
        for wait in [Wait::Sleep, Wait::Spin(Duration::ZERO)] {
            let mut spinner = Spinner::new(wait);
            assert_eq!(spinner.spin(|| -> Option<()> { panic!("it looks") }), None);
        }
    }

    #[test]
    fn who_spins_for_next_to_no_time_looks_once() {
        let mut spinner = Spinner::new(Wait::Spin(Duration::from_nanos(1)));
        assert_eq!(spinner.spin(|| Some(7)), Some(7));
    }

    #[test]
    fn waits_in_vain_are_followed_by_more_and_more_sleep() {
        let mut spinner = Spinner::new(Wait::Spin(Duration::from_micros(1)));
        let mut asleep = Vec::new();
        for _ in 0..8 {
            assert_eq!(spinner.spin(never), None);
            asleep.push(spinner.pause);
            for _ in 0..spinner.pause {
                assert_eq!(spinner.spin(|| -> Option<()> { panic!("it looks") }), None);
            }
        }
        assert_eq!(asleep.last(), Some(&MAX_PAUSE));
        assert!(asleep.is_sorted(), "{asleep:?}");
        assert_eq!(spinner.spin(|| Some(1)), Some(1));
        assert_eq!(spinner.next_pause, 1, "all is forgotten");
    }
}
