//! Writes and deletes.
//!
//! Two ways lead into the engine:
//!
//! | tenant | way |
//! |---|---|
//! | last-write-wins, no idempotency key | *blind*: a version above all the client has seen is appended as a Delta. Nothing is read |
//! | siblings; any with an idempotency key | *rewrite*: the row is read, changed and put back under its stripe lock |
//!
//! # Invariants
//! 1. Times are minted above the row, the context and the guard of the partition, inside the stripe
//!    lock (rewrite), or above the context and raised again if a fence overtook them (blind).
//! 2. What is logged is a whole row.
//! 3. A context that a client gets covers only what it has seen: its own write and what its own
//!    context covered. Where no context can say that (its write has a concurrent sibling of the
//!    same actor) it gets back the one it gave. So two reads apart, a sibling never disappears
//!    without having been read.
//! 4. Success is told only when the log is durable; a duplicate too, for the first attempt may not
//!    have been acknowledged. So is a refusal for what the row holds: it tells of earlier writes.
//!
//! A delete without a context covers what this node holds; a coordinator first brings it what a
//! quorum holds.

use super::Store;
use super::error::{Error, Result};
use super::idempotency;
use super::prepared::{Prepared, Shipped};
use super::row::{View, causal_mode, unreadable, values_at};
use super::tenant::{Mode, Tenant};
use crate::causality::forget::{evict_tokens, forgotten_below};
use crate::causality::write::{drop_expired, mint_above, write};
use crate::causality::{
    Context, ContextKey, Dot, NewVersion, Outcome, Payload, Row, Token, Version, clock, codec,
};
use crate::engine::{self, OnStall, Position};

/// Dead tokens that a row keeps at most: beyond, the oldest go before their window is over.
pub(super) const DEAD_TOKENS_MAX: usize = 1024;
/// Rows that are put together before they are logged, in bytes; the last may go beyond.
const ROUND_BYTES_MAX: usize = 16 << 20;
/// How often a blind write is minted anew because a fence overtook it.
const FENCE_RETRIES: usize = 8;

/// One write or delete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mutation {
    /// The key.
    pub key: Vec<u8>,
    /// The value; `None` deletes.
    pub value: Option<Vec<u8>>,
    /// What the value is, as the client says; empty for a delete.
    pub content_type: String,
    /// What the client has seen of the key, from a read or an earlier write.
    pub context: Option<Vec<u8>>,
    /// Time to live in milliseconds; without it the tenant's default. Not for a delete.
    pub ttl_ms: Option<u64>,
    /// Names the write, so that it can be sent again: 1 to 64 bytes.
    pub idempotency_key: Option<Vec<u8>>,
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What the client has seen now, for its next write of the key.
    pub context: Vec<u8>,
    /// Live values the key has now, as far as was looked at: a blind write counts its own only.
    pub siblings: u32,
    /// Whether there are so many siblings that somebody should resolve them.
    pub sibling_warning: bool,
    /// The write had been made before, under the same idempotency key.
    pub duplicate: bool,
    /// The time of the write, on the hybrid logical clock.
    pub hlc: u64,
}

/// What is called when a batch is durable, with one outcome for each of its items.
pub type Done = Box<dyn FnOnce(Vec<Result<Written>>) + Send>;

/// A mutation whose every part has been checked.
struct Checked<'m> {
    engine_key: Vec<u8>,
    /// `None`: a delete without a context, which covers what the row holds.
    context: Option<Context>,
    new: NewVersion<'m>,
    /// When the idempotency key was born, if it says so.
    born_ms: Option<u64>,
    now_ms: u64,
}

impl Store {
    /// Writes one key and waits until the write is durable.
    ///
    /// # Errors
    /// Any; [`Error::outcome`] says whether the write may still appear.
    pub fn write(&self, tenant: &str, mutation: Mutation) -> Result<Written> {
        let mut results = self.write_batch(tenant, vec![mutation]);
        results.pop().unwrap_or(Err(Error::Closed))
    }

    /// Writes a batch and waits until it is durable. The items are independent: each has its own
    /// outcome, in the order of the batch, and none waits for another.
    pub fn write_batch(&self, tenant: &str, batch: Vec<Mutation>) -> Vec<Result<Written>> {
        let Prepared { results, position, .. } =
            self.apply(tenant, &batch, OnStall::Wait, Shipped::nothing());
        if position == Position::ZERO {
            return results;
        }
        let durable = self.engine.wait_durable(position);
        settle(results, durable.map_err(Error::from))
    }

