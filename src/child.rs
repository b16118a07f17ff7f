//! A child process whose life hangs on a line that its parent holds.
//!
//! Invariant: owner to server and monitor to worker are this one type. The lifeline carries nothing, ever; its
//! end of file means that nobody owns the child any more. Only this child is waited for, and by descriptor.

use crate::control::{ControlLine, Failure, Order, Report};
use crate::exit::Exit;
use crate::sys::launch::{self, LaunchError};
use crate::sys::pidfd::{PidFd, Status};
use crate::sys::{fdtable, poll, process, socket};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a killed child may take to be gone: the kernel has to free its memory.
const DYING: Duration = Duration::from_secs(1);

fn soon() -> Option<Instant> {
    Instant::now().checked_add(DYING)
}

/// A child, seen by its parent.
#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) pid: u32,
    pidfd: PidFd,
    /// Until it is let go.
    lifeline: Option<OwnedFd>,
    pub(crate) control: ControlLine,
    exit: Mutex<Option<Exit>>,
}

/// What ties a child to its parent, seen by the child.
#[derive(Debug)]
pub(crate) struct Ties {
    lifeline: OwnedFd,
    pub(crate) control: ControlLine,
    owner_ends: [RawFd; 2],
    inherited: Option<Vec<RawFd>>,
}

impl Ties {
    pub(crate) fn lifeline(&self) -> BorrowedFd<'_> {
        self.lifeline.as_fd()
    }

    /// The parent's ends of the same lines, of which the child inherits copies and must let go.
    pub(crate) fn owner_ends(&self) -> [RawFd; 2] {
        self.owner_ends
    }

    /// The numbers of all descriptors that were open at the fork, if the parent could tell.
    pub(crate) fn inherited(&mut self) -> Option<Vec<RawFd>> {
        self.inherited.take()
    }

    /// What a process that was launched by [`Child::launch`] finds; `None` if this one was not.
    pub(crate) fn inherited_at_launch() -> Option<Ties> {
        let (lifeline, control) = launch::take_lines()?;
        Some(Ties {
            lifeline,
            control: ControlLine::from_fd(control),
            owner_ends: [-1; 2],
            inherited: None,
        })
    }

    /// Says why there is no server. An owner that is gone needs no report.
    pub(crate) fn report_failure(&self, failure: Failure) {
        let _ = self.control.send(&Report::Failed(failure), None);
    }

    pub(crate) fn descriptors(&self) -> [RawFd; 2] {
        [self.lifeline.as_raw_fd(), self.control.as_fd().as_raw_fd()]
    }
}

impl Child {
    /// Forks a child that runs `body` and ends with the status it returns. It begins with all signals blocked
    /// and all descriptors inherited, the parent's ends of the new lines among them: `body` must poison them.
    ///
    /// A parent that is `alone`, because it has one thread only, says which descriptors there are: it has looked
    /// into `/proc` before, while the kernel would have to make all its entries anew for the child, and remove them.
    pub(crate) fn spawn(alone: bool, body: impl FnOnce(Ties) -> i32) -> io::Result<Child> {
        reap_released();
        let (lifeline_end, lifeline) = socket::pipe()?;
        let (control_end, control) = ControlLine::pair()?;
        let owner_ends = [lifeline.as_raw_fd(), control.as_fd().as_raw_fd()];
        let mut ties = Ties {
            lifeline: lifeline_end,
            control: control_end,
            owner_ends,
            inherited: None,
        };
        // If it cannot tell, the child looks for itself.
        let look = || alone.then(|| fdtable::open_descriptors().ok()).flatten();
        let (pid, pidfd) = process::fork(look, |inherited| {
            ties.inherited = inherited;
            body(ties)
        })?;
        Ok(Child {
            pid,
            pidfd,
            lifeline: Some(lifeline),
            control,
            exit: Mutex::new(None),
        })
    }

    /// Executes this program once more; the copy finds its ends of the lines by [`Ties::inherited_at_launch`].
    pub(crate) fn launch() -> Result<Child, LaunchError> {
        reap_released();
        let failed = |source| LaunchError {
            stage: launch::Stage::Fork,
            source,
        };
        let (lifeline_end, lifeline) = socket::pipe().map_err(failed)?;
        let (control_end, control) = ControlLine::pair().map_err(failed)?;
        let (pid, pidfd) = launch::launch_copy(&lifeline_end, &control_end)?;
        Ok(Child {
            pid,
            pidfd,
            lifeline: Some(lifeline),
            control,
            exit: Mutex::new(None),
        })
    }

    /// Lets the child's lifeline go: it has nobody to live for, and ends within its grace.
    pub(crate) fn orphan(&mut self) {
        self.lifeline = None;
    }

    /// Lets the child's control line go, and waits for the end that it takes that for; it is killed if there is none
    /// within `patience`.
    pub(crate) fn end_by_closing(self, patience: Duration) -> io::Result<Option<Exit>> {
        let Child {
            pidfd,
            lifeline,
            control,
            ..
        } = self;
        drop(control);
        let exit = pidfd.wait_and_reap(Instant::now().checked_add(patience))?;
        if exit.is_none() {
            pidfd.signal(crate::Signal::SIGKILL as i32)?;
        }
        drop(lifeline);
        let last = || pidfd.wait_and_reap(Instant::now().checked_add(DYING));
        Ok(exit
            .map_or_else(last, |exit| Ok(Some(exit)))?
            .map(Exit::from))
    }

