//! What the manifest says: the shape of the tree and the words beside it, without open files.
//!
//! A state is changed only by [`VersionState::apply`], which judges every edit by the rules of
//! [`EditError`], before it is written and again when it is replayed:
//!
//! 1. tables at a level >= 1 are ascending and share no key; epochs at level 0 are unique;
//! 2. a table stands once, its key range is not inverted, its level exists, the ranges that were
//!    excised from it ascend and share no key;
//! 3. a removed table is there at the level named; a quarantined one is there after the edit, and
//!    its block forgotten when all keys of it are excised, for nobody reads it then;
//! 4. the flushed position, the next file number and the next epoch never go back;
//! 5. `floor <= guard`; `guard` never goes back, and `floor` only if the partition is damaged.
//!
//! It is cloned for every edit (an `Arc` per table): edits come a few times a second, reads of a
//! state without locks all the time.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::edit::{Quarantined, VersionEdit};
use super::safe_point::{SafePoint, WHOEVER_HOLDS_IT};
use super::table_meta::TableMeta;
use crate::engine::options::LEVELS;
use crate::engine::position::Position;

/// The rule that an edit breaks. Such an edit is a bug of whoever made it, or of the bytes it was
/// read from; it is never applied or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EditError {
    /// Two tables of a level share a key.
    #[error("tables {left} and {right} overlap at level {level}")]
    Overlap {
        /// Their level, at least 1.
        level: u8,
        /// The one that begins first.
        left: u64,
        /// The other one.
        right: u64,
    },
    /// Two tables of level 0 have the same epoch.
    #[error("tables {left} and {right} both have epoch {epoch} at level 0")]
    EpochTaken {
        /// The epoch.
        epoch: u64,
        /// One of them.
        left: u64,
        /// The other one.
        right: u64,
    },
    /// A table was added that is there already.
    #[error("table {number} is there already")]
    TableTaken {
        /// Its number.
        number: u64,
    },
    /// A table was added at a level that does not exist.
    #[error("table {number} is to be at level {level}, which does not exist")]
    NoSuchLevel {
        /// Its number.
        number: u64,
        /// The level.
        level: u8,
    },
    /// The smallest key of a table or range is above the largest.
    #[error("the key range of table {number} is inverted")]
    RangeInverted {
        /// The table's number.
        number: u64,
    },
    /// The excised ranges of a table are empty, out of order or overlap.
    #[error("the excised ranges of table {number} do not ascend")]
    ExcisedDisorder {
        /// The table's number.
        number: u64,
    },
    /// A table was removed, or a block of it quarantined, that is not there.
    #[error("table {number} is not there (level {level:?})")]
    NoSuchTable {
        /// Its number.
        number: u64,
        /// Where it was looked for; `None` is everywhere.
        level: Option<u8>,
    },
    /// A number that only grows would shrink.
    #[error("{what} would go back from {from} to {to}")]
    GoesBack {
        /// The number.
        what: &'static str,
        /// What it is.
        from: u64,
        /// What it would be.
        to: u64,
    },
    /// A floor above its guard.
    #[error("the floor {floor} of partition {partition} is above its guard {guard}")]
    FloorAboveGuard {
        /// The first such partition.
        partition: u32,
        /// The floor.
        floor: u64,
        /// The guard.
        guard: u64,
    },
    /// Safe points for partitions that do not exist, or for none.
    #[error("partitions {first}..{end} are not among the {partitions} there are")]
    NoSuchPartition {
        /// The first one.
        first: u32,
        /// One past the last one.
        end: u32,
        /// How many there are.
        partitions: u32,
    },
    /// The store was made with another number of partition bits.
    #[error("the store has {found} partition bits, the options say {expected}")]
    PartitionBits {
        /// What the store was made with.
        found: u32,
        /// What is asked for.
        expected: u32,
    },
}

/// See the module page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionState {
    /// Level 0 newest epoch first, the others ascending by key.
    levels: [Vec<Arc<TableMeta>>; LEVELS],
    flushed: Position,
    file_next: u64,
    epoch_next: u64,
    partition_bits: u32,
    safe_points: Arc<[SafePoint]>,
    quarantined: Arc<[Quarantined]>,
}

impl VersionState {
    /// Nothing, with `2^partition_bits` partitions.
    pub fn new(partition_bits: u32) -> Self {
        Self {
            levels: Default::default(),
            flushed: Position::ZERO,
            file_next: 1,
            epoch_next: 1,
            partition_bits,
            safe_points: vec![SafePoint::default(); 1 << partition_bits].into(),
            quarantined: Arc::default(),
        }
    }

    /// The tables of `level`: level 0 newest epoch first, the others ascending by key.
    pub fn level(&self, level: usize) -> &[Arc<TableMeta>] {
        &self.levels[level]
    }

