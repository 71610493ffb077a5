//! Safe points of a single node: what may be forgotten is, and nothing comes back.

use super::*;
use crate::causality::{Payload, Version, clock, codec};

const HOUR_MS: u64 = 3_600_000;

fn rows(node: &Node) -> usize {
    let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
    node.store().rows_by_token(whole, None, usize::MAX).unwrap().rows.len()
}

fn table_bytes(node: &Node) -> u64 {
    node.store().stats().engine.table_bytes()
}

/// Passes time, moves the safe points and compacts.
fn forget(node: &Node) {
    node.clock.advance_ms(HOUR_MS);
    node.store().flush().unwrap();
    node.store().advance_safe_points().unwrap();
    node.store().flush().unwrap();
    node.store().compact().unwrap();
    node.settle();
}

/// Deleted and expired rows give their space back, values stay, and a deleted key can be written
/// again.
#[test]
fn deleted_and_expired_rows_give_their_space_back() {
    for tenant in ["default", "lww"] {
        let mut node = Node::new();
        let value = "v".repeat(1_000);
        for n in 0..100 {
            node.put(tenant, &format!("deleted{n}"), &value);
            let brief = Mutation { ttl_ms: Some(1_000), ..put(&format!("brief{n}"), &value) };
            node.store().write(tenant, brief).unwrap();
        }
        node.put(tenant, "kept", "v");
        node.store().flush().unwrap();
        let full = table_bytes(&node);
        for n in 0..100 {
            node.store().write(tenant, delete(&format!("deleted{n}"))).unwrap();
        }
        assert_eq!(rows(&node), 201);
        forget(&node);
        assert_eq!(rows(&node), 1, "in {tenant}");
        assert!(table_bytes(&node) < full / 20);
        assert_eq!(node.values(tenant, "kept"), ["v"]);
        node.restart();
        node.put(tenant, "deleted5", "again");
        assert_eq!(node.values(tenant, "deleted5"), ["again"]);
    }
}

/// A token outlives its deleted row by its window: a retry within it must not bring the value back.
#[test]
fn a_token_is_kept_for_its_window() {
    let node = Node::new();
    let write = Mutation { idempotency_key: Some(b"t".to_vec()), ..put("k", "x") };
    node.store().write("default", write.clone()).unwrap();
    node.store().write("default", delete("k")).unwrap();
    forget(&node);
    assert_eq!(rows(&node), 1);
    assert!(node.store().write("default", write).unwrap().duplicate);
    assert!(node.values("default", "k").is_empty());
    node.clock.advance_ms(25 * HOUR_MS);
    forget(&node);
    assert_eq!(rows(&node), 0);
}

/// The row of a key that is still there knows its tokens beyond that, however far the floor is: who
/// has them forgotten while others know them would lose what is written under them anew.
#[test]
fn a_row_that_lives_knows_its_tokens_beyond_their_window() {
    for tenant in ["default", "lww"] {
        let node = Node::new();
        let write = Mutation { idempotency_key: Some(b"t".to_vec()), ..put("k", "x") };
        let context = Some(node.store().write(tenant, write.clone()).unwrap().context);
        node.store().write(tenant, Mutation { context, ..put("k", "y") }).unwrap();
        for _ in 0..3 {
            node.clock.advance_ms(24 * HOUR_MS);
            forget(&node);
            assert!(node.store().write(tenant, write.clone()).unwrap().duplicate);
        }
        assert_eq!(node.values(tenant, "k"), ["y"]);
        // Deleted and purged it is new.
        node.store().write(tenant, delete("k")).unwrap();
        node.clock.advance_ms(25 * HOUR_MS);
        forget(&node);
        assert!(!node.store().write(tenant, write).unwrap().duplicate);
        assert_eq!(node.values(tenant, "k"), ["x"]);
    }
}