    /// Like [`Store::write_batch`] for callers that must not block on the disk: `done` is called
    /// once, when the batch is durable or has failed, on a thread of the engine or on this one.
    /// Where the other would wait for a flush or a compaction, this one refuses.
    pub fn submit(&self, tenant: &str, batch: Vec<Mutation>, done: Done) {
        let Prepared { results, position, .. } =
            self.apply(tenant, &batch, OnStall::Refuse, Shipped::nothing());
        self.on_durable(position, move |durable| {
            done(settle(results, durable.map_err(Error::from)));
        });
    }

    /// Puts a batch into the log and the memtable. [`Shipped`] says whether anybody wants the rows.
    pub(super) fn apply(
        &self,
        tenant: &str,
        batch: &[Mutation],
        on_stall: OnStall,
        mut shipped: Shipped,
    ) -> Prepared {
        let bytes = batch.iter().map(Mutation::bytes).sum();
        let tenant = self.limits.check_batch(batch.len(), bytes).and_then(|()| {
            self.check_open()?;
            self.catalog.get(tenant)
        });
        let tenant = match tenant {
            Ok(tenant) => tenant,
            Err(error) => {
                let results = batch.iter().map(|_| Err(error.clone())).collect();
                return Prepared { results, rows: Vec::new(), position: Position::ZERO };
            }
        };
        let now_ms = self.now_ms();
        let (mut blind, mut rewrites) = (Vec::new(), Vec::new());
        let mut results = Vec::with_capacity(batch.len());
        for (index, mutation) in batch.iter().enumerate() {
            match self.check(&tenant, mutation, now_ms) {
                Ok(item) if tenant.mode == Mode::LastWriteWins && item.new.token.is_none() => {
                    blind.push((index, item));
                }
                Ok(item) => rewrites.push((index, item)),
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            }
            // Every item that was put aside gets its outcome below.
            results.push(Err(Error::Closed));
        }
        let blind = self.apply_blind(&blind, &mut results, on_stall, &mut shipped);
        let rewritten =
            self.apply_rewrites(&tenant, &rewrites, &mut results, on_stall, &mut shipped);
        let rows = shipped.of(&tenant, batch, &results);
        Prepared { results, rows, position: blind.max(rewritten) }
    }

