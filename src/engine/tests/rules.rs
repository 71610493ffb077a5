//! Every ordering rule of the engine: the history that needs it, with the rule and without.
//!
//! Each history was found with a model of one node in which the rule had been removed; here it runs
//! on the engine itself. With the rule nothing is lost and nothing dead comes back; without it the
//! test must *see* the damage, so a rule that nobody checks any more makes its test fail.
//!
//! Rows are those of [`super::row`]. The node is actor 1; x, y and z are values, d deletes x.

mod compaction;
mod ingest;
mod reads;
mod recovery;
mod writes;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use super::row::Row;
use super::{open, tiny};
use crate::engine::rules::{open_without, rule};
use crate::engine::version::{Quarantined, VersionEdit};
use crate::engine::vfs::Vfs;
use crate::engine::vfs::mem::MemVfs;
use crate::engine::{Engine, Error, Options, Position, Shared};

const KEY: &[u8] = b"key";
const X: u32 = 11;
const Y: u32 = 12;
const Z: u32 = 13;

/// Another node's write of x, at time 1.
fn x() -> Row {
    Row::default().write(2, 1, false, Some(X))
}

/// The delete of x, at time 2.
fn d() -> Row {
    x().write(2, 2, true, None)
}

/// A third node's write of y, at time 3, which has seen nothing.
fn y() -> Row {
    Row::default().write(3, 3, false, Some(Y))
}

/// What a log would hold that took only the news of each row: see `whole_row_in_log`.
pub fn increments<'a>(shared: &Shared, records: &[(&'a [u8], &[u8])]) -> Vec<(&'a [u8], Vec<u8>)> {
    let whole = rule!(shared, whole_row_in_log);
    let logged = |row: &[u8]| {
        if whole {
            return row.to_vec();
        }
        let row = Row::decode(row).expect("a row of these tests");
        let newest = row.live.iter().max_by_key(|((_, t), _)| *t);
        let Some(((actor, t), value)) = newest else { return row.encode() };
        Row::default().write(*actor, *t, false, *value).encode()
    };
    records.iter().map(|(key, row)| (*key, logged(row))).collect()
}

/// A store under test; clones share it.
#[derive(Clone)]
struct Node(Arc<Inner>);

