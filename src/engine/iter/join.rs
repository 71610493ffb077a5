//! The one place where the records of a key become one.
//!
//! Reads, scans, flush and compaction all fold a key's records here, newest to oldest, and stop at
//! the first Full: it is the join of everything older. A record that stands alone, or a Full on
//! top, is handed out as it was found, bytes and all; only what must be joined is decoded.
//!
//! In debug builds what a Full hides is looked at all the same, and the Full has to contain it
//! ([`MergeOperator::contains`]): that one line checks the order of the whole tree.

use std::ops::Deref;

use crate::engine::merge::{MergeError, MergeOperator};
use crate::engine::record::{Kind, Record};

/// Buffers of [`Joiner`], kept from key to key.
#[derive(Debug, Default)]
pub struct JoinBuffers {
    joined: Vec<u8>,
    spare: Vec<u8>,
}

/// Folds the records of one key, newest to oldest.
///
/// `R` owns or borrows a row: a slice, or what a source hands out to keep the row alive.
pub struct Joiner<'b, R> {
    operator: &'b dyn MergeOperator,
    buffers: &'b mut JoinBuffers,
    /// What the fold so far claims; `None` before the first record.
    kind: Option<Kind>,
    /// The fold so far if it is one record; else it is in `buffers.joined`.
    single: Option<R>,
}

/// What the records of a key amount to.
#[derive(Debug)]
pub struct Joined<'b, R> {
    /// What the join claims.
    pub kind: Kind,
    /// The joined state.
    pub row: JoinedRow<'b, R>,
}

/// The bytes of a joined state.
#[derive(Debug)]
pub enum JoinedRow<'b, R> {
    /// One record's row, as it was found.
    Source(R),
    /// The join of several.
    Merged(&'b [u8]),
}

impl<R: Deref<Target = [u8]>> Deref for JoinedRow<'_, R> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Source(row) => row,
            Self::Merged(row) => row,
        }
    }
}

impl<R: Deref<Target = [u8]>> Joined<'_, R> {
    /// The join as a record, borrowed from this value.
    #[inline]
    pub fn as_record(&self) -> Record<'_> {
        Record { kind: self.kind, row: &self.row }
    }
}

impl<'b, R: Deref<Target = [u8]>> Joiner<'b, R> {
    /// Starts with no record.
    #[inline]
    pub fn new(operator: &'b dyn MergeOperator, buffers: &'b mut JoinBuffers) -> Self {
        Self { operator, buffers, kind: None, single: None }
    }

    /// Folds the next older record in. `true` once a Full was met: older records add nothing.
    /// Records pushed after that are ignored (in debug builds: checked).
    ///
    /// # Errors
    /// A row that the operator cannot read. The fold is then of no use.
    ///
    /// # Panics
    /// In debug builds, if a Full hides a record that it does not contain.
    #[inline]
    pub fn push(&mut self, kind: Kind, row: R) -> Result<bool, MergeError> {
        match self.kind {
            None => {
                self.kind = Some(kind);
                self.single = Some(row);
            }
            Some(Kind::Full) => {
                debug_assert!(
                    self.contains(&row),
                    "a Full hides a record that it does not contain"
                );
            }
            Some(Kind::Delta) => {
                self.join(&row)?;
                self.kind = Some(Kind::Delta.over(kind));
            }
        }
        Ok(self.is_complete())
    }

    /// Whether a Full was met.
    #[inline]
    pub fn is_complete(&self) -> bool {
        self.kind == Some(Kind::Full)
    }

    /// The join of all records; `None` if there was none.
    #[inline]
    pub fn finish(self) -> Option<Joined<'b, R>> {
        let kind = self.kind?;
        let row = match self.single {
            Some(row) => JoinedRow::Source(row),
            None => JoinedRow::Merged(&self.buffers.joined),
        };
        Some(Joined { kind, row })
    }

    fn join(&mut self, older: &[u8]) -> Result<(), MergeError> {
        let JoinBuffers { joined, spare } = &mut *self.buffers;
        spare.clear();
        self.operator.join(so_far(&self.single, joined), older, spare)?;
        std::mem::swap(joined, spare);
        self.single = None;
        Ok(())
    }

    /// Whether the fold so far, a Full, holds what it hides. A row that cannot be read is found
    /// where it is.
    fn contains(&self, older: &[u8]) -> bool {
        let full = so_far(&self.single, &self.buffers.joined);
        self.operator.contains(full, older).unwrap_or(true)
    }
}

/// The fold so far: one record's row, or what was joined.
#[inline]
fn so_far<'a, R: Deref<Target = [u8]>>(single: &'a Option<R>, joined: &'a [u8]) -> &'a [u8] {
    match single {
        Some(row) => row,
        None => joined,
    }
}

/// Folds the records of one key, given newest first; `None` if there is none.
///
/// # Errors
/// A row that the operator cannot read.
#[inline]
pub fn join_group<'b, 'r>(
    operator: &'b dyn MergeOperator,
    records: impl IntoIterator<Item = Record<'r>>,
    buffers: &'b mut JoinBuffers,
) -> Result<Option<Joined<'b, &'r [u8]>>, MergeError> {
    let mut joiner = Joiner::new(operator, buffers);
    for Record { kind, row } in records {
        if joiner.push(kind, row)? && cfg!(not(debug_assertions)) {
            break;
        }
    }
    Ok(joiner.finish())
}
