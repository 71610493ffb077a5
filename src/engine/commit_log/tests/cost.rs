//! What an append costs, on request: `cargo test --release commit_log::tests::cost -- --ignored
//! --nocapture`. Prints; the targets are the benchmark suite's business.

use std::time::Instant;

use super::*;
use crate::engine::vfs::os::OsVfs;

fn print_cost(what: &str, count: u64, mut step: impl FnMut(u64)) {
    let start = Instant::now();
    (0..count).for_each(&mut step);
    println!("{what}: {:.0} ns", start.elapsed().as_nanos() as f64 / count as f64);
}

/// One thread, 16-byte keys, 100-byte rows.
#[test]
#[ignore = "a measurement"]
fn cost_of_one_append() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let options = LogOptions {
        sync_mode: SyncMode::Always,
        segment_bytes: 64 << 20,
        grow_bytes: 1 << 20,
        group_bytes_max: 1 << 20,
    };
    let log = CommitLog::create(Arc::new(OsVfs), directory.path(), options, 1, ()).unwrap();
    let row = [7_u8; 100];
    let append = |index: u64| {
        let mut key = [0; 16];
        key[8..].copy_from_slice(&index.to_be_bytes());
        log.lock().append(&[(&key, &row)]).unwrap()
    };
    for _ in 0..3 {
        print_cost("append + sync", 2_000, |index| log.sync(append(index)).unwrap());
        print_cost("append, groups of 1 MiB written out", 2_000_000, |index| {
            append(index);
        });
        print_cost("append + write_out", 300_000, |index| log.write_out(append(index)).unwrap());
    }
}
