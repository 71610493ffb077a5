//! What a compaction may claim and what it may forget, rule by rule.
//!
//! *Promotion*: a Delta becomes a Full if no table older than the inputs may hold the key. Whatever
//! is not a table yet (memtables, queued ingests) is newer than all tables, because they become
//! tables in the order of their epochs.
//!
//! *Purge*: a row is forgotten if every one of these holds:
//!
//! 1. its live versions are tombstones, or expired by the floor (`MergeOperator::may_purge`);
//! 2. all its times are at or below the floor (the same);
//! 3. its token windows are over (the same);
//! 4. every memtable and queued ingest of the time the floor was installed is a table
//!    ([`floor_counts`]);
//! 5. every table that may hold the key, older or newer, is an input ([`Garbage::is_all_here`]);
//! 6. the partition is not damaged ([`floor_counts`]), and no unreadable block may have held the
//!    key ([`Garbage::is_all_here`]).
//!
//! What is newer than the floor need not be asked: it was held to the guard when it was written.

use super::picker::Compaction;
use super::rules::{Rule, Rules};
use crate::engine::merge::{MergeError, MergeOperator};
use crate::engine::sstable::KeyHash;
use crate::engine::version::{SafePoint, TableMeta, Version, partition_of};

/// What the rules are judged by: one moment of the tree.
#[derive(Clone, Copy, Debug)]
pub struct PurgeView<'a> {
    /// The tree and its safe points. It holds the inputs.
    pub version: &'a Version,
    /// The epoch of the oldest memtable or queued ingest that is not a table *of that version*:
    /// read it before the version, or a flush in between makes it too new.
    pub oldest_unflushed_epoch: u64,
}

/// Judges the keys of one compaction.
pub(super) struct Garbage<'a> {
    view: PurgeView<'a>,
    operator: &'a dyn MergeOperator,
    /// Numbers of the inputs, ascending.
    inputs: Vec<u64>,
    /// Level and epoch of the newest input.
    newest: (u8, u64),
    rules: Rules,
}

/// Whether the floor of a partition may be used for a purge.
pub(super) fn floor_counts(point: &SafePoint, oldest_unflushed_epoch: u64, rules: Rules) -> bool {
    let flushed = point.floor_epoch < oldest_unflushed_epoch || !rules.hold(Rule::PurgeFloorEpoch);
    let sound = !point.is_damaged() || !rules.hold(Rule::PurgeUndamaged);
    point.floor > 0 && flushed && sound
}

impl<'a> Garbage<'a> {
    pub fn new(
        compaction: &Compaction,
        view: PurgeView<'a>,
        operator: &'a dyn MergeOperator,
        rules: Rules,
    ) -> Self {
        let mut inputs: Vec<u64> = compaction.inputs.iter().map(|table| table.number).collect();
        inputs.sort_unstable();
        let ages = compaction.inputs.iter().map(|table| (table.level, table.epoch));
        let newest =
            ages.min_by_key(|(level, epoch)| (*level, u64::MAX - epoch)).unwrap_or_default();
        Self { view, operator, inputs, newest, rules }
    }

    /// Whether a Delta of `key`, the join of its records in the inputs, may become a Full.
    pub fn may_promote(&self, key: &[u8]) -> bool {
        !self.rules.hold(Rule::PromoteOldest) || !self.is_held_outside(key, |it| self.is_older(it))
    }

    /// Whether `row`, the join of all records of `key` in the inputs, may be forgotten.
    pub fn may_purge(&self, key: &[u8], row: &[u8]) -> Result<bool, MergeError> {
        let state = self.view.version.state();
        let point = &state.safe_points()[partition_of(key, state.partition_bits())];
        Ok(floor_counts(point, self.view.oldest_unflushed_epoch, self.rules)
            && self.is_forgettable(row, point.floor)?
            && self.is_all_here(key))
    }

    fn is_forgettable(&self, row: &[u8], floor: u64) -> Result<bool, MergeError> {
        if !self.rules.hold(Rule::PurgeTombstonesOnly) {
            return Ok(true);
        }
        self.operator.may_purge(row, floor)
    }

    /// Whether nothing of `key` is, or may have been, anywhere but in the inputs.
    fn is_all_here(&self, key: &[u8]) -> bool {
        let sound =
            !self.view.version.is_quarantined(key) || !self.rules.hold(Rule::PurgeUndamaged);
        let here = !self.rules.hold(Rule::PurgeAllTables) || !self.is_held_outside(key, |_| true);
        sound && here
    }

    fn is_held_outside(&self, key: &[u8], among: impl Fn(&TableMeta) -> bool) -> bool {
        let mut hash = None;
        self.view.version.candidates(key).any(|table| {
            self.inputs.binary_search(&table.meta.number).is_err()
                && among(&table.meta)
                // Most keys have no such table: hash those that do.
                && table.may_hold(key, hash.get_or_insert_with(|| KeyHash::new(key)))
        })
    }

    /// Whether `table` is older than the newest input.
    fn is_older(&self, table: &TableMeta) -> bool {
        let (level, epoch) = self.newest;
        table.level > level || (table.level == 0 && level == 0 && table.epoch < epoch)
    }
}
