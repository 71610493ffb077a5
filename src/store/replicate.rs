//! Rows from other replicas.
//!
//! They come as whole rows and are joined without being read: blind Deltas. What a client sent was
//! checked at its own door; here only what would harm this node is refused.
//!
//! A write's row is held to the guard of its partition. A *repair*, the join of what two replicas
//! hold, was judged by the floors of both ([`Store::join_raw`]) and names the one of this replica
//! that it was judged under: it is taken while that floor is in force.

use super::Store;
use super::error::{Error, Result};
use super::limits::check_held_key;
use super::row::causal_mode;
use super::tenant::TenantId;
use crate::causality::codec;
use crate::engine::options::ROW_BYTES_MAX;
use crate::engine::{self, OnStall, Position};

/// How rows are let in.
#[derive(Clone, Copy)]
enum Judge<'f> {
    /// By the guard.
    Guard,
    /// As repairs, each under this floor.
    Floors(&'f [u64]),
}

/// A row from another replica: its tenant, its key, its encoded state.
pub type ForeignRow<B> = (TenantId, B, B);

/// What is called when rows are durable, with one outcome for each of them.
pub type Joined = Box<dyn FnOnce(Vec<Result<()>>) + Send>;

impl Store {
    /// [`Store::submit_rows`], waited for.
    #[cfg(test)]
    pub fn replicate<B: AsRef<[u8]>>(&self, rows: &[ForeignRow<B>]) -> Vec<Result<()>> {
        self.replicate_by(rows, Judge::Guard)
    }

    /// [`Store::submit_repairs`], waited for.
    #[cfg(test)]
    pub fn repair<B: AsRef<[u8]>>(
        &self,
        rows: &[ForeignRow<B>],
        floors: &[u64],
    ) -> Vec<Result<()>> {
        self.replicate_by(rows, Judge::Floors(floors))
    }

    #[cfg(test)]
    fn replicate_by<B: AsRef<[u8]>>(
        &self,
        rows: &[ForeignRow<B>],
        judge: Judge<'_>,
    ) -> Vec<Result<()>> {
        let (results, position) = self.join_rows(rows, judge);
        if position == Position::ZERO {
            return results;
        }
        settle(results, self.engine.wait_durable(position))
    }

    /// Joins rows, each with its own outcome. The rows can be read on return; `done` is called
    /// once, when they are durable or have failed, on a thread of the engine or on this one. It
    /// does not wait: where a flush or a compaction must come first it refuses.
    pub fn submit_rows<B: AsRef<[u8]>>(&self, rows: &[ForeignRow<B>], done: Joined) {
        let (results, position) = self.join_rows(rows, Judge::Guard);
        self.on_durable(position, move |durable| done(settle(results, durable)));
    }

    /// [`Store::submit_rows`] for repairs, each with the floor of this replica that it was judged
    /// under. One whose floor is another by now is refused: it must be judged anew.
    pub fn submit_repairs<B: AsRef<[u8]>>(
        &self,
        rows: &[ForeignRow<B>],
        floors: &[u64],
        done: Joined,
    ) {
        let (results, position) = self.join_repairs(rows, floors);
        self.on_durable(position, move |durable| done(settle(results, durable)));
    }

    /// [`Store::submit_repairs`] for callers that wait for several at once: the rows are durable
    /// when [`Store::on_durable`] says so of the position.
    pub fn join_repairs<B: AsRef<[u8]>>(
        &self,
        rows: &[ForeignRow<B>],
        floors: &[u64],
    ) -> (Vec<Result<()>>, Position) {
        self.join_rows(rows, Judge::Floors(floors))
    }

    /// Puts rows into the log and the memtable: an outcome for each, and what to wait for.
    ///
    /// Each is joined by itself. The locks of all keys of a batch are held until the last of them
    /// is in memory, and on a thread that others go before that may take long
    /// (docs/decisions/0071).
    fn join_rows<B: AsRef<[u8]>>(
        &self,
        rows: &[ForeignRow<B>],
        judge: Judge<'_>,
    ) -> (Vec<Result<()>>, Position) {
        let mut end = Position::ZERO;
        // Of this store, not of a row: the others need not try, and wait, too.
        let mut refused = None;
        let join = |(at, (tenant, key, row)): (usize, &ForeignRow<B>)| {
            if let Some(why) = &refused {
                return Err(Error::clone(why));
            }
            let row = row.as_ref();
            let key = self.place(*tenant, key.as_ref(), row)?;
            let joined = match judge {
                Judge::Guard => self.engine.apply_with(&[(&key, row)], OnStall::Refuse),
                Judge::Floors(floors) => {
                    self.engine.apply_judged(&key, row, floors[at], OnStall::Refuse)
                }
            };
            match joined {
                Ok(position) => end = end.max(position),
                Err(error) => {
                    let is_of_store = is_of_store(&error);
                    let error = self.failed(error);
                    refused = is_of_store.then(|| error.clone());
                    return Err(error);
                }
            }
            Ok(())
        };
        (rows.iter().enumerate().map(join).collect(), end)
    }

    /// The engine key of a row that may be joined here.
    fn place(&self, tenant: TenantId, key: &[u8], row: &[u8]) -> Result<Vec<u8>> {
        self.check_open()?;
        let tenant = self.catalog.by_id(tenant)?;
        check_held_key(key)?;
        if row.len() > ROW_BYTES_MAX {
            let (found, limit) = (row.len() as u64, ROW_BYTES_MAX as u64);
            return Err(Error::RowTooLarge { found, limit });
        }
        let invalid = |why: String| Error::InvalidArgument { what: "row", why };
        let decoded = codec::decode(row).map_err(|error| invalid(error.to_string()))?;
        if decoded.mode() != causal_mode(tenant.mode) {
            return Err(invalid(format!("its mode is not that of tenant {}", tenant.name)));
        }
        // A time that cannot be would drive this clock, and all that read from it, ahead for ever.
        let time = decoded.time_max();
        self.minter.check_ahead(time)?;
        self.minter.observe(time);
        Ok(tenant.engine_key(key))
    }
}

/// Whether any other row would fail for the same reason.
fn is_of_store(error: &engine::Error) -> bool {
    use engine::Error;
    matches!(
        error,
        Error::Io { .. }
            | Error::Poisoned { .. }
            | Error::Stalled { .. }
            | Error::DiskFull { .. }
            | Error::Closed
    )
}

/// The outcomes of rows once the log has answered.
fn settle(results: Vec<Result<()>>, durable: engine::Result<()>) -> Vec<Result<()>> {
    let Err(error) = durable else { return results };
    let error = Error::unknown(error);
    results.into_iter().map(|result| result.and(Err(error.clone()))).collect()
}
