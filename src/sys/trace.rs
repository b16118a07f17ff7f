//! Where a thread is, written down by itself in a signal handler.
//!
//! Invariant: only a thread that is about to lose its process is asked. Should the unwinder wait for a lock that the thread
//! itself holds, the process ends all the same.

use super::{check, signal};
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

/// Has threads that are asked write into `place`: how many addresses, and the addresses, the innermost first.
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

#[cfg(target_env = "gnu")]
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

extern "C" fn write_down(_: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    let place = PLACE.load(Ordering::SeqCst);
    if !place.is_null() {
        // SAFETY: `arm` was given a slice of that length, which lives for as long as the process.
        let place = unsafe { std::slice::from_raw_parts(place, LEN.load(Ordering::SeqCst)) };
        let mut found = [null_mut(); MAX];
        let count = addresses(&mut found);
        if let Some((first, words)) = place.split_first() {
            let found = found[..count].iter().zip(words);
            let written =
                found.map(|(address, word)| word.store(*address as u64, Ordering::Relaxed));
            first.store(written.count() as u64, Ordering::Release);
        }
    }
    nix::errno::Errno::set_raw(errno);
}
