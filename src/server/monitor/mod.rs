//! The monitor: it forks the workers, sees to it that there are as many as there shall be, and outlives them.
//!
//! Invariant: it reads no client's byte, runs no handler and has one thread; only its own children are waited for and
//! signalled. Nothing that a worker says or does makes it wait.

mod ending;
mod orders;
mod telling;
mod time;
mod watch;

use self::orders::{Question, Totals};
use self::watch::Traces;
use super::Server;
use super::serve::Ending;
use super::setup::{self, at};
use super::worker::{self, Legacy};
use crate::child::{Child, Ties};
use crate::context::Control;
use crate::control::{Failure, Order, Post, Report, Wish};
use crate::exit::Exit;
use crate::listener::Bound;
use crate::prefork::{Act, Hung, Pool, Prefork};
use crate::scoreboard::{Board, PoolEvent, Region};
use crate::sys::clock;
use crate::sys::epoll::EventSet;
use crate::sys::signal::Signals;
use crate::worker::Worker;
use crate::{Signal, StartError};
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

/// What the events are about: in the lower byte what, above whose, which is a worker's generation or a listener's place.
const LIFELINE: u64 = 0;
const ORDERS: u64 = 1;
const SIGNALS: u64 = 2;
const WAKER: u64 = 3;
const PROCESS: u64 = 4;
const LINE: u64 = 5;
const LISTENER: u64 = 6;

fn name(what: u64, whose: u32) -> u64 {
    u64::from(whose) << 8 | what
}

/// A process that has workers.
pub(super) struct Monitor<'a> {
    server: &'a Server,
    prefork: &'a Prefork,
    control: Control,
    bound: Vec<Bound>,
    signals: Signals,
    events: EventSet,
    board: Arc<Board>,
    pool: Pool,
    /// By generation.
    workers: HashMap<u32, Process>,
    hung: Option<Hung>,
    /// When it looked at the time last.
    awake: Instant,
    /// When the hung are looked for again, by the coarse clock.
    next_look: u64,
    traces: Traces,
    /// Workers that hear nothing any more, by generation, and until when they may live.
    deaf: Vec<(u32, Instant)>,
    /// What its owner is told.
    to_owner: Post<Report>,
    /// What its owner asked for and has not been answered.
    questions: Vec<Question>,
    /// Those who wait for the end of a reload.
    reloads: Vec<u64>,
    totals: Totals,
    /// Who gets the next connection of the owner's.
    next_served: usize,
    /// Until all serve, a failure is the start's.
    is_up: bool,
    failure: Option<Failure>,
}

/// A worker's process.
struct Process {
    worker: Worker,
    child: Child,
    /// What it is told.
    post: Post<Order>,
    place: usize,
    region: Region,
}

impl<'a> Monitor<'a> {
    pub(super) fn new(
        server: &'a Server,
        prefork: &'a Prefork,
        control: Control,
        bound: Vec<Bound>,
        signals: Signals,
    ) -> Result<Monitor<'a>, Failure> {
        let clean_up = |_: &Failure| setup::remove_files(&bound);
        let (cells, names) = (server.limits.max_threads, server.service.names());
        let board = Board::new(cells.max(1), prefork.call_timeout, names);
        let board = at("board", board).inspect_err(clean_up)?;
        let events = at("events", EventSet::new()).inspect_err(clean_up)?;
        let seed = u64::from(std::process::id()) << 32 | clock::coarse() & 0xffff_ffff;
        let (uptime, start, grace) = (prefork.min_uptime, server.start_timeout, server.grace);
        let hung = |timeout| Hung::new(timeout, prefork.kill_after);
        Ok(Monitor {
            pool: Pool::new(prefork.workers, uptime, start, grace, seed),
            hung: prefork.call_timeout.map(hung),
            awake: Instant::now(),
            next_look: 0,
            traces: Traces::new(),
            server,
            prefork,
            control,
            bound,
            signals,
            events,
            board,
            workers: HashMap::new(),
            deaf: Vec::new(),
            to_owner: Post::new(ORDERS),
            questions: Vec::new(),
            reloads: Vec::new(),
            totals: Totals::default(),
            next_served: 0,
            is_up: false,
            failure: None,
        })
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    pub(super) fn remove_files(&self) {
        setup::remove_files(&self.bound);
    }

    /// Serves until it has to stop, and stops. The owner gets the report when all workers serve. `false`: see `end`.
    ///
    /// # Errors
    /// A worker could not be started, at the start.
    pub(super) fn run(
        mut self,
        owner: Option<(Ties, Report)>,
    ) -> Result<(Ending, bool), StartError> {
        let (ties, mut report) =
            owner.map_or((None, None), |(ties, report)| (Some(ties), Some(report)));
        let ending = self
            .open(ties.as_ref())
            .and_then(|()| self.until_told(ties.as_ref(), &mut report));
        if let Some(failure) = self.failure.take() {
            self.kill_all();
            self.remove_files();
            if let Some(ties) = &ties {
                ties.report_failure(failure.clone());
            }
            return Err(failure.into());
        }
        // Without a reason, the system had no memory for going on.
        Ok(self.end(ending.unwrap_or(Ending::Asked), ties))
    }

