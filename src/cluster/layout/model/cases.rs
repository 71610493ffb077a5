//! The transitions that hold, and the rules without which they do not.
//!
//! In the tests named after removed rules S is {A, B, L} and S' is {A, B, D} unless said otherwise.

use super::*;

/// Searched of the large cases, times `PAIRDB_TEST_EFFORT`; 10 searches all of them wholly.
const LARGE_STATES: usize = 150_000;

const R3: [u8; 3] = [0, 1, 2];
const EXCHANGED: [u8; 3] = [0, 1, 3];
const NAMES: &str = "ABLD";

fn quorums(sets: &[Mask]) -> Vec<Demand> {
    let quorum = |set: Mask| rules::quorum(len(set)) as u32;
    sets.iter().map(|set| Demand { of: *set, count: quorum(*set) }).collect()
}

fn ones(sets: &[Mask]) -> Vec<Demand> {
    sets.iter().map(|set| Demand { of: *set, count: 1 }).collect()
}

fn stable(set: Mask, stamp: u8, begins: Begins) -> Phase {
    let demands = quorums(&[set]);
    Phase { writes: demands.clone(), reads: demands, stamp, owners: Some(set), begins }
}

fn joint(old: Mask, new: Mask, stamp: u8) -> Phase {
    let demands = quorums(&[old, new]);
    let writes = demands.clone();
    Phase { writes, reads: demands, stamp, owners: None, begins: Begins::Any }
}

fn sync(old: &[u8], syncers: &[u8]) -> Sync {
    let from = |to: &u8| {
        let to = *to;
        bits(mask(old)).map(move |from| (to, from))
    };
    Sync { old: mask(old), pairs: syncers.iter().flat_map(from).collect() }
}

/// Stable, Joint, Stable.
fn transition(names: &'static str, old: &[u8], new: &[u8]) -> Case {
    let (s, t) = (mask(old), mask(new));
    let phases = vec![stable(s, 0, Begins::Any), joint(s, t, 1), stable(t, 2, Begins::Finished(1))];
    let syncs = HashMap::from([(1, sync(old, &rules::who_syncs(old, new)))]);
    Case { names, phases, syncs, removed: Vec::new(), one: false }
}

/// Joint, aborted, Joint again, finished.
fn aborted_and_retried(names: &'static str, old: &[u8], new: &[u8]) -> Case {
    let (s, t) = (mask(old), mask(new));
    let phases = vec![
        stable(s, 0, Begins::Any),
        joint(s, t, 1),
        stable(s, 2, Begins::Any),
        joint(s, t, 3),
        stable(t, 4, Begins::Finished(3)),
    ];
    let sync = sync(old, &rules::who_syncs(old, new));
    let syncs = HashMap::from([(1, sync.clone()), (3, sync)]);
    Case { names, phases, syncs, removed: Vec::new(), one: false }
}

/// Two transitions with no pause.
fn chained(names: &'static str, first: &[u8], second: &[u8], third: &[u8]) -> Case {
    let (s, t, u) = (mask(first), mask(second), mask(third));
    let phases = vec![
        stable(s, 0, Begins::Any),
        joint(s, t, 1),
        stable(t, 2, Begins::Finished(1)),
        joint(t, u, 3),
        stable(u, 4, Begins::Finished(3)),
    ];
    let syncs = HashMap::from([
        (1, sync(first, &rules::who_syncs(first, second))),
        (3, sync(second, &rules::who_syncs(second, third))),
    ]);
    Case { names, phases, syncs, removed: Vec::new(), one: false }
}

