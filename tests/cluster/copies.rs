//! Rows copied by hand: `pairdb migrate` with each of its restrictions, repeated, and killed on the
//! way.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::CONVERGED_WITHIN;
use crate::node::CliNode;
use crate::nodes::{Nodes, values};
use crate::operators::json;

/// Longest wait for the first page of a copy.
const PATIENCE: Duration = Duration::from_secs(60);
/// Rows of a copy that takes many pages, and the bytes of each: a page has a mebibyte.
const LARGE_ROWS: usize = 60;
const LARGE_BYTES: usize = 500_000;

/// What is copied to a node can be restricted as what is copied to a cluster can; each copy is read
/// back, and a second one sends nothing.
#[test]
fn a_copy_to_a_node_can_be_restricted_is_verified_and_adds_nothing_when_repeated() {
    let mut nodes = Nodes::start(3);
    nodes.ok(0, &["tenant", "create", "other"]);
    nodes.kill(2);
    nodes.wait_until_down(0, 1);
    let mut written = nodes.write_keys("a", 10, 0);
    written.extend(nodes.write_keys("b", 20, 1));
    for n in 0..5 {
        nodes.ok(0, &["put", &format!("a-other-{n}"), "v", "--tenant", "other"]);
    }
    nodes.restart(2);
    nodes.wait_until_up(0, 3);
    let (listed, place) = (nodes.path(0, "keys"), nodes.path(0, "place"));
    fs::write(&listed, "a-3\nb-7\nnot-there\nb-11\na-3\n").expect("written");
    let migrate = |more: &[&str]| {
        let to = ["migrate", "--from", "n0", "--to", "n2", "--progress-file", &place];
        let report = json(&nodes, 1, &[&to[..], more].concat());
        assert_eq!(report["digest"], report["digest_there"], "{more:?}: {report}");
        assert_eq!((&report["refused"], &report["elsewhere"]), (&0.into(), &0.into()), "{report}");
        let absent = u64::from(more.contains(&"--keys"));
        assert_eq!(report["absent"], absent, "{more:?}: {report}");
        assert!(!Path::new(&place).exists(), "it is done");
        report["keys"].as_u64().expect("a number")
    };
    assert_eq!(migrate(&["--tenant", "default", "--keys", &listed]), 3);
    for key in ["a-3", "b-7", "b-11"] {
        let there = json(&nodes, 2, &["get", key, "--consistency", "one"]);
        assert_eq!(values(&there), [key]);
    }
    assert_eq!(migrate(&["--tenant", "other"]), 5);
    assert_eq!(migrate(&["--prefix", "a-"]), 15);
    assert_eq!(migrate(&["--prefix", "a-", "--tenant", "default"]), 10);
    assert_eq!(migrate(&["--prefix", "nothing"]), 0);
    let middle = "8000000000000000";
    let halves = [format!("..{middle}"), format!("{middle}..")];
    let halves = halves.map(|half| migrate(&["--token-range", &half]));
    assert!(halves.iter().all(|keys| *keys > 0), "{halves:?}");
    assert_eq!(halves[0] + halves[1], 35);
    for key in &written {
        let there = json(&nodes, 2, &["get", key, "--consistency", "one"]);
        assert_eq!(values(&there), [key.as_str()]);
    }
    let again = ["migrate", "--from", "n0", "--to", "n2", "--progress-file", &place];
    let report = json(&nodes, 1, &again);
    assert_eq!((&report["keys"], &report["sent"]), (&35.into(), &0.into()), "{report}");
}

/// Begins a copy and kills it when it has a part; `hold` keeps it from ending meanwhile.
fn kill_on_the_way(endpoint: &str, migrate: &[&str], place: &str, hold: impl FnOnce()) {
    let mut copy = Command::new(env!("CARGO_BIN_EXE_pairdb"))
        .args(migrate)
        .env("PAIRDB_ENDPOINT", endpoint)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let end = Instant::now() + PATIENCE;
    while !Path::new(place).exists() {
        assert!(Instant::now() < end, "it does not come to the end of a page");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    hold();
    copy.kill().expect("it runs");
    let ended = copy.wait().expect("it is dead");
    assert_eq!(ended.code(), None, "it was not in the midst of it");
    assert!(Path::new(place).exists(), "the place it had reached is there");
}

/// The report of the copy that is started again: all keys are counted, those of the first part too.
fn check_resumed(done: &crate::node::Done) {
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("going on after "), "{}", done.stderr);
    assert!(!done.stderr.contains("going on after 0 keys"), "{}", done.stderr);
    let report: Value = serde_json::from_str(&done.stdout).expect("one JSON document");
    assert_eq!(report["keys"], LARGE_ROWS, "{report}");
    assert_eq!(report["digest"], report["digest_there"], "{report}");
}

/// Large rows, as lines.
fn lines() -> String {
    let value = "v".repeat(LARGE_BYTES);
    (0..LARGE_ROWS).map(|n| format!("{{\"key\":\"key-{n}\",\"value\":\"{value}\"}}\n")).collect()
}

#[test]
fn a_copy_to_a_node_that_was_killed_goes_on_where_it_was() {
    let nodes = Nodes::start(2);
    let (rows, place) = (nodes.path(0, "rows.jsonl"), nodes.path(0, "place"));
    fs::write(&rows, lines()).expect("written");
    nodes.ok(0, &["import", &rows]);
    let migrate = ["migrate", "--to", "n1", "--progress-file", &place, "--output", "json"];
    // So slowly that it cannot come to its end before it is killed.
    let slowly = [&migrate[..], &["--rate", "2MiB"]].concat();
    kill_on_the_way(&nodes.endpoint(0), &slowly, &place, || nodes.pause(1));
    nodes.resume(1);
    nodes.wait_until_up(0, 2);
    check_resumed(&nodes.run(0, &migrate));
    nodes.wait_until_equal(&["key-0".to_owned()], 0, CONVERGED_WITHIN);
}

#[test]
fn a_copy_to_another_cluster_that_was_killed_goes_on_where_it_was() {
    use rustix::process::Signal;
    let (from, to) = (CliNode::start(), CliNode::start());
    assert_eq!(from.run_with(&["import"], &lines()).code, 0);
    let (place, there) = (from.path("place"), to.endpoint());
    let migrate = ["migrate", "--to-cluster", &there, "--progress-file", &place];
    let migrate = [&migrate[..], &["--output", "json"]].concat();
    kill_on_the_way(&from.endpoint(), &migrate, &place, || to.send(Signal::STOP));
    to.send(Signal::CONT);
    check_resumed(&from.run(&migrate));
    assert_eq!(to.ok(&["keys"]).lines().count(), LARGE_ROWS);
}
