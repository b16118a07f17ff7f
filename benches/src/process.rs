//! Processes that the suite forks: each ends with the one that forked it, and none ever returns into its caller's frames.

use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};
use std::os::unix::net::UnixStream;

/// A child that serves; it is killed and reaped when this is dropped.
pub struct Child(Pid);

impl Child {
    /// Runs `body` in a new process.
    pub fn fork(body: impl FnOnce()) -> Child {
        // SAFETY: this process has one thread; the child leaves by `_exit`.
        match unsafe { fork() }.expect("a process") {
            ForkResult::Child => {
                let leave = Leave;
                die_with_the_parent();
                body();
                drop(leave);
                unreachable!("`Leave` does not return")
            }
            ForkResult::Parent { child } => Child(child),
        }
    }

    pub fn pid(&self) -> u32 {
        self.0.as_raw() as u32
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Ends the process when it is dropped, also by a panic: the frames below are the parent's.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        let status = if std::thread::panicking() { 101 } else { 0 };
        // SAFETY: leaves without the parent's destructors.
        unsafe { libc::_exit(status) }
    }
}

/// The parent's end, however it comes, is this process's.
pub fn die_with_the_parent() {
    // SAFETY: numbers, as prctl(2) wants them.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// A connection between two processes.
pub fn pair() -> (UnixStream, UnixStream) {
    UnixStream::pair().expect("a pair of sockets")
}

/// What this process has below it, and theirs; itself first.
pub fn family(pid: u32) -> Vec<u32> {
    let mut found = vec![pid];
    let mut next = 0;
    while next < found.len() {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", found[next]));
        for task in tasks.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(task.path().join("children"));
            let children = children.unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    found
}

/// MiB of all processes below this one, each page divided among those that share it.
pub fn served_mib() -> f64 {
    let below = &family(std::process::id())[1..];
    below.iter().map(|pid| proportional_kib(*pid)).sum::<u64>() as f64 / 1024.0
}

/// KiB of a process's memory, each page divided among those that share it.
pub fn proportional_kib(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("Pss:"));
    lines
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum()
}

/// As many descriptors as may be, because 10 000 clients need as many on each side; tells how many.
pub fn raise_descriptor_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a limit");
    hard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_has_its_head() {
        assert!(family(std::process::id()).contains(&std::process::id()));
    }
}
