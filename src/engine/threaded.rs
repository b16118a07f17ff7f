//! Kept threads, of which one leads: it waits for all clients that are silent, and serves what it took.
//!
//! Invariant: a handler, or a client, that takes its time costs one thread and nobody else's. The last free thread
//! never sleeps for a single client, so that silent ones cost no thread and chatty ones starve nobody.

use super::Site;
use super::acceptance::{Acceptance, most_connections};
use super::connections::{Connections, Left};
use super::crew::{Crew, Relief, Watch};
use super::driver::{Driver, Turn};
use super::living::Living;
use super::loans::Loans;
use super::parking::{LISTENER, Parking, WAKER};
use crate::channel::StopToken;
use crate::error::StopReason;
use crate::protocol::message::{Call, ErrorBody};
use crate::service::StreamTask;
use crate::sys::epoll::Interest;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// A leader sleeps for this many clients in a row that do nothing.
const PATIENCE: u32 = 2;
/// A thread gives a chatty client's place to one that waits at most this often.
const SWAP: Duration = Duration::from_millis(1);
/// How often the watchdog looks.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// How long threads may take to end when all connections have.
const LEAVING: Duration = Duration::from_millis(250);

/// A running engine.
pub(crate) struct Threaded {
    shared: Arc<Shared>,
    watch: Mutex<Watch>,
}

pub(super) struct Shared {
    pub(super) site: Arc<Site>,
    pub(super) connections: Arc<Connections>,
    pub(super) parking: Parking,
    crew: Crew,
    /// The last free thread found clients ready without waiting: there are more than threads.
    crowded: AtomicBool,
    /// How often in a row a leader has slept for a client that did nothing.
    in_vain: AtomicU32,
    pub(super) acceptance: Mutex<Acceptance>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    living: Living,
    loans: Loans,
    /// Told to the handlers of streams when the server stops.
    stop: StopToken,
}

