//! Power loss at every file call, with torn and reordered remains.
//!
//! A history runs on a file system that remembers what was synced. Before every call that may
//! change the disk the machine "loses power": a clone keeps what was synced and a random part of
//! the rest. The engine must open on the clone, hold everything that was acknowledged by then, and
//! nothing that was never issued.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::row::Row;
use super::{effort, open, tiny};
use crate::engine::options::SyncMode;
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, Result};

type Rows = BTreeMap<Vec<u8>, Row>;

/// What the client knows at some moment.
#[derive(Clone, Default)]
struct Known {
    /// Joined rows whose write was acknowledged.
    acknowledged: Rows,
    /// Joined rows of everything ever handed to the engine.
    issued: Rows,
}

fn join(rows: &mut Rows, key: &[u8], row: &Row) {
    let joined = rows.get(key).map_or_else(|| row.clone(), |old| old.join(row));
    rows.insert(key.to_vec(), joined);
}

fn check(vfs: MemVfs, known: &Known, options: &Options, moment: &str) {
    let engine = open(Arc::new(vfs), options.clone())
        .unwrap_or_else(|error| panic!("{moment}: does not open: {error}"));
    let read = |key: &[u8]| {
        let row = engine.get(key).unwrap_or_else(|error| panic!("{moment}: {error}"));
        row.map_or_else(Row::default, |row| Row::decode(&row).expect("a row"))
    };
    for (key, issued) in &known.issued {
        let found = read(key);
        assert!(issued.contains(&found), "{moment}: {key:?} holds {found:?}, never issued");
        if let Some(acknowledged) = known.acknowledged.get(key) {
            assert!(
                found.contains(acknowledged),
                "{moment}: {key:?} holds {found:?}, but {acknowledged:?} was acknowledged"
            );
        }
    }
    // It takes writes again, and they survive an orderly end.
    let position = engine.apply(&[(b"after", &Row::default().write(9, 1, true, Some(1)).encode())]);
    engine.wait_durable(position.expect("takes writes")).expect("durable");
    engine.close().expect("closes");
}

struct History {
    engine: Engine,
    known: Arc<Mutex<Known>>,
    time: u64,
}

impl History {
    fn write(&mut self, keys: &[u8], covers: bool, blind: bool) -> Result<()> {
        self.time += 1;
        let time = self.time;
        let keys: Vec<Vec<u8>> = keys.iter().map(|n| super::model::key(*n)).collect();
        let mut rows: Vec<(Vec<u8>, Row)> = Vec::new();
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
        self.engine.wait_durable(position)?;
        let mut known = self.known.lock();
        for (key, row) in rows {
            join(&mut known.acknowledged, &key, &row);
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
                let moment = format!("power loss before call {n}, {call:?}, seed {seed}");
                moments.lock().push((disk.crash_clone(seed ^ n), known, moment));
            }
        }
    });
    let engine = open(vfs, options.clone()).expect("an empty directory opens");
    let mut history = History { engine, known: known.clone(), time: 0 };
    history.run(steps).expect("no fault was injected");
    drop(history);
    let moments = std::mem::take(&mut *moments.lock());
    let count = moments.len() as u64;
    for (disk, known, moment) in moments {
        check(disk, &known, &options, &moment);
    }
    count
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
