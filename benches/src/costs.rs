//! What a call takes besides time: how much its latency varies, CPU time, context switches and system calls of both
//! sides together. These need no limit beside them: they hardly change with what else the machine does.

use crate::contestant::Contestant;
use crate::measure::Field;
use crate::placement::Placement;
use crate::process::family;
use crate::runner::{Runner, operations};
use crate::task::Task;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Calls that are timed one by one.
const LATENCIES: u32 = 5_000;
/// Calls whose system calls are counted, which makes each of them very slow.
const TRACED: u32 = 500;

/// One call on a kept connection, for each contestant that can do it.
pub fn table(field: &Field) -> String {
    let mut text = String::from("\nOne call (W1), both sides together\n");
    let _ = writeln!(
        text,
        "  {:<28} {:<9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>12}",
        "", "", "calls/s", "p50 us", "p99 us", "CPU us", "switches", "system calls"
    );
    for placement in [Placement::OneCore, Placement::Across] {
        for contestant in field
            .contestants
            .iter()
            .filter(|_| field.cores.have(placement))
        {
            match line(field, contestant.as_ref(), placement) {
                Ok(line) => text += &line,
                Err(err) => eprintln!("{} has failed: {err}", contestant.name()),
            }
        }
    }
    text
}

fn line(
    field: &Field,
    contestant: &dyn Contestant,
    placement: Placement,
) -> std::io::Result<String> {
    let (cores, directory) = (&field.cores, field.directory);
    let started = Runner::start(contestant, Task::Hello, placement, cores, directory)?;
    let Some(mut runner) = started else {
        return Ok(String::new());
    };
    let count = runner.calibrate(Duration::from_millis(200))?;
    let [middle, high] = runner.latencies(LATENCIES)?;
    let before = Spent::by(runner.pid());
    let each = runner.round(count)?;
    let spent = Spent::by(runner.pid()).since(before, f64::from(operations(count)));
    let calls = match system_calls(&mut runner, directory)? {
        Some(calls) => format!("{calls:.1}"),
        None => "no strace".into(),
    };
    Ok(format!(
        "  {:<28} {:<9} {:>9.0} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {calls:>12}\n",
        contestant.name(),
        placement.name(),
        1.0 / each,
        middle * 1e6,
        high * 1e6,
        spent.micros,
        spent.switches
    ))
}

/// What a process and all below it have had.
struct Spent {
    micros: f64,
    switches: f64,
}

impl Spent {
    fn by(pid: u32) -> Spent {
        let mut spent = Spent {
            micros: 0.0,
            switches: 0.0,
        };
        for pid in family(pid) {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
            for task in tasks.into_iter().flatten().flatten() {
                spent.micros += micros(&task.path());
                spent.switches += switches(&task.path());
            }
        }
        spent
    }

    fn since(self, before: Spent, count: f64) -> Spent {
        Spent {
            micros: (self.micros - before.micros) / count,
            switches: (self.switches - before.switches) / count,
        }
    }
}

fn micros(task: &Path) -> f64 {
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
    let nanos = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<f64>().ok());
    nanos.unwrap_or_default() / 1e3
}

fn switches(task: &Path) -> f64 {
    let text = std::fs::read_to_string(task.join("status")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.contains("ctxt_switches:"));
    lines
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
        .sum()
}

/// System calls of one call, counted by strace; `None` where there is none.
fn system_calls(runner: &mut Runner, directory: &Path) -> std::io::Result<Option<f64>> {
    let Some(strace) = Strace::attach(runner.pid(), directory) else {
        return Ok(None);
    };
    runner.round(TRACED)?;
    Ok(strace
        .total()
        .map(|total| total / f64::from(operations(TRACED))))
}

struct Strace {
    process: std::process::Child,
    summary: PathBuf,
}

impl Strace {
    /// Begins to count the system calls of a process and of all below it.
    fn attach(pid: u32, directory: &Path) -> Option<Strace> {
        let summary = directory.join("strace");
        let all = family(pid);
        let mut command = Command::new("strace");
        command.args(["-f", "-c", "-q", "-o"]).arg(&summary);
        for pid in &all {
            command.args(["-p", &pid.to_string()]);
        }
        let process = command.stderr(Stdio::null()).spawn().ok()?;
        let begun = Instant::now();
        while !all.iter().all(|pid| is_traced(*pid)) && begun.elapsed() < Duration::from_secs(3) {
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Strace { process, summary })
    }

    /// Ends it; how many there were.
    fn total(mut self) -> Option<f64> {
        let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGINT);
        let _ = self.process.wait();
        let text = std::fs::read_to_string(self.summary).ok()?;
        let total = text
            .lines()
            .find(|line| line.trim_end().ends_with("total"))?;
        total.split_whitespace().nth(3)?.parse().ok()
    }
}

/// Whether all threads of a process are.
fn is_traced(pid: u32) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
    tasks.into_iter().flatten().flatten().all(|task| {
        let text = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        text.lines()
            .any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
    })
}
