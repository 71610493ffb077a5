//! Three nodes and more, each a process of its own, and what is done to them.
//!
//! What is shown: reads and writes at QUORUM go on while any one node is killed or paused; when it
//! is back all replicas become equal without anybody's help; with two of three gone QUORUM refuses
//! before anything is written and ONE goes on; nodes join, leave and are taken out while writes go
//! on; a change without room for it is refused, or waits; of nodes that each hold a part of the
//! rows any one shows all of them, also while another is down; a client that knows who holds what
//! needs no node in between.

#[path = "../node/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;

mod called_off;
mod copies;
mod direct;
mod disks;
mod full;
mod metrics;
#[expect(dead_code, reason = "benchmarks use the rest")]
mod nodes;
mod operators;
mod transitions;
mod verified;

use std::time::Duration;

use nodes::{Nodes, values};

/// Every replica of every key holds the same row.
const CONVERGED_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn any_one_of_three_nodes_may_be_killed_and_comes_back_equal() {
    let mut nodes = Nodes::start(3);
    let mut written = Vec::new();
    for victim in 0..3 {
        let others: Vec<usize> = (0..3).filter(|n| *n != victim).collect();
        written.extend(nodes.write_keys(&format!("before-{victim}"), 20, others[0]));
        nodes.kill(victim);
        for other in &others {
            written.extend(nodes.write_keys(&format!("without-{victim}-{other}"), 20, *other));
            let key = &written[0];
            assert_eq!(
                values(&nodes.json(*other, &["get", key, "--output", "json"])),
                [key.as_str()]
            );
        }
        nodes.restart(victim);
        nodes.wait_until_equal(&written, victim, CONVERGED_WITHIN);
    }
    for (at, key) in written.iter().enumerate() {
        assert_eq!(values(&nodes.json(at % 3, &["get", key, "--output", "json"])), [key.as_str()]);
    }
}

/// Counted in writes: a machine that is slow is slow at everything.
#[test]
fn a_paused_node_holds_nobody_up_and_catches_up() {
    let nodes = Nodes::start(3);
    let mut written = nodes.write_keys("before", 10, 0);
    nodes.pause(2);
    // Whoever waited for it would wait until it is seen to be down, which takes 4 s to 8 s.
    let mut unseen = 0;
    while nodes.seen_up(0) == 3 {
        assert!(unseen < 1000, "nobody sees that it is down");
        for at in 0..2 {
            written.extend(nodes.write_keys(&format!("paused-{at}-{unseen}"), 1, at));
        }
        unseen += 1;
    }
    assert!(unseen > 5, "{unseen} times two writes in all that time");
    for at in 0..2 {
        written.extend(nodes.write_keys(&format!("down-{at}"), 10, at));
    }
    nodes.resume(2);
    nodes.wait_until_equal(&written, 0, CONVERGED_WITHIN);
}

/// Nothing is minted where too few replicas can be reached; what ONE took spreads later.
#[test]
fn with_two_of_three_gone_quorum_refuses_and_one_goes_on() {
    let mut nodes = Nodes::start(3);
    nodes.write_keys("before", 5, 0);
    nodes.kill(1);
    nodes.kill(2);
    nodes.wait_until_down(0, 2);
    let refused = nodes.run(0, &["put", "refused", "v"]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("QUORUM_UNAVAILABLE"), "{}", refused.stderr);
    assert!(refused.stderr.contains("not applied"), "{}", refused.stderr);
    assert_eq!(nodes.run(0, &["get", "before-0"]).code, 5);
    nodes.ok(0, &["put", "one", "one", "--consistency", "one"]);
    assert_eq!(nodes.ok(0, &["get", "one", "--consistency", "one"]), "one");
    assert_eq!(nodes.ok(0, &["get", "before-0", "--consistency", "one"]), "before-0");
    nodes.restart(1);
    nodes.restart(2);
    nodes.wait_until_equal(&["one".to_owned()], 1, CONVERGED_WITHIN);
    assert_eq!(nodes.run(1, &["get", "refused"]).code, 3, "a refused write is nowhere");
    assert_eq!(nodes.ok(2, &["get", "one"]), "one");
}

#[test]
fn a_fourth_node_joins_and_owns_its_share() {
    let mut nodes = Nodes::start(3);
    let written = nodes.write_keys("before", 60, 0);
    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    let status = nodes.json(fourth, &["status", "--output", "json"]);
    let mut owned = Vec::new();
    for node in status["nodes"].as_array().expect("nodes") {
        assert_eq!(node["state"], "normal", "{status}");
        assert!(node["version"].as_str().is_some_and(|version| version.contains('(')), "{status}");
        owned.push(node["partitions"].as_u64().expect("a number"));
    }
    assert_eq!(owned.len(), 4);
    assert!(owned.iter().all(|partitions| (600..950).contains(partitions)), "{owned:?}");
    for key in &written {
        assert_eq!(values(&nodes.json(fourth, &["get", key, "--output", "json"])), [key.as_str()]);
    }
    nodes.wait_until_equal(&written, fourth, CONVERGED_WITHIN);
}

