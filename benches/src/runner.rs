//! The process that measures one contestant: it starts the server, is its client, and does a round when it is told to.
//! So contestants share nothing but the machine, and whatever one of them leaves behind ends with its process.

use crate::contestant::{Contestant, Rounds};
use crate::crowd::crowd;
use crate::placement::{Cores, Placement};
use crate::process::{Child, pair, raise_descriptor_limit};
use crate::statistics::quantile;
use crate::task::{BALLAST, Task};
use nix::libc;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// No answer within this time, and the contestant is given up.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Runner {
    line: UnixStream,
    _process: Child,
    pid: u32,
}

/// What a runner is told, and how often or how long.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Order {
    Calibrate = 1,
    Round = 2,
    Latencies = 3,
}

/// What it answers to its start.
const NOT_APPLICABLE: f64 = 0.0;
const READY: f64 = 1.0;

impl Runner {
    /// `None`: this contestant does not do this task.
    pub fn start(
        contestant: &dyn Contestant,
        task: Task,
        placement: Placement,
        cores: &Cores,
        directory: &Path,
    ) -> io::Result<Option<Runner>> {
        let (line, theirs) = pair();
        line.set_read_timeout(Some(PATIENCE))?;
        let process = Child::fork(|| {
            close_all_but(&theirs);
            move_to(directory);
            run(theirs, contestant, task, placement, cores);
        });
        let pid = process.pid();
        let mut runner = Runner {
            line,
            _process: process,
            pid,
        };
        Ok((runner.answer()?[0] == READY).then_some(runner))
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// How many operations take about so long.
    pub fn calibrate(&mut self, round: Duration) -> io::Result<u32> {
        self.order(Order::Calibrate, round.as_micros() as u32)?;
        Ok(self.answer()?[0] as u32)
    }

    /// Does so many operations; what one of them took.
    pub fn round(&mut self, count: u32) -> io::Result<f64> {
        self.order(Order::Round, count)?;
        Ok(self.answer()?[0])
    }

    /// Times so many operations one by one: the median, and what all but one of a hundred stay below.
    pub fn latencies(&mut self, count: u32) -> io::Result<[f64; 2]> {
        self.order(Order::Latencies, count)?;
        self.answer()
    }

    fn order(&mut self, order: Order, count: u32) -> io::Result<()> {
        let [a, b, c, d] = count.to_le_bytes();
        self.line.write_all(&[order as u8, a, b, c, d])
    }

    fn answer(&mut self) -> io::Result<[f64; 2]> {
        let mut bytes = [0; 16];
        self.line.read_exact(&mut bytes)?;
        let part = |n: usize| f64::from_le_bytes(bytes[n..n + 8].try_into().expect("8 bytes"));
        Ok([part(0), part(8)])
    }
}

impl Drop for Runner {
    /// Lets it end its server, before its own end is none of its choice.
    fn drop(&mut self) {
        let _ = self.line.shutdown(std::net::Shutdown::Write);
        let _ = self.line.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = self.line.read(&mut [0]);
    }
}

/// The lines of the others are nothing for a server to inherit.
fn close_all_but(kept: &impl AsRawFd) {
    let kept = kept.as_raw_fd() as u32;
    for (first, last) in [(3, kept - 1), (kept + 1, u32::MAX)] {
        // SAFETY: whoever owned them is the parent's, and is not dropped here.
        unsafe { libc::close_range(first, last, 0) };
    }
}

/// Whatever makes temporary files makes them where they are removed.
fn move_to(directory: &Path) {
    // SAFETY: this process has one thread.
    unsafe { std::env::set_var("TMPDIR", directory) };
}

fn run(
    mut line: UnixStream,
    contestant: &dyn Contestant,
    task: Task,
    placement: Placement,
    cores: &Cores,
) {
    let task = task.within(raise_descriptor_limit());
    cores.pin_server(placement);
    let served = contestant.serve(task);
    cores.pin_client(placement);
    let Some(connect) = served else {
        return answer(&mut line, [NOT_APPLICABLE; 2]);
    };
    let _ballast = task.wants_ballast().then(Ballast::new);
    let mut rounds = match task.clients() {
        1 => connect(0),
        clients => crowd(clients, &connect),
    };
    answer(&mut line, [READY; 2]);
    let mut order = [0; 5];
    while line.read_exact(&mut order).is_ok() {
        let [what, a, b, c, d] = order;
        let count = u32::from_le_bytes([a, b, c, d]);
        let told = match what {
            what if what == Order::Calibrate as u8 => [calibrate(&mut rounds, count); 2],
            what if what == Order::Latencies as u8 => {
                let times: Vec<_> = (0..count).map(|_| rounds(1)).collect();
                [quantile(&times, 0.5), quantile(&times, 0.99)]
            }
            _ => [round(&mut rounds, count); 2],
        };
        answer(&mut line, told);
    }
    drop(rounds);
    drop(connect);
}

fn answer(line: &mut UnixStream, told: [f64; 2]) {
    let bytes: Vec<u8> = told.iter().flat_map(|part| part.to_le_bytes()).collect();
    line.write_all(&bytes).expect("somebody waits");
}

/// How many operations take about so many microseconds. The first ones are slow, and say little.
fn calibrate(rounds: &mut Rounds, micros: u32) -> f64 {
    let wanted = f64::from(micros) / 1e6;
    let mut count = 1;
    for _ in 0..6 {
        let fitting = wanted / rounds(count);
        count = (fitting.round() as u32).clamp(1, count * 16);
        if fitting < 0.1 {
            break;
        }
    }
    f64::from(count)
}

/// So many operations behind a few that are not counted: meanwhile others had their rounds.
fn round(rounds: &mut Rounds, count: u32) -> f64 {
    if count > 1 {
        rounds(operations(count) - count);
    }
    rounds(count)
}

/// How many operations a round has in all.
pub fn operations(count: u32) -> u32 {
    match count {
        1 => 1,
        _ => count + count / 8 + 1,
    }
}

/// What makes the client a large program with threads.
struct Ballast {
    _bytes: Vec<u8>,
}

impl Ballast {
    fn new() -> Ballast {
        // Most heaps consist of small pages; with huge ones there would be next to nothing to copy.
        // SAFETY: numbers, as prctl(2) wants them.
        unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        let bytes = std::hint::black_box(vec![1_u8; BALLAST]);
        for _ in 0..4 {
            std::thread::spawn(|| {
                loop {
                    std::thread::park();
                }
            });
        }
        Ballast { _bytes: bytes }
    }
}
