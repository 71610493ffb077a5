//! Rows from one cluster to another one: two nodes that know nothing of each other.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pairdb::proto::{self, batch_read_result};
use prost::Message as _;
use tonic::Code;

use super::fake::{Answer, Fake};
use super::node::{CliNode, pairdb};

pub(super) fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// Values, siblings, types and expiries arrive; deletes do not; a second run sends nothing.
#[test]
fn what_lives_in_one_cluster_is_copied_to_another_and_a_repetition_adds_nothing() {
    let (from, to) = (CliNode::start(), CliNode::start());
    for n in 0..600 {
        let line = format!("{{\"key\":\"k{n:03}\",\"value\":\"v{n}\"}}\n");
        let mut all = fs::read_to_string(from.path("in.jsonl")).unwrap_or_default();
        all.push_str(&line);
        fs::write(from.path("in.jsonl"), all).expect("written");
    }
    from.ok(&["import", &from.path("in.jsonl")]);
    from.ok(&["put", "colour", "red"]);
    from.ok(&["put", "colour", "blue"]);
    from.ok(&["put", "typed", "x", "--content-type", "text/x"]);
    from.ok(&["put", "short", "x", "--ttl", "1h"]);
    from.ok(&["delete", "k007"]);
    let place = from.path("place");
    let to_cluster = to.endpoint();
    let migrate = ["migrate", "--to-cluster", &to_cluster, "--progress-file", &place];
    let json = [&migrate[..], &["--output", "json"]].concat();
    let report = from.json(&json);
    assert_eq!((&report["keys"], &report["sent"]), (&602.into(), &602.into()), "{report}");
    assert_eq!(report["digest"], report["digest_there"]);
    assert_eq!(sorted(&to.ok(&["scan"])), sorted(&from.ok(&["scan"])));
    assert_eq!(sorted(&to.ok(&["get", "colour", "--all"])), ["blue", "red"]);
    let typed = to.json(&["get", "typed", "--output", "json"]);
    assert_eq!(typed["siblings"][0]["content_type"], "text/x");
    let expires = |node: &CliNode| {
        let row = node.json(&["get", "short", "--output", "json"]);
        row["siblings"][0]["expires_at_ms"].as_u64().expect("it expires")
    };
    assert!(expires(&to).abs_diff(expires(&from)) < 60_000);
    assert!(!std::path::Path::new(&place).exists(), "the place is forgotten when all is done");

    let again = from.json(&json);
    assert_eq!((&again["keys"], &again["sent"]), (&602.into(), &0.into()), "{again}");
    assert_eq!(sorted(&to.ok(&["scan"])), sorted(&from.ok(&["scan"])));

    // What changed since: a sibling there, unless it is to be replaced.
    from.ok(&["put", "k001", "new", "--resolve"]);
    let changed = from.json(&json);
    assert_eq!((&changed["sent"], &changed["changed"]), (&1.into(), &1.into()), "{changed}");
    assert_eq!(sorted(&to.ok(&["get", "k001", "--all"])), ["new", "v1"]);
    let replaced = from.json(&[&json[..], &["--overwrite"]].concat());
    assert_eq!((&replaced["sent"], &replaced["changed"]), (&1.into(), &0.into()), "{replaced}");
    assert_eq!(to.ok(&["get", "k001"]), "new");
}

