//! Kept threads, of which one leads: it waits for all clients that are silent, and serves what it took.
//!
//! Invariant: a handler, or a client, that takes its time costs one thread and nobody else's. The last free thread
//! never sleeps for a single client, so that silent ones cost no thread and chatty ones starve nobody.

use super::Site;
use super::connections::Connections;
use super::crew::{Crew, Relief, Watch};
use super::driver::{Driver, Turn};
use super::parking::{LISTENER, Parking, WAKER};
use crate::connection::Connection;
use crate::limits::Limits;
use crate::protocol::message::Denied;
use crate::protocol::wire::Wire;
use crate::sys::epoll::Interest;
use crate::sys::poll::Waker;
use crate::sys::{fdtable, socket};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long nobody is accepted after the system refused a connection, at first and at most.
const BACK_OFF: Duration = Duration::from_millis(10);
const MAX_BACK_OFF: Duration = Duration::from_secs(1);
/// No more than this wait in a backlog (the kernel's usual `somaxconn`); those who come back at once may wait.
const MAX_BACKLOG: usize = 4096;
/// A thread gives a chatty client's place to one that waits at most this often.
const SWAP: Duration = Duration::from_millis(1);
/// How often the watchdog looks.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// A running engine.
pub(crate) struct Threaded {
    shared: Arc<Shared>,
    watch: Mutex<Watch>,
}

struct Shared {
    site: Arc<Site>,
    connections: Arc<Connections>,
    parking: Parking,
    crew: Crew,
    /// Makes the leader look.
    waker: Arc<Waker>,
    /// The last free thread found clients ready without waiting: there are more than threads.
    crowded: AtomicBool,
    acceptance: Mutex<Acceptance>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// Whether the listener is looked at.
struct Acceptance {
    watched: bool,
    /// Not before then, because the system had no room for one more.
    not_before: Option<Instant>,
    back_off: Duration,
}

impl Threaded {
    pub(crate) fn start(site: Arc<Site>) -> io::Result<Threaded> {
        let waker = Arc::new(Waker::new()?);
        let parking = Parking::new(Arc::clone(&waker))?;
        parking.events.watch(waker.as_fd(), WAKER)?;
        parking
            .events
            .watch(site.listener.socket.as_fd(), LISTENER)?;
        let shared = Arc::new(Shared {
            connections: Connections::new(
                most_connections(&site.limits)?,
                site.limits.max_unauthenticated,
                Arc::clone(&waker),
            ),
            crew: Crew::new(site.limits.max_threads),
            crowded: AtomicBool::new(false),
            acceptance: Mutex::new(Acceptance {
                watched: true,
                not_before: None,
                back_off: BACK_OFF,
            }),
            threads: Mutex::default(),
            site,
            parking,
            waker,
        });
        shared.spawn()?;
        Ok(Threaded {
            shared,
            watch: Mutex::default(),
        })
    }

    /// Serves a connection that did not come through the listener.
    pub(crate) fn serve(&self, socket: OwnedFd) -> io::Result<()> {
        self.shared.take_on(socket)
    }

    /// What the watchdog does every [`TICK`]. `false`: there is nothing to look at, until it is woken.
    pub(crate) fn look(&self) -> bool {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        match self.shared.crew.look(&mut watch) {
            Some(relief) => {
                self.shared.relieve(&relief);
                true
            }
            None => false,
        }
    }

    /// Begins no call any more, and accepts nobody. Returns at once.
    pub(crate) fn begin_drain(&self) {
        self.shared.connections.drain();
        self.shared.waker.wake();
    }

    /// Waits until the connections have finished what they had begun. `false`: some had not by the deadline.
    pub(crate) fn finish_drain(self, deadline: Option<Instant>) -> bool {
        let Threaded { shared, watch } = self;
        // The watchdog goes on: a leader that is stuck must not hold the others up.
        let finished = loop {
            let tick = Instant::now() + TICK;
            let until = deadline.map_or(tick, |deadline| deadline.min(tick));
            if shared.connections.wait_empty(until) {
                break true;
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break false;
            }
            let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(relief) = shared.crew.look(&mut watch) {
                shared.relieve(&relief);
            }
        };
        shared.crew.end();
        shared.waker.wake();
        if finished {
            let threads = std::mem::take(
                &mut *shared
                    .threads
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner),
            );
            // A thread does not panic; handlers' panics are caught.
            threads.into_iter().for_each(|thread| drop(thread.join()));
            shared.turn_away_all();
        }
        finished
    }
}

