//! Batches that lie in the log and the memtable and are not durable yet.
//!
//! A coordinator sends the rows on while the disk is still busy: what has left the node is in its
//! log, or the node takes a new actor at its next start. The rows are whole rows as of the write:
//! a receiver that joins one has truthfully seen all that its clock entries cover.
//!
//! 1. A row is there exactly for the mutations that have an `Ok`; a duplicate's too, for the first
//!    attempt may not have reached the others.
//! 2. [`Store::submit`] is the same way without the copies.

use super::Store;
use super::error::{Error, Result};
use super::tenant::{Tenant, TenantId};
use super::write::{Mutation, Written, settle};
use crate::engine::{self, OnStall, Position};

/// A batch that can be read already and is not acknowledged yet.
#[derive(Debug)]
pub struct Prepared {
    /// One for each mutation. An `Ok` counts only when the batch is durable; so does a refusal for
    /// what its row holds: see [`Prepared::tells_of_rows`].
    pub results: Vec<Result<Written>>,
    /// What other replicas are to join.
    pub rows: Vec<ShippedRow>,
    /// What [`Store::on_durable`] waits for.
    pub position: Position,
}

impl Prepared {
    /// Whether it refuses a write for what its row holds, perhaps in memory alone: then nobody may
    /// be told of the refusal before [`Store::on_durable`] has answered.
    pub fn tells_of_rows(&self) -> bool {
        let tells = |result: &Result<_>| result.as_ref().is_err_and(Error::tells_of_row);
        self.position != Position::ZERO && self.results.iter().any(tells)
    }

    /// What is left of it once the log has answered.
    #[must_use]
    pub fn settled(self, durable: Result<()>) -> Self {
        match durable {
            Ok(()) => self,
            // Nothing of it is sent any more: it is unknown what the log holds of it.
            Err(error) => Self {
                results: settle(self.results, Err(error)),
                rows: Vec::new(),
                position: self.position,
            },
        }
    }
}

/// A whole row for other replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShippedRow {
    /// The mutation's place in its batch.
    pub index: usize,
    /// The row's tenant.
    pub tenant: TenantId,
    /// The row's key.
    pub key: Vec<u8>,
    /// The encoded row.
    pub row: Vec<u8>,
}

/// What one call may give to other replicas, in bytes of rows; the last row may go beyond.
const SHIPPED_BYTES_MAX: usize = 64 << 20;

/// Collects the rows of a batch, or drops them where nobody wants them.
pub(super) struct Shipped {
    rows: Option<Vec<(usize, Vec<u8>)>>,
    /// Of all rows.
    bytes: usize,
}

impl Shipped {
    pub fn nothing() -> Self {
        Self { rows: None, bytes: 0 }
    }

    pub fn all() -> Self {
        Self { rows: Some(Vec::new()), bytes: 0 }
    }

    /// Refuses what would be more than replicas are given of one call.
    pub fn check(&self) -> Result<()> {
        match self.bytes {
            bytes if bytes < SHIPPED_BYTES_MAX => Ok(()),
            bytes => {
                Err(Error::RowsTooLarge { found: bytes as u64, limit: SHIPPED_BYTES_MAX as u64 })
            }
        }
    }

    pub fn len(&self) -> usize {
        self.rows.as_ref().map_or(0, Vec::len)
    }

    /// Forgets all but the first `len` rows.
    pub fn truncate(&mut self, len: usize) {
        for (_, row) in self.rows.iter_mut().flat_map(|rows| rows.drain(len..)) {
            self.bytes -= row.len();
        }
    }

    pub fn take(&mut self, index: usize, row: Vec<u8>) {
        if let Some(rows) = &mut self.rows {
            self.bytes += row.len();
            rows.push((index, row));
        }
    }

    pub fn copy(&mut self, index: usize, row: &[u8]) {
        if self.rows.is_some() {
            self.take(index, row.to_vec());
        }
    }

    /// The rows of the mutations that succeeded, by their place in the batch.
    pub fn of(
        self,
        tenant: &Tenant,
        batch: &[Mutation],
        results: &[Result<Written>],
    ) -> Vec<ShippedRow> {
        let mut rows = self.rows.unwrap_or_default();
        rows.sort_unstable_by_key(|(index, _)| *index);
        rows.into_iter()
            .filter(|(index, _)| results[*index].is_ok())
            .map(|(index, row)| {
                let key = batch[index].key.clone();
                ShippedRow { index, tenant: tenant.id, key, row }
            })
            .collect()
    }
}

impl Store {
    /// Puts a batch into the log and the memtable, as [`Store::submit`] does, and returns before
    /// it is durable, with the rows to send to other replicas. Like it, it refuses where a write
    /// would have to wait for a flush or a compaction.
    pub fn prepare(&self, tenant: &str, batch: &[Mutation]) -> Prepared {
        self.apply(tenant, batch, OnStall::Refuse, Shipped::all())
    }

    /// Calls `done` once, when everything up to `position` is durable or the log has failed: on a
    /// thread of the engine, or on this one.
    pub fn on_durable(
        &self,
        position: Position,
        done: impl FnOnce(engine::Result<()>) + Send + 'static,
    ) {
        if position == Position::ZERO {
            return done(Ok(()));
        }
        self.engine.on_durable(position, Box::new(done));
    }
}
