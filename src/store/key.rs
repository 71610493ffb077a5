//! Where a row lies in the engine: token, tenant, key.
//!
//! ```text
//! engine key   token u64 BE | tenant u32 BE | key, 1 to 4096 bytes
//! token        xxh3_64(tenant u32 BE | partition key)
//! ```
//!
//! The partition key is the whole key, or, in a tenant with a delimiter, what stands before the
//! first occurrence of it: `user1` of `user1:mail:7` with `:`. A key without the delimiter is its
//! own partition key, so `user1` lies beside `user1:mail:7` and sorts before it.
//!
//! 1. Tokens spread partitions evenly; a range of tokens is one contiguous range of engine keys,
//!    whatever tenants have rows there.
//! 2. Keys of one partition key share a token and sort among themselves as plain bytes.
//! 3. The tenant has a fixed width in both places, so no two pairs of tenant and key have the same
//!    bytes. Two partition keys may share a token by chance: who scans a partition key filters by
//!    [`partition_key`].
//!
//! These bytes are a format: they decide on which node a row is. They never change.

use xxhash_rust::xxh3::xxh3_64;

use super::error::{Error, Result};
use super::tenant::TenantId;

/// Bytes before the key: token and tenant.
pub const PREFIX_BYTES: usize = 12;

/// An engine key, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EngineKey<'a> {
    /// The place on the ring.
    pub token: u64,
    /// Whose row it is.
    pub tenant: TenantId,
    /// The client's key; not empty.
    pub key: &'a [u8],
}

/// A range of engine keys as the engine scans it: from `start`, which is in it, to `end`, which
/// is not; `None` is the end of all keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key of the range, if it exists.
    pub start: Vec<u8>,
    /// The first key behind the range.
    pub end: Option<Vec<u8>>,
}

/// The part of `key` that decides on its place: all of it, or what stands before the first
/// `delimiter`. It is empty if the key begins with the delimiter.
pub fn partition_key<'k>(key: &'k [u8], delimiter: Option<&[u8]>) -> &'k [u8] {
    let end = match delimiter {
        None | Some([]) => None,
        // Most delimiters are one byte, and this runs on every request.
        Some([byte]) => key.iter().position(|found| found == byte),
        Some(delimiter) => key.windows(delimiter.len()).position(|window| window == delimiter),
    };
    &key[..end.unwrap_or(key.len())]
}

/// The token of a partition key.
pub fn token_of(tenant: TenantId, partition_key: &[u8]) -> u64 {
    // Hashed at once from the stack up to this length; longer ones are rare.
    const INLINE_BYTES: usize = 252;
    if let Some(room) = INLINE_BYTES.checked_sub(partition_key.len()) {
        let mut bytes = [0; 4 + INLINE_BYTES];
        let used = bytes.len() - room;
        bytes[..4].copy_from_slice(&tenant.0.to_be_bytes());
        bytes[4..used].copy_from_slice(partition_key);
        return xxh3_64(&bytes[..used]);
    }
    let mut bytes = Vec::with_capacity(4 + partition_key.len());
    bytes.extend_from_slice(&tenant.0.to_be_bytes());
    bytes.extend_from_slice(partition_key);
    xxh3_64(&bytes)
}

impl<'a> EngineKey<'a> {
    /// Where `key` of a tenant with this delimiter lies.
    pub fn of(tenant: TenantId, delimiter: Option<&[u8]>, key: &'a [u8]) -> Self {
        Self { token: token_of(tenant, partition_key(key, delimiter)), tenant, key }
    }

    /// The bytes the engine stores it under.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PREFIX_BYTES + self.key.len());
        bytes.extend_from_slice(&self.token.to_be_bytes());
        bytes.extend_from_slice(&self.tenant.0.to_be_bytes());
        bytes.extend_from_slice(self.key);
        bytes
    }

    /// Takes the bytes apart again. Whether the token is that of the key is not looked at: that
    /// needs the tenant's delimiter.
    pub fn decode(bytes: &'a [u8]) -> Result<Self> {
        let split = bytes.split_first_chunk::<8>().and_then(|(token, rest)| {
            let (tenant, key) = rest.split_first_chunk::<4>()?;
            Some((u64::from_be_bytes(*token), u32::from_be_bytes(*tenant), key))
        });
        match split {
            Some((token, tenant, key)) if !key.is_empty() => {
                Ok(Self { token, tenant: TenantId(tenant), key })
            }
            _ => Err(Error::InvalidArgument {
                what: "engine key",
                why: format!("it has {} bytes, it must have over {PREFIX_BYTES}", bytes.len()),
            }),
        }
    }
}

impl KeyRange {
    /// One key and nothing else.
    pub fn of_key(engine_key: &[u8]) -> Self {
        Self { start: engine_key.to_vec(), end: Some(after(engine_key)) }
    }

