//! A descriptor that the other side has, or had: it came from there, or is on its way there.
//!
//! Invariant: nobody waits for the other side in order to be rid of one. Closing the last share of an open file
//! may take as long as whoever made it likes; how a process sees to it that this is no hindrance is not known here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

static CLOSE: OnceLock<fn(OwnedFd)> = OnceLock::new();

/// How this process, and those that are forked from it, close such descriptors from now on. It can be said once.
pub(crate) fn close_with(close: fn(OwnedFd)) {
    // A server that was forked by another one says the same again.
    let _ = CLOSE.set(close);
}

/// Such a descriptor.
#[derive(Debug)]
pub(crate) struct Descriptor {
    /// There until it is given away or closed.
    fd: Option<OwnedFd>,
}

impl Descriptor {
    /// The descriptor itself, which is closed like any other from now on.
    pub(crate) fn into_owned(mut self) -> OwnedFd {
        self.fd.take().expect("there until it is given away")
    }

    /// Moves it out, once.
    pub(crate) fn take(&mut self) -> Option<Descriptor> {
        self.fd.take().map(Descriptor::from)
    }

    /// Whether it has not been moved out.
    pub(crate) fn is_there(&self) -> bool {
        self.fd.is_some()
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Descriptor {
        Descriptor { fd: Some(fd) }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let fd = self.fd.as_ref().expect("there until it is given away");
        fd.as_fd()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            match CLOSE.get() {
                Some(close) => close(fd),
                None => drop(fd),
            }
        }
    }
}
