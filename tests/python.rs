//! The Python example exports what `pairdb export` exports, from a cluster of which no node holds
//! everything. `make test-python` sets up what it needs, and runs it.

#[path = "node/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
#[path = "cluster/nodes.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod nodes;

use std::path::Path;
use std::process::Command;

use nodes::Nodes;

const PYTHON: &str = "target/python/bin/python";

/// The sorted lines that the example prints; `at` are the nodes it is given.
fn export(nodes: &Nodes, at: &[usize], arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new(PYTHON);
    command.arg("examples/python/pairdb_export.py").env("PYTHONPATH", "target/python/stubs");
    for at in at {
        command.args(["--client", &nodes.address(*at, "listen")]);
        command.args(["--peer", &nodes.address(*at, "peer_listen")]);
    }
    let output = command.args(arguments).output().expect("python runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    sorted(&String::from_utf8(output.stdout).expect("UTF-8"))
}

fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// Rows of all kinds: siblings, bytes that are no text, types, lifetimes, deletes.
fn fill(nodes: &Nodes, tenant: &str) {
    let run = |at: usize, arguments: &[&str]| {
        nodes.ok(at, &[arguments, &["--tenant", tenant]].concat());
    };
    let lines: Vec<String> = (0..300)
        .map(|n| format!(r#"{{"key":"user{}:{n}","value":"value \u00e9\u0001 {n}"}}"#, n % 9))
        .collect();
    let path = nodes.path(0, "rows.jsonl");
    std::fs::write(&path, lines.join("\n")).expect("written");
    run(0, &["import", &path]);
    run(1, &["put", "user1:1", "a sibling"]);
    run(2, &["put", "typed", "{}", "--content-type", "application/json"]);
    run(3, &["put", "brief", "v", "--ttl", "1h"]);
    run(0, &["put", "gone", "v"]);
    run(0, &["delete", "gone"]);
    run(0, &["put", "/w==", "v", "--key-base64"]);
}

#[test]
#[ignore = "needs Python with grpcio: make test-python"]
fn the_python_example_exports_what_export_does() {
    if !Path::new(PYTHON).exists() {
        println!("SKIPPED: {PYTHON} is not there; make test-python makes it. Nothing was tested");
        return;
    }
    let mut nodes = Nodes::start(4);
    nodes.ok(0, &["tenant", "create", "sensors", "--mode", "last-write-wins"]);
    for tenant in ["default", "sensors"] {
        fill(&nodes, tenant);
        let expected = sorted(&nodes.ok(2, &["export", "-", "--tenant", tenant]));
        assert_eq!(expected.len(), 303);
        for what in ["rows", "values"] {
            let lines = export(&nodes, &[3], &[what, "--tenant", tenant, "--page", "50"]);
            assert_eq!(lines, expected, "{what} of {tenant}");
        }
        let keys = export(&nodes, &[1], &["keys", "--tenant", tenant, "--page", "7"]);
        let listed = sorted(&nodes.ok(0, &["keys", "--output", "json", "--tenant", tenant]));
        assert_eq!(keys, listed);
    }
    // More than an answer has room for: the rest is asked for again.
    nodes.ok(0, &["tenant", "create", "large"]);
    let (path, value) = (nodes.path(0, "large.jsonl"), "x".repeat(200_000));
    let line = |n| format!("{{\"key\":\"large{n}\",\"value\":\"{value}\"}}\n");
    std::fs::write(&path, (0..100).map(line).collect::<String>()).expect("written");
    nodes.ok(0, &["import", &path, "--tenant", "large"]);
    let lines = export(&nodes, &[3], &["values", "--tenant", "large"]);
    assert_eq!(lines, sorted(&nodes.ok(2, &["export", "--tenant", "large"])));
    // The first node that is given is gone: the next one goes on.
    nodes.kill(1);
    nodes.wait_until_down(0, 1);
    let expected = sorted(&nodes.ok(2, &["export"]));
    assert_eq!(export(&nodes, &[1, 0], &["rows"]), expected);
    assert_eq!(export(&nodes, &[1, 0], &["rows", "--prefix", "user1:"]).len(), 34);
}
