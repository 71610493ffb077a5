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
use super::pressure::OnStall;
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
        self.make_room(OnStall::Wait)?;
        // One at a time, so that the loop below finds its own item at the head of the queue; and
        // no guard changes meanwhile, so that a fence that comes later finds the rows installed.
        let _one = self.safe_point_lock.lock();
        let mut rows = rows.peekable();
        if rows.peek().is_none() {
            return Ok(0);
        }
        let output = self.table_output(self.compaction_space().1);
        let mut table = output.write(0, rule!(self, demote_full), |add| {
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
        let epoch = self.seal(true);
        table.epoch = epoch;
        table.level = if rule!(self, ingest_newest) { 0 } else { LEVELS as u8 - 1 };
        self.hook("ingest:queued");
        let turn = self.wait_for_turn(table.epoch);
        if turn.is_err() {
            self.remove_unnamed(&[number]);
        }
        // A table whose install failed stays: the edit that names it may be durable all the same.
        let installed = turn.and_then(|()| self.install_ingest(table));
        self.leave_queue(epoch);
        installed.map(|()| entries)
    }

    /// Flushes what is older, until the ingest is the head of the queue.
    fn wait_for_turn(&self, epoch: u64) -> Result<()> {
        while rule!(self, ingest_waits_in_queue)
            && self.super_version.load().oldest_unflushed_epoch() != epoch
        {
            self.flush_first()?;
        }
        Ok(())
    }

    fn install_ingest(&self, table: TableMeta) -> Result<()> {
        let epoch = table.epoch;
        let (first, last) = (table.smallest.clone(), table.largest.clone());
        let edit = VersionEdit { added: vec![table], ..VersionEdit::default() };
        let cache = CacheChange::Range { first: &first, last: &last };
        self.install(edit, cache, |view| {
            // Under the log mutex: a writer that picks after this finds another generation than
            // the one it read under.
            let mut log = self.log.lock();
            log.generation += 1;
            view.generation = log.generation;
            view.queue.retain(|queued| queued.epoch() != epoch);
        })
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
