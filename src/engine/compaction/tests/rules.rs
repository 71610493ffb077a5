//! Each rule of what a compaction may claim and forget: the history that needs it, with the rule
//! and without. Times are written as in the histories: x is a value, d its delete, x is older.

use super::*;
use crate::engine::version::Quarantined;

/// Runs a history with the rule and without it, and compares what a reader then finds.
fn judge<T: PartialEq + std::fmt::Debug>(
    rule: Rule,
    history: impl Fn(Option<Rule>) -> T,
    sound: T,
    damaged: T,
) {
    assert_eq!(history(None), sound, "with the rule");
    assert_eq!(history(Some(rule)), damaged, "without it the history does its damage");
}

/// Without it: a local write x is lost. A foreign Full, older than x, is ingested above it; a
/// compaction that believes the Full drops x, or hides it.
#[test]
fn demote_full() {
    for (with_x, output_level) in [(true, 6), (false, 5)] {
        let history = |removed| {
            let tree = Tree::new();
            let local = tree.add(6, false, &[delta("k", 9)]);
            let foreign = tree.add(0, true, &[full("k", 5)]);
            assert_eq!(tree.read("k"), Some(9));
            let inputs = if with_x { vec![foreign, local] } else { vec![foreign] };
            tree.compact(&tree.compaction(&inputs, output_level), removed);
            tree.read("k")
        };
        judge(Rule::DemoteFull, history, Some(9), Some(5));
    }
}

/// Without it: a Delta that becomes a Full hides what a lower table holds.
#[test]
fn promote_b_oldest() {
    let history = |removed| {
        let tree = Tree::new();
        tree.add(6, false, &[delta("k", 9)]);
        let upper = tree.add(4, false, &[delta("k", 5)]);
        let stats = tree.compact(&tree.compaction(&[upper], 5), removed);
        (tree.read("k"), stats.promoted)
    };
    judge(Rule::PromoteOldest, history, (Some(9), 0), (Some(5), 1));
}

/// Only a table that may hold the key speaks against a claim: one whose range covers the key but
/// whose filter denies it does not.
#[test]
fn promote_b_oldest_asks_filters() {
    let tree = Tree::new();
    tree.add(6, false, &[delta("a", 1), delta("z", 1)]);
    let upper = tree.add(4, false, &[delta("a", 5), delta("m", 5)]);
    let stats = tree.compact(&tree.compaction(&[upper], 5), None);
    assert_eq!(stats.promoted, 1, "m is nowhere else");
}

/// Without it: x comes back. d is in an old table of level 0, late x in a newer one; the
/// compaction of the old one forgets d.
#[test]
fn purge_all_tables() {
    let history = |removed| {
        let tree = Tree::new();
        let old = tree.add(0, false, &[tombstone("k", 5)]);
        tree.add(0, false, &[delta("k", 3)]);
        tree.set_floor(6, 2, false);
        tree.compact(&tree.compaction(&[old], 6), removed);
        tree.read("k")
    };
    judge(Rule::PurgeAllTables, history, None, Some(3));
}

/// Without it: x comes back. d is in a table, late x in the memtable when the floor is installed;
/// d is forgotten, then the memtable is flushed.
#[test]
fn purge_floor_epoch() {
    let history = |removed| {
        let mut tree = Tree::new();
        let table = tree.add(0, false, &[tombstone("k", 5)]);
        tree.oldest_unflushed_epoch = 2;
        tree.set_floor(6, 2, false);
        tree.compact(&tree.compaction(&[table], 6), removed);
        tree.add(0, false, &[delta("k", 3)]);
        tree.read("k")
    };
    judge(Rule::PurgeFloorEpoch, history, None, Some(3));
}

/// Without it: any value below the floor is lost.
#[test]
fn purge_tombstones_only() {
    let history = |removed| {
        let tree = Tree::new();
        let table = tree.add(0, false, &[delta("k", 5)]);
        tree.set_floor(6, 1, false);
        tree.compact(&tree.compaction(&[table], 6), removed);
        tree.read("k")
    };
    judge(Rule::PurgeTombstonesOnly, history, Some(5), None);
}

/// Without it: a partition that lost data forgets a delete, and a peer's old copy comes back; so
/// with a key that an unreadable block may hold.
#[test]
fn purge_undamaged() {
    for quarantined in [false, true] {
        let history = |removed| {
            let tree = Tree::new();
            let table = tree.add(0, false, &[tombstone("k", 5)]);
            let other = tree.add(6, false, &[delta("j", 1), delta("l", 1)]);
            tree.set_floor(6, 1, !quarantined);
            if quarantined {
                let key = || b"k"[..].into();
                let range = Quarantined { table: other, smallest: key(), largest: key() };
                let edit = VersionEdit { quarantined: vec![range], ..VersionEdit::default() };
                tree.set.log_and_apply(edit, 0).unwrap();
            }
            tree.compact(&tree.compaction(&[table], 5), removed).purged
        };
        judge(Rule::PurgeUndamaged, history, 0, 1);
    }
}

/// With all rules met a delete and what it covers are forgotten; one above the floor stays. When
/// nothing is left there is no output, and the inputs' files go.
#[test]
fn tombstones_below_the_floor_go() {
    let tree = Tree::new();
    let old = tree.add(6, false, &[delta("a", 1), delta("b", 2)]);
    let new = tree.add(0, false, &[tombstone("a", 5), tombstone("b", 7)]);
    tree.set_floor(6, 2, false);
    let stats = tree.compact(&tree.compaction(&[new, old], 6), None);
    assert_eq!((stats.purged, stats.output_records), (1, 1));
    tree.set_floor(7, 2, false);
    let last = tree.set.current().tables().next().unwrap().meta.number;
    tree.compact(&tree.compaction(&[last], 6), None);
    assert_eq!(tree.set.current().tables().count(), 0);
    let files = tree.vfs.list(&dir()).unwrap();
    assert!(!files.iter().any(|file| TableMeta::number_of(file).is_some()), "{files:?}");
}
