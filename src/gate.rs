//! Who is let in: the limit on connections, the pause, and the counts that go with them.
//!
//! Invariant: lowering a limit, or a pause, never ends a connection; raising one takes effect at once. The count of
//! connections is the engine's own, made of guards.

use crate::event::PauseReason;
use crate::limits::Limits;
use crate::scoreboard::{Board, PoolStatus, Region, counter};
use crate::sys::clock;
use crate::sys::poll::Waker;
use serde::{Deserialize, Serialize};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// What a server is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// Its listeners, in the order in which they were given.
    pub listeners: Vec<ListenerStatus>,
    /// Connections that are being served, whether they have shown the password or not.
    pub connections: usize,
    /// How many of them a stream's handler has.
    pub streams: usize,
    /// How many connections may be served at a time.
    pub max_connections: usize,
    /// Nobody is accepted until `resume`.
    pub paused: bool,
    /// Connections that were ever accepted, or handed over by an owner.
    pub accepted: u64,
    /// Calls that were ever begun.
    pub calls: u64,
    /// The workers, if there are any. The numbers above are then sums over those that live; limits are each
    /// worker's.
    pub pool: Option<PoolStatus>,
}

/// What a listener is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ListenerStatus {
    /// Its name.
    pub name: String,
    /// Connections that came through it and are being served.
    pub connections: usize,
    /// How many there may be at a time.
    pub max_connections: usize,
    /// It was told to stop, and lets nobody in.
    pub stopped: bool,
}

/// One listener's part of the way in.
#[derive(Debug)]
struct Way {
    name: Arc<str>,
    max_connections: usize,
    connections: AtomicUsize,
    stopped: AtomicBool,
}

/// The way in.
#[derive(Debug)]
pub(crate) struct Gate {
    ways: Vec<Way>,
    /// What the definition and the descriptor table allow.
    ceiling: AtomicUsize,
    /// What was asked for since; `usize::MAX`: nothing less.
    wanted: AtomicUsize,
    paused: AtomicBool,
    /// What is counted, unless this is a worker.
    own: Region,
    /// What is counted in a worker, where the others see it.
    of_worker: OnceLock<Region>,
    /// When a worker's last connection ended, by the coarse clock.
    last_end: AtomicU64,
    /// Makes the engine look at all this again.
    waker: Waker,
}

impl Gate {
    /// The way into a server with these listeners, and how many connections each may have.
    pub(crate) fn new(
        limits: &Limits,
        listeners: impl Iterator<Item = (Arc<str>, usize)>,
    ) -> io::Result<Gate> {
        let way = |(name, max_connections)| Way {
            name,
            max_connections,
            connections: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        };
        Ok(Gate {
            ways: listeners.map(way).collect(),
            ceiling: AtomicUsize::new(limits.max_connections),
            wanted: AtomicUsize::new(usize::MAX),
            paused: AtomicBool::new(false),
            own: Board::of_one().region(0),
            of_worker: OnceLock::new(),
            last_end: AtomicU64::new(0),
            waker: Waker::new()?,
        })
    }

    /// This process is a worker from now on, and shares no waker with others.
    pub(crate) fn become_worker(&self, region: Region) -> io::Result<()> {
        let _ = self.of_worker.set(region);
        self.waker.renew()
    }

    /// What is counted.
    #[inline]
    pub(crate) fn counts(&self) -> &Region {
        self.of_worker.get().unwrap_or(&self.own)
    }

    /// Whether connections are such that it matters who has how many: none has ended lately.
    pub(crate) fn connections_last(&self) -> bool {
        const LATELY: u64 = 20_000_000;
        let last_end = self.last_end.load(Ordering::Relaxed);
        clock::coarse().saturating_sub(last_end) > LATELY
    }

    /// Whether another worker serves no call and fewer connections.
    pub(crate) fn has_idler(&self) -> bool {
        let counts = self.counts();
        let own = counts.get(counter::CONNECTIONS);
        own > 0 && counts.board().has_idler(own)
    }

    fn connections(&self) -> usize {
        self.counts().get(counter::CONNECTIONS) as usize
    }

    /// The system has room for no more than this.
    pub(crate) fn lower_ceiling(&self, ceiling: usize) {
        self.ceiling.fetch_min(ceiling, Ordering::SeqCst);
    }

    pub(crate) fn set_max_connections(&self, wanted: Option<usize>) {
        self.wanted
            .store(wanted.unwrap_or(usize::MAX), Ordering::SeqCst);
        self.waker.wake();
    }

