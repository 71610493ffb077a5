//! The first bytes of a key as a number: enough for most comparisons, and for its partition.

/// The first eight bytes of `key` as a number that orders as they do; shorter keys are padded
/// with zeros, so equal prefixes must be told apart by the whole key.
#[inline]
pub(crate) fn key_prefix(key: &[u8]) -> u64 {
    match key.first_chunk::<8>() {
        Some(first) => u64::from_be_bytes(*first),
        None => {
            let mut first = [0; 8];
            first[..key.len()].copy_from_slice(key);
            u64::from_be_bytes(first)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_order_as_keys_do() {
        let keys: [&[u8]; 6] = [b"", b"\0", b"a", b"abcdefgh", b"abcdefgi", b"b"];
        assert!(keys.windows(2).all(|pair| key_prefix(pair[0]) <= key_prefix(pair[1])));
        assert_eq!(key_prefix(b"abcdefghXYZ"), key_prefix(b"abcdefgh"));
    }
}