    /// The keys with this token and tenant that begin with `prefix`, in the order of their bytes.
    /// With an empty prefix: all with this token and tenant.
    pub fn of_prefix(token: u64, tenant: TenantId, prefix: &[u8]) -> Self {
        let start = EngineKey { token, tenant, key: prefix }.encode();
        let end = successor(&start);
        Self { start, end }
    }

    /// All keys of a partition key, in the order of their bytes. Keys of other partition keys that
    /// begin with the same bytes and share the token by chance are in it too.
    pub fn of_partition_key(tenant: TenantId, partition_key: &[u8]) -> Self {
        Self::of_prefix(token_of(tenant, partition_key), tenant, partition_key)
    }

    /// All keys, of all tenants, with tokens from `first` to `last`, both included. Empty if
    /// `last` is below `first`.
    pub fn of_tokens(first: u64, last: u64) -> Self {
        Self { start: below(first), end: last.checked_add(1).map(below) }
    }

    /// What is left of the range behind `engine_key`, for the next page of a scan. A key outside
    /// the range cannot widen it.
    #[must_use]
    pub fn after(self, engine_key: &[u8]) -> Self {
        Self { start: self.start.max(after(engine_key)), end: self.end }
    }

    /// The part of this range that is also in `other`.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let end = match (self.end, other.end) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self { start: self.start.max(other.start), end }
    }

    /// Whether the range holds `engine_key`.
    pub fn contains(&self, engine_key: &[u8]) -> bool {
        self.start.as_slice() <= engine_key
            && self.end.as_deref().is_none_or(|end| engine_key < end)
    }

    /// Whether no key can be in the range.
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| *end <= self.start)
    }
}

/// The shortest bytes that are above all keys with lower tokens and not above any other. The block
/// of a table that begins at a partition is known by as few: it is told from the one before.
fn below(token: u64) -> Vec<u8> {
    let zeros = (token.trailing_zeros() / 8) as usize;
    token.to_be_bytes()[..8 - zeros].to_vec()
}

/// The smallest key above `engine_key`.
fn after(engine_key: &[u8]) -> Vec<u8> {
    [engine_key, &[0]].concat()
}

