//! Zeros that take no memory before something else is written over them.
//!
//! A memtable's filter is sized for all the keys that may come; a store that writes little, a
//! memtable that waits for its turn and one that a start fills from a short log need little of it.
//! Mapped pages come as they are touched and go when the owner does. What an allocator hands out
//! would have to be written whole, and it would keep it.
//!
//! # Invariants
//! 1. The memory is reached through shared references to atomics alone, as long as the owner lives.
#![expect(unsafe_code, reason = "mapped bytes looked at as atomic words")]

use std::slice;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};

/// See the module page.
pub struct Zeros(Owner);

enum Owner {
    /// Raw, so that no reference to plain bytes is ever made of them.
    Mapped(MmapRaw),
    /// If the system has no more maps to give.
    Allocated(Box<[AtomicU64]>),
}

impl Zeros {
    /// So many words, at the start of a page if they are mapped.
    pub fn new(words: usize) -> Self {
        match MmapOptions::new().len(words * size_of::<AtomicU64>()).map_anon() {
            Ok(map) => Self(Owner::Mapped(map.into())),
            Err(_) => Self(Owner::Allocated((0..words).map(|_| AtomicU64::new(0)).collect())),
        }
    }

    /// The words.
    #[inline]
    pub fn words(&self) -> &[AtomicU64] {
        match &self.0 {
            // SAFETY: `new` mapped whole words, private and readable and writable; a page is
            // aligned to them, and any bytes are a valid word. They are reached here alone
            // (invariant 1), and they stay mapped as long as `self`.
            Owner::Mapped(map) => unsafe {
                slice::from_raw_parts(map.as_mut_ptr().cast(), map.len() / size_of::<AtomicU64>())
            },
            Owner::Allocated(words) => words,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn are_zeros_until_somebody_writes() {
        let zeros = Zeros::new(100_000);
        assert_eq!(zeros.words().len(), 100_000);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let zeros = &zeros;
                scope.spawn(move || {
                    for word in zeros.words().iter().step_by(7) {
                        word.fetch_or(1 << thread, Ordering::Relaxed);
                    }
                });
            }
        });
        for (at, word) in zeros.words().iter().enumerate() {
            assert_eq!(word.load(Ordering::Relaxed), if at % 7 == 0 { 3 } else { 0 });
        }
    }
}
