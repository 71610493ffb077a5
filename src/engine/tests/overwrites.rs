//! What a table says of how much it overwrites.

use std::sync::Arc;

use super::row::Row;
use super::{open, tiny};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options};

fn key(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

fn row(time: u64) -> Vec<u8> {
    Row::default().write(1, time, true, Some(1)).encode()
}

fn put(engine: &Engine, keys: std::ops::Range<u32>, time: u64) {
    for n in keys {
        engine.apply(&[(&key(n), &row(time))]).expect("taken");
    }
}

/// Of each table at level 0, newest first.
fn overwrites(engine: &Engine) -> Vec<u64> {
    let view = engine.shared.super_version.load();
    view.version.level(0).tables().iter().map(|table| table.meta.overwrites).collect()
}

/// A flush counts the keys that are in older tables, blind writes or not, and an open that replays
/// the log does. A removal that writes a table anew leaves as large a part of them as of its
/// keys.
#[test]
fn a_flush_counts_what_it_overwrites() {
    let options = || Options {
        memtable_bytes: 1 << 20,
        level0_tables_trigger: 10,
        level0_tables_stop: 11,
        ..tiny()
    };
    let vfs = Arc::new(MemVfs::new());
    let engine = open(vfs.clone(), options()).expect("opens");
    put(&engine, 0..200, 1);
    engine.flush().expect("flushes");
    put(&engine, 150..250, 2);
    for n in 0..25 {
        let made = engine.update::<Error>(&[&key(n)[..]], |_, old, _| {
            assert!(old.is_some());
            Ok(Some(row(2)))
        });
        made.expect("taken");
    }
    engine.flush().expect("flushes");
    // The filter may take one of the 50 new keys for an older one.
    let [newest, oldest] = overwrites(&engine)[..] else { panic!("not two tables") };
    assert!(oldest == 0 && (75..=77).contains(&newest), "{newest}, {oldest}");

    put(&engine, 0..10, 3);
    drop(engine);
    let engine = open(vfs, options()).expect("opens");
    assert_eq!(overwrites(&engine), [10, newest, 0]);

    // Half of the keys of the second table.
    let kept = 188;
    let ranges = [(Vec::new(), None)];
    let goes = |name: &[u8]| *name < key(kept)[..];
    let removed = engine.remove(&[], &ranges, &goes, &|install| install().map(|()| true));
    removed.expect("removes");
    assert_eq!(overwrites(&engine), [newest * 62 / 125, 0]);
}
