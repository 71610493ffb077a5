//! Random histories of flushes and compactions against a map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const KEYS: [&str; 12] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];

#[derive(Clone, Debug)]
enum Step {
    /// Writes of a memtable: key, time above the floor, tombstone, and whether the writer read the
    /// row before (then it may be claimed Full).
    Flush(Vec<(usize, u64, bool, bool)>),
    /// Another node's table: its Fulls are not ours.
    Ingest(Vec<(usize, u64, bool, bool)>),
    Compact,
    CompactAll,
    /// Everything so far is proved.
    Floor,
    Later,
}

fn any_step() -> impl Strategy<Value = Step> {
    let write = || (0..KEYS.len(), 1_u64..40, prop::bool::weighted(0.3), any::<bool>());
    let writes = move || prop::collection::vec(write(), 1..12);
    prop_oneof![
        6 => writes().prop_map(Step::Flush),
        1 => writes().prop_map(Step::Ingest),
        6 => Just(Step::Compact),
        1 => Just(Step::CompactAll),
        1 => Just(Step::Floor),
        1 => Just(Step::Later),
    ]
}

struct History {
    tree: Tree,
    model: BTreeMap<usize, (u64, bool)>,
    floor: u64,
    options: PickerOptions,
    stats: JobStats,
}

impl History {
    fn new() -> Self {
        let mut tree = Tree::new();
        tree.table_bytes = 400;
        let options = Options {
            level0_tables_trigger: 2,
            base_level_bytes: 300,
            level_ratio: 2,
            table_bytes: 400,
            ..Options::default()
        };
        let options = PickerOptions { purge_age_ms: 5, heavy_age_max_ms: 50, ..(&options).into() };
        let (model, stats) = (BTreeMap::new(), JobStats::default());
        Self { tree, model, floor: 0, options, stats }
    }

    fn write(&mut self, writes: &[(usize, u64, bool, bool)], foreign: bool) {
        let mut memtable: BTreeMap<usize, (Kind, (u64, bool))> = BTreeMap::new();
        for (key, time, dead, known) in writes {
            let version = (self.floor + time, *dead);
            let all =
                *self.model.entry(*key).and_modify(|it| *it = version.max(*it)).or_insert(version);
            // A foreign Full holds only what the other node knew.
            let claim = *known && !foreign;
            let cell = memtable.entry(*key).or_insert((Kind::Delta, version));
            cell.1 = if claim { all } else { version.max(cell.1) };
            if *known {
                cell.0 = Kind::Full;
            }
        }
        let records: Vec<TestRecord<'_>> = memtable
            .iter()
            .map(|(key, (kind, (time, dead)))| (KEYS[*key], *kind, *time, *dead))
            .collect();
        self.tree.add(0, foreign, &records);
    }