    pub(crate) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        self.waker.wake();
    }

    /// Lets nobody in through a listener, or lets them in again. `false`: there is none of that name.
    pub(crate) fn set_stopped(&self, listener: &str, stopped: bool) -> bool {
        let way = self.ways.iter().find(|way| &*way.name == listener);
        if let Some(way) = way {
            way.stopped.store(stopped, Ordering::SeqCst);
        }
        way.is_some()
    }

    /// Whether a listener was told to stop.
    pub(crate) fn is_stopped(&self, listener: usize) -> bool {
        self.ways[listener].stopped.load(Ordering::SeqCst)
    }

    /// Why nobody may be accepted by a listener; `None`: one more may.
    pub(crate) fn closed(&self, listener: usize) -> Option<PauseReason> {
        if self.paused.load(Ordering::SeqCst) {
            return Some(PauseReason::Requested);
        }
        let way = &self.ways[listener];
        let is_full = self.connections() >= self.limit()
            || way.connections.load(Ordering::SeqCst) >= way.max_connections;
        is_full.then_some(PauseReason::MaxConnections)
    }

    /// A connection begins, which came through `listener`, if through any.
    pub(crate) fn entered(&self, listener: Option<usize>) {
        if let Some(listener) = listener {
            self.ways[listener]
                .connections
                .fetch_add(1, Ordering::SeqCst);
        }
        self.counts().add(counter::CONNECTIONS, 1);
        self.counts().add(counter::ACCEPTED, 1);
    }

    pub(crate) fn left(&self, listener: Option<usize>) {
        self.counts().subtract(counter::CONNECTIONS, 1);
        if self.of_worker.get().is_some() {
            self.last_end.store(clock::coarse(), Ordering::Relaxed);
        }
        if let Some(listener) = listener {
            self.ways[listener]
                .connections
                .fetch_sub(1, Ordering::SeqCst);
        }
    }

    pub(crate) fn set_streams(&self, count: usize) {
        self.counts().set(counter::STREAMS, count as u64);
    }

    /// A call begins: which it is of all.
    #[inline]
    pub(crate) fn call_begins(&self) -> u64 {
        self.counts().add(counter::CALLS, 1)
    }

    /// One was answered with an error.
    pub(crate) fn call_fails(&self) {
        self.counts().add(counter::FAILED, 1);
    }

    /// How much memory this process has.
    pub(crate) fn set_memory(&self, private: u64, shared: u64) {
        self.counts().set(counter::PRIVATE, private);
        self.counts().set(counter::SHARED, shared);
    }

    pub(crate) fn waker(&self) -> &Waker {
        &self.waker
    }

    pub(crate) fn status(&self) -> Status {
        let listener = |way: &Way| ListenerStatus {
            name: way.name.to_string(),
            connections: way.connections.load(Ordering::SeqCst),
            max_connections: way.max_connections,
            stopped: way.stopped.load(Ordering::SeqCst),
        };
        let counts = self.counts();
        Status {
            listeners: self.ways.iter().map(listener).collect(),
            connections: self.connections(),
            streams: counts.get(counter::STREAMS) as usize,
            max_connections: self.limit(),
            paused: self.paused.load(Ordering::SeqCst),
            accepted: counts.get(counter::ACCEPTED),
            calls: counts.get(counter::CALLS),
            pool: None,
        }
    }

    fn limit(&self) -> usize {
        self.wanted
            .load(Ordering::SeqCst)
            .min(self.ceiling.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    /// What the gate is to do, in as many words as that takes.
    struct Model {
        live: Vec<Option<usize>>,
        limits: [usize; 2],
        stopped: [bool; 2],
        ceiling: usize,
        wanted: Option<usize>,
        paused: bool,
    }

    impl Model {
        fn limit(&self) -> usize {
            self.ceiling.min(self.wanted.unwrap_or(usize::MAX))
        }

        fn count(&self, listener: usize) -> usize {
            let through = |way: &&Option<usize>| **way == Some(listener);
            self.live.iter().filter(through).count()
        }

        fn closed(&self, listener: usize) -> Option<PauseReason> {
            let is_full =
                self.live.len() >= self.limit() || self.count(listener) >= self.limits[listener];
            match self.paused {
                true => Some(PauseReason::Requested),
                false => is_full.then_some(PauseReason::MaxConnections),
            }
        }
    }

    /// Does one thing that a server may do, at random.
    fn act(random: &mut StdRng, gate: &Gate, model: &mut Model) {
        let listener = random.random_range(0..2);
        match random.random_range(0..12) {
            0..5 if gate.closed(listener).is_none() => {
                let (live, limit) = (model.live.len(), model.limit());
                assert!(live < limit, "{live} of {limit}, and one more is let in");
                assert!(model.count(listener) < model.limits[listener]);
                gate.entered(Some(listener));
                model.live.push(Some(listener));
            }
            // The owner's own are let in whatever the limit.
            5 => {
                gate.entered(None);
                model.live.push(None);
            }
            6 | 7 if !model.live.is_empty() => {
                let place = random.random_range(0..model.live.len());
                gate.left(model.live.swap_remove(place));
            }
            8 => {
                model.wanted =
                    [None, Some(0), Some(random.random_range(1..12))][random.random_range(0..3)];
                gate.set_max_connections(model.wanted);
            }
            9 => {
                model.paused = random.random();
                gate.set_paused(model.paused);
            }
            10 => {
                model.stopped[listener] = random.random();
                assert!(gate.set_stopped(["one", "two"][listener], model.stopped[listener]));
                assert!(!gate.set_stopped("none", true));
            }
            11 if random.random_bool(0.02) => {
                let ceiling = random.random_range(1..12);
                gate.lower_ceiling(ceiling);
                model.ceiling = model.ceiling.min(ceiling);
            }
            _ => {}
        }
    }

    #[test]
    fn whoever_is_let_in_has_room_whatever_was_done_before() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut model = Model {
                live: Vec::new(),
                limits: [random.random_range(0..6), random.random_range(1..20)],
                stopped: [false; 2],
                ceiling: random.random_range(1..20),
                wanted: None,
                paused: false,
            };
            let limits = Limits {
                max_connections: model.ceiling,
                ..Limits::default()
            };
            let ways = ["one", "two"].map(Arc::from).into_iter().zip(model.limits);
            let gate = Gate::new(&limits, ways).unwrap();
            for _ in 0..300 {
                act(&mut random, &gate, &mut model);
                let status = gate.status();
                assert_eq!(status.connections, model.live.len(), "nobody is cut off");
                assert_eq!(status.max_connections, model.limit());
                assert_eq!(status.paused, model.paused);
                for listener in 0..2 {
                    let seen = &status.listeners[listener];
                    assert_eq!(gate.closed(listener), model.closed(listener), "seed {seed}");
                    assert_eq!(seen.connections, model.count(listener));
                    assert_eq!(seen.stopped, model.stopped[listener]);
                    assert_eq!(gate.is_stopped(listener), model.stopped[listener]);
                }
            }
        }
    }
}
