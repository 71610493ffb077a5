//! LEB128 numbers in the engine's files: seven bits a byte, the lowest first, a set top bit where
//! more follow.
//!
//! Readers take any bytes. They do not insist on the shortest form: what is read here is covered by
//! a checksum, so it has the form in which it was written.

/// Longest number, in bytes.
pub(super) const VARINT_BYTES_MAX: usize = 10;

/// Bytes that `value` takes.
#[inline]
pub(super) const fn varint_len(value: u64) -> usize {
    // An empty number takes a byte too.
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends `value`.
#[inline]
pub(super) fn put_varint(out: &mut Vec<u8>, value: u64) {
    let mut bytes = [0; VARINT_BYTES_MAX];
    let len = write_varint(&mut bytes, value);
    out.extend_from_slice(&bytes[..len]);
}

/// Writes `value` to the front of `out`, which is long enough; how many bytes it took.
#[inline]
pub(super) fn write_varint(out: &mut [u8], mut value: u64) -> usize {
    let mut len = 0;
    while value >= 0x80 {
        out[len] = value as u8 | 0x80;
        value >>= 7;
        len += 1;
    }
    out[len] = value as u8;
    len + 1
}

/// Takes a number off the front of `bytes`: the number and what follows. `None` if the bytes end
/// before it does, or it does not fit 64 bits.
#[inline]
pub(super) fn split_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        return Some((first.into(), rest));
    }
    split_long(bytes)
}

fn split_long(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(VARINT_BYTES_MAX) {
        let bits = u64::from(byte & 0x7F);
        let shifted = bits << (7 * at);
        if shifted >> (7 * at) != bits {
            return None;
        }
        value |= shifted;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every number comes back, takes the bytes it is said to take, and leaves what follows.
        #[test]
        fn a_number_is_read_back(bits in 0_u32..=64, value: u64, rest: Vec<u8>) {
            let value = value.checked_shr(bits).unwrap_or(0);
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            prop_assert_eq!(bytes.len(), varint_len(value));
            prop_assert!(bytes.len() <= VARINT_BYTES_MAX);
            bytes.extend_from_slice(&rest);
            prop_assert_eq!(split_varint(&bytes), Some((value, &rest[..])));
        }

        /// Random bytes are a number and a rest, or nothing; a number that is cut short is nothing.
        #[test]
        fn garbage_is_a_number_or_nothing(bytes: Vec<u8>, value: u64) {
            if let Some((_, rest)) = split_varint(&bytes) {
                prop_assert!(rest.len() < bytes.len());
            }
            let mut number = Vec::new();
            put_varint(&mut number, value);
            prop_assert_eq!(split_varint(&number[..number.len() - 1]), None);
        }
    }

    #[test]
    fn numbers_beyond_64_bits_are_refused() {
        assert_eq!(split_varint(&[0xFF; 11]), None);
        let mut bytes = vec![0xFF; 9];
        bytes.push(1);
        assert_eq!(split_varint(&bytes), Some((u64::MAX, &[][..])));
        bytes[9] = 2;
        assert_eq!(split_varint(&bytes), None);
    }
}
