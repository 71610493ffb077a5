//! A place in the commit log.

use std::fmt;

/// A byte position in the commit log: segment number and offset in it, ordered as the log is.
///
/// Packed into one `u64` (32 bits each, so a segment is smaller than 4 GiB) because positions are
/// compared and published through atomics on every write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// Before everything: nothing is flushed, nothing is durable.
    pub const ZERO: Self = Self(0);

    /// The byte `offset` of segment `segment`.
    pub const fn new(segment: u32, offset: u32) -> Self {
        Self((segment as u64) << 32 | offset as u64)
    }

    /// The segment's number. The first segment ever written is 1.
    pub const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Bytes from the start of the segment.
    pub const fn offset(self) -> u32 {
        self.0 as u32
    }

    /// The packed form, as it stands in files.
    pub const fn to_u64(self) -> u64 {
        self.0
    }

    /// The inverse of [`Position::to_u64`]; every value is valid.
    pub const fn from_u64(packed: u64) -> Self {
        Self(packed)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment(), self.offset())
    }
}

impl fmt::Debug for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
