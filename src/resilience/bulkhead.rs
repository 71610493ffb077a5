//! So many at once, so many in the queue, so long.
//!
//! 1. At most `open` callers are let in and at most `queue` wait; the next one is refused at once.
//!    Nobody waits longer than the queue's limit or its own deadline.
//! 2. A refusal here means that nothing was done.
//! 3. First come, first served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::deadline::Deadline;

/// Why there was no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// So many wait already.
    #[error("the queue is full")]
    Queue,
    /// It took longer than anybody may wait.
    #[error("queued for too long")]
    Wait,
    /// The caller's time was over first.
    #[error("the deadline passed in the queue")]
    Deadline,
}

/// A place inside, free again when it is dropped.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// A bound on concurrency with a bounded queue before it.
#[derive(Debug)]
pub struct Bulkhead {
    // Constant after creation.
    queue_max: usize,
    wait_max: Duration,
    // Fair.
    open: Arc<Semaphore>,
    // Relaxed: a bound, not a lock; it guards no other data.
    waiting: AtomicUsize,
}

impl Bulkhead {
    /// Room for `open` callers and `queue_max` waiting ones, each for at most `wait_max`.
    pub fn new(open: usize, queue_max: usize, wait_max: Duration) -> Self {
        let open = Arc::new(Semaphore::new(open));
        Self { queue_max, wait_max, open, waiting: AtomicUsize::new(0) }
    }

    /// A place, if one is free now.
    pub fn try_enter(&self) -> Option<Place> {
        let permit = Arc::clone(&self.open).try_acquire_owned().ok()?;
        Some(Place { _permit: permit })
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// See [`Full`].
    pub async fn enter(&self, deadline: Deadline) -> Result<Place, Full> {
        if let Some(place) = self.try_enter() {
            return Ok(place);
        }
        let _queued = Queued::join(self)?;
        let permit = Arc::clone(&self.open).acquire_owned();
        match deadline.within(self.wait_max).limit(permit).await {
            Some(permit) => Ok(Place { _permit: permit.expect("the semaphore is never closed") }),
            None if deadline.passed() => Err(Full::Deadline),
            None => Err(Full::Wait),
        }
    }

    /// How many wait now.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// A place in the queue, given back when dropped: also when the caller goes away while it waits.
struct Queued<'a>(&'a Bulkhead);

impl<'a> Queued<'a> {
    fn join(bulkhead: &'a Bulkhead) -> Result<Self, Full> {
        let place = Self(bulkhead);
        if bulkhead.waiting.fetch_add(1, Ordering::Relaxed) >= bulkhead.queue_max {
            return Err(Full::Queue);
        }
        Ok(place)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_full_queue_refuses_at_once_and_a_left_place_is_free_again() {
        let bulkhead = Bulkhead::new(1, 1, LONG);
        let inside = bulkhead.enter(Deadline::NEVER).await.expect("open");
        {
            let mut waiting = Box::pin(bulkhead.enter(Deadline::NEVER));
            assert!(Deadline::after(Duration::ZERO).limit(&mut waiting).await.is_none());
            assert_eq!(bulkhead.waiting(), 1);
            assert_eq!(bulkhead.enter(Deadline::NEVER).await.err(), Some(Full::Queue));
        }
        // The one that waited went away: its place in the queue is free.
        let late = bulkhead.enter(Deadline::after(Duration::ZERO)).await;
        assert_eq!(late.err(), Some(Full::Deadline));
        assert!(bulkhead.try_enter().is_none());
        drop(inside);
        assert!(bulkhead.try_enter().is_some());
        assert_eq!(bulkhead.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_queue_allows() {
        let bulkhead = Bulkhead::new(0, 1, Duration::from_secs(2));
        let began = tokio::time::Instant::now();
        assert_eq!(bulkhead.enter(Deadline::after(LONG)).await.err(), Some(Full::Wait));
        assert_eq!(began.elapsed().as_secs(), 2);
    }
}
