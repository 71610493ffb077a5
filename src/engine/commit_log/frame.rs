//! The codec of frames: what one write of the log puts down; byte table on the module page.
//!
//! A frame's first bytes are a mark that follows from where it stands. So a recovery that looks for
//! a frame at every byte behind the end of the log passes over nearly all of them with one
//! comparison, and stale bytes of a reused file, or a frame inside a row (a user may store
//! anything), are no frames.
//!
//! It does not read or write files. Its parsers take any bytes, allocate nothing and never panic.

use crate::engine::Position;
use crate::engine::varint::{VARINT_BYTES_MAX, put_varint, split_varint, varint_len, write_varint};

/// The mark, in bytes.
pub(super) const MARK_BYTES: usize = 3;
/// Mark and checksum, in bytes; two numbers follow.
const FIXED_BYTES: usize = MARK_BYTES + 4;
/// Shortest header of a frame, in bytes.
pub(super) const HEADER_BYTES_MIN: usize = FIXED_BYTES + 2;
/// Longest header of a frame, in bytes. A segment is below 2^32 bytes.
pub(super) const HEADER_BYTES_MAX: usize = FIXED_BYTES + 5 + VARINT_BYTES_MAX;
/// Fewest bytes of a frame's first record, and so of its body.
const BODY_BYTES_MIN: u64 = 3;
/// Bytes at the front of a row that need not be written again if the row before has them too: the
/// head.
const HEAD_BYTES: usize = 8;

/// What the header of a frame says, apart from its checksum and its own place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the header itself.
    pub(super) header_bytes: usize,
    /// Bytes of the records.
    pub(super) body_bytes: usize,
    /// The log up to here was synced when the frame was written.
    pub(super) durable_upto: Position,
}

impl Header {
    /// Reads the header at the front of `bytes`, which stand at `position` of a file of
    /// `file_bytes`. `None` if it is not that of a frame written there.
    #[inline]
    pub(super) fn parse(bytes: &[u8], position: Position, file_bytes: u64) -> Option<Self> {
        if *bytes.first_chunk()? != identity(position).mark {
            return None;
        }
        let numbers = bytes.get(FIXED_BYTES..)?;
        let (body_bytes, rest) = split_varint(numbers)?;
        let (behind, rest) = split_varint(rest)?;
        let header_bytes = bytes.len() - rest.len();
        let end = u64::from(position.offset()) + header_bytes as u64;
        let fits = end.checked_add(body_bytes)? <= file_bytes.min(u64::from(u32::MAX));
        if body_bytes < BODY_BYTES_MIN || !fits {
            return None;
        }
        let durable_upto = match behind.checked_sub(1) {
            Some(behind) => position.to_u64().checked_sub(behind)?,
            None => 0,
        };
        let durable_upto = Position::from_u64(durable_upto);
        Some(Self { header_bytes, body_bytes: body_bytes as usize, durable_upto })
    }

    /// Bytes of the whole frame.
    pub(super) fn frame_bytes(self) -> usize {
        self.header_bytes + self.body_bytes
    }
}

/// Writes the numbers of a frame's header at the end of `space`, [`HEADER_BYTES_MAX`] bytes in
/// front of the body, and returns how many of these the header takes. [`seal`] does the rest.
pub(super) fn put_header(
    space: &mut [u8],
    body_bytes: usize,
    position: Position,
    durable: Position,
) -> usize {
    debug_assert!(durable <= position);
    let behind = match durable {
        Position::ZERO => 0,
        durable => position.to_u64() - durable.to_u64() + 1,
    };
    let numbers_bytes = varint_len(body_bytes as u64) + varint_len(behind);
    let numbers = &mut space[HEADER_BYTES_MAX - numbers_bytes..];
    let first = write_varint(numbers, body_bytes as u64);
    write_varint(&mut numbers[first..], behind);
    FIXED_BYTES + numbers_bytes
}

