//! A disk that fills up: who is still served, and that the store says so.

use super::*;

const DISK_BYTES: u64 = 64 << 20;
const RESERVE_BYTES: u64 = 1 << 20;

/// Fills the disk to `percent` with a file that is none of the store's.
fn fill(node: &Node, percent: u64) {
    leave(node, DISK_BYTES - DISK_BYTES / 100 * percent - (256 << 10));
}

/// Fills the disk until `free` bytes are left.
fn leave(node: &Node, free: u64) {
    let path = Path::new("/other");
    if node.vfs.exists(path).unwrap() {
        node.vfs.remove(path).unwrap();
        node.vfs.sync_dir(Path::new("/")).unwrap();
    }
    // What there is to flush or compact is done first.
    node.settle();
    let available = node.vfs.disk_space(Path::new(DIR)).unwrap().available;
    node.vfs.create(path).unwrap().allocate(available.saturating_sub(free)).unwrap();
    // The engine looks at the disk when it works.
    node.store().step().unwrap();
}

fn node() -> Node {
    let mut options = StoreOptions::default();
    options.engine.disk_reserve_bytes = RESERVE_BYTES;
    let node = Node::with(options);
    node.vfs.set_space_limit(Some(DISK_BYTES));
    node
}

fn reason(result: Result<Written>) -> &'static str {
    result.map_or_else(|error| error.reason(), |_| "written")
}

/// Warn at 80 %, refuse large values from 90 %, all values from 95 %; deletes, rows of other
/// replicas and upkeep go on; with the room back everything is taken again.
#[test]
fn a_disk_that_fills_up_refuses_step_by_step() {
    let large = "v".repeat((64 << 10) + 1);
    let states = [
        (10, DiskState::Ok, "written", "written"),
        (80, DiskState::Warn, "written", "written"),
        (90, DiskState::LargeRefused, "written", "DISK_FULL"),
        (95, DiskState::WritesRefused, "DISK_FULL", "DISK_FULL"),
        (20, DiskState::Ok, "written", "written"),
    ];
    for tenant in ["default", "lww"] {
        let (node, other) = (node(), Node::new());
        other.put(tenant, "theirs", "v");
        let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
        let (key, row) =
            other.store().rows_by_token(whole, None, usize::MAX).unwrap().rows.remove(0);
        let at = EngineKey::decode(&key).unwrap();
        let copy = (at.tenant, at.key.to_vec(), row);
        for (percent, state, small_is, large_is) in states {
            fill(&node, percent);
            assert_eq!(node.store().disk_state(), state, "at {percent} %");
            assert_eq!(node.store().stats().disk_state, state);
            let key = format!("small{percent}");
            let small = node.store().write(tenant, put(&key, "v"));
            assert_eq!(reason(small), small_is, "{tenant} at {percent} %");
            let found = node.values(tenant, &key).len();
            assert_eq!(found, usize::from(small_is == "written"), "refused means not there");
            let large = node.store().write(tenant, put(&format!("large{percent}"), &large));
            assert_eq!(reason(large), large_is, "{tenant} at {percent} %");

            node.store().write(tenant, delete("small10")).expect("deletes make room");
            assert!(node.values(tenant, "small10").is_empty());
            node.store().replicate(std::slice::from_ref(&copy)).remove(0).expect("repair goes on");
            node.store().flush().expect("upkeep goes on");
            node.store().compact().expect("upkeep goes on");
        }
    }
}

/// The refusal names the directory and the figures, says that nothing was written, and wants a
/// retry later.
#[test]
fn the_refusal_of_a_full_disk_has_the_figures() {
    let node = node();
    fill(&node, 95);
    let error = node.store().write("default", put("k", "v")).unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied);
    let Error::DiskFull { path, available, reserve } = &error else { panic!("{error}") };
    assert_eq!(path, Path::new(DIR));
    assert!(available < reserve && *reserve == DISK_BYTES / 100 * 5, "{error}");
    let batch = vec![put("k", "1"), delete("k"), put("l", "2")];
    let results = node.store().write_batch("default", batch);
    let reasons: Vec<_> = results.into_iter().map(reason).collect();
    assert_eq!(reasons, ["DISK_FULL", "written", "DISK_FULL"]);
}

/// Below the engine's reserve no value is taken, but what brings space back or keeps replicas equal
/// is; below a quarter of the reserve nothing is, by name, and the store is not harmed by it.
#[test]
fn deletes_and_repair_may_have_the_reserve() {
    let other = Node::new();
    for tenant in ["default", "lww"] {
        let mut node = node();
        for key in ["small", "first", "second"] {
            node.put(tenant, key, "v");
        }
        other.put(tenant, "theirs", "v");
        let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
        let rows = other.store().rows_by_token(whole, None, usize::MAX).unwrap().rows;
        let tenant_id = node.store().tenant(tenant).unwrap().id;
        let copies = rows.iter().filter_map(|(key, row)| {
            let at = EngineKey::decode(key).unwrap();
            (at.tenant == tenant_id).then(|| (at.tenant, at.key.to_vec(), row.clone()))
        });
        let copies: Vec<_> = copies.collect();

        leave(&node, RESERVE_BYTES / 2);
        assert_eq!(node.store().disk_state(), DiskState::WritesRefused);
        assert!(node.store().pressure() < 1.0, "or the deletes would be refused at the door");
        assert_eq!(reason(node.store().write(tenant, put("small", "w"))), "DISK_FULL");
        node.store().write(tenant, delete("first")).expect("deletes make room");
        assert!(node.values(tenant, "first").is_empty());
        for copy in node.store().replicate(&copies) {
            copy.expect("repair goes on");
        }
        assert_eq!(node.values(tenant, "theirs"), ["v"]);

        leave(&node, RESERVE_BYTES / 8);
        assert!(node.store().pressure() >= 1.0);
        let refusal = node.store().refusal().expect("nothing is taken");
        assert_eq!(refusal.reason(), "DISK_FULL", "{refusal}");
        let refused = node.store().write(tenant, delete("second")).unwrap_err();
        assert_eq!((refused.reason(), refused.outcome()), ("DISK_FULL", Outcome::NotApplied));
        let garbage = (tenant_id, b"garbage".to_vec(), b"garbage".to_vec());
        let copies: Vec<_> = copies.into_iter().chain([garbage]).collect();
        for copy in node.store().replicate(&copies) {
            assert_eq!(
                copy.unwrap_err().reason(),
                "DISK_FULL",
                "the others are not even looked at"
            );
        }
        assert_eq!(node.values(tenant, "second"), ["v"], "refused means not there");

        fill(&node, 10);
        node.store().write(tenant, delete("second")).expect("there is room");
        node.restart();
        assert_eq!(node.values(tenant, "small"), ["v"]);
        assert!(
            node.values(tenant, "first").is_empty() && node.values(tenant, "second").is_empty()
        );
    }
}

/// On a disk without any room the store does not start, and says why; with room it does.
#[test]
fn a_store_that_finds_no_room_says_so_and_starts_later() {
    let mut node = node();
    node.put("default", "k", "v");
    node.store.take().expect("started").close().unwrap();
    node.vfs.set_space_limit(Some(0));
    let error = node.try_start().expect_err("no room for a log segment");
    let source = format!("{error}");
    assert!(source.contains(DIR), "{source}");
    assert!(matches!(error.reason(), "ENGINE" | "DISK_FULL"), "{source}");
    node.vfs.set_space_limit(None);
    node.start();
    assert_eq!(node.values("default", "k"), ["v"]);
}
