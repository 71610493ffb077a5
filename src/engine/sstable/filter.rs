//! The table's Bloom filter: built by the `bloomfilter` crate, probed where it is mapped.
//!
//! The crate offers no view of borrowed bytes, so loading its filters would put 10 bits of every
//! key on the heap. Its layout is small, so lookups read it in place instead. It is a Bloom filter
//! over the `u64` [`KeyHash`] of each key:
//!
//! | at | bytes | what |
//! |--:|--:|---|
//! | 0 | 1 | version of the crate's layout, 1 |
//! | 1 | 8 | length of the bitmap in bytes, little endian |
//! | 9 | 4 | number of probes, little endian |
//! | 13 | 32 | seed: the keys of two SipHash-1-3, always [`SEED`] |
//! | 45 | | bitmap; bit `i` is bit `i % 8` of byte `i / 8` |
//!
//! Probe `i` tests bit `h(i) % bits`, where `h(0)` and `h(1)` are the two SipHashes of the key's
//! hash and `h(i) = (h(0) + i h(1)) % (2^64 - 59)`. Since the seed is a constant of the format, the
//! two SipHashes are computed once per lookup and serve every table.
//!
//! The crate's version is pinned; a differential test holds this probe to `Bloom::check`.

use std::cell::OnceCell;
use std::hash::Hasher;

use bloomfilter::Bloom;
use bloomfilter::reexports::siphasher::sip::SipHasher13;
use xxhash_rust::xxh3::xxh3_64;

use super::format::{Checked, array_at, u32_at, u64_at};

/// The seed of all filters. Part of the file format.
pub(super) const SEED: [u8; 32] = *b"PairDB table filter, seed one\0\0\0";

const HEADER_BYTES: usize = 45;
const PROBES_MAX: u32 = 64;
/// The greatest prime below 2^64; the crate folds probes from the third one on with it.
const PRIME: u64 = 0xFFFF_FFFF_FFFF_FFC5;

/// The hash of a key, computed once per lookup and shared by whatever hashes keys.
#[derive(Clone, Debug)]
pub struct KeyHash {
    hash: u64,
    sips: OnceCell<[u64; 2]>,
}

impl KeyHash {
    /// Hashes `key`.
    #[inline]
    pub fn new(key: &[u8]) -> Self {
        Self::from_hash(xxh3_64(key))
    }

    /// Of a hash that was computed before.
    #[inline]
    pub fn from_hash(hash: u64) -> Self {
        Self { hash, sips: OnceCell::new() }
    }

    /// XXH3-64 of the key.
    #[inline]
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// What the first two probes of a filter are made of; computed at the first call.
    #[inline]
    fn sips(&self) -> [u64; 2] {
        *self.sips.get_or_init(|| {
            let (keys, _) = SEED.as_chunks::<16>();
            [sip(&keys[0], self.hash), sip(&keys[1], self.hash)]
        })
    }
}

#[inline]
fn sip(key: &[u8; 16], hash: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_key(key);
    hasher.write_u64(hash);
    hasher.finish()
}

/// Serialises a filter of about `bits_per_key` over the hashes of a table's keys.
pub(super) fn build(hashes: &[u64], bits_per_key: u32) -> Vec<u8> {
    let bytes = (hashes.len() * bits_per_key as usize).div_ceil(8).max(1);
    let mut bloom = Bloom::<u64>::new_with_seed(bytes, hashes.len().max(1), &SEED)
        .expect("only a broken random generator fails, and none is used");
    for hash in hashes {
        bloom.set(hash);
    }
    bloom.into_bytes()
}

/// What a probe needs to know of a filter; the bitmap stays in the mapping.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    probes: u32,
    bits: u64,
}

impl Filter {
    /// Checks the header of a filter.
    pub fn parse(bytes: &[u8]) -> Checked<Self> {
        let version = bytes.first().copied();
        let len = u64_at(bytes, 1, "filter header")?;
        let probes = u32_at(bytes, 9, "filter header")?;
        let seed: [u8; 32] = array_at(bytes, 13, "filter header")?;
        if version != Some(1) || seed != SEED || !(1..=PROBES_MAX).contains(&probes) {
            return Err("filter header".into());
        }
        if len == 0 || len != (bytes.len() - HEADER_BYTES) as u64 {
            return Err(format!("filter names {len} bytes of bitmap").into());
        }
        Ok(Self { probes, bits: len * 8 })
    }

