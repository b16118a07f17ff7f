//! What one worker shows: how much it has done, what it is doing, and for whom.
//!
//! Invariant: telling costs some stores to memory of its own, and never a system call, a lock or a wait.

use super::Board;
use super::status::WorkerPhase;
use crate::exit::Exit;
use crate::sys::clock;
use crate::sys::shared::PAGE;
use crate::worker::Worker;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What is counted, in the header.
pub(crate) mod counter {
    pub(crate) const PHASE: usize = 0;
    pub(crate) const CALLS: usize = 1;
    pub(crate) const FAILED: usize = 2;
    pub(crate) const CONNECTIONS: usize = 3;
    pub(crate) const STREAMS: usize = 4;
    pub(crate) const ACCEPTED: usize = 5;
    /// Memory, in bytes.
    pub(crate) const PRIVATE: usize = 6;
    pub(crate) const SHARED: usize = 7;
}

/// Behind it, where a call hangs: whose trace it is, how many addresses, and the addresses.
pub(super) const TRACE: usize = 16;
pub(super) const MAX_TRACE: usize = 30;
pub(super) const HEADER: usize = 64;

/// A call that is being answered: what, since when, until when at most, and by which thread.
const DOING: usize = 0;
const SINCE: usize = 1;
const DEADLINE: usize = 2;
const THREAD: usize = 3;
const CELL: usize = 8;

/// Connections: the client's name for it, and the last call of it that was begun, beside a part of the name, so that one
/// number says whose call that is.
const WAYS: usize = 4;
const SETS: usize = 512;
const SESSIONS: usize = SETS * WAYS * 2;
const CLOSED: u64 = 1 << 32;
const MARK: u64 = u64::MAX << 33;

/// How many words the region of a worker that answers `cells` calls at a time has: whole pages.
pub(super) fn len(cells: usize) -> usize {
    (HEADER + cells * CELL + SESSIONS).next_multiple_of(PAGE)
}

/// One worker's part of the board. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    board: Arc<Board>,
    words: Range<usize>,
}

/// A call that is being answered, as its worker shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Doing {
    /// Its place.
    pub(crate) cell: usize,
    /// The handler's number: see [`Board::name`].
    pub(crate) name: u64,
    /// The call's id.
    pub(crate) call: u32,
    /// By the coarse clock, as are all times here.
    pub(crate) since: u64,
    pub(crate) deadline: u64,
    pub(crate) thread: i32,
}

/// One connection, as its worker shows it.
pub(crate) struct SessionSeen {
    pub(crate) begun: u32,
    pub(crate) is_closed: bool,
}

/// What became of whoever served a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// Nobody knows.
    Unknown,
    /// Nobody has seen it end yet.
    Lives,
    /// It closed the connection, having begun this call last.
    Closed(u32),
    /// It died, having begun this call last, if that is known.
    Died(Worker, Exit, Option<u32>),
}

