//! The manifest: an append-only file of version edits, and `CURRENT`, which names the one in use.
//!
//! `MANIFEST-nnnnnnnnnn` begins with 16 bytes:
//!
//! | at | bytes | what |
//! |--:|--:|---|
//! | 0 | 8 | magic, `PairMAN` and a line feed |
//! | 8 | 4 | format version |
//! | 12 | 4 | format version, inverted |
//!
//! then frames, one an edit (see [`VersionEdit`]); the first one is a snapshot. Little-endian:
//!
//! | bytes | what |
//! |--:|---|
//! | 4 | length `n` of the edit |
//! | 4 | CRC-32 of manifest number, offset of the frame (8 bytes each) and the length |
//! | 4 | CRC-32 of manifest number, offset of the frame (8 bytes each) and the edit |
//! | n | the edit |
//!
//! `CURRENT` is one line: the manifest's file name, a space, and the CRC-32 of that name in eight
//! hexadecimal digits.
//!
//! # Invariants
//! 1. An edit is acknowledged after its sync, and each edit is synced before the next is written:
//!    only the last frame can be torn. A bad frame with a good one behind it is corruption; one
//!    with none behind it is cut. (So damage to the very last frame passes for a torn write.)
//! 2. `CURRENT` names only a manifest whose snapshot and whose name were synced.
//! 3. A manifest found at open is never appended to: open writes a new one.
//! 4. After a failed write or sync what the file holds is unknown: nothing is appended any more.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::edit::VersionEdit;
use super::state::{EditError, VersionState};
use crate::engine::checksum::of_placed as checksum;
use crate::engine::error::{Error, Result};
use crate::engine::vfs::{File, Vfs};

const MAGIC: [u8; 8] = *b"PairMAN\n";
/// The newest format this program reads, and the one it writes.
pub(super) const FORMAT_VERSION: u32 = 3;
const HEADER_BYTES: usize = 16;
const FRAME_HEADER_BYTES: usize = 12;
/// A manifest is rewritten beyond this size, or beyond [`REWRITE_RATIO`] snapshots if that is more.
/// Tests reach it with a few edits.
const REWRITE_BYTES: u64 = if cfg!(test) { 1 << 10 } else { 4 << 20 };
const REWRITE_RATIO: u64 = 4;
const CURRENT: &str = "CURRENT";
const CURRENT_TEMP: &str = "CURRENT.tmp";
const NAME_PREFIX: &str = "MANIFEST-";

/// What a manifest held.
#[derive(Debug)]
pub struct Recovered {
    /// The state after its last whole edit.
    pub state: VersionState,
    /// Its number.
    pub number: u64,
    /// Bytes of a torn last edit that were left out.
    pub torn_bytes: u64,
}

/// The manifest in use.
#[derive(Debug)]
pub struct Manifest {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    path: PathBuf,
    number: u64,
    file: Arc<dyn File>,
    len: u64,
    /// Length at which it is to be rewritten.
    rewrite_len: u64,
    /// The first failure; see invariant 4.
    poison: Option<String>,
}

impl Manifest {
    /// Refuses a directory without a store.
    ///
    /// # Errors
    /// `Corruption`, `Io`.
    pub fn check_exists(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
        if Self::exists(vfs, dir)? {
            return Ok(());
        }
        let what = "it is missing, and there was a store: its files are elsewhere, or lost";
        Err(Error::corrupt(&dir.join(CURRENT), 0, what))
    }

    fn exists(vfs: &dyn Vfs, dir: &Path) -> Result<bool> {
        let current = dir.join(CURRENT);
        vfs.exists(&current).map_err(Error::io("look for", &current))
    }

    /// Reads the manifest that `CURRENT` names; `None` in a directory without one.
    ///
    /// # Errors
    /// `Corruption` for damage that is not a torn tail, `FormatTooNew`, `Io`, and
    /// [`EditError::PartitionBits`] if the store was made with others.
    pub fn recover(vfs: &dyn Vfs, dir: &Path, partition_bits: u32) -> Result<Option<Recovered>> {
        if !Self::exists(vfs, dir)? {
            return Ok(None);
        }
        let current = dir.join(CURRENT);
        let line = read_file(vfs, &current)?;
        let Some(number) = parse_current(&line) else {
            return Err(Error::corrupt(&current, 0, "it names no manifest"));
        };
        let path = dir.join(name(number));
        if !vfs.exists(&path).map_err(Error::io("look for", &path))? {
            return Err(Error::corrupt(&current, 0, format!("{} is missing", path.display())));
        }
        let bytes = read_file(vfs, &path)?;
        let (state, end) = replay(&path, number, &bytes, partition_bits)?;
        Ok(Some(Recovered { state, number, torn_bytes: bytes.len() as u64 - end }))
    }

