//! Each command, and each name it is refused by.

use crate::store::tenant::DEFAULT_TENANT;
use crate::store::{Tenant, TenantId};

use super::*;

#[test]
fn a_cluster_begins_with_owners_and_the_default_tenant() {
    let mut document = formed(&[1, 2, 3]);
    document.check().unwrap();
    assert_eq!((document.epoch, document.version, document.is_joint()), (1, 1, false));
    assert!(document.members.values().all(|member| member.state == MemberState::Normal));
    assert_eq!(document.owners.keys().copied().collect::<BTreeSet<_>>(), nodes(&[1, 2, 3]));
    let tenant = &document.tenants[&TenantId(1)];
    assert_eq!((tenant.name.as_str(), tenant.created_at_ms), (DEFAULT_TENANT, 7));
    // The proposer may not have heard the answer.
    let before = document.clone();
    assert_eq!(document.apply(&form(&[1, 2, 3])), Answer::Done { epoch: 1 });
    assert_eq!(document, before);
}

#[test]
fn nothing_is_done_before_a_cluster_is_formed_and_none_is_formed_twice() {
    let mut document = Document::empty();
    document.check().unwrap();
    for command in [create("t"), join(&document, &[1]), fenced(&document, 1)] {
        assert_eq!(refused(&document.apply(&command)), "NOT_FORMED");
    }
    let form = |cluster: u128, partition_bits: u32, ids: &[u128]| Command::Form {
        cluster_id: node(cluster),
        formation: node(90),
        partition_bits,
        members: members(ids),
        now_ms: 0,
    };
    let many: Vec<u128> = (1..=OWNERS_MAX as u128 + 1).collect();
    for command in [form(0, 4, &[1]), form(9, 15, &[1]), form(9, 4, &[]), form(9, 4, &many)] {
        assert_eq!(refused(&document.apply(&command)), "INVALID_CLUSTER");
    }
    assert_eq!(document, Document::empty());
    does(&mut document, &form(9, 4, &[1]));
    does(&mut document, &form(9, 4, &[1]));
    assert_eq!(refused(&document.apply(&form(8, 4, &[1]))), "ALREADY_FORMED");
    let Command::Form { cluster_id, partition_bits, members, now_ms, .. } = form(9, 4, &[1]) else {
        unreachable!("it was just made")
    };
    let twin = Command::Form { cluster_id, formation: node(91), partition_bits, members, now_ms };
    assert_eq!(refused(&document.apply(&twin)), "ALREADY_FORMED", "under the same id");
}

#[test]
fn a_member_out_of_bounds_is_refused_by_name() {
    let document = formed(&[1]);
    let long = "x".repeat(MEMBER_TEXT_BYTES_MAX + 1);
    let edits: [fn(&mut Member, String); 5] = [
        |member, long| member.name = long,
        |member, long| member.zone = long,
        |member, long| member.address = long,
        |member, _| member.weight = 0,
        |member, _| member.weight = 1_000_001,
    ];
    for edit in edits {
        let mut joins = members(&[2]);
        edit(joins.get_mut(&node(2)).expect("it joins"), long.clone());
        let mut document = document.clone();
        let answer = document.apply(&Command::Join { epoch: 1, members: joins });
        assert_eq!(refused(&answer), "INVALID_MEMBER");
    }
}

#[test]
fn a_node_that_joins_owns_when_it_is_synced_and_the_old_owners_are_fenced() {
    let mut document = formed(&[1, 2, 3]);
    let command = join(&document, &[4]);
    does(&mut document, &command);
    assert_eq!((document.epoch, document.is_joint()), (2, true));
    assert_eq!(document.members[&node(4)].state, MemberState::Joining);
    assert_eq!(document.syncers, nodes(&[4]));
    // The proposer may ask again.
    assert_eq!(document.apply(&command), Answer::Done { epoch: 2 });

    now(&mut document, |document| synced(document, 4));
    now(&mut document, |document| fenced(document, 1));
    now(&mut document, |document| fenced(document, 4));
    assert!(document.is_joint(), "one of three is no blocking count, a newcomer counts for none");
    let last = fenced(&document, 3);
    assert_eq!(document.apply(&last), Answer::Done { epoch: 3 }, "T5: by itself");
    document.check().unwrap();
    assert_eq!((document.is_joint(), document.owners.len()), (false, 4));
    assert_eq!(document.members[&node(4)].state, MemberState::Normal);
    assert!(document.fenced.is_empty() && document.synced.is_empty());
    assert_eq!(document.apply(&command), Answer::Done { epoch: 3 });
    assert_eq!(refused(&document.apply(&last)), "STALE_EPOCH");
}

