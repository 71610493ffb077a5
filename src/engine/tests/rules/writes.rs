//! Writers among themselves, with flushes, and with fences.

use super::*;

/// Without it a read loses a Delta: it picked a memtable that is older than a Full which was made
/// without it.
#[test]
fn stripe_lock() {
    let history = |node: &Node| {
        node.at("write:picked", |node| {
            node.seal();
            node.meanwhile(|node| {
                let _ = node.update(false, Some(Y));
            });
        });
        node.apply(&x());
        node.values()
    };
    judge("stripe_lock", history, &[Y, X], &[Y]);
}

/// Without it an ingest is lost: it came between the read and the insert of a Full.
#[test]
fn generation_check() {
    let history = |node: &Node| {
        node.at("update:read", |node| drop(node.ingest(&x())));
        node.update(false, Some(Y));
        node.values()
    };
    judge("generation_check", history, &[Y, X], &[Y]);
}

/// Without it a write is lost, at once and after a crash: it goes into a memtable whose flush is
/// over.
#[test]
fn writer_reference() {
    let history = |node: &Node, killed: bool| {
        // So that there is something to flush.
        node.engine().apply(&[(b"other", &y().encode())]).expect("taken");
        node.at("write:picked", |node| {
            node.seal();
            node.meanwhile(Node::flush_one);
        });
        node.apply(&x());
        if killed { node.killed().values() } else { node.values() }
    };
    judge("writer_reference", |node| history(node, false), &[X], &[]);
    judge("writer_reference", |node| history(node, true), &[X], &[]);
}

/// Without it replay loses a sibling: an increment says "I have seen up to here" of what it does
/// not hold.
#[test]
fn whole_row_in_log() {
    let history = |node: &Node| {
        node.update(false, Some(X));
        node.update(false, Some(Y));
        node.killed().values()
    };
    judge("whole_row_in_log", history, &[X, Y], &[Y]);
}

/// Without it a deleted version comes back in a message that was late.
#[test]
fn guard() {
    let history = |node: &Node| {
        node.forget_x();
        node.apply(&x());
        node.values()
    };
    judge("guard", history, &[], &[X]);
}

/// A late x passes the check; the fence comes; d is forgotten; x lands. Two things are in its way,
/// each enough: the guard is compared again at the pick, and a fence waits for the writers that
/// were on their way. Without both x comes back.
#[test]
fn guard_at_pick() {
    let history = |removed: &[&'static str]| {
        let node = Node::new(removed, tiny());
        node.apply(&d());
        node.flush();
        let waits = !removed.contains(&"fence_waits");
        node.at("apply:checked", move |node| {
            if !waits {
                node.engine().fence(0..=0, 2).expect("fences");
                return forget_below_fence(node);
            }
            // The fence is in force, and waits for the very write we are in.
            let (in_force, wait) = std::sync::mpsc::channel();
            node.at("fence:in_force", move |_| in_force.send(()).expect("waited for"));
            let fencing = node.clone();
            node.0.threads.lock().push(std::thread::spawn(move || {
                fencing.engine().fence(0..=0, 2).expect("fences");
            }));
            wait.recv().expect("the fence comes into force");
        });
        node.apply(&x());
        if waits {
            node.join_threads();
            forget_below_fence(&node);
        }
        node.values()
    };
    assert_eq!(history(&[]), [0; 0]);
    assert_eq!(history(&["guard_at_pick"]), [0; 0], "the fence waits");
    assert_eq!(history(&["fence_waits"]), [0; 0], "the guard is compared again");
    assert_eq!(history(&["guard_at_pick", "fence_waits"]), [X], "x comes back");
}

/// Installs the floor and forgets what may be forgotten.
fn forget_below_fence(node: &Node) {
    node.engine().set_floor(0..=0, 2).expect("sets the floor");
    node.compact();
}
