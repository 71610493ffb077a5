//! The invariants, each a function over one key. A read "shows" a write when it returns its value
//! or when something that had seen it may have replaced it before the read ended.

use std::collections::{BTreeMap, BTreeSet};

use super::changes::KeyHistory;
use super::{Invariant, Violation};
use crate::verify::history::{Action, Event, Level, Mode, Op, Outcome, Version};

/// How long after the last fault a cluster may take to be whole again, in microseconds.
const RECOVERY_US: u64 = 60_000_000;

/// Reasons of refusals that are the client's doing: no sign that the cluster is not available.
const DESERVED: [&str; 4] =
    ["IDEMPOTENCY_CONFLICT", "ROW_TOO_LARGE", "TOKEN_EXPIRED", "TOO_MANY_SIBLINGS"];

type Rule = fn(&KeyHistory<'_>, &mut Vec<Violation>);

/// What is wrong with one key.
pub fn of_key(history: &KeyHistory<'_>) -> Vec<Violation> {
    const RULES: [Rule; 7] =
        [durability, regularity, monotony, sessions, convergence, siblings, returned];
    let mut found = Vec::new();
    RULES.iter().for_each(|rule| rule(history, &mut found));
    found
}

fn violation(
    history: &KeyHistory<'_>,
    invariant: Invariant,
    value: &str,
    op: &Op,
    what: String,
) -> Violation {
    let (tenant, key) = history.place;
    let place = (tenant.to_owned(), key.to_owned());
    Violation { invariant, place, value: value.to_owned(), op: op.id, what }
}

/// I1 and I3: what the last reads must show.
fn durability(history: &KeyHistory<'_>, found: &mut Vec<Violation>) {
    for read in history.reads().filter(|op| op.is_last_read()) {
        for (at, change) in history.changes.iter().enumerate() {
            let Some(value) = change.value else { continue };
            if !history.is_missing(at, read) {
                continue;
            }
            let shows = |other: &&Op| other.end_us() < read.invoked_us && other.saw(value);
            if change.acked_us.is_some_and(|acked_us| acked_us < read.invoked_us) {
                let what = format!(
                    "{value} was acknowledged, nothing replaced it, and {} does not have it in \
                     the end (op {})",
                    read.node, read.id
                );
                found.push(violation(history, Invariant::Durability, value, read, what));
            } else if let Some(seen) = history.reads().find(shows) {
                let what = format!(
                    "{value} was seen (op {}), nothing replaced it, and {} does not have it in the \
                     end (op {})",
                    seen.id, read.node, read.id
                );
                found.push(violation(history, Invariant::NoFalseOverwrite, value, read, what));
            }
        }
    }
}

fn strong_reads<'h>(history: &KeyHistory<'h>) -> impl Iterator<Item = &'h Op> {
    history.reads().filter(|op| history.is_strong(op.level))
}

/// I7.
fn regularity(history: &KeyHistory<'_>, found: &mut Vec<Violation>) {
    for read in strong_reads(history) {
        for (at, change) in history.changes.iter().enumerate() {
            let before =
                change.strongly_acked_us.is_some_and(|acked_us| acked_us < read.invoked_us);
            if let Some(value) = change.value.filter(|_| before && history.is_missing(at, read)) {
                let what = format!(
                    "{value} was acknowledged before the read began, nothing replaced it, and the \
                     read does not show it (op {})",
                    read.id
                );
                found.push(violation(history, Invariant::QuorumRegularity, value, read, what));
            }
        }
    }
}

/// I8.
fn monotony(history: &KeyHistory<'_>, found: &mut Vec<Violation>) {
    // For each write, the first end of a read that showed it.
    let mut shown: BTreeMap<usize, &Op> = BTreeMap::new();
    for read in strong_reads(history) {
        for at in read.seen.iter().filter_map(|seen| history.change_of_value(&seen.value)) {
            let first = shown.entry(at).or_insert(read);
            if read.end_us() < first.end_us() {
                *first = read;
            }
        }
    }
    for read in strong_reads(history) {
        for (at, first) in &shown {
            let value = history.changes[*at].value.unwrap_or_default();
            if first.end_us() < read.invoked_us && history.is_missing(*at, read) {
                let what = format!(
                    "{value} was shown (op {}), nothing replaced it, and a later read does not \
                     show it (op {})",
                    first.id, read.id
                );
                found.push(violation(history, Invariant::MonotonicReads, value, read, what));
            }
        }
    }
}

/// I6.
fn sessions(history: &KeyHistory<'_>, found: &mut Vec<Violation>) {
    for read in history.reads() {
        let Action::Read { min_context: Some(name), .. } = &read.action else { continue };
        let Some(covered) = history.covered_by_context(name) else { continue };
        for (at, change) in history.changes.iter().enumerate() {
            if covered.contains(at) && history.is_missing(at, read) {
                let value = change.value.unwrap_or_default();
                let what = format!(
                    "the context given with the read has seen {value}, nothing replaced it, and \
                     the read does not show it (op {})",
                    read.id
                );
                found.push(violation(history, Invariant::Sessions, value, read, what));
            }
        }
    }
}

