//! The buffer that collects what goes to disk next, and the place in the log where it will stand.
//!
//! It does no I/O. Positions are given out here, before anything is written, so every decision that
//! depends on them (where frames begin, when a segment is full) is made here too, under the log
//! mutex; checksums are left to whoever writes, outside it.
//!
//! Invariants:
//! 1. the bytes of a group are the bytes of the log from the end of the group before to
//!    [`Tail::position`], without a gap, cut into runs where the segment changes;
//! 2. an append is inside one frame, a frame inside one segment;
//! 3. in steady state nothing is allocated: two groups are swapped and keep their capacity.

use super::{frame, segment};
use crate::engine::Position;
use crate::engine::error::Result;

/// Bytes on their way to disk.
#[derive(Debug, Default)]
pub(super) struct Group {
    bytes: Vec<u8>,
    frames: Vec<Frame>,
    runs: Vec<Run>,
    records: u64,
}

/// A frame in the buffer.
#[derive(Clone, Copy, Debug)]
struct Frame {
    start: usize,
    body_bytes: usize,
    position: Position,
}

/// Consecutive bytes of one segment, up to the start of the next run.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: usize,
    position: Position,
}

impl Group {
    pub(super) fn frames(&self) -> u64 {
        self.frames.len() as u64
    }

    pub(super) fn records(&self) -> u64 {
        self.records
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Completes the headers of all frames.
    pub(super) fn seal(&mut self, durable: Position) {
        for Frame { start, body_bytes, position } in &self.frames {
            let end = start + frame::aligned(frame::HEADER_BYTES + body_bytes);
            frame::seal(&mut self.bytes[*start..end], *body_bytes, *position, durable);
        }
    }

    /// What to write where, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = (Position, &[u8])> {
        let ends = self.runs.iter().skip(1).map(|run| run.start);
        let ends = ends.chain(std::iter::once(self.bytes.len()));
        self.runs.iter().zip(ends).map(|(run, end)| (run.position, &self.bytes[run.start..end]))
    }

    /// Empties the group and gives back memory beyond `capacity_max`, which one large append took.
    pub(super) fn clear(&mut self, capacity_max: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(capacity_max);
        self.frames.clear();
        self.runs.clear();
        self.records = 0;
    }
}

/// The end of the log: what waits to be written, and where the next append goes.
#[derive(Debug)]
pub(super) struct Tail {
    group: Group,
    position: Position,
    frame_open: bool,
    segment_bytes: usize,
    next_number: u32,
}

impl Tail {
    /// A log that begins with segment `first`; its header is the first thing to be written.
    pub(super) fn new(first: u32, segment_bytes: usize) -> Result<Self> {
        let mut tail = Self {
            group: Group::default(),
            position: Position::ZERO,
            frame_open: false,
            segment_bytes,
            next_number: first,
        };
        tail.begin_segment()?;
        Ok(tail)
    }

    /// End of the log, what waits included.
    pub(super) fn position(&self) -> Position {
        self.position
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.group.bytes.len()
    }

    /// Takes a segment number that no other segment will have.
    fn reserve_number(&mut self) -> Result<u32> {
        let number = self.next_number;
        self.next_number = segment::following(number)?;
        Ok(number)
    }

    /// Appends `records`, which take `body_bytes` and fit into a segment. The end of the append.
    pub(super) fn append(
        &mut self,
        records: &[(&[u8], &[u8])],
        body_bytes: usize,
    ) -> Result<Position> {
        let header = if self.frame_open { 0 } else { frame::HEADER_BYTES };
        let end = frame::aligned(self.position.offset() as usize + header + body_bytes);
        if end > self.segment_bytes {
            self.close_frame();
            self.begin_segment()?;
        }
        if !self.frame_open {
            self.open_frame();
        }
        self.group.bytes.reserve(body_bytes);
        for (key, row) in records {
            frame::put_record(&mut self.group.bytes, key, row);
        }
        self.group.records += records.len() as u64;
        if let Some(frame) = self.group.frames.last_mut() {
            frame.body_bytes += body_bytes;
        }
        self.advance(body_bytes);
        Ok(self.position)
    }

    /// Ends the open frame, if any: the end of the log is then where a frame begins.
    pub(super) fn close_frame(&mut self) -> Position {
        if self.frame_open {
            let offset = self.position.offset() as usize;
            let padding = frame::aligned(offset) - offset;
            self.group.bytes.extend_from_slice(&[0; frame::ALIGN][..padding]);
            self.advance(padding);
            self.frame_open = false;
        }
        self.position
    }

    /// Ends the open frame; also the segment, if that holds `least` bytes.
    pub(super) fn cut(&mut self, least: u32) -> Position {
        self.close_frame();
        if self.position.offset() >= least {
            // Without a number for it the segment goes on; the append that fills it reports.
            let _ = self.begin_segment();
        }
        self.position
    }

    /// Ends the log in front of a segment that will not begin.
    pub(super) fn end(&mut self) -> Result<Position> {
        let number = self.reserve_number()?;
        self.close_frame();
        self.position = Position::new(number, 0);
        Ok(self.position)
    }

    /// Swaps what waits with `empty`; the position up to which it was taken.
    pub(super) fn take(&mut self, empty: &mut Group) -> Position {
        self.close_frame();
        std::mem::swap(&mut self.group, empty);
        self.group.runs.push(Run { start: 0, position: self.position });
        self.position
    }

    fn open_frame(&mut self) {
        let start = self.group.bytes.len();
        self.group.frames.push(Frame { start, body_bytes: 0, position: self.position });
        self.group.bytes.extend_from_slice(&[0; frame::HEADER_BYTES]);
        self.advance(frame::HEADER_BYTES);
        self.frame_open = true;
    }

    fn begin_segment(&mut self) -> Result<()> {
        let number = self.reserve_number()?;
        let header = segment::Header { number, previous_end: self.position };
        self.position = Position::new(number, 0);
        self.group.runs.push(Run { start: self.group.bytes.len(), position: self.position });
        self.group.bytes.extend_from_slice(&header.encode());
        self.advance(segment::HEADER_BYTES);
        Ok(())
    }

    fn advance(&mut self, bytes: usize) {
        let offset = self.position.offset() + bytes as u32;
        self.position = Position::new(self.position.segment(), offset);
    }
}
