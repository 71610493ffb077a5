//! The file that keeps what the consensus group must not forget: `raft/LOG`.
//!
//! ```text
//! header, 16 bytes                       frames, one after the other
//! | at | bytes | what                    | at | bytes | what
//! |  0 |  8    | magic `PDBRAFT` LF      |  0 |  4    | CRC-32 of the frame's offset in the file
//! |  8 |  4    | format version, 1       |    |       | (u64) and of the rest of the frame
//! | 12 |  4    | CRC-32 of bytes 0 to 11 |  4 |  4    | bytes of the body (n)
//!                                        |  8 |  1    | kind: 1 vote, 2 committed, 3 entries,
//!                                        |    |       | 4 purged
//!                                        |  9 |  n    | body, JSON
//! ```
//!
//! Integers are little endian. What the kinds mean is `log_store`'s.
//!
//! 1. A frame is written by one call and synced before the next is written: after a crash only the
//!    last one may be torn. A bad end is cut; a bad frame before a good one is corruption.
//! 2. [`LogFile::rewrite`] puts a new file in the place of the old one as a whole: written beside
//!    it, synced, renamed, directory synced.
//! 3. After an error nothing is written any more: what a failed write or sync left is not known,
//!    and syncing again proves nothing.
//!
//! It works inline: the file has a few hundred kilobytes, and is written when the layout changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine;
use crate::engine::vfs::{File, Vfs};
use crate::store::document::{read_file, replace_file};
use crate::store::error::{Error, Result};

const MAGIC: [u8; 8] = *b"PDBRAFT\n";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 16;
const FRAME_HEADER_BYTES: usize = 9;
const KIND_MAX: u8 = 4;
/// Longer is damage: keeps a broken length from taking all memory.
const LOG_BYTES_MAX: u64 = 1 << 30;

/// A frame of the log: its kind and its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: u8,
    pub(super) body: Vec<u8>,
}

/// The open file.
#[derive(Debug)]
pub(super) struct LogFile {
    // Constant after open.
    vfs: Arc<dyn Vfs>,
    path: PathBuf,
    // Replaced by a rewrite.
    file: Arc<dyn File>,
    len: u64,
    len_rewritten: u64,
    /// Why nothing is written any more.
    refused: Option<Error>,
}

impl LogFile {
    /// Opens the log in `dir`, which exists; begins one if there is none. Gives what stands in it.
    pub(super) fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<(Self, Vec<Frame>)> {
        let path = dir.join("LOG");
        let (frames, whole) = match read_file(&*vfs, &path, LOG_BYTES_MAX)? {
            Some(bytes) => decode(&path, &bytes)?,
            None => (Vec::new(), false),
        };
        if !whole {
            replace_file(&*vfs, &path, &encode(&frames))?;
        }
        let file = vfs.open(&path).map_err(engine::Error::io("open", &path))?;
        let len = file.len().map_err(engine::Error::io("read", &path))?;
        Ok((Self { vfs, path, file, len, len_rewritten: len, refused: None }, frames))
    }

