//! Finds in a history what a store that keeps its promises cannot have done.
//!
//! | file | what |
//! |---|---|
//! | `changes` | the writes and deletes of a key, and which of them each context covers |
//! | `rules` | the invariants, each a function over one key |
//! | [`shrink`] | the smallest history that still shows a violation |
//!
//! The checker knows what clients know. Contexts are opaque, so what one covers is inferred: a
//! read's covers what the read returned, a write's covers what the context given with it did, and
//! what a context covers it covers with all that was covered by that. This is a lower bound, good
//! to accuse a version that should be gone, and since whatever else a context may cover was covered
//! by some write before it, also good to look for an excuse for one that is gone.
//!
//! Not checked here: I12 to I14 (drain, layout, movement of data), which no client sees; of I15,
//! the part about latency.

mod changes;
mod rules;
pub mod shrink;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::history::{Event, Mode, Op};
use changes::KeyHistory;

/// The promises, with their numbers in `docs/verification.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "`statement` says what each means")]
pub enum Invariant {
    Durability = 1,
    Convergence = 2,
    NoFalseOverwrite = 3,
    NoFalseSibling = 4,
    NoResurrection = 5,
    Sessions = 6,
    QuorumRegularity = 7,
    MonotonicReads = 8,
    DotUniqueness = 9,
    Once = 10,
    OutcomeHonesty = 11,
    TenantIsolation = 15,
    Liveness = 16,
}

impl Invariant {
    /// All that are checked.
    pub const ALL: [Self; 13] = [
        Self::Durability,
        Self::Convergence,
        Self::NoFalseOverwrite,
        Self::NoFalseSibling,
        Self::NoResurrection,
        Self::Sessions,
        Self::QuorumRegularity,
        Self::MonotonicReads,
        Self::DotUniqueness,
        Self::Once,
        Self::OutcomeHonesty,
        Self::TenantIsolation,
        Self::Liveness,
    ];

    /// What it says.
    pub fn statement(self) -> &'static str {
        match self {
            Self::Durability => "an acknowledged write is there in the end, or was replaced",
            Self::Convergence => "in the end all nodes say the same",
            Self::NoFalseOverwrite => {
                "a version that was seen disappears only by a write that had seen it"
            }
            Self::NoFalseSibling => "no version stands beside one that its writer had seen",
            Self::NoResurrection => "what was replaced, deleted or has expired does not come back",
            Self::Sessions => "a read with a context shows at least what the context has seen",
            Self::QuorumRegularity => {
                "a quorum read shows the quorum writes acknowledged before it, or their successors"
            }
            Self::MonotonicReads => "a quorum read shows what an earlier one showed, or successors",
            Self::DotUniqueness => "a dot names one value",
            Self::Once => "a write sent again under its token takes effect once",
            Self::OutcomeHonesty => "a write that was answered not_applied never appears",
            Self::TenantIsolation => "a read shows only what was written to its tenant and key",
            Self::Liveness => {
                "when all replicas agree, or a minute after the last fault, all operations succeed"
            }
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I{}", *self as u8)
    }
}

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// The tenant and the key.
    pub place: (String, String),
    /// The value that should or should not be there; empty if it is not about one.
    pub value: String,
    /// The operation, or the row on a disk, that shows it.
    pub op: u64,
    /// For people.
    pub what: String,
}

impl Violation {
    /// Whether it is the same finding, however it is worded.
    fn is(&self, other: &Self) -> bool {
        let identity = |of: &Self| (of.invariant, of.op);
        identity(self) == identity(other) && self.place == other.place && self.value == other.value
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (tenant, key) = &self.place;
        write!(f, "{} tenant {tenant:?} key {key:?}: {}", self.invariant, self.what)
    }
}

/// What a tenant promises.
#[derive(Clone, Copy, Debug)]
struct Terms {
    mode: Mode,
    replicas: u32,
}

/// Everything that is wrong with a history, each finding once, in order.
pub fn check(events: &[Event]) -> Vec<Violation> {
    let mut terms = BTreeMap::new();
    let mut keys: BTreeMap<(&str, &str), Vec<&Op>> = BTreeMap::new();
    for event in events {
        match event {
            Event::Tenant { name, mode, replicas } => {
                terms.insert(name.as_str(), Terms { mode: *mode, replicas: *replicas });
            }
            Event::Fault { .. } | Event::Agreed { .. } | Event::Row { .. } => {}
            Event::Op(op) => keys.entry((&op.tenant, &op.key)).or_default().push(op),
        }
    }
    let mut found = BTreeSet::new();
    for ((tenant, key), ops) in keys {
        // Of a tenant that nobody declared the strictest is not known: the mildest is assumed.
        let unknown = Terms { mode: Mode::Siblings, replicas: u32::MAX };
        let terms = terms.get(tenant).copied().unwrap_or(unknown);
        found.extend(rules::of_key(&KeyHistory::new((tenant, key), terms, ops)));
    }
    found.extend(rules::of_all(events));
    found.into_iter().collect()
}
