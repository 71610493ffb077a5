//! Keys that are taken out of the tables for good: whole ranges, single keys, both at once.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use super::row::Row;
use super::{open, tiny};
use crate::engine::version::TableMeta;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, Permit, Range, Result};

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

/// Which keys go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// All of some ranges.
    Wholly,
    /// The odd ones of a range.
    InPart,
    /// The first of the ranges, and the odd ones of another.
    Both,
}

const WAYS: [Way; 3] = [Way::Wholly, Way::InPart, Way::Both];

fn range((start, end): &(u32, u32)) -> Range {
    (key(*start).to_vec(), Some(key(*end).to_vec()))
}

impl Way {
    fn wholly(self) -> &'static [(u32, u32)] {
        match self {
            Self::Wholly => &[(100, 150), (155, 160), (200, 300)],
            Self::InPart => &[],
            Self::Both => &[(100, 200)],
        }
    }

    fn in_part(self) -> &'static [(u32, u32)] {
        match self {
            Self::Wholly => &[],
            Self::InPart => &[(100, 300)],
            Self::Both => &[(200, 300)],
        }
    }

    fn goes(self, n: u32) -> bool {
        let is_in = |ranges: &[(u32, u32)]| ranges.iter().any(|(a, b)| (*a..*b).contains(&n));
        is_in(self.wholly()) || is_in(self.in_part()) && n % 2 == 1
    }

    fn remove(self, engine: &Engine, permit: &Permit<'_>) -> Result<Option<u64>> {
        let ranges = |ranges: &[_]| ranges.iter().map(range).collect::<Vec<_>>();
        let is_odd = |key: &[u8]| key[3] % 2 == 1;
        engine.remove(&ranges(self.wholly()), &ranges(self.in_part()), &is_odd, permit)
    }

    fn remove_all(self, engine: &Engine) -> Result<Option<u64>> {
        self.remove(engine, &|install| install().map(|()| true))
    }

    fn check(self, engine: &Engine, gone: bool) {
        for n in 0..KEYS {
            let expected = if gone && self.goes(n) { vec![] } else { vec![2] };
            assert_eq!(values(engine, n), expected, "{self:?}: key {n}");
        }
    }

    /// After a stop in the middle: of no key that goes an older state is seen than there was.
    fn check_whole(self, engine: &Engine, why: &str) {
        for n in 0..KEYS {
            match values(engine, n).as_slice() {
                [2] => {}
                [] if self.goes(n) => {}
                other => panic!("{self:?}, {why}: key {n}: {other:?}"),
            }
        }
    }
}

fn tables_in_dir(disk: &MemVfs) -> usize {
    let files = disk.list(Path::new("/db")).expect("lists");
    files.iter().filter(|file| TableMeta::number_of(file).is_some()).count()
}

/// A key that was removed starts from nothing: no table, memtable, log or cache remembers it.
#[test]
fn a_removed_key_is_as_if_it_had_never_been_and_others_are_as_before() {
    for way in WAYS {
        let disk = MemVfs::new();
        let engine = filled(Arc::new(disk.clone())).expect("fills");
        // The cache knows them all.
        (0..2).for_each(|_| way.check(&engine, false));
        assert!(way.remove_all(&engine).expect("removes").expect("permitted") > 0);
        assert_eq!(way.remove_all(&engine).expect("removes"), Some(0), "nothing is left to remove");
        way.check(&engine, true);
        let crashed = open(Arc::new(disk.crash_clone(1)), tiny()).expect("opens");
        way.check(&crashed, true);
        put(&engine, 101, 1);
        assert_eq!(values(&engine, 101), [1], "an older state, and no newer one hides it");
        engine.flush().expect("flushes");
        assert_eq!(values(&engine, 101), [1], "in a table above those that had another");
        engine.compact_all().expect("compacts");
        assert_eq!((values(&engine, 101), values(&engine, 103)), (vec![1], vec![]));
        let mut scan = engine.scan(&[], None).expect("scans");
        let mut found = Vec::new();
        while let Some((key, _)) = scan.next().expect("reads") {
            found.push(u32::from_be_bytes(key.try_into().expect("four bytes")));
        }
        let expected = (0..KEYS).filter(|n| *n == 101 || !way.goes(*n));
        assert!(found.into_iter().eq(expected), "{way:?}");
    }
}

