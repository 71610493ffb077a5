//! The buffer that collects what goes to disk next, and the place in the log where it will stand.
//!
//! It does no I/O. Positions are given out here, before anything is written, so every decision that
//! depends on them (where frames begin, when a segment is full) is made here too, under the log
//! mutex; checksums are left to whoever writes, outside it.
//!
//! How long a frame's header is, is known only when the frame is closed: it holds the length of the
//! body and how far the log is durable. So the longest header's space is left free in the buffer,
//! and while a frame is open the log counts as ending where it would with the shortest one. The end
//! of an append is thus a position inside its frame that is reached exactly when the frame is.
//!
//! Invariants:
//! 1. the pieces of a group are the bytes of the log from the end of the group before to
//!    [`Tail::position`] with no frame open, without a gap;
//! 2. an append is inside one frame, a frame inside one segment;
//! 3. positions ascend: that of an open frame's end never lies behind that of the closed one;
//! 4. in steady state nothing is allocated: two groups are swapped and keep their capacity.

use std::ops::Range;

use super::frame::Before;
use super::{frame, segment};
use crate::engine::Position;
use crate::engine::error::Result;

/// Bytes on their way to disk.
#[derive(Debug, Default)]
pub(super) struct Group {
    bytes: Vec<u8>,
    frames: Vec<Piece>,
    pieces: Vec<Piece>,
    records: u64,
}

/// Bytes of the buffer, and where in the log they belong.
#[derive(Clone, Debug)]
struct Piece {
    at: Range<usize>,
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
        self.pieces.iter().map(|piece| piece.at.len() as u64).sum()
    }

    /// Completes the headers of all frames.
    pub(super) fn seal(&mut self) {
        for Piece { at, position } in &self.frames {
            frame::seal(&mut self.bytes[at.clone()], *position);
        }
    }

    /// What to write where, in order.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (Position, &[u8])> {
        self.pieces.iter().map(|piece| (piece.position, &self.bytes[piece.at.clone()]))
    }

    /// Empties the group and gives back memory beyond `capacity_max`, which one large append took.
    pub(super) fn clear(&mut self, capacity_max: usize) {
        self.bytes.clear();
        self.bytes.shrink_to(capacity_max);
        self.frames.clear();
        self.pieces.clear();
        self.records = 0;
    }

    /// Adds a piece, as a part of the last one if it follows that in the buffer (and so in the
    /// segment: between two segments a header begins, and no frame ends without its space).
    fn push(&mut self, piece: Piece) {
        match self.pieces.last_mut() {
            Some(last) if last.at.end == piece.at.start => last.at.end = piece.at.end,
            _ => self.pieces.push(piece),
        }
    }
}

/// The end of the log: what waits to be written, and where the next append goes.
#[derive(Debug)]
pub(super) struct Tail {
    group: Group,
    position: Position,
    open: Option<Open>,
    segment_bytes: usize,
    next_number: u32,
}

/// The frame that takes appends.
#[derive(Clone, Copy, Debug)]
struct Open {
    /// Where it begins.
    position: Position,
    /// Where its body begins in the buffer.
    body: usize,
    /// Its last record.
    last: Before,
}

impl Tail {
    /// A log that begins with segment `first`; its header is the first thing to be written.
    pub(super) fn new(first: u32, segment_bytes: usize) -> Result<Self> {
        let mut tail = Self {
            group: Group::default(),
            position: Position::ZERO,
            open: None,
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

    /// Bytes that wait to be written, space for headers included.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.group.bytes.len()
    }

    /// Takes a segment number that no other segment will have.
    fn reserve_number(&mut self) -> Result<u32> {
        let number = self.next_number;
        self.next_number = segment::following(number)?;
        Ok(number)
    }

    /// Appends `records`, which take `bytes_max` at most and fit into a segment. The end of the
    /// append. `durable` is how far the log is durable, here and in all calls.
    pub(super) fn append(
        &mut self,
        records: &[(&[u8], &[u8])],
        bytes_max: usize,
        durable: Position,
    ) -> Result<Position> {
        let longest = frame::HEADER_BYTES_MAX - frame::HEADER_BYTES_MIN;
        let header = if self.open.is_some() { longest } else { frame::HEADER_BYTES_MAX };
        let end = self.position.offset() as usize + header + bytes_max;
        if end > self.segment_bytes {
            self.close_frame(durable);
            self.begin_segment()?;
        }
        let mut open = self.open.unwrap_or_else(|| self.open_frame());
        let start = self.group.bytes.len();
        self.group.bytes.reserve(bytes_max);
        for (key, row) in records {
            frame::put_record(&mut self.group.bytes, &mut open.last, key, row);
        }
        self.open = Some(open);
        self.group.records += records.len() as u64;
        self.position = after(self.position, self.group.bytes.len() - start);
        Ok(self.position)
    }

    /// Ends the open frame, if any: the end of the log is then where a frame begins.
    pub(super) fn close_frame(&mut self, durable: Position) -> Position {
        if let Some(Open { position, body, .. }) = self.open.take() {
            let end = self.group.bytes.len();
            let space = &mut self.group.bytes[body - frame::HEADER_BYTES_MAX..body];
            let header = frame::put_header(space, end - body, position, durable);
            let frame = Piece { at: body - header..end, position };
            self.position = after(position, frame.at.len());
            self.group.frames.push(frame.clone());
            self.group.push(frame);
        }
        self.position
    }

    /// Ends the open frame; also the segment, if that holds `least` bytes.
    pub(super) fn cut(&mut self, least: u32, durable: Position) -> Position {
        self.close_frame(durable);
        if self.position.offset() >= least {
            // Without a number for it the segment goes on; the append that fills it reports.
            let _ = self.begin_segment();
        }
        self.position
    }

    /// Ends the log in front of a segment that will not begin.
    pub(super) fn end(&mut self, durable: Position) -> Result<Position> {
        let number = self.reserve_number()?;
        self.close_frame(durable);
        self.position = Position::new(number, 0);
        Ok(self.position)
    }

    /// Swaps what waits with `empty`; the position up to which it was taken.
    pub(super) fn take(&mut self, empty: &mut Group, durable: Position) -> Position {
        self.close_frame(durable);
        std::mem::swap(&mut self.group, empty);
        self.position
    }

    fn open_frame(&mut self) -> Open {
        let position = self.position;
        self.group.bytes.extend_from_slice(&[0; frame::HEADER_BYTES_MAX]);
        self.position = after(position, frame::HEADER_BYTES_MIN);
        Open { position, body: self.group.bytes.len(), last: Before::default() }
    }

    fn begin_segment(&mut self) -> Result<()> {
        let number = self.reserve_number()?;
        let header = segment::Header { number, previous_end: self.position }.encode();
        let position = Position::new(number, 0);
        let start = self.group.bytes.len();
        self.group.bytes.extend_from_slice(&header);
        self.group.pieces.push(Piece { at: start..start + header.len(), position });
        self.position = after(position, header.len());
        Ok(())
    }
}

/// The position `bytes` behind `position`, in its segment.
fn after(position: Position, bytes: usize) -> Position {
    Position::new(position.segment(), position.offset() + bytes as u32)
}
