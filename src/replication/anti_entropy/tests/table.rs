//! The rules among replicas by name: what breaks when one is removed, and that nothing does with it.
//!
//! The histories are the shortest that a model found; here they run on the stores themselves. Rows
//! that need no replicas to be shown are in `causality::traces` under their names: `guard_per_dot`,
//! `floor_authority`, `token_kept_for_window`, `prune_whole_rows`, `purge_tombstones_only`,
//! `lww_plain_dots`.

use super::*;
use crate::proto::RoundStep;
use crate::store::leaves::LEAVES;

/// Others than the second, the third replica.
const NOT_1: [u128; 2] = [1, 3];
const NOT_2: [u128; 2] = [1, 2];

const NONE: [[&str; 0]; 3] = [[]; 3];

/// Installs reach nobody but the conductor.
fn only_the_conductor_installs(trio: &Trio) {
    trio.listen(
        |_, _, request| !matches!(request, Request::Fence(it) if it.step() == RoundStep::Install),
    );
}

async fn compare_all(trio: &Trio) {
    trio.listen(|_, _, _| true);
    for at in 0..3 {
        trio.anti_entropy(at).exchange_damaged().await;
    }
    for _ in 0..2 {
        for (at, with) in [(0, 1), (0, 2), (1, 2)] {
            trio.compare(at, with).await.expect("compared");
        }
    }
}

/// Puts a row where it is as dead as its floor says: what an older block shows when the newest of
/// its key is lost.
fn uncover(trio: &Trio, at: usize, row: &ForeignRow<Vec<u8>>) {
    let floor = trio.store(at).floor_of_partition(0).expect("sound");
    assert!(floor > 0);
    let taken = trio.store(at).repair(std::slice::from_ref(row), &[floor]).remove(0);
    taken.expect("judged under the floor in force");
}

/// R0 sends x, crashes before its sync and writes y blindly. Under the same actor y's clock would
/// claim to have seen x.
#[tokio::test(start_paused = true)]
async fn rotate_on_unclean_start() {
    for seed in 0..4 {
        let mut trio = Trio::new();
        let born = trio.store(0).identity().actor;
        trio.write(0, "default", put("k", "x"), &[1, 2]);
        trio.crash(0, seed);
        assert_ne!(trio.store(0).identity().actor, born);
        trio.advance_ms(1000);
        trio.write_at(0, "default", put("k", "y"));
        compare_all(&trio).await;
        assert_eq!(trio.all_values("default", "k"), [["x", "y"]; 3]);
    }
}

/// R2's disk is set back to before x, which it had sent, and it writes y blindly.
#[tokio::test(start_paused = true)]
async fn rotate_on_loss() {
    let history = |removed: &'static [&'static str]| async move {
        let mut trio = Trio::with(|_| {}, removed);
        trio.store(2).close().expect("closed");
        let before = trio.stop(2).crash_clone_kill();
        trio.start(2);
        trio.write(2, "default", put("k", "x"), &[0, 1]);
        trio.stop(2);
        trio.nodes[2].vfs = before;
        trio.start(2);
        trio.store(2).mark_damaged(ALL, &NOT_2).expect("marked");
        trio.advance_ms(1000);
        trio.write(2, "default", put("k", "y"), &[0, 1]);
        compare_all(&trio).await;
        trio.values(0, "default", "k")
    };
    assert_eq!(history(&[]).await, ["x", "y"]);
    assert_eq!(history(&["rotate_on_loss"]).await, ["y"], "the reason for the rule");
}

/// x, then its delete, a round, and all have forgotten both. R2 loses its newest block and shows x
/// again, with a floor that vouches for it.
#[tokio::test(start_paused = true)]
async fn damaged_state() {
    let history = |removed: &'static [&'static str]| async move {
        let trio = Trio::with(|_| {}, removed);
        let x = trio.write_at(0, "default", put("k", "x"));
        trio.deliver(&x, 1).expect("taken");
        trio.deliver(&x, 2).expect("taken");
        trio.write(1, "default", delete("k"), &[0, 2]);
        trio.litter();
        assert_eq!(trio.round().await, 0);
        assert_eq!(trio.forget(), [0; 3]);
        uncover(&trio, 2, &x);
        trio.store(2).mark_damaged(ALL, &NOT_2).expect("marked");
        compare_all(&trio).await;
        trio.all_values("default", "k")
    };
    assert_eq!(history(&[]).await, NONE);
    assert_eq!(history(&["damaged_state"]).await, [["x"]; 3], "the reason for the rule");
}

