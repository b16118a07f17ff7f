//! Kept threads, of which one leads: it waits for all clients that are silent, and serves what it took.
//!
//! Invariant: a handler, or a client, that takes its time costs one thread and nobody else's. The last free thread
//! never sleeps for a single client, so that silent ones cost no thread and chatty ones starve nobody.

use super::connections::{Connections, Left};
use super::crew::{Crew, Relief, Watch};
use super::driver::{Driver, Turn};
use super::loans::Loans;
use super::parking::{Parking, WAKER};
use super::reception::{Reception, listener_of};
use super::threads::Threads;
use super::{Duties, Host, Site, has_come};
use crate::error::StopReason;
use crate::service::StreamTask;
use crate::sys::epoll::Interest;
use crate::sys::poll;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A leader sleeps for this many clients in a row that do nothing.
const PATIENCE: u32 = 2;
/// A thread gives a chatty client's place to one that waits at most this often.
const SWAP: Duration = Duration::from_millis(1);

/// A running engine.
pub(crate) struct Threaded {
    shared: Arc<Shared>,
    watch: Watch,
    /// There may be something for the watchdog to see.
    watching: bool,
}

struct Shared {
    site: Arc<Site>,
    connections: Arc<Connections>,
    parking: Parking,
    reception: Reception,
    crew: Crew,
    /// The last free thread found clients ready without waiting: there are more than threads.
    crowded: AtomicBool,
    /// How often in a row a leader has slept for a client that did nothing.
    in_vain: AtomicU32,
    threads: Threads,
    loans: Loans,
}

impl Threaded {
    pub(super) fn start(site: Arc<Site>) -> io::Result<Threaded> {
        let control = &site.control;
        let parking = Parking::new(control.clone())?;
        parking
            .events
            .watch(control.gate().waker().as_fd(), WAKER)?;
        let strangers = site.limits.max_unauthenticated;
        let connections = Connections::new(control.clone(), strangers, site.ports.len());
        let (hosts, events) = (Arc::clone(&connections), Arc::clone(&parking.events));
        let shared = Arc::new(Shared {
            reception: Reception::open(Arc::clone(&site), hosts, events)?,
            connections,
            crew: Crew::new(site.limits.max_threads),
            crowded: AtomicBool::new(false),
            in_vain: AtomicU32::new(0),
            threads: Threads::default(),
            loans: Loans::default(),
            site,
            parking,
        });
        shared.spawn()?;
        Ok(Threaded {
            shared,
            watch: Watch::new(),
            watching: true,
        })
    }

    /// Serves until the duties say that the server is to stop. This thread is the watchdog, and does the duties.
    pub(super) fn run(&mut self, duties: &mut dyn Duties) {
        loop {
            let tick = self.watching.then(|| Instant::now() + self.watch.pace());
            // A poll that fails would fail for ever: no memory, or a descriptor that somebody closed under us.
            let Ok([called]) = poll::readable([Some(duties.as_fd())], tick) else {
                return;
            };
            if called && !duties.attend(self) {
                return;
            }
            // Whoever calls may want the watchdog.
            self.watching |= called;
            self.look();
        }
    }

    /// What the watchdog does when its time has come.
    fn look(&mut self) {
        self.watching = self.watching && self.shared.look(&mut self.watch);
    }

    pub(super) fn begin_drain(&mut self) {
        self.shared.reception.stop();
        let connections = &self.shared.connections;
        connections.drain(&self.shared.site.ports);
        // A leader that has nobody to look after sleeps on until the end.
        if !matches!(connections.wait_for_all(Instant::now()), Left::Nothing) {
            self.shared.wake();
        }
    }

    /// Threads that have no connection any more have some time to end.
    pub(super) fn finish_drain(
        mut self,
        tell_at: Option<Instant>,
        deadline: Option<Instant>,
    ) -> bool {
        let shared = Arc::clone(&self.shared);
        let (connections, stop) = (&shared.connections, &shared.site.stop);
        // The watchdog goes on: a leader that is stuck must not hold the others up.
        self.watching = true;
        let finished = loop {
            let tick = Instant::now() + self.watch.pace();
            let until = deadline.map_or(tick, |deadline| deadline.min(tick));
            let left = match stop.is_stopped() {
                false => connections.wait_for_calls(until),
                true => connections.wait_for_all(until),
            };
            match left {
                Left::Nothing => break true,
                _ if has_come(deadline) => break false,
                Left::Dedicated => stop.stop(StopReason::ServerStopping),
                Left::Calls if has_come(tell_at) => stop.stop(StopReason::ServerStopping),
                Left::Calls => {}
            }
            shared.look(&mut self.watch);
        };
        shared.crew.end();
        shared.wake();
        match finished {
            true => {
                shared.threads.end();
                shared.reception.turn_away_all();
            }
            // Those who wait for their clients shall not do so for ever in a process that goes on.
            false => connections.cut(),
        }
        finished
    }
}

impl Host for Threaded {
    fn serve(&mut self, socket: OwnedFd) -> io::Result<()> {
        // On the control thread, which reads no client's bytes.
        match self.shared.reception.take_on(socket)? {
            Some(driver) => self.shared.parking.park(driver, Interest::Readable),
            None => Ok(()),
        }
    }

