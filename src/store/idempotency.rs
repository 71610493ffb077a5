//! Idempotency keys: the same write, however often it is sent.
//!
//! A key is any 1 to 64 bytes that the client chose for one write. Its hash with tenant and row key
//! is the write's [`Token`]; a row knows the tokens it has seen, so a retry through any node finds
//! itself there. Tokens go with their row, and not before their window is over. From a row that is
//! written on they do not go (but see [`forget`](crate::causality::forget)): a second write under a
//! token would be dead wherever the first is known to be.
//!
//! A key that is a UUID of version 7 in its 36 characters says when it was born. Such a key is
//! refused when it is older than the window, so a retry is safe at any time: it is either
//! recognised or refused. Any other key is opaque: a retry is the same write within the window and,
//! after it, for as long as the row is there; then it is a new one. The 16 bytes of a UUID are
//! opaque too: one in 64 keys of random bytes would pass for a UUID of version 7, and be refused
//! for a birth that never was.

use xxhash_rust::xxh3::xxh3_128;

use super::error::{Error, Result};
use super::identity::uuid;
use super::limits::Limits;
use crate::causality::Token;

/// The token of `idempotency_key` for the row at `engine_key` (which names tenant and key).
pub(super) fn token_of(engine_key: &[u8], idempotency_key: &[u8]) -> Token {
    let mut bytes = Vec::with_capacity(8 + engine_key.len() + idempotency_key.len());
    bytes.extend_from_slice(&(engine_key.len() as u64).to_le_bytes());
    bytes.extend_from_slice(engine_key);
    bytes.extend_from_slice(idempotency_key);
    Token::new(xxh3_128(&bytes))
}

/// Refuses a key that was born too long ago, or further in the future than clocks may differ.
/// Returns when it was born, in wall-clock milliseconds, if it says so.
///
/// # Errors
/// [`Error::InvalidIdempotencyKey`], [`Error::TokenExpired`], [`Error::InvalidArgument`].
pub(super) fn check(idempotency_key: &[u8], now_ms: u64, limits: &Limits) -> Result<Option<u64>> {
    limits.check_idempotency_key(idempotency_key)?;
    let Some(born_ms) = birth_ms(idempotency_key) else { return Ok(None) };
    let ahead_ms = born_ms.saturating_sub(now_ms);
    if ahead_ms > limits.clock_skew_ms_max {
        let limit_ms = limits.clock_skew_ms_max;
        let why = format!("it was born {ahead_ms} ms in the future, the limit is {limit_ms} ms");
        return Err(Error::InvalidArgument { what: "idempotency key", why });
    }
    limits.check_token_age(now_ms.saturating_sub(born_ms))?;
    Ok(Some(born_ms))
}

/// When a key was born, in wall-clock milliseconds; `None` for an opaque key.
fn birth_ms(key: &[u8]) -> Option<u64> {
    let uuid = if key.len() == 36 { uuid::parse(key)?.to_be_bytes() } else { return None };
    let is_version_7 = uuid[6] >> 4 == 7 && uuid[8] >> 6 == 0b10;
    is_version_7.then(|| uuid[..6].iter().fold(0, |ms, &byte| ms << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BORN_MS: u64 = 0x0199_0000_0000;
    const TEXT: &[u8] = b"01990000-0000-7abc-8def-0123456789ab";

    fn limits() -> Limits {
        Limits { token_window_ms: 100_000, clock_skew_ms_max: 2_000, ..Limits::default() }
    }

    #[test]
    fn a_uuid_of_version_7_says_when_it_was_born() {
        assert_eq!(birth_ms(TEXT), Some(BORN_MS));
        assert_eq!(birth_ms(b"01990000-0000-4abc-8def-0123456789ab"), None, "of version 4");
        assert_eq!(birth_ms(b"01990000-0000-7abc-8def_0123456789ab"), None);
        assert_eq!(birth_ms(b"order-17"), None);
    }

    /// Clients draw keys by chance, and chance looks like a UUID now and then.
    #[test]
    fn random_bytes_have_no_birth() {
        let bytes = uuid::parse(TEXT).expect("a UUID").to_be_bytes();
        assert_eq!(birth_ms(&bytes), None);
        check(&bytes, 0, &limits()).expect("opaque");
    }

    /// A key older than the window may have been forgotten: taken again, it would be a second
    /// write. A key from the future would be forgotten too early.
    #[test]
    fn a_key_outside_its_window_is_refused() {
        let oldest = BORN_MS + 100_000 - 2_000;
        assert!(check(TEXT, BORN_MS, &limits()).is_ok());
        assert!(check(TEXT, oldest, &limits()).is_ok());
        let late = check(TEXT, oldest + 1, &limits());
        assert!(matches!(late, Err(Error::TokenExpired { age_ms: 98_001, limit_ms: 98_000 })));
        assert!(check(TEXT, BORN_MS - 2_000, &limits()).is_ok());
        let early = check(TEXT, BORN_MS - 2_001, &limits());
        assert!(matches!(early, Err(Error::InvalidArgument { .. })));
        assert!(check(b"opaque", u64::MAX, &limits()).is_ok());
        assert!(check(b"", 0, &limits()).is_err() && check(&[0; 65], 0, &limits()).is_err());
    }

    #[test]
    fn a_token_belongs_to_one_row() {
        assert_ne!(token_of(b"ab", b"c"), token_of(b"a", b"bc"));
        assert_ne!(token_of(b"a", b"k"), token_of(b"b", b"k"));
        assert_eq!(token_of(b"a", b"k"), token_of(b"a", b"k"));
    }
}
