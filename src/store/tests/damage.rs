//! Checkpoints, and tables that were damaged.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use super::*;

/// Longer than a fence takes that waits for nothing.
const A_WHILE: Duration = Duration::from_millis(200);

fn all_rows(store: &Store) -> Vec<(Vec<u8>, Vec<u8>)> {
    let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
    store.rows_by_token(whole, None, usize::MAX).unwrap().rows
}

/// A checkpoint is a store with all that was written before it, tenants included, and nothing of
/// after; it is the same node under a new actor, and what is written there stays there.
#[test]
fn a_checkpoint_is_a_store_of_its_own() {
    let node = Node::new();
    for n in 0..50 {
        node.put("default", &format!("key{n}"), "table");
        node.put("lww", &format!("key{n}"), "table");
        node.put("lists", &format!("list:{n}"), "table");
    }
    node.store().flush().unwrap();
    node.store().write("default", delete("key7")).unwrap();
    node.put("default", "key8", "memtable");
    let before = all_rows(node.store());
    let copy = Path::new("/backups/one");
    node.store().checkpoint(copy).unwrap();
    let again = node.store().checkpoint(copy).unwrap_err();
    assert!(again.to_string().contains("/backups/one"), "{again}");
    node.put("default", "later", "v");
    node.store().compact().unwrap();

    let environment = Environment::simulated(Arc::new(node.vfs.clone()), &node.clock, 77);
    let opened = Store::open_in(copy, node.options.clone(), environment).unwrap();
    assert_eq!(all_rows(&opened), before);
    let names = |store: &Store| -> Vec<String> {
        store.tenants().iter().map(|tenant| tenant.name.clone()).collect()
    };
    assert_eq!(names(&opened), names(node.store()));
    let (theirs, ours) = (opened.identity(), node.store().identity());
    assert_eq!((theirs.node_id, theirs.cluster_id), (ours.node_id, ours.cluster_id));
    assert_ne!(theirs.actor, ours.actor, "two that write under one actor lose writes");
    let written = opened.write("default", put("key8", "copy")).unwrap();
    assert_eq!(written.siblings, 3, "a write without context stands beside");
    assert_eq!(node.values("default", "key8"), ["memtable", "table"]);
    opened.close().unwrap();
}

/// The tables of a stopped store.
fn tables(vfs: &MemVfs) -> Vec<PathBuf> {
    let dir = Path::new(DIR).join("engine");
    let names = vfs.list(&dir).unwrap().into_iter();
    names
        .filter(|name| name.extension().is_some_and(|end| end == "sst"))
        .map(|name| dir.join(name))
        .collect()
}

/// What is lost with a damaged block may be versions that others have from this actor: it is
/// replaced before anything else is written, once for each place. The rest of the store is served.
#[test]
fn a_damaged_table_is_named_and_costs_the_actor() {
    let mut node = Node::new();
    for n in 0..300 {
        node.put("default", &format!("key{n}"), &"v".repeat(100));
    }
    node.store().compact().unwrap();
    node.store.take().expect("started").close().unwrap();
    let damaged = tables(&node.vfs);
    assert!(!damaged.is_empty());
    for table in &damaged {
        let file = node.vfs.open(table).unwrap();
        let mut byte = [0];
        file.read_at(600, &mut byte).unwrap();
        file.write_at(600, &[byte[0] ^ 0x40]).unwrap();
    }
    node.start();
    let born = node.store().identity().actor;
    let read = |n: usize| node.store().read("default", format!("key{n}").as_bytes());
    let errors: Vec<Error> = (0..300).filter_map(|n| read(n).err()).collect();
    assert!(!errors.is_empty() && errors.len() < 200, "{} rows are lost", errors.len());
    for error in &errors {
        let Error::Corruption { file, .. } = error else { panic!("{error}") };
        assert!(damaged.contains(file), "{error}");
    }
    let rotated = node.store().identity().actor;
    assert_ne!(rotated, born);
    assert_eq!(node.store().stats().actor_rotations, damaged.len() as u64);
    // Met again, by reads and by a scrub, it is the same damage.
    assert_eq!((0..300).filter(|n| read(*n).is_err()).count(), errors.len());
    let report = node.store().scrub().unwrap();
    assert_eq!(report.damaged.len(), damaged.len());
    assert_eq!(node.store().stats().actor_rotations, damaged.len() as u64);

    // A row that cannot be read is not overwritten as if it were empty; others are.
    let lost = (0..300).find(|n| read(*n).is_err()).expect("one is");
    let error = node.store().write("default", put(&format!("key{lost}"), "new")).unwrap_err();
    assert_eq!((error.reason(), error.outcome()), ("CORRUPTION", Outcome::NotApplied));
    node.put("default", "new", "v");
    node.restart();
    assert_eq!(node.values("default", "new"), ["v"]);
    let actor = node.store().identity().actor;
    assert_ne!(actor, born, "the old actor does not come back");
}

