//! What a layout answers about a document.

use super::*;

#[test]
fn a_token_lies_in_the_partition_of_its_top_bits() {
    let at = |bits, token| {
        let document = Document { partition_bits: bits, ..formed(&[1]) };
        layout(&document).partition_of(token)
    };
    assert_eq!(at(4, 0), 0);
    assert_eq!(at(4, u64::MAX), 15);
    assert_eq!(at(4, 0x1fff_ffff_ffff_ffff), 1);
    assert_eq!(at(14, u64::MAX), (1 << 14) - 1);
    assert_eq!(at(0, u64::MAX), 0, "one partition holds everything");
}

#[test]
fn a_joint_layout_names_both_sets_and_those_in_both_first() {
    let mut document = formed(&[1, 2, 3]);
    let stable = layout(&document);
    let sets = stable.sets(0, 3);
    assert_eq!((sets.current.len(), &sets.next), (3, &None));
    assert_eq!(sets.members(), sets.current);
    now(&mut document, |document| join(document, &[4]));
    let joint = layout(&document);
    assert_eq!(joint.epoch(), 2);
    let mut exchanged = 0;
    for partition in 0..joint.partitions() {
        let sets = joint.sets(partition, 3);
        let next = sets.next.clone().expect("it is Joint");
        assert_eq!(sets.current, stable.sets(partition, 3).current);
        let members = sets.members();
        assert_eq!(sets.each().count(), 2);
        assert_eq!(sets.contains(node(4)), next.contains(&node(4)));
        if next.contains(&node(4)) {
            exchanged += 1;
            assert_eq!(members.len(), 4);
            assert!(members[..2].iter().all(|n| sets.current.contains(n) && next.contains(n)));
            assert_eq!(members[3], node(4));
        } else {
            assert_eq!(members, sets.current);
        }
    }
    assert!((5..=16).contains(&exchanged), "about three of four partitions: {exchanged}");
}

#[test]
fn a_replication_factor_over_the_number_of_owners_is_cut_to_it() {
    let sets = layout(&formed(&[1, 2])).sets(3, 5);
    assert_eq!(sets.current.len(), 2);
}

/// T2 and T4, as the node that joins asks them.
#[test]
fn a_newcomer_learns_what_it_must_sync_and_from_whom() {
    let mut document = formed(&[1, 2, 3]);
    assert!(!layout(&document).must_sync(node(1)));
    assert_eq!(layout(&document).sources_needed(0, (3, 3)).count, 0);
    now(&mut document, |document| join(document, &[4]));
    let layout = layout(&document);
    assert!(layout.must_sync(node(4)) && !layout.must_sync(node(1)));
    assert!(layout.to_sync(node(1)).is_empty());
    let to_sync = layout.to_sync(node(4));
    let mine = |partition: &u32| {
        layout.sets(*partition, 3).next.is_some_and(|next| next.contains(&node(4)))
    };
    let expected: Vec<u32> = (0..layout.partitions()).filter(mine).collect();
    assert_eq!(to_sync.iter().map(|one| one.partition).collect::<Vec<_>>(), expected);
    for ToSync { sources, factors, .. } in to_sync {
        assert_eq!((factors, sources.count, sources.of.len()), ((3, 3), 2, 3));
        assert!(sources.is_synced_by(&nodes(&[1, 3])) && !sources.is_synced_by(&nodes(&[2, 4])));
    }
}

#[test]
fn whoever_leaves_is_a_source_until_it_is_given_up() {
    let mut document = formed(&[1, 2, 3, 4]);
    now(&mut document, |document| change(document, |change| change.leaves = nodes(&[2])));
    let before = layout(&document);
    let lost = |partition: &u32| before.sets(*partition, 3).current.contains(&node(2));
    let partition = (0..before.partitions()).find(lost).expect("it owns something");
    assert_eq!(before.sources_needed(partition, (3, 3)).leaving, [node(2)]);
    does(&mut document, &Command::GiveUp { nodes: nodes(&[2]), epoch: 2 });
    assert!(layout(&document).sources_needed(partition, (3, 3)).leaving.is_empty());
}

/// Facts and tenants change often; ranking again each time would be paid by every node.
#[test]
fn a_successor_answers_as_a_layout_built_anew() {
    let mut document = formed(&[1, 2, 3]);
    let mut kept = layout(&document);
    let steps: [fn(&Document) -> Command; 5] = [
        |_| create("t"),
        |document| join(document, &[4]),
        |document| Command::Abort { epoch: document.epoch },
        |document| join(document, &[5]),
        |document| fenced(document, 1),
    ];
    let same = |kept: &Layout, document: &Document| {
        let built = layout(document);
        for partition in 0..built.partitions() {
            assert_eq!(kept.sets(partition, 3), built.sets(partition, 3));
        }
    };
    for step in steps {
        now(&mut document, step);
        kept = kept.succeeded_by(Arc::new(document.clone()));
        same(&kept, &document);
    }
    finish(&mut document);
    kept = kept.succeeded_by(Arc::new(document.clone()));
    same(&kept, &document);
    let other = Document { partition_bits: 6, ..document };
    same(&kept.succeeded_by(Arc::new(other.clone())), &other);
}
