//! Commands whose standard output nobody reads: `pairdb drain --wait | head -1`, say. What became
//! of them is told by the exit code all the same, and what they were to do is done.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use super::node::{CliNode, begin_unread, pairdb, signal, unheard, unread};

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

/// `pairdb dev | head -1`: who has read enough still has a cluster, until it is told to stop.
#[test]
fn a_cluster_whose_description_is_not_read_goes_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let data_dir = dir.path().to_str().expect("UTF-8");
    let command = ["dev", "--nodes", "1", "--data-dir", data_dir];
    let ports = ["--client-port", "0", "--peer-port", "0", "--admin-port", "0"];
    let ready_file = dir.path().join("node-1.ready");
    // It is told to stop soon after it was to say what it has begun; if that was too soon, once
    // more, later.
    for looks in [10, 100, 1000] {
        let mut dev = begin_unread(&[&command[..], &ports].concat());
        let patience = Instant::now() + Duration::from_secs(60);
        let ready = loop {
            if let Ok(text) = fs::read(&ready_file) {
                break serde_json::from_slice::<Value>(&text).expect("JSON");
            }
            let ended = dev.try_wait().expect("it can be asked");
            assert_eq!(ended, None, "before the node served");
            if Instant::now() > patience {
                signal(&dev, Signal::TERM);
                panic!("the node does not serve");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let endpoint = format!("http://{}", ready["listen"].as_str().expect("an address"));
        for _ in 0..looks {
            let _ = pairdb(&["health", "--endpoint", &endpoint]);
        }
        // It may have ended.
        let runs = dev.try_wait().expect("it can be asked").is_none();
        if runs {
            signal(&dev, Signal::TERM);
        }
        let done = dev.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        if !said.contains("stopped before all nodes served") {
            assert_eq!((runs, done.status.code(), &*said), (true, Some(0), ""));
            return;
        }
        // The node may have taken it away.
        let _ = fs::remove_file(&ready_file);
    }
    panic!("it never came to say what it has begun");
}