/// A key of a batch that cannot be read fails alone; the others are written, under the new actor.
#[test]
fn an_unreadable_key_fails_alone_in_its_batch() {
    let node = Node::new();
    for n in 0..300 {
        node.put("default", &format!("key{n}"), &"v".repeat(100));
    }
    node.store().compact().unwrap();
    let key_of = |n: usize| format!("key{n}");
    for round in ["prepare", "write_batch"] {
        let mut node = node.like();
        for table in tables(&node.vfs) {
            node.vfs.open(&table).unwrap().write_at(600, b"damage").unwrap();
        }
        node.start();
        let born = node.store().identity().actor;
        let store = node.store();
        // Nobody has read it before: the batch itself meets the damage.
        let batch: Vec<Mutation> = (0..300).map(|n| put(&key_of(n), "new")).collect();
        let results = match round {
            "prepare" => {
                let prepared = store.prepare("default", &batch);
                let made = prepared.results.iter().enumerate().filter(|(_, made)| made.is_ok());
                let shipped: Vec<usize> = prepared.rows.iter().map(|row| row.index).collect();
                assert_eq!(shipped, made.map(|(index, _)| index).collect::<Vec<_>>());
                prepared.results
            }
            _ => store.write_batch("default", batch),
        };
        assert_ne!(store.identity().actor, born);
        let failed = results.iter().filter_map(|result| result.as_ref().err());
        let failed: Vec<_> = failed.map(|error| (error.reason(), error.outcome())).collect();
        assert!(!failed.is_empty() && failed.len() < 200, "{} items failed", failed.len());
        assert!(failed.iter().all(|one| *one == ("CORRUPTION", Outcome::NotApplied)));
        for (n, result) in results.iter().enumerate() {
            let read = store.read("default", key_of(n).as_bytes());
            assert_eq!(read.map(|row| row.siblings.len()).ok(), result.is_ok().then_some(2));
        }
    }
}

/// A table of which hardly a block can be read costs one actor: what it has lost was written before
/// the first of them was met. And it is looked into once, however many readers meet the others.
#[test]
fn a_table_that_cannot_be_read_at_all_costs_one_actor() {
    let mut node = Node::new();
    for n in 0..1000 {
        node.put("default", &format!("key{n}"), &"v".repeat(500));
    }
    node.store().compact().unwrap();
    node.store.take().expect("started").close().unwrap();
    let damaged = tables(&node.vfs);
    for table in &damaged {
        let file = node.vfs.open(table).unwrap();
        for at in 0..20 {
            file.write_at(600 + at * 4000, b"damage").unwrap();
        }
    }
    node.start();
    let store = node.store();
    let read = |n: usize| store.read("default", format!("key{n}").as_bytes());
    assert!((0..1000).any(|n| read(n).is_err()));
    let actor = store.identity().actor;
    assert_eq!(store.stats().actor_rotations, damaged.len() as u64);
    store.scrub_suspects().unwrap();
    let mut pass = store.begin_scrub();
    while store.scrub_some(&mut pass, 4096).unwrap().is_some() {}
    assert!(pass.report.damaged.len() > 10 * damaged.len(), "{} blocks", pass.report.damaged.len());
    assert!((0..1000).any(|n| read(n).is_err()));
    assert_eq!(store.identity().actor, actor);
    assert!(store.damage.lock().suspects.is_empty(), "nothing of it is new");
}

/// As many places as there are in one table do not keep damage elsewhere from being noticed.
#[test]
fn damage_is_noticed_whatever_was_met_before() {
    let node = Node::new();
    let store = node.store();
    let meet = |file: &str, offset| {
        let (file, what) = (PathBuf::from(file), "bad".into());
        store.noted(Error::Corruption { file, offset, what });
    };
    (0..10_000).for_each(|offset| meet("one", offset));
    assert_eq!(store.stats().actor_rotations, 1);
    store.scrub_suspects().unwrap();
    assert!(!store.has_damage());
    meet("two", 0);
    assert_eq!(store.stats().actor_rotations, 2);
    assert!(store.has_damage());
}

