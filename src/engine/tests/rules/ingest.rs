//! Foreign tables.

use super::*;
use crate::engine::options::LEVELS;

/// Without it a write of this node is lost: another node's claim to hold everything is believed.
#[test]
fn demote_full() {
    let history = |node: &Node| {
        node.update(false, Some(X));
        node.ingest(&y()).expect("taken");
        node.values()
    };
    judge("demote_full", history, &[X, Y], &[Y]);
}

/// The same after the foreign table has sunk to a lower level without being read: its mark has to
/// be minded there too, by reads and by scans.
#[test]
fn demote_full_below_level_0() {
    let history = |node: &Node| {
        node.apply(&x());
        // Enough to make the tree several levels deep.
        let rows = (0..1500).map(|n| Ok((format!("other-{n:05}").into_bytes(), y().encode())));
        node.engine().ingest(&mut rows.into_iter()).expect("taken");
        node.compact();
        node.ingest(&y()).expect("taken");
        node.shared().compact_once().expect("compacts");
        let version = &node.shared().super_version.load().version;
        let level = (0..LEVELS).find(|level| version.level(*level).bytes() > 0);
        assert!(
            (1..LEVELS - 1).contains(&level.expect("there is data")),
            "sunk to level {level:?}"
        );
        node.values()
    };
    let options = Options { level0_tables_trigger: 1, ..tiny() };
    judge_with(options, "demote_full", history, &[X, Y], &[Y]);
}

/// Without it an ingest is invisible behind a Full that waits for its flush, and the next
/// read-modify-write makes that permanent.
#[test]
fn ingest_waits_in_queue() {
    let history = |node: &Node| {
        node.update(false, Some(X));
        node.ingest(&y()).expect("taken");
        node.update(false, Some(Z));
        node.flush();
        node.values()
    };
    judge("ingest_waits_in_queue", history, &[X, Z, Y], &[X, Z]);
}

/// Without it a Full above an ingest that is not visible yet hides it when it is.
#[test]
fn ingest_no_full_while_queued() {
    let history = |node: &Node| {
        node.at("ingest:queued", |node| {
            let _ = node.update(false, Some(X));
        });
        node.ingest(&y()).expect("taken");
        node.values()
    };
    judge("ingest_no_full_while_queued", history, &[X, Y], &[X]);
}

/// Without it an ingest is lost below a Full that knows nothing of it.
#[test]
fn ingest_newest() {
    let history = |node: &Node| {
        node.update(false, Some(X));
        node.flush();
        node.ingest(&y()).expect("taken");
        node.values()
    };
    judge("ingest_newest", history, &[X, Y], &[X]);
}

/// Without it a deleted version comes back in a table that was late.
#[test]
fn ingest_filter() {
    let history = |node: &Node| {
        node.forget_x();
        let refused = matches!(node.ingest(&x()), Err(Error::BelowSafePoint));
        assert_eq!(refused, node.0.removed.is_empty());
        node.values()
    };
    judge("ingest_filter", history, &[], &[X]);
}
