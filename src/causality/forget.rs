//! What a row forgets before its time, and what stays true of it.
//!
//! A row remembers the token of a version that was replaced for two reasons: it proves that the
//! version is dead, and a retry of the write finds itself. A floor says when nobody needs that any
//! more ([`super::floor`]). A key that is overwritten all day cannot wait for it, so beyond a bound
//! the oldest dead tokens go early.
//!
//! That is no step up the lattice, and no bounded row could make it one: it cannot tell a token
//! that it forgot from one that it never saw. To take both for seen would kill writes that nobody
//! has replaced; so both are unseen, and [`join`] knows nothing of all this: its
//! laws hold for any rows. What is given up: a replica that has missed the replacing write and the
//! `tokens_max` tokened writes of the key after it still holds the old version, and that comes back
//! as a sibling when they are compared. Nothing is ever lost.
//!
//! # Invariants
//! 1. A write forgets nothing that it replaced itself, however old: neither what was live in the
//!    row that it read nor what its context names. Its row joined with what it was made from, or
//!    with a replica that holds what it replaced, has no version that it has not. So among the
//!    records of one node, which are states of one history, nothing comes back, whichever of them
//!    are joined again after a crash.
//! 2. The newest `tokens_max` dead tokens stay. A row with fewer has forgotten nothing, and one
//!    with as many has forgotten none that is newer than all of these.

use super::dot::{Dot, Token};
use super::join::{ModeMismatch, join};
use super::row::Row;

/// Forgets the oldest tokens without a live version, except those that `is_spared`, until at most
/// `tokens_max` such are left, and says how many went.
///
/// REQUIRES: invariant 1 in what is spared.
pub fn evict_tokens(
    row: &mut Row<'_>,
    tokens_max: usize,
    is_spared: impl Fn(Token) -> bool,
) -> usize {
    let mut dead = dead_tokens(row);
    let surplus = dead.len().saturating_sub(tokens_max);
    if surplus == 0 {
        return 0;
    }
    dead.sort_unstable();
    dead.truncate(surplus);
    dead.retain(|(_, token)| !is_spared(*token));
    row.tokens.retain(|&(token, time)| dead.binary_search(&(time, token)).is_err());
    dead.len()
}

/// The place in the order of `(time, token)` below which a row with this bound may have forgotten
/// tokens; `None`: it has forgotten none.
pub fn forgotten_below(row: &Row<'_>, tokens_max: usize) -> Option<(u64, Token)> {
    let mut dead = dead_tokens(row);
    let oldest_kept = dead.len().checked_sub(tokens_max)?;
    dead.sort_unstable();
    dead.get(oldest_kept).copied()
}

/// Whether `row`, which forgets beyond `tokens_max`, holds everything that `older` does: their join
/// is `row`. Of a row that may have forgotten tokens those of `older` and their versions are left
/// out: it may also have met some of them again, from elsewhere, in any state.
///
/// # Errors
/// [`ModeMismatch`] if the rows are of different modes.
pub fn contains(row: &Row<'_>, older: &Row<'_>, tokens_max: usize) -> Result<bool, ModeMismatch> {
    if join(row, older)? == *row {
        return Ok(true);
    }
    if forgotten_below(row, tokens_max).is_none() {
        return Ok(false);
    }
    let mut remembered = older.clone();
    remembered.tokens.clear();
    remembered.live.retain(|(dot, _)| matches!(dot, Dot::Plain { .. }));
    Ok(join(row, &remembered)? == *row)
}

/// The tokens without a live version, each behind its time.
fn dead_tokens(row: &Row<'_>) -> Vec<(u64, Token)> {
    let dead = row.tokens.iter().filter(|(token, _)| row.version_of_token(*token).is_none());
    dead.map(|&(token, time)| (time, token)).collect()
}
