//! A block that cannot be read and is kept: the keys beside it go all the same.

use std::sync::Arc;

use super::damage::{damaged_after, key};
use super::row::Row;
use super::{open, tiny};
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Permit, Quarantined, Range, Result};

const KEYS: u64 = 400;

/// A store with one unreadable block, which is known; and its keys.
struct Damaged {
    disk: Arc<MemVfs>,
    engine: Engine,
    lost: Vec<u64>,
}

impl Damaged {
    /// At level 0 as it was flushed, below it, or set aside.
    fn new(place: Place) -> Self {
        let (disk, engine) = damaged_after(&tiny(), |engine| {
            if place != Place::Flushed {
                engine.compact_all().expect("compacts");
            }
        });
        assert_eq!(engine.scrub().expect("the quarantine is written").damaged.len(), 1);
        if place == Place::Aside {
            while engine.step().expect("works") {}
        }
        let lost: Vec<u64> = (0..KEYS).filter(|n| engine.get(&key(*n)).is_err()).collect();
        assert!(!lost.is_empty() && lost.len() < 100);
        Self { disk, engine, lost }
    }

    fn reopened(self) -> Self {
        self.engine.close().expect("closes");
        drop(self.engine);
        let engine = open(self.disk.clone(), tiny()).expect("reopens");
        Self { engine, ..self }
    }

    fn block(&self) -> Vec<Quarantined> {
        self.engine.quarantined().to_vec()
    }

