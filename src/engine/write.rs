//! The way of a write: stripe locks, log, memtable.
//!
//! Two kinds of write exist. [`Engine::apply`] takes states as they come (a replica's rows, blind
//! writes) and inserts Deltas; it reads a key only for a state with a version at or below the guard
//! of its partition, which is rare. [`Engine::update`] reads the key, lets the caller make the new
//! state and inserts it as a Full, since it contains what was read. Both log whole states as
//! Deltas; Full is derived and never logged.
//!
//! ```text
//! lock stripes(keys)
//!   update: pin a SuperVersion, read, make the new state; nothing new? answer how far the log must
//!           be durable for what was read to stay
//!   apply:  at or below the guard of the partition? read, strip or refuse
//!   judged: at or below the guard? read, and note whether it is news
//!   lock log { guard changed? start over; judged under another floor? refuse;
//!              append, pick the memtable, take a writer reference }
//!   insert into the memtable, drop the writer reference
//! unlock stripes
//! wait until the log is as durable as asked
//! ```
//!
//! # Invariants
//! 1. The stripe of a key is held from its read (update) or its log record (apply) to the end of
//!    its insert; it orders the key's records and makes the read-modify-write atomic.
//! 2. The guard is compared again under the log mutex, which is also what changes it: whatever is
//!    logged after a fence has passed the fence.
//! 3. A Full goes in only if no seal and no ingest came between its read and its pick; otherwise
//!    the same bytes go in as a Delta, which is always safe. No loop, no second read.

use std::sync::Arc;

use super::error::{Error, Result};
use super::memtable::{Logged, Memtable};
use super::options::{KEY_BYTES_MAX, ROW_BYTES_MAX, SyncMode};
use super::position::Position;
use super::pressure::OnStall;
use super::read::Depth;
use super::record::{Kind, Record};
use super::rules::rule;
use super::sstable::KeyHash;
use super::{Engine, Shared};

/// What is called with the key of every record: see [`Engine::observe`].
pub type WriteObserver = Box<dyn Fn(&[u8]) + Send + Sync>;

/// Checks a key and a row against the engine's bounds.
fn check_bounds(key: &[u8], row: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(Error::OutOfBounds { what: "key bytes", found: 0, limit: 1 });
    }
    let too_large = |what, found: usize, limit: usize| Error::OutOfBounds {
        what,
        found: found as u64,
        limit: limit as u64,
    };
    if key.len() > KEY_BYTES_MAX {
        return Err(too_large("key bytes", key.len(), KEY_BYTES_MAX));
    }
    if row.len() > ROW_BYTES_MAX {
        return Err(too_large("row bytes", row.len(), ROW_BYTES_MAX));
    }
    Ok(())
}

impl Engine {
    /// Joins states into their keys without reading. The batch is one unit for recovery: after a
    /// crash all of it is there or nothing; readers may see it arrive key by key.
    ///
    /// The states are visible at once and acknowledged only by [`Engine::wait_durable`] or
    /// [`Engine::on_durable`] on the position returned.
    ///
    /// # Errors
    /// Nothing is written on any error. [`Error::BelowSafePoint`] if a state brings a version that
    /// may have been deleted and forgotten; [`Error::OutOfBounds`], [`Error::Merge`] for bad
    /// input; [`Error::Stalled`], [`Error::DiskFull`] and [`Error::Poisoned`] as they say.
    pub fn apply(&self, batch: &[(&[u8], &[u8])]) -> Result<Position> {
        self.shared.apply(batch, OnStall::Wait)
    }

    /// [`Engine::apply`] with a choice of what it does where it would wait for a flush or a
    /// compaction.
    ///
    /// # Errors
    /// As [`Engine::apply`].
    pub fn apply_with(&self, batch: &[(&[u8], &[u8])], on_stall: OnStall) -> Result<Position> {
        self.shared.apply(batch, on_stall)
    }

    /// [`Engine::apply`] of a repair: a state that was judged by the floors of this replica and
    /// another, so the guard does not concern it. `floor` is that of this replica that it was
    /// judged under.
    ///
    /// # Errors
    /// As [`Engine::apply`]; [`Error::BelowSafePoint`] if a floor has been set since.
    pub fn apply_judged(
        &self,
        key: &[u8],
        row: &[u8],
        floor: u64,
        on_stall: OnStall,
    ) -> Result<Position> {
        self.shared.apply_judged(key, row, floor, on_stall)
    }

