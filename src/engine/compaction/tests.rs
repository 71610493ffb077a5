//! Jobs on real tables in memory: the rules one by one, whole histories, faults.

mod faults;
mod histories;
mod rules;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::rules::Rule;
use super::*;
use crate::engine::error::Result;
use crate::engine::merge::{MergeError, MergeOperator};
use crate::engine::options::{LEVELS, Options};
use crate::engine::record::Kind;
use crate::engine::sstable::{RowInfo, TableBuilder, TableOptions};
use crate::engine::version::{BuiltTable, SafePoint, TableMeta, Version, VersionEdit, VersionSet};
use crate::engine::vfs::Vfs;
use crate::engine::vfs::mem::MemVfs;

/// Rows of one version: the greater time wins, a tombstone among equals.
struct Newest {
    /// Whether a Full that hides what it lacks is caught where it does: not where a rule is
    /// removed and its damage to be seen.
    checks_claims: bool,
}

/// A row: time, then whether it is a tombstone.
fn row(time: u64, tombstone: bool) -> Vec<u8> {
    let mut bytes = time.to_be_bytes().to_vec();
    bytes.push(u8::from(tombstone));
    bytes
}

fn parse(row: &[u8]) -> Result<(u64, bool), MergeError> {
    let (time, tombstone) =
        row.split_first_chunk().ok_or_else(|| MergeError(format!("{} bytes", row.len())))?;
    Ok((u64::from_be_bytes(*time), tombstone == [1]))
}

impl MergeOperator for Newest {
    fn contains(&self, row: &[u8], older: &[u8]) -> Result<bool, MergeError> {
        Ok(!self.checks_claims || parse(row)? >= parse(older)?)
    }

    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        out.extend_from_slice(if parse(a)? >= parse(b)? { a } else { b });
        Ok(())
    }

    fn live_time_min(&self, row: &[u8]) -> Result<u64, MergeError> {
        Ok(parse(row)?.0)
    }

    fn time_max(&self, row: &[u8]) -> Result<u64, MergeError> {
        Ok(parse(row)?.0)
    }

    fn strip(
        &self,
        _: &[u8],
        _: Option<&[u8]>,
        _: u64,
        _: u64,
        _: &mut Vec<u8>,
    ) -> Result<bool, MergeError> {
        unreachable!("compaction strips nothing")
    }

    fn may_purge(&self, row: &[u8], floor: u64) -> Result<bool, MergeError> {
        let (time, tombstone) = parse(row)?;
        Ok(tombstone && time <= floor)
    }
}

/// A record of a test table: key, kind, time, tombstone.
type TestRecord<'a> = (&'a str, Kind, u64, bool);

fn delta(key: &str, time: u64) -> TestRecord<'_> {
    (key, Kind::Delta, time, false)
}

fn full(key: &str, time: u64) -> TestRecord<'_> {
    (key, Kind::Full, time, false)
}

fn tombstone(key: &str, time: u64) -> TestRecord<'_> {
    (key, Kind::Delta, time, true)
}

fn dir() -> PathBuf {
    PathBuf::from("/db")
}

/// A tree of tables and what a job needs besides.
struct Tree {
    vfs: Arc<dyn Vfs>,
    set: VersionSet,
    oldest_unflushed_epoch: u64,
    table_bytes: u64,
    stop: AtomicBool,
    now_ms: u64,
}

impl Tree {
    fn new() -> Self {
        Self::in_vfs(Arc::new(MemVfs::new()))
    }

    fn in_vfs(vfs: Arc<dyn Vfs>) -> Self {
        vfs.create_dir_all(&dir()).unwrap();
        vfs.sync_dir(Path::new("/")).unwrap();
        let options = Options { partition_bits: 0, ..Options::default() };
        Self {
            set: VersionSet::recover(Arc::clone(&vfs), &dir(), &options).unwrap(),
            vfs,
            oldest_unflushed_epoch: u64::MAX,
            table_bytes: 1 << 20,
            stop: AtomicBool::new(false),
            now_ms: 0,
        }
    }

