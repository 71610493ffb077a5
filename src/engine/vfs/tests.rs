//! One story for all three file systems, then what each adds.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::fault::{Effect, Fault, FaultVfs, Operation};
use super::mem::MemVfs;
use super::os::OsVfs;
use super::{File, Vfs};

fn content(vfs: &dyn Vfs, path: impl AsRef<Path>) -> Vec<u8> {
    vfs.map(path.as_ref()).unwrap().to_vec()
}

fn kind<T: std::fmt::Debug>(result: std::io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// What the contract of `Vfs` and `File` says, under `root`, which does not exist yet.
fn conforms(vfs: &dyn Vfs, root: &Path) {
    files_conform(vfs, root);
    names_conform(vfs, root);
    locks_conform(vfs, root);
}

fn files_conform(vfs: &dyn Vfs, root: &Path) {
    let path = root.join("a/b/file");
    assert_eq!(kind(vfs.create(&path)), ErrorKind::NotFound, "no directory yet");
    vfs.create_dir_all(&root.join("a/b")).unwrap();
    vfs.create_dir_all(&root.join("a/b")).unwrap();
    let file = vfs.create(&path).unwrap();
    assert_eq!(kind(vfs.create(&path)), ErrorKind::AlreadyExists);
    assert!(file.is_empty().unwrap());
    assert!(vfs.map(&path).unwrap().is_empty(), "an empty file can be mapped");

    file.write_at(4094, b"over a granule's border").unwrap();
    let mut buffer = [1; 32];
    assert_eq!(file.read_at(4090, &mut buffer).unwrap(), 27, "short only at the end");
    assert_eq!(&buffer[..27], b"\0\0\0\0over a granule's border");
    assert_eq!(file.read_at(1 << 20, &mut buffer).unwrap(), 0);
    file.write_at(0, b"front").unwrap();
    assert_eq!(file.len().unwrap(), 4094 + 23, "a write inside does not shorten");

    file.allocate(10_000).unwrap();
    assert_eq!(file.len().unwrap(), 10_000);
    file.allocate(10).unwrap();
    assert_eq!(file.len().unwrap(), 10_000, "allocation never shortens");
    file.start_writeback(0, 4096);
    file.wait_writeback(0, 4096).unwrap();
    file.sync_data().unwrap();
    let other = vfs.open(&path).unwrap();
    other.write_at(9_998, b"zz").unwrap();
    let bytes = content(vfs, &path);
    assert_eq!((&bytes[..5], &bytes[9_997..], bytes.len()), (&b"front"[..], &b"\0zz"[..], 10_000));
    prepared_files_conform(vfs, &root.join("a/prepared"));
}

/// A file that is prepared again and again holds what was written to it, wherever a write begins
/// and ends: in what is prepared, across its borders, in what was prepared before.
fn prepared_files_conform(vfs: &dyn Vfs, path: &Path) {
    let file = vfs.create(path).unwrap();
    let mut expected = Vec::new();
    let mut end = 0_usize;
    for step in 0..2_000_usize {
        if step % 40 == 0 {
            let from = (end as u64).saturating_sub(3_000 * (step as u64 % 3));
            let len = 1 + step as u64 % 9 * 1_900;
            match file.prepare(from, len) {
                Ok(()) => expected.resize(expected.len().max((from + len) as usize), 0),
                // Nothing is promised, and nothing is lost.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
            }
            assert_eq!(file.len().unwrap(), expected.len() as u64);
        }
        let bytes = vec![step as u8 | 1; step * 7 % 900];
        let at = end.saturating_sub(step % 5 * 400);
        if !bytes.is_empty() {
            expected.resize(expected.len().max(at + bytes.len()), 0);
        }
        expected[at..at + bytes.len()].copy_from_slice(&bytes);
        file.write_at(at as u64, &bytes).unwrap();
        end = end.max(at + bytes.len());
        if step % 100 == 50 {
            let mut found = vec![0; expected.len()];
            assert_eq!(file.read_at(0, &mut found).unwrap(), expected.len());
            assert!(found == expected, "step {step}, by the same handle");
            assert!(content(vfs, path) == expected, "step {step}, by name");
            file.sync_data().unwrap();
        }
    }
}

fn names_conform(vfs: &dyn Vfs, root: &Path) {
    let at = |name: &str| root.join("a/b").join(name);
    assert_eq!(kind(vfs.open(&at("none"))), ErrorKind::NotFound);
    assert_eq!(kind(vfs.map(&at("none"))), ErrorKind::NotFound);
    assert_eq!(kind(vfs.remove(&at("none"))), ErrorKind::NotFound);
    assert_eq!(kind(vfs.rename(&at("none"), &at("x"))), ErrorKind::NotFound);
    vfs.create(&at("new")).unwrap().write_at(0, b"new").unwrap();
    vfs.hard_link(&at("new"), &at("link")).unwrap();
    assert_eq!(kind(vfs.hard_link(&at("new"), &at("link"))), ErrorKind::AlreadyExists);
    let open = vfs.open(&at("file")).unwrap();
    let map = vfs.map(&at("file")).unwrap();
    vfs.rename(&at("new"), &at("file")).unwrap();
    assert_eq!(content(vfs, at("file")), b"new", "a rename replaces");
    let mut front = [0; 5];
    open.read_at(0, &mut front).unwrap();
    assert_eq!((&front, &map[..5]), (b"front", &b"front"[..]), "the replaced file stays readable");
    vfs.open(&at("file")).unwrap().write_at(0, b"N").unwrap();
    assert_eq!(content(vfs, at("link")), b"New", "both names are one file");
    vfs.create_dir_all(&at("directory")).unwrap();
    let names = ["file", "link"].map(PathBuf::from);
    assert_eq!(vfs.list(&root.join("a/b")).unwrap(), names, "bare names of files, sorted");
    vfs.rename(&at("link"), &root.join("a/moved")).unwrap();
    vfs.remove(&at("file")).unwrap();
    assert!(vfs.exists(&root.join("a/moved")).unwrap());
    assert!(vfs.exists(&root.join("a/b")).unwrap());
    assert!(!vfs.exists(&at("file")).unwrap());
    assert!(!vfs.exists(&root.join("nowhere/file")).unwrap());
    assert_eq!(content(vfs, root.join("a/moved")), b"New");
    assert_eq!(kind(vfs.list(&root.join("nowhere"))), ErrorKind::NotFound);
    vfs.sync_dir(&root.join("a/b")).unwrap();
}

fn locks_conform(vfs: &dyn Vfs, root: &Path) {
    let path = root.join("LOCK");
    let lock = vfs.lock(&path).unwrap().expect("free");
    assert!(vfs.lock(&path).unwrap().is_none(), "held, by this process too");
    drop(lock);
    assert!(vfs.lock(&path).unwrap().is_some(), "free again, the file being there");
    let space = vfs.disk_space(root).unwrap();
    assert!(space.total > 0 && space.available <= space.total);
}

#[test]
fn os_conforms() {
    let directory = tempfile::tempdir().unwrap();
    conforms(&OsVfs, &directory.path().join("root"));
}

#[test]
fn mem_conforms() {
    conforms(&MemVfs::new(), Path::new("/root"));
    conforms(&MemVfs::new(), Path::new("relative"));
}

#[test]
fn fault_conforms_while_nothing_is_injected() {
    let vfs = FaultVfs::new(Arc::new(MemVfs::new()));
    conforms(&vfs, Path::new("/root"));
    assert!(vfs.calls() > 40);
}

/// A file system with `/db/synced` (4 granules of `o`, durable) and handles to play with.
fn with_synced_file() -> (MemVfs, Arc<dyn File>) {
    let vfs = MemVfs::new();
    vfs.create_dir_all(Path::new("/db")).unwrap();
    vfs.sync_dir(Path::new("/")).unwrap();
    let file = vfs.create(Path::new("/db/synced")).unwrap();
    file.write_at(0, &[b'o'; 4 * 4096]).unwrap();
    file.sync_data().unwrap();
    vfs.sync_dir(Path::new("/db")).unwrap();
    (vfs, file)
}

/// Law: what was synced survives every crash; what was not survives in every mixture.
#[test]
fn power_loss_keeps_what_was_synced_and_any_part_of_the_rest() {
    let (vfs, file) = with_synced_file();
    file.write_at(4096, &[b'n'; 2 * 4096]).unwrap();
    file.write_at(4 * 4096, b"tail").unwrap();
    let (mut seen, mut torn) = (BTreeSet::new(), 0);
    for seed in 0..500 {
        let bytes = content(&vfs.crash_clone(seed), "/db/synced");
        assert!(bytes[..4096].iter().all(|byte| *byte == b'o'), "not written since: as synced");
        assert!(bytes[4096..4 * 4096].iter().all(|byte| b"on".contains(byte)), "old or new");
        assert!(bytes[3 * 4096..4 * 4096].iter().all(|byte| *byte == b'o'));
        assert!([4 * 4096, 4 * 4096 + 4].contains(&bytes.len()), "old or new length");
        torn += usize::from(bytes[4096..8192].windows(2).any(|pair| pair[0] != pair[1]));
        seen.insert((bytes[4096], bytes[2 * 4096], bytes[4 * 4096..].to_vec()));
    }
    assert!(torn > 10, "granules are torn inside: {torn}");
    assert!(
        seen.len() >= 12,
        "two granules and a tail (gone, zero, there) in any mixture: {seen:?}"
    );
    file.sync_data().unwrap();
    for seed in 0..50 {
        assert_eq!(content(&vfs.crash_clone(seed), "/db/synced"), content(&vfs, "/db/synced"));
    }
}

/// Law: names survive by `sync_dir` only, and each unsynced change by itself.
#[test]
fn power_loss_keeps_any_subset_of_unsynced_names() {
    let (vfs, _file) = with_synced_file();
    vfs.create(Path::new("/db/tmp")).unwrap().sync_data().unwrap();
    vfs.rename(Path::new("/db/tmp"), Path::new("/db/renamed")).unwrap();
    vfs.create(Path::new("/db/created")).unwrap();
    vfs.remove(Path::new("/db/synced")).unwrap();
    let names = |vfs: &MemVfs| vfs.list(Path::new("/db")).unwrap();
    let seen: BTreeSet<_> = (0..500).map(|seed| names(&vfs.crash_clone(seed))).collect();
    for lists in [&["synced"][..], &["created", "renamed"], &["synced", "tmp"], &["renamed"], &[]] {
        let names: Vec<_> = lists.iter().map(PathBuf::from).collect();
        assert!(seen.contains(&names), "{names:?} is possible");
    }
    assert!(
        seen.iter()
            .all(|names| { !(names.contains(&"tmp".into()) && names.contains(&"renamed".into())) })
    );
    vfs.sync_dir(Path::new("/db")).unwrap();
    for seed in 0..50 {
        assert_eq!(names(&vfs.crash_clone(seed)), ["created", "renamed"].map(PathBuf::from));
    }
}

/// A directory that nobody synced in its parent takes its files with it.
#[test]
fn power_loss_may_take_a_directory_whose_parent_was_not_synced() {
    let vfs = MemVfs::new();
    vfs.create_dir_all(Path::new("/db/log")).unwrap();
    vfs.create(Path::new("/db/log/1")).unwrap();
    vfs.sync_dir(Path::new("/db/log")).unwrap();
    vfs.sync_dir(Path::new("/db")).unwrap();
    let survives = |seed| vfs.crash_clone(seed).exists(Path::new("/db/log/1")).unwrap();
    assert!((0..100).any(survives) && !(0..100).all(survives));
    vfs.sync_dir(Path::new("/")).unwrap();
    assert!((0..100).all(survives));
}

/// Law: a seed always gives the same crash, and neither side sees the other's later writes.
#[test]
fn crash_clones_are_determined_by_their_seed_and_apart_from_the_original() {
    let (vfs, file) = with_synced_file();
    file.write_at(0, &[b'n'; 3 * 4096]).unwrap();
    for seed in 0..50 {
        let [one, two] = [vfs.crash_clone(seed), vfs.crash_clone(seed)];
        let before = content(&one, "/db/synced");
        assert_eq!(before, content(&two, "/db/synced"));
        assert_eq!(before, content(&one.crash_clone(seed + 1), "/db/synced"), "now all synced");
        one.open(Path::new("/db/synced")).unwrap().write_at(0, b"clone").unwrap();
        file.write_at(0, b"origin").unwrap();
        assert_eq!(content(&two, "/db/synced"), before);
        assert_eq!(&content(&one, "/db/synced")[..5], b"clone");
    }
}

/// Law: `kill -9` loses nothing written and frees the locks; a power loss afterwards still may.
#[test]
fn kill_keeps_everything_written_and_frees_locks() {
    let (vfs, file) = with_synced_file();
    let _lock = vfs.lock(Path::new("/db/LOCK")).unwrap().expect("free");
    file.write_at(0, b"unsynced").unwrap();
    let killed = vfs.crash_clone_kill();
    assert_eq!(&content(&killed, "/db/synced")[..8], b"unsynced");
    assert!(killed.lock(Path::new("/db/LOCK")).unwrap().is_some());
    assert!(vfs.lock(Path::new("/db/LOCK")).unwrap().is_none());
    let lost = |seed| content(&killed.crash_clone(seed), "/db/synced")[..8] == *b"oooooooo";
    assert!((0..100).any(lost));
}

/// Law: growth past the limit is refused and leaves the file as it was; removed files give room.
#[test]
fn a_full_disk_refuses_growth_only() {
    let (vfs, file) = with_synced_file();
    vfs.set_space_limit(Some(6 * 4096));
    assert_eq!(vfs.disk_space(Path::new("/db")).unwrap().available, 2 * 4096);
    assert_eq!(kind(file.write_at(6 * 4096, b"x")), ErrorKind::StorageFull);
    assert_eq!(kind(file.allocate(7 * 4096)), ErrorKind::StorageFull);
    assert_eq!(file.len().unwrap(), 4 * 4096);
    file.write_at(5 * 4096, b"x").unwrap();
    file.write_at(0, b"inside").unwrap();
    let other = vfs.create(Path::new("/db/other")).unwrap();
    assert_eq!(kind(other.write_at(0, b"x")), ErrorKind::StorageFull);
    vfs.remove(Path::new("/db/synced")).unwrap();
    assert_eq!(kind(other.write_at(0, b"x")), ErrorKind::StorageFull, "still open");
    drop(file);
    other.write_at(0, b"x").unwrap();
}

/// Faults hit the calls they name, as often as they say, and heal.
#[test]
fn faults_hit_the_calls_they_name() {
    let vfs = FaultVfs::new(Arc::new(MemVfs::new()));
    let create = |name: &str| vfs.create(Path::new(name));
    vfs.fail_call(2, ErrorKind::PermissionDenied);
    create("/1").unwrap();
    assert_eq!(kind(create("/2")), ErrorKind::PermissionDenied);
    create("/2").unwrap();

    vfs.inject(Fault {
        operation: Some(Operation::SyncData),
        path_contains: "/log".into(),
        skip: 1,
        times: u64::MAX,
        effect: Effect::Fail(ErrorKind::StorageFull),
    });
    let log = create("/log").unwrap();
    log.sync_data().unwrap();
    assert_eq!(kind(log.sync_data()), ErrorKind::StorageFull);
    assert_eq!(kind(log.sync_data()), ErrorKind::StorageFull, "for ever");
    vfs.open(Path::new("/1")).unwrap().sync_data().unwrap();
    vfs.heal();
    log.sync_data().unwrap();

    let effect = Effect::ShortWrite(3, ErrorKind::StorageFull);
    vfs.inject(Fault { operation: Some(Operation::WriteAt), effect, ..Fault::default() });
    assert_eq!(kind(log.write_at(0, b"abcdef")), ErrorKind::StorageFull);
    assert_eq!(content(&vfs, "/log"), b"abc");

    let effect = Effect::FlipBit(1, 0);
    vfs.inject(Fault { times: u64::MAX, effect, ..Fault::default() });
    assert_eq!(content(&vfs, "/log"), b"acc");
    let mut buffer = [0; 2];
    log.read_at(1, &mut buffer).unwrap();
    assert_eq!(&buffer, b"cc");
    log.read_at(2, &mut buffer[..1]).unwrap();
    assert_eq!(buffer[0], b'c', "another byte is not touched");
}

/// The hook sees every call before it happens, so a clone taken in it is the moment before.
#[test]
fn the_hook_sees_the_moment_before_every_call() {
    let mem = MemVfs::new();
    let vfs = FaultVfs::new(Arc::new(mem.clone()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    vfs.on_call(move |number, call| {
        let there = mem.exists(Path::new("/file")).unwrap();
        log.lock().push((number, call.operation, call.offset, call.len, there));
    });
    let file = vfs.create(Path::new("/file")).unwrap();
    file.write_at(7, b"abc").unwrap();
    file.sync_data().unwrap();
    let expected = [
        (1, Operation::Create, 0, 0, false),
        (2, Operation::WriteAt, 7, 3, true),
        (3, Operation::SyncData, 0, 0, true),
    ];
    assert_eq!(*seen.lock(), expected);
}

/// Where the system can prepare files, writes into what is prepared need nothing of it: they are
/// seen by others although the handle they go through could not write a byte by itself.
#[test]
fn a_write_into_a_prepared_range_makes_no_call() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let file = OsVfs.create(&path).unwrap();
    if file.prepare(10, 20_000).is_err_and(|error| error.kind() == ErrorKind::Unsupported) {
        return;
    }
    assert_eq!(file.len().unwrap(), 20_010);
    let calls = || {
        let text = std::fs::read_to_string("/proc/thread-self/io").unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("syscw: ")).unwrap();
        line.parse::<u64>().unwrap()
    };
    let before = calls();
    for at in (10..20_000).step_by(10) {
        file.write_at(at, &[at as u8 | 1; 10]).unwrap();
    }
    assert_eq!(calls(), before);
    file.write_at(9, b"before").unwrap();
    file.write_at(20_005, b"across").unwrap();
    assert_eq!(calls(), before + 2);
    let found = content(&OsVfs, &path);
    assert!(found.len() == 20_011 && found[15..20_000].iter().all(|byte| *byte != 0));
    assert_eq!((&found[9..15], &found[20_005..]), (&b"before"[..], &b"across"[..]));
}

/// Threads that write side by side into one prepared file, which is prepared anew all the while.
#[test]
fn threads_share_a_prepared_file() {
    const EACH: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let file = OsVfs.create(&path).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_usize {
            let file = &file;
            scope.spawn(move || {
                for index in 0..EACH {
                    let at = (index * 4 + thread) * 100;
                    file.write_at(at as u64, &[1 + thread as u8; 100]).unwrap();
                    if index % 20 == thread {
                        let _ = file.prepare(at as u64, 5_000);
                    }
                }
            });
        }
    });
    let found = content(&OsVfs, &path);
    for (place, bytes) in found.chunks(100).take(4 * EACH).enumerate() {
        assert!(bytes.iter().all(|byte| usize::from(*byte) == 1 + place % 4), "place {place}");
    }
}

