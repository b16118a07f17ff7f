//! Processes that tests start, watch and kill.

use forkserver::ServerHandle;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// A child of the test that is not a server: another owner, a client, a bystander.
pub struct Helper {
    pub pid: Pid,
    /// What the child says, line by line.
    said: std::io::PipeReader,
    /// Closed to let the child go on.
    go: Option<std::io::PipeWriter>,
}

/// The child's side: how it talks to the test.
pub struct Test {
    say: std::io::PipeWriter,
    go: std::io::PipeReader,
}

impl Test {
    pub fn say(&mut self, text: impl std::fmt::Display) {
        writeln!(self.say, "{text}").expect("the test listens");
    }

    /// Waits until the test lets us go on, or is gone.
    pub fn wait(&mut self) {
        let _ = self.go.read(&mut [0]);
    }

    /// Whether [`Helper::go`], or the end, comes within the time.
    pub fn may_go(&self, within: Duration) -> bool {
        readable(&self.go, within)
    }

    /// Waits for [`Helper::go`].
    pub fn wait_for_go(&mut self) {
        self.go.read_exact(&mut [0]).expect("the test says go");
    }
}

impl Helper {
    /// Forks a child that runs `body`.
    pub fn start(body: impl FnOnce(&mut Test)) -> Helper {
        let (said, say) = std::io::pipe().expect("a pipe");
        let (go_read, go) = std::io::pipe().expect("a pipe");
        match unsafe { fork() }.expect("fork") {
            ForkResult::Child => {
                drop((said, go));
                nix::unistd::alarm::set(50);
                let mut test = Test { say, go: go_read };
                let result = catch_unwind(AssertUnwindSafe(|| body(&mut test)));
                unsafe { nix::libc::_exit(if result.is_ok() { 0 } else { 1 }) }
            }
            ForkResult::Parent { child } => Helper {
                pid: child,
                said,
                go: Some(go),
            },
        }
    }

    /// The next line that the child says.
    pub fn hear(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.said.read(&mut byte).expect("a pipe") == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).expect("text")
    }

    pub fn hear_pid(&mut self) -> Watched {
        Watched::open(self.hear().parse().expect("a pid"))
    }

    /// Lets the child pass `wait_for_go`.
    pub fn go(&mut self) {
        self.go
            .as_mut()
            .expect("not finished")
            .write_all(b"!")
            .expect("the child waits");
    }

    /// Lets the child go on, and waits for its end.
    pub fn finish(mut self) {
        // A byte, because children that were forked later hold copies of the writing end. One that does not wait
        // may be gone.
        let _ = self.go.take().expect("finished once").write_all(b"!");
        assert_eq!(wait(self.pid), WaitStatus::Exited(self.pid, 0));
    }

    pub fn kill(self) {
        kill(self.pid, Signal::SIGKILL).expect("a child");
        wait(self.pid);
    }
}

/// A process whose end is awaited, ours or not.
pub struct Watched {
    pub pid: Pid,
    pidfd: OwnedFd,
}

impl Watched {
    pub fn open(pid: i32) -> Watched {
        let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) };
        assert!(fd >= 0, "process {pid} is not there");
        Watched {
            pid: Pid::from_raw(pid),
            pidfd: unsafe { OwnedFd::from_raw_fd(fd as i32) },
        }
    }

    pub fn server(handle: &ServerHandle) -> Watched {
        Watched::open(handle.pid() as i32)
    }

    /// How long it takes until the process has ended; no longer than `limit`.
    pub fn ends_within(&self, limit: Duration) -> Duration {
        let start = Instant::now();
        assert!(
            readable(&self.pidfd, limit),
            "process {} is still there after {limit:?}",
            self.pid
        );
        start.elapsed()
    }

    pub fn is_alive(&self) -> bool {
        self.lives_on_for(Duration::ZERO)
    }

    /// Whether the process is still there after a while; `false` at once when it ends.
    pub fn lives_on_for(&self, time: Duration) -> bool {
        !readable(&self.pidfd, time)
    }

    /// Takes the status of an orphan that has become ours.
    pub fn reap(self) -> WaitStatus {
        wait(self.pid)
    }
}

/// Waits for a child, or for an orphan that has become ours.
fn wait(pid: Pid) -> WaitStatus {
    loop {
        match waitpid(pid, None) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return result.expect("a child"),
        }
    }
}

/// Whether a descriptor becomes readable, or is at its end, in time.
pub fn readable(fd: &impl AsFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let mut polled = [nix::poll::PollFd::new(
            fd.as_fd(),
            nix::poll::PollFlags::POLLIN,
        )];
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = nix::poll::PollTimeout::try_from(left.as_millis() as i32).expect("a timeout");
        match nix::poll::poll(&mut polled, timeout) {
            Ok(0) => return false,
            Ok(_) => return true,
            Err(nix::errno::Errno::EINTR) => {}
            Err(err) => panic!("{err}"),
        }
    }
}

/// Starts a thread that ends with the guard, so that a test can show what threads do.
pub fn with_thread<R>(body: impl FnOnce() -> R) -> R {
    let (started, is_started) = std::sync::mpsc::channel();
    let (end, is_ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        started.send(()).expect("the test waits");
        let _ = is_ended.recv();
    });
    is_started.recv().expect("a thread");
    let result = body();
    drop(end);
    thread.join().expect("no panic");
    result
}
