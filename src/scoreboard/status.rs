//! What a pool of workers is doing, in words.
//!
//! Invariant: plain data. What a worker says of itself is believed for numbers only.

use super::{Board, DEATHS, IS_CRASH_LOOP, IS_RELOADING, WANTED, counter};
use crate::exit::Exit;
use crate::sys::clock;
use crate::worker::Worker;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How far a worker's life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum WorkerPhase {
    /// It does not serve yet.
    Starting,
    /// It serves.
    Serving,
    /// It finishes what it has begun, and ends.
    Leaving,
}

/// A call that a worker is answering.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CallStatus {
    /// What was called; `None`: a name that only the [fallback](crate::Server::fallback) knows.
    pub name: Option<String>,
    /// The call's id, which its client has given it.
    pub id: u32,
    /// How long it has been going on; some milliseconds too little or too much.
    pub age: Duration,
}

/// What a worker is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WorkerStatus {
    /// Which worker.
    pub worker: Worker,
    /// Its process.
    pub pid: u32,
    /// How far its life has come.
    pub phase: WorkerPhase,
    /// How long ago it was started.
    pub age: Duration,
    /// Calls that are being answered now. What a handle tells leaves some out if there are very many.
    pub calls: Vec<CallStatus>,
    /// Calls that were ever begun.
    pub served: u64,
    /// How many of them were answered with an error.
    pub failed: u64,
    /// Connections that are being served.
    pub connections: usize,
    /// How many of them a stream's handler has.
    pub streams: usize,
    /// Connections that were ever accepted.
    pub accepted: u64,
    /// Memory that it shares with nobody, in bytes: what its end would give back. From when the status was
    /// asked for; of a worker that does not listen, from when it last looked.
    pub private_memory: u64,
    /// Memory that it shares with others, the monitor above all, in bytes.
    pub shared_memory: u64,
}

/// Why a worker is replaced that does what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum ReplaceReason {
    /// It has served [`max_calls`](crate::Prefork::max_calls).
    #[error("it has served its calls")]
    Calls,
    /// It takes more than [`max_memory`](crate::Prefork::max_memory).
    #[error("it takes too much memory")]
    Memory,
    /// All are: [`ServerHandle::reload`](crate::ServerHandle::reload).
    #[error("all are")]
    Reload,
}

/// Something that happened to a pool of workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum PoolEvent {
    /// A worker serves.
    #[error("{worker} serves, as process {pid}")]
    Ready {
        /// Which.
        worker: Worker,
        /// Its process.
        pid: u32,
    },
    /// A worker is to be replaced.
    #[error("{worker} is to be replaced: {reason}")]
    Replaced {
        /// Which.
        worker: Worker,
        /// Why.
        reason: ReplaceReason,
    },
    /// A worker has ended because it was told to.
    #[error("{worker} has left: {exit}")]
    Left {
        /// Which.
        worker: Worker,
        /// How.
        exit: Exit,
    },
    /// A worker has ended, and nobody had told it to.
    #[error("{worker} died: {exit}")]
    Died {
        /// Which.
        worker: Worker,
        /// How.
        exit: Exit,
    },
    /// A call takes longer than [`call_timeout`](crate::Prefork::call_timeout), and its worker is killed.
    #[error(
        "{worker} is killed: call {call} of {} has been going on for {age:?}{}",
        name.as_deref().unwrap_or("an unknown name"),
        trace.first().map(|place| format!(", at {place}")).unwrap_or_default()
    )]
    Hung {
        /// Which.
        worker: Worker,
        /// What was called, if the name is known.
        name: Option<String>,
        /// The call's id, which its client has given it.
        call: u32,
        /// How long it had been going on.
        age: Duration,
        /// Where its thread was, the innermost first: file and offset, as `addr2line` takes them. Empty if it could not tell.
        trace: Vec<String>,
    },
    /// A worker was not ready in time, and is killed.
    #[error("{worker} was not ready in time, and is killed")]
    TooSlow {
        /// Which.
        worker: Worker,
    },
    /// A worker's [`worker_started`](crate::Server::worker_started) failed; it is not tried again before the next reload.
    #[error("{worker} cannot be started: {reason}")]
    NotStarted {
        /// Which.
        worker: Worker,
        /// What it said.
        reason: String,
    },
    /// A worker could not be forked, or the system refused it something that it needs to serve; it is tried again.
    #[error("no worker could be forked: {reason}")]
    NotForked {
        /// What the system said.
        reason: String,
    },
    /// So many workers in a row have died young that something must be wrong with all of them. They are still tried,
    /// with pauses of up to 30 s. The owner is told: [`ServerHandle::next_event`](crate::ServerHandle::next_event).
    #[error("{deaths} workers in a row have died young")]
    CrashLoop {
        /// How many.
        deaths: u32,
    },
    /// A worker has lived for long enough after a crash loop.
    #[error("a worker has lived for long enough again")]
    Recovered,
    /// A reload is through: all workers are new.
    #[error("all workers are new")]
    Reloaded,
    /// A reload was given up, because the first of the new workers that failed shall be the last. The others stay.
    #[error("the reload was given up")]
    NotReloaded,
}

