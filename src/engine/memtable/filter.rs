//! A cache-line-blocked Bloom filter beside each memtable.
//!
//! A lookup that misses a memtable of half a million keys costs about twenty cache misses in the
//! skiplist; here it costs one. Most reads of a store miss most memtables, and most writes bring a
//! new key, so both ask here first.
//!
//! Every key sets [`PROBES`] bits inside one 64-byte line chosen by its hash (Putze, Sanders,
//! Singler, "Cache-, Hash- and Space-Efficient Bloom Filters", 2007). Bits are only ever set.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::zeros::Zeros;

const LINE_WORDS: usize = 8;
const PROBES: u32 = 5;
/// Bits of filter for each expected key: about 1 % false positives with lines of 512 bits.
const BITS_PER_KEY: usize = 12;

/// See the module page.
pub struct Filter {
    bits: Zeros,
    /// Whether anything was inserted: reads of a store at rest then touch no line at all. Written
    /// once, so it stays in every core's cache while the lines and the list's length move about.
    in_use: AtomicBool,
}

impl Filter {
    /// A filter for `keys` keys; more keys only raise the rate of false positives.
    pub fn for_keys(keys: usize) -> Self {
        let lines = (keys * BITS_PER_KEY).div_ceil(512).max(1);
        Self { bits: Zeros::new(lines * LINE_WORDS), in_use: AtomicBool::new(false) }
    }

    fn line(&self, hash: u64) -> &[AtomicU64; LINE_WORDS] {
        // Multiply-shift instead of a modulo; the high half of the hash picks the line.
        let (lines, _) = self.bits.words().as_chunks();
        let at = (u128::from(hash) * lines.len() as u128) >> 64;
        &lines[at as usize]
    }

    /// The (word, bit mask) of each probe, from the low half of the hash.
    fn probes(hash: u64) -> impl Iterator<Item = (usize, u64)> {
        // Odd multiplier: the low bits decide the probes, the high bits chose the line.
        let mut state = hash.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (0..PROBES).map(move |_| {
            let probe = (state >> 55) as usize;
            state = state.wrapping_mul(0xD6E8_FEB8_6659_FD93).rotate_left(17);
            (probe / 64, 1 << (probe % 64))
        })
    }

    /// Adds a key by its hash.
    pub fn insert(&self, hash: u64) {
        // Relaxed, as the bits below.
        if !self.in_use.load(Ordering::Relaxed) {
            self.in_use.store(true, Ordering::Relaxed);
        }
        let line = self.line(hash);
        for (word, mask) in Self::probes(hash) {
            // Looked at first, because a hot key's line would bounce between cores. Relaxed: the
            // bit only has to be visible to whoever sees the key, and the skiplist's link, which
            // is stored after this, publishes both.
            if line[word].load(Ordering::Relaxed) & mask == 0 {
                line[word].fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// `false`: no key of this hash was inserted before.
    pub fn may_contain(&self, hash: u64) -> bool {
        if !self.in_use.load(Ordering::Relaxed) {
            return false;
        }
        let line = self.line(hash);
        Self::probes(hash).all(|(word, mask)| line[word].load(Ordering::Relaxed) & mask != 0)
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        size_of_val(self.bits.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xxhash_rust::xxh3::xxh3_64;

    #[test]
    fn never_denies_an_inserted_key_and_seldom_admits_another() {
        let filter = Filter::for_keys(10_000);
        let hash = |i: u32| xxh3_64(&i.to_le_bytes());
        for i in 0..10_000 {
            filter.insert(hash(i));
        }
        assert!((0..10_000).all(|i| filter.may_contain(hash(i))));
        let false_positives = (10_000..110_000).filter(|i| filter.may_contain(hash(*i))).count();
        assert!(false_positives < 3_000, "{false_positives} of 100,000");
    }
}