#[test]
fn the_first_node_is_joined_by_others_though_its_tenants_ask_for_three_replicas() {
    let mut document = formed(&[1]);
    for n in [2, 3, 4] {
        now(&mut document, |document| join(document, &[n]));
        assert_eq!(document.syncers, nodes(&[n]));
        finish(&mut document);
    }
    assert_eq!((document.epoch, document.owners.len()), (7, 4));
}

#[test]
fn a_report_about_another_epoch_or_of_a_stranger_is_dropped() {
    let mut document = formed(&[1, 2, 3]);
    assert_eq!(refused(&document.apply(&fenced(&document, 1))), "NO_TRANSITION");
    assert_eq!(refused(&document.apply(&synced(&document, 1))), "NO_TRANSITION");
    let abort = Command::Abort { epoch: 1 };
    assert_eq!(refused(&document.apply(&abort)), "NO_TRANSITION");
    now(&mut document, |document| join(document, &[4]));
    assert_eq!(refused(&document.apply(&abort)), "STALE_EPOCH");
    for epoch in [0, 1, 3, u64::MAX] {
        let answers = [
            document.apply(&Command::Fenced { node: node(1), epoch }),
            document.apply(&Command::Synced { node: node(4), epoch }),
            document.apply(&Command::GiveUp { nodes: nodes(&[4]), epoch }),
        ];
        answers.iter().for_each(|answer| assert_eq!(refused(answer), "STALE_EPOCH"));
    }
    assert_eq!(refused(&document.apply(&fenced(&document, 9))), "NOT_AN_OWNER");
    assert_eq!(refused(&document.apply(&synced(&document, 1))), "NOT_A_SYNCER");
}

#[test]
fn an_aborted_join_leaves_the_owners_as_they_were_and_can_be_tried_again() {
    let mut document = formed(&[1, 2, 3]);
    let before = document.owners.clone();
    now(&mut document, |document| join(document, &[4]));
    now(&mut document, |document| synced(document, 4));
    does(&mut document, &Command::Abort { epoch: 2 });
    assert_eq!((document.epoch, &document.owners, document.is_joint()), (3, &before, false));
    assert_eq!(document.members[&node(4)].state, MemberState::Joining);
    assert_eq!(document.departed, BTreeMap::from([(node(4), 3)]), "it may hold rows");

    now(&mut document, |document| join(document, &[4]));
    assert!(document.synced.is_empty(), "the old receipt is void");
    finish(&mut document);
    assert_eq!(document.owners.len(), 4);
}

#[test]
fn one_transition_at_a_time_and_only_on_the_document_it_was_planned_on() {
    let mut document = formed(&[1, 2, 3]);
    let late = join(&document, &[5]);
    now(&mut document, |document| join(document, &[4]));
    assert_eq!(refused(&document.apply(&late)), "TRANSITION_IN_PROGRESS");
    finish(&mut document);
    assert_eq!(refused(&document.apply(&late)), "STALE_EPOCH");
    assert_eq!(refused(&document.apply(&join(&document, &[]))), "NOTHING_TO_DO");
    assert_eq!(refused(&document.apply(&join(&document, &[4, 5]))), "ALREADY_A_MEMBER");
}

#[test]
fn members_are_bounded_and_ids_that_were_retired_count() {
    let owners: Vec<u128> = (1..=OWNERS_MAX as u128).collect();
    let mut full = formed(&owners);
    assert_eq!(refused(&full.apply(&join(&full, &[1000]))), "TOO_MANY_MEMBERS");
    let mut old = formed(&[1, 2, 3]);
    for n in 10..10 + MEMBERS_MAX as u128 - 3 {
        let member = Member { state: MemberState::Removed, ..member("") };
        old.members.insert(node(n), member);
    }
    old.check().unwrap();
    assert_eq!(refused(&old.apply(&join(&old, &[9]))), "TOO_MANY_MEMBERS");
    assert_eq!(refused(&old.apply(&join(&old, &[10]))), "NODE_ID_RETIRED");
}