/// Who may not install any more changes nothing more, and leaves no file behind.
#[test]
fn without_a_permit_nothing_is_removed() {
    for way in WAYS {
        let disk = MemVfs::new();
        let engine = filled(Arc::new(disk.clone())).expect("fills");
        let refused = way.remove(&engine, &|_| Ok(false));
        assert_eq!(refused.expect("tries"), None);
        way.check(&engine, false);
        let once = Cell::new(true);
        let permit = |install: &mut dyn FnMut() -> Result<()>| {
            if once.replace(false) { install().map(|()| true) } else { Ok(false) }
        };
        way.remove(&engine, &permit).expect("tries");
        way.remove_all(&engine).expect("ends it");
        way.check(&engine, true);
        assert_eq!(tables_in_dir(&disk), engine.shared.versions.current().tables().count());
    }
}

/// What a newer table says of a key hides what an older one does, and the other way round where a
/// message came late. Whichever install is the last that is permitted: no replaced value is back.
#[test]
fn a_stop_between_two_installs_uncovers_no_value_that_was_replaced() {
    for way in WAYS {
        let mut installs = None;
        let mut permitted = 0;
        while installs.is_none_or(|all| permitted < all) {
            let engine = filled(Arc::new(MemVfs::new())).expect("fills");
            let given = Cell::new(0);
            let permit = |install: &mut dyn FnMut() -> Result<()>| {
                given.set(given.get() + 1);
                if given.get() <= permitted { install().map(|()| true) } else { Ok(false) }
            };
            let ended = way.remove(&engine, &permit).expect("tries").is_some();
            way.check_whole(&engine, &format!("after {permitted} installs"));
            if ended {
                installs = Some(permitted);
            }
            permitted += 1;
        }
        assert!(permitted > 2, "{way:?}: in {permitted} pieces");
    }
}

/// Whichever file call is the last: what stays is whole, and what goes can be removed to the end.
#[test]
fn a_crash_in_the_middle_leaves_what_stays_whole() {
    for way in WAYS {
        let calls = {
            let faults = FaultVfs::new(Arc::new(MemVfs::new()));
            let engine = filled(Arc::new(faults.clone())).expect("fills");
            let before = faults.calls();
            way.remove_all(&engine).expect("removes");
            before..faults.calls()
        };
        // Whole ranges take few calls: each of them.
        for last in calls.step_by(if way == Way::Wholly { 1 } else { 5 }) {
            let disk = MemVfs::new();
            let faults = FaultVfs::new(Arc::new(disk.clone()));
            faults.fail_call(last, std::io::ErrorKind::Other);
            let engine = filled(Arc::new(faults)).expect("fills");
            let failed: Result<_, Error> = way.remove_all(&engine);
            drop(engine);
            let engine = open(Arc::new(disk.crash_clone(last)), tiny()).expect("opens");
            way.check_whole(&engine, &format!("{failed:?}"));
            way.remove_all(&engine).expect("ends it");
            for n in (0..KEYS).filter(|n| way.goes(*n)) {
                assert!(values(&engine, n).is_empty());
            }
        }
    }
}

/// A tombstone that compaction purged lives on in the row cache, which is right as long as nobody
/// says that the key is gone. No table holds such a key any more when it is to go.
#[test]
fn a_purged_row_goes_out_of_the_cache_too() {
    for way in WAYS {
        let engine = open(Arc::new(MemVfs::new()), tiny()).expect("opens");
        let gone = 201;
        let deleted = Row::default().write(1, 1, true, None);
        let position = engine.apply(&[(&key(gone), &deleted.encode())]).expect("writes");
        engine.wait_durable(position).expect("durable");
        engine.flush().expect("flushes");
        let is_seen = || engine.get(&key(gone)).expect("reads").is_some();
        (0..3).for_each(|_| assert!(is_seen()));
        engine.fence(0..=0, 1).expect("fences");
        engine.set_floor(0..=0, 1).expect("sets the floor");
        engine.compact_all().expect("compacts");
        assert_eq!(engine.shared.version().tables().count(), 0, "it is purged");
        assert!(is_seen(), "out of the cache");
        let refused = way.remove(&engine, &|_| Ok(false)).expect("tries");
        assert_eq!((refused, is_seen()), (None, true), "nothing goes without the permit");
        way.remove_all(&engine).expect("removes").expect("permitted");
        assert!(!is_seen(), "{way:?}");
    }
}