/// A late copy of a deleted and forgotten version is refused, not taken for news.
#[test]
fn a_late_copy_of_a_forgotten_version_is_refused() {
    let node = Node::new();
    let time = clock::time_of_ms(T0_MS);
    let mut row = Vec::new();
    let payload = Payload::Value { value: b"x", content_type: "" };
    codec::encode_lww_version(Actor::new(7), &Version::new(payload, 0, time), &mut row);
    let tenant = node.store().tenant("lww").unwrap().id;
    let copy = || (tenant, b"k".to_vec(), row.clone());
    node.store().replicate(&[copy()]).remove(0).unwrap();
    node.store().write("lww", delete("k")).unwrap();
    forget(&node);
    assert_eq!(rows(&node), 0);
    let fresh = |key: &str, time| {
        let mut row = Vec::new();
        codec::encode_lww_version(Actor::new(7), &Version::new(payload, 0, time), &mut row);
        (tenant, key.as_bytes().to_vec(), row)
    };
    let now = clock::time_of_ms(T0_MS + HOUR_MS);
    let results = node.store().replicate(&[copy(), fresh("new", now)]);
    assert_eq!(results[0].as_ref().unwrap_err().reason(), "BELOW_SAFE_POINT");
    assert!(results[1].is_ok(), "the others of the message are taken");
    assert!(node.values("lww", "k").is_empty());
    // A page is joined a few rows at a time, and each row keeps its own outcome.
    let is_late = |n: usize| n % 7 == 3 || n == 99;
    let time_of = |n: usize| if is_late(n) { time } else { now };
    let page: Vec<_> = (0..100).map(|n| fresh(&format!("page{n}"), time_of(n))).collect();
    let results = node.store().replicate(&page);
    assert_eq!(results.len(), page.len());
    for (n, result) in results.iter().enumerate() {
        assert_eq!(result.is_err(), is_late(n), "row {n}: {result:?}");
        assert_eq!(node.values("lww", &format!("page{n}")).is_empty(), is_late(n));
    }
}

/// The safe point never goes back, and writes go on above it whatever the wall clock says.
#[test]
fn writes_go_on_above_the_safe_point_with_the_clock_set_back() {
    let mut node = Node::new();
    let first = node.store().advance_safe_points().unwrap();
    node.clock.set_ms(T0_MS - 24 * HOUR_MS);
    assert_eq!(node.store().advance_safe_points().unwrap(), first);
    for tenant in ["default", "lww"] {
        node.put(tenant, "k", "x");
        assert_eq!(node.values(tenant, "k"), ["x"]);
    }
    node.crash(5);
    assert_eq!(node.store().stats().safe_point, first);
    node.put("lww", "k", "y");
    assert_eq!(node.values("lww", "k"), ["y"]);
}

/// An old context of a forgotten row is still taken, and covers nothing that came after it.
#[test]
fn an_old_context_of_a_forgotten_row_does_no_harm() {
    let node = Node::new();
    node.put("default", "k", "x");
    let context = Some(node.context("default", "k"));
    node.store().write("default", delete("k")).unwrap();
    forget(&node);
    node.put("default", "k", "y");
    node.store().write("default", Mutation { context, ..put("k", "z") }).unwrap();
    assert_eq!(node.values("default", "k"), ["y", "z"]);
}

/// Lets `ms` pass as on a node: it ticks, and its engine works, and nobody writes.
fn idle(node: &Node, ms: u64) {
    const TICK_MS: u64 = 30_000;
    for _ in 0..ms / TICK_MS {
        node.clock.advance_ms(TICK_MS);
        node.store().advance_safe_points().unwrap();
        node.settle();
    }
}

