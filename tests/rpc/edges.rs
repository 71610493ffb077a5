//! What is wrong before it reaches a handler: time, size, form, and too much at once.

use bytes::{Buf, BufMut, Bytes};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use pairdb::proto;
use pairdb::proto::pipeline_request::Operation;
use pairdb::proto::pipeline_response::Result as Answer;
use prost::Message as _;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Status};

use crate::admin;
use crate::node::{TestNode, delete, read, refusal, write};

/// Sends bytes as they are.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let all = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(all).to_vec()))
    }
}

async fn send_raw(node: &TestNode, path: &'static str, body: Vec<u8>) -> Result<Vec<u8>, Status> {
    let mut client = Grpc::new(node.client.clone());
    client.ready().await.expect("connected");
    let path = PathAndQuery::from_static(path);
    Ok(client.unary(Request::new(body), path, Raw).await?.into_inner())
}

#[tokio::test]
async fn a_malformed_message_is_refused_and_changes_nothing() {
    let node = TestNode::start().await;
    // A field that claims more bytes than there are; a wire type that does not exist; text that is
    // not UTF-8 in the tenant's name.
    for body in [vec![0x12, 0x7f, 1], vec![0x0f], vec![0x0a, 2, 0xff, 0xfe]] {
        let status = send_raw(&node, "/pairdb.v1.KeyValue/Write", body).await.expect_err("bad");
        let (code, reason, outcome) = refusal(&status);
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "MALFORMED_MESSAGE"));
        assert_eq!(outcome.as_deref(), Some("not_applied"));
    }
    assert!(node.rows().await.is_empty());
    node.write("still", "serves").await;
    node.stop().await;
}

