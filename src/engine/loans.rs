//! Answers that wait for the answers behind them while the next call is being worked on.
//!
//! Invariant: an answer that is held back for company leaves after two looks of the watchdog at the latest, however
//! long the next call takes. A client may need it to let that call go on.

use crate::connection::Connection;
use crate::limits::Bounds;
use crate::protocol::outbox::Outbox;
use crate::protocol::server::ServerSession;
use crate::sys::linger::Socket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
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
    looks: AtomicU64,
    /// At the last look something was lent, or has been since.
    is_busy: AtomicBool,
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
        if !self.is_busy.load(Ordering::Relaxed) {
            self.is_busy.store(true, Ordering::Relaxed);
        }
    }

    /// Gives back what was lent, or what is left of it, if anything was.
    pub(super) fn reclaim(&self, loan: &Loan, session: &mut ServerSession) {
        let mut lent = loan.lock();
        if std::mem::take(&mut lent.is_lent) {
            session.take_back(&mut lent.outbox);
        }
    }

    /// Whether there is something to look after. Who lends sees behind the same lock whether the watchdog sleeps: either
    /// that is seen, or what is lent is seen here.
    pub(super) fn any(&self) -> bool {
        let is_open = |loan: Arc<Loan>| {
            let lent = loan.lock();
            lent.is_lent && !lent.is_settled
        };
        self.known().iter().filter_map(Weak::upgrade).any(is_open)
    }

    /// Sends what has been lent for long enough, as far as the kernel takes it. Called by the watchdog.
    pub(super) fn look(&self) {
        let now = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        if !self.is_busy.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut is_open = false;
        self.known().retain(|loan| match loan.upgrade() {
            Some(loan) => {
                is_open |= loan.look_after(now);
                true
            }
            None => false,
        });
        self.is_busy.fetch_or(is_open, Ordering::Relaxed);
    }

    /// Whether something was lent at the last look, or has been since.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    fn known(&self) -> MutexGuard<'_, Vec<Weak<Loan>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Loan {
    /// `true`: there is something that has not left.
    fn look_after(&self, now: u64) -> bool {
        let mut guard = match self.lent.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(err)) => err.into_inner(),
            // It is being lent or reclaimed at this moment.
            Err(TryLockError::WouldBlock) => return true,
        };
        let lent = &mut *guard;
        if !lent.is_lent || lent.is_settled || now < lent.since + 2 {
            return lent.is_lent && !lent.is_settled;
        }
        // What cannot be sent now is sent later, and a connection that is broken is found so by its session.
        if let Ok(len) = self.connection.transmit_now(&lent.outbox) {
            lent.outbox.transmitted(len);
        }
        lent.is_settled = lent.outbox.queued() == 0;
        !lent.is_settled
    }

    fn lock(&self) -> MutexGuard<'_, Lent> {
        self.lent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
