//! The files of segments: made or reused, grown piece by piece, and written.
//!
//! Where every write is synced, a segment's file grows by [`LogOptions::grow_bytes`] at a time,
//! later by several of them, so that a sync has little metadata to write and a store takes about
//! the space of what is in its log, whatever the size of a segment. On a full disk it grows by what
//! is written.
//!
//! Elsewhere [`LogOptions::grow_bytes`] at a time are prepared ahead of the writers, by a thread
//! that is not one of them: to allocate takes a place in the file system's journal, which is waited
//! for while a flush is synced (docs/decisions/0013, 0040). Writes that come before it, or where
//! nothing can be prepared, make the file grow themselves.

use std::ops::Range;
use std::path::Path;

use super::segment::{self, Segment};
use super::writer::LogOptions;
use crate::engine::error::{Error, Result};
use crate::engine::options::SyncMode;
use crate::engine::vfs::Vfs;

/// Spares that a log keeps. One is enough for a writer that does not outrun the flushes; each
/// more is a segment's space for nothing. None outlives its log: one that a power loss gave its old
/// name back may hold frames of the very number that the next log begins with.
pub(super) const SPARES_MAX: usize = 1;

/// The steps by which a file grows double up to this many times the first: an allocation may have
/// to wait for the file system's journal, and the writers for it.
const STEPS_MAX: u64 = 8;

/// Whether it pays to allocate a file's blocks ahead and to use them again. Allocated but never
/// written blocks are marked so in the file's metadata, and the sync of a first write to one has to
/// change that too. Writing zeros ahead would cost as many bytes as the log itself.
pub(super) fn keeps_blocks(mode: SyncMode) -> bool {
    mode == SyncMode::Always
}

/// Where segment files are made.
pub(super) struct Files<'a> {
    pub(super) vfs: &'a dyn Vfs,
    pub(super) directory: &'a Path,
    pub(super) options: LogOptions,
}

/// The segment that is being written.
pub(super) struct Tip {
    pub(super) segment: Segment,
    /// Blocks are allocated up to here, where every write is synced.
    allocated: u64,
    /// Where the last write ended.
    end: u64,
    /// What is prepared, elsewhere. `None`: nothing can be.
    pub(super) prepared: Option<Range<u64>>,
}

impl Files<'_> {
    /// The file of segment `number`, made from `spare` if there is one. Its name is not durable:
    /// the directory is to be synced before anything in it counts as durable.
    pub(super) fn open(&self, number: u32, spare: Option<Segment>) -> Result<Tip> {
        let path = segment::log_path(self.directory, number);
        let (file, allocated) = match spare {
            Some(spare) => {
                let from = segment::spare_path(self.directory, spare.number);
                self.vfs.rename(&from, &path).map_err(Error::io("rename", &from))?;
                let len = spare.file.len().map_err(Error::io("read the length of", &path))?;
                (spare.file, len)
            }
            None => (self.vfs.create(&path).map_err(Error::io("create", &path))?, 0),
        };
        Ok(Tip { segment: Segment { number, file }, allocated, end: 0, prepared: Some(0..0) })
    }

    /// The range of the file that is to be prepared now, if any: a step from the end of what is
    /// written, when less than a quarter of the one before is left.
    pub(super) fn wanted(&self, tip: &Tip) -> Option<Range<u64>> {
        let ready = tip.prepared.as_ref().filter(|_| !keeps_blocks(self.options.sync_mode))?.end;
        let step = u64::from(self.options.grow_bytes).max(1);
        let last = u64::from(self.options.segment_bytes);
        let is_near = tip.end + step / 4 >= ready && ready < last && tip.end < last;
        is_near.then(|| tip.end..(tip.end + step).min(last))
    }

    /// Writes `bytes` at `offset`, where the bytes before them end. Whether what is prepared took
    /// them.
    pub(super) fn write(&self, tip: &mut Tip, offset: u64, bytes: &[u8]) -> Result<bool> {
        let end = offset + bytes.len() as u64;
        let path = || segment::log_path(self.directory, tip.segment.number);
        let file = &*tip.segment.file;
        if end > tip.allocated && keeps_blocks(self.options.sync_mode) {
            let first = u64::from(self.options.grow_bytes).max(1);
            let step = tip.allocated.clamp(first, first * STEPS_MAX);
            let len = end.next_multiple_of(step).min(self.options.segment_bytes.into());
            let failed = |source| Error::io("allocate", &path())(source);
            let allocate = |len: u64| file.allocate(len).map(|()| len).map_err(failed);
            // A step is a courtesy: what is to be written may have room where the step has none.
            tip.allocated = allocate(len).or_else(|error| match error.is_storage_full() {
                true => allocate(end),
                false => Err(error),
            })?;
        }
        file.write_at(offset, bytes).map_err(|source| Error::io("write", &path())(source))?;
        tip.end = end;
        Ok(tip.prepared.as_ref().is_some_and(|range| range.start <= offset && end <= range.end))
    }
}
