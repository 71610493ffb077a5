//! Many operations on one stream.

use std::collections::HashMap;
use std::time::Duration;

use pairdb::proto::key_value_client::KeyValueClient;
use pairdb::proto::pipeline_request::Operation;
use pairdb::proto::pipeline_response::Result as Answer;
use pairdb::proto::{PipelineRequest, WriteRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::admin;
use crate::node::{TestNode, connect, delete, read, values, write};

async fn run(node: &TestNode, operations: Vec<Operation>) -> HashMap<u64, Answer> {
    let (sender, receiver) = mpsc::channel(16);
    let sending = tokio::spawn(async move {
        for (tag, operation) in operations.into_iter().enumerate() {
            let request = PipelineRequest { tag: tag as u64, operation: Some(operation) };
            sender.send(request).await.expect("the stream is open");
        }
    });
    let stream = node.key_value().pipeline(ReceiverStream::new(receiver)).await;
    let mut stream = stream.expect("opened").into_inner();
    let mut answers = HashMap::new();
    while let Some(answer) = stream.message().await.expect("no operation ends the stream") {
        let twice = answers.insert(answer.tag, answer.result.expect("always one"));
        assert!(twice.is_none(), "{} is answered twice", answer.tag);
    }
    sending.await.expect("all are sent");
    answers
}

#[tokio::test]
async fn every_operation_is_answered_once_also_when_more_are_sent_than_fit() {
    let node = TestNode::with(&[("limits.pipeline_in_flight_max", "8")]).await;
    let writes = (0..500).map(|i| Operation::Write(write(&format!("k{i}"), &format!("v{i}"))));
    let answers = run(&node, writes.collect()).await;
    assert_eq!(answers.len(), 500);
    assert!(answers.values().all(|answer| matches!(answer, Answer::Written(_))));
    assert_eq!(values(&node.read("k499").await), ["v499"]);
    assert_eq!(node.rows().await.len(), 500);
    node.stop().await;
}

#[tokio::test]
async fn a_read_sees_the_writes_before_it_on_the_stream() {
    let node = TestNode::start().await;
    let operations = vec![
        Operation::Read(read("k")),
        Operation::Write(write("k", "1")),
        Operation::Read(read("k")),
        Operation::Delete(delete("k", bytes::Bytes::new())),
        Operation::Read(read("k")),
    ];
    let answers = run(&node, operations).await;
    let seen = |tag: u64| match &answers[&tag] {
        Answer::Read(row) => values(row).join(","),
        other => panic!("{other:?}"),
    };
    assert_eq!((seen(0), seen(2), seen(4)), (String::new(), "1".to_owned(), String::new()));
    assert!(matches!(answers[&3], Answer::Deleted(_)));
    node.stop().await;
}

#[tokio::test]
async fn a_bad_operation_fails_alone() {
    let node = TestNode::start().await;
    let nobody = WriteRequest { tenant: "nobody".into(), ..write("k", "v") };
    let operations = vec![
        Operation::Write(write("", "v")),
        Operation::Write(nobody),
        Operation::Read(read("")),
        Operation::Write(write("good", "v")),
    ];
    let answers = run(&node, operations).await;
    let reason = |tag: u64| match &answers[&tag] {
        Answer::Failure(failure) => failure.reason.as_str(),
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(0), "EMPTY_KEY");
    assert_eq!(reason(1), "UNKNOWN_TENANT");
    assert_eq!(reason(2), "EMPTY_KEY");
    assert!(matches!(answers[&3], Answer::Written(_)));
    node.stop().await;
}

/// Writes that arrive together are submitted together, but each is a write of its own: the limits
/// of a batch, in items and in bytes, are none of a pipeline.
#[tokio::test]
async fn the_limits_of_a_batch_do_not_concern_a_pipeline() {
    let settings = [("limits.batch_max", "3"), ("limits.batch_bytes_max", "2MiB")];
    let node = TestNode::with(&settings).await;
    let small = (0..100).map(|i| Operation::Write(write(&format!("small{i}"), "v")));
    let large = "v".repeat(1 << 20);
    let large = (0..8).map(|i| Operation::Write(write(&format!("large{i}"), &large)));
    for operations in [small.collect::<Vec<_>>(), large.collect()] {
        let sent = operations.len();
        let answers = run(&node, operations).await;
        let written = answers.values().filter(|answer| matches!(answer, Answer::Written(_)));
        assert_eq!(written.count(), sent, "{answers:?}");
    }
    node.stop().await;
}

/// Bytes of values that the node has answered with, also those that nobody has received yet.
async fn answered_bytes(node: &TestNode) -> u64 {
    admin::figure(&node.node, "pairdb_rpc_sent_bytes_total").await
}

/// A client that does not receive its answers: what waits for it in memory is bounded in bytes, not
/// only in number. When it receives again all answers come, in their order where one node is asked.
#[tokio::test]
async fn large_answers_that_nobody_receives_are_bounded_in_bytes() {
    const VALUE: usize = 1 << 20;
    const READS: u64 = 64;
    /// Room for eight, one in hand, and what the connection has taken.
    const WAIT_MAX: u64 = 13 << 20;
    let node = TestNode::start().await;
    node.write("large", &"v".repeat(VALUE)).await;
    let requests = (0..READS).map(|tag| {
        let operation = match tag % 2 {
            0 => Operation::Read(read("large")),
            _ => Operation::Write(write(&format!("small{tag}"), "v")),
        };
        PipelineRequest { tag, operation: Some(operation) }
    });
    // A connection of its own: its window fills up.
    let mut client = KeyValueClient::new(connect(&node.node.ready.listen).await)
        .max_decoding_message_size(64 << 20);
    let requests: Vec<_> = requests.collect();
    let stream = client.pipeline(tokio_stream::iter(requests)).await.expect("opened");
    let mut stream = stream.into_inner();
    // Until there is no room for one more. What it does meanwhile shows that it goes no further.
    let filled = async {
        while answered_bytes(&node).await < 8 << 20 {
            node.read("small1").await;
        }
        for _ in 0..200 {
            node.read("small1").await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), filled).await.expect("the room is filled");
    let mut received = 0;
    let mut tags = Vec::new();
    loop {
        let waits = answered_bytes(&node).await - received;
        assert!(waits <= WAIT_MAX, "{waits} bytes wait after {} answers", tags.len());
        let next = tokio::time::timeout(Duration::from_secs(60), stream.message()).await;
        let Some(answer) = next.expect("in time").expect("goes on") else { break };
        match answer.result.expect("always one") {
            Answer::Read(row) => received += row.siblings[0].value.len() as u64,
            other => assert!(matches!(other, Answer::Written(_)), "{other:?}"),
        }
        tags.push(answer.tag);
    }
    tags.sort_unstable();
    assert_eq!(tags, (0..READS).collect::<Vec<_>>());
    assert_eq!(received, READS / 2 * VALUE as u64);
    node.stop().await;
}
