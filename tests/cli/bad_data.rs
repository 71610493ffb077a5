//! Data directories that a node must not serve from, or not all of: refused by name, with an exit
//! code of its own, and left as they are.

use std::fs;
use std::path::{Path, PathBuf};

use super::node::{CliNode, refused};

/// A stopped node with rows in tables and in the log.
fn stopped() -> CliNode {
    let mut node = CliNode::start();
    let file = node.path("rows.jsonl");
    let row = |n: usize| format!("{{\"key\":\"k{n:04}\",\"value\":\"value {n}\"}}\n");
    fs::write(&file, (0..500).map(row).collect::<String>()).expect("written");
    node.ok(&["import", &file]);
    node.ok(&["flush"]);
    node.ok(&["put", "last", "v"]);
    // Not a clean stop, which would leave nothing in the log.
    node.kill();
    node
}

/// The files of a directory, with their bytes.
fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            all.extend(content(&path));
        } else {
            let bytes = fs::read(&path).expect("readable");
            all.push((path, bytes));
        }
    }
    all.sort();
    all
}

/// The file of the engine whose name has this beginning or end.
fn engine_file(node: &CliNode, part: &str) -> PathBuf {
    let dir = Path::new(&node.data_dir).join("engine");
    let named = |path: &PathBuf| {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        name.starts_with(part) || name.ends_with(part)
    };
    let mut found: Vec<PathBuf> = fs::read_dir(&dir)
        .expect("readable")
        .map(|entry| entry.expect("readable").path())
        .collect();
    found.sort();
    found.into_iter().find(named).unwrap_or_else(|| panic!("no {part} in {}", dir.display()))
}

/// Damages a file; the node must refuse it by name and with `code`, and change nothing. What it
/// says.
fn refuses(
    node: &CliNode,
    path: &Path,
    what: &str,
    code: i32,
    damage: impl FnOnce(&mut Vec<u8>),
) -> String {
    let good = fs::read(path).expect("readable");
    let mut bad = good.clone();
    damage(&mut bad);
    fs::write(path, &bad).expect("writable");
    let before = content(Path::new(&node.data_dir));
    let done = refused(&node.data_dir, &[]);
    let name = path.file_name().expect("a name").to_string_lossy();
    assert_eq!(done.code, code, "{what}: {}", done.stderr);
    assert!(done.stderr.contains(&*name), "{what} names {name}: {}", done.stderr);
    if code == 70 {
        assert!(done.stderr.contains("byte "), "{what} has an offset: {}", done.stderr);
    }
    let after = content(Path::new(&node.data_dir));
    assert!(after == before, "{what}: {name} and the other files are left as they are");
    fs::write(path, good).expect("writable");
    done.stderr
}

/// Where `bytes` hold `text`.
fn position(bytes: &[u8], text: &str) -> usize {
    let found = bytes.windows(text.len()).position(|window| window == text.as_bytes());
    found.unwrap_or_else(|| panic!("no {text}"))
}

fn flip(at: usize) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| bytes[at] ^= 0x20
}

/// Every file that is read at the start: one flipped bit or a cut is damage, with file and offset,
/// and exit code 70. With the bytes back, the node and all its rows are.
#[test]
fn a_damaged_file_is_named_and_the_node_does_not_start() {
    let mut node = stopped();
    let data = PathBuf::from(&node.data_dir);
    for name in ["IDENTITY", "LAYOUT"] {
        refuses(&node, &data.join(name), "a flipped bit", 70, flip(60));
        refuses(&node, &data.join(name), "a cut", 70, |bytes| bytes.truncate(20));
        refuses(&node, &data.join(name), "nothing", 70, Vec::clear);
    }
    refuses(&node, &data.join("LEASE"), "zeros", 70, |bytes| bytes.fill(0));
    refuses(&node, &engine_file(&node, "CURRENT"), "a flipped bit", 70, flip(2));
    let manifest = engine_file(&node, "MANIFEST");
    refuses(&node, &manifest, "a flipped bit", 70, flip(40));
    refuses(&node, &manifest, "no header", 70, |bytes| bytes.truncate(3));
    let table = engine_file(&node, ".sst");
    let footer = fs::metadata(&table).expect("there").len() as usize - 30;
    refuses(&node, &table, "a flipped bit in the footer", 70, flip(footer));
    refuses(&node, &table, "a cut", 70, |bytes| bytes.truncate(footer));

    // A table or a document that is gone is damage, never a first start.
    for path in [table, data.join("IDENTITY")] {
        let aside = node.path("aside");
        fs::rename(&path, &aside).expect("renamed");
        let done = refused(&node.data_dir, &[]);
        let name = path.file_name().expect("a name").to_string_lossy();
        assert_eq!(done.code, 70, "{name} is missing: {}", done.stderr);
        assert!(done.stderr.contains(&*name), "{}", done.stderr);
        fs::rename(&aside, &path).expect("renamed");
    }

    node.restart();
    assert_eq!(node.ok(&["get", "last"]), "v");
    assert_eq!(node.ok(&["keys"]).lines().count(), 501);
}

