//! Where work that waits for the disk is run, handed in as the network is.

use tokio::task::JoinError;

/// A place for work that would hold up an async worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// On threads of the runtime's blocking pool.
    #[default]
    Threads,
    /// As a task of the runtime, at one go. For simulations, which have one thread and whose disks
    /// are memory.
    Inline,
}

impl Work {
    /// Runs `work` to its end, also when nobody waits for it any more.
    ///
    /// # Errors
    /// It panicked, or the runtime is shutting down.
    pub async fn run<T, F>(self, work: F) -> Result<T, JoinError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await,
            Self::Inline => tokio::spawn(async move { work() }).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_places_answer_and_report_a_panic() {
        for work in [Work::Threads, Work::Inline] {
            assert_eq!(work.run(|| 7).await.expect("it ends"), 7);
            let failed = work.run(|| panic!("a planted panic")).await;
            assert!(failed.expect_err("it panics").is_panic());
        }
    }

    #[tokio::test]
    async fn inline_work_stays_on_the_thread_of_its_runtime() {
        let here = std::thread::current().id();
        let there = Work::Inline.run(|| std::thread::current().id()).await.expect("it ends");
        assert_eq!(here, there);
    }
}
