//! Python's multiprocessing: connections with a password, managers, and its fork server. Both sides are Python's, and its
//! client does the rounds itself; see `python.py`.

use super::served::{Program, Served, tie};
use crate::contestant::{Connect, Contestant, Kind, Rounds};
use crate::task::Task;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const SCRIPT: &str = include_str!("python.py");

/// One of its ways.
pub struct Python {
    name: &'static str,
    /// What the script calls it.
    way: &'static str,
    /// What the script calls the tasks that it can do.
    operation: fn(Task) -> Option<&'static str>,
}

pub const CONNECTION: Python = Python {
    name: "Python's connections",
    way: "connection",
    operation: |task| match task {
        Task::Descriptor => Some("descriptor"),
        other => common(other),
    },
};

pub const MANAGER: Python = Python {
    name: "Python's managers",
    way: "manager",
    operation: common,
};

pub const FORKSERVER: Python = Python {
    name: "Python's forkserver",
    way: "forkserver",
    operation: |task| matches!(task, Task::Lifetime).then_some("lifetime"),
};

fn common(task: Task) -> Option<&'static str> {
    match task {
        Task::Hello => Some("hello"),
        Task::Add { .. } => Some("add"),
        Task::Echo(_) => Some("echo"),
        Task::Connect => Some("connect"),
        _ => None,
    }
}

/// Whether there is a Python at all.
pub fn is_there() -> bool {
    let version = Command::new("python3").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

impl Contestant for Python {
    fn name(&self) -> &'static str {
        self.name
    }

    fn kind(&self) -> Kind {
        Kind::Peer
    }

    fn serve(&self, task: Task) -> Option<Connect> {
        let operation = (self.operation)(task)?;
        let size = match task {
            Task::Echo(size) => size,
            _ => 0,
        };
        let script = std::env::temp_dir().join(format!("python.{}.py", std::process::id()));
        std::fs::write(&script, SCRIPT).expect("a script");
        let path = script.with_extension("sock");
        let program = Program::Python(script.clone(), self.way);
        let server = (task != Task::Lifetime).then(|| Served::start(program, &path, 1));
        let way = self.way;
        Some(Box::new(move |_| {
            let _keep = &server;
            client(&script, way, operation, size, &path)
        }))
    }
}

/// A client that is told on its standard input how often, and tells on its output how long that took.
fn client(script: &Path, way: &str, operation: &str, size: usize, path: &PathBuf) -> Rounds {
    let mut command = Command::new("python3");
    command
        .arg(script)
        .args(["client", way, operation, &size.to_string()])
        .arg(path);
    tie(&mut command);
    let mut client = Client::start(command);
    Box::new(move |count| client.round(count) / f64::from(count))
}

/// It ends when its standard input does.
struct Client {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start(mut command: Command) -> Client {
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = process.expect("a process");
        Client {
            input: process.stdin.take(),
            output: BufReader::new(process.stdout.take().expect("it is piped")),
            process,
        }
    }

    /// How many seconds so many operations take.
    fn round(&mut self, count: u32) -> f64 {
        let input = self.input.as_mut().expect("it is piped");
        writeln!(input, "{count}").expect("it listens");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it answers");
        line.trim().parse().expect("seconds")
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.wait();
    }
}