/// An earlier form of the rules: reads go from S to S' between Joint and Stable, with one stamp for
/// all phases of a version or with their own.
fn as_first_written(stamps: [u8; 4]) -> Case {
    let (s, t) = (mask(&R3), mask(&EXCHANGED));
    let fence = if stamps[2] == stamps[1] { 1 } else { 2 };
    let phase = |writes: &[Mask], reads: &[Mask], stamp, begins| Phase {
        writes: quorums(writes),
        reads: quorums(reads),
        stamp,
        owners: None,
        begins,
    };
    let phases = vec![
        phase(&[s], &[s], stamps[0], Begins::Any),
        phase(&[s, t], &[s], stamps[1], Begins::Any),
        phase(&[s, t], &[t], stamps[2], Begins::Synced(1)),
        phase(&[t], &[t], stamps[3], Begins::Adopted(s, fence)),
    ];
    let syncs = HashMap::from([(1, sync(&R3, &[3]))]);
    Case { names: NAMES, phases, syncs, removed: Vec::new(), one: false }
}

/// {A, B, L} to {A, B, D} without dropping rows, which these histories do not need.
fn exchange() -> Case {
    transition(NAMES, &R3, &EXCHANGED).keeping_rows()
}

impl Case {
    fn without(mut self, rule: Rule) -> Self {
        self.removed.push(rule);
        self
    }

    fn keeping_rows(mut self) -> Self {
        self.phases.iter_mut().for_each(|phase| phase.owners = None);
        self
    }

    fn writing_in_joint(mut self, writes: Vec<Demand>) -> Self {
        self.phases[1].writes = writes;
        self
    }

    fn at_one(mut self) -> Self {
        for phase in &mut self.phases {
            for demands in [&mut phase.writes, &mut phase.reads] {
                let sets: Vec<Mask> = demands.iter().map(|demand| demand.of).collect();
                *demands = ones(&sets);
            }
        }
        self.one = true;
        self
    }

    /// Of a large case: as far as the effort goes.
    fn holds_as_far_as_searched(&self) {
        let effort = std::env::var("PAIRDB_TEST_EFFORT").ok().and_then(|text| text.parse().ok());
        let found = self.search(LARGE_STATES * effort.unwrap_or(1_usize).max(1));
        assert!(found.trace.is_none(), "a promise breaks: {:#?}", found.trace);
        assert!(found.states >= LARGE_STATES, "it is no large case");
    }
}

#[test]
fn every_history_of_one_replica_that_moves_or_is_joined_by_others_keeps_the_promises() {
    transition("AB", &[0], &[1]).holds(57);
    transition("AB", &[0], &[0, 1]).holds(66);
    transition("ADE", &[0], &R3).holds(406);
}

#[test]
fn every_history_of_two_replicas_keeps_the_promises() {
    transition("ABD", &[0, 1], &[0, 2]).holds(3_371);
    transition("ABDE", &[0, 1], &[2, 3]).holds(115_055);
    transition("ABD", &[0, 1], &R3).holds(2_985);
    transition("AB", &[0, 1], &[0]).holds(110);
}

#[test]
fn every_history_of_three_replicas_keeps_the_promises() {
    transition(NAMES, &R3, &EXCHANGED).holds(25_121);
    transition("ABC", &R3, &[0, 1]).holds(932);
    transition("ABC", &R3, &[0]).holds(3_308);
    transition("ABCD", &R3, &[0, 1, 2, 3]).holds(37_694);
    transition("ABCD", &[0, 1, 2, 3], &R3).holds(15_194);
}

#[test]
fn a_write_at_one_keeps_a_copy_in_every_history() {
    transition(NAMES, &R3, &EXCHANGED).at_one().holds(4_663);
}

#[test]
fn every_history_of_an_abort_and_a_retry_keeps_the_promises() {
    aborted_and_retried("AD", &[0], &[1]).holds(358);
    aborted_and_retried("ALD", &[0, 1], &[0, 2]).holds(90_958);
}

#[test]
fn every_history_of_two_transitions_in_a_row_keeps_the_promises() {
    chained("ABC", &[0], &[1], &[2]).holds(1_091);
    chained("AB", &[0], &[1], &[0]).holds(266);
    chained("ABC", &[0, 1], &[0, 2], &[1, 2]).holds(96_365);
}

/// 1,349,196 states for the first of them, in about ten seconds at full effort.
#[test]
fn the_large_cases_keep_the_promises_as_far_as_they_are_searched() {
    aborted_and_retried(NAMES, &R3, &EXCHANGED).holds_as_far_as_searched();
    chained("ABDE", &[0, 1], &[0, 2], &[2, 3]).holds_as_far_as_searched();
}

