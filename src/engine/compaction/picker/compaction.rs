//! What a choice comes to.

use std::sync::Arc;

use crate::engine::version::TableMeta;

/// Why a compaction was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Too many tables at level 0.
    Level0,
    /// A level is beyond its target.
    Size,
    /// Tombstones may be forgotten.
    Purge,
    /// The table is old.
    Age,
    /// Nothing has come for a while.
    Rest,
    /// Keys were excised from the table.
    Excised,
    /// Somebody asked for it.
    Manual,
    /// A table with an unreadable block is in the way.
    Damage,
}

/// A compaction to run.
#[derive(Clone, Debug)]
pub struct Compaction {
    /// Why.
    pub reason: Reason,
    /// The tables to merge, newest source first.
    pub inputs: Vec<Arc<TableMeta>>,
    /// Where the outputs go.
    pub output_level: usize,
    /// Tables of the level below the output level that the outputs will overlap.
    pub grandparents: Vec<Arc<TableMeta>>,
    /// The inputs need not be read: an edit moves them to the output level.
    pub trivial_move: bool,
    /// Room that its outputs may take on the disk, in bytes: the inputs stay until they are
    /// replaced.
    pub room_bytes: u64,
}

impl Compaction {
    /// The first key of the inputs.
    pub fn smallest(&self) -> &[u8] {
        hull(&self.inputs).0
    }

    /// The last key of the inputs.
    pub fn largest(&self) -> &[u8] {
        hull(&self.inputs).1
    }

    /// Size of the inputs in bytes.
    pub fn input_bytes(&self) -> u64 {
        self.inputs.iter().map(|table| table.bytes).sum()
    }

    /// When its outputs were made, for their age: now, but what is only rewritten without excised
    /// keys is as old as it was.
    pub fn created_ms(&self, now_ms: u64) -> u64 {
        match self.reason {
            Reason::Excised => self.inputs.iter().map(|table| table.created_ms).min(),
            _ => None,
        }
        .unwrap_or(now_ms)
    }

    /// Whether table `number` is an input.
    pub fn has_input(&self, number: u64) -> bool {
        self.inputs.iter().any(|table| table.number == number)
    }
}

/// The least and greatest key of tables; empty keys if there are none.
pub(super) fn hull(tables: &[Arc<TableMeta>]) -> (&[u8], &[u8]) {
    let smallest = tables.iter().map(|table| &*table.smallest).min();
    let largest = tables.iter().map(|table| &*table.largest).max();
    (smallest.unwrap_or_default(), largest.unwrap_or_default())
}