#[test]
fn a_copy_can_be_restricted_and_what_cannot_be_is_refused() {
    let (from, to) = (CliNode::start(), CliNode::start());
    for key in ["a1", "a2", "b1", "odd\tkey"] {
        from.ok(&["put", key, key]);
    }
    let to_cluster = to.endpoint();
    let place = from.path("place");
    let migrate = |more: &[&str]| {
        let base = ["migrate", "--to-cluster", &to_cluster, "--progress-file", &place];
        from.run(&[&base[..], more].concat())
    };
    assert_eq!(migrate(&["--prefix", "b"]).code, 0);
    assert_eq!(to.ok(&["keys"]), "b1\n");
    let keys = from.path("keys");
    fs::write(&keys, "a2\nodd\\tkey\nnot-there\n").expect("written");
    let some = migrate(&["--tenant", "default", "--keys", &keys]);
    assert_eq!(some.code, 0, "{}", some.stderr);
    assert!(some.stdout.contains("1 keys of the file are not here"), "{}", some.stdout);
    assert_eq!(sorted(&to.ok(&["keys"])), ["a2", "b1", "odd\\tkey"]);
    let none = migrate(&["--token-range", "0..1"]);
    assert!(none.stdout.starts_with("0 keys"), "{}", none.stdout);
    assert_eq!(migrate(&["--token-range", ".."]).code, 0);
    assert_eq!(to.ok(&["keys"]).lines().count(), 4);

    for wrong in [
        &["--token-range", "2..1"][..],
        &["--keys", &keys],
        &["--to", "n2"],
        &["--tenant", "t", "--keys", &keys, "--prefix", "a"],
    ] {
        assert_eq!(migrate(wrong).code, 2, "{wrong:?}");
    }
    // To a node whole rows are joined with what is there: nothing of it could be replaced.
    for of_clusters in [&["--overwrite"][..], &["--consistency", "all"]] {
        let done = from.run(&[&["migrate", "--to", "n2"], of_clusters].concat());
        assert_eq!(done.code, 2, "{of_clusters:?}: {}", done.stderr);
    }
    from.ok(&["tenant", "create", "only-here"]);
    let refused = migrate(&["--tenant", "only-here"]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("no tenant \"only-here\" there"), "{}", refused.stderr);
    to.ok(&["tenant", "create", "only-here", "--mode", "last-write-wins"]);
    assert!(migrate(&["--tenant", "only-here"]).stderr.contains("concurrent writes"));
    let itself = ["migrate", "--to-cluster", &from.endpoint(), "--progress-file", &place];
    assert_eq!(from.run(&itself).code, 2);
}

/// The place that is remembered belongs to one copy.
#[test]
fn an_interrupted_copy_goes_on_and_another_one_does_not_take_its_place() {
    let (from, to) = (CliNode::start(), CliNode::start());
    let lines: String =
        (0..1200).map(|n| format!("{{\"key\":\"k{n}\",\"value\":\"v\"}}\n")).collect();
    assert_eq!(from.run_with(&["import"], &lines).code, 0);
    // A key behind the first batch that cannot be one: the copy ends there.
    let (keys, place, to_cluster) = (from.path("keys"), from.path("place"), to.endpoint());
    let listed: String = (0..1200).map(|n| format!("k{n}\n")).collect();
    fs::write(&keys, listed.replace("k1100\n", "\\1100\n")).expect("written");
    let migrate = ["migrate", "--to-cluster", &to_cluster, "--progress-file", &place];
    let of_keys = [&migrate[..], &["--tenant", "default", "--keys", &keys]].concat();
    let stopped = from.run(&of_keys);
    assert_eq!(stopped.code, 1, "{}", stopped.stderr);
    assert!(stopped.stderr.contains("1000 keys are copied"), "{}", stopped.stderr);
    let other = from.run(&migrate);
    assert_eq!(other.code, 1, "{}", other.stderr);
    let whose = format!("{place} belongs to another copy: tenant \"default\", the keys in");
    assert!(other.stderr.contains(&whose), "{}", other.stderr);
    assert!(other.stderr.contains("--progress-file"), "{}", other.stderr);
    assert!(!other.stderr.contains("None"), "{}", other.stderr);

    fs::write(&keys, listed).expect("written");
    let done = from.run(&of_keys);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stderr.contains("going on after 1000 keys"), "{}", done.stderr);
    assert!(done.stdout.starts_with("1200 keys are there, 1200 of them sent"), "{}", done.stdout);
    assert_eq!(to.ok(&["keys"]).lines().count(), 1200);
}