impl Threaded {
    pub(crate) fn start(site: Arc<Site>) -> io::Result<Threaded> {
        let gate = site.control.gate();
        gate.lower_ceiling(most_connections()?);
        let parking = Parking::new(site.control.clone())?;
        parking.events.watch(gate.waker().as_fd(), WAKER)?;
        parking
            .events
            .watch(site.listener.socket.as_fd(), LISTENER)?;
        let shared = Arc::new(Shared {
            connections: Connections::new(site.control.clone(), site.limits.max_unauthenticated),
            crew: Crew::new(site.limits.max_threads),
            crowded: AtomicBool::new(false),
            in_vain: AtomicU32::new(0),
            acceptance: Mutex::default(),
            threads: Mutex::default(),
            living: Living::default(),
            loans: Loans::default(),
            stop: StopToken::new()?,
            site,
            parking,
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
        self.shared.look(&mut watch)
    }

    /// Begins no call any more, and accepts nobody. Returns at once.
    pub(crate) fn begin_drain(&self) {
        self.shared.accept_no_more();
        self.shared.connections.drain();
        self.shared.wake();
    }

    /// Waits until the connections have finished what they had begun, and tells the streams to stop when all
    /// calls have been answered, or at `tell_at`. `false`: some had not finished by the deadline. Threads that have no
    /// connection any more have [`LEAVING`] to end.
    pub(crate) fn finish_drain(self, tell_at: Option<Instant>, deadline: Option<Instant>) -> bool {
        let Threaded { shared, watch } = self;
        let has_come = |time: Option<Instant>| time.is_some_and(|time| Instant::now() >= time);
        let connections = &shared.connections;
        // The watchdog goes on: a leader that is stuck must not hold the others up.
        let finished = loop {
            let tick = Instant::now() + TICK;
            let until = deadline.map_or(tick, |deadline| deadline.min(tick));
            let left = match shared.stop.is_stopped() {
                false => connections.wait_for_calls(until),
                true => connections.wait_for_all(until),
            };
            match left {
                Left::Nothing => break true,
                _ if has_come(deadline) => break false,
                Left::Dedicated => shared.stop.stop(StopReason::ServerStopping),
                Left::Calls if has_come(tell_at) => shared.stop.stop(StopReason::ServerStopping),
                Left::Calls => {}
            }
            let mut watch = watch.lock().unwrap_or_else(PoisonError::into_inner);
            shared.look(&mut watch);
        };
        shared.crew.end();
        shared.wake();
        match finished {
            true => {
                // Whatever a thread still closes, nobody needs to wait for: it ends with the process, or when it
                // is through.
                let through = shared.living.wait_until_none(Instant::now() + LEAVING);
                shared.join(|thread| through || thread.is_finished());
                shared.turn_away_all();
            }
            // Those who wait for their clients shall not do so for ever in a process that goes on.
            false => connections.cut(),
        }
        finished
    }
}

impl Shared {
    /// Starts a thread, which the crew has counted.
    fn spawn(self: &Arc<Shared>) -> io::Result<()> {
        let shared = Arc::clone(self);
        self.start_thread("worker", move || shared.work())
    }

    fn start_thread(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let life = self.living.begin();
        let body = move || {
            let _life = life;
            body();
        };
        let thread = thread::Builder::new().name(name.into()).spawn(body)?;
        // Those of streams come and go.
        self.join(JoinHandle::is_finished);
        self.threads().push(thread);
        Ok(())
    }

    /// Waits for threads that are about to end.
    fn join(&self, which: impl Fn(&JoinHandle<()>) -> bool) {
        let mut threads = self.threads();
        let (ending, others) = std::mem::take(&mut *threads).into_iter().partition(which);
        *threads = others;
        drop(threads);
        // A thread does not panic; handlers' panics are caught.
        let ending: Vec<_> = ending;
        ending.into_iter().for_each(|thread| drop(thread.join()));
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection a thread of its own, in which its stream's handler runs.
    fn dedicate(self: &Arc<Shared>, driver: Box<Driver>, task: StreamTask) {
        // The thread takes both out, unless there is none.
        let slot = Arc::new(Mutex::new(Some((driver, task))));
        let take =
            |slot: &Mutex<Option<_>>| slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (shared, theirs) = (Arc::clone(self), Arc::clone(&slot));
        let run = move || {
            if let Some((mut driver, task)) = take(&theirs) {
                driver.run_stream(task, shared.stop.clone());
                shared.parking.queue(driver);
            }
        };
        if self.start_thread("stream", run).is_err() {
            if let Some((mut driver, task)) = take(&slot) {
                let body = ErrorBody::busy("the number of threads that the system allows");
                driver.refuse(task, body);
                self.parking.queue(driver);
            }
        }
    }

    /// Makes the leader look.
    pub(super) fn wake(&self) {
        self.site.control.gate().waker().wake();
    }

    /// What the watchdog does. `false`: there is nothing to look at, until it is woken.
    fn look(self: &Arc<Shared>, watch: &mut Watch) -> bool {
        self.loans.look();
        match self.crew.look(watch) {
            Some(relief) => self.relieve(&relief),
            // Somebody may have lent something before the watchdog was known to sleep.
            None if self.loans.any() => drop(self.crew.wake_watchdog()),
            None => return false,
        }
        true
    }

    /// Answers a call, with what waits to be sent in the watchdog's care meanwhile.
    fn answer(&self, driver: &mut Driver, call: Call) -> Option<StreamTask> {
        if driver.lend(&self.loans) && self.crew.wake_watchdog() {
            self.site.control.wake();
        }
        driver.answer(call, &self.loans)
    }

    fn relieve(self: &Arc<Shared>, relief: &Relief) {
        if *relief == Relief::Spawn && self.spawn().is_err() {
            // The first thread that is free will lead.
            self.crew.could_not_spawn();
        }
    }

    /// A thread's life.
    fn work(self: &Arc<Shared>) {
        while let Some(token) = self.crew.take_lead() {
            while self.crew.leads(token) && self.lead(token) {}
        }
    }

    /// Waits for one event, and serves it. `false`: the lead is somebody else's by then.
    fn lead(self: &Arc<Shared>, token: u64) -> bool {
        let Ok(event) = self.next_event() else {
            // Nothing could ever be waited for again.
            self.site.control.stop();
            self.crew.end();
            return false;
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
                self.site.control.gate().waker().clear();
            }
            Some(id) => {
                if let Some(driver) = self.parking.take(id) {
                    self.serve(driver, Some(token));
                }
            }
            None => {
                if let Some(driver) = self.parking.take_queued() {
                    self.serve(driver, Some(token));
                }
            }
        }
        self.expire(token);
        self.review_acceptance();
        self.crew.end_event(number)
    }

    fn next_event(&self) -> io::Result<Option<u64>> {
        let alone = !self.crew.has_reserve();
        if !alone && self.crowded.load(Ordering::Relaxed) {
            self.crowded.store(false, Ordering::Relaxed);
        }
        if self.parking.is_queues_turn() {
            return Ok(None);
        }
        if alone || self.parking.has_queued() {
            let event = self.parking.events.next_now()?;
            if alone {
                self.crowded.store(event.is_some(), Ordering::Relaxed);
            }
            if event.is_some() || self.parking.has_queued() {
                return Ok(event);
            }
        }
        let deadline = self.parking.sleep_until(self.acceptance().not_before);
        self.parking.events.next(deadline)
    }

    /// Whether a thread may sleep in the kernel for a single client; a leader does if somebody could take over, and
    /// if it has not been for nothing lately: most clients call at once, but a flood of silent ones would cost a
    /// nap each.
    fn may_sleep(&self, lead: Option<u64>) -> bool {
        match lead {
            Some(token) if self.crew.leads(token) => {
                self.in_vain.load(Ordering::Relaxed) < PATIENCE && self.crew.has_reserve()
            }
            _ => !self.crew.is_headless(),
        }
    }

    /// Serves a session, for as long as it needs a thread. A leader gives the lead away to somebody at the second
    /// call: the client is a chatty one, and worth staying with.
    pub(super) fn serve(self: &Arc<Shared>, mut driver: Box<Driver>, lead: Option<u64>) {
        let (mut calls, mut since) = (0, None);
        loop {
            match driver.turn(self.may_sleep(lead)) {
                Turn::Call(call) => {
                    calls += 1;
                    if let (Some(token), true) = (lead, calls > 1) {
                        self.relieve(&self.crew.hand_over(token));
                    }
                    if let Some(task) = self.answer(&mut driver, call) {
                        return self.dedicate(driver, task);
                    }
                    since.get_or_insert_with(Instant::now);
                    if self.in_vain.load(Ordering::Relaxed) > 0 {
                        self.in_vain.store(0, Ordering::Relaxed);
                    }
                }
                Turn::Moved if driver.has_output() => {}
                Turn::Moved => {
                    let Some(begun) = since else { continue };
                    // Nobody else could look at newcomers, deadlines and the rest.
                    let leads = lead.is_some_and(|token| self.crew.leads(token));
                    let alone = self.crew.is_headless() || leads && !self.crew.has_reserve();
                    if !alone && !self.crowded.load(Ordering::Relaxed) || begun.elapsed() < SWAP {
                        continue;
                    }
                    // Others wait for a thread, and this client has had one for long enough.
                    self.rest(driver);
                    if alone {
                        return;
                    }
                    match self.next_session() {
                        Some(other) => (driver, calls, since) = (other, 0, None),
                        None => return,
                    }
                }
                Turn::Waits(interest) => {
                    if lead.is_some() && calls == 0 {
                        self.in_vain.fetch_add(1, Ordering::Relaxed);
                    }
                    return self.park(driver, interest);
                }
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
        if self.parking.is_queues_turn() {
            return self.parking.take_queued();
        }
        let ready = match self.parking.events.next_now() {
            // The leader will see these again.
            Ok(None | Some(WAKER | LISTENER)) | Err(_) => None,
            Ok(Some(id)) => self.parking.take(id),
        };
        ready.or_else(|| self.parking.take_queued())
    }

    /// Ends sessions whose deadlines have passed, unless what they waited for has come and nobody had the time to
    /// look.
    fn expire(self: &Arc<Shared>, token: u64) {
        if self
            .parking
            .deadline()
            .is_none_or(|deadline| deadline > Instant::now())
        {
            return;
        }
        while let Some(mut driver) = self.parking.take_expired(Instant::now()) {
            match driver.moves_after_all() {
                true => self.serve(driver, Some(token)),
                // It says good-bye, or nothing; it does not wait for its client.
                false => self.serve_briefly(driver),
            }
        }
    }

    /// Does what a session wants and can do without waiting.
    fn serve_briefly(self: &Arc<Shared>, mut driver: Box<Driver>) {
        loop {
            match driver.turn(false) {
                Turn::Moved => {}
                Turn::Call(call) => {
                    if let Some(task) = self.answer(&mut driver, call) {
                        return self.dedicate(driver, task);
                    }
                }
                Turn::Waits(interest) => return self.park(driver, interest),
                Turn::Over => return,
            }
        }
    }
}
