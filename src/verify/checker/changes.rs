//! The writes and deletes of a key, and which of them each context covers.
//!
//! # Invariants
//! 1. Attempts of one write (same value) or one delete (same token) are one change.
//! 2. [`Covered::surely`] holds only what is covered. [`Covered::maybe`] holds all of that, and
//!    besides the writes whose own answer may or may not have covered them. Whatever else a context
//!    covers was covered by an earlier change.

use std::collections::BTreeMap;

use super::Terms;
use crate::verify::history::{Action, Level, Mode, Op, Outcome};

/// How far clocks may be apart when a time to live is judged, in microseconds.
const SKEW_US: u64 = 5_000_000;

/// A set of changes, by index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set(Vec<u64>);

impl Set {
    pub fn insert(&mut self, index: usize) {
        if self.0.len() <= index / 64 {
            self.0.resize(index / 64 + 1, 0);
        }
        self.0[index / 64] |= 1 << (index % 64);
    }

    pub fn contains(&self, index: usize) -> bool {
        self.0.get(index / 64).is_some_and(|word| word >> (index % 64) & 1 == 1)
    }

    pub fn extend(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(word, more)| *word |= more);
    }
}

/// What a context or change covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Covered {
    pub surely: Set,
    pub maybe: Set,
}

impl Covered {
    fn insert(&mut self, index: usize) {
        self.surely.insert(index);
        self.maybe.insert(index);
    }

    /// Whether it grew.
    fn extend(&mut self, other: &Self) -> bool {
        let before = self.clone();
        self.surely.extend(&other.surely);
        self.maybe.extend(&other.maybe);
        *self != before
    }
}

/// A write or delete with all its attempts.
#[derive(Debug)]
pub struct Change<'h> {
    /// The value; none for a delete.
    pub value: Option<&'h str>,
    pub has_token: bool,
    /// The first attempt's beginning.
    pub invoked_us: u64,
    /// The first acknowledgement.
    pub acked_us: Option<u64>,
    /// The first acknowledgement at a level that promises something to quorum reads.
    pub strongly_acked_us: Option<u64>,
    /// The last moment at which it may take effect.
    pub end_us: u64,
    pub outcome: Outcome,
    /// When it may begin to expire.
    pub expires_us: Option<u64>,
    /// When it surely has expired, if it has a time to live at all.
    pub expired_us: Option<u64>,
    pub hlc: Option<u64>,
    context_in: Option<&'h str>,
    /// Whether each attempt was at a level that takes quorum reads and writes into account.
    is_strong: bool,
    /// What it replaces.
    pub covers: Covered,
}

/// What happened to one key.
pub struct KeyHistory<'h> {
    pub place: (&'h str, &'h str),
    pub terms: Terms,
    /// In the order of their beginnings.
    pub ops: Vec<&'h Op>,
    pub changes: Vec<Change<'h>>,
    by_value: BTreeMap<&'h str, usize>,
    contexts: BTreeMap<&'h str, Covered>,
    /// For each change, the beginning of the first other one that may have replaced it.
    excused_from_us: Vec<u64>,
}

impl<'h> KeyHistory<'h> {
    pub fn new(place: (&'h str, &'h str), terms: Terms, mut ops: Vec<&'h Op>) -> Self {
        ops.sort_by_key(|op| (op.invoked_us, op.id));
        let mut history = Self {
            place,
            terms,
            ops,
            changes: Vec::new(),
            by_value: BTreeMap::new(),
            contexts: BTreeMap::new(),
            excused_from_us: Vec::new(),
        };
        let of_op = history.collect_changes();
        history.learn_times();
        while history.learn_contexts(&of_op) {}
        history.excused_from_us = (0..history.changes.len()).map(|at| history.excuse(at)).collect();
        history
    }

    /// Whether quorum reads and writes must take each other into account.
    pub fn is_strong(&self, level: Level) -> bool {
        self.terms.replicas == 1 || level >= Level::Quorum
    }

    pub fn change_of_value(&self, value: &str) -> Option<usize> {
        self.by_value.get(value).copied()
    }

    /// What a context surely covers.
    pub fn covered_by_context(&self, name: &str) -> Option<&Set> {
        self.contexts.get(name).map(|covered| &covered.surely)
    }

