//! Many keys at once, and reads that nobody waits for.

use tokio::time::Instant;

use super::super::*;
use super::cluster::*;
use crate::cluster::peer::Request;
use crate::proto;

async fn read_all(cluster: &Cluster, at: usize, keys: &[String], level: Level) -> Vec<String> {
    let reads = keys.iter().map(|key| KeyRead { key: key.clone().into(), min_context: None });
    let options = ReadOptions { level, deadline: Instant::now() + 2 * SECOND };
    let rows = cluster.nodes[at].coordinator.read("default", reads.collect(), options).await;
    let text = |row: Result<crate::store::ReadRow>| values(&row.expect("readable")).join(",");
    rows.into_iter().map(text).collect()
}

/// A batch is one message for rows and one for digests to each peer, whatever replicas its keys
/// have.
#[tokio::test(start_paused = true)]
async fn a_batch_of_reads_is_few_messages_however_many_replica_sets_it_touches() {
    let cluster = Cluster::new(5, 80);
    let keys: Vec<String> = (0..200).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        cluster.put(0, Level::All, put(key, key)).await.expect("all are up");
    }
    cluster.world.sent.lock().clear();
    assert_eq!(read_all(&cluster, 0, &keys, Level::All).await, keys);
    let sent = cluster.world.sent.lock().clone();
    assert!(sent.values().all(|messages| *messages == 1), "{sent:?}");
}

/// Rows beyond what a reply takes are asked for again, and not taken for a replica that failed.
#[tokio::test(start_paused = true)]
async fn rows_that_do_not_fit_one_reply_are_read_with_several() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 81);
    let keys: Vec<String> = (0..45).map(|n| format!("key-{n}")).collect();
    let big = "v".repeat(200_000);
    for (n, key) in keys.iter().enumerate() {
        cluster.put(0, Level::All, put(key, &big)).await.expect("all are up");
        // Nothing is compacted by itself here.
        let upkeep = |store: &crate::store::Store| match n % 8 {
            7 => store.compact(),
            _ => store.flush(),
        };
        cluster.nodes.iter().for_each(|node| upkeep(&node.store).expect("room"));
    }
    let rows = read_all(&cluster, 3, &keys, Level::Quorum).await;
    assert!(rows.len() == 45 && rows.iter().all(|row| *row == big));
}

/// Two rows that each fit a reply, and not one together.
#[tokio::test(start_paused = true)]
async fn a_row_that_would_burst_a_reply_is_left_to_the_next() {
    let mut options = options();
    options.limits.value_bytes_max = 9 << 20;
    options.limits.row_bytes_max = 10 << 20;
    options.engine.log_segment_bytes = 32 << 20;
    options.engine.memtable_bytes = 64 << 20;
    let cluster = Cluster::with_options(4, &[0, 1, 2], 84, &options);
    let rows = [("seven", 7 << 20), ("nine", 9 << 20)];
    for (key, bytes) in rows {
        let large = "v".repeat(bytes);
        cluster.put(0, Level::All, put(key, &large)).await.expect("all are up");
    }
    let key = |(key, _): (&str, _)| proto::RowKey { tenant_id: 1, key: key.to_owned().into() };
    let request =
        proto::ReadRows { keys: rows.map(key).to_vec(), digest_only: false, ..Default::default() };
    let reply = cluster.ask(1, 1, Request::ReadRows(request)).await;
    let answers = reply.and_then(|reply| reply.row_answers(2)).expect("answered");
    let first = answers[0].row.as_ref().expect("the first is told");
    assert!(first.len() >= 7 << 20);
    let second = answers[1].failure.as_ref().expect("the second is left out");
    assert_eq!(second.reason, reason::REPLY_TOO_LARGE);

    let keys = rows.map(|(key, _)| key.to_owned());
    let read = read_all(&cluster, 3, &keys, Level::Quorum).await;
    assert_eq!(read.iter().map(String::len).collect::<Vec<_>>(), rows.map(|(_, bytes)| bytes));
}

/// A node of which half is unreachable still answers for the rest of the batch.
#[tokio::test(start_paused = true)]
async fn keys_without_enough_replicas_fail_alone() {
    let cluster = Cluster::new(5, 82);
    let keys: Vec<String> = (0..40).map(|n| format!("key-{n}")).collect();
    for key in &keys {
        cluster.put(0, Level::All, put(key, key)).await.expect("all are up");
    }
    cluster.world.take_down(id(3));
    let reads = keys.iter().map(|key| KeyRead { key: key.clone().into(), min_context: None });
    let options = ReadOptions { level: Level::All, deadline: Instant::now() + 2 * SECOND };
    let rows = cluster.nodes[0].coordinator.read("default", reads.collect(), options).await;
    let refused = rows.iter().filter(|row| row.is_err()).count();
    assert!(refused > 0 && refused < 40, "{refused} of 40");
    for (key, row) in keys.iter().zip(&rows) {
        match row {
            Ok(row) => assert_eq!(values(row), [key.as_str()]),
            Err(error) => assert_eq!(error.reason(), "QUORUM_UNAVAILABLE"),
        }
    }
}

/// Nobody reads at QUORUM, no hint is kept, nobody compares trees: reads at ONE bring the replica
/// up all the same.
#[tokio::test(start_paused = true)]
async fn one_read_of_a_hundred_at_one_is_checked_in_the_background() {
    let cluster = Cluster::new(3, 83);
    cluster.put(0, Level::All, put("k", "v")).await.expect("all are up");
    let row = cluster.get(0, Level::Quorum, "k").await.expect("all are up");
    cluster.world.isolate(id(2), &cluster.ids());
    cluster.put(0, Level::Quorum, over("k", "w", &row.context)).await.expect("two");
    cluster.world.heal();
    assert_eq!(cluster.local(2, "k"), ["v"]);
    let mut reads = 0;
    while cluster.local(2, "k") != ["w"] {
        assert!(reads < 2000, "nobody looks at it");
        cluster.get(2, Level::One, "k").await.expect("itself");
        reads += 1;
        tokio::task::yield_now().await;
        tokio::time::sleep(SECOND / 1000).await;
    }
    let read = |at: usize| cluster.nodes[at].coordinator.stats();
    assert!(read(2).checks >= 1);
    for _ in reads..5000 {
        cluster.get(2, Level::One, "k").await.expect("itself");
        tokio::task::yield_now().await;
    }
    let checks = read(2).checks;
    assert!((30..80).contains(&checks), "{checks} of 5,000");
}