impl Region {
    pub(super) fn new(board: Arc<Board>, words: Range<usize>) -> Region {
        Region { board, words }
    }

    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        self.board.word(self.words.start + index)
    }

    #[inline]
    pub(crate) fn add(&self, counter: usize, count: u64) -> u64 {
        self.word(counter).fetch_add(count, Ordering::Relaxed) + count
    }

    pub(crate) fn subtract(&self, counter: usize, count: u64) {
        self.word(counter).fetch_sub(count, Ordering::SeqCst);
    }

    pub(crate) fn set(&self, counter: usize, value: u64) {
        self.word(counter).store(value, Ordering::SeqCst);
    }

    pub(crate) fn get(&self, counter: usize) -> u64 {
        self.word(counter).load(Ordering::SeqCst)
    }

    pub(crate) fn set_phase(&self, phase: WorkerPhase) {
        self.set(counter::PHASE, phase as u64);
    }

    /// The cell of this thread. `None`: more threads answer calls than the board has room for.
    fn own_cell(&self) -> Option<usize> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        thread_local! {
            static CELL_OF_THREAD: usize = NEXT.fetch_add(1, Ordering::Relaxed) as usize;
        }
        let cell = CELL_OF_THREAD.with(|cell| *cell);
        (cell < self.board.cells).then_some(cell)
    }

    fn cell_word(&self, cell: usize, word: usize) -> &AtomicU64 {
        self.word(HEADER + cell * CELL + word)
    }

    /// This thread begins to answer a call; the result is what [`Region::end`] wants.
    #[inline]
    pub(crate) fn begin(&self, name: Option<u32>, call: u32) -> Option<usize> {
        if self.board.cells == 0 {
            return None;
        }
        let index = self.own_cell()?;
        if self.cell_word(index, THREAD).load(Ordering::Relaxed) == 0 {
            let thread = crate::sys::process::thread_id();
            self.cell_word(index, THREAD)
                .store(u64::from(thread as u32), Ordering::Relaxed);
        }
        let now = clock::coarse();
        self.cell_word(index, SINCE).store(now, Ordering::Relaxed);
        let deadline = self.board.patience.map_or(0, |patience| now + patience);
        self.cell_word(index, DEADLINE)
            .store(deadline, Ordering::Relaxed);
        let name = name.map_or(0, |name| u64::from(name) + 1);
        // Behind the rest: who sees this sees that.
        self.cell_word(index, DOING)
            .store((name + 1) << 32 | u64::from(call), Ordering::Release);
        Some(index)
    }

    /// The call is over.
    #[inline]
    pub(crate) fn end(&self, cell: usize) {
        self.cell_word(cell, DOING).store(0, Ordering::Release);
    }

    /// The call may take as long as any from now on.
    pub(crate) fn extend(&self, cell: usize) {
        if let Some(patience) = self.board.patience {
            let deadline = self.cell_word(cell, DEADLINE);
            deadline.store(clock::coarse() + patience, Ordering::Release);
        }
    }

    /// What the worker is doing.
    pub(crate) fn doing(&self) -> impl Iterator<Item = Doing> {
        (0..self.board.cells).filter_map(|cell| self.doing_in(cell))
    }

    /// What a cell shows, if anything.
    pub(crate) fn doing_in(&self, cell: usize) -> Option<Doing> {
        let load = |word| self.cell_word(cell, word).load(Ordering::Acquire);
        let doing = load(DOING);
        let name = (doing >> 32).checked_sub(1)?;
        Some(Doing {
            cell,
            // The first is no handler's.
            name: name.wrapping_sub(1),
            call: doing as u32,
            since: load(SINCE),
            deadline: load(DEADLINE),
            thread: load(THREAD) as u32 as i32,
        })
    }

    /// Whether it serves fewer connections than so many, and no call.
    pub(super) fn is_idler_than(&self, connections: u64) -> bool {
        self.get(counter::PHASE) == WorkerPhase::Serving as u64
            && self.get(counter::CONNECTIONS) < connections
            && self.doing().next().is_none()
    }

    /// The place of a client's connection among those that are shown: its own, or that of the one that matters least.
    pub(crate) fn open_session(&self, tag: u64) -> usize {
        let places = self.places(tag);
        let rank = |place: &usize| match (self.tag_at(*place), self.last_at(*place)) {
            (known, _) if known == tag => 0,
            (0, _) => 1,
            (_, last) if last & CLOSED != 0 => 2,
            _ => 3,
        };
        let place = places.min_by_key(rank).unwrap_or_default();
        // With this, nothing is known any more of whoever had the place.
        self.word(place + 1).store(tag & MARK, Ordering::Release);
        self.word(place).store(tag, Ordering::Release);
        place
    }

    fn places(&self, tag: u64) -> impl Iterator<Item = usize> + use<> {
        // The lowest bit of all names is the same.
        let set = (tag >> 1) as usize % SETS;
        let first = HEADER + self.board.cells * CELL + set * WAYS * 2;
        (0..WAYS).map(move |way| first + way * 2)
    }

    fn tag_at(&self, place: usize) -> u64 {
        self.word(place).load(Ordering::Acquire)
    }

    fn last_at(&self, place: usize) -> u64 {
        self.word(place + 1).load(Ordering::Acquire)
    }

    /// A call of that connection is begun.
    #[inline]
    pub(crate) fn begins(&self, place: usize, tag: u64, call: u32) {
        // Should another connection have the place by now, this is not taken for a call of that one's.
        let last = tag & MARK | u64::from(call);
        self.word(place + 1).store(last, Ordering::Release);
    }

    /// That connection is closed by the worker.
    pub(crate) fn close_session(&self, place: usize, tag: u64) {
        let last = self.last_at(place);
        if self.tag_at(place) == tag && last & MARK == tag & MARK {
            let (done, failed) = (Ordering::AcqRel, Ordering::Relaxed);
            let closed = last | CLOSED;
            // If it fails, another connection has just got the place.
            let _ = self
                .word(place + 1)
                .compare_exchange(last, closed, done, failed);
        }
    }

    /// How a connection stands, if its worker still shows it.
    pub(super) fn session(&self, tag: u64) -> Option<SessionSeen> {
        let place = self.places(tag).find(|place| self.tag_at(*place) == tag)?;
        let last = self.last_at(place);
        (last & MARK == tag & MARK).then_some(SessionSeen {
            begun: last as u32,
            is_closed: last & CLOSED != 0,
        })
    }
}
