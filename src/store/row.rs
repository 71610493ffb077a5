//! Rows as clients see them.

use crate::causality::codec::{self, DecodeError};
use crate::causality::{Actor, Context, ContextKey, Mode, Payload, Row, Version};
use crate::engine;

use super::error::{Error, Result};

/// What a read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadRow {
    /// The live values; more than one when writers had not seen each other. Empty: not found.
    pub siblings: Vec<Sibling>,
    /// What was seen, to be given back with the next write or delete of the key.
    pub context: Vec<u8>,
    /// Whether a delete is concurrent with the siblings.
    pub deleted_concurrently: bool,
}

impl ReadRow {
    /// Whether the key has a value.
    pub fn found(&self) -> bool {
        !self.siblings.is_empty()
    }

    /// Bytes of the values.
    pub fn value_bytes(&self) -> usize {
        self.siblings.iter().map(|sibling| sibling.value.len()).sum()
    }
}

/// One live value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sibling {
    /// The value.
    pub value: Vec<u8>,
    /// What the writer said it is.
    pub content_type: String,
    /// When it expires, in wall-clock milliseconds; 0 is never.
    pub expires_at_ms: u64,
    /// When it was written, on the hybrid logical clock.
    pub hlc: u64,
}

/// The error for a stored row that cannot be read.
pub(super) fn unreadable(error: DecodeError) -> Error {
    engine::Error::Merge(engine::MergeError(error.to_string())).into()
}

/// The causal mode of a tenant's rows.
pub(super) fn causal_mode(mode: super::tenant::Mode) -> Mode {
    match mode {
        super::tenant::Mode::Siblings => Mode::Siblings,
        super::tenant::Mode::LastWriteWins => Mode::LastWriteWins,
    }
}

/// How a stored row is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Keys the checksum of the context.
    pub context_key: ContextKey,
    /// Versions that have expired by then are not shown.
    pub now_ms: u64,
    /// Leaves the bytes of the values out.
    pub keys_only: bool,
}

impl View {
    /// What a client reads in `row`; `None` is a key that nobody has written.
    pub fn show(&self, row: Option<&[u8]>) -> Result<ReadRow> {
        let Some(row) = row else { return Ok(self.empty()) };
        if let Some((actor, version)) = codec::lww_version(row).map_err(unreadable)? {
            return Ok(self.show_winner(actor, &version));
        }
        let row = codec::decode(row).map_err(unreadable)?;
        let siblings: Vec<Sibling> =
            row.live().iter().filter_map(|(_, version)| self.sibling(version)).collect();
        let tombstone = row.live().iter().any(|(_, version)| is_tombstone(version));
        Ok(ReadRow {
            deleted_concurrently: tombstone && !siblings.is_empty(),
            siblings,
            context: self.context(&Context::of(&row)),
        })
    }

    /// The answer for a key that nobody has written.
    pub fn empty(&self) -> ReadRow {
        ReadRow { context: self.context(&Context::default()), ..ReadRow::default() }
    }

    fn show_winner(&self, actor: Actor, version: &Version<'_>) -> ReadRow {
        ReadRow {
            siblings: self.sibling(version).into_iter().collect(),
            context: self.context(&Context::of_winner(actor, version.time())),
            deleted_concurrently: false,
        }
    }

    /// The bytes of a context for this row.
    pub fn context(&self, context: &Context) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        context.encode(self.context_key, &mut bytes);
        bytes
    }

    fn sibling(&self, version: &Version<'_>) -> Option<Sibling> {
        let Payload::Value { value, content_type } = version.payload() else { return None };
        if version.has_expired_at(self.now_ms) {
            return None;
        }
        Some(Sibling {
            value: if self.keys_only { Vec::new() } else { value.to_vec() },
            content_type: content_type.to_owned(),
            expires_at_ms: version.expires_at_ms(),
            hlc: version.time(),
        })
    }
}

/// How many values a reader at `now_ms` finds in `row`.
pub(super) fn values_at(row: &Row<'_>, now_ms: u64) -> usize {
    row.live().iter().filter(|(_, version)| !version.is_gone_at(now_ms)).count()
}

fn is_tombstone(version: &Version<'_>) -> bool {
    matches!(version.payload(), Payload::Tombstone)
}
