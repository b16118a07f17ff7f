//! A set of descriptors that many threads may look after, one event at a time.
//!
//! Invariant: a connection's event is given to one thread, which is then alone with it until it arms it again.

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
}

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

    /// Gives one event for `fd`, when it is what it shall be. `known`: it was armed before.
    pub(crate) fn arm(
        &self,
        fd: BorrowedFd<'_>,
        name: u64,
        interest: Interest,
        known: bool,
    ) -> io::Result<()> {
        let flags = match interest {
            Interest::Readable => EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP,
            Interest::Writable => EpollFlags::EPOLLOUT,
        };
        let mut event = EpollEvent::new(flags | EpollFlags::EPOLLONESHOT, name);
        Ok(if known {
            self.0.modify(fd, &mut event)
        } else {
            self.0.add(fd, event)
        }?)
    }

    /// The name of something that is ready. `None`: nothing was until the deadline, or a signal came.
    pub(crate) fn next(&self, deadline: Option<Instant>) -> io::Result<Option<u64>> {
        let timeout = match deadline {
            None => EpollTimeout::NONE,
            // Rounded up to whole milliseconds, so that a wait never ends early and spins.
            Some(deadline) => {
                let rounded = left(deadline) + Duration::from_micros(999);
                EpollTimeout::try_from(rounded.as_millis()).unwrap_or(EpollTimeout::MAX)
            }
        };
        self.wait(timeout)
    }

    /// As [`EventSet::next`], without waiting.
    pub(crate) fn next_now(&self) -> io::Result<Option<u64>> {
        self.wait(EpollTimeout::ZERO)
    }

    fn wait(&self, timeout: EpollTimeout) -> io::Result<Option<u64>> {
        let mut events = [EpollEvent::empty()];
        match self.0.wait(&mut events, timeout) {
            Ok(0) | Err(Errno::EINTR) => Ok(None),
            Ok(_) => Ok(Some(events[0].data())),
            Err(err) => Err(err.into()),
        }
    }
}

impl AsFd for EventSet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}
