//! Signals as bytes in a pipe: the handler writes the number, the loop reads it.
//!
//! Invariant: a handler does nothing else, except that a second INT or TERM ends the process at once. In a forked
//! child the handlers are our own, because signal-hook's registry would still hold the parent's actions; where
//! the process is shared with its host (`run`), signal-hook does it, because it keeps the host's actions alive.

use super::check;
use nix::libc;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::collections::BTreeMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What std set up for its own purposes and must keep: the stack guard's messages.
const KEPT_BY_STD: [libc::c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];
/// Signals whose action nobody can change.
const UNCHANGEABLE: [libc::c_int; 2] = [libc::SIGKILL, libc::SIGSTOP];
/// Real-time signals that the C library keeps for its threads.
const RESERVED_BY_LIBC: [libc::c_int; 2] = [32, 33];
/// The numbers of all signals.
const ALL: std::ops::RangeInclusive<libc::c_int> = 1..=64;

type Handler = extern "C" fn(libc::c_int);

/// Blocks every signal in this thread, and returns what was blocked before.
pub(super) fn block_all() -> io::Result<SigSet> {
    Ok(SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?)
}

pub(super) fn restore_mask(mask: &SigSet) -> io::Result<()> {
    Ok(mask.thread_set_mask()?)
}

/// Lets every signal through.
pub(crate) fn clear_mask() -> io::Result<()> {
    restore_mask(&SigSet::empty())
}

pub(super) fn unblock(signal: libc::c_int) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset initialises the set that it is given.
    check(unsafe { libc::sigemptyset(set.as_mut_ptr()) })?;
    // SAFETY: the set is initialised.
    check(unsafe { libc::sigaddset(set.as_mut_ptr(), signal) })?;
    // SAFETY: the set is initialised, and no old set is asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Gives every signal its default action, in a child that has just been forked.
pub(crate) fn reset_all() {
    let fixed = |signal: &libc::c_int| {
        [KEPT_BY_STD, UNCHANGEABLE, RESERVED_BY_LIBC]
            .as_flattened()
            .contains(signal)
    };
    for signal in ALL.filter(|signal| !fixed(signal)) {
        // A number that this kernel does not have has no action to be reset.
        let _ = set_action(signal, libc::SIG_DFL);
    }
}

/// Gives every signal its default action, in a process that is about to execute a program. Makes bare system calls
/// only.
pub(super) fn reset_for_program() {
    let fixed = |signal: &libc::c_int| {
        [UNCHANGEABLE, RESERVED_BY_LIBC]
            .as_flattened()
            .contains(signal)
    };
    for signal in ALL.filter(|signal| !fixed(signal)) {
        // As above.
        let _ = set_action(signal, libc::SIG_DFL);
    }
}

/// Installs a handler that interrupts no restartable system call.
pub(super) fn catch(signal: libc::c_int, handler: Handler) -> io::Result<()> {
    set_action(signal, handler as *const () as libc::sighandler_t)
}

fn set_action(signal: libc::c_int, action: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: all zeroes are a valid sigaction: default action, empty mask.
    let mut new = unsafe { MaybeUninit::<libc::sigaction>::zeroed().assume_init() };
    new.sa_sigaction = action;
    new.sa_flags = libc::SA_RESTART;
    set_raw(signal, &new)
}

fn set_raw(signal: libc::c_int, action: &libc::sigaction) -> io::Result<()> {
    // SAFETY: the action is valid: either a handler of ours that is async-signal-safe, or one that was in force.
    check(unsafe { libc::sigaction(signal, action, null_mut()) }).map(drop)
}

fn get_raw(signal: libc::c_int) -> io::Result<libc::sigaction> {
    let mut old = MaybeUninit::uninit();
    // SAFETY: `old` has room for the action that is in force; none is set.
    check(unsafe { libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()) })?;
    // SAFETY: sigaction succeeded and has filled it in.
    Ok(unsafe { old.assume_init() })
}

/// Where the handlers write to. -1: nowhere yet.
static PIPE: AtomicI32 = AtomicI32::new(-1);
/// An INT or TERM has come already.
static ENDING: AtomicBool = AtomicBool::new(false);

extern "C" fn note(signal: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    write_signal(PIPE.load(Ordering::SeqCst), signal);
    nix::errno::Errno::set_raw(errno);
}

extern "C" fn note_ending(signal: libc::c_int) {
    if ENDING.swap(true, Ordering::SeqCst) {
        die_of(signal);
    }
    note(signal);
}

extern "C" fn ignore(_: libc::c_int) {}

/// Writes a signal's number. A full pipe already holds more than anybody needs to know.
fn write_signal(pipe: libc::c_int, signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: one byte from a local variable; write is async-signal-safe, and a closed pipe is an error only.
    unsafe { libc::write(pipe, (&raw const byte).cast(), 1) };
}

