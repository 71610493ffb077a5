//! Damage on the disk: noticed, looked into, told, given up where others have the rows.
//!
//! ```text
//! a read, a scan, a scrub meets a bad block      the place is remembered; with the first of a
//!                                                table the actor is replaced
//! scrub_suspects    its table is read whole      the manifest names the ranges: quarantined
//! unreadable        says so                      compaction finds some by itself
//! mark_each_damaged the partitions are marked    they vouch for nothing and answer nothing
//! discard           the block is dropped         what it hid is seen again, marked as damaged
//! mend              after each exchange          with the last one the mark goes
//! ```
//!
//! Who may be asked for the rows, and when, is the business of `replication`. A store that is alone
//! goes no further than the second line: the keys of the block fail by name, for there is no other
//! copy of them.
//!
//! # Invariants
//! 1. With the first damage in a table the actor is replaced, before anything else is written: a
//!    lost row may have held versions of the old actor that others still have, and a new dot of it
//!    would claim to have seen them, and kill them. Once for each table is enough: a table never
//!    changes, so whatever more of it is lost was written before.
//! 2. A block goes only when its partitions are marked, durably, by the caller of
//!    [`Store::discard`]. Their hashes are taken anew after it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::error::{Error, Result};
use super::remove::Permit;
use super::{ScrubReport, Store, leaves};
use crate::engine::version::partition_of;
use crate::engine::{self, Quarantined, ScrubPass};

/// Places of a file that are remembered. One with so many more has been looked into by then.
const PLACES_MAX: usize = 4096;

/// What was met so far.
#[derive(Debug, Default)]
pub(super) struct Met {
    /// By file: offsets.
    places: BTreeMap<PathBuf, HashSet<u64>>,
    /// Files that nobody has looked into since.
    pub(super) suspects: BTreeSet<PathBuf>,
}

impl Met {
    /// Remembers a place; whether it is new, of a file that has room.
    fn remember(&mut self, file: &Path, offset: u64) -> bool {
        let places = self.places.get_mut(file);
        places.is_some_and(|places| places.len() < PLACES_MAX && places.insert(offset))
    }
}

/// A table with blocks that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// Its number.
    pub table: u64,
    /// The partitions whose keys each of the blocks may have held.
    pub blocks: Vec<RangeInclusive<u32>>,
}

impl Store {
    /// Reads and checks every table.
    ///
    /// # Errors
    /// What was found could not be recorded. Damage itself is reported, not an error.
    pub fn scrub(&self) -> Result<ScrubReport> {
        let mut pass = self.begin_scrub();
        while self.scrub_some(&mut pass, u64::MAX)?.is_some() {}
        Ok(pass.report)
    }

    /// A scrub of the tables there are now, to be made piece by piece.
    pub fn begin_scrub(&self) -> ScrubPass {
        self.engine.begin_scrub()
    }

    /// Goes on with a scrub for about `bytes_max` bytes. Returns how many were read; `None`: there
    /// is nothing left.
    ///
    /// # Errors
    /// As [`Store::scrub`].
    pub fn scrub_some(&self, pass: &mut ScrubPass, bytes_max: u64) -> Result<Option<u64>> {
        let known = pass.report.damaged.len();
        let read = self.engine.scrub_some(pass, bytes_max)?;
        for engine::Corruption { file, offset, what } in &pass.report.damaged[known..] {
            let (file, offset, what) = (file.clone(), *offset, what.clone());
            self.noted(Error::Corruption { file, offset, what });
        }
        Ok(read)
    }

    /// Reads the tables in which damage was met since the last call, whole: what cannot be read is
    /// known by its ranges of keys from here on, and stays so.
    ///
    /// # Errors
    /// What was found could not be recorded; the next call tries again.
    pub fn scrub_suspects(&self) -> Result<()> {
        loop {
            let Some(file) = self.damage.lock().suspects.first().cloned() else { return Ok(()) };
            let report = self.engine.scrub_file(&file)?;
            let mut damage = self.damage.lock();
            damage.suspects.remove(&file);
            // Known by their ranges now: whoever meets them tells nothing new.
            for found in &report.damaged {
                damage.remember(&file, found.offset);
            }
        }
    }

