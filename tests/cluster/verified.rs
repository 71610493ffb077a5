//! The workload and the checker of `pairdb verify` against nodes that are killed and paused.

use std::time::Duration;

use crate::node::pairdb_with;
use crate::nodes::Nodes;

/// Names for how many seconds the clients work; 12 unless set.
const SECONDS: &str = "VERIFY_SECONDS";
/// How long the nodes are left alone between two faults, and how long one is gone.
const STEP: Duration = Duration::from_secs(1);
/// What the clients have left when the last fault is over: replicas must become equal.
const SETTLE: Duration = Duration::from_secs(20);

/// `kill -9` and SIGSTOP, one node at a time, each in turn, while clients work at all levels.
#[test]
fn no_promise_is_broken_while_nodes_are_killed_and_paused() {
    let seconds: usize = std::env::var(SECONDS).map_or(12, |text| text.parse().expect("seconds"));
    let mut nodes = Nodes::start(3);
    nodes.ok(0, &["tenant", "create", "lww", "--mode", "last-write-wins"]);
    let endpoints: Vec<String> = (0..3).map(|at| nodes.endpoint(at)).collect();
    let endpoints = endpoints.join(",");
    let (duration, settle) = (format!("{seconds}s"), format!("{}s", SETTLE.as_secs()));
    let history = nodes.path(0, "history.jsonl");
    let run = std::thread::spawn({
        let history = history.clone();
        move || {
            let arguments = ["verify", "run", "--endpoint", &endpoints, "--tenants", "default,lww"];
            let shape = ["--duration", &duration, "--settle", &settle, "--history", &history];
            pairdb_with(&[&arguments[..], &shape[..]].concat(), &[])
        }
    });
    // A fault takes two steps; the last one is over before the clients end.
    for fault in 0..(seconds / 2).saturating_sub(1) {
        std::thread::park_timeout(STEP);
        let victim = fault % 3;
        if fault % 2 == 0 {
            nodes.pause(victim);
            std::thread::park_timeout(STEP);
            nodes.resume(victim);
        } else {
            nodes.kill(victim);
            std::thread::park_timeout(STEP);
            nodes.restart(victim);
        }
    }
    let done = run.join().expect("the run ends");
    println!("{}{}", done.stdout, done.stderr);
    assert_eq!(done.code, 0, "a promise was broken, or the run failed");
    assert!(done.stdout.contains("0 violations"), "{}", done.stdout);
    let checked = pairdb_with(&["verify", "check", &history], &[]);
    assert_eq!((checked.code, checked.stdout), (0, done.stdout), "{}", checked.stderr);
}
