//! Deletes without a context: what they cover where replicas differ.

use tokio::time::Instant;

use super::super::*;
use super::cluster::*;
use crate::store::{Mutation, Outcome, Written};

const LEVELS: [Level; 2] = [Level::Quorum, Level::All];

/// A value that two of three replicas hold, acknowledged at QUORUM.
async fn put_without(cluster: &Cluster, lacks: usize, key: &str) {
    cluster.world.isolate(id(lacks), &cluster.ids());
    let through = (lacks + 1) % 3;
    cluster.put(through, Level::Quorum, put(key, "v")).await.expect("two hear each other");
    cluster.world.heal();
    assert!(cluster.local(lacks, key).is_empty());
}

async fn write_all(
    cluster: &Cluster,
    at: usize,
    level: Level,
    batch: Vec<Mutation>,
) -> Vec<Result<Written>> {
    let options = WriteOptions { level, deadline: Instant::now() + 2 * SECOND };
    cluster.nodes[at].coordinator.write("default", batch, options).await
}

async fn assert_gone(cluster: &Cluster, key: &str) {
    for at in 0..3 {
        let row = cluster.get(at, Level::Quorum, key).await.expect("all are up");
        assert_eq!(values(&row), [""; 0], "node {at} still shows {key}");
    }
}

fn delete_once(key: &str, token: &str) -> Mutation {
    Mutation { idempotency_key: Some(token.into()), ..delete(key, None) }
}

/// The replica that coordinates has never seen the value, which was acknowledged all the same.
#[tokio::test(start_paused = true)]
async fn a_delete_without_a_context_leaves_nothing_that_was_acknowledged_before() {
    let cluster = Cluster::new(3, 90);
    for (n, level) in LEVELS.into_iter().enumerate() {
        for lacks in 0..2 {
            let key = format!("key-{n}-{lacks}");
            put_without(&cluster, lacks, &key).await;
            let delete = match lacks {
                0 => delete(&key, None),
                _ => delete_once(&key, "token"),
            };
            cluster.put(lacks, level, delete).await.expect("all are up");
            assert_gone(&cluster, &key).await;
        }
    }
}

