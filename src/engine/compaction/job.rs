//! Runs a compaction: merges its inputs into new tables.
//!
//! Each key's records are joined newest to oldest up to the first Full; a record that stands alone,
//! or on top, is copied byte for byte. Records of `demote_full` tables are read as Deltas. Then the
//! rules of `gc` say whether the result is a Full and whether it may be forgotten.
//!
//! # Invariants
//! 1. On success the outputs and their names are durable. Nothing is installed: the caller logs the
//!    edit.
//! 2. On an error, a panic, or when it was stopped, the outputs are removed and the tree is as it
//!    was.
//!
//! It chooses nothing, waits for nothing and reads no clock: see [`JobContext::pace`].

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::gc::{Garbage, PurgeView};
use super::output::{Output, OutputCutter, Outputs};
use super::picker::Compaction;
#[cfg(test)]
use super::rules::Rule;
use super::rules::Rules;
use crate::engine::error::{Error, Result};
use crate::engine::iter::{Cursor, JoinBuffers, LevelCursor, MergingCursor, join_group};
use crate::engine::merge::{MergeError, MergeOperator};
use crate::engine::record::{Kind, Record};
use crate::engine::scale::scale;
use crate::engine::sstable::{RowInfo, TableOptions};
use crate::engine::version::{TableMeta, TableRef, VersionEdit, VersionSet};
use crate::engine::vfs::Vfs;

/// After this many bytes of input a job looks whether it is to stop, and for how long to wait.
const CHECK_BYTES: u64 = 256 << 10;

/// What a job works with.
#[derive(Clone, Copy)]
pub struct JobContext<'a> {
    /// The file system.
    pub vfs: &'a dyn Vfs,
    /// The data directory.
    pub dir: &'a Path,
    /// Gives file numbers and names.
    pub versions: &'a VersionSet,
    /// Joins rows.
    pub operator: &'a dyn MergeOperator,
    /// The tree the inputs were picked in, or a later one that still holds them.
    pub view: PurgeView<'a>,
    /// How outputs are built.
    pub table_options: TableOptions,
    /// Target size of an output in bytes.
    pub table_bytes: u64,
    /// The present, for [`TableMeta::created_ms`].
    pub now_ms: u64,
    /// Stops the job when it is set.
    pub stop: &'a AtomicBool,
    /// Told every 256 KiB of input how many bytes were written since; waits as long as the
    /// [`Pacer`](super::Pacer) says, or until `stop` is set.
    pub pace: &'a dyn Fn(u64) -> Result<()>,
    /// Told of a row that cannot be joined, by its table and key: no checksum shows that.
    pub on_bad_row: &'a dyn Fn(u64, &[u8]),
}

/// What a job did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobDone {
    /// Replaces the inputs by the outputs.
    pub edit: VersionEdit,
    /// In numbers.
    pub stats: JobStats,
}

/// A job in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobStats {
    /// Bytes of the input files.
    pub input_bytes: u64,
    /// Bytes of the output files.
    pub output_bytes: u64,
    /// Records read.
    pub input_records: u64,
    /// Records written.
    pub output_records: u64,
    /// Deltas that became Fulls.
    pub promoted: u64,
    /// Rows forgotten.
    pub purged: u64,
}

/// A compaction to be run.
pub struct Job<'a> {
    compaction: &'a Compaction,
    context: JobContext<'a>,
    rules: Rules,
}

impl<'a> Job<'a> {
    /// A job for `compaction`.
    pub fn new(compaction: &'a Compaction, context: JobContext<'a>) -> Self {
        Self { compaction, context, rules: Rules::default() }
    }

    #[cfg(test)]
    pub(super) fn without(mut self, rule: Rule) -> Self {
        self.rules = Rules::without(rule);
        self
    }

    /// Without the rules that a test of the engine removed.
    #[cfg(test)]
    pub(crate) fn without_named(mut self, names: &std::collections::HashSet<&'static str>) -> Self {
        self.rules = Rules::without_named(names);
        self
    }