    fn open(&self, ties: Option<&Ties>) -> io::Result<()> {
        if let Some(ties) = ties {
            self.events.watch(ties.lifeline(), LIFELINE)?;
            self.events.watch(ties.control.as_fd(), ORDERS)?;
        }
        self.events.watch(self.signals.as_fd(), SIGNALS)?;
        self.events.watch(self.control.waker().as_fd(), WAKER)
    }

    fn until_told(
        &mut self,
        ties: Option<&Ties>,
        report: &mut Option<Report>,
    ) -> io::Result<Ending> {
        loop {
            self.see_to_workers(ties);
            if self.failure.is_some() || self.pool.is_hopeless() {
                return Ok(Ending::Asked);
            }
            if !self.is_up && self.pool.is_up() {
                self.is_up = true;
                if let (Some(ties), Some(report)) = (ties, report.take()) {
                    // An owner that is gone needs no report; the lifeline tells.
                    let _ = ties.control.send(&report, None);
                }
            }
            self.answer_overdue(ties);
            let event = self.wait()?;
            let Some(event) = event else { continue };
            if let Some(ending) = self.look_after(event, ties) {
                return Ok(ending);
            }
        }
    }

    /// Does what the pool wants done, and looks for calls that hang.
    fn see_to_workers(&mut self, ties: Option<&Ties>) {
        while let Some(act) = self.next_act() {
            match act {
                Act::Fork(worker) => self.fork(worker, ties),
                Act::Stop(worker) => self.stop(worker),
                Act::Kill(worker) => self.signal(worker, Signal::SIGKILL),
                Act::Tell(event) => self.tell(event, ties),
            }
        }
        self.look_for_hung();
        self.kill_deaf();
        let (wanted, deaths) = (self.pool.wanted(), self.pool.deaths());
        let (is_loop, reloads) = (self.pool.is_crash_loop(), self.pool.is_reloading());
        self.board.set_pool(wanted, deaths, is_loop, reloads);
    }

    fn fork(&mut self, worker: Worker, ties: Option<&Ties>) {
        let place = self.board.claim(worker);
        let (server, prefork) = (self.server, self.prefork);
        let (control, board) = (self.control.clone(), Arc::clone(&self.board));
        let monitors = self.descriptors(ties);
        let bound = &mut self.bound;
        let child = Child::spawn(false, |ties| {
            let legacy = Legacy {
                server,
                prefork,
                worker,
                control,
                // The copy of them that this process has.
                bound: std::mem::take(bound),
                board,
                region: place,
                monitors,
            };
            worker::serve(legacy, ties)
        });
        let watched = child.and_then(|child| {
            self.board.set_pid(place, child.pid);
            // Nobody would learn of its end.
            self.watch(worker, &child)
                .inspect_err(|_| child.kill_now())?;
            Ok(child)
        });
        match watched {
            Ok(child) => {
                let region = self.board.region(place);
                let process = Process {
                    worker,
                    child,
                    post: Post::new(name(LINE, worker.generation)),
                    place,
                    region,
                };
                self.workers.insert(worker.generation, process);
            }
            Err(err) => {
                self.board.set_end(place, Exit::Unknown);
                self.control.observer().failed(None, "fork", &err);
                self.pool
                    .not_forked(worker.generation, err.to_string(), Instant::now());
                self.fails_to_start(|| Failure::new("fork", err, false));
            }
        }
    }

    /// What no worker may have: the lines of this process, those of other workers, and the locks on its paths.
    fn descriptors(&self, ties: Option<&Ties>) -> Vec<RawFd> {
        let of_owner = ties.into_iter().flat_map(Ties::descriptors);
        let own = [self.events.as_fd().as_raw_fd()];
        let locks = self.bound.iter().filter_map(Bound::lock);
        let workers = self.workers.values();
        let of_workers = workers.flat_map(|process| process.child.descriptors());
        of_owner
            .chain(own)
            .chain(self.signals.descriptors())
            .chain(locks)
            .chain(of_workers)
            .collect()
    }

    /// Until all serve, a worker that fails ends the start.
    fn fails_to_start(&mut self, failure: impl FnOnce() -> Failure) {
        if !self.is_up && self.failure.is_none() {
            self.failure = Some(failure());
        }
    }

    fn signal(&self, worker: Worker, signal: Signal) {
        if let Some(process) = self.workers.get(&worker.generation) {
            // One that is gone already is told of by its pidfd.
            let _ = process.child.signal(signal);
        }
    }