/// Completes `frame`, whose numbers and body are there, for `position`.
pub(super) fn seal(frame: &mut [u8], position: Position) {
    let Identity { mark, salt } = identity(position);
    let crc = crc32fast::hash(&frame[FIXED_BYTES..]) ^ salt;
    frame[..MARK_BYTES].copy_from_slice(&mark);
    frame[MARK_BYTES..FIXED_BYTES].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the whole frame found at `position` (its length from [`Header::frame_bytes`]) is as it
/// was sealed.
pub(super) fn verify(frame: &[u8], position: Position) -> bool {
    let Some((fixed, rest)) = frame.split_first_chunk::<FIXED_BYTES>() else { return false };
    let Identity { mark, salt } = identity(position);
    let crc = crc32fast::hash(rest) ^ salt;
    fixed[..MARK_BYTES] == mark && u32_at(fixed, MARK_BYTES) == crc
}

/// What tells a frame of one position from that of another.
struct Identity {
    /// Its first byte is odd, so no frame begins in zeros.
    mark: [u8; MARK_BYTES],
    /// Is part of the checksum.
    salt: u32,
}

/// A bijection of the position's 64 bits, cut in pieces: neighbours differ in all of them.
#[inline]
fn identity(position: Position) -> Identity {
    let mixed = position.to_u64().wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let [.., a, b, c, d, e, f, g] = (mixed ^ (mixed >> 32)).to_le_bytes();
    Identity { mark: [a | 1, b, c], salt: u32::from_le_bytes([d, e, f, g]) }
}

/// Where in `bytes`, which begin at `first`, the mark of a frame stands; the first such place.
pub(super) fn find_mark(bytes: &[u8], first: Position) -> Option<usize> {
    bytes.windows(MARK_BYTES).enumerate().position(|(at, window)| {
        let position = Position::new(first.segment(), first.offset() + at as u32);
        window[0] & 1 == 1 && *window == identity(position).mark
    })
}

/// What a record need not say again if it is as in the one before it in the frame. Records that are
/// written one after the other were often written by the same node at nearly the same time, which
/// is what rows begin with; and keys and rows of one kind are often equally long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Before {
    /// `None` before the first record.
    lengths: Option<Lengths>,
    /// The first bytes of the row, as many as it has.
    head: [u8; HEAD_BYTES],
}

/// Bytes of a record's parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lengths {
    key: usize,
    row: usize,
}

impl Lengths {
    fn head(self) -> usize {
        self.row.min(HEAD_BYTES)
    }
}

impl Before {
    fn of(lengths: Lengths, row: &[u8]) -> Self {
        let mut head = [0; HEAD_BYTES];
        head[..lengths.head()].copy_from_slice(&row[..lengths.head()]);
        Self { lengths: Some(lengths), head }
    }

    fn head_bytes(&self) -> usize {
        self.lengths.map_or(0, Lengths::head)
    }

    /// What both have in common.
    fn shared(&self, other: &Self) -> Shared {
        let same = |at: &usize| self.head[*at] == other.head[*at];
        let all = (0..HEAD_BYTES).filter(same).fold(0_u8, |bits, at| bits | 1 << at);
        let head = all & bits_below(self.head_bytes().min(other.head_bytes()));
        Shared { lengths: self.lengths == other.lengths, head }
    }
}

/// What a record has in common with the one before it, a byte in the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shared {
    /// Key and row are equally long.
    lengths: bool,
    /// A bit for each byte of the head, the lowest for the first. What cannot be said is not told:
    /// bytes 4 and 5 only together.
    head: u8,
}

impl Shared {
    /// In every row there is, these two are parts of one number that seldom changes.
    const PAIR: u8 = 0b0011_0000;

    fn to_byte(self) -> u8 {
        let pair = u8::from(self.head & Self::PAIR == Self::PAIR) << 4;
        self.head & 0xF | pair | self.head >> 1 & 0x60 | u8::from(self.lengths) << 7
    }

    fn from_byte(byte: u8) -> Self {
        let pair = if byte & 0x10 == 0 { 0 } else { Self::PAIR };
        Self { lengths: byte & 0x80 != 0, head: byte & 0xF | pair | (byte & 0x60) << 1 }
    }
}

/// The lowest `count` bits, at most 8.
fn bits_below(count: usize) -> u8 {
    ((1_u16 << count) - 1) as u8
}

/// Bytes that a record takes in a frame at most: where it shares nothing with the one before.
pub(super) fn record_bytes_max(key: &[u8], row: &[u8]) -> usize {
    varint_len(key.len() as u64) + varint_len(row.len() as u64) + 1 + key.len() + row.len()
}

