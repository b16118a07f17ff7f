//! The end of a monitor: of its workers first.
//!
//! Invariant: whatever the reason, no worker outlives it but for a moment; all of them have the grace at the same time.

use super::{LIFELINE, LISTENER, Monitor, ORDERS, PROCESS, SIGNALS, name};
use crate::child::Ties;
use crate::control::Order;
use crate::protocol::greeting::Denied;
use crate::server::serve::{self, Ending};
use crate::sys::linger::Socket;
use crate::sys::socket;
use crate::{Exit, Signal};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// An owner that waits for an end kills when it has waited for long enough: our children must be gone by then.
const MARGIN: Duration = Duration::from_millis(100);
/// How long killed workers may take to be gone: the kernel has to free their memory.
const DYING: Duration = Duration::from_secs(1);

/// How the workers have ended: as the worst of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Drained {
    Finished,
    /// One has died.
    Died,
    /// One had calls that did not finish within the grace.
    TooLate,
}

impl Drained {
    /// What one has ended with says that it did not finish, if the time is over for that: handlers exit, too.
    fn of(exit: Exit, deadline: Option<Instant>) -> Drained {
        let is_over = deadline.is_some_and(|deadline| Instant::now() + MARGIN >= deadline);
        match exit {
            Exit::Code(0) => Drained::Finished,
            Exit::Code(_) if is_over => Drained::TooLate,
            Exit::Code(_) | Exit::Signal(_) | Exit::Unknown => Drained::Died,
        }
    }
}

impl Monitor<'_> {
    /// Stops. `false`: some calls had not finished within the grace.
    pub(super) fn end(mut self, ending: Ending, ties: Option<Ties>) -> (Ending, bool) {
        self.control.set_stopping();
        // Before anything that may take time, so that nothing is left behind even if we are killed on the way.
        self.remove_files();
        let now = Instant::now();
        let patience = match ending {
            Ending::Ordered(patience) => patience.saturating_sub(MARGIN.min(patience / 8)),
            _ => self.server.grace,
        };
        let hopeless = self.pool.is_hopeless();
        self.pool.stop(now);
        match ending {
            Ending::Orphaned => self.orphan_all(),
            _ => self.stop_all(patience),
        }
        let deadline = now.checked_add(patience);
        let drained = self.drain(deadline, ties.as_ref());
        if !self.workers.is_empty() {
            self.kill_all();
        }
        self.turn_away_all();
        // A worker that has died costs its own calls, and not the end of the others.
        if drained != Drained::TooLate {
            serve::run_hooks("finalize", &self.server.finalize, &self.control);
        }
        // First what is ours of the directory, and then the control line: see `serve::until_told`.
        drop((self, ties));
        (ending, drained == Drained::Finished && !hopeless)
    }

    fn stop_all(&mut self, patience: Duration) {
        let workers: Vec<u32> = self.workers.keys().copied().collect();
        for worker in workers {
            self.order(worker, Order::Stop { patience });
        }
    }

    /// They have nobody to live for, and end within their grace, whatever they are doing.
    fn orphan_all(&mut self) {
        let processes = self.workers.values_mut();
        processes.for_each(|process| process.child.orphan());
    }

    /// Waits for the workers' ends.
    fn drain(&mut self, mut deadline: Option<Instant>, ties: Option<&Ties>) -> Drained {
        for (place, bound) in self.bound.iter().enumerate() {
            // Whoever comes is told so. If that cannot be, it is when all have ended.
            let _ = self
                .events
                .watch(bound.socket.as_fd(), name(LISTENER, place as u32));
        }
        let mut drained = Drained::Finished;
        while !self.workers.is_empty() {
            let Ok(event) = self.events.next(deadline) else {
                return Drained::TooLate;
            };
            let Some(event) = event else {
                match deadline {
                    Some(deadline) if Instant::now() >= deadline => return Drained::TooLate,
                    _ => continue,
                }
            };
            let whose = (event >> 8) as u32;
            match event & 0xff {
                PROCESS => {
                    let exit = self.has_ended(whose, None);
                    let how = exit.map(|exit| Drained::of(exit, deadline));
                    drained = drained.max(how.unwrap_or(Drained::Finished));
                }
                LISTENER => drop(self.turn_away(whose as usize)),
                LIFELINE => {
                    self.orphan_all();
                    if let Some(ties) = ties {
                        self.events.forget(ties.lifeline());
                    }
                }
                ORDERS => deadline = self.hurry(deadline, ties),
                SIGNALS => drop(self.signals.pending()),
                _ => drop(self.look_after(event, None)),
            }
        }
        drained
    }

    /// An owner that has no more patience may say so. Connections that it hands over are turned away.
    fn hurry(&mut self, deadline: Option<Instant>, ties: Option<&Ties>) -> Option<Instant> {
        let Some(ties) = ties else { return deadline };
        self.to_owner.flush(&ties.control, &self.events);
        match ties.control.receive(Some(Instant::now())) {
            Ok(Some(Order::Stop { patience })) => {
                let sooner = Instant::now().checked_add(patience);
                return [deadline, sooner].into_iter().flatten().min();
            }
            Ok(Some(Order::Serve(socket))) => {
                let socket = socket.into_owned().map(Socket::from);
                let deny = |socket| self.deny(0, socket, true);
                let _ = socket.map(deny);
            }
            Ok(Some(Order::Ask { .. } | Order::Look)) | Err(_) => {}
            Ok(None) => self.lets_go(ties),
        }
        deadline
    }

    /// Kills what is left, and waits until it is gone.
    pub(super) fn kill_all(&mut self) {
        for process in self.workers.values() {
            let _ = process.child.signal(Signal::SIGKILL);
        }
        let deadline = Instant::now() + DYING;
        for process in self.workers.values() {
            let _ = process.child.wait(Some(deadline));
        }
        self.workers.clear();
    }

    /// Turns one away that waits for a listener. `false`: nobody does.
    fn turn_away(&self, place: usize) -> bool {
        match socket::accept(&self.bound[place].socket) {
            Ok(Some(socket)) => {
                self.deny(place, socket.into(), false);
                true
            }
            _ => false,
        }
    }

    fn deny(&self, place: usize, socket: Socket, native: bool) {
        let observer = self.control.observer();
        self.bound[place].turn_away(Arc::new(socket), Denied::Stopping, native, observer);
    }

    /// Tells those who wait in the backlogs that it was in vain, so that they know that nothing was executed.
    fn turn_away_all(&self) {
        const MAX_BACKLOG: usize = 4096;
        for place in 0..self.bound.len() {
            for _ in 0..MAX_BACKLOG {
                if !self.turn_away(place) {
                    break;
                }
            }
        }
    }
}
