//! Starts that are refused for what the directory holds: they leave it as it is, who the node is
//! and how far its clock may go included.

use std::collections::BTreeMap;

use super::*;
use crate::engine::vfs::File;

type Files = BTreeMap<PathBuf, Vec<u8>>;

fn engine_dir() -> PathBuf {
    Path::new(DIR).join(ENGINE_DIR_NAME)
}

/// All files of the store, with their bytes.
fn files(vfs: &MemVfs) -> Files {
    let mut files = Files::new();
    for dir in [PathBuf::from(DIR), engine_dir()] {
        for name in vfs.list(&dir).unwrap() {
            let path = dir.join(name);
            let bytes = read(&*vfs.open(&path).unwrap());
            files.insert(path, bytes);
        }
    }
    files
}

fn read(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// A node with rows in a table and in the log, stopped cleanly or killed.
fn node(clean: bool) -> Node {
    let mut node = Node::new();
    for n in 0..40 {
        node.put("default", &format!("key{n}"), "in a table");
    }
    node.store().flush().unwrap();
    for n in 0..40 {
        node.put("default", &format!("key{n}"), "in the log");
    }
    let store = node.store.take().expect("started");
    if clean {
        store.close().unwrap();
    }
    drop(store);
    node.vfs = node.vfs.crash_clone_kill();
    node
}

/// The first file of the engine whose name ends so, or begins so.
fn engine_file(vfs: &MemVfs, part: &str) -> PathBuf {
    let names = vfs.list(&engine_dir()).unwrap();
    let mut names = names.iter().map(|name| name.to_str().expect("UTF-8"));
    let name = names.find(|name| name.ends_with(part) || name.starts_with(part));
    engine_dir().join(name.unwrap_or_else(|| panic!("no {part}")))
}

fn flip(vfs: &MemVfs, path: &Path, at: u64) {
    let file = vfs.open(path).unwrap();
    let mut byte = [0];
    file.read_at(at, &mut byte).unwrap();
    file.write_at(at, &[byte[0] ^ 0x20]).unwrap();
}

/// The node must be refused for this reason, and its files be what they were.
fn refuses(node: &mut Node, reason: &str, what: &str) {
    let before = files(&node.vfs);
    let error = node.try_start().expect_err(what);
    assert_eq!(error.reason(), reason, "{what}: {error}");
    let after = files(&node.vfs);
    let of = |path: &Path| format!("{what}: {} is as it was", path.display());
    for (path, bytes) in &before {
        assert!(after.get(path) == Some(bytes), "{}", of(path));
    }
    assert_eq!(after.len(), before.len(), "{what}: {:?}", after.keys());
}

/// A refused start must not cost a clean stop, an actor or a generation, nor rewrite the engine's
/// files: whoever mends the cause finds the node as it was stopped.
#[test]
fn a_refused_start_leaves_every_byte_of_the_directory() {
    for clean in [true, false] {
        let base = node(clean);
        let last = |path: &Path| base.vfs.open(path).unwrap().len().unwrap() - 1;
        let manifest = engine_file(&base.vfs, "MANIFEST");
        let table = engine_file(&base.vfs, ".sst");
        let data = Path::new(DIR);
        let mut damages = vec![
            ("the identity", data.join("IDENTITY"), 60),
            ("the catalog", data.join("TENANTS"), 60),
            ("the pointer to the manifest", engine_file(&base.vfs, "CURRENT"), 2),
            ("the manifest", manifest, 40),
            ("a table's footer", table.clone(), last(&table) - 30),
        ];
        if !clean {
            // The first frame behind the header, with others behind it that were synced.
            damages.push(("the log", engine_file(&base.vfs, ".log"), 4096 + 20));
        }
        for (what, path, at) in damages {
            let mut node = base.like();
            flip(&node.vfs, &path, at);
            refuses(&mut node, "CORRUPTION", what);
            flip(&node.vfs, &path, at);
            node.start();
            assert_eq!(node.values("default", "key7").last().expect("there"), "in the log");
            let start = if clean { Start::Clean } else { Start::Unclean };
            assert_eq!(node.store().identity.start(), start, "{what}: counted once only");
        }
    }
}

/// The same where nothing is damaged: another cluster, an engine somebody else has open, options
/// that cannot be.
#[test]
fn a_start_that_may_not_be_leaves_every_byte_of_the_directory() {
    let base = node(true);
    let mut other = base.like();
    other.options.identity.cluster_id = Some(7);
    refuses(&mut other, "WRONG_CLUSTER", "another cluster");

    let mut taken = base.like();
    let lock = taken.vfs.lock(&engine_dir().join("LOCK")).unwrap().expect("free");
    refuses(&mut taken, "LOCKED", "an engine in use");
    drop(lock);

    let mut absurd = base.like();
    absurd.options.engine.block_bytes = 1;
    refuses(&mut absurd, "INVALID_ARGUMENT", "an option out of bounds");

    let mut later = base.like();
    later.options.engine.partition_bits += 1;
    refuses(&mut later, "ENGINE", "other partitions than it was made with");
}

/// Files of somebody else: no store is made among them.
#[test]
fn a_directory_with_other_files_gets_none_of_the_store() {
    let mut node = Node::new();
    node.store = None;
    node.vfs = MemVfs::new();
    node.vfs.create_dir_all(Path::new(DIR)).unwrap();
    let theirs = Path::new(DIR).join("letters");
    node.vfs.create(&theirs).unwrap().write_at(0, b"mine").unwrap();
    let error = node.try_start().expect_err("not a new directory");
    assert!(error.to_string().contains("letters"), "{error}");
    let names = node.vfs.list(Path::new(DIR)).unwrap();
    assert_eq!(names, [Path::new("LOCK"), Path::new("letters")]);
}

/// A volume that is not mounted: the node would answer for all its rows that there are none.
#[test]
fn a_node_that_has_run_does_not_start_without_its_rows() {
    for clean in [true, false] {
        let mut node = node(clean);
        for name in node.vfs.list(&engine_dir()).unwrap() {
            node.vfs.remove(&engine_dir().join(name)).unwrap();
        }
        let before = files(&node.vfs);
        let error = node.try_start().expect_err("its rows are gone");
        assert_eq!(error.reason(), "CORRUPTION", "clean {clean}: {error}");
        assert!(error.to_string().contains("CURRENT"), "clean {clean}: {error}");
        assert_eq!(files(&node.vfs), before, "clean {clean}");
    }
}
