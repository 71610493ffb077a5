//! The newest writes, in memory, in key order.
//!
//! One record a key: a second write of a key is joined with the first in place. A memtable is
//! *active* (writers insert) until it is *sealed* at an exact position of the commit log; a sealed
//! one is flushed to a table as soon as the writers that had picked it are done.
//!
//! It does not lock keys: a writer holds the key's stripe lock from before it picks the memtable
//! until its insert is done ([`super::write`]).
//!
//! # Invariants
//! 1. The log mutex picks the memtable and takes the writer reference in one step, so a log record
//!    before the seal position is in this memtable and one after it in a younger.
//! 2. Once sealed and without writers it never changes.
//! 3. Whoever lets go of it last does not free its nodes, one by one: the [`Reaper`] does.
//! 4. A record says where the log ended behind the newest write that is joined in it: once the log
//!    is durable up to there all of the record is.

mod arena;
mod filter;
mod list;
mod zeros;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::iter::Cursor;
use super::merge::{MergeError, MergeOperator};
use super::position::Position;
use super::reaper::Reaper;
use super::record::{Kind, Record};
pub use arena::Spare;
use filter::Filter;
use list::{List, Walk};

/// Bytes a typical entry takes; sizes the filter.
const ENTRY_BYTES_TYPICAL: usize = 160;

/// What a table has beside its records, if it has few.
const TABLE_BYTES_MIN: u64 = 4 << 10;
/// What a table may have more for each record than the memtable, if each fills a block alone.
const TABLE_BYTES_MORE: u64 = 16;

/// A record, and where the log ended behind the newest write in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Logged<'a> {
    pub record: Record<'a>,
    pub end: Position,
}

/// See the module page.
pub struct Memtable {
    // Constant since it has its place.
    epoch: u64,
    reaper: Arc<Reaper>,

    // Shared by writers and readers, each with its own discipline.
    list: List,
    filter: Filter,

    /// Writers that picked this memtable and have not inserted yet. Added to under the log mutex.
    writers: Writers,
    /// Set under the log mutex; tells the last writer to wake the flush.
    sealed: AtomicBool,
    /// Where the log stood when it was sealed. Protected by the mutex, which `no_writers` uses.
    sealed_at: Mutex<Option<Position>>,
    no_writers: Condvar,
}

/// On cache lines of its own: every write changes it, and every read looks at its neighbours.
#[repr(align(128))]
struct Writers(AtomicUsize);

impl AsRef<List> for Memtable {
    fn as_ref(&self) -> &List {
        &self.list
    }
}

impl Drop for Memtable {
    fn drop(&mut self) {
        self.reaper.free(std::mem::replace(&mut self.list, List::new(0, &Arc::default())));
    }
}

/// A memtable that has no place in the order of age yet. Made ahead by a thread that is no
/// writer's: whoever asks glibc for a kilobyte or more has it put together all the nodes that were
/// freed of an earlier memtable, for tens of milliseconds, and a writer would ask with the log
/// locked (docs/decisions/0084).
pub struct Blank(Arc<Memtable>);

impl Blank {
    /// For a memtable that will be sealed at about `bytes` and that `reaper` will free.
    pub fn new(bytes: usize, spare: &Arc<Spare>, reaper: &Arc<Reaper>) -> Self {
        Self(Arc::new(Memtable {
            epoch: 0,
            reaper: Arc::clone(reaper),
            list: List::new(bytes, spare),
            filter: Filter::for_keys(bytes / ENTRY_BYTES_TYPICAL),
            writers: Writers(AtomicUsize::new(0)),
            sealed: AtomicBool::new(false),
            sealed_at: Mutex::new(None),
            no_writers: Condvar::new(),
        }))
    }

    /// Where the memtable lies.
    #[cfg(test)]
    pub fn address(&self) -> *const Memtable {
        Arc::as_ptr(&self.0)
    }

    /// The memtable, which takes its place. Allocates nothing.
    pub fn into_memtable(mut self, epoch: u64) -> Arc<Memtable> {
        Arc::get_mut(&mut self.0).expect("nobody else has it yet").epoch = epoch;
        self.0
    }
}

impl Memtable {
    /// Its place in the order of age: a greater epoch is younger.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Joins a record into the key's cell.
    ///
    /// A Full of a read-modify-write contains what the cell held, since its writer read it under
    /// the same stripe lock; it replaces the cell without a join.
    ///
    /// REQUIRES: the caller holds the key's stripe lock and a writer reference.
    ///
    /// # Errors
    /// The operator could not join; the cell is unchanged.
    pub fn insert(
        &self,
        key: &[u8],
        hash: u64,
        logged: Logged<'_>,
        operator: &dyn MergeOperator,
    ) -> Result<(), MergeError> {
        let known = self.filter.may_contain(hash);
        if !known {
            self.filter.insert(hash);
        }
        if !known && self.list.insert_new(key, logged) {
            return Ok(());
        }
        let Some(found) = self.list.find(key) else {
            // The filter was wrong.
            let inserted = self.list.insert_new(key, logged);
            debug_assert!(inserted, "the stripe lock keeps other writers of the key away");
            return Ok(());
        };
        let old = found.logged();
        let Logged { record: Record { kind, row }, end } = logged;
        if kind == Kind::Full {
            debug_assert!(
                // A row that cannot be read is found where it is.
                operator.contains(row, old.record.row).unwrap_or(true),
                "a Full does not contain what it replaces"
            );
            found.replace(logged);
            return Ok(());
        }
        let mut joined = Vec::with_capacity(old.record.row.len() + row.len());
        operator.join(row, old.record.row, &mut joined)?;
        let record = Record { kind: kind.over(old.record.kind), row: &joined };
        found.replace(Logged { record, end: end.max(old.end) });
        Ok(())
    }

