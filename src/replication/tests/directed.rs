//! One rule, one story.

use std::time::Duration;

use super::super::*;
use super::cluster::*;
use crate::engine::vfs::fault::Operation;
use crate::engine::vfs::hold::Hold;
use crate::store::{Mutation, Outcome};

const LWW: &str = "lww";

async fn pass(seconds: u32) {
    tokio::time::sleep(SECOND * seconds).await;
}

#[tokio::test(start_paused = true)]
async fn a_quorum_write_is_seen_by_a_quorum_read_through_every_node() {
    let cluster = Cluster::new(3, 1);
    let written = cluster.put(0, Level::Quorum, put("k", "v")).await.expect("three are up");
    assert_eq!(written.siblings, 1);
    for at in 0..3 {
        let row = cluster.get(at, Level::Quorum, "k").await.expect("three are up");
        assert_eq!(values(&row), ["v"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_nobody_wrote_is_an_answer_at_every_level() {
    let cluster = Cluster::new(3, 2);
    for level in [Level::One, Level::Quorum, Level::All] {
        let row = cluster.get(1, level, "k").await.expect("an answer");
        assert!(!row.found() && !row.context.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_three_down_changes_nothing_for_quorum() {
    let cluster = Cluster::new(3, 3);
    cluster.world.take_down(id(2));
    cluster.put(0, Level::Quorum, put("k", "v")).await.expect("two are up");
    let row = cluster.get(1, Level::Quorum, "k").await.expect("two are up");
    assert_eq!(values(&row), ["v"]);
    let refused = cluster.put(0, Level::All, put("k", "w")).await.expect_err("not all are up");
    assert_eq!(refused.reason(), "QUORUM_UNAVAILABLE");
}

/// I11: what was refused is nowhere, ever.
#[tokio::test(start_paused = true)]
async fn two_of_three_down_refuses_before_minting_and_one_serves() {
    let cluster = Cluster::new(3, 4);
    cluster.put(0, Level::All, put("k", "v")).await.expect("all are up");
    cluster.world.take_down(id(1));
    cluster.world.take_down(id(2));
    let refused = cluster.put(0, Level::Quorum, put("k", "w")).await.expect_err("one is up");
    assert_eq!((refused.reason(), refused.outcome()), ("QUORUM_UNAVAILABLE", Outcome::NotApplied));
    assert_eq!(cluster.local(0, "k"), ["v"], "nothing was minted");
    let refused = cluster.get(0, Level::Quorum, "k").await.expect_err("one is up");
    assert_eq!(refused.reason(), "QUORUM_UNAVAILABLE");
    let row = cluster.get(0, Level::One, "k").await.expect("it is up itself");
    cluster.put(0, Level::One, over("k", "x", &row.context)).await.expect("it is up itself");
    assert_eq!(cluster.local(0, "k"), ["x"]);
}

/// The others are gone and nobody knows yet: the write is in the own log and may spread.
#[tokio::test(start_paused = true)]
async fn a_write_without_its_quorum_in_time_is_unknown_and_no_other() {
    let cluster = Cluster::new(3, 5);
    cluster.world.isolate(id(0), &cluster.ids());
    let failed = cluster.put(0, Level::Quorum, put("k", "v")).await.expect_err("alone");
    assert_eq!((failed.reason(), failed.outcome()), ("DEADLINE_EXCEEDED", Outcome::Unknown));
    cluster.world.heal();
    pass(20).await;
    let digests = cluster.digests("default", "k");
    assert!(digests[0] != 0 && digests.iter().all(|digest| *digest == digests[0]), "hinted");
}

#[tokio::test(start_paused = true)]
async fn a_read_at_quorum_repairs_who_answered_before_it_returns() {
    let cluster = Cluster::new(3, 6);
    cluster.world.isolate(id(2), &cluster.ids());
    cluster.put(0, Level::Quorum, put("k", "v")).await.expect("two hear each other");
    cluster.world.heal();
    assert!(cluster.local(2, "k").is_empty());
    let row = cluster.get(2, Level::Quorum, "k").await.expect("healed");
    assert_eq!(values(&row), ["v"]);
    assert_eq!(cluster.local(2, "k"), ["v"], "before the answer, not later");
    let stats = cluster.nodes[2].coordinator.stats();
    assert_eq!((stats.mismatches, stats.repairs), (1, 1));
    cluster.get(2, Level::Quorum, "k").await.expect("healed");
    assert_eq!(cluster.nodes[2].coordinator.stats().mismatches, 1, "now they agree");
}

/// I8: x is on one node only and unacknowledged. Who has seen it at QUORUM sees it ever after.
#[tokio::test(start_paused = true)]
async fn quorum_reads_never_go_back() {
    let cluster = Cluster::new(3, 7);
    cluster.world.isolate(id(0), &cluster.ids());
    cluster.put(0, Level::Quorum, put("k", "x")).await.expect_err("alone");
    cluster.world.heal();
    cluster.world.cut(id(0), id(2));
    cluster.world.cut(id(2), id(0));
    let row = cluster.get(0, Level::Quorum, "k").await.expect("two hear each other");
    assert_eq!(values(&row), ["x"]);
    cluster.world.take_down(id(0));
    let row = cluster.get(2, Level::Quorum, "k").await.expect("two are up");
    assert_eq!(values(&row), ["x"], "the first read left it on a second node");
}

#[tokio::test(start_paused = true)]
async fn digests_travel_where_replicas_agree_and_rows_only_where_not() {
    let cluster = Cluster::new(3, 8);
    cluster.put(0, Level::All, put("k", "v")).await.expect("all are up");
    cluster.get(0, Level::Quorum, "k").await.expect("all are up");
    let asked = |kind| (1..3).map(|at| cluster.world.sent_to(id(at), kind)).sum::<u64>();
    assert_eq!((asked("digest"), asked("read")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_slow_replica_is_hedged() {
    let cluster = Cluster::new(3, 9);
    cluster.put(0, Level::All, put("k", "v")).await.expect("all are up");
    // The answers of the one that is asked first get lost.
    cluster.get(0, Level::Quorum, "k").await.expect("all are up");
    let asked = |at: &usize| cluster.world.sent_to(id(*at), "digest") > 0;
    let slow = (1..3).find(asked).expect("one was asked");
    cluster.world.cut(id(slow), id(0));
    let began = tokio::time::Instant::now();
    cluster.get(0, Level::Quorum, "k").await.expect("the other one answers");
    assert!(began.elapsed() < SECOND, "nobody waited for the deadline");
    assert!(cluster.nodes[0].coordinator.stats().hedges > 0);
}

#[tokio::test(start_paused = true)]
async fn hints_bring_the_one_that_was_down_to_equal_digests() {
    let cluster = Cluster::new(3, 10);
    cluster.world.take_down(id(2));
    let keys: Vec<String> = (0..50).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        cluster.put(0, Level::Quorum, put(key, "v")).await.expect("two are up");
    }
    pass(4).await;
    assert_eq!(cluster.nodes[0].hints.stats().kept, 50);
    cluster.world.bring_up(id(2));
    pass(5).await;
    assert_eq!(cluster.nodes[0].hints.stats().delivered, 0, "it has to be calm first");
    pass(10).await;
    let stats = cluster.nodes[0].hints.stats();
    assert_eq!((stats.delivered, stats.bytes), (50, 0));
    for key in &keys {
        let digests = cluster.digests("default", key);
        assert!(digests[2] != 0 && digests.iter().all(|digest| *digest == digests[0]));
    }
}

/// Metrics, status and the delivery to other nodes ask how much is kept: on the threads that serve
/// clients, while one batch after the other is synced.
#[tokio::test]
async fn who_asks_how_much_is_kept_does_not_wait_for_the_disk() {
    let cluster = Cluster::new(3, 47);
    let (hints, missed) = (&cluster.nodes[0].hints, &cluster.nodes[0].missed);
    let tenant_id = cluster.nodes[0].store.tenant("default").expect("there").id.0;
    let row = crate::proto::RowState { tenant_id, key: "k".into(), row: vec![0; 40].into() };
    let hold = Hold::of(&cluster.nodes[0].faults, Operation::SyncData, "hints");
    hold.close();
    missed.keep(id(2), row);
    while hold.arrived() == 0 {
        tokio::task::yield_now().await;
    }
    // This thread is the one that serves, and the hint's sync hangs on another one.
    assert_eq!((hints.stats().kept, hints.targets(), hints.by_target().len()), (0, vec![], 0));
    hold.open();
    while hints.targets().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(hints.stats().pending, 1);
}

/// D2: the target owns nothing any more; its rows go to those who do.
#[tokio::test(start_paused = true)]
async fn hints_for_a_node_that_owns_nothing_go_to_the_owners() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 11);
    cluster.world.take_down(id(2));
    cluster.put(0, Level::Quorum, put("k", "v")).await.expect("two are up");
    pass(4).await;
    cluster.commit(layout(3, &[0, 1, 3], None), &[0, 1, 3]);
    pass(15).await;
    assert_eq!(cluster.local(3, "k"), ["v"]);
    assert_eq!(cluster.nodes[0].hints.stats().bytes, 0);
}

/// One of the owners is away: the others have the row once, and it is kept for that one alone.
#[tokio::test(start_paused = true)]
async fn an_heir_that_is_away_holds_nobody_up() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 44);
    cluster.world.take_down(id(2));
    cluster.put(0, Level::Quorum, put("k", "v")).await.expect("two are up");
    pass(4).await;
    cluster.commit(layout(3, &[0, 1, 3], None), &[0, 1, 3]);
    cluster.world.take_down(id(1));
    pass(30).await;
    assert_eq!(cluster.local(3, "k"), ["v"]);
    let kept = cluster.nodes[0].hints.by_target();
    assert_eq!(kept.keys().copied().collect::<Vec<_>>(), [id(1)], "{kept:?}");
    assert_eq!(cluster.world.sent_to(id(3), "write"), 1, "who has it does not get it again");
    cluster.world.bring_up(id(1));
    pass(15).await;
    assert_eq!(cluster.nodes[0].hints.stats().bytes, 0);
}

/// A row that its target will not take, for as long as it is kept, holds none of the others up.
#[tokio::test(start_paused = true)]
async fn a_hint_that_is_refused_does_not_hold_up_the_others() {
    let cluster = Cluster::new(3, 45);
    let tenant = cluster.nodes[0].store.tenant("default").expect("there").id.0;
    cluster.world.take_down(id(2));
    // No row: whoever is sent it refuses it.
    let bad = |n: u8| crate::proto::RowState {
        tenant_id: tenant,
        key: vec![b'b', n].into(),
        row: vec![0xff; 40].into(),
    };
    (0..3).for_each(|n| cluster.nodes[0].missed.keep(id(2), bad(n)));
    for n in 0..50 {
        cluster.put(0, Level::Quorum, put(&format!("key-{n}"), "v")).await.expect("two are up");
    }
    pass(4).await;
    cluster.world.bring_up(id(2));
    pass(15).await;
    let stats = cluster.nodes[0].hints.stats();
    assert_eq!(stats.delivered, 50, "{stats:?}");
    assert_eq!(cluster.local(2, "key-49"), ["v"]);
    assert!(stats.bytes > 0, "the three are tried again until they are too old");
    cluster.world.clock.advance_ms(4 * 3600 * 1000);
    pass(30).await;
    assert_eq!(cluster.nodes[0].hints.stats().bytes, 0);
}

/// Flights that end all at once hand their rows over at once: what waits to be written is bounded
/// in bytes, and the rest is counted as not kept.
#[tokio::test(start_paused = true)]
async fn rows_that_wait_to_become_hints_are_bounded_in_bytes() {
    let cluster = Cluster::new(3, 46);
    let (hints, missed) = (&cluster.nodes[0].hints, &cluster.nodes[0].missed);
    let tenant_id = cluster.nodes[0].store.tenant("default").expect("there").id.0;
    let row = vec![0; 1 << 20];
    let row = crate::proto::RowState { tenant_id, key: "k".into(), row: row.into() };
    (0..100).for_each(|_| missed.keep(id(2), row.clone()));
    let stats = hints.stats();
    let room = QUEUE_BYTES_MAX as u64;
    assert!(stats.waiting_bytes <= room && stats.waiting_bytes > room - (2 << 20), "{stats:?}");
    assert_eq!(stats.refused, 100 - stats.waiting_bytes / (1 << 20));
    pass(1).await;
    let after = hints.stats();
    assert_eq!((after.waiting_bytes, after.kept), (0, 100 - stats.refused), "written, and room");
}

#[tokio::test(start_paused = true)]
async fn a_node_without_the_row_forwards_once_and_reads_by_itself() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 12);
    let written = cluster.put(3, Level::Quorum, put("k", "v")).await.expect("forwarded");
    let forwards: u64 = (0..4).map(|at| cluster.world.sent_to(id(at), "forward")).sum();
    assert_eq!(forwards, 1);
    assert!(cluster.local(3, "k").is_empty());
    let row = cluster.get(3, Level::Quorum, "k").await.expect("three are up");
    assert_eq!((values(&row), &row.context), (vec!["v".to_owned()], &written.context));
    cluster.put(3, Level::Quorum, over("k", "w", &row.context)).await.expect("forwarded");
    let row = cluster.get(3, Level::One, "k").await.expect("three are up");
    assert_eq!(values(&row).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_write_keeps_the_reason_of_its_refusal() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 13);
    let bad = Mutation { ttl_ms: Some(0), ..put("k", "v") };
    let refused = cluster.put(3, Level::Quorum, bad).await.expect_err("no such lifetime");
    assert_eq!((refused.reason(), refused.outcome()), ("INVALID_TTL", Outcome::NotApplied));
}

#[tokio::test(start_paused = true)]
async fn min_context_gives_read_your_writes_at_one() {
    let cluster = Cluster::new(3, 14);
    cluster.world.isolate(id(2), &cluster.ids());
    let written = cluster.put(0, Level::Quorum, put("k", "v")).await.expect("two");
    let seen = Some(written.context);
    let read = |at| cluster.read(at, "default", Level::One, "k", seen.clone());
    let stale = read(2).await.expect_err("it hears nobody");
    assert!(["STALE", "DEADLINE_EXCEEDED"].contains(&stale.reason()), "{stale}");
    cluster.world.heal();
    let plain = cluster.get(2, Level::One, "k").await.expect("its own word");
    assert!(!plain.found());
    assert_eq!(values(&read(2).await.expect("widened")), ["v"]);
    assert!(cluster.nodes[2].coordinator.stats().widened > 0);
}

#[tokio::test(start_paused = true)]
async fn what_nobody_shows_is_stale_and_never_old_data() {
    let cluster = Cluster::new(3, 15);
    cluster.world.isolate(id(0), &cluster.ids());
    let written = cluster.put(0, Level::One, put("k", "v")).await.expect("itself");
    cluster.world.take_down(id(0));
    let stale = cluster.read(1, "default", Level::Quorum, "k", Some(written.context)).await;
    assert_eq!(stale.expect_err("only the one that is down has it").reason(), "STALE");
}

/// I10: the retry goes elsewhere, and is the same write.
#[tokio::test(start_paused = true)]
async fn a_retry_through_another_node_is_the_same_write() {
    let cluster = Cluster::new(3, 16);
    cluster.world.isolate(id(0), &cluster.ids());
    cluster.put(0, Level::Quorum, once("k", "v", "t1")).await.expect_err("alone");
    cluster.world.heal();
    let first = cluster.put(1, Level::Quorum, once("k", "v", "t1")).await.expect("healed");
    assert!(!first.duplicate, "it had not heard of it");
    let again = cluster.put(2, Level::Quorum, once("k", "v", "t1")).await.expect("healed");
    assert!(again.duplicate);
    pass(20).await;
    let row = cluster.get(0, Level::All, "k").await.expect("healed");
    assert_eq!(values(&row), ["v"]);
    let other = cluster.put(1, Level::Quorum, once("k", "w", "t1")).await;
    assert_eq!(other.expect_err("another value").reason(), "IDEMPOTENCY_CONFLICT");
}

/// I10: x was written once, by its token. One node has taken the overwrite of x, and is gone. Who
/// deletes with what he has seen there deletes x too, on nodes that never heard of the overwrite.
#[tokio::test(start_paused = true)]
async fn a_tokened_value_stays_deleted_where_its_overwrite_never_came() {
    let cluster = Cluster::new(3, 41);
    cluster.put(0, Level::All, once("k", "x", "token of x")).await.expect("all are up");
    let x = cluster.get(0, Level::Quorum, "k").await.expect("all are up");
    cluster.world.isolate(id(0), &cluster.ids());
    let overwrite = over("k", "y", &x.context);
    let y = cluster.put(0, Level::One, overwrite).await.expect("its own log is enough");
    cluster.world.take_down(id(0));
    cluster.put(1, Level::Quorum, delete("k", Some(y.context))).await.expect("two are up");
    for at in [1, 2] {
        let row = cluster.get(at, Level::Quorum, "k").await.expect("two are up");
        assert_eq!(values(&row), [""; 0], "node {at} brings x back");
    }
}

/// Last-write-wins rows name no dots by tokens: a retry that did not ask would be a later write,
/// and bring back what was replaced.
#[tokio::test(start_paused = true)]
async fn a_retry_of_a_replaced_last_write_wins_write_changes_nothing() {
    let cluster = Cluster::new(3, 17);
    cluster.world.isolate(id(2), &cluster.ids());
    let write = |at, mutation| cluster.write(at, LWW, Level::Quorum, mutation);
    write(0, once("k", "old", "t1")).await.expect("two");
    cluster.world.clock.advance_ms(5);
    write(1, put("k", "new")).await.expect("two");
    cluster.world.heal();
    cluster.world.clock.advance_ms(5);
    let again = write(2, once("k", "old", "t1")).await.expect("healed");
    assert!(again.duplicate);
    let row = cluster.read(0, LWW, Level::All, "k", None).await.expect("healed");
    assert_eq!(values(&row), ["new"]);
}

/// The retry goes to a node that has the later write and not the one that is retried: its digest is
/// that of the others, who know more.
#[tokio::test(start_paused = true)]
async fn a_retry_asks_for_what_digests_do_not_tell() {
    let cluster = Cluster::new(3, 42);
    let write = |at, mutation| cluster.write(at, LWW, Level::Quorum, mutation);
    cluster.world.take_down(id(2));
    write(0, once("k", "old", "t1")).await.expect("two are up");
    cluster.world.bring_up(id(2));
    cluster.world.clock.advance_ms(5);
    cluster.write(1, LWW, Level::All, put("k", "new")).await.expect("three are up");
    let digests = cluster.digests(LWW, "k");
    assert!(digests.iter().all(|digest| *digest == digests[0]), "they look equal");
    cluster.world.clock.advance_ms(5);
    let again = write(2, once("k", "old", "t1")).await.expect("three are up");
    assert!(again.duplicate);
    let row = cluster.read(0, LWW, Level::All, "k", None).await.expect("three are up");
    assert_eq!(values(&row), ["new"]);
}

/// One that was asked for its row, or sent a repair, and then is silent: the others are a quorum.
#[tokio::test(start_paused = true)]
async fn who_falls_silent_in_the_middle_of_a_read_is_not_waited_for() {
    let cluster = Cluster::new(3, 43);
    cluster.world.isolate(id(1), &cluster.ids());
    cluster.put(0, Level::Quorum, put("k", "v")).await.expect("two hear each other");
    cluster.world.heal();
    // Who is behind answers, and its disk hangs when it is sent the repair.
    cluster.world.lose(id(1), "write");
    let began = tokio::time::Instant::now();
    for _ in 0..10 {
        let row = cluster.get(0, Level::Quorum, "k").await.expect("two of three hold it");
        assert_eq!(values(&row), ["v"]);
    }
    assert!(began.elapsed() < SECOND * 2, "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_later_last_write_wins_on_every_node() {
    let cluster = Cluster::new(3, 18);
    for (at, value) in [(0, "a"), (1, "b"), (2, "c")] {
        cluster.world.clock.advance_ms(5);
        cluster.write(at, LWW, Level::Quorum, put("k", value)).await.expect("three are up");
    }
    let row = cluster.read(1, LWW, Level::All, "k", None).await.expect("three are up");
    assert_eq!(values(&row), ["c"]);
    let digests = cluster.digests(LWW, "k");
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

#[tokio::test(start_paused = true)]
async fn a_delete_covers_what_its_context_has_seen_everywhere() {
    let cluster = Cluster::new(3, 19);
    cluster.put(0, Level::Quorum, put("k", "a")).await.expect("three are up");
    let row = cluster.get(1, Level::Quorum, "k").await.expect("three are up");
    cluster.put(1, Level::Quorum, put("k", "b")).await.expect("three are up");
    cluster.put(2, Level::Quorum, delete("k", Some(row.context))).await.expect("three are up");
    let row = cluster.get(0, Level::All, "k").await.expect("three are up");
    assert_eq!(values(&row), ["b"]);
    assert!(row.deleted_concurrently);
}

#[tokio::test(start_paused = true)]
async fn a_batch_has_an_outcome_for_each_item_in_its_order() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 20);
    let mut batch: Vec<Mutation> = (0..40).map(|n| put(&format!("key-{n}"), "v")).collect();
    batch[7].ttl_ms = Some(0);
    for at in [0, 3] {
        let deadline = tokio::time::Instant::now() + SECOND;
        let options = WriteOptions { level: Level::Quorum, deadline };
        let outcomes = cluster.nodes[at].coordinator.write("default", batch.clone(), options).await;
        assert_eq!(outcomes.len(), 40);
        for (place, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.is_ok(), place != 7, "{outcome:?}");
        }
    }
    let reads = (0..40).map(|n| KeyRead { key: format!("key-{n}").into(), min_context: None });
    let deadline = tokio::time::Instant::now() + SECOND;
    let options = ReadOptions { level: Level::Quorum, deadline };
    let rows = cluster.nodes[3].coordinator.read("default", reads.collect(), options).await;
    let found = rows.iter().filter(|row| row.as_ref().is_ok_and(|row| row.found())).count();
    assert_eq!(found, 39);
}

/// Many writes at once are few messages.
#[tokio::test(start_paused = true)]
async fn concurrent_writes_to_a_peer_share_messages() {
    let cluster = Cluster::new(3, 21);
    cluster.world.mood.lock().delay_ms = 5;
    let deadline = tokio::time::Instant::now() + SECOND;
    let options = WriteOptions { level: Level::Quorum, deadline };
    let mut writes = tokio::task::JoinSet::new();
    for n in 0..500 {
        let coordinator = std::sync::Arc::clone(&cluster.nodes[0].coordinator);
        let batch = vec![put(&format!("key-{n}"), "v")];
        writes.spawn(async move { coordinator.write("default", batch, options).await });
    }
    while let Some(written) = writes.join_next().await {
        written.expect("no panic").pop().expect("one").expect("three are up");
    }
    assert!(cluster.world.sent_to(id(1), "write") < 50);
}

/// A node that is the whole cluster asks nobody.
#[tokio::test(start_paused = true)]
async fn a_cluster_of_one_goes_straight_to_its_store() {
    let cluster = Cluster::new(1, 22);
    let began = tokio::time::Instant::now();
    cluster.put(0, Level::All, put("k", "v")).await.expect("itself");
    let row = cluster.get(0, Level::All, "k").await.expect("itself");
    assert_eq!(values(&row), ["v"]);
    let read = KeyRead { key: b"k".to_vec(), min_context: None };
    let row = cluster.nodes[0].coordinator.read_here("default", &read, Level::All);
    assert_eq!(values(&row.expect("here").found.expect("readable")), ["v"]);
    let reads = ["none", "k", ""].map(|key| KeyRead { key: key.into(), min_context: None });
    let rows = cluster.nodes[0].coordinator.read_batch_here("default", &reads, Level::All);
    let rows = rows.expect("here").found;
    assert!(rows[2].is_err(), "the empty key has its own error");
    let found = [&rows[0], &rows[1]].map(|row| values(row.as_ref().expect("readable")).len());
    assert_eq!(found, [0, 1]);
    assert_eq!(began.elapsed(), Duration::ZERO, "it waits for somebody");
    assert!(cluster.world.sent.lock().is_empty());
}
