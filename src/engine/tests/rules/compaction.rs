//! Promotion and purge, in the tree as the engine's own picker shapes it.

use super::*;

/// Without it a Full hides what is newer: the younger of two tables moved below the older, which
/// another job kept where it was.
#[test]
fn age_contiguous() {
    let history = |node: &Node| {
        node.update(false, Some(X));
        node.flush();
        let view = node.shared().super_version.load_full();
        let older = view.version.level(0).tables()[0].meta.number;
        let busy = node.shared().reserve(|picker| picker.pick_tables(&[older], 0));
        let busy = busy.expect("is idle");
        node.apply(&y());
        node.flush();
        node.compact_what_is_due();
        drop(busy);
        node.values()
    };
    // The write's own read has put the key into the cache, which would answer rightly.
    let options = Options { row_cache_bytes: 0, ..tiny() };
    judge_with(options, "age_contiguous", history, &[X, Y], &[X]);
}

/// Without it a flush makes a Full of a Delta that lacks what an older table holds.
#[test]
fn promote_a_older() {
    let history = |node: &Node| {
        node.apply(&x());
        node.flush();
        node.apply(&y());
        node.flush();
        node.values()
    };
    judge("promote_a_older", history, &[X, Y], &[Y]);
}

/// The same where the older table was an ingest that waited in the queue.
#[test]
fn promote_a_older_than_an_ingest() {
    let history = |node: &Node| {
        node.at("ingest:queued", |node| {
            let _ = node.apply(&y());
        });
        node.ingest(&x()).expect("taken");
        node.flush();
        node.values()
    };
    judge("promote_a_older", history, &[X, Y], &[Y]);
}

/// Without it a compaction that does not reach the last level makes a Full of what it joined.
#[test]
fn promote_b_oldest() {
    let options = Options { level0_tables_trigger: 2, ..tiny() };
    let history = |node: &Node| {
        node.apply(&x());
        // Enough to make the tree several levels deep.
        let rows = (0..1500).map(|n| Ok((format!("other-{n:05}").into_bytes(), y().encode())));
        node.engine().ingest(&mut rows.into_iter()).expect("taken");
        node.compact();
        for row in [y(), Row::default().write(4, 4, false, Some(Z))] {
            node.apply(&row);
            node.flush();
        }
        assert!(node.shared().compact_once().expect("compacts"));
        let version = &node.shared().super_version.load().version;
        assert!((1..6).any(|level| version.level(level).bytes() > 0), "not down to the last level");
        node.values()
    };
    judge_with(options, "promote_b_oldest", history, &[X, Y, Z], &[Y, Z]);
}

/// Without it x comes back: d is in an old table, late x in a newer one, and the old one alone is
/// compacted.
#[test]
fn purge_all_tables() {
    let history = |node: &Node| {
        node.apply(&d());
        node.flush();
        node.apply(&x());
        node.flush();
        node.floor(2);
        node.damage_newest_table();
        node.compact_what_is_due();
        node.values()
    };
    judge("purge_all_tables", history, &[], &[X]);
}

/// Without it x comes back: d is in a table and late x in a memtable when the floor is installed.
#[test]
fn purge_floor_epoch() {
    let history = |node: &Node| {
        node.apply(&d());
        node.flush();
        node.apply(&x());
        node.floor(2);
        node.compact_what_is_due();
        node.values()
    };
    judge("purge_floor_epoch", history, &[], &[X]);
}

/// Without it x comes back: it was taken, late, while the partition was damaged, and is still in a
/// memtable when the mended floor counts again and d is forgotten.
#[test]
fn mended_floor_waits() {
    let history = |node: &Node| {
        node.apply(&d());
        node.flush();
        node.floor(2);
        node.engine().set_damaged(0..=0, &[7]).expect("marks");
        node.apply(&x());
        node.engine().set_damaged(0..=0, &[]).expect("clears");
        node.compact_what_is_due();
        node.values()
    };
    judge("mended_floor_waits", history, &[], &[X]);
}

/// Without it a compaction that began before keys were excised from its inputs installs outputs
/// that still hold them.
#[test]
fn removal_alone() {
    let history = |node: &Node| {
        node.engine().apply(&[(KEY, &x().encode()), (b"z", &y().encode())]).expect("taken");
        node.flush();
        node.engine().apply(&[(KEY, &y().encode()), (b"z", &x().encode())]).expect("taken");
        node.flush();
        node.at("compact:merged", |node| node.meanwhile(Node::remove));
        node.compact();
        node.values()
    };
    judge("removal_alone", history, &[], &[X, Y]);
}
