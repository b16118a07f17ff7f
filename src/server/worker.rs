//! From a forked copy of the monitor to a worker.
//!
//! Invariant: what belongs to the monitor, or to another worker, is gone before any line of the user's runs; what
//! `initialize` has made stays. It never calls `listen`: the kernel attests the monitor.

use super::Server;
use super::serve::{self, Alone, Role};
use super::setup::{self, at};
use crate::child::Ties;
use crate::context::Control;
use crate::control::{Failure, Report};
use crate::listener::Bound;
use crate::password;
use crate::prefork::{Prefork, memory};
use crate::scoreboard::{Board, WorkerPhase};
use crate::sys::signal::{self, Signals};
use crate::sys::{deadman, fdtable, linger, process, trace};
use crate::worker::Worker;
use std::os::fd::RawFd;
use std::sync::Arc;

/// What a worker has of its monitor.
pub(super) struct Legacy<'a> {
    pub(super) server: &'a Server,
    pub(super) prefork: &'a Prefork,
    pub(super) worker: Worker,
    pub(super) control: Control,
    pub(super) bound: Vec<Bound>,
    pub(super) board: Arc<Board>,
    /// Its place on the board.
    pub(super) region: usize,
    /// The numbers of the monitor's own descriptors.
    pub(super) monitors: Vec<RawFd>,
}

/// The body of a worker: serves, and returns its exit status.
pub(super) fn serve(legacy: Legacy<'_>, ties: Ties) -> i32 {
    let (server, control) = (legacy.server, legacy.control.clone());
    let role = Role::Worker {
        max_memory: legacy.prefork.max_memory,
    };
    match become_worker(legacy, &ties) {
        Ok(alone) => {
            let counts = control.gate().counts();
            counts.set_phase(WorkerPhase::Serving);
            let _ = ties.control.send(&Report::Ready, None);
            setup::status_of(serve::until_told(server, alone, Some(ties), role))
        }
        Err(failure) => {
            let status = match failure.panicked {
                true => process::PANICKED,
                false => 1,
            };
            ties.report_failure(failure);
            status
        }
    }
}

fn become_worker(legacy: Legacy<'_>, ties: &Ties) -> Result<Alone, Failure> {
    let Legacy {
        server,
        prefork,
        worker,
        control,
        mut bound,
        board,
        region,
        monitors,
    } = legacy;
    signal::reset_all();
    let signals = at("signals", Signals::take_over(&server.handled_signals()))?;
    if prefork.call_timeout.is_some() {
        // It stays for as long as this process: the handler needs it.
        let kept: &'static Board = Box::leak(Box::new(Arc::clone(&board)));
        at("trace", trace::arm(kept.trace(region)))?;
    }
    at("signals", signal::clear_mask())?;
    if server.own_group {
        at("process group", process::own_group())?;
    }
    let theirs = [&monitors[..], &ties.owner_ends()].concat();
    let keep = [&ties.descriptors()[..], &signals.descriptors()].concat();
    at("descriptors", fdtable::poison_except(&keep, Some(theirs)))?;
    at(
        "dead-man switch",
        deadman::arm(ties.lifeline(), server.grace),
    )?;
    linger::interrupt_here();
    password::reseed_after_fork();
    setup::limit_resources(server)?;
    bound.iter_mut().for_each(Bound::lend);
    let own = board.region(region);
    at("control", control.become_worker(worker, own))?;
    at("board", board.protect_except(region))?;
    setup::start_worker(server, &control)?;
    if let Some((private, shared)) = memory::of_this_process() {
        control.gate().set_memory(private, shared);
    }
    setup::open(server, control, bound, signals)
}