    /// Writes manifest `number` with a snapshot of `state`; it is not in use before
    /// [`install`](Self::install).
    ///
    /// # Errors
    /// `Io`. The store is as it was, but for a file that the next open removes.
    pub fn create(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        number: u64,
        state: &VersionState,
    ) -> Result<Self> {
        let path = dir.join(name(number));
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(!FORMAT_VERSION).to_le_bytes());
        bytes.extend_from_slice(&frame(number, HEADER_BYTES as u64, &state.snapshot()));
        let file = vfs.create(&path).map_err(Error::io("create", &path))?;
        file.write_at(0, &bytes).map_err(Error::io("write", &path))?;
        file.sync_data().map_err(Error::io("sync", &path))?;
        vfs.sync_dir(dir).map_err(Error::io("sync", dir))?;
        let len = bytes.len() as u64;
        let rewrite_len = REWRITE_BYTES.max(len * REWRITE_RATIO);
        let dir = dir.to_path_buf();
        Ok(Self { vfs, dir, path, number, file, len, rewrite_len, poison: None })
    }

    /// Makes it the manifest in use.
    ///
    /// # Errors
    /// `Io`. Which manifest a later open will read is then unknown.
    pub fn install(&self) -> Result<()> {
        let (temp, current) = (self.dir.join(CURRENT_TEMP), self.dir.join(CURRENT));
        if self.vfs.exists(&temp).map_err(Error::io("look for", &temp))? {
            self.vfs.remove(&temp).map_err(Error::io("remove", &temp))?;
        }
        let file = self.vfs.create(&temp).map_err(Error::io("create", &temp))?;
        let line = current_line(self.number);
        file.write_at(0, line.as_bytes()).map_err(Error::io("write", &temp))?;
        file.sync_data().map_err(Error::io("sync", &temp))?;
        self.vfs.rename(&temp, &current).map_err(Error::io("rename", &temp))?;
        self.vfs.sync_dir(&self.dir).map_err(Error::io("sync", &self.dir))
    }

    /// Appends `edit` and syncs it. It is not judged here.
    ///
    /// # Errors
    /// `Io` if writing or syncing failed, and `Poisoned` for ever after.
    pub fn append(&mut self, edit: &VersionEdit) -> Result<()> {
        self.check()?;
        let bytes = frame(self.number, self.len, edit);
        let written = self.file.write_at(self.len, &bytes).map_err(Error::io("write", &self.path));
        let synced =
            written.and_then(|()| self.file.sync_data().map_err(Error::io("sync", &self.path)));
        match synced {
            Ok(()) => {
                self.len += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                self.poison(&error);
                Err(error)
            }
        }
    }

    /// Fails if an earlier write or sync did.
    pub fn check(&self) -> Result<()> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
        }
    }

    /// Refuses every edit from now on, because of `cause`.
    pub fn poison(&mut self, cause: &Error) {
        self.poison.get_or_insert_with(|| cause.to_string());
    }

    /// Whether it has grown so that a snapshot is better.
    pub fn rewrite_due(&self) -> bool {
        self.len > self.rewrite_len
    }

    /// Puts the rewrite off until it has doubled: the attempt failed.
    pub fn put_rewrite_off(&mut self) {
        self.rewrite_len = self.len * 2;
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.len
    }
}

/// The number of a manifest, by its file name.
pub(super) fn number_of(path: &Path) -> Option<u64> {
    parse_number(path.file_name()?.to_str()?)
}

/// The file of manifest `number`.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(name(number))
}

fn name(number: u64) -> String {
    format!("{NAME_PREFIX}{number:010}")
}

fn parse_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(NAME_PREFIX)?;
    if digits.len() < 10 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

fn current_line(number: u64) -> String {
    let name = name(number);
    format!("{name} {:08x}\n", crc32fast::hash(name.as_bytes()))
}

