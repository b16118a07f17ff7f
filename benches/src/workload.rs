//! What is measured where, against which limit, and what forkserver is to reach.

use crate::placement::Placement;
use crate::placement::Placement::{Across, Free, OneCore};
use crate::task::{CROWD, Task};

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Micros,
    Mib,
    Calls,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Micros => "us",
            Unit::Mib => "MiB",
            Unit::Calls => "calls",
        }
    }

    pub fn named(name: &str) -> Option<Unit> {
        [Unit::Micros, Unit::Mib, Unit::Calls]
            .into_iter()
            .find(|unit| unit.name() == name)
    }
}

pub struct Workload {
    pub id: &'static str,
    pub title: &'static str,
    pub task: Task,
    pub unit: Unit,
    pub placements: &'static [Placement],
    /// The contestant whose figure is 1.
    pub limit: &'static str,
    /// Fresh starts, whose medians are taken: one start of some workloads is bimodal.
    pub starts: usize,
    /// Whether a round has one operation, however short that is.
    pub single: bool,
    /// Whether it is short enough for a look in between.
    pub quick: bool,
}

const fn workload(
    id: &'static str,
    title: &'static str,
    task: Task,
    placements: &'static [Placement],
    limit: &'static str,
) -> Workload {
    Workload {
        id,
        title,
        task,
        unit: Unit::Micros,
        placements,
        limit,
        starts: 1,
        single: false,
        quick: true,
    }
}

const EVERYWHERE: &[Placement] = &[OneCore, Across, Free];
const PINNED: &[Placement] = &[OneCore, Across];
const ONE_OR_FREE: &[Placement] = &[OneCore, Free];

#[rustfmt::skip]
pub const ALL: &[Workload] = &[
    workload("W1", "one call on one connection", Task::Hello, EVERYWHERE, "blocking ping-pong"),
    workload("W2a", "an echo of 64 KiB", Task::Echo(64 << 10), EVERYWHERE, "blocking ping-pong"),
    workload("W2b", "an echo of 1 MiB", Task::Echo(1 << 20), EVERYWHERE, "blocking ping-pong"),
    Workload { starts: 10, ..workload("W3", "8 clients at once, a call", Task::Add { clients: CROWD }, ONE_OR_FREE, "blocking ping-pong") },
    Workload { starts: 10, ..workload("W3b", "8 connections of one client, a call", Task::AddOnEight, ONE_OR_FREE, "blocking ping-pong") },
    Workload { single: true, ..workload("W3c", "8 connections that were silent, a call", Task::Burst, &[Free], "blocking ping-pong") },
    workload("W4", "64 in flight on one connection, a call", Task::Batch, EVERYWHERE, "blocking ping-pong"),
    workload("W5", "connect, call, close", Task::Connect, EVERYWHERE, "accept, echo, close"),
    workload("W5b", "connect, with the identity check on both sides", Task::ConnectKnown, EVERYWHERE, "accept, with identity"),
    workload("W6", "a call that returns a descriptor", Task::Descriptor, PINNED, "SCM_RIGHTS ping-pong"),
    workload("W7", "start, call, stop", Task::Lifetime, ONE_OR_FREE, "fork, pipe, waitpid"),
    slow("W8", "/bin/true, for a program of 1 GiB with threads", Task::Spawn, &[Free], "in a tiny process"),
    slow("W8b", "a server, for a program of 1 GiB with threads", Task::Start, &[Free], "in a tiny process"),
    slow("W9", "a new process's first answer from a table of 100 MiB", Task::Table, &[Free], "fork over a table"),
    Workload { unit: Unit::Mib, single: true, ..slow("W9b", "memory of 8 workers with that table", Task::Memory, &[Free], "fork over a table") },
    slow("W10", "a call among 10 000 silent clients", Task::Idle(10_000), PINNED, "accept by epoll"),
    Workload { unit: Unit::Mib, single: true, ..slow("W10b", "a server's memory with 10 000 silent clients", Task::IdleMemory(10_000), &[Free], "accept by epoll") },
    workload("W11", "from a crash to the next answer", Task::Recovery, &[Free], "fork again"),
    Workload { unit: Unit::Calls, single: true, ..workload("W11b", "calls of 100 that fail with one that crashes", Task::Loss, &[Free], "fork again") },
    workload("W12", "4 clients at once, a call of 100 us of work", Task::Work { clients: 4 }, &[Free], "forkserver, 1 worker"),
];

const fn slow(
    id: &'static str,
    title: &'static str,
    task: Task,
    placements: &'static [Placement],
    limit: &'static str,
) -> Workload {
    Workload {
        quick: false,
        ..workload(id, title, task, placements, limit)
    }
}

/// What a contestant is to reach, as a multiple of another one in the same workload.
pub struct Target {
    pub workload: &'static str,
    pub placement: Placement,
    pub contestant: &'static str,
    pub against: &'static str,
    pub most: f64,
}

