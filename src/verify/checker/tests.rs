//! A violation is planted for each invariant and found; what a store may do is not accused.

mod valid;

use super::shrink::smallest;
use super::*;
use crate::verify::history::{Action, Level, Mode, Op, Outcome, Version};

/// A history written by hand: every operation takes one second, one after the other.
struct Story {
    events: Vec<Event>,
    ops: u64,
}

impl Story {
    fn new(mode: Mode, replicas: u32) -> Self {
        let tenant = Event::Tenant { name: "t".to_owned(), mode, replicas };
        Self { events: vec![tenant], ops: 0 }
    }

    fn op(&mut self, action: Action) -> &mut Op {
        self.ops += 1;
        let invoked_us = self.ops * 1_000_000;
        self.events.push(Event::Op(Op {
            id: self.ops,
            client: 1,
            node: "n0".to_owned(),
            tenant: "t".to_owned(),
            key: "k".to_owned(),
            level: Level::Quorum,
            action,
            context_in: None,
            invoked_us,
            returned_us: Some(invoked_us + 500_000),
            outcome: Outcome::Ok,
            reason: String::new(),
            context_out: None,
            hlc: None,
            siblings: None,
            seen: Vec::new(),
        }));
        match self.events.last_mut() {
            Some(Event::Op(op)) => op,
            _ => unreachable!("it was just pushed"),
        }
    }

    /// A write of `value` with a context, answered with a context named after the value.
    fn write(&mut self, value: &str, context: Option<&str>) -> &mut Op {
        let action = Action::Write { value: value.to_owned(), token: None, ttl_ms: None };
        let op = self.op(action);
        op.context_in = context.map(str::to_owned);
        op.context_out = Some(format!("after {value}"));
        op
    }

    fn delete(&mut self, context: Option<&str>) -> &mut Op {
        let op = self.op(Action::Delete { token: None });
        op.context_in = context.map(str::to_owned);
        op
    }

    /// A read that returned these values, and a context named after them.
    fn read(&mut self, values: &[&str]) -> &mut Op {
        let op = self.op(Action::Read { min_context: None, last: false });
        op.seen = values
            .iter()
            .map(|value| Version { value: (*value).to_owned(), hlc: 0, dot: None })
            .collect();
        op.context_out = Some(format!("read {}", values.join(" ")));
        op
    }

    /// A read after all faults, at level ONE.
    fn last(&mut self, node: &str, values: &[&str]) -> &mut Op {
        let op = self.read(values);
        op.action = Action::Read { min_context: None, last: true };
        op.level = Level::One;
        op.node = node.to_owned();
        op
    }

    fn found(&self) -> BTreeSet<Invariant> {
        check(&self.events).into_iter().map(|violation| violation.invariant).collect()
    }

    /// That just `invariant` is violated, and that the smallest history shows it with `ops`
    /// operations.
    fn convicts(&self, invariant: Invariant, ops: usize) {
        let found = check(&self.events);
        let kinds: BTreeSet<_> = found.iter().map(|violation| violation.invariant).collect();
        assert_eq!(kinds, BTreeSet::from([invariant]), "{found:?}");
        let smallest = smallest(&self.events, &found[0]);
        let kept = smallest.iter().filter(|event| matches!(event, Event::Op(_))).count();
        assert_eq!(kept, ops, "{smallest:#?}");
        assert!(check(&smallest).iter().any(|other| other.is(&found[0])));
    }
}

fn siblings() -> Story {
    Story::new(Mode::Siblings, 3)
}

/// Operations that have nothing to do with the matter.
fn noise(story: &mut Story) {
    for n in 0..20 {
        story.write(&format!("noise {n}"), None).key = format!("other {}", n % 3);
        story.read(&[]).outcome = Outcome::NotApplied;
    }
}

#[test]
fn i1_an_acknowledged_write_that_is_not_there_in_the_end_is_found() {
    let mut story = siblings();
    noise(&mut story);
    story.write("a", None).level = Level::One;
    noise(&mut story);
    story.last("n0", &[]);
    story.convicts(Invariant::Durability, 2);
}