/// A frame of the log that was synced before the frames behind it: none of them is dropped
/// silently. The log as it was replays, or what is behind the damage is given up on request.
#[test]
fn a_damaged_log_is_refused_where_it_is_damaged_and_loses_nothing_silently() {
    let mut node = stopped();
    node.restart();
    for n in 0..20 {
        node.ok(&["put", &format!("logged{n:02}"), "v"]);
    }
    node.kill();
    let log = engine_file(&node, ".log");
    let bytes = fs::read(&log).expect("readable");
    let at = position(&bytes, "logged07");
    let told = refuses(&node, &log, "a flipped bit", 70, flip(at));
    let text = format!("{} is corrupt at byte ", log.display());
    let offset = told.split(&text).nth(1).and_then(|rest| rest.split(':').next());
    let offset: usize = offset.and_then(|number| number.parse().ok()).expect("an offset");
    assert!(offset < at && at - offset < 200, "the frame at {offset} has byte {at}");
    assert!(told.contains("a later one says that the log was durable up to"), "{told}");

    let mut damaged = bytes.clone();
    flip(at)(&mut damaged);
    fs::write(&log, damaged).expect("writable");
    node.restart_with(&[("PAIRDB__ENGINE__ACCEPT_LOG_CORRUPTION", "true")]);
    assert_eq!(node.ok(&["get", "logged06"]), "v");
    assert_eq!(node.run(&["get", "logged07"]).code, 3, "given up, as was asked");
    assert_eq!(node.ok(&["get", "last"]), "v");
}

/// The id of the cluster in the settings is that of the directory, or the node does not start. A
/// new directory is given to it.
#[test]
fn a_directory_of_another_cluster_is_refused_and_changes_nothing() {
    let ours = "01234567-89ab-4def-8123-456789abcdef";
    let theirs = "11111111-2222-4333-8444-555555555555";
    let setting = |id| [("PAIRDB__CLUSTER__ID", id)];
    let mut node = CliNode::with(&setting(ours));
    node.ok(&["put", "k", "v"]);
    assert_eq!(node.terminate(), 0);
    let before = content(Path::new(&node.data_dir));
    let done = refused(&node.data_dir, &setting(theirs));
    assert_eq!(done.code, 76, "{}", done.stderr);
    let identity = Path::new(&node.data_dir).join("IDENTITY");
    let text = format!("{} belongs to cluster {ours}, not to {theirs}", identity.display());
    assert!(done.stderr.contains(&text), "{}", done.stderr);
    let done = refused(&node.data_dir, &setting("nonsense"));
    assert_eq!(done.code, 78, "{}", done.stderr);
    assert!(done.stderr.contains("cluster.id = \"nonsense\""), "{}", done.stderr);
    assert!(content(Path::new(&node.data_dir)) == before, "nothing is changed");
    node.restart_with(&setting(ours));
    assert_eq!(node.ok(&["get", "k"]), "v");
}

/// What a later version wrote is told from damage: exit code 75.
#[test]
fn a_newer_format_is_refused_as_such() {
    let node = stopped();
    let table = engine_file(&node, ".sst");
    refuses(&node, &table, "a newer table", 75, |bytes| {
        let at = bytes.len() - 16;
        bytes[at..at + 4].copy_from_slice(&9_u32.to_le_bytes());
        bytes[at + 4..at + 8].copy_from_slice(&(!9_u32).to_le_bytes());
    });
    let manifest = engine_file(&node, "MANIFEST");
    refuses(&node, &manifest, "a newer manifest", 75, |bytes| {
        bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&(!9_u32).to_le_bytes());
    });
    let log = engine_file(&node, ".log");
    let told = refuses(&node, &log, "a newer log", 75, |bytes| {
        bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..24]);
        bytes[24..28].copy_from_slice(&checksum.to_le_bytes());
    });
    let text = "has format version 9; this program reads up to 4";
    assert!(told.contains(&format!("{} {text}", log.display())), "{told}");
    let lease = Path::new(&node.data_dir).join("LEASE");
    refuses(&node, &lease, "a newer lease", 75, |bytes| {
        bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
        let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[..24]);
        bytes[24..32].copy_from_slice(&checksum.to_le_bytes());
    });
    let identity = Path::new(&node.data_dir).join("IDENTITY");
    refuses(&node, &identity, "a newer document", 75, |bytes| {
        let text = String::from_utf8(std::mem::take(bytes)).expect("UTF-8");
        let (_, body) = text.split_once('\n').expect("two parts");
        let hash = xxhash_rust::xxh3::xxh3_64(format!("IDENTITY 9\n{body}").as_bytes());
        *bytes = format!("pairdb IDENTITY 9 {hash:016x}\n{body}").into_bytes();
    });
}

