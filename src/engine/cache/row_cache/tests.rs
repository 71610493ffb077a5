//! The cache against models of the tables below it.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::RwLock;
use std::thread;

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::*;

/// Rows are numbers, their join is the greater one.
struct Max;

fn number(row: &[u8]) -> Result<u64, MergeError> {
    row.try_into().map(u64::from_be_bytes).map_err(|_| MergeError("not a number".into()))
}

impl MergeOperator for Max {
    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        out.extend_from_slice(&number(a)?.max(number(b)?).to_be_bytes());
        Ok(())
    }
}

const CAPACITY: usize = 1 << 20;

fn key(i: u64) -> [u8; 8] {
    i.to_be_bytes()
}

fn row(value: u64) -> Cached {
    Cached::Row(Arc::from(value.to_be_bytes()))
}

fn get(cache: &RowCache, i: u64) -> Option<Cached> {
    cache.get(&key(i), xxh3_64(&key(i)), 0, Cached::clone)
}

fn fill(cache: &RowCache, i: u64, cached: Cached, epoch: u64) -> bool {
    cache.fill(&key(i), xxh3_64(&key(i)), cached, epoch, 0)
}

fn fix(cache: &RowCache, i: u64, kind: Kind, value: u64) {
    cache.fix(&key(i), xxh3_64(&key(i)), kind, &value.to_be_bytes(), &Max).unwrap();
}

/// Rule `cache_epoch_tag`: a reader on an old version whose fill comes after the install of a new
/// one would leave a stale entry for ever.
#[test]
fn cache_epoch_tag() {
    let cache = RowCache::new(CAPACITY, 0);
    // The reader pins epoch 0 and finds nothing; a flush of the key runs; the reader fills.
    cache.begin_epoch(1);
    fix(&cache, 1, Kind::Delta, 5);
    assert!(!fill(&cache, 1, Cached::Negative, 0));
    assert_eq!(get(&cache, 1), None);
    assert!(fill(&cache, 1, row(5), 1));
    assert_eq!(get(&cache, 1), Some(row(5)));
}

/// Rule `cache_negative_fix`: a key read as absent, then written and flushed, must not stay
/// absent, whatever the kind of the record.
#[test]
fn cache_negative_fix() {
    for kind in [Kind::Delta, Kind::Full] {
        let cache = RowCache::new(CAPACITY, 0);
        assert!(fill(&cache, 1, Cached::Negative, 0));
        assert_eq!(get(&cache, 1), Some(Cached::Negative));
        cache.begin_epoch(1);
        fix(&cache, 1, kind, 5);
        assert_eq!(get(&cache, 1), Some(row(5)));
    }
}

/// A Full replaces, a Delta joins, a key that is not there stays away.
#[test]
fn fix_follows_the_kind() {
    let cache = RowCache::new(CAPACITY, 0);
    fill(&cache, 1, row(7), 0);
    fix(&cache, 1, Kind::Delta, 5);
    assert_eq!(get(&cache, 1), Some(row(7)));
    fix(&cache, 1, Kind::Full, 5);
    assert_eq!(get(&cache, 1), Some(row(5)));
    fix(&cache, 2, Kind::Full, 5);
    assert_eq!(get(&cache, 2), None);
}

/// An entry that cannot be brought up to date is dropped, never left behind: unreadable rows, and
/// rows that have grown too large.
#[test]
fn fix_drops_what_it_cannot_fix() {
    let cache = RowCache::new(CAPACITY, 0);
    let hash = xxh3_64(&key(1));
    fill(&cache, 1, row(7), 0);
    assert!(cache.fix(&key(1), hash, Kind::Delta, b"unreadable", &Max).is_err());
    assert_eq!(get(&cache, 1), None);
    fill(&cache, 1, row(7), 0);
    cache.fix(&key(1), hash, Kind::Full, &[0; CAPACITY / 64], &Max).unwrap();
    assert_eq!(get(&cache, 1), None);
    cache.check();
}

/// Age evicts; a fix does not make an entry younger, a fill does.
#[test]
fn entries_leave_by_age() {
    let cache = RowCache::new(CAPACITY, 100);
    let hash = xxh3_64(&key(1));
    let get = |now_ms| cache.get(&key(1), hash, now_ms, Cached::clone);
    let fill = |now_ms| cache.fill(&key(1), hash, row(7), 0, now_ms);
    assert!(fill(1_000));
    fix(&cache, 1, Kind::Delta, 8);
    assert_eq!(get(1_100), Some(row(8)));
    assert_eq!(get(1_101), None);
    assert_eq!(get(1_050), None, "the entry is gone, not hidden");
    assert!(fill(2_000) && fill(2_090));
    assert_eq!(get(2_190), Some(row(7)));
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.evictions, stats.entries), (2, 2, 1, 1));
}

