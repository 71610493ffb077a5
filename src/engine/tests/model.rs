//! The engine against a map, with everything that happens to files in between.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::row::Row;
use super::{effort, open, tiny};
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options};

/// One step of a history. Keys and values are small numbers, so that histories shrink well.
#[derive(Clone, Debug)]
pub enum Step {
    /// Read-modify-write of some keys, replacing what is there or beside it; `None` deletes.
    Update {
        keys: Vec<u8>,
        covers: bool,
        value: Option<u32>,
    },
    /// A blind state of another actor, made from what the model holds or from nothing.
    Apply {
        keys: Vec<u8>,
        saw: bool,
        value: Option<u32>,
    },
    /// Rows of another node as a table.
    Ingest {
        keys: Vec<u8>,
        value: Option<u32>,
    },
    /// All keys of the first range go, and the odd ones of the second.
    Remove {
        wholly: (u8, u8),
        in_part: (u8, u8),
    },
    Flush,
    /// Background work, some pieces of it.
    Work(u8),
    CompactAll,
    /// Everything so far is proven: tombstones may go.
    Floor,
    Close,
    /// The process ends without closing.
    Kill,
    Read(u8),
    Scan {
        start: u8,
        end: u8,
    },
}

pub fn step() -> impl Strategy<Value = Step> {
    let key = || 0..40u8;
    let keys = || {
        proptest::collection::btree_set(0..40u8, 1..6)
            .prop_map(|keys| keys.into_iter().collect::<Vec<_>>())
    };
    let value = || proptest::option::weighted(0.7, 0..1000u32);
    prop_oneof![
        8 => (keys(), any::<bool>(), value())
            .prop_map(|(keys, covers, value)| Step::Update { keys, covers, value }),
        8 => (keys(), any::<bool>(), value())
            .prop_map(|(keys, saw, value)| Step::Apply { keys, saw, value }),
        1 => (keys(), value()).prop_map(|(keys, value)| Step::Ingest { keys, value }),
        1 => ((key(), key()), (key(), key()))
            .prop_map(|(wholly, in_part)| Step::Remove { wholly, in_part }),
        2 => Just(Step::Flush),
        3 => (1..4u8).prop_map(Step::Work),
        1 => Just(Step::CompactAll),
        1 => Just(Step::Floor),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        4 => key().prop_map(Step::Read),
        1 => (key(), key()).prop_map(|(start, end)| Step::Scan { start, end }),
    ]
}

pub fn key(n: u8) -> Vec<u8> {
    format!("key-{n:03}").into_bytes()
}

/// The engine under test and what it must hold.
pub struct Rig {
    vfs: Arc<MemVfs>,
    options: Options,
    engine: Option<Engine>,
    rows: BTreeMap<Vec<u8>, Row>,
    time: u64,
    floor: u64,
}

impl Rig {
    pub fn new(options: Options) -> Self {
        let vfs = Arc::new(MemVfs::new());
        let engine = open(vfs.clone(), options.clone()).expect("an empty directory opens");
        Self { vfs, options, engine: Some(engine), rows: BTreeMap::new(), time: 0, floor: 0 }
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("open between steps")
    }

    fn reopen(&mut self) {
        // The lock goes with the engine; the new one must find it free.
        drop(self.engine.take());
        self.engine = Some(open(self.vfs.clone(), self.options.clone()).expect("reopens"));
    }

    pub fn run(&mut self, step: &Step) {
        match step {
            Step::Update { keys, covers, value } => self.update(keys, *covers, *value),
            Step::Apply { keys, saw, value } => {
                let batch: Vec<_> = keys.iter().map(|n| self.remote(*n, *saw, *value)).collect();
                let records: Vec<(&[u8], &[u8])> =
                    batch.iter().map(|(key, row)| (&key[..], &row[..])).collect();
                let position = self.engine().apply(&records).expect("taken");
                self.engine().wait_durable(position).expect("durable");
            }
            Step::Ingest { keys, value } => {
                let rows: Vec<_> = keys.iter().map(|n| self.remote(*n, false, *value)).collect();
                let taken = self.engine().ingest(&mut rows.into_iter().map(Ok));
                assert_eq!(taken.expect("taken"), keys.len() as u64);
            }
            Step::Remove { wholly, in_part } => self.remove(*wholly, *in_part),
            Step::Flush => self.engine().flush().expect("flushes"),
            Step::Work(pieces) => {
                for _ in 0..*pieces {
                    self.engine().step().expect("works");
                }
            }
            Step::CompactAll => self.engine().compact_all().expect("compacts"),
            Step::Floor => {
                self.floor = self.time;
                self.engine().fence(0..=0, self.floor).expect("fences");
                self.engine().set_floor(0..=0, self.floor).expect("sets the floor");
            }
            Step::Close => {
                self.engine().close().expect("closes");
                self.reopen();
            }
            Step::Kill => self.reopen(),
            Step::Read(n) => {
                let row = self.engine().get(&key(*n)).expect("reads");
                self.check(&key(*n), row.as_deref());
            }
            Step::Scan { start, end } => self.scan(&key(*start), &key(*end)),
        }
    }