    /// Whether there is damage that [`Store::scrub_suspects`], [`Store::unreadable`] or
    /// [`Store::damaged`] have anything to say about. Cheap.
    pub fn has_damage(&self) -> bool {
        !self.damage.lock().suspects.is_empty()
            || !self.engine.quarantined().is_empty()
            || self.engine.safe_points().iter().any(engine::SafePoint::is_damaged)
    }

    /// The tables with blocks that cannot be read.
    pub fn unreadable(&self) -> Vec<Unreadable> {
        let mut tables: Vec<Unreadable> = Vec::new();
        for block in self.engine.quarantined().iter() {
            let partitions = self.partitions_of(block);
            match tables.iter_mut().find(|one| one.table == block.table) {
                Some(one) => one.blocks.push(partitions),
                None => {
                    tables.push(Unreadable { table: block.table, blocks: vec![partitions] });
                }
            }
        }
        tables
    }

    /// Whether there is a block that cannot be read and may hold rows of this partition.
    pub fn is_unreadable_in(&self, partition: u32) -> bool {
        let blocks = self.engine.quarantined();
        blocks.iter().any(|block| self.partitions_of(block).contains(&partition))
    }

    fn partitions_of(&self, block: &Quarantined) -> RangeInclusive<u32> {
        let bits = self.engine.options().partition_bits;
        let partition = |key: &[u8]| partition_of(key, bits) as u32;
        partition(&block.smallest)..=partition(&block.largest)
    }

    /// Drops the unreadable blocks of a table: its other rows are written anew. Of what the blocks
    /// held nothing is left here, and older rows that they hid are seen again. `false`: it has to
    /// wait, because the permit was refused or a compaction has the table.
    ///
    /// REQUIRES: the partitions of all of them are marked as damaged, or are none of this node's.
    ///
    /// # Errors
    /// I/O.
    pub fn discard(&self, unreadable: &Unreadable, permit: &Permit<'_>) -> Result<bool> {
        self.check_writable()?;
        let Unreadable { table, blocks } = unreadable;
        // A compaction may have met the damage first, which tells nobody but the engine.
        if let Some(file) = self.engine.table_file(*table) {
            self.meet(&mut self.damage.lock(), &file);
            self.check_writable()?;
        }
        let may_go = |block: &Quarantined| {
            block.table == *table && blocks.contains(&self.partitions_of(block))
        };
        let discarded = self.engine.discard(&may_go, &|install| match permit(install) {
            None => Ok(false),
            Some(installed) => installed.map(|()| true),
        })?;
        if discarded > 0 {
            blocks.iter().for_each(|partitions| self.mark_leaves(partitions));
            self.counters.blocks_discarded.fetch_add(discarded, Ordering::Relaxed);
        }
        Ok(discarded > 0)
    }

