//! Key -> joined state of everything the tables on disk hold for it, or "nothing".
//!
//! It stands below the memtables, so writes never touch it: a flush, which walks its keys anyway,
//! brings the entries of those keys up to date, and compaction changes nothing a reader can see.
//! A negative entry says that no table holds a record; a deleted or expired row is a row.
//!
//! How a flush or ingest uses it (the order is what keeps entries right):
//! 1. [`RowCache::begin_epoch`]: fills from before are refused from now on;
//! 2. [`RowCache::fix`] for each key of the new table (a flush), or [`RowCache::drop_range`] (an
//!    ingest): entries that are there become at least as new as what is about to be seen;
//! 3. install the version that carries the new epoch.
//!
//! # Invariants
//! 1. `tables(v) <= entry <= everything applied`, for every installed version `v`: any reader may
//!    use any entry it finds.
//! 2. An entry is filled only with the join of all tables of one version, and only while that
//!    version's cache epoch is the shard's; both are tested under the shard's lock. The caller
//!    does not fill after an early stop or when a source could not be read.
//! 3. Age evicts, and no more: an old entry is as right as a young one.
//! 4. Charged bytes, which include the cache's own overhead, never exceed the capacity.

use std::ops::RangeBounds;
use std::sync::Arc;

use parking_lot::Mutex;

use super::admission::Admission;
use super::shard::{Shard, charge};
use crate::engine::merge::{MergeError, MergeOperator};
use crate::engine::record::Kind;

/// A power of two.
const SHARDS: usize = 16;
/// An entry may be charged at most this part of the capacity.
const ENTRY_PART: usize = 64;

/// What all tables together hold for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cached {
    /// No table holds a record.
    Negative,
    /// The join of all records in tables. Nothing older exists, whatever their kinds were.
    Row(Arc<[u8]>),
}

/// Counters and sizes of a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCacheStats {
    /// Lookups that found an entry.
    pub hits: u64,
    /// Lookups that found none, or one too old.
    pub misses: u64,
    /// Entries that left for want of space or by age.
    pub evictions: u64,
    /// Bytes charged: keys, rows and overhead.
    pub bytes: u64,
    /// Entries, negative ones included.
    pub entries: u64,
}

/// The cache. All calls take `&self` and lock one shard (of 16, by hash) for a short time, unless
/// they say otherwise.
#[derive(Debug)]
pub struct RowCache {
    // Constant after construction.
    capacity: usize,
    ttl_ms: u64,
    shards: Box<[PaddedShard]>,

    admission: Admission,
}

/// A shard on cache lines of its own, so that the locks of two shards do not share one.
#[derive(Debug)]
#[repr(align(128))]
struct PaddedShard(Mutex<Shard>);

impl RowCache {
    /// A cache of `capacity` bytes, in epoch 0. Entries older than `ttl_ms` milliseconds are
    /// evicted when they are asked for; 0 is no limit. With capacity 0 the cache is off.
    pub fn new(capacity: usize, ttl_ms: u64) -> Self {
        let shards = if capacity == 0 { 0 } else { SHARDS };
        let shard = |_| PaddedShard(Mutex::new(Shard::new(capacity / SHARDS)));
        let shards = (0..shards).map(shard).collect();
        Self { capacity, ttl_ms, shards, admission: Admission::default() }
    }

    /// Whether the cache holds anything at all.
    pub fn is_on(&self) -> bool {
        !self.shards.is_empty()
    }

    /// Hands the state of `key` to `f`, if it is cached. `hash` is the hash of the key in all
    /// calls; `now_ms` is a time of the clock that fills are given.
    ///
    /// `f` runs under the shard's lock: it clones or copies, and calls nothing of the cache.
    #[inline]
    pub fn get<R>(
        &self,
        key: &[u8],
        hash: u64,
        now_ms: u64,
        f: impl FnOnce(&Cached) -> R,
    ) -> Option<R> {
        let oldest_ms = match self.ttl_ms {
            0 => 0,
            ttl_ms => now_ms.saturating_sub(ttl_ms),
        };
        self.shard(hash)?.lock().get(key, hash, oldest_ms).map(f)
    }