#[test]
fn i1_a_write_may_go_by_its_time_to_live() {
    let mut story = siblings();
    let op = story.write("a", None);
    op.action = Action::Write { value: "a".to_owned(), token: None, ttl_ms: Some(5_000) };
    story.last("n0", &[]);
    assert!(story.found().is_empty());
    let mut story = siblings();
    let op = story.write("a", None);
    op.level = Level::One;
    op.action = Action::Write { value: "a".to_owned(), token: None, ttl_ms: Some(60_000) };
    story.last("n0", &[]);
    story.convicts(Invariant::Durability, 2);
}

#[test]
fn i2_nodes_that_say_different_things_in_the_end_are_found() {
    let mut story = siblings();
    story.write("a", None).outcome = Outcome::Unknown;
    noise(&mut story);
    story.last("n0", &[]);
    story.last("n1", &["a"]);
    story.convicts(Invariant::Convergence, 2);
}

#[test]
fn i2_replicas_that_differ_only_where_no_client_looks_are_found() {
    let mut story = siblings();
    story.write("a", None);
    noise(&mut story);
    story.last("n0", &["a"]);
    story.last("n1", &["a"]);
    for (id, node, digest) in [(50, "n0", "17"), (51, "n1", "17"), (52, "n2", "18")] {
        story.events.push(Event::Row {
            id,
            at_us: 90_000_000,
            node: node.to_owned(),
            tenant: "t".to_owned(),
            key: "k".to_owned(),
            versions: Vec::new(),
            digest: Some(digest.to_owned()),
        });
    }
    story.convicts(Invariant::Convergence, 0);
}

#[test]
fn i3_a_version_that_was_seen_and_is_gone_without_a_successor_is_found() {
    let mut story = siblings();
    story.write("a", None).outcome = Outcome::Unknown;
    story.read(&["a"]).level = Level::One;
    // It has not seen "a", so it cannot have replaced it.
    story.write("b", None);
    story.last("n0", &["b"]);
    story.convicts(Invariant::NoFalseOverwrite, 3);
}

#[test]
fn i3_an_unknown_write_that_had_seen_a_version_excuses_its_absence() {
    let mut story = siblings();
    story.write("a", None);
    story.read(&["a"]);
    story.write("b", Some("read a")).outcome = Outcome::Unknown;
    story.last("n0", &["b"]);
    assert!(story.found().is_empty());
}

#[test]
fn i4_a_version_beside_one_that_its_writer_had_seen_is_found() {
    let mut story = siblings();
    story.write("a", None);
    story.read(&["a"]);
    noise(&mut story);
    story.write("b", Some("read a")).outcome = Outcome::Unknown;
    story.read(&["a", "b"]);
    story.convicts(Invariant::NoFalseSibling, 4);
}

#[test]
fn i4_two_versions_in_a_last_write_wins_tenant_are_found() {
    let mut story = Story::new(Mode::LastWriteWins, 3);
    story.write("a", None);
    story.write("b", None).outcome = Outcome::Unknown;
    story.read(&["a", "b"]);
    story.convicts(Invariant::NoFalseSibling, 1);
}

#[test]
fn i5_a_deleted_version_that_comes_back_is_found() {
    let mut story = siblings();
    story.write("a", None);
    story.read(&["a"]);
    story.delete(Some("read a"));
    noise(&mut story);
    // It would be the other read's, and stand in for it.
    story.read(&["a"]).context_out = None;
    story.convicts(Invariant::NoResurrection, 4);
}

#[test]
fn i5_a_delete_without_context_covers_what_a_quorum_has_and_no_more_than_may_be() {
    use Level::{One, Quorum};
    use Mode::{LastWriteWins, Siblings};
    for (mode, replicas, written, deleted, convicted) in [
        (Siblings, 1, One, One, true),
        (Siblings, 3, Quorum, Quorum, true),
        (Siblings, 3, One, Quorum, false),
        (Siblings, 3, Quorum, One, false),
        (LastWriteWins, 3, Quorum, Quorum, false),
    ] {
        let mut story = Story::new(mode, replicas);
        story.write("a", None).level = written;
        story.delete(None).level = deleted;
        story.read(&["a"]);
        let found = story.found().contains(&Invariant::NoResurrection);
        assert_eq!(found, convicted, "{mode:?} {replicas} {written:?} {deleted:?}");
    }
}

