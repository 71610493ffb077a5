//! Reads of what is in memory and not on the disk yet.
//!
//! A disk whose syncs of the log are held back: what is read meanwhile, what waits, and what waits
//! no longer than it must.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::row::Row;
use super::{open, tiny};
use crate::engine::options::SyncMode;
use crate::engine::rules::open_without;
use crate::engine::vfs::fault::{Fault, FaultVfs, Operation};
use crate::engine::vfs::hold::Hold;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, Position, Result};

const RULE: &str = "reads_of_what_is_synced";
const NEW: &[u8] = b"new";
const OLD: &[u8] = b"old";
/// Longer than a read takes that waits for nothing.
const A_WHILE: Duration = Duration::from_millis(200);

/// An engine on a disk that hangs.
struct Slow {
    /// The first to be dropped: the engine waits for its syncs.
    syncs: Hold,
    engine: Arc<Engine>,
    disk: MemVfs,
    vfs: Arc<FaultVfs>,
}

impl Slow {
    /// With the old key durable.
    fn new(options: Options, removed: &[&'static str]) -> Self {
        let disk = MemVfs::new();
        let vfs = Arc::new(FaultVfs::new(Arc::new(disk.clone())));
        let syncs = Hold::of(&vfs, Operation::SyncData, "log");
        let opened = || open(vfs.clone(), options.clone()).expect("opens");
        let engine = Arc::new(open_without(removed, opened));
        let slow = Self { syncs, engine, disk, vfs };
        let position = slow.put(OLD, 1);
        slow.engine.wait_durable(position).expect("durable");
        slow
    }

    fn put(&self, key: &[u8], value: u32) -> Position {
        let row = Row::default().write(1, u64::from(value), true, Some(value)).encode();
        self.engine.apply(&[(key, &row)]).expect("taken")
    }

    /// The new key is in memory, and its sync hangs.
    fn hang(&self) -> Position {
        let position = self.put(NEW, 2);
        self.syncs.close();
        let before = self.syncs.arrived();
        let engine = Arc::clone(&self.engine);
        thread::spawn(move || engine.wait_durable(position));
        self.syncs.wait_for_more_than(before);
        position
    }

    /// Runs a read beside; what it answers, when it does.
    fn begin<R: Send + 'static>(
        &self,
        read: impl FnOnce(&Engine) -> R + Send + 'static,
    ) -> Receiver<R> {
        let engine = Arc::clone(&self.engine);
        let (tell, told) = channel();
        // Nobody may listen any more: the test has failed.
        thread::spawn(move || drop(tell.send(read(&engine))));
        told
    }

    /// Whether the key is there after power was lost now, whatever the disk made of what was not
    /// synced.
    fn survives(&self, key: &[u8]) -> bool {
        (0..10).all(|seed| {
            let after = open(Arc::new(self.disk.crash_clone(seed)), tiny()).expect("opens");
            after.get(key).expect("reads").is_some()
        })
    }
}

type Read = fn(&Engine) -> Result<bool>;

/// Every way to read the new key and wait for it: whether it is found.
const WAYS: [(&str, Read); 4] = [
    ("get", |engine| Ok(engine.get(NEW)?.is_some())),
    ("get_with", |engine| engine.get_with(NEW, |row| row.is_some())),
    ("get_newest_with", |engine| engine.get_newest_with(NEW, |row| row.is_some())),
    ("scan", |engine| {
        let mut scan = engine.scan(NEW, None)?;
        let is_found = scan.next()?.is_some();
        engine.wait_scanned(&scan)?;
        Ok(is_found)
    }),
];

