//! What rows add up to.
//!
//! 1. A sum depends neither on the order of the rows nor on where pages end: two nodes that hold
//!    the same rows of a range get the same sum of it. Rows count as they are under no floor, byte
//!    by byte: so a used idempotency key that only one of two rows remembers counts too. Replicas
//!    that compare with each other leave such keys out ([`Store::digest`]), but who takes over from
//!    a replica has to know those that it knew.
//! 2. The rows of a partition are added up leaf by leaf as leaves are hashed, and kept
//!    ([`Trees::sum`]): to tell a sum that is kept takes no reading. It is what reading the rows
//!    would give, so where there is none they are read.

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::page::Compared;
use super::tree::Trees;
use crate::proto::PageSum;
use crate::store::{self, Store, TokenRange};

/// The digest of a row as it is, byte by byte; 0 for none.
pub(super) fn digest_of(row: Option<&[u8]>) -> u64 {
    row.map_or(0, |row| xxh3_64(row).max(1))
}

/// Of a row's key and its digest: what the row adds to a sum.
pub(super) fn hash_of(engine_key: &[u8], digest: u64) -> u64 {
    let mut hash = Xxh3Default::new();
    hash.update(engine_key);
    hash.update(&digest.to_le_bytes());
    hash.digest()
}

/// Adds a row to a sum.
pub(super) fn add_row(sum: &mut PageSum, engine_key: &[u8], row: &[u8]) {
    add(sum, &PageSum { rows: 1, digest: hash_of(engine_key, digest_of(Some(row))) });
}

/// Both together.
pub(super) fn add(sum: &mut PageSum, more: &PageSum) {
    sum.rows += more.rows;
    sum.digest = sum.digest.wrapping_add(more.digest);
}

/// What the rows of a partition's `range` that are compared add up to, from what is kept. `None`:
/// they are to be read.
///
/// # Errors
/// A source that cannot be read.
pub(super) fn kept(
    trees: &Trees,
    store: &Store,
    compared: &mut Compared<'_>,
    range: TokenRange,
) -> store::Result<Option<PageSum>> {
    let version = store.tenants_version();
    let Some((partition, factors)) = compared.whole_factors(store, range) else { return Ok(None) };
    // What was added up and cannot be read any more is not held: to read it is what fails.
    if store.is_unreadable_in(partition) {
        return Ok(None);
    }
    let sum = trees.sum(partition, &factors)?;
    // Else rows may be counted among those of another number of replicas.
    Ok(sum.filter(|_| store.tenants_version() == version))
}

/// What the rows of a `range` that are compared add up to, as they are read now.
///
/// # Errors
/// A source that cannot be read.
pub(super) fn read(
    store: &Store,
    compared: &mut Compared<'_>,
    range: TokenRange,
    page_bytes: usize,
) -> store::Result<PageSum> {
    let mut sum = PageSum::default();
    let mut cursor: Option<Vec<u8>> = None;
    loop {
        cursor =
            store.visit_by_token(range, cursor.as_deref(), page_bytes, |engine_key, row| {
                if compared.has_key(engine_key) {
                    add_row(&mut sum, engine_key, row);
                }
                Ok(true)
            })?;
        if cursor.is_none() {
            return Ok(sum);
        }
    }
}
