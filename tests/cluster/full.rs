//! A disk without room, under a node that is to take rows over, and under one that is to go.
//!
//! A reserve above what the machine's disk has free makes a node full: at four times as much it
//! takes no row of anybody, at less than that no client's.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::CONVERGED_WITHIN;
use crate::nodes::{Nodes, values};
use crate::operators::{PATIENCE, UNDER_WAY, follower, json, state_of, wait_for};

/// A refusal that waits for nothing takes no longer.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Nothing was changed.
const REFUSED: i32 = 5;

const RATE: &str = "PAIRDB__CLUSTER__TRANSFER_RATE_BYTES";

/// So many times what the disk has free is to stay free.
fn reserve(times: u64) -> (String, String) {
    let space = rustix::fs::statvfs(std::env::temp_dir().as_path()).expect("it is there");
    let bytes = space.f_bavail * space.f_frsize * times;
    ("PAIRDB__ENGINE__DISK_RESERVE_BYTES".to_owned(), format!("{bytes}B"))
}

fn restart(nodes: &mut Nodes, at: usize, settings: &[(String, String)]) {
    nodes.kill(at);
    nodes.restart_with(at, settings);
    let all = nodes.len();
    nodes.wait_until_up(0, all);
}

/// Writes rows of a kilobyte and more.
fn write_rows(nodes: &Nodes, count: usize) -> Vec<String> {
    let file = nodes.path(0, "rows.jsonl");
    let keys: Vec<String> = (0..count).map(|n| format!("key-{n}")).collect();
    let row = |key: &String| format!("{{\"key\":\"{key}\",\"value\":\"{}\"}}\n", value_of(key));
    std::fs::write(&file, keys.iter().map(row).collect::<String>()).expect("written");
    nodes.ok(0, &["import", &file]);
    keys
}

fn value_of(key: &str) -> String {
    key.repeat(1024 / key.len() + 1)
}

/// Every row is there, and whole: at a quorum of its replicas, and with all of them.
fn check_rows(nodes: &Nodes, at: usize, keys: &[String]) {
    let mut rows: Vec<String> =
        keys.iter().map(|key| format!("{key}\t{}", value_of(key))).collect();
    rows.sort_unstable();
    for consistency in ["quorum", "all"] {
        let told = nodes.ok(at, &["scan", "--consistency", consistency]);
        let mut found: Vec<&str> = told.lines().collect();
        found.sort_unstable();
        assert_eq!(found, rows, "at {consistency}");
    }
}

