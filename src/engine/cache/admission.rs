//! Whether a row that a reader found in the tables is worth an entry.
//!
//! An entry costs its reader more than finding a row once more in mapped memory, and memory that
//! the page cache could use. So a row gets one if finding it was dear (joined of several records,
//! decompressed), or if its key was missed before not long ago. How long ago depends on where the
//! tables are:
//!
//! - **in memory**, where reads are cheap: then an entry is worth its cost for hot keys alone, and
//!   the last few missed keys (a [`RECENT_PART`]-th of what the cache can remember) are looked
//!   through;
//! - **on disk**, where they are dear: then every second read of a key that the cache could have
//!   held is one too many, and all that the cache remembers is looked through.
//!
//! Which of the two it is, reads tell: one of [`SAMPLED`] is timed, and the mean of [`ROUND`] of
//! these decides until the next round. Tables that were just written count as dear too, because
//! their first reads check and map them. Wrong answers cost time, nothing else.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// One read of so many is timed: a clock costs a tenth of a read.
const SAMPLED: u64 = 16;
/// Timed reads after which the answer is found anew.
const ROUND: u64 = 1024;
/// From this mean on, reads are dear. A read from memory must stay below it even with the call that
/// fetches a block, which dear reads make: else they would be dear ever after.
const DEAR_NS: u64 = 4_000;
/// No read counts for more, or a busy machine, which takes the processor away for milliseconds in
/// the middle of a few, would look like a disk. One from a disk in twenty is still enough.
const READ_NS_MAX: u64 = 20 * DEAR_NS;
/// The part of the remembered keys that is looked through while reads are cheap.
pub(super) const RECENT_PART: usize = 16;

/// See the module page. Relaxed throughout: figures that order nothing.
#[derive(Debug, Default)]
pub struct Admission {
    timed: AtomicU64,
    total_ns: AtomicU64,
    is_dear: AtomicBool,
}

impl Admission {
    /// Whether a read of the key with this hash is to be timed. Which keys these are is chance.
    #[inline]
    pub fn is_timed(&self, hash: u64) -> bool {
        (hash >> 20).is_multiple_of(SAMPLED)
    }

    /// Takes note of how long a read of the tables took, in nanoseconds.
    pub fn note(&self, elapsed_ns: u64) {
        self.total_ns.fetch_add(elapsed_ns.min(READ_NS_MAX), Ordering::Relaxed);
        if self.timed.fetch_add(1, Ordering::Relaxed) % ROUND == ROUND - 1 {
            let mean_ns = self.total_ns.swap(0, Ordering::Relaxed) / ROUND;
            self.is_dear.store(mean_ns >= DEAR_NS, Ordering::Relaxed);
        }
    }

    /// Whether reads of the tables are dear, as far as was seen.
    #[inline]
    pub fn is_dear(&self) -> bool {
        self.is_dear.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One read in twenty from a disk makes reads dear until a round without, and a stolen
    /// processor does not.
    #[test]
    fn reads_are_dear_for_as_long_as_a_disk_is_seen() {
        let admission = Admission::default();
        let round = |slow: u64, slow_ns: u64| {
            (0..ROUND).for_each(|i| admission.note(if i < slow { slow_ns } else { 300 }));
            admission.is_dear()
        };
        assert!(!round(0, 0));
        assert!(!round(4, 50_000_000), "the processor was taken away four times");
        assert!(round(ROUND / 20, 80_000));
        assert!(!round(0, 0), "reads of an earlier round do not count again");
    }
}
