//! The mold: a process with one thread, forked from the spawner after the preload, that forks prepared jobs.
//!
//! Invariant: it does nothing but fork, reap and tell; it reads no client's bytes but the arguments that it hands on.
//! Every job has a lifeline of its own, which the mold holds, so that no job outlives it.

use super::jobs::{Ended, Fork, Forked, JobTable, Said};
use crate::channel::{Channel, Home, StopToken};
use crate::child::{Child, Ties};
use crate::connection::Connection;
use crate::control::ArgumentsFile;
use crate::exit::Exit;
use crate::fault::Fault;
use crate::limits::Limits;
use crate::panics;
use crate::password;
use crate::protocol::inbox::Inbox;
use crate::protocol::outbox::Outbox;
use crate::protocol::stream::{Side, StreamIn, StreamOut};
use crate::service::end_of_stream;
use crate::sys::signal::{self, Signals};
use crate::sys::{deadman, fdtable, linger, poll, process};
use crate::{Fd, Signal};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The stream between a job and whoever asked for it is the only one on its connection.
pub(super) const STREAM: u32 = 1;
/// Exit statuses of jobs whose function failed or panicked.
const FAILED: i32 = 1;
/// A job that its requester does not listen to ends all the same.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Forks the mold. `before` are the descriptors that were open before the preload: it keeps none of them.
pub(super) fn fork<S: Send + Sync + 'static>(
    state: Arc<S>,
    jobs: Arc<JobTable<S>>,
    before: &[RawFd],
) -> io::Result<Child> {
    Child::spawn(true, |ties| match Mold::new(ties, state, jobs, before) {
        Ok(mold) => mold.serve(),
        // Whoever asks for a job finds the line closed.
        Err(_) => FAILED,
    })
}

struct Mold<S> {
    ties: Ties,
    signals: Signals,
    state: Arc<S>,
    jobs: Arc<JobTable<S>>,
    children: HashMap<u64, Child>,
    /// Ends that have not been told, because the spawner was slow to listen.
    untold: VecDeque<Ended>,
}

impl<S: Send + Sync + 'static> Mold<S> {
    fn new(
        ties: Ties,
        state: Arc<S>,
        jobs: Arc<JobTable<S>>,
        before: &[RawFd],
    ) -> io::Result<Mold<S>> {
        signal::reset_all();
        let signals = Signals::take_over(&[Signal::SIGCHLD as i32])?;
        signal::clear_mask()?;
        process::own_group()?;
        let keep = [&ties.descriptors()[..], &signals.descriptors()].concat();
        let theirs = [before, &ties.owner_ends()].concat();
        fdtable::poison_except(&keep, Some(theirs))?;
        process::end_with_parent()?;
        // After that, so that a parent that ends in between is noticed here.
        deadman::arm(ties.lifeline(), Duration::ZERO)?;
        linger::interrupt_here();
        password::reseed_after_fork();
        // A name is for people who look.
        let _ = process::set_name("mold");
        Ok(Mold {
            ties,
            signals,
            state,
            jobs,
            children: HashMap::new(),
            untold: VecDeque::new(),
        })
    }

    fn serve(mut self) -> i32 {
        loop {
            let waited = [
                self.ties.lifeline(),
                self.ties.control.as_fd(),
                self.signals.as_fd(),
            ];
            // With something to tell, it looks from time to time whether somebody listens.
            let deadline =
                (!self.untold.is_empty()).then(|| Instant::now() + Duration::from_millis(10));
            let Ok([orphaned, asked, signaled]) = poll::readable(waited.map(Some), deadline) else {
                return FAILED;
            };
            if orphaned {
                return self.end();
            }
            if signaled {
                self.hear_signals();
            }
            self.tell();
            if asked {
                match self.ties.control.receive::<Fork>(Some(Instant::now())) {
                    Ok(Some(order)) => self.fork(order),
                    Ok(None) => return self.end(),
                    // What cannot be understood, or has no room here, is not answered; whoever asked finds its
                    // connection closed, and does not wait for ever.
                    Err(_) => {}
                }
            }
        }
    }

    /// Ends all jobs, and then itself.
    fn end(self) -> i32 {
        self.children.values().for_each(Child::kill_now);
        0
    }

    fn hear_signals(&mut self) {
        for number in self.signals.pending() {
            if number != Signal::SIGCHLD as i32 {
                process::leave(128 + number);
            }
        }
        let now = Some(Instant::now());
        let untold = &mut self.untold;
        self.children.retain(|&number, child| {
            let exit = child.wait(now).unwrap_or(None);
            untold.extend(exit.map(|exit| Ended {
                number,
                exit: exit.into(),
            }));
            exit.is_none()
        });
    }

    fn tell(&mut self) {
        while let Some(ended) = self.untold.front() {
            let said = Said::Ended(*ended);
            if self.ties.control.send(&said, Some(Instant::now())).is_err() {
                return;
            }
            self.untold.pop_front();
        }
    }

    fn fork(&mut self, order: Fork) {
        let number = order.number;
        let said = match self.start(order) {
            Ok(forked) => Said::Forked(forked),
            Err(err) => Said::Refused {
                number,
                errno: err.raw_os_error(),
                text: err.to_string(),
            },
        };
        // The spawner waits for this; one that does not is gone.
        let deadline = Instant::now() + LAST_WORDS;
        let _ = self.ties.control.send(&said, Some(deadline));
    }

    fn start(&mut self, order: Fork) -> io::Result<Forked> {
        let number = order.number;
        let Some(job) = self.jobs.get(&order.name).cloned() else {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "there is no job of that name",
            ));
        };
        let child = Child::spawn(true, |ties| {
            let ours = self.descriptors();
            match become_job(ties, &ours) {
                Ok(_ties) => run(order, |channel, arguments| {
                    job(&self.state, arguments, channel)
                }),
                Err(_) => FAILED,
            }
        })?;
        // What nobody can be told of must not stay, not even dead.
        let pidfd = child.as_fd().try_clone_to_owned();
        let forked = Forked {
            number,
            pid: child.pid,
            pidfd: Fd::from(pidfd.inspect_err(|_| child.kill_now())?),
        };
        self.children.insert(number, child);
        Ok(forked)
    }

    /// What a job must not have: the mold's own lines, and those of other jobs.
    fn descriptors(&self) -> Vec<RawFd> {
        let children = self.children.values().flat_map(Child::descriptors);
        let own = [self.ties.descriptors(), self.signals.descriptors()];
        own.into_iter().flatten().chain(children).collect()
    }
}

