//! Rows as replicas and coordinators handle them: bytes, digests, joins under floors.
//!
//! 1. A raw row is the whole state; it never comes from the early stop of a last-write-wins read.
//! 2. A raw row carries the floor its replica vouches for. A damaged partition vouches for nothing
//!    and gives no raw rows, nor one that became so while the row was read.
//! 3. Equal digests under equal floors mean equal versions: what compaction may lawfully have taken
//!    from one of two copies does not count.
//! 4. What replicas hold was accepted once: they give it to each other whatever this node's limits
//!    for clients are.
//! 5. The join of two raw rows vouches for the higher of their floors: what is at or below it and
//!    not live in the join was dead in one of them.

use std::sync::atomic::Ordering;

use xxhash_rust::xxh3::xxh3_64;

use super::Store;
use super::error::{Error, Result};
use super::limits::check_held_key;
use super::read::Early;
use super::row::{ReadRow, View, unreadable, values_at};
use super::tenant::{Tenant, TenantId};
use super::write::DEAD_TOKENS_MAX;
use crate::causality::codec::{self, ALL_DEAD, HAS_EXPIRY, HAS_TOKENS};
use crate::causality::floor::{canonical, canonical_until, purgeable_at};
use crate::causality::forget::forgotten_below;
use crate::causality::{Context, Dot, Mode, Row, Token, join_with_floors};
use crate::engine::SafePoint;
use crate::engine::version::partition_of;

/// A replica's whole word on one row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawRow {
    /// The encoded row; `None`: the replica holds nothing under the key.
    pub row: Option<Vec<u8>>,
    /// What is at or below it and not live in the row is dead.
    pub floor: u64,
}

/// The digest of a row under a floor, and which floors would change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloorDigest {
    /// 0 for a row that may be forgotten.
    pub digest: u64,
    /// The least higher floor under which the digest may be another; `u64::MAX`: none.
    pub until: u64,
    /// The least higher floor under which the row may be forgotten; `u64::MAX`: none.
    pub purgeable_at: u64,
}

impl Store {
    /// The tenant of this number.
    ///
    /// # Errors
    /// [`Error::UnknownTenantId`].
    pub fn tenant_by_id(&self, id: TenantId) -> Result<std::sync::Arc<Tenant>> {
        self.catalog.by_id(id)
    }

    /// Grows with every change of the tenants there are.
    pub fn tenants_version(&self) -> u64 {
        self.catalog.version()
    }

    /// Refuses where this replica has lost data of the key's partition: its word means nothing.
    ///
    /// # Errors
    /// [`Error::Damaged`].
    pub fn check_undamaged(&self, tenant: &Tenant, key: &[u8]) -> Result<()> {
        self.floor_of(&tenant.engine_key(key)).map(|_| ())
    }

    /// The floor of a key's partition.
    fn floor_of(&self, engine_key: &[u8]) -> Result<u64> {
        let partition = self.partition_of_key(engine_key);
        floor_at(partition, &self.engine.safe_point(partition)?)
    }

    fn partition_of_key(&self, engine_key: &[u8]) -> u32 {
        partition_of(engine_key, self.engine.options().partition_bits) as u32
    }

    /// The whole row under a key, with the floor of its partition. May wait for a sync of the log.
    ///
    /// # Errors
    /// [`Error::UnknownTenantId`]; [`Error::Damaged`], or a source that cannot be read: this
    /// replica has no word on the row then.
    pub fn raw_row(&self, tenant: TenantId, key: &[u8]) -> Result<RawRow> {
        let tenant = self.catalog.by_id(tenant)?;
        check_held_key(key)?;
        let engine_key = tenant.engine_key(key);
        // The floor first: one that is installed meanwhile says less about the row, never more.
        let floor = self.floor_of(&engine_key)?;
        let row = self.watch(self.engine.get(&engine_key).map_err(Into::into))?;
        // Not damaged meanwhile either: what is missing may be what was lost.
        self.floor_of(&engine_key)?;
        Ok(RawRow { row, floor })
    }

