//! One thread for everything: it waits for all clients, and serves whoever has something, a little at a time.
//!
//! Invariant: nothing here waits but the one wait for events. A client that has much to be done has its turn, and then
//! it is the others'.

use super::connections::{Connections, Left};
use super::deadlines::Deadlines;
use super::driver::{Driver, Turn};
use super::numbered::Numbered;
use super::parking::WAKER;
use super::reception::{Reception, listener_of};
use super::threads::Threads;
use super::{Duties, Host, Site, has_come};
use crate::context::Control;
use crate::error::StopReason;
use crate::service::StreamTask;
use crate::sys::epoll::{EventSet, Interest};
use crate::wait::Spinner;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// After this long, whoever has further calls lets others go first. A single call, alone, takes about as long.
const TURN: Duration = Duration::from_micros(10);
/// The same where there are no others: somebody may be about to connect.
const LONG_TURN: Duration = Duration::from_millis(1);
/// So does whoever has sent something this often with nothing in it that concerns anybody.
const MOVES: u32 = 16;
/// The name of the event that the thread's other duties call.
const DUTIES: u64 = 1 << 62;

/// A running engine.
pub(crate) struct Evented {
    site: Arc<Site>,
    connections: Arc<Connections>,
    events: Arc<EventSet>,
    reception: Reception,
    seats: Numbered<Seat>,
    deadlines: Deadlines,
    /// Sessions that can go on at once, and let others go first.
    ready: VecDeque<u64>,
    /// What the threads of streams have given back.
    returned: Arc<Returned>,
    threads: Threads,
    spinner: Spinner,
    /// What the last wait brought; kept for its memory.
    names: Vec<u64>,
}

/// A session, and what the kernel was told about it.
struct Seat {
    driver: Box<Driver>,
    watched: Option<Interest>,
    /// It is among those that are ready, once.
    is_queued: bool,
    /// When its deadline is looked at: not after it.
    looked_at: Option<Instant>,
}

/// What a session's turn came to.
enum Stay {
    /// The client must do something first.
    Waits(Interest),
    /// It can go on at once.
    Ready,
    /// Its stream's handler is to have it.
    Stream(StreamTask),
    Over,
}

/// Sessions that come back from other threads.
struct Returned {
    drivers: Mutex<VecDeque<Box<Driver>>>,
    control: Control,
}

impl Returned {
    fn give(&self, driver: Box<Driver>) {
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        drivers.push_back(driver);
        drop(drivers);
        self.control.gate().waker().wake();
    }

    fn take(&self) -> VecDeque<Box<Driver>> {
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *drivers)
    }
}

impl Evented {
    pub(super) fn start(site: Arc<Site>) -> io::Result<Evented> {
        let control = &site.control;
        let events = Arc::new(EventSet::new()?);
        events.watch(control.gate().waker().as_fd(), WAKER)?;
        let strangers = site.limits.max_unauthenticated;
        let connections = Connections::new(control.clone(), strangers, site.ports.len());
        let (hosts, watched) = (Arc::clone(&connections), Arc::clone(&events));
        Ok(Evented {
            reception: Reception::open(Arc::clone(&site), hosts, watched)?,
            connections,
            events,
            seats: Numbered::default(),
            deadlines: Deadlines::default(),
            ready: VecDeque::new(),
            returned: Arc::new(Returned {
                drivers: Mutex::default(),
                control: control.clone(),
            }),
            threads: Threads::default(),
            spinner: Spinner::new(site.wait),
            names: Vec::new(),
            site,
        })
    }

    /// Serves until the duties say that the server is to stop, or the system lets nobody wait any more.
    pub(super) fn run(&mut self, duties: &mut dyn Duties) {
        if self.events.watch(duties.as_fd(), DUTIES).is_err() {
            return;
        }
        while let Ok(called) = self.round(None) {
            if called && !duties.attend(self) {
                break;
            }
        }
        self.events.forget(duties.as_fd());
    }

    pub(super) fn begin_drain(&mut self) {
        self.reception.stop();
        self.connections.drain(&self.site.ports);
    }