    fn check<'m>(
        &self,
        tenant: &Tenant,
        mutation: &'m Mutation,
        now_ms: u64,
    ) -> Result<Checked<'m>> {
        let limits = &self.limits;
        limits.check_key(&mutation.key)?;
        let (payload, expires_at_ms) = match &mutation.value {
            Some(value) => {
                limits.check_value(value)?;
                limits.check_content_type(&mutation.content_type)?;
                self.check_disk(value.len())?;
                let ttl_ms = tenant.ttl_ms(mutation.ttl_ms, limits)?;
                let content_type = mutation.content_type.as_str();
                let expires_at_ms = ttl_ms.map_or(0, |ttl_ms| now_ms.saturating_add(ttl_ms));
                (Payload::Value { value, content_type }, expires_at_ms)
            }
            None if mutation.ttl_ms.is_some() => {
                let why = "a delete does not expire".to_owned();
                return Err(Error::InvalidArgument { what: "ttl", why });
            }
            None => (Payload::Tombstone, 0),
        };
        let engine_key = tenant.engine_key(&mutation.key);
        let context = match (&mutation.context, &mutation.value) {
            (Some(bytes), _) => Some(self.context_from(bytes, &engine_key)?),
            (None, Some(_)) => Some(Context::default()),
            (None, None) => None,
        };
        let (mut token, mut born_ms) = (None, None);
        if let Some(key) = &mutation.idempotency_key {
            born_ms = idempotency::check(key, now_ms, limits)?;
            token = Some(idempotency::token_of(&engine_key, key));
        }
        let new = NewVersion { payload, expires_at_ms, token };
        Ok(Checked { engine_key, context, new, born_ms, now_ms })
    }

    pub(super) fn context_from(&self, bytes: &[u8], engine_key: &[u8]) -> Result<Context> {
        self.limits.check_context(bytes)?;
        let key = self.context_key(engine_key);
        // As far ahead as rows may be: a node that was started anew gives such times for a while.
        Context::decode(bytes, key, self.minter.latest(), self.limits.context_bytes_max)
            .map_err(|error| Error::InvalidContext { why: error.to_string() })
    }

    /// Appends last-write-wins versions without reading.
    fn apply_blind(
        &self,
        items: &[(usize, Checked<'_>)],
        results: &mut [Result<Written>],
        on_stall: OnStall,
        shipped: &mut Shipped,
    ) -> Position {
        if items.is_empty() {
            return Position::ZERO;
        }
        for _ in 0..FENCE_RETRIES {
            match self.try_blind(items, results, on_stall, shipped) {
                Ok(position) => return position,
                Err(Error::BelowSafePoint) => {}
                Err(error) => {
                    items.iter().for_each(|(index, _)| results[*index] = Err(error.clone()));
                    return Position::ZERO;
                }
            }
        }
        items.iter().for_each(|(index, _)| results[*index] = Err(Error::BelowSafePoint));
        Position::ZERO
    }

    fn try_blind(
        &self,
        items: &[(usize, Checked<'_>)],
        results: &mut [Result<Written>],
        on_stall: OnStall,
        shipped: &mut Shipped,
    ) -> Result<Position> {
        let actor = self.actor();
        let mut rows = Vec::with_capacity(items.len());
        for (index, item) in items {
            let above = item.context.as_ref().map_or(0, Context::time_max);
            let time = self.minter.mint_lww(above, false)?;
            let version = Version::new(item.new.payload, item.new.expires_at_ms, time);
            let mut row = Vec::with_capacity(self.row_capacity(&item.new));
            codec::encode_lww_version(actor, &version, &mut row);
            rows.push(row);
            let context = Context::of_winner(actor, time);
            results[*index] = Ok(Written {
                context: self.view(item).context(&context),
                siblings: u32::from(!version.is_dead()),
                sibling_warning: false,
                duplicate: false,
                hlc: time,
            });
        }
        let records: Vec<(&[u8], &[u8])> = items
            .iter()
            .zip(&rows)
            .map(|((_, item), row)| (&item.engine_key[..], &row[..]))
            .collect();
        let position =
            self.engine.apply_with(&records, on_stall).map_err(|error| self.failed(error))?;
        for ((index, _), row) in items.iter().zip(rows) {
            shipped.take(*index, row);
        }
        Ok(position)
    }

    /// Reads, changes and puts back rows under their stripe locks.
    fn apply_rewrites(
        &self,
        tenant: &Tenant,
        mut items: &[(usize, Checked<'_>)],
        results: &mut [Result<Written>],
        on_stall: OnStall,
        shipped: &mut Shipped,
    ) -> Position {
        let mut end = Position::ZERO;
        let mut round_max = usize::MAX;
        while !items.is_empty() {
            let round = &items[..items.len().min(round_max)];
            let error = match self.try_rewrites(tenant, round, results, on_stall, shipped) {
                Ok((position, done)) => {
                    end = end.max(position);
                    items = &items[done..];
                    if done < round.len() {
                        // Not many more than can be taken: all that are looked at are read.
                        round_max = round_max.min(2 * done);
                    }
                    continue;
                }
                Err(error) => error,
            };
            let is_of_a_key = self.is_of_a_key(&error);
            // First of all: damage replaces the actor that the others are written under.
            let error = self.failed(error);
            // Nothing of the round was written.
            let (failed, rest) = match is_of_a_key {
                true if round.len() > 1 => (&items[..0], items),
                true => items.split_at(1),
                false => (items, &items[..0]),
            };
            failed.iter().for_each(|(index, _)| results[*index] = Err(error.clone()));
            // One after the other: one of the keys is to blame, and it is not said which.
            (items, round_max) = (rest, 1);
        }
        end
    }

    /// Whether a batch failed before anything was written, for a key that cannot be read or put
    /// back. A store that takes no more writes may have failed in the middle of one.
    fn is_of_a_key(&self, error: &engine::Error) -> bool {
        use engine::Error;
        let is_of_a_key =
            matches!(error, Error::Corruption(_) | Error::Merge(_) | Error::OutOfBounds { .. });
        is_of_a_key && self.engine.poisoned().is_none()
    }

    /// As many of the items, from the first on, as make rows of [`ROUND_BYTES_MAX`]: a write of few
    /// bytes may be one to a row of megabytes. Where the log ends behind them, and how many.
    fn try_rewrites(
        &self,
        tenant: &Tenant,
        items: &[(usize, Checked<'_>)],
        results: &mut [Result<Written>],
        on_stall: OnStall,
        shipped: &mut Shipped,
    ) -> engine::Result<(Position, usize)> {
        let keys: Vec<&[u8]> = items.iter().map(|(_, item)| &item.engine_key[..]).collect();
        // The log takes a round at once, in one segment.
        let bytes_max = ROUND_BYTES_MAX.min(self.engine.options().log_segment_bytes as usize / 4);
        let shipped_before = shipped.len();
        let (mut bytes, mut done) = (0, items.len());
        let make = |at: usize, row: Option<&[u8]>, guard: u64| {
            if at == 0 {
                // Perhaps once more, because a fence came between.
                shipped.truncate(shipped_before);
                (bytes, done) = (0, items.len());
            }
            if at >= done {
                return Ok(None);
            }
            let (index, item) = &items[at];
            let made = shipped.check().and_then(|()| self.rewrite(tenant, item, row, guard));
            match made {
                Ok((row, written)) => {
                    results[*index] = Ok(written);
                    shipped.copy(*index, &row);
                    bytes += row.len();
                    if bytes >= bytes_max {
                        done = at + 1;
                    }
                    Ok(Some(row))
                }
                // The item is refused, not the batch.
                Err(error) => {
                    results[*index] = Err(error);
                    Ok(None)
                }
            }
        };
        let end: engine::Result<_> = self.engine.update_with(&keys, make, on_stall);
        if end.is_err() {
            shipped.truncate(shipped_before);
        }
        Ok((end?, done))
    }

    /// The row after the write, and what to tell the client.
    fn rewrite(
        &self,
        tenant: &Tenant,
        item: &Checked<'_>,
        stored: Option<&[u8]>,
        guard: u64,
    ) -> Result<(Vec<u8>, Written)> {
        let row = match stored {
            Some(stored) => codec::decode(stored).map_err(unreadable)?,
            None => Row::empty(causal_mode(tenant.mode)),
        };
        if let Some(token) = item.new.token
            && let Some(time) = row.token_time(token)
        {
            let written = self.duplicate(item, &row, token, time)?;
            // The same bytes again: their position in the log is what the client waits for.
            return Ok((stored.unwrap_or_default().to_vec(), written));
        }
        if let Some(born_ms) = item.born_ms {
            check_remembered(&row, born_ms, item.now_ms, self.limits.clock_skew_ms_max)?;
        }
        let seen = item.context.clone().unwrap_or_else(|| Context::of(&row));
        let actor = self.actor();
        let above = mint_above(&row, &seen).max(guard);
        let time = match tenant.mode {
            Mode::Siblings => self.minter.mint(above)?,
            Mode::LastWriteWins => self.minter.mint_lww(above, item.new.token.is_some())?,
        };
        let before = row.live().len();
        let Outcome::Written(mut after) = write(&row, &seen, actor, time, item.new) else {
            return Err(Error::IdempotencyConflict);
        };
        self.drop_expired(&mut after, item.now_ms);
        let replaces =
            |token| row.version_of_token(token).is_some() || seen.has_seen(&Dot::Token(token));
        self.counters.tokens_evicted(evict_tokens(&mut after, DEAD_TOKENS_MAX, replaces));
        if after.live().len() > before {
            // One that resolves siblings is always taken, or nobody could ever get below.
            self.limits.check_siblings(after.live().len())?;
        }
        let mut bytes =
            Vec::with_capacity(stored.map_or(0, <[u8]>::len) + self.row_capacity(&item.new));
        codec::encode(&after, &mut bytes);
        if bytes.len() > stored.map_or(0, <[u8]>::len) {
            self.limits.check_row(bytes.len())?;
        }
        let dot = match item.new.token {
            Some(token) if tenant.mode == Mode::Siblings => Dot::Token(token),
            _ => Dot::Plain { actor, time },
        };
        Ok((bytes, self.written(item, &after, seen, dot, time)))
    }

    /// Takes out what has expired, by the steady clock: what is shipped without it is dead
    /// everywhere.
    fn drop_expired(&self, row: &mut Row<'_>, now_ms: u64) {
        let margin_ms = self.limits.clock_skew_ms_max;
        let seems_by = now_ms.saturating_sub(margin_ms);
        // Rarely anything has: only then the clock is asked that all writers share.
        if row.live().iter().any(|(_, version)| version.has_expired_at(seems_by)) {
            drop_expired(row, now_ms.min(self.steady_ms()).saturating_sub(margin_ms));
        }
    }

    /// The answer to a write that the row has seen before.
    fn duplicate(
        &self,
        item: &Checked<'_>,
        row: &Row<'_>,
        token: Token,
        time: u64,
    ) -> Result<Written> {
        if let Some(first) = row.version_surely_of(token) {
            let retry = Version::new(item.new.payload, item.new.expires_at_ms, time);
            let (known, given) = (first.payload_hash(), retry.payload_hash());
            // The bytes of a stripped version are not known any more.
            if !matches!(first.payload(), Payload::Stripped) && known != given {
                return Err(Error::IdempotencyConflict);
            }
        }
        // A delete without a context covered what the row held when it was made, not what it holds
        // now.
        let seen = item.context.clone().unwrap_or_default();
        let written = self.written(item, row, seen, Dot::Token(token), time);
        Ok(Written { duplicate: true, ..written })
    }

    fn written(
        &self,
        item: &Checked<'_>,
        row: &Row<'_>,
        seen: Context,
        dot: Dot,
        time: u64,
    ) -> Written {
        let siblings = values_at(row, item.now_ms);
        Written {
            context: self.view(item).context(&seen_after(row, seen, dot, time)),
            siblings: u32::try_from(siblings).unwrap_or(u32::MAX),
            sibling_warning: self.limits.warns_of_siblings(row.live().len()),
            duplicate: false,
            hlc: time,
        }
    }

    fn view(&self, item: &Checked<'_>) -> View {
        let context_key: ContextKey = self.context_key(&item.engine_key);
        View { context_key, now_ms: item.now_ms, keys_only: false }
    }

    /// Room for a row that holds `new`, so that encoding it does not allocate twice.
    fn row_capacity(&self, new: &NewVersion<'_>) -> usize {
        const BESIDE_THE_VALUE: usize = 96;
        match new.payload {
            Payload::Value { value, content_type } => {
                BESIDE_THE_VALUE + value.len() + content_type.len()
            }
            Payload::Tombstone | Payload::Stripped => BESIDE_THE_VALUE,
        }
    }

    /// What to tell the writers of a batch that the engine did not take. An error of the log or of
    /// a join comes so late that the write may be there.
    pub(super) fn failed(&self, error: engine::Error) -> Error {
        let late = matches!(error, engine::Error::Io { .. } | engine::Error::Merge(_));
        let error = self.noted(error.into());
        if late { Error::unknown(error) } else { error }
    }
}

impl Mutation {
    /// Bytes that the limit of a batch counts: key, value and context.
    pub fn bytes(&self) -> usize {
        let optional = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        self.key.len() + optional(&self.value) + optional(&self.context)
    }
}

/// Refuses a token that the row does not know and that is as old as those which it may have
/// forgotten early: it cannot be told from one that was written. A key may say that it was born
/// up to `skew_ms` after it was written.
fn check_remembered(row: &Row<'_>, born_ms: u64, now_ms: u64, skew_ms: u64) -> Result<()> {
    let Some((time, _)) = forgotten_below(row, DEAD_TOKENS_MAX) else { return Ok(()) };
    let forgotten_ms = clock::ms_of_time(time).saturating_add(skew_ms);
    if born_ms > forgotten_ms {
        return Ok(());
    }
    let (age_ms, limit_ms) = (now_ms.saturating_sub(born_ms), now_ms.saturating_sub(forgotten_ms));
    Err(Error::TokenExpired { age_ms, limit_ms })
}

/// What the writer of `dot` has seen: invariant 3.
fn seen_after(row: &Row<'_>, seen: Context, dot: Dot, time: u64) -> Context {
    let is_alone = |(only, _): &(Dot, Version<'_>)| *only == dot;
    if row.mode() == crate::causality::Mode::LastWriteWins || row.live().iter().all(is_alone) {
        return Context::of(row);
    }
    let with_write = seen.clone().with_write(dot, time);
    let covers_another =
        row.live().iter().any(|(other, _)| *other != dot && with_write.has_seen(other));
    if covers_another { seen } else { with_write }
}

/// The outcomes of a batch once the log has answered.
pub(super) fn settle(results: Vec<Result<Written>>, durable: Result<()>) -> Vec<Result<Written>> {
    let Err(error) = durable else { return results };
    let settled = results.into_iter().map(|result| match result {
        Ok(_) => Err(Error::unknown(error.clone())),
        // What it tells of may be gone after the next start.
        Err(refusal) if refusal.tells_of_row() => Err(error.clone()),
        Err(refusal) => Err(refusal),
    });
    settled.collect()
}