/// x is below the floor of all, and R1 has lost it. R0 sends {x, y}: were R1 to take x out by its
/// floor, its clock entry would stay and kill x everywhere.
#[tokio::test(start_paused = true)]
async fn damaged_strips_nothing() {
    let history = |removed: &'static [&'static str]| async move {
        let trio = Trio::with(|_| {}, removed);
        trio.write(0, "default", put("k", "x"), &[2]);
        trio.advance_ms(1000);
        trio.declare(&[0, 1, 2], trio.now());
        trio.store(1).mark_damaged(ALL, &NOT_1).expect("marked");
        trio.advance_ms(1000);
        trio.write(0, "default", put("k", "y"), &[1, 2]);
        compare_all(&trio).await;
        trio.values(0, "default", "k")
    };
    assert_eq!(history(&[]).await, ["x", "y"]);
    assert_eq!(history(&["damaged_strips_nothing"]).await, ["y"], "the reason for the rule");
}

/// The clocks of R1 and R2 run 50 seconds behind, M is 30 old. R0 installs; then R2 writes y, which
/// R1 and R2 acknowledge.
#[tokio::test(start_paused = true)]
async fn fence() {
    for tenant in TENANTS {
        let history = |removed: &'static [&'static str]| async move {
            let margin = Duration::from_secs(30);
            let trio = Trio::with(|settings| settings.round_margin = margin, removed);
            trio.litter();
            trio.advance_ms(100_000);
            for at in [1, 2] {
                trio.nodes[at].clock.set_ms(T0_MS + 50_000);
            }
            only_the_conductor_installs(&trio);
            assert_eq!(trio.round().await, 1, "two did not install");
            trio.write(2, tenant, put("k", "y"), &[1]);
            compare_all(&trio).await;
            trio.all_values(tenant, "k")
        };
        assert_eq!(history(&[]).await, [["y"]; 3]);
        assert_eq!(history(&["fence"]).await, NONE, "the reason for the rule");
    }
}

/// x is at R1 and R2. The pairs bring it to R0's memory, R0 installs and loses power: its floor
/// calls x dead.
#[tokio::test(start_paused = true)]
async fn durable_barrier() {
    let history = |seed: u64, removed: &'static [&'static str]| async move {
        let mut trio = Trio::with(|_| {}, removed);
        trio.sync_mode = SyncMode::Os;
        trio.restart(0);
        trio.litter();
        trio.write(1, "default", put("k", "x"), &[2]);
        // A start takes the clock to the end of its lease.
        trio.advance_ms(60_000);
        only_the_conductor_installs(&trio);
        assert_eq!(trio.round().await, 1, "two did not install");
        assert_eq!(trio.values(0, "default", "k"), ["x"]);
        trio.crash(0, seed);
        compare_all(&trio).await;
        trio.values(1, "default", "k")
    };
    let mut lost = 0;
    for seed in 0..6 {
        assert_eq!(history(seed, &[]).await, ["x"]);
        let without = history(seed, &["durable_barrier", "floor_after_sync"]).await;
        lost += usize::from(without.is_empty());
    }
    assert!(lost > 0, "the reason for the rule");
}

/// R0 moves its floor alone. R1 and R2 come back without a fence, their clocks behind, and
/// acknowledge y.
#[tokio::test(start_paused = true)]
async fn all_replicas() {
    let history = |removed: &'static [&'static str]| async move {
        let trio = Trio::with(|_| {}, removed);
        trio.litter();
        trio.advance_ms(100_000);
        for at in [1, 2] {
            trio.nodes[at].clock.set_ms(T0_MS + 50_000);
            trio.net.down.lock().insert(id(at));
        }
        let failed = trio.round().await;
        trio.net.down.lock().clear();
        trio.write(2, "default", put("k", "y"), &[1]);
        compare_all(&trio).await;
        (failed, trio.all_values("default", "k"))
    };
    let kept = vec![vec!["y".to_owned()]; 3];
    assert_eq!(history(&[]).await, (1, kept));
    assert_eq!(history(&["all_replicas"]).await, (0, vec![vec![]; 3]), "the reason");
}