/// A node whose tables rotted while it was stopped.
fn rotten() -> Node {
    let mut node = Node::new();
    for n in 0..300 {
        node.put("default", &format!("key{n}"), &"v".repeat(100));
    }
    node.store().compact().unwrap();
    node.store.take().expect("started").close().unwrap();
    for table in tables(&node.vfs) {
        node.vfs.open(&table).unwrap().write_at(600, b"damage").unwrap();
    }
    node.start();
    node
}

/// Where nothing was given up nothing is to be compared again: a refused call, made every minute,
/// would else have whole partitions hashed and exchanged for ever.
#[test]
fn only_what_is_given_up_is_compared_again() {
    let node = rotten();
    let store = node.store();
    assert!(!store.scrub().unwrap().damaged.is_empty());
    let unreadable = store.unreadable();
    let leaves = store.dirty_leaves();
    let all = 0..1 << leaves::LEAF_BITS;
    while let Some(leaf) = leaves.next(all.clone()) {
        leaves.take(leaf);
    }
    assert!(!store.discard(&unreadable[0], &|_| None).unwrap());
    assert_eq!(leaves.next(all.clone()), None);
    assert!(store.discard(&unreadable[0], &|install| Some(install())).unwrap());
    assert!(leaves.next(all).is_some());
}

/// Partitions may be marked already when a compaction meets more damage, and a compaction tells
/// nobody. What is given up may hold versions of the actor that is there now all the same.
#[test]
fn what_is_given_up_was_written_by_another_actor_whoever_met_the_damage() {
    let node = rotten();
    let store = node.store();
    let marks: Vec<_> =
        (0..1 << store.partition_bits()).map(|partition| (partition, vec![7])).collect();
    assert!(store.mark_each_damaged(&marks).unwrap());
    let actor = store.identity().actor;
    let mut pass = store.engine.begin_scrub();
    while store.engine.scrub_some(&mut pass, u64::MAX).unwrap().is_some() {}
    let unreadable = store.unreadable();
    assert!(!unreadable.is_empty() && !store.mark_each_damaged(&marks).unwrap());
    assert_eq!(store.identity().actor, actor, "nobody was told");
    for _ in 0..3 {
        assert!(!store.discard(&unreadable[0], &|_| None).unwrap());
    }
    let rotated = store.identity().actor;
    assert_ne!(rotated, actor);
    assert!(store.discard(&unreadable[0], &|install| Some(install())).unwrap());
    let count = store.stats().actor_rotations;
    assert_eq!((store.identity().actor, count), (rotated, 2), "once for a table");
}

/// A partition that begins anew as a new replica has lost no less: only an exchange with those who
/// have the data lets it count again, or that none of its rows is left.
#[test]
fn taking_safe_points_back_mends_no_damage() {
    let node = Node::new();
    let store = node.store();
    store.fence(&[0..=1], 5).unwrap();
    store.mark_damaged(1..=1, &[7]).unwrap();
    store.begin_anew(&[0..=1]).unwrap();
    let points = store.engine.safe_points();
    assert_eq!((points[0].guard, points[1].guard), (0, 0));
    assert_eq!(store.damaged(), [(1, vec![7])]);
    store.forget_safe_points(|| vec![0..=1]).unwrap();
    assert_eq!(store.damaged(), []);
}

/// A node finds that it owns nothing of a partition and takes its words back. If it becomes an
/// owner in that moment, a round may fence it: what that has agreed with it stays.
#[test]
fn a_fence_that_comes_while_safe_points_are_forgotten_is_not_forgotten() {
    let node = Node::new();
    let store = node.store();
    let (tell, told) = channel();
    thread::scope(|scope| {
        let fence = || tell.send(store.fence(&[0..=0], 5).unwrap()).unwrap();
        let owns_nothing = || {
            scope.spawn(fence);
            assert!(told.recv_timeout(A_WHILE).is_err(), "it does not wait");
            vec![0..=0]
        };
        store.forget_safe_points(owns_nothing).unwrap();
    });
    assert_eq!(store.guard_of_partition(0).unwrap(), 5);
}