    /// What is read of all keys, of which these are gone; the block's fail by name.
    fn check(&self, goes: impl Fn(u64) -> bool) {
        for n in 0..KEYS {
            let read = self.engine.get(&key(n));
            match self.lost.contains(&n) {
                true if !goes(n) => assert!(matches!(read, Err(Error::Corruption(_))), "key {n}"),
                _ => assert_eq!(read.expect("readable").is_some(), !goes(n), "key {n}"),
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Flushed,
    Below,
    Aside,
}

const PLACES: [Place; 3] = [Place::Flushed, Place::Below, Place::Aside];

fn range(first: u64, behind: u64) -> Range {
    (key(first), Some(key(behind)))
}

fn always(install: &mut dyn FnMut() -> Result<()>) -> Result<bool> {
    install().map(|()| true)
}

fn is_odd(key: &[u8]) -> bool {
    key[7] % 2 == 1
}

/// Whole ranges beside the block go, and it stays what it was: told, kept over a reopen, left out
/// of compactions, and given up when somebody says so.
#[test]
fn ranges_beside_a_block_that_is_kept_go() {
    for place in PLACES {
        let damaged = Damaged::new(place);
        let block = damaged.block();
        let behind = damaged.lost[damaged.lost.len() - 1] + 1;
        let goes = |n: u64| (behind + 1..300).contains(&n);
        let removed = damaged.engine.remove(&[range(behind + 1, 300)], &[], &|_| false, &always);
        assert!(removed.expect("no block is read").expect("permitted") > 0, "{place:?}");
        damaged.check(goes);
        let damaged = damaged.reopened();
        damaged.check(goes);
        assert_eq!(damaged.block(), block);
        let report = damaged.engine.scrub().expect("scrubs");
        assert_eq!((report.damaged.len(), damaged.block()), (1, block.clone()), "it is still bad");
        damaged.engine.compact_all().expect("the others are compacted");
        damaged.check(goes);
        assert_eq!(damaged.block(), block);
        assert_eq!(damaged.engine.discard(&|_| false, &always).expect("kept"), 0);
        assert_eq!(damaged.engine.discard(&|_| true, &always).expect("discarded"), 1);
        damaged.engine.compact_all().expect("no table is left out");
        let damaged = damaged.reopened();
        assert_eq!((damaged.block(), damaged.engine.stats().excised_bytes()), (vec![], 0));
        for n in 0..KEYS {
            let is_there = damaged.engine.get(&key(n)).expect("readable").is_some();
            assert_eq!(is_there, !goes(n) && !damaged.lost.contains(&n), "{place:?}: key {n}");
        }
    }
}

/// A block of which all keys go is nobody's any more: it is forgotten, for good, and its table is
/// compacted again. One of which a key stays is kept.
#[test]
fn a_kept_block_goes_with_its_last_key() {
    for place in PLACES {
        let damaged = Damaged::new(place);
        let block = damaged.block();
        let (first, behind) = (damaged.lost[0], damaged.lost[damaged.lost.len() - 1] + 1);
        let some = |n: u64| (first + 1..behind).contains(&n);
        let removed = damaged.engine.remove(&[range(first + 1, behind)], &[], &|_| false, &always);
        removed.expect("no block is read").expect("permitted");
        damaged.check(some);
        assert_eq!(damaged.block(), block, "{place:?}: its first key is left");
        let removed = damaged.engine.remove(&[range(first, behind)], &[], &|_| false, &always);
        removed.expect("no block is read").expect("permitted");
        let all = |n: u64| (first..behind).contains(&n);
        assert_eq!(damaged.block(), []);
        damaged.check(all);
        assert!(damaged.engine.scrub().expect("scrubs").damaged.is_empty());
        let damaged = damaged.reopened();
        assert_eq!(damaged.block(), []);
        damaged.engine.compact_all().expect("no table is left out");
        assert_eq!(damaged.engine.stats().excised_bytes(), 0);
        damaged.check(all);
    }
}

/// Single keys beside the block go too, although its table cannot be written anew. Where it may
/// hold some of them nobody knows which, and that is said, by name.
#[test]
fn single_keys_beside_a_block_that_is_kept_go() {
    for place in PLACES {
        let damaged = Damaged::new(place);
        let block = damaged.block();
        let behind = damaged.lost[damaged.lost.len() - 1] + 1;
        let (one, other) = (range(behind, behind + 6), range(behind + 9, 300));
        let goes = |n: u64| n % 2 == 1 && n >= behind && n < 300 && !(6..9).contains(&(n - behind));
        let removed = damaged.engine.remove(&[], &[one, other], &is_odd, &always);
        assert!(removed.expect("the block is not read").is_some(), "{place:?}");
        damaged.check(goes);
        let damaged = damaged.reopened();
        damaged.check(goes);
        assert_eq!(damaged.block(), block);
        let touching = range(damaged.lost[0], 300);
        match damaged.engine.remove(&[], &[touching], &is_odd, &always) {
            Err(Error::Corruption(found)) => {
                let number = crate::engine::version::TableMeta::number_of(&found.file);
                assert_eq!(number, Some(block[0].table), "{found}");
            }
            other => panic!("{place:?}: {other:?}"),
        }
        damaged.check(goes);
        assert!(damaged.engine.stats().poisoned.is_none());
        // All keys of one range and none of another are few ranges for many keys.
        let removed = damaged.engine.remove(&[], &[range(behind, 200)], &|_| true, &always);
        removed.expect("the block is not read").expect("permitted");
        let goes = |n: u64| goes(n) || (behind..200).contains(&n);
        damaged.check(goes);
        assert_eq!(damaged.engine.discard(&|_| true, &always).expect("discarded"), 1);
        damaged.engine.compact_all().expect("no table is left out");
        let view = damaged.engine.shared.super_version.load_full();
        assert!(view.version.tables().all(|table| table.meta.excised.is_empty()));
        assert!((0..KEYS).all(|n| {
            let row = damaged.engine.get(&key(n)).expect("readable");
            row.is_some() != (goes(n) || damaged.lost.contains(&n))
        }));
    }
}

/// A job that has the table is waited for, block or not.
#[test]
fn a_kept_block_does_not_let_two_have_its_table() {
    let damaged = Damaged::new(Place::Flushed);
    let number = damaged.block()[0].table;
    let shared = &damaged.engine.shared;
    let reserved = shared.reserve(|picker| picker.pick_quarantined(number)).expect("is free");
    assert!(shared.reserve(|picker| picker.pick_tables(&[number], 0)).is_none());
    drop(reserved);
    let reserved = shared.reserve(|picker| picker.pick_tables(&[number], 0)).expect("is free");
    assert!(shared.reserve(|picker| picker.pick_quarantined(number)).is_none());
    assert!(shared.reserve(|picker| picker.pick_aside()).is_none());
    drop(reserved);
    assert_eq!(damaged.engine.discard(&|_| true, &always).expect("discarded"), 1);
}

/// Whichever file call is the last: the block is known, or all its keys are gone.
#[test]
fn a_crash_while_keys_go_forgets_no_block_of_which_some_stay() {
    let remove = |engine: &Engine, lost: &[u64], permit: &Permit<'_>| {
        let ranges = [range(lost[0], 40), range(100, 300)];
        engine.remove(&ranges, &[range(300, 400)], &is_odd, permit)
    };
    let damaged = Damaged::new(Place::Flushed);
    let (lost, block) = (damaged.lost.clone(), damaged.block());
    damaged.engine.close().expect("closes");
    let copy = |last: Option<u64>| {
        let disk = damaged.disk.crash_clone(1);
        let faults = FaultVfs::new(Arc::new(disk.clone()));
        if let Some(last) = last {
            faults.fail_call(last, std::io::ErrorKind::Other);
        }
        (disk, faults.clone(), open(Arc::new(faults), tiny()))
    };
    let (_, faults, engine) = copy(None);
    let before = faults.calls();
    remove(&engine.expect("opens"), &lost, &always).expect("removes");
    for last in before..faults.calls() {
        let (disk, _, engine) = copy(Some(last));
        let Ok(engine) = engine else { continue };
        let failed = remove(&engine, &lost, &always);
        drop(engine);
        let engine = open(Arc::new(disk.crash_clone(last)), tiny()).expect("opens");
        let known = engine.quarantined().to_vec();
        for n in &lost {
            match engine.get(&key(*n)) {
                Err(Error::Corruption(_)) => assert_eq!(known, block, "{failed:?}"),
                read => assert_eq!((read.expect("readable"), known.len()), (None, 0)),
            }
        }
        remove(&engine, &lost, &always).expect("ends it");
        for n in 0..KEYS {
            let read = engine.get(&key(n)).expect("readable");
            let goes = lost[0] <= n && n < 40 || n >= 100 && (n < 300 || n % 2 == 1);
            assert_eq!(read.is_some(), !goes, "call {last}: key {n}");
        }
    }
}

/// Who walks the keys before the block does not meet it, once it is out of the way: also where the
/// block is the first one behind them.
#[test]
fn a_walk_that_ends_before_a_kept_block_does_not_read_it() {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), tiny()).expect("opens");
    for n in 0..KEYS {
        let row = Row::default().write(1, n + 1, true, Some(n as u32)).encode();
        engine.apply(&[(&key(n), &row)]).expect("taken");
    }
    engine.close().expect("closes");
    drop(engine);
    super::damage::rot(&disk, 600);
    let engine = open(disk.clone(), tiny()).expect("opens");
    engine.scrub().expect("the quarantine is written");
    while engine.step().expect("works") {}
    let lost: Vec<u64> = (0..KEYS).filter(|n| engine.get(&key(*n)).is_err()).collect();
    assert!(lost[0] > 0, "there is a block before it");
    let count = |from: &[u8], behind: &[u8]| {
        let mut scan = engine.scan(from, Some(behind))?;
        let mut found = 0;
        while scan.next()?.is_some() {
            found += 1;
        }
        Ok::<u64, Error>(found)
    };
    let block = engine.quarantined()[0].clone();
    assert_eq!(count(&[], &block.smallest).expect("no key of the block is asked for"), lost[0]);
    let behind = lost[lost.len() - 1] + 1;
    assert_eq!(count(&key(behind), &key(KEYS)).expect("nor here"), KEYS - behind);
    assert!(matches!(count(&[], &key(lost[0] + 1)), Err(Error::Corruption(_))));
    assert!(matches!(count(&[], &key(KEYS)), Err(Error::Corruption(_))));
}
