//! Shared by the tests of the commit log; one file for each promise it makes.

mod cost;
mod crash;
mod damage;
mod frames;
mod golden;
mod writing;

use std::path::Path;
use std::sync::Arc;

use super::{CommitLog, LogOptions, Recovered, recover};
use crate::engine::Position;
use crate::engine::error::Result;
use crate::engine::options::SyncMode;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::mem::MemVfs;

const DIRECTORY: &str = "/log";

/// Small enough that a few appends fill a segment.
const SMALL: LogOptions = LogOptions {
    sync_mode: SyncMode::Always,
    segment_bytes: 4096,
    grow_bytes: 1024,
    group_bytes_max: 2048,
};

fn directory() -> &'static Path {
    Path::new(DIRECTORY)
}

/// A file system with the log's directory.
fn disk() -> MemVfs {
    let vfs = MemVfs::new();
    vfs.create_dir_all(directory()).unwrap();
    vfs.sync_dir(Path::new("/")).unwrap();
    vfs
}

fn create(vfs: &(impl Vfs + Clone), options: LogOptions, first: u32) -> Result<CommitLog<()>> {
    CommitLog::create(Arc::new(vfs.clone()), directory(), options, first, ())
}

/// The row of record `index`: its bytes tell its number, its length varies.
fn row(index: u64) -> Vec<u8> {
    let len = [1, 100, 30, 7, 260, 1_000][index as usize % 6];
    (0..len).map(|byte| (index * 31 + byte) as u8).collect()
}

/// Appends record `index` in a frame with whatever waits.
fn append<S>(log: &CommitLog<S>, index: u64) -> Result<Position> {
    log.lock().append(&[(&index.to_be_bytes(), &row(index))])
}

/// The numbers of the records replayed; their rows are checked.
fn replay(vfs: &dyn Vfs, from: Position, accept: bool) -> Result<(Vec<u64>, Recovered)> {
    let mut found = Vec::new();
    let recovered = recover(vfs, directory(), from, accept, &mut |_, key, bytes| {
        let index = u64::from_be_bytes(key.try_into().unwrap());
        assert_eq!(bytes, row(index), "the row of record {index}");
        found.push(index);
        Ok(())
    })?;
    Ok((found, recovered))
}

fn numbers(end: u64) -> Vec<u64> {
    (0..end).collect()
}
