//! One listener's door: whether it is looked at, until when not, and whose turn it is where several processes look.
//!
//! Invariant: a listener is in the set of events as its door says, which is changed under the door's lock.

use super::Port;
use crate::sys::epoll::EventSet;
use crate::sys::poll;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The names of the listeners' events are this and their place.
pub(super) const LISTENERS: u64 = 1 << 63;
/// After so many connections that do not last it is another process's turn. Going to the end of the queue costs as much as
/// a twentieth of such a connection, and each goes there as often whether it is after one or after four (measured: of 10 000
/// over four, each had 2 500; after each one, and before it sleeps, they had 2 100 to 2 900).
const TURN: u32 = 4;
/// Whoever is left to others is looked at again after so long,
const LEFT_FOR: Duration = Duration::from_millis(1);
/// and taken after so long: on a busy machine, those who were woken have to wait for a processor.
const LEFT_AT_MOST: Duration = Duration::from_millis(20);
/// Nobody is left to others for so long after that: they do not come, for whatever reason.
const DISTRUST: Duration = Duration::from_millis(200);

/// A door and the set in which its listener is.
#[derive(Default)]
pub(super) struct Doorway {
    door: Mutex<Door>,
    events: OnceLock<Arc<EventSet>>,
    /// How many have come in since this process went to the end of the queue.
    taken: AtomicU32,
}

/// How long nobody is accepted after the system refused a connection, at first and at most.
const BACK_OFF: Duration = Duration::from_millis(10);
const MAX_BACK_OFF: Duration = Duration::from_secs(1);

/// What becomes of those who come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// They are let in.
    Open,
    /// They are left to other processes, until then.
    Left(Instant),
    /// They wait in the backlog; until then at least, if the system had no room for one more.
    Shut(Option<Instant>),
    /// They are turned away; from then on, if the system has no room even for that.
    TurnsAway(Option<Instant>),
    /// Other processes see to them. This one stops.
    Gone,
}

impl Way {
    /// Whether the listener is looked at.
    fn is_watched(self) -> bool {
        matches!(self, Way::Open | Way::TurnsAway(None))
    }

    /// Whether clients are let in, by this process or another.
    pub(super) fn leads_in(self) -> bool {
        matches!(self, Way::Open | Way::Left(_))
    }

    /// The same for now, until it is tried again.
    fn for_now(self) -> Way {
        let soon = Instant::now() + BACK_OFF;
        match self {
            Way::Open | Way::Left(_) => Way::Left(soon),
            Way::Shut(_) => Way::Shut(Some(soon)),
            Way::TurnsAway(_) | Way::Gone => Way::TurnsAway(Some(soon)),
        }
    }
}

pub(super) struct Door {
    way: Way,
    back_off: Duration,
    /// Since when somebody has been left to others.
    left_since: Option<Instant>,
    /// Until when nobody is.
    distrust: Option<Instant>,
    /// When the connections are ended that it had when it stopped for that time.
    pub(super) cuts: VecDeque<(Instant, u64)>,
}

impl Default for Door {
    fn default() -> Door {
        Door {
            way: Way::Open,
            back_off: BACK_OFF,
            left_since: None,
            distrust: None,
            cuts: VecDeque::new(),
        }
    }
}

impl Door {
    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// The connections of which time are to be ended now, if any are.
    pub(super) fn next_cut(&mut self) -> Option<u64> {
        let (at, _) = self.cuts.front()?;
        match Instant::now() >= *at {
            true => self.cuts.pop_front().map(|(_, time)| time),
            false => None,
        }
    }

    /// When there is something to do about it next.
    pub(super) fn next_time(&self) -> Option<Instant> {
        let of_way = match self.way {
            Way::Left(until) => Some(until),
            Way::Shut(until) | Way::TurnsAway(until) => until,
            Way::Open | Way::Gone => None,
        };
        let cut = self.cuts.front().map(|(at, _)| *at);
        of_way.into_iter().chain(cut).min()
    }

    /// Until when the system is given time to find room.
    pub(super) fn back_off(&mut self) -> Instant {
        let until = Instant::now() + self.back_off;
        self.back_off = (self.back_off * 2).min(MAX_BACK_OFF);
        until
    }

    /// How long the system has had no room, about.
    pub(super) fn shortage(&self) -> Duration {
        self.back_off
    }
}

