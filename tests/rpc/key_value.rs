//! Writes, reads, deletes, batches and scans.

use bytes::Bytes;
use pairdb::causality::{Actor, Context, ContextKey};
use pairdb::client::{Client, Options};
use pairdb::proto;
use pairdb::proto::batch_read_result::Result as RowResult;
use pairdb::proto::batch_write_result::Result as WriteResult;
use pairdb::proto::mutation::Change;
use pairdb::store::{EngineKey, TenantId};
use prost::Message as _;
use tonic::Code;

use crate::node::{TestNode, delete, read, refusal, values, write};

#[tokio::test]
async fn a_write_with_the_context_replaces_and_one_without_stays_beside() {
    let node = TestNode::start().await;
    let mut client = node.key_value();
    let first = node.write("colour", "red").await;
    assert_eq!((first.siblings, first.duplicate), (1, false));
    assert_eq!(values(&node.read("colour").await), ["red"]);

    assert_eq!(node.write("colour", "blue").await.siblings, 2);
    let both = node.read("colour").await;
    assert_eq!(values(&both), ["blue", "red"]);

    let merged = proto::WriteRequest { context: both.context, ..write("colour", "violet") };
    assert_eq!(client.write(merged).await.expect("written").into_inner().siblings, 1);
    let row = node.read("colour").await;
    assert_eq!(values(&row), ["violet"]);

    client.delete(delete("colour", row.context)).await.expect("deleted");
    let gone = node.read("colour").await;
    assert!(!gone.found && gone.siblings.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_missing_key_is_an_answer_and_an_empty_value_a_value() {
    let node = TestNode::start().await;
    assert!(!node.read("nothing").await.found);
    node.write("empty", "").await;
    let row = node.read("empty").await;
    assert!(row.found);
    assert_eq!(values(&row), [""]);
    node.stop().await;
}

#[tokio::test]
async fn a_write_with_the_same_idempotency_key_is_the_same_write() {
    let node = TestNode::start().await;
    let mut client = node.key_value();
    let named =
        proto::WriteRequest { idempotency_key: Bytes::from_static(b"n-1"), ..write("k", "v") };
    assert!(!client.write(named.clone()).await.expect("written").into_inner().duplicate);
    assert!(client.write(named).await.expect("written").into_inner().duplicate);
    assert_eq!(values(&node.read("k").await), ["v"]);
    node.stop().await;
}

/// A refused write: a word for it, the request, the code and the reason.
type Refused = (&'static str, proto::WriteRequest, Code, &'static str);

fn refused_writes(context_of_other: Bytes) -> Vec<Refused> {
    use Code::{InvalidArgument, NotFound};
    let good = || write("k", "v");
    let forged = Bytes::from_static(b"forged");
    let torn = context_of_other.slice(..context_of_other.len() - 1);
    vec![
        ("key", proto::WriteRequest { key: Bytes::new(), ..good() }, InvalidArgument, "EMPTY_KEY"),
        (
            "long key",
            proto::WriteRequest { key: vec![7; 4097].into(), ..good() },
            InvalidArgument,
            "KEY_TOO_LONG",
        ),
        (
            "long value",
            proto::WriteRequest { value: vec![7; (1 << 20) + 1].into(), ..good() },
            InvalidArgument,
            "VALUE_TOO_LONG",
        ),
        (
            "no tenant",
            proto::WriteRequest { tenant: String::new(), ..good() },
            InvalidArgument,
            "INVALID_TENANT_NAME",
        ),
        (
            "tenant",
            proto::WriteRequest { tenant: "A b".into(), ..good() },
            InvalidArgument,
            "INVALID_TENANT_NAME",
        ),
        (
            "unknown tenant",
            proto::WriteRequest { tenant: "nobody".into(), ..good() },
            NotFound,
            "UNKNOWN_TENANT",
        ),
        (
            "forged context",
            proto::WriteRequest { context: forged, ..good() },
            InvalidArgument,
            "INVALID_CONTEXT",
        ),
        (
            "torn context",
            proto::WriteRequest { context: torn, ..good() },
            InvalidArgument,
            "INVALID_CONTEXT",
        ),
        (
            "no time",
            proto::WriteRequest { ttl_ms: Some(0), ..good() },
            InvalidArgument,
            "INVALID_TTL",
        ),
        (
            "absurd time",
            proto::WriteRequest { ttl_ms: Some(u64::MAX), ..good() },
            InvalidArgument,
            "INVALID_TTL",
        ),
        (
            "content type",
            proto::WriteRequest { content_type: "x".repeat(256), ..good() },
            InvalidArgument,
            "CONTENT_TYPE_TOO_LONG",
        ),
        (
            "idempotency key",
            proto::WriteRequest { idempotency_key: vec![1; 65].into(), ..good() },
            InvalidArgument,
            "INVALID_IDEMPOTENCY_KEY",
        ),
    ]
}

#[tokio::test]
async fn a_refused_write_says_why_and_changes_nothing() {
    let node = TestNode::start().await;
    let context = node.write("kept", "as it was").await.context;
    let before = node.rows().await;
    for (what, request, code, reason) in refused_writes(context) {
        let status = node.key_value().write(request).await.expect_err(what);
        let expected = (code, reason.to_owned(), Some("not_applied".to_owned()));
        assert_eq!(refusal(&status), expected, "{what}");
    }
    assert_eq!(node.rows().await, before);
    node.stop().await;
}

/// A context whose seal is right and whose time is yet to come: to write above it would mute the
/// key until then. Made here as a node of the cluster with a wrong clock would make it.
#[tokio::test]
async fn a_context_of_the_future_is_refused_and_changes_nothing() {
    let cluster = "01234567-89ab-4def-8123-456789abcdef";
    let node = TestNode::with(&[("cluster.id", cluster)]).await;
    let now = node.write("k", "as it was").await.hlc;
    let before = node.rows().await;
    let cluster = u128::from_str_radix(&cluster.replace('-', ""), 16).expect("hex");
    let cluster = xxhash_rust::xxh3::xxh3_64(&cluster.to_be_bytes());
    let row_key = EngineKey::of(TenantId(1), None, b"k").encode();
    let context_at = |time: u64| {
        let mut bytes = Vec::new();
        let seen = Context::of_winner(Actor::new(7), time);
        seen.encode(ContextKey::new(cluster, &row_key), &mut bytes);
        Bytes::from(bytes)
    };
    let in_ms = |ms: u64| now + (ms << 16);
    for time in [in_ms(3_660_000), in_ms(86_400_000), u64::MAX] {
        let request = proto::WriteRequest { context: context_at(time), ..write("k", "later") };
        let status = node.key_value().write(request).await.expect_err("of the future");
        let (code, reason, outcome) = refusal(&status);
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_CONTEXT"));
        assert_eq!(outcome.as_deref(), Some("not_applied"));
        let text = format!("the context has seen time {time}, now is at most ");
        assert!(status.message().contains(&text), "{}", status.message());
    }
    assert_eq!(node.rows().await, before);
    // Its time alone is what is wrong with it; a node that was started anew gives some that lie a
    // little ahead.
    for time in [now, in_ms(10_000)] {
        let request = proto::WriteRequest { context: context_at(time), ..write("k", "now") };
        node.key_value().write(request).await.expect("of a time that a row may have");
    }
    node.stop().await;
}

#[tokio::test]
async fn a_refused_read_has_no_outcome() {
    let node = TestNode::start().await;
    let status = node.key_value().read(read("")).await.expect_err("no key");
    assert_eq!(refusal(&status), (Code::InvalidArgument, "EMPTY_KEY".to_owned(), None));
    node.stop().await;
}

fn mutation(key: &str, change: Option<Change>) -> proto::Mutation {
    let key = Bytes::copy_from_slice(key.as_bytes());
    proto::Mutation { key, change, ..Default::default() }
}

#[tokio::test]
async fn each_item_of_a_batch_has_its_own_result_in_its_own_place() {
    let node = TestNode::start().await;
    let mut client = node.key_value();
    let value = |text: &'static str| Some(Change::Value(Bytes::from_static(text.as_bytes())));
    node.write("old", "x").await;
    let mutations = vec![
        mutation("a", value("1")),
        mutation("", value("2")),
        mutation("silent", None),
        mutation("old", Some(Change::Delete(true))),
        mutation("b", value("3")),
    ];
    let request =
        proto::BatchWriteRequest { tenant: "default".into(), mutations, ..Default::default() };
    let results = client.batch_write(request).await.expect("answered").into_inner().results;
    let reasons: Vec<&str> = results
        .iter()
        .map(|result| match result.result.as_ref().expect("always one") {
            WriteResult::Written(_) => "ok",
            WriteResult::Failure(failure) => {
                assert_eq!(failure.outcome(), proto::Outcome::NotApplied);
                failure.reason.as_str()
            }
        })
        .collect();
    assert_eq!(reasons, ["ok", "EMPTY_KEY", "INVALID_ARGUMENT", "ok", "ok"]);

    let keys = ["a", "old", "", "b"].map(Bytes::from).to_vec();
    let request = proto::BatchReadRequest { tenant: "default".into(), keys, ..Default::default() };
    let results = client.batch_read(request).await.expect("answered").into_inner().results;
    let found: Vec<String> = results
        .iter()
        .map(|result| match result.result.as_ref().expect("always one") {
            RowResult::Row(row) => values(row).join(","),
            RowResult::Failure(failure) => failure.reason.clone(),
        })
        .collect();
    assert_eq!(found, ["1", "", "EMPTY_KEY", "3"]);
    node.stop().await;
}

/// What is over the bound of a batch is told to be asked for again, also where the node asks for
/// more than it has: for rows as new as a context.
#[tokio::test]
async fn the_answer_to_a_batch_of_large_rows_is_bounded_and_all_of_them_arrive() {
    const ROW: usize = 1 << 20;
    const LIMIT: usize = 16 << 20;
    let node = TestNode::start().await;
    let (mut keys, mut contexts, value) = (Vec::new(), Vec::new(), "v".repeat(ROW));
    for n in 0..64 {
        let key = format!("key-{n}");
        contexts.push(node.write(&key, &value).await.context);
        keys.push(Bytes::from(key));
    }
    for min_contexts in [Vec::new(), contexts] {
        let mut left: Vec<usize> = (0..keys.len()).collect();
        let mut rounds = 0;
        while !left.is_empty() {
            let request = proto::BatchReadRequest {
                tenant: "default".into(),
                keys: left.iter().map(|at| keys[*at].clone()).collect(),
                min_contexts: left.iter().filter_map(|at| min_contexts.get(*at).cloned()).collect(),
                ..Default::default()
            };
            let answer = node.key_value().batch_read(request).await.expect("answered").into_inner();
            let bytes = answer.encoded_len();
            assert!(bytes < LIMIT + ROW + (64 << 10), "{bytes} bytes");
            let is_left_out = |result: &proto::BatchReadResult| match &result.result {
                Some(RowResult::Row(row)) => {
                    assert_eq!(values(row)[0].len(), ROW);
                    false
                }
                Some(RowResult::Failure(failure)) => {
                    assert_eq!(failure.reason, "REPLY_TOO_LARGE");
                    assert_eq!(failure.code, Code::ResourceExhausted as i32);
                    assert!(failure.retry_after_ms > 0 && failure.outcome == 0, "{failure:?}");
                    true
                }
                None => panic!("always one"),
            };
            let again = left.iter().zip(&answer.results).filter(|(_, result)| is_left_out(result));
            left = again.map(|(at, _)| *at).collect();
            rounds += 1;
        }
        assert_eq!(rounds, 4);
    }
    for direct in [false, true] {
        let endpoints = vec![format!("http://{}", node.node.ready.listen)];
        let client = Client::new(Options { endpoints, direct, ..Options::default() });
        let rows = client.expect("a client").batch_read("default", keys.clone()).await;
        let is_row = |one: &proto::BatchReadResult| matches!(one.result, Some(RowResult::Row(_)));
        assert!(rows.expect("answered").iter().filter(|one| is_row(one)).count() == 64);
    }
    node.stop().await;
}

#[tokio::test]
async fn a_batch_over_the_limit_or_of_nobody_is_refused_whole() {
    let node = TestNode::with(&[("limits.batch_max", "3")]).await;
    let mut client = node.key_value();
    let batch = |tenant: &str, items: usize| proto::BatchWriteRequest {
        tenant: tenant.into(),
        mutations: vec![mutation("k", Some(Change::Value(Bytes::new()))); items],
        ..Default::default()
    };
    let status = client.batch_write(batch("default", 4)).await.expect_err("too many");
    assert_eq!(refusal(&status).1, "BATCH_TOO_LARGE");
    assert_eq!(refusal(&status).2.as_deref(), Some("not_applied"));
    let status = client.batch_write(batch("nobody", 1)).await.expect_err("no tenant");
    assert_eq!(refusal(&status).1, "UNKNOWN_TENANT");
    assert!(node.rows().await.is_empty());
    let none = client.batch_write(batch("default", 0)).await.expect("nothing to do");
    assert!(none.into_inner().results.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_scan_shows_every_row_once_and_goes_on_at_its_cursor() {
    let node = TestNode::start().await;
    let mut client = node.key_value();
    let mut written: Vec<String> = (0..2500).map(|i| format!("key-{i:05}")).collect();
    for chunk in written.chunks(500) {
        let value = Some(Change::Value(Bytes::from_static(b"v")));
        let mutations = chunk.iter().map(|key| mutation(key, value.clone())).collect();
        let request =
            proto::BatchWriteRequest { tenant: "default".into(), mutations, ..Default::default() };
        client.batch_write(request).await.expect("written");
    }
    let sorted = |keys: Vec<Bytes>| {
        let text = |key: &Bytes| String::from_utf8(key.to_vec()).expect("tests write UTF-8");
        let mut keys: Vec<String> = keys.iter().map(text).collect();
        keys.sort_unstable();
        keys
    };
    written.sort_unstable();
    let scanned = node.rows().await;
    assert!(scanned.iter().all(|row| row.siblings.len() == 1 && !row.context.is_empty()));
    assert_eq!(sorted(scanned.into_iter().map(|row| row.key).collect()), written);

    // Pages of keys, from cursor to cursor, are the same keys.
    let mut request =
        proto::GetKeyRangeRequest { tenant: "default".into(), limit: 700, ..Default::default() };
    let mut keys = Vec::new();
    loop {
        let page = client.get_key_range(request.clone()).await.expect("a page").into_inner();
        assert!(page.keys.len() <= 700);
        keys.extend(page.keys);
        if page.cursor.is_empty() {
            break;
        }
        request.cursor = page.cursor;
    }
    assert_eq!(sorted(keys), written);

    let limited = proto::ScanRequest { tenant: "default".into(), limit: 3, ..Default::default() };
    let mut pages = client.scan(limited).await.expect("scans").into_inner();
    let mut rows = 0;
    while let Some(page) = pages.message().await.expect("a page") {
        rows += page.rows.len();
    }
    assert_eq!(rows, 3);
    node.stop().await;
}

#[tokio::test]
async fn a_forged_cursor_is_refused() {
    let node = TestNode::start().await;
    node.write("k", "v").await;
    let cursor = Bytes::from_static(b"not a cursor");
    let request = proto::ScanRequest { tenant: "default".into(), cursor, ..Default::default() };
    let status = node.key_value().scan(request).await.expect_err("forged");
    assert_eq!(refusal(&status), (Code::InvalidArgument, "INVALID_CURSOR".to_owned(), None));
    node.stop().await;
}

/// The other doors of the client's port: none takes a bad name or key, or too much.
#[tokio::test]
async fn every_call_refuses_what_a_write_refuses() {
    let node = TestNode::with(&[("limits.batch_max", "3")]).await;
    node.write("kept", "v").await;
    let before = node.rows().await;
    let mut client = node.key_value();
    let long = Bytes::from(vec![7; 4097]);
    for (key, expected) in [(Bytes::new(), "EMPTY_KEY"), (long, "KEY_TOO_LONG")] {
        let request = proto::DeleteRequest { key: key.clone(), ..delete("", Bytes::new()) };
        let status = client.delete(request).await.expect_err(expected);
        let (code, reason, outcome) = refusal(&status);
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, expected));
        assert_eq!(outcome.as_deref(), Some("not_applied"));
        let status = client.read(proto::ReadRequest { key, ..read("") }).await;
        assert_eq!(refusal(&status.expect_err(expected)).1, expected);
    }
    for (tenant, expected) in
        [("", "INVALID_TENANT_NAME"), ("A", "INVALID_TENANT_NAME"), ("nobody", "UNKNOWN_TENANT")]
    {
        let tenant = || tenant.to_owned();
        let request = proto::DeleteRequest { tenant: tenant(), ..delete("k", Bytes::new()) };
        let status = client.delete(request).await.expect_err(expected);
        assert_eq!(refusal(&status).1, expected);
        let status = client.read(proto::ReadRequest { tenant: tenant(), ..read("k") }).await;
        assert_eq!(refusal(&status.expect_err(expected)).1, expected);
        let keys = vec![Bytes::from("k")];
        let request = proto::BatchReadRequest { tenant: tenant(), keys, ..Default::default() };
        let status = client.batch_read(request).await.expect_err(expected);
        assert_eq!(refusal(&status).1, expected);
        let request = proto::ScanRequest { tenant: tenant(), ..Default::default() };
        assert_eq!(refusal(&client.scan(request).await.expect_err(expected)).1, expected);
        let request = proto::GetKeyRangeRequest { tenant: tenant(), ..Default::default() };
        let status = client.get_key_range(request).await.expect_err(expected);
        assert_eq!(refusal(&status).1, expected);
    }
    let keys = vec![Bytes::from("k"); 4];
    let request = proto::BatchReadRequest { tenant: "default".into(), keys, ..Default::default() };
    let status = client.batch_read(request).await.expect_err("too many");
    assert_eq!(refusal(&status).1, "BATCH_TOO_LARGE");
    assert_eq!(node.rows().await, before);
    node.stop().await;
}
