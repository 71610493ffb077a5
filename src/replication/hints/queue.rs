//! The hints for one node, in segments.
//!
//! 1. What [`Queue::append`] has returned from survives a crash; what a crash tears is not read.
//! 2. A segment found at the start is never appended to. It is read until its first bad frame; what
//!    is behind that is lost, and counted as dropped by its bytes. One that cannot be read now is
//!    not bad: it stays.
//! 3. What was delivered is forgotten with its segment; after a crash part of it is delivered
//!    again, which changes nothing.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frame::{self, FRAME_HEADER_BYTES, HEADER_BYTES, Hint};
use crate::cluster::NodeId;
use crate::engine::vfs::{File, Vfs};

const SUFFIX: &str = ".hints";

/// See the module page.
#[derive(Debug)]
pub struct Queue {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    target: NodeId,
    segments: VecDeque<Segment>,
    number_next: u64,
    bytes: u64,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    path: PathBuf,
    file: Arc<dyn File>,
    /// Where the next frame goes, or where a found segment ends.
    end: u64,
    /// What is before it was delivered.
    read: u64,
    /// Written by this process, so far without an error.
    is_open: bool,
    newest_ms: u64,
    /// Not delivered yet; of a segment found at the start it is only known that there are some.
    rows: u64,
}

/// Hints from the head of a queue.
#[derive(Debug, Default)]
pub struct Batch {
    /// In the order they were kept.
    pub(super) hints: Vec<Hint>,
    segment: u64,
    end: u64,
}

impl Queue {
    /// An empty queue.
    pub fn new(vfs: &Arc<dyn Vfs>, dir: &Path, target: NodeId) -> Self {
        Self {
            vfs: Arc::clone(vfs),
            dir: dir.to_path_buf(),
            target,
            segments: VecDeque::new(),
            number_next: 1,
            bytes: 0,
        }
    }

    /// Whose segment a file is, and which, by its name.
    pub fn parse(name: &Path) -> Option<(NodeId, u64)> {
        let name = name.to_str()?.strip_suffix(SUFFIX)?;
        let (target, number) = name.rsplit_once('-')?;
        Some((target.parse().ok()?, number.parse().ok()?))
    }

    /// Takes a segment found at the start. To be called in the order of the numbers.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn found(&mut self, number: u64, now_ms: u64) -> io::Result<()> {
        let path = self.path(number);
        let file = self.vfs.open(&path)?;
        let end = file.len()?;
        self.number_next = number + 1;
        let mut header = vec![0; HEADER_BYTES as usize];
        let is_whole = file.read_at(0, &mut header)? == header.len();
        if !is_whole || header != frame::header(self.target, number) {
            return self.vfs.remove(&path);
        }
        self.bytes += end;
        let read = HEADER_BYTES;
        self.segments.push_back(Segment {
            number,
            path,
            file,
            end,
            read,
            is_open: false,
            newest_ms: now_ms,
            rows: 1,
        });
        Ok(())
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows to deliver, as far as they were counted.
    pub fn rows(&self) -> u64 {
        self.segments.iter().map(|segment| segment.rows).sum()
    }

