//! Jobs that fail or are stopped leave nothing behind.

use std::sync::atomic::Ordering;

use super::*;
use crate::engine::error::Error;
use crate::engine::vfs::fault::{Effect, Fault, FaultVfs, Operation};

fn tables_in(vfs: &dyn Vfs) -> Vec<u64> {
    vfs.list(&dir()).unwrap().iter().filter_map(|file| TableMeta::number_of(file)).collect()
}

/// Two overlapping tables of 40 keys; outputs of a few keys each.
fn tree(vfs: Arc<dyn Vfs>) -> (Tree, [u64; 2]) {
    let mut tree = Tree::in_vfs(vfs);
    tree.table_bytes = 600;
    let names: Vec<String> = (0..40).map(|at| format!("key-{at:04}")).collect();
    let records: Vec<TestRecord<'_>> = names.iter().map(|name| delta(name, 1)).collect();
    let old = tree.add(0, false, &records);
    let new = tree.add(0, false, &records);
    (tree, [new, old])
}

/// Whatever call fails, the outputs are removed, the tree reads as before, and the next try works.
#[test]
fn fault_at_every_call() {
    let faulty = |number: u64| {
        let mem = MemVfs::new();
        let faults = FaultVfs::new(Arc::new(mem.clone()));
        let (tree, inputs) = tree(Arc::new(faults.clone()));
        let before = faults.calls();
        faults.fail_call(before + number, std::io::ErrorKind::StorageFull);
        let compaction = tree.compaction(&inputs, 6);
        let done = tree.job(&compaction, None);
        let calls = faults.calls() - before;
        faults.heal();
        if let Err(error) = &done {
            assert!(matches!(error, Error::Io { .. }), "{error}");
            assert_eq!(tables_in(&mem), [1, 2], "call {number}");
            assert_eq!(tree.read("key-0007"), Some(1));
            tree.compact(&compaction, None);
        }
        assert_eq!(tree.read("key-0007"), Some(1));
        (done.is_err(), calls)
    };
    let (_, calls) = faulty(u64::MAX / 2);
    let failed = (1..=calls).filter(|number| faulty(*number).0).count();
    assert!(failed > 12, "{failed} of {calls}; asking for writeback cannot fail");
}

/// A job that is stopped, at its next check or before its end, is as if it had never run.
#[test]
fn stopped_job_leaves_nothing() {
    let mem = MemVfs::new();
    let (tree, inputs) = tree(Arc::new(mem.clone()));
    tree.stop.store(true, Ordering::Relaxed);
    assert_eq!(tree.job(&tree.compaction(&inputs, 6), None).unwrap(), None);
    assert_eq!(tables_in(&mem), [1, 2]);
}

/// A damaged input block fails the job by name, and is not copied; blocks are checked again even
/// if they were sound when they were read before.
#[test]
fn damaged_input_fails_the_job() {
    let mem = MemVfs::new();
    let faults = FaultVfs::new(Arc::new(mem.clone()));
    let path_contains = "0000000001.sst".into();
    let effect = Effect::FlipBit(20, 3);
    let operation = Some(Operation::Map);
    faults.inject(Fault { operation, path_contains, effect, times: u64::MAX, ..Fault::default() });
    let (tree, inputs) = tree(Arc::new(faults));
    let error = tree.job(&tree.compaction(&inputs, 6), None).unwrap_err();
    let Error::Corruption(corruption) = error else { panic!("{error}") };
    assert_eq!(corruption.file, tree.set.table_path(1));
    assert_eq!(tables_in(&mem), [1, 2]);
}

/// A row that the operator cannot read is corruption of the table it is in.
#[test]
fn unreadable_row_names_its_table() {
    let tree = Tree::new();
    let number = tree.set.allocate_file_number();
    let path = tree.set.table_path(number);
    let file = tree.vfs.create(&path).unwrap();
    let mut builder = TableBuilder::new(file, path.clone(), number, TableOptions::default());
    builder.add(b"k", Kind::Delta, b"short", RowInfo { live_time_min: 0, time_max: 0 }).unwrap();
    let properties = builder.finish().unwrap();
    let built = BuiltTable { properties: &properties, bytes: 1, purgeable: 0 };
    let added = vec![TableMeta::of_built(number, 0, 1, 0, &built)];
    tree.set.log_and_apply(VersionEdit { added, ..VersionEdit::default() }, 0).unwrap();
    let error = tree.job(&tree.compaction(&[number], 6), None).unwrap_err();
    assert!(matches!(&error, Error::Corruption(found) if found.file == path), "{error}");
}

/// The pacer is asked as bytes are read, and hears of every byte written but the last ones; a job
/// that is stopped while it waits ends there.
#[test]
fn job_is_paced() {
    let tree = Tree::new();
    let names: Vec<String> = (0..40_000).map(|at| format!("key-{at:010}")).collect();
    let records: Vec<TestRecord<'_>> = names.iter().map(|name| delta(name, 1)).collect();
    let table = tree.add(0, false, &records);
    let version = tree.set.current();
    let told = std::cell::RefCell::new(Vec::new());
    let pace = |bytes| {
        told.borrow_mut().push(bytes);
        if told.borrow().len() == 3 {
            tree.stop.store(true, Ordering::Relaxed);
        }
        Ok(())
    };
    let context = JobContext {
        vfs: &*tree.vfs,
        dir: &dir(),
        versions: &tree.set,
        operator: &Newest { checks_claims: true },
        view: PurgeView { version: &version, oldest_unflushed_epoch: 0 },
        table_options: TableOptions::default(),
        table_bytes: 1 << 20,
        now_ms: 0,
        stop: &tree.stop,
        pace: &pace,
        on_bad_row: &|_, _| {},
    };
    let compaction = tree.compaction(&[table], 6);
    assert_eq!(Job::new(&compaction, context).run().unwrap(), None);
    let told = told.borrow();
    assert_eq!(told.len(), 3);
    assert!(told.iter().all(|bytes| (256 << 10..257 << 10).contains(bytes)), "{told:?}");
}

/// A trivial move reads nothing: the same files at another level.
#[test]
fn trivial_move_keeps_files() {
    let mem = MemVfs::new();
    let tree = Tree::in_vfs(Arc::new(mem.clone()));
    let number = tree.add(0, true, &[full("k", 3)]);
    let compaction = Compaction { trivial_move: true, ..tree.compaction(&[number], 6) };
    assert_eq!(tree.compact(&compaction, None), JobStats::default());
    let version = tree.set.current();
    let meta = &version.level(6).tables()[0].meta;
    assert_eq!((meta.number, meta.level, meta.demote_full), (number, 6, true));
    assert_eq!((tables_in(&mem), tree.read("k")), (vec![number], Some(3)));
}