impl Port {
    pub(super) fn door(&self) -> MutexGuard<'_, Door> {
        let door = &self.doorway.door;
        door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the listener, in that set.
    pub(super) fn open_door(&self, events: &Arc<EventSet>) -> io::Result<()> {
        let _ = self.doorway.events.set(Arc::clone(events));
        let (listener, name) = self.event();
        match self.bound.is_lent() {
            true => events.watch_in_turn(listener, name),
            false => events.watch(listener, name),
        }
    }

    fn event(&self) -> (BorrowedFd<'_>, u64) {
        (self.bound.socket.as_fd(), LISTENERS | self.index as u64)
    }

    /// Has those who come go that way from now on. If the system does not let this process look at the listener, the way
    /// stays for a moment what it was, without that.
    pub(super) fn set_way(&self, door: &mut Door, way: Way) {
        let before = std::mem::replace(&mut door.way, way);
        if before.is_watched() != way.is_watched() && self.watch(way.is_watched()).is_err() {
            door.way = before.for_now();
        }
    }

    fn watch(&self, watched: bool) -> io::Result<()> {
        let Some(events) = self.doorway.events.get() else {
            return Ok(());
        };
        let (listener, name) = self.event();
        // What is looked at in turn is in the set for as long as it is looked at; all else always is, so that this cannot
        // fail.
        match (self.bound.is_lent(), watched) {
            (false, _) => events.set_watched(listener, name, watched),
            (true, true) => events.watch_in_turn(listener, name),
            (true, false) => {
                events.forget(listener);
                Ok(())
            }
        }
    }

    /// A connection was taken. Of those who accept from the same socket, the next one is another: this process goes to the end
    /// of the queue of those whom the kernel wakes. At once if connections `last`: those in front of the first one who sleeps
    /// are told, too, and whoever is awake takes the next one. After some, and before it sleeps, if they do not: nobody shall
    /// wait for that.
    ///
    /// For a burst that is not enough: the kernel wakes somebody for each connection, and whoever is awake already would be
    /// there first, and have them all. So, if one waits and there `is_idler`, it is left to those who have been woken for it:
    /// `true`, for a moment.
    pub(super) fn end_accept(
        &self,
        door: &mut Door,
        last: bool,
        is_idler: impl FnOnce() -> bool,
    ) -> bool {
        door.back_off = BACK_OFF;
        if !self.bound.is_lent() || door.way != Way::Open {
            return false;
        }
        if !last {
            self.doorway.taken.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let now = Instant::now();
        let trusts = door.distrust.is_none_or(|until| until <= now);
        let leaves = is_idler() && trusts && self.has_waiting();
        match leaves {
            true => {
                door.left_since = Some(now);
                self.set_way(door, Way::Left(now + LEFT_FOR));
            }
            false => self.requeue(door),
        }
        leaves
    }

    fn has_waiting(&self) -> bool {
        poll::is_readable(self.bound.socket.as_fd())
    }

    /// This process is going to sleep.
    pub(super) fn end_turn(&self) {
        let taken = &self.doorway.taken;
        if taken.load(Ordering::Relaxed) >= TURN && taken.swap(0, Ordering::Relaxed) >= TURN {
            self.queue_anew();
        }
    }

    /// Looks at the listener again, if the moment is over for which somebody was left to others, unless he still waits and there
    /// still `is_idler`.
    pub(super) fn come_back(&self, door: &mut Door, is_idler: impl FnOnce() -> bool) {
        let Way::Left(until) = door.way else { return };
        let now = Instant::now();
        if now < until {
            return;
        }
        if let Some(since) = door.left_since.filter(|_| self.has_waiting() && is_idler()) {
            if now.saturating_duration_since(since) < LEFT_AT_MOST {
                door.way = Way::Left(now + LEFT_FOR);
                return;
            }
            door.distrust = Some(now + DISTRUST);
        }
        door.left_since = None;
        self.set_way(door, Way::Open);
    }

    /// Goes to the end of the queue, if this process lets clients in. Whoever waits there is seen.
    pub(super) fn queue_anew(&self) {
        let mut door = self.door();
        if door.way == Way::Open {
            self.requeue(&mut door);
        }
    }

    fn requeue(&self, door: &mut Door) {
        self.set_way(door, Way::Left(Instant::now()));
        self.set_way(door, Way::Open);
    }
}
