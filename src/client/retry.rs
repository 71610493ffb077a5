//! What the client sets of its retries, and the names that make writes safe to try again.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

use crate::resilience::retry::{Backoff, Budget};

/// No wait is longer than its longest, unless the server asks for it.
pub(super) const WAITS: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));

/// Retries are at most a tenth of the calls that succeed, after the first hundred.
pub(super) fn budget() -> Budget {
    Budget::new(10, 100)
}

/// A number nobody can foresee from others' calls: keyed by the process.
pub(super) fn random() -> u64 {
    static PROCESS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static CALL: AtomicU64 = AtomicU64::new(0);
    PROCESS.hash_one(CALL.fetch_add(1, Ordering::Relaxed))
}

/// A name for a write: 16 bytes that no other write has, as a UUID of version 4.
///
/// Of 64 names of plain random bytes one looks like a UUID of version 7. The node would read a
/// birth from it and refuse the write as too old.
pub(super) fn idempotency_key() -> Bytes {
    let mut key = [random().to_le_bytes(), random().to_le_bytes()].concat();
    key[6] = 0x40 | key[6] & 0x0f;
    key[8] = 0x80 | key[8] & 0x3f;
    key.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_writes_differ() {
        assert_ne!(idempotency_key(), idempotency_key());
    }

    /// One write of 64 was refused as expired: its random name passed for a UUID of version 7.
    #[test]
    fn no_name_says_when_it_was_born() {
        for key in std::iter::repeat_with(idempotency_key).take(1000) {
            assert_eq!((key.len(), key[6] >> 4, key[8] >> 6), (16, 4, 0b10), "{key:02x?}");
        }
    }
}
