//! Making the files of segments: from a spare where there is one, else allocated.

use std::path::Path;
use std::sync::Arc;

use super::segment::{self, Segment};
use super::writer::{LogOptions, SPARES_MAX};
use crate::engine::error::{Error, Result};
use crate::engine::options::SyncMode;
use crate::engine::vfs::{File, Vfs};

/// Where segment files are made.
pub(super) struct Files<'a> {
    pub(super) vfs: &'a dyn Vfs,
    pub(super) directory: &'a Path,
    pub(super) options: LogOptions,
}

impl Files<'_> {
    /// The file of segment `number`, made from `spare` if there is one (then true). Its name is
    /// durable: before that, nothing in it can count as durable.
    pub(super) fn open(
        &self,
        number: u32,
        spare: Option<Segment>,
        fill: bool,
    ) -> Result<(Segment, bool)> {
        let path = segment::log_path(self.directory, number);
        let was_spare = spare.is_some();
        let file = match spare {
            Some(spare) => {
                let from = segment::spare_path(self.directory, spare.number);
                self.vfs.rename(&from, &path).map_err(Error::io("rename", &from))?;
                spare.file
            }
            None => self.create(&path, fill)?,
        };
        self.vfs.sync_dir(self.directory).map_err(Error::io("sync", self.directory))?;
        Ok((Segment { number, file }, was_spare))
    }

    /// A new file with all blocks allocated; with `fill`, also written once where that pays.
    pub(super) fn create(&self, path: &Path, fill: bool) -> Result<Arc<dyn File>> {
        let len = self.options.segment_bytes;
        let file = allocate(self.vfs, path, len)?;
        if fill && self.options.sync_mode == SyncMode::Always {
            fill_with_zeros(&*file, path, len)?;
        }
        Ok(file)
    }
}

/// Opens the spares that an earlier log left, and removes those that do not fit or are too many.
pub(super) fn adopt_spares(vfs: &dyn Vfs, directory: &Path, len: u32) -> Result<Vec<Segment>> {
    let mut spares = Vec::new();
    for number in segment::list_spares(vfs, directory)? {
        let path = segment::spare_path(directory, number);
        let file = vfs.open(&path).map_err(Error::io("open", &path))?;
        let fits = file.len().map_err(Error::io("read the length of", &path))? == u64::from(len);
        if fits && spares.len() < SPARES_MAX {
            spares.push(Segment { number, file });
        } else {
            vfs.remove(&path).map_err(Error::io("remove", &path))?;
        }
    }
    Ok(spares)
}

/// Creates the file `path` with `len` bytes allocated.
fn allocate(vfs: &dyn Vfs, path: &Path, len: u32) -> Result<Arc<dyn File>> {
    let file = vfs.create(path).map_err(Error::io("create", path))?;
    file.allocate(len.into()).map_err(Error::io("allocate", path))?;
    Ok(file)
}

/// Writes zeros over the allocated blocks and syncs them. Allocated but never written blocks are
/// marked so in the file's metadata, and every sync of a first write to them would have to change
/// that too: about 60 % on top of each sync.
fn fill_with_zeros(file: &dyn File, path: &Path, len: u32) -> Result<()> {
    const CHUNK_BYTES: usize = 1 << 20;
    let zeros = vec![0; CHUNK_BYTES.min(len as usize)];
    for offset in (0..u64::from(len)).step_by(CHUNK_BYTES) {
        let part = zeros.len().min((u64::from(len) - offset) as usize);
        file.write_at(offset, &zeros[..part]).map_err(Error::io("write", path))?;
        file.start_writeback(offset, part as u64);
    }
    file.sync_data().map_err(Error::io("sync", path))
}
