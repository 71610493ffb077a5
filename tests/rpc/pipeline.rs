//! Many operations on one stream.

use std::collections::HashMap;

use pairdb::proto::pipeline_request::Operation;
use pairdb::proto::pipeline_response::Result as Answer;
use pairdb::proto::{PipelineRequest, WriteRequest};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::node::{TestNode, delete, read, values, write};

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