#[test]
fn i5_a_version_that_outlives_its_time_is_found() {
    let shown_after = |ttl_ms: u64, outcome: Outcome| {
        let mut story = siblings();
        let op = story.write("a", None);
        op.action = Action::Write { value: "a".to_owned(), token: None, ttl_ms: Some(ttl_ms) };
        op.outcome = outcome;
        noise(&mut story);
        story.read(&["a"]).level = Level::One;
        story.found().contains(&Invariant::NoResurrection)
    };
    assert!(shown_after(30_000, Outcome::Ok));
    assert!(!shown_after(36_000, Outcome::Ok), "clocks differ");
    assert!(!shown_after(1, Outcome::Unknown), "it may have been made just now");
}

#[test]
fn i2_what_expires_between_two_last_reads_is_no_difference() {
    let differs = |ttl_ms: u64| {
        let mut story = siblings();
        let op = story.write("a", None);
        op.action = Action::Write { value: "a".to_owned(), token: None, ttl_ms: Some(ttl_ms) };
        story.last("n0", &["a"]);
        story.last("n1", &[]);
        story.found().contains(&Invariant::Convergence)
    };
    assert!(!differs(2_000));
    assert!(differs(60_000));
}

#[test]
fn i6_a_read_behind_the_context_it_was_given_is_found() {
    let mut story = siblings();
    story.write("a", None).level = Level::One;
    story.read(&["a"]).level = Level::One;
    let read = story.read(&[]);
    read.level = Level::One;
    read.action = Action::Read { min_context: Some("read a".to_owned()), last: false };
    story.convicts(Invariant::Sessions, 3);
}

#[test]
fn i7_a_quorum_read_that_misses_an_acknowledged_quorum_write_is_found() {
    let mut story = siblings();
    story.write("a", None);
    noise(&mut story);
    story.read(&[]);
    story.convicts(Invariant::QuorumRegularity, 2);
}

#[test]
fn i7_a_level_below_quorum_promises_nothing_to_others_unless_there_is_one_replica() {
    for (replicas, convicted) in [(1, true), (3, false)] {
        let mut story = Story::new(Mode::Siblings, replicas);
        story.write("a", None).level = Level::One;
        story.read(&[]).level = Level::One;
        assert_eq!(story.found().contains(&Invariant::QuorumRegularity), convicted);
    }
}

#[test]
fn i7_a_later_write_of_an_earlier_time_loses_in_a_last_write_wins_tenant() {
    let mut story = Story::new(Mode::LastWriteWins, 3);
    story.write("a", None).hlc = Some(9);
    story.write("b", None).hlc = Some(5);
    story.read(&["a"]).seen[0].hlc = 9;
    assert!(story.found().is_empty());
    story.read(&["b"]).seen[0].hlc = 5;
    assert!(story.found().contains(&Invariant::QuorumRegularity));
}

#[test]
fn i8_a_quorum_read_that_goes_back_is_found() {
    let mut story = siblings();
    story.write("a", None).outcome = Outcome::Unknown;
    story.read(&["a"]);
    noise(&mut story);
    story.read(&[]);
    story.convicts(Invariant::MonotonicReads, 3);
}

#[test]
fn i9_a_dot_of_two_values_is_found() {
    let mut story = siblings();
    story.write("a", None);
    story.write("b", None);
    story.read(&["a", "b"]).seen.iter_mut().for_each(|version| version.dot = Some("7.1".into()));
    story.convicts(Invariant::DotUniqueness, 1);
}

#[test]
fn i9_and_i11_are_seen_on_a_disk_too() {
    for (invariant, outcome) in
        [(Invariant::DotUniqueness, Outcome::Ok), (Invariant::OutcomeHonesty, Outcome::NotApplied)]
    {
        let mut story = siblings();
        story.write("a", None).outcome = outcome;
        story.write("b", None).outcome = outcome;
        for (id, value) in [(50, "a"), (51, "b")] {
            let dot = Some("7.1".to_owned());
            story.events.push(Event::Row {
                id,
                at_us: 9_000_000,
                node: "n0".to_owned(),
                tenant: "t".to_owned(),
                key: "k".to_owned(),
                versions: vec![Version { value: value.to_owned(), hlc: 1, dot }],
                digest: None,
            });
        }
        assert!(story.found().contains(&invariant));
    }
}