/// Who reads a row whose sync is under way is told when the sync has ended: what was read is there
/// after a power loss. Without the rule it is told at once, of what may be gone.
#[test]
fn a_read_of_a_row_that_is_being_synced_waits_for_the_sync() {
    for (name, read) in WAYS {
        let slow = Slow::new(tiny(), &[]);
        slow.hang();
        let told = slow.begin(read);
        assert!(told.recv_timeout(A_WHILE).is_err(), "{name} does not wait");
        assert!(!slow.survives(NEW), "the sync hangs");
        slow.syncs.open();
        assert!(told.recv().expect("answers").expect("reads"), "{name}");
        assert!(slow.survives(NEW), "{name}");

        let slow = Slow::new(tiny(), &[RULE]);
        slow.hang();
        assert!(slow.begin(read).recv().expect("answers").expect("reads"), "{name}");
        assert!(!slow.survives(NEW), "without the rule {name} tells of what is lost");
    }
}

/// A sync that hangs keeps nobody waiting who reads something else: a key that is durable, one that
/// is not there, a range without the key.
#[test]
fn other_rows_are_read_at_once() {
    for threads in [0, 1] {
        let slow = Slow::new(Options { compaction_threads: threads, ..tiny() }, &[]);
        slow.hang();
        assert!(slow.engine.get(OLD).expect("reads").is_some());
        assert!(slow.engine.get(b"none").expect("reads").is_none());
        let mut scan = slow.engine.scan(OLD, None).expect("scans");
        while scan.next().expect("scans").is_some() {}
        slow.engine.wait_scanned(&scan).expect("at once");
        let upto = slow.engine.peek_each(&[OLD, b"none"], |_, row| assert!(row.is_ok()));
        assert_eq!(upto, Position::ZERO);
    }
}

/// Who may not block is told how far the log has to come, and nothing once it is there.
#[test]
fn a_peek_says_what_to_wait_for() {
    let slow = Slow::new(Options { compaction_threads: 1, ..tiny() }, &[]);
    let position = slow.hang();
    let peek = |slow: &Slow| slow.engine.peek_newest_with(NEW, |row| row.is_some());
    assert_eq!(peek(&slow).expect("reads"), (true, position));
    let upto = slow.engine.peek_newest_each(&[OLD, NEW], |_, row| assert!(row.is_ok()));
    assert_eq!(upto, position, "one for all of them");
    let (tell, told) = channel();
    slow.engine.on_durable(upto, Box::new(move |outcome| tell.send(outcome).expect("awaited")));
    assert!(told.try_recv().is_err());
    slow.syncs.open();
    told.recv().expect("called").expect("durable");
    assert_eq!(peek(&slow).expect("reads"), (true, Position::ZERO));
}

/// A row that a write found in memory and left as it is: its writer learns something of it too.
#[test]
fn an_update_that_changes_nothing_says_how_far_what_it_saw_is_durable() {
    let slow = Slow::new(tiny(), &[]);
    let position = slow.hang();
    let look = |key: &[u8]| slow.engine.update(&[key], |_, _, _| Ok::<_, Error>(None));
    assert_eq!(look(NEW).expect("looks"), position);
    assert_eq!(look(OLD).expect("looks"), Position::ZERO);
    slow.syncs.open();
    slow.engine.wait_durable(position).expect("durable");
    assert_eq!(look(NEW).expect("looks"), Position::ZERO);
}

/// A row joined from a durable write and one that is not is as durable as the second.
#[test]
fn a_row_is_as_durable_as_its_newest_write() {
    let slow = Slow::new(tiny(), &[]);
    slow.engine.flush().expect("flushes");
    let position = slow.put(OLD, 2);
    let (row, upto) = slow.engine.peek_newest_with(OLD, |row| row.map(<[u8]>::to_vec)).unwrap();
    assert_eq!(Row::decode(&row.expect("there")).expect("a row").values(), [2]);
    assert_eq!(upto, position, "joined with what the tables hold");
    slow.engine.flush().expect("flushes");
    let position = slow.put(NEW, 3);
    let later = slow.put(NEW, 4);
    assert!(later > position);
    assert_eq!(slow.engine.peek_newest_with(NEW, |_| ()).expect("reads"), ((), later));
}

