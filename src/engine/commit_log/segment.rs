//! Segment files: names, header, numbers.
//!
//! `NNNNNNNNNN.log` holds segment N; `NNNNNNNNNN.spare` is a file waiting to become one. Both count
//! when a number is chosen, so that no number is ever used twice: that is what makes the frames a
//! recycled file still holds no frames of its new segment. For the same reason nobody may give a
//! segment a second name with a hard link, and no log takes the spares of another: a power loss may
//! undo the rename of one that was begun anew already.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{u32_at, u64_at};
use crate::engine::Position;
use crate::engine::error::{Error, Result};
use crate::engine::vfs::{File, Vfs};

/// Header of a segment, in bytes; the first frame follows.
pub(super) const HEADER_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"PAIRDLOG";
const FORMAT_VERSION: u32 = 4;
const LOG: &str = "log";
const SPARE: &str = "spare";

/// An open segment or spare.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub(super) number: u32,
    pub(super) file: Arc<dyn File>,
}

/// What the header of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: u32,
    /// Where the log ended in the segment before; zero for the first segment of a log.
    pub(super) previous_end: Position,
}

impl Header {
    pub(super) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.previous_end.to_u64().to_le_bytes());
        let crc = crc32fast::hash(&bytes[..24]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None` if these bytes are no header.
    ///
    /// # Errors
    /// `FormatTooNew`: magic, version and checksum keep their places in every format. `Corruption`
    /// for the formats of before the first release, which are not read.
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES], file: &Path) -> Result<Option<Self>> {
        if bytes[..8] != MAGIC || crc32fast::hash(&bytes[..24]) != u32_at(bytes, 24) {
            return Ok(None);
        }
        let found = u32_at(bytes, 8);
        if found > FORMAT_VERSION {
            let (file, supported) = (file.to_path_buf(), FORMAT_VERSION);
            return Err(Error::FormatTooNew { file, found, supported });
        }
        if found < FORMAT_VERSION {
            // Not "no header": its frames would pass for the end of the log.
            let what = format!("format version {found}, of before the first release");
            return Err(Error::corrupt(file, 8, what));
        }
        let previous_end = Position::from_u64(u64_at(bytes, 16));
        Ok(Some(Self { number: u32_at(bytes, 12), previous_end }))
    }
}

pub(super) fn log_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:010}.{LOG}"))
}

pub(super) fn spare_path(directory: &Path, number: u32) -> PathBuf {
    directory.join(format!("{number:010}.{SPARE}"))
}

/// Numbers of the segments in `directory`, ascending.
pub(super) fn list_logs(vfs: &dyn Vfs, directory: &Path) -> Result<Vec<u32>> {
    list(vfs, directory, LOG)
}

/// Numbers of the spares in `directory`, ascending.
pub(super) fn list_spares(vfs: &dyn Vfs, directory: &Path) -> Result<Vec<u32>> {
    list(vfs, directory, SPARE)
}

fn list(vfs: &dyn Vfs, directory: &Path, extension: &str) -> Result<Vec<u32>> {
    let names = vfs.list(directory).map_err(Error::io("list", directory))?;
    let number = |name: &PathBuf| {
        let (stem, found) = name.to_str()?.split_once('.')?;
        let is_number = stem.len() == 10 && stem.bytes().all(|byte| byte.is_ascii_digit());
        (found == extension && is_number).then(|| stem.parse().ok())?
    };
    let mut numbers: Vec<u32> = names.iter().filter_map(number).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The number for the first segment of a new log in `directory`: above every segment and spare that
/// is there and above the segments of the positions in `named`, which are all that the manifest
/// holds. A flush may have reached the disk before the log it came from: without the latter, new
/// records could fall below the flushed position and be skipped by the next recovery.
///
/// # Errors
/// `Io` when the directory cannot be read, `OutOfBounds` after 2^32 segments.
pub fn next_segment_number(
    vfs: &dyn Vfs,
    directory: &Path,
    named: impl IntoIterator<Item = Position>,
) -> Result<u32> {
    let mut numbers = list_logs(vfs, directory)?;
    numbers.extend(list_spares(vfs, directory)?);
    numbers.extend(named.into_iter().map(Position::segment));
    following(numbers.into_iter().max().unwrap_or(0))
}

/// The number after `number`.
pub(super) fn following(number: u32) -> Result<u32> {
    number.checked_add(1).ok_or(Error::OutOfBounds {
        what: "number of the commit log segment",
        found: u64::from(number) + 1,
        limit: u32::MAX.into(),
    })
}

/// Removes the segments numbered below `first` and makes that durable. For after a recovery, when
/// what was replayed is flushed and the manifest says so: a segment beyond a cut must never be
/// replayed.
///
/// # Errors
/// `Io`; some of the segments may be gone.
pub fn remove_segments(vfs: &dyn Vfs, directory: &Path, first: u32) -> Result<()> {
    for number in list_logs(vfs, directory)?.into_iter().filter(|number| *number < first) {
        let path = log_path(directory, number);
        vfs.remove(&path).map_err(Error::io("remove", &path))?;
    }
    vfs.sync_dir(directory).map_err(Error::io("sync", directory))
}

/// Removes all spares; not durably.
pub(super) fn remove_spares(vfs: &dyn Vfs, directory: &Path) -> Result<()> {
    for number in list_spares(vfs, directory)? {
        let path = spare_path(directory, number);
        vfs.remove(&path).map_err(Error::io("remove", &path))?;
    }
    Ok(())
}
