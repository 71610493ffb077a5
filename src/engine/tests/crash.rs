//! Power loss at every file call, with torn and reordered remains.
//!
//! A history runs on a file system that remembers what was synced. Before every call that may
//! change the disk the machine "loses power": a clone keeps what was synced and a random part of
//! the rest. The engine must open on the clone, hold everything that was acknowledged or read by
//! then, and nothing that was never issued.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::row::Row;
use super::{effort, open, tiny};
use crate::engine::options::SyncMode;
use crate::engine::rules::open_without;
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, Position, Result};

type Rows = BTreeMap<Vec<u8>, Row>;
/// The rows of one write.
type Parts = Vec<(Vec<u8>, Row)>;

/// What the client knows at some moment.
#[derive(Clone, Default)]
struct Known {
    /// Joined rows whose write was acknowledged, or that a read has shown.
    acknowledged: Rows,
    /// Joined rows of everything ever handed to the engine.
    issued: Rows,
}

fn join(rows: &mut Rows, key: &[u8], row: &Row) {
    let joined = rows.get(key).map_or_else(|| row.clone(), |old| old.join(row));
    rows.insert(key.to_vec(), joined);
}

fn check(vfs: MemVfs, known: &Known, options: &Options, moment: &str) {
    if let Some(lost) = lost(vfs, known, options, moment) {
        panic!("{lost}");
    }
}

/// What was told and is not there any more, if anything.
fn lost(vfs: MemVfs, known: &Known, options: &Options, moment: &str) -> Option<String> {
    let engine = open(Arc::new(vfs), options.clone())
        .unwrap_or_else(|error| panic!("{moment}: does not open: {error}"));
    let read = |key: &[u8]| {
        let row = engine.get(key).unwrap_or_else(|error| panic!("{moment}: {error}"));
        row.map_or_else(Row::default, |row| Row::decode(&row).expect("a row"))
    };
    let mut lost = None;
    for (key, issued) in &known.issued {
        let found = read(key);
        assert!(issued.contains(&found), "{moment}: {key:?} holds {found:?}, never issued");
        if let Some(told) = known.acknowledged.get(key)
            && !found.contains(told)
        {
            lost = Some(format!("{moment}: {key:?} holds {found:?}, but {told:?} was told"));
        }
    }
    // It takes writes again, and they survive an orderly end.
    let position = engine.apply(&[(b"after", &Row::default().write(9, 1, true, Some(1)).encode())]);
    engine.wait_durable(position.expect("takes writes")).expect("durable");
    engine.close().expect("closes");
    lost
}

struct History {
    engine: Engine,
    known: Arc<Mutex<Known>>,
    time: u64,
}

impl History {
    fn write(&mut self, keys: &[u8], covers: bool, blind: bool) -> Result<()> {
        let (position, rows) = self.begin_write(keys, covers, blind)?;
        self.engine.wait_durable(position)?;
        let mut known = self.known.lock();
        for (key, row) in rows {
            join(&mut known.acknowledged, &key, &row);
        }
        Ok(())
    }

    /// A write that nobody waits for.
    fn begin_write(&mut self, keys: &[u8], covers: bool, blind: bool) -> Result<(Position, Parts)> {
        self.time += 1;
        let time = self.time;
        let keys: Vec<Vec<u8>> = keys.iter().map(|n| super::model::key(*n)).collect();
        let mut rows = Parts::new();
        let value = (!time.is_multiple_of(5)).then_some(time as u32);
        let position = if blind {
            for key in &keys {
                let row = Row::default().write(2, time, covers, value);
                join(&mut self.known.lock().issued, key, &row);
                rows.push((key.clone(), row));
            }
            let encoded: Vec<Vec<u8>> = rows.iter().map(|(_, row)| row.encode()).collect();
            let batch: Vec<(&[u8], &[u8])> =
                keys.iter().zip(&encoded).map(|(key, row)| (&key[..], &row[..])).collect();
            self.engine.apply(&batch)?
        } else {
            let names: Vec<&[u8]> = keys.iter().map(|key| &key[..]).collect();
            let known = self.known.clone();
            self.engine.update(&names, |index, row, _| {
                let row = row.map_or_else(|| Ok(Row::default()), Row::decode)?;
                let row = row.write(1, time, covers, value);
                join(&mut known.lock().issued, &keys[index], &row);
                rows.push((keys[index].clone(), row.clone()));
                Ok::<_, Error>(Some(row.encode()))
            })?
        };
        Ok((position, rows))
    }

