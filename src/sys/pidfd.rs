//! Processes by descriptor: a pid may be another process tomorrow, a pidfd never is.
//!
//! Invariant: nothing here waits for, or signals, a process by its number.

use super::{check, left, poll, retry};
use nix::libc;
use nix::unistd::Pid;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Instant;

/// How a process ended, as far as the kernel tells us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Exited(i32),
    Signaled(i32),
    Unknown,
}

/// A process.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

/// `PID_FS_MAGIC` of the kernel's `include/uapi/linux/magic.h`: since 6.9, a pidfd's inode names its process
/// for ever. Before, all pidfds share one inode.
const PID_FS_MAGIC: libc::c_long = 0x5049_4446;

impl PidFd {
    /// Opens a process that cannot have been reaped yet: an own child, or this process.
    pub(crate) fn open(pid: Pid) -> io::Result<PidFd> {
        // SAFETY: pidfd_open takes two integers and returns a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
        let fd = check(fd as libc::c_int)?;
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn from_fd(fd: OwnedFd) -> PidFd {
        PidFd(fd)
    }

    /// The number that names this process and no other, where the kernel has one.
    pub(crate) fn identity(&self) -> Option<u64> {
        // It is the same for all of them.
        static HAS_NAMES: OnceLock<bool> = OnceLock::new();
        if !*HAS_NAMES.get_or_init(|| self.is_in_pidfs()) {
            return None;
        }
        nix::sys::stat::fstat(&self.0).ok().map(|stat| stat.st_ino)
    }

    fn is_in_pidfs(&self) -> bool {
        let mut filesystem = MaybeUninit::<libc::statfs>::uninit();
        // SAFETY: the descriptor is open and the structure has room.
        if check(unsafe { libc::fstatfs(self.0.as_raw_fd(), filesystem.as_mut_ptr()) }).is_err() {
            return false;
        }
        // SAFETY: fstatfs succeeded and has filled the structure.
        let filesystem = unsafe { filesystem.assume_init() };
        filesystem.f_type as libc::c_long == PID_FS_MAGIC
    }

    pub(crate) fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        let none = std::ptr::null::<libc::siginfo_t>();
        // SAFETY: the descriptor is open; a null siginfo asks for the ordinary one.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal,
                none,
                0,
            )
        };
        check(result as libc::c_int).map(drop)
    }

    /// Waits until the process has ended; `false` if the deadline passed before.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<bool> {
        Ok(poll::readable([Some(self.as_fd())], deadline)?[0])
    }

    /// Takes the status of a child of ours that has ended, `None` if it still runs. A status that somebody else
    /// took is asked from the kernel's memory.
    pub(crate) fn reap(&self) -> io::Result<Option<Status>> {
        let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
        let (id, options) = (
            self.0.as_raw_fd() as libc::id_t,
            libc::WEXITED | libc::WNOHANG,
        );
        let result = retry(|| {
            // SAFETY: the descriptor is open and `info` has room for what waitid writes.
            check(unsafe { libc::waitid(libc::P_PIDFD, id, info.as_mut_ptr(), options) })
        });
        match result {
            Ok(_) => {}
            Err(err) if err.raw_os_error() == Some(libc::ECHILD) => {
                return Ok(self.wait(Some(Instant::now()))?.then(|| self.remembered()));
            }
            Err(err) => return Err(err),
        }
        // SAFETY: all bytes were zero, which is a valid siginfo, and waitid has filled it if a child has ended.
        let info = unsafe { info.assume_init() };
        // SAFETY: waitid sets the fields of SIGCHLD, or leaves the zeroes.
        let (pid, status) = unsafe { child_fields(&info) };
        Ok(match (pid, info.si_code) {
            (0, _) => None,
            (_, libc::CLD_EXITED) => Some(Status::Exited(status)),
            _ => Some(Status::Signaled(status)),
        })
    }

    /// What `PIDFD_GET_INFO` remembers of a process that is reaped already (since 6.15).
    fn remembered(&self) -> Status {
        let mut info = PidfdInfo {
            mask: PIDFD_INFO_EXIT,
            ..PidfdInfo::default()
        };
        // SAFETY: the ioctl reads and writes a structure of the size in its number, which is that of `info`.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), PIDFD_GET_INFO, &raw mut info) };
        if result < 0 || info.mask & PIDFD_INFO_EXIT == 0 {
            return Status::Unknown;
        }
        match info.exit_code & 0x7f {
            0 => Status::Exited((info.exit_code >> 8) & 0xff),
            signal => Status::Signaled(signal),
        }
    }

    /// Waits as [`PidFd::wait`] does, then reaps.
    pub(crate) fn wait_and_reap(&self, deadline: Option<Instant>) -> io::Result<Option<Status>> {
        loop {
            if let Some(status) = self.reap()? {
                return Ok(Some(status));
            }
            if deadline.is_some_and(|deadline| left(deadline).is_zero()) {
                return Ok(None);
            }
            self.wait(deadline)?;
        }
    }
}

/// # Safety
/// `info` must be zero or filled in for SIGCHLD.
unsafe fn child_fields(info: &libc::siginfo_t) -> (libc::pid_t, libc::c_int) {
    // SAFETY: the caller promises that the fields of SIGCHLD are the valid ones.
    let pid = unsafe { info.si_pid() };
    // SAFETY: as above.
    let status = unsafe { info.si_status() };
    (pid, status)
}

/// The first, 64-byte version of the kernel's `struct pidfd_info` (`include/uapi/linux/pidfd.h`).
#[derive(Default)]
#[repr(C)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

const PIDFD_INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)` with that version's size.
const PIDFD_GET_INFO: libc::Ioctl = 0xC040_FF0B;

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