/// Rows of one node are copied to another one by hand; what it may not hold is left out.
#[test]
fn rows_are_copied_to_a_node_that_missed_them_and_read_back() {
    let mut nodes = Nodes::start(3);
    let written = nodes.write_keys("before", 20, 0);
    nodes.kill(2);
    let missed = nodes.write_keys("missed", 40, 0);
    nodes.restart(2);
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("place").display().to_string();
    let migrate = ["migrate", "--from", "n0", "--to", "n2", "--progress-file", &place];
    // Through the third one: who has the rows is asked where the layout says he is.
    let report = nodes.json(1, &[&migrate[..], &["--output", "json"]].concat());
    assert_eq!(report["keys"], written.len() + missed.len(), "{report}");
    assert_eq!(report["digest"], report["digest_there"]);
    assert_eq!((&report["elsewhere"], &report["refused"]), (&0.into(), &0.into()));
    let status = ["get", &missed[0], "--consistency", "one"];
    assert_eq!(nodes.ok(2, &status), missed[0]);
    let again = nodes.json(1, &[&migrate[..], &["--output", "json"]].concat());
    assert_eq!(again["sent"], 0, "{again}");

    let unknown = nodes.run(0, &["migrate", "--to", "n9", "--progress-file", &place]);
    assert_eq!(unknown.code, 5, "{}", unknown.stderr);
    assert!(unknown.stderr.contains("UNKNOWN_NODE"), "{}", unknown.stderr);
    let itself = nodes.run(0, &["migrate", "--to", "n0", "--progress-file", &place]);
    assert!(itself.stderr.contains("SAME_NODE"), "{}", itself.stderr);

    // Four nodes hold three replicas of each row: some rows are not the fourth one's.
    nodes.join();
    nodes.wait_until_stable(0, 4);
    let share = ["migrate", "--to", "n3", "--progress-file", &place, "--output", "json"];
    let report = nodes.json(0, &share);
    let (keys, elsewhere) = (report["keys"].as_u64(), report["elsewhere"].as_u64());
    assert!(keys > Some(0) && elsewhere > Some(0), "{report}");
}

/// The others hear that a node stops before its port is closed, so no write waits for it.
#[test]
fn a_node_that_stops_is_down_for_the_others_when_its_process_ends() {
    let mut nodes = Nodes::start(3);
    let mut written = nodes.write_keys("before", 5, 0);
    assert_eq!(nodes.stop(2), 0);
    let status = nodes.json(0, &["status", "--output", "json"]);
    let down: Vec<_> = status["nodes"].as_array().expect("nodes").iter().collect();
    let is_down = |node: &&&serde_json::Value| node["name"] == "n2" && node["up"] == false;
    assert_eq!(down.iter().filter(is_down).count(), 1, "{status:#}");
    let began = std::time::Instant::now();
    written.extend(nodes.write_keys("without", 5, 0));
    assert!(began.elapsed() < Duration::from_secs(10), "writes wait for a node that has stopped");
    nodes.restart(2);
    nodes.wait_until_equal(&written, 2, CONVERGED_WITHIN);
}

/// Three replicas on four nodes: nobody holds everything.
#[test]
fn scan_keys_and_export_show_the_whole_cluster_through_any_node() {
    let mut nodes = Nodes::start(4);
    let mut keys = nodes.write_keys("key", 60, 0);
    // A delete without a context covers what the coordinating replica holds.
    nodes.wait_until_equal(&keys, 0, CONVERGED_WITHIN);
    nodes.kill(3);
    nodes.wait_until_down(0, 1);
    // What the one that is down has not heard of: a delete, and new keys.
    nodes.ok(1, &["delete", &keys.remove(7)]);
    keys.extend(nodes.write_keys("late", 20, 1));
    keys.sort_unstable();
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    for at in 0..3 {
        assert_eq!(sorted(nodes.ok(at, &["keys"])), keys, "node {at}");
    }
    let refused = nodes.run(0, &["keys", "--consistency", "all"]);
    assert_eq!(refused.code, 5, "{}", refused.stderr);
    assert!(refused.stderr.contains("partition"), "{}", refused.stderr);
    assert!(refused.stderr.contains("QUORUM_UNAVAILABLE"), "{}", refused.stderr);
    nodes.restart(3);
    nodes.wait_until_up(3, 4);
    let rows: Vec<String> = keys.iter().map(|key| format!("{key}\t{key}")).collect();
    assert_eq!(sorted(nodes.ok(3, &["scan"])), rows);
    let exported = nodes.ok(3, &["export", "--consistency", "quorum"]);
    let lines = sorted(exported).into_iter().map(|line| {
        let row: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
        row["key"].as_str().expect("text").to_owned()
    });
    assert_eq!(lines.collect::<Vec<_>>(), keys);
}