#[test]
fn tenants_are_created_and_altered_by_the_rules_of_the_store() {
    let mut document = formed(&[1, 2, 3]);
    let Answer::Tenant(tenant) = document.apply(&create("logs")) else { panic!("it is new") };
    assert_eq!((tenant.id, tenant.created_at_ms), (TenantId(2), 8));
    assert_eq!((document.epoch, document.version), (1, 2), "nothing is owned differently");
    let ttl = |ttl| TenantChange { default_ttl_ms: Some(ttl), ..TenantChange::default() };
    does(&mut document, &alter("logs", ttl(Some(5))));
    assert_eq!(document.tenants[&TenantId(2)].default_ttl_ms, Some(5));
    does(&mut document, &alter("logs", ttl(Some(5))));
    assert_eq!(document.version, 3, "the same again is no change");
    does(&mut document, &alter("logs", ttl(None)));
    assert_eq!(document.tenants[&TenantId(2)].default_ttl_ms, None);

    let cases = [
        (create("logs"), "TENANT_EXISTS"),
        (create("No"), "INVALID_TENANT_NAME"),
        (alter("nobody", TenantChange::default()), "UNKNOWN_TENANT"),
        (alter("No", TenantChange::default()), "INVALID_TENANT_NAME"),
        (alter("logs", ttl(Some(0))), "INVALID_TTL"),
    ];
    for (command, reason) in cases {
        assert_eq!(refused(&document.apply(&command)), reason);
    }
    document.tenant_id_next = u32::MAX;
    assert_eq!(refused(&document.apply(&create("more"))), "TOO_MANY_TENANTS");
}

/// With several owners it would name replicas that hold nothing: that takes a transition.
#[test]
fn the_replication_factor_changes_only_while_there_is_one_owner() {
    let factor = |factor| TenantChange { replication_factor: Some(factor), ..Default::default() };
    let mut document = formed(&[1]);
    does(&mut document, &alter("default", factor(2)));
    assert_eq!(document.replication_factors(), BTreeSet::from([2]));
    now(&mut document, |document| join(document, &[2]));
    let change = alter("default", factor(3));
    assert_eq!(refused(&document.apply(&change)), "REPLICATION_FACTOR_FIXED", "in Joint already");
    finish(&mut document);
    assert_eq!(refused(&document.apply(&change)), "REPLICATION_FACTOR_FIXED");
    does(&mut document, &alter("default", factor(2)));
}

#[test]
fn a_drain_is_leaving_then_not_owning_then_left() {
    let mut document = formed(&[1, 2, 3, 4]);
    let leave = change(&document, |change| change.leaves = nodes(&[4]));
    does(&mut document, &leave);
    assert_eq!(document.members[&node(4)].state, MemberState::Leaving);
    let left = Command::Left { node: node(4), digest: "d1".to_owned() };
    assert_eq!(refused(&document.apply(&left)), "NOT_AN_OWNER", "it still owns");
    finish(&mut document);
    assert!(!document.owners.contains_key(&node(4)));
    assert_eq!(document.members[&node(4)].state, MemberState::Leaving);
    assert_eq!(document.departed.get(&node(4)), Some(&3));
    does(&mut document, &left);
    assert_eq!(document.members[&node(4)].state, MemberState::Left);
    assert_eq!(document.certificates[&node(4)], "d1");
    does(&mut document, &left);
    assert_eq!(refused(&document.apply(&join(&document, &[4]))), "NODE_ID_RETIRED");
    let left = Command::Left { node: node(7), digest: String::new() };
    assert_eq!(refused(&document.apply(&left)), "UNKNOWN_NODE");
}