    /// Whether there is nothing to deliver.
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Adds hints, durably.
    ///
    /// # Errors
    /// They are not kept, or only some of them.
    pub fn append(&mut self, hints: &[Hint], segment_bytes: u64) -> io::Result<()> {
        let is_open = |segment: &Segment| segment.is_open && segment.end < segment_bytes;
        if !self.segments.back().is_some_and(is_open) {
            self.begin_segment()?;
        }
        let Some(segment) = self.segments.back_mut() else { return Ok(()) };
        let mut bytes = Vec::new();
        for hint in hints {
            let offset = segment.end + bytes.len() as u64;
            frame::append(hint, segment.number, offset, &mut bytes);
        }
        let written = segment.file.write_at(segment.end, &bytes);
        if let Err(error) = written.and_then(|()| segment.file.sync_data()) {
            // Its end is not known any more.
            segment.is_open = false;
            return Err(error);
        }
        segment.end += bytes.len() as u64;
        let newest_ms = hints.iter().map(|hint| hint.created_ms).max().unwrap_or_default();
        segment.newest_ms = segment.newest_ms.max(newest_ms);
        segment.rows += hints.len() as u64;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn begin_segment(&mut self) -> io::Result<()> {
        let number = self.number_next;
        self.number_next += 1;
        let path = self.path(number);
        let file = self.vfs.create(&path)?;
        let written = file.write_at(0, &frame::header(self.target, number));
        if let Err(error) = written.and_then(|()| self.vfs.sync_dir(&self.dir)) {
            // In no queue nobody counts it. If it cannot be removed the next start does.
            let _ = self.vfs.remove(&path);
            return Err(error);
        }
        self.bytes += HEADER_BYTES;
        self.segments.push_back(Segment {
            number,
            path,
            file,
            end: HEADER_BYTES,
            read: HEADER_BYTES,
            is_open: true,
            newest_ms: 0,
            rows: 0,
        });
        Ok(())
    }

    /// The oldest hints, about `bytes_max` of them but at least one; none if there are none. They
    /// stay until [`Queue::delivered`]. Also tells the bytes that were lost on the way. An error:
    /// they cannot be read now.
    pub fn head(&mut self, bytes_max: u64) -> (io::Result<Batch>, u64) {
        let mut lost = 0;
        loop {
            let Some(segment) = self.segments.front() else { return (Ok(Batch::default()), lost) };
            let mut batch =
                Batch { segment: segment.number, end: segment.read, ..Batch::default() };
            while batch.end < segment.end
                && (batch.hints.is_empty() || batch.end - segment.read < bytes_max)
            {
                match segment.hint_at(batch.end) {
                    Ok(Some((hint, bytes))) => {
                        batch.hints.push(hint);
                        batch.end += bytes;
                    }
                    Ok(None) => break,
                    Err(error) if batch.hints.is_empty() => return (Err(error), lost),
                    Err(_) => break,
                }
            }
            if !batch.hints.is_empty() {
                return (Ok(batch), lost);
            }
            lost += segment.end - segment.read;
            self.drop_first();
        }
    }

    /// Forgets a batch.
    pub fn delivered(&mut self, batch: &Batch) {
        let Some(segment) = self.segments.front_mut() else { return };
        if segment.number == batch.segment {
            segment.read = segment.read.max(batch.end);
            segment.rows = segment.rows.saturating_sub(batch.hints.len() as u64).max(1);
            if segment.read >= segment.end {
                self.drop_first();
            }
        }
    }

    /// Drops segments with nothing newer than `oldest_ms`; the bytes that went.
    pub fn expire(&mut self, oldest_ms: u64) -> u64 {
        let mut dropped = 0;
        while let Some(segment) = self.segments.front()
            && segment.newest_ms < oldest_ms
        {
            dropped += segment.end - segment.read;
            self.drop_first();
        }
        dropped
    }

    fn drop_first(&mut self) {
        let Some(segment) = self.segments.pop_front() else { return };
        self.bytes = self.bytes.saturating_sub(segment.end);
        // One that stays is delivered again after the next start.
        let _ = self.vfs.remove(&segment.path);
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{}-{number:010}{SUFFIX}", self.target))
    }
}

impl Segment {
    /// The hint in the frame at `offset`, and the bytes of the frame; `None`: it is no whole frame.
    fn hint_at(&self, offset: u64) -> io::Result<Option<(Hint, u64)>> {
        let mut header = [0; FRAME_HEADER_BYTES];
        if self.file.read_at(offset, &mut header)? < header.len() {
            return Ok(None);
        }
        let Some(body) = frame::body_length(header) else { return Ok(None) };
        let bytes = FRAME_HEADER_BYTES + body;
        if offset + bytes as u64 > self.end {
            return Ok(None);
        }
        let mut frame = vec![0; bytes];
        if self.file.read_at(offset, &mut frame)? < bytes {
            return Ok(None);
        }
        let hint = frame::decode(&frame, self.number, offset);
        Ok(hint.map(|hint| (hint, bytes as u64)))
    }
}
