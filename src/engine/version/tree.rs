//! A version: the tree at one moment, with its files open. Immutable.
//!
//! A point lookup touches one table a level: its number is found in a flat array of the tables'
//! greatest key prefixes, so that no pointer is followed for tables that cannot hold the key.
//!
//! Sources are visited newest first: level 0 by falling epoch, then the levels downwards.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::handle::TableRef;
use super::state::VersionState;
use crate::engine::key::key_prefix;
use crate::engine::options::LEVELS;
use crate::engine::reaper::Reaper;
use crate::engine::sstable::KeyHash;

/// Tables whose filters are looked at together: about as many as the processor waits for at once.
const AHEAD: usize = 8;

/// The tables of one level.
#[derive(Debug, Default)]
pub struct Level {
    /// Level 0: newest epoch first. Others: ascending by key.
    tables: Vec<TableRef>,
    /// Prefix of each table's smallest key; searched at level 0.
    min_prefixes: Vec<u64>,
    /// Prefix of each table's largest key. Ascending at levels >= 1.
    max_prefixes: Vec<u64>,
    bytes: u64,
    /// Made once a version, so that a scan clones one or two `Arc`s a level: the tables whose Fulls
    /// are believed, then those of `demote_full`.
    shared: [Arc<[TableRef]>; 2],
}

impl Level {
    fn new(tables: Vec<TableRef>) -> Self {
        Self {
            min_prefixes: tables.iter().map(|table| key_prefix(&table.meta.smallest)).collect(),
            max_prefixes: tables.iter().map(|table| key_prefix(&table.meta.largest)).collect(),
            bytes: tables.iter().map(|table| table.meta.bytes).sum(),
            shared: [false, true].map(|demote_full| {
                let alike = tables.iter().filter(|table| table.meta.demote_full == demote_full);
                alike.cloned().collect()
            }),
            tables,
        }
    }

    /// The tables: level 0 newest epoch first, others ascending by key.
    pub fn tables(&self) -> &[TableRef] {
        &self.tables
    }

    /// The tables with this `demote_full` in the same order, shared with cursors over the level.
    pub fn shared_tables(&self, demote_full: bool) -> &Arc<[TableRef]> {
        &self.shared[usize::from(demote_full)]
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The table of a level >= 1 that covers `key`, whose prefix is `prefix`.
    #[inline]
    fn find(&self, key: &[u8], prefix: u64) -> Option<&TableRef> {
        let mut at = self.max_prefixes.partition_point(|max| *max < prefix);
        while self.max_prefixes.get(at) == Some(&prefix) && *self.tables[at].meta.largest < *key {
            at += 1;
        }
        let min_prefix = *self.min_prefixes.get(at)?;
        let table = &self.tables[at];
        (min_prefix < prefix || (min_prefix == prefix && *table.meta.smallest <= *key))
            .then_some(table)
    }

    /// The first table of level 0 at or behind `at` in age that covers `key`, and its place.
    #[inline]
    fn find_level0(&self, at: usize, key: &[u8], prefix: u64) -> Option<(usize, &TableRef)> {
        (at..self.tables.len())
            .filter(|at| self.min_prefixes[*at] <= prefix && prefix <= self.max_prefixes[*at])
            .map(|at| (at, &self.tables[at]))
            .find(|(at, table)| {
                let inside = self.min_prefixes[*at] < prefix && prefix < self.max_prefixes[*at];
                inside || table.meta.covers(key)
            })
    }
}

/// Which superseded versions are still in use, and since when they are superseded.
#[derive(Debug, Default)]
pub(super) struct Pins {
    /// By version id. Locked for a moment at install and at the end of a version.
    superseded: Mutex<BTreeMap<u64, u64>>,
    /// Rung when one of them is used no more.
    released: Condvar,
    /// Who frees what a version held: whoever lets go of it last came to read.
    pub(super) reaper: Arc<Reaper>,
}

impl Pins {
    pub(super) fn supersede(&self, id: u64, now_ms: u64) {
        self.superseded.lock().insert(id, now_ms);
    }

    /// The versions in use besides the current one: their number, and the moment at which the one
    /// superseded first was superseded.
    pub(super) fn oldest(&self) -> (usize, Option<u64>) {
        let superseded = self.superseded.lock();
        (superseded.len(), superseded.values().min().copied())
    }

    /// Waits until no superseded version is in use, at most `limit`, and what they held is freed.
    pub(super) fn wait_until_freed(&self, limit: Duration) {
        let mut superseded = self.superseded.lock();
        self.released.wait_while_for(&mut superseded, |versions| !versions.is_empty(), limit);
        drop(superseded);
        self.reaper.wait();
    }
}

/// The tree at one moment; see the module page.
#[derive(Debug)]
pub struct Version {
    id: u64,
    state: Arc<VersionState>,
    levels: [Level; LEVELS],
    /// The levels below 0 that hold tables, downwards: most trees have one or two of six.
    sorted: Vec<usize>,
    /// The greatest time in any table.
    time_max: u64,
    /// See [`Version::level0_waiting`].
    level0_waiting: usize,
    pins: Arc<Pins>,
}

impl Version {
    pub(super) fn new(
        id: u64,
        state: Arc<VersionState>,
        levels: [Vec<TableRef>; LEVELS],
        pins: Arc<Pins>,
    ) -> Self {
        let time_max = state.tables().map(|table| table.time_max).max().unwrap_or(0);
        let sorted = (1..LEVELS).filter(|level| !levels[*level].is_empty()).collect();
        let waiting = state.level(0).iter().filter(|table| !state.has_unreadable(table.number));
        let level0_waiting = waiting.count();
        let levels = levels.map(Level::new);
        Self { id, state, levels, sorted, time_max, level0_waiting, pins }
    }