#[test]
fn an_aborted_drain_or_removal_makes_the_node_a_normal_one_again() {
    let mut document = formed(&[1, 2, 3, 4, 5]);
    let go = change(&document, |change| {
        change.leaves = nodes(&[4]);
        change.removes = nodes(&[5]);
    });
    does(&mut document, &go);
    assert_eq!(document.members[&node(5)].state, MemberState::Removing);
    does(&mut document, &Command::Abort { epoch: 2 });
    assert!(document.members.values().all(|member| member.state == MemberState::Normal));
}

#[test]
fn too_few_owners_or_sources_are_refused() {
    let mut document = formed(&[1, 2, 3]);
    let leave = change(&document, |change| change.leaves = nodes(&[3]));
    assert_eq!(refused(&document.apply(&leave)), "TOO_FEW_OWNERS", "three replicas are promised");
    let two = change(&document, |change| change.removes = nodes(&[2, 3]));
    assert_eq!(refused(&document.apply(&two)), "TOO_FEW_SOURCES", "two of three are dead");
    let all = change(&document, |change| change.removes = nodes(&[1, 2, 3]));
    assert_eq!(refused(&document.apply(&all)), "TOO_FEW_OWNERS");
    let replace = change(&document, |change| {
        change.removes = nodes(&[3]);
        change.joins = members(&[4]);
    });
    does(&mut document, &replace);
    finish(&mut document);
    assert_eq!(document.members[&node(3)].state, MemberState::Removed);
    assert!(!document.departed.contains_key(&node(3)), "nobody waits for it");
}

/// L1: the operator accepts what only the dead leaver held; sources are needed as ever.
#[test]
fn a_leaver_that_dies_is_given_up_if_others_can_be_asked() {
    let mut document = formed(&[1, 2, 3, 4, 5]);
    let leave = change(&document, |change| change.leaves = nodes(&[1, 2]));
    does(&mut document, &leave);
    let give_up = |of: &[u128]| Command::GiveUp { nodes: nodes(of), epoch: 2 };
    // All that are named, or none.
    let before = document.clone();
    assert_eq!(refused(&document.apply(&give_up(&[1, 3]))), "NOT_AN_OWNER");
    assert_eq!(refused(&document.apply(&give_up(&[1, 2]))), "TOO_FEW_SOURCES");
    assert_eq!(document, before);
    does(&mut document, &give_up(&[1]));
    assert_eq!(document.members[&node(1)].state, MemberState::Removing);
    does(&mut document, &give_up(&[1]));
    assert_eq!(refused(&document.apply(&give_up(&[2]))), "TOO_FEW_SOURCES");
    assert_eq!(refused(&document.apply(&give_up(&[1, 2]))), "TOO_FEW_SOURCES");
    finish(&mut document);
    assert_eq!(document.members[&node(1)].state, MemberState::Removed);
    assert_eq!(document.members[&node(2)].state, MemberState::Leaving);
}

/// A log that was written before it could be several.
#[test]
fn a_command_that_gives_one_node_up_is_read() {
    let command = Command::GiveUp { nodes: nodes(&[1]), epoch: 2 };
    let several = serde_json::to_string(&command).expect("text");
    assert_eq!(serde_json::from_str::<Command>(&several).expect("a command"), command);
    let one = several.replace("\"nodes\":[", "\"node\":").replace("],", ",");
    assert_ne!(one, several);
    assert_eq!(serde_json::from_str::<Command>(&one).expect("a command"), command);
}

#[test]
fn an_aborted_newcomer_that_died_is_forgotten_at_once() {
    let mut document = formed(&[1, 2, 3]);
    now(&mut document, |document| join(document, &[4]));
    does(&mut document, &Command::Abort { epoch: 2 });
    let remove = change(&document, |change| change.removes = nodes(&[4]));
    does(&mut document, &remove);
    assert_eq!((document.epoch, document.is_joint()), (3, false), "it owned nothing");
    assert_eq!(document.members[&node(4)].state, MemberState::Removed);
    assert!(document.departed.is_empty());
}