    /// Passes a result on; see [`Store::noted`].
    pub(super) fn watch<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.noted(error))
    }

    /// Passes an error on. See [`Store::meet`] for one that tells of damage.
    pub(super) fn noted(&self, error: Error) -> Error {
        if let Error::Corruption { file, offset, .. } = &error {
            let mut damage = self.damage.lock();
            self.meet(&mut damage, file);
            if damage.remember(file, *offset) {
                damage.suspects.insert(file.clone());
            }
        }
        error
    }

    /// Takes note of a file with damage. If it is the first in that file the actor is replaced
    /// before anything else is written: what was lost may be versions that others have from this
    /// actor, and a new dot of it would kill them.
    fn meet(&self, damage: &mut Met, file: &Path) {
        if !damage.places.contains_key(file) {
            // Few tables are ever damaged: a good moment to forget those that are gone.
            damage.places.retain(|file, _| self.engine.has_table(file));
            damage.places.insert(file.to_path_buf(), HashSet::new());
            self.rotate_actor();
        }
    }

    /// Takes a new actor; without one nothing more is written.
    fn rotate_actor(&self) {
        self.counters.actor_rotations.fetch_add(1, Ordering::Relaxed);
        match self.identity.rotate() {
            Ok(actor) => self.actor.store(actor, Ordering::Release),
            Err(failed) => {
                self.read_only.get_or_init(|| failed.to_string());
            }
        }
    }

    /// The partitions that have lost data, each with the peers that can give it back.
    pub fn damaged(&self) -> Vec<(u32, Vec<u128>)> {
        let points = self.engine.safe_points();
        let damaged = points.iter().enumerate().filter(|(_, point)| point.is_damaged());
        damaged.map(|(at, point)| (at as u32, point.damaged.to_vec())).collect()
    }

    /// Marks partitions, ascending, as having lost data which their peers (not empty, ascending)
    /// can give back; the actor is another one from here on. They vouch for nothing and answer no
    /// reads until [`Store::mend`] was told of an exchange with each. Those that are marked like
    /// that already stay as they are; `false`: all were. It costs one actor, and one sync.
    ///
    /// # Errors
    /// I/O, after which the store takes no writes.
    pub fn mark_each_damaged(&self, partitions: &[(u32, Vec<u128>)]) -> Result<bool> {
        self.check_writable()?;
        let mut marks = BTreeMap::new();
        for (partition, peers) in partitions {
            if *self.engine.safe_point(*partition)?.damaged != **peers {
                marks.insert(*partition, &peers[..]);
            }
        }
        if marks.is_empty() {
            return Ok(false);
        }
        if self.keeps("damaged_state") {
            self.engine.set_each_damaged(&marks)?;
        }
        marks.keys().for_each(|partition| self.mark_leaves(&(*partition..=*partition)));
        self.rotate_on_loss()?;
        Ok(true)
    }

    /// [`Store::mark_each_damaged`] of a range with the same peers.
    #[cfg(test)]
    pub fn mark_damaged(&self, partitions: RangeInclusive<u32>, peers: &[u128]) -> Result<()> {
        let marks: Vec<_> = partitions.map(|partition| (partition, peers.to_vec())).collect();
        self.mark_each_damaged(&marks).map(drop)
    }

    /// Has the node write under another actor: it may not know all that it has written under this
    /// one.
    pub(super) fn rotate_on_loss(&self) -> Result<()> {
        if self.keeps("rotate_on_loss") {
            self.rotate_actor();
        }
        match self.read_only.get() {
            Some(cause) => Err(Error::ReadOnly { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// Has the hashes of partitions taken anew.
    pub(super) fn mark_leaves(&self, partitions: &RangeInclusive<u32>) {
        let shift = leaves::LEAF_BITS - self.engine.options().partition_bits;
        let (first, last) = (*partitions.start(), *partitions.end());
        (first << shift..(last + 1) << shift).for_each(|leaf| self.dirty.mark_leaf(leaf));
    }

    /// Takes note of who can give back what a damaged partition has lost: `peers`, ascending. None:
    /// nobody else has rows of it, so it vouches again for what there is.
    ///
    /// # Errors
    /// I/O.
    pub fn set_givers(&self, partition: u32, peers: &[u128]) -> Result<()> {
        Ok(self.engine.set_damaged(partition..=partition, peers)?)
    }

    /// Takes note that all rows of a partition were exchanged with `peer`. After the last one of
    /// those that could give back what was lost the partition vouches again.
    ///
    /// # Errors
    /// I/O.
    pub fn mend(&self, partition: u32, peer: u128) -> Result<()> {
        let point = self.engine.safe_point(partition)?;
        let left: Vec<u128> = point.damaged.iter().copied().filter(|one| *one != peer).collect();
        self.set_givers(partition, &left)
    }
}
