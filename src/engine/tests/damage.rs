//! Flipped bits in tables: found, named, contained.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::row::{Row, RowJoin};
use super::{StoppedClock, open, tiny};
use crate::engine::flush::CacheChange;
use crate::engine::version::VersionEdit;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{Effect, Fault, FaultVfs};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::vfs::os::OsVfs;
use crate::engine::{Engine, Environment, Error, MergeError, MergeOperator, Options};

pub(super) fn key(n: u64) -> Vec<u8> {
    format!("{n:08}").into_bytes()
}

fn tables(disk: &MemVfs) -> Vec<PathBuf> {
    let mut files = disk.list(Path::new("/db")).expect("lists");
    files.retain(|file| file.extension().is_some_and(|extension| extension == "sst"));
    files.into_iter().map(|file| Path::new("/db").join(file)).collect()
}

/// A store of some tables, the first of which has a flipped bit in its first data block.
fn damaged_store(options: &Options) -> (Arc<MemVfs>, Engine) {
    damaged_after(options, |_| {})
}

fn fill(engine: &Engine) {
    for n in 0..400 {
        let row = Row::default().write(1, n + 1, true, Some(n as u32)).encode();
        engine.apply(&[(&key(n), &row)]).expect("taken");
    }
}

/// The same of a store with which something was done before.
pub(super) fn damaged_after(
    options: &Options,
    done: impl FnOnce(&Engine),
) -> (Arc<MemVfs>, Engine) {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), options.clone()).expect("opens");
    fill(&engine);
    done(&engine);
    engine.close().expect("closes");
    drop(engine);
    rot(&disk, 40);
    let engine = open(disk.clone(), options.clone()).expect("a damaged block is met when read");
    (disk, engine)
}

/// Flips a bit in the first table.
pub(super) fn rot(disk: &MemVfs, offset: u64) {
    let file = disk.open(&tables(disk).remove(0)).expect("opens");
    let mut byte = [0];
    file.read_at(offset, &mut byte).expect("reads");
    file.write_at(offset, &[byte[0] ^ 4]).expect("writes");
    file.sync_data().expect("a crash does not mend it");
}