    /// The record of `key`.
    #[inline]
    pub fn get(&self, key: &[u8], hash: u64) -> Option<Logged<'_>> {
        if !self.filter.may_contain(hash) {
            return None;
        }
        self.list.find(key).map(|found| found.logged())
    }

    /// Brings near what [`Memtable::get`] will look at first.
    #[inline]
    pub fn touch(&self, hash: u64) {
        black_box(self.filter.may_contain(hash));
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        self.list.bytes() + self.filter.bytes()
    }

    /// Bytes that count towards sealing: what was inserted, dead records included, so that a hot
    /// key rotates the memtable instead of growing it.
    pub fn list_bytes(&self) -> usize {
        self.list.used_bytes()
    }

    /// About the most bytes that the table may take which is made of it. A node in memory is larger
    /// than what a table has for each key, in columns, index and filter; long keys that differ only
    /// at their end are in the index once more, and are not counted.
    pub fn table_bytes_max(&self) -> u64 {
        if self.is_empty() {
            return 0;
        }
        let more = self.entries() as u64 * TABLE_BYTES_MORE;
        self.list_bytes() as u64 + more + TABLE_BYTES_MIN
    }

    /// Keys in it.
    pub fn entries(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing was inserted.
    pub fn is_empty(&self) -> bool {
        self.list.len() == 0
    }

    /// REQUIRES: the log mutex is held (invariant 1).
    pub fn add_writer(&self) {
        self.writers.0.fetch_add(1, Ordering::Relaxed);
    }

    /// The writer's inserts are done.
    pub fn remove_writer(&self) {
        // SeqCst here, in `seal` and in `has_writers`: of a writer that leaves and a flush that
        // starts to wait, at least one sees the other. The lock closes the gap between the
        // flush's look at the count and its wait.
        if self.writers.0.fetch_sub(1, Ordering::SeqCst) == 1 && self.sealed.load(Ordering::SeqCst)
        {
            drop(self.sealed_at.lock());
            self.no_writers.notify_all();
        }
    }

    /// Marks it sealed. REQUIRES: the log mutex is held.
    pub fn seal(&self, at: Position) {
        *self.sealed_at.lock() = Some(at);
        self.sealed.store(true, Ordering::SeqCst);
    }

    /// Where the log stood when it was sealed.
    pub fn sealed_at(&self) -> Option<Position> {
        *self.sealed_at.lock()
    }

    /// Whether a writer that picked it has not inserted yet.
    pub fn has_writers(&self) -> bool {
        self.writers.0.load(Ordering::SeqCst) > 0
    }

    /// Waits until every writer that picked it has inserted. Bounded by the inserts themselves,
    /// which wait for nothing.
    pub fn wait_for_writers(&self) {
        let mut sealed_at = self.sealed_at.lock();
        while self.has_writers() {
            self.no_writers.wait(&mut sealed_at);
        }
    }
}

/// A position in a memtable; keeps it alive.
pub struct MemtableCursor {
    walk: Walk<Memtable>,
}

impl MemtableCursor {
    /// Unpositioned.
    pub fn new(memtable: Arc<Memtable>) -> Self {
        Self { walk: Walk::new(memtable) }
    }

    /// Brings near what the cursor stands on, for another one that comes after it.
    #[inline]
    pub fn touch(&self) {
        self.walk.touch();
    }

    /// Where the log ended behind the newest write in the record. A writer may have replaced the
    /// record since [`Cursor::record`] was asked: this then says more, never less.
    /// REQUIRES: `valid()`.
    pub fn end(&self) -> Position {
        self.walk.logged().expect(VALID).end
    }
}

/// What a caller of `key`, `record` or `prefix` promised.
const VALID: &str = "REQUIRES valid()";

impl Cursor for MemtableCursor {
    fn seek_to_first(&mut self) -> super::Result<()> {
        self.walk.seek_to_first();
        Ok(())
    }

    fn seek(&mut self, key: &[u8]) -> super::Result<()> {
        self.walk.seek(key);
        Ok(())
    }

    fn next(&mut self) -> super::Result<()> {
        self.walk.next();
        Ok(())
    }

    fn valid(&self) -> bool {
        self.walk.key().is_some()
    }

    fn key(&self) -> &[u8] {
        self.walk.key().expect(VALID)
    }

    fn record(&self) -> Record<'_> {
        self.walk.logged().expect(VALID).record
    }

    fn prefix(&self) -> u64 {
        self.walk.prefix().expect(VALID)
    }
}

#[cfg(test)]
mod tests;
