//! When to try again: exponential backoff with full jitter, and a budget for all calls together.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;

/// The first wait is at most this.
const FIRST: Duration = Duration::from_millis(50);
/// No wait is longer, unless the server asks for it.
const LONGEST: Duration = Duration::from_secs(5);

/// Successes that pay for one retry.
const PRICE: u64 = 10;
/// Retries that can be saved up; so many are there at the start.
const SAVED_MAX: u64 = 100;

/// The waits of one call.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    tried: u32,
}

impl Backoff {
    /// The next wait: random up to a limit that doubles, and not before the server's `asked`.
    pub fn next(&mut self, asked: Option<Duration>) -> Duration {
        let limit = FIRST.saturating_mul(1 << self.tried.min(16)).min(LONGEST);
        self.tried += 1;
        let jitter = limit.mul_f64((random() >> 11) as f64 / (1_u64 << 53) as f64);
        asked.unwrap_or_default() + jitter
    }

    /// Calls that failed so far.
    pub fn tried(&self) -> u32 {
        self.tried
    }
}

/// Retries are at most a tenth of the calls that succeed, after the first hundred.
#[derive(Debug)]
pub(super) struct Budget(
    // Relaxed: a rate, not a lock; it guards no other data.
    AtomicU64,
);

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicU64::new(SAVED_MAX * PRICE))
    }
}

impl Budget {
    /// A call succeeded.
    pub fn earn(&self) {
        let add = |saved: u64| (saved < SAVED_MAX * PRICE).then(|| saved + 1);
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes one retry, if there is one.
    pub fn spend(&self) -> bool {
        let take = |saved: u64| saved.checked_sub(PRICE);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// A number nobody can foresee from others' calls: keyed by the process.
fn random() -> u64 {
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
    fn waits_are_random_below_a_limit_that_grows_to_a_cap() {
        let mut backoff = Backoff::default();
        for tried in 0..40_u32 {
            let limit = FIRST.saturating_mul(1 << tried.min(16)).min(LONGEST);
            assert!(backoff.next(None) <= limit);
        }
        assert!(backoff.next(Some(Duration::from_secs(9))) >= Duration::from_secs(9));
    }

    #[test]
    fn a_budget_that_is_spent_is_earned_back_by_successes_only() {
        let budget = Budget::default();
        let spent = std::iter::repeat_with(|| budget.spend()).take_while(|ok| *ok).count();
        assert_eq!(spent as u64, SAVED_MAX);
        for _ in 0..PRICE - 1 {
            budget.earn();
        }
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
    }

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