    /// Puts in what a reader found in all tables of the version whose cache epoch is
    /// `cache_epoch`. Returns whether it was taken: not if the epoch has passed or the entry is
    /// too large.
    pub fn fill(
        &self,
        key: &[u8],
        hash: u64,
        cached: Cached,
        cache_epoch: u64,
        now_ms: u64,
    ) -> bool {
        let Some(shard) = self.shard(hash) else { return false };
        if !self.admits(key, &cached) {
            return false;
        }
        let mut shard = shard.lock();
        if shard.epoch != cache_epoch {
            return false;
        }
        shard.insert(key, hash, cached, now_ms);
        true
    }

    /// Whether what was found at little cost is worth an entry: the key was missed not long ago,
    /// and this was asked then. `false` if the cache is off.
    pub fn is_asked_again(&self, hash: u64) -> bool {
        let recent = !self.admission.is_dear();
        self.shard(hash).is_some_and(|shard| shard.lock().is_asked_again(hash, recent))
    }

    /// What decides how long ago "not long" is; to be told how long reads take.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Starts epoch `epoch`: from the return on, fills of earlier ones are refused. Locks all
    /// shards, one after the other. REQUIRES: above every epoch before.
    pub fn begin_epoch(&self, epoch: u64) {
        for shard in &self.shards {
            let mut shard = shard.0.lock();
            debug_assert!(shard.epoch < epoch, "cache epochs ascend");
            shard.epoch = epoch;
        }
    }

    /// Brings the entry of `key`, if there is one, up to a record that a flush is about to
    /// install: a Full replaces it, a Delta is joined with it, and over "nothing" either is the
    /// row. Joins under the shard's lock.
    ///
    /// # Errors
    /// A row that the operator cannot read. The entry is gone then, which is always right.
    pub fn fix(
        &self,
        key: &[u8],
        hash: u64,
        kind: Kind,
        row: &[u8],
        operator: &dyn MergeOperator,
    ) -> Result<(), MergeError> {
        let Some(shard) = self.shard(hash) else { return Ok(()) };
        let mut shard = shard.lock();
        let Some(cached) = shard.peek(key, hash) else { return Ok(()) };
        // Not through `iter::join`, whose check that a Full contains what it hides does not hold
        // here: a row that compaction purged may live on in the cache.
        let mut joined = Vec::new();
        let (row, result) = match (cached, kind) {
            (Cached::Negative, _) | (_, Kind::Full) => (row, Ok(())),
            (Cached::Row(old), Kind::Delta) => {
                let result = operator.join(row, old, &mut joined);
                (joined.as_slice(), result)
            }
        };
        let cached = Cached::Row(row.into());
        if result.is_ok() && self.admits(key, &cached) {
            shard.update(key, hash, cached);
        } else {
            shard.discard(key, hash);
        }
        result
    }

    /// Forgets every key of `range`. Looks at every entry, shard by shard: for ingest, range drop
    /// and quarantine, not for single keys.
    pub fn drop_range(&self, range: &impl RangeBounds<[u8]>) {
        self.drop_keys(&|key| range.contains(key));
    }

    /// [`RowCache::drop_range`] of the keys that `goes` names.
    pub fn drop_keys(&self, goes: &dyn Fn(&[u8]) -> bool) {
        for shard in &self.shards {
            shard.0.lock().discard_keys(goes);
        }
    }

    /// Counters and sizes. Locks all shards, one after the other, so the sum is of no one moment.
    pub fn stats(&self) -> RowCacheStats {
        let mut stats = RowCacheStats::default();
        for shard in &self.shards {
            let shard = shard.0.lock();
            stats.hits += shard.hits;
            stats.misses += shard.misses;
            stats.evictions += shard.evictions;
            stats.bytes += shard.bytes() as u64;
            stats.entries += shard.len() as u64;
        }
        stats
    }

    fn admits(&self, key: &[u8], cached: &Cached) -> bool {
        charge(key, cached) <= self.capacity / ENTRY_PART
    }

    /// The shard of a hash; `None` if the cache is off. Bits from the middle: the map within the
    /// shard uses the low and the topmost ones.
    #[inline]
    fn shard(&self, hash: u64) -> Option<&Mutex<Shard>> {
        let at = (hash >> 40) as usize & (SHARDS - 1);
        self.shards.get(at).map(|shard| &shard.0)
    }

    #[cfg(test)]
    fn check(&self) {
        self.shards.iter().for_each(|shard| shard.0.lock().check());
    }
}

#[cfg(test)]
mod tests;
