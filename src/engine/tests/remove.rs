//! Keys that are taken out of the tables for good.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use super::row::Row;
use super::{open, tiny};
use crate::engine::version::TableMeta;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, Result};

const KEYS: u32 = 400;

fn key(n: u32) -> [u8; 4] {
    n.to_be_bytes()
}

fn row(t: u64) -> Vec<u8> {
    Row::default().write(1, t, true, Some(t as u32)).encode()
}

fn put(engine: &Engine, n: u32, t: u64) {
    let position = engine.apply(&[(&key(n), &row(t))]).expect("writes");
    engine.wait_durable(position).expect("durable");
}

fn values(engine: &Engine, n: u32) -> Vec<u32> {
    let row = engine.get(&key(n)).expect("reads");
    row.map(|row| Row::decode(&row).expect("a row").values()).unwrap_or_default()
}

/// A store whose keys lie in memtables and on several levels, each written twice; of every third
/// key the older state came last.
fn filled(vfs: Arc<dyn Vfs>) -> Result<Engine> {
    let engine = open(vfs, Options { row_cache_bytes: 64 << 10, ..tiny() })?;
    for round in 1..=2 {
        for n in 0..KEYS {
            let t = if n % 3 == 0 { 3 - round } else { round };
            let position = engine.apply(&[(&key(n), &row(t))])?;
            engine.wait_durable(position)?;
            while engine.step()? {}
        }
    }
    Ok(engine)
}

/// Those from 100 to 299 that are odd.
fn goes(key: &[u8]) -> bool {
    let n = u32::from_be_bytes(key.try_into().expect("four bytes"));
    (100..300).contains(&n) && n % 2 == 1
}

fn remove(engine: &Engine) -> Result<Option<u64>> {
    let range = (key(100).to_vec(), Some(key(300).to_vec()));
    engine.remove(&[range], &goes, &|install| install().map(|()| true))
}

fn check(engine: &Engine, gone: bool) {
    for n in 0..KEYS {
        let expected = if gone && goes(&key(n)) { vec![] } else { vec![2] };
        assert_eq!(values(engine, n), expected, "key {n}");
    }
}

/// A key that was removed starts from nothing: no table, memtable, log or cache remembers it.
#[test]
fn a_removed_key_is_as_if_it_had_never_been_and_others_are_as_before() {
    let disk = MemVfs::new();
    let engine = filled(Arc::new(disk.clone())).expect("fills");
    // The cache knows them all.
    (0..2).for_each(|_| check(&engine, false));
    assert!(remove(&engine).expect("removes").expect("permitted") >= 100);
    assert_eq!(remove(&engine).expect("removes"), Some(0), "nothing is left to remove");
    check(&engine, true);
    let crashed = open(Arc::new(disk.crash_clone(1)), tiny()).expect("opens");
    check(&crashed, true);
    put(&engine, 101, 1);
    assert_eq!(values(&engine, 101), [1], "an older state, and no newer one hides it");
    engine.compact_all().expect("compacts");
    assert_eq!((values(&engine, 101), values(&engine, 103)), (vec![1], vec![]));
    let mut scan = engine.scan(&[], None).expect("scans");
    let mut found = 0;
    while scan.next().expect("reads").is_some() {
        found += 1;
    }
    assert_eq!(found, KEYS - 100 + 1);
}

/// Who may not install any more changes nothing more, and leaves no file behind.
#[test]
fn without_a_permit_nothing_is_removed() {
    let disk = MemVfs::new();
    let engine = filled(Arc::new(disk.clone())).expect("fills");
    let range = (vec![], None);
    let refused = engine.remove(std::slice::from_ref(&range), &goes, &|_| Ok(false));
    assert_eq!(refused.expect("tries"), None);
    check(&engine, false);
    let once = Cell::new(true);
    let permit = |install: &mut dyn FnMut() -> Result<()>| {
        if once.replace(false) { install().map(|()| true) } else { Ok(false) }
    };
    engine.remove(&[range], &goes, &permit).expect("tries");
    remove(&engine).expect("ends it");
    check(&engine, true);
    let files = disk.list(Path::new("/db")).expect("lists");
    let tables = files.iter().filter(|file| TableMeta::number_of(file).is_some()).count();
    assert_eq!(tables, engine.shared.versions.current().tables().count());
}

/// After a stop in the middle: of no key that goes an older state is seen than there was.
fn check_whole(engine: &Engine, why: &str) {
    for n in 0..KEYS {
        match values(engine, n).as_slice() {
            [2] => {}
            [] if goes(&key(n)) => {}
            other => panic!("{why}: key {n}: {other:?}"),
        }
    }
}

/// What a newer table says of a key hides what an older one does, and the other way round where a
/// message came late. Whichever install is the last that is permitted: no replaced value is back.
#[test]
fn a_stop_between_two_installs_uncovers_no_value_that_was_replaced() {
    let mut installs = None;
    let mut permitted = 0;
    while installs.is_none_or(|all| permitted < all) {
        let engine = filled(Arc::new(MemVfs::new())).expect("fills");
        let given = Cell::new(0);
        let permit = |install: &mut dyn FnMut() -> Result<()>| {
            given.set(given.get() + 1);
            if given.get() <= permitted { install().map(|()| true) } else { Ok(false) }
        };
        let range = (key(100).to_vec(), Some(key(300).to_vec()));
        let ended = engine.remove(&[range], &goes, &permit).expect("tries").is_some();
        check_whole(&engine, &format!("after {permitted} installs"));
        if ended {
            installs = Some(permitted);
        }
        permitted += 1;
    }
    assert!(permitted > 3, "in {permitted} pieces");
}

/// Whichever file call is the last: what stays is whole, and what goes can be removed to the end.
#[test]
fn a_crash_in_the_middle_leaves_what_stays_whole() {
    let calls = {
        let faults = FaultVfs::new(Arc::new(MemVfs::new()));
        let engine = filled(Arc::new(faults.clone())).expect("fills");
        let before = faults.calls();
        remove(&engine).expect("removes");
        before..faults.calls()
    };
    for last in calls.step_by(5) {
        let disk = MemVfs::new();
        let faults = FaultVfs::new(Arc::new(disk.clone()));
        faults.fail_call(last, std::io::ErrorKind::Other);
        let engine = filled(Arc::new(faults)).expect("fills");
        let failed: Result<_, Error> = remove(&engine);
        drop(engine);
        let engine = open(Arc::new(disk.crash_clone(last)), tiny()).expect("opens");
        check_whole(&engine, &format!("{failed:?}"));
        remove(&engine).expect("ends it");
        for n in (0..KEYS).filter(|n| goes(&key(*n))) {
            assert!(values(&engine, n).is_empty());
        }
    }
}
