//! When to try again: exponential backoff with full jitter, and a budget for all calls together.
//!
//! 1. No wait is longer than the longest that is set, plus what the other side asked for.
//! 2. Over time the retries are at most one for every `price` calls that succeeded: when everything
//!    fails, everything is tried once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::deadline::Deadline;

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

/// How one call is tried again.
#[derive(Clone, Debug)]
pub struct Retry<'a> {
    backoff: Backoff,
    retries_max: u32,
    deadline: Deadline,
    budget: &'a Budget,
    failures: u32,
}

impl<'a> Retry<'a> {
    /// At most `retries_max` tries after the first, none of which begins after `deadline`.
    pub fn new(backoff: Backoff, retries_max: u32, deadline: Deadline, budget: &'a Budget) -> Self {
        Self { backoff, retries_max, deadline, budget, failures: 0 }
    }

    /// A try succeeded.
    pub fn succeeded(self) {
        self.budget.earn();
    }

    /// A try failed. `least` is the least wait before another, none if that is not safe or of no
    /// use; `random` is any number. Returns how long to wait, or none if there is no other try.
    pub fn failed(&mut self, least: Option<Duration>, random: u64) -> Option<Duration> {
        self.failures += 1;
        let least = least.filter(|_| self.failures <= self.retries_max)?;
        let wait = least.saturating_add(self.backoff.wait(self.failures, random));
        let late = self.deadline.remaining().is_some_and(|left| left <= wait);
        (!late && self.budget.spend()).then_some(wait)
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

    fn retry(budget: &Budget) -> Retry<'_> {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        Retry::new(backoff, 3, Deadline::after(Duration::from_secs(10)), budget)
    }

    /// How often a call is made that always fails.
    async fn tries(mut retry: Retry<'_>, least: Option<Duration>) -> u32 {
        let mut tries = 1;
        while let Some(wait) = retry.failed(least, u64::MAX) {
            tokio::time::sleep(wait).await;
            tries += 1;
        }
        tries
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_tried_again_while_that_is_safe_and_there_is_time_and_budget() {
        let budget = Budget::new(10, 100);
        let soon = Some(Duration::ZERO);
        assert_eq!(tries(retry(&budget), soon).await, 4);
        assert_eq!(tries(retry(&budget), None).await, 1, "not safe");
        let later = Some(Duration::from_secs(6));
        assert_eq!(tries(retry(&budget), later).await, 2, "no time for a third");
        let small = Budget::new(2, 1);
        assert_eq!(tries(retry(&small), soon).await, 2, "no budget");
        (0..2).for_each(|_| retry(&small).succeeded());
        assert_eq!(tries(retry(&small), soon).await, 2, "it is earned back");
    }
}
