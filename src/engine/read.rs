//! The way of a point read: one SuperVersion, newest source first, stop at the first Full.
//!
//! ```text
//! memtables, newest first      a blocked filter says no to most of them
//! row cache                    the joined state of the tables below
//! tables, newest first         one a level; its filter says no to most of them
//! ```
//!
//! The join of what the tables hold fills the cache if it is worth an entry ([`super::cache`]);
//! "nothing" only if a block was read for it in vain, because a key that all filters deny is
//! answered sooner than an entry is made and found.
//! A record that stands alone reaches the caller where it lies, in arena, cache or mapped file,
//! without a copy.
//!
//! A write can be read before its log is synced. Where every write is synced
//! ([`SyncMode::Always`]) nobody is told of it before: whoever read it could miss it after a power
//! loss. A record in a memtable says how far the log must be durable for it, and the read answers
//! with that position, or waits for it. What is in tables and cache is durable.
//!
//! # Invariants
//! 1. All sources are taken from one [`SuperVersion`].
//! 2. A cache entry is used by whoever finds it: it is at least as new as the tables of any
//!    SuperVersion that a reader can hold, and never newer than what was applied.
//! 3. The cache is filled only with the join of all tables of one SuperVersion, and only if the
//!    cache is still in that SuperVersion's epoch; never when a source could not be read.
//! 4. The position is taken from the records that were read, and compared with the log after that.

use super::cache::Cached;
use super::error::Result;
use super::iter::{JoinBuffers, JoinedRow, Joiner};
use super::options::SyncMode;
use super::position::Position;
use super::record::Kind;
use super::rules::rule;
use super::sstable::{KeyHash, RowRef};
use super::super_version::SuperVersion;
use super::{Engine, Shared};

impl Engine {
    /// The state of `key`, `None` if nothing was ever written under it (or it was purged).
    ///
    /// It is durable, as far as [`Options::sync_mode`](super::Options::sync_mode) makes writes
    /// durable before they are acknowledged: a read of what is not synced yet waits for the sync.
    ///
    /// # Errors
    /// A source could not be read: [`Error::Corruption`](super::Error::Corruption) names the block.
    /// Other keys stay readable. [`Error::Poisoned`](super::Error::Poisoned) after a failure of
    /// the log: nobody knows which of the latest writes are on disk.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.get_with(key, |row| row.map(<[u8]>::to_vec))
    }

    /// Calls `use_row` with the state of `key` where it lies.
    ///
    /// # Errors
    /// As [`Engine::get`].
    pub fn get_with<R>(&self, key: &[u8], use_row: impl FnOnce(Option<&[u8]>) -> R) -> Result<R> {
        self.shared.read_durable(key, Depth::State, use_row)
    }

    /// Calls `use_row` with the state of `key` that wins by time
    /// ([`MergeOperator::winning_time`](super::MergeOperator::winning_time)).
    ///
    /// The winning version is the one [`Engine::get_with`] shows, but the state may lack what
    /// older states of the key add beside it. It is for showing a value, not for making a state
    /// of. In exchange a key that was written lately is answered from memory alone. Where times do
    /// not decide it is [`Engine::get_with`].
    ///
    /// # Errors
    /// As [`Engine::get`].
    pub fn get_newest_with<R>(
        &self,
        key: &[u8],
        use_row: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R> {
        self.shared.read_durable(key, Depth::Newest, use_row)
    }

    /// [`Engine::get_newest_with`] for callers that must not block: beside the answer it gives the
    /// position up to which the log must be durable before anybody is told of it, for
    /// [`Engine::on_durable`]. [`Position::ZERO`]: it is durable now.
    ///
    /// # Errors
    /// As [`Engine::get`].
    pub fn peek_newest_with<R>(
        &self,
        key: &[u8],
        use_row: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<(R, Position)> {
        let view = self.shared.super_version.load();
        let (hash, mut end) = (KeyHash::new(key), Position::ZERO);
        let answer = self.shared.read(&view, key, &hash, Depth::Newest, &mut end, use_row)?;
        Ok((answer, self.shared.unsynced(end)))
    }

    /// [`Engine::peek_newest_with`] for several keys: `use_row` is called once for each, in their
    /// order, with its place among them. All are read as of one moment's memtables and tables,
    /// which is no snapshot: a write may come between two of them. The position is for all of them.
    pub fn peek_newest_each<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        use_row: impl FnMut(usize, Result<Option<&[u8]>>),
    ) -> Position {
        self.peek(keys, Depth::Newest, use_row)
    }

    /// As [`Engine::peek_newest_each`], with the whole states, as [`Engine::get_with`] gives them.
    pub fn peek_each<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        use_row: impl FnMut(usize, Result<Option<&[u8]>>),
    ) -> Position {
        self.peek(keys, Depth::State, use_row)
    }

    fn peek<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        depth: Depth,
        mut use_row: impl FnMut(usize, Result<Option<&[u8]>>),
    ) -> Position {
        let view = self.shared.super_version.load();
        let hashes: Vec<KeyHash> = keys.iter().map(|key| KeyHash::new(key.as_ref())).collect();
        for memtable in view.memtables() {
            // Waits for memory overlap here, where each read would wait for its own.
            hashes.iter().for_each(|hash| memtable.touch(hash.hash()));
        }
        let mut upto = Position::ZERO;
        for (at, (key, hash)) in keys.iter().zip(&hashes).enumerate() {
            let read = self.shared.read(&view, key.as_ref(), hash, depth, &mut upto, |row| {
                use_row(at, Ok(row));
            });
            if let Err(error) = read {
                use_row(at, Err(error));
            }
        }
        self.shared.unsynced(upto)
    }
}

