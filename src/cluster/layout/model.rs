//! Every history of one write through a transition, searched for one that breaks a promise.
//!
//! Rows are joined, so writes are independent, and one bit for each replica is enough: whether its
//! row covers the write `w`. Any message may be lost, late, repeated and overtaken, any node may be
//! dead for any time (it just does nothing), a coordinator may act under any stamp ever given.
//! `w` must be seen once it was acknowledged (I1, I7) or returned by a quorum read (I8). Violated:
//! some stamp ever given still finds a read quorum that answers it without `w`; for writes at ONE:
//! no copy is left.
//!
//! The search is breadth first, so the history it finds is a shortest one. It uses the arithmetic
//! of [`rules`](super::rules); `cases` has the transitions that must hold and, for each [`Rule`],
//! one that breaks without it. Not searched: partitions that differ (they are independent), disks
//! that forget, more than five nodes.

mod cases;

use std::collections::{HashMap, VecDeque};
use std::fmt::Write;

use super::rules;

/// A set of nodes, a bit each.
type Mask = u8;

/// Most documents and nodes of a case.
const MAX: usize = 5;

/// What may be taken away to see what breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// R1 for writes: a replica refuses lower stamps.
    FenceWrites,
    /// R1 for reads.
    FenceReads,
    /// The fence outlives a restart.
    DurableFence,
    /// R1: a higher stamp is learnt before it is acted upon.
    LearnFirst,
    /// R3: acks count only for the epoch they were given at.
    RestartAcks,
    /// T3: a source answers after its fence is durable.
    SnapshotAfterFence,
    /// T4: a blocking count of sources.
    BlockingSources,
    /// T4: receipts of another epoch are dropped.
    ReceiptEpoch,
    /// D1: a row is deleted only when a quorum of owners holds it.
    Dominance,
    /// T5: a blocking count of fence reports.
    FenceReports,
    /// The promise I8: what a quorum read returned is seen by later ones.
    MonotonicReads,
}

/// So many of these must answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Demand {
    of: Mask,
    count: u32,
}

/// A layout document as coordinators and replicas act upon it.
#[derive(Clone, Debug)]
struct Phase {
    writes: Vec<Demand>,
    reads: Vec<Demand>,
    stamp: u8,
    /// Who owns, if it is Stable: others then drop their rows.
    owners: Option<Mask>,
    begins: Begins,
}

/// When a document may be committed.
#[derive(Clone, Copy, Debug)]
enum Begins {
    /// After the one before it, at any time.
    Any,
    /// When the transition of that document is complete (T5).
    Finished(usize),
    /// When the sources of that document were read, as an earlier form of the rules had it.
    Synced(usize),
    /// When a quorum of these has that document, as an earlier form of the rules had it.
    Adopted(Mask, u8),
}

/// The sync of a Joint document.
#[derive(Clone, Debug)]
struct Sync {
    old: Mask,
    /// Who copies from whom: each syncer from each member of `old`.
    pairs: Vec<(u8, u8)>,
}

/// A transition, or several, and the rules that were taken away.
struct Case {
    names: &'static str,
    phases: Vec<Phase>,
    syncs: HashMap<usize, Sync>,
    removed: Vec<Rule>,
    /// The write is acknowledged at ONE.
    one: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct State {
    /// The last committed document.
    committed: u8,
    /// The document each node has adopted: its fence.
    adopted: [u8; MAX],
    /// Who holds `w`.
    holds: Mask,
    /// Two bits for each pair of the last sync: nothing, a copy under way without `w`, one with
    /// it, merged.
    copies: u64,
    /// Who acknowledged `w`, by the document it was sent under.
    acks: [Mask; MAX],
    /// Who answered a read that has `w`, by document.
    answers: [Mask; MAX],
    /// `w` must be seen from now on.
    must: bool,
}

const ABSENT: u64 = 1;
const PRESENT: u64 = 2;
const MERGED: u64 = 3;

#[derive(Clone, Copy, Debug)]
enum Action {
    Commit(u8),
    Adopt(u8, u8),
    Crash(u8),
    Write(u8, u8),
    Read(u8, u8),
    Snapshot(u8, u8),
    Merge(u8, u8),
    Drop(u8),
}

/// What a search found.
struct Found {
    states: usize,
    /// The shortest history that breaks a promise, and the promise last.
    trace: Option<Vec<String>>,
}

fn mask(nodes: &[u8]) -> Mask {
    nodes.iter().map(|node| 1 << node).sum()
}

fn bits(mask: Mask) -> impl Iterator<Item = u8> + Clone {
    (0..8).filter(move |bit| mask >> bit & 1 == 1)
}

fn len(mask: Mask) -> usize {
    mask.count_ones() as usize
}

/// Whether `of` meets every demand.
fn met(demands: &[Demand], of: Mask) -> bool {
    demands.iter().all(|demand| (of & demand.of).count_ones() >= demand.count)
}

fn all_of(demands: &[Demand]) -> Mask {
    demands.iter().fold(0, |all, demand| all | demand.of)
}

impl State {
    fn copy(&self, pair: usize) -> u64 {
        self.copies >> (2 * pair) & 3
    }

