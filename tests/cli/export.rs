//! An export that is interrupted: what it goes on from, and what it refuses to go on from.

use std::fs;

use prost::Message as _;
use tonic::{Code, Status};

use pairdb::proto;

use super::fake::{Answer, Fake};
use super::migrate::sorted;
use super::node::{CliNode, Done, pairdb};

fn page(keys: &[&str], cursor: &str) -> proto::ScanResponse {
    let sibling = || proto::Sibling { value: "v".into(), ..Default::default() };
    let row = |key: &&str| proto::ScanRow {
        key: (*key).to_owned().into(),
        siblings: vec![sibling()],
        ..Default::default()
    };
    proto::ScanResponse { rows: keys.iter().map(row).collect(), cursor: cursor.to_owned().into() }
}

/// A cluster whose scan goes as `scan` says, by the cursor that it begins at.
fn cluster(scan: impl Fn(&[u8]) -> Answer + Send + Sync + 'static) -> Fake {
    Fake::cluster(move |method, message| match method {
        "Scan" => scan(&proto::ScanRequest::decode(message).expect("a request").cursor),
        _ => Answer::refusal(Code::Unimplemented, "UNIMPLEMENTED"),
    })
}

/// One that breaks after its first page for a reason that does not pass.
fn broken() -> Fake {
    cluster(|_| Answer::refusal(Code::Internal, "ENGINE").after(&page(&["a", "b"], "1")))
}

/// One that ends its streams before they have said that all was shown; with `rest` it goes on when
/// it is asked to.
fn short(rest: bool) -> Fake {
    let well = || Status::new(Code::Ok, "");
    cluster(move |cursor| match cursor {
        b"" => Answer::Messages(Vec::new(), well()).after(&page(&["a", "b"], "1")),
        b"1" if rest => Answer::one(&page(&["c"], "")),
        _ => Answer::Messages(Vec::new(), well()),
    })
}

fn export(from: &Fake, file: &str) -> Done {
    pairdb(&["export", file, "--endpoint", &from.endpoint])
}

/// A file and its progress, as a run that broke leaves them.
fn interrupted(dir: &tempfile::TempDir) -> (String, String) {
    let file = dir.path().join("out.jsonl").to_str().expect("UTF-8").to_owned();
    let done = export(&broken(), &file);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert_eq!(fs::read_to_string(&file).expect("there").lines().count(), 2);
    let progress = format!("{file}.pairdb-progress");
    assert!(fs::exists(&progress).expect("it can be asked"));
    (file, progress)
}

/// Without what was written before, going on would leave a hole.
#[test]
fn an_export_does_not_go_on_behind_what_is_not_in_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, progress) = interrupted(&dir);
    let whole = short(true);
    let good = fs::read(&file).expect("there");
    for bytes in [Some(&good[..good.len() - 1]), None] {
        match bytes {
            Some(bytes) => fs::write(&file, bytes).expect("written"),
            None => fs::remove_file(&file).expect("removed"),
        }
        let done = export(&whole, &file);
        assert_eq!(done.code, 1, "{}", done.stderr);
        let sizes = [bytes.map_or(0, <[u8]>::len), good.len()].map(|size| format!("{size} bytes"));
        assert!(sizes.iter().all(|size| done.stderr.contains(size)), "{}", done.stderr);
        assert!(done.stderr.contains(&progress), "{}", done.stderr);
        assert_eq!(fs::read(&file).ok().as_deref(), bytes, "nothing is changed");
    }
    fs::write(&file, [&good[..], b"half a line"].concat()).expect("written");
    let done = export(&whole, &file);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(fs::read_to_string(&file).expect("there").lines().count(), 3);
    assert!(!fs::exists(&progress).expect("it can be asked"));
}

/// Killed when all was written, before its progress was taken away.
#[test]
fn an_export_that_was_complete_is_not_written_twice() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, progress) = interrupted(&dir);
    let mut saved: serde_json::Value =
        serde_json::from_slice(&fs::read(&progress).expect("there")).expect("JSON");
    saved["cursor"] = "".into();
    saved["complete"] = true.into();
    fs::write(&progress, saved.to_string()).expect("written");
    let good = fs::read(&file).expect("there");
    let done = export(&short(true), &file);
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert!(done.stdout.starts_with("2 records"), "{}", done.stdout);
    assert_eq!(fs::read(&file).expect("there"), good);
    assert!(!fs::exists(&progress).expect("it can be asked"));
}

/// An answer without a cursor is the last; a stream that ends before it has broken.
#[test]
fn a_stream_that_ends_early_is_gone_on_with_and_is_never_all() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).to_str().expect("UTF-8").to_owned();
    let (goes_on, ends) = (short(true), short(false));
    let done = export(&goes_on, &path("whole"));
    assert_eq!(done.code, 0, "{}", done.stderr);
    assert_eq!(fs::read_to_string(path("whole")).expect("there").lines().count(), 3);
    let done = export(&ends, &path("part"));
    assert_eq!(done.code, 5, "{}", done.stderr);
    assert!(done.stderr.contains("before the last page"), "{}", done.stderr);
    assert!(fs::exists(path("part.pairdb-progress")).expect("it can be asked"));

    let done = pairdb(&["scan", "--endpoint", &ends.endpoint]);
    assert_eq!((done.code, &*done.stdout), (5, "a\tv\nb\tv\n"), "{}", done.stderr);
    let to = CliNode::start();
    let place = path("place");
    let migrate = ["migrate", "--to-cluster", &to.endpoint(), "--progress-file", &place];
    let done = pairdb(&[&migrate[..], &["--endpoint", &ends.endpoint]].concat());
    assert_eq!(done.code, 5, "{}: {}", done.stdout, done.stderr);
    assert!(done.stderr.contains("before the last page"), "{}", done.stderr);
}

/// A limit is reached though the last page has a cursor, and once reached is not read beyond.
#[test]
fn a_limit_is_the_end_of_a_stream() {
    let node = CliNode::start();
    let lines: String =
        (0..2500).map(|n| format!("{{\"key\":\"k{n}\",\"value\":\"v\"}}\n")).collect();
    assert_eq!(node.run_with(&["import"], &lines).code, 0);
    for limit in ["1", "1000", "1001", "2500", "9999"] {
        let count = limit.parse::<usize>().expect("a number").min(2500);
        for command in ["scan", "export"] {
            let shown = node.ok(&[command, "--limit", limit]);
            assert_eq!(shown.lines().count(), count, "{command} --limit {limit}");
        }
    }
    assert_eq!(sorted(&node.ok(&["export"])), sorted(&lines));
}

/// Cursors and what was written belong to one cluster.
#[test]
fn an_export_goes_on_with_the_cluster_it_began_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, progress) = interrupted(&dir);
    let other = CliNode::start();
    let done = other.run(&["export", &file]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    assert!(done.stderr.contains("the-fake"), "{}", done.stderr);
    assert!(done.stderr.contains(&progress), "{}", done.stderr);
}