    /// Has `observer` called with the key of every record once it can be read, before a fence that
    /// comes later returns. The first call counts.
    pub fn observe(&self, observer: WriteObserver) {
        // A second observer is ignored, as said.
        let _ = self.shared.observer.set(Observer(observer));
    }

    /// Reads keys and replaces their states by what `make` answers, atomically for each key.
    ///
    /// `make` gets the index of the key, its state and the guard of its partition: times it mints
    /// must be above the guard. Its answer must contain the state it was given
    /// (`join(answer, given) == answer`); `None` leaves the key alone. It may be called again for
    /// the same key, if a fence came between, and only the last answers count. A key that is named
    /// twice sees its own earlier answer.
    ///
    /// Where nothing was written the position is the one up to which the log must be durable
    /// before anybody is told of the states that were read.
    ///
    /// # Errors
    /// As [`Engine::apply`]; an error of `make` is passed on and nothing is written.
    pub fn update<E: From<Error>>(
        &self,
        keys: &[&[u8]],
        make: impl FnMut(usize, Option<&[u8]>, u64) -> Result<Option<Vec<u8>>, E>,
    ) -> Result<Position, E> {
        self.shared.update(keys, make, OnStall::Wait)
    }

    /// [`Engine::update`] with a choice of what it does where it would wait for a flush or a
    /// compaction.
    ///
    /// # Errors
    /// As [`Engine::update`].
    pub fn update_with<E: From<Error>>(
        &self,
        keys: &[&[u8]],
        make: impl FnMut(usize, Option<&[u8]>, u64) -> Result<Option<Vec<u8>>, E>,
        on_stall: OnStall,
    ) -> Result<Position, E> {
        self.shared.update(keys, make, on_stall)
    }

    /// Waits until everything up to `position` is as durable as
    /// [`Options::sync_mode`](super::Options::sync_mode) promises.
    ///
    /// # Errors
    /// The log could not be written or synced: whether the write survives is unknown, and the
    /// engine takes no more writes.
    pub fn wait_durable(&self, position: Position) -> Result<()> {
        self.shared.wait_durable(position)
    }

    /// Like [`Engine::wait_durable`], for callers that must not block: `done` is called once, on a
    /// thread of the engine or on this one.
    pub fn on_durable(&self, position: Position, done: Box<dyn FnOnce(Result<()>) + Send>) {
        self.shared.on_durable(position, done);
    }
}

/// See [`Engine::observe`].
pub(super) struct Observer(WriteObserver);

/// A log record's worth of one key.
#[derive(Clone, Copy)]
struct Write<'a> {
    key: &'a [u8],
    hash: u64,
    partition: usize,
    /// The guard under which the row was checked or made.
    guard: u64,
    /// The floor that a repair was judged under.
    judged_under: Option<u64>,
    /// It is a repair that brings a version at or below the guard.
    is_news: bool,
}

impl<'a> Write<'a> {
    fn new(shared: &Shared, key: &'a [u8]) -> Self {
        let partition = shared.guards.partition_of(key);
        let (hash, guard) = (KeyHash::new(key).hash(), shared.guards.get(partition));
        Self { key, hash, partition, guard, judged_under: None, is_news: false }
    }
}

/// A writer between its pick and the end of its insert. Dropping it gives the memtable back.
struct Inserting<'a> {
    shared: &'a Shared,
    memtable: &'a Memtable,
    is_done: bool,
}

impl Drop for Inserting<'_> {
    fn drop(&mut self) {
        // The state is logged but cannot be joined, or whoever was to join it panicked: memory and
        // log disagree, and so would every replay. Nothing may be acknowledged from here on, nor
        // flushed, which is asked when the last writer is gone.
        if !self.is_done {
            self.shared.poison("a write was logged, and a panic kept it out of memory");
        }
        if rule!(self.shared, writer_reference) {
            self.memtable.remove_writer();
        }
    }
}

impl Shared {
    fn apply(&self, batch: &[(&[u8], &[u8])], on_stall: OnStall) -> Result<Position> {
        for (key, row) in batch {
            check_bounds(key, row)?;
        }
        self.make_room(on_stall)?;
        match batch {
            [] => Ok(Position::ZERO),
            // The common case keeps clear of the allocator.
            [(key, row)] => self.apply_writes(&mut [Write::new(self, key)], &[row], batch),
            _ => {
                let mut writes: Vec<_> =
                    batch.iter().map(|(key, _)| Write::new(self, key)).collect();
                let rows: Vec<&[u8]> = batch.iter().map(|(_, row)| *row).collect();
                self.apply_writes(&mut writes, &rows, batch)
            }
        }
    }