    fn run(&mut self, all: bool) -> bool {
        let version = self.tree.set.current();
        let picker = Picker::new(version.state(), &[], &self.options, u64::MAX, self.tree.now_ms);
        let job = if all { picker.pick_all(version.state().file_next()) } else { picker.pick() };
        let Some(job) = job else { return false };
        let stats = self.tree.compact(&job, None);
        self.stats.promoted += stats.promoted;
        self.stats.purged += stats.purged;
        true
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Flush(writes) => self.write(writes, false),
            Step::Ingest(writes) => self.write(writes, true),
            Step::Compact => drop(self.run(false)),
            Step::CompactAll => {
                let before = self.tree.set.current().state().file_next();
                loop {
                    let version = self.tree.set.current();
                    let picker = Picker::new(version.state(), &[], &self.options, u64::MAX, 0);
                    let Some(job) = picker.pick_all(before) else { break };
                    self.tree.compact(&job, None);
                }
                let version = self.tree.set.current();
                assert!((0..LEVELS - 1).all(|level| version.level(level).tables().is_empty()));
            }
            Step::Floor => {
                self.floor = self.model.values().map(|it| it.0).max().unwrap_or(0).max(self.floor);
                self.tree.set_floor(self.floor, 1, false);
            }
            Step::Later => self.tree.now_ms += 10,
        }
    }

    fn check(&self) {
        let version = self.tree.set.current();
        for (key, name) in KEYS.iter().enumerate() {
            let expected = self.model.get(&key).filter(|it| !it.1).map(|it| it.0);
            assert_eq!(read(&version, name), expected, "key {name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever is written, ingested, proved and compacted in whatever order, every key reads as
    /// the join of all its writes: nothing is lost, nothing comes back.
    #[test]
    fn compaction_changes_nothing(steps in prop::collection::vec(any_step(), 1..40)) {
        let mut history = History::new();
        for step in &steps {
            history.step(step);
            history.check();
        }
    }
}

/// Left alone, a tree ends at its last level with nothing in it but Fulls that are needed.
#[test]
fn idle_tree_forgets_and_claims_everything() {
    let mut history = History::new();
    for round in 0..6 {
        let writes: Vec<_> = (0..12).map(|key| (key, round + 1, key % 2 == 0, false)).collect();
        history.step(&Step::Flush(writes));
        history.step(&Step::Floor);
        history.step(&Step::Compact);
    }
    for _ in 0..20 {
        history.tree.now_ms += 60;
        while history.run(false) {}
    }
    history.check();
    let version = history.tree.set.current();
    assert!((0..LEVELS - 1).all(|level| version.level(level).tables().is_empty()));
    let tables = || version.tables().map(|table| &table.meta);
    assert_eq!(tables().map(|meta| meta.entries).sum::<u64>(), 6, "the six that are not deleted");
    assert!(tables().all(|meta| meta.deltas == 0 && meta.purgeable == 0));
    assert!(history.stats.promoted > 0 && history.stats.purged > 0);
}

/// Outputs end at the target size, share no key, and hold every input record.
#[test]
fn outputs_are_cut() {
    let mut tree = Tree::new();
    tree.table_bytes = 2_000;
    let names: Vec<String> = (0..300).map(|at| format!("key-{at:04}")).collect();
    let records: Vec<TestRecord<'_>> = names.iter().map(|name| delta(name, 1)).collect();
    let (even, odd): (Vec<_>, Vec<_>) = records.iter().enumerate().partition(|(at, _)| at % 2 == 0);
    let half = |half: &[(usize, &TestRecord<'_>)]| {
        let records: Vec<TestRecord<'_>> = half.iter().map(|(_, record)| **record).collect();
        tree.add(0, false, &records)
    };
    let inputs = [half(&odd), half(&even)];
    let stats = tree.compact(&tree.compaction(&inputs, 6), None);
    assert_eq!((stats.input_records, stats.output_records, stats.promoted), (300, 300, 300));
    let version = tree.set.current();
    let outputs = version.level(6).tables();
    assert!(outputs.len() > 3, "{} outputs", outputs.len());
    assert!(outputs.iter().all(|table| table.meta.bytes < 3_000));
    assert_eq!(outputs.iter().map(|table| table.meta.entries).sum::<u64>(), 300);
    assert!(names.iter().all(|name| tree.read(name) == Some(1)));
}

/// What a record overwrites is counted until it meets it, wherever that was.
#[test]
fn overwrites_are_counted_until_they_meet() {
    let mut tree = Tree::new();
    let names: Vec<String> = (0..100).map(|at| format!("key-{at:04}")).collect();
    let table = |level, count, time| {
        let records: Vec<_> = names[..count].iter().map(|name| delta(name, time)).collect();
        tree.add(level, false, &records)
    };
    let (last, base, newest) = (table(6, 100, 1), table(5, 40, 2), table(0, 100, 3));
    let job = |inputs: &[(u64, u64)], output_level| {
        let numbers: Vec<u64> = inputs.iter().map(|(number, _)| *number).collect();
        let mut job = tree.compaction(&numbers, output_level);
        for (meta, (_, overwrites)) in job.inputs.iter_mut().zip(inputs) {
            Arc::make_mut(meta).overwrites = *overwrites;
        }
        tree.job(&job, None).unwrap().unwrap().edit.added
    };
    // 40 of the newest overwrite those of the base level, which overwrite 40 of the last one.
    let outputs = job(&[(newest, 100), (base, 40)], 5);
    assert_eq!(outputs.iter().map(|table| table.overwrites).collect::<Vec<_>>(), [100]);
    let outputs = job(&[(newest, 100), (base, 40), (last, 0)], 6);
    assert_eq!(outputs.iter().map(|table| table.overwrites).collect::<Vec<_>>(), [0]);

    tree.table_bytes = 1_000;
    let mut job = tree.compaction(&[newest, base], 5);
    Arc::make_mut(&mut job.inputs[0]).overwrites = 100;
    let outputs = tree.job(&job, None).unwrap().unwrap().edit.added;
    assert!(outputs.len() > 1, "one output");
    // 60 of 100, and each table has its part.
    let wrong = |table: &&TableMeta| table.overwrites != table.entries * 60 / 100;
    assert_eq!(outputs.iter().find(wrong), None);
}

/// What an input has lost to an excision is not counted. A row that is forgotten overwrote what it
/// met in the job, and nothing below.
#[test]
fn overwrites_are_of_what_is_left() {
    let tree = Tree::new();
    tree.set_floor(100, 50, false);
    let dead: Vec<String> = (0..40).map(|at| format!("dead-{at:04}")).collect();
    let live: Vec<String> = (0..60).map(|at| format!("live-{at:04}")).collect();
    let mut records: Vec<_> = dead.iter().map(|name| tombstone(name, 1)).collect();
    records.extend(live.iter().map(|name| delta(name, 200)));
    let newest = tree.add(0, false, &records);
    let older = tree.add(5, false, &[full("dead-0000", 0)]);
    let after = |overwrites, excised_bytes| {
        let mut job = tree.compaction(&[newest, older], 5);
        let meta = Arc::make_mut(&mut job.inputs[0]);
        (meta.overwrites, meta.excised_bytes) = (overwrites, excised_bytes);
        let bytes = meta.bytes;
        let done = tree.job(&job, None).unwrap().unwrap();
        let [output] = &done.edit.added[..] else { panic!("not one table") };
        (done.stats.purged, output.entries, output.overwrites, bytes)
    };
    let (purged, entries, left, bytes) = after(50, 0);
    assert_eq!((purged, entries, left), (40, 60, 49), "one of those forgotten met an older one");
    assert_eq!(after(100, 0).2, 60, "no more than there are");
    assert_eq!(after(50, bytes / 2).2, 24);
}