    /// Adds a frame, durable when it returns.
    pub(super) fn append(&mut self, frame: &Frame) -> Result<()> {
        self.check()?;
        let mut bytes = Vec::with_capacity(FRAME_HEADER_BYTES + frame.body.len());
        push_frame(&mut bytes, self.len, frame);
        let written = self
            .file
            .write_at(self.len, &bytes)
            .map_err(engine::Error::io("write", &self.path))
            .and_then(|()| self.file.sync_data().map_err(engine::Error::io("sync", &self.path)));
        if let Err(error) = written {
            return Err(self.refuse(Error::unknown(error)));
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Puts `frames` in the place of all there are, durable when it returns.
    pub(super) fn rewrite(&mut self, frames: &[Frame]) -> Result<()> {
        self.check()?;
        let bytes = encode(frames);
        let replaced = replace_file(&*self.vfs, &self.path, &bytes).and_then(|()| {
            Ok(self.vfs.open(&self.path).map_err(engine::Error::io("open", &self.path))?)
        });
        match replaced {
            Ok(file) => self.file = file,
            Err(error) => return Err(self.refuse(error)),
        }
        self.len = bytes.len() as u64;
        self.len_rewritten = self.len;
        Ok(())
    }

    /// Whether most of the file is what later frames have overtaken.
    pub(super) fn is_overgrown(&self) -> bool {
        const SLACK_BYTES: u64 = 1 << 20;
        self.len > 2 * self.len_rewritten + SLACK_BYTES
    }

    fn check(&self) -> Result<()> {
        self.refused.clone().map_or(Ok(()), Err)
    }

    fn refuse(&mut self, error: Error) -> Error {
        self.refused = Some(Error::ReadOnly { cause: error.to_string() });
        error
    }
}

fn encode(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    for frame in frames {
        let offset = bytes.len() as u64;
        push_frame(&mut bytes, offset, frame);
    }
    bytes
}

fn push_frame(bytes: &mut Vec<u8>, offset: u64, frame: &Frame) {
    let len = u32::try_from(frame.body.len()).expect("a body is bounded by the size of a command");
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.push(frame.kind);
    bytes.extend_from_slice(&frame.body);
    let crc = frame_crc(offset, &bytes[start + 4..]);
    bytes[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

fn frame_crc(offset: u64, rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&offset.to_le_bytes());
    hasher.update(rest);
    hasher.finalize()
}

/// The frames of a file, and whether it ends with the last of them.
fn decode(path: &Path, bytes: &[u8]) -> Result<(Vec<Frame>, bool)> {
    check_header(path, bytes)?;
    let mut frames = Vec::new();
    let mut at = HEADER_BYTES;
    while at < bytes.len() {
        let Some(frame) = frame_at(bytes, at) else {
            // Whatever stands behind a torn frame was never synced, so it was never written.
            if let Some(good) =
                (at + 1..bytes.len()).find(|later| frame_at(bytes, *later).is_some())
            {
                let what = format!("a bad frame stands before a good one at {good}");
                return Err(engine::Error::corrupt(path, at as u64, what).into());
            }
            return Ok((frames, false));
        };
        at += FRAME_HEADER_BYTES + frame.body.len();
        frames.push(frame);
    }
    Ok((frames, true))
}

fn check_header(path: &Path, bytes: &[u8]) -> Result<()> {
    let corrupt = |what: &str| engine::Error::corrupt(path, 0, what);
    // The file got its name when it was whole, so a short one is damage too.
    let header = bytes.get(..HEADER_BYTES).ok_or_else(|| corrupt("it is shorter than a header"))?;
    if header[..8] != MAGIC {
        return Err(corrupt("it does not begin like a log of the consensus group").into());
    }
    if u32_at(header, 12) != crc32fast::hash(&header[..12]) {
        return Err(corrupt("the checksum of its header does not match").into());
    }
    match u32_at(header, 8) {
        0 => Err(corrupt("it has format 0").into()),
        FORMAT => Ok(()),
        found => Err(Error::FormatTooNew { file: path.to_path_buf(), found, supported: FORMAT }),
    }
}

/// The frame at `at`, if there is a whole one.
fn frame_at(bytes: &[u8], at: usize) -> Option<Frame> {
    let header = bytes.get(at..at.checked_add(FRAME_HEADER_BYTES)?)?;
    let kind = header[8];
    if !(1..=KIND_MAX).contains(&kind) {
        return None;
    }
    let len = u32_at(header, 4) as usize;
    let rest = bytes[at + 4..].get(..FRAME_HEADER_BYTES - 4 + len)?;
    if u32_at(header, 0) != frame_crc(at as u64, rest) {
        return None;
    }
    Some(Frame { kind, body: rest[FRAME_HEADER_BYTES - 4..].to_vec() })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::engine::vfs::mem::MemVfs;

    use super::*;

    fn frame(kind: u8, body: &str) -> Frame {
        Frame { kind, body: body.as_bytes().to_vec() }
    }

    fn three() -> Vec<Frame> {
        vec![frame(1, "one"), frame(3, "two, a longer one"), frame(2, "")]
    }

    fn path() -> &'static Path {
        Path::new("/LOG")
    }

    /// The first bytes of the file are a format: a future version must tell ours from damage.
    #[test]
    fn a_log_of_the_group_looks_like_this() {
        let bytes = encode(&[frame(1, "{}")]);
        assert_eq!(&bytes[..12], b"PDBRAFT\n\x01\0\0\0");
        assert_eq!(bytes[12..16], 0x402b_ff76_u32.to_le_bytes());
        assert_eq!(bytes[16..20], 0xe793_4a0a_u32.to_le_bytes());
        assert_eq!(&bytes[20..], b"\x02\0\0\0\x01{}");
    }

    #[test]
    fn what_was_appended_or_rewritten_is_there_after_opening_again() {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let open = || LogFile::open(Arc::clone(&vfs), Path::new("/")).unwrap();
        let (mut log, frames) = open();
        assert_eq!(frames, []);
        for frame in three() {
            log.append(&frame).unwrap();
        }
        assert_eq!(open().1, three());
        log.rewrite(&three()[1..]).unwrap();
        log.append(&frame(4, "four")).unwrap();
        assert_eq!(open().1, [&three()[1..], &[frame(4, "four")]].concat());
    }

    #[test]
    fn a_newer_log_is_refused_by_its_version() {
        let mut bytes = encode(&[]);
        bytes[8] = 2;
        let crc = crc32fast::hash(&bytes[..12]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let error = decode(path(), &bytes).unwrap_err();
        assert!(matches!(error, Error::FormatTooNew { found: 2, supported: 1, .. }), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// A vote that rotted away must not read as one that was never given.
        #[test]
        fn a_flipped_bit_before_the_last_frame_is_corruption(
            at in any::<usize>(),
            bit in 0..8_u32,
        ) {
            let frames = three();
            let mut bytes = encode(&frames);
            let last = FRAME_HEADER_BYTES + frames[2].body.len();
            let at = at % (bytes.len() - last);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(decode(path(), &bytes).unwrap_err().reason(), "CORRUPTION");
        }

        #[test]
        fn a_cut_file_gives_the_whole_frames_before_the_cut(at in any::<usize>()) {
            let frames = three();
            let bytes = encode(&frames);
            let at = HEADER_BYTES + at % (bytes.len() - HEADER_BYTES);
            let (found, whole) = decode(path(), &bytes[..at]).unwrap();
            prop_assert_eq!(&found[..], &frames[..found.len()]);
            prop_assert_eq!(whole, encode(&found).len() == at);
        }

        #[test]
        fn garbage_is_an_error_or_cut_and_no_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            prop_assert!(decode(path(), &bytes).is_err());
            let file = [encode(&three()), bytes.clone()].concat();
            let (found, whole) = decode(path(), &file).unwrap();
            prop_assert_eq!((found, whole), (three(), bytes.is_empty()));
        }
    }
}