    /// Every table, level by level.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<TableMeta>> {
        self.levels.iter().flatten()
    }

    /// Size of a level in bytes.
    pub fn level_bytes(&self, level: usize) -> u64 {
        self.levels[level].iter().map(|table| table.bytes).sum()
    }

    /// The tables of `level` that share a key with `smallest..=largest`, in the level's order.
    pub fn overlapping(
        &self,
        level: usize,
        smallest: &[u8],
        largest: &[u8],
    ) -> impl Iterator<Item = &Arc<TableMeta>> {
        let tables = &self.levels[level];
        let range = if level == 0 {
            0..tables.len()
        } else {
            let start = tables.partition_point(|table| *table.largest < *smallest);
            let len = tables[start..].partition_point(|table| *table.smallest <= *largest);
            start..start + len
        };
        tables[range].iter().filter(|table| table.overlaps(smallest, largest))
    }

    /// Everything before it in the log is in tables.
    pub fn flushed(&self) -> Position {
        self.flushed
    }

    /// The least unused file number.
    pub fn file_next(&self) -> u64 {
        self.file_next
    }

    /// The least unused epoch.
    pub fn epoch_next(&self) -> u64 {
        self.epoch_next
    }

    /// The number of partitions is two to the power of this.
    pub fn partition_bits(&self) -> u32 {
        self.partition_bits
    }

    /// The safe points, by partition.
    pub fn safe_points(&self) -> &Arc<[SafePoint]> {
        &self.safe_points
    }

    /// The unreadable blocks.
    pub fn quarantined(&self) -> &Arc<[Quarantined]> {
        &self.quarantined
    }

    /// Whether a table has an unreadable block that may hold a key of it.
    pub fn has_unreadable(&self, table: u64) -> bool {
        self.quarantined.iter().any(|range| range.table == table)
    }

    /// The state after `edit`.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn apply(&self, edit: &VersionEdit) -> Result<Self, EditError> {
        let mut next = match edit.snapshot {
            Some(bits) if bits != self.partition_bits => {
                let expected = self.partition_bits;
                return Err(EditError::PartitionBits { found: bits, expected });
            }
            Some(bits) => Self::new(bits),
            None => self.clone(),
        };
        next.remove_tables(edit)?;
        next.add_tables(edit)?;
        next.advance(edit)?;
        next.set_safe_points(edit)?;
        next.quarantine(edit)?;
        Ok(next)
    }

    /// The edit that makes this state out of nothing.
    pub(super) fn snapshot(&self) -> VersionEdit {
        VersionEdit {
            snapshot: Some(self.partition_bits),
            removed: Vec::new(),
            added: self.tables().map(|table| TableMeta::clone(table)).collect(),
            flushed: Some(self.flushed),
            file_next: Some(self.file_next),
            epoch_next: Some(self.epoch_next),
            safe_points: runs(&self.safe_points),
            quarantined: self.quarantined.to_vec(),
        }
    }

    /// The safe points of all partitions after a loss of data that may be of any of them.
    pub(crate) fn all_damaged(&self) -> Vec<(Range<u32>, SafePoint)> {
        let damage =
            |point: &SafePoint| SafePoint { damaged: [WHOEVER_HOLDS_IT].into(), ..point.clone() };
        runs(&self.safe_points.iter().map(damage).collect::<Vec<_>>())
    }

    /// The same state with no file number below `number` left to hand out.
    pub(super) fn with_file_next(mut self, number: u64) -> Self {
        self.file_next = self.file_next.max(number);
        self
    }

    fn remove_tables(&mut self, edit: &VersionEdit) -> Result<(), EditError> {
        for &(level, number) in &edit.removed {
            let missing = EditError::NoSuchTable { number, level: Some(level) };
            let tables = self.levels.get_mut(usize::from(level)).ok_or(missing.clone())?;
            let at = tables.iter().position(|table| table.number == number).ok_or(missing)?;
            tables.remove(at);
        }
        Ok(())
    }

    fn add_tables(&mut self, edit: &VersionEdit) -> Result<(), EditError> {
        if edit.added.is_empty() {
            return Ok(());
        }
        let mut seen: HashSet<u64> = self.tables().map(|table| table.number).collect();
        for table in &edit.added {
            let number = table.number;
            if usize::from(table.level) >= LEVELS {
                return Err(EditError::NoSuchLevel { number, level: table.level });
            }
            if table.smallest > table.largest {
                return Err(EditError::RangeInverted { number });
            }
            if !table.excised.is_sound() {
                return Err(EditError::ExcisedDisorder { number });
            }
            if !seen.insert(number) {
                return Err(EditError::TableTaken { number });
            }
            self.levels[usize::from(table.level)].push(Arc::new(table.clone()));
            self.file_next = self.file_next.max(number.saturating_add(1));
            self.epoch_next = self.epoch_next.max(table.epoch.saturating_add(1));
        }
        self.sort_level0()?;
        (1..LEVELS).try_for_each(|level| self.sort_level(level))
    }

    fn sort_level0(&mut self) -> Result<(), EditError> {
        let tables = &mut self.levels[0];
        tables.sort_by_key(|table| std::cmp::Reverse(table.epoch));
        match tables.windows(2).find(|pair| pair[0].epoch == pair[1].epoch) {
            None => Ok(()),
            Some(pair) => Err(EditError::EpochTaken {
                epoch: pair[0].epoch,
                left: pair[0].number,
                right: pair[1].number,
            }),
        }
    }

    fn sort_level(&mut self, level: usize) -> Result<(), EditError> {
        let tables = &mut self.levels[level];
        tables.sort_by(|a, b| a.smallest.cmp(&b.smallest));
        match tables.windows(2).find(|pair| pair[0].largest >= pair[1].smallest) {
            None => Ok(()),
            Some(pair) => Err(EditError::Overlap {
                level: level as u8,
                left: pair[0].number,
                right: pair[1].number,
            }),
        }
    }

    fn advance(&mut self, edit: &VersionEdit) -> Result<(), EditError> {
        if let Some(flushed) = edit.flushed {
            if flushed < self.flushed {
                let (from, to) = (self.flushed.to_u64(), flushed.to_u64());
                return Err(EditError::GoesBack { what: "flushed position", from, to });
            }
            self.flushed = flushed;
        }
        // A number that was taken meanwhile (by another edit) is no error: the greater one holds.
        self.file_next = self.file_next.max(edit.file_next.unwrap_or(0));
        self.epoch_next = self.epoch_next.max(edit.epoch_next.unwrap_or(0));
        Ok(())
    }

    fn set_safe_points(&mut self, edit: &VersionEdit) -> Result<(), EditError> {
        if edit.safe_points.is_empty() {
            return Ok(());
        }
        let mut points = self.safe_points.to_vec();
        let partitions = points.len() as u32;
        for (range, to) in &edit.safe_points {
            let (first, end) = (range.start, range.end);
            if first >= end || end > partitions {
                return Err(EditError::NoSuchPartition { first, end, partitions });
            }
            if to.floor > to.guard {
                let (floor, guard) = (to.floor, to.guard);
                return Err(EditError::FloorAboveGuard { partition: first, floor, guard });
            }
            for point in &mut points[first as usize..end as usize] {
                // What is damaged may stay so, but is not damaged by that.
                let keeps = to.is_damaged() && to.damaged == point.damaged;
                let damaged = if keeps { to.damaged.clone() } else { Box::default() };
                if *to != (SafePoint { damaged, ..SafePoint::default() }) {
                    never_back("guard", point.guard, to.guard)?;
                    if !to.is_damaged() && !point.is_damaged() {
                        never_back("floor", point.floor, to.floor)?;
                    }
                }
                *point = to.clone();
            }
            self.epoch_next = self.epoch_next.max(to.floor_epoch.saturating_add(1));
        }
        self.safe_points = points.into();
        Ok(())
    }

    fn quarantine(&mut self, edit: &VersionEdit) -> Result<(), EditError> {
        if self.quarantined.is_empty() && edit.quarantined.is_empty() {
            return Ok(());
        }
        let table = |number| self.tables().find(|table| table.number == number);
        for range in &edit.quarantined {
            let number = range.table;
            if table(number).is_none() {
                return Err(EditError::NoSuchTable { number, level: None });
            }
            if range.smallest > range.largest {
                return Err(EditError::RangeInverted { number });
            }
        }
        let mut ranges: Vec<Quarantined> = Vec::new();
        for range in self.quarantined.iter().chain(&edit.quarantined) {
            let is_read = table(range.table).is_some_and(|table| !range.is_excised_from(table));
            if is_read && !ranges.contains(range) {
                ranges.push(range.clone());
            }
        }
        self.quarantined = ranges.into();
        Ok(())
    }
}

fn never_back(what: &'static str, from: u64, to: u64) -> Result<(), EditError> {
    if to < from { Err(EditError::GoesBack { what, from, to }) } else { Ok(()) }
}

/// Equal neighbours as ranges, without the partitions nothing was said of.
fn runs(points: &[SafePoint]) -> Vec<(Range<u32>, SafePoint)> {
    let mut runs: Vec<(Range<u32>, SafePoint)> = Vec::new();
    let nothing = SafePoint::default();
    for (partition, point) in (0..).zip(points) {
        match runs.last_mut() {
            Some((range, run)) if range.end == partition && run == point => range.end += 1,
            _ if *point == nothing => {}
            _ => runs.push((partition..partition + 1, point.clone())),
        }
    }
    runs
}
