//! The descriptors that a forked child finds in its table.
//!
//! Invariant: what the child shall not have is *poisoned*, not closed. The parent's objects still stand in the
//! child's memory; closing under them would hand their numbers to strangers, and a second close aborts. A
//! poisoned descriptor is open, can be dropped, and refuses every use.

use super::check;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

/// Poisons every descriptor but 0, 1, 2 and those in `keep`.
pub(crate) fn poison_except(keep: &[RawFd]) -> io::Result<()> {
    let poison = poison()?;
    for fd in open_descriptors()? {
        if fd > 2 && !keep.contains(&fd) && fd != poison.as_raw_fd() {
            // SAFETY: both numbers are open; whoever owns `fd` still owns an open descriptor afterwards.
            check(unsafe { libc::dup3(poison.as_raw_fd(), fd, libc::O_CLOEXEC) })?;
        }
    }
    Ok(())
}

/// Opens `/dev/null` where 0, 1 or 2 are closed, for as long as the result lives: what is opened meanwhile, and
/// what a child inherits, cannot be taken for a standard stream.
pub(crate) fn occupy_standard() -> io::Result<Vec<OwnedFd>> {
    let mut places = Vec::new();
    loop {
        let null = nix::fcntl::open("/dev/null", OFlag::O_RDWR, Mode::empty())?;
        if null.as_raw_fd() > 2 {
            return Ok(places);
        }
        places.push(null);
    }
}

/// An `O_PATH` descriptor of something that is no directory: reading, writing and ioctl give EBADF, and nothing
/// can be opened beneath it.
fn poison() -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    nix::fcntl::open("/dev/null", flags, Mode::empty())
        .or_else(|_| nix::fcntl::open("/proc/self/exe", flags, Mode::empty()))
        .map_err(io::Error::from)
}

/// The numbers of all open descriptors; without `/proc`, all numbers up to the limit that are open.
fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return probe_descriptors();
    };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // The directory itself is among them, and closed by now.
    Ok(numbers
        .collect::<Vec<_>>()
        .into_iter()
        .filter(|&fd| is_open(fd))
        .collect())
}

fn probe_descriptors() -> io::Result<Vec<RawFd>> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` has room for the result.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok((0..limit.rlim_cur as RawFd)
        .filter(|&fd| is_open(fd))
        .collect())
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl without an argument on any number; it is an error if that is not open.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}
