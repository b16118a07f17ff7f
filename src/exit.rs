//! How a server ended.
//!
//! Invariant: plain data; it says what the kernel says, and `Unknown` where somebody else took the status.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Exit {
    /// It ended by itself, with this exit status. 0 after an orderly stop.
    Code(i32),
    /// A signal of this number ended it.
    Signal(i32),
    /// It is gone, but this process took its status elsewhere (it ignores `SIGCHLD`, or waits for any child) and
    /// the kernel is too old to tell again (6.15 is needed).
    Unknown,
}

impl Exit {
    /// Whether the server stopped in an orderly way.
    pub fn is_clean(self) -> bool {
        self == Exit::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exit status {code}"),
            Exit::Signal(signal) => write!(f, "ended by signal {signal}"),
            Exit::Unknown => f.write_str("gone, with an unknown status"),
        }
    }
}
