//! How much one server grants, and how long it waits.
//!
//! Invariant: every bound that a client can run into is a public field here, with its default in one place.

use std::time::Duration;

/// Bounds on what clients may take. Start from [`Limits::default`] and change the fields you care about.
///
/// ```
/// let mut limits = forkserver::Limits::default();
/// limits.max_frame = 1 << 20;
/// let server = forkserver::Server::new().limits(limits);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Connections served at the same time; further ones wait in the kernel's backlog. Default 1 024.
    pub max_connections: usize,
    /// Connections that have not shown the password yet; above this, the oldest of them goes. Default 64.
    pub max_unauthenticated: usize,
    /// Threads that serve connections, started as they are needed and kept. Default 16. With more clients than
    /// this that call all the time, they share the threads, a millisecond each.
    pub max_threads: usize,
    /// Streams open at the same time, each of which has a thread of its own. Default 256.
    pub max_dedicated: usize,
    /// Bytes in one message, both ways, without its 12-byte header. Default 16 MiB.
    pub max_frame: usize,
    /// Descriptors in one message. Default and highest possible value 253 (the kernel's `SCM_MAX_FD`).
    pub max_fds: usize,
    /// Bytes that wait to be sent on one connection, above which no further call is taken from it and a stream's
    /// `queue` sends. Default 256 KiB.
    pub high_watermark: usize,
    /// From accept to a complete password. Absolute. Default 2 s.
    pub auth_timeout: Duration,
    /// From the first byte of a message to its last. Absolute. Default 10 s.
    pub frame_timeout: Duration,
    /// How long a reply may make no progress because its client does not read. Default 30 s.
    pub write_timeout: Duration,
    /// How long a connection may be silent between two calls. Default: for ever.
    pub idle_timeout: Option<Duration>,
    /// How deep values may be nested. Default 64.
    pub max_depth: usize,
    /// How many elements of sequences and maps one message may hold. Default 1 000 000. A byte string that is
    /// sent as [`Bytes`](crate::Bytes) has none.
    pub max_elements: usize,
    /// How much memory one decoded message may take, as far as the sizes of its parts tell. Default 128 MiB. A
    /// message that takes more than 8 MiB may furthermore not take more than twelve times its own size.
    pub max_memory: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_connections: 1024,
            max_unauthenticated: 64,
            max_threads: 16,
            max_dedicated: 256,
            max_frame: 16 << 20,
            max_fds: MAX_FDS,
            high_watermark: 256 << 10,
            auth_timeout: Duration::from_secs(2),
            frame_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
            idle_timeout: None,
            max_depth: 64,
            max_elements: 1_000_000,
            max_memory: 128 << 20,
        }
    }
}

/// The most descriptors that one message can carry: `SCM_MAX_FD` of the kernel's `include/net/scm.h`.
pub(crate) const MAX_FDS: usize = 253;
