//! The log, the manifest and crashes.

use super::*;

/// Without it an acknowledged write is lost: a flush was durable before the log it came from, the
/// log is gone, and the new one starts below the flushed position.
#[test]
fn segment_number_above_manifest() {
    let history = |node: &Node| {
        node.apply(&x());
        node.flush();
        let disk = node.0.disk.crash_clone_kill();
        for file in disk.list(Path::new("/db")).expect("lists") {
            if file.extension().is_some_and(|kind| kind == "log" || kind == "spare") {
                disk.remove(&Path::new("/db").join(file)).expect("removes");
            }
        }
        let node = node.reopened(disk);
        let position = node.apply(&y());
        node.engine().wait_durable(position).expect("durable");
        node.reopened(node.0.disk.crash_clone(1)).values()
    };
    judge("segment_number_above_manifest", history, &[X, Y], &[X]);
}

/// Without it a deleted version comes back: the log still holds it, but nothing any more holds its
/// delete.
#[test]
fn exact_replay() {
    let history = |node: &Node| {
        // Not through the log, so that a replay from its start is one record too early.
        node.ingest(&d()).expect("taken");
        node.apply(&x());
        node.flush();
        node.forget();
        node.killed().values()
    };
    judge("exact_replay", history, &[], &[X]);
}

/// Without it the floor vouches for a write that a power loss takes.
#[test]
fn floor_after_sync() {
    let history = |node: &Node| {
        node.apply(&x());
        node.floor(1);
        node.reopened(node.0.disk.crash_clone(1)).values()
    };
    judge("floor_after_sync", history, &[X], &[]);
}

/// The same where the floor is an old one that counts again: what peers gave back is durable first.
#[test]
fn floor_after_sync_when_mended() {
    let history = |node: &Node| {
        node.floor(1);
        node.engine().set_damaged(0..=0, &[7]).expect("marks");
        node.apply(&x());
        node.engine().set_damaged(0..=0, &[]).expect("clears");
        node.reopened(node.0.disk.crash_clone(1)).values()
    };
    judge("floor_after_sync", history, &[X], &[]);
}