    /// The whole rows under keys, as [`Store::raw_row`] for each of them, in their order, for
    /// callers that must not block on the log.
    pub fn peek_raw_rows(&self, keys: &[(TenantId, &[u8])]) -> Early<Vec<Result<RawRow>>> {
        self.peek_rows(keys, false)
    }

    /// The same of partitions that may be damaged: what there is, under a floor that counts as 0.
    /// For those who have lost data too.
    pub fn peek_damaged_rows(&self, keys: &[(TenantId, &[u8])]) -> Early<Vec<Result<RawRow>>> {
        self.peek_rows(keys, true)
    }

    fn peek_rows(
        &self,
        keys: &[(TenantId, &[u8])],
        of_damaged: bool,
    ) -> Early<Vec<Result<RawRow>>> {
        let floor_at = |partition, point: &SafePoint| match floor_at(partition, point) {
            Err(Error::Damaged { .. }) if of_damaged => Ok(0),
            floor => floor,
        };
        let place = |(tenant, key): &(TenantId, &[u8])| {
            check_held_key(key)?;
            let engine_key = self.catalog.by_id(*tenant)?.engine_key(key);
            // The floors first, as for one row.
            let partition = self.partition_of_key(&engine_key);
            let floor = floor_at(partition, &self.engine.safe_point(partition)?)?;
            Ok((engine_key, floor))
        };
        let places: Vec<Result<(Vec<u8>, u64)>> = keys.iter().map(place).collect();
        let readable = places.iter().filter_map(|place| place.as_ref().ok());
        let readable: Vec<&[u8]> = readable.map(|(engine_key, _)| &engine_key[..]).collect();
        let mut rows = Vec::with_capacity(readable.len());
        let upto = self.engine.peek_each(&readable, |_, row| {
            rows.push(self.watch(row.map(|row| row.map(<[u8]>::to_vec)).map_err(Into::into)));
        });
        let mut rows = rows.into_iter();
        // Not damaged meanwhile either, as for one row.
        let points = self.engine.safe_points();
        let mut raw = |place: Result<(Vec<u8>, u64)>| {
            let (engine_key, floor) = place?;
            let row = rows.next().unwrap_or(Err(Error::Closed))?;
            let partition = self.partition_of_key(&engine_key);
            floor_at(partition, &points[partition as usize])?;
            Ok(RawRow { row, floor })
        };
        Early { found: places.into_iter().map(&mut raw).collect(), upto }
    }

    /// The digest of a row under the floor of its partition; 0 for no row.
    ///
    /// # Errors
    /// The bytes are no row.
    pub fn digest(&self, raw: &RawRow) -> Result<u64> {
        raw.row.as_ref().map_or(Ok(0), |row| self.digest_under(row, raw.floor))
    }

    /// The digest of a row under a floor.
    ///
    /// # Errors
    /// The bytes are no row.
    pub fn digest_under(&self, bytes: &[u8], floor: u64) -> Result<u64> {
        if floor == 0 && codec::flags(bytes).map_err(unreadable)? & HAS_TOKENS == 0 {
            return Ok(xxh3_64(bytes).max(1));
        }
        let row = codec::decode(bytes).map_err(unreadable)?;
        let window_ms = self.limits.token_window_ms;
        let Some(canonical) = canonical(&row, floor, window_ms) else { return Ok(0) };
        let mut out = Vec::with_capacity(bytes.len());
        codec::encode(&canonical, &mut out);
        Ok(xxh3_64(&out).max(1))
    }

