//! How much goes on at once: a gate with a bounded queue, and admission by the store's pressure.
//!
//! # Invariants
//! 1. A gate lets at most `open` callers through and at most `queue` wait; the next one is refused
//!    at once. Nobody waits longer than the queue's limit or its own deadline.
//! 2. A refusal here means that nothing was done.

use std::time::Duration;

use super::deadline::Deadline;
use super::status::Problem;
use crate::resilience::bulkhead::{Bulkhead, Full, Place};

/// Pressure from which writes are delayed.
const DELAY_FROM: f64 = 0.5;
/// Pressure at which writes are refused.
pub(super) const REFUSE_AT: f64 = 1.0;

/// A bulkhead whose refusals are answers to a client.
#[derive(Debug)]
pub struct Gate {
    name: &'static str,
    places: Bulkhead,
}

impl Gate {
    /// A gate for `open` callers and `queue_max` waiting ones, each for at most `wait_max`. `name`
    /// stands in the message of a refusal.
    pub fn new(name: &'static str, open: usize, queue_max: usize, wait_max: Duration) -> Self {
        Self { name, places: Bulkhead::new(open, queue_max, wait_max) }
    }

    /// Waits for a place. The place is free again when it is dropped.
    ///
    /// # Errors
    /// TOO_MANY_REQUESTS if the queue is full or the wait is over, DEADLINE_EXCEEDED if the
    /// deadline came first.
    pub async fn enter(&self, deadline: Deadline) -> Result<Place, Problem> {
        self.places.enter(deadline).await.map_err(|full| match full {
            Full::Deadline => Problem::deadline(format!("still queued for {}", self.name)),
            Full::Queue | Full::Wait => {
                let message = format!("too many requests at once for {}: {full}", self.name);
                Problem::overloaded("TOO_MANY_REQUESTS", message)
            }
        })
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

    #[tokio::test]
    async fn a_client_is_told_why_there_was_no_place() {
        let gate = Gate::new("tests", 1, 0, Duration::from_secs(60));
        let inside = gate.enter(Deadline::NEVER).await.expect("open");
        let refused = gate.enter(Deadline::NEVER).await.expect_err("there is no queue");
        assert_eq!(refused.reason, "TOO_MANY_REQUESTS");
        assert!(refused.retry_after.is_some());
        drop(inside);
        drop(gate.enter(Deadline::NEVER).await.expect("open again"));
        let closed = Gate::new("tests", 0, 1, Duration::from_secs(60));
        let late = closed.enter(Deadline::after(Duration::ZERO)).await.expect_err("closed");
        assert_eq!(late.reason, "DEADLINE_EXCEEDED");
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
