//! Memory that a process shares with those that it forks.
//!
//! Invariant: it is made of atomic numbers and of nothing else, so that whatever the others write into it, at whatever
//! moment they die, reading it is sound and gives numbers.

use super::check;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// The unit in which memory can be protected, in words: 4 KiB, or 64 KiB on machines that have larger pages.
pub(crate) const PAGE: usize = (if cfg!(target_arch = "x86_64") {
    4 << 10
} else {
    64 << 10
}) / size_of::<AtomicU64>();

/// Numbers that forked children share; zero at first.
#[derive(Debug)]
pub(crate) struct SharedWords {
    base: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: it is a slice of atomic numbers, which any thread may use.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// So many words. Memory is taken for those pages only that are used.
    pub(crate) fn new(len: usize) -> io::Result<SharedWords> {
        let bytes =
            NonZeroUsize::new(len * size_of::<AtomicU64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE;
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let base = unsafe { mmap_anonymous(None, bytes, rights, flags) }?;
        Ok(SharedWords {
            base: base.cast(),
            len,
        })
    }

    pub(crate) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping has so many words, is aligned to a page, and lives as long as `self`; zeroes are valid.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// Keeps this process from writing anywhere but to these words, which must be whole pages.
    pub(crate) fn protect_except(&self, writable: Range<usize>) -> io::Result<()> {
        self.forbid_writing(0..writable.start)?;
        self.forbid_writing(writable.end..self.len)
    }

    fn forbid_writing(&self, words: Range<usize>) -> io::Result<()> {
        if words.is_empty() {
            return Ok(());
        }
        let part = &self.words()[words];
        let base = part.as_ptr().cast_mut().cast::<libc::c_void>();
        // SAFETY: the range is a part of our own mapping; nobody in this process writes to it any more, as the caller says.
        check(unsafe { libc::mprotect(base, size_of_val(part), libc::PROT_READ) }).map(drop)
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<AtomicU64>();
        // SAFETY: the mapping is ours, of this length, and nobody can have a reference into it any more.
        let _ = unsafe { munmap(self.base.cast(), bytes) };
    }
}