    /// Merges the inputs; moves them without reading if that is all there is to do. `None` if it
    /// was stopped.
    ///
    /// # Errors
    /// `Io`; `Corruption` of an input; `Edit` if an input is not in the version of the view.
    pub fn run(self) -> Result<Option<JobDone>> {
        if self.compaction.trivial_move {
            let stats = JobStats::default();
            return Ok(Some(JobDone { edit: self.edit(self.moved()), stats }));
        }
        let sources = self.sources()?;
        let epochs = self.compaction.inputs.iter().map(|table| table.epoch);
        let mut merge = Merge {
            garbage: self.garbage(),
            outputs: Outputs {
                vfs: self.context.vfs,
                versions: self.context.versions,
                options: self.context.table_options,
                level: self.compaction.output_level as u8,
                epoch: epochs.max().unwrap_or(0),
                now_ms: self.context.now_ms,
                tables: Vec::new(),
                created: Vec::new(),
            },
            output: None,
            cutter: OutputCutter::new(&self.compaction.grandparents, self.context.table_bytes),
            written: 0,
            stats: JobStats { input_bytes: self.compaction.input_bytes(), ..JobStats::default() },
            job: &self,
        };
        if !merge.all(MergingCursor::new(sources))? {
            return Ok(None);
        }
        let Merge { outputs, mut stats, .. } = merge;
        let vfs = self.context.vfs;
        vfs.sync_dir(self.context.dir).map_err(Error::io("sync", self.context.dir))?;
        stats.output_bytes = outputs.tables.iter().map(|table| table.bytes).sum();
        let mut tables = outputs.keep();
        let overwrites = self.overwrites_left(&stats);
        for table in &mut tables {
            table.overwrites = scale(overwrites, table.entries, stats.output_records);
        }
        Ok(Some(JobDone { edit: self.edit(tables), stats }))
    }

    /// Records of the outputs that overwrite something below. A record that met an older one of its
    /// key has overwritten what there was to it, and one of them is left. A row that is forgotten
    /// has nothing below: the oldest of its records was no overwrite.
    fn overwrites_left(&self, stats: &JobStats) -> u64 {
        let inputs = self.compaction.inputs.iter();
        let overwrites: u64 = inputs.map(|table| table.visible_overwrites()).sum();
        let met = stats.input_records - stats.output_records - stats.purged;
        overwrites.saturating_sub(met).min(stats.output_records)
    }

    fn garbage(&self) -> Garbage<'a> {
        Garbage::new(self.compaction, self.context.view, self.context.operator, self.rules)
    }

    fn edit(&self, added: Vec<TableMeta>) -> VersionEdit {
        let inputs = self.compaction.inputs.iter();
        let removed = inputs.map(|table| (table.level, table.number)).collect();
        VersionEdit { removed, added, ..VersionEdit::default() }
    }

    fn moved(&self) -> Vec<TableMeta> {
        let level = self.compaction.output_level as u8;
        let inputs = self.compaction.inputs.iter();
        inputs.map(|table| TableMeta { level, ..TableMeta::clone(table) }).collect()
    }

    /// The inputs as sorted sources, newest first: a table of level 0 each; of a deeper level those
    /// whose Fulls are believed and those whose are not.
    fn sources(&self) -> Result<Vec<Source>> {
        let mut groups: Vec<(u8, bool, Vec<TableRef>)> = Vec::new();
        let mut inputs = self.compaction.inputs.clone();
        inputs.sort_by(|a, b| match (a.level, b.level) {
            (0, 0) => b.epoch.cmp(&a.epoch),
            (x, y) if x == y => (a.demote_full, &a.smallest).cmp(&(b.demote_full, &b.smallest)),
            (x, y) => x.cmp(&y),
        });
        for meta in &inputs {
            let number = meta.number;
            let Some(table) = self.context.view.version.table(number) else {
                let level = Some(meta.level);
                return Err(crate::engine::version::EditError::NoSuchTable { number, level }.into());
            };
            let table = table.clone();
            match groups.last_mut() {
                Some((level, demote, tables))
                    if *level > 0 && (*level, *demote) == (meta.level, meta.demote_full) =>
                {
                    tables.push(table);
                }
                _ => groups.push((meta.level, meta.demote_full, vec![table])),
            }
        }
        let demotes = self.rules.hold(super::rules::Rule::DemoteFull);
        let source = |(_, demote_full, tables): (u8, bool, Vec<TableRef>)| Source {
            // What was copied wrongly would be wrong for good: every block is checked again.
            cursor: LevelCursor::new(tables.into(), true),
            demote_full: demote_full && demotes,
        };
        Ok(groups.into_iter().map(source).collect())
    }

    /// A row that cannot be read is damage of the newest input that may hold it.
    #[cold]
    fn corruption(&self, key: &[u8], error: &MergeError) -> Error {
        let mut inputs = self.compaction.inputs.iter();
        let number = inputs.find(|table| table.covers(key)).map_or(0, |table| table.number);
        (self.context.on_bad_row)(number, key);
        let path = self.context.versions.table_path(number);
        Error::corrupt(&path, 0, format!("the row of key {}: {error}", key.escape_ascii()))
    }
}

