//! What only time brings comes under any load.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::row::{Row, RowJoin};
use super::tiny;
use crate::engine::clock::SystemClock;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Environment, Error, Options, SyncMode};

/// Writers that wait for each write have somebody ring the log's bell all the time. The disk is
/// looked at all the same, so that it is known when others fill it.
#[test]
fn the_disk_is_looked_at_while_the_log_is_never_idle() {
    const RESERVE_BYTES: u64 = 64 << 20;
    let disk = MemVfs::new();
    let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
    let environment = Environment { vfs, clock: Arc::new(SystemClock::default()) };
    let options = Options {
        sync_mode: SyncMode::Always,
        memtable_bytes: 1 << 20,
        log_segment_bytes: 64 << 10,
        disk_reserve_bytes: RESERVE_BYTES,
        compaction_threads: 1,
        ..tiny()
    };
    let operator = Arc::new(RowJoin { checks_claims: true });
    let engine = Engine::open_in(Path::new("/db"), options, operator, environment).expect("opens");
    assert!(!engine.below_reserve());
    let space = disk.disk_space(Path::new("/db")).expect("in memory");
    let used = space.total - space.available;
    disk.set_space_limit(Some(used + RESERVE_BYTES / 2));

    let begin = Instant::now();
    let mut time = 0;
    while !engine.below_reserve() {
        assert!(begin.elapsed() < Duration::from_secs(20), "nobody looked at the disk");
        time += 1;
        let row = Row::default().write(1, time, true, Some(1)).encode();
        match engine.apply(&[(b"key", &row)]) {
            Ok(position) => {
                let (tell, told) = channel();
                let done = Box::new(move |outcome| tell.send(outcome).expect("awaited"));
                engine.on_durable(position, done);
                told.recv().expect("told").expect("durable");
            }
            Err(Error::DiskFull { .. }) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(engine.below_reserve());
}
