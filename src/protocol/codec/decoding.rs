//! One value being read: its hash, its descriptors, and the accounts of what it costs.
//!
//! Invariant: no input makes decoding allocate, recurse or loop beyond the limits. Lengths are held against the
//! limits before the first element is read.

use super::handover::{self, Slot};
use super::shape::{Kind, Shape};
use crate::descriptor::Descriptor;
use crate::limits::Limits;
use crate::protocol::message::Value;
use bytes::Bytes;
use serde::de::Error;
use std::cell::{Cell, RefCell};

/// A value may take this many times the memory of its message...
const EXPANSION: usize = 12;
/// ... and this much in any case, so that short messages with many defaults pass.
const FLOOR: usize = 8 << 20;

/// One value being read.
pub(super) struct Decoding<'a> {
    /// What the value is a part of, if that can be shared.
    whole: Option<&'a Bytes>,
    fds: RefCell<Vec<Descriptor>>,
    limits: &'a Limits,
    /// How much memory this value may take.
    budget: usize,
    pub(super) shape: Shape,
    depth: Cell<usize>,
    elements: Cell<usize>,
    memory: Cell<usize>,
    /// Byte strings or sequences of `u8` were read: the usual reason for a wrong hash.
    byte_strings: Cell<bool>,
    problem: RefCell<Option<String>>,
}

impl<'a> Decoding<'a> {
    #[inline]
    pub(super) fn new(mut value: Value<'a>, limits: &'a Limits) -> Decoding<'a> {
        let floor = FLOOR.max(value.bytes.len().saturating_mul(EXPANSION));
        Decoding {
            budget: limits.max_memory.min(floor),
            whole: value.whole,
            fds: RefCell::new(value.take_fds()),
            limits,
            shape: Shape::new(),
            depth: Cell::new(0),
            elements: Cell::new(0),
            memory: Cell::new(0),
            byte_strings: Cell::new(false),
            problem: RefCell::new(None),
        }
    }

    /// Whether a value that could be read is also what the sender meant.
    #[inline]
    pub(super) fn accept(&self, hash: Option<u64>, unused: usize) -> Result<(), String> {
        if hash.is_some_and(|hash| hash != self.shape.hash()) {
            let hint = match self.byte_strings.get() {
                true => {
                    "; where one side has a byte string and the other `Vec<u8>`, use `Bytes` on both sides"
                }
                false => "",
            };
            return Err(format!("the sender's types have another shape{hint}"));
        }
        if unused > 0 {
            return Err(format!("{unused} bytes are left over behind the value"));
        }
        let fds = self.fds.borrow();
        match fds.iter().filter(|fd| fd.is_there()).count() {
            0 => Ok(()),
            left => Err(format!(
                "{left} descriptors came with the value and are not part of it"
            )),
        }
    }

    /// Our own reason for a failure, or else `other`.
    pub(super) fn problem(&self, other: &str) -> String {
        self.problem.take().unwrap_or_else(|| other.to_owned())
    }

    fn refuse<E: Error>(&self, problem: String) -> E {
        let error = E::custom(&problem);
        self.problem.replace(Some(problem));
        error
    }

    pub(super) fn descend<E: Error>(&self) -> Result<(), E> {
        self.depth.set(self.depth.get() + 1);
        match self.depth.get() <= self.limits.max_depth {
            true => Ok(()),
            false => Err(self.refuse(format!(
                "the value is nested deeper than max_depth, {}",
                self.limits.max_depth
            ))),
        }
    }

    /// Accounts for something that takes `size` bytes of memory. Every value with parts does so for itself, also
    /// where it lies within another: one behind a pointer looks the same.
    pub(super) fn charge<E: Error>(&self, size: usize) -> Result<(), E> {
        self.memory.set(self.memory.get().saturating_add(size));
        match self.memory.get() <= self.budget {
            true => Ok(()),
            false => Err(self.refuse(format!(
                "the value takes more memory than max_memory allows, {} bytes",
                self.budget
            ))),
        }
    }

    /// How much memory has been accounted for.
    pub(super) fn memory(&self) -> usize {
        self.memory.get()
    }

    /// Accounts for an element of `size` bytes that was read when `before` had been accounted for: what it did
    /// not account for itself, because it is a scalar or a string, is added.
    pub(super) fn charge_rest<E: Error>(&self, before: usize, size: usize) -> Result<(), E> {
        self.charge(size.saturating_sub(self.memory.get() - before))
    }

    pub(super) fn count_element<E: Error>(&self) -> Result<(), E> {
        self.elements.set(self.elements.get() + 1);
        self.expect(0)
    }

    /// Refuses an announced number of elements before the first of them is read.
    pub(super) fn expect<E: Error>(&self, announced: usize) -> Result<(), E> {
        match self.elements.get().saturating_add(announced) <= self.limits.max_elements {
            true => Ok(()),
            false => Err(self.refuse(format!(
                "the value has more than max_elements, {}",
                self.limits.max_elements
            ))),
        }
    }

    pub(super) fn ascend(&self) {
        self.depth.set(self.depth.get() - 1);
    }

    pub(super) fn note_byte_string(&self) {
        self.byte_strings.set(true);
    }

    pub(super) fn read_fd<R>(&self, read: impl FnOnce() -> R) -> R {
        self.shape.add(Kind::Fd);
        let fds = self.fds.take();
        let (result, slot) = handover::open(Slot::TakeFds(fds), read);
        if let Slot::TakeFds(fds) = slot {
            self.fds.replace(fds);
        }
        result
    }

    pub(super) fn read_bytes<R>(&self, read: impl FnOnce() -> R) -> R {
        self.shape.add(Kind::Bytes);
        self.note_byte_string();
        match self.whole {
            Some(whole) => handover::open(Slot::TakeBytes(whole.clone()), read).0,
            None => read(),
        }
    }
}
