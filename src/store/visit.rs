//! Rows of a tenant in the order of the engine's keys, one after the other, up to a bound.
//!
//! What every page of a scan is made from: those that this store shows by itself, and those that it
//! gives as a replica, whose word counts beside others'.
//!
//! 1. A visit ends: with the range, or with a bound of rows, bytes or rows passed.
//! 2. It says where to go on, without naming another tenant's key. Everything before that place was
//!    visited.
//! 3. What was visited is durable when the visit returns, as for a read of a key.
//! 4. As one replica of several it says nothing of a partition that has lost data, not even that it
//!    is empty: it ends before it. Nor of one that was mended since the visit began, whose rows it
//!    does not look at anew.
//! 5. The floor of a row is one that was in force when the rows were pinned: a younger one vouches
//!    for what has come since, too.

use std::sync::Arc;

use super::Store;
use super::error::{Error, Result};
use super::key::{EngineKey, KeyRange};
use super::scan::{RowFilter, next_start};
use crate::engine::{self, SafePoint};

/// Rows that are passed at most, so that a call has a bound where few rows match.
const ROWS_PASSED_MAX: usize = 50_000;

/// How much of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageBounds {
    /// Rows at most; 0 leaves it to the store.
    pub rows: usize,
    /// It ends with the row that reaches this many bytes; 0 leaves it to the store.
    pub bytes: usize,
}

/// What becomes of partitions that have lost data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDamage {
    /// What is left of them is shown: there is no other copy.
    Show,
    /// They are left to others.
    Stop,
}

/// A stored row and the floor of its partition.
#[derive(Clone, Copy, Debug)]
pub struct FoundRow<'r> {
    /// The encoded row.
    pub row: &'r [u8],
    /// What is at or below it and not live in the row is dead.
    pub floor: u64,
}

/// How far the partitions of a range have been looked at.
struct Floors<'s> {
    store: &'s Store,
    on_damage: OnDamage,
    /// The words of the moment in which the rows were pinned.
    points: Arc<[SafePoint]>,
    first: u32,
    /// The next one to look at.
    next: u32,
    floor: u64,
}

impl Store {
    /// Visits stored rows; each counts for as many bytes as `visit` says, or not at all. Returns
    /// where to go on; `None`: the range was visited to its end.
    ///
    /// # Errors
    /// What `visit` fails with; a source that cannot be read; [`Error::Damaged`] if nothing can be
    /// said of the very first partition.
    pub fn visit_rows(
        &self,
        filter: &RowFilter,
        range: &KeyRange,
        bounds: PageBounds,
        on_damage: OnDamage,
        visit: impl FnMut(&EngineKey<'_>, FoundRow<'_>) -> Result<Option<usize>>,
    ) -> Result<Option<Vec<u8>>> {
        if range.is_empty() {
            return Ok(None);
        }
        let scan = self.engine.scan(&range.start, range.end.as_deref());
        let mut scan = self.watch(scan.map_err(Into::into))?;
        let next = self.visit_scanned(&mut scan, filter, range, bounds, on_damage, visit);
        let next = self.watch(next)?;
        self.engine.wait_scanned(&scan)?;
        Ok(next)
    }

    fn visit_scanned(
        &self,
        scan: &mut engine::Scan,
        filter: &RowFilter,
        range: &KeyRange,
        bounds: PageBounds,
        on_damage: OnDamage,
        mut visit: impl FnMut(&EngineKey<'_>, FoundRow<'_>) -> Result<Option<usize>>,
    ) -> Result<Option<Vec<u8>>> {
        let (rows_max, bytes_max) =
            (self.limits.scan_rows(bounds.rows), self.limits.scan_bytes(bounds.bytes));
        let first = self.partition_at(token_at(&range.start));
        let points = Arc::clone(scan.safe_points());
        let mut floors = Floors { store: self, on_damage, points, first, next: first, floor: 0 };
        let (mut rows, mut bytes, mut passed) = (0, 0, 0);
        while let Some((engine_key, row)) = scan.next()? {
            let place = EngineKey::decode(engine_key)?;
            if let Some(end) = floors.reach(place.token)? {
                return Ok(Some(end));
            }
            passed += 1;
            if filter.matches(&place)
                && let Some(counts) = visit(&place, FoundRow { row, floor: floors.floor })?
            {
                rows += 1;
                bytes += counts;
            }
            if rows >= rows_max || bytes >= bytes_max || passed >= ROWS_PASSED_MAX {
                let next = next_start(filter.tenant.id, &place, engine_key);
                return Ok(next.filter(|next| range.contains(next)));
            }
        }
        floors.reach(last_token(range.end.as_deref()))
    }

    fn partition_at(&self, token: u64) -> u32 {
        let bits = self.engine.options().partition_bits;
        token.checked_shr(u64::BITS - bits).unwrap_or(0) as u32
    }

    /// The first token of a partition.
    fn token_of_partition(&self, partition: u32) -> u64 {
        let bits = self.engine.options().partition_bits;
        u64::from(partition).checked_shl(u64::BITS - bits).unwrap_or(0)
    }
}

impl Floors<'_> {
    /// Looks at all partitions up to that of `token`, and takes over its floor. Returns the start
    /// of the first of them that nothing can be said of.
    fn reach(&mut self, token: u64) -> Result<Option<Vec<u8>>> {
        let partition = self.store.partition_at(token);
        while self.next <= partition {
            let now = self.store.engine.safe_point(self.next)?;
            let pinned = &self.points[self.next as usize];
            let is_damaged = pinned.is_damaged() || now.is_damaged();
            if is_damaged && self.on_damage == OnDamage::Stop {
                if self.next == self.first {
                    return Err(Error::Damaged { partition: self.next });
                }
                let start = self.store.token_of_partition(self.next);
                return Ok(Some(start.to_be_bytes().to_vec()));
            }
            self.floor = if is_damaged { 0 } else { pinned.floor };
            self.next += 1;
        }
        Ok(None)
    }
}

/// The token of the first place at or behind an engine key, or bytes between two.
fn token_at(start: &[u8]) -> u64 {
    let mut token = [0; 8];
    let bytes = start.len().min(token.len());
    token[..bytes].copy_from_slice(&start[..bytes]);
    u64::from_be_bytes(token)
}

/// The last token that a key before `end` can have.
fn last_token(end: Option<&[u8]>) -> u64 {
    match end {
        None => u64::MAX,
        Some(end) if end.len() > 8 => token_at(end),
        Some(end) => token_at(end).saturating_sub(1),
    }
}
