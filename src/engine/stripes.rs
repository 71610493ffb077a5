//! Locks of keys, shared by hash.
//!
//! A writer holds the stripe of each of its keys from its read (or its log record) to the end of
//! its insert into the memtable. That makes a read-modify-write of a key atomic and keeps the
//! order of a key's records in the log and in memory the same. It is not held across a sync.

use parking_lot::{Mutex, MutexGuard};

/// Power of two; a thousand stripes and a few dozen writers seldom meet by chance.
const STRIPES: usize = 1024;

/// On a cache line of its own, so that neighbours do not slow each other down.
#[repr(align(64))]
struct Stripe(Mutex<()>);

/// See the module page.
pub struct Stripes {
    stripes: Box<[Stripe]>,
}

/// Held locks; released on drop.
pub enum Held<'a> {
    /// Of one key, the common case, without an allocation.
    One(#[expect(dead_code, reason = "held, not read")] MutexGuard<'a, ()>),
    /// Of several keys.
    Many(#[expect(dead_code, reason = "held, not read")] Vec<MutexGuard<'a, ()>>),
}

impl Stripes {
    pub fn new() -> Self {
        Self { stripes: (0..STRIPES).map(|_| Stripe(Mutex::new(()))).collect() }
    }

    fn index(hash: u64) -> usize {
        // The low bits: the high ones choose shards and filter lines.
        hash as usize & (STRIPES - 1)
    }

    /// Locks the stripes of all hashes, each once and in ascending order, so that no two callers
    /// can wait for each other.
    pub fn lock(&self, hashes: &[u64]) -> Held<'_> {
        if let [hash] = hashes {
            return Held::One(self.stripes[Self::index(*hash)].0.lock());
        }
        let mut indexes: Vec<usize> = hashes.iter().map(|hash| Self::index(*hash)).collect();
        indexes.sort_unstable();
        indexes.dedup();
        Held::Many(indexes.into_iter().map(|index| self.stripes[index].0.lock()).collect())
    }

    /// Waits until every holder of a stripe at the time of the call has let go of it.
    pub fn barrier(&self) {
        for stripe in &self.stripes {
            drop(stripe.0.lock());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two batches that name the same stripes in opposite order, and one stripe twice.
    #[test]
    fn overlapping_batches_do_not_deadlock() {
        let stripes = Stripes::new();
        std::thread::scope(|scope| {
            for order in [[1, 2, 3, 1], [3, 2, 1, 1 + STRIPES as u64]] {
                let stripes = &stripes;
                scope.spawn(move || (0..5_000).for_each(|_| drop(stripes.lock(&order))));
            }
        });
    }
}
