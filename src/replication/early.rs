//! What was found before it was durable, and is told when it is.
//!
//! The store says how far its log must be durable for what it found in memory. A task waits for
//! that here, no thread does. What is durable already, which is nearly all, costs a comparison.

use tokio::sync::oneshot;

use crate::engine::Position;
use crate::store::{self, Early, Store};

/// What was found, once it is durable.
///
/// # Errors
/// The log failed: what of it is there after the next start is unknown.
pub async fn settled<T>(store: &Store, early: Early<T>) -> store::Result<T> {
    let Early { found, upto } = early;
    if upto != Position::ZERO {
        let (done, durable) = oneshot::channel();
        store.on_durable(upto, move |result| {
            // Gone: nobody is to be told any more.
            let _ = done.send(result);
        });
        durable.await.map_err(|_| store::Error::Closed)??;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::pin::pin;
    use std::sync::Arc;

    use parking_lot::{Condvar, Mutex};

    use super::*;
    use crate::engine::vfs::fault::{Fault, FaultVfs, Operation};
    use crate::engine::vfs::mem::MemVfs;
    use crate::store::environment::ManualClock;
    use crate::store::{Environment, Mutation, StoreOptions};

    /// Whether syncs of the log hang.
    type Gate = Arc<(Mutex<bool>, Condvar)>;

    fn set(gate: &Gate, closed: bool) {
        *gate.0.lock() = closed;
        gate.1.notify_all();
    }

    fn put(key: &str) -> Mutation {
        Mutation { key: key.into(), value: Some(b"v".to_vec()), ..Mutation::default() }
    }

    /// A store with a durable row, and one whose sync hangs.
    fn hanging() -> (Store, FaultVfs, Gate) {
        let gate = Gate::default();
        let disk = FaultVfs::new(Arc::new(MemVfs::new()));
        let held = Arc::clone(&gate);
        disk.hold_calls(move |call| {
            let is_log = call.path.extension().is_some_and(|end| end == "log");
            if is_log && call.operation == Operation::SyncData {
                held.1.wait_while(&mut held.0.lock(), |closed| *closed);
            }
        });
        let clock = ManualClock::new(1_700_000_000_000);
        let environment = Environment::simulated(Arc::new(disk.clone()), &clock, 1);
        let mut options = StoreOptions::default();
        options.engine.compaction_threads = 1;
        let store = Store::open_in(Path::new("/node"), options, environment).expect("opens");
        store.write("default", put("old")).expect("written");
        set(&gate, true);
        store.submit("default", vec![put("new")], Box::new(|_| {}));
        (store, disk, gate)
    }

    /// A read of a row whose sync hangs leaves its thread to others, and is answered when the sync
    /// has ended. One of another row is answered at once.
    #[tokio::test]
    async fn a_task_waits_for_a_sync_and_no_thread_does() {
        let (store, _, gate) = hanging();
        let row = settled(&store, store.peek("default", b"old")).await.expect("at once");
        assert!(row.expect("readable").found());
        let mut new = pin!(settled(&store, store.peek("default", b"new")));
        tokio::select! {
            biased;
            _ = &mut new => panic!("its sync hangs"),
            () = std::future::ready(()) => {}
        }
        set(&gate, false);
        assert!(new.await.expect("durable").expect("readable").found());
    }

    #[tokio::test]
    async fn what_a_log_that_fails_may_have_lost_is_not_told() {
        let (store, disk, gate) = hanging();
        let new = settled(&store, store.peek("default", b"new"));
        let fault = Fault { operation: Some(Operation::SyncData), ..Fault::default() };
        disk.inject(fault);
        set(&gate, false);
        let error = new.await.expect_err("the sync failed");
        assert_eq!(error.reason(), "READ_ONLY");
    }
}
