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
//! # Invariants
//! 1. All sources are taken from one [`SuperVersion`].
//! 2. A cache entry is used by whoever finds it: it is at least as new as the tables of any
//!    SuperVersion that a reader can hold, and never newer than what was applied.
//! 3. The cache is filled only with the join of all tables of one SuperVersion, and only if the
//!    cache is still in that SuperVersion's epoch; never when a source could not be read.

use super::cache::Cached;
use super::error::Result;
use super::iter::{JoinBuffers, JoinedRow, Joiner};
use super::record::Kind;
use super::rules::rule;
use super::sstable::{KeyHash, RowRef};
use super::super_version::SuperVersion;
use super::{Engine, Shared};

impl Engine {
    /// The state of `key`, `None` if nothing was ever written under it (or it was purged).
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
        let view = self.shared.super_version.load();
        self.shared.read(&view, key, &KeyHash::new(key), Depth::State, use_row)
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
        let view = self.shared.super_version.load();
        self.shared.read(&view, key, &KeyHash::new(key), Depth::Newest, use_row)
    }

    /// [`Engine::get_newest_with`] for several keys: `use_row` is called once for each, in their
    /// order, with its place among them. All are read as of one moment's memtables and tables,
    /// which is no snapshot: a write may come between two of them.
    pub fn get_newest_each<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        use_row: impl FnMut(usize, Result<Option<&[u8]>>),
    ) {
        self.each(keys, Depth::Newest, use_row);
    }

    /// [`Engine::get_with`] for several keys, as [`Engine::get_newest_each`] does it.
    pub fn get_each<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        use_row: impl FnMut(usize, Result<Option<&[u8]>>),
    ) {
        self.each(keys, Depth::State, use_row);
    }

    fn each<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
        depth: Depth,
        mut use_row: impl FnMut(usize, Result<Option<&[u8]>>),
    ) {
        let view = self.shared.super_version.load();
        let hashes: Vec<KeyHash> = keys.iter().map(|key| KeyHash::new(key.as_ref())).collect();
        for memtable in view.memtables() {
            // Waits for memory overlap here, where each read would wait for its own.
            hashes.iter().for_each(|hash| memtable.touch(hash.hash()));
        }
        for (at, (key, hash)) in keys.iter().zip(&hashes).enumerate() {
            let read = self.shared.read(&view, key.as_ref(), hash, depth, |row| {
                use_row(at, Ok(row));
            });
            if let Err(error) = read {
                use_row(at, Err(error));
            }
        }
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
    /// Reads `key` as of `view`.
    #[inline]
    pub(super) fn read<R>(
        &self,
        view: &SuperVersion,
        key: &[u8],
        hash: &KeyHash,
        depth: Depth,
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
            if let Some(record) = memtable.get(key, hash.hash())
                && joiner.push(record.kind, record.row)?
            {
                break;
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
        for table in view.version.candidates(key) {
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