    fn with_copy(self, pair: usize, copy: u64) -> Self {
        Self { copies: self.copies & !(3 << (2 * pair)) | copy << (2 * pair), ..self }
    }

    fn with_adopted(mut self, node: u8, document: u8) -> Self {
        self.adopted[usize::from(node)] = document;
        self
    }

    /// `w` was acknowledged or returned: who collected what for it does not matter any more.
    fn promised(self) -> Self {
        Self { must: true, acks: [0; MAX], answers: [0; MAX], ..self }
    }
}

impl Case {
    fn keeps(&self, rule: Rule) -> bool {
        !self.removed.contains(&rule)
    }

    /// Whether a node that adopted one document takes messages of another.
    fn takes(&self, state: &State, node: u8, document: usize) -> bool {
        let adopted = usize::from(state.adopted[usize::from(node)]);
        self.phases[adopted].stamp <= self.phases[document].stamp
    }

    fn synced(&self, state: &State, document: usize) -> bool {
        let Sync { old, pairs } = &self.syncs[&document];
        let needed = if self.keeps(Rule::BlockingSources) { rules::blocking(len(*old)) } else { 1 };
        pairs.iter().all(|(syncer, _)| {
            let merged = pairs
                .iter()
                .enumerate()
                .filter(|(index, (other, _))| other == syncer && state.copy(*index) == MERGED);
            merged.count() >= needed
        })
    }

    fn may_begin(&self, state: &State, begins: Begins) -> bool {
        let has = |node: &u8, document: u8| state.adopted[usize::from(*node)] >= document;
        match begins {
            Begins::Any => true,
            Begins::Synced(document) => self.synced(state, document),
            Begins::Adopted(of, document) => {
                bits(of).filter(|node| has(node, document)).count() >= rules::quorum(len(of))
            }
            Begins::Finished(document) => {
                let old: Vec<u8> = bits(self.syncs[&document].old).collect();
                let fenced = rules::is_fenced(&old, |node| has(node, document as u8));
                self.synced(state, document) && (fenced || !self.keeps(Rule::FenceReports))
            }
        }
    }

    /// All that may happen next.
    fn next(&self, state: &State, then: &mut Vec<(Action, State)>) {
        self.next_layout(state, then);
        self.next_writes(state, then);
        if self.keeps(Rule::MonotonicReads) && !self.one && !state.must && state.holds != 0 {
            self.next_reads(state, then);
        }
        self.next_copies(state, then);
        self.next_drops(state, then);
    }

    fn next_layout(&self, state: &State, then: &mut Vec<(Action, State)>) {
        let next = state.committed + 1;
        let phase = self.phases.get(usize::from(next));
        if phase.is_some_and(|phase| self.may_begin(state, phase.begins)) {
            let voids = self.syncs.contains_key(&next.into()) && self.keeps(Rule::ReceiptEpoch);
            let copies = if voids { 0 } else { state.copies };
            then.push((Action::Commit(next), State { committed: next, copies, ..*state }));
        }
        for node in 0..self.names.len() as u8 {
            let adopted = state.adopted[usize::from(node)];
            for document in adopted + 1..=state.committed {
                let adopts = state.with_adopted(node, document);
                then.push((Action::Adopt(node, document), adopts));
            }
            if !self.keeps(Rule::DurableFence) && adopted > 0 {
                then.push((Action::Crash(node), state.with_adopted(node, 0)));
            }
        }
    }