/// From a copy of the mold to a job.
fn become_job(ties: Ties, molds: &[RawFd]) -> io::Result<Ties> {
    signal::reset_all();
    let theirs = [molds, &ties.owner_ends()].concat();
    fdtable::poison_except(&ties.descriptors(), Some(theirs))?;
    // The mold's end is its end, at once: also if its function has closed the line, or blocks all signals.
    process::end_with_parent()?;
    deadman::arm(ties.lifeline(), Duration::ZERO)?;
    linger::interrupt_here();
    signal::clear_mask()?;
    password::reseed_after_fork();
    let _ = process::set_name("job");
    Ok(ties)
}

/// Runs a job's function, and tells its requester how that ended. Returns the exit status.
fn run(order: Fork, job: impl FnOnce(Channel, ArgumentsFile) -> Result<(), Fault>) -> i32 {
    let Ok(stop) = StopToken::new() else {
        return FAILED;
    };
    let limits = Arc::new(Limits::default());
    let Ok(socket) = order.channel.into_owned() else {
        return FAILED;
    };
    let connection = Connection::new(Arc::new(linger::Socket::from(socket)));
    let home = Arc::<Home>::default();
    let parts = (
        StreamIn::new(Inbox::new(limits.bounds()), STREAM, Side::Server),
        StreamOut::new(Outbox::new(limits.bounds()), STREAM, true),
    );
    let channel = Channel::serve(parts, &connection, &limits, stop, &home);
    let result = panics::catch(|| job(channel, order.arguments));
    let status = match &result {
        Ok(Ok(())) => 0,
        Ok(Err(_)) => FAILED,
        Err(_) => process::PANICKED,
    };
    let (_, mut output) = home.wait();
    // A result that is too large cannot be: it has no value, and texts are cut.
    let _ = output.outbox.send(end_of_stream(STREAM, result));
    let deadline = Instant::now() + LAST_WORDS;
    while output.outbox.queued() > 0 && Instant::now() < deadline {
        match connection.transmit(&output.outbox, Some(LAST_WORDS)) {
            Ok(len) => output.outbox.transmitted(len),
            Err(_) => break,
        }
    }
    status
}

impl From<Exit> for super::wire::Status {
    fn from(exit: Exit) -> super::wire::Status {
        match exit {
            Exit::Code(code) => super::wire::Status::Exited(code),
            Exit::Signal(signal) => super::wire::Status::Signaled(signal),
            Exit::Unknown => super::wire::Status::Unknown,
        }
    }
}