/// The engine fails reads of the block by name and serves the others; a scrub reports it once;
/// compaction leaves the table alone and goes on with the rest; writes go on.
#[test]
fn a_damaged_block_is_named_and_contained() {
    let (_disk, engine) = damaged_store(&tiny());
    let outcomes: Vec<_> = (0..400).map(|n| engine.get(&key(n))).collect();
    let (mut served, mut refused) = (0, 0);
    for outcome in &outcomes {
        match outcome {
            Ok(row) => served += u32::from(row.is_some()),
            Err(Error::Corruption(corruption)) => {
                assert!(corruption.file.extension().is_some_and(|extension| extension == "sst"));
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(refused > 0 && served > 300, "{served} served, {refused} refused");
    assert_eq!(served + refused, 400);

    let report = engine.scrub().expect("the quarantine is written");
    assert_eq!(report.damaged.len(), 1);

    for n in 0..400 {
        let row = Row::default().write(1, n + 1000, true, Some(7)).encode();
        let position = engine.apply(&[(&key(n), &row)]).expect("taken");
        engine.wait_durable(position).expect("durable");
    }
    engine.flush().expect("flushes");
    while engine.step().expect("the damaged table is left out") {}
    assert!(engine.stats().poisoned.is_none());
}

/// A sector that the disk does not give back is damage like any other, found by whoever touches it
/// first, and by a scrub.
#[test]
fn a_sector_that_cannot_be_read_is_a_damaged_block() {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), tiny()).expect("opens");
    fill(&engine);
    engine.close().expect("closes");
    drop(engine);
    let vfs = Arc::new(FaultVfs::new(disk.clone()));
    let table = tables(&disk).remove(0);
    vfs.inject(Fault {
        path_contains: table.to_string_lossy().into_owned(),
        times: u64::MAX,
        effect: Effect::Unreadable(40),
        ..Fault::default()
    });
    let engine = open(vfs, tiny()).expect("the block is met when it is read");
    assert!((0..400).any(|n| matches!(engine.get(&key(n)), Err(Error::Corruption(_)))));
    let report = engine.scrub().expect("the quarantine is written");
    assert_eq!(report.damaged.len(), 1);
    assert!(report.damaged[0].what.contains("cannot be read"), "{}", report.damaged[0]);
    assert_eq!(engine.discard(&|_| true, &|go| go().map(|()| true)).expect("discarded"), 1);
    assert!((0..400).all(|n| engine.get(&key(n)).is_ok()));
}

/// Bytes that were sound when they were first read may rot later. From the moment anybody finds
/// that out nobody is served them, neither from the table nor from the cache, and no state is made
/// of them.
#[test]
fn a_block_that_rots_after_its_first_read_is_served_no_more_once_it_is_found() {
    let (_disk, engine) = damaged_store(&tiny());
    let view = engine.shared.super_version.load_full();
    view.version.tables().for_each(|table| table.trust_all());
    drop(view);
    // Wrong answers, which nobody can tell from right ones; they may fill the cache.
    (0..400).for_each(|n| drop(engine.get(&key(n))));
    assert_eq!(engine.scrub().expect("the quarantine is written").damaged.len(), 1);
    let is_refused = |n: &u64| matches!(engine.get(&key(*n)), Err(Error::Corruption(_)));
    let refused: Vec<u64> = (0..400).filter(is_refused).collect();
    assert!(!refused.is_empty() && refused.len() < 100, "{refused:?}");
    for n in refused {
        let made = engine.update(&[&key(n)[..]], |_, row, _| Ok(row.map(<[u8]>::to_vec)));
        assert!(matches!(made, Err(Error::Corruption(_))), "{made:?}");
    }
}

/// A table may go while a scrub has just found damage in it: there is nothing left to quarantine,
/// and no reason to stop.
#[test]
fn damage_of_a_table_that_has_just_gone_is_no_failure() {
    let (_disk, engine) = damaged_store(&tiny());
    let is_gone = Box::new(|shared: &super::Shared| {
        let view = shared.super_version.load_full();
        let removed = view.version.tables().map(|table| (table.meta.level, table.meta.number));
        let edit = VersionEdit { removed: removed.collect(), ..VersionEdit::default() };
        shared.install(edit, CacheChange::None, |_| {}).expect("installs");
    });
    engine.shared.hooks.lock().insert("quarantine:checked", is_gone);
    engine.scrub().expect("nothing is left to be said of it");
    assert!(engine.stats().poisoned.is_none());
    assert!(engine.quarantined().is_empty());
}

/// One block that nobody can give back does not stop the node: what is newer, at level 0 or below,
/// is compacted past its table, and every other key keeps its state.
#[test]
fn a_damaged_block_stops_no_writes() {
    for level0 in [false, true] {
        let options = Options { level0_tables_trigger: 2, level0_tables_stop: 6, ..tiny() };
        let (disk, engine) = damaged_after(&tiny(), |engine| {
            if !level0 {
                engine.compact_all().expect("compacts");
            }
        });
        engine.close().expect("closes");
        drop(engine);
        let engine = open(disk.clone(), options.clone()).expect("opens");
        engine.scrub().expect("the quarantine is written");
        let quarantined = engine.quarantined();
        assert_eq!(quarantined.len(), 1);
        let view = engine.shared.super_version.load_full();
        let table = view.version.table(quarantined[0].table).expect("is there");
        assert_eq!(table.meta.level == 0, level0);
        drop(view);
        let is_lost: Vec<bool> = (0..400).map(|n| engine.get(&key(n)).is_err()).collect();
        assert!(is_lost.contains(&true) && is_lost.contains(&false));
        for round in 1..=6 {
            for n in 0..400 {
                let row = Row::default().write(1, 1000 * round + n, true, Some(7)).encode();
                let position = engine.apply(&[(&key(n), &row)]).expect("never stalled");
                engine.wait_durable(position).expect("durable");
            }
        }
        engine.compact_all().expect("the others are compacted");
        let check = |engine: &Engine| {
            for n in 0..400 {
                match engine.get(&key(n)) {
                    Ok(row) => {
                        let newest = Row::decode(&row.expect("there")).expect("a row");
                        assert_eq!(newest.values(), [7], "key {n}");
                    }
                    Err(error) => assert!(is_lost[n as usize], "key {n}: {error}"),
                }
            }
        };
        check(&engine);
        assert_eq!(engine.quarantined(), quarantined, "it is not forgotten");
        assert!(is_lost.iter().zip(0..).any(|(lost, n)| *lost && engine.get(&key(n)).is_err()));
        engine.close().expect("closes");
        drop(engine);
        let engine = open(disk, options).expect("reopens");
        check(&engine);
        assert_eq!(engine.quarantined(), quarantined);
        let discarded = engine.discard(&|_| true, &|install| install().map(|()| true));
        assert_eq!(discarded.expect("discarded"), 1);
        engine.compact_all().expect("no table is left out");
        assert!((0..400).all(|n| engine.get(&key(n)).is_ok()));
        check(&engine);
    }
}

/// A block that holds nothing but removed keys is nobody's loss: no scrub tells of it, and whoever
/// walks, merges or rewrites the table passes it by.
#[test]
fn a_damaged_block_of_removed_keys_is_in_nobodys_way() {
    let (_disk, engine) = damaged_store(&tiny());
    let lost: Vec<u64> = (0..400).filter(|n| engine.get(&key(*n)).is_err()).collect();
    let (first, last) = (lost[0], lost[lost.len() - 1]);
    assert_eq!(lost.len() as u64, last - first + 1);
    let range = (key(first), Some(key(last + 1)));
    let removed = engine.remove(&[range], &[], &|_| false, &|install| install().map(|()| true));
    removed.expect("no block of it is read").expect("permitted");
    let check = || {
        let mut scan = engine.scan(&[], None).expect("scans");
        for n in 0..400 {
            let is_there = engine.get(&key(n)).expect("reads").is_some();
            assert_eq!(is_there, !lost.contains(&n));
            if is_there {
                let found = scan.next().expect("scans").expect("it is there").0;
                assert_eq!(found, key(n));
            }
        }
        assert!(scan.next().expect("scans").is_none());
    };
    check();
    assert!(engine.scrub().expect("scrubs").damaged.is_empty() && engine.quarantined().is_empty());
    let view = engine.shared.super_version.load_full();
    for table in view.version.tables() {
        let mut bad = |_: crate::engine::sstable::KeyRange<'_>| panic!("a bad block");
        let mut visit = |key: &[u8], _: crate::engine::Record<'_>| {
            assert!(lost.iter().all(|n| self::key(*n) != key));
            Ok(())
        };
        table.visit_sound(&mut visit, &mut bad).expect("visits");
    }
    drop(view);
    engine.compact_all().expect("no table is left out");
    assert_eq!(engine.stats().excised_bytes(), 0);
    check();
}