    /// Writes, restamps, repairs, hints, anti-entropy: the row reaches any member under any stamp,
    /// from whoever has it.
    fn next_writes(&self, state: &State, then: &mut Vec<(Action, State)>) {
        if state.must && state.holds == 0 {
            return;
        }
        for (document, phase) in self.phases.iter().enumerate().take(state.committed as usize + 1) {
            for node in bits(all_of(&phase.writes)) {
                if self.keeps(Rule::FenceWrites) && !self.takes(state, node, document) {
                    continue;
                }
                let mut after = *state;
                let adopted = usize::from(state.adopted[usize::from(node)]);
                let ahead = adopted < document && self.phases[adopted].stamp < phase.stamp;
                if ahead && self.keeps(Rule::LearnFirst) {
                    after = after.with_adopted(node, document as u8);
                }
                after.holds |= 1 << node;
                if !state.must {
                    after.acks[document] |= 1 << node;
                    if self.acknowledged(&after, document) {
                        after = after.promised();
                    }
                }
                if after != *state {
                    then.push((Action::Write(node, document as u8), after));
                }
            }
        }
    }

    fn acknowledged(&self, state: &State, document: usize) -> bool {
        if met(&self.phases[document].writes, state.acks[document]) {
            return true;
        }
        let mut carried = 0;
        !self.keeps(Rule::RestartAcks)
            && (0..=usize::from(state.committed)).any(|document| {
                carried |= state.acks[document];
                met(&self.phases[document].writes, carried)
            })
    }

    /// Quorum reads that saw `w` somewhere: who answers is repaired. Where reads demand what writes
    /// do they are no different from writes sent again.
    fn next_reads(&self, state: &State, then: &mut Vec<(Action, State)>) {
        let fenced = self.keeps(Rule::FenceReads) && self.keeps(Rule::FenceWrites);
        for (document, phase) in self.phases.iter().enumerate().take(state.committed as usize + 1) {
            if phase.reads == phase.writes && fenced {
                continue;
            }
            for node in bits(all_of(&phase.reads)) {
                let takes = self.takes(state, node, document);
                let repairs = state.holds >> node & 1 == 0 && self.keeps(Rule::FenceWrites);
                if !takes && (repairs || self.keeps(Rule::FenceReads)) {
                    continue;
                }
                let mut after = *state;
                after.answers[document] |= 1 << node;
                after.holds |= 1 << node;
                if met(&phase.reads, after.answers[document]) {
                    after = after.promised();
                }
                if after != *state {
                    then.push((Action::Read(node, document as u8), after));
                }
            }
        }
    }

    fn next_copies(&self, state: &State, then: &mut Vec<(Action, State)>) {
        let last = (1..=usize::from(state.committed)).rev().find(|at| self.syncs.contains_key(at));
        let Some(document) = last else { return };
        let adopted = |node: u8| usize::from(state.adopted[usize::from(node)]) >= document;
        for (pair, (to, from)) in self.syncs[&document].pairs.iter().copied().enumerate() {
            match state.copy(pair) {
                0 if adopted(from) || !self.keeps(Rule::SnapshotAfterFence) => {
                    let copy = match state.holds >> from & 1 {
                        _ if to == from => MERGED,
                        0 => ABSENT,
                        _ => PRESENT,
                    };
                    then.push((Action::Snapshot(from, to), state.with_copy(pair, copy)));
                }
                copy @ (ABSENT | PRESENT) => {
                    let mut after = state.with_copy(pair, MERGED);
                    if !adopted(to) {
                        after = after.with_adopted(to, document as u8);
                    }
                    after.holds |= u8::from(copy == PRESENT) << to;
                    then.push((Action::Merge(from, to), after));
                }
                _ => {}
            }
        }
    }

