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

    use super::*;
    use crate::engine::vfs::fault::{Fault, FaultVfs, Operation};
    use crate::engine::vfs::hold::Hold;
    use crate::engine::vfs::mem::MemVfs;
    use crate::store::environment::ManualClock;
    use crate::store::{Environment, Mutation, StoreOptions};

    fn put(key: &str) -> Mutation {
        Mutation { key: key.into(), value: Some(b"v".to_vec()), ..Mutation::default() }
    }

    /// A store with a durable row, and one whose sync hangs.
    fn hanging() -> (Store, FaultVfs, Hold) {
        let disk = FaultVfs::new(Arc::new(MemVfs::new()));
        let syncs = Hold::of(&disk, Operation::SyncData, "log");
        let clock = ManualClock::new(1_700_000_000_000);
        let environment = Environment::simulated(Arc::new(disk.clone()), &clock, 1);
        let mut options = StoreOptions::default();
        options.engine.compaction_threads = 1;
        let store = Store::open_in(Path::new("/node"), options, environment).expect("opens");
        store.write("default", put("old")).expect("written");
        syncs.close();
        store.submit("default", vec![put("new")], Box::new(|_| {}));
        (store, disk, syncs)
    }

    /// A read of a row whose sync hangs leaves its thread to others, and is answered when the sync
    /// has ended. One of another row is answered at once.
    #[tokio::test]
    async fn a_task_waits_for_a_sync_and_no_thread_does() {
        let (store, _, syncs) = hanging();
        let row = settled(&store, store.peek("default", b"old")).await.expect("at once");
        assert!(row.expect("readable").found());
        let mut new = pin!(settled(&store, store.peek("default", b"new")));
        tokio::select! {
            biased;
            _ = &mut new => panic!("its sync hangs"),
            () = std::future::ready(()) => {}
        }
        syncs.open();
        assert!(new.await.expect("durable").expect("readable").found());
    }

    #[tokio::test]
    async fn what_a_log_that_fails_may_have_lost_is_not_told() {
        let (store, disk, syncs) = hanging();
        let new = settled(&store, store.peek("default", b"new"));
        let fault = Fault { operation: Some(Operation::SyncData), ..Fault::default() };
        disk.inject(fault);
        syncs.open();
        let error = new.await.expect_err("the sync failed");
        assert_eq!(error.reason(), "READ_ONLY");
    }
}
