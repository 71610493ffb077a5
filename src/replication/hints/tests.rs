//! Segments of hints on a disk that crashes.

use std::path::Path;
use std::sync::Arc;

use super::frame::Hint;
use super::queue::Queue;
use crate::cluster::NodeId;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::{Fault, FaultVfs, Operation};
use crate::engine::vfs::mem::MemVfs;
use crate::proto;

const DIR: &str = "/hints";
const TARGET: NodeId = NodeId(9);
const SEGMENT_BYTES: u64 = 400;

fn row(n: u64) -> proto::RowState {
    let key = format!("key {n}").into_bytes().into();
    proto::RowState { tenant_id: 1, key, row: vec![n as u8; 100].into() }
}

fn hints(created_ms: u64, rows: Vec<proto::RowState>) -> Vec<Hint> {
    rows.into_iter().map(|row| Hint { created_ms, row }).collect()
}

fn open(vfs: &MemVfs) -> Queue {
    open_on(Arc::new(vfs.clone()))
}

fn open_on(vfs: Arc<dyn Vfs>) -> Queue {
    let mut queue = Queue::new(&vfs, Path::new(DIR), TARGET);
    let names = vfs.list(Path::new(DIR)).expect("listed");
    let mut found: Vec<_> = names.iter().filter_map(|name| Queue::parse(name)).collect();
    found.sort_unstable();
    for (target, number) in found {
        assert_eq!(target, TARGET);
        queue.found(number, 0).expect("opened");
    }
    queue
}

fn disk() -> MemVfs {
    let vfs = MemVfs::new();
    vfs.create_dir_all(Path::new(DIR)).expect("made");
    vfs.sync_dir(Path::new("/")).expect("synced");
    vfs
}

/// All that is in the queue, in its order.
fn drain(queue: &mut Queue, bytes_max: u64) -> Vec<proto::RowState> {
    let mut rows = Vec::new();
    loop {
        let batch = queue.head(bytes_max).0.expect("readable");
        if batch.hints.is_empty() {
            return rows;
        }
        rows.extend(batch.hints.iter().map(|hint| hint.row.clone()));
        queue.delivered(&batch);
    }
}

#[test]
fn hints_come_out_in_their_order_over_segments_and_starts() {
    let vfs = disk();
    let mut queue = open(&vfs);
    for n in 0..10 {
        queue.append(&hints(1, vec![row(2 * n), row(2 * n + 1)]), SEGMENT_BYTES).expect("kept");
    }
    let first = queue.head(1).0.expect("readable");
    assert_eq!(first.hints[0].row, row(0));
    queue.delivered(&first);
    let mut queue = open(&vfs);
    queue.append(&hints(1, vec![row(20)]), SEGMENT_BYTES).expect("kept");
    let all = drain(&mut queue, 300);
    assert_eq!(all, (0..21).map(row).collect::<Vec<_>>(), "the delivered one again, harmlessly");
    assert_eq!(queue.bytes(), 0);
    assert!(vfs.list(Path::new(DIR)).expect("listed").is_empty());
}

/// Power goes at every number of hints, and the disk keeps any part of what was not synced.
#[test]
fn what_was_kept_survives_a_crash_and_nothing_else_comes_out() {
    for seed in 0..40 {
        let vfs = disk();
        let mut queue = open(&vfs);
        let kept = seed % 7;
        for n in 0..kept {
            queue.append(&hints(1, vec![row(n)]), SEGMENT_BYTES).expect("kept");
        }
        let after = vfs.crash_clone(seed);
        let mut queue = open(&after);
        assert_eq!(drain(&mut queue, 1), (0..kept).map(row).collect::<Vec<_>>(), "seed {seed}");
    }
}

/// Whatever byte of a segment is damaged: what comes out was put in, up to the damage.
#[test]
fn damage_ends_a_segment_and_spares_the_next() {
    let vfs = disk();
    let mut queue = open(&vfs);
    let rows: Vec<_> = (0..6).map(row).collect();
    for row in &rows {
        queue.append(&hints(1, vec![row.clone()]), SEGMENT_BYTES).expect("kept");
    }
    let names = vfs.list(Path::new(DIR)).expect("listed");
    assert!(names.len() > 1);
    let path = Path::new(DIR).join(&names[0]);
    let length = vfs.open(&path).expect("there").len().expect("known");
    for at in (0..length).step_by(7) {
        let file = vfs.open(&path).expect("there");
        let mut byte = [0];
        file.read_at(at, &mut byte).expect("read");
        let vfs = vfs.crash_clone(at);
        let file = vfs.open(&path).expect("there");
        file.write_at(at, &[byte[0] ^ 0x40]).expect("written");
        let out = drain(&mut open(&vfs), 1);
        assert!(out.iter().all(|row| rows.contains(row)), "byte {at}");
        assert!(out.contains(&rows[5]), "the last segment is whole");
        assert!(out.len() < rows.len());
    }
}

#[test]
fn old_segments_go_unread() {
    let vfs = disk();
    let mut queue = open(&vfs);
    queue.append(&hints(1000, vec![row(0), row(1), row(2)]), SEGMENT_BYTES).expect("kept");
    queue.append(&hints(5000, vec![row(3)]), SEGMENT_BYTES).expect("kept");
    assert!(queue.expire(3000) > 0);
    assert_eq!(drain(&mut queue, 1), [row(3)]);
}

/// A disk that could not be read for a moment has lost nothing: what is behind must not go with the
/// segment.
#[test]
fn what_cannot_be_read_now_is_not_lost() {
    let vfs = disk();
    let faults = FaultVfs::new(Arc::new(vfs));
    let mut queue = open_on(Arc::new(faults.clone()));
    let rows: Vec<_> = (0..6).map(row).collect();
    queue.append(&hints(1, rows.clone()), SEGMENT_BYTES * 10).expect("kept");
    for skip in [0, 1, 2, 5] {
        let operation = Some(Operation::ReadAt);
        faults.inject(Fault { operation, skip, ..Fault::default() });
        let (read, lost) = queue.head(u64::MAX);
        let read = read.map_or(0, |batch| batch.hints.len() as u64);
        assert_eq!((read, lost), (skip / 2, 0), "as far as it could be read");
    }
    assert_eq!(drain(&mut queue, u64::MAX), rows);
}

/// A full disk stays full for hours, and each write that somebody missed tries again.
#[test]
fn a_segment_that_cannot_be_begun_leaves_nothing_behind() {
    let vfs = disk();
    let faults = FaultVfs::new(Arc::new(vfs.clone()));
    let mut queue = open_on(Arc::new(faults.clone()));
    for operation in [Operation::WriteAt, Operation::SyncDir] {
        let operation = Some(operation);
        faults.inject(Fault { operation, times: u64::MAX, ..Fault::default() });
        for _ in 0..3 {
            queue.append(&hints(1, vec![row(1)]), SEGMENT_BYTES).expect_err("no room");
        }
        assert_eq!((vfs.list(Path::new(DIR)).expect("listed").len(), queue.bytes()), (0, 0));
        faults.heal();
    }
    queue.append(&hints(1, vec![row(2)]), SEGMENT_BYTES).expect("there is room again");
    assert_eq!(drain(&mut open(&vfs), u64::MAX), [row(2)]);
}
