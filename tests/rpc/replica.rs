//! Rows between nodes.

use bytes::Bytes;
use pairdb::proto;
use tonic::Code;

use crate::node::{TestNode, delete, refusal, values};

async fn stream(node: &TestNode, batch_bytes: u32) -> Vec<proto::RowState> {
    let request = proto::StreamKeysRequest {
        token_start: 0,
        token_end: u64::MAX,
        batch_bytes,
        ..Default::default()
    };
    let mut stream = node.replica().await.stream_keys(request).await.expect("opened").into_inner();
    let mut rows = Vec::new();
    while let Some(batch) = stream.message().await.expect("a batch") {
        rows.extend(batch.rows);
    }
    rows
}

#[tokio::test]
async fn rows_streamed_from_one_node_are_the_same_rows_on_another() {
    let (one, other) = (TestNode::start().await, TestNode::start().await);
    for i in 0..50 {
        one.write(&format!("k{i}"), "a").await;
    }
    one.write("k7", "b").await;
    // Batches of one row: the stream goes from cursor to cursor.
    let rows = stream(&one, 1).await;
    assert_eq!(rows.len(), 50);

    let mut replica = other.replica().await;
    let request = proto::ReplicateRequest { rows: rows.clone() };
    let results = replica.replicate(request).await.expect("answered").into_inner().results;
    assert_eq!(results.len(), 50);
    assert!(results.iter().all(|result| result.failure.is_none()));
    assert_eq!(values(&other.read("k7").await), ["a", "b"]);

    // Again, as a repair: nothing changes.
    let request = proto::RepairRequest { rows };
    replica.repair(request).await.expect("answered");
    assert_eq!(values(&other.read("k7").await), ["a", "b"]);
    assert_eq!(other.rows().await.len(), 50);
    one.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_refused_alone() {
    let node = TestNode::start().await;
    node.write("k", "v").await;
    let good = stream(&node, 0).await.remove(0);
    let torn = proto::RowState { row: good.row.slice(..good.row.len() - 1), ..good.clone() };
    let nobody = proto::RowState { tenant_id: 999, ..good.clone() };
    let request = proto::ReplicateRequest { rows: vec![torn, good, nobody] };
    let results = node.replica().await.replicate(request).await.expect("answered").into_inner();
    let failed: Vec<bool> = results.results.iter().map(|row| row.failure.is_some()).collect();
    assert_eq!(failed, [true, false, true]);
    node.stop().await;
}

/// For tools: the rows of one tenant from the whole cluster, tombstones too, from cursor to cursor.
#[tokio::test]
async fn rows_of_a_tenant_are_streamed_as_they_are_stored() {
    let node = TestNode::start().await;
    for i in 0..20 {
        node.write(&format!("k{i}"), "v").await;
    }
    let context = node.read("k3").await.context;
    node.key_value().delete(delete("k3", context)).await.expect("deleted");
    let request = proto::StreamKeysRequest {
        tenant: "default".into(),
        batch_bytes: 100,
        ..Default::default()
    };
    let mut replica = node.replica().await;
    let mut stream = replica.stream_keys(request.clone()).await.expect("opened").into_inner();
    let (mut rows, mut cursor) = (Vec::new(), Bytes::new());
    while rows.len() < 10 {
        let batch = stream.message().await.expect("a batch").expect("there are more");
        rows.extend(batch.rows);
        cursor = batch.cursor;
    }
    drop(stream);
    let request = proto::StreamKeysRequest { cursor, ..request };
    let mut stream = replica.stream_keys(request.clone()).await.expect("goes on").into_inner();
    while let Some(batch) = stream.message().await.expect("a batch") {
        rows.extend(batch.rows);
    }
    let mut keys: Vec<Bytes> = rows.iter().map(|row| row.key.clone()).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!((keys.len(), rows.len()), (20, 20), "each once, the deleted one too");
    assert!(rows.iter().all(|row| row.tenant_id == rows[0].tenant_id && !row.row.is_empty()));
    let prefix = Bytes::from_static(b"k1");
    let request = proto::StreamKeysRequest { prefix, cursor: Bytes::new(), ..request };
    let mut stream = replica.stream_keys(request).await.expect("opened").into_inner();
    let mut rows = 0;
    while let Some(batch) = stream.message().await.expect("a batch") {
        rows += batch.rows.len();
    }
    assert_eq!(rows, 11);
    let unknown = proto::StreamKeysRequest { tenant: "nobody".into(), ..Default::default() };
    let status = replica.stream_keys(unknown).await.expect_err("unknown");
    assert_eq!(refusal(&status).1, "UNKNOWN_TENANT");
    node.stop().await;
}

#[tokio::test]
async fn an_empty_token_range_is_refused() {
    let node = TestNode::start().await;
    let request = proto::StreamKeysRequest { token_start: 2, token_end: 1, ..Default::default() };
    let status = node.replica().await.stream_keys(request).await.expect_err("backwards");
    assert_eq!(refusal(&status).0, Code::InvalidArgument);
    node.stop().await;
}

#[tokio::test]
async fn the_client_port_does_not_serve_peers() {
    let node = TestNode::start().await;
    let mut wrong = proto::replica_client::ReplicaClient::new(node.client.clone());
    let status = wrong.replicate(proto::ReplicateRequest::default()).await.expect_err("not here");
    assert_eq!(refusal(&status).0, Code::Unimplemented);
    node.stop().await;
}
