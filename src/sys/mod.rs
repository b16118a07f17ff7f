//! The kernel: everything that is a system call, and all unsafe code.
//!
//! Invariant: nothing here knows the protocol or any other part of the crate; each unsafe block is one operation
//! with the fact it relies on.

pub(crate) mod clock;
pub(crate) mod deadman;
pub(crate) mod epoll;
pub(crate) mod fdtable;
pub(crate) mod file;
pub(crate) mod launch;
pub(crate) mod linger;
pub(crate) mod pidfd;
pub(crate) mod poll;
pub(crate) mod process;
pub(crate) mod rights;
pub(crate) mod shared;
pub(crate) mod signal;
pub(crate) mod socket;
pub(crate) mod trace;

use std::io;
use std::time::{Duration, Instant};

/// Turns the result of a C call into a `Result`.
fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Repeats a call that a signal interrupted.
fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// How long it is until `deadline`; zero if it has passed.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

use nix::libc;
