//! What placement promises: the same everywhere, little moves, all get their share.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::cluster::layout::Owner;

use super::*;

fn owner(zone: &str, weight: u32) -> Owner {
    Owner { zone: zone.to_owned(), weight }
}

/// `count` owners of equal weight, in turn in each of `zones` zones.
fn even(count: u128, zones: u128) -> Owners {
    // Ids as they are minted: spread over all of their bits.
    let id = |n: u128| NodeId(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835_u128.wrapping_mul(n + 1));
    (0..count).map(|n| (id(n), owner(&format!("zone-{}", n % zones), 1))).collect()
}

fn replicas(table: &RankTable, partition: u32, rf: u8) -> Vec<NodeId> {
    table.replicas(partition, rf).collect()
}

/// How many replicas each owner holds.
fn loads(table: &RankTable, rf: u8) -> BTreeMap<NodeId, u32> {
    let mut loads = BTreeMap::new();
    for node in (0..table.partitions()).flat_map(|partition| replicas(table, partition, rf)) {
        *loads.entry(node).or_default() += 1;
    }
    loads
}

/// Two versions of the program in one cluster must agree, so these are fixed for ever: a change
/// here moves everybody's data.
#[test]
fn the_bytes_and_numbers_of_placement_never_change() {
    assert_eq!(draw(7, NodeId(0x0123_4567_89ab_4def_8000_0000_0000_0001)), DRAW);
    let costs = [u64::MAX, 1 << 63, 3 << 62, 1, 0, 0x0123_4567_89ab_cdef].map(cost);
    assert_eq!(costs, COSTS);
    let mut owners = Owners::new();
    for (id, zone, weight) in
        [(1, "a", 1), (2, "a", 2), (3, "b", 1), (4, "b", 4), (5, "c", 1), (6, "", 1)]
    {
        owners.insert(NodeId(id), owner(zone, weight));
    }
    let table = RankTable::new(3, &owners);
    let ranks: Vec<Vec<u128>> = (0..table.partitions())
        .map(|partition| table.replicas(partition, 15).map(|node| node.0).collect())
        .collect();
    assert_eq!(ranks, RANKS);
}

const DRAW: u64 = 5_693_211_484_296_472_302;
/// Checked against a logarithm of 60 digits, as the lists were against one in floating point.
const COSTS: [u64; 6] =
    [1, 1 << 48, 116_822_670_443_562, 64 << 48, 64 << 48, 2_199_383_878_819_978];
const RANKS: [[u128; 6]; 8] = [
    [4, 2, 6, 5, 3, 1],
    [4, 1, 6, 5, 3, 2],
    [1, 6, 4, 5, 3, 2],
    [6, 2, 5, 4, 1, 3],
    [6, 5, 3, 1, 4, 2],
    [2, 4, 5, 6, 3, 1],
    [2, 4, 5, 6, 1, 3],
    [4, 1, 6, 5, 3, 2],
];

#[test]
fn the_cost_is_the_logarithm() {
    for draw in (1..64).map(|bit| 0xfedc_ba98_7654_3211_u64 >> bit) {
        let exact = 64.0 - (draw as f64).log2();
        let found = cost(draw) as f64 / (1_u64 << COST_FRACTION_BITS) as f64;
        assert!((exact - found).abs() < 1e-5, "{draw:x}: {found}, not {exact}");
    }
    assert!(cost(u64::MAX) > 0, "a cost of zero would make every weight equal");
}

#[test]
fn there_is_a_list_for_each_partition_and_no_other() {
    let table = RankTable::new(4, &even(4, 2));
    assert_eq!(table.partitions(), 16);
    assert_eq!(replicas(&table, 15, 9).len(), 4, "no more replicas than owners");
    assert_eq!(replicas(&table, 16, 3), []);
    assert_eq!(replicas(&table, u32::MAX, 3), []);
    assert_eq!(replicas(&RankTable::new(4, &Owners::new()), 0, 3), []);
    assert_eq!(RankTable::new(0, &even(4, 2)).partitions(), 1);
    assert_eq!(replicas(&RankTable::new(1, &even(40, 3)), 1, u8::MAX).len(), 15);
}

/// The figures of the model this was chosen by.
#[test]
fn owners_of_equal_weight_hold_about_as_much_as_each_other() {
    for (owners, zones, percent) in [(6, 1, 9), (6, 3, 9), (9, 3, 12), (5, 5, 12)] {
        let table = RankTable::new(10, &even(owners, zones));
        let fair = 1024 * 3 / owners as u32;
        for (node, load) in loads(&table, 3) {
            let off = load.abs_diff(fair) * 100 / fair;
            assert!(off <= percent, "{node} of {owners} in {zones} zones has {load}, fair {fair}");
        }
    }
}

#[test]
fn an_owner_of_twice_the_weight_holds_about_twice_as_much() {
    let mut owners = even(5, 1);
    let heavy = *owners.keys().next().expect("five");
    owners.insert(heavy, owner("zone-0", 2));
    let loads = loads(&RankTable::new(12, &owners), 1);
    // Of 4096 partitions a sixth for each share.
    assert!(loads[&heavy].abs_diff(4096 / 3) < 110, "{loads:?}");
}

/// Owners in zones, and one more that joins them.
fn cluster() -> impl Strategy<Value = (Owners, NodeId, Owner)> {
    let one = || (0..4_u32, prop_oneof![3 => Just(1), 1 => 1..=WEIGHT_MAX]);
    let owners = prop::collection::btree_map(any::<u128>(), one(), 0..12);
    (owners, any::<u128>(), one()).prop_map(|(owners, id, (zone, weight))| {
        let owners = owners
            .into_iter()
            .filter(|(other, _)| *other != id)
            .map(|(id, (zone, weight))| (NodeId(id), owner(&zone.to_string(), weight)))
            .collect();
        (owners, NodeId(id), owner(&zone.to_string(), weight))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Read backwards it is the law of an owner that goes.
    #[test]
    fn a_newcomer_takes_one_place_and_moves_nobody_else((before, id, newcomer) in cluster()) {
        let mut after = before.clone();
        after.insert(id, newcomer);
        let (old, new) = (RankTable::new(6, &before), RankTable::new(6, &after));
        for partition in 0..new.partitions() {
            for rf in 1..=7 {
                let old: BTreeSet<_> = old.replicas(partition, rf).collect();
                let new: BTreeSet<_> = new.replicas(partition, rf).collect();
                let came: Vec<_> = new.difference(&old).copied().collect();
                prop_assert!(came.is_empty() || came == [id], "{came:?} came");
                prop_assert!(old.difference(&new).count() <= came.len());
            }
        }
    }

    #[test]
    fn lower_factors_are_prefixes_and_zones_are_used_up((owners, _, _) in cluster()) {
        let zones: BTreeSet<_> = owners.values().map(|owner| &owner.zone).collect();
        let table = RankTable::new(6, &owners);
        for partition in 0..table.partitions() {
            let five = replicas(&table, partition, 5);
            prop_assert_eq!(five.len(), owners.len().min(5));
            let distinct: BTreeSet<_> = five.iter().collect();
            prop_assert_eq!(distinct.len(), five.len());
            for rf in 1..5 {
                let fewer = replicas(&table, partition, rf);
                prop_assert_eq!(&fewer[..], &five[..fewer.len()]);
                let used: BTreeSet<_> = fewer.iter().map(|node| &owners[node].zone).collect();
                prop_assert_eq!(used.len(), zones.len().min(usize::from(rf)).min(fewer.len()));
            }
        }
    }
}
