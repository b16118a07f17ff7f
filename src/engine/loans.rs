//! Answers that wait for the answers behind them while the next call is being worked on.
//!
//! Invariant: an answer that is held back for company leaves after two looks of the watchdog at the latest, however
//! long the next call takes. A client may need it to let that call go on.

use crate::connection::Connection;
use crate::limits::Bounds;
use crate::protocol::outbox::Outbox;
use crate::protocol::server::ServerSession;
use crate::sys::linger::Socket;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

/// What one session has lent while its call is being answered.
pub(super) struct Loan {
    connection: Connection,
    lent: Mutex<Lent>,
}

struct Lent {
    /// The session's, and the session has another meanwhile; or that other one.
    outbox: Box<Outbox>,
    is_lent: bool,
    /// At which look it was lent.
    since: u64,
    /// All of it has left, and there is nothing to look after.
    is_settled: bool,
}

/// All that sessions have lent.
#[derive(Default)]
pub(super) struct Loans {
    known: Mutex<Vec<Weak<Loan>>>,
    /// How many of them have something that has not left.
    open: AtomicUsize,
    looks: AtomicU64,
}

impl Loans {
    /// A place for a session's output, known to the watchdog for as long as somebody has it.
    pub(super) fn register(&self, socket: Arc<Socket>) -> Arc<Loan> {
        let loan = Arc::new(Loan {
            connection: Connection::new(socket),
            lent: Mutex::new(Lent {
                outbox: Box::new(Outbox::new(Bounds::default())),
                is_lent: false,
                since: 0,
                is_settled: false,
            }),
        });
        let mut known = self.known();
        if known.len() == known.capacity() {
            // Instead of growing for those that are gone.
            known.retain(|loan| loan.strong_count() > 0);
        }
        known.push(Arc::downgrade(&loan));
        drop(known);
        loan
    }

    pub(super) fn lend(&self, loan: &Loan, session: &mut ServerSession) {
        let mut lent = loan.lock();
        session.lend_outbox(&mut lent.outbox);
        (lent.is_lent, lent.is_settled) = (true, false);
        lent.since = self.looks.load(Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::SeqCst);
    }

    /// Gives back what was lent, or what is left of it, if anything was.
    pub(super) fn reclaim(&self, loan: &Loan, session: &mut ServerSession) {
        let mut lent = loan.lock();
        if !std::mem::take(&mut lent.is_lent) {
            return;
        }
        if !lent.is_settled {
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
        session.take_back(&mut lent.outbox);
    }

    /// Whether there is something to look after.
    pub(super) fn any(&self) -> bool {
        self.open.load(Ordering::SeqCst) > 0
    }

    /// Sends what has been lent for long enough, as far as the kernel takes it. Called by the watchdog.
    pub(super) fn look(&self) {
        let now = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.any() {
            return;
        }
        self.known().retain(|loan| match loan.upgrade() {
            Some(loan) => {
                self.look_after(&loan, now);
                true
            }
            None => false,
        });
    }

    fn look_after(&self, loan: &Loan, now: u64) {
        let mut guard = match loan.lent.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(err)) => err.into_inner(),
            // It is being lent or reclaimed at this moment.
            Err(TryLockError::WouldBlock) => return,
        };
        let lent = &mut *guard;
        if !lent.is_lent || lent.is_settled || now < lent.since + 2 {
            return;
        }
        // What cannot be sent now is sent later, and a connection that is broken is found so by its session.
        if let Ok(len) = loan.connection.transmit_now(&lent.outbox) {
            lent.outbox.transmitted(len);
        }
        if lent.outbox.queued() == 0 {
            lent.is_settled = true;
            self.open.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn known(&self) -> MutexGuard<'_, Vec<Weak<Loan>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loan {
    fn lock(&self) -> MutexGuard<'_, Lent> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