#[test]
fn a_weight_changes_by_a_transition() {
    let mut document = formed(&[1, 2, 3, 4]);
    let heavier = change(&document, |change| change.weights = BTreeMap::from([(node(1), 100)]));
    does(&mut document, &heavier);
    assert_eq!(document.members[&node(1)].weight, 1);
    assert_eq!(document.syncers, nodes(&[1]));
    finish(&mut document);
    assert_eq!((document.members[&node(1)].weight, document.owners[&node(1)].weight), (100, 100));
    let same = change(&document, |change| change.weights = BTreeMap::from([(node(1), 100)]));
    assert_eq!(refused(&document.apply(&same)), "NOTHING_TO_DO");
    let stranger = change(&document, |change| change.weights = BTreeMap::from([(node(9), 1)]));
    assert_eq!(refused(&document.apply(&stranger)), "UNKNOWN_NODE");
}

fn factors(document: &Document, factor: u8) -> Command {
    change(document, |change| change.factors = BTreeMap::from([(TenantId(1), factor)]))
}

/// S by the old number of replicas, S' by the new one. Who has none of it syncs; where the number
/// falls by two, those who stay do too.
#[test]
fn the_replication_factor_of_several_owners_changes_by_a_transition() {
    let mut document = formed(&[1, 2, 3, 4, 5]);
    now(&mut document, |document| factors(document, 5));
    assert_eq!(document.tenants[&TenantId(1)].replication_factor, 3, "until it is over");
    assert_eq!(document.factor_classes(), BTreeSet::from([(3, 5)]));
    let tenant = document.tenants[&TenantId(1)].clone();
    let joint = layout(&document);
    for partition in 0..joint.partitions() {
        let sets = joint.sets_of(partition, &tenant);
        let (current, next) = (sets.current, sets.next.expect("joint"));
        assert_eq!((current.len(), next.len()), (3, 5));
        assert_eq!(next[..3], current[..]);
        // A coordinator that knows the tenant of another document acts by this one's.
        let other = Tenant { replication_factor: 1, ..tenant.clone() };
        assert_eq!(joint.sets_of(partition, &other).current, current);
    }
    let newcomers =
        |partition| joint.sets_of(partition, &tenant).next.expect("joint")[3..].to_vec();
    let of = |node: NodeId| joint.to_sync(node).iter().map(|one| one.partition).collect::<Vec<_>>();
    for node in document.members.keys() {
        let new = (0..joint.partitions()).filter(|one| newcomers(*one).contains(node));
        assert_eq!(of(*node), new.clone().collect::<Vec<_>>());
        assert_eq!(joint.newly_owned(*node), new.collect::<Vec<_>>());
    }
    finish(&mut document);
    assert_eq!(document.tenants[&TenantId(1)].replication_factor, 5);
    assert!(document.next_factors.is_empty() && document.departed.is_empty(), "nobody lost any");

    now(&mut document, |document| factors(document, 3));
    assert_eq!(document.syncers, nodes(&[1, 2, 3, 4, 5]), "from five to three all who stay sync");
    finish(&mut document);
    assert_eq!(document.departed.len(), 5);
    now(&mut document, |document| factors(document, 2));
    assert!(document.syncers.is_empty(), "from three to two nobody has to");
    let epoch = document.epoch;
    does(&mut document, &Command::Abort { epoch });
    assert_eq!(document.replication_factors(), BTreeSet::from([3]));
    assert!(document.next_factors.is_empty());
}

#[test]
fn a_factor_that_cannot_be_is_refused_and_a_drain_counts_with_the_one_to_be() {
    let mut document = formed(&[1, 2, 3, 4]);
    assert_eq!(refused(&document.apply(&factors(&document, 3))), "NOTHING_TO_DO");
    assert_eq!(refused(&document.apply(&factors(&document, 0))), "INVALID_ARGUMENT");
    let nobody = change(&document, |change| change.factors = [(TenantId(9), 2)].into());
    assert_eq!(refused(&document.apply(&nobody)), "UNKNOWN_TENANT");
    let both = change(&document, |change| {
        change.factors = [(TenantId(1), 4)].into();
        change.leaves = nodes(&[4]);
    });
    assert_eq!(refused(&document.apply(&both)), "TOO_FEW_OWNERS", "three would be left for four");
    let fewer = change(&document, |change| {
        change.factors = [(TenantId(1), 2)].into();
        change.leaves = nodes(&[3, 4]);
    });
    does(&mut document, &fewer);
    finish(&mut document);
    assert_eq!(document.owners.len(), 2);
}