    /// Builds a table and installs it; returns its number.
    fn add(&self, level: u8, demote_full: bool, records: &[TestRecord<'_>]) -> u64 {
        let number = self.set.allocate_file_number();
        let path = self.set.table_path(number);
        let file = self.vfs.create(&path).unwrap();
        let options = TableOptions { block_bytes: 64, ..TableOptions::default() };
        let mut builder = TableBuilder::new(Arc::clone(&file), path, number, options);
        let mut purgeable = 0;
        for (key, kind, time, dead) in records {
            let info = RowInfo { live_time_min: *time, time_max: *time };
            builder.add(key.as_bytes(), *kind, &row(*time, *dead), info).unwrap();
            purgeable += u64::from(*dead);
        }
        let properties = builder.finish().unwrap();
        self.vfs.sync_dir(&dir()).unwrap();
        let bytes = file.len().unwrap();
        let built = BuiltTable { properties: &properties, bytes, purgeable };
        let epoch = self.set.allocate_epoch();
        let meta = TableMeta::of_built(number, level, epoch, self.now_ms, &built);
        let added = vec![TableMeta { demote_full, ..meta }];
        self.set.log_and_apply(VersionEdit { added, ..VersionEdit::default() }, 0).unwrap();
        number
    }

    fn set_floor(&self, floor: u64, floor_epoch: u64, damaged: bool) {
        let damaged = if damaged { vec![7] } else { Vec::new() };
        let point = SafePoint { guard: floor, floor, floor_epoch, damaged: damaged.into() };
        let edit = VersionEdit { safe_points: vec![(0..1, point)], ..VersionEdit::default() };
        self.set.log_and_apply(edit, 0).unwrap();
    }

    /// A compaction of these tables, newest first, whatever the picker would say.
    fn compaction(&self, inputs: &[u64], output_level: usize) -> Compaction {
        let version = self.set.current();
        let meta = |number: &u64| Arc::clone(&version.table(*number).unwrap().meta);
        Compaction {
            reason: Reason::Manual,
            inputs: inputs.iter().map(meta).collect(),
            output_level,
            grandparents: Vec::new(),
            trivial_move: false,
            room_bytes: 0,
        }
    }

    /// Runs a job to its end, without installing it.
    fn job(&self, compaction: &Compaction, removed: Option<Rule>) -> Result<Option<JobDone>> {
        let version = self.set.current();
        let context = JobContext {
            vfs: &*self.vfs,
            dir: &dir(),
            versions: &self.set,
            operator: &Newest { checks_claims: removed.is_none() },
            view: PurgeView {
                version: &version,
                oldest_unflushed_epoch: self.oldest_unflushed_epoch,
            },
            table_options: TableOptions { block_bytes: 64, ..TableOptions::default() },
            table_bytes: self.table_bytes,
            now_ms: self.now_ms,
            stop: &self.stop,
            pace: &|_| Ok(()),
            on_bad_row: &|_, _| {},
        };
        let job = Job::new(compaction, context);
        match removed {
            None => job.run(),
            Some(rule) => job.without(rule).run(),
        }
    }

    /// Runs and installs a job.
    fn compact(&self, compaction: &Compaction, removed: Option<Rule>) -> JobStats {
        let done = self.job(compaction, removed).unwrap().expect("nobody stopped it");
        self.set.log_and_apply(done.edit, 0).unwrap();
        done.stats
    }

    fn read(&self, key: &str) -> Option<u64> {
        read(&self.set.current(), key)
    }
}

/// The time of the live version of `key`, as a reader finds it: newest to oldest, up to a Full.
fn read(version: &Version, key: &str) -> Option<u64> {
    let mut found: Option<(u64, bool)> = None;
    for table in version.candidates(key.as_bytes()) {
        let Some(record) = table.find(key.as_bytes(), false).unwrap() else { continue };
        found = found.max(Some(parse(&record.row).unwrap()));
        if record.kind == Kind::Full && !table.meta.demote_full {
            break;
        }
    }
    found.filter(|(_, dead)| !dead).map(|(time, _)| time)
}
