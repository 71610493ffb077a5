//! The real binary, killed with `kill -9` while it takes writes, again and again on one directory.
//!
//! After each kill the node is started anew and every key that was ever acknowledged is read back:
//! an acknowledged write is there, an acknowledged delete has not come back, and a write whose
//! outcome was unknown is there whole or not at all. `make crash RUNS=20 SEED=7` runs it longer;
//! a run is a matter of timing, so a seed repeats the moments of the kills only about.

#[expect(dead_code, reason = "other tests use the rest")]
mod node;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use node::CliNode;
use pairdb::client::{Client, Options};
use pairdb::proto;
use tokio::sync::Notify;

const WRITERS: u64 = 8;
const TENANT: &str = "default";

/// What a key may hold: `None` is "not found". More than one after an unknown outcome.
type Expected = BTreeMap<Vec<u8>, Vec<Option<Vec<u8>>>>;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

fn client(node: &CliNode) -> Client {
    // No retries: the test wants to know of each attempt what became of it.
    let options =
        Options { endpoints: vec![node.endpoint()], retries_max: 0, ..Options::default() };
    Client::new(options).expect("the endpoint is an address")
}

/// Writes until the node is gone. Each writer has keys of its own, which it sets, sets again and
/// deletes.
async fn write_until_killed(
    client: Arc<Client>,
    (run, writer): (u64, u64),
    written: Arc<AtomicU64>,
    enough: Arc<Notify>,
    target: u64,
) -> Expected {
    let mut expected = Expected::new();
    for i in 0.. {
        let key = format!("{writer}/{}", i % 500).into_bytes();
        // What the key may hold now; one state, since the first unknown outcome ends the loop.
        let read = match client.read(TENANT, key.clone().into()).await {
            Ok(read) => read,
            Err(_) => return expected,
        };
        let value = (i % 7 != 6).then(|| format!("run {run} write {i} {}", "x".repeat(i % 200)));
        let mutation = proto::Mutation {
            key: key.clone().into(),
            context: read.context,
            change: Some(match &value {
                Some(value) => proto::mutation::Change::Value(Bytes::from(value.clone())),
                None => proto::mutation::Change::Delete(true),
            }),
            ..proto::Mutation::default()
        };
        let value = value.map(String::into_bytes);
        let outcome = client.batch_write(TENANT, vec![mutation]).await;
        let is_written = |item: &proto::BatchWriteResult| {
            matches!(item.result, Some(proto::batch_write_result::Result::Written(_)))
        };
        let acknowledged = outcome.is_ok_and(|results| results.iter().all(is_written));
        if !acknowledged {
            let before = read.siblings.first().map(|sibling| sibling.value.to_vec());
            expected.insert(key, vec![before, value]);
            return expected;
        }
        expected.insert(key, vec![value]);
        if written.fetch_add(1, Ordering::Relaxed) + 1 == target {
            enough.notify_one();
        }
    }
    expected
}

async fn check(client: &Client, expected: &mut Expected) {
    let keys: Vec<Vec<u8>> = expected.keys().cloned().collect();
    for chunk in keys.chunks(200) {
        let names = chunk.iter().map(|key| Bytes::from(key.clone())).collect();
        let rows = client.batch_read(TENANT, names).await.expect("a fresh node reads");
        for (key, row) in chunk.iter().zip(rows) {
            let Some(proto::batch_read_result::Result::Row(row)) = row.result else {
                panic!("{key:?} cannot be read: {row:?}");
            };
            assert!(row.siblings.len() <= 1, "{key:?} has siblings, but one writer");
            let found = row.siblings.first().map(|sibling| sibling.value.to_vec());
            let may_be = &expected[key];
            assert!(
                may_be.contains(&found),
                "{:?} holds {:?}, but may only hold {:?}",
                String::from_utf8_lossy(key),
                found.as_deref().map(String::from_utf8_lossy),
                may_be.iter().flatten().map(|value| String::from_utf8_lossy(value)),
            );
            expected.insert(key.clone(), vec![found]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9() {
    kill_again_and_again("always").await;
}

/// The log's bytes are in the page cache then, most of them put there through a map.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_kill_9_where_the_log_is_synced_now_and_then() {
    kill_again_and_again("interval").await;
}

async fn kill_again_and_again(sync_mode: &str) {
    let settings = [("PAIRDB__ENGINE__SYNC_MODE", sync_mode)];
    let (runs, seed) = (number("RUNS", 3), number("SEED", 1));
    let mut node = CliNode::with(&settings);
    let mut expected = Expected::new();
    for run in 0..runs {
        let client = Arc::new(client(&node));
        check(&client, &mut expected).await;
        // A kill after some hundred acknowledged writes, in the middle of the next ones.
        let target = 200 + (seed + run).wrapping_mul(0x9E37_79B9_7F4A_7C15) % 1500;
        let (written, enough) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (written, enough) = (written.clone(), enough.clone());
                let writing =
                    write_until_killed(client.clone(), (run, writer), written, enough, target);
                tokio::spawn(writing)
            })
            .collect();
        enough.notified().await;
        node.kill();
        for writer in writers {
            expected.extend(writer.await.expect("a writer panicked"));
        }
        println!("{sync_mode}, run {run}: {} writes acknowledged", written.load(Ordering::Relaxed));
        node.restart_with(&settings);
    }
    check(&client(&node), &mut expected).await;
    println!("{} keys checked after {runs} kills, seed {seed}", expected.len());
}