/// I2.
fn convergence(history: &KeyHistory<'_>, found: &mut Vec<Violation>) {
    // What expires between two reads is there in one of them.
    let ended_us = history.reads().filter(|op| op.is_last_read()).map(Op::end_us).max();
    let lasts = |value: &str| {
        let change = history.change_of_value(value).map(|at| &history.changes[at]);
        change.is_none_or(|change| change.expires_us.is_none_or(|us| Some(us) > ended_us))
    };
    let values = |op: &Op| -> BTreeSet<String> {
        let values = op.seen.iter().map(|version| version.value.clone());
        values.filter(|value| lasts(value)).collect()
    };
    let mut last = history.reads().filter(|op| op.is_last_read());
    let Some(first) = last.next() else { return };
    for read in last.filter(|read| values(read) != values(first)) {
        let what = format!(
            "in the end {} says {:?} (op {}) and {} says {:?} (op {})",
            first.node,
            values(first),
            first.id,
            read.node,
            values(read),
            read.id
        );
        found.push(violation(history, Invariant::Convergence, "", read, what));
    }
}

/// I4, and the part of I10 that one read shows.
fn siblings(history: &KeyHistory<'_>, found: &mut Vec<Violation>) {
    for read in history.reads() {
        for (nth, version) in read.seen.iter().enumerate() {
            let value = version.value.as_str();
            if read.seen[..nth].iter().any(|other| other.value == value) {
                let what = format!("{value} is there twice (op {})", read.id);
                found.push(violation(history, Invariant::Once, value, read, what));
                continue;
            }
            if history.terms.mode == Mode::LastWriteWins && nth > 0 {
                let what = format!("{value} is a second version (op {})", read.id);
                found.push(violation(history, Invariant::NoFalseSibling, value, read, what));
                continue;
            }
            let Some(at) = history.change_of_value(value) else { continue };
            let beside = read.seen.iter().find(|other| {
                let by = history.change_of_value(&other.value);
                by.is_some_and(|by| history.changes[by].covers.surely.contains(at) && by != at)
            });
            if let Some(beside) = beside {
                let what = format!(
                    "{value} stands beside {}, whose writer had seen it (op {})",
                    beside.value, read.id
                );
                found.push(violation(history, Invariant::NoFalseSibling, value, read, what));
            }
        }
    }
}

/// I5, the rest of I10, and I11: what a read must not show.
fn returned(history: &KeyHistory<'_>, found: &mut Vec<Violation>) {
    // For each write, the acknowledgement of the first that surely replaced it.
    let replaced_us: Vec<Option<u64>> = (0..history.changes.len())
        .map(|at| {
            let by = (0..history.changes.len()).filter(|by| history.replaces(*by, at));
            by.filter_map(|by| history.changes[by].strongly_acked_us).min()
        })
        .collect();
    for read in history.reads() {
        let strong = history.is_strong(read.level) || read.is_last_read();
        for version in &read.seen {
            let value = version.value.as_str();
            let Some(at) = history.change_of_value(value) else { continue };
            let change = &history.changes[at];
            if change.outcome == Outcome::NotApplied {
                let what =
                    format!("{value} was answered not_applied, and is there (op {})", read.id);
                found.push(violation(history, Invariant::OutcomeHonesty, value, read, what));
            }
            if change.expired_us.is_some_and(|expired_us| expired_us < read.invoked_us) {
                let invariant = Invariant::NoResurrection;
                let what = format!("{value} has expired, and is there (op {})", read.id);
                found.push(violation(history, invariant, value, read, what));
            }
            if strong && replaced_us[at].is_some_and(|acked_us| acked_us < read.invoked_us) {
                let invariant = match change.has_token {
                    true => Invariant::Once,
                    false => Invariant::NoResurrection,
                };
                let what = format!("{value} was replaced, and is there again (op {})", read.id);
                found.push(violation(history, invariant, value, read, what));
            }
        }
    }
}

/// Versions that somebody saw at a place: a client, or who looked at a disk.
struct Sighting<'h> {
    id: u64,
    tenant: &'h str,
    key: &'h str,
    versions: &'h [Version],
    on_disk: bool,
}

impl Sighting<'_> {
    fn violation(&self, invariant: Invariant, value: &str, what: String) -> Violation {
        let place = (self.tenant.to_owned(), self.key.to_owned());
        Violation { invariant, place, value: value.to_owned(), op: self.id, what }
    }
}

