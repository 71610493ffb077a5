//! The client that goes to the nodes that hold its keys.

use std::time::Duration;

use bytes::Bytes;
use pairdb::client::{Client, Options};
use pairdb::proto;

use crate::nodes::{Nodes, values};

const KEYS: usize = 200;

/// A figure of all nodes that are up, together.
fn sum(nodes: &Nodes, up: &[usize], name: &str, label: &str) -> f64 {
    let of_node = |at: &usize| {
        let (_, page) = nodes.page(*at, "/metrics");
        let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>()
    };
    up.iter().map(of_node).sum()
}

fn client(nodes: &Nodes, endpoints: &[usize]) -> Client {
    let endpoints = endpoints.iter().map(|at| nodes.endpoint(*at)).collect();
    let timeout = Duration::from_secs(10);
    let options = Options { endpoints, timeout, direct: true, channels: 2, ..Options::default() };
    Client::new(options).expect("endpoints")
}

fn key(n: usize) -> Bytes {
    Bytes::from(format!("key-{n}"))
}

fn write(n: usize, value: &str, context: Bytes) -> proto::WriteRequest {
    proto::WriteRequest {
        tenant: "default".to_owned(),
        key: key(n),
        value: Bytes::from(value.to_owned()),
        context,
        ..Default::default()
    }
}

/// Three replicas on five nodes: a node that is asked blindly holds a key three times of five.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_direct_client_needs_no_forwarding_and_outlives_its_nodes() {
    let mut nodes = tokio::task::block_in_place(|| Nodes::start(5));
    let all = [0, 1, 2, 3, 4];
    let forwarded = |nodes: &Nodes, up: &[usize]| {
        tokio::task::block_in_place(|| sum(nodes, up, "pairdb_coordinator_forwarded_total", ""))
    };
    // What one that takes its endpoint as it comes costs.
    let lines: Vec<String> =
        (0..KEYS).map(|n| format!(r#"{{"key":"blind-{n}","value":"v"}}"#)).collect();
    for line in &lines[..20] {
        let name: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let name = name["key"].as_str().expect("text").to_owned();
        tokio::task::block_in_place(|| nodes.ok(0, &["put", &name, "v"]));
    }
    let blind = forwarded(&nodes, &all);
    assert!(blind > 0.0, "else this shows nothing");
    let path = nodes.path(0, "rows.jsonl");
    std::fs::write(&path, lines.join("\n")).expect("written");
    tokio::task::block_in_place(|| nodes.ok(0, &["import", &path, "--overwrite"]));
    assert_eq!(forwarded(&nodes, &all), blind, "the import knows where its keys are");

    let client = client(&nodes, &[0]);
    for n in 0..KEYS {
        client.write(write(n, "one", Bytes::new())).await.expect("all are up");
    }
    assert_eq!(forwarded(&nodes, &all), blind);

    // The endpoint it was given dies, and it goes on.
    nodes.kill(0);
    for n in 0..KEYS {
        let row = client.read("default", key(n)).await.expect("two of three are up");
        client.write(write(n, "two", row.context)).await.expect("two of three are up");
    }
    let keys: Vec<Bytes> = (0..KEYS).map(key).collect();
    let rows = client.batch_read("default", keys.clone()).await.expect("two of three are up");
    for row in &rows {
        use proto::batch_read_result::Result as Item;
        let Some(Item::Row(row)) = &row.result else { panic!("{row:?}") };
        assert_eq!(row.siblings.len(), 1);
        assert_eq!(&row.siblings[0].value[..], b"two");
    }
    let up = [1, 2, 3, 4];
    let mut still = forwarded(&nodes, &up);

    tokio::task::block_in_place(|| nodes.restart(0));
    tokio::task::block_in_place(|| nodes.wait_until_up(1, 5));
    // A paused node answers nobody: others do, long before the call's time is over.
    nodes.pause(1);
    let began = std::time::Instant::now();
    for n in 0..20 {
        client.read("default", key(n)).await.expect("others answer");
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    nodes.resume(1);

    // One more node: the client learns of it by itself, and goes there too.
    let sixth = tokio::task::block_in_place(|| nodes.join());
    tokio::task::block_in_place(|| nodes.wait_until_stable(1, 6));
    let reads = |nodes: &Nodes| {
        let name = "pairdb_rpc_requests_total";
        tokio::task::block_in_place(|| sum(nodes, &[sixth], name, "KeyValue"))
    };
    let (began, at_first) = (std::time::Instant::now(), reads(&nodes));
    while reads(&nodes) < at_first + 20.0 {
        assert!(began.elapsed() < Duration::from_secs(60), "it does not learn of the new node");
        for n in 0..KEYS {
            client.read("default", key(n)).await.expect("all are up");
        }
    }
    // A machine that stalls while the new node answers keeps the client from it for a while: then
    // it is looked again.
    loop {
        let before = reads(&nodes);
        for _ in 0..2 {
            for n in 0..KEYS {
                let row = client.read("default", key(n)).await.expect("all are up");
                client.write(write(n, "three", row.context)).await.expect("all are up");
            }
        }
        let wrong = forwarded(&nodes, &up) - still;
        assert!(wrong < KEYS as f64 / 4.0, "{wrong} writes went to the wrong node");
        still += wrong;
        let taken = reads(&nodes) - before;
        if taken > 20.0 {
            break;
        }
        let is_early = began.elapsed() < Duration::from_secs(120);
        assert!(is_early, "{taken} requests of {} came to the new node", 4 * KEYS);
    }
    let row =
        tokio::task::block_in_place(|| nodes.json(sixth, &["get", "key-7", "--output", "json"]));
    assert_eq!(values(&row), ["three"]);
}
