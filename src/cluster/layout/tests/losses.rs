//! Nodes that are taken out: for another one that joins, and with what is lost by it.

use super::*;

fn replaces(document: &Document, old: u128, by: &str) -> Command {
    change(document, |change| change.replaces = [(node(old), by.to_owned())].into())
}

fn joins_as(document: &Document, n: u128, name: &str) -> Command {
    let member = Member { name: name.to_owned(), ..member("") };
    Command::Join { epoch: document.epoch, members: [(node(n), member)].into() }
}

/// L2, L3: one change of owners, not a join and then a removal that moves rows again.
#[test]
fn a_node_that_comes_in_for_another_takes_its_place_in_one_change() {
    let mut document = formed(&[1, 2, 3]);
    now(&mut document, |document| replaces(document, 2, "fresh"));
    assert_eq!((document.epoch, document.is_joint()), (1, false), "nothing is begun by it");
    let command = joins_as(&document, 4, "fresh");
    does(&mut document, &command);
    assert_eq!(document.members[&node(2)].state, MemberState::Removing);
    assert_eq!(document.members[&node(4)].state, MemberState::Joining);
    assert_eq!(document.syncers, nodes(&[4]), "whoever stays keeps what it has");
    // Its proposer may not have heard the answer.
    assert_eq!(document.apply(&command), Answer::Done { epoch: 2 });
    finish(&mut document);
    assert_eq!(document.epoch, 3);
    assert_eq!(document.members[&node(2)].state, MemberState::Removed);
    assert_eq!(document.owners.keys().copied().collect::<BTreeSet<_>>(), nodes(&[1, 3, 4]));
    assert!(document.replacements.is_empty(), "it is done once");
}

/// T6: after an abort all is as before, so also who is to be replaced.
#[test]
fn an_aborted_replacement_can_be_tried_again_or_taken_back() {
    let mut document = formed(&[1, 2, 3]);
    now(&mut document, |document| replaces(document, 2, "fresh"));
    now(&mut document, |document| joins_as(document, 4, "fresh"));
    let epoch = document.epoch;
    does(&mut document, &Command::Abort { epoch });
    assert_eq!(document.members[&node(2)].state, MemberState::Normal);
    let mut again = document.clone();
    now(&mut again, |document| joins_as(document, 4, "fresh"));
    assert_eq!(again.members[&node(2)].state, MemberState::Removing);
    assert_eq!(refused(&document.apply(&replaces(&document, 2, "other"))), "MIXED_CHANGE");
    now(&mut document, |document| replaces(document, 2, ""));
    now(&mut document, |document| joins_as(document, 4, "fresh"));
    assert_eq!(document.members[&node(2)].state, MemberState::Normal, "it only joins");
}

/// A pod whose volume was lost comes back under its name; another node of that name does not.
#[test]
fn a_node_may_be_replaced_by_one_of_its_own_name_and_no_other() {
    let mut document = formed(&[1, 2, 3]);
    for (n, name) in [(1, "a"), (2, "b"), (3, "c")] {
        document.members.get_mut(&node(n)).expect("a member").name = name.to_owned();
    }
    does(&mut document.clone(), &replaces(&document, 2, "b"));
    assert_eq!(refused(&document.apply(&replaces(&document, 2, "c"))), "ALREADY_A_MEMBER");
    assert_eq!(refused(&document.apply(&replaces(&document, 9, "d"))), "UNKNOWN_NODE");
    let long = "x".repeat(MEMBER_TEXT_BYTES_MAX + 1);
    assert_eq!(refused(&document.apply(&replaces(&document, 2, &long))), "INVALID_MEMBER");
    let both = change(&document, |change| {
        change.replaces = [(node(1), "d".to_owned()), (node(2), "d".to_owned())].into();
    });
    assert_eq!(refused(&document.apply(&both)), "MIXED_CHANGE");
    let mixed = change(&document, |change| {
        change.replaces = [(node(1), "d".to_owned())].into();
        change.weights = [(node(2), 2)].into();
    });
    assert_eq!(refused(&document.apply(&mixed)), "MIXED_CHANGE");
    // Whoever is drained meanwhile needs nobody to come in for it.
    let mut document = formed(&[1, 2, 3, 4]);
    now(&mut document, |document| replaces(document, 4, "d"));
    let leave = change(&document, |change| change.leaves = nodes(&[4]));
    does(&mut document, &leave);
    finish(&mut document);
    assert!(document.replacements.is_empty());
    assert_eq!(refused(&document.apply(&replaces(&document, 4, "d"))), "NOT_AN_OWNER");
}

