//! Reading by time: the early stop shows the same value as the whole state.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::{StoppedClock, tiny};
use crate::engine::newest::Newest;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Environment};

fn open(vfs: Arc<MemVfs>) -> Engine {
    let environment = Environment { vfs, clock: Arc::new(StoppedClock) };
    Engine::open_in(Path::new("/db"), tiny(), Arc::new(Newest), environment).expect("opens")
}

fn newest(engine: &Engine, key: &[u8]) -> Option<Vec<u8>> {
    engine.get_newest_with(key, |row| row.map(<[u8]>::to_vec)).expect("reads")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Writes arrive in any order of their times, in memtables and tables; all reads agree.
    #[test]
    fn early_stop_shows_the_winner(
        writes in proptest::collection::vec((0..6u8, 0..40u64, any::<bool>()), 1..80),
    ) {
        let engine = open(Arc::new(MemVfs::new()));
        for (key, time, flush) in writes {
            let row = if time % 5 == 0 {
                Newest::tombstone(time)
            } else {
                Newest::value(time, &[key])
            };
            engine.apply(&[(&[key], &row)]).expect("taken");
            if flush && time % 4 == 0 {
                engine.flush().expect("flushes");
                engine.step().expect("works");
            }
            let mut batch = Vec::new();
            // Twice, and out of order; some keys are in no source.
            let keys: Vec<[u8; 1]> = [7, 0, 5, 3, 1, 2, 4, 0].map(|key| [key]).to_vec();
            engine.peek_newest_each(&keys, |at, row| {
                batch.push((at, row.expect("reads").map(<[u8]>::to_vec)));
            });
            for (at, key) in keys.iter().enumerate() {
                let row = engine.get(key).expect("reads");
                prop_assert_eq!(&newest(&engine, key), &row);
                prop_assert_eq!(&batch[at], &(at, row));
            }
        }
    }
}

/// A value in memory that is newer than every table is answered without the tables.
#[test]
fn early_stop_spares_the_tables() {
    let engine = open(Arc::new(MemVfs::new()));
    engine
        .apply(&[(b"a", &Newest::value(1, b"old")), (b"b", &Newest::value(1, b"old"))])
        .expect("taken");
    engine.flush().expect("flushes");
    engine.apply(&[(b"a", &Newest::value(2, b"new"))]).expect("taken");
    let before = engine.stats().cache.misses;
    assert_eq!(newest(&engine, b"a"), Some(Newest::value(2, b"new")));
    assert_eq!(engine.stats().cache.misses, before, "the tables were asked");
    assert!(newest(&engine, b"b").is_some());
    assert_eq!(engine.stats().cache.misses, before + 1);
}
