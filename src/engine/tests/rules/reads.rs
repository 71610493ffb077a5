//! Reads and the row cache against flush and ingest.

use super::*;

/// Tables without filters: a read of a key inside a table's range reads a block in vain, as where a
/// filter is wrong, and puts "nothing" into the cache.
fn without_filters() -> Options {
    Options { filter_bits_per_key: 0, ..tiny() }
}

/// Makes a table around the key, which is not in it.
fn make_table_around_key(node: &Node) {
    node.engine().apply(&[(b"a", &y().encode()), (b"z", &y().encode())]).expect("taken");
    node.flush();
}

/// Without it a read stops early: the newer of two memtables became a table first, and the Full of
/// the older one is found before it.
#[test]
fn epoch_order_install() {
    let history = |node: &Node| {
        node.update(false, Some(X));
        node.seal();
        node.apply(&y());
        node.seal();
        node.flush_one();
        node.values()
    };
    judge("epoch_order_install", history, &[X, Y], &[X]);
}

/// Without it a read misses a memtable that is flushed while it looks: it took the tables before
/// and the memtables after.
#[test]
fn one_super_version() {
    let history = |node: &Node| {
        node.apply(&x());
        node.at("read:pinned", Node::flush);
        node.values()
    };
    judge("one_super_version", history, &[X], &[]);
}

/// Without it a reader that was slow fills the cache with what was so before a flush, for ever.
#[test]
fn cache_epoch_tag() {
    let history = |node: &Node| {
        make_table_around_key(node);
        assert_eq!(node.values(), [0; 0], "a second miss gives the key an entry");
        node.apply(&x());
        node.at("read:before_fill", Node::flush);
        assert_eq!(Row::decode(&node.engine().get(KEY).unwrap().unwrap()).unwrap(), x());
        node.values()
    };
    judge_with(without_filters(), "cache_epoch_tag", history, &[X], &[]);
}

/// The same with an ingest, which finds nothing to drop before the reader fills.
#[test]
fn cache_epoch_tag_with_an_ingest() {
    let history = |node: &Node| {
        make_table_around_key(node);
        assert_eq!(node.values(), [0; 0], "a second miss gives the key an entry");
        node.at("read:before_fill", |node| drop(node.ingest(&x())));
        assert_eq!(node.engine().get(KEY).expect("reads"), None);
        node.values()
    };
    judge_with(without_filters(), "cache_epoch_tag", history, &[X], &[]);
}

/// Without it a reader of the new version hits the old entry; made a Full by a write, it hides what
/// the entry lacked.
#[test]
fn cache_fix_before_swap() {
    let history = |node: &Node| {
        node.apply(&x());
        node.flush();
        assert_eq!(node.values(), [X], "a second miss gives the key an entry");
        assert_eq!(node.values(), [X], "in the cache from here on");
        node.apply(&y());
        node.at("install:swapped", |node| {
            let _ = node.update(false, Some(Z));
        });
        node.flush();
        node.values()
    };
    judge("cache_fix_before_swap", history, &[Z, X, Y], &[Z, X]);
}

/// Without it a key stays absent after its first write is flushed.
#[test]
fn cache_negative_fix() {
    let history = |node: &Node| {
        make_table_around_key(node);
        assert_eq!(node.values(), [0; 0], "a second miss gives the key an entry");
        assert_eq!(node.values(), [0; 0], "its absence is in the cache from here on");
        node.apply(&x());
        node.flush();
        node.values()
    };
    judge_with(without_filters(), "cache_negative_fix", history, &[X], &[]);
}

/// Without it the row cache shows what is in no table any more.
#[test]
fn removal_drops_cache() {
    let history = |node: &Node| {
        node.engine().apply(&[(KEY, &x().encode()), (b"z", &y().encode())]).expect("taken");
        node.flush();
        (0..3).for_each(|_| assert_eq!(node.values(), [X]));
        node.remove();
        node.values()
    };
    judge("removal_drops_cache", history, &[], &[X]);
}