/// Waits until the drain of the fourth node would be refused for this reason, or for none: what
/// nodes have free is heard of, not asked for.
fn wait_for_plan(nodes: &Nodes, reason: Option<&str>) {
    let end = Instant::now() + PATIENCE;
    loop {
        let plan = nodes.run(0, &["layout", "plan", "--leave", "n3"]);
        let is_so = match reason {
            Some(reason) => plan.stderr.contains(reason),
            None => plan.code == 0,
        };
        if is_so {
            return;
        }
        assert!(Instant::now() < end, "not {reason:?}: {}", plan.stderr);
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Whether it is this node that is waited for, and for room. Of a node that was just restarted the
/// others may say for a moment that it is down, and what it said before that.
fn says_room(waits_for: &Value, name: &str) -> bool {
    let said = format!("{name} to merge its partitions (room on its disk: ");
    let texts = waits_for.as_array().expect("texts").iter();
    texts.filter_map(Value::as_str).any(|text| text.starts_with(&said))
}

/// A drain that has no room is not begun: the refusal comes at once, names the node, what it would
/// have to take and what it has. One whose receiver runs full on the way waits, says for what, and
/// is called off; with the room back it ends.
#[test]
fn a_drain_without_room_is_refused_at_once_and_one_that_runs_out_of_it_waits() {
    let mut nodes = Nodes::start(3);
    nodes.join();
    nodes.wait_until_stable(0, 4);
    let keys = write_rows(&nodes, 100);
    nodes.wait_until_equal(&keys, 0, CONVERGED_WITHIN);
    let receiver = follower(&nodes);
    let name = format!("n{receiver}");
    let epoch = json(&nodes, 0, &["layout", "show"])["epoch"].clone();

    restart(&mut nodes, receiver, &[reserve(2)]);
    wait_for_plan(&nodes, Some("(NO_SPACE)"));
    let drain = ["drain", "n3", "--wait"];
    let by_layout = ["plan", "commit"].map(|verb| ["layout", verb, "--leave", "n3"]);
    for command in [&by_layout[0][..], &by_layout[1], &drain] {
        let began = Instant::now();
        let refused = nodes.run(0, command);
        assert!(began.elapsed() < AT_ONCE, "{command:?} waits for something");
        assert_eq!(refused.code, REFUSED, "{command:?}: {}", refused.stderr);
        let text = format!("{name} would take over about ");
        assert!(refused.stderr.contains(&text), "{command:?}: {}", refused.stderr);
        let text = " bytes and has 0 free beside its reserve (NO_SPACE)";
        assert!(refused.stderr.contains(text), "{command:?}: {}", refused.stderr);
    }
    let shown = json(&nodes, 0, &["layout", "show"]);
    assert_eq!((&shown["epoch"], &shown["phase"]), (&epoch, &"stable".into()), "nothing is begun");

    restart(&mut nodes, receiver, &[]);
    for at in 0..nodes.len() {
        nodes.ok(at, &["layout", "rate", "1B"]);
    }
    wait_for_plan(&nodes, None);
    nodes.ok(0, &["drain", "n3"]);
    wait_for(&nodes, &["drain", "n3", "--status"], |told| told["phase"] == "merging");
    restart(&mut nodes, receiver, &[reserve(100)]);
    let status = ["drain", "n3", "--status"];
    let told = wait_for(&nodes, &status, |told| says_room(&told["waits_for"], &name));
    assert_eq!(told["phase"], "merging");
    let shown = nodes.ok(0, &["layout", "show"]);
    assert!(shown.contains("room on its disk: "), "{shown}");
    let late = nodes.run(0, &["drain", "n3", "--wait", "--timeout", "2s"]);
    assert_eq!(late.code, UNDER_WAY, "{}", late.stderr);
    nodes.ok(0, &["drain", "n3", "--cancel"]);
    nodes.wait_until_stable(0, 4);
    check_rows(&nodes, 0, &keys);

    restart(&mut nodes, receiver, &[]);
    for at in 0..nodes.len() {
        nodes.ok(at, &["layout", "rate", "0"]);
    }
    wait_for_plan(&nodes, None);
    let left = nodes.run(0, &drain);
    assert_eq!(left.code, 0, "{}", left.stderr);
    assert_eq!(nodes.wait(3), 0);
    nodes.delete(3);
    check_rows(&nodes, 0, &keys);
}

/// A node comes in and its disk is full when it has a part of its rows: the others serve, the
/// change waits and says for what. With the room back it goes on. Full again, the node can go.
#[test]
fn a_node_that_runs_full_while_it_comes_in_waits_for_room_and_can_leave_when_full() {
    let mut nodes = Nodes::start(3);
    let mut keys = write_rows(&nodes, 200);
    let slow = (RATE.to_owned(), "16KiB".to_owned());
    let fourth = nodes.join_with(std::slice::from_ref(&slow));
    wait_for(&nodes, &["layout", "show"], |shown| {
        let parts = shown["progress"].as_array().expect("figures");
        parts.iter().any(|one| one["keys"].as_u64() > Some(0))
    });
    restart(&mut nodes, fourth, &[slow, reserve(100)]);
    let says_so = |shown: &Value| says_room(&shown["waits_for"], "n3");
    let shown = wait_for(&nodes, &["layout", "show"], says_so);
    assert_eq!((state_of(&shown, "n3"), &shown["phase"]), ("joining", &"joint".into()));
    // Each is on a quorum of the owners and on one of the next ones; the full one is not needed.
    let late: Vec<String> = (0..10).map(|n| format!("late-{n}")).collect();
    for key in &late {
        nodes.ok(1, &["put", key, &value_of(key)]);
        assert_eq!(values(&json(&nodes, 2, &["get", key])), [value_of(key).as_str()]);
    }
    keys.extend(late);

    restart(&mut nodes, fourth, &[]);
    nodes.wait_until_stable(0, 4);
    nodes.wait_until_up(fourth, 4);
    check_rows(&nodes, fourth, &keys);

    restart(&mut nodes, fourth, &[reserve(100)]);
    wait_for_plan(&nodes, None);
    let left = nodes.run(0, &["drain", "n3", "--wait"]);
    assert_eq!(left.code, 0, "{}", left.stderr);
    assert_eq!(nodes.wait(fourth), 0);
    nodes.delete(fourth);
    check_rows(&nodes, 0, &keys);
}
