//! The running hash over the types of a value: FNV-1a, 64 bits, over one letter for each part.
//!
//! Invariant: what bincode would decode as something else must hash differently; how types are *named* must not
//! matter, so that two programs can share messages without sharing definitions. PROTOCOL.md has the same table.

use std::cell::Cell;

const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// The letters. `PRODUCT` is followed by its number of parts (two bytes, little-endian), `VARIANT` by the
/// variant's name and a zero byte; `SEQ` and `MAP` are closed by `END`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Bool = b'b',
    I8 = b'1',
    I16 = b'2',
    I32 = b'4',
    I64 = b'8',
    I128 = b'6',
    U8 = b'A',
    U16 = b'B',
    U32 = b'D',
    U64 = b'H',
    U128 = b'P',
    F32 = b'f',
    F64 = b'F',
    Char = b'c',
    Str = b's',
    Bytes = b'y',
    Fd = b'd',
    None = b'n',
    Some = b'o',
    Seq = b'[',
    Map = b'{',
    End = b']',
    Product = b'(',
    Variant = b'|',
}

/// A hash in the making.
pub(super) struct Shape(Cell<u64>);

impl Shape {
    pub(super) fn new() -> Shape {
        Shape(Cell::new(OFFSET))
    }

    pub(super) fn hash(&self) -> u64 {
        self.0.get()
    }

    pub(super) fn add(&self, kind: Kind) {
        self.byte(kind as u8);
    }

    /// A struct, tuple or array of `parts` parts, which follow.
    pub(super) fn product(&self, parts: usize) {
        self.add(Kind::Product);
        let [low, high] = u16::try_from(parts).unwrap_or(u16::MAX).to_le_bytes();
        self.byte(low);
        self.byte(high);
    }

    /// A variant of an enum; its content follows.
    pub(super) fn variant(&self, name: &str) {
        self.add(Kind::Variant);
        name.bytes().for_each(|byte| self.byte(byte));
        self.byte(0);
    }

    fn byte(&self, byte: u8) {
        self.0
            .set((self.0.get() ^ u64::from(byte)).wrapping_mul(PRIME));
    }
}
