//! What a monitor and its workers tell each other without a word: numbers in memory that all of them see.
//!
//! Invariant: a worker writes to its own region only, and the monitor alone to the head. What workers write is taken for
//! numbers that may be anything: no process, descriptor or place is ever found by them.

mod events;
mod region;
mod status;

pub(crate) use self::region::{Doing, Fate, Region, counter};
pub use self::status::{
    CallStatus, PoolEvent, PoolStatus, ReplaceReason, WorkerPhase, WorkerStatus,
};

use crate::exit::Exit;
use crate::sys::clock;
use crate::sys::shared::{PAGE, SharedWords};
use crate::worker::Worker;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The most workers of a server.
pub(crate) const MAX_WORKERS: usize = 255;
/// As many regions: those of the dead are kept for as long as no others are left, for whoever asks how they died.
const REGIONS: usize = 512;

/// The head: first the pool's own numbers.
const WANTED: usize = 0;
const DEATHS: usize = 1;
const IS_CRASH_LOOP: usize = 2;
const IS_RELOADING: usize = 3;
/// Then, for each region, whose it is.
const ENTRIES: usize = 8;
const GENERATION: usize = 0;
const PROCESS: usize = 1;
const END: usize = 2;
const SINCE: usize = 3;
const ENTRY: usize = 4;
/// Then what has happened.
const EVENTS: usize = ENTRIES + REGIONS * ENTRY;
/// And, for each slot, the region of the worker that serves there, and 1; 0: none does.
const SERVING: usize = EVENTS + events::LEN;

/// Where it is.
#[derive(Debug)]
enum Words {
    /// In memory that the processes share which are forked later.
    Shared(SharedWords),
    /// In ordinary memory, which costs neither a file in memory nor a page of its own.
    Own(Box<[AtomicU64; region::HEADER]>),
}

/// The whole of it.
#[derive(Debug)]
pub(crate) struct Board {
    words: Words,
    regions: usize,
    /// How many calls each can show.
    cells: usize,
    /// How long a call may take before somebody does something about it, in nanoseconds.
    patience: Option<u64>,
    /// The handlers' names, by number.
    names: Vec<String>,
}

impl Board {
    /// A board for as many workers as there can be, each of which answers `cells` calls at a time, and may take `patience` for
    /// each.
    pub(crate) fn new(
        cells: usize,
        patience: Option<Duration>,
        names: Vec<String>,
    ) -> io::Result<Arc<Board>> {
        let len = head_len() + REGIONS * region::len(cells);
        Ok(Arc::new(Board {
            words: Words::Shared(SharedWords::new(len)?),
            regions: REGIONS,
            cells,
            patience: patience.map(clock::nanos),
            names,
        }))
    }

    /// A board for one server, which nobody else looks at.
    pub(crate) fn of_one() -> Arc<Board> {
        Arc::new(Board {
            words: Words::Own(Box::new([const { AtomicU64::new(0) }; region::HEADER])),
            regions: 0,
            cells: 0,
            patience: None,
            names: Vec::new(),
        })
    }

    /// Whether there is a monitor, who writes to the head.
    pub(crate) fn has_head(&self) -> bool {
        self.regions > 0
    }

    /// The name of a handler, if the number is one's.
    pub(crate) fn name(&self, number: u64) -> Option<&str> {
        let number = usize::try_from(number).ok()?;
        self.names.get(number).map(String::as_str)
    }

    fn words(&self) -> &[AtomicU64] {
        match &self.words {
            Words::Shared(words) => words.words(),
            Words::Own(words) => &**words,
        }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        &self.words()[index]
    }