    pub(super) fn finish_drain(
        mut self,
        tell_at: Option<Instant>,
        deadline: Option<Instant>,
    ) -> bool {
        let site = Arc::clone(&self.site);
        let finished = loop {
            let is_told = site.stop.is_stopped();
            match self.connections.wait_for_all(Instant::now()) {
                Left::Nothing => break true,
                _ if has_come(deadline) => break false,
                Left::Dedicated if !is_told => site.stop.stop(StopReason::ServerStopping),
                Left::Calls if !is_told && has_come(tell_at) => {
                    site.stop.stop(StopReason::ServerStopping);
                }
                _ => {}
            }
            let until = [deadline, tell_at.filter(|_| !is_told)];
            if self.round(until.into_iter().flatten().min()).is_err() {
                break false;
            }
        };
        match finished {
            true => {
                self.threads.end();
                self.reception.turn_away_all();
            }
            // Streams shall not wait for their clients for ever in a process that goes on.
            false => self.connections.cut(),
        }
        finished
    }

    /// Waits for something to do, and gives everybody who has something a turn. `true`: duty calls.
    fn round(&mut self, until: Option<Instant>) -> io::Result<bool> {
        let until = match self.ready.is_empty() {
            true => [self.deadlines.first(), self.reception.sleep_until(), until]
                .into_iter()
                .flatten()
                .min(),
            false => Some(Instant::now()),
        };
        self.reception.end_turns();
        let mut names = std::mem::take(&mut self.names);
        let waited = self.wait(&mut names, until);
        if self.ready.len() > 1 || names.iter().any(|name| !self.has_turn_to_come(*name)) {
            self.send_before_others();
        }
        let mut called = false;
        for name in names.drain(..) {
            match (name, listener_of(name)) {
                (WAKER, _) => self.take_back(),
                (DUTIES, _) => called = true,
                (_, Some(listener)) => {
                    if let Some(driver) = self.reception.accept(listener) {
                        self.seat(driver);
                    }
                }
                (session, None) => self.wake(session),
            }
        }
        self.names = names;
        for _ in 0..self.ready.len() {
            if let Some(session) = self.ready.pop_front() {
                if let Some(seat) = self.seats.get_mut(&session) {
                    seat.is_queued = false;
                }
                self.give_turn(session);
            }
        }
        self.expire();
        self.reception.review();
        waited.map(|()| called)
    }

    /// Waits for events, and says what they are about.
    fn wait(&mut self, names: &mut Vec<u64>, until: Option<Instant>) -> io::Result<()> {
        let events = &self.events;
        let looked = self.spinner.spin(|| {
            let looked = events.all(names, Some(Instant::now()));
            (looked.is_err() || !names.is_empty()).then_some(looked)
        });
        looked.unwrap_or_else(|| events.all(names, until))
    }

    /// Whether an event is about a session that let others go first, and has its turn whatever has come for it.
    fn has_turn_to_come(&self, session: u64) -> bool {
        self.seats.get(&session).is_some_and(|seat| seat.is_queued)
    }

    /// What those have who let others go first does not wait for these.
    fn send_before_others(&mut self) {
        for session in &self.ready {
            if let Some(seat) = self.seats.get_mut(session) {
                seat.driver.send_now();
            }
        }
    }

    /// Takes what other threads have given back.
    fn take_back(&mut self) {
        self.site.control.gate().waker().clear();
        for driver in self.returned.take() {
            self.seat(driver);
        }
        for session in self.site.office.take() {
            // One that posts to itself is named as often as it did.
            if !self.has_turn_to_come(session) {
                self.give_turn(session);
            }
        }
    }

    /// A session begins, or comes back.
    fn seat(&mut self, driver: Box<Driver>) {
        let session = driver.id();
        let seat = Seat {
            driver,
            watched: None,
            is_queued: false,
            looked_at: None,
        };
        self.seats.insert(session, seat);
        self.give_turn(session);
    }

    /// What a session was waiting for has come.
    fn wake(&mut self, session: u64) {
        // It may have ended in the same round. One that let others go first has its turn anyway, and receives nothing
        // before it has done what it has received.
        let Some(seat) = self.seats.get_mut(&session).filter(|seat| !seat.is_queued) else {
            return;
        };
        match seat.driver.resume() {
            Turn::Over => drop(self.leave(session)),
            _ => self.give_turn(session),
        }
    }

    fn give_turn(&mut self, session: u64) {
        let is_alone = self.seats.len() == 1;
        let Some(seat) = self.seats.get_mut(&session) else {
            return;
        };
        match take_turn(&mut seat.driver, is_alone) {
            Stay::Waits(interest) => self.rest(session, interest),
            Stay::Ready => {
                if !std::mem::replace(&mut seat.is_queued, true) {
                    self.ready.push_back(session);
                }
            }
            Stay::Over => drop(self.leave(session)),
            Stay::Stream(task) => {
                let Some(driver) = self.leave(session) else {
                    return;
                };
                let returned = Arc::clone(&self.returned);
                let stop = driver.stop_token();
                let back = move |driver| returned.give(driver);
                self.threads.dedicate(driver, task, &stop, back);
            }
        }
    }