/// Nothing that was quarantined vanishes silently: after a reopen the reads still fail by name.
#[test]
fn quarantine_survives_a_reopen() {
    let (disk, engine) = damaged_store(&tiny());
    engine.scrub().expect("the quarantine is written");
    engine.close().expect("closes");
    drop(engine);
    let engine = open(disk, tiny()).expect("reopens");
    let refused = (0..400).filter(|n| engine.get(&key(*n)).is_err()).count();
    assert!(refused > 0);
}

/// With threads: the compaction that meets the damage does not stop the engine.
#[test]
fn a_damaged_table_does_not_poison_the_threads() {
    // What may not pass the damaged table stays at level 0: how much of it writers bear is not
    // what this is about.
    let options = Options { compaction_threads: 1, level0_tables_stop: 1_000, ..tiny() };
    let (_disk, engine) = damaged_store(&options);
    for round in 0..20 {
        for n in 0..400 {
            let time = 1000 * (round + 1) + n;
            let row = Row::default().write(1, time, true, Some(7)).encode();
            let position = engine.apply(&[(&key(n), &row)]).expect("taken");
            engine.wait_durable(position).expect("durable");
        }
    }
    assert!(engine.stats().poisoned.is_none());
    engine.close().expect("closes");
}

/// A block that was given up takes nothing with it but its own records: every other key of its
/// table has the same state as before, what the block hid is seen again, the keys go on to be
/// written, compacted and reopened. Without a yes for it the block stays.
#[test]
fn a_block_that_is_given_up_takes_nothing_else_with_it() {
    let (disk, engine) = damaged_store(&tiny());
    let before: Vec<_> = (0..400).map(|n| engine.get(&key(n)).ok()).collect();
    let is_lost = |n: u64| before[n as usize].is_none();
    assert!((0..400).any(is_lost) && (0..400).any(|n| !is_lost(n)));
    assert_eq!(engine.discard(&|_| true, &|install| install().map(|()| true)).expect("done"), 0);

    engine.scrub().expect("the quarantine is written");
    let quarantined = engine.quarantined();
    assert_eq!(quarantined.len(), 1, "what is not known to be damaged is not given up");
    let always = |install: &mut dyn FnMut() -> crate::engine::Result<()>| install().map(|()| true);
    assert_eq!(engine.discard(&|_| false, &always).expect("kept"), 0);
    assert_eq!(engine.discard(&|_| true, &|_| Ok(false)).expect("not permitted"), 0);
    assert_eq!(engine.quarantined(), quarantined);
    assert_eq!(engine.discard(&|_| true, &always).expect("discarded"), 1);

    assert!(engine.quarantined().is_empty());
    for n in 0..400 {
        let row = engine.get(&key(n)).expect("readable");
        let expected = if is_lost(n) { None } else { before[n as usize].clone().flatten() };
        assert_eq!(row, expected, "key {n}");
    }
    let lost = (0..400).find(|n| is_lost(*n)).expect("one is");
    let row = Row::default().write(1, 5000, true, Some(7)).encode();
    engine.apply(&[(&key(lost), &row)]).expect("taken");
    engine.compact_all().expect("no table is left out");
    engine.close().expect("closes");
    drop(engine);
    let engine = open(disk, tiny()).expect("reopens");
    assert_eq!(engine.get(&key(lost)).expect("readable"), Some(row));
    assert_eq!(engine.scrub().expect("read").damaged, []);
}

