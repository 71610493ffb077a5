//! One sibling of a row.

use std::cmp::Ordering;

use xxhash_rust::xxh3::Xxh3Default;

/// What a version says. Borrowed from the bytes it was read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Payload<'a> {
    /// The key has this value.
    Value {
        /// The value.
        value: &'a [u8],
        /// What the writer said the value is; at most [`CONTENT_TYPE_BYTES_MAX`] bytes.
        content_type: &'a str,
    },
    /// The key was deleted.
    Tombstone,
    /// The key had a value that has expired; its bytes are dropped, its expiry is kept.
    Stripped,
}

/// Longest content type, in bytes.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// A value or a tombstone, with the time it was written.
///
/// Only a value can expire: a tombstone's `expires_at_ms` is 0, a stripped version's is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version<'a> {
    payload: Payload<'a>,
    expires_at_ms: u64,
    time: u64,
}

impl<'a> Version<'a> {
    /// A version written at `time`. `expires_at_ms` is wall-clock milliseconds, 0 for never; it is
    /// ignored for a tombstone.
    ///
    /// A stripped version without expiry is a contradiction (nothing could have stripped it) and
    /// becomes a tombstone.
    pub fn new(payload: Payload<'a>, expires_at_ms: u64, time: u64) -> Self {
        match payload {
            Payload::Value { .. } => Self { payload, expires_at_ms, time },
            Payload::Stripped if expires_at_ms != 0 => Self { payload, expires_at_ms, time },
            Payload::Stripped | Payload::Tombstone => {
                Self { payload: Payload::Tombstone, expires_at_ms: 0, time }
            }
        }
    }

    /// What it says.
    pub fn payload(&self) -> Payload<'a> {
        self.payload
    }

    /// When it expires, in wall-clock milliseconds; 0 is never.
    pub fn expires_at_ms(&self) -> u64 {
        self.expires_at_ms
    }

    /// When it was written, on the hybrid logical clock.
    pub fn time(&self) -> u64 {
        self.time
    }

    /// Whether it was deleted or stripped, whatever the time is now.
    pub fn is_dead(&self) -> bool {
        !matches!(self.payload, Payload::Value { .. })
    }

    /// Whether a reader at `now_ms` finds no value in it: it was deleted or has expired.
    pub fn is_gone_at(&self, now_ms: u64) -> bool {
        self.is_dead() || self.has_expired_at(now_ms)
    }

    /// Whether its expiry lies at or before `now_ms`.
    pub fn has_expired_at(&self, now_ms: u64) -> bool {
        self.expires_at_ms != 0 && self.expires_at_ms <= now_ms
    }

    /// The version without its value bytes.
    ///
    /// The caller has judged that it has expired. A lattice step: for one write, stripped ranks
    /// above the value, so the bytes do not come back in a join.
    #[must_use]
    pub fn stripped(self) -> Self {
        Self::new(Payload::Stripped, self.expires_at_ms, self.time)
    }

    /// A fingerprint of what the client sent: the value with its type, or the delete. The expiry is
    /// left out, because it is absolute and a retry is later. 0 for a stripped version, whose bytes
    /// are not known any more.
    pub fn payload_hash(&self) -> u64 {
        match self.payload {
            Payload::Value { value, content_type } => {
                let mut hash = Xxh3Default::new();
                hash.update(&[content_type.len() as u8]);
                hash.update(content_type.as_bytes());
                hash.update(value);
                hash.digest().max(2)
            }
            Payload::Tombstone => 1,
            Payload::Stripped => 0,
        }
    }

    /// The version as a delete under its own dot.
    ///
    /// The caller has judged that it is dead, by a floor. A lattice step: for one write, a delete
    /// ranks above the value, so the value does not come back in a join.
    #[must_use]
    pub fn buried(self) -> Self {
        Self::new(Payload::Tombstone, 0, self.time)
    }

    /// The total order that picks one of two versions of the same dot: the later minting, then a
    /// delete above stripped above a value, then the greater fingerprint and bytes. Any total order
    /// makes the join a lattice; this one lets a drop of expired bytes, and a death, spread.
    pub fn rank(&self, other: &Self) -> Ordering {
        if self == other {
            return Ordering::Equal;
        }
        let deadness = |v: &Self| match v.payload {
            Payload::Value { .. } => 0,
            Payload::Stripped => 1,
            Payload::Tombstone => 2,
        };
        let bytes = |v: &Self| match v.payload {
            Payload::Value { value, content_type } => Some((value, content_type)),
            Payload::Tombstone | Payload::Stripped => None,
        };
        self.time
            .cmp(&other.time)
            .then_with(|| deadness(self).cmp(&deadness(other)))
            .then_with(|| self.payload_hash().cmp(&other.payload_hash()))
            .then_with(|| bytes(self).cmp(&bytes(other)))
            .then_with(|| self.expires_at_ms.cmp(&other.expires_at_ms))
    }
}
