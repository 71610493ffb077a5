//! The hybrid logical clock.
//!
//! A time is 48 bits of wall-clock milliseconds and 16 bits of counter in one `u64`, so times
//! compare as numbers. The clock never goes back, not even across a crash: an upper bound of
//! everything it may mint, the *lease*, is made durable before it is used, and a restart begins
//! above it.
//!
//! This type mints and says when the lease must be extended; it writes no file. The caller makes
//! [`LeaseExhausted::wanted`] durable, calls [`HybridClock::extend`] and mints again.
//!
//! # Invariants
//! 1. No time is minted twice, and each is above all minted or observed before it, also above what
//!    was observed beyond the lease: that asks for a longer one.
//! 2. No time at or above the lease is minted.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far ahead a lease is taken, in milliseconds.
pub const LEASE_MS: u64 = 10_000;

/// Bits of the counter below the milliseconds.
pub const COUNTER_BITS: u32 = 16;

/// The time at which wall-clock millisecond `ms` begins. Saturates after the year 10000.
pub const fn time_of_ms(ms: u64) -> u64 {
    if ms >> (64 - COUNTER_BITS) == 0 { ms << COUNTER_BITS } else { u64::MAX }
}

/// The wall-clock millisecond in which `time` lies.
pub const fn ms_of_time(time: u64) -> u64 {
    time >> COUNTER_BITS
}

/// Whether a last-write-wins version of this time was written under an idempotency key: see
/// [`HybridClock::next_lww`].
pub const fn is_tokened(time: u64) -> bool {
    time & 1 == 1
}

/// The next time would reach the durable lease. Nothing was minted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the clock's lease ends at {lease}, a lease up to {wanted} is needed")]
pub struct LeaseExhausted {
    /// The lease that holds.
    pub lease: u64,
    /// The lease to make durable.
    pub wanted: u64,
}

/// The clock of one node. All calls may run at the same time.
#[derive(Debug)]
pub struct HybridClock {
    /// The last time minted, or raised to.
    last: AtomicU64,
    /// The greatest time observed, wherever the lease ends.
    seen: AtomicU64,
    lease: AtomicU64,
}

impl HybridClock {
    /// A clock that starts above `lease`, the bound found in the data directory (0 in an empty
    /// one), and above `now_ms`. It mints nothing before the first [`extend`](Self::extend).
    pub fn new(lease: u64, now_ms: u64) -> Self {
        let last = lease.max(time_of_ms(now_ms)).min(u64::MAX - 1);
        let seen = AtomicU64::new(0);
        Self { last: AtomicU64::new(last), seen, lease: AtomicU64::new(lease) }
    }

    /// A new time above `above` and above every time minted or observed so far.
    ///
    /// # Errors
    /// [`LeaseExhausted`] if it would reach the lease.
    pub fn next(&self, now_ms: u64, above: u64) -> Result<u64, LeaseExhausted> {
        self.next_with(now_ms, above, |time| time)
    }

    /// [`HybridClock::next`] for a last-write-wins version: odd if it is written under an
    /// idempotency key, else even. Two nodes may mint the same time, and the row names a version
    /// that has a token by its time alone; so one that has none is not taken for it.
    ///
    /// # Errors
    /// As [`HybridClock::next`].
    pub fn next_lww(
        &self,
        now_ms: u64,
        above: u64,
        has_token: bool,
    ) -> Result<u64, LeaseExhausted> {
        let fits = |time| is_tokened(time) == has_token;
        self.next_with(now_ms, above, |time| if fits(time) { time } else { time.saturating_add(1) })
    }

    /// A new time; `raise` makes a candidate the one or a later one.
    fn next_with(
        &self,
        now_ms: u64,
        above: u64,
        raise: impl Fn(u64) -> u64,
    ) -> Result<u64, LeaseExhausted> {
        let above = above.max(self.seen.load(Ordering::Acquire));
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let lease = self.lease.load(Ordering::Acquire);
            let next = raise(last.max(above).saturating_add(1).max(time_of_ms(now_ms)));
            if next >= lease {
                return Err(LeaseExhausted { lease, wanted: lease_above(next) });
            }
            match self.last.compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(next),
                Err(found) => last = found,
            }
        }
    }

    /// Takes note of a time seen elsewhere, so that later ones are above it. It waits for no file:
    /// the next one to mint asks for the lease that a time beyond it needs.
    ///
    /// The clock follows whatever it is shown: a time that cannot be is the caller's to keep away.
    pub fn observe(&self, time: u64) {
        // Mostly an old one: a read costs less than a write to a shared line.
        if self.seen.load(Ordering::Relaxed) < time {
            self.seen.fetch_max(time, Ordering::AcqRel);
        }
    }

    /// Raises the clock to `time` at least: a fence.
    ///
    /// # Errors
    /// [`LeaseExhausted`] if `time` reaches the lease; the clock is then not changed.
    pub fn raise_to(&self, time: u64) -> Result<(), LeaseExhausted> {
        let lease = self.lease.load(Ordering::Acquire);
        if time >= lease {
            return Err(LeaseExhausted { lease, wanted: lease_above(time) });
        }
        self.last.fetch_max(time, Ordering::AcqRel);
        Ok(())
    }

    /// The lease to make durable soon, if less than half of one is left at `now_ms`. Asking early
    /// keeps writers from waiting for the file.
    pub fn lease_wanted(&self, now_ms: u64) -> Option<u64> {
        let now = time_of_ms(now_ms).max(self.last());
        let half = time_of_ms(LEASE_MS / 2);
        (self.lease().saturating_sub(now) < half).then(|| lease_above(now))
    }

    /// Lets the clock mint below `lease`, which the caller has made durable. Never shortens it.
    pub fn extend(&self, lease: u64) {
        self.lease.fetch_max(lease, Ordering::AcqRel);
    }

    /// The last time minted or observed.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire).max(self.seen.load(Ordering::Acquire))
    }

    /// The lease that holds.
    pub fn lease(&self) -> u64 {
        self.lease.load(Ordering::Acquire)
    }
}

