//! Recovery: finds where the log ends and replays it up to there.
//!
//! The log ends at the first position that holds no whole frame and from which no later segment
//! goes on. A segment goes on from there if its header names no later end of the one before: a
//! later end means that frames in between are missing, an earlier one (zero) that the segment began
//! a new log after a recovery that ended here too.
//!
//! Whether the end is the torn tail of a crash or damage is told by what lies beyond: a frame there
//! whose `durable_upto` is greater proves that the missing bytes had been synced. Nothing is
//! changed on disk, so a second recovery finds the same.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::Records;
use super::{frame, segment};
use crate::engine::Position;
use crate::engine::error::{Error, Result};
use crate::engine::vfs::{File, Vfs};

/// What a recovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Where the valid log ends.
    pub end: Position,
    /// Highest number of a segment in the directory; 0 if there is none.
    pub last_segment_number: u32,
    /// File and offset from which on bytes of the log were found that are not replayed.
    pub cut: Option<(PathBuf, u64)>,
    /// Bytes that were durable are not there, and that was accepted.
    pub is_lossy: bool,
    /// Records replayed.
    pub records: u64,
    /// Bytes of the frames they stood in.
    pub bytes: u64,
}

/// Takes a replayed record: where its frame begins, key, row. A recovery may begin there.
pub type Apply<'a> = dyn FnMut(Position, &[u8], &[u8]) -> Result<()> + 'a;

/// Replays the log in `directory` from exactly `from` (a position that
/// [`LogGuard::close_frame`](super::LogGuard::close_frame) returned, or zero) in the order it was
/// appended. `from` may lie beyond the end, and its segment may be gone: then nothing is older.
///
/// The caller flushes what was replayed, and says so in its manifest, before it begins a new log
/// and removes the old segments; those below the frame of a record it may remove before.
///
/// # Errors
/// `Corruption` when bytes that were durable are not there, unless `accept_corruption`, which makes
/// that the end of the log; `FormatTooNew`; `Io`; and what `apply` returns.
pub fn recover<'a>(
    vfs: &dyn Vfs,
    directory: &Path,
    from: Position,
    accept_corruption: bool,
    apply: &'a mut Apply<'a>,
) -> Result<Recovered> {
    let mut numbers = segment::list_logs(vfs, directory)?;
    let last_segment_number = numbers.last().copied().unwrap_or(0);
    numbers.retain(|number| *number >= from.segment());

    let mut replay = Replay { position: from, records: 0, bytes: 0, malformed: false, apply };
    for number in &numbers {
        let mut segment = SegmentReader::open(vfs, directory, *number)?;
        if segment.continues(replay.position)? && !replay.malformed {
            replay.segment(&mut segment)?;
        }
    }
    let Replay { position: end, records, bytes, malformed, .. } = replay;
    let later = Later::scan(vfs, directory, &numbers, end)?;
    let path = segment::log_path(directory, end.segment());
    let is_lossy = malformed || later.durable_upto > end;
    if is_lossy && !accept_corruption {
        let what = match malformed {
            true => "a frame with a valid checksum does not divide into records".to_owned(),
            false => format!(
                "no whole frame, but a later one says that the log was durable up to {}",
                later.durable_upto
            ),
        };
        return Err(Error::corrupt(&path, end.offset().into(), what));
    }
    let cut = later.is_log.then_some((path, end.offset().into()));
    Ok(Recovered { end, last_segment_number, cut, is_lossy, records, bytes })
}

/// The state of a replay between segments.
struct Replay<'a> {
    position: Position,
    records: u64,
    bytes: u64,
    malformed: bool,
    apply: &'a mut Apply<'a>,
}

impl Replay<'_> {
    /// Replays the frames of a segment, up to the first bytes that are no frame.
    fn segment(&mut self, segment: &mut SegmentReader) -> Result<()> {
        let start = Position::new(segment.number, segment::HEADER_BYTES as u32);
        self.position = self.position.max(start);
        while let Some((header, body)) = segment.frame(self.position)? {
            // All of it, or nothing.
            self.malformed = !frame::is_whole(body);
            if self.malformed {
                break;
            }
            let mut records = Records::new(body);
            while let Ok(Some((key, row))) = records.next() {
                (self.apply)(self.position, key, row)?;
                self.records += 1;
            }
            self.bytes += header.frame_bytes() as u64;
            let offset = self.position.offset() + header.frame_bytes() as u32;
            self.position = Position::new(segment.number, offset);
        }
        Ok(())
    }
}

/// What lies beyond the end of the log.
#[derive(Default)]
struct Later {
    /// Bytes of the log, whole frames or not.
    is_log: bool,
    /// The greatest that a whole frame names.
    durable_upto: Position,
}