    fn load(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    fn store(&self, index: usize, value: u64) {
        self.word(index).store(value, Ordering::Release);
    }

    fn range_of(&self, region: usize) -> Range<usize> {
        let first = match self.has_head() {
            true => head_len() + region * region::len(self.cells),
            false => 0,
        };
        let len = match self.has_head() {
            true => region::len(self.cells),
            false => region::HEADER,
        };
        first..first + len
    }

    /// One worker's part, or that of the only server.
    pub(crate) fn region(self: &Arc<Board>, index: usize) -> Region {
        Region::new(Arc::clone(self), self.range_of(index))
    }

    /// Where a worker's signal handler may write where its thread is: how many addresses, and the addresses.
    pub(crate) fn trace(&self, region: usize) -> &[AtomicU64] {
        let first = self.range_of(region).start + region::TRACE;
        &self.words()[first..=first + region::MAX_TRACE]
    }

    /// Keeps this process from writing to anything but its own region.
    pub(crate) fn protect_except(&self, region: usize) -> io::Result<()> {
        match &self.words {
            Words::Shared(words) => words.protect_except(self.range_of(region)),
            Words::Own(_) => Ok(()),
        }
    }

    fn entry(region: usize) -> usize {
        ENTRIES + region * ENTRY
    }

    /// Gives a new worker a region: one that was never used, or that of whoever has been dead for longest.
    pub(crate) fn claim(&self, worker: Worker) -> usize {
        let age = |region: &usize| match self.entry_of(*region) {
            Some(entry) if entry.end.is_none() => u64::MAX,
            Some(entry) => entry.worker.generation.into(),
            None => 0,
        };
        // There are more regions than workers, so that one of the dead is found.
        let region = (0..self.regions).min_by_key(age).unwrap_or(0);
        let entry = Board::entry(region);
        let former = self.word(entry + GENERATION).swap(0, Ordering::AcqRel);
        if former != 0 {
            let words = &self.words()[self.range_of(region)];
            words
                .iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
        }
        self.store(entry + END, 0);
        self.store(entry + PROCESS, u64::from(worker.slot) << 32);
        self.store(entry + SINCE, clock::coarse());
        self.store(entry + GENERATION, worker.generation.into());
        region
    }

    /// A region's worker serves.
    pub(crate) fn set_serving(&self, region: usize, worker: Worker) {
        if (worker.slot as usize) < MAX_WORKERS {
            self.store(SERVING + worker.slot as usize, region as u64 + 1);
        }
    }

    /// Whether somebody serves fewer connections than so many, and no call.
    pub(crate) fn has_idler(self: &Arc<Board>, connections: u64) -> bool {
        let wanted = usize::try_from(self.load(WANTED)).unwrap_or(0);
        let serving = (0..wanted.min(MAX_WORKERS)).map(|slot| self.load(SERVING + slot));
        let regions = serving.filter_map(|region| usize::try_from(region).ok()?.checked_sub(1));
        let is_idler = |region: usize| self.region(region).is_idler_than(connections);
        regions
            .filter(|region| *region < self.regions)
            .any(is_idler)
    }

    /// The process of a region's worker.
    pub(crate) fn set_pid(&self, region: usize, pid: u32) {
        self.word(Board::entry(region) + PROCESS)
            .fetch_or(pid.into(), Ordering::AcqRel);
    }

    /// A region's worker has ended.
    pub(crate) fn set_end(&self, region: usize, exit: Exit) {
        let (kind, number) = match exit {
            Exit::Code(code) => (1, code),
            Exit::Signal(signal) => (2, signal),
            Exit::Unknown => (3, 0),
        };
        let end = kind << 32 | u64::from(number as u32);
        self.store(Board::entry(region) + END, end);
        let mut places = (SERVING..SERVING + MAX_WORKERS).map(|place| self.word(place));
        if let Some(place) = places.find(|place| place.load(Ordering::Relaxed) == region as u64 + 1)
        {
            place.store(0, Ordering::Release);
        }
    }

    /// Whose a region is, if it is anybody's.
    fn entry_of(&self, region: usize) -> Option<Entry> {
        let entry = Board::entry(region);
        let generation = self.load(entry + GENERATION);
        if generation == 0 {
            return None;
        }
        let (process, end) = (self.load(entry + PROCESS), self.load(entry + END));
        let number = end as u32 as i32;
        Some(Entry {
            worker: Worker {
                slot: (process >> 32) as u32,
                generation: generation as u32,
            },
            pid: process as u32,
            end: match end >> 32 {
                0 => None,
                1 => Some(Exit::Code(number)),
                2 => Some(Exit::Signal(number)),
                _ => Some(Exit::Unknown),
            },
            since: self.load(entry + SINCE),
        })
    }

    /// What became of the worker that had a connection, and of what its client has called. `generation`: 0 if the client does
    /// not know which worker that was.
    pub(crate) fn fate(self: &Arc<Board>, tag: u64, generation: u32) -> Fate {
        let mut unseen = Fate::Unknown;
        for region in 0..self.regions {
            let Some(entry) = self.entry_of(region) else {
                continue;
            };
            let session = self.region(region).session(tag);
            match (session, entry.end) {
                (None, end) if entry.worker.generation == generation => {
                    unseen = match end {
                        Some(exit) => Fate::Died(entry.worker, exit, None),
                        None => Fate::Lives,
                    };
                }
                (None, _) => {}
                (Some(session), _) if session.is_closed => return Fate::Closed(session.begun),
                (Some(session), Some(exit)) => {
                    return Fate::Died(entry.worker, exit, Some(session.begun));
                }
                (Some(_), None) => return Fate::Lives,
            }
        }
        unseen
    }
}

/// What the monitor says of a region.
struct Entry {
    worker: Worker,
    pid: u32,
    /// How it ended, if it has.
    end: Option<Exit>,
    /// When it was begun.
    since: u64,
}

/// How many words the head has: whole pages.
fn head_len() -> usize {
    (SERVING + MAX_WORKERS).next_multiple_of(PAGE)
}
