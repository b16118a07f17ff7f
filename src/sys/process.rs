//! Making a process and becoming what it shall be.
//!
//! Invariant: a forked child never returns into its parent's frames; it leaves by `_exit`.

use super::pidfd::PidFd;
use super::{check, signal};
use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::unistd::{ForkResult, Gid, Pid, Uid};
use std::ffi::CString;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The exit status of a child whose body panicked: the one that Rust's own runtime uses.
pub(crate) const PANICKED: i32 = 101;

/// Forks. The child runs `body` and ends with the status it returns; all signals are blocked in it until it
/// decides otherwise, so that no handler of the parent can run there. `body` is told what `look` saw in the parent
/// when signals were blocked already: with no other threads, nothing changes between the two.
///
/// The caller answers for the process having no other threads, or for `body` being able to live with that.
pub(crate) fn fork<T>(
    look: impl FnOnce() -> T,
    body: impl FnOnce(T) -> i32,
) -> io::Result<(u32, PidFd)> {
    // What is buffered would be written twice otherwise. If it cannot be written, that shows at its next use.
    let _ = io::stdout().flush();
    let mask = signal::block_all()?;
    let seen = look();
    // SAFETY: the child runs `body` only and leaves by `_exit`; the caller has dealt with other threads.
    let result = match unsafe { nix::unistd::fork() } {
        Ok(ForkResult::Child) => leave(
            catch_unwind(AssertUnwindSafe(|| body(seen))).unwrap_or_else(|payload| {
                // Dropping a payload may panic again.
                std::mem::forget(payload);
                PANICKED
            }),
        ),
        Ok(ForkResult::Parent { child }) => {
            open_child(child).map(|pidfd| (child.as_raw() as u32, pidfd))
        }
        Err(err) => Err(err.into()),
    };
    signal::restore_mask(&mask)?;
    result
}

/// A child that cannot be opened cannot be owned either, and must not stay. It has not been reaped, so its
/// number is still its own.
fn open_child(pid: Pid) -> io::Result<PidFd> {
    PidFd::open(pid).inspect_err(|_| {
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    })
}

/// Ends this process with `status`, without running what its parent registered for the end.
///
/// Standard output is flushed, for a second at most: a full pipe that nobody reads must not keep us.
pub(crate) fn leave(status: i32) -> ! {
    flush_standard_output(status);
    // SAFETY: `_exit` has no preconditions and does not return.
    unsafe { libc::_exit(status) }
}

/// Flushes standard output, and ends the process with `status` if that takes longer than a second; a status of 128
/// and more stands for death by a signal.
pub(crate) fn flush_standard_output(status: i32) {
    static STATUS: AtomicI32 = AtomicI32::new(0);
    extern "C" fn leave_now(_: libc::c_int) {
        match STATUS.load(Ordering::SeqCst) {
            // 128 and a signal: the shell's way to say what ended a process.
            status @ 129.. => signal::die_of(status - 128),
            // SAFETY: `_exit` is async-signal-safe.
            status => unsafe { libc::_exit(status) },
        }
    }
    STATUS.store(status, Ordering::SeqCst);
    if signal::catch(libc::SIGALRM, leave_now).is_ok() && signal::unblock(libc::SIGALRM).is_ok() {
        nix::unistd::alarm::set(1);
        let _ = io::stdout().flush();
        nix::unistd::alarm::cancel();
    }
}

/// How many threads this process has, if there are others than this one. A thread that has just been joined may
/// still be on its way out, therefore some patience.
pub(crate) fn other_threads(patience: Duration) -> Option<usize> {
    let deadline = Instant::now() + patience;
    loop {
        let threads = match nix::sched::unshare(CloneFlags::CLONE_THREAD) {
            // The kernel's own word: this changes nothing, and is refused if there are other threads.
            Ok(()) => return None,
            Err(Errno::EINVAL) => count_threads().max(2),
            Err(_) => count_threads(),
        };
        if threads <= 1 {
            return None;
        }
        if Instant::now() >= deadline {
            return Some(threads);
        }
        // There is no event to wait for: the kernel does not tell when a joined thread is gone altogether.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn count_threads() -> usize {
    // Where nothing can be known, the worst is assumed.
    std::fs::read_dir("/proc/self/task").map_or(2, Iterator::count)
}

/// How often this process was forked off, counted from its first ancestor that asked. It tells a copy from the
/// original for the price of a load, where `getpid` is a system call.
pub(crate) fn generation() -> u32 {
    static REGISTERED: Once = Once::new();
    static GENERATION: AtomicU32 = AtomicU32::new(0);
    extern "C" fn count() {
        GENERATION.fetch_add(1, Ordering::Relaxed);
    }
    REGISTERED.call_once(|| {
        // SAFETY: the handler does nothing but add to an atomic number.
        unsafe { libc::pthread_atfork(None, None, Some(count)) };
    });
    GENERATION.load(Ordering::Relaxed)
}

/// The kernel's number for this thread.
pub(crate) fn thread_id() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Has the kernel kill this process when the thread that forked it ends. Other than by a lifeline that ends, it is
/// killed with all signals blocked, while it is stopped, and with its descriptors closed; but not after a change of
/// its user, and not if that thread has ended already.
pub(crate) fn end_with_parent() -> io::Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(
        nix::sys::signal::Signal::SIGKILL,
    )?)
}

/// A process group of its own, so that Ctrl-C at the owner's terminal reaches the owner alone.
pub(crate) fn own_group() -> io::Result<()> {
    let this = Pid::from_raw(0);
    Ok(nix::unistd::setpgid(this, this)?)
}

/// Gives all rights up but those of `uid` and `gid`, for good.
pub(crate) fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    nix::unistd::setgroups(&[group])?;
    nix::unistd::setresgid(group, group, group)?;
    nix::unistd::setresuid(user, user, user)?;
    if uid != 0 && nix::unistd::setuid(Uid::from_raw(0)).is_ok() {
        return Err(io::Error::other("the rights of root could be taken back"));
    }
    Ok(())
}

/// How much of a resource this process may have, now and for good.
pub(crate) fn limit(resource: nix::sys::resource::Resource, limit: u64) -> io::Result<()> {
    Ok(nix::sys::resource::setrlimit(resource, limit, limit)?)
}

pub(crate) fn change_directory(path: &Path) -> io::Result<()> {
    Ok(nix::unistd::chdir(path)?)
}

pub(crate) fn set_umask(mode: u32) {
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(mode));
}

/// Sets the name that `ps -o comm` shows. The kernel cuts it to 15 bytes.
pub(crate) fn set_name(name: &str) -> io::Result<()> {
    let name = CString::new(name)?;
    // SAFETY: the name is a C string, and the kernel copies it.
    check(unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) }).map(drop)
}

/// Names this process after its command line, as if that had been executed.
pub(crate) fn take_name_from_command_line() {
    let program = std::env::args_os().next().map(std::path::PathBuf::from);
    let name = program.as_deref().and_then(Path::file_name);
    if let Some(name) = name.and_then(|name| name.to_str()) {
        // A name is for people who look; without it, all works as well.
        let _ = set_name(name);
    }
}

/// The user whose rights this process has.
pub(crate) fn effective_user() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// The name that tells this process from all others that ever were, where the kernel has one.
pub(crate) fn own_identity() -> Option<u64> {
    PidFd::open(Pid::this()).ok()?.identity()
}
