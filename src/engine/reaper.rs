//! Frees what is dear to free, on a thread that nobody waits for.
//!
//! A reader or writer looks at a view of memtables and tables for a moment. Whoever is taken off
//! the processor in that moment, and that is most likely just when a flush or a compaction works,
//! is then the last to let go of a memtable that was flushed, or of tables that were compacted. To
//! free a memtable's nodes one by one takes tens of milliseconds, to remove a file of 32 MiB some
//! more, which would be the time of one `get` or `put`. So whoever is last hands it over.
//!
//! Without its thread (a simulation has none) everything is freed where it is let go of.
//!
//! # Invariants
//! 1. What was handed over is freed, in its order, at the latest when the reaper is stopped.

use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use super::priority;

/// The name of its thread.
pub const THREAD: &str = "pairdb-reaper";

/// See the module page.
#[derive(Default)]
pub struct Reaper {
    dead: Mutex<Dead>,
    bell: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What waits to be freed: as much as is let go of while the thread frees what was before it.
#[derive(Default)]
struct Dead {
    waiting: Vec<Box<dyn Send>>,
    /// Whether there is somebody to hand it to.
    is_taken: bool,
}

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reaper").field("waiting", &self.dead.lock().waiting.len()).finish()
    }
}

impl Reaper {
    /// Starts its thread.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(self: &Arc<Self>) -> std::io::Result<()> {
        let reaper = Arc::clone(self);
        let mut thread = self.thread.lock();
        let started = thread::Builder::new().name(THREAD.into());
        // The thread begins when there is somebody to hand things to.
        let mut dead = self.dead.lock();
        *thread = Some(started.spawn(move || reaper.run())?);
        dead.is_taken = true;
        Ok(())
    }

    /// Frees all that was handed over and ends the thread. Safe to call twice.
    pub fn stop(&self) {
        self.dead.lock().is_taken = false;
        self.bell.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // A panic in it has been reported by the hook; what it held is freed by unwinding.
            let _ = thread.join();
        }
    }

    /// Has something freed.
    pub fn free(&self, what: impl Send + 'static) {
        let mut dead = self.dead.lock();
        if dead.is_taken {
            dead.waiting.push(Box::new(what));
            self.bell.notify_one();
        } else {
            drop(dead);
            drop(what);
        }
    }

    /// Waits until all that was handed over by now is freed.
    pub fn wait(&self) {
        let (last, freed) = mpsc::channel::<()>();
        self.free(last);
        // Nothing is sent: its end is what is waited for.
        let _ = freed.recv();
    }

    fn run(&self) {
        // Memory that waits for it is memory that a writer cannot have.
        priority::lower(priority::FLUSH);
        loop {
            let dead = {
                let mut dead = self.dead.lock();
                while dead.waiting.is_empty() && dead.is_taken {
                    self.bell.wait(&mut dead);
                }
                std::mem::take(&mut dead.waiting)
            };
            if dead.is_empty() {
                return;
            }
            drop(dead);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Says on which thread it was freed.
    struct Told(Sender<Option<String>>);

    impl Drop for Told {
        fn drop(&mut self) {
            let _ = self.0.send(thread::current().name().map(str::to_owned));
        }
    }

    fn told() -> (Told, Receiver<Option<String>>) {
        let (to, from) = channel();
        (Told(to), from)
    }

    #[test]
    fn what_is_handed_over_is_freed_by_its_thread_while_there_is_one() {
        let reaper = Arc::new(Reaper::default());
        let here = thread::current().name().map(str::to_owned);
        let (before, freed_before) = told();
        reaper.free(before);
        assert_eq!(freed_before.recv(), Ok(here.clone()));

        reaper.start().expect("a thread");
        let (meanwhile, freed_meanwhile) = told();
        reaper.free(meanwhile);
        assert_eq!(freed_meanwhile.recv(), Ok(Some(THREAD.to_owned())));
        let many: Vec<_> = std::iter::repeat_with(told).take(100).collect();
        let freed: Vec<_> = many
            .into_iter()
            .map(|(one, freed)| {
                reaper.free(one);
                freed
            })
            .collect();
        reaper.wait();
        // All of them, and at once.
        assert!(freed.iter().all(|one| one.try_recv() == Ok(Some(THREAD.to_owned()))));

        reaper.stop();

        reaper.wait();
        let (after, freed_after) = told();
        reaper.free(after);
        assert_eq!(freed_after.recv(), Ok(here));
        reaper.stop();
    }
}
