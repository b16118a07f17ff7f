//! What a client does when it loses the worker that served it: it asks the others, or turns to one of them.
//!
//! Invariant: a call is repeated only if nobody has begun it, and nothing else is under way on the connection.

use super::pending::BegunCalls;
use super::{Client, connect};
use crate::address::Address;
use crate::error::{CallError, Delivery};
use crate::protocol::client::ClientSession;
use crate::scoreboard::Fate;
use crate::service::FATE;
use crate::sys::process;
use crate::worker::Worker;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long the others have to say how a worker died.
const PATIENCE: Duration = Duration::from_millis(100);
/// A call turns to another worker that often at most.
pub(super) const MAX_TURNS: u32 = 16;

/// A name for a connection that no other has: nobody can guess it, and no copy of this process gives it again.
pub(super) fn new_tag() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // The state is random in each process, and a copy of one has another generation. 0 is no name.
    RandomState::new().hash_one((process::generation(), count)) | 1
}

impl Client {
    /// The worker that serves this connection, once its first call has been answered; `None` also if the server has none.
    /// The next call may be another's.
    pub fn worker(&self) -> Option<Worker> {
        let (slot, generation) = self.session.worker()?;
        Some(Worker { slot, generation })
    }

    /// The connection broke under a call: perhaps because its worker died.
    pub(super) fn ask_about(&self, err: CallError, id: u32) -> CallError {
        let CallError::Disconnected {
            delivery: Delivery::MaybeExecuted,
        } = err
        else {
            return err;
        };
        let Some(address) = &self.home else {
            return err;
        };
        let generation = self
            .session
            .worker()
            .map_or(0, |(_, generation)| generation);
        let delivery = |begun: u32| match begun < id {
            // Calls are begun in the order of their ids.
            true => Delivery::NotSent,
            false => Delivery::MaybeExecuted,
        };
        match fate(address, self.tag, generation) {
            Fate::Died(worker, exit, begun) => CallError::WorkerDied {
                worker,
                exit,
                delivery: begun.map_or(Delivery::MaybeExecuted, delivery),
            },
            Fate::Closed(begun) => CallError::Disconnected {
                delivery: delivery(begun),
            },
            Fate::Lives | Fate::Unknown => err,
        }
    }

    /// Turns to another worker after a call has failed, if that can do no harm.
    pub(super) fn turns_elsewhere(&mut self, err: &CallError, turns: &mut u32) -> bool {
        let is_left = match err {
            CallError::Stopping | CallError::Closing => true,
            CallError::Disconnected { delivery } => *delivery == Delivery::NotSent,
            _ => false,
        };
        *turns += 1;
        if !is_left
            || self.begun.has_askers()
            || *turns > MAX_TURNS
            || self.generation != process::generation()
        {
            return false;
        }
        let Some(home) = self.home.clone() else {
            return false;
        };
        let patience = self.timeout.unwrap_or(connect::PATIENCE);
        let patience = patience.min(connect::PATIENCE);
        let Ok(connection) = connect::connect_to(&home, patience) else {
            return false;
        };
        self.use_connection(connection);
        self.session = ClientSession::new(home.password.clone(), self.limits.bounds());
        self.tag = new_tag();
        self.session.set_tag(self.tag);
        (self.begun, self.in_flight) = (BegunCalls::default(), 0);
        (self.opened, self.deaf, self.broken) = (None, false, false);
        true
    }
}

/// What became of a connection, as far as the other workers know in time.
fn fate(address: &Address, tag: u64, generation: u32) -> Fate {
    // Whoever asks is nobody to be asked about.
    let address = Address {
        has_workers: false,
        ..address.clone()
    };
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(500);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Fate::Lives;
        }
        let asked = Client::connect_within(&address, left)
            .map_err(|_| Fate::Unknown)
            .map(|client| {
                client
                    .with_timeout(left)
                    .call_last::<_, Fate>(FATE, &(tag, generation))
            });
        match asked {
            // The server is gone, or full: nobody could say.
            Err(fate) => return fate,
            // It takes the monitor a moment to learn of a death; whoever was asked may have died, too.
            Ok(Ok(Fate::Lives) | Err(_)) => {}
            Ok(Ok(fate)) => return fate,
        }
        // There is no event to wait for: the kernel tells nobody but the monitor.
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}
