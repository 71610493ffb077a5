//! Reading keys in order: one SuperVersion, all sources merged, one joined state a key.
//!
//! A scan sees every write that was applied before it started and, for keys ahead of it, perhaps
//! later ones: each key's state is whole, the set of keys is not a snapshot. The row cache is
//! neither asked nor filled, or one scan would wash it out.
//!
//! What is in memory may not be synced yet: see [`super::read`]. A scan does not wait for each row;
//! whoever tells of what it has handed out waits once, with [`Engine::wait_scanned`].

use std::sync::Arc;

use super::error::Result;
use super::iter::{Cursor, JoinBuffers, JoinedRow, LevelCursor, MergingCursor, join_group};
use super::memtable::MemtableCursor;
use super::merge::MergeOperator;
use super::options::LEVELS;
use super::position::Position;
use super::ranges::KeyRanges;
use super::record::{Kind, Record};
use super::sstable::TableIter;
use super::super_version::SuperVersion;
use super::version::SafePoint;
use super::{Engine, Shared};

/// A scan in progress. It pins the tables it reads, so it should not be kept for long.
pub struct Scan {
    cursor: MergingCursor<Source>,
    /// Exclusive.
    end: Option<Vec<u8>>,
    /// Whether the cursor stands on a key that was handed out already.
    used: bool,
    /// Where the log ended behind the newest write in what was handed out.
    end_of_log: Position,
    buffers: JoinBuffers,
    operator: Arc<dyn MergeOperator>,
    /// Keeps memtables and tables. Dropped after the cursor, which so is never the last to let go
    /// of one: what ends with the view goes to the reaper.
    view: Arc<SuperVersion>,
}

/// One sorted source of a scan.
enum Source {
    Memtable(MemtableCursor),
    /// A table of level 0.
    Table {
        iter: TableIter,
        demote_full: bool,
    },
    /// The tables of a lower level that are alike in `demote_full`: an ingested table may sink
    /// there without being rewritten.
    Level {
        cursor: LevelCursor,
        demote_full: bool,
    },
}

/// Calls a method of whichever cursor it is.
macro_rules! each {
    ($source:expr, $cursor:ident => $call:expr) => {
        match $source {
            Source::Memtable($cursor) => $call,
            Source::Table { iter: $cursor, .. } => $call,
            Source::Level { cursor: $cursor, .. } => $call,
        }
    };
}

impl Cursor for Source {
    fn seek_to_first(&mut self) -> Result<()> {
        each!(self, cursor => cursor.seek_to_first())
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        each!(self, cursor => cursor.seek(key))
    }

    fn next(&mut self) -> Result<()> {
        each!(self, cursor => cursor.next())
    }

    fn valid(&self) -> bool {
        each!(self, cursor => cursor.valid())
    }

    fn key(&self) -> &[u8] {
        each!(self, cursor => cursor.key())
    }

    fn record(&self) -> Record<'_> {
        let record = each!(self, cursor => cursor.record());
        match self {
            Self::Table { demote_full: true, .. } | Self::Level { demote_full: true, .. } => {
                Record { kind: Kind::Delta, ..record }
            }
            _ => record,
        }
    }

    fn prefix(&self) -> u64 {
        each!(self, cursor => cursor.prefix())
    }
}

impl Source {
    /// Where the log ended behind the newest write in the record it stands on.
    fn end_of_log(&self) -> Position {
        match self {
            Self::Memtable(cursor) => cursor.end(),
            Self::Table { .. } | Self::Level { .. } => Position::ZERO,
        }
    }
}

impl Engine {
    /// Waits until everything that `scan` has handed out so far may be told, as a read of a key
    /// waits.
    ///
    /// # Errors
    /// The log could not be synced: what of it is there after the next start is unknown.
    pub fn wait_scanned(&self, scan: &Scan) -> Result<()> {
        self.shared.wait_synced(scan.end_of_log)
    }

    /// Walks the keys from `start`, inclusive, to `end`, exclusive (`None`: to the last key).
    ///
    /// # Errors
    /// A source could not be read; [`Error::Poisoned`](super::Error::Poisoned) as for
    /// [`Engine::get`].
    pub fn scan(&self, start: &[u8], end: Option<&[u8]>) -> Result<Scan> {
        self.shared.scan(start, end)
    }
}

impl Shared {
    fn scan(&self, start: &[u8], end: Option<&[u8]>) -> Result<Scan> {
        // As for reads of keys.
        self.log.check()?;
        let view = self.super_version.load_full();
        let memtables = view
            .memtables()
            .filter(|memtable| !memtable.is_empty())
            .map(|memtable| Source::Memtable(MemtableCursor::new(memtable.clone())));
        let behind = KeyRanges::of(end.map(|end| (end.to_vec(), None)));
        let level0 = view.version.level(0).tables().iter().map(|table| {
            let mut iter = table.iter();
            // Nobody asked for an unreadable block that comes next behind the end.
            if view.version.state().has_unreadable(table.meta.number) {
                iter = iter.without(&behind);
            }
            Source::Table { iter, demote_full: table.meta.demote_full }
        });
        let levels = (1..LEVELS)
            .flat_map(|level| [false, true].map(|demote_full| (level, demote_full)))
            .map(|(level, demote)| (view.version.level(level).shared_tables(demote), demote))
            .filter(|(tables, _)| !tables.is_empty())
            .map(|(tables, demote_full)| Source::Level {
                cursor: LevelCursor::new(tables.clone(), false),
                demote_full,
            });
        let mut cursor = MergingCursor::new(memtables.chain(level0).chain(levels).collect());
        cursor.seek(start)?;
        Ok(Scan {
            cursor,
            end: end.map(<[u8]>::to_vec),
            used: false,
            end_of_log: Position::ZERO,
            buffers: JoinBuffers::default(),
            operator: self.operator.clone(),
            view,
        })
    }
}

impl Scan {
    /// The words of all partitions as of the moment in which the scan began: what they say of the
    /// rows holds for those that it hands out.
    pub fn safe_points(&self) -> &Arc<[SafePoint]> {
        self.view.version.state().safe_points()
    }

    /// The next key and its state; `None` at the end.
    ///
    /// # Errors
    /// A source could not be read. The scan is then of no use.
    #[expect(clippy::should_implement_trait, reason = "it lends from itself: no Iterator")]
    pub fn next(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        if std::mem::replace(&mut self.used, true) && self.cursor.valid() {
            self.cursor.next_group()?;
        }
        if !self.cursor.valid() {
            return Ok(None);
        }
        let key = self.cursor.key();
        if self.end.as_ref().is_some_and(|end| key >= &end[..]) {
            return Ok(None);
        }
        let joined = join_group(&*self.operator, self.cursor.records(), &mut self.buffers)?;
        // After the records: one that is replaced meanwhile says more, never less.
        let ends = self.cursor.standing().map(Source::end_of_log);
        self.end_of_log = ends.fold(self.end_of_log, Position::max);
        let row = match joined.expect("a group has at least one record").row {
            JoinedRow::Source(row) | JoinedRow::Merged(row) => row,
        };
        Ok(Some((key, row)))
    }
}