/// A block of rows is read when somebody asks for one of them: the node serves all others, names
/// file and offset to whoever asks for these, and a scrub finds it.
#[test]
fn a_damaged_block_of_rows_costs_its_rows_only() {
    let mut node = stopped();
    let table = engine_file(&node, ".sst");
    let mut bytes = fs::read(&table).expect("readable");
    bytes[100] ^= 1;
    fs::write(&table, bytes).expect("writable");
    node.restart();
    assert_eq!(node.ok(&["get", "last"]), "v");
    let keys: Vec<String> = (0..500).map(|n| format!("k{n:04}")).collect();
    let table = table.to_str().expect("UTF-8");
    let mut lost = None;
    for key in &keys {
        let got = node.run(&["get", key]);
        if got.code != 0 {
            assert_eq!(got.code, 1, "{}", got.stderr);
            assert!(got.stderr.contains(table) && got.stderr.contains("byte"), "{}", got.stderr);
            lost = Some(key);
            break;
        }
    }
    let lost = lost.expect("a block of rows is damaged");
    assert!(keys.iter().any(|key| node.run(&["get", key]).code == 0), "not all rows are lost");
    let scrub = node.run(&["scrub"]);
    let told = format!("{}{}", scrub.stdout, scrub.stderr);
    assert!(told.contains(table), "{told}");
    // What cannot be read is not overwritten as if it were not there.
    assert_eq!(node.run(&["put", lost, "new"]).code, 5);
    node.ok(&["put", "more", "v"]);
    assert_eq!(node.terminate(), 0);
    node.restart();
    assert_eq!(node.ok(&["get", "more"]), "v");
}

/// A file where the directory must be, and a place where nobody may write: exit code 73.
#[test]
fn a_directory_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("file");
    fs::write(&file, "mine").expect("written");
    let below = file.join("data");
    let places = [file.as_path(), below.as_path(), Path::new("/sys/pairdb")];
    for place in places {
        let place = place.to_str().expect("UTF-8");
        let done = refused(place, &[]);
        assert_eq!(done.code, 73, "{place}: {}", done.stderr);
        assert!(done.stderr.contains(place), "{}", done.stderr);
    }
    assert_eq!(fs::read_to_string(&file).expect("there"), "mine");
}

/// Wrong settings are found before anything is created: exit code 78, and the setting by name.
#[test]
fn a_wrong_setting_is_refused_before_anything_is_created() {
    let dir = tempfile::tempdir().expect("a directory");
    let data = dir.path().join("data");
    let data_dir = data.to_str().expect("UTF-8");
    let wrong = [
        ("PAIRDB__NODE__NONSENSE", "1", "node.nonsense"),
        ("PAIRDB__LIMITS__TTL_MAX", "-1s", "limits.ttl_max"),
        ("PAIRDB__LIMITS__DISK_FULL_PERCENT", "101", "disk_full_percent"),
        ("PAIRDB__LIMITS__KEY_BYTES_MAX", "5KiB", "key_bytes_max"),
        ("PAIRDB__ENGINE__COMPACTION_THREADS", "0", "engine.compaction_threads"),
        ("PAIRDB__LISTEN__CLIENT", "nowhere", "listen.client"),
        ("PAIRDB__LISTEN__CLIENT", "0.0.0.0:0", "security.insecure"),
    ];
    for (name, value, named) in wrong {
        let done = super::pairdb_with(&["serve", "--data-dir", data_dir], &[(name, value)]);
        assert_eq!(done.code, 78, "{name}: {}", done.stderr);
        assert!(done.stderr.contains(named), "{name}: {}", done.stderr);
        assert!(!data.exists(), "{name}");
    }
    // A variable that is not set, in a script: none of these is what was meant.
    for empty in [&["--seed", ""][..], &["--seed", "127.0.0.1:1", "--seed", ","]] {
        let serve = ["serve", "--data-dir", data_dir, "--listen", "127.0.0.1:0"];
        let done = super::pairdb(&[&serve[..], empty].concat());
        assert_eq!(done.code, 78, "{empty:?}: {}", done.stderr);
        assert!(done.stderr.contains("--seed is empty"), "{empty:?}: {}", done.stderr);
        assert!(!data.exists(), "{empty:?}");
    }
    let done = super::pairdb(&["serve", "--data-dir", ""]);
    assert_eq!(done.code, 78, "{}", done.stderr);
    assert!(done.stderr.contains("node.data_dir is empty"), "{}", done.stderr);
}
