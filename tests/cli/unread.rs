//! Commands whose standard output nobody reads: `pairdb drain --wait | head -1`, say. What became
//! of them is told by the exit code all the same, and what they were to do is done.

use std::fs;
use std::time::{Duration, Instant};

use super::node::{CliNode, unheard, unread};

#[test]
fn a_command_that_is_not_read_ends_with_the_code_of_what_became_of_it() {
    let node = CliNode::start();
    let layout = node.json(&["layout", "show", "--output", "json"]);
    let id = layout["nodes"][0]["node_id"].as_str().expect("an id");
    let (forged, bad) = (node.path("forged"), node.path("bad.jsonl"));
    fs::write(&forged, "{}").expect("written");
    fs::write(&bad, "not JSON\n").expect("written");
    for (command, code) in [
        (&["get", "nothing", "--output", "json"][..], 3),
        (&["layout", "plan", "--leave", id], 5),
        (&["layout", "commit", "--leave", id], 5),
        (&["drain", "verify", &forged], 1),
        (&["import", &bad], 1),
    ] {
        let done = unread(command, &node.endpoint());
        assert_eq!(done.code, code, "{command:?}: {}", done.stderr);
        assert_eq!(unheard(command, &node.endpoint()), code, "{command:?}");
    }
    // What ends well has lost nothing but its words.
    node.ok(&["put", "k", "v"]);
    let weight = format!("{id}=2");
    for command in [&["get", "k"][..], &["health"], &["layout", "plan", "--weight", &weight]] {
        let done = unread(command, &node.endpoint());
        assert_eq!((done.code, &*done.stderr), (0, ""), "{command:?}");
    }
}

#[test]
fn a_change_whose_plan_is_not_read_is_begun() {
    let node = CliNode::start();
    let layout = node.json(&["layout", "show", "--output", "json"]);
    let id = layout["nodes"][0]["node_id"].as_str().expect("an id");
    let before = layout["epoch"].as_u64().expect("an epoch");
    let weight = format!("{id}=2");
    let done = unread(&["layout", "commit", "--weight", &weight], &node.endpoint());
    assert_eq!((done.code, &*done.stderr), (0, ""));
    let layout = node.json(&["layout", "show", "--output", "json"]);
    assert!(layout["epoch"].as_u64().expect("an epoch") > before, "{layout}");
}

#[test]
fn a_node_that_does_not_serve_is_not_healthy_though_nobody_reads_its_state() {
    let node = CliNode::with(&[("PAIRDB__NODE__SHUTDOWN_GRACE", "10m")]);
    node.signal();
    let patience = Instant::now() + Duration::from_secs(30);
    while node.run(&["health"]).code == 0 {
        assert!(Instant::now() < patience, "it serves after SIGTERM");
        std::thread::sleep(Duration::from_millis(5));
    }
    let done = unread(&["health"], &node.endpoint());
    assert_eq!((done.code, &*done.stderr), (5, "pairdb: the node does not serve\n"));
}