/// A table is durable, whatever became of the log it comes from: nobody waits for that.
#[test]
fn what_was_flushed_is_durable_before_its_log_is() {
    let slow = Slow::new(tiny(), &[]);
    slow.hang();
    slow.engine.flush().expect("flushes");
    assert!(slow.engine.get(NEW).expect("reads").is_some());
    assert!(slow.survives(NEW));
}

/// A sync that fails: who waits to be shown a row is told that nobody knows what is on the disk.
#[test]
fn who_waits_for_a_sync_that_fails_is_not_shown_the_row() {
    let slow = Slow::new(tiny(), &[]);
    slow.hang();
    let told = slow.begin(|engine| engine.get(NEW));
    let fault = Fault { operation: Some(Operation::SyncData), ..Fault::default() };
    slow.vfs.inject(fault);
    slow.syncs.open();
    let read = told.recv().expect("answers");
    assert!(matches!(read, Err(Error::Poisoned { .. })), "{read:?}");
}

/// Where a write is acknowledged before it is synced, reads promise no more than that.
#[test]
fn where_writes_do_not_wait_for_syncs_reads_do_not() {
    for sync_mode in [SyncMode::Os, SyncMode::Interval] {
        let slow = Slow::new(Options { sync_mode, ..tiny() }, &[]);
        slow.syncs.close();
        slow.put(NEW, 2);
        for (name, read) in WAYS {
            assert!(read(&slow.engine).expect("reads"), "{name}");
        }
        let peeked = slow.engine.peek_newest_with(NEW, |row| row.is_some()).expect("reads");
        assert_eq!(peeked, (true, Position::ZERO));
        assert_eq!(slow.syncs.arrived(), 0, "nothing was synced");
    }
}

/// Readers beside writers: at any moment of a power loss all that they have been shown is there.
#[test]
fn readers_beside_writers_are_shown_nothing_that_a_power_loss_takes() {
    assert_eq!(lost_beside_writers(&[]), [""; 0]);
    assert!(!lost_beside_writers(&[RULE]).is_empty(), "the rule does nothing");
}

/// What readers were shown and a power loss took.
fn lost_beside_writers(removed: &[&'static str]) -> Vec<String> {
    const KEYS: u64 = 4;
    let slow = Slow::new(Options { compaction_threads: 1, ..tiny() }, removed);
    // The newest value that was shown of each key, and what a loss at some moments left of all.
    let shown: Mutex<BTreeMap<u8, u64>> = Mutex::default();
    let crashes = Mutex::new(Vec::new());
    let (time, writers) = (AtomicU64::new(1), AtomicU64::new(2));
    let newest = |row: &[u8]| Row::decode(row).expect("a row").time_max();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let time = time.fetch_add(1, Ordering::Relaxed);
                    let row = Row::default().write(1, time, true, Some(time as u32)).encode();
                    let key = [(time % KEYS) as u8];
                    let position = slow.engine.apply(&[(&key, &row)]).expect("taken");
                    if time.is_multiple_of(8) {
                        slow.engine.wait_durable(position).expect("durable");
                    }
                }
                writers.fetch_sub(1, Ordering::Relaxed);
            });
            scope.spawn(|| {
                for n in 0.. {
                    if writers.load(Ordering::Relaxed) == 0 {
                        break;
                    }
                    let key = (n % KEYS) as u8;
                    let row = slow.engine.get(&[key]).expect("reads");
                    let mut shown = shown.lock();
                    let known = shown.entry(key).or_default();
                    *known = row.map_or(0, |row| newest(&row)).max(*known);
                    if n % 16 == 0 && crashes.lock().len() < 40 {
                        crashes.lock().push((slow.disk.crash_clone(n), shown.clone()));
                    }
                }
            });
        }
    });
    let mut lost = Vec::new();
    for (disk, shown) in crashes.into_inner() {
        let engine = open(Arc::new(disk), tiny()).expect("opens");
        for (key, time) in shown {
            let found = engine.get(&[key]).expect("reads").map_or(0, |row| newest(&row));
            if found < time {
                lost.push(format!("{time} was shown of {key}, {found} is there"));
            }
        }
    }
    lost
}