/// Where nobody syncs the fence reports guard nothing that neighbouring quorums do not: a belt.
#[test]
fn fence_reports_are_not_what_three_to_two_replicas_need() {
    transition("ABC", &R3, &[0, 1]).without(Rule::FenceReports).holds(1_028);
}

#[test]
fn double_write_any_w_of_union() {
    let union = mask(&R3) | mask(&EXCHANGED);
    let writes = vec![Demand { of: union, count: 2 }];
    exchange().writing_in_joint(writes).breaks(3, "read under doc0 from BL misses w");
}

#[test]
fn double_write_new_only() {
    let writes = quorums(&[mask(&EXCHANGED)]);
    exchange().writing_in_joint(writes).breaks(3, "read under doc0 from BL misses w");
}

#[test]
fn double_write_old_only() {
    let writes = quorums(&[mask(&R3)]);
    exchange().writing_in_joint(writes).breaks(10, "read under doc2 from BD misses w");
}

#[test]
fn snapshot_before_fence() {
    exchange().without(Rule::SnapshotAfterFence).breaks(10, "read under doc2 from AD misses w");
}

#[test]
fn no_write_fence() {
    exchange().without(Rule::FenceWrites).breaks(10, "read under doc2 from BD misses w");
}

#[test]
fn no_read_fence() {
    exchange().without(Rule::FenceReads).breaks(10, "read under doc0 from BL misses w");
}

#[test]
fn volatile_fence() {
    exchange().without(Rule::DurableFence).breaks(11, "read under doc2 from BD misses w");
}

#[test]
fn read_old_set_only() {
    let mut case = exchange();
    case.phases[1].reads = quorums(&[mask(&R3)]);
    case.breaks(10, "read under doc1 from BL misses w");
}

#[test]
fn one_source() {
    exchange().without(Rule::BlockingSources).breaks(8, "read under doc2 from AD misses w");
}

/// RF 1, A to D, aborted and retried.
#[test]
fn acks_survive_restamp() {
    let case = aborted_and_retried("AD", &[0], &[1]).without(Rule::RestartAcks);
    case.breaks(11, "read under doc4 from D misses w");
}

/// RF 1, A to D, aborted and retried.
#[test]
fn stale_receipt() {
    let case = aborted_and_retried("AD", &[0], &[1]).without(Rule::ReceiptEpoch);
    case.breaks(9, "read under doc4 from D misses w");
}

#[test]
fn learn_later() {
    let case = transition(NAMES, &R3, &EXCHANGED).without(Rule::LearnFirst);
    case.breaks(12, "read under doc2 from BD misses w");
}

/// RF 3 to 1: newcomers alone sync, and there are none.
#[test]
fn survivors_do_not_sync() {
    let mut case = transition("ABC", &R3, &[0]);
    case.syncs.insert(1, sync(&R3, &[]));
    case.breaks(6, "read under doc2 from A misses w");
}

/// At ONE: what L alone acknowledged.
#[test]
fn no_dominance_check() {
    let case = transition(NAMES, &R3, &EXCHANGED).at_one().without(Rule::Dominance);
    case.breaks(11, "no copy left");
}

/// One stamp for Joint, "synced" and "retired" of a version.
#[test]
fn one_stamp_for_all_phases() {
    let stamps = [0, 1, 1, 1];
    let case = as_first_written(stamps).without(Rule::MonotonicReads);
    case.breaks(11, "read under doc1 from BL misses w");
    as_first_written(stamps).breaks(10, "read under doc1 from AL misses w");
}

/// Reads that go from the old set to the new one: with own stamps acknowledged writes stay, but
/// what was read once may be missing later.
#[test]
fn switched_reads_instead_of_joint_reads() {
    let stamps = [0, 1, 2, 3];
    as_first_written(stamps).without(Rule::MonotonicReads).holds_as_far_as_searched();
    as_first_written(stamps).breaks(10, "read under doc1 from AL misses w");
}
