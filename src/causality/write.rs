//! One write on top of a row.

use super::actor::Actor;
use super::context::Context;
use super::dot::{Dot, Token};
use super::row::{Mode, Row, insert};
use super::version::{Payload, Version};

/// What a client wants written.
#[derive(Clone, Copy, Debug)]
pub struct NewVersion<'a> {
    /// A value or [`Payload::Tombstone`].
    pub payload: Payload<'a>,
    /// Wall-clock milliseconds, 0 for never.
    pub expires_at_ms: u64,
    /// The hash of the client's idempotency key.
    pub token: Option<Token>,
}

/// What a write came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome<'a> {
    /// The row after the write.
    Written(Row<'a>),
    /// The row has seen this token: there is nothing to do.
    Duplicate,
}

/// The bound above which a write on `row` with `context` is minted: everything either has seen. So
/// a dot of the row's own past is never minted again, the newest live dot of a written row is the
/// write's own, and a last-write-wins write never loses to what its client has seen.
pub fn mint_above(row: &Row<'_>, context: &Context) -> u64 {
    row.time_max().max(context.time_max())
}

/// Applies a write minted by `actor` at `time` to `row`: what the context has seen goes, what is
/// concurrent stays (in [`Mode::Siblings`]).
///
/// `join(row, written) == written`: the result contains the row it was applied to.
///
/// # Panics
/// In debug builds, if `time` is not above [`mint_above`]: such a dot could be one already used.
pub fn write<'a>(
    row: &Row<'a>,
    context: &Context,
    actor: Actor,
    time: u64,
    new: NewVersion<'a>,
) -> Outcome<'a> {
    debug_assert!(time > mint_above(row, context), "minted at or below what was seen");
    if new.token.is_some_and(|token| row.token_time(token).is_some()) {
        return Outcome::Duplicate;
    }
    let version = Version::new(new.payload, new.expires_at_ms, time);
    let plain = Dot::Plain { actor, time };
    let mut tokens = row.tokens.clone();
    for &(token, seen_at) in context.tokens() {
        insert(&mut tokens, token, seen_at, u64::min);
    }
    if let Some(token) = new.token {
        insert(&mut tokens, token, time, u64::min);
    }
    if row.mode == Mode::LastWriteWins {
        let live = vec![(plain, version)];
        return Outcome::Written(Row { mode: row.mode, vv: Vec::new(), tokens, live });
    }
    let mut vv = row.vv.clone();
    for &(seen, up_to) in context.clock_entries() {
        insert(&mut vv, seen, up_to, u64::max);
    }
    let dot = match new.token {
        Some(token) => Dot::Token(token),
        None => {
            insert(&mut vv, actor, time, u64::max);
            plain
        }
    };
    let mut live = row.live.clone();
    live.retain(|(old, _)| !context.has_seen(old));
    insert(&mut live, dot, version, |_, new| new);
    Outcome::Written(Row { mode: row.mode, vv, tokens, live })
}

/// Takes out the versions that have expired at `now_ms`. The row keeps having seen them, so they
/// are dead wherever it is joined.
pub fn drop_expired(row: &mut Row<'_>, now_ms: u64) {
    row.live.retain(|(_, version)| !version.has_expired_at(now_ms));
}
