//! Where a thread is, written down by itself in a signal handler.
//!
//! Invariant: only a thread that is about to lose its process is asked. Should the unwinder wait for a lock that the thread
//! itself holds, the process ends all the same.

use super::{check, process, signal};
use nix::libc;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// As many addresses as are ever written.
const MAX: usize = 32;

static PLACE: AtomicPtr<AtomicU64> = AtomicPtr::new(null_mut());
static LEN: AtomicUsize = AtomicUsize::new(0);

/// The signal that asks. Users cannot take it: names of signals have those only that are not real-time ones.
fn number() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

/// Has threads that are asked write into `place`, if nothing is there (0): which thread it is and how many addresses
/// ([`heading`]), and the addresses, the innermost first.
pub(crate) fn arm(place: &'static [AtomicU64]) -> io::Result<()> {
    LEN.store(place.len(), Ordering::SeqCst);
    PLACE.store(place.as_ptr().cast_mut(), Ordering::SeqCst);
    // The first look loads the unwinder, which no handler must do.
    addresses(&mut [null_mut(); MAX]);
    signal::catch(number(), write_down)
}

/// Asks one thread of a child that has not been reaped, so that its number is still its own.
pub(crate) fn ask(child: u32, thread: i32) -> io::Result<()> {
    // SAFETY: three numbers; the kernel refuses a thread that is not of that process.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, child, thread, number()) };
    check(result as libc::c_int).map(drop)
}

/// Not inlined, as no part of the handler is: whoever reads a trace leaves out as many frames as there are of it.
#[cfg(target_env = "gnu")]
#[inline(never)]
fn addresses(buffer: &mut [*mut libc::c_void; MAX]) -> usize {
    // SAFETY: the buffer has room for so many addresses.
    let count = unsafe { libc::backtrace(buffer.as_mut_ptr(), MAX as libc::c_int) };
    usize::try_from(count).unwrap_or(0)
}

/// Other C libraries have no such function.
#[cfg(not(target_env = "gnu"))]
fn addresses(_: &mut [*mut libc::c_void; MAX]) -> usize {
    0
}

/// A thread is at it, and has not finished.
const UNFINISHED: u64 = 1;

/// Whose trace it is and how many addresses it has, if it is there and whole.
pub(crate) fn heading(first: u64) -> Option<(i32, usize)> {
    let (thread, count) = ((first >> 32) as i32, first as u32 as usize);
    (thread > 0).then_some((thread, count))
}

extern "C" fn write_down(_: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    let place = PLACE.load(Ordering::SeqCst);
    if !place.is_null() {
        // SAFETY: `arm` was given a slice of that length, which lives for as long as the process.
        let place = unsafe { std::slice::from_raw_parts(place, LEN.load(Ordering::SeqCst)) };
        if let Some((first, words)) = place.split_first() {
            write_into(first, words);
        }
    }
    nix::errno::Errno::set_raw(errno);
}

#[inline(never)]
fn write_into(first: &AtomicU64, words: &[AtomicU64]) {
    // Another thread's trace is there until it has been read.
    if first
        .compare_exchange(0, UNFINISHED, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        return;
    }
    let mut found = [null_mut(); MAX];
    let count = addresses(&mut found);
    let found = found[..count].iter().zip(words);
    let written = found.map(|(address, word)| word.store(*address as u64, Ordering::Relaxed));
    let count = written.count() as u64;
    let thread = process::thread_id() as u64;
    first.store(thread << 32 | count, Ordering::Release);
}