/// As many connections as the limits allow and the descriptor table has room for, with some left for orders and
/// handlers.
fn most_connections(limits: &Limits) -> io::Result<usize> {
    const LEFT: usize = 64;
    let capacity = fdtable::capacity()?;
    Ok(limits
        .max_connections
        .min(capacity.saturating_sub(LEFT).max(capacity / 2)))
}

impl Shared {
    /// Starts a thread, which the crew has counted.
    fn spawn(self: &Arc<Shared>) -> io::Result<()> {
        let shared = Arc::clone(self);
        let thread = thread::Builder::new()
            .name("worker".into())
            .spawn(move || shared.work())?;
        self.threads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(thread);
        Ok(())
    }

    fn relieve(self: &Arc<Shared>, relief: &Relief) {
        if *relief == Relief::Spawn && self.spawn().is_err() {
            // The first thread that is free will lead.
            self.crew.thread_is_gone();
        }
    }

    /// A thread's life.
    fn work(self: &Arc<Shared>) {
        while let Some(token) = self.crew.take_lead() {
            while self.crew.leads(token) {
                self.lead(token);
            }
        }
    }

    /// Waits for one event, and serves it; by then the lead may be somebody else's.
    fn lead(self: &Arc<Shared>, token: u64) {
        let Ok(event) = self.next_event() else {
            return self.crew.end();
        };
        let (number, wake_watchdog) = self.crew.begin_event();
        if wake_watchdog {
            self.site.control.wake();
        }
        match event {
            Some(LISTENER) => self.accept(token),
            // Not cleared at the end: whoever else sleeps here shall wake up, too.
            Some(WAKER) if self.crew.is_ending() => {}
            Some(WAKER) => {
                self.waker.clear();
                self.accept_again(true);
            }
            Some(id) => {
                if let Some(driver) = self.parking.take(id) {
                    self.serve(driver, Some(token));
                }
            }
            None => {
                self.accept_again(false);
                if let Some(driver) = self.parking.take_queued() {
                    self.serve(driver, Some(token));
                }
            }
        }
        self.expire();
        self.crew.end_event(number);
    }

    fn next_event(&self) -> io::Result<Option<u64>> {
        if !self.crew.has_reserve() {
            let event = self.parking.events.next_now()?;
            self.crowded.store(event.is_some(), Ordering::Relaxed);
            if event.is_some() {
                return Ok(event);
            }
        }
        if self.parking.has_queued() {
            return self.parking.events.next_now();
        }
        let deadline = self.parking.sleep_until(self.acceptance().not_before);
        self.parking.events.next(deadline)
    }

    /// Whether a thread may sleep in the kernel for a single client; a leader does if somebody could take over.
    fn may_sleep(&self, lead: Option<u64>) -> bool {
        match lead {
            Some(token) if self.crew.leads(token) => self.crew.has_reserve(),
            _ => !self.crew.is_headless(),
        }
    }

    /// Serves a session, for as long as it needs a thread. A leader gives the lead away to somebody at the second
    /// call: the client is a chatty one, and worth staying with.
    fn serve(self: &Arc<Shared>, mut driver: Box<Driver>, lead: Option<u64>) {
        let (mut calls, mut since) = (0, None);
        loop {
            match driver.turn(self.may_sleep(lead)) {
                Turn::Call(call, now) => {
                    calls += 1;
                    if let (Some(token), true) = (lead, calls > 1) {
                        self.relieve(&self.crew.hand_over(token));
                    }
                    driver.answer(call, now);
                    since.get_or_insert(now);
                }
                Turn::Moved if driver.has_output() => {}
                Turn::Moved => {
                    let Some(begun) = since else { continue };
                    if !self.crowded.load(Ordering::Relaxed) || begun.elapsed() < SWAP {
                        continue;
                    }
                    // Others wait for a thread, and this client has had one for long enough.
                    self.rest(driver);
                    match self.next_session() {
                        Some(other) => (driver, calls, since) = (other, 0, None),
                        None => return,
                    }
                }
                Turn::Waits(interest) => return self.park(driver, interest),
                Turn::Over => return,
            }
        }
    }

    /// Puts a session back that could go on, behind those that wait.
    fn rest(&self, driver: Box<Driver>) {
        match driver.has_input() {
            // No event will come for what has been received already.
            true => self.parking.queue(driver),
            false => self.park(driver, Interest::Readable),
        }
    }

    fn park(&self, driver: Box<Driver>, interest: Interest) {
        // One that cannot be parked is closed: the system has no memory for it.
        let _ = self.parking.park(driver, interest);
    }