/// A lease that begins at `time`. The greatest `u64` is no lease: a clock that far has broken.
pub fn lease_above(time: u64) -> u64 {
    time.saturating_add(time_of_ms(LEASE_MS)).min(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leased(now_ms: u64) -> HybridClock {
        let clock = HybridClock::new(0, now_ms);
        clock.extend(clock.next(now_ms, 0).expect_err("no lease yet").wanted);
        clock
    }

    #[test]
    fn never_mints_at_or_beyond_the_durable_lease() {
        let clock = leased(1_000);
        let lease = clock.lease();
        assert_eq!(ms_of_time(lease), 11_000);
        assert!(clock.next(10_999, 0).expect("below the lease") < lease);
        let refused = clock.next(11_001, 0).expect_err("at the lease");
        assert_eq!(refused.lease, lease);
        assert!(clock.last() < lease, "a refusal moves nothing");
        clock.extend(refused.wanted);
        assert!(clock.next(11_001, 0).expect("extended") >= lease);
    }

    #[test]
    fn a_restart_mints_above_everything_even_with_the_wall_clock_set_back() {
        let before = leased(100_000);
        let minted = before.next(105_000, 0).expect("leased");
        let after = HybridClock::new(before.lease(), 50);
        after.extend(after.next(50, 0).expect_err("the old lease is used up").wanted);
        assert!(after.next(50, 0).expect("leased") > minted);
    }

    #[test]
    fn times_rise_when_the_wall_clock_stands_still_or_goes_back() {
        let clock = leased(1_000);
        let mut last = 0;
        for now_ms in [1_000, 1_000, 900, 1_001, 5] {
            let next = clock.next(now_ms, 0).expect("leased");
            assert!(next > last);
            last = next;
        }
        assert!(clock.next(5, last + 77).expect("leased") > last + 77);
    }

    #[test]
    fn a_last_write_wins_time_says_whether_it_has_a_token() {
        let clock = leased(1_000);
        let mut last = 0;
        for has_token in [true, true, false, false, true, false] {
            let next = clock.next_lww(1_000, 0, has_token).expect("leased");
            assert!(next > last && is_tokened(next) == has_token);
            last = next;
        }
        assert!(clock.next_lww(1_000, u64::MAX, false).is_err());
    }

    #[test]
    fn an_observed_time_beyond_the_lease_asks_for_a_longer_one() {
        let clock = leased(1_000);
        let seen = clock.lease() + time_of_ms(5_000);
        clock.observe(seen);
        clock.observe(seen - 1);
        assert_eq!(clock.last(), seen);
        let refused = clock.next(1_000, 0).expect_err("beyond the lease");
        assert!(refused.wanted > seen);
        assert_eq!(clock.next(1_000, 0), Err(refused), "a refusal moves nothing");
        clock.extend(refused.wanted);
        assert_eq!(clock.next(1_000, 0), Ok(seen + 1));
    }

    #[test]
    fn there_is_no_wrap_at_the_end_of_time() {
        let clock = leased(1_000);
        assert!(clock.raise_to(clock.lease()).is_err());
        assert!(clock.next(1_000, u64::MAX).is_err());
        clock.observe(u64::MAX);
        assert!(clock.next(1_000, 0).is_err());
        clock.extend(u64::MAX - 1);
        assert!(clock.next(1_000, 0).is_err());
    }

    proptest! {
        /// Invariants 1 and 2, whatever is observed, minted and raised, however late the leases.
        #[test]
        fn each_time_is_above_all_before_it_and_below_the_lease(
            steps in prop::collection::vec((0..4_u8, 0..60_000_u64, 0..60_000_u64), 1..40),
        ) {
            let clock = HybridClock::new(0, 1_000);
            let mut greatest = 0;
            for (what, now_ms, ms) in steps {
                match what {
                    0 => {
                        clock.observe(time_of_ms(ms));
                        greatest = greatest.max(time_of_ms(ms));
                    }
                    1 => match clock.raise_to(time_of_ms(ms)) {
                        Ok(()) => greatest = greatest.max(time_of_ms(ms)),
                        Err(refused) => clock.extend(refused.wanted),
                    },
                    _ => match clock.next(now_ms, 0) {
                        Ok(time) => {
                            prop_assert!(time > greatest && time < clock.lease());
                            greatest = time;
                        }
                        Err(refused) => {
                            prop_assert!(refused.wanted > greatest);
                            clock.extend(refused.wanted);
                        }
                    },
                }
                prop_assert!(clock.last() >= greatest);
            }
        }
    }

    #[test]
    fn the_lease_is_wanted_before_it_is_needed() {
        let clock = leased(1_000);
        assert_eq!(clock.lease_wanted(2_000), None);
        let wanted = clock.lease_wanted(7_000).expect("less than half is left");
        assert!(wanted > clock.lease() && clock.next(7_000, 0).is_ok());
    }

    #[test]
    fn concurrent_minting_never_repeats() {
        let clock = leased(1_000);
        let mut all: Vec<u64> = std::thread::scope(|scope| {
            let mint = || (0..1_000).map(|_| clock.next(1_000, 0).expect("leased")).collect();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(mint)).collect();
            threads.into_iter().flat_map(|t| -> Vec<u64> { t.join().expect("no panic") }).collect()
        });
        all.sort_unstable();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