    /// Tables of level 0 that wait for a compaction: all but those with an unreadable block.
    #[inline]
    pub fn level0_waiting(&self) -> usize {
        self.level0_waiting
    }

    /// The greatest time in any table, in the merge operator's clock; `u64::MAX` if unknown.
    pub fn time_max(&self) -> u64 {
        self.time_max
    }

    /// Ascends with every version installed since the store was opened.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its shape without files, and the words beside it: safe points, flushed position.
    pub fn state(&self) -> &Arc<VersionState> {
        &self.state
    }

    /// The tables of `level`, below [`LEVELS`].
    pub fn level(&self, level: usize) -> &Level {
        &self.levels[level]
    }

    /// Every table, newest source first.
    pub fn tables(&self) -> impl Iterator<Item = &TableRef> {
        self.levels.iter().flat_map(Level::tables)
    }

    /// The table with this number.
    pub fn table(&self, number: u64) -> Option<&TableRef> {
        self.tables().find(|table| table.meta.number == number)
    }

    /// Size of all tables in bytes.
    pub fn bytes(&self) -> u64 {
        self.levels.iter().map(Level::bytes).sum()
    }

    /// The tables whose key range covers `key`, newest first. Filters are not asked.
    #[inline]
    pub fn candidates<'v>(&'v self, key: &'v [u8]) -> Candidates<'v> {
        let sorted = self.sorted.iter();
        Candidates { version: self, key, prefix: key_prefix(key), at: 0, sorted }
    }

    /// The tables of `level` that share a key with `smallest..=largest`, in the level's order.
    pub fn overlapping<'v>(
        &'v self,
        level: usize,
        smallest: &'v [u8],
        largest: &'v [u8],
    ) -> impl Iterator<Item = &'v TableRef> {
        let tables = &self.levels[level].tables;
        let start = match level {
            0 => 0,
            _ => tables.partition_point(|table| *table.meta.largest < *smallest),
        };
        tables[start..]
            .iter()
            .take_while(move |table| level == 0 || *table.meta.smallest <= *largest)
            .filter(move |table| table.meta.overlaps(smallest, largest))
    }

    /// Those of [`Version::candidates`] that the first look at their filters does not exclude. The
    /// filters of several tables are looked at together: each look waits for memory, and a key that
    /// is not there would wait for one after the other.
    #[inline]
    pub fn likely<'v>(&'v self, key: &'v [u8], hash: &'v KeyHash) -> Likely<'v> {
        Likely { candidates: self.candidates(key), hash, ahead: [None; AHEAD], at: 0, len: 0 }
    }

    /// Whether a table that `among` picks may hold `key`; `false` is certain.
    pub fn may_hold(
        &self,
        key: &[u8],
        hash: &KeyHash,
        mut among: impl FnMut(&TableRef) -> bool,
    ) -> bool {
        self.likely(key, hash).any(|table| among(table) && table.may_hold(key, hash))
    }

    /// Whether an unreadable block may have held `key`.
    pub fn is_quarantined(&self, key: &[u8]) -> bool {
        let mut ranges = self.state.quarantined().iter();
        ranges.any(|range| *range.smallest <= *key && *key <= *range.largest)
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        // The files of obsolete tables go with it. Handed over first: who is told that it is used
        // no more waits for the reaper then.
        self.pins.reaper.free(std::mem::take(&mut self.levels));
        self.pins.superseded.lock().remove(&self.id);
        self.pins.released.notify_all();
    }
}

/// See [`Version::candidates`]. Does not allocate.
#[derive(Debug)]
pub struct Candidates<'v> {
    version: &'v Version,
    key: &'v [u8],
    prefix: u64,
    /// Place in level 0.
    at: usize,
    /// The levels below that were not asked yet.
    sorted: std::slice::Iter<'v, usize>,
}

impl<'v> Iterator for Candidates<'v> {
    type Item = &'v TableRef;

    #[inline]
    fn next(&mut self) -> Option<&'v TableRef> {
        let level0 = &self.version.levels[0];
        if self.at < level0.tables.len() {
            if let Some((at, table)) = level0.find_level0(self.at, self.key, self.prefix) {
                self.at = at + 1;
                return Some(table);
            }
            self.at = level0.tables.len();
        }
        let levels = &self.version.levels;
        self.sorted.find_map(|level| levels[*level].find(self.key, self.prefix))
    }
}

/// See [`Version::likely`]. Does not allocate.
#[derive(Debug)]
pub struct Likely<'v> {
    candidates: Candidates<'v>,
    hash: &'v KeyHash,
    /// The next ones, from `at` to `len`.
    ahead: [Option<&'v TableRef>; AHEAD],
    at: usize,
    len: usize,
}

impl<'v> Likely<'v> {
    /// Looks at the filters of the next tables. `false`: there are none.
    #[inline]
    fn look_ahead(&mut self) -> bool {
        (self.at, self.len) = (0, 0);
        let mut is_any = false;
        for table in self.candidates.by_ref().take(AHEAD) {
            is_any = true;
            self.ahead[self.len] = Some(table);
            // No branch: nothing here waits for what a filter says.
            self.len += usize::from(table.looks_likely(self.hash));
        }
        is_any
    }
}

impl<'v> Iterator for Likely<'v> {
    type Item = &'v TableRef;

    #[inline]
    fn next(&mut self) -> Option<&'v TableRef> {
        while self.at == self.len {
            if !self.look_ahead() {
                return None;
            }
        }
        self.at += 1;
        self.ahead[self.at - 1]
    }
}