    fn remove(&mut self, wholly: (u8, u8), in_part: (u8, u8)) {
        let range = |(start, end): (u8, u8)| [(key(start), Some(key(end)))];
        let is_odd = |key: &[u8]| key.last().is_some_and(|digit| digit % 2 == 1);
        let permit = |install: &mut dyn FnMut() -> Result<(), Error>| install().map(|()| true);
        let removed = self.engine().remove(&range(wholly), &range(in_part), &is_odd, &permit);
        removed.expect("removes").expect("permitted");
        for n in 0..40 {
            if (wholly.0..wholly.1).contains(&n)
                || (in_part.0..in_part.1).contains(&n) && is_odd(&key(n))
            {
                self.rows.remove(&key(n));
            }
        }
    }

    fn update(&mut self, keys: &[u8], covers: bool, value: Option<u32>) {
        let keys: Vec<Vec<u8>> = keys.iter().map(|n| key(*n)).collect();
        let names: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
        self.time += 1;
        let (time, mut made) = (self.time, Vec::new());
        let position = self
            .engine()
            .update(&names, |index, row, guard| {
                assert!(guard < time);
                let row = row.map_or_else(|| Ok(Row::default()), Row::decode)?;
                let row = row.write(1, time, covers, value);
                made.push((keys[index].clone(), row.clone()));
                Ok::<_, Error>(Some(row.encode()))
            })
            .expect("taken");
        self.engine().wait_durable(position).expect("durable");
        for (key, row) in made {
            self.join(key, &row);
        }
    }

    /// A state of actor 2 for key `n`, already joined into the model.
    fn remote(&mut self, n: u8, saw: bool, value: Option<u32>) -> (Vec<u8>, Vec<u8>) {
        self.time += 1;
        let key = key(n);
        let base = self.rows.get(&key).filter(|_| saw).cloned().unwrap_or_default();
        let row = base.write(2, self.time, saw, value);
        self.join(key.clone(), &row);
        (key, row.encode())
    }

    fn join(&mut self, key: Vec<u8>, row: &Row) {
        let joined = self.rows.get(&key).map_or_else(|| row.clone(), |old| old.join(row));
        self.rows.insert(key, joined);
    }

    /// A row equals the model's, except that below the floor tombstones and clock entries of
    /// forgotten rows may be gone.
    fn check(&self, key: &[u8], found: Option<&[u8]>) {
        let expected = self.rows.get(key).cloned().unwrap_or_default();
        let found = found.map_or_else(Row::default, |row| Row::decode(row).expect("a row"));
        assert_eq!(found.values(), expected.values(), "{key:?}: {found:?} for {expected:?}");
        assert!(expected.contains(&found), "{key:?}: {found:?} was never written");
        if self.floor == 0 {
            assert_eq!(found, expected, "{key:?}");
        }
    }

    fn scan(&self, start: &[u8], end: &[u8]) {
        let mut found = BTreeMap::new();
        let mut scan = self.engine().scan(start, Some(end)).expect("scans");
        while let Some((key, row)) = scan.next().expect("scans") {
            assert!(found.last_key_value().is_none_or(|(last, _): (&Vec<u8>, _)| &last[..] < key));
            found.insert(key.to_vec(), row.to_vec());
        }
        assert!(found.keys().all(|key| (start..end).contains(&&key[..])));
        for n in 0..40 {
            let key = key(n);
            if (start..end).contains(&&key[..]) {
                self.check(&key, found.get(&key).map(|row| &row[..]));
            }
        }
    }

    pub fn check_all(&self) {
        for n in 0..40 {
            let row = self.engine().get(&key(n)).expect("reads");
            self.check(&key(n), row.as_deref());
        }
        self.scan(b"", b"z");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(effort(200)))]

    /// Whatever happens to the files in between, reads equal the join of what was written.
    #[test]
    fn engine_equals_a_map_of_joins(steps in proptest::collection::vec(step(), 1..120)) {
        let mut rig = Rig::new(tiny());
        for step in &steps {
            rig.run(step);
        }
        rig.check_all();
        rig.engine().compact_all().expect("compacts");
        rig.check_all();
    }
}
