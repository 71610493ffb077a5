//! An import that meets bad records, outages and interruptions: nothing is left out that could be
//! written, and what it goes on from is its own.

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::migrate::sorted;
use super::node::{CliNode, ended};

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

/// A record that is too long is left out, whether for a value or for a message, and no other one.
#[test]
fn a_record_that_no_node_takes_is_skipped_alone() {
    let node = CliNode::start();
    let file = node.path("in.jsonl");
    let value = |n: usize| match n {
        7 => too_long(),
        13 => "x".repeat(20 << 20),
        _ => format!("v{n}"),
    };
    let lines = (1..=40).map(|n| line(&format!("k{n}"), &value(n)));
    fs::write(&file, lines.collect::<String>()).expect("written");
    for overwrite in [&[][..], &["--overwrite"]] {
        let import = ["import", &file, "--on-error", "skip"];
        let done = node.run(&[&import[..], overwrite].concat());
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert!(done.stdout.starts_with("38 records imported, 2 failed"), "{}", done.stdout);
        for skipped in ["line 7: ", "line 13: "] {
            assert!(done.stderr.contains(skipped), "{}", done.stderr);
        }
        assert_eq!(node.ok(&["keys"]).lines().count(), 38);
    }
}

/// That no node is there says nothing about a record: nothing is skipped, and the next run goes
/// on, also with input that comes from its beginning again.
#[test]
fn an_outage_is_no_bad_record() {
    for format in ["jsonl", "csv"] {
        let mut node = CliNode::start();
        let (acked, place) = (node.path("acked"), node.path("place"));
        let record = |n: usize| match format {
            "csv" => format!("k{n},v{n}\n"),
            _ => line(&format!("k{n}"), &format!("v{n}")),
        };
        let header = if format == "csv" { "key,value\n" } else { "" };
        let text = |from, to| (from..=to).map(record).collect::<String>();
        let import = [
            &["import", "-", "--on-error", "skip", "--format", format][..],
            &["--batch", "2", "--in-flight", "1", "--value-column", "value"],
            &["--acked-file", &acked, "--progress-file", &place],
        ]
        .concat();
        let mut child = node.begin(&import);
        let mut input = child.stdin.take().expect("piped");
        input.write_all(format!("{header}{}", text(1, 4)).as_bytes()).expect("it reads");
        input.flush().expect("it reads");
        let patience = Instant::now() + Duration::from_secs(30);
        while fs::read_to_string(&acked).unwrap_or_default().lines().count() < 4 {
            assert!(Instant::now() < patience, "nothing is acknowledged");
            std::thread::sleep(Duration::from_millis(5));
        }
        node.kill();
        // It may have noticed, and read no more.
        let _ = input.write_all(text(5, 12).as_bytes());
        drop(input);
        let stopped = ended(child);
        // 4: the connection broke under a batch.
        assert!([4, 5].contains(&stopped.code), "{}: {}", stopped.code, stopped.stderr);
        assert!(stopped.stderr.contains("line "), "{}", stopped.stderr);
        assert!(!stopped.stderr.contains("skipped"), "{}", stopped.stderr);

        node.restart();
        let done = node.run_with(&import, &format!("{header}{}", text(1, 12)));
        assert_eq!(done.code, 0, "{format}: {}", done.stderr);
        let keys: String = (1..=12).map(|n| format!("k{n}\n")).collect();
        assert_eq!(sorted(&node.ok(&["keys"])), sorted(&keys));
        assert!(!fs::exists(&place).expect("it can be asked"));
    }
}
