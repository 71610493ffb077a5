//! Changes of the layout that somebody else ends while they are waited for: who waits is told how
//! they ended, and begins nothing again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use serde_json::Value;

use crate::node::Done;
use crate::nodes::Nodes;
use crate::operators::{
    PATIENCE, UNDER_WAY, api_server, follower, json, pod_settings, state_of, voters, wait_for,
};

/// Begun, and did not come about.
const ABORTED: i32 = 8;
/// The node was to leave before it ended, and has not.
const NOT_DRAINED: i32 = 79;

/// Four nodes with rows, which move so slowly that no change ends before it is let.
fn slow() -> Nodes {
    let mut nodes = Nodes::start(3);
    nodes.join();
    nodes.wait_until_stable(0, 4);
    nodes.write_keys("key", 40, 0);
    for at in 0..nodes.len() {
        nodes.ok(at, &["layout", "rate", "1B"]);
    }
    nodes
}

/// Runs a command through one node, and something else when the layout is Joint by it.
fn while_joint(nodes: &Nodes, command: &[&str], meanwhile: impl FnOnce()) -> Done {
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| nodes.run(0, command));
        wait_for(nodes, &["layout", "show"], |shown| shown["phase"] == "joint");
        meanwhile();
        waits.join().expect("it ends")
    })
}

/// A script that wipes a disk after `--wait` must not be told that it may. And what is held up by a
/// rate that is too low says so, and goes on when the rate is raised.
#[test]
fn who_waits_for_a_change_that_is_aborted_is_not_told_that_it_is_done() {
    let nodes = slow();
    for change in [["--leave", "n3"], ["--remove", "n3"], ["--weight", "n0=3"]] {
        let commit = [&["layout", "commit", "--accept-loss", "--wait"], &change[..]].concat();
        let aborted = while_joint(&nodes, &commit, || {
            nodes.ok(0, &["layout", "abort"]);
        });
        assert_eq!(aborted.code, ABORTED, "{change:?}: {}", aborted.stderr);
        assert!(!aborted.stdout.contains("done"), "{}", aborted.stdout);
        assert!(aborted.stderr.contains("was aborted"), "{}", aborted.stderr);
        wait_for(&nodes, &["layout", "show"], |shown| shown["phase"] == "stable");
    }
    let leave = ["layout", "commit", "--leave", "n3", "--wait"];
    let drain = ["drain", "n3", "--wait", "--timeout", "2s"];
    let begun = Instant::now();
    let given_up = nodes.run(0, &drain);
    assert_eq!(given_up.code, UNDER_WAY, "{}", given_up.stderr);
    assert!(begun.elapsed() < PATIENCE / 2, "it waits for as long as it is told to");
    nodes.ok(0, &["drain", "n3", "--cancel"]);
    wait_for(&nodes, &["layout", "show"], |shown| shown["phase"] == "stable");
    let left = while_joint(&nodes, &leave, || {
        wait_for(&nodes, &["layout", "show"], |shown| shown.to_string().contains("its rate limit"));
        for at in 0..nodes.len() {
            nodes.ok(at, &["layout", "rate", "0"]);
        }
    });
    assert_eq!(left.code, 0, "{}", left.stderr);
    assert_eq!(state_of(&json(&nodes, 0, &["layout", "show"]), "n3"), "left", "not only cleared");
}

/// A node that was to leave, and so voted no more, dies, and is to stay after all. It should vote
/// again and cannot: the layout says what it waits for, until the node is back.
#[test]
fn a_change_is_not_over_while_a_node_that_should_vote_cannot() {
    let mut nodes = Nodes::start(2);
    nodes.ok(0, &["tenant", "set", "default", "--replication-factor", "1"]);
    nodes.wait_until_stable(0, 2);
    nodes.write_keys("key", 40, 0);
    for at in 0..2 {
        nodes.ok(at, &["layout", "rate", "1B"]);
    }
    nodes.ok(0, &["layout", "commit", "--leave", "n1"]);
    wait_for(&nodes, &["status"], |status| voters(status) == ["n0"]);
    nodes.kill(1);
    nodes.wait_until_down(0, 1);
    nodes.ok(0, &["layout", "abort"]);
    let shown = json(&nodes, 0, &["layout", "show"]);
    assert_eq!(state_of(&shown, "n1"), "normal");
    let waits = shown["waits_for"].as_array().expect("texts");
    assert!(waits.contains(&"n1, which is down, to vote on the layout".into()), "{shown:#}");
    nodes.restart(1);
    let is_over = |shown: &Value| {
        shown["phase"] == "stable" && shown["waits_for"] == Value::Array(Vec::new())
    };
    wait_for(&nodes, &["layout", "show"], is_over);
    assert_eq!(voters(&json(&nodes, 0, &["status"])), ["n0", "n1"]);
}

