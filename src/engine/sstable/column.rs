//! Columns of fixed-width integers in mapped bytes, and the search in them.
//!
//! The first eight bytes of a key, read as a big-endian number, order as the bytes do. Blocks and
//! the index keep these numbers side by side, so that a search touches few cache lines, compares
//! integers and decodes nothing. Two keys with equal numbers are told apart by whoever owns the
//! rest of the key (a shorter key is padded with zeros, so even `a` and `a\0` share a number).
//!
//! Numbers stand in the file as little-endian integers, possibly unaligned; a load is one move.

use std::hint::select_unpredictable;

use super::format::{Checked, Damage};

/// `count` integers of `N` bytes at `at` of `bytes`, or damage named `what`.
#[inline]
pub(super) fn column<'a, const N: usize>(
    bytes: &'a [u8],
    at: usize,
    count: usize,
    what: &'static str,
) -> Checked<&'a [[u8; N]]> {
    let end = count.checked_mul(N).and_then(|len| len.checked_add(at));
    match end.and_then(|end| bytes.get(at..end)) {
        Some(bytes) => Ok(bytes.as_chunks().0),
        None => Err(Damage::from(what)),
    }
}

/// The number of leading entries of a sorted column that are below `prefix`.
#[inline]
pub(super) fn lower_bound(column: &[[u8; 8]], prefix: u64) -> usize {
    partition_point(column, |entry| entry < prefix)
}

/// The number of leading entries of a sorted column that are not above `prefix`.
#[inline]
pub(super) fn upper_bound(column: &[[u8; 8]], prefix: u64) -> usize {
    partition_point(column, |entry| entry <= prefix)
}

/// Binary search without a branch on what was compared: its outcomes are random, and a mispredicted
/// branch costs more than a step.
#[inline]
fn partition_point(column: &[[u8; 8]], before: impl Fn(u64) -> bool) -> usize {
    let (mut base, mut size) = (0, column.len());
    while size > 1 {
        let half = size / 2;
        let middle = base + half;
        base = select_unpredictable(before(u64::from_le_bytes(column[middle])), middle, base);
        size -= half;
    }
    match column.get(base) {
        Some(entry) => base + usize::from(before(u64::from_le_bytes(*entry))),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::key::key_prefix;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Numbers of keys order as the keys do, but for keys that differ only behind byte eight
        /// or in trailing zeros.
        #[test]
        fn prefixes_order_as_keys(a: Vec<u8>, b: Vec<u8>) {
            if key_prefix(&a) < key_prefix(&b) {
                prop_assert!(a < b);
            }
            if a <= b {
                prop_assert!(key_prefix(&a) <= key_prefix(&b));
            }
        }

        /// The branch-free search answers what the standard library's does, duplicates included.
        #[test]
        fn bounds_equal_partition_point(
            mut values in proptest::collection::vec(0_u64..40, 0..70),
            probe in 0_u64..41,
        ) {
            values.sort_unstable();
            let column: Vec<_> = values.iter().map(|v| v.to_le_bytes()).collect();
            prop_assert_eq!(lower_bound(&column, probe), values.partition_point(|v| *v < probe));
            prop_assert_eq!(upper_bound(&column, probe), values.partition_point(|v| *v <= probe));
        }
    }
}
