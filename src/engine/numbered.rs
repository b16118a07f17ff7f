//! Tables of what has a number of our own.
//!
//! Invariant: nobody else chooses the numbers, but only which of them stay, so that no key need be hashed in a way that
//! withstands a bad choice.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A table by number: of sessions, mostly.
pub(super) type Numbered<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;

/// Spreads numbers that follow each other over all bits, by Fibonacci's multiplication.
#[derive(Default)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte) ^ self.0);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        // Those bits that the table looks at first depend on all bits of the number.
        self.0.rotate_left(32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_in_is_found() {
        let mut table = Numbered::default();
        table.extend((0..10_000_u64).map(|number| (number, 2 * number)));
        assert_eq!(table.len(), 10_000);
        assert!((0..10_000).all(|number| table.remove(&number) == Some(2 * number)));
        assert!(table.is_empty());
    }
}