/// Ends this process as `signal` would have, so that its status tells the truth.
pub(crate) fn die_of(signal: libc::c_int) -> ! {
    let _ = set_action(signal, libc::SIG_DFL);
    let _ = unblock(signal);
    // SAFETY: raise is async-signal-safe.
    unsafe { libc::raise(signal) };
    // Still here: the first process of a pid namespace is not killed by its own signals.
    // SAFETY: `_exit` is async-signal-safe.
    unsafe { libc::_exit(128 + signal) }
}

/// The reading end of the signals' pipe.
#[derive(Debug)]
pub(crate) struct Signals {
    read: OwnedFd,
    /// Open for as long as handlers may write to it.
    write: Arc<OwnedFd>,
    shared: Vec<Shared>,
}

impl Signals {
    /// For a process that is ours alone: every signal of `handled` is noted, INT and TERM end the process at the
    /// second time unless they are handled, HUP and PIPE do nothing unless they are handled (they are caught and
    /// not ignored, so that programs started from here get the default).
    pub(crate) fn take_over(handled: &[libc::c_int]) -> io::Result<Signals> {
        let signals = Signals::new()?;
        PIPE.store(signals.write.as_raw_fd(), Ordering::SeqCst);
        // A parent that is a server itself may be ending.
        ENDING.store(false, Ordering::SeqCst);
        catch(libc::SIGHUP, ignore)?;
        catch(libc::SIGPIPE, ignore)?;
        catch(libc::SIGINT, note_ending)?;
        catch(libc::SIGTERM, note_ending)?;
        for signal in handled {
            catch(*signal, note)?;
        }
        Ok(signals)
    }

    /// For a process that has a life of its own: INT, TERM and `handled` are noted until this is dropped, and
    /// everything is then as it was.
    pub(crate) fn share(handled: &[libc::c_int]) -> io::Result<Signals> {
        let mut signals = Signals::new()?;
        let ending = [libc::SIGINT, libc::SIGTERM]
            .into_iter()
            .filter(|signal| !handled.contains(signal));
        for signal in ending.chain(handled.iter().copied()) {
            let shared = Shared::register(signal, Arc::clone(&signals.write))?;
            signals.shared.push(shared);
        }
        Ok(signals)
    }

    fn new() -> io::Result<Signals> {
        let flags = nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK;
        let (read, write) = nix::unistd::pipe2(flags)?;
        Ok(Signals {
            read,
            write: Arc::new(write),
            shared: Vec::new(),
        })
    }

    /// The descriptors that a child must keep for this to work.
    pub(crate) fn descriptors(&self) -> [RawFd; 2] {
        [self.read.as_raw_fd(), self.write.as_raw_fd()]
    }

    /// The signals that have come since the last time, in order.
    pub(crate) fn pending(&self) -> Vec<libc::c_int> {
        let mut numbers = [0; 64];
        let count = nix::unistd::read(&self.read, &mut numbers).unwrap_or(0);
        numbers[..count]
            .iter()
            .map(|&number| number.into())
            .collect()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

/// One signal in a process that is not ours alone.
struct Shared {
    signal: libc::c_int,
    id: signal_hook::SigId,
}

/// What is known about a signal that was ever shared.
struct Known {
    /// signal-hook's own action, once it has been seen to install it. It believes that what it installed stays,
    /// and would not do it again after we have given the signal back.
    hook: Option<libc::sigaction>,
    /// What was in force before the first of those who share it now.
    before: libc::sigaction,
    /// How many share it now: servers may run in several threads of a process.
    sharers: usize,
}

static KNOWN: Mutex<BTreeMap<libc::c_int, Known>> = Mutex::new(BTreeMap::new());

impl Shared {
    fn register(signal: libc::c_int, pipe: Arc<OwnedFd>) -> io::Result<Shared> {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let before = get_raw(signal)?;
        let action = move || write_signal(pipe.as_raw_fd(), signal);
        // SAFETY: the action writes one byte, which is async-signal-safe.
        let id = unsafe { signal_hook::low_level::register(signal, action) }?;
        let after = get_raw(signal)?;
        let known = known.entry(signal).or_insert(Known {
            hook: None,
            before,
            sharers: 0,
        });
        if known.sharers == 0 {
            known.before = before;
        }
        known.sharers += 1;
        if after.sa_sigaction != before.sa_sigaction {
            known.hook = Some(after);
        } else if let Some(hook) = &known.hook {
            set_raw(signal, hook)?;
        }
        Ok(Shared { signal, id })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        signal_hook::low_level::unregister(self.id);
        if let Some(known) = known.get_mut(&self.signal) {
            known.sharers -= 1;
            if known.sharers == 0 {
                // It was in force before, so the kernel takes it again.
                let _ = set_raw(self.signal, &known.before);
            }
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shared").field(&self.signal).finish()
    }
}
