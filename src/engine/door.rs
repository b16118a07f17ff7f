//! One listener's door: whether it is looked at, until when not, and whose turn it is where several processes look.
//!
//! Invariant: a listener is in the set of events as its door says, which is changed under the door's lock.

use super::Port;
use crate::sys::epoll::EventSet;
use crate::sys::poll;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The names of the listeners' events are this and their place.
pub(super) const LISTENERS: u64 = 1 << 63;
/// What is left to others is theirs for so long.
const LEFT_FOR: Duration = Duration::from_millis(1);

/// A door and the set in which its listener is.
#[derive(Default)]
pub(super) struct Doorway {
    door: Mutex<Door>,
    events: OnceLock<Arc<EventSet>>,
    /// Somebody has come in, so that it is another process's turn before this one sleeps again.
    is_used: AtomicBool,
}

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
    /// When it is looked at again, after what waits was left to others for a moment.
    pub(super) returns: Option<Instant>,
}

impl Default for Door {
    fn default() -> Door {
        Door {
            watched: true,
            turns_away: false,
            not_before: None,
            back_off: BACK_OFF,
            cuts: VecDeque::new(),
            returns: None,
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

impl Port {
    pub(super) fn door(&self) -> MutexGuard<'_, Door> {
        let door = &self.doorway.door;
        door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the listener, in that set.
    pub(super) fn open_door(&self, events: &Arc<EventSet>) -> io::Result<()> {
        let _ = self.doorway.events.set(Arc::clone(events));
        let (listener, name) = (self.bound.socket.as_fd(), LISTENERS | self.index as u64);
        match self.bound.is_lent() {
            true => events.watch_in_turn(listener, name),
            false => events.watch(listener, name),
        }
    }

    /// Looks at the listener, or does not.
    pub(super) fn watch(&self, door: &mut Door, watched: bool) {
        let was_watched = std::mem::replace(&mut door.watched, watched);
        let Some(events) = self.doorway.events.get() else {
            return;
        };
        let (listener, name) = (self.bound.socket.as_fd(), LISTENERS | self.index as u64);
        // What is looked at in turn is in the set for as long as it is looked at; all else always is, so that this cannot
        // fail.
        match (self.bound.is_lent(), watched) {
            (false, _) => drop(events.set_watched(listener, name, watched)),
            (true, false) => events.forget(listener),
            (true, true) if was_watched => {}
            // The next review tries again.
            (true, true) => door.watched = events.watch_in_turn(listener, name).is_ok(),
        }
    }

    /// A connection was taken. Of those who accept from the same socket, the next one is another. The kernel wakes one of those
    /// who sleep for each connection; whoever is awake already would be there first, and have them all. So, if one waits and
    /// somebody `is_idler`, it is left to those who have been woken for it: `true`, for a moment.
    pub(super) fn has_taken_one(&self, door: &mut Door, is_idler: impl FnOnce() -> bool) -> bool {
        if !self.bound.is_lent() || !door.watched {
            return false;
        }
        let leaves = is_idler() && poll::is_readable(self.bound.socket.as_fd());
        if leaves {
            self.watch(door, false);
            door.returns = Instant::now().checked_add(LEFT_FOR);
        }
        self.doorway.is_used.store(!leaves, Ordering::Relaxed);
        leaves
    }

    /// This process is going to sleep: if it has let somebody in, it goes to the end of the queue of those whom the kernel
    /// wakes. Not before, because whoever came in shall not wait for that.
    pub(super) fn end_turn(&self) {
        let is_used = &self.doorway.is_used;
        if is_used.load(Ordering::Relaxed) && is_used.swap(false, Ordering::Relaxed) {
            self.queue_anew();
        }
    }

    /// Goes to the end of the queue, if this process looks at the listener. Whoever waits there is seen.
    pub(super) fn queue_anew(&self) {
        let mut door = self.door();
        if door.watched {
            self.watch(&mut door, false);
            self.watch(&mut door, true);
        }
    }
}