    /// The numbers of all that it is held by.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        let lines = [self.pidfd.as_fd(), self.control.as_fd()].into_iter();
        lines
            .chain(self.lifeline.as_ref().map(AsFd::as_fd))
            .map(|fd| fd.as_raw_fd())
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: crate::Signal) -> io::Result<()> {
        self.pidfd.signal(signal as i32)
    }

    /// Kills a child that failed to start. It has rights of ours only.
    pub(crate) fn kill_now(&self) {
        let _ = self.pidfd.signal(crate::Signal::SIGKILL as i32);
        let _ = self.wait(Instant::now().checked_add(DYING));
    }

    /// Gives up a child that failed to start: with nobody to live for, one that has made something cleans up behind
    /// itself, and is killed if that takes long. What it has said, and nobody has heard, is still in its line.
    pub(crate) fn give_up(self) -> ControlLine {
        let Child {
            pidfd,
            lifeline,
            control,
            exit,
            ..
        } = self;
        drop(lifeline);
        let has_ended = || matches!(pidfd.wait_and_reap(soon()), Ok(Some(_)));
        let is_known = exit.into_inner().unwrap_or_else(PoisonError::into_inner);
        if is_known.is_none() && !has_ended() {
            let _ = pidfd.signal(crate::Signal::SIGKILL as i32);
            has_ended();
        }
        control
    }

    /// Another share in the child's life.
    pub(crate) fn share(&self) -> io::Result<OwnedFd> {
        let lifeline = self.lifeline.as_ref();
        lifeline.ok_or(io::ErrorKind::NotConnected)?.try_clone()
    }

    /// The number that names this process and no other, where the kernel has one.
    pub(crate) fn identity(&self) -> Option<u64> {
        self.pidfd.identity()
    }

    /// How the child ended; `None` if it has not by the deadline.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<Option<Exit>> {
        if let Some(exit) = *self.exit() {
            return Ok(Some(exit));
        }
        self.pidfd.wait(deadline)?;
        // Under the lock, so that of two threads that wait one reaps and the other reads.
        let mut known = self.exit();
        if known.is_none() {
            *known = self.pidfd.reap()?.map(Exit::from);
        }
        Ok(*known)
    }

    /// Asks the child to stop. If it has not within `patience`, `kill` is to kill it: [`Child::kill`] or another one.
    /// `meanwhile` is done, if there is time, while a child that has let go of its control line ends.
    pub(crate) fn stop(
        self,
        patience: Duration,
        kill: impl FnOnce(Child) -> io::Result<Option<Exit>>,
        meanwhile: impl FnOnce(),
    ) -> io::Result<Option<Exit>> {
        // A child that is gone already, or deaf, is dealt with below.
        let deadline = Instant::now().checked_add(patience);
        let _ = self.control.send(&Order::Stop { patience }, deadline);
        if self.exit().is_none() {
            let (process, line) = (self.pidfd.as_fd(), self.control.as_fd());
            if let (false, true) = poll::readable_or_hung_up(process, line, deadline)? {
                meanwhile();
            }
        }
        match self.wait(deadline)? {
            Some(exit) => Ok(Some(exit)),
            None => kill(self),
        }
    }

    /// Kills the child. One that belongs to another user cannot be killed; letting its lifeline go makes the
    /// dead-man switch do it, after `grace`.
    pub(crate) fn kill(self, grace: Duration) -> io::Result<Option<Exit>> {
        let patience = match self.pidfd.signal(crate::Signal::SIGKILL as i32) {
            Err(err) if err.kind() == io::ErrorKind::PermissionDenied => {
                grace.saturating_add(DYING)
            }
            _ => DYING,
        };
        let Child {
            pidfd,
            lifeline,
            control,
            exit,
            ..
        } = self;
        drop((lifeline, control));
        if let Some(exit) = *exit.lock().unwrap_or_else(PoisonError::into_inner) {
            return Ok(Some(exit));
        }
        Ok(pidfd
            .wait_and_reap(Instant::now().checked_add(patience))?
            .map(Exit::from))
    }

    /// Kills a child and its children, which it kills itself if it is asked to.
    pub(crate) fn kill_with_children(self, grace: Duration) -> io::Result<Option<Exit>> {
        let order = Order::Stop {
            patience: Duration::ZERO,
        };
        let _ = self.control.send(&order, soon());
        match self.wait(soon())? {
            Some(exit) => Ok(Some(exit)),
            None => self.kill(grace),
        }
    }

    /// Gives the child up. It is still ours to be reaped: at a later start.
    pub(crate) fn release(self) {
        let mut released = RELEASED.lock().unwrap_or_else(PoisonError::into_inner);
        released.push((process::generation(), self.pidfd));
    }

    fn exit(&self) -> std::sync::MutexGuard<'_, Option<Exit>> {
        self.exit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Child {
    /// The process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl From<Status> for Exit {
    fn from(status: Status) -> Exit {
        match status {
            Status::Exited(code) => Exit::Code(code),
            Status::Signaled(signal) => Exit::Signal(signal),
            Status::Unknown => Exit::Unknown,
        }
    }
}

/// Children that were released and may have ended since, with the generation of processes whose they are.
static RELEASED: Mutex<Vec<(u32, PidFd)>> = Mutex::new(Vec::new());

/// Reaps released children that have ended, so that they are no zombies for longer than need be.
fn reap_released() {
    let generation = process::generation();
    let mut released = RELEASED.lock().unwrap_or_else(PoisonError::into_inner);
    released.retain(|(of, pidfd)| *of == generation && matches!(pidfd.reap(), Ok(None)));
}
