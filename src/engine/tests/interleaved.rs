//! Operations in the middle of others, against the join of what was applied.
//!
//! The model that the engine's rules were found with cuts every operation into steps and mixes
//! them. Here one thread runs a history, and at the hooks of an operation others run to their end:
//! those that would not wait for a lock which the outer one holds. A crash may come at a hook too.
//!
//! What is checked, for each key:
//! 1. a read is at or above the join of what was applied before it began, except for what a floor
//!    lets go, and shows nothing that was never written;
//! 2. after a crash the same holds for what was durable.

mod history;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use proptest::prelude::*;

use history::{Held, Op, Step, step};

use super::row::{Dot, Row};
use super::{effort, open, run_hook, tiny};
use crate::engine::rules::open_without;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options};

const KEYS: usize = 3;

fn key(n: usize) -> [u8; 2] {
    [b'k', b'0' + n as u8]
}

/// What is known of the rows, as the model keeps it.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The join of what was applied.
    must: [Row; KEYS],
    /// The join of what is durable.
    durable: [Row; KEYS],
    /// The join of everything that was ever made.
    issued: [Row; KEYS],
    /// The other node.
    remote: [Row; KEYS],
    /// What it sent, by key.
    messages: Vec<(usize, Row)>,
    floor: u64,
}

/// The versions that are no tombstones.
fn values(row: &Row) -> Vec<Dot> {
    let values = row.live.iter().filter(|(_, value)| value.is_some());
    values.map(|(dot, _)| *dot).collect()
}

/// Whether `row` is at or below `issued`, but for the tombstones that a floor lets go.
fn was_issued(row: &Row, issued: &Row) -> bool {
    let both = issued.join(row);
    both.clock == issued.clock && values(&both) == values(issued)
}

/// Whether `row` is at or above `low`, except for what a floor lets go: tombstones, and clock
/// entries at or below it.
fn covers(low: &Row, row: &Row, issued: &Row, now: &Row, floor: u64) -> bool {
    let kept = values(low).iter().all(|dot| {
        // Gone is right only if somebody superseded it, and then that is known here.
        let superseded =
            !issued.live.contains_key(dot) && (row.has_seen(*dot) || !now.live.contains_key(dot));
        row.live.contains_key(dot) || superseded
    });
    let dead = values(row).iter().all(|dot| low.live.contains_key(dot) || !low.has_seen(*dot));
    let clock = |row: &Row, actor| row.clock.get(&actor).copied().unwrap_or(0);
    let seen = low.clock.iter().all(|(actor, t)| clock(row, *actor) >= *t || *t <= floor);
    kept && dead && seen
}

fn decode(row: Option<&[u8]>) -> Row {
    row.map_or_else(Row::default, |row| Row::decode(row).expect("a row of these tests"))
}

/// The engine, the model, and how deep in each other the operations are.
struct Rig {
    removed: Vec<&'static str>,
    options: Options,
    disk: Mutex<MemVfs>,
    engine: Mutex<Option<Arc<Engine>>>,
    known: Mutex<Known>,
    /// What the operations under way hold, innermost last.
    held: Mutex<Vec<Held>>,
    /// What a crash in this step left, and what was known at that moment.
    crashed: Mutex<Option<(MemVfs, Known)>>,
    time: AtomicU64,
    /// The first thing found wrong.
    wrong: Mutex<Option<String>>,
}