fn parse_current(line: &[u8]) -> Option<u64> {
    let (name, _) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let number = parse_number(name)?;
    (current_line(number).as_bytes() == line).then_some(number)
}

fn read_file(vfs: &dyn Vfs, path: &Path) -> Result<Vec<u8>> {
    let file = vfs.open(path).map_err(Error::io("open", path))?;
    let len = file.len().map_err(Error::io("measure", path))?;
    let mut bytes = vec![0; len as usize];
    let read = file.read_at(0, &mut bytes).map_err(Error::io("read", path))?;
    bytes.truncate(read);
    Ok(bytes)
}

fn frame(number: u64, offset: u64, edit: &VersionEdit) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_HEADER_BYTES];
    edit.encode(&mut bytes);
    let edit_bytes = &bytes[FRAME_HEADER_BYTES..];
    let len = u32::try_from(edit_bytes.len()).expect("a snapshot is far smaller than 4 GiB");
    let edit_crc = checksum(number, offset, edit_bytes);
    let len = len.to_le_bytes();
    bytes[..4].copy_from_slice(&len);
    bytes[4..8].copy_from_slice(&checksum(number, offset, &len).to_le_bytes());
    bytes[8..12].copy_from_slice(&edit_crc.to_le_bytes());
    bytes
}

/// The edit of the frame at `offset`, or what is wrong with it.
fn frame_at(number: u64, bytes: &[u8], offset: usize) -> Result<&[u8], &'static str> {
    let Some(header) = bytes[offset..].first_chunk::<FRAME_HEADER_BYTES>() else {
        return Err("the file ends inside a frame header");
    };
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    if checksum(number, offset as u64, &header[..4]) != word(4) {
        return Err("the checksum of a frame header is wrong");
    }
    let start = offset + FRAME_HEADER_BYTES;
    let Some(edit) = bytes[start..].get(..word(0) as usize) else {
        return Err("the file ends inside an edit");
    };
    if checksum(number, offset as u64, edit) != word(8) {
        return Err("the checksum of an edit is wrong");
    }
    Ok(edit)
}

fn check_header(path: &Path, bytes: &[u8]) -> Result<()> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(Error::corrupt(path, 0, "the file ends inside its header"));
    };
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    let inverted = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    if header[..8] != MAGIC || version != !inverted || version == 0 {
        return Err(Error::corrupt(path, 0, "this is not the header of a manifest"));
    }
    if version > FORMAT_VERSION {
        let (file, supported) = (path.to_path_buf(), FORMAT_VERSION);
        return Err(Error::FormatTooNew { file, found: version, supported });
    }
    Ok(())
}

/// The state after the last whole edit, and where that one ends.
fn replay(
    path: &Path,
    number: u64,
    bytes: &[u8],
    partition_bits: u32,
) -> Result<(VersionState, u64)> {
    check_header(path, bytes)?;
    let mut state = None;
    let mut offset = HEADER_BYTES;
    while offset < bytes.len() || state.is_none() {
        let edit = match frame_at(number, bytes, offset) {
            Ok(edit) => edit,
            Err(what) => {
                let torn = state.is_some()
                    && !(offset + 1..bytes.len()).any(|at| frame_at(number, bytes, at).is_ok());
                if torn {
                    break;
                }
                return Err(Error::corrupt(path, offset as u64, what));
            }
        };
        state = Some(replay_edit(path, offset as u64, edit, state, partition_bits)?);
        offset += FRAME_HEADER_BYTES + edit.len();
    }
    let state = state.expect("the loop ends only after the first edit");
    Ok((state, offset as u64))
}

fn replay_edit(
    path: &Path,
    offset: u64,
    edit: &[u8],
    state: Option<VersionState>,
    partition_bits: u32,
) -> Result<VersionState> {
    let corrupt = |what: String| Error::corrupt(path, offset, what);
    let edit = VersionEdit::decode(edit).map_err(|error| corrupt(error.to_string()))?;
    if edit.snapshot.is_some() != state.is_none() {
        return Err(corrupt("a snapshot is missing or not the first edit".into()));
    }
    let before = state.unwrap_or_else(|| VersionState::new(partition_bits));
    before.apply(&edit).map_err(|error| match error {
        EditError::PartitionBits { .. } => Error::Edit(error),
        error => corrupt(error.to_string()),
    })
}
