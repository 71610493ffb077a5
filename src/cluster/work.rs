//! Where work that waits for the disk is run, handed in as the network is.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinError;

use crate::engine::priority;

/// Threads for work in the background: a core each for a few partitions at once.
const BACKGROUND_THREADS: usize = 4;

/// A place for work that would hold up an async worker.
#[derive(Clone, Debug, Default)]
pub enum Work {
    /// On threads of the runtime's blocking pool.
    #[default]
    Threads,
    /// On the threads of [`Background`].
    Background(Handle),
    /// As a task of the runtime, at one go. For simulations, which have one thread and whose disks
    /// are memory.
    Inline,
}

/// A few threads that all others go before, for what no client waits for: rows that move, replicas
/// that are compared. Work that finds none free waits for one; whoever hands work over waits for
/// it, so as much waits as there are tasks that do.
#[derive(Debug)]
pub struct Background(Runtime);

impl Background {
    /// Prepares them; they start when there is work.
    ///
    /// # Errors
    /// The system has no resources to give.
    pub fn start() -> io::Result<Self> {
        let mut threads = Builder::new_current_thread();
        threads.thread_name("pairdb-behind").max_blocking_threads(BACKGROUND_THREADS);
        threads.on_thread_start(|| priority::lower(priority::BACKGROUND));
        Ok(Self(threads.build()?))
    }

    /// Where to hand work over.
    pub fn work(&self) -> Work {
        Work::Background(self.0.handle().clone())
    }

    /// Lets go of them without waiting for what runs.
    pub fn stop(self) {
        self.0.shutdown_background();
    }
}

impl Work {
    /// Whether it is [`Work::Inline`].
    pub fn is_inline(&self) -> bool {
        matches!(self, Self::Inline)
    }

    /// Runs `work` to its end, also when nobody waits for it any more.
    ///
    /// # Errors
    /// It panicked, or the runtime is shutting down.
    pub async fn run<T, F>(&self, work: F) -> Result<T, JoinError>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        match self {
            Self::Threads => tokio::task::spawn_blocking(work).await,
            Self::Background(threads) => threads.spawn_blocking(work).await,
            Self::Inline => tokio::spawn(async move { work() }).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn background_threads_are_behind_all_others() {
        let background = Background::start().expect("threads");
        let nice = || rustix::process::getpriority_process(None).expect("it can be asked");
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        let there = runtime.block_on(background.work().run(nice)).expect("it ends");
        assert_eq!((nice(), there), (0, priority::BACKGROUND));
        background.stop();
    }

    #[test]
    fn all_places_answer_and_report_a_panic() {
        let background = Background::start().expect("threads");
        let runtime = Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(answer_and_report(background.work()));
        background.stop();
    }

    async fn answer_and_report(background: Work) {
        for work in [Work::Threads, background, Work::Inline] {
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