impl Rig {
    /// An empty store without these rules; `deep`: with enough other rows to have several levels.
    fn new(removed: &[&'static str], deep: bool) -> Arc<Self> {
        let options = Options {
            // Sealed by the history alone: a writer that has to make room would wait for a flush.
            memtable_bytes: 64 << 10,
            level0_tables_trigger: 2,
            level0_tables_stop: 10_000,
            row_cache_ttl_ms: 0,
            // Only what a filter lets through in vain comes into the cache as absent.
            filter_bits_per_key: if deep { 0 } else { 10 },
            base_level_bytes: 1 << 10,
            level_ratio: 2,
            ..tiny()
        };
        let rig = Arc::new(Self {
            removed: removed.to_vec(),
            options,
            disk: Mutex::new(MemVfs::new()),
            engine: Mutex::new(None),
            known: Mutex::default(),
            held: Mutex::default(),
            crashed: Mutex::default(),
            time: AtomicU64::new(0),
            wrong: Mutex::default(),
        });
        rig.open();
        if deep {
            let row = Row::default().write(9, u64::MAX - 1, false, Some(0)).encode();
            let keys = (0..120).map(|n| format!("{}-{n:03}", if n < 60 { 'j' } else { 'l' }));
            let rows = keys.map(|key| Ok((key.into_bytes(), row.clone())));
            rig.engine().ingest(&mut rows.into_iter()).expect("taken");
            rig.engine().compact_all().expect("compacts");
            // Keys that were missed before get an entry at their next miss.
            (0..KEYS).for_each(|n| drop(rig.engine().get(&key(n)).expect("reads")));
        }
        rig
    }

    fn open(&self) {
        let vfs = self.disk.lock().clone();
        let opened = || open(Arc::new(vfs), self.options.clone()).expect("opens");
        *self.engine.lock() = Some(Arc::new(open_without(&self.removed, opened)));
    }

    fn engine(&self) -> Arc<Engine> {
        self.engine.lock().clone().expect("open between steps")
    }

    fn wrong(&self, what: &str, n: usize, row: &Row, low: &Row) {
        let what = format!("{what}: key {n}, {row:?} for at least {low:?}");
        self.wrong.lock().get_or_insert(what);
    }

    /// Runs a step; what its hooks did not reach is forgotten.
    fn step(self: &Arc<Self>, (op, inner): &Step) {
        let engine = self.engine();
        for (hook, op) in inner {
            let (rig, op, hook) = (Arc::downgrade(self), op.clone(), *hook);
            let run = move |_: &_| {
                let rig: Arc<Self> = Weak::upgrade(&rig).expect("in a step of the rig");
                rig.run_nested(hook, &op);
            };
            engine.shared.hooks.lock().insert(hook, Box::new(run));
        }
        self.run(op, Held::default());
        engine.shared.hooks.lock().clear();
        drop(engine);
        let crashed = self.crashed.lock().take();
        if let Some((disk, known)) = crashed {
            self.recover(disk, known);
        }
    }

    fn run_nested(&self, hook: &str, op: &Op) {
        let mut held = self.held.lock().last().copied().unwrap_or_default().with(hook);
        held.writer &= !self.removed.contains(&"writer_reference");
        // What runs in the middle of an operation after the crash never was.
        if held.allows(op) && self.crashed.lock().is_none() {
            self.run(op, held);
        }
    }

    fn run(&self, op: &Op, held: Held) {
        match op {
            Op::Update { key, covers, value } => self.update(*key, *covers, *value, held),
            Op::Remote { key, covers, value, saw_us } => {
                let mut known = self.known.lock();
                let time = self.tick();
                let us = saw_us.then(|| known.must[*key].clone()).unwrap_or_default();
                let row = known.remote[*key].join(&us).write(2, time, *covers, *value);
                known.remote[*key] = row.clone();
                known.messages.push((*key, row));
            }
            Op::Deliver(message) => self.deliver(*message, held),
            Op::Ingest(message) => self.ingest(*message, held),
            Op::Get(n) => {
                let low = self.known.lock().must[*n].clone();
                let row = self.holding(held, || self.engine().get(&key(*n)).expect("reads"));
                self.check_read("get", *n, &low, &decode(row.as_deref()));
            }
            Op::Scan => self.scan(held),
            Op::Seal => drop(self.engine().shared.seal(false)),
            Op::Flush => self.holding(held, || {
                self.engine().shared.flush_first().expect("flushes");
            }),
            Op::Compact => self.holding(held, || {
                let engine = self.engine();
                // Tables grow old, so that idle ones are looked at.
                engine.shared.now_ms.fetch_add(1 << 33, Ordering::Relaxed);
                engine.shared.compact_once().expect("compacts");
            }),
            Op::CompactAll => self.holding(Held { compact: true, ..held }, || {
                self.engine().compact_all().expect("compacts");
            }),
            Op::Sync => {
                let must = self.known.lock().must.clone();
                let log = &self.engine().shared.log;
                log.sync(log.appended_upto()).expect("syncs");
                self.known.lock().durable = must;
            }
            Op::Floor => self.floor(held),
            Op::Crash(seed) => {
                let disk = self.disk.lock();
                let left = match seed % 3 {
                    0 => disk.crash_clone_kill(),
                    _ => disk.crash_clone(*seed),
                };
                *self.crashed.lock() = Some((left, self.known.lock().clone()));
            }
        }
    }

    fn tick(&self) -> u64 {
        self.time.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn holding<R>(&self, held: Held, run: impl FnOnce() -> R) -> R {
        self.held.lock().push(held);
        let done = run();
        self.held.lock().pop();
        done
    }

    /// `held` and the stripe of a key; without stripe locks nothing more is held.
    fn with_stripe(&self, n: usize, mut held: Held) -> Held {
        held.keys[n] |= !self.removed.contains(&"stripe_lock");
        held
    }

    fn update(&self, n: usize, covers: bool, value: Option<u32>, held: Held) {
        let mut made = Row::default();
        self.holding(self.with_stripe(n, held), || {
            let make = |_, row: Option<&[u8]>, guard| {
                let time = self.tick();
                assert!(time > guard, "the node's clock is above every floor");
                made = decode(row).write(1, time, covers, value);
                let issued = &mut self.known.lock().issued[n];
                *issued = issued.join(&made);
                Ok::<_, Error>(Some(made.encode()))
            };
            self.engine().update(&[&key(n)], make).expect("taken");
        });
        let must = &mut self.known.lock().must[n];
        *must = must.join(&made);
    }

    fn message(&self, message: usize) -> Option<(usize, Row)> {
        let known = self.known.lock();
        let count = known.messages.len().max(1);
        known.messages.get(message % count).cloned()
    }

    fn deliver(&self, message: usize, held: Held) {
        let Some((n, row)) = self.message(message) else { return };
        if held.keys[n] {
            return;
        }
        let guard = self.engine().shared.guards.get(0);
        let mut taken = row.clone();
        {
            let mut known = self.known.lock();
            taken.live.retain(|dot, _| dot.1 > guard || known.must[n].live.contains_key(dot));
            known.issued[n] = known.issued[n].join(&taken);
        }
        self.holding(self.with_stripe(n, held), || {
            self.engine().apply(&[(&key(n), &row.encode())]).expect("taken");
        });
        let must = &mut self.known.lock().must[n];
        *must = must.join(&taken);
    }

    fn ingest(&self, message: usize, held: Held) {
        let Some((n, row)) = self.message(message) else { return };
        {
            let mut known = self.known.lock();
            known.issued[n] = known.issued[n].join(&row);
        }
        let taken = self.holding(Held { ingest: true, ..held }, || {
            let rows = [Ok((key(n).to_vec(), row.encode()))];
            self.engine().ingest(&mut rows.into_iter())
        });
        match taken {
            Ok(_) => {
                let mut known = self.known.lock();
                known.must[n] = known.must[n].join(&row);
                known.durable[n] = known.durable[n].join(&row);
            }
            Err(Error::BelowSafePoint) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn scan(&self, held: Held) {
        let low = self.known.lock().must.clone();
        let engine = self.engine();
        let mut found: [Row; KEYS] = Default::default();
        self.holding(held, || {
            let mut scan = engine.scan(b"k", Some(b"l")).expect("scans");
            run_hook(&engine.shared, "scan:pinned");
            while let Some((key, row)) = scan.next().expect("scans") {
                found[usize::from(key[1] - b'0')] = decode(Some(row));
            }
        });
        for n in 0..KEYS {
            self.check_read("scan", n, &low[n], &found[n]);
        }
    }

    fn check_read(&self, what: &str, n: usize, low: &Row, row: &Row) {
        let mut known = self.known.lock();
        if !covers(low, row, &known.issued[n], &known.must[n], known.floor) {
            self.wrong(&format!("{what} lost or brought back"), n, row, low);
        }
        if !was_issued(row, &known.issued[n]) {
            self.wrong(&format!("{what} shows what never was"), n, row, low);
        }
        known.must[n] = known.must[n].join(row);
    }

    fn floor(&self, held: Held) {
        let must = {
            let known = self.known.lock();
            let floor = self.time.load(Ordering::Relaxed);
            let complete = (0..KEYS).all(|n| {
                known.must[n].contains(&known.remote[n]) && known.must[n].contains(&known.issued[n])
            });
            if !complete || floor <= known.floor {
                return;
            }
            known.must.clone()
        };
        let floor = self.tick();
        self.holding(Held { ingest: true, ..held }, || {
            self.engine().fence(0..=0, floor).expect("fences");
            self.known.lock().floor = floor;
            self.engine().set_floor(0..=0, floor).expect("sets the floor");
        });
        // What the floor vouches for.
        let mut known = self.known.lock();
        for (durable, row) in known.durable.iter_mut().zip(&must) {
            *durable = durable.join(row);
        }
    }

    /// Opens what a crash left and looks what is there.
    fn recover(&self, disk: MemVfs, known: Known) {
        *self.engine.lock() = None;
        *self.disk.lock() = disk;
        self.open();
        let mut known = Known { must: known.durable.clone(), ..known };
        for n in 0..KEYS {
            let row = decode(self.engine().get(&key(n)).expect("reads").as_deref());
            let (low, issued) = (&known.durable[n], &known.issued[n]);
            if !covers(low, &row, issued, low, known.floor) {
                self.wrong("lost or brought back by a crash", n, &row, low);
            }
            if !was_issued(&row, issued) {
                self.wrong("a crash shows what never was", n, &row, low);
            }
            // The rest is gone for good, except for what the other node has seen.
            known.must[n] = low.join(&row);
            known.durable[n] = known.must[n].clone();
            known.issued[n] = known.must[n].join(&known.remote[n]);
        }
        *self.known.lock() = known;
    }
}

/// Runs a history, then looks at everything, before and after all is compacted and after a crash.
/// Says what was wrong.
fn run(removed: &[&'static str], deep: bool, steps: &[Step]) -> Option<String> {
    let rig = Rig::new(removed, deep);
    let look = (0..KEYS).map(Op::Get).chain([Op::Scan]);
    let rest = look.clone().chain([Op::Sync, Op::Crash(0), Op::CompactAll]).chain(look);
    let rest: Vec<Step> = rest.map(|op| (op, Vec::new())).collect();
    for step in steps.iter().chain(&rest) {
        rig.step(step);
        if rig.wrong.lock().is_some() {
            break;
        }
    }
    rig.wrong.lock().take()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(effort(300)))]

    /// Whatever runs in the middle of what, nothing is lost and nothing dead comes back.
    #[test]
    fn reads_are_the_join_of_what_was_applied(
        deep in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..70),
    ) {
        prop_assert_eq!(run(&[], deep, &steps), None);
    }
}

/// Rules whose absence is seen by one of a thousand histories. The others need a crash, a job that
/// stands still or a floor at a moment that is rarer; `rules` has a history for each.
const SOON_MISSED: &[&str] = &[
    "stripe_lock",
    "generation_check",
    "writer_reference",
    "whole_row_in_log",
    "one_super_version",
    "cache_epoch_tag",
    "cache_fix_before_swap",
    "cache_negative_fix",
    "demote_full",
    "ingest_waits_in_queue",
    "ingest_no_full_while_queued",
    "promote_a_older",
    "promote_b_oldest",
    "exact_replay",
    "purge_all_tables",
    "guard",
    "ingest_filter",
    "floor_after_sync",
];

/// The search is worth something: without a rule it finds damage.
#[test]
fn a_removed_rule_shows() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let is_seen = |rule: &'static str| {
        let mut runner = TestRunner::deterministic();
        let histories = (any::<bool>(), proptest::collection::vec(step(), 1..70));
        (0..1000).any(|_| {
            let (deep, steps) = histories.new_tree(&mut runner).expect("generates").current();
            run(&[rule], deep, &steps).is_some()
        })
    };
    let unseen: Vec<_> = SOON_MISSED.iter().filter(|rule| !is_seen(rule)).collect();
    assert!(unseen.is_empty(), "without {unseen:?} nothing was found wrong");
}
