//! The memtable against a map, and its walk.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, Sender, channel};

use proptest::prelude::*;

use super::*;
use crate::engine::newest::Newest;
use crate::engine::sstable::KeyHash;

fn memtable(bytes: usize) -> Arc<Memtable> {
    Blank::new(bytes, &Arc::default(), &Arc::default()).into_memtable(1)
}

fn insert(memtable: &Memtable, key: &[u8], kind: Kind, row: &[u8]) {
    insert_at(memtable, key, Record { kind, row }, Position::ZERO);
}

fn insert_at(memtable: &Memtable, key: &[u8], record: Record<'_>, end: Position) {
    let logged = Logged { record, end };
    memtable.insert(key, KeyHash::new(key).hash(), logged, &Newest).expect("a state of Newest");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// One record a key, joined in place; Full stays Full; it says how far the log went with its
    /// newest write; the walk is in key order.
    #[test]
    fn behaves_as_a_map_of_joins(
        writes in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..12), 0..9u64, any::<bool>()), 0..200),
    ) {
        let memtable = memtable(4096);
        let mut model: BTreeMap<Vec<u8>, (Kind, Vec<u8>, Position)> = BTreeMap::new();
        for (at, (key, time, full)) in writes.iter().enumerate() {
            let row = Newest::value(*time, key);
            let end = Position::new(1, at as u32);
            let old = model.get(key).cloned();
            // A Full is made from what was read, so it contains it.
            let (kind, row) = match (full, &old) {
                (true, Some((_, old, _))) => (Kind::Full, row.max(old.clone())),
                (true, None) => (Kind::Full, row),
                (false, _) => (Kind::Delta, row),
            };
            insert_at(&memtable, key, Record { kind, row: &row }, end);
            let kind = old.as_ref().map_or(kind, |(old, ..)| kind.over(*old));
            let row = old.map_or(row.clone(), |(_, old, _)| old.max(row));
            model.insert(key.clone(), (kind, row, end));
        }
        prop_assert_eq!(memtable.entries(), model.len());
        let mut walk = Walk::new(memtable.clone());
        walk.seek_to_first();
        for (key, (kind, row, end)) in &model {
            prop_assert_eq!(walk.key(), Some(&key[..]));
            let record = Record { kind: *kind, row };
            prop_assert_eq!(walk.logged(), Some(Logged { record, end: *end }));
            prop_assert_eq!(memtable.get(key, KeyHash::new(key).hash()), walk.logged());
            walk.next();
        }
        prop_assert_eq!(walk.key(), None);
        for (key, ..) in &writes {
            let mut past = key.clone();
            past.push(0);
            prop_assert_eq!(
                memtable.get(&past, KeyHash::new(&past).hash()).is_some(),
                model.contains_key(&past)
            );
            walk.seek(&past);
            let expected = model.range(past..).next().map(|(key, _)| &key[..]);
            prop_assert_eq!(walk.key(), expected);
        }
    }
}

/// Readers and walks run beside writers of other keys; this leans on every unsafe block of the
/// list: unprotected guards, records replaced under a reader, and a walk that owns its list.
#[test]
fn readers_see_whole_records_beside_writers() {
    let memtable = memtable(1 << 20);
    let keys: Vec<Vec<u8>> = (0..200u32).map(|i| format!("key-{i:04}").into_bytes()).collect();
    std::thread::scope(|scope| {
        for part in 0..2 {
            let (memtable, keys) = (&memtable, &keys);
            scope.spawn(move || {
                for time in 1..200u64 {
                    for key in keys.iter().skip(part).step_by(2) {
                        let row = Newest::value(time, &time.to_be_bytes().repeat(9));
                        insert(memtable, key, Kind::Delta, &row);
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                let mut walk = Walk::new(memtable.clone());
                walk.seek_to_first();
                let mut last: Vec<u8> = Vec::new();
                while let (Some(key), Some(logged)) = (walk.key(), walk.logged()) {
                    assert!(key > &last[..]);
                    let record = logged.record;
                    let time = u64::from_be_bytes(record.row[..8].try_into().unwrap()) >> 1;
                    assert_eq!(record.row[8..], time.to_be_bytes().repeat(9));
                    last = key.to_vec();
                    walk.next();
                }
            }
        });
    });
    assert_eq!(memtable.entries(), keys.len());
    for key in &keys {
        let record = memtable.get(key, KeyHash::new(key).hash()).expect("inserted").record;
        assert_eq!(record.row[..8], (2 * 199u64).to_be_bytes());
    }
}

/// A walk keeps its memtable alive after everybody else has let go of it.
#[test]
fn a_walk_owns_its_list() {
    let memtable = memtable(1 << 10);
    insert(&memtable, b"a", Kind::Delta, &Newest::value(1, b"x"));
    let mut walk = Walk::new(memtable);
    walk.seek(b"a");
    let walk = std::thread::spawn(move || walk).join().expect("no panic");
    assert_eq!(walk.key(), Some(&b"a"[..]));
}

/// Whoever lets go of it last goes on at once; its nodes are freed elsewhere.
#[test]
fn who_drops_it_last_does_not_free_its_nodes() {
    struct Hold(Sender<()>, Receiver<()>);
    impl Drop for Hold {
        fn drop(&mut self) {
            // The reaper is here, and stays until it is told.
            self.0.send(()).expect("the test waits");
            self.1.recv().expect("the test tells");
        }
    }
    let reaper = Arc::new(Reaper::default());
    reaper.start().expect("a thread");
    let ((here, is_here), (go, may_go)) = (channel(), channel());
    reaper.free(Hold(here, may_go));
    is_here.recv().expect("it comes");
    let memtable = Blank::new(1 << 10, &Arc::default(), &reaper).into_memtable(1);
    insert(&memtable, b"a", Kind::Delta, &Newest::value(1, b"x"));
    drop(memtable);
    assert_eq!(format!("{reaper:?}"), "Reaper { waiting: 1 }");
    go.send(()).expect("it waits");
    reaper.stop();
    assert_eq!(format!("{reaper:?}"), "Reaper { waiting: 0 }");
}

/// A flush waits for a writer that picked the memtable before the seal.
#[test]
fn sealing_waits_for_the_writers_that_picked_it() {
    let memtable = memtable(1 << 10);
    memtable.add_writer();
    memtable.seal(Position::new(1, 64));
    let flush = std::thread::spawn({
        let memtable = memtable.clone();
        move || {
            memtable.wait_for_writers();
            memtable.entries()
        }
    });
    insert(&memtable, b"late", Kind::Delta, &Newest::value(1, b""));
    memtable.remove_writer();
    assert_eq!(flush.join().expect("no panic"), 1);
}