#[test]
fn a_zone_changes_by_a_transition() {
    let mut document = formed(&[1, 2, 3, 4]);
    let moves = change(&document, |change| change.zones = [(node(1), "east".to_owned())].into());
    does(&mut document, &moves);
    assert_eq!(document.members[&node(1)].zone, "");
    finish(&mut document);
    assert_eq!(document.members[&node(1)].zone, "east");
    assert_eq!(document.owners[&node(1)].zone, "east");
    assert_eq!(refused(&document.apply(&moves)), "STALE_EPOCH");
    let long = change(&document, |change| change.zones = [(node(1), "z".repeat(256))].into());
    assert_eq!(refused(&document.apply(&long)), "INVALID_MEMBER");
}

/// What a removal would lose is named before it is refused.
#[test]
fn the_partitions_that_a_removal_would_lose_are_named() {
    let document = formed(&[1, 2, 3, 4]);
    assert!(document.lost_by(&nodes(&[4])).is_empty());
    let lost = document.lost_by(&nodes(&[3, 4]));
    let table = layout(&document);
    let has_both = |partition: &u32| {
        let set = table.sets(*partition, 3).current;
        set.contains(&node(3)) && set.contains(&node(4))
    };
    let expected: Vec<u32> = (0..table.partitions()).filter(has_both).collect();
    assert_eq!(lost.iter().map(|one| one.0).collect::<Vec<_>>(), expected);
    assert!(lost.iter().all(|(_, factor, left)| *factor == 3 && left.len() == 1));
}

/// D3, `purge_before_departed_report` (I5): a node that lost partitions may hold old rows of them
/// until it says that it does not; a delete forgotten before would be undone by them.
#[test]
fn purge_before_departed_report() {
    let mut document = formed(&[1, 2, 3]);
    assert!(layout(&document).safe_points_may_move());
    now(&mut document, |document| join(document, &[4]));
    assert!(!layout(&document).safe_points_may_move());
    finish(&mut document);
    assert_eq!(document.departed.keys().copied().collect::<BTreeSet<_>>(), nodes(&[1, 2, 3]));
    let cleared = |n, epoch| Command::Cleared { node: node(n), epoch };
    assert_eq!(refused(&document.apply(&cleared(1, 2))), "STALE_EPOCH");
    assert_eq!(refused(&document.apply(&cleared(1, 4))), "STALE_EPOCH", "of the future");
    for n in [1, 2, 3] {
        assert!(!layout(&document).safe_points_may_move());
        does(&mut document, &cleared(n, 3));
    }
    assert!(layout(&document).safe_points_may_move());
    does(&mut document, &cleared(1, 3));
}

/// L2, `removal_before_finish` (I16): RF 2, {A, X} to {A, D}. Had X been removed for ever
/// when its removal began, an abort would leave a set that can never form a quorum again.
#[test]
fn removal_before_finish() {
    let quorums_are_possible = |document: &Document| {
        let layout = layout(document);
        (0..layout.partitions()).all(|partition| {
            let set = layout.sets(partition, 2).current;
            let back = |node: &&NodeId| document.members[*node].state != MemberState::Removed;
            set.iter().filter(back).count() >= rules::quorum(set.len())
        })
    };
    let mut document = formed(&[1]);
    let two = TenantChange { replication_factor: Some(2), ..TenantChange::default() };
    does(&mut document, &alter("default", two));
    now(&mut document, |document| join(document, &[2]));
    finish(&mut document);
    let replace = change(&document, |change| {
        change.removes = nodes(&[2]);
        change.joins = members(&[4]);
    });
    does(&mut document, &replace);
    let mut broken = document.clone();
    let x = broken.members.get_mut(&node(2)).expect("it is being removed");
    x.state = MemberState::Removed;

    let abort = Command::Abort { epoch: document.epoch };
    does(&mut document, &abort);
    assert!(quorums_are_possible(&document));
    broken.apply(&abort);
    assert!(!quorums_are_possible(&broken), "without the rule the quorum is lost");
    let reason = broken.check().unwrap_err();
    assert!(reason.contains("Removed"), "{reason}");
}
