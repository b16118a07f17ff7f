//! What is watched of workers: their lines and their ends, calls that hang, and what is done about those.
//!
//! Invariant: what a worker shows decides whether it is killed, and never who is.

use super::{LINE, Monitor, PROCESS, name};
use crate::Signal;
use crate::child::Child;
use crate::prefork::Measure;
use crate::scoreboard::{Doing, PoolEvent};
use crate::sys::{clock, trace};
use crate::worker::Worker;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// So much of a trace is told.
const MAX_FRAMES: usize = 12;
/// The three functions of `sys::trace` that write a trace down, and what the kernel puts in between.
const OWN_FRAMES: usize = 4;
/// So much of a name in what is told.
const MAX_TEXT: usize = 100;

/// Where threads were when they were asked, the innermost first: by their workers' generations and their own numbers.
pub(super) type Traces = HashMap<(u32, i32), Vec<u64>>;

impl Monitor<'_> {
    /// Has events tell what a worker says, and of its end.
    pub(super) fn watch(&self, worker: Worker, child: &Child) -> io::Result<()> {
        let whose = worker.generation;
        self.events.watch(child.as_fd(), name(PROCESS, whose))?;
        self.events.watch(child.control.as_fd(), name(LINE, whose))
    }

    /// A worker has let its line go: it ends at once, or what runs there is another program by now. Or it has not read for
    /// so long that it has missed something.
    pub(super) fn is_deaf(&mut self, generation: u32) {
        if self.deaf.iter().any(|(deaf, _)| *deaf == generation) {
            return;
        }
        let until = Instant::now().checked_add(self.server.grace);
        self.deaf.extend(until.map(|until| (generation, until)));
    }

    /// Kills workers that nobody can tell anything any more, and that have not ended.
    pub(super) fn kill_deaf(&mut self) {
        let now = Instant::now();
        let (due, rest) = std::mem::take(&mut self.deaf)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, until)| *until <= now);
        self.deaf = rest;
        for (generation, _) in due {
            let mut staying = self.pool.staying_workers();
            // Those that leave have their own time for that.
            let Some(worker) = staying.find(|worker| worker.generation == generation) else {
                continue;
            };
            drop(staying);
            self.pool.kills(generation, now);
            self.signal(worker, Signal::SIGKILL);
        }
    }

    pub(super) fn look_for_hung(&mut self) {
        let now = clock::coarse();
        // Behind that, so that an absence in between is noticed.
        self.now();
        let Some(hung) = &mut self.hung else { return };
        if now < self.next_look {
            return;
        }
        let workers = self.workers.values();
        let seen = workers.map(|process| (process.worker, &process.region));
        let (measures, next) = hung.look(now, seen);
        self.next_look = next;
        for measure in measures {
            match measure {
                Measure::Ask(worker, doing) => self.ask_where(worker, doing),
                Measure::Kill(worker, doing) => self.kill_hung(worker, doing, now),
            }
        }
    }

    fn ask_where(&mut self, worker: Worker, doing: Doing) {
        self.read_trace(worker.generation);
        // Of another call.
        self.traces.remove(&(worker.generation, doing.thread));
        if let Some(process) = self.workers.get(&worker.generation) {
            // A thread that is gone has nothing to say.
            let _ = trace::ask(process.child.pid, doing.thread);
        }
    }

    /// Takes what a thread has written down, so that another one can.
    fn read_trace(&mut self, generation: u32) {
        let Some(process) = self.workers.get(&generation) else {
            return;
        };
        let trace = self.board.trace(process.place);
        let Some((thread, count)) = trace::heading(trace[0].load(Ordering::Acquire)) else {
            return;
        };
        let frames = trace[1..].iter().map(|word| word.load(Ordering::Relaxed));
        let frames = frames.take(count).skip(OWN_FRAMES).take(MAX_FRAMES);
        self.traces.insert((generation, thread), frames.collect());
        trace[0].store(0, Ordering::Release);
    }

    fn kill_hung(&mut self, worker: Worker, doing: Doing, now: u64) {
        self.read_trace(worker.generation);
        let Some(process) = self.workers.get(&worker.generation) else {
            return;
        };
        if is_traced(process.child.pid) {
            return;
        }
        let frames = self.traces.remove(&(worker.generation, doing.thread));
        let name = self.board.name(doing.name).map(str::to_owned);
        let event = PoolEvent::Hung {
            worker,
            name: name.map(|name| name.chars().take(MAX_TEXT).collect()),
            call: doing.call,
            age: Duration::from_nanos(now.saturating_sub(doing.since)),
            trace: in_words(&frames.unwrap_or_default()),
        };
        self.signal(worker, Signal::SIGKILL);
        if self.pool.kills(worker.generation, Instant::now()) {
            self.tell(event, None);
        }
    }
}

/// Whether a debugger has this process, which is ours and has not been reaped.
fn is_traced(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mut lines = status.lines();
    let tracer = lines.find_map(|line| line.strip_prefix("TracerPid:"));
    tracer.is_some_and(|tracer| tracer.trim() != "0")
}

/// Addresses as file and offset. A worker is a copy of this process: what it has loaded since is not known here.
fn in_words(addresses: &[u64]) -> Vec<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let found = addresses
        .iter()
        .filter_map(|address| place(&maps, *address));
    found.collect()
}

/// Lines like `55d0c000-55d0d000 r-xp 00001000 fe:00 123   /usr/bin/app`. A file's first part is where its addresses
/// begin.
fn place(maps: &str, address: u64) -> Option<String> {
    let parse = |line: &str| {
        let mut words = line.split_whitespace();
        let (from, to) = words.next()?.split_once('-')?;
        let path = words.nth(4)?.to_owned();
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some((number(from)?..number(to)?, path))
    };
    let parts: Vec<_> = maps.lines().filter_map(parse).collect();
    let (_, path) = parts.iter().find(|(range, _)| range.contains(&address))?;
    let (first, _) = parts.iter().find(|(_, other)| other == path)?;
    let file = Path::new(path).file_name()?.to_string_lossy();
    let file: String = file.chars().take(MAX_TEXT).collect();
    Some(format!("{file}+{:#x}", address - first.start))
}
