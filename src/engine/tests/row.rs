//! The row of the model that the engine's rules were found with, as a merge operator.
//!
//! A row is a clock `actor -> t` and live versions `(actor, t) -> value or tombstone`: the
//! smallest lattice in which losing a record, hiding one or bringing a dead one back shows.

use std::collections::BTreeMap;

use crate::engine::merge::{MergeError, MergeOperator};

pub type Dot = (u8, u64);

/// See the module page. `Some(n)` is a value, `None` a tombstone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub clock: BTreeMap<u8, u64>,
    pub live: BTreeMap<Dot, Option<u32>>,
}

impl Row {
    pub fn has_seen(&self, (actor, t): Dot) -> bool {
        self.clock.get(&actor).is_some_and(|seen| t <= *seen)
    }

    pub fn join(&self, other: &Self) -> Self {
        let keeps = |mine: &Self, theirs: &Self| {
            let kept = mine
                .live
                .iter()
                .filter(|(dot, _)| theirs.live.contains_key(dot) || !theirs.has_seen(**dot));
            kept.map(|(dot, value)| (*dot, *value)).collect::<Vec<_>>()
        };
        let mut clock = self.clock.clone();
        for (actor, t) in &other.clock {
            let mine = clock.entry(*actor).or_default();
            *mine = (*mine).max(*t);
        }
        Self { clock, live: keeps(self, other).into_iter().chain(keeps(other, self)).collect() }
    }

    /// The row after `actor` wrote `value` at `t`, replacing all it has (`covers`) or beside it.
    pub fn write(&self, actor: u8, t: u64, covers: bool, value: Option<u32>) -> Self {
        let mut row = self.clone();
        if covers {
            row.live.clear();
        }
        row.clock.insert(actor, t);
        row.live.insert((actor, t), value);
        row
    }

    /// The greatest time in it.
    pub fn time_max(&self) -> u64 {
        self.clock.values().copied().max().unwrap_or(0)
    }

    /// Whether `self` is at or above `other` in the order of the lattice.
    pub fn contains(&self, other: &Self) -> bool {
        self.join(other) == *self
    }

    pub fn values(&self) -> Vec<u32> {
        self.live.values().flatten().copied().collect()
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.clock.len() as u8];
        for (actor, t) in &self.clock {
            out.push(*actor);
            out.extend_from_slice(&t.to_le_bytes());
        }
        for ((actor, t), value) in &self.live {
            out.push(*actor);
            out.extend_from_slice(&t.to_le_bytes());
            out.extend_from_slice(&value.map_or(u32::MAX, |value| value).to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, MergeError> {
        let wrong = || MergeError("not a row of the tests".into());
        let long = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).map_err(|_| wrong());
        let (clocks, rest) = bytes.split_first().ok_or_else(wrong)?;
        let (clocks, live) = rest.split_at_checked(usize::from(*clocks) * 9).ok_or_else(wrong)?;
        let mut row = Self::default();
        for entry in clocks.chunks_exact(9) {
            row.clock.insert(entry[0], long(&entry[1..])?);
        }
        if live.len() % 13 != 0 {
            return Err(wrong());
        }
        for entry in live.chunks_exact(13) {
            let value = u32::from_le_bytes(entry[9..].try_into().map_err(|_| wrong())?);
            let value = (value != u32::MAX).then_some(value);
            row.live.insert((entry[0], long(&entry[1..9])?), value);
        }
        Ok(row)
    }
}

/// Joins [`Row`]s.
#[derive(Clone, Copy)]
pub struct RowJoin {
    /// Whether a Full that hides what it lacks is caught where it does: not where the damage itself
    /// is to be seen.
    pub checks_claims: bool,
}

impl MergeOperator for RowJoin {
    fn contains(&self, row: &[u8], older: &[u8]) -> Result<bool, MergeError> {
        Ok(!self.checks_claims || Row::decode(row)?.contains(&Row::decode(older)?))
    }

    fn join(&self, a: &[u8], b: &[u8], out: &mut Vec<u8>) -> Result<(), MergeError> {
        out.extend_from_slice(&Row::decode(a)?.join(&Row::decode(b)?).encode());
        Ok(())
    }

    fn live_time_min(&self, row: &[u8]) -> Result<u64, MergeError> {
        let row = Row::decode(row)?;
        Ok(row.live.keys().map(|(_, t)| *t).min().unwrap_or(u64::MAX))
    }

    fn time_max(&self, row: &[u8]) -> Result<u64, MergeError> {
        Ok(Row::decode(row)?.time_max())
    }

    fn strip(
        &self,
        incoming: &[u8],
        local: Option<&[u8]>,
        guard: u64,
        _floor: u64,
        out: &mut Vec<u8>,
    ) -> Result<bool, MergeError> {
        let mut row = Row::decode(incoming)?;
        let local = local.map_or_else(|| Ok(Row::default()), Row::decode)?;
        row.live.retain(|dot, _| dot.1 > guard || local.live.contains_key(dot));
        out.extend_from_slice(&row.encode());
        Ok(true)
    }

    fn may_purge(&self, row: &[u8], floor: u64) -> Result<bool, MergeError> {
        let row = Row::decode(row)?;
        Ok(row.time_max() <= floor && row.live.values().all(Option::is_none))
    }
}
