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
        assert!(done.stdout.starts_with("12 records imported, 0 failed"), "{}", done.stdout);
    }
}

/// What was imported into one cluster is not in another one.
#[test]
fn an_import_goes_on_in_the_cluster_it_began_in() {
    let (node, other) = (CliNode::start(), CliNode::start());
    let file = node.path("in.jsonl");
    fs::write(&file, format!("{}not json\n", line("a", "v"))).expect("written");
    assert_eq!(node.run(&["import", &file]).code, 1);
    let id = |node: &CliNode| {
        let id = node.json(&["status", "--output", "json"])["cluster_id"].clone();
        id.as_str().expect("an id").to_owned()
    };
    let refused = other.run(&["import", &file]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    for part in [&*id(&node), &*id(&other), "in.jsonl.pairdb-progress"] {
        assert!(refused.stderr.contains(part), "{part}: {}", refused.stderr);
    }
    assert_eq!(other.ok(&["keys"]), "");
    let skip = ["import", &file, "--on-error", "skip"];
    assert!(node.run(&skip).stderr.contains("going on after line 1"));
}

/// Standard input is read from its beginning; what is not what was read before is no input to go
/// on with.
#[test]
fn another_input_is_not_gone_on_with() {
    for (format, header) in [("jsonl", ""), ("csv", "key,value\n")] {
        let node = CliNode::start();
        let place = node.path("place");
        let import = ["import", "-", "--format", format, "--progress-file", &place];
        let bad = "not,a,record\n";
        let record = |key: &str| match format {
            "csv" => format!("{key},v\n"),
            _ => line(key, "v"),
        };
        let stopped = node.run_with(&import, &format!("{header}{}{bad}", record("a")));
        assert_eq!(stopped.code, 1, "{}", stopped.stderr);
        let again = node.run_with(&import, &format!("{header}{}{bad}", record("a")));
        let at = if format == "csv" { "line 3: " } else { "line 2: " };
        assert!(again.stderr.contains(at), "{}", again.stderr);
        for other in [format!("{header}{}", record("longer")), header.to_owned()] {
            let refused = node.run_with(&import, &other);
            assert_eq!(refused.code, 1, "{other}: {}", refused.stderr);
            assert!(refused.stderr.contains("another input"), "{other}: {}", refused.stderr);
        }
        let done = node.run_with(&import, &format!("{header}{}{}", record("a"), record("b")));
        assert_eq!(done.code, 0, "{}", done.stderr);
        assert_eq!(sorted(&node.ok(&["keys"])), ["a", "b"]);
    }
}

/// A progress file that cannot be read may say anything: it is not the same as none.
#[test]
fn progress_that_cannot_be_read_is_not_begun_anew() {
    let node = CliNode::start();
    let place = node.path("place");
    std::os::unix::fs::symlink("place", &place).expect("a link to itself");
    let done = node.run_with(&["import", "--progress-file", &place], &line("a", "v"));
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains(&format!("cannot read {place}")), "{}", done.stderr);
}

/// The last line of a key is what is there in the end, however many batches are in flight.
#[test]
fn of_the_lines_of_a_key_the_last_one_wins() {
    let node = CliNode::start();
    node.ok(&["tenant", "create", "lww", "--mode", "last-write-wins"]);
    let file = node.path("in.jsonl");
    // Long values first: they are slower.
    let value = |n: usize| format!("{n} {}", "x".repeat(if n < 500 { 20_000 } else { 0 }));
    let lines = (0..1000).map(|n| line(&format!("k{}", n % 50), &value(n)));
    fs::write(&file, lines.collect::<String>()).expect("written");
    for arguments in [&["--tenant", "lww"][..], &["--overwrite"]] {
        let more = ["--in-flight", "16", "--output", "json"];
        let report = node.json(&[&["import", &file][..], &more, arguments].concat());
        assert_eq!(report["imported"], 1000, "{report}");
        let tenant = arguments.get(1).copied().unwrap_or("default");
        for n in 950..1000 {
            let value = node.ok(&["get", &format!("k{}", n % 50), "--tenant", tenant]);
            assert_eq!(value, format!("{n} "), "{arguments:?}");
        }
    }
}