#[tokio::test]
async fn a_message_over_the_limit_is_refused_by_name() {
    let node = TestNode::start().await;
    let huge = write("k", &"x".repeat(5 << 20));
    let status = node.key_value().write(huge).await.expect_err("too large");
    let (code, reason, outcome) = refusal(&status);
    assert_eq!((code, reason.as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert_eq!(outcome.as_deref(), Some("not_applied"));
    assert!(node.rows().await.is_empty());
    node.stop().await;
}

/// What came before a message that cannot be read is good. It is answered; then the stream ends,
/// for a reason.
#[tokio::test]
async fn a_pipeline_answers_what_came_before_a_message_that_cannot_be_read() {
    let node = TestNode::start().await;
    let operation = Some(Operation::Write(write("good", "v")));
    let good = proto::PipelineRequest { tag: 7, operation }.encode_to_vec();
    for (bad, code, reason) in [
        (vec![0x0f], Code::InvalidArgument, "MALFORMED_MESSAGE"),
        (vec![0; 5 << 20], Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
    ] {
        let mut client = Grpc::new(node.client.clone());
        client.ready().await.expect("connected");
        let path = PathAndQuery::from_static("/pairdb.v1.KeyValue/Pipeline");
        let messages = Request::new(tokio_stream::iter([good.clone(), bad]));
        let stream = client.streaming(messages, path, Raw).await.expect("opened");
        let mut stream = stream.into_inner();
        let answer = stream.message().await.expect("the stream goes on").expect("an answer");
        let answer = proto::PipelineResponse::decode(&answer[..]).expect("a response");
        assert!(matches!((answer.tag, answer.result), (7, Some(Answer::Written(_)))));
        let status = stream.message().await.expect_err("the message is bad");
        let (found, why, _) = refusal(&status);
        assert_eq!((found, why.as_str()), (code, reason));
    }
    node.stop().await;
}

/// A level that a later version may know must not be taken for another one.
#[tokio::test]
async fn a_consistency_level_that_is_none_is_refused() {
    const NONE: i32 = 17;
    let node = TestNode::start().await;
    let mut client = node.key_value();
    let tenant = || "default".to_owned();
    let refused = [
        client.write(proto::WriteRequest { consistency: NONE, ..write("k", "v") }).await.err(),
        client
            .delete(proto::DeleteRequest { consistency: NONE, ..delete("k", Bytes::new()) })
            .await
            .err(),
        client
            .batch_write(proto::BatchWriteRequest {
                tenant: tenant(),
                consistency: NONE,
                mutations: vec![proto::Mutation {
                    key: "k".into(),
                    change: Some(proto::mutation::Change::Delete(true)),
                    ..Default::default()
                }],
            })
            .await
            .err(),
        client.read(proto::ReadRequest { consistency: NONE, ..read("k") }).await.err(),
        client
            .batch_read(proto::BatchReadRequest {
                tenant: tenant(),
                keys: vec!["k".into()],
                consistency: NONE,
                ..Default::default()
            })
            .await
            .err(),
        client
            .scan(proto::ScanRequest { tenant: tenant(), consistency: NONE, ..Default::default() })
            .await
            .err(),
        client
            .get_key_range(proto::GetKeyRangeRequest {
                tenant: tenant(),
                consistency: NONE,
                ..Default::default()
            })
            .await
            .err(),
    ];
    for (at, status) in refused.into_iter().enumerate() {
        let (code, reason, outcome) = refusal(&status.unwrap_or_else(|| panic!("{at} is served")));
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"), "{at}");
        assert_eq!(outcome.as_deref(), (at < 3).then_some("not_applied"), "{at}");
    }
    let operations = [
        Operation::Write(proto::WriteRequest { consistency: NONE, ..write("k", "v") }),
        Operation::Delete(proto::DeleteRequest { consistency: NONE, ..delete("k", Bytes::new()) }),
        Operation::Read(proto::ReadRequest { consistency: NONE, ..read("k") }),
    ];
    let requests =
        operations.map(|operation| proto::PipelineRequest { tag: 1, operation: Some(operation) });
    let stream = client.pipeline(tokio_stream::iter(requests)).await.expect("opened");
    let mut stream = stream.into_inner();
    for _ in 0..3 {
        let answer = stream.message().await.expect("goes on").expect("an answer");
        let Some(Answer::Failure(failure)) = answer.result else { panic!("{answer:?}") };
        assert_eq!(failure.reason, "INVALID_ARGUMENT");
    }
    assert!(node.rows().await.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn an_unknown_call_has_error_info_too() {
    let node = TestNode::start().await;
    let status = send_raw(&node, "/pairdb.v1.KeyValue/Nothing", vec![]).await.expect_err("none");
    assert_eq!(refusal(&status).0, Code::Unimplemented);
    node.stop().await;
}

#[tokio::test]
async fn a_timeout_that_is_none_is_refused() {
    let node = TestNode::start().await;
    let mut request = Request::new(write("k", "v"));
    request.metadata_mut().insert("grpc-timeout", "soon".parse().expect("ASCII"));
    let status = node.key_value().write(request).await.expect_err("not a timeout");
    let (code, reason, outcome) = refusal(&status);
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    assert_eq!(outcome.as_deref(), Some("not_applied"));
    node.stop().await;
}

#[tokio::test]
async fn a_write_whose_time_is_over_before_it_begins_is_not_applied() {
    // The server's cap is over before so much has arrived; it is none of a scan.
    let large = [("limits.message_bytes_max", "64MiB"), ("limits.batch_bytes_max", "64MiB")];
    let node = TestNode::with(&[("limits.deadline_max", "1ms"), large[0], large[1]]).await;
    let value = Bytes::from(vec![0; 1 << 20]);
    let change = Some(proto::mutation::Change::Value(value));
    let mutation = proto::Mutation { key: "k".into(), change, ..Default::default() };
    let batch = proto::BatchWriteRequest {
        tenant: "default".into(),
        mutations: vec![mutation; 48],
        ..Default::default()
    };
    let status = node.key_value().batch_write(batch).await.expect_err("too late");
    let (code, reason, outcome) = refusal(&status);
    assert_eq!((code, reason.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(outcome.as_deref(), Some("not_applied"));
    assert!(node.rows().await.is_empty());
    node.stop().await;
}

/// Headers alone, on a connection without a clock of its own: it is the node that answers, with all
/// that an error has, and not the library, which has a clock for the same header.
#[tokio::test]
async fn a_call_whose_body_does_not_come_is_answered_by_the_node() {
    let node = TestNode::start().await;
    let stream = tokio::net::TcpStream::connect(&node.node.ready.listen).await.expect("it listens");
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut client, connection) = handshake.await.expect("HTTP/2");
    let connection = tokio::spawn(connection);
    for (method, outcome) in [("Write", Some("not_applied")), ("Read", None), ("Scan", None)] {
        let nothing = StreamBody::new(tokio_stream::pending::<Result<Frame<Bytes>, Status>>());
        let request = hyper::Request::post(format!("http://node/pairdb.v1.KeyValue/{method}"))
            .header("content-type", "application/grpc")
            .header("grpc-timeout", "100m")
            .body(nothing)
            .expect("a request");
        let answer = client.send_request(request).await.expect("answered");
        let mut headers = answer.headers().clone();
        if let Some(trailers) = answer.into_body().collect().await.expect("ends").trailers() {
            headers.extend(trailers.clone());
        }
        let status = Status::from_header_map(&headers).expect("a status");
        let (code, reason, told) = refusal(&status);
        assert_eq!((code, reason.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
        assert_eq!(told.as_deref(), outcome, "{method}");
        let counted = format!(
            "pairdb_rpc_requests_total{{grpc_code=\"DEADLINE_EXCEEDED\",\
             grpc_method=\"{method}\",grpc_service=\"KeyValue\"}} 1\n"
        );
        let (_, metrics) = admin::get(&node.node.ready.admin_listen, "/metrics").await;
        assert!(metrics.contains(&counted), "{counted} is missing in\n{metrics}");
    }
    connection.abort();
    node.stop().await;
}

#[tokio::test]
async fn the_request_id_is_echoed_or_made() {
    let node = TestNode::start().await;
    let mut request = Request::new(read("k"));
    request.metadata_mut().insert("x-request-id", "job-7".parse().expect("ASCII"));
    let answer = node.key_value().read(request).await.expect("read");
    assert_eq!(answer.metadata().get("x-request-id").expect("echoed"), "job-7");
    let answer = node.key_value().read(read("k")).await.expect("read");
    assert_eq!(answer.metadata().get("x-request-id").expect("made").len(), 32);
    let status = node.key_value().read(read("")).await.expect_err("no key");
    assert!(status.metadata().get("x-request-id").is_some(), "errors have it as well");
    node.stop().await;
}

#[tokio::test]
async fn more_pipelines_than_allowed_are_refused_not_queued() {
    let node = TestNode::with(&[("limits.pipelines_max", "1")]).await;
    let (_open, requests) = tokio::sync::mpsc::channel::<proto::PipelineRequest>(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let _first = node.key_value().pipeline(requests).await.expect("opened");
    let second = node.key_value().pipeline(tokio_stream::empty()).await.expect_err("full");
    assert_eq!(refusal(&second).1, "TOO_MANY_REQUESTS");
    node.stop().await;
}

#[tokio::test]
async fn a_stop_ends_open_streams_with_a_reason_and_waits_for_none() {
    let node = TestNode::start().await;
    let (_open, requests) = tokio::sync::mpsc::channel::<proto::PipelineRequest>(1);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut stream = node.key_value().pipeline(requests).await.expect("opened").into_inner();
    let stopping = tokio::spawn(node.stop());
    let status = stream.message().await.expect_err("the node stops");
    let (code, reason, _) = refusal(&status);
    assert_eq!((code, reason.as_str()), (Code::Unavailable, "STOPPING"));
    drop(stream);
    stopping.await.expect("stopped");
}
