//! An import that meets bad records, outages and interruptions: nothing is left out that could be
//! written, and what it goes on from is its own.

use std::fs;

use super::node::CliNode;

fn line(key: &str, value: &str) -> String {
    format!("{{\"key\":\"{key}\",\"value\":\"{value}\"}}\n")
}

/// Longer than the limit of a value, 1 MiB.
fn too_long() -> String {
    "x".repeat((1 << 20) + 1)
}

/// Batches behind that of the bad record are done before the import ends: the next run goes on at
/// the bad record all the same, and counts everything once.
#[test]
fn an_import_that_was_stopped_by_a_record_begins_again_before_it() {
    let node = CliNode::start();
    let file = node.path("in.jsonl");
    let write = |tenth: &str| {
        let value = |n: usize| if n == 10 { tenth.to_owned() } else { format!("v{n}") };
        let lines = (1..=3000).map(|n| line(&format!("k{n}"), &value(n)));
        fs::write(&file, lines.collect::<String>()).expect("written");
    };
    write(&too_long());
    for _ in 0..2 {
        let stopped = node.run(&["import", &file]);
        assert_eq!(stopped.code, 5, "{}", stopped.stderr);
        assert!(stopped.stderr.contains("line 10: "), "{}", stopped.stderr);
        assert!(stopped.stderr.contains("VALUE_TOO_LONG"), "{}", stopped.stderr);
        assert!(stopped.stdout.contains(" 1 failed, 0 lines"), "{}", stopped.stdout);
    }
    let report = node.json(&["import", &file, "--on-error", "skip", "--output", "json"]);
    assert_eq!((&report["imported"], &report["failed"]), (&2999.into(), &1.into()), "{report}");
    assert_eq!((&report["complete"], &report["lines"]), (&true.into(), &3000.into()), "{report}");
    assert_eq!(node.ok(&["keys"]).lines().count(), 2999);
}
