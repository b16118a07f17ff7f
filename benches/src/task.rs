//! What contestants are asked to do. All of them do the same: the messages of `hello`, `add` and `echo` are part of it.

use std::time::Duration;

/// One operation of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// `hello("Joe", "Dalton")` on a kept connection.
    Hello,
    /// `add(n, 1)` on a kept connection each, by so many clients at once, each a process.
    Add { clients: usize },
    /// `add(n, 1)` on each of eight connections of one client, all under way at once.
    AddOnEight,
    /// The same, after the client has been silent for [`SILENCE`].
    Burst,
    /// `echo` of so many bytes.
    Echo(usize),
    /// [`BATCH`] calls of `add`, all of them under way on one connection.
    Batch,
    /// A connection, `hello`, and the connection's end.
    Connect,
    /// The same, with a client that asks the kernel who listens.
    ConnectKnown,
    /// A call that returns a descriptor of a file that the server holds open.
    Descriptor,
    /// A server's start, `hello`, and its end.
    Lifetime,
    /// The start and the end of `/bin/true`, for a program of [`BALLAST`] bytes with threads.
    Spawn,
    /// The start of a server that answers, for such a program.
    Start,
    /// A new process's first answer from a table of [`TABLE`] bytes.
    Table,
    /// MiB that [`WORKERS`] processes with that table take in all.
    Memory,
    /// `hello`, with so many other clients that are connected and silent.
    Idle(usize),
    /// MiB that the server takes with so many silent clients.
    IdleMemory(usize),
    /// From a crash of the process that serves to the next answer.
    Recovery,
    /// How many of 100 calls fail when one of them crashes the process that serves.
    Loss,
    /// A call that keeps a processor busy for [`WORK`], by so many clients at once, each a process.
    Work { clients: usize },
}

/// How long a call keeps a processor busy.
pub const WORK: Duration = Duration::from_micros(100);
/// Calls in a batch.
pub const BATCH: u32 = 64;
/// Clients at once.
pub const CROWD: usize = 8;
/// How long a client is silent before it calls on all its connections.
pub const SILENCE: Duration = Duration::from_millis(30);
/// What makes a program large.
pub const BALLAST: usize = 1 << 30;
/// Bytes of what takes long to load.
pub const TABLE: usize = 100 << 20;
/// Processes that share it, or do not.
pub const WORKERS: usize = 8;

impl Task {
    /// Whether the client is a program of [`BALLAST`] bytes with threads.
    pub fn wants_ballast(self) -> bool {
        matches!(self, Task::Spawn | Task::Start)
    }

    /// The same with no more clients than descriptors allow.
    pub fn within(self, descriptors: u64) -> Task {
        let most = descriptors.saturating_sub(500) as usize;
        match self {
            Task::Idle(count) => Task::Idle(count.min(most)),
            Task::IdleMemory(count) => Task::IdleMemory(count.min(most)),
            other => other,
        }
    }

    /// How many clients are processes of their own.
    pub fn clients(self) -> usize {
        match self {
            Task::Add { clients } | Task::Work { clients } => clients,
            _ => 1,
        }
    }

    /// How many calls one operation has, as far as they are counted one by one.
    pub fn calls(self) -> f64 {
        match self {
            Task::Add { clients } | Task::Work { clients } => clients as f64,
            Task::AddOnEight | Task::Burst => CROWD as f64,
            Task::Batch => f64::from(BATCH),
            _ => 1.0,
        }
    }
}

/// What takes long to load: here, to compute.
pub fn table() -> Vec<u64> {
    let next = |word: &u64| Some(word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    std::iter::successors(Some(1_u64), next)
        .take(TABLE / 8)
        .collect()
}