    /// The digest of a row under a floor, and which floors would change it.
    ///
    /// # Errors
    /// The bytes are no row.
    pub fn floor_digest(&self, bytes: &[u8], floor: u64) -> Result<FloorDigest> {
        let row = codec::decode(bytes).map_err(unreadable)?;
        let window_ms = self.limits.token_window_ms;
        let digest = canonical(&row, floor, window_ms).map_or(0, |canonical| {
            if canonical == row {
                return xxh3_64(bytes).max(1);
            }
            let mut out = Vec::with_capacity(bytes.len());
            codec::encode(&canonical, &mut out);
            xxh3_64(&out).max(1)
        });
        let until = canonical_until(&row, floor, window_ms);
        let purgeable = purgeable_at(&row, window_ms).filter(|at| *at > floor);
        Ok(FloorDigest { digest, until, purgeable_at: purgeable.unwrap_or(u64::MAX) })
    }

    /// [`Store::raw_row`] of a partition that has lost data, for an exchange that mends it: it
    /// vouches for nothing.
    ///
    /// # Errors
    /// [`Error::UnknownTenantId`], or a source that cannot be read.
    pub fn damaged_row(&self, tenant: TenantId, key: &[u8]) -> Result<RawRow> {
        let tenant = self.catalog.by_id(tenant)?;
        check_held_key(key)?;
        let row = self.watch(self.engine.get(&tenant.engine_key(key)).map_err(Into::into))?;
        Ok(RawRow { row, floor: 0 })
    }

    /// The join of what two replicas hold. Versions below both floors that only one of them has
    /// are kept and counted.
    ///
    /// # Errors
    /// The bytes are no rows, or of different modes.
    pub fn join_raw(&self, a: RawRow, b: RawRow) -> Result<RawRow> {
        let floor = a.floor.max(b.floor);
        if a.row == b.row {
            return Ok(RawRow { row: a.row, floor });
        }
        let (x, y) = (decoded(&a)?, decoded(&b)?);
        let Some(mode) = x.as_ref().or(y.as_ref()).map(Row::mode) else {
            return Ok(RawRow { row: None, floor });
        };
        let (x, y) = (x.unwrap_or(Row::empty(mode)), y.unwrap_or(Row::empty(mode)));
        let mut alarms = Vec::new();
        let joined = join_with_floors(&x, a.floor, &y, b.floor, &mut alarms)
            .map_err(|mismatch| unreadable(mismatch.into()))?;
        self.counters.below_safe_point.fetch_add(alarms.len() as u64, Ordering::Relaxed);
        let mut out = Vec::new();
        codec::encode(&joined, &mut out);
        Ok(RawRow { row: (!joined.is_empty()).then_some(out), floor })
    }

    /// Whether a row says as much as its join with another, under the floor of that: the same
    /// versions, and every token but those that a row forgets early.
    ///
    /// # Errors
    /// The bytes are no rows.
    pub fn says_all_of(&self, row: Option<&[u8]>, joined: &RawRow) -> Result<bool> {
        if row == joined.row.as_deref() {
            return Ok(true);
        }
        let digest = row.map_or(Ok(0), |row| self.digest_under(row, joined.floor))?;
        if digest != self.digest(joined)? {
            return Ok(false);
        }
        // Of two rows that may be forgotten nobody asks for a token any more.
        let (Some(row), Some(joined)) = (row.filter(|_| digest != 0), &joined.row) else {
            return Ok(true);
        };
        let (row, joined) = (codec::decode(row), codec::decode(joined));
        let (row, joined) = (row.map_err(unreadable)?, joined.map_err(unreadable)?);
        let forgotten = forgotten_below(&row, DEAD_TOKENS_MAX);
        let is_known = |&(token, time): &(Token, u64)| {
            row.token_time(token).is_some() || forgotten.is_some_and(|below| (time, token) < below)
        };
        Ok(joined.tokens().iter().all(is_known))
    }

    /// Whether a row has a version at or below a floor.
    ///
    /// # Errors
    /// The bytes are no row.
    pub fn has_version_below(&self, bytes: &[u8], floor: u64) -> Result<bool> {
        Ok(codec::live_time_min(bytes).map_err(unreadable)? <= floor)
    }