    /// Looks after one thing that has happened. A reason to stop is the result.
    fn look_after(&mut self, event: u64, ties: Option<&Ties>) -> Option<Ending> {
        let whose = (event >> 8) as u32;
        match event & 0xff {
            LIFELINE => return Some(Ending::Orphaned),
            ORDERS => return ties.and_then(|ties| self.obey(ties)),
            SIGNALS => return self.take_signals(),
            WAKER => {
                self.control.waker().clear();
                return self.control.stop_is_wanted().then_some(Ending::Asked);
            }
            LINE => return self.hear(whose, ties),
            PROCESS => drop(self.has_ended(whose, ties)),
            _ => {}
        }
        None
    }

    fn take_signals(&mut self) -> Option<Ending> {
        for number in self.signals.pending() {
            let is_it = |signal: Signal| signal as i32 == number;
            let mut handled = self.server.signals.iter().map(|(signal, _)| *signal);
            if let Some(signal) = handled.find(|signal| is_it(*signal)) {
                for process in self.workers.values() {
                    let _ = process.child.signal(signal);
                }
            } else if is_it(Signal::SIGHUP) {
                self.pool.reload();
            } else if is_it(Signal::SIGTTIN) {
                self.resize(1);
            } else if is_it(Signal::SIGTTOU) {
                self.resize(-1);
            } else {
                return Some(Ending::Signal(number));
            }
        }
        None
    }

    /// What a worker says.
    fn hear(&mut self, generation: u32, ties: Option<&Ties>) -> Option<Ending> {
        let process = self.workers.get_mut(&generation)?;
        process.post.flush(&process.child.control, &self.events);
        let said = process.child.control.receive(Some(Instant::now()));
        match said {
            Ok(Some(report)) => self.heed(generation, report, ties),
            Err(err) if err.kind() == io::ErrorKind::TimedOut => None,
            // Its end, or nothing that can be understood: its process is all that counts from now on.
            Ok(None) | Err(_) => {
                self.events.forget(process.child.control.as_fd());
                process.post.clear();
                self.is_deaf(generation);
                None
            }
        }
    }

    fn heed(&mut self, generation: u32, report: Report, ties: Option<&Ties>) -> Option<Ending> {
        let now = Instant::now();
        match report {
            Report::Ready => {
                if let Some(process) = self.workers.get(&generation) {
                    self.board.set_serving(process.place, process.worker);
                    self.pool.ready(generation, process.child.pid, now);
                }
            }
            Report::Failed(failure) => {
                let reason = failure.message.clone();
                match (failure.in_hook, failure.panicked) {
                    (true, false) => self.pool.failed(generation, reason, now),
                    // What has panicked may go well another time, and counts as a death.
                    (true, true) => {}
                    // As does what the system has refused.
                    (false, _) => self.tell(PoolEvent::NotForked { reason }, ties),
                }
                self.fails_to_start(|| failure);
            }
            Report::Answer { number, result } => {
                self.is_answered(generation, number, result.ok());
                self.answer_complete(ties);
            }
            Report::Wish(Wish::Stop) => return Some(Ending::Asked),
            Report::Wish(Wish::Do(request)) => self.grant(generation, &request),
            Report::Wish(Wish::Retire(reason)) => self.pool.wears_out(generation, reason),
            Report::Wish(Wish::Look) => self.have_others_look(generation),
            // Workers say nothing else.
            Report::Bound(_) | Report::ReadyAt(_) | Report::Happened(_) => {}
        }
        None
    }

    /// A worker's process has ended.
    fn has_ended(&mut self, generation: u32, ties: Option<&Ties>) -> Option<Exit> {
        let process = self.workers.get(&generation)?;
        let exit = process.child.wait(Some(Instant::now())).ok().flatten()?;
        // First of all: its clients are asking.
        self.board.set_end(process.place, exit);
        // It may have said why.
        while let Some(process) = self.workers.get(&generation) {
            match process.child.control.receive(Some(Instant::now())) {
                Ok(Some(report)) => {
                    if self.heed(generation, report, ties).is_some() {
                        // It has stopped the server, and itself at once.
                        self.control.stop();
                    }
                }
                _ => break,
            }
        }
        let process = self.workers.remove(&generation)?;
        let worker = process.worker;
        self.have_others_look(generation);
        self.events.forget(process.child.as_fd());
        self.events.forget(process.child.control.as_fd());
        self.totals.add(&process.region);
        if let Some(hung) = &mut self.hung {
            hung.forget(process.worker);
        }
        self.traces.retain(|(of, _), _| *of != generation);
        let has_served = self.pool.ready_workers().any(|ready| ready == worker);
        if !has_served {
            let text = format_args!("it died before it served: {exit}");
            self.fails_to_start(|| Failure::new("worker", text, false));
        }
        self.pool.ended(generation, exit, Instant::now());
        self.is_answered_by_nobody(generation);
        self.answer_complete(ties);
        Some(exit)
    }
}