    /// The reads that were answered.
    pub fn reads(&self) -> impl Iterator<Item = &'h Op> {
        self.ops.iter().copied().filter(|op| op.is_read() && op.outcome == Outcome::Ok)
    }

    /// Whether `read` should have returned the write `at`, had it been there before: nothing that
    /// began before the read's end can have replaced it.
    pub fn is_missing(&self, at: usize, read: &Op) -> bool {
        let change = &self.changes[at];
        let Some(value) = change.value else { return false };
        let end_us = read.end_us();
        let expired = change.expires_us.is_some_and(|expires_us| expires_us <= end_us);
        !read.saw(value) && !expired && self.excused_from_us[at] >= end_us
    }

    /// Whether `by` surely replaced `at`, if it took effect at all.
    pub fn replaces(&self, by: usize, at: usize) -> bool {
        let (one, other) = (&self.changes[by], &self.changes[at]);
        if by == at {
            return false;
        }
        let later = self.terms.mode == Mode::LastWriteWins
            && matches!((one.hlc, other.hlc), (Some(one), Some(other)) if one > other);
        // A delete without a context covers whatever quorum reads would have shown; where the last
        // write wins only on the only replica, for its time may be the lower one elsewhere.
        let holds_all = one.value.is_none()
            && one.context_in.is_none()
            && one.is_strong
            && (self.terms.replicas == 1 || self.terms.mode == Mode::Siblings)
            && other.strongly_acked_us.is_some_and(|acked_us| acked_us < one.invoked_us);
        later || holds_all || one.covers.surely.contains(at)
    }

    /// Whether `by` may have replaced `at`.
    fn may_replace(&self, by: usize, at: usize) -> bool {
        let (one, other) = (&self.changes[by], &self.changes[at]);
        if by == at || one.outcome == Outcome::NotApplied {
            return false;
        }
        match self.terms.mode {
            Mode::LastWriteWins => match (one.hlc, other.hlc) {
                // Equal times are decided by the actors, which a client does not see.
                (Some(one), Some(other)) => one >= other,
                _ => true,
            },
            Mode::Siblings => {
                let blind = one.value.is_none() && one.context_in.is_none();
                (blind && other.invoked_us < one.end_us) || one.covers.maybe.contains(at)
            }
        }
    }

    fn excuse(&self, at: usize) -> u64 {
        let excuses = (0..self.changes.len()).filter(|by| self.may_replace(*by, at));
        excuses.map(|by| self.changes[by].invoked_us).min().unwrap_or(u64::MAX)
    }

    /// Makes changes of attempts; the change of each operation.
    fn collect_changes(&mut self) -> BTreeMap<u64, usize> {
        let mut of_op = BTreeMap::new();
        let mut by_token: BTreeMap<&str, usize> = BTreeMap::new();
        for op in self.ops.clone().into_iter().filter(|op| !op.is_read()) {
            let known = match (op.value(), op.token()) {
                (Some(value), _) => self.by_value.get(value).copied(),
                (None, Some(token)) => by_token.get(token).copied(),
                (None, None) => None,
            };
            let at = known.unwrap_or(self.changes.len());
            match known {
                Some(at) => self.changes[at].attempt(op),
                None => self.changes.push(Change::new(op)),
            }
            self.changes[at].is_strong &= self.is_strong(op.level);
            if let Some(acked_us) =
                op.returned_us.filter(|_| op.outcome == Outcome::Ok && self.is_strong(op.level))
            {
                let first = &mut self.changes[at].strongly_acked_us;
                *first = Some(first.map_or(acked_us, |first| first.min(acked_us)));
            }
            match (op.value(), op.token()) {
                (Some(value), _) => _ = self.by_value.insert(value, at),
                (None, Some(token)) => _ = by_token.insert(token, at),
                (None, None) => {}
            }
            of_op.insert(op.id, at);
        }
        of_op
    }

    /// The time of a write that was never acknowledged is known from those who saw it.
    fn learn_times(&mut self) {
        for version in self.ops.iter().flat_map(|op| &op.seen) {
            if let Some(at) = self.by_value.get(version.value.as_str()) {
                self.changes[*at].hlc.get_or_insert(version.hlc);
            }
        }
    }

    /// One round of inference; whether it brought anything.
    fn learn_contexts(&mut self, of_op: &BTreeMap<u64, usize>) -> bool {
        let mut news = false;
        for op in self.ops.clone() {
            let given = op.context_in.as_deref().and_then(|name| self.contexts.get(name));
            let mut covers = given.cloned().unwrap_or_default();
            if let Some(at) = of_op.get(&op.id) {
                news |= self.changes[*at].covers.extend(&covers);
                covers.maybe.insert(*at);
                // A write that cannot say what its client has seen gives the context back that it
                // got: the write itself is not in it then. What it gives for none is not known.
                if op.context_in.is_some() && op.context_in != op.context_out {
                    covers.insert(*at);
                }
            }
            for version in &op.seen {
                if let Some(at) = self.by_value.get(version.value.as_str()) {
                    covers.insert(*at);
                    covers.extend(&self.changes[*at].covers);
                }
            }
            if let Some(name) = op.context_out.as_deref() {
                news |= self.contexts.entry(name).or_default().extend(&covers);
            }
        }
        news
    }
}

impl<'h> Change<'h> {
    fn new(op: &'h Op) -> Self {
        let mut change = Self {
            value: op.value(),
            has_token: op.token().is_some(),
            invoked_us: op.invoked_us,
            acked_us: None,
            strongly_acked_us: None,
            end_us: 0,
            outcome: Outcome::NotApplied,
            expires_us: ttl_us(op).map(|ttl_us| (op.invoked_us + ttl_us).saturating_sub(SKEW_US)),
            expired_us: None,
            hlc: None,
            context_in: op.context_in.as_deref(),
            is_strong: true,
            covers: Covered::default(),
        };
        change.attempt(op);
        change
    }

    fn attempt(&mut self, op: &'h Op) {
        self.end_us = self.end_us.max(op.end_us());
        self.hlc = self.hlc.or(op.hlc);
        self.expired_us =
            ttl_us(op).map(|ttl_us| self.end_us.saturating_add(ttl_us).saturating_add(SKEW_US));
        self.outcome = match (self.outcome, op.outcome) {
            (Outcome::Ok, _) | (_, Outcome::Ok) => Outcome::Ok,
            (Outcome::Unknown, _) | (_, Outcome::Unknown) => Outcome::Unknown,
            _ => Outcome::NotApplied,
        };
        if op.outcome == Outcome::Ok {
            self.acked_us = self.acked_us.into_iter().chain(op.returned_us).min();
        }
    }
}

fn ttl_us(op: &Op) -> Option<u64> {
    match op.action {
        Action::Write { ttl_ms, .. } => ttl_ms.map(|ttl_ms| ttl_ms.saturating_mul(1000)),
        _ => None,
    }
}
