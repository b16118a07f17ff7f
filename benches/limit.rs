//! How far forkserver is from the kernel's own limit: every figure is a ratio of two things measured in turns, in
//! one run, because the machine is shared and absolute times drift.
//!
//! `cargo bench --bench limit` runs all; with `-- NAME` behind it one; with `ROUNDS=31` before it more rounds than the
//! usual 15.
//! Placement is part of each figure: `free`, `one core` (both processes on the first), `two cores`.

#![allow(missing_docs, unreachable_pub, unsafe_code, clippy::incompatible_msrv)]

mod bare;
mod evented;
mod workloads;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// One round of one side takes about this long.
const ROUND: Duration = Duration::from_millis(40);

/// Where the processes may run.
#[derive(Clone, Copy, PartialEq)]
pub enum Placement {
    Free,
    OneCore,
    TwoCores,
}

impl Placement {
    fn name(self) -> &'static str {
        match self {
            Placement::Free => "free",
            Placement::OneCore => "one core",
            Placement::TwoCores => "two cores",
        }
    }

    /// Pins this process, before it forks the other side.
    pub fn pin_server(self) {
        match self {
            Placement::Free => pin(&[0, 1]),
            Placement::OneCore => pin(&[0]),
            Placement::TwoCores => pin(&[1]),
        }
    }

    /// Pins this process, after it has forked the other side.
    pub fn pin_client(self) {
        match self {
            Placement::Free => pin(&[0, 1]),
            Placement::OneCore | Placement::TwoCores => pin(&[0]),
        }
    }
}

fn pin(cores: &[usize]) {
    let mut set = CpuSet::new();
    for core in cores {
        // A machine with one core has no other placement.
        let _ = set.set(*core);
    }
    let _ = sched_setaffinity(Pid::from_raw(0), &set);
}

/// One side of a comparison: does its work once.
pub type Side = Box<dyn FnMut()>;

/// A workload: the bare side and ours, and what ours is to reach.
pub struct Workload {
    pub name: &'static str,
    pub target: f64,
    pub placements: &'static [Placement],
    pub sides: fn(Placement) -> (Side, Side),
    /// Fresh starts, whose medians are taken: one start of some workloads is bimodal.
    pub starts: usize,
}

fn main() {
    let filter: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let rounds = std::env::var("ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(15);
    println!(
        "{:<40} {:<10} {:>9} {:>9}   {:<24} target",
        "workload", "placement", "limit us", "ours us", "ours / limit"
    );
    for workload in workloads::ALL.iter().chain(evented::ALL) {
        if !filter.is_empty()
            && !filter
                .iter()
                .any(|word| workload.name.contains(word.as_str()))
        {
            continue;
        }
        for &placement in workload.placements {
            report(workload, placement, rounds);
        }
    }
}

fn report(workload: &Workload, placement: Placement, rounds: usize) {
    let (mut bare, mut ours, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..workload.starts {
        let (mut bare_side, mut our_side) = (workload.sides)(placement);
        let (bare_count, our_count) = (warm_up(&mut bare_side), warm_up(&mut our_side));
        let mut of_this_start = Vec::new();
        for _ in 0..(rounds / workload.starts).max(3) {
            let limit = time(&mut bare_side, bare_count);
            let own = time(&mut our_side, our_count);
            bare.push(limit);
            ours.push(own);
            of_this_start.push(own / limit);
        }
        match workload.starts {
            1 => ratios.extend(of_this_start),
            _ => ratios.push(quantile(&mut of_this_start, 0.5)),
        }
    }
    let quartiles = [0.25, 0.5, 0.75].map(|q| quantile(&mut ratios, q));
    let spread = format!(
        "{:.2} [{:.2}-{:.2}]",
        quartiles[1], quartiles[0], quartiles[2]
    );
    let verdict = if quartiles[1] <= workload.target {
        ""
    } else {
        "  missed"
    };
    println!(
        "{:<40} {:<10} {:>9.2} {:>9.2}   {spread:<24} {:.2}{verdict}",
        workload.name,
        placement.name(),
        quantile(&mut bare, 0.5) * 1e6,
        quantile(&mut ours, 0.5) * 1e6,
        workload.target,
    );
    pin(&[0, 1]);
}

/// How often a side does its work in a round.
fn warm_up(side: &mut Side) -> u32 {
    let begun = Instant::now();
    let mut count = 0;
    while begun.elapsed() < ROUND {
        side();
        count += 1;
    }
    count
}

/// Seconds for one piece of work.
fn time(side: &mut Side, count: u32) -> f64 {
    let begun = Instant::now();
    (0..count).for_each(|_| side());
    begun.elapsed().as_secs_f64() / f64::from(count)
}

fn quantile(values: &mut [f64], q: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * q).round() as usize]
}