    fn review(&mut self) {
        self.shared.reception.review();
    }

    fn look_again(&mut self) {
        self.shared.reception.look_again();
    }
}

impl Shared {
    /// Starts a thread, which the crew has counted.
    fn spawn(self: &Arc<Shared>) -> io::Result<()> {
        let shared = Arc::clone(self);
        self.threads.start("worker", move || shared.work())
    }

    /// Gives a connection a thread of its own, in which its stream's handler runs.
    fn dedicate(self: &Arc<Shared>, driver: Box<Driver>, task: StreamTask) {
        let shared = Arc::clone(self);
        let stop = driver.stop_token();
        self.threads.dedicate(driver, task, &stop, move |driver| {
            shared.parking.queue(driver);
        });
    }

    /// Makes the leader look.
    fn wake(&self) {
        self.site.control.gate().waker().wake();
    }

    /// What the watchdog does. `false`: there is nothing to look at, until it is woken.
    fn look(self: &Arc<Shared>, watch: &mut Watch) -> bool {
        self.loans.look();
        let relief = self.crew.look(watch);
        if self.loans.is_busy() {
            watch.hurry();
        }
        match relief {
            Some(relief) => self.relieve(&relief),
            // Somebody may have lent something before the watchdog was known to sleep.
            None if self.loans.any() => drop(self.crew.wake_watchdog()),
            None => return false,
        }
        true
    }

    /// Answers a call, with what waits to be sent in the watchdog's care meanwhile.
    fn answer(&self, driver: &mut Driver) -> Option<StreamTask> {
        if driver.lend(&self.loans) && self.crew.wake_watchdog() {
            self.site.control.wake();
        }
        driver.answer(Some(&self.loans))
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
            // Not cleared at the end: whoever else sleeps here shall wake up, too.
            Some(WAKER) if self.crew.is_ending() => {}
            Some(WAKER) => {
                self.site.control.gate().waker().clear();
                for session in self.site.office.take() {
                    // One that is being served finds its letters itself.
                    if let Some(driver) = self.parking.take(session) {
                        self.parking.queue(driver);
                    }
                }
            }
            Some(event) => {
                let driver = match listener_of(event) {
                    Some(listener) => self.reception.accept(listener),
                    None => self.parking.take(event),
                };
                if let Some(driver) = driver {
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
        self.reception.review();
        self.crew.end_event(number)
    }

    fn next_event(&self) -> io::Result<Option<u64>> {
        self.reception.end_turns();
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
        let deadline = self.parking.sleep_until(self.reception.sleep_until());
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
    fn serve(self: &Arc<Shared>, mut driver: Box<Driver>, lead: Option<u64>) {
        let (mut calls, mut since) = (0, None);
        loop {
            match driver.turn(self.may_sleep(lead)) {
                Turn::Call => {
                    calls += 1;
                    if let (Some(token), true) = (lead, calls > 1) {
                        self.relieve(&self.crew.hand_over(token));
                    }
                    if let Some(task) = self.answer(&mut driver) {
                        return self.dedicate(driver, task);
                    }
                    since.get_or_insert_with(Instant::now);
                    if self.in_vain.load(Ordering::Relaxed) > 0 {
                        self.in_vain.store(0, Ordering::Relaxed);
                    }
                }
                Turn::Request(request) => {
                    calls += 1;
                    if let Some(task) = driver.answer_request(request) {
                        return self.dedicate(driver, task);
                    }
                }
                Turn::Delivered => {
                    calls += 1;
                    if let (Some(token), true) = (lead, calls > 1) {
                        self.relieve(&self.crew.hand_over(token));
                    }
                    since.get_or_insert_with(Instant::now);
                }
                Turn::Moved if driver.has_output() => {}
                Turn::Moved => {
                    let Some(begun) = since else { continue };
                    let alone = self.is_alone(lead, &driver);
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

    /// Whether nobody else could look at newcomers, deadlines and the rest while this thread stays with its client. A leader
    /// that others have something for gives the lead away: they would have to wait until the watchdog sees it.
    fn is_alone(self: &Arc<Shared>, lead: Option<u64>, driver: &Driver) -> bool {
        let leads = lead.filter(|token| self.crew.leads(*token));
        let is_wanted =
            || !driver.is_ending() && (self.parking.has_queued() || self.parking.events.has_any());
        if let Some(token) = leads.filter(|_| is_wanted()) {
            self.relieve(&self.crew.hand_over(token));
        }
        let leads = leads.is_some_and(|token| self.crew.leads(token));
        self.crew.is_headless() || leads && !self.crew.has_reserve()
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
            Ok(Some(event)) if event != WAKER && listener_of(event).is_none() => {
                self.parking.take(event)
            }
            // The leader will see the others again.
            Ok(_) | Err(_) => None,
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
                Turn::Moved | Turn::Delivered => {}
                Turn::Call => {
                    if let Some(task) = self.answer(&mut driver) {
                        return self.dedicate(driver, task);
                    }
                }
                Turn::Request(request) => {
                    if let Some(task) = driver.answer_request(request) {
                        return self.dedicate(driver, task);
                    }
                }
                Turn::Waits(interest) => return self.park(driver, interest),
                Turn::Over => return,
            }
        }
    }
}
