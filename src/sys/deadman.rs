//! The dead-man switch: the kernel ends this process some time after its last owner has gone, whatever the
//! process is doing.
//!
//! Invariant: the line never carries a byte, because any byte would be taken for the end of it. Nothing between
//! the line's end and `SIGKILL` depends on a thread of this process getting to run its own code, but for one
//! signal handler.

use super::{check, signal};
use nix::libc;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

/// Of the kernel's `include/uapi/asm-generic/fcntl.h`; the C library's crate does not have it.
const F_SETSIG: libc::c_int = 10;

static LIFELINE: AtomicI32 = AtomicI32::new(-1);
/// The timer runs: further signals must not put it off.
static COUNTING: AtomicBool = AtomicBool::new(false);
static TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(null_mut());
static GRACE: AtomicU64 = AtomicU64::new(0);

/// Arms the switch for this process: `grace` after the last writer of `lifeline` has gone, `SIGKILL` comes.
///
/// The open file of `lifeline` must be this process's own: the kernel remembers one process for each open file.
pub(crate) fn arm(lifeline: BorrowedFd<'_>, grace: Duration) -> io::Result<()> {
    // A parent that is a server itself may be ending.
    COUNTING.store(false, Ordering::SeqCst);
    TIMER.store(kill_timer()?, Ordering::SeqCst);
    GRACE.store(
        grace.as_nanos().clamp(1, u128::from(u64::MAX)) as u64,
        Ordering::SeqCst,
    );
    LIFELINE.store(lifeline.as_raw_fd(), Ordering::SeqCst);
    signal::catch(libc::SIGIO, lifeline_moved)?;
    let fd = lifeline.as_raw_fd();
    // SAFETY: fcntl with an integer argument on an open descriptor.
    check(unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGIO) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETOWN, nix::unistd::getpid().as_raw()) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK) })?;
    // An owner that went before the switch was armed sends no signal any more.
    lifeline_moved(0);
    Ok(())
}

/// Takes back what [`arm`] has done, for the time in which a process makes its signals its own. A count that has begun
/// goes on.
pub(crate) fn disarm(lifeline: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: fcntl with an integer argument on an open descriptor.
    check(unsafe { libc::fcntl(lifeline.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

/// A timer that sends `SIGKILL`, not running yet: made now, because it could not be made in a signal handler.
fn kill_timer() -> io::Result<libc::timer_t> {
    let mut event = MaybeUninit::<libc::sigevent>::zeroed();
    // SAFETY: all zeroes are a valid sigevent.
    let event = unsafe { event.assume_init_mut() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = libc::SIGKILL;
    let mut timer = null_mut();
    // SAFETY: `event` is filled in and `timer` has room for the result.
    check(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, event, &raw mut timer) })?;
    Ok(timer)
}

/// Starts the timer if the line has ended. Runs as a signal handler: it only makes async-signal-safe calls and
/// leaves `errno` as it was. It looks for itself, because anybody with our rights can send SIGIO.
extern "C" fn lifeline_moved(_: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    let mut line = libc::pollfd {
        fd: LIFELINE.load(Ordering::SeqCst),
        events: 0,
        revents: 0,
    };
    // SAFETY: one pollfd, and a count of one; poll is async-signal-safe.
    let ended =
        unsafe { libc::poll(&raw mut line, 1, 0) } == 1 && line.revents & libc::POLLHUP != 0;
    if ended && !COUNTING.swap(true, Ordering::SeqCst) {
        let grace = GRACE.load(Ordering::SeqCst);
        let once = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let after = libc::timespec {
            tv_sec: (grace / 1_000_000_000) as _,
            tv_nsec: (grace % 1_000_000_000) as _,
        };
        let spec = libc::itimerspec {
            it_interval: once,
            it_value: after,
        };
        // SAFETY: the timer was made before this handler was installed; timer_settime is async-signal-safe.
        unsafe {
            libc::timer_settime(TIMER.load(Ordering::SeqCst), 0, &raw const spec, null_mut())
        };
    }
    nix::errno::Errno::set_raw(errno);
}
