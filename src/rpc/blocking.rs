//! A small bounded pool for work that reads a lot or waits for the disk: pages of scans and
//! streams, rows from peers, flush, compaction, scrub.

use std::time::Duration;

use super::deadline::Deadline;
use super::limits::Gate;
use super::status::Problem;

/// The pool: threads of the runtime's blocking pool behind a [`Gate`].
#[derive(Debug)]
pub struct Blocking(Gate);

impl Blocking {
    /// A pool of `threads`, with `queue_max` pieces of work waiting for at most `wait_max`.
    pub fn new(name: &'static str, threads: usize, queue_max: usize, wait_max: Duration) -> Self {
        Self(Gate::new(name, threads, queue_max, wait_max))
    }

    /// Runs `work` on a thread of the pool. When the deadline passes or the caller goes away, the
    /// work runs on to its end and keeps its place until then.
    ///
    /// # Errors
    /// No place was free in time, or the deadline passed, or `work` panicked.
    pub async fn run<T, F>(&self, deadline: Deadline, work: F) -> Result<T, Problem>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let place = self.0.enter(deadline).await?;
        let running = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(place);
            result
        });
        match deadline.limit(running).await {
            Some(Ok(result)) => Ok(result),
            Some(Err(_panicked)) => {
                Err(Problem::new(tonic::Code::Internal, "INTERNAL", "an internal error"))
            }
            None => Err(Problem::deadline("the work goes on, nobody waits for it")),
        }
    }
}