    /// A session has nothing to do until its client does what it waits for, or its deadline passes.
    fn rest(&mut self, session: u64, interest: Interest) {
        let Some(seat) = self.seats.get_mut(&session) else {
            return;
        };
        let deadline = seat.driver.prepare_to_rest(interest);
        // One that is looked at too early is looked at again; one that has no deadline must not keep the clock busy.
        if deadline.is_none_or(|deadline| seat.looked_at.is_none_or(|moment| deadline < moment)) {
            let before = std::mem::replace(&mut seat.looked_at, deadline);
            self.deadlines.change(session, before, deadline);
        }
        if seat.watched == Some(interest) {
            return;
        }
        let is_known = seat.watched.replace(interest).is_some();
        let socket = seat.driver.socket();
        let watched = self
            .events
            .keep(socket.as_fd(), session, interest, is_known);
        if watched.is_err() {
            // The system has no memory for it.
            drop(self.leave(session));
        }
    }

    /// Nothing is known of a session any more.
    fn leave(&mut self, session: u64) -> Option<Box<Driver>> {
        let seat = self.seats.remove(&session)?;
        if let Some(moment) = seat.looked_at {
            self.deadlines.remove(moment, session);
        }
        if seat.watched.is_some() {
            // A process that a handler has started may have the socket, too: then closing it would not do.
            self.events.forget(seat.driver.socket().as_fd());
        }
        Some(seat.driver)
    }

    /// Gives sessions a turn whose deadlines have passed.
    fn expire(&mut self) {
        if !has_come(self.deadlines.first()) {
            return;
        }
        let now = Instant::now();
        while let Some(session) = self.deadlines.expired(now) {
            let Some(seat) = self.seats.get_mut(&session) else {
                return;
            };
            if let Some(moment) = seat.looked_at.take() {
                self.deadlines.remove(moment, session);
            }
            match seat.driver.deadline() {
                Some(deadline) if deadline > now => {
                    seat.looked_at = Some(deadline);
                    self.deadlines.insert(deadline, session);
                }
                Some(_) => {
                    // What it waits for may have come while nobody had the time to look.
                    seat.driver.moves_after_all();
                    self.give_turn(session);
                }
                None => {}
            }
        }
    }
}

impl Host for Evented {
    fn serve(&mut self, socket: OwnedFd) -> io::Result<()> {
        if let Some(driver) = self.reception.take_on(socket)? {
            self.seat(driver);
        }
        Ok(())
    }

    fn review(&mut self) {
        self.reception.review();
    }

    fn look_again(&mut self) {
        self.reception.look_again();
    }
}

/// Does what a session wants and can do without waiting, for as long as a turn is.
fn take_turn(driver: &mut Driver, is_alone: bool) -> Stay {
    let length = if is_alone { LONG_TURN } else { TURN };
    let (mut is_served, mut begun, mut moves) = (false, None, 0);
    loop {
        match driver.turn(false) {
            Turn::Call => {
                is_served = true;
                // The clock is looked at only if more has come than this call.
                if begun.is_none() && driver.has_input() {
                    begun = Some(Instant::now());
                }
                if let Some(task) = driver.answer(None) {
                    return Stay::Stream(task);
                }
                match begun {
                    _ if !driver.has_input() => driver.send_now(),
                    Some(begun) if begun.elapsed() >= length => return Stay::Ready,
                    _ => {}
                }
            }
            Turn::Request(request) => {
                if let Some(task) = driver.answer_request(request) {
                    return Stay::Stream(task);
                }
            }
            Turn::Delivered => {
                let begun = *begun.get_or_insert_with(Instant::now);
                if driver.has_input() && begun.elapsed() >= length {
                    return Stay::Ready;
                }
            }
            Turn::Moved if moves == MOVES => return Stay::Ready,
            Turn::Moved => moves += 1,
            Turn::Waits(interest) => return Stay::Waits(interest),
            Turn::Over => return Stay::Over,
        }
        // It has been answered, and will need time for its next call.
        if is_served && driver.falls_silent() {
            return Stay::Waits(Interest::Readable);
        }
    }
}