    /// Another session that can go on now.
    fn next_session(&self) -> Option<Box<Driver>> {
        match self.parking.events.next_now() {
            // The leader will see these again.
            Ok(Some(WAKER | LISTENER)) => None,
            Ok(Some(id)) => self.parking.take(id),
            Ok(None) | Err(_) => self.parking.take_queued(),
        }
    }

    /// Ends sessions whose deadlines have passed.
    fn expire(self: &Arc<Shared>) {
        if self
            .parking
            .deadline()
            .is_none_or(|deadline| deadline > Instant::now())
        {
            return;
        }
        while let Some(driver) = self.parking.take_expired(Instant::now()) {
            // It says good-bye, or nothing; it does not wait for its client.
            self.serve_briefly(driver);
        }
    }

    /// Does what a session wants and can do without waiting.
    fn serve_briefly(&self, mut driver: Box<Driver>) {
        loop {
            match driver.turn(false) {
                Turn::Moved => {}
                Turn::Call(call, now) => driver.answer(call, now),
                Turn::Waits(interest) => return self.park(driver, interest),
                Turn::Over => return,
            }
        }
    }

    // --- accepting -----------------------------------------------------------------------------------------

    /// Takes one connection and serves it.
    fn accept(self: &Arc<Shared>, token: u64) {
        if !self.connections.has_room() {
            return self.stop_accepting(None);
        }
        match socket::accept(&self.site.listener.socket) {
            Ok(None) => {}
            Ok(Some(socket)) => {
                self.acceptance().back_off = BACK_OFF;
                if let Ok(Some(driver)) = self.admit(socket) {
                    self.serve(driver, Some(token));
                }
            }
            // No descriptors or memory: there will be some when something has ended.
            Err(_) => {
                let back_off = self.acceptance().back_off;
                self.stop_accepting(Some(Instant::now() + back_off));
            }
        }
    }

    /// Serves a connection of the owner's. Called on the control thread, which reads no client's bytes.
    fn take_on(&self, socket: OwnedFd) -> io::Result<()> {
        match self.admit(socket)? {
            Some(driver) => self.parking.park(driver, Interest::Readable),
            None => Ok(()),
        }
    }

    /// Counts a connection in, if its user may connect and the server is not stopping.
    fn admit(&self, socket: OwnedFd) -> io::Result<Option<Box<Driver>>> {
        let peer = socket::peer_credentials(&socket)?;
        if !self.site.listener.admitted.contains(&peer.uid) {
            return Ok(None);
        }
        let socket = Arc::new(socket);
        match self.connections.enter(&socket) {
            Some(entry) => Ok(Some(Driver::new(
                Arc::clone(&self.site),
                socket,
                entry,
                peer.into(),
            ))),
            None => {
                self.turn_away(socket);
                Ok(None)
            }
        }
    }

    /// Looks at the listener no more, until a connection ends or the time has come.
    fn stop_accepting(&self, not_before: Option<Instant>) {
        let mut acceptance = self.acceptance();
        acceptance.not_before = not_before;
        acceptance.back_off = (acceptance.back_off * 2).min(MAX_BACK_OFF);
        acceptance.watched = false;
        let listener = self.site.listener.socket.as_fd();
        // It is in the set, so that this cannot fail.
        let _ = self.parking.events.set_watched(listener, LISTENER, false);
        drop(acceptance);
        self.connections.tell_when_one_ends();
        // One may have ended before we asked to be told.
        self.accept_again(false);
    }

    /// Looks at the listener again, if there is a reason to.
    fn accept_again(&self, one_has_ended: bool) {
        let mut acceptance = self.acceptance();
        let too_early = acceptance
            .not_before
            .is_some_and(|time| Instant::now() < time);
        if acceptance.watched || too_early && !one_has_ended || !self.connections.has_room() {
            return;
        }
        (acceptance.watched, acceptance.not_before) = (true, None);
        let listener = self.site.listener.socket.as_fd();
        // As above.
        let _ = self.parking.events.set_watched(listener, LISTENER, true);
    }

    fn acceptance(&self) -> MutexGuard<'_, Acceptance> {
        self.acceptance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait in the backlog that it was in vain, so that they know that nothing was executed.
    fn turn_away_all(&self) {
        for _ in 0..MAX_BACKLOG {
            let Ok(Some(socket)) = socket::accept(&self.site.listener.socket) else {
                return;
            };
            self.turn_away(Arc::new(socket));
        }
    }

    fn turn_away(&self, socket: Arc<OwnedFd>) {
        let mut wire = Wire::new(self.site.limits.max_frame, 0);
        if wire.send(Denied::Stopping.write()).is_ok() {
            // A client that is gone needs no answer.
            let _ = Connection::new(socket).transmit_now(&wire);
        }
    }
}