    fn apply_judged(
        &self,
        key: &[u8],
        row: &[u8],
        floor: u64,
        on_stall: OnStall,
    ) -> Result<Position> {
        check_bounds(key, row)?;
        self.make_room(on_stall)?;
        let write = Write { judged_under: Some(floor), ..Write::new(self, key) };
        self.apply_writes(&mut [write], &[row], &[(key, row)])
    }

    fn apply_writes(
        &self,
        writes: &mut [Write<'_>],
        rows: &[&[u8]],
        batch: &[(&[u8], &[u8])],
    ) -> Result<Position> {
        let _held = self.lock_stripes(writes);
        loop {
            let stripped = self.strip_below_guard(writes, rows)?;
            let swapped: Vec<(&[u8], &[u8])>;
            let records = if stripped.is_empty() {
                batch
            } else {
                let mut records = batch.to_vec();
                for (index, row) in &stripped {
                    records[*index].1 = row;
                }
                swapped = records;
                &swapped
            };
            self.hook("apply:checked");
            let Some((position, memtable, _)) = self.log_and_pick(writes, records, None)? else {
                continue;
            };
            self.insert(&memtable, writes, records, Kind::Delta, position)?;
            return Ok(position);
        }
    }

    /// The rows that must be replaced because they bring versions at or below the guard. Marks the
    /// repairs that do.
    fn strip_below_guard(
        &self,
        writes: &mut [Write<'_>],
        rows: &[&[u8]],
    ) -> Result<Vec<(usize, Vec<u8>)>> {
        let mut stripped = Vec::new();
        for (index, (write, row)) in writes.iter_mut().zip(rows).enumerate() {
            write.guard = self.guards.get(write.partition);
            write.is_news = false;
            let oldest = self.operator.live_time_min(row)?;
            // A guard of 0 is none: even time 0 is above it.
            if oldest > write.guard || write.guard == 0 || !rule!(self, guard) {
                continue;
            }
            let view = self.super_version.load();
            // A repair is only looked at: what the guard alone covers is refused, so it is news.
            let floor = match write.judged_under {
                Some(_) => 0,
                None => view.version.state().safe_points()[write.partition].floor,
            };
            let mut out = Vec::new();
            // Nobody is told of it: what is left of the row is logged behind it.
            let mut seen = Position::ZERO;
            let taken = self.read(
                &view,
                write.key,
                &KeyHash::from_hash(write.hash),
                Depth::State,
                &mut seen,
                |local| self.operator.strip(row, local, write.guard, floor, &mut out),
            )??;
            if write.judged_under.is_some() {
                write.is_news = !taken;
                continue;
            }
            if !taken {
                return Err(Error::BelowSafePoint);
            }
            stripped.push((index, out));
        }
        Ok(stripped)
    }

    fn update<E: From<Error>>(
        &self,
        keys: &[&[u8]],
        mut make: impl FnMut(usize, Option<&[u8]>, u64) -> Result<Option<Vec<u8>>, E>,
        on_stall: OnStall,
    ) -> Result<Position, E> {
        for key in keys {
            check_bounds(key, &[])?;
        }
        self.make_room(on_stall)?;
        let mut all: Vec<_> = keys.iter().map(|key| Write::new(self, key)).collect();
        let _held = self.lock_stripes(&all);
        loop {
            let view = self.super_version.load_full();
            let mut made: Vec<(usize, Vec<u8>)> = Vec::with_capacity(keys.len());
            let mut seen = Position::ZERO;
            for (index, write) in all.iter_mut().enumerate() {
                write.guard = self.guards.get(write.partition);
                let earlier = made.iter().rev().find(|(at, _)| keys[*at] == write.key);
                let row = match earlier {
                    Some((_, row)) => make(index, Some(row), write.guard)?,
                    None => self.read(
                        &view,
                        write.key,
                        &KeyHash::from_hash(write.hash),
                        Depth::State,
                        &mut seen,
                        |row| make(index, row, write.guard),
                    )??,
                };
                if let Some(row) = row {
                    check_bounds(write.key, &row)?;
                    made.push((index, row));
                }
            }
            self.hook("update:read");
            if made.is_empty() {
                return Ok(self.unsynced(seen));
            }
            let writes: Vec<_> = made.iter().map(|(index, _)| all[*index]).collect();
            let records: Vec<(&[u8], &[u8])> =
                made.iter().map(|(index, row)| (keys[*index], &row[..])).collect();
            let picked = self.log_and_pick(&writes, &records, Some(view.generation))?;
            let Some((position, memtable, full)) = picked else { continue };
            let kind = if full { Kind::Full } else { Kind::Delta };
            self.insert(&memtable, &writes, &records, kind, position)?;
            return Ok(position);
        }
    }

    fn lock_stripes(&self, writes: &[Write<'_>]) -> Option<super::stripes::Held<'_>> {
        if !rule!(self, stripe_lock) {
            return None;
        }
        match writes {
            [write] => Some(self.stripes.lock(&[write.hash])),
            _ => {
                let hashes: Vec<u64> = writes.iter().map(|write| write.hash).collect();
                Some(self.stripes.lock(&hashes))
            }
        }
    }

    /// Under the log mutex: compares the guards again, appends, picks the memtable. `None`: a
    /// guard was raised since it was looked at; start over. The flag says whether a state read in
    /// `read_generation` may be claimed Full.
    #[inline]
    fn log_and_pick(
        &self,
        writes: &[Write<'_>],
        records: &[(&[u8], &[u8])],
        read_generation: Option<u64>,
    ) -> Result<Option<(Position, Arc<Memtable>, bool)>> {
        let mut log = self.log.lock();
        let unchanged = |write: &Write<'_>| self.guards.get(write.partition) == write.guard;
        if rule!(self, guard_at_pick) && !writes.iter().all(unchanged) {
            return Ok(None);
        }
        let has_changed = |write: &Write<'_>| {
            write.judged_under.is_some_and(|floor| floor != self.guards.floor(write.partition))
        };
        if writes.iter().any(has_changed) && rule!(self, judged_by_floor_in_force) {
            return Err(Error::BelowSafePoint);
        }
        writes
            .iter()
            .filter(|write| write.is_news)
            .for_each(|write| self.guards.count_news(write.partition));
        #[cfg(test)]
        let increments = super::tests::increments(self, records);
        #[cfg(test)]
        let records = &increments.iter().map(|(key, row)| (*key, &row[..])).collect::<Vec<_>>();
        let position = log.append(records)?;
        let memtable = log.active.clone();
        if rule!(self, writer_reference) {
            memtable.add_writer();
        }
        let same =
            log.generation == read_generation.unwrap_or(u64::MAX) || !rule!(self, generation_check);
        let quiet = log.queued_ingests == 0 || !rule!(self, ingest_no_full_while_queued);
        drop(log);
        Ok(Some((position, memtable, read_generation.is_some() && same && quiet)))
    }

    fn insert(
        &self,
        memtable: &Memtable,
        writes: &[Write<'_>],
        records: &[(&[u8], &[u8])],
        kind: Kind,
        end: Position,
    ) -> Result<()> {
        let mut inserting = Inserting { shared: self, memtable, is_done: false };
        self.hook("write:picked");
        for (write, (key, row)) in writes.iter().zip(records) {
            let logged = Logged { record: Record { kind, row }, end };
            let inserted = memtable.insert(key, write.hash, logged, &*self.operator);
            inserted.inspect_err(|error| self.poison(&error.to_string()))?;
            if let Some(Observer(observer)) = self.observer.get() {
                observer(key);
            }
        }
        inserting.is_done = true;
        Ok(())
    }

    pub(super) fn wait_durable(&self, position: Position) -> Result<()> {
        match self.options.sync_mode {
            SyncMode::Always => self.log.sync(position),
            SyncMode::Interval | SyncMode::Os => {
                self.log.write_out(position)?;
                if self.log.wants_room() {
                    self.background.wake_log();
                }
                Ok(())
            }
        }
    }

    fn on_durable(&self, position: Position, done: Box<dyn FnOnce(Result<()>) + Send>) {
        match self.options.sync_mode {
            SyncMode::Always if self.options.compaction_threads > 0 => {
                self.log.on_durable(position, done);
                self.background.wake_log();
            }
            _ => done(self.wait_durable(position)),
        }
    }
}