/// A table of which no block is sound goes altogether, and what lay below it is seen again.
#[test]
fn a_table_without_a_sound_block_goes_and_uncovers_what_it_hid() {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), tiny()).expect("opens");
    let (old, new) = (
        Row::default().write(1, 1, true, Some(1)).encode(),
        Row::default().write(1, 2, true, Some(2)).encode(),
    );
    engine.apply(&[(&key(1), &old)]).expect("taken");
    engine.compact_all().expect("at the bottom");
    engine.apply(&[(&key(1), &new)]).expect("taken");
    engine.flush().expect("above it");
    engine.close().expect("closes");
    drop(engine);
    let newest = tables(&disk).into_iter().max().expect("two tables");
    let file = disk.open(&newest).expect("opens");
    let mut byte = [0];
    file.read_at(40, &mut byte).expect("reads");
    file.write_at(40, &[byte[0] ^ 4]).expect("writes");
    let engine = open(disk, tiny()).expect("reopens");
    engine.scrub().expect("the quarantine is written");
    assert!(engine.get(&key(1)).is_err(), "what is below it is not the row");
    let discarded = engine.discard(&|_| true, &|install| install().map(|()| true));
    assert_eq!(discarded.expect("discarded"), 1);
    assert_eq!(engine.get(&key(1)).expect("readable"), Some(old));
}

const ROWS: RowJoin = RowJoin { checks_claims: true };

/// An operator that cannot read rows of the value 13 any more, once it is told so.
struct Refuses(Arc<AtomicBool>);

impl Refuses {
    fn check(&self, row: &[u8]) -> Result<(), MergeError> {
        let is_bad = self.0.load(Ordering::SeqCst) && Row::decode(row)?.values().contains(&13);
        if is_bad { Err(MergeError("thirteen".to_owned())) } else { Ok(()) }
    }
}

impl MergeOperator for Refuses {
    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        self.check(a).and_then(|()| self.check(b)).and_then(|()| ROWS.join(a, b, out))
    }

    fn live_time_min(&self, row: &[u8]) -> Result<u64, MergeError> {
        self.check(row).and_then(|()| ROWS.live_time_min(row))
    }
}

