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
    /// Calls of one connection, streams among them, after which it is closed: their answers leave, what has been sent
    /// behind them is refused as [`CallError::Closing`](crate::CallError::Closing), and the client connects anew.
    /// `Some(1)` is one-shot mode, a connection for each call; `Some(0)`: none is begun. Default: no limit.
    ///
    /// ```
    /// let mut one_shot = forkserver::Limits::default();
    /// one_shot.max_calls = Some(1);
    /// let listener = forkserver::Listener::private().limits(one_shot);
    /// ```
    pub max_calls: Option<u64>,
    /// Calls of one connection that are taken before the answer to the first of them has left; at a client, calls
    /// that are begun before one is answered: a further one waits. Default 128.
    pub max_in_flight: usize,
    /// Bytes that wait to be sent on one connection, above which no further call is taken from it, and a stream's
    /// `queue` sends. Default 256 KiB.
    pub high_watermark: usize,
    /// When no more than this is left of them, calls are taken again. It cannot be above `high_watermark`. Default 64 KiB.
    pub low_watermark: usize,
    /// Bytes that may wait to be sent on one connection: what would make them more is refused, with an error. With
    /// less than `high_watermark` and `max_frame` together, calls are taken one by one. Default 32 MiB.
    pub max_queued: usize,
    /// Events that may wait for one session that is served by callbacks: see
    /// [`SessionHandle::post`](crate::SessionHandle::post). Default 1 024.
    pub max_posted: usize,
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
            max_calls: None,
            max_in_flight: 128,
            high_watermark: 256 << 10,
            low_watermark: 64 << 10,
            max_queued: 32 << 20,
            max_posted: 1024,
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

impl Limits {
    /// What the buffers of a connection keep to.
    pub(crate) fn bounds(&self) -> Bounds {
        Bounds::new(self.max_frame, self.max_fds, self.max_queued)
    }
}

/// What the buffers of a connection keep to; see [`Limits`]. The default lets nothing pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    /// As far as a header can tell: each connection has this twice, so that it is kept small.
    max_frame: u32,
    max_fds: u8,
    max_queued: usize,
}

impl Bounds {
    pub(crate) fn new(max_frame: usize, max_fds: usize, max_queued: usize) -> Bounds {
        Bounds {
            max_frame: u32::try_from(max_frame).unwrap_or(u32::MAX),
            max_fds: max_fds.min(MAX_FDS) as u8,
            max_queued,
        }
    }

    pub(crate) fn max_frame(&self) -> usize {
        self.max_frame as usize
    }

    pub(crate) fn max_fds(&self) -> usize {
        self.max_fds.into()
    }

    pub(crate) fn max_queued(&self) -> usize {
        self.max_queued
    }
}

/// The most descriptors that one message can carry: `SCM_MAX_FD` of the kernel's `include/net/scm.h`.
pub(crate) const MAX_FDS: usize = 253;