/// The partitions that are lost by a removal, as the state machine wants to hear them.
fn lost(document: &Document, removes: &[u128]) -> Partitions {
    let mut lost = Partitions::new();
    for (partition, factor, _) in document.lost_by(&nodes(removes)) {
        lost.entry(factor).or_default().insert(partition);
    }
    lost
}

/// L2: the operator accepts the loss for exactly these partitions, or nothing is begun.
#[test]
fn what_is_lost_must_be_accepted_exactly() {
    let document = formed(&[1, 2, 3, 4, 5]);
    let all = lost(&document, &[4, 5]);
    assert!(!all[&3].is_empty() && all[&3].len() < 16, "of five nodes some had both: {all:?}");
    let accepting = |accepted: &Partitions| {
        change(&document, |change| {
            change.removes = nodes(&[4, 5]);
            change.accepts_loss = accepted.clone();
        })
    };
    let refusal =
        |accepted: &Partitions| refused(&document.clone().apply(&accepting(accepted))).to_owned();
    assert_eq!(refusal(&Partitions::new()), "TOO_FEW_SOURCES");
    let mut fewer = all.clone();
    fewer.get_mut(&3).expect("some").pop_first();
    assert_eq!(refusal(&fewer), "TOO_FEW_SOURCES");
    let kept = (0..16).find(|one| !all[&3].contains(one)).expect("some are not lost");
    let mut more = all.clone();
    more.get_mut(&3).expect("some").insert(kept);
    assert_eq!(refusal(&more), "LOSS_DIFFERS");
    let nothing = change(&document, |change| change.accepts_loss = all.clone());
    assert_eq!(refused(&document.clone().apply(&nothing)), "NOTHING_TO_DO");
    does(&mut document.clone(), &accepting(&all));
}

/// T4 and T5 are waived there, and there only: where enough replicas stay they are all asked.
#[test]
fn of_what_is_given_up_all_who_stay_are_sources_and_the_rest_keeps_its_rules() {
    let mut document = formed(&[1, 2, 3, 4, 5]);
    let accepted = lost(&document, &[4, 5]);
    let give_up = change(&document, |change| {
        change.removes = nodes(&[4, 5]);
        change.accepts_loss = accepted.clone();
    });
    does(&mut document, &give_up);
    let joint = layout(&document);
    for partition in 0..joint.partitions() {
        let sources = joint.sources_needed(partition, (3, 3));
        let stays: BTreeSet<NodeId> =
            sources.of.iter().filter(|one| !nodes(&[4, 5]).contains(one)).copied().collect();
        assert!(sources.is_synced_by(&stays), "nobody waits for the dead");
        if accepted[&3].contains(&partition) {
            assert_eq!(stays.len(), 1);
            assert!(!sources.is_synced_by(&nodes(&[4, 5])), "ghosts are no stand-in for who stays");
        } else {
            assert_eq!(sources.count, 2, "a blocking count as ever");
        }
    }
    // The dead report nothing; with one of those who stay missing it does not end.
    for n in [1, 2] {
        now(&mut document, |document| fenced(document, n));
    }
    for node in document.syncers.clone() {
        now(&mut document, |document| synced(document, node.0));
    }
    assert!(document.is_joint(), "of some partition node 3 alone is left, and is not fenced");
    let mut ended = document.clone();
    now(&mut ended, |document| fenced(document, 3));
    assert!(!ended.is_joint());
    assert!(ended.lost.is_empty());
    assert_eq!(ended.members[&node(4)].state, MemberState::Removed);
    // Another one that dies is not covered by what was accepted.
    let epoch = document.epoch;
    does(&mut document, &Command::Abort { epoch });
    assert!(document.lost.is_empty());
}

/// A partition of which nobody is left begins empty: its tenants can be used again.
#[test]
fn a_partition_without_any_replica_left_begins_anew() {
    let mut document = formed(&[1]);
    let one = TenantChange { replication_factor: Some(1), ..TenantChange::default() };
    does(&mut document, &alter("default", one));
    now(&mut document, |document| join(document, &[2]));
    finish(&mut document);
    let accepted = lost(&document, &[2]);
    let of_two = layout(&document);
    let of_two = (0..16).filter(|one| of_two.sets(*one, 1).current == [node(2)]);
    assert_eq!(accepted[&1], of_two.collect());
    let give_up = change(&document, |change| {
        change.removes = nodes(&[2]);
        change.accepts_loss = accepted.clone();
    });
    does(&mut document, &give_up);
    let joint = layout(&document);
    let all_lost = joint.to_sync(node(1));
    assert_eq!(all_lost.len(), accepted[&1].len());
    assert!(all_lost.iter().all(|one| one.sources.is_synced_by(&BTreeSet::new())));
    now(&mut document, |document| synced(document, 1));
    now(&mut document, |document| fenced(document, 1));
    assert!(!document.is_joint());
}
