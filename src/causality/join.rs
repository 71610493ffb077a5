//! The join of two rows.
//!
//! # Laws
//! Commutative, associative, idempotent; a version survives exactly if no write anywhere has seen
//! it (`laws` checks it against histories). With floors ([`join_with_floors`]) a version also goes
//! when the other side's floor declares it dead.

use std::cmp::Ordering;

use super::dot::Dot;
use super::row::{Mode, Row};
use super::version::Version;

/// The two rows belong to tenants of different modes: one of them is not what it claims to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a siblings row cannot be joined with a last-write-wins row")]
pub struct ModeMismatch;

/// A version that both sides' floors cover but only one side has.
///
/// It is kept. Somebody has lost data without noticing, which an operator should know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BelowBothFloors(pub Dot);

/// The join of two rows.
///
/// # Errors
/// [`ModeMismatch`] if they are of different modes.
pub fn join<'a>(x: &Row<'a>, y: &Row<'a>) -> Result<Row<'a>, ModeMismatch> {
    join_with_floors(x, 0, y, 0, &mut Vec::new())
}

/// The join of two replicas' rows, each with the floor that its replica vouches for (0 if it is
/// damaged or vouches for nothing): "every dot at or below it that my row does not hold live is
/// dead". Versions below both floors that only one side has are kept and reported in `alarms`. A
/// last-write-wins version that a floor declares dead is left as a delete.
///
/// # Errors
/// [`ModeMismatch`] if the rows are of different modes.
pub fn join_with_floors<'a>(
    x: &Row<'a>,
    x_floor: u64,
    y: &Row<'a>,
    y_floor: u64,
    alarms: &mut Vec<BelowBothFloors>,
) -> Result<Row<'a>, ModeMismatch> {
    if x.mode != y.mode {
        return Err(ModeMismatch);
    }
    let vv = merge_sorted(&x.vv, &y.vv, |a, b| *a.max(b));
    let tokens = merge_sorted(&x.tokens, &y.tokens, |a, b| *a.min(b));
    let mut survives =
        |side: &Row<'_>, floor: u64, other: &Row<'_>, other_floor: u64, dot: &Dot| {
            if other.has_seen(dot) {
                return false;
            }
            let time = side.time_of(dot);
            if floor < time && time <= other_floor {
                return false;
            }
            if time <= other_floor {
                alarms.push(BelowBothFloors(*dot));
            }
            true
        };
    let mut live: Vec<(Dot, Version<'a>)> = Vec::with_capacity(x.live.len() + y.live.len());
    for (dot, version) in &x.live {
        match y.version(dot) {
            Some(theirs) => live.push((*dot, greater(version, theirs))),
            None if survives(x, x_floor, y, y_floor, dot) => live.push((*dot, *version)),
            None => {}
        }
    }
    for (dot, version) in &y.live {
        if x.version(dot).is_none() && survives(y, y_floor, x, x_floor, dot) {
            live.push((*dot, *version));
        }
    }
    live.sort_unstable_by_key(|entry| entry.0);
    if x.mode == Mode::LastWriteWins && live.is_empty() {
        // The greater version is dead by a floor. It stays as a delete, so that the join contains
        // both rows and kills the value where it is put; the lesser one had lost to it anyway.
        let versions = x.live.iter().chain(&y.live).copied();
        let greater = versions.max_by(lww_order);
        live.extend(greater.map(|(dot, version)| (dot, version.buried())));
    }
    Ok(Row { mode: x.mode, vv, tokens, live })
}

/// The order that decides between two last-write-wins versions: `(time, actor)`, then the bytes.
pub(super) fn lww_order(x: &(Dot, Version<'_>), y: &(Dot, Version<'_>)) -> Ordering {
    let rank = |dot: &Dot| match dot {
        Dot::Plain { actor, time } => (*time, actor.to_u64()),
        Dot::Token(_) => (0, 0),
    };
    rank(&x.0).cmp(&rank(&y.0)).then_with(|| x.1.rank(&y.1))
}

/// The version that stays of two under one dot.
fn greater<'a>(x: &Version<'a>, y: &Version<'a>) -> Version<'a> {
    if x.rank(y) == Ordering::Less { *y } else { *x }
}

/// The union of two sorted lists; `both` picks the value where a key is in both.
fn merge_sorted<K: Ord + Copy, V: Copy>(
    x: &[(K, V)],
    y: &[(K, V)],
    both: impl Fn(&V, &V) -> V,
) -> Vec<(K, V)> {
    let mut merged = Vec::with_capacity(x.len().max(y.len()));
    let (mut i, mut j) = (0, 0);
    while i < x.len() && j < y.len() {
        match x[i].0.cmp(&y[j].0) {
            Ordering::Less => {
                merged.push(x[i]);
                i += 1;
            }
            Ordering::Greater => {
                merged.push(y[j]);
                j += 1;
            }
            Ordering::Equal => {
                merged.push((x[i].0, both(&x[i].1, &y[j].1)));
                i += 1;
                j += 1;
            }
        }
    }
    merged.extend_from_slice(&x[i..]);
    merged.extend_from_slice(&y[j..]);
    merged
}
