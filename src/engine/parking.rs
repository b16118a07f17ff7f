//! Where sessions wait that need no thread: for their client, or for a deadline.
//!
//! Invariant: a parked session belongs to nobody; whoever gets its event, or finds its deadline passed, takes it
//! out and is alone with it.

use super::deadlines::Deadlines;
use super::driver::Driver;
use super::numbered::Numbered;
use crate::context::Control;
use crate::sys::epoll::{EventSet, Interest};
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The name of the event that is about no session and no listener; sessions are numbered from 1.
pub(super) const WAKER: u64 = 0;

/// Parked sessions, and the event set in which they, the listeners and a waker are.
pub(super) struct Parking {
    pub(super) events: Arc<EventSet>,
    lot: Mutex<Lot>,
    queue_is_next: AtomicBool,
    /// Its waker makes whoever waits for events look at the deadlines again.
    control: Control,
}

#[derive(Default)]
struct Lot {
    sessions: Numbered<Box<Driver>>,
    /// Sessions that could go on at once, and give others the precedence.
    queued: VecDeque<Box<Driver>>,
    deadlines: Deadlines,
    /// Until when the leader sleeps, if it does; `None`: until something happens.
    sleeps_until: Option<Instant>,
}

impl Parking {
    pub(super) fn new(control: Control) -> io::Result<Parking> {
        Ok(Parking {
            events: Arc::new(EventSet::new()?),
            lot: Mutex::default(),
            queue_is_next: AtomicBool::new(false),
            control,
        })
    }

    /// Parks a session until its client does what it waits for, or its deadline passes.
    ///
    /// # Errors
    /// The kernel has no memory for one more; the session is dropped then.
    pub(super) fn park(&self, mut driver: Box<Driver>, interest: Interest) -> io::Result<()> {
        let id = driver.id();
        let socket = driver.socket();
        let known = driver.is_known_to_events();
        // Who waits for nothing hears of its client's end once, and would do so again whenever it is armed.
        let heard = known && interest == Interest::Nothing && driver.interest() == interest;
        let mut lot = self.lock();
        if driver.has_letters() {
            // They came while it was being served, so that nobody else will look.
            lot.queued.push_back(driver);
            drop(lot);
            self.control.gate().waker().wake();
            return Ok(());
        }
        let deadline = driver.prepare_to_rest(interest);
        if let Some(deadline) = deadline {
            lot.deadlines.insert(deadline, id);
            if lot.sleeps_until.is_none_or(|until| deadline < until) {
                lot.sleeps_until = Some(deadline);
                self.control.gate().waker().wake();
            }
        }
        lot.sessions.insert(id, driver);
        // Armed under the lock, so that whoever gets the event finds the session.
        let armed = match heard {
            true => Ok(()),
            false => self.events.arm(socket.as_fd(), id, interest, known),
        };
        let refused = armed.is_err().then(|| lot.take(id));
        // A session is dropped, with what users have kept in it, when nobody waits for the lock.
        drop(lot);
        drop(refused);
        armed
    }

    /// Takes a session out. `None`: somebody else was quicker.
    pub(super) fn take(&self, id: u64) -> Option<Box<Driver>> {
        self.lock().take(id)
    }

    /// Takes a session out whose deadline has passed.
    pub(super) fn take_expired(&self, now: Instant) -> Option<Box<Driver>> {
        let mut lot = self.lock();
        let id = lot.deadlines.expired(now)?;
        lot.take(id)
    }

    /// When the first deadline passes.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.lock().deadlines.first()
    }

    /// Until when the leader may sleep: the first deadline, or `other` if that is earlier.
    pub(super) fn sleep_until(&self, other: Option<Instant>) -> Option<Instant> {
        let mut lot = self.lock();
        lot.sleeps_until = [lot.deadlines.first(), other].into_iter().flatten().min();
        lot.sleeps_until
    }

    /// Lets others go first.
    pub(super) fn queue(&self, driver: Box<Driver>) {
        self.lock().queued.push_back(driver);
        // The leader may have gone to sleep a moment ago.
        self.control.gate().waker().wake();
    }

    /// Whether the queue is to be looked at before the events: every second time, if there is anything in it.
    pub(super) fn is_queues_turn(&self) -> bool {
        self.has_queued() && self.queue_is_next.fetch_xor(true, Ordering::Relaxed)
    }

    pub(super) fn take_queued(&self) -> Option<Box<Driver>> {
        self.lock().queued.pop_front()
    }

    pub(super) fn has_queued(&self) -> bool {
        !self.lock().queued.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Lot> {
        self.lot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lot {
    fn take(&mut self, id: u64) -> Option<Box<Driver>> {
        let driver = self.sessions.remove(&id)?;
        if let Some(deadline) = driver.deadline() {
            self.deadlines.remove(deadline, id);
        }
        Some(driver)
    }
}