impl Later {
    fn scan(vfs: &dyn Vfs, directory: &Path, numbers: &[u32], end: Position) -> Result<Self> {
        let mut later = Self::default();
        for number in numbers.iter().filter(|number| **number >= end.segment()) {
            let mut segment = SegmentReader::open(vfs, directory, *number)?;
            let has_header = segment.header()?.is_some();
            let start = match *number == end.segment() {
                true => end.offset(),
                false => {
                    later.is_log |= has_header;
                    0
                }
            };
            later.scan_segment(&mut segment, start)?;
        }
        Ok(later)
    }

    fn scan_segment(&mut self, segment: &mut SegmentReader, start: u32) -> Result<()> {
        let mut offset = u64::from(start);
        while let Some(marked) = segment.next_marked(offset)? {
            let position = Position::new(segment.number, marked as u32);
            offset = marked + 1;
            if segment.frame_header(position)?.is_none() {
                continue;
            }
            self.is_log = true;
            if let Some((header, _)) = segment.frame(position)? {
                self.durable_upto = self.durable_upto.max(header.durable_upto);
                offset = marked + header.frame_bytes() as u64;
            }
        }
        Ok(())
    }
}

/// Marks of frames are looked for in pieces of this size.
const PIECE_BYTES: u64 = 4 << 10;

/// Reads a segment through a window, so that memory is bounded by the largest frame.
struct SegmentReader {
    path: PathBuf,
    number: u32,
    file: Arc<dyn File>,
    len: u64,
    window: Vec<u8>,
    window_start: u64,
}

impl SegmentReader {
    const WINDOW_BYTES: usize = 1 << 20;

    fn open(vfs: &dyn Vfs, directory: &Path, number: u32) -> Result<Self> {
        let path = segment::log_path(directory, number);
        let file = vfs.open(&path).map_err(Error::io("open", &path))?;
        let len = file.len().map_err(Error::io("read the length of", &path))?;
        Ok(Self { path, number, file, len, window: Vec::new(), window_start: 0 })
    }

    /// The segment's header, if it is this segment's.
    fn header(&mut self) -> Result<Option<segment::Header>> {
        let Some(bytes) = self.array(0)? else { return Ok(None) };
        let header = segment::Header::decode(&bytes, &self.path)?;
        Ok(header.filter(|header| header.number == self.number))
    }

    /// Whether the log that reached `end` goes on in this segment.
    fn continues(&mut self, end: Position) -> Result<bool> {
        let header = self.header()?;
        Ok(header.is_some_and(|header| self.number == end.segment() || header.previous_end <= end))
    }

    /// The first offset from `offset` on at which the mark of a frame stands.
    fn next_marked(&mut self, mut offset: u64) -> Result<Option<u64>> {
        while offset < self.len {
            // Pieces overlap, so that a mark lies in one of them.
            let len = (PIECE_BYTES + frame::MARK_BYTES as u64 - 1).min(self.len - offset);
            let first = Position::new(self.number, offset as u32);
            let Some(piece) = self.bytes(offset, len as usize)? else { return Ok(None) };
            // Most of what lies behind the end of a log is zeros, and no mark begins with one.
            let is_zero =
                piece.chunks(64).all(|part| part.iter().fold(0, |or, byte| or | byte) == 0);
            if !is_zero && let Some(at) = frame::find_mark(piece, first) {
                return Ok(Some(offset + at as u64));
            }
            offset += PIECE_BYTES;
        }
        Ok(None)
    }

    /// What looks like the header of a frame; its checksum may still be wrong.
    fn frame_header(&mut self, position: Position) -> Result<Option<frame::Header>> {
        let (len, offset) = (self.len, u64::from(position.offset()));
        let longest = (frame::HEADER_BYTES_MAX as u64).min(len.saturating_sub(offset));
        let bytes = self.bytes(offset, longest as usize)?;
        Ok(bytes.and_then(|bytes| frame::Header::parse(bytes, position, len)))
    }

    /// The whole frame at `position`: its header and its body.
    fn frame(&mut self, position: Position) -> Result<Option<(frame::Header, &[u8])>> {
        let Some(header) = self.frame_header(position)? else { return Ok(None) };
        let bytes = self.bytes(position.offset().into(), header.frame_bytes())?;
        let whole = bytes.filter(|bytes| frame::verify(bytes, position));
        Ok(whole.map(|bytes| (header, &bytes[header.header_bytes..])))
    }

    fn array<const N: usize>(&mut self, offset: u64) -> Result<Option<[u8; N]>> {
        Ok(self.bytes(offset, N)?.and_then(|bytes| bytes.try_into().ok()))
    }

    /// `len` bytes at `offset`; `None` if the file ends before.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Option<&[u8]>> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let window_end = self.window_start + self.window.len() as u64;
        if offset < self.window_start || offset + len as u64 > window_end {
            let wanted = len.max(Self::WINDOW_BYTES).min((self.len - offset) as usize);
            self.window.resize(wanted, 0);
            let read = self.file.read_at(offset, &mut self.window);
            let read = read.map_err(Error::io("read", &self.path))?;
            self.window.truncate(read);
            self.window_start = offset;
        }
        let start = (offset - self.window_start) as usize;
        Ok(self.window.get(start..start + len))
    }
}
