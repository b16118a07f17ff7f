//! Being rid of open files whose maker has a say in how long that takes: the last `close` of a socket waits for as
//! long as its `SO_LINGER` says, also where the socket lies unread in another one.
//!
//! Invariant: in a process that has asked for it, nobody waits here for more than some milliseconds, because a signal
//! ends such a wait; when it is over, no more signals come. What is unsent, the kernel goes on sending.

use super::{check, process};
use nix::libc;
use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The dead-man switch's, whose handler looks for itself and does nothing if it has no reason to. So no signal is
/// taken from the user.
const INTERRUPT: libc::c_int = libc::SIGIO;
/// How long a thread waits. Timers that are further away than a tick of the kernel's cost much less.
const PATIENCE: Duration = Duration::from_millis(5);
/// How long it waits for the next ones, once it had to wait: there may be 253 in one message.
const HURRY: Duration = Duration::from_millis(1);

/// The process that waits no longer than that, as its generation and one more. 0: none does.
static PROCESS: AtomicU32 = AtomicU32::new(0);

/// This process waits no longer than some milliseconds from now on. The dead-man switch must be armed. It does not
/// pass on to forked processes, which may have other actions for the signal.
pub(crate) fn interrupt_here() {
    PROCESS.store(this_process(), Ordering::SeqCst);
}

fn this_process() -> u32 {
    process::generation().wrapping_add(1)
}

/// Closes a descriptor that may linger.
pub(crate) fn close(fd: OwnedFd) {
    // Other files do not linger, and to interrupt what a file system does would do harm. Who shares a socket can
    // make it linger at any time: whether it does now is of no interest.
    match is_socket(&fd) {
        true => interrupted(|| drop(fd)),
        false => drop(fd),
    }
}

fn is_socket(fd: &OwnedFd) -> bool {
    nix::sys::socket::getsockopt(fd, nix::sys::socket::sockopt::SockType)
        != Err(nix::errno::Errno::ENOTSOCK)
}

/// Does something that may be rid of sockets, and interrupts the calls of it that wait.
pub(crate) fn interrupted<R>(task: impl FnOnce() -> R) -> R {
    let _running = Running::start();
    task()
}

/// A connection's socket, in which descriptors may lie that nobody has taken, unless somebody knows better.
#[derive(Debug)]
pub(crate) struct Socket {
    /// There until it is closed.
    fd: Option<OwnedFd>,
    may_hold_rights: AtomicBool,
}

impl Socket {
    /// Whether descriptors may lie in it when it is closed. They do not if the kernel refuses them, or if the end
    /// of the stream has been received.
    pub(crate) fn set_may_hold_rights(&self, may: bool) {
        self.may_hold_rights.store(may, Ordering::Relaxed);
    }
}

impl From<OwnedFd> for Socket {
    fn from(fd: OwnedFd) -> Socket {
        Socket {
            fd: Some(fd),
            may_hold_rights: AtomicBool::new(true),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_ref().expect("there until it is closed").as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let fd = self.fd.take();
        match *self.may_hold_rights.get_mut() {
            true => interrupted(|| drop(fd)),
            false => drop(fd),
        }
    }
}

/// One thread's timer.
struct Timer {
    id: Cell<libc::timer_t>,
    /// The process that made it, as in [`PROCESS`]. 0: none has.
    made_by: Cell<u32>,
    is_running: Cell<bool>,
    /// What was closed last made the thread wait.
    is_hurried: Cell<bool>,
}

thread_local! {
    static TIMER: Timer = const {
        Timer {
            id: Cell::new(null_mut()),
            made_by: Cell::new(0),
            is_running: Cell::new(false),
            is_hurried: Cell::new(false),
        }
    };
}

/// The timer of this thread runs until this is dropped.
struct Running(Instant);

impl Running {
    /// `None`: it runs already, or is not wanted, or there is none to be had.
    fn start() -> Option<Running> {
        let process = PROCESS.load(Ordering::Relaxed);
        if process == 0 || process != this_process() {
            return None;
        }
        // A thread that is about to end may have none any more.
        let started = TIMER.try_with(|timer| timer.start(process));
        started
            .is_ok_and(|started| started)
            .then(|| Running(Instant::now()))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let waited = self.0.elapsed() >= HURRY;
        let _ = TIMER.try_with(|timer| timer.stop(waited));
    }
}

impl Timer {
    fn start(&self, process: u32) -> bool {
        if self.is_running.get() && self.made_by.get() == process {
            return false;
        }
        // A forked process has none, whatever its parent had.
        if self.made_by.get() != process {
            let Ok(id) = create() else { return false };
            self.id.set(id);
            self.made_by.set(process);
        }
        let first = if self.is_hurried.get() {
            HURRY
        } else {
            PATIENCE
        };
        self.is_running.set(self.set(first));
        self.is_running.get()
    }

    fn stop(&self, waited: bool) {
        self.is_hurried.set(waited);
        self.is_running.set(false);
        // A signal that is on its way comes before this returns.
        self.set(Duration::ZERO);
    }

    /// The first signal comes after `first`, unless that is zero, and the others follow quickly.
    fn set(&self, first: Duration) -> bool {
        let spec = libc::itimerspec {
            it_interval: timespec(HURRY),
            it_value: timespec(first),
        };
        // SAFETY: the timer is this process's and has not been deleted; no old value is asked for.
        unsafe { libc::timer_settime(self.id.get(), 0, &raw const spec, null_mut()) == 0 }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if self.made_by.get() != 0 && self.made_by.get() == this_process() {
            // SAFETY: the timer is this process's, and is deleted once.
            unsafe { libc::timer_delete(self.id.get()) };
        }
    }
}

/// A timer that signals this thread, not running yet.
fn create() -> io::Result<libc::timer_t> {
    let mut event = MaybeUninit::<libc::sigevent>::zeroed();
    // SAFETY: all zeroes are a valid sigevent.
    let event = unsafe { event.assume_init_mut() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = INTERRUPT;
    event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
    let mut id = null_mut();
    // SAFETY: `event` is filled in and `id` has room for the result.
    check(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, event, &raw mut id) })?;
    Ok(id)
}

fn timespec(duration: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: duration.as_secs() as _,
        tv_nsec: duration.subsec_nanos() as _,
    }
}
