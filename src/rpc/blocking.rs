//! A small bounded pool for work that reads a lot or waits for the disk: whole rows in and out by
//! the `Replica` service; flush, compaction, scrub.

use super::deadline::Deadline;
use super::limits::Gate;
use super::status::Problem;
use crate::cluster::work::Work;

/// The pool: a place for [`Work`] behind a [`Gate`].
#[derive(Debug)]
pub struct Blocking {
    gate: Gate,
    work: Work,
}

impl Blocking {
    /// Runs in `work` as many pieces at once as `gate` lets through.
    pub fn new(gate: Gate, work: Work) -> Self {
        Self { gate, work }
    }

    /// Runs `work`. When the deadline passes or the caller goes away, the
    /// work runs on to its end and keeps its place until then.
    ///
    /// # Errors
    /// No place was free in time, or the deadline passed, or `work` panicked.
    pub async fn run<T, F>(&self, deadline: Deadline, work: F) -> Result<T, Problem>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let place = self.gate.enter(deadline).await?;
        let running = self.work.run(move || {
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