/// One sorted source of the merge.
#[derive(Debug)]
struct Source {
    cursor: LevelCursor,
    /// Its Fulls are read as Deltas: see [`TableMeta::demote_full`].
    demote_full: bool,
}

impl Cursor for Source {
    fn seek_to_first(&mut self) -> Result<()> {
        self.cursor.seek_to_first()
    }

    fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.cursor.seek(key)
    }

    fn next(&mut self) -> Result<()> {
        self.cursor.next()
    }

    #[inline]
    fn valid(&self) -> bool {
        self.cursor.valid()
    }

    #[inline]
    fn key(&self) -> &[u8] {
        self.cursor.key()
    }

    #[inline]
    fn record(&self) -> Record<'_> {
        let record = self.cursor.record();
        if self.demote_full { Record { kind: Kind::Delta, ..record } } else { record }
    }

    #[inline]
    fn prefix(&self) -> u64 {
        self.cursor.prefix()
    }
}

/// A job while it merges.
struct Merge<'j, 'a> {
    job: &'j Job<'a>,
    garbage: Garbage<'a>,
    cutter: OutputCutter<'j>,
    outputs: Outputs<'a>,
    output: Option<Output>,
    /// Bytes written since the last check.
    written: u64,
    stats: JobStats,
}

impl Merge<'_, '_> {
    /// Merges everything; `false` if it was stopped.
    fn all(&mut self, mut cursor: MergingCursor<Source>) -> Result<bool> {
        let mut buffers = JoinBuffers::default();
        let mut unchecked = 0;
        cursor.seek_to_first()?;
        while cursor.valid() {
            let key = cursor.key();
            for record in cursor.records() {
                unchecked += (key.len() + record.row.len()) as u64;
                self.stats.input_records += 1;
            }
            let joined = join_group(self.job.context.operator, cursor.records(), &mut buffers);
            let joined = joined.map_err(|error| self.job.corruption(key, &error))?;
            if let Some(joined) = joined {
                self.row(key, joined.kind, &joined.row)?;
            }
            cursor.next_group()?;
            if unchecked >= CHECK_BYTES {
                unchecked = 0;
                (self.job.context.pace)(std::mem::take(&mut self.written))?;
                if self.job.context.stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
            }
        }
        if let Some(output) = self.output.take() {
            self.outputs.finish(output)?;
        }
        Ok(!self.job.context.stop.load(Ordering::Relaxed))
    }

    /// Writes or forgets the join of a key.
    fn row(&mut self, key: &[u8], kind: Kind, row: &[u8]) -> Result<()> {
        let operator = self.job.context.operator;
        let unreadable = |error: MergeError| self.job.corruption(key, &error);
        if self.garbage.may_purge(key, row).map_err(unreadable)? {
            self.stats.purged += 1;
            return Ok(());
        }
        let info = RowInfo {
            live_time_min: operator.live_time_min(row).map_err(unreadable)?,
            time_max: operator.time_max(row).map_err(unreadable)?,
        };
        let purgeable = operator.may_purge(row, u64::MAX).map_err(unreadable)?;
        let promote = kind == Kind::Delta && self.garbage.may_promote(key);

        let bytes = self.output.as_ref().map_or(0, |output| output.builder.bytes_so_far());
        if self.cutter.ends_before(key, bytes)
            && let Some(output) = self.output.take()
        {
            self.outputs.finish(output)?;
        }
        let output = match &mut self.output {
            Some(output) => output,
            none => none.insert(self.outputs.start()?),
        };
        output.builder.add(key, if promote { Kind::Full } else { kind }, row, info)?;
        output.purgeable += u64::from(purgeable);
        self.stats.promoted += u64::from(promote);
        self.stats.output_records += 1;
        self.written += (key.len() + row.len()) as u64;
        Ok(())
    }
}