/// A range is forgotten, its neighbours are not.
#[test]
fn drop_range_drops_the_range() {
    let cache = RowCache::new(CAPACITY, 0);
    (0..100).for_each(|i| assert!(fill(&cache, i, row(i), 0)));
    let (start, end) = (key(20), key(30));
    cache.drop_range(&(Bound::Included(&start[..]), Bound::Excluded(&end[..])));
    for i in 0..100 {
        assert_eq!(get(&cache, i).is_none(), (20..30).contains(&i), "key {i}");
    }
    cache.drop_range(&(Bound::Unbounded, Bound::Unbounded));
    let stats = cache.stats();
    assert_eq!((stats.entries, stats.bytes), (0, 0));
    cache.check();
}

/// Two keys of one hash: the later one has the place, neither answers for the other.
#[test]
fn equal_hashes_are_told_apart() {
    let cache = RowCache::new(CAPACITY, 0);
    let get = |key: &[u8]| cache.get(key, 42, 0, Cached::clone);
    assert!(cache.fill(b"a", 42, row(1), 0, 0));
    assert_eq!(get(b"b"), None);
    cache.fix(b"b", 42, Kind::Full, &[9; 8], &Max).unwrap();
    assert_eq!(get(b"a"), Some(row(1)));
    assert!(cache.fill(b"b", 42, row(2), 0, 0));
    assert_eq!((get(b"a"), get(b"b")), (None, Some(row(2))));
    cache.check();
}

/// Memory is bounded, one row cannot take it all, and capacity 0 is off.
#[test]
fn capacity_bounds_the_cache() {
    let cache = RowCache::new(CAPACITY, 0);
    for i in 0..20_000 {
        let size = (xxh3_64(&key(i)) % 3_000) as usize;
        fill(&cache, i, Cached::Row(vec![0; size].into()), 0);
        assert!(i % 1_000 != 0 || cache.stats().bytes <= CAPACITY as u64);
    }
    cache.check();
    let stats = cache.stats();
    assert!(stats.bytes <= CAPACITY as u64 && stats.bytes > CAPACITY as u64 * 8 / 10);
    assert_eq!(stats.entries + stats.evictions, 20_000);

    let large = Cached::Row(vec![0; CAPACITY / 64].into());
    assert!(!fill(&cache, 0, large, 0));

    let off = RowCache::new(0, 0);
    off.begin_epoch(1);
    assert!(!off.is_on() && !fill(&off, 1, row(1), 1));
    assert_eq!((get(&off, 1), off.stats()), (None, RowCacheStats::default()));
}

/// A scan of ten times the cache does not wash out what is read again and again.
#[test]
fn scans_leave_the_hot_rows_alone() {
    let cache = RowCache::new(CAPACITY, 0);
    let hot = 2_000;
    for _ in 0..3 {
        for i in 0..hot {
            if get(&cache, i).is_none() {
                fill(&cache, i, row(i), 0);
            }
        }
    }
    for i in 0..50_000 {
        fill(&cache, 1_000_000 + i, row(i), 0);
    }
    let kept = (0..hot).filter(|i| get(&cache, *i).is_some()).count();
    assert!(kept as u64 > hot * 9 / 10, "{kept} of {hot}");
}