/// What was deleted last is forgotten too, though nothing comes after it that would fill the
/// memtable it lies in; and an idle node does not write without end.
#[test]
fn an_idle_node_forgets_what_was_deleted_last() {
    for tenant in ["default", "lww"] {
        let mut node = Node::with(StoreOptions::default());
        let value = "v".repeat(1_000);
        for n in 0..100 {
            node.put(tenant, &format!("deleted{n}"), &value);
        }
        node.put(tenant, "kept", "v");
        idle(&node, 2 * HOUR_MS);
        let full = table_bytes(&node);
        assert!(full > 100_000, "{full} bytes: an idle node flushes");
        for n in 0..100 {
            node.store().write(tenant, delete(&format!("deleted{n}"))).unwrap();
        }
        // Half way it is restarted, and its monotonic clock begins anew.
        idle(&node, HOUR_MS / 2);
        let now_ms = T0_MS + 5 * HOUR_MS;
        node.store.take().expect("started").close().unwrap();
        node.clock = ManualClock::new(now_ms);
        node.start();
        idle(&node, 3 * HOUR_MS);
        assert_eq!(rows(&node), 1, "in {tenant}");
        let left = table_bytes(&node);
        assert!(left < full / 20, "{left} bytes are left of {full} in {tenant}");
        assert_eq!(node.values(tenant, "kept"), ["v"]);

        let flushes = node.store().stats().engine.flushes;
        idle(&node, HOUR_MS);
        assert_eq!(node.store().stats().engine.flushes, flushes, "there was nothing to flush");
    }
}

/// On a node that always writes a floor comes to count, and counts for a while: a new one does not
/// replace it before the memtable of its time is a table.
#[test]
fn floors_count_while_writes_go_on() {
    let node = Node::with(StoreOptions::default());
    let mut counted = 0;
    for second in 0..1_000 {
        node.put("lww", &format!("key{second}"), &"v".repeat(4_000));
        node.clock.advance_ms(1_000);
        node.store().advance_safe_points().unwrap();
        node.settle();
        counted += u32::from(!node.store().engine.floor_waits());
    }
    assert!(counted > 300, "in {counted} of 1000 seconds a delete could be forgotten");
}

/// A clock that is wrong for a moment costs writes of that moment, and no more: neither does it
/// keep the node from minting for as long as it was ahead, nor is anything forgotten that has not
/// expired.
#[test]
fn a_clock_that_jumps_ahead_and_back_leaves_no_trace() {
    let node = Node::new();
    let day = Mutation { ttl_ms: Some(24 * HOUR_MS), ..put("day", "v") };
    node.store().write("default", day).unwrap();
    node.clock.set_ms(T0_MS + 365 * 24 * HOUR_MS);
    let refused = node.store().write("default", put("k", "v")).unwrap_err();
    assert_eq!(refused.reason(), "CLOCK_UNSAFE");
    for _ in 0..2 {
        node.store().advance_safe_points().unwrap();
        node.store().flush().unwrap();
    }
    node.clock.set_ms(T0_MS);
    node.put("default", "k", "v");
    node.store().compact().unwrap();
    node.settle();
    assert_eq!(node.values("default", "day"), ["v"]);
    assert!(node.store().advance_safe_points().unwrap() < clock::time_of_ms(T0_MS));
}

/// Nor does a write that is made meanwhile drop what seems to have expired: others would learn that
/// it is dead. Time that has really passed counts.
#[test]
fn a_write_while_the_clock_is_ahead_drops_nothing_for_good() {
    let minute_ms = HOUR_MS / 60;
    for is_step in [true, false] {
        let node = Node::new();
        let brief = Mutation { ttl_ms: Some(30 * minute_ms), ..put("k", "x") };
        node.store().write("default", brief).unwrap();
        if is_step {
            node.clock.set_ms(T0_MS + 50 * minute_ms);
        } else {
            node.clock.advance_ms(50 * minute_ms);
        }
        node.put("default", "k", "y");
        assert_eq!(node.values("default", "k"), ["y"], "it is not shown");
        node.clock.set_ms(T0_MS);
        let left: &[&str] = if is_step { &["x", "y"] } else { &["y"] };
        assert_eq!(node.values("default", "k"), left);
    }
}

/// A step that stands is the new time: a machine that was asleep for a day takes writes again.
#[test]
fn a_clock_that_stays_ahead_is_followed() {
    let node = Node::new();
    node.put("default", "k", "before");
    let day_ms = 24 * HOUR_MS;
    node.clock.set_ms(T0_MS + day_ms);
    node.store().write("default", put("k", "after")).unwrap_err();
    node.clock.advance_ms(300_000);
    node.put("default", "k", "after");
    assert!(
        node.store().advance_safe_points().unwrap() > clock::time_of_ms(T0_MS + day_ms - HOUR_MS)
    );
}
