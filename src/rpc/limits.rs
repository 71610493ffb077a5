//! How much goes on at once: a gate with a bounded queue, and admission by the store's pressure.
//!
//! # Invariants
//! 1. A gate lets at most `open` callers through and at most `queue` wait; the next one is refused
//!    at once. Nobody waits longer than the queue's limit or the own deadline.
//! 2. A refusal here means that nothing was done.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::deadline::Deadline;
use super::status::Problem;

/// Pressure from which writes are delayed.
const DELAY_FROM: f64 = 0.5;
/// Pressure at which writes are refused.
pub(super) const REFUSE_AT: f64 = 1.0;

/// A bound on concurrency with a bounded queue before it.
#[derive(Debug)]
pub struct Gate {
    // Constant after creation.
    name: &'static str,
    queue_max: usize,
    wait_max: Duration,
    // Fair: first come, first served.
    open: Arc<Semaphore>,
    // Relaxed: a bound, not a lock; it guards no other data.
    waiting: AtomicUsize,
}

impl Gate {
    /// A gate for `open` callers and `queue_max` waiting ones, each for at most `wait_max`. `name`
    /// stands in the message of a refusal.
    pub fn new(name: &'static str, open: usize, queue_max: usize, wait_max: Duration) -> Self {
        Self {
            name,
            queue_max,
            wait_max,
            open: Arc::new(Semaphore::new(open)),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Waits for a place. The place is free again when the permit is dropped.
    ///
    /// # Errors
    /// TOO_MANY_REQUESTS if the queue is full or the wait is over, DEADLINE_EXCEEDED if the
    /// deadline came first.
    pub async fn enter(&self, deadline: Deadline) -> Result<OwnedSemaphorePermit, Problem> {
        if let Ok(permit) = Arc::clone(&self.open).try_acquire_owned() {
            return Ok(permit);
        }
        let _place = Waiting::join(self)?;
        match deadline.within(self.wait_max).limit(Arc::clone(&self.open).acquire_owned()).await {
            Some(permit) => Ok(permit.expect("the semaphore is never closed")),
            None if deadline.passed() => {
                Err(Problem::deadline(format!("still queued for {}", self.name)))
            }
            None => Err(self.full("queued for too long")),
        }
    }

    fn full(&self, why: &str) -> Problem {
        let message = format!("too many requests at once for {}: {why}", self.name);
        Problem::overloaded("TOO_MANY_REQUESTS", message)
    }
}

/// A place in the queue, given back when dropped: also when the caller goes away while it waits.
struct Waiting<'a>(&'a Gate);

impl<'a> Waiting<'a> {
    fn join(gate: &'a Gate) -> Result<Self, Problem> {
        let place = Self(gate);
        if gate.waiting.fetch_add(1, Ordering::Relaxed) >= gate.queue_max {
            return Err(gate.full("the queue is full"));
        }
        Ok(place)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How writes are slowed down when the store falls behind.
#[derive(Clone, Copy, Debug)]
pub struct Admission {
    /// The delay just below the refusal.
    pub delay_max: Duration,
}

impl Admission {
    /// Waits as the pressure demands: not at all below 0.5, then longer and longer.
    ///
    /// # Errors
    /// OVERLOADED at pressure 1, DEADLINE_EXCEEDED if the deadline would pass meanwhile.
    pub async fn admit(&self, pressure: f64, deadline: Deadline) -> Result<(), Problem> {
        if deadline.passed() {
            return Err(Problem::deadline("the deadline passed before the write began"));
        }
        if pressure < DELAY_FROM {
            return Ok(());
        }
        if pressure >= REFUSE_AT {
            let message = "the store cannot keep up with writes";
            return Err(Problem::overloaded("OVERLOADED", message));
        }
        let delay = self.delay(pressure);
        if deadline.remaining().is_some_and(|left| left <= delay) {
            return Err(Problem::deadline("the store is under pressure: no time for this write"));
        }
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// Quadratic between the two thresholds: gentle at first, so that throughput settles where
    /// compaction keeps up instead of swinging.
    fn delay(&self, pressure: f64) -> Duration {
        let share = ((pressure - DELAY_FROM) / (REFUSE_AT - DELAY_FROM)).clamp(0.0, 1.0);
        self.delay_max.mul_f64(share * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_left_place_is_free_again() {
        let gate = Gate::new("tests", 1, 1, LONG);
        let inside = gate.enter(Deadline::NEVER).await.expect("open");
        {
            let mut waiting = Box::pin(gate.enter(Deadline::NEVER));
            assert!(Deadline::after(Duration::ZERO).limit(&mut waiting).await.is_none());
            let refused = gate.enter(Deadline::NEVER).await.expect_err("the queue is full");
            assert_eq!(refused.reason, "TOO_MANY_REQUESTS");
            assert!(refused.retry_after.is_some());
        }
        // The one that waited went away: its place in the queue is free.
        let late = gate.enter(Deadline::after(Duration::ZERO)).await.expect_err("still closed");
        assert_eq!(late.reason, "DEADLINE_EXCEEDED");
        drop(inside);
        drop(gate.enter(Deadline::NEVER).await.expect("open again"));
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_the_queue_allows() {
        let gate = Gate::new("tests", 0, 1, Duration::from_millis(1));
        let refused = gate.enter(Deadline::NEVER).await.expect_err("never opens");
        assert_eq!(refused.reason, "TOO_MANY_REQUESTS");
    }

    #[test]
    fn the_delay_grows_with_the_square_of_the_pressure() {
        let admission = Admission { delay_max: Duration::from_millis(100) };
        assert_eq!(admission.delay(0.5), Duration::ZERO);
        assert_eq!(admission.delay(0.75), Duration::from_millis(25));
        assert_eq!(admission.delay(1.0), Duration::from_millis(100));
    }

    #[tokio::test]
    async fn pressure_delays_from_a_half_and_refuses_at_one() {
        let admission = Admission { delay_max: Duration::from_millis(20) };
        let begin = tokio::time::Instant::now();
        admission.admit(0.75, Deadline::NEVER).await.expect("delayed");
        assert!(begin.elapsed() >= Duration::from_millis(5));
        let refused = admission.admit(1.0, Deadline::NEVER).await.expect_err("refused");
        assert_eq!(refused.reason, "OVERLOADED");
        let short = Deadline::after(Duration::from_millis(5));
        let late = admission.admit(0.99, short).await.expect_err("no time");
        assert_eq!(late.reason, "DEADLINE_EXCEEDED");
        let past = Deadline::after(Duration::ZERO);
        let late = admission.admit(0.0, past).await.expect_err("too late");
        assert_eq!(late.reason, "DEADLINE_EXCEEDED");
    }
}
