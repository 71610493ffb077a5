//! The workload and the checker of `pairdb verify` against nodes that are killed and paused, and
//! nodes that come and go.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

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

/// From three nodes to five and back to three, while clients work: a drain is called off in its
/// midst and the node stays, a node comes while another one goes. What they saw is checked: no
/// write is lost, and no read at QUORUM goes back.
#[test]
fn no_promise_is_broken_while_nodes_come_and_go() {
    let mut nodes = Nodes::start(3);
    let endpoints: Vec<String> = (0..3).map(|at| nodes.endpoint(at)).collect();
    let history = nodes.path(0, "history.jsonl");
    let clients = Command::new(env!("CARGO_BIN_EXE_pairdb"))
        .args(["verify", "run", "--endpoint", &endpoints.join(","), "--levels", "quorum,all"])
        .args(["--duration", "1h", "--settle", "5s", "--history", &history])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    for owners in 4..=5 {
        nodes.join();
        nodes.wait_until_stable(0, owners);
    }
    nodes.pause(4);
    nodes.ok(0, &["drain", "n3"]);
    nodes.ok(0, &["drain", "n3", "--cancel"]);
    nodes.resume(4);
    nodes.wait_until_stable(0, 5);
    for (at, name) in [(3, "n3"), (4, "n4")] {
        nodes.ok(0, &["drain", name, "--wait"]);
        assert_eq!(nodes.wait(at), 0);
        nodes.delete(at);
    }
    let process = i32::try_from(clients.id()).ok().and_then(Pid::from_raw).expect("an id");
    kill_process(process, Signal::INT).expect("it runs");
    let done = clients.wait_with_output().expect("it ends");
    let told = String::from_utf8_lossy(&done.stdout);
    println!("{told}{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(done.status.code(), Some(0), "a promise was broken, or the run failed");
    assert!(told.contains("0 violations"), "{told}");
    let events = std::fs::read_to_string(&history).expect("a history").lines().count();
    assert!(events > 1000, "{events} events");
}