/// Nobody there: nothing was copied, and nothing is left behind to go on from.
#[test]
fn a_cluster_that_is_not_there_is_told_and_leaves_no_place() {
    let from = CliNode::start();
    let place = from.path("place");
    let nowhere = ["migrate", "--to-cluster", "http://127.0.0.1:1", "--progress-file", &place];
    let gone = from.run(&[&nowhere[..], &["--timeout", "1s"]].concat());
    assert_eq!(gone.code, 5, "{}", gone.stderr);
    assert!(!std::path::Path::new(&place).exists());
}

/// A place is one in a copy from one cluster to another: neither may be another one.
#[test]
fn a_copy_goes_on_between_the_clusters_it_began_with() {
    let (from, mut to) = (CliNode::start(), CliNode::start());
    let (keys, place, to_cluster) = (from.path("keys"), from.path("place"), to.endpoint());
    let listed: String = (0..1200).map(|n| format!("k{n}\n")).collect();
    let lines: String =
        (0..1200).map(|n| format!("{{\"key\":\"k{n}\",\"value\":\"v\"}}\n")).collect();
    assert_eq!(from.run_with(&["import"], &lines).code, 0);
    fs::write(&keys, listed.replace("k1100\n", "\\1100\n")).expect("written");
    let migrate = ["migrate", "--to-cluster", &to_cluster, "--progress-file", &place];
    let migrate = [&migrate[..], &["--tenant", "default", "--keys", &keys]].concat();
    assert_eq!(from.run(&migrate).code, 1);
    fs::write(&keys, listed).expect("written");

    let other = CliNode::start();
    let refused = other.run(&migrate);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("another cluster"), "{}", refused.stderr);
    // Another cluster where that one was.
    let listen = to.ready["listen"].as_str().expect("an address").to_owned();
    to.kill();
    let other = CliNode::with(&[("PAIRDB__LISTEN__CLIENT", &listen)]);
    let refused = from.run(&migrate);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("another cluster"), "{}", refused.stderr);
    assert_eq!(other.ok(&["keys"]), "");
    drop(other);
    to.restart_with(&[("PAIRDB__LISTEN__CLIENT", &listen)]);
    let done = from.run(&migrate);
    assert!(done.stdout.starts_with("1200 keys are there"), "{}", done.stderr);
}

/// Rows and values of any size that a node holds: what does not fit one message goes in several.
#[test]
fn a_row_of_many_bytes_is_copied_behind_small_ones_and_by_a_node_of_small_messages() {
    let from = CliNode::start();
    let value = |name: &str, bytes: usize| {
        let path = from.path(name);
        fs::write(&path, name.repeat(bytes / name.len())).expect("written");
        path
    };
    for n in 0..9 {
        from.ok(&["put", &format!("k{n}"), "--file", &value(&format!("s{n}"), 100 << 10)]);
    }
    // Four concurrent values: a row of nearly 4 MiB, which is as much as a message may hold.
    for n in 0..4 {
        from.ok(&["put", "large", "--file", &value(&format!("l{n}"), 900 << 10)]);
    }
    let (keys, place) = (from.path("keys"), from.path("place"));
    let listed: String = (0..9).map(|n| format!("k{n}\n")).collect();
    fs::write(&keys, listed + "large\n").expect("written");
    for limits in [&[][..], &[("PAIRDB__LIMITS__MESSAGE_BYTES_MAX", "1100KiB")]] {
        let to = CliNode::with(limits);
        let report = from.json(
            &[
                &["migrate", "--to-cluster", &to.endpoint(), "--progress-file", &place][..],
                &["--tenant", "default", "--keys", &keys, "--output", "json"],
            ]
            .concat(),
        );
        assert_eq!((&report["keys"], &report["refused"]), (&10.into(), &0.into()), "{report}");
        assert_eq!(report["digest"], report["digest_there"]);
        assert_eq!(
            to.ok(&["get", "large", "--all"]).len(),
            from.ok(&["get", "large", "--all"]).len()
        );
    }
}