/// x is at R1 and R2, and their leaf is not read again: the pairs look equal.
#[tokio::test(start_paused = true)]
async fn fresh_leaf() {
    let history = |is_stale: bool| async move {
        let trio = Trio::new();
        trio.litter();
        compare_all(&trio).await;
        trio.write(1, "default", put("k", "x"), &[2]);
        if is_stale {
            // Whoever takes a mark reads the leaf after: here nobody does.
            for at in [1, 2] {
                let marks = trio.store(at).dirty_leaves();
                assert!((0..LEAVES as u32).filter(|leaf| marks.take(*leaf)).count() > 0);
            }
        }
        only_the_conductor_installs(&trio);
        assert_eq!(trio.round().await, 1, "two did not install");
        let (store, tenant) = (trio.store(0), trio.store(0).tenant("default").expect("there"));
        let held = |at: usize| trio.store(at).raw_row(tenant.id, b"k").expect("readable");
        let read = store.join_raw(held(0), held(1)).expect("rows");
        store.show(&tenant, b"k", read.row.as_deref()).expect("a row").siblings.len()
    };
    assert_eq!(history(false).await, 1);
    assert_eq!(history(true).await, 0, "the reason for the rule");
}

/// x is written under a token, deleted, forgotten; then a retry comes. A token that says when it
/// was born is refused; of another nothing is promised after its window.
#[tokio::test(start_paused = true)]
async fn token_refused_after_window() {
    let history = |token: String| async move {
        let trio = Trio::new();
        let write = Mutation { idempotency_key: Some(token.into()), ..put("k", "x") };
        trio.write(0, "default", write.clone(), &[1, 2]);
        trio.write(0, "default", delete("k"), &[1, 2]);
        trio.round().await;
        assert_eq!(trio.forget(), [1; 3], "the token is kept for its window");
        let again = trio.store(1).write("default", write.clone()).expect("a retry");
        assert!(again.duplicate);
        trio.advance_ms(2 * HOUR_MS);
        assert_eq!(trio.round().await, 0);
        assert_eq!(trio.forget(), [0; 3]);
        let late = trio.store(1).write("default", write).map(|written| written.duplicate);
        (late.map_err(|error| error.reason()), trio.values(1, "default", "k"))
    };
    let born = format!("{:08x}-{:04x}-7000-8000-000000000001", T0_MS >> 16, T0_MS & 0xffff);
    assert_eq!(history(born).await, (Err("TOKEN_EXPIRED"), vec![]));
    let opaque = history("opaque".to_owned()).await;
    assert_eq!(opaque, (Ok(false), vec!["x".to_owned()]), "the reason for the rule");
}

/// Whoever lost data hashes all of it anew.
#[tokio::test(start_paused = true)]
async fn loss_dirties_leaves() {
    let trio = Trio::new();
    compare_all(&trio).await;
    let marks = trio.store(2).dirty_leaves();
    assert!((0..LEAVES as u32).all(|leaf| !marks.is_marked(leaf)));
    trio.store(2).mark_damaged(1..=1, &NOT_2).expect("marked");
    let quarter = LEAVES as u32 / 4;
    assert!((quarter..2 * quarter).all(|leaf| marks.is_marked(leaf)));
    assert!(!marks.is_marked(2 * quarter));
}

/// A coordinator whose clock was set back mints above the guard of every round it took part in.
#[tokio::test(start_paused = true)]
async fn mint_above() {
    for tenant in TENANTS {
        let trio = Trio::new();
        trio.litter();
        assert_eq!(trio.round().await, 0);
        trio.nodes[2].clock.set_ms(T0_MS - HOUR_MS);
        trio.write(2, tenant, put("k", "y"), &[0, 1]);
        assert_eq!(trio.all_values(tenant, "k"), [["y"]; 3]);
    }
}
