//! The descriptors that a forked child finds in its table.
//!
//! Invariant: what the child shall not have is *poisoned*, not closed. The parent's objects still stand in the
//! child's memory; closing under them would hand their numbers to strangers, and a second close aborts. A
//! poisoned descriptor is open, can be dropped, and refuses every use.

use super::check;
use super::file::{FileId, Info};
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::stat::Mode;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Poisons every descriptor but 0, 1, 2 and those in `keep`. `open` are all that can be open, if that is known.
pub(crate) fn poison_except(keep: &[RawFd], open: Option<Vec<RawFd>>) -> io::Result<()> {
    let poison = poison()?;
    // A number above the soft limit can be open, but nothing can be put in its place.
    let limit = limit()?;
    set_limit(libc::rlimit {
        rlim_cur: limit.rlim_max,
        ..limit
    })?;
    let result = open
        .map_or_else(open_descriptors, Ok)
        .and_then(|open| poison_all(&poison, keep, &open));
    set_limit(limit)?;
    result
}

fn poison_all(poison: &OwnedFd, keep: &[RawFd], open: &[RawFd]) -> io::Result<()> {
    for &fd in open {
        if fd > 2 && !keep.contains(&fd) && fd != poison.as_raw_fd() {
            // SAFETY: both numbers are open; whoever owns `fd` still owns an open descriptor afterwards.
            check(unsafe { libc::dup3(poison.as_raw_fd(), fd, libc::O_CLOEXEC) })?;
        }
    }
    Ok(())
}

/// Puts what `new` is open for in the place of `old`, which keeps its number.
pub(super) fn put_in_place(new: &impl AsFd, old: &impl AsFd) -> io::Result<()> {
    let (new, old) = (new.as_fd().as_raw_fd(), old.as_fd().as_raw_fd());
    // SAFETY: both numbers are open; whoever owns `old` still owns an open descriptor afterwards.
    check(unsafe { libc::dup3(new, old, libc::O_CLOEXEC) }).map(drop)
}

/// Opens `/dev/null` where 0, 1 or 2 are closed, for as long as the result lives: what is opened meanwhile, and
/// what a child inherits, cannot be taken for a standard stream.
pub(crate) fn occupy_standard() -> io::Result<Vec<OwnedFd>> {
    let mut places = Vec::new();
    if (0..=2).all(is_open) {
        return Ok(places);
    }
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
pub(crate) fn open_descriptors() -> io::Result<Vec<RawFd>> {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else {
        return probe_descriptors();
    };
    let mut numbers = Vec::new();
    for entry in entries {
        // One that cannot be read must not be missed.
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        numbers.push(number.ok_or(io::ErrorKind::InvalidData)?);
    }
    // The directory itself is among them, and closed by now. It was opened last, so that it is likely to be the last.
    if let Some(place) = numbers.iter().rposition(|&fd| !is_open(fd)) {
        numbers.remove(place);
    }
    Ok(numbers)
}

fn probe_descriptors() -> io::Result<Vec<RawFd>> {
    let highest = RawFd::try_from(limit()?.rlim_max).unwrap_or(RawFd::MAX);
    Ok((0..highest).filter(|&fd| is_open(fd)).collect())
}

/// How many descriptors this process may have: the soft limit.
pub(crate) fn capacity() -> io::Result<usize> {
    Ok(usize::try_from(limit()?.rlim_cur).unwrap_or(usize::MAX))
}

/// What a number is open for, if it is.
pub(crate) fn open_file(fd: RawFd) -> Option<FileId> {
    let mut stat = std::mem::MaybeUninit::uninit();
    // SAFETY: any number may be asked about, and `stat` has room for the answer.
    check(unsafe { libc::fstat(fd, stat.as_mut_ptr()) }).ok()?;
    // SAFETY: fstat succeeded and has filled it in.
    Some(Info::new(&unsafe { stat.assume_init() }).id)
}

/// What sort of file a number is open for, if it is: `S_IFSOCK` and the like.
pub(super) fn kind(fd: RawFd) -> Option<libc::mode_t> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: any number may be asked about, and `stat` has room for the answer.
    check(unsafe { libc::fstat(fd, stat.as_mut_ptr()) }).ok()?;
    // SAFETY: fstat succeeded and has filled it in.
    Some(unsafe { stat.assume_init() }.st_mode & libc::S_IFMT)
}

fn limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` has room for the result.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit)
}

fn set_limit(limit: libc::rlimit) -> io::Result<()> {
    // SAFETY: a valid limit: one that was in force, or has its own maximum.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

/// Whether a number is open, and would be in a program that this process executes.
pub(crate) fn is_inheritable(fd: RawFd) -> bool {
    // SAFETY: fcntl without an argument on any number; it is an error if that is not open.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    flags >= 0 && flags & libc::FD_CLOEXEC == 0
}

/// Takes a descriptor that this program was started with and that nobody has taken yet, and keeps it from programs that
/// this one executes. `None`: it is not open.
pub(crate) fn take_inherited(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: fcntl with a number on any number; it is an error if that is not open.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) }).ok()?;
    // SAFETY: it is open, and was handed to this program by whoever started it: no object of ours stands for it, and the
    // caller takes it once.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn is_open(fd: RawFd) -> bool {
    // SAFETY: fcntl without an argument on any number; it is an error if that is not open.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}
