//! How fast compaction may write.
//!
//! A compaction that always runs at full speed takes the disk and a core from clients in bursts;
//! one that is always slow falls behind until writers stall. So the pace follows the debt: up to
//! the free debt the configured rate holds, beyond it the rate grows with the debt, and at four
//! times the free debt there is no limit.
//!
//! A token bucket of a tenth of a second. It never sleeps and reads no clock: it answers how long
//! to wait, and the caller waits where it can be stopped.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::engine::scale::scale;

/// From this multiple of the free debt on nothing is held back.
const UNLIMITED_FROM: u64 = 4;
const MICROS_PER_SECOND: u64 = 1_000_000;
/// A bucket holds the bytes of this part of a second.
const BURST_PARTS: u64 = 10;

/// See the module page. Shared by all compaction threads.
#[derive(Debug)]
pub struct Pacer {
    // Constant after construction.
    /// Bytes a second when not behind; 0 is no limit.
    rate: u64,
    free_debt: u64,

    /// Bytes compaction is behind. Relaxed: an estimate, taken anew with each install.
    debt: AtomicU64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug, Default)]
struct Bucket {
    /// Bytes that may be written at once; negative after a write that was larger.
    tokens: i64,
    at_us: u64,
}

impl Pacer {
    /// A pacer of `bytes_per_second` (0: no limit) while the debt is at most `free_debt` bytes.
    pub fn new(bytes_per_second: u64, free_debt: u64) -> Self {
        let rate = bytes_per_second;
        Self {
            rate,
            free_debt: free_debt.max(1),
            debt: AtomicU64::new(0),
            bucket: Mutex::default(),
        }
    }

    /// Tells how many bytes compaction is behind.
    pub fn set_debt(&self, bytes: u64) {
        self.debt.store(bytes, Ordering::Relaxed);
    }

    /// Takes `bytes` at time `now_us`, which never goes back by much, and tells for how many
    /// microseconds the caller has to wait before it goes on.
    pub fn take(&self, bytes: u64, now_us: u64) -> u64 {
        let Some(rate) = self.rate_now() else { return 0 };
        let mut bucket = self.bucket.lock();
        let burst = to_i64((rate / BURST_PARTS).max(1));
        let elapsed = now_us.saturating_sub(bucket.at_us);
        let earned = to_i64(scale(rate, elapsed, MICROS_PER_SECOND));
        // Time that earned less than a byte stays to be counted.
        if earned > 0 || bucket.at_us == 0 {
            bucket.at_us = bucket.at_us.max(now_us);
        }
        bucket.tokens = bucket.tokens.saturating_add(earned).min(burst);
        bucket.tokens = bucket.tokens.saturating_sub(to_i64(bytes));
        scale(bucket.tokens.min(0).unsigned_abs(), MICROS_PER_SECOND, rate)
    }

    /// Bytes a second at the present debt; `None` is no limit.
    fn rate_now(&self) -> Option<u64> {
        let debt = self.debt.load(Ordering::Relaxed);
        if self.rate == 0 || debt >= self.free_debt.saturating_mul(UNLIMITED_FROM) {
            return None;
        }
        Some(scale(self.rate, debt.max(self.free_debt), self.free_debt))
    }
}

fn to_i64(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes `chunks` pieces of 10 bytes, waiting as told; the seconds it takes.
    fn seconds(pacer: &Pacer, chunks: u64) -> u64 {
        let mut now_us = MICROS_PER_SECOND;
        for _ in 0..chunks {
            now_us += pacer.take(10, now_us);
        }
        (now_us - MICROS_PER_SECOND) / MICROS_PER_SECOND
    }

    /// The rate holds while not behind, grows with the debt, and ends at four times the free debt.
    #[test]
    fn pace_follows_the_debt() {
        for (debt, expected) in [(0, 99), (500, 99), (1_000, 99), (2_000, 49), (4_000, 0)] {
            let pacer = Pacer::new(100, 1_000);
            pacer.set_debt(debt);
            assert_eq!(seconds(&pacer, 1_000), expected, "debt {debt}");
        }
        assert_eq!(seconds(&Pacer::new(0, 1_000), 1_000), 0);
    }

    /// Idle time buys a tenth of a second of writing, not more; a clock that goes back waits no
    /// longer than one that stands still.
    #[test]
    fn burst_is_bounded() {
        let pacer = Pacer::new(1_000, 1);
        assert_eq!(pacer.take(100, 3_600 * MICROS_PER_SECOND), 0);
        assert_eq!(pacer.take(100, 3_600 * MICROS_PER_SECOND), 100_000);
        assert_eq!(pacer.take(100, 1_800 * MICROS_PER_SECOND), 200_000);
    }

    /// No value of rate, debt, bytes or time overflows.
    #[test]
    fn extremes_do_not_overflow() {
        for rate in [1, u64::MAX] {
            for debt in [0, u64::MAX / 4, u64::MAX] {
                let pacer = Pacer::new(rate, u64::MAX / 2);
                pacer.set_debt(debt);
                for bytes in [0, 1, u64::MAX] {
                    for now_us in [0, 1, u64::MAX] {
                        let _ = pacer.take(bytes, now_us);
                    }
                }
            }
        }
    }
}