impl PoolEvent {
    /// The pool cannot help itself any more, or can again.
    pub(crate) fn is_for_owners(&self) -> bool {
        matches!(
            self,
            PoolEvent::CrashLoop { .. } | PoolEvent::Recovered | PoolEvent::NotStarted { .. }
        )
    }
}

/// A pool of workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PoolStatus {
    /// How many workers there shall be.
    pub wanted: usize,
    /// Those that there are, by slot.
    pub workers: Vec<WorkerStatus>,
    /// How many in a row have died young.
    pub deaths: u32,
    /// So many that something must be wrong with all of them.
    pub crash_loop: bool,
    /// A reload is under way.
    pub reloading: bool,
    /// The last 64 things that happened, the oldest first, and how long ago.
    pub events: Vec<(Duration, PoolEvent)>,
}

impl PoolStatus {
    /// Leaves out calls for which a message has no room.
    pub(crate) fn leave_out_calls(&mut self) {
        /// Room for the names of calls, in bytes; the rest of a message is for 255 workers and 64 events.
        const ROOM: usize = 56 << 10;
        /// What a call takes besides its name.
        const CALL: usize = 32;
        let mut left = ROOM;
        for worker in &mut self.workers {
            worker.calls.retain(|call| {
                let size = CALL + call.name.as_ref().map_or(0, String::len);
                let rest = left.checked_sub(size);
                left = rest.unwrap_or(left);
                rest.is_some()
            });
        }
    }
}

impl Board {
    /// Writes down how the pool is.
    pub(crate) fn set_pool(&self, wanted: usize, deaths: u32, crash_loop: bool, reloading: bool) {
        self.store(WANTED, wanted as u64);
        self.store(DEATHS, deaths.into());
        self.store(IS_CRASH_LOOP, crash_loop.into());
        self.store(IS_RELOADING, reloading.into());
    }

    /// What the pool is doing.
    pub(crate) fn status(self: &Arc<Board>) -> PoolStatus {
        let now = clock::coarse();
        let ago = |time: u64| Duration::from_nanos(now.saturating_sub(time));
        let regions = 0..self.regions;
        let mut workers: Vec<_> = regions
            .filter_map(|region| self.status_of(region, ago))
            .collect();
        workers.sort_by_key(|status| (status.worker.slot, status.worker.generation));
        let events = self.events().into_iter();
        PoolStatus {
            wanted: self.load(WANTED) as usize,
            workers,
            deaths: self.load(DEATHS) as u32,
            crash_loop: self.load(IS_CRASH_LOOP) != 0,
            reloading: self.load(IS_RELOADING) != 0,
            events: events.map(|(time, event)| (ago(time), event)).collect(),
        }
    }

    fn status_of(
        self: &Arc<Board>,
        index: usize,
        ago: impl Fn(u64) -> Duration,
    ) -> Option<WorkerStatus> {
        let entry = self.entry_of(index).filter(|entry| entry.end.is_none())?;
        let region = self.region(index);
        let call = |doing: super::Doing| CallStatus {
            name: self.name(doing.name).map(str::to_owned),
            id: doing.call,
            age: ago(doing.since),
        };
        let count = |counter| usize::try_from(region.get(counter)).unwrap_or(usize::MAX);
        Some(WorkerStatus {
            worker: entry.worker,
            pid: entry.pid,
            phase: match region.get(counter::PHASE) {
                0 => WorkerPhase::Starting,
                1 => WorkerPhase::Serving,
                _ => WorkerPhase::Leaving,
            },
            age: ago(entry.since),
            calls: region.doing().map(call).collect(),
            served: region.get(counter::CALLS),
            failed: region.get(counter::FAILED),
            connections: count(counter::CONNECTIONS),
            streams: count(counter::STREAMS),
            accepted: region.get(counter::ACCEPTED),
            private_memory: region.get(counter::PRIVATE),
            shared_memory: region.get(counter::SHARED),
        })
    }
}