struct Inner {
    removed: Vec<&'static str>,
    options: Options,
    disk: MemVfs,
    engine: Engine,
    /// The node's clock.
    time: AtomicU64,
    /// What runs beside the history.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Node {
    fn new(removed: &[&'static str], options: Options) -> Self {
        Self::on(MemVfs::new(), removed, options, 10)
    }

    fn on(disk: MemVfs, removed: &[&'static str], options: Options, time: u64) -> Self {
        let opened = || open(Arc::new(disk.clone()), options.clone()).expect("opens");
        let engine = open_without(removed, opened);
        let (removed, threads) = (removed.to_vec(), Mutex::default());
        Self(Arc::new(Inner { removed, options, disk, engine, time: time.into(), threads }))
    }

    /// What opens from `disk` after this node is gone.
    fn reopened(&self, disk: MemVfs) -> Self {
        self.join_threads();
        let time = self.0.time.load(Ordering::Relaxed);
        Self::on(disk, &self.0.removed, self.0.options.clone(), time)
    }

    /// The node after the end of its process.
    fn killed(&self) -> Self {
        self.join_threads();
        let end = self.shared().log.appended_upto();
        self.shared().log.write_out(end).expect("written");
        self.reopened(self.0.disk.crash_clone_kill())
    }

    fn engine(&self) -> &Engine {
        &self.0.engine
    }

    fn shared(&self) -> &Shared {
        &self.0.engine.shared
    }

    /// Runs `inner` once, in the middle of what the node does next.
    fn at(&self, hook: &'static str, inner: impl FnOnce(&Self) + Send + 'static) {
        let node: Weak<Inner> = Arc::downgrade(&self.0);
        let run = move |_: &Shared| inner(&Self(node.upgrade().expect("the node runs the hook")));
        self.shared().hooks.lock().insert(hook, Box::new(run));
    }

    /// Runs what the rule makes wait for the operation it is called from: in a thread then, which
    /// has started on return; without the rule it runs to its end.
    fn meanwhile(&self, inner: impl FnOnce(&Self) + Send + 'static) {
        if !self.0.removed.is_empty() {
            return inner(self);
        }
        let (started, wait) = std::sync::mpsc::channel();
        let node = self.clone();
        self.0.threads.lock().push(std::thread::spawn(move || {
            started.send(()).expect("waited for");
            inner(&node);
        }));
        wait.recv().expect("the thread starts");
    }

    fn join_threads(&self) {
        for thread in std::mem::take(&mut *self.0.threads.lock()) {
            thread.join().expect("no panic beside the history");
        }
    }

    /// A write of this node, replacing what is there or beside it.
    fn update(&self, covers: bool, value: Option<u32>) -> Position {
        let time = self.0.time.fetch_add(1, Ordering::Relaxed);
        let make = |_, row: Option<&[u8]>, _| {
            let row = row.map_or_else(|| Ok(Row::default()), Row::decode)?;
            Ok::<_, Error>(Some(row.write(1, time, covers, value).encode()))
        };
        self.engine().update(&[KEY], make).expect("taken")
    }

    /// A state of another node.
    fn apply(&self, row: &Row) -> Position {
        self.engine().apply(&[(KEY, &row.encode())]).expect("taken")
    }

    fn ingest(&self, row: &Row) -> Result<u64, Error> {
        self.engine().ingest(&mut std::iter::once(Ok((KEY.to_vec(), row.encode()))))
    }

    /// Removes the key, as one of a range that goes wholly.
    fn remove(&self) {
        let range = (KEY.to_vec(), Some([KEY, b"+"].concat()));
        let removed =
            self.engine().remove(&[range], &[], &|_| false, &|install| install().map(|()| true));
        assert!(removed.expect("removes").is_some());
    }

    fn seal(&self) {
        self.shared().seal(false);
    }

    fn flush(&self) {
        self.engine().flush().expect("flushes");
    }

    /// Flushes what is next in the queue, and nothing else.
    fn flush_one(&self) {
        assert!(self.shared().flush_first().expect("flushes"), "something was sealed");
    }

    fn compact(&self) {
        self.engine().compact_all().expect("compacts");
    }

    /// Compacts as an idle engine does in the long run; flushes nothing.
    fn compact_what_is_due(&self) {
        self.shared().now_ms.store(u64::from(u32::MAX), Ordering::Relaxed);
        while self.shared().compact_once().expect("compacts") {}
    }

    /// Every version up to `floor` is here or dead.
    fn floor(&self, floor: u64) {
        self.engine().fence(0..=0, floor).expect("fences");
        self.engine().set_floor(0..=0, floor).expect("sets the floor");
    }

    /// Deletes x for good.
    fn forget_x(&self) {
        self.apply(&d());
        self.flush();
        self.forget();
    }

    /// Everything so far is proven, and d is forgotten.
    fn forget(&self) {
        self.floor(2);
        self.compact();
        assert_eq!(self.engine().get(KEY).expect("reads"), None, "d is forgotten");
    }

    /// Marks a block of the newest table of level 0, in which the key is not, as unreadable:
    /// compaction leaves the table alone.
    fn damage_newest_table(&self) {
        let view = self.shared().super_version.load_full();
        let table = view.version.level(0).tables()[0].meta.number;
        let end = || b"zzz"[..].into();
        let range = Quarantined { table, smallest: end(), largest: end() };
        let edit = VersionEdit { quarantined: vec![range], ..VersionEdit::default() };
        let cache = crate::engine::flush::CacheChange::None;
        self.shared().install(edit, cache, |_| {}).expect("installs");
    }

    /// The values under the key, this node's first. With all rules a scan finds the same.
    fn values(&self) -> Vec<u32> {
        self.join_threads();
        let decode = |row: &[u8]| Row::decode(row).expect("a row").values();
        let row = self.engine().get(KEY).expect("reads");
        assert!(self.shared().hooks.lock().is_empty(), "a hook of the history was not reached");
        let found = row.map_or_else(Vec::new, |row| decode(&row));
        if self.0.removed.is_empty() {
            let mut scan = self.engine().scan(KEY, None).expect("scans");
            let row = scan.next().expect("scans").filter(|(key, _)| *key == KEY);
            assert_eq!(row.map_or_else(Vec::new, |(_, row)| decode(row)), found, "by a scan");
        }
        found
    }
}

/// Runs a history with the rule and without, and compares what a reader then finds.
fn judge(rule: &'static str, history: impl Fn(&Node) -> Vec<u32>, sound: &[u32], damaged: &[u32]) {
    judge_with(tiny(), rule, history, sound, damaged);
}

fn judge_with(
    options: Options,
    rule: &'static str,
    history: impl Fn(&Node) -> Vec<u32>,
    sound: &[u32],
    damaged: &[u32],
) {
    assert_eq!(history(&Node::new(&[], options.clone())), sound, "with the rule");
    let found = history(&Node::new(&[rule], options));
    assert_eq!(found, damaged, "without {rule} the history does its damage");
}