/// The connection to the node that tells breaks, and meanwhile an operator cancels the drain: who
/// looks on looks on, and does not begin it anew.
#[test]
fn a_drain_that_somebody_cancelled_is_not_begun_again_by_who_waits_for_it() {
    let mut nodes = slow();
    let asked = follower(&nodes);
    let both = format!("{},{}", nodes.endpoint(asked), nodes.endpoint(0));
    let drain = ["drain", "n3", "--wait", "--endpoint", &both];
    let before = json(&nodes, 0, &["layout", "show"])["epoch"].as_u64().expect("an epoch");
    let nodes_of = &nodes;
    let waited = std::thread::scope(|scope| {
        let waits = scope.spawn(|| nodes_of.run(0, &drain));
        wait_for(nodes_of, &["layout", "show"], |shown| shown["phase"] == "joint");
        // By the time it has answered these it has answered that the drain began.
        for _ in 0..3 {
            json(nodes_of, asked, &["drain", "n3", "--status"]);
        }
        nodes_of.pause(asked);
        let cancelled = json(nodes_of, 0, &["drain", "n3", "--cancel"]);
        assert_eq!(cancelled["phase"], "staying", "{cancelled}");
        nodes_of.send(asked, rustix::process::Signal::KILL);
        waits.join().expect("it ends")
    });
    nodes.kill(asked);
    assert_eq!(waited.code, ABORTED, "{}", waited.stderr);
    let after = json(&nodes, 0, &["layout", "show"]);
    assert_eq!(after["epoch"].as_u64(), Some(before + 2), "begun once, cancelled once: {after:#}");
    assert_eq!(state_of(&after, "n3"), "normal");
}

/// The node that was to leave dies and is taken out: its drain has not "stayed". Who planned to
/// take it out before it was to leave is refused: it may be alive, with rows that only it has.
#[test]
fn a_drain_that_was_given_up_is_said_to_be() {
    let mut nodes = slow();
    let before = json(&nodes, 0, &["layout", "show"])["epoch"].to_string();
    let nodes_of = &nodes;
    let waited = while_joint(nodes_of, &["drain", "n3", "--wait"], || {
        nodes_of.send(3, rustix::process::Signal::KILL);
        let planned = ["layout", "commit", "--remove", "n3", "--accept-loss", "--epoch", &before];
        let late = nodes_of.run(0, &planned);
        assert!(late.code != 0 && late.stderr.contains("STALE_EPOCH"), "{}", late.stderr);
        nodes_of.ok(0, &["remove", "n3", "--accept-loss"]);
    });
    nodes.kill(3);
    assert_eq!(waited.code, ABORTED, "{}", waited.stderr);
    assert!(waited.stdout.contains("taken out without its help"), "{}", waited.stdout);
    assert_eq!(json(&nodes, 0, &["drain", "n3", "--status"])["phase"], "removed");
}

/// A pod whose coming in was aborted holds nothing: there is nothing to wait for when it goes.
#[test]
fn a_pod_that_never_came_in_ends_at_once() {
    let replicas = Arc::new(AtomicU32::new(4));
    let dir = tempfile::tempdir().expect("a directory");
    let mut nodes = Nodes::start(3);
    nodes.write_keys("key", 40, 0);
    let mut settings = pod_settings(&api_server(&replicas), &dir);
    settings.push(("PAIRDB__CLUSTER__TRANSFER_RATE_BYTES".to_owned(), "1B".to_owned()));
    let fourth = nodes.join_with(&settings);
    wait_for(&nodes, &["layout", "show"], |shown| shown["phase"] == "joint");
    nodes.ok(0, &["layout", "abort"]);
    replicas.store(3, Ordering::SeqCst);
    nodes.signal(fourth);
    assert_eq!(nodes.wait(fourth), 0, "nothing of its is needed");
    nodes.wait_until_stable(0, 3);
}

/// An operator's word against the set's: the node stays a member, keeps its data, and says so.
#[test]
fn a_pods_drain_that_an_operator_cancels_is_not_begun_again() {
    let replicas = Arc::new(AtomicU32::new(4));
    let dir = tempfile::tempdir().expect("a directory");
    let mut nodes = Nodes::start(3);
    let fourth = nodes.join_with(&pod_settings(&api_server(&replicas), &dir));
    nodes.wait_until_stable(0, 4);
    nodes.write_keys("key", 40, 0);
    for at in 0..nodes.len() {
        nodes.ok(at, &["layout", "rate", "1B"]);
    }
    replicas.store(3, Ordering::SeqCst);
    nodes.signal(fourth);
    wait_for(&nodes, &["drain", "n3", "--status"], |told| told["phase"] == "merging");
    let cancelled = json(&nodes, 0, &["drain", "n3", "--cancel"]);
    assert_eq!(cancelled["phase"], "staying", "{cancelled}");
    assert_eq!(nodes.wait(fourth), NOT_DRAINED);
    assert_eq!(state_of(&json(&nodes, 0, &["layout", "show"]), "n3"), "normal");
}