const fn target(
    workload: &'static str,
    placement: Placement,
    contestant: &'static str,
    against: &'static str,
    most: f64,
) -> Target {
    Target {
        workload,
        placement,
        contestant,
        against,
        most,
    }
}

#[rustfmt::skip]
pub const TARGETS: &[Target] = &[
    target("W1", OneCore, "forkserver", "blocking ping-pong", 1.15),
    target("W1", Across, "forkserver", "blocking ping-pong", 1.10),
    target("W1", OneCore, "forkserver evented", "epoll ping-pong", 1.10),
    target("W1", Across, "forkserver evented", "epoll ping-pong", 1.10),
    target("W1", OneCore, "forkserver, spinning", "blocking ping-pong", 1.10),
    target("W1", Across, "forkserver, spinning", "blocking ping-pong", 0.50),
    target("W2a", OneCore, "forkserver", "blocking ping-pong", 1.05),
    target("W2a", Free, "forkserver", "blocking ping-pong", 1.05),
    target("W2b", OneCore, "forkserver", "blocking ping-pong", 1.15),
    target("W2b", Free, "forkserver", "blocking ping-pong", 1.15),
    target("W2b", OneCore, "forkserver evented", "epoll ping-pong", 1.15),
    target("W2b", Free, "forkserver evented", "epoll ping-pong", 1.15),
    target("W3", OneCore, "forkserver", "blocking ping-pong", 1.20),
    target("W3", Free, "forkserver", "blocking ping-pong", 1.20),
    target("W3", OneCore, "forkserver evented", "epoll ping-pong", 1.15),
    target("W3", Free, "forkserver evented", "epoll ping-pong", 1.15),
    target("W3b", OneCore, "forkserver evented", "blocking ping-pong", 1.15),
    target("W3b", Free, "forkserver evented", "blocking ping-pong", 1.15),
    target("W4", OneCore, "forkserver", "blocking ping-pong", 3.00),
    target("W4", Free, "forkserver", "blocking ping-pong", 3.00),
    target("W4", OneCore, "forkserver evented", "blocking ping-pong", 3.00),
    target("W4", Free, "forkserver evented", "blocking ping-pong", 3.00),
    target("W5", OneCore, "forkserver", "accept, echo, close", 1.40),
    target("W5", Free, "forkserver", "accept, echo, close", 1.35),
    target("W5", OneCore, "forkserver evented", "accept by epoll", 1.35),
    target("W5", Free, "forkserver evented", "accept by epoll", 1.35),
    target("W5", OneCore, "forkserver prefork", "accept by 8 processes", 1.30),
    target("W5", Across, "forkserver prefork", "accept by 8 processes", 1.30),
    target("W5", Free, "forkserver prefork", "accept by 8 processes", 1.30),
    target("W5b", OneCore, "forkserver", "accept, with identity", 1.25),
    target("W5b", Free, "forkserver", "accept, with identity", 1.15),
    target("W6", OneCore, "forkserver", "SCM_RIGHTS ping-pong", 1.20),
    target("W7", Free, "forkserver", "fork, pipe, waitpid", 3.50),
    target("W9b", Free, "forkserver prefork", "fork over a table", 1.15),
    target("W12", Free, "forkserver, 2 workers", "forkserver, 1 worker", 0.67),
    target("W10", OneCore, "forkserver evented", "forkserver evented, alone", 1.10),
    target("W10", Across, "forkserver evented", "forkserver evented, alone", 1.10),
];

/// By how much forkserver is to be ahead of the best peer; everywhere else, at all.
#[rustfmt::skip]
pub const LEADS: &[(&str, f64)] = &[("W4", 4.0), ("W7", 2.5)];

/// How much forkserver is to be ahead of the best peer.
pub fn lead(workload: &str) -> f64 {
    let found = LEADS.iter().find(|(id, _)| *id == workload);
    found.map_or(1.0, |(_, lead)| *lead)
}

pub fn find(id: &str) -> Option<&'static Workload> {
    ALL.iter()
        .find(|workload| workload.id.eq_ignore_ascii_case(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contestant;

    #[test]
    fn everybody_who_is_named_is_there() {
        let all = contestant::all();
        let is_there = |name: &str| all.iter().any(|one| one.name() == name);
        for workload in ALL {
            assert!(is_there(workload.limit), "{}", workload.limit);
        }
        for target in TARGETS {
            let workload = find(target.workload).expect("a workload");
            assert!(workload.placements.contains(&target.placement));
            assert!(is_there(target.contestant) && is_there(target.against));
        }
        for (id, _) in LEADS {
            assert!(find(id).is_some(), "{id}");
        }
    }

    #[test]
    fn names_are_given_once() {
        let mut names: Vec<_> = contestant::all().iter().map(|one| one.name()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