    /// What a client reads in a row of `tenant`.
    ///
    /// # Errors
    /// The bytes are no row.
    pub fn show(&self, tenant: &Tenant, key: &[u8], row: Option<&[u8]>) -> Result<ReadRow> {
        let context_key = self.context_key(&tenant.engine_key(key));
        View { context_key, now_ms: self.now_ms(), keys_only: false }.show(row)
    }

    /// Whether a reader finds a value in a row now.
    ///
    /// # Errors
    /// The bytes are no row.
    pub fn has_value(&self, row: &[u8]) -> Result<bool> {
        let flags = codec::flags(row).map_err(unreadable)?;
        if flags & (ALL_DEAD | HAS_EXPIRY) != HAS_EXPIRY {
            return Ok(flags & ALL_DEAD == 0);
        }
        let row = codec::decode(row).map_err(unreadable)?;
        Ok(values_at(&row, self.now_ms()) > 0)
    }

    /// Whether a row shows all that the client's context has seen, or what replaced it.
    ///
    /// # Errors
    /// [`Error::InvalidContext`]; the bytes are no row.
    pub fn covers(
        &self,
        tenant: &Tenant,
        key: &[u8],
        raw: &RawRow,
        context: &[u8],
    ) -> Result<bool> {
        let context = self.context_from(context, &tenant.engine_key(key))?;
        let row = decoded(raw)?;
        Ok(covers(row.as_ref(), raw.floor, &context))
    }

    /// Whether a client may ask for what this context has seen.
    ///
    /// # Errors
    /// [`Error::InvalidContext`].
    pub fn check_context(&self, tenant: &Tenant, key: &[u8], context: &[u8]) -> Result<()> {
        self.context_from(context, &tenant.engine_key(key)).map(|_| ())
    }

    /// Whether the row knows of the write that this idempotency key names.
    ///
    /// # Errors
    /// The bytes are no row.
    pub fn knows_token(
        &self,
        tenant: &Tenant,
        key: &[u8],
        raw: &RawRow,
        idempotency_key: &[u8],
    ) -> Result<bool> {
        let Some(row) = &raw.row else { return Ok(false) };
        let token = super::idempotency::token_of(&tenant.engine_key(key), idempotency_key);
        Ok(codec::decode(row).map_err(unreadable)?.token_time(token).is_some())
    }
}

fn floor_at(partition: u32, point: &SafePoint) -> Result<u64> {
    if point.is_damaged() { Err(Error::Damaged { partition }) } else { Ok(point.floor) }
}

fn decoded(raw: &RawRow) -> Result<Option<Row<'_>>> {
    raw.row.as_deref().map(codec::decode).transpose().map_err(unreadable)
}

/// Whether `row`, under `floor`, has seen all that `context` has. What is at or below the floor may
/// have been forgotten, and is dead where it is not live.
fn covers(row: Option<&Row<'_>>, floor: u64, context: &Context) -> bool {
    let seen = |dot: &Dot, time: u64| time <= floor || row.is_some_and(|row| row.has_seen(dot));
    let clocks = context.clock_entries().iter();
    let mut clocks = clocks.map(|&(actor, time)| (Dot::Plain { actor, time }, time));
    let mut tokens = context.tokens().iter();
    // A last-write-wins row names no tokens in its contexts.
    let tokens_count = row.is_none_or(|row| row.mode() == Mode::Siblings);
    let forgotten = row.and_then(|row| forgotten_below(row, DEAD_TOKENS_MAX));
    let may_be_forgotten =
        |token: Token, time: u64| forgotten.is_some_and(|below| (time, token) < below);
    clocks.all(|(dot, time)| seen(&dot, time))
        && (!tokens_count
            || tokens.all(|&(token, time)| {
                seen(&Dot::Token(token), time) || may_be_forgotten(token, time)
            }))
}