/// A row that cannot be read under a good checksum is left alone like a block that cannot: the
/// compaction that meets it is not picked again and again, and giving it up takes no other row.
#[test]
fn a_row_that_cannot_be_read_is_not_compacted_for_ever() {
    let refuses = Arc::new(AtomicBool::new(false));
    let environment = Environment { vfs: Arc::new(MemVfs::new()), clock: Arc::new(StoppedClock) };
    let operator = Arc::new(Refuses(Arc::clone(&refuses)));
    let engine = Engine::open_in(Path::new("/db"), tiny(), operator, environment).expect("opens");
    for round in 0..3_u64 {
        for n in 0..40 {
            let value = if n == 20 { 13 } else { 1 };
            let row = Row::default().write(1, 100 * round + n + 1, true, Some(value)).encode();
            engine.apply(&[(&key(n), &row)]).expect("taken");
        }
        engine.flush().expect("flushes");
    }
    refuses.store(true, Ordering::SeqCst);
    let attempts: Vec<_> = (0..20).map_while(|_| engine.compact_all().err()).collect();
    assert!((1..=3).contains(&attempts.len()), "{attempts:?}");
    assert!(engine.quarantined().iter().all(|row| *row.smallest == *key(20)));
    assert!(engine.stats().poisoned.is_none());
    for n in (0..40).filter(|n| *n != 20) {
        assert!(engine.get(&key(n)).expect("readable").is_some());
    }
    let always = |install: &mut dyn FnMut() -> crate::engine::Result<()>| install().map(|()| true);
    assert!(engine.discard(&|_| true, &always).expect("discarded") >= 1);
    engine.compact_all().expect("no table is left out");
    assert!((0..40).filter(|n| *n != 20).all(|n| engine.get(&key(n)).expect("there").is_some()));
}

/// Where a table's footer says where its filter and its index are.
const FILTER: usize = 16;
const INDEX: usize = 32;

/// The frame of one of the two in the bytes of a table.
fn section(bytes: &[u8], at: usize) -> Range<usize> {
    let footer = bytes.last_chunk::<88>().expect("a footer");
    let number = |at: usize| footer[at..].first_chunk().map(|it| u64::from_le_bytes(*it));
    let number = |at: usize| number(at).expect("in the footer") as usize;
    number(at)..number(at) + number(at + 8)
}

fn bytes_of(vfs: &dyn Vfs, table: &Path) -> Vec<u8> {
    vfs.map(table).expect("maps").to_vec()
}

fn discard_all(engine: &Engine) -> u64 {
    engine.discard(&|_| true, &|install| install().map(|()| true)).expect("discarded")
}

fn has_all(engine: &Engine) -> bool {
    (0..400).all(|n| engine.get(&key(n)).expect("readable").is_some())
}

/// A filter says nothing that the blocks do not say: a store with a damaged one opens and misses no
/// row. A scrub tells of it, and the table is written anew without the loss of a block.
#[test]
fn a_damaged_filter_keeps_no_store_from_its_rows() {
    let disk = Arc::new(MemVfs::new());
    let engine = open(disk.clone(), tiny()).expect("opens");
    fill(&engine);
    engine.close().expect("closes");
    drop(engine);
    let table = tables(&disk).remove(0);
    let bytes = bytes_of(&*disk, &table);
    for at in section(&bytes, FILTER).step_by(5) {
        let damaged = Arc::new(disk.crash_clone_kill());
        let file = damaged.open(&table).expect("opens");
        file.write_at(at as u64, &[bytes[at] ^ 4]).expect("writes");
        let engine = open(damaged.clone(), tiny()).expect("nobody is in need of a filter");
        assert!(has_all(&engine));
        let found = engine.scrub().expect("the quarantine is written").damaged;
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].file == table && has_all(&engine));
        assert_eq!(discard_all(&engine), 1);
        assert!(engine.quarantined().is_empty() && has_all(&engine));
        engine.close().expect("closes");
        drop(engine);
        let engine = open(damaged, tiny()).expect("reopens");
        assert!(has_all(&engine) && engine.scrub().expect("scrubs").damaged.is_empty());
    }
}