/// A walk that gives memory back changes nothing for readers that hold the same bytes, whatever
/// range it names.
#[test]
fn bytes_that_were_given_back_stay_readable() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table");
    let bytes: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    OsVfs.create(&path).unwrap().write_at(0, &bytes).unwrap();
    let map = OsVfs.map(&path).unwrap();
    let held: &[u8] = &map;
    assert_eq!(held, bytes);
    for range in [0..0, 0..1, 5..700_001, 700_001..1_200_000, 0..1_200_000, 1_200_000..1_200_000] {
        map.give_back(range);
        assert!(held == bytes);
    }
}

/// What lies behind the end of a file that was cut after it was mapped cannot be fetched, like a
/// broken sector: whoever loads it first is told, where touching it would end the process.
#[cfg(target_os = "linux")]
#[test]
fn a_page_that_cannot_be_fetched_is_an_error_of_load() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("mapped");
    let file = OsVfs.create(&path).expect("creates");
    file.write_at(0, &vec![1; 64 << 10]).expect("writes");
    let map = OsVfs.map(&path).expect("maps");
    map.load(0..map.len()).expect("all of it is there");
    std::fs::OpenOptions::new().write(true).open(&path).expect("opens").set_len(4096).expect("cut");
    map.load(0..4096).expect("the first page is there");
    map.load(0..map.len()).expect_err("the others are not");
    assert_eq!(map[4095], 1);
}
