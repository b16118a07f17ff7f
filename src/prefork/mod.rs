//! Several processes that serve the same listeners: how many, how long each, and what becomes of those that fail.
//!
//! Invariant: what is decided here is decided from numbers and times alone; who forks, waits and kills is the monitor.

mod crashes;
mod hung;
mod member;
pub(crate) mod memory;
mod pool;
#[cfg(test)]
mod tests;

pub(crate) use self::hung::{Hung, Measure};
pub(crate) use self::member::Act;
pub(crate) use self::pool::Pool;

use std::time::Duration;

/// Less than this, also none at all, is no time to wait for: the monitor must come to see what has happened meanwhile. The
/// clock by which calls are timed is not finer.
const MOMENT: Duration = Duration::from_millis(10);

/// How a server is several processes: see [`Server::prefork`](crate::Server::prefork).
#[derive(Clone, Debug)]
#[must_use = "it is of use to `Server::prefork` only"]
pub struct Prefork {
    pub(crate) workers: usize,
    pub(crate) max_calls: Option<u64>,
    pub(crate) max_memory: Option<u64>,
    pub(crate) call_timeout: Option<Duration>,
    pub(crate) kill_after: Duration,
    pub(crate) min_uptime: Duration,
}

impl Prefork {
    /// So many workers, 1 to 255.
    pub fn new(workers: usize) -> Prefork {
        Prefork {
            workers,
            max_calls: None,
            max_memory: None,
            call_timeout: None,
            kill_after: Duration::from_secs(1),
            min_uptime: Duration::from_secs(1),
        }
    }

    /// After so many calls, 10 % more or less so that not all have them at the same time, a worker is replaced: its successor
    /// is ready before it leaves, and it finishes what it has begun. They are replaced one after the other, so that workers that
    /// wear out faster than that serve more. Default: never.
    pub fn max_calls(mut self, calls: u64) -> Prefork {
        self.max_calls = Some(calls);
        self
    }

    /// A worker that has more memory than this for itself, in bytes, is replaced as for [`Prefork::max_calls`]. What it shares
    /// with the monitor, because neither has written to it since the fork, is not counted. It looks every 256 calls.
    /// Default: any amount.
    pub fn max_memory(mut self, bytes: u64) -> Prefork {
        self.max_memory = Some(bytes);
        self
    }

    /// How long a handler may take before its worker counts as hung: then its thread is asked where it is
    /// ([`PoolEvent::Hung`](crate::PoolEvent::Hung)), and after [`Prefork::kill_after`] the worker is killed, with all its
    /// calls, whose callers get [`CallError::WorkerDied`](crate::CallError::WorkerDied). A handler that takes long with a
    /// reason says so by [`Context::extend`](crate::Context::extend). Default: for ever.
    ///
    /// Streams have no such limit, and neither have hooks, callbacks and handlers of signals. A worker that a debugger traces is
    /// not killed.
    pub fn call_timeout(mut self, timeout: Duration) -> Prefork {
        self.call_timeout = Some(timeout);
        self
    }

    /// How long a hung call has to end after all. Default 1 s.
    pub fn kill_after(mut self, grace: Duration) -> Prefork {
        self.kill_after = grace;
        self
    }

    /// A worker that dies before it has served for as long as this has died young: after three of those in a row, others are
    /// started with pauses, which grow up to 30 s. Default 1 s.
    pub fn min_uptime(mut self, uptime: Duration) -> Prefork {
        self.min_uptime = uptime;
        self
    }

    /// After how many calls the worker of that generation is to be replaced.
    pub(crate) fn calls_of(&self, generation: u32) -> Option<u64> {
        // The golden ratio's multiples lie as far apart as can be, however many there are.
        const GOLDEN: f64 = 0.618_033_988_749_895;
        let part = (f64::from(generation) * GOLDEN).fract();
        let calls = self.max_calls? as f64 * (0.9 + 0.2 * part);
        Some((calls as u64).max(1))
    }
}
