//! Which worker of a server.
//!
//! Invariant: no two workers of a server ever have the same name.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Which worker: its place in the pool, and how many were started before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Worker {
    /// Its place, from 0. Whoever takes its place has the same.
    pub slot: u32,
    /// Which it is of all workers that this server ever started, from 1.
    pub generation: u32,
}

impl fmt::Display for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {} (generation {})", self.slot, self.generation)
    }
}
