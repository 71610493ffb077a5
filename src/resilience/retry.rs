//! When to try again: exponential backoff with full jitter, and a budget for all calls together.
//!
//! 1. No wait is longer than the longest that is set, plus what the other side asked for.
//! 2. Over time the retries are at most one for every `price` calls that succeeded: when everything
//!    fails, everything is tried once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How waits grow.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// The first wait is below `first`, the limit doubles up to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// The limit of the wait after so many failures.
    fn limit(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.longest)
    }

    /// The wait after `failures` failures, 1 for the first: a part of the limit that `random`
    /// chooses, all parts alike.
    pub fn wait(&self, failures: u32, random: u64) -> Duration {
        // 53 bits: all that a float holds.
        self.limit(failures).mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// How many retries all calls together have.
#[derive(Debug)]
pub struct Budget {
    price: u64,
    saved_max: u64,
    // Relaxed: a rate, not a lock; it guards no other data.
    saved: AtomicU64,
}

impl Budget {
    /// One retry for every `price` successes, of which `retries_max` can be saved up. So many are
    /// there at the start.
    pub const fn new(price: u64, retries_max: u64) -> Self {
        let saved_max = price.saturating_mul(retries_max);
        Self { price, saved_max, saved: AtomicU64::new(saved_max) }
    }

    /// A call succeeded.
    pub fn earn(&self) {
        let add = |saved: u64| (saved < self.saved_max).then(|| saved + 1);
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Takes one retry, if there is one.
    pub fn spend(&self) -> bool {
        let take = |saved: u64| saved.checked_sub(self.price);
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_random_below_a_limit_that_doubles_to_a_cap() {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5));
        let longest = |failures| backoff.wait(failures, u64::MAX).as_secs_f64();
        for (failures, limit) in [(1, 0.05), (2, 0.1), (3, 0.2), (8, 5.0), (u32::MAX, 5.0)] {
            assert!((longest(failures) - limit).abs() < 1e-6, "{failures}");
            assert_eq!(backoff.wait(failures, 0), Duration::ZERO);
        }
        let half = backoff.wait(2, u64::MAX / 2).as_secs_f64();
        assert!((half - 0.05).abs() < 1e-6, "{half}");
    }

    #[test]
    fn a_budget_that_is_spent_is_earned_back_by_successes_only() {
        let budget = Budget::new(10, 100);
        let spent = std::iter::repeat_with(|| budget.spend()).take_while(|ok| *ok).count();
        assert_eq!(spent, 100);
        (0..9).for_each(|_| budget.earn());
        assert!(!budget.spend());
        budget.earn();
        assert!(budget.spend());
        assert!(!budget.spend());
        (0..100_000).for_each(|_| budget.earn());
        let saved = std::iter::repeat_with(|| budget.spend()).take_while(|ok| *ok).count();
        assert_eq!(saved, 100, "no more than that is saved up");
    }
}
