//! When an answer is of use no more.
//!
//! A deadline is a value that is handed on, so that every wait on the way ends by it, and whoever
//! holds it can say what became of the work.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

/// The end of a call's time, if it has one.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No end.
    pub const NEVER: Self = Self(None);

    /// The end `after` now.
    pub fn after(after: Duration) -> Self {
        Self(Instant::now().checked_add(after))
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.0.is_some_and(|at| Instant::now() >= at)
    }

    /// The end.
    pub fn instant(self) -> Option<Instant> {
        self.0
    }

    /// Time left; none if there is no end.
    pub fn remaining(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// The earlier of this and `after` now.
    #[must_use]
    pub fn within(self, after: Duration) -> Self {
        Self(Some(self.instant_within(after)))
    }

    /// The same, as a moment.
    pub fn instant_within(self, after: Duration) -> Instant {
        let other = Instant::now() + after;
        self.0.map_or(other, |at| at.min(other))
    }

    /// The output of `work`, or `None` if the deadline passes first. A future that is ready at once
    /// costs no timer.
    pub async fn limit<F: Future>(self, work: F) -> Option<F::Output> {
        match self.0 {
            None => Some(work.await),
            Some(at) => timeout_at(at, work).await.ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_passed_deadline_still_takes_what_is_ready() {
        // The value is polled before the timer: an outcome that is known is never thrown away.
        let past = Deadline::after(Duration::ZERO);
        assert_eq!(past.limit(async { 7 }).await, Some(7));
        assert_eq!(past.limit(std::future::pending::<()>()).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_end_counts_and_what_is_left_shrinks() {
        let deadline = Deadline::after(Duration::from_secs(10));
        assert_eq!(
            deadline.within(Duration::from_secs(3)).remaining().map(|d| d.as_secs()),
            Some(3)
        );
        assert_eq!(
            deadline.within(Duration::from_secs(30)).remaining().map(|d| d.as_secs()),
            Some(10)
        );
        assert_eq!(Deadline::NEVER.remaining(), None);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(deadline.passed());
        assert!(!Deadline::NEVER.passed());
    }
}
