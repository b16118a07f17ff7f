//! One listener's door: whether it is looked at, and until when not.
//!
//! Invariant: it says how things are; the reception alone changes them, under the door's lock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long nobody is accepted after the system refused a connection, at first and at most.
pub(super) const BACK_OFF: Duration = Duration::from_millis(10);
pub(super) const MAX_BACK_OFF: Duration = Duration::from_secs(1);
/// Whether a listener is looked at.
pub(super) struct Door {
    pub(super) watched: bool,
    /// Nobody is let in; who comes is turned away.
    pub(super) turns_away: bool,
    /// Not before then, because the system had no room for one more.
    pub(super) not_before: Option<Instant>,
    pub(super) back_off: Duration,
    /// When the connections are ended that it had when it stopped for that time.
    pub(super) cuts: VecDeque<(Instant, u64)>,
}

impl Default for Door {
    fn default() -> Door {
        Door {
            watched: true,
            turns_away: false,
            not_before: None,
            back_off: BACK_OFF,
            cuts: VecDeque::new(),
        }
    }
}

impl Door {
    /// The connections of which time are to be ended now, if any are.
    pub(super) fn next_cut(&mut self) -> Option<u64> {
        let (at, _) = self.cuts.front()?;
        match Instant::now() >= *at {
            true => self.cuts.pop_front().map(|(_, time)| time),
            false => None,
        }
    }
}
