//! The place where a walk over keys goes on, as a client carries it from call to call.
//!
//! ```text
//! cursor   format u8 | xxh3_64 of the key, seeded with the request, u64 LE | engine key
//! ```
//!
//! The seed is a hash of what must stay the same from call to call: a cursor that was altered, or
//! is of another request, is refused.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::error::{Error, Result};

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 9;

/// The cursor of a walk that goes on at the engine key `next`.
pub fn encode(next: &[u8], seed: u64) -> Vec<u8> {
    let mut cursor = Vec::with_capacity(HEADER_BYTES + next.len());
    cursor.push(FORMAT);
    cursor.extend_from_slice(&xxh3_64_with_seed(next, seed).to_le_bytes());
    cursor.extend_from_slice(next);
    cursor
}

/// Where the page that a cursor asks for starts.
///
/// # Errors
/// [`Error::InvalidCursor`].
pub fn decode(cursor: &[u8], seed: u64) -> Result<&[u8]> {
    let invalid = |why: &str| Error::InvalidCursor { why: why.to_owned() };
    let (header, next) =
        cursor.split_first_chunk::<HEADER_BYTES>().ok_or_else(|| invalid("it is cut short"))?;
    if header[0] != FORMAT {
        return Err(invalid("it is of another format"));
    }
    if header[1..] != xxh3_64_with_seed(next, seed).to_le_bytes() {
        return Err(invalid("it was altered, or belongs to another request"));
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_goes_on_with_its_own_request_and_no_other() {
        let cursor = encode(b"next", 7);
        assert_eq!(decode(&cursor, 7).expect("its own"), b"next");
        assert_eq!(decode(&cursor, 8).expect_err("another one's").reason(), "INVALID_CURSOR");
        for at in 0..cursor.len() {
            let mut bytes = cursor.clone();
            bytes[at] ^= 0x40;
            assert!(decode(&bytes, 7).is_err(), "byte {at} was altered");
            assert!(decode(&cursor[..at], 7).is_err(), "cut at {at}");
        }
    }
}