/// Whoever of them coordinates, each lacks one of the keys.
#[tokio::test(start_paused = true)]
async fn batches_and_forwarded_deletes_cover_what_a_quorum_holds_too() {
    for at in [0, 3] {
        let cluster = Cluster::with_owners(4, &[0, 1, 2], 91);
        for lacks in 0..3 {
            put_without(&cluster, lacks, &format!("key-{lacks}")).await;
        }
        let mut batch: Vec<Mutation> = (0..3).map(|n| delete(&format!("key-{n}"), None)).collect();
        batch.push(put("other", "v"));
        for outcome in write_all(&cluster, at, Level::Quorum, batch).await {
            outcome.expect("all are up");
        }
        for lacks in 0..3 {
            assert_gone(&cluster, &format!("key-{lacks}")).await;
        }
        let row = cluster.get(1, Level::Quorum, "other").await.expect("all are up");
        assert_eq!(values(&row), ["v"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delete_costs_one_round_of_digests_where_replicas_agree_and_none_at_one() {
    let cluster = Cluster::new(3, 92);
    for key in ["a", "b", "c"] {
        cluster.put(0, Level::All, put(key, "v")).await.expect("all are up");
    }
    let row = cluster.get(0, Level::Quorum, "c").await.expect("all are up");
    let asked = |kind| (1..3).map(|at| cluster.world.sent_to(id(at), kind)).sum::<u64>();
    cluster.world.sent.lock().clear();
    cluster.put(0, Level::One, delete("a", None)).await.expect("all are up");
    cluster.put(0, Level::Quorum, delete("c", Some(row.context))).await.expect("all are up");
    assert_eq!((asked("digest"), asked("read")), (0, 0), "nothing has to be learnt");
    cluster.world.sent.lock().clear();
    cluster.put(0, Level::Quorum, delete("b", None)).await.expect("all are up");
    assert_eq!((asked("digest"), asked("read"), asked("write")), (1, 0, 2));
}

/// What it would leave behind is not known: so nothing is deleted.
#[tokio::test(start_paused = true)]
async fn a_delete_that_cannot_learn_what_a_quorum_holds_is_not_applied() {
    let cluster = Cluster::new(3, 93);
    cluster.put(0, Level::All, put("k", "v")).await.expect("all are up");
    for (at, kind) in [(1, "digest"), (1, "read"), (2, "digest"), (2, "read")] {
        cluster.world.lose(id(at), kind);
    }
    let refused = cluster.put(0, Level::Quorum, delete("k", None)).await.expect_err("no word");
    assert_eq!(refused.outcome(), Outcome::NotApplied, "{refused}");
    assert_eq!(cluster.local(0, "k"), ["v"], "nothing was minted");
}

/// The retry goes to a replica that has the later value and never heard of the delete: contexts
/// name the newest tokens only. Its digest is that of the others, who remember that the delete was
/// made. Made again it would take the later value with it.
#[tokio::test(start_paused = true)]
async fn a_retried_delete_does_not_cover_what_was_written_since() {
    let cluster = Cluster::new(3, 94);
    cluster.world.isolate(id(0), &cluster.ids());
    cluster.put(1, Level::Quorum, put("k", "x")).await.expect("two");
    let mut seen = cluster.put(1, Level::Quorum, delete_once("k", "t")).await.expect("two").context;
    for n in 0..70 {
        let overwrite = Mutation { context: Some(seen), ..once("k", "y", &format!("token {n}")) };
        seen = cluster.put(1, Level::Quorum, overwrite).await.expect("two").context;
    }
    cluster.world.heal();
    cluster.put(0, Level::All, over("k", "z", &seen)).await.expect("all are up");
    let digests = cluster.digests("default", "k");
    assert!(digests.iter().all(|digest| *digest == digests[0]), "they look equal");
    let again = cluster.put(0, Level::Quorum, delete_once("k", "t")).await.expect("all are up");
    assert!(again.duplicate);
    let row = cluster.get(2, Level::All, "k").await.expect("all are up");
    assert_eq!(values(&row), ["z"]);
    // Nor does what its client writes next.
    let next = over("k", "next", &again.context);
    cluster.put(0, Level::Quorum, next).await.expect("all are up");
    let row = cluster.get(2, Level::All, "k").await.expect("all are up");
    assert_eq!(values(&row), ["next", "z"]);
}

/// As a pipeline does: whoever waits for what `submit` returns keeps the order of its operations.
#[tokio::test(start_paused = true)]
async fn what_is_written_after_a_delete_in_turn_is_not_covered_by_it() {
    let cluster = Cluster::new(3, 95);
    cluster.put(0, Level::All, put("k", "old")).await.expect("all are up");
    let coordinator = &cluster.nodes[0].coordinator;
    let options = WriteOptions { level: Level::Quorum, deadline: Instant::now() + 2 * SECOND };
    let held = coordinator.submit("default", vec![delete("k", None)], options, Box::new(drop));
    held.expect("it asks first").await.expect("no panic");
    assert!(cluster.local(0, "k").is_empty(), "a read after it sees it");
    cluster.put(0, Level::Quorum, put("k", "new")).await.expect("all are up");
    let row = cluster.get(1, Level::All, "k").await.expect("all are up");
    assert_eq!(values(&row), ["new"]);
}

/// A replica set that changes: the old and the new one are asked.
#[tokio::test(start_paused = true)]
async fn while_the_layout_changes_a_quorum_of_both_sets_is_asked() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 96);
    put_without(&cluster, 0, "k").await;
    cluster.commit(layout(2, &[0, 1, 2], Some(&[0, 1, 3])), &[0, 1, 2, 3]);
    cluster.put(3, Level::Quorum, delete("k", None)).await.expect("all are up");
    for at in 0..4 {
        let row = cluster.get(at, Level::Quorum, "k").await.expect("all are up");
        assert_eq!(values(&row), [""; 0], "node {at}");
    }
}