    /// Reads a key, or all from it on, in one of the ways there are.
    fn read(&self, n: u8, way: u64) -> Result<()> {
        let key = super::model::key(n);
        let engine = &self.engine;
        let mut shown: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let copy = |row: Option<&[u8]>| row.map(<[u8]>::to_vec);
        match way % 4 {
            0 => shown.extend(engine.get(&key)?.map(|row| (key, row))),
            1 => shown.extend(engine.get_newest_with(&key, copy)?.map(|row| (key, row))),
            2 => {
                let mut scan = engine.scan(&key, None)?;
                while let Some((key, row)) = scan.next()?
                    && shown.len() < 4
                {
                    shown.push((key.to_vec(), row.to_vec()));
                }
                engine.wait_scanned(&scan)?;
            }
            _ => {
                let (row, upto) = engine.peek_newest_with(&key, copy)?;
                // Who must not wait shows it later, if it is not durable now.
                shown.extend(row.filter(|_| upto == Position::ZERO).map(|row| (key, row)));
            }
        }
        let mut known = self.known.lock();
        for (key, row) in shown {
            join(&mut known.acknowledged, &key, &Row::decode(&row)?);
        }
        Ok(())
    }

    /// Writes that nobody waits for, and reads of them.
    fn run_reading(&mut self, steps: u64) -> Result<()> {
        for i in 0..steps {
            let n = (i * 7 % 23) as u8;
            drop(self.begin_write(&[n, (n * 3) % 23], i % 3 == 0, i % 2 == 0)?);
            self.read((i * 5 % 23) as u8, i / 2)?;
            if i % 3 != 1 {
                self.read(n, i)?;
            }
            match i % 13 {
                4 => self.engine.flush()?,
                7 => drop(self.engine.step()?),
                11 => self.write(&[n], false, true)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn run(&mut self, steps: u64) -> Result<()> {
        for i in 0..steps {
            let n = (i * 7 % 23) as u8;
            self.write(&[n, n + 1, (n * 3) % 23], i % 3 == 0, i % 2 == 0)?;
            match i % 11 {
                4 => self.engine.flush()?,
                7 => drop(self.engine.step()?),
                9 => while self.engine.step()? {},
                10 if i % 4 == 2 => self.engine.compact_all()?,
                _ => {}
            }
        }
        self.engine.close()
    }
}

/// Runs a history and checks a crash before every `stride`-th call that may change the disk.
fn crash_everywhere(options: Options, steps: u64, stride: u64, seed: u64) -> u64 {
    let moments = moments_of(&options, &[], stride, seed, |history| history.run(steps));
    let count = moments.len() as u64;
    for Moment { disk, known, name } in moments {
        check(disk, &known, &options, &name);
    }
    count
}

/// The machine as a power loss left it, and what was told by then.
struct Moment {
    disk: MemVfs,
    known: Known,
    name: String,
}

/// The crashes before every `stride`-th call of a history that may change the disk.
fn moments_of(
    options: &Options,
    removed: &[&'static str],
    stride: u64,
    seed: u64,
    run: impl FnOnce(&mut History) -> Result<()>,
) -> Vec<Moment> {
    let disk = MemVfs::new();
    let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
    let known = Arc::new(Mutex::new(Known::default()));
    let moments = Arc::new(Mutex::new(Vec::new()));
    vfs.on_call({
        let (known, moments) = (known.clone(), moments.clone());
        move |n, call| {
            if call.operation.changes_disk() && n % stride == 0 {
                // Both at the same moment: what is acknowledged later need not be there.
                let known = known.lock().clone();
                let name = format!("power loss before call {n}, {call:?}, seed {seed}");
                moments.lock().push(Moment { disk: disk.crash_clone(seed ^ n), known, name });
            }
        }
    });
    let opened = || open(vfs, options.clone()).expect("an empty directory opens");
    let engine = open_without(removed, opened);
    let mut history = History { engine, known: known.clone(), time: 0 };
    run(&mut history).expect("no fault was injected");
    drop(history);
    std::mem::take(&mut *moments.lock())
}

#[test]
fn acknowledged_writes_survive_power_loss_before_every_call() {
    let moments = crash_everywhere(tiny(), 90, 1, 1);
    assert!(moments > 300, "only {moments} crash points");
}

#[test]
fn other_remains_of_the_same_crashes() {
    for seed in 2..2 + u64::from(effort(6)) {
        crash_everywhere(tiny(), 60, 3, seed);
    }
}

/// What a read has shown is there after a power loss at any call, though nobody waits for the
/// write. Without the rule that a read waits some of it is gone.
#[test]
fn what_was_read_survives_power_loss_before_every_call() {
    let moments =
        |removed, seed| moments_of(&tiny(), removed, 1, seed, |history| history.run_reading(80));
    let lost = |moments: Vec<Moment>| {
        let lost = |Moment { disk, known, name }| lost(disk, &known, &tiny(), &name);
        moments.into_iter().filter_map(lost).collect::<Vec<_>>()
    };
    for seed in 1..1 + u64::from(effort(3)) {
        let with = moments(&[], seed);
        assert!(with.len() > 150, "only {} crash points", with.len());
        assert_eq!(lost(with), [""; 0]);
    }
    assert!(!lost(moments(&["reads_of_what_is_synced"], 1)).is_empty());
}

/// A start brings the log into tables one by one: wherever it ends, the next one has all of it.
#[test]
fn a_start_survives_power_loss_before_every_call() {
    let disk = MemVfs::new();
    let engine = open(Arc::new(disk.clone()), tiny()).expect("opens");
    let known = Arc::new(Mutex::new(Known::default()));
    let mut history = History { engine, known: known.clone(), time: 0 };
    for i in 0..80u8 {
        history.write(&[i % 23], i % 3 == 0, i % 2 == 0).expect("no fault");
    }
    assert_eq!(history.engine.stats().flushes, 0);
    let left = disk.crash_clone_kill();
    drop(history);
    let known = known.lock().clone();
    let options = Options { memtable_bytes: 1 << 10, ..tiny() };
    for seed in 1..1 + u64::from(effort(3)) {
        let disk = left.crash_clone_kill();
        let vfs = FaultVfs::new(Arc::new(disk.clone()));
        let moments = Arc::new(Mutex::new(Vec::new()));
        vfs.on_call({
            let moments = moments.clone();
            move |n, call| {
                if call.operation.changes_disk() {
                    let name = format!("power loss before call {n}, {call:?}, seed {seed}");
                    moments.lock().push((disk.crash_clone(seed ^ n), name));
                }
            }
        });
        let engine = open(Arc::new(vfs), options.clone()).expect("opens");
        assert!(engine.shared.version().tables().count() > 4);
        let moments = std::mem::take(&mut *moments.lock());
        assert!(moments.len() > 40, "only {} crash points", moments.len());
        for (disk, name) in moments {
            check(disk, &known, &options, &name);
        }
    }
}

/// Without a sync nothing is promised, but whatever is there must be whole: the store opens and
/// holds only what was issued. `kill -9` loses nothing.
#[test]
fn unsynced_writes_survive_the_end_of_the_process() {
    for sync_mode in [SyncMode::Os, SyncMode::Interval] {
        let options = Options { sync_mode, ..tiny() };
        let disk = MemVfs::new();
        let engine = open(Arc::new(disk.clone()), options.clone()).expect("opens");
        let known = Arc::new(Mutex::new(Known::default()));
        let mut history = History { engine, known: known.clone(), time: 0 };
        for i in 0..60u8 {
            history.write(&[i % 23], i % 3 == 0, i % 2 == 0).expect("no fault");
            let moment = format!("{sync_mode:?}, kill after write {i}");
            check(disk.crash_clone_kill(), &known.lock(), &options, &moment);
            let lossy = Known { acknowledged: Rows::new(), issued: known.lock().issued.clone() };
            let moment = format!("{sync_mode:?}, power loss after write {i}");
            check(disk.crash_clone(u64::from(i)), &lossy, &options, &moment);
        }
    }
}

/// A call fails, whichever it is: the engine either did what it said or says that it did not, and
/// after the next open everything acknowledged is there.
#[test]
fn a_failing_call_never_loses_an_acknowledged_write() {
    let total = {
        let vfs = Arc::new(FaultVfs::new(Arc::new(MemVfs::new())));
        let engine = open(vfs.clone(), tiny()).expect("opens");
        let known = Arc::new(Mutex::new(Known::default()));
        History { engine, known, time: 0 }.run(40).expect("no fault");
        vfs.calls()
    };
    for n in 1..=total {
        let disk = MemVfs::new();
        let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
        vfs.fail_call(n, std::io::ErrorKind::Other);
        let known = Arc::new(Mutex::new(Known::default()));
        if let Ok(engine) = open(vfs, tiny()) {
            let mut history = History { engine, known: known.clone(), time: 0 };
            // The first error ends the history; some failures are harmless and it goes on.
            let _ = history.run(40);
        }
        check(disk.crash_clone(n), &known.lock(), &tiny(), &format!("call {n} failed, power loss"));
    }
}
