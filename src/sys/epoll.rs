//! A set of descriptors that one thread looks after, or many, one event at a time.
//!
//! Invariant: a connection that was armed gives its event to one thread, which is then alone with it until it arms it
//! again.

use super::left;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// What to wait for on a connection. Its end counts as both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interest {
    Readable,
    Writable,
    Both,
    /// Not even its end, or once at most.
    Nothing,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Interest::Readable => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
            Interest::Writable => EpollFlags::EPOLLOUT,
            Interest::Both => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLOUT,
            // Its end is told without being asked for, and would be over and over again.
            Interest::Nothing => EpollFlags::EPOLLONESHOT,
        }
    }
}

/// How many events one wait gives at most.
const BATCH: usize = 64;

/// The set. Descriptors leave it when they are closed.
#[derive(Debug)]
pub(crate) struct EventSet(Epoll);

impl EventSet {
    pub(crate) fn new() -> io::Result<EventSet> {
        Ok(EventSet(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Gives an event with this name whenever `fd` is readable.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, name: u64) -> io::Result<()> {
        Ok(self.0.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, name))?)
    }

    /// As [`EventSet::watch`], for something that several processes look at: one of those that wait is woken, the one whose
    /// turn it is. Its turn comes after all others' when it forgets and watches once more.
    pub(crate) fn watch_in_turn(&self, fd: BorrowedFd<'_>, name: u64) -> io::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
        Ok(self.0.add(fd, EpollEvent::new(flags, name))?)
    }

    /// Gives no more events for `fd`, or gives them again.
    pub(crate) fn set_watched(
        &self,
        fd: BorrowedFd<'_>,
        name: u64,
        watched: bool,
    ) -> io::Result<()> {
        let flags = if watched {
            EpollFlags::EPOLLIN
        } else {
            EpollFlags::empty()
        };
        Ok(self.0.modify(fd, &mut EpollEvent::new(flags, name))?)
    }

    /// Gives events for `fd` for as long as it is what it shall be. `known`: it is in the set.
    pub(crate) fn keep(
        &self,
        fd: BorrowedFd<'_>,
        name: u64,
        interest: Interest,
        known: bool,
    ) -> io::Result<()> {
        self.set(fd, known, EpollEvent::new(interest.flags(), name))
    }

    /// Gives no events for `fd` any more, not even of its end.
    pub(crate) fn forget(&self, fd: BorrowedFd<'_>) {
        // It fails only if it is not in the set.
        let _ = self.0.delete(fd);
    }

    /// Gives one event for `fd`, when it is what it shall be. `known`: it was armed before.
    pub(crate) fn arm(
        &self,
        fd: BorrowedFd<'_>,
        name: u64,
        interest: Interest,
        known: bool,
    ) -> io::Result<()> {
        let flags = interest.flags() | EpollFlags::EPOLLONESHOT;
        self.set(fd, known, EpollEvent::new(flags, name))
    }

    fn set(&self, fd: BorrowedFd<'_>, known: bool, mut event: EpollEvent) -> io::Result<()> {
        Ok(if known {
            self.0.modify(fd, &mut event)
        } else {
            self.0.add(fd, event)
        }?)
    }

    /// The name of something that is ready. `None`: nothing was until the deadline, or a signal came.
    pub(crate) fn next(&self, deadline: Option<Instant>) -> io::Result<Option<u64>> {
        self.one(timeout(deadline))
    }

    /// As [`EventSet::next`], without waiting.
    pub(crate) fn next_now(&self) -> io::Result<Option<u64>> {
        self.one(EpollTimeout::ZERO)
    }

    fn one(&self, timeout: EpollTimeout) -> io::Result<Option<u64>> {
        let mut events = [EpollEvent::empty()];
        let count = self.wait(&mut events, timeout)?;
        Ok((count > 0).then(|| events[0].data()))
    }

    /// Whether something is ready. It stays so.
    pub(crate) fn has_any(&self) -> bool {
        super::poll::is_readable(self.as_fd())
    }

    /// The names of everything that is ready, into `names`. As [`EventSet::next`] otherwise.
    pub(crate) fn all(&self, names: &mut Vec<u64>, deadline: Option<Instant>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); BATCH];
        let count = self.wait(&mut events, timeout(deadline))?;
        names.extend(events[..count].iter().map(EpollEvent::data));
        Ok(())
    }

    fn wait(&self, events: &mut [EpollEvent], timeout: EpollTimeout) -> io::Result<usize> {
        match self.0.wait(events, timeout) {
            Err(Errno::EINTR) => Ok(0),
            result => Ok(result?),
        }
    }
}

/// Rounded up to whole milliseconds, so that a wait never ends early and spins.
fn timeout(deadline: Option<Instant>) -> EpollTimeout {
    let Some(deadline) = deadline else {
        return EpollTimeout::NONE;
    };
    let rounded = left(deadline) + Duration::from_micros(999);
    EpollTimeout::try_from(rounded.as_millis()).unwrap_or(EpollTimeout::MAX)
}

impl AsFd for EventSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}