fn sightings(events: &[Event]) -> Vec<Sighting<'_>> {
    let sighting = |event| match event {
        &Event::Op(Op { id, ref tenant, ref key, seen: ref versions, .. }) => {
            Some(Sighting { id, tenant, key, versions, on_disk: false })
        }
        &Event::Row { id, ref tenant, ref key, ref versions, .. } => {
            Some(Sighting { id, tenant, key, versions, on_disk: true })
        }
        Event::Tenant { .. } | Event::Fault { .. } | Event::Agreed { .. } => None,
    };
    events.iter().filter_map(sighting).collect()
}

/// What is wrong across keys, or visible without their histories: I9, I15, I16, and I2 and I11 on
/// disks.
pub fn of_all(events: &[Event]) -> Vec<Violation> {
    let ops: Vec<&Op> = events
        .iter()
        .filter_map(|event| match event {
            Event::Op(op) => Some(op),
            _ => None,
        })
        .collect();
    let sightings = sightings(events);
    let mut found = Vec::new();
    dots(&sightings, &mut found);
    equality(events, &mut found);
    written(&ops, &sightings, &mut found);
    liveness(events, &ops, &mut found);
    found
}

/// I9.
fn dots(sightings: &[Sighting<'_>], found: &mut Vec<Violation>) {
    let mut values: BTreeMap<(&str, &str, &str), &str> = BTreeMap::new();
    for seen in sightings {
        for version in seen.versions {
            let Some(dot) = &version.dot else { continue };
            let first = values.entry((seen.tenant, seen.key, dot)).or_insert(&version.value);
            if *first != version.value {
                let what =
                    format!("the dot {dot} is {first}, and {} (op {})", version.value, seen.id);
                found.push(seen.violation(Invariant::DotUniqueness, &version.value, what));
            }
        }
    }
}

/// I2 on disks: what the replicas of a key hold in the end, down to what no client sees.
fn equality(events: &[Event], found: &mut Vec<Violation>) {
    let mut first_of: BTreeMap<(&str, &str), (&str, &str)> = BTreeMap::new();
    for event in events {
        let Event::Row { id, node, tenant, key, digest: Some(digest), .. } = event else {
            continue;
        };
        let (first, expected) = *first_of.entry((tenant, key)).or_insert((node, digest));
        if expected != digest {
            let what = format!(
                "in the end {first} holds a row of digest {expected} and {node} one of {digest} \
                 (op {id})"
            );
            let (invariant, value) = (Invariant::Convergence, String::new());
            let place = (tenant.clone(), key.clone());
            found.push(Violation { invariant, place, value, op: *id, what });
        }
    }
}

/// I15, and I11 on disks: a value that is there was written there, and not refused.
fn written(ops: &[&Op], sightings: &[Sighting<'_>], found: &mut Vec<Violation>) {
    let mut outcomes: BTreeMap<(&str, &str, &str), bool> = BTreeMap::new();
    for op in ops {
        let Some(value) = op.value() else { continue };
        let refused = outcomes.entry((&op.tenant, &op.key, value)).or_insert(true);
        *refused &= op.outcome == Outcome::NotApplied;
    }
    for seen in sightings {
        for version in seen.versions {
            let value = version.value.as_str();
            match outcomes.get(&(seen.tenant, seen.key, value)) {
                None => {
                    let what = format!("nobody wrote {value} there (op {})", seen.id);
                    found.push(seen.violation(Invariant::TenantIsolation, value, what));
                }
                Some(true) if seen.on_disk => {
                    let what = format!(
                        "{value} was answered not_applied, and lies on a disk (op {})",
                        seen.id
                    );
                    found.push(seen.violation(Invariant::OutcomeHonesty, value, what));
                }
                Some(_) => {}
            }
        }
    }
}

/// I16.
fn liveness(events: &[Event], ops: &[&Op], found: &mut Vec<Violation>) {
    let faults = events.iter().filter_map(|event| match event {
        Event::Fault { at_us, .. } => Some(*at_us),
        _ => None,
    });
    let Some(last_us) = faults.max() else { return };
    let agreed = events.iter().filter_map(|event| match event {
        Event::Agreed { at_us } if *at_us >= last_us => Some(*at_us),
        _ => None,
    });
    let due_us = agreed.chain([last_us + RECOVERY_US]).min().expect("there is one");
    for op in ops {
        let due = op.level == Level::Quorum && op.invoked_us >= due_us;
        if due && op.outcome != Outcome::Ok && !DESERVED.contains(&op.reason.as_str()) {
            let what = format!(
                "an operation at QUORUM failed {} s after the last fault: {} (op {})",
                (op.invoked_us - last_us) / 1_000_000,
                op.reason,
                op.id
            );
            let place = (op.tenant.clone(), op.key.clone());
            let invariant = Invariant::Liveness;
            found.push(Violation { invariant, place, value: String::new(), op: op.id, what });
        }
    }
}