/// Appends a record to a frame's body behind the record `before`, which becomes this one. The
/// caller has checked the lengths.
pub(super) fn put_record(body: &mut Vec<u8>, before: &mut Before, key: &[u8], row: &[u8]) {
    let lengths = Lengths { key: key.len(), row: row.len() };
    let this = Before::of(lengths, row);
    let byte = this.shared(before).to_byte();
    let shared = Shared::from_byte(byte);
    body.push(byte);
    if !shared.lengths {
        put_varint(body, key.len() as u64);
        put_varint(body, row.len() as u64);
    }
    body.extend_from_slice(key);
    let (mut own, mut count) = ([0; HEAD_BYTES], 0);
    for at in 0..lengths.head() {
        own[count] = this.head[at];
        count += usize::from(shared.head >> at & 1 == 0);
    }
    body.extend_from_slice(&own[..count]);
    body.extend_from_slice(&row[lengths.head()..]);
    *before = this;
}

/// A body that does not divide into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A record as it stands in a body.
struct Written<'b> {
    lengths: Lengths,
    key: &'b [u8],
    /// The bytes of the head that are those of the row before.
    shared: u8,
    /// The row without them.
    rest: &'b [u8],
}

/// Cuts a record off the front of `body`, `before` being the lengths of the one before it.
fn cut<'b>(body: &mut &'b [u8], before: Option<Lengths>) -> Result<Written<'b>, Malformed> {
    let split = || {
        let (&byte, rest) = body.split_first()?;
        let shared = Shared::from_byte(byte);
        let (lengths, rest) = if shared.lengths {
            (before?, rest)
        } else {
            let (key, rest) = split_varint(rest)?;
            let (row, rest) = split_varint(rest)?;
            (Lengths { key: usize::try_from(key).ok()?, row: usize::try_from(row).ok()? }, rest)
        };
        let both = lengths.head().min(before.map_or(0, Lengths::head));
        if shared.head & !bits_below(both) != 0 {
            return None;
        }
        let (key, rest) = rest.split_at_checked(lengths.key)?;
        let own_bytes = lengths.row - shared.head.count_ones() as usize;
        let (row, rest) = rest.split_at_checked(own_bytes)?;
        Some((Written { lengths, key, shared: shared.head, rest: row }, rest))
    };
    let (record, rest) = split().ok_or(Malformed)?;
    *body = rest;
    Ok(record)
}

/// Whether a body divides into records.
pub(super) fn is_whole(mut body: &[u8]) -> bool {
    let mut before = None;
    while !body.is_empty() {
        match cut(&mut body, before) {
            Ok(record) => before = Some(record.lengths),
            Err(Malformed) => return false,
        }
    }
    true
}

/// A record: key, row.
type Record<'b, 'r> = (&'b [u8], &'r [u8]);

/// Reads the records of a body one after the other.
#[derive(Debug)]
pub(super) struct Records<'b> {
    body: &'b [u8],
    before: Before,
    row: Vec<u8>,
}

impl<'b> Records<'b> {
    pub(super) fn new(body: &'b [u8]) -> Self {
        Self { body, before: Before::default(), row: Vec::new() }
    }

    /// The next one, its row put together; `None` behind the last.
    pub(super) fn next(&mut self) -> Result<Option<Record<'b, '_>>, Malformed> {
        if self.body.is_empty() {
            return Ok(None);
        }
        let Written { lengths, key, shared, rest } = cut(&mut self.body, self.before.lengths)?;
        let own_bytes = lengths.head() - shared.count_ones() as usize;
        let (own, rest) = rest.split_at_checked(own_bytes).ok_or(Malformed)?;
        let mut own = own.iter();
        self.row.clear();
        self.row.extend((0..lengths.head()).filter_map(|at| match shared >> at & 1 {
            1 => Some(self.before.head[at]),
            _ => own.next().copied(),
        }));
        self.row.extend_from_slice(rest);
        self.before = Before::of(lengths, &self.row);
        Ok(Some((key, &self.row)))
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut field = [0; 8];
    field.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(field)
}