#[test]
fn i10_a_write_that_is_there_twice_is_found() {
    let mut story = siblings();
    let tokened = || Action::Write { value: "a".into(), token: Some("x".into()), ttl_ms: None };
    story.op(tokened()).outcome = Outcome::Unknown;
    story.op(tokened());
    story.read(&["a", "a"]);
    story.convicts(Invariant::Once, 1);
}

#[test]
fn i10_a_replaced_write_that_its_token_brings_back_is_found() {
    let mut story = siblings();
    let tokened = || Action::Write { value: "a".into(), token: Some("x".into()), ttl_ms: None };
    story.op(tokened());
    story.read(&["a"]);
    story.delete(Some("read a"));
    story.op(tokened());
    story.read(&["a"]).context_out = None;
    story.convicts(Invariant::Once, 4);
}

#[test]
fn i11_a_refused_write_that_appears_is_found() {
    let mut story = siblings();
    story.write("a", None).outcome = Outcome::NotApplied;
    noise(&mut story);
    story.read(&["a"]).level = Level::One;
    story.convicts(Invariant::OutcomeHonesty, 2);
}

#[test]
fn i11_a_refused_attempt_of_a_write_that_was_taken_before_is_no_lie() {
    let mut story = siblings();
    let tokened = || Action::Write { value: "a".into(), token: Some("x".into()), ttl_ms: None };
    story.op(tokened()).outcome = Outcome::Unknown;
    story.op(tokened()).outcome = Outcome::NotApplied;
    story.read(&["a"]);
    assert!(story.found().is_empty());
}

#[test]
fn i15_a_value_of_another_tenant_or_key_is_found() {
    let mut story = siblings();
    story.write("a", None).tenant = "other".to_owned();
    noise(&mut story);
    story.read(&["a"]);
    story.convicts(Invariant::TenantIsolation, 1);
}

#[test]
fn i16_a_failure_long_after_the_last_fault_is_found_and_one_soon_after_it_is_not() {
    let mut story = siblings();
    story.events.push(Event::Fault { at_us: 1, what: "mend".to_owned() });
    let failed = |story: &mut Story| {
        let op = story.write("a", None);
        (op.outcome, op.reason) = (Outcome::NotApplied, "UNREACHABLE".to_owned());
        op.key = "failing".to_owned();
    };
    failed(&mut story);
    assert!(story.found().is_empty());
    noise(&mut story);
    noise(&mut story);
    failed(&mut story);
    story.convicts(Invariant::Liveness, 1);
}

#[test]
fn i16_nothing_may_fail_any_more_once_the_replicas_agree() {
    let failed_after = |agreed_us: u64| {
        let mut story = siblings();
        story.events.push(Event::Fault { at_us: 1, what: "mend".to_owned() });
        story.events.push(Event::Agreed { at_us: agreed_us });
        let op = story.write("a", None);
        (op.outcome, op.reason) = (Outcome::NotApplied, "UNREACHABLE".to_owned());
        story.found().contains(&Invariant::Liveness)
    };
    assert!(failed_after(900_000));
    assert!(!failed_after(1_100_000));
    assert!(!failed_after(0), "a fault came after it");
}

#[test]
fn a_history_is_read_again_as_it_was_written() {
    use crate::verify::history::{line, parse};
    let mut story = siblings();
    story.write("a", Some("x")).returned_us = None;
    story.last("n1", &["a"]);
    story.events.push(Event::Fault { at_us: 5, what: "kill n0".to_owned() });
    let text: String = story.events.iter().map(|event| line(event) + "\n").collect();
    assert_eq!(parse(&text).expect("a history"), story.events);
    let error = parse(&format!("{text}\n{{\"event\":\"op\"}}\n")).expect_err("no operation");
    assert!(error.to_string().starts_with("line 6: "), "{error}");
}