    /// Whether the bit of a probe is set.
    #[inline]
    fn is_set(&self, bitmap: &[u8], hash: u64) -> bool {
        let bit = hash % self.bits;
        // A bit outside cannot be: then the filter says nothing, which is "maybe".
        let byte = bitmap.get((bit / 8) as usize).copied().unwrap_or(u8::MAX);
        byte & (1 << (bit % 8)) != 0
    }

    /// The first two probes of [`Filter::may_contain`] without a branch between them, so that the
    /// processor fetches both at once, and those of other filters with them; `false` is certain.
    #[inline]
    pub fn looks_likely(&self, bytes: &[u8], key: &KeyHash) -> bool {
        let Some(bitmap) = bytes.get(HEADER_BYTES..) else { return true };
        let [first, second] = key.sips();
        self.is_set(bitmap, first) & (self.is_set(bitmap, second) | (self.probes < 2))
    }

    /// Whether the filter `bytes` may hold the key; `false` is certain.
    #[inline]
    pub fn may_contain(&self, bytes: &[u8], key: &KeyHash) -> bool {
        let Some(bitmap) = bytes.get(HEADER_BYTES..) else { return true };
        if !self.looks_likely(bytes, key) {
            return false;
        }
        let [first, second] = key.sips();
        let mut hash = first.wrapping_add(second);
        for _ in 2..self.probes {
            hash = hash.wrapping_add(second);
            let folded = if hash >= PRIME { hash - PRIME } else { hash };
            if !self.is_set(bitmap, folded) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Our probe of the serialised bytes answers exactly what the crate answers, for keys that
        /// are in and keys that are not.
        #[test]
        fn probe_equals_the_crate(
            hashes in proptest::collection::vec(any::<u64>(), 1..200),
            others in proptest::collection::vec(any::<u64>(), 50),
            bits_per_key in 1_u32..32,
        ) {
            let bytes = build(&hashes, bits_per_key);
            let bloom = Bloom::<u64>::from_slice(&bytes).unwrap();
            let filter = Filter::parse(&bytes).unwrap();
            for hash in hashes.iter().chain(&others) {
                let found = filter.may_contain(&bytes, &KeyHash::from_hash(*hash));
                prop_assert_eq!(found, bloom.check(hash));
                let likely = filter.looks_likely(&bytes, &KeyHash::from_hash(*hash));
                prop_assert!(likely || !found);
            }
            for hash in &hashes {
                prop_assert!(filter.may_contain(&bytes, &KeyHash::from_hash(*hash)));
            }
        }

        /// Random bytes are no filter, and a damaged header never panics.
        #[test]
        fn garbage_is_an_error(mut bytes: Vec<u8>, at in 0_usize..60, to: u8, hash: u64) {
            prop_assert!(Filter::parse(&bytes).is_err());
            bytes = build(&[1, 2, 3], 10);
            if let Some(byte) = bytes.get_mut(at) {
                *byte = to;
            }
            if let Ok(filter) = Filter::parse(&bytes) {
                filter.may_contain(&bytes, &KeyHash::from_hash(hash));
            }
        }
    }

    /// At 10 bits a key about one lookup in a hundred is let through in vain.
    #[test]
    fn false_positives_are_as_rare_as_the_bits_promise() {
        let hashes: Vec<_> = (0..10_000_u64).map(|i| xxh3_64(&i.to_le_bytes())).collect();
        let bytes = build(&hashes, 10);
        let filter = Filter::parse(&bytes).unwrap();
        let absent = |i: u64| filter.may_contain(&bytes, &KeyHash::new(&i.to_be_bytes()));
        let wrong = (1..=10_000).filter(|i| absent(i << 32)).count();
        assert!((40..200).contains(&wrong), "{wrong} of 10,000");
    }

    /// The hash of a key is a format constant: filters on disk were built with it.
    #[test]
    fn key_hash_is_frozen() {
        let key = KeyHash::new(b"pairdb");
        assert_eq!(key.hash(), 11_649_932_998_161_263_565);
        assert_eq!(key.sips(), [4_822_962_934_672_358_102, 8_140_065_170_602_314_168]);
    }
}
