//! The tree as a whole: rules of edits, the manifest's bytes, crashes and faults at every call.

mod crash;
mod format;
mod rules;
mod set;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::engine::error::Result;
use crate::engine::options::Options;
use crate::engine::position::Position;
use crate::engine::ranges::KeyRanges;
use crate::engine::record::Kind;
use crate::engine::sstable::{RowInfo, TableBuilder, TableOptions};
use crate::engine::vfs::Vfs;
use crate::engine::vfs::mem::MemVfs;

fn dir() -> PathBuf {
    PathBuf::from("/db")
}

/// A file system with an empty, durable directory.
fn mem() -> MemVfs {
    let mem = MemVfs::new();
    mem.create_dir_all(&dir()).unwrap();
    mem.sync_dir(Path::new("/")).unwrap();
    mem
}

fn options() -> Options {
    Options { partition_bits: 3, ..Options::default() }
}

fn meta(number: u64, level: u8, smallest: &str, largest: &str) -> TableMeta {
    TableMeta {
        number,
        level,
        epoch: number,
        bytes: 100,
        entries: 2,
        deltas: 1,
        overwrites: 0,
        purgeable: 0,
        live_time_min: 5,
        time_max: 9,
        created_ms: 1,
        demote_full: false,
        smallest: smallest.as_bytes().into(),
        largest: largest.as_bytes().into(),
        excised: KeyRanges::default(),
        excised_bytes: 0,
    }
}

fn add(tables: impl IntoIterator<Item = TableMeta>) -> VersionEdit {
    VersionEdit { added: tables.into_iter().collect(), ..VersionEdit::default() }
}

fn point(guard: u64, floor: u64, damaged: &[u128]) -> SafePoint {
    SafePoint { guard, floor, floor_epoch: 1, damaged: damaged.into() }
}

/// Builds a table of `keys` and syncs it, as flush does.
fn build(set: &VersionSet, vfs: &dyn Vfs, level: u8, keys: &[&str]) -> Result<TableMeta> {
    let (number, epoch) = (set.allocate_file_number(), set.allocate_epoch());
    let path = set.table_path(number);
    let io = |source| crate::engine::Error::Io { operation: "build", path: path.clone(), source };
    let file = vfs.create(&path).map_err(io)?;
    let mut builder =
        TableBuilder::new(Arc::clone(&file), path.clone(), number, TableOptions::default());
    for key in keys {
        let info = RowInfo { live_time_min: 1, time_max: 1 };
        builder.add(key.as_bytes(), Kind::Delta, b"row", info)?;
    }
    let properties = builder.finish()?;
    let bytes = file.len().map_err(io)?;
    vfs.sync_dir(&dir()).map_err(io)?;
    let built = BuiltTable { properties: &properties, bytes, purgeable: 0 };
    Ok(TableMeta::of_built(number, level, epoch, 7, &built))
}

/// What must survive: tables, flushed position, safe points, quarantine.
fn essence(state: &VersionState) -> String {
    let tables: Vec<_> = state.tables().collect();
    let (points, bad) = (state.safe_points(), state.quarantined());
    format!("{tables:?} {} {points:?} {bad:?}", state.flushed())
}

fn position(offset: u32) -> Position {
    Position::new(1, offset)
}
