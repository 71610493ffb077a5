//! Taking over many rows at once, as a table instead of through the log.
//!
//! The rows come from elsewhere, so nothing in them is Full here: the table is marked
//! `demote_full` and its records are read as Deltas. Its place in the order of age is above
//! everything that was written before the call:
//!
//! ```text
//! lock log { seal the active memtable; the ingest gets the next epoch, the new memtable the one
//!            after; until it is installed nothing is inserted as Full }
//! flush the queue until the ingest is its head
//! cache: next epoch, drop everything in the range
//! manifest edit; swap the SuperVersion; generation + 1; Fulls are allowed again
//! ```

use std::sync::Arc;

use super::error::{Error, Result};
use super::flush::CacheChange;
use super::options::LEVELS;
use super::record::Kind;
use super::rules::rule;
use super::super_version::SuperVersion;
use super::version::{TableMeta, VersionEdit};
use super::{Engine, Shared};

impl Engine {
    /// Joins rows in ascending order of keys into the store, durable on return.
    ///
    /// A row with a version at or below the guard of its partition cannot come this way: use
    /// [`Engine::apply`], which reads and strips.
    ///
    /// # Errors
    /// Nothing is installed on any error. [`Error::BelowSafePoint`] for a row as above.
    pub fn ingest(
        &self,
        rows: &mut dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>)>>,
    ) -> Result<u64> {
        self.shared.ingest(rows)
    }
}

impl Shared {
    fn ingest(&self, rows: &mut dyn Iterator<Item = Result<(Vec<u8>, Vec<u8>)>>) -> Result<u64> {
        self.make_room()?;
        // One at a time, so that the loop below finds its own item at the head of the queue; and
        // no guard changes meanwhile, so that a fence that comes later finds the rows installed.
        let _one = self.ingest_lock.lock();
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return Ok(0);
        }
        let mut table = self.table_output().write(0, rule!(self, demote_full), |add| {
            for row in rows {
                let (key, row) = row?;
                let guard = self.guards.get(self.guards.partition_of(&key));
                if self.operator.live_time_min(&row)? <= guard && rule!(self, ingest_filter) {
                    return Err(Error::BelowSafePoint);
                }
                add(&key, Kind::Full, &row)?;
            }
            Ok(())
        })?;
        let (entries, number) = (table.entries, table.number);
        table.epoch = self.seal(true);
        table.level = if rule!(self, ingest_newest) { 0 } else { LEVELS as u8 - 1 };
        self.hook("ingest:queued");
        let installed = self.install_ingest(table);
        if installed.is_err() {
            // If this fails too, the next open does it.
            let _ = self.vfs.remove(&self.versions.table_path(number));
        }
        installed.map(|()| entries)
    }

    fn install_ingest(&self, table: TableMeta) -> Result<()> {
        let epoch = table.epoch;
        let (first, last) = (table.smallest.clone(), table.largest.clone());
        let mut flushed = Ok(true);
        while rule!(self, ingest_waits_in_queue)
            && matches!(flushed, Ok(true))
            && self.super_version.load().oldest_unflushed_epoch() != epoch
        {
            flushed = self.flush_first();
        }
        let edit = VersionEdit { added: vec![table], ..VersionEdit::default() };
        let cache = CacheChange::Ingested { first: &first, last: &last };
        let installed = flushed.and_then(|_| {
            self.install(edit, cache, |view| {
                // Under the log mutex: a writer that picks after this sees the new generation
                // and, with it, that Fulls are allowed again.
                let mut log = self.log.lock();
                log.generation += 1;
                view.generation = log.generation;
                view.queue.retain(|queued| queued.epoch() != epoch);
            })
        });
        self.leave_queue(epoch);
        installed
    }

    /// Lets Fulls in again and, after a failure, gives the place in the queue up.
    fn leave_queue(&self, epoch: u64) {
        self.log.lock().queued_ingests -= 1;
        self.super_version.rcu(|view| {
            let mut view = SuperVersion::clone(view);
            view.queue.retain(|queued| queued.epoch() != epoch);
            Arc::new(view)
        });
        self.background.wake_flush();
    }
}
