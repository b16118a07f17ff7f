//! A peer's server: this program, executed once more, with a path to listen at. It says when it listens, and ends with
//! whoever started it.

use crate::process::die_with_the_parent;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// The word on the command line that makes a server of this program.
const SERVE: &str = "--serve";

/// What a peer's server does, by the peer's name.
pub struct Server {
    pub name: &'static str,
    /// Serves at this path with so many threads, for ever.
    pub run: fn(&Path, usize),
}

/// Serves, if this is a server: then it does not return.
pub fn init(servers: &[&Server]) {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [serve, name, path, threads] = &arguments[..] else {
        return;
    };
    if serve != SERVE {
        return;
    }
    die_with_the_parent();
    crate::process::raise_descriptor_limit();
    let server = servers.iter().find(|server| server.name == name);
    let server = server.expect("a peer of this name");
    (server.run)(Path::new(path), threads.parse().expect("a number"));
    std::process::exit(0)
}

/// Where nobody listens yet.
pub fn fresh_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("peer.{}.{number}", std::process::id()))
}

/// To be called by the server when clients can connect.
pub fn ready() {
    let mut out = std::io::stdout();
    out.write_all(b"!").expect("somebody waits");
    out.flush().expect("somebody waits");
}

/// What a server is a process of.
pub enum Program {
    /// This program, as the peer of this name.
    Own(&'static str),
    /// A script, and which of its ways.
    Python(PathBuf, &'static str),
}

impl Program {
    fn command(&self) -> Command {
        let mut command;
        match self {
            Program::Own(name) => {
                command = Command::new("/proc/self/exe");
                command.args([SERVE, name]);
            }
            Program::Python(script, way) => {
                command = Command::new("python3");
                command.arg(script).args(["serve", way]);
                tie(&mut command);
            }
        }
        command
    }
}

/// Ties a program that does not know us to the life of this process.
pub fn tie(command: &mut Command) {
    // SAFETY: nothing but a system call.
    unsafe {
        command.pre_exec(|| {
            die_with_the_parent();
            Ok(())
        })
    };
}

/// A server that runs; it is killed and reaped when this is dropped, which no peer does sooner by itself.
pub struct Served {
    process: Child,
    pub path: PathBuf,
}

impl Served {
    /// Starts it, and waits until it listens.
    pub fn start(program: Program, path: &Path, threads: usize) -> Served {
        let mut process = program
            .command()
            .arg(path)
            .arg(threads.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let out = process.stdout.as_mut().expect("it is piped");
        out.read_exact(&mut [0]).expect("a server that listens");
        Served {
            process,
            path: path.into(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}
