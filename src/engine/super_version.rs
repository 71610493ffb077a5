//! One consistent view of all sources of records.
//!
//! A reader pins one [`SuperVersion`] and takes memtables, cache epoch and tables from it. Taking
//! them one after the other from live state would miss a memtable that is flushed in between.

use std::sync::Arc;

use super::memtable::Memtable;
use super::version::Version;

/// What waits, in order of age, to become a table at level 0.
#[derive(Clone)]
pub enum Queued {
    /// A sealed memtable. Readable while it waits.
    Memtable(Arc<Memtable>),
    /// A place in the order for the ingest with this epoch; its rows become visible when every
    /// older memtable is a table.
    Ingest(u64),
}

impl Queued {
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Memtable(memtable) => memtable.epoch(),
            Self::Ingest(epoch) => *epoch,
        }
    }
}

/// See the module page. Immutable; a change makes a new one.
#[derive(Clone)]
pub struct SuperVersion {
    /// Changes at every seal and at every install of an ingest. A writer that claims Full checks
    /// that it is still the one it read under.
    pub generation: u64,
    /// Where writers insert.
    pub active: Arc<Memtable>,
    /// Oldest first: the flush queue.
    pub queue: Vec<Queued>,
    /// The tables.
    pub version: Arc<Version>,
    /// A row cache fill made from this view is valid only in this epoch of the cache.
    pub cache_epoch: u64,
}

impl SuperVersion {
    /// The memtables, newest first.
    pub fn memtables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        let sealed = self.queue.iter().rev().filter_map(|queued| match queued {
            Queued::Memtable(memtable) => Some(memtable),
            Queued::Ingest(_) => None,
        });
        std::iter::once(&self.active).chain(sealed)
    }

    /// Sealed memtables that wait for their flush.
    pub fn sealed(&self) -> usize {
        self.memtables().count() - 1
    }

    /// The smallest epoch that is not a table yet.
    pub fn oldest_unflushed_epoch(&self) -> u64 {
        self.queue.first().map_or(self.active.epoch(), Queued::epoch)
    }
}
