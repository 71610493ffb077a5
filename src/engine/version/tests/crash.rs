//! A power loss at every call, and a failure of every call.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::engine::Error;
use crate::engine::vfs::fault::FaultVfs;

/// How many edits were begun and how many acknowledged, as a crash would find it.
#[derive(Clone, Debug, Default)]
struct Progress {
    issued: Arc<AtomicUsize>,
    acked: Arc<AtomicUsize>,
}

/// Flushes, compactions, moves and safe points; the manifest is rewritten on the way. Returns the
/// state before the first edit and after each one that was begun; stops at the first error.
fn history(vfs: Arc<dyn Vfs>, progress: &Progress) -> Vec<String> {
    let mut states = vec![essence(&VersionState::new(3))];
    let Ok(set) = VersionSet::recover(Arc::clone(&vfs), &dir(), &options()) else {
        return states;
    };
    for step in 1..=16_u64 {
        let Ok(edit) = edit(&set, &*vfs, step) else { return states };
        let next = set.current().state().apply(&edit).unwrap();
        states.push(essence(&next));
        progress.issued.fetch_add(1, Ordering::Relaxed);
        if set.log_and_apply(edit, step).is_err() {
            // A table that cannot be opened refuses the edit; a failed write refuses all.
            match set.log_and_apply(VersionEdit::default(), step) {
                Ok(version) => assert_eq!(essence(version.state()), states[states.len() - 2]),
                Err(error) => assert!(matches!(error, Error::Poisoned { .. }), "{error}"),
            }
            return states;
        }
        progress.acked.fetch_add(1, Ordering::Relaxed);
    }
    states
}

fn edit(set: &VersionSet, vfs: &dyn Vfs, step: u64) -> Result<VersionEdit> {
    let version = set.current();
    match step % 4 {
        1 | 2 => Ok(VersionEdit {
            flushed: Some(position(step as u32)),
            ..add([build(set, vfs, 0, &["a", "k"])?])
        }),
        3 => {
            let mut edit = add([build(set, vfs, 1, &["a", "k"])?]);
            let inputs = version.tables().filter(|table| table.meta.level < 2);
            edit.removed = inputs.map(|table| (table.meta.level, table.meta.number)).collect();
            Ok(edit)
        }
        _ => {
            let floors = (0..8).map(|at| (at..at + 1, point(step + 9, step + u64::from(at), &[])));
            Ok(VersionEdit { safe_points: floors.collect(), ..VersionEdit::default() })
        }
    }
}

/// Whatever the moment of a power loss, the tree found afterwards is one that was installed, not
/// older than the last acknowledged one, with all its files, and it opens again and again.
#[test]
fn crash_at_every_call() {
    let seeds = 16;
    let mem = mem();
    let faults = FaultVfs::new(Arc::new(mem.clone()));
    let progress = Progress::default();
    let crashes = Arc::new(Mutex::new(Vec::new()));
    let (seen, now) = (Arc::clone(&crashes), progress.clone());
    let disk = mem.clone();
    faults.on_call(move |call, _| {
        let acked = now.acked.load(Ordering::Relaxed);
        let issued = now.issued.load(Ordering::Relaxed);
        for seed in 0..seeds {
            seen.lock().push((call, acked, issued, disk.crash_clone(call * seeds + seed)));
        }
    });
    let states = history(Arc::new(faults.clone()), &progress);
    assert_eq!(states.len(), 17);
    let files = mem.list(&dir()).unwrap();
    let first = Path::new("MANIFEST-0000000001");
    assert!(!files.iter().any(|file| file == first), "rewritten on the way: {files:?}");
    let crashes = std::mem::take(&mut *crashes.lock());
    assert!(crashes.len() > 400, "{} crash points", crashes.len());
    let mut outcomes = [0; 2];
    for (call, acked, issued, disk) in crashes {
        for again in 0..2 {
            let set = VersionSet::recover(Arc::new(disk.clone()), &dir(), &options())
                .unwrap_or_else(|error| panic!("call {call}, open {again}: {error}"));
            let found = essence(set.current().state());
            let allowed = &states[acked..=issued];
            let at = allowed.iter().position(|state| *state == found);
            let at = at.unwrap_or_else(|| panic!("call {call}: {found} not in {allowed:#?}"));
            if again == 0 && acked < issued {
                outcomes[at] += 1;
            }
        }
    }
    assert!(outcomes.iter().all(|count| *count > 0), "both outcomes are seen: {outcomes:?}");
}

/// Whatever call fails, the set goes on or is poisoned, and what a new open finds is allowed.
#[test]
fn fault_at_every_call() {
    let mut number = 0;
    loop {
        number += 1;
        let mem = mem();
        let faults = FaultVfs::new(Arc::new(mem.clone()));
        faults.fail_call(number, std::io::ErrorKind::Other);
        let progress = Progress::default();
        let states = history(Arc::new(faults.clone()), &progress);
        if faults.calls() < number {
            return assert!(number > 100, "{number} calls");
        }
        let set = VersionSet::recover(Arc::new(mem.clone()), &dir(), &options()).unwrap();
        let found = essence(set.current().state());
        let acked = progress.acked.load(Ordering::Relaxed);
        assert!(states[acked..].contains(&found), "call {number}: {found} not in {states:#?}");
    }
}