#[derive(Clone, Debug)]
enum Op {
    /// A flush of one key.
    Flush(u64, Kind, u64),
    /// A read: a hit must be the truth; a miss fills with it.
    Read(u64),
    /// A reader that pinned its version this many flushes ago fills now.
    LateFill(u64, usize),
    DropRange(u64, u64),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0_u64..300;
    let kind = prop_oneof![Just(Kind::Delta), Just(Kind::Full)];
    prop_oneof![
        3 => (key.clone(), kind, 0_u64..50).prop_map(|(key, kind, add)| Op::Flush(key, kind, add)),
        9 => key.clone().prop_map(Op::Read),
        2 => (key.clone(), 0_usize..4).prop_map(|(key, ago)| Op::LateFill(key, ago)),
        1 => (key, 0_u64..20).prop_map(|(start, len)| Op::DropRange(start, start + len)),
        1 => (0_u64..60).prop_map(Op::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is filled, fixed, dropped, evicted and however late: a hit is what the tables hold.
    #[test]
    fn a_hit_is_the_truth(ops in proptest::collection::vec(op(), 1..500)) {
        // Room for about fifty of three hundred keys.
        let cache = RowCache::new(16 << 10, 100);
        let mut versions = vec![HashMap::<u64, u64>::new()];
        let mut now_ms = 0;
        let state = |value: Option<&u64>| value.map_or(Cached::Negative, |value| row(*value));
        for op in ops {
            let epoch = versions.len() - 1;
            let truth = &versions[epoch];
            match op {
                Op::Flush(i, kind, add) => {
                    // A Full is the newest state; a Delta may be late.
                    let old = truth.get(&i).copied();
                    let value = match kind {
                        Kind::Full => old.unwrap_or(100) + add,
                        Kind::Delta => 100 + add,
                    };
                    let mut truth = truth.clone();
                    truth.insert(i, value.max(old.unwrap_or(0)));
                    versions.push(truth);
                    cache.begin_epoch(epoch as u64 + 1);
                    fix(&cache, i, kind, value);
                }
                Op::Read(i) => {
                    let expected = state(truth.get(&i));
                    let hash = xxh3_64(&key(i));
                    match cache.get(&key(i), hash, now_ms, Cached::clone) {
                        Some(found) => prop_assert_eq!(found, expected),
                        None => prop_assert!(
                            cache.fill(&key(i), hash, expected, epoch as u64, now_ms)
                        ),
                    }
                }
                Op::LateFill(i, ago) => {
                    let pinned = epoch.saturating_sub(ago);
                    let found = state(versions[pinned].get(&i));
                    let taken = cache.fill(&key(i), xxh3_64(&key(i)), found, pinned as u64, now_ms);
                    prop_assert_eq!(taken, pinned == epoch);
                }
                Op::DropRange(start, end) => {
                    let (start, end) = (key(start), key(end));
                    let range: (Bound<&[u8]>, _) = (Bound::Included(&start), Bound::Excluded(&end));
                    cache.drop_range(&(range.0, range.1.map(|end| &end[..])));
                }
                Op::Wait(ms) => now_ms += ms,
            }
            cache.check();
        }
    }
}

/// Readers that pin, look, and fill run beside a flusher. No reader may get less than its pinned
/// version holds, and at the end no entry lags behind the tables.
#[test]
fn readers_and_a_flusher_agree() {
    const KEYS: u64 = 64;
    let cache = RowCache::new(CAPACITY, 0);
    // What is installed: the cache epoch and the tables.
    let installed = RwLock::new((0_u64, Arc::new(HashMap::<u64, u64>::new())));
    let value = |cached: &Cached| match cached {
        Cached::Negative => 0,
        Cached::Row(row) => number(row).unwrap(),
    };
    let read = |i: u64| {
        let (epoch, tables) = installed.read().unwrap().clone();
        let in_tables = tables.get(&i).copied();
        match get(&cache, i) {
            Some(cached) => assert!(value(&cached) >= in_tables.unwrap_or(0), "key {i}"),
            None => {
                // Lets the flusher run between look and fill.
                thread::yield_now();
                fill(&cache, i, in_tables.map_or(Cached::Negative, row), epoch);
            }
        }
    };
    // Without it all keys would soon be cached, and nobody would fill.
    let forget = |i: u64| {
        let key = key(i);
        cache.drop_range(&(Bound::Included(&key[..]), Bound::Included(&key[..])));
    };
    thread::scope(|scope| {
        for reader in 0..3 {
            let read = &read;
            let forget = &forget;
            scope.spawn(move || {
                for i in 0..30_000 {
                    let i = xxh3_64(&key(i * 3 + reader));
                    read(i % KEYS);
                    if i >> 60 == 0 {
                        forget(i % KEYS);
                    }
                }
            });
        }
        scope.spawn(|| {
            for step in 1..3_000 {
                let (epoch, tables) = installed.read().unwrap().clone();
                let flushed = [step, step * 7, step * 31].map(|i| i % KEYS);
                let mut tables = HashMap::clone(&tables);
                tables.extend(flushed.map(|i| (i, step)));
                cache.begin_epoch(epoch + 1);
                let kind = if step % 2 == 0 { Kind::Full } else { Kind::Delta };
                flushed.into_iter().for_each(|i| fix(&cache, i, kind, step));
                *installed.write().unwrap() = (epoch + 1, Arc::new(tables));
            }
        });
    });
    let (_, tables) = installed.into_inner().unwrap();
    for i in 0..KEYS {
        if let Some(cached) = get(&cache, i) {
            assert_eq!(value(&cached), tables[&i], "key {i}");
        }
    }
    assert!(cache.stats().hits > 0);
    cache.check();
}
