//! Safe points: what may be forgotten, and what must not come back.
//!
//! Of each partition a replica knows a *guard* (it mints nothing at or below it and takes nothing
//! new from there) and a *floor* ("every dot at or below it that my row does not hold live is
//! dead"). All functions here judge against those two, never against a clock, so that replicas
//! judge alike.
//!
//! # Invariants
//! 1. Only a row that lies wholly at or below the floor, and holds no value that could still be
//!    read, is purged.
//! 2. Entries are pruned only from rows that lie wholly at or below the floor: beside newer writes
//!    an entry is still the only proof that they replaced what it covers.
//! 3. A token is kept until its window is over, however low it lies.

use super::clock::{ms_of_time, time_of_ms};
use super::dot::Dot;
use super::row::{Mode, Row};

/// What becomes of a state that arrives with versions at or below the guard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission<'a> {
    /// All of it is above the guard, held live here or seen here: take it as it is.
    Whole,
    /// Take this: the versions that are dead here are gone, its clock entries stay.
    Stripped(Row<'a>),
    /// Refuse it: it would bring something that is dead, or may soon be proved so.
    Refused,
}

/// Judges `incoming` against the guard and floor of its partition, and what is held `local`ly.
///
/// A version is dropped if it is at or below the guard and the local row neither holds it live nor
/// has seen it. The message is refused as a whole if only the guard, and not yet the floor, covers
/// such a version, or if its newest version is one (a write's own version is its newest).
pub fn admit<'a>(
    incoming: &Row<'a>,
    local: Option<&Row<'_>>,
    guard: u64,
    floor: u64,
) -> Admission<'a> {
    let is_dead = |dot: &Dot| {
        incoming.time_of(dot) <= guard
            && !local.is_some_and(|row| row.version(dot).is_some() || row.has_seen(dot))
    };
    let newest = incoming.live.iter().map(|(dot, _)| dot).max_by_key(|dot| incoming.time_of(dot));
    if !incoming.live.iter().any(|(dot, _)| is_dead(dot)) {
        return Admission::Whole;
    }
    if guard > floor || newest.is_some_and(is_dead) {
        return Admission::Refused;
    }
    let mut stripped = incoming.clone();
    stripped.live.retain(|(dot, _)| !is_dead(dot));
    Admission::Stripped(stripped)
}

/// Whether the row, of which every source is at hand, may be forgotten below `floor`.
///
/// `token_window_ms` is how long a retry of a token is accepted.
pub fn may_purge(row: &Row<'_>, floor: u64, token_window_ms: u64) -> bool {
    let floor_ms = ms_of_time(floor);
    row.time_max() <= floor
        && row
            .live
            .iter()
            .all(|(_, version)| version.is_gone_at(floor_ms) && version.expires_at_ms() <= floor_ms)
        && row.tokens.iter().all(|&(_, time)| is_window_over(time, floor, token_window_ms))
}

/// The least floor under which [`may_purge`] forgets the row; `None` while it holds a value that
/// does not expire.
pub fn purgeable_at(row: &Row<'_>, token_window_ms: u64) -> Option<u64> {
    let keeps = |version: &super::Version<'_>| !version.is_dead() && version.expires_at_ms() == 0;
    if row.live.iter().any(|(_, version)| keeps(version)) {
        return None;
    }
    let expiries = row.live.iter().map(|(_, version)| time_of_ms(version.expires_at_ms()));
    let window = time_of_ms(token_window_ms);
    let windows = row.tokens.iter().map(|entry| entry.1.saturating_add(window));
    expiries.chain(windows).chain([row.time_max()]).max()
}

/// The least floor above `floor` under which [`canonical`] may be another than under `floor`;
/// `u64::MAX` for none.
pub fn canonical_until(row: &Row<'_>, floor: u64, token_window_ms: u64) -> u64 {
    let expiries = row.live.iter().map(|(_, version)| version.expires_at_ms());
    let expiries = expiries.filter(|at| *at != 0).map(time_of_ms);
    let prunes = (row.mode == Mode::Siblings).then(|| row.time_max());
    let changes = expiries.chain(prunes).chain(purgeable_at(row, token_window_ms));
    changes.filter(|at| *at > floor).min().unwrap_or(u64::MAX)
}

/// Takes out of a row that lies wholly at or below `floor` the clock entries and tokens that have
/// no live version, and says whether anything went. Not a lattice step: only for states that no
/// older record can be joined with again (the exchange between replicas under floors).
pub fn prune(row: &mut Row<'_>, floor: u64, token_window_ms: u64) -> bool {
    if row.mode == Mode::LastWriteWins || row.time_max() > floor {
        return false;
    }
    let before = row.vv.len() + row.tokens.len();
    let live = &row.live;
    row.vv.retain(|(actor, _)| {
        live.iter().any(|(dot, _)| matches!(dot, Dot::Plain { actor: a, .. } if a == actor))
    });
    row.tokens.retain(|&(token, time)| {
        live.iter().any(|(dot, _)| *dot == Dot::Token(token))
            || !is_window_over(time, floor, token_window_ms)
    });
    before != row.vv.len() + row.tokens.len()
}

/// Strips the value bytes of the versions that have expired at the floor, and says whether any
/// had.
pub fn strip_expired(row: &mut Row<'_>, floor: u64) -> bool {
    let mut any = false;
    for (_, version) in &mut row.live {
        if !version.is_dead() && version.has_expired_at(ms_of_time(floor)) {
            *version = version.stripped();
            any = true;
        }
    }
    any
}

/// The row without what replicas may lawfully differ in below `floor`: tokens whose version is
/// gone, the bytes of expired values, what may be pruned; `None` if all of it may be purged.
///
/// Two replicas with the same floor hold the same versions if and only if this is the same.
pub fn canonical<'a>(row: &Row<'a>, floor: u64, token_window_ms: u64) -> Option<Row<'a>> {
    if row.is_empty() || may_purge(row, floor, token_window_ms) {
        return None;
    }
    let mut canonical = row.clone();
    strip_expired(&mut canonical, floor);
    prune(&mut canonical, floor, token_window_ms);
    canonical.tokens.retain(|&(token, _)| row.version_of_token(token).is_some());
    Some(canonical)
}

/// Whether a token first written at `time` is refused everywhere once the floor has passed.
fn is_window_over(time: u64, floor: u64, token_window_ms: u64) -> bool {
    time.saturating_add(time_of_ms(token_window_ms)) <= floor
}
