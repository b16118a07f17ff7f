//! How descriptors and large byte strings pass between the codec and the values [`Fd`](crate::Fd) and
//! [`Bytes`](crate::Bytes), around serde, which has no words for them.
//!
//! Invariant: the slot is open only while our own codec asks one such value for its content; at any other time,
//! in any other format, a descriptor cannot be written as a number.

use crate::descriptor::Descriptor;
use bytes::Bytes;
use std::cell::RefCell;
use std::sync::Arc;

/// The name by which the codec recognises an [`Fd`](crate::Fd). No type of a user can have it.
pub(crate) const FD: &str = "forkserver::Fd as a value";
/// The same for [`Bytes`](crate::Bytes).
pub(crate) const BYTES: &str = "forkserver::Bytes as a value";

/// Byte strings from this size on leave from where they are; copying shorter ones is cheaper.
const UNCOPIED: usize = 4096;

pub(super) enum Slot {
    Shut,
    /// Descriptors that leave with the value.
    SendFds(Vec<Arc<Descriptor>>),
    /// Descriptors that came with the value, each to be taken once.
    TakeFds(Vec<Descriptor>),
    /// A byte string that is to be sent uncopied, if it is long enough.
    SendBytes(Option<Bytes>),
    /// The payload of which a received byte string is a part.
    TakeBytes(Bytes),
}

thread_local! {
    static SLOT: RefCell<Slot> = const { RefCell::new(Slot::Shut) };
}

/// Runs `exchange` with the slot open, and gives back what it left there.
pub(super) fn open<R>(slot: Slot, exchange: impl FnOnce() -> R) -> (R, Slot) {
    /// Puts the former slot back, also when `exchange` panics.
    struct Restore(Option<Slot>);
    impl Drop for Restore {
        fn drop(&mut self) {
            if let Some(former) = self.0.take() {
                SLOT.replace(former);
            }
        }
    }
    let mut restore = Restore(Some(SLOT.replace(slot)));
    let result = exchange();
    let former = restore.0.take().unwrap_or(Slot::Shut);
    (result, SLOT.replace(former))
}

/// Adds a descriptor to the message that is being written, and returns its index there.
pub(crate) fn send_fd(fd: &Arc<Descriptor>) -> Option<u32> {
    SLOT.with_borrow_mut(|slot| match slot {
        Slot::SendFds(fds) => {
            fds.push(Arc::clone(fd));
            Some(fds.len() as u32 - 1)
        }
        _ => None,
    })
}

/// Takes a descriptor out of the message that is being read.
pub(crate) fn take_fd(index: u32) -> Result<Descriptor, &'static str> {
    SLOT.with_borrow_mut(|slot| match slot {
        Slot::TakeFds(fds) => match fds.get_mut(index as usize) {
            Some(fd) => fd.take().ok_or("the same descriptor is used twice"),
            None => Err("a descriptor is missing"),
        },
        _ => Err("a descriptor can only be read by forkserver's own codec"),
    })
}

/// Hands a long byte string over to be sent from where it is. `false`: write it yourself.
pub(crate) fn send_bytes(bytes: &Bytes) -> bool {
    SLOT.with_borrow_mut(|slot| match slot {
        Slot::SendBytes(place @ None) if bytes.len() >= UNCOPIED => {
            *place = Some(bytes.clone());
            true
        }
        _ => false,
    })
}

/// The received byte string `part` without a copy, if it is a part of the payload at hand.
pub(crate) fn share_bytes(part: &[u8]) -> Option<Bytes> {
    SLOT.with_borrow(|slot| match slot {
        Slot::TakeBytes(payload) if payload.as_ptr_range().contains(&part.as_ptr()) => {
            Some(payload.slice_ref(part))
        }
        _ => None,
    })
}