/// The smallest bytes above all that begin with `prefix`; `None` if there are none.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut bytes = prefix[..=last].to_vec();
    bytes[last] += 1;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn encode(tenant: u32, delimiter: Option<&[u8]>, key: &[u8]) -> Vec<u8> {
        EngineKey::of(TenantId(tenant), delimiter, key).encode()
    }

    /// If one of these changes, every row of every store is suddenly somewhere else.
    #[test]
    fn the_place_of_a_key_is_a_fact_of_the_format() {
        let tokens = [
            (1, &b"pairdb"[..], 17_127_540_575_660_802_104_u64),
            (2, b"pairdb", 6_540_634_635_975_743_083),
            (1, b"", 982_250_997_969_081_615),
            (u32::MAX, &[0xff; 4096], 13_220_690_996_944_479_242),
        ];
        for (tenant, partition_key, token) in tokens {
            assert_eq!(token_of(TenantId(tenant), partition_key), token, "{partition_key:?}");
        }
        let mut expected = 17_127_540_575_660_802_104_u64.to_be_bytes().to_vec();
        expected.extend_from_slice(b"\0\0\0\x01pairdb:x");
        assert_eq!(encode(1, Some(b":"), b"pairdb:x"), expected);
    }

    /// The short way over the stack is a shortcut, not another token.
    #[test]
    fn the_length_of_a_partition_key_does_not_decide_how_it_is_hashed() {
        for len in [0, 1, 251, 252, 253, 254, 4096] {
            let partition_key = vec![b'k'; len];
            let whole = [&[0, 0, 1, 2][..], &partition_key].concat();
            assert_eq!(token_of(TenantId(258), &partition_key), xxh3_64(&whole), "{len}");
        }
    }

    #[test]
    fn the_first_delimiter_ends_the_partition_key() {
        type Case = (&'static [u8], Option<&'static [u8]>, &'static [u8]);
        let cases: [Case; 8] = [
            (b"user1:mail:7", None, b"user1:mail:7"),
            (b"user1:mail:7", Some(b":"), b"user1"),
            (b"user1", Some(b":"), b"user1"),
            (b":mail", Some(b":"), b""),
            (b"user1:", Some(b":"), b"user1"),
            (b"a:b::c::d", Some(b"::"), b"a:b"),
            (b"a:", Some(b"::"), b"a:"),
            (b":", Some(b"::::::::"), b":"),
        ];
        for (key, delimiter, expected) in cases {
            assert_eq!(partition_key(key, delimiter), expected, "{key:?} {delimiter:?}");
        }
    }

    /// The last partition of the ring, and tenants and keys of all ones, have no successor in
    /// fixed-width arithmetic; a range that wrapped round would be empty.
    #[test]
    fn ranges_at_the_end_of_everything_are_not_cut_off() {
        let all = KeyRange::of_tokens(0, u64::MAX);
        assert_eq!(all.end, None);
        let last = EngineKey { token: u64::MAX, tenant: TenantId(u32::MAX), key: &[0xff; 3] };
        assert!(all.contains(&last.encode()));
        let prefix = KeyRange::of_prefix(u64::MAX, TenantId(u32::MAX), &[0xff]);
        assert!(prefix.end.is_none() && prefix.contains(&last.encode()));
        let carried = KeyRange::of_prefix(7, TenantId(u32::MAX), &[0xff]);
        assert_eq!(carried.end, Some(8_u64.to_be_bytes().to_vec()));
        assert!(KeyRange::of_tokens(5, 4).is_empty());
        assert!(!KeyRange::of_tokens(5, 5).is_empty());
    }

    /// What tells a partition's first block from the one before is as short, so the block is known
    /// to hold nothing of the partition before.
    #[test]
    fn a_range_of_tokens_begins_with_the_shortest_bytes_that_do() {
        let partition = |at: u64| KeyRange::of_tokens(at << 54, ((at + 1) << 54) - 1);
        assert_eq!(partition(0), KeyRange { start: vec![], end: Some(vec![0, 0x40]) });
        assert_eq!(partition(4), KeyRange { start: vec![1], end: Some(vec![1, 0x40]) });
        let tokens = [0, 1, 255, 256, 1 << 54, (1 << 54) + 1, 1 << 62, u64::MAX];
        assert!(tokens.map(below).is_sorted_by(|one, other| one < other));
        for token in tokens {
            let key = |token| EngineKey { token, tenant: TenantId(0), key: b"\0" }.encode();
            assert!(below(token) <= key(token));
            assert!(token == 0 || key(token - 1) < below(token));
        }
    }

    #[test]
    fn a_page_goes_on_behind_its_last_key_and_never_before_its_range() {
        let keys = [&b"u:"[..], b"u:a", b"u:a\0", b"u:b"].map(|key| encode(1, Some(b":"), key));
        let range = KeyRange::of_partition_key(TenantId(1), b"u");
        assert!(keys.iter().all(|key| range.contains(key)));
        let rest = range.clone().after(&keys[1]);
        assert_eq!(keys.each_ref().map(|key| rest.contains(key)), [false, false, true, true]);
        assert_eq!(range.clone().after(b"\0"), range);
        let one = range.intersect(KeyRange::of_key(&keys[2]));
        assert_eq!(keys.each_ref().map(|key| one.contains(key)), [false, false, true, false]);
    }

    #[test]
    fn too_few_bytes_are_no_engine_key() {
        for len in 0..=PREFIX_BYTES {
            assert_eq!(EngineKey::decode(&vec![7; len]).unwrap_err().reason(), "INVALID_ARGUMENT");
        }
        EngineKey::decode(&[7; PREFIX_BYTES + 1]).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Whatever comes in, encode and decode are inverses: no two keys share bytes.
        #[test]
        fn decode_takes_apart_what_encode_put_together(
            token in any::<u64>(), tenant in any::<u32>(), key in vec(any::<u8>(), 1..40),
        ) {
            let engine_key = EngineKey { token, tenant: TenantId(tenant), key: &key };
            let bytes = engine_key.encode();
            prop_assert_eq!(EngineKey::decode(&bytes).unwrap(), engine_key);
            prop_assert!(KeyRange::of_key(&bytes).contains(&bytes));
            prop_assert!(!KeyRange::of_key(&bytes).contains(&after(&bytes)));
        }

        /// Keys of one partition key are neighbours in the order of their bytes, in the range of
        /// their partition key and of their token; bytes are few, so that collisions are many.
        #[test]
        fn keys_of_a_partition_key_are_stored_and_scanned_in_order(
            mut keys in vec(vec(prop::sample::select(vec![0_u8, b':', b'a', 0xff]), 1..6), 1..8),
            delimiter in prop::sample::select(vec![&b":"[..], b"::", b"\xff", b"a\0"]),
        ) {
            keys.sort();
            let groups = keys.chunk_by(|a, b| {
                partition_key(a, Some(delimiter)) == partition_key(b, Some(delimiter))
            });
            for group in groups {
                let partition = partition_key(&group[0], Some(delimiter));
                let token = token_of(TenantId(3), partition);
                let encoded: Vec<_> =
                    group.iter().map(|key| encode(3, Some(delimiter), key)).collect();
                prop_assert!(encoded.is_sorted());
                let ranges = [
                    KeyRange::of_partition_key(TenantId(3), partition),
                    KeyRange::of_tokens(token, token),
                    KeyRange::of_prefix(token, TenantId(3), b""),
                ];
                for (range, key) in
                    ranges.iter().flat_map(|range| encoded.iter().map(move |key| (range, key)))
                {
                    prop_assert!(range.contains(key));
                    prop_assert_eq!(EngineKey::decode(key).unwrap().token, token);
                }
                let foreign = encode(4, Some(delimiter), &group[0]);
                prop_assert!(!ranges[0].contains(&foreign) && !ranges[2].contains(&foreign));
            }
        }
    }
}