    fn next_drops(&self, state: &State, then: &mut Vec<(Action, State)>) {
        for node in bits(state.holds) {
            let adopted = usize::from(state.adopted[usize::from(node)]);
            let Some(owners) = self.phases[adopted].owners else { continue };
            let dominated = len(state.holds & owners) >= rules::quorum(len(owners));
            let owns = owners >> node & 1 == 1;
            if !owns && (dominated || !self.keeps(Rule::Dominance)) {
                let after = State { holds: state.holds & !(1 << node), ..*state };
                then.push((Action::Drop(node), after));
            }
        }
    }

    /// The promise that is broken, if one is.
    fn broken(&self, state: &State) -> Option<String> {
        if !state.must {
            return None;
        }
        if self.one {
            return (state.holds == 0).then(|| "no copy left".to_owned());
        }
        (0..=usize::from(state.committed)).find_map(|document| {
            let nodes = (0..self.names.len() as u8)
                .filter(|node| !self.keeps(Rule::FenceReads) || self.takes(state, *node, document));
            let without = nodes.fold(0, |all, node| all | 1 << node) & !state.holds;
            let reads = &self.phases[document].reads;
            met(reads, without).then(|| {
                let by: String =
                    bits(without & all_of(reads)).map(|node| self.name(node)).collect();
                format!("read under doc{document} from {by} misses w")
            })
        })
    }

    fn name(&self, node: u8) -> char {
        char::from(self.names.as_bytes()[usize::from(node)])
    }

    fn told(&self, action: Action) -> String {
        let name = |node| self.name(node);
        match action {
            Action::Commit(document) => format!("commit doc{document}"),
            Action::Adopt(node, document) => format!("{} adopts doc{document}", name(node)),
            Action::Crash(node) => format!("{} crashes, its fence is lost", name(node)),
            Action::Write(node, document) => format!("w -> {} under doc{document}", name(node)),
            Action::Read(node, document) => {
                format!("{} answers a read that has w under doc{document}", name(node))
            }
            Action::Snapshot(from, to) => format!("{} is read for {}", name(from), name(to)),
            Action::Merge(from, to) => format!("{} merges what {} had", name(to), name(from)),
            Action::Drop(node) => format!("{} drops its un-owned row", name(node)),
        }
    }

    /// Searches until a promise breaks, all was seen, or there are `states_max` states.
    fn search(&self, states_max: usize) -> Found {
        let first = State {
            committed: 0,
            adopted: [0; MAX],
            holds: 0,
            copies: 0,
            acks: [0; MAX],
            answers: [0; MAX],
            must: false,
        };
        let mut came_from = HashMap::from([(first, None)]);
        let mut queue = VecDeque::from([first]);
        let mut then = Vec::new();
        while let Some(state) = queue.pop_front() {
            self.next(&state, &mut then);
            for (action, next) in then.drain(..) {
                if came_from.contains_key(&next) {
                    continue;
                }
                came_from.insert(next, Some((state, action)));
                if let Some(broken) = self.broken(&next) {
                    let mut trace = vec![broken];
                    let mut at = next;
                    while let Some((before, action)) = came_from[&at] {
                        trace.push(self.told(action));
                        at = before;
                    }
                    trace.reverse();
                    return Found { states: came_from.len(), trace: Some(trace) };
                }
                if came_from.len() >= states_max {
                    return Found { states: came_from.len(), trace: None };
                }
                queue.push_back(next);
            }
        }
        Found { states: came_from.len(), trace: None }
    }

    /// No history breaks a promise; there are exactly `states` states, as in the model this was
    /// ported from.
    fn holds(&self, states: usize) {
        let found = self.search(usize::MAX);
        let told = found.trace.iter().flatten().fold(String::new(), |mut told, step| {
            let _ = write!(told, "\n  {step}");
            told
        });
        assert!(found.trace.is_none(), "a promise breaks:{told}");
        assert_eq!(found.states, states);
    }

    /// The shortest history that breaks a promise has `steps` steps and ends so.
    fn breaks(&self, steps: usize, how: &str) {
        let trace = self.search(usize::MAX).trace.expect("without the rule a promise breaks");
        assert_eq!((trace.len() - 1, trace.last().map_or("", String::as_str)), (steps, how));
    }
}