/// How far down a read looks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Until the whole state is known.
    State,
    /// Until no older state can win.
    Newest,
}

impl Shared {
    /// Reads `key`, and waits until what was read is durable.
    #[inline]
    fn read_durable<R>(
        &self,
        key: &[u8],
        depth: Depth,
        use_row: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R> {
        let view = self.super_version.load();
        let mut end = Position::ZERO;
        let answer = self.read(&view, key, &KeyHash::new(key), depth, &mut end, use_row);
        if end == Position::ZERO {
            // Most reads: passed on where it lies, without a look at the log.
            return answer;
        }
        drop(view);
        let answer = answer?;
        self.wait_synced(end)?;
        Ok(answer)
    }

    /// Waits until somebody may be told of what the log had at `end`.
    #[inline]
    pub(super) fn wait_synced(&self, end: Position) -> Result<()> {
        match self.unsynced(end) {
            Position::ZERO => Ok(()),
            upto => self.log.sync(upto),
        }
    }

    /// `end`, if nobody may be told yet of what the log had there; else [`Position::ZERO`].
    #[inline]
    pub(super) fn unsynced(&self, end: Position) -> Position {
        let may_be_told = end <= self.log.durable_upto()
            || self.options.sync_mode != SyncMode::Always
            || !rule!(self, reads_of_what_is_synced);
        if may_be_told { Position::ZERO } else { end }
    }

    /// Reads `key` as of `view`. Raises `end` to where the log ended behind the newest write that
    /// was read in a memtable: [`Shared::unsynced`] tells whether it may be shown.
    #[inline]
    pub(super) fn read<R>(
        &self,
        view: &SuperVersion,
        key: &[u8],
        hash: &KeyHash,
        depth: Depth,
        end: &mut Position,
        use_row: impl FnOnce(Option<&[u8]>) -> R,
    ) -> Result<R> {
        // What is in memory may not be there after a restart, which is the only way on.
        self.log.check()?;
        let mut buffers = JoinBuffers::default();
        let mut joiner: Joiner<'_, &[u8]> = Joiner::new(&*self.operator, &mut buffers);
        self.hook("read:pinned");
        let later;
        let memtables = if rule!(self, one_super_version) {
            view
        } else {
            later = self.super_version.load();
            &later
        };
        for memtable in memtables.memtables() {
            if let Some(found) = memtable.get(key, hash.hash()) {
                *end = (*end).max(found.end);
                if joiner.push(found.record.kind, found.record.row)? {
                    break;
                }
            }
        }
        let complete = joiner.is_complete();
        let newest = joiner.finish();
        let wins = |row: &[u8]| {
            let time = self.operator.winning_time(row);
            time.is_some_and(|time| time > view.version.time_max())
        };
        if complete
            || (depth == Depth::Newest && newest.as_ref().is_some_and(|newest| wins(&newest.row)))
        {
            return Ok(use_row(newest.as_ref().map(|joined| &*joined.row)));
        }
        self.read_base(view, key, hash, |base| match (&newest, base) {
            (None, base) => Ok(use_row(base)),
            (Some(newest), None) => Ok(use_row(Some(&newest.row))),
            (Some(newest), Some(base)) => {
                let mut buffers = JoinBuffers::default();
                let mut joiner: Joiner<'_, &[u8]> = Joiner::new(&*self.operator, &mut buffers);
                joiner.push(newest.kind, &newest.row)?;
                joiner.push(Kind::Full, base)?;
                let joined = joiner.finish();
                Ok(use_row(joined.as_ref().map(|joined| &*joined.row)))
            }
        })
    }

    /// The joined state of the tables, from the cache if it is there.
    #[inline]
    fn read_base<R>(
        &self,
        view: &SuperVersion,
        key: &[u8],
        hash: &KeyHash,
        use_row: impl FnOnce(Option<&[u8]>) -> Result<R>,
    ) -> Result<R> {
        match self.cache.get(key, hash.hash(), self.now_ms(), Cached::clone) {
            Some(Cached::Row(row)) => use_row(Some(&row)),
            Some(Cached::Negative) => use_row(None),
            None => self.read_tables(view, key, hash, use_row),
        }
    }

    fn read_tables<R>(
        &self,
        view: &SuperVersion,
        key: &[u8],
        hash: &KeyHash,
        use_row: impl FnOnce(Option<&[u8]>) -> Result<R>,
    ) -> Result<R> {
        let mut buffers = JoinBuffers::default();
        let mut joiner = Joiner::new(&*self.operator, &mut buffers);
        let mut read_in_vain = false;
        let is_cold = self.cache.admission().is_dear();
        let is_timed = self.cache.admission().is_timed(hash.hash());
        let began_ns = is_timed.then(|| self.clock.now_ns());
        for table in view.version.likely(key, hash) {
            if !table.table().may_contain(hash) {
                continue;
            }
            let found = table.table().find(key, is_cold).inspect_err(|_| {
                self.counters.corruptions.add(1);
            })?;
            if let Some(record) = found {
                let kind = if table.meta.demote_full { Kind::Delta } else { record.kind };
                if joiner.push(kind, record.row)? {
                    break;
                }
            } else {
                read_in_vain = true;
            }
        }
        let joined = joiner.finish();
        if let Some(began_ns) = began_ns {
            self.cache.admission().note(self.clock.now_ns().saturating_sub(began_ns));
        }
        self.hook("read:before_fill");
        let is_cheap = match joined.as_ref().map(|joined| &joined.row) {
            None | Some(JoinedRow::Source(RowRef::Mapped(_))) => true,
            Some(JoinedRow::Source(RowRef::Owned { .. }) | JoinedRow::Merged(_)) => false,
        };
        let row = joined.as_ref().map(|joined| &*joined.row);
        if (row.is_some() || read_in_vain)
            && self.cache.is_on()
            && (!is_cheap || self.cache.is_asked_again(hash.hash()))
        {
            self.fill_cache(view, key, hash, row);
        }
        use_row(row)
    }

    /// Puts the join of all tables of `view` into the cache.
    fn fill_cache(&self, view: &SuperVersion, key: &[u8], hash: &KeyHash, row: Option<&[u8]>) {
        let epoch = if rule!(self, cache_epoch_tag) {
            view.cache_epoch
        } else {
            self.super_version.load().cache_epoch
        };
        let cached = row.map_or(Cached::Negative, |row| Cached::Row(row.into()));
        self.cache.fill(key, hash.hash(), cached, epoch, self.now_ms());
    }
}
