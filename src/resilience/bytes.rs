//! How many bytes may wait at once: what is taken is given back when its charge is dropped.
//!
//! 1. Charges together never exceed the limit, but for one that is alone: whatever its size, it
//!    would otherwise never get through.
//! 2. It never waits: what does not fit is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A bound on bytes that wait. Clones share it.
#[derive(Clone, Debug)]
pub struct ByteBudget(Arc<Bytes>);

#[derive(Debug)]
struct Bytes {
    limit: usize,
    // Relaxed: it guards no other memory.
    used: AtomicUsize,
}

/// Bytes that wait; given back when it is dropped.
#[derive(Debug)]
#[must_use = "dropped, it gives its bytes back"]
pub struct Charge {
    budget: ByteBudget,
    bytes: usize,
}

impl ByteBudget {
    /// A budget of `limit` bytes; of 0: one charge at a time.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Bytes { limit, used: AtomicUsize::new(0) }))
    }

    /// Takes `bytes`; `None`: there is no room.
    pub fn take(&self, bytes: usize) -> Option<Charge> {
        let more = |used: usize| {
            let after = used.saturating_add(bytes);
            (used == 0 || after <= self.0.limit).then_some(after)
        };
        let taken = self.0.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        taken.ok().map(|_| Charge { budget: self.clone(), bytes })
    }

    /// Bytes that wait now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The bound, in bytes.
    pub fn limit(&self) -> usize {
        self.0.limit
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_is_refused_until_something_is_given_back() {
        let budget = ByteBudget::new(10);
        let six = budget.take(6).expect("room");
        assert!(budget.take(5).is_none());
        let four = budget.take(4).expect("just fits");
        assert_eq!(budget.used(), 10);
        drop(six);
        assert!(budget.take(7).is_none());
        let six = budget.take(6).expect("given back");
        drop((six, four));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn one_that_is_alone_passes_whatever_its_size() {
        let budget = ByteBudget::new(10);
        let large = budget.take(100).expect("nothing else waits");
        assert!(budget.take(1).is_none());
        drop(large);
        assert!(budget.take(1).is_some());
        let none = ByteBudget::new(0);
        let one = none.take(5).expect("one at a time");
        assert!(none.take(5).is_none());
        drop(one);
        assert!(none.take(5).is_some());
    }
}