/// What a page had done before it broke is done again by the next run, and counted once.
#[test]
fn a_copy_that_broke_within_a_page_counts_each_key_once() {
    let from = CliNode::start();
    let lines: String =
        (0..2000).map(|n| format!("{{\"key\":\"k{n}\",\"value\":\"v{n}\"}}\n")).collect();
    assert_eq!(from.run_with(&["import"], &lines).code, 0);
    let (keys, place) = (from.path("keys"), from.path("place"));
    let listed: String = (0..2000).map(|n| format!("k{n}\n")).collect();
    let migrate = |to: &CliNode| {
        let to_cluster = to.endpoint();
        let base = ["migrate", "--to-cluster", &to_cluster, "--progress-file", &place];
        let of_keys = ["--tenant", "default", "--keys", &keys, "--output", "json"];
        from.run(&[&base[..], &of_keys].concat())
    };
    // No node has a key that long: the third batch of the second page is refused.
    fs::write(&keys, listed.replace("k1600\n", &format!("{}\n", "k".repeat(100_000))))
        .expect("written");
    let to = CliNode::start();
    for _ in 0..2 {
        let stopped = migrate(&to);
        assert_ne!(stopped.code, 0, "{}", stopped.stdout);
        assert!(stopped.stderr.contains("KEY_TOO_LONG"), "{}", stopped.stderr);
        assert!(stopped.stderr.contains("1000 keys are copied"), "{}", stopped.stderr);
    }
    fs::write(&keys, listed).expect("written");
    let report = |to: &CliNode| {
        let done = migrate(to);
        assert_eq!(done.code, 0, "{}", done.stderr);
        serde_json::from_str::<serde_json::Value>(&done.stdout).expect("one JSON document")
    };
    let (resumed, whole) = (report(&to), report(&CliNode::start()));
    for field in ["keys", "changed", "refused", "digest", "digest_there"] {
        assert_eq!(resumed[field], whole[field], "{field}: {resumed} {whole}");
    }
    assert_eq!(whole["keys"], 2000, "{whole}");
}

/// Rows that an answer has no room for are asked for again in the time of the call they were in.
#[test]
fn a_read_that_takes_many_answers_has_the_time_of_one_call() {
    const ROWS: usize = 100;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    // Slow, and one row at a time: all of them take five times the time that there is.
    let from = Fake::cluster(move |method, message| {
        let "BatchRead" = method else {
            return Answer::refusal(Code::Unimplemented, "UNIMPLEMENTED");
        };
        counted.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(100));
        let result = |at| match at {
            0 => batch_read_result::Result::Row(proto::ReadResponse::default()),
            _ => batch_read_result::Result::Failure(proto::Failure {
                code: Code::ResourceExhausted.into(),
                reason: "REPLY_TOO_LARGE".to_owned(),
                ..Default::default()
            }),
        };
        let keys = proto::BatchReadRequest::decode(message).expect("a request").keys.len();
        let result = |at| proto::BatchReadResult { result: Some(result(at)) };
        Answer::one(&proto::BatchReadResponse { results: (0..keys).map(result).collect() })
    });
    let to = CliNode::start();
    let (keys, place) = (to.path("keys"), to.path("place"));
    fs::write(&keys, (0..ROWS).map(|n| format!("k{n}\n")).collect::<String>()).expect("written");
    let done = pairdb(
        &[
            &["migrate", "--endpoint", &from.endpoint, "--to-cluster", &to.endpoint()][..],
            &["--progress-file", &place, "--tenant", "default", "--keys", &keys, "--timeout", "2s"],
        ]
        .concat(),
    );
    assert_eq!(done.code, 5, "{}", done.stderr);
    assert!(done.stderr.contains("TIMEOUT"), "{}", done.stderr);
    let asked = asked.load(Ordering::Relaxed);
    assert!((2..ROWS / 2).contains(&asked), "asked {asked} times");
}