/// A store on real files, and how many of its tables rotted under it when it was open: those of
/// which `place` names bytes, by what the table holds and the number of its blocks.
fn rotten_store(
    dir: &Path,
    with: u8,
    place: impl Fn(&[u8], usize) -> Range<usize>,
) -> (Engine, usize) {
    let environment = Environment { vfs: Arc::new(OsVfs), clock: Arc::new(StoppedClock) };
    let options = Options { memtable_bytes: 64 << 10, table_bytes: 8 << 10, ..tiny() };
    let engine = Engine::open_in(dir, options, Arc::new(ROWS), environment).expect("opens");
    fill(&engine);
    engine.compact_all().expect("compacts");
    let view = engine.shared.super_version.load_full();
    let rotten = view.version.tables().filter(|table| {
        let place = place(&bytes_of(&OsVfs, table.path()), table.blocks());
        let file = OsVfs.open(table.path()).expect("opens");
        file.write_at(place.start as u64, &vec![with; place.len()]).expect("writes");
        !place.is_empty()
    });
    let rotten = rotten.count();
    drop(view);
    assert!(rotten > 0);
    (engine, rotten)
}

/// Filters and indexes that rot under an open store: whoever believes them says that there is no
/// row. From the moment damage is found in them they are not asked any more, so nobody is told
/// that, and no state is made of nothing that would hide the row for good.
#[test]
fn a_filter_or_index_that_rots_after_the_open_is_believed_no_more_once_it_is_found() {
    for part in [FILTER, INDEX] {
        let dir = tempfile::tempdir().expect("a directory");
        let with = if part == FILTER { 0 } else { 0xFF };
        let (engine, rotten) = rotten_store(dir.path(), with, |bytes, blocks| {
            let Range { start, end } = section(bytes, part);
            // The bits of the one, the separators of the other.
            if part == FILTER { start + 45..end - 16 } else { start + 8..start + 8 * blocks }
        });
        let missed = (0..400).filter(|n| matches!(engine.get(&key(*n)), Ok(None))).count();
        assert!(missed > 0, "which nobody can tell yet");

        let found = engine.scrub().expect("the quarantine is written").damaged;
        assert_eq!(found.len(), rotten, "{found:?}");
        let mut refused = 0;
        for n in 0..400 {
            match engine.get(&key(n)) {
                Ok(row) => assert!(row.is_some(), "key {n} of {part}"),
                Err(Error::Corruption(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
            let made = engine.update::<Error>(&[&key(n)[..]], |_, row, _| {
                assert!(row.is_some(), "key {n} of {part}");
                Ok(row.map(<[u8]>::to_vec))
            });
            assert!(matches!(made, Ok(_) | Err(Error::Corruption(_))), "{made:?}");
        }
        assert_eq!(refused > 0, part == INDEX);
        let scanned = engine.scan(&[], None).and_then(|mut scan| {
            let mut rows = 0;
            while scan.next()?.is_some() {
                rows += 1;
            }
            Ok(rows)
        });
        match part {
            FILTER => assert_eq!(scanned.expect("scans"), 400),
            _ => assert!(matches!(scanned, Err(Error::Corruption(_))), "{scanned:?}"),
        }
        assert_eq!(discard_all(&engine), rotten as u64);
        assert!(has_all(&engine) && engine.scrub().expect("scrubs").damaged.is_empty());
    }
}

/// A table of which nobody knows where its blocks are is damaged as a whole: so it is told, once,
/// and so it goes.
#[test]
fn a_table_without_an_index_is_damaged_as_a_whole() {
    for first in [0, 1] {
        let dir = tempfile::tempdir().expect("a directory");
        let (engine, rotten) = rotten_store(dir.path(), 0xFF, |bytes, blocks| {
            let Range { start, .. } = section(bytes, INDEX);
            let places = start + 8 * blocks;
            places + 8 * first..places + 8 * (blocks + 1)
        });
        for pass in 0..2 {
            let found = engine.scrub().expect("the quarantine is written").damaged;
            assert!(found.len() > rotten, "{found:?}");
            assert_eq!(engine.quarantined().len(), rotten, "pass {pass}");
        }
        let is_refused = |n: u64| matches!(engine.get(&key(n)), Err(Error::Corruption(_)));
        assert!((0..400).all(is_refused));
        assert_eq!(discard_all(&engine), rotten as u64);
        assert!(engine.quarantined().is_empty());
        assert!((0..400).all(|n| engine.get(&key(n)).expect("readable").is_none()));
    }
}
