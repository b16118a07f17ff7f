//! Waiting for descriptors, and waking whoever waits.
//!
//! Invariant: a wait ends at its deadline however often signals interrupt it.

use super::left;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Waits until one of `fds` is readable or at its end, and says which are. None are, if the deadline passed.
/// A place without a descriptor never is.
pub(crate) fn readable<const N: usize>(
    fds: [Option<BorrowedFd<'_>>; N],
    deadline: Option<Instant>,
) -> io::Result<[bool; N]> {
    let mut polled: Vec<_> = fds
        .iter()
        .flatten()
        .map(|&fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    wait(&mut polled, deadline)?;
    let mut seen = polled.iter().map(|fd| fd.any().unwrap_or(true));
    Ok(fds.map(|fd| fd.is_some() && seen.next().unwrap_or(false)))
}

/// Whether `fd` is readable now.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN)];
    nix::poll::poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Waits until `fd` is writable or, if that is of interest, readable, and says what it is.
pub(crate) fn ready(
    fd: BorrowedFd<'_>,
    reading: bool,
    deadline: Option<Instant>,
) -> io::Result<(bool, bool)> {
    let reading = if reading {
        PollFlags::POLLIN
    } else {
        PollFlags::empty()
    };
    let mut polled = [PollFd::new(fd, reading | PollFlags::POLLOUT)];
    wait(&mut polled, deadline)?;
    let seen = polled[0].revents().unwrap_or(PollFlags::POLLERR);
    let broken = seen.intersects(PollFlags::POLLERR | PollFlags::POLLHUP);
    Ok((
        broken || seen.contains(PollFlags::POLLIN),
        broken || seen.contains(PollFlags::POLLOUT),
    ))
}

/// Waits until `fd` is writable, or broken. `false`: the deadline passed before.
pub(crate) fn writable(fd: BorrowedFd<'_>, deadline: Option<Instant>) -> io::Result<bool> {
    let mut polled = [PollFd::new(fd, PollFlags::POLLOUT)];
    wait(&mut polled, deadline)?;
    Ok(polled[0].any().unwrap_or(true))
}

/// Waits until `fd` is readable or the other end of `line` is closed altogether, and says which.
pub(crate) fn readable_or_hung_up(
    fd: BorrowedFd<'_>,
    line: BorrowedFd<'_>,
    deadline: Option<Instant>,
) -> io::Result<(bool, bool)> {
    let mut polled = [
        PollFd::new(fd, PollFlags::POLLIN),
        PollFd::new(line, PollFlags::empty()),
    ];
    wait(&mut polled, deadline)?;
    Ok((
        polled[0].any().unwrap_or(true),
        polled[1].any().unwrap_or(true),
    ))
}

/// Whether the other end of `fd` is closed altogether (and not only for writing).
pub(crate) fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::new(fd, PollFlags::empty())];
    wait(&mut polled, Some(Instant::now())).is_ok()
        && polled[0]
            .revents()
            .is_some_and(|seen| seen.contains(PollFlags::POLLHUP))
}

fn wait(fds: &mut [PollFd<'_>], deadline: Option<Instant>) -> io::Result<()> {
    loop {
        match nix::poll::poll(fds, timeout(deadline)) {
            Ok(0) if deadline.is_some_and(|deadline| !left(deadline).is_zero()) => {}
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
        }
    }
}

/// Rounded up to whole milliseconds, so that a wait never ends early and spins.
fn timeout(deadline: Option<Instant>) -> PollTimeout {
    let Some(deadline) = deadline else {
        return PollTimeout::NONE;
    };
    let rounded = left(deadline) + Duration::from_micros(999);
    PollTimeout::try_from(rounded.as_millis()).unwrap_or(PollTimeout::MAX)
}

/// Wakes a thread that polls it. Waking twice before it looks is waking once.
#[derive(Debug)]
pub(crate) struct Waker(EventFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Waker> {
        Ok(Waker(EventFd::from_flags(
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?))
    }

    /// Makes it this process's alone, under the same number. A forked child shares it with its parent before.
    pub(crate) fn renew(&self) -> io::Result<()> {
        let fresh = Waker::new()?;
        super::fdtable::put_in_place(&fresh.0, &self.0)
    }

    pub(crate) fn wake(&self) {
        // It fails only when the counter is full, and then the thread is being woken anyway.
        let _ = self.0.write(1);
    }

    pub(crate) fn clear(&self) {
        // It fails only when nobody woke.
        let _ = self.0.read();
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
