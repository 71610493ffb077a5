//! Tenants, upkeep, and the pages for operators.

use pairdb::client::{Admin, Client, Options};
use pairdb::ops::node::{Error, Node};
use pairdb::proto;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::node::{TestNode, config, refusal, write};

fn create(name: &str) -> proto::CreateTenantRequest {
    let tenant = proto::Tenant { name: name.into(), ..Default::default() };
    proto::CreateTenantRequest { tenant: Some(tenant) }
}

#[tokio::test]
async fn a_tenant_is_created_once_listed_and_changed() {
    let node = TestNode::start().await;
    let mut admin = node.admin();
    let spec = proto::Tenant {
        name: "orders".into(),
        mode: proto::TenantMode::LastWriteWins.into(),
        partition_delimiter: ":".into(),
        default_ttl_ms: 5000,
        ..Default::default()
    };
    let request = proto::CreateTenantRequest { tenant: Some(spec) };
    let made = admin.create_tenant(request.clone()).await.expect("created").into_inner().tenant;
    let made = made.expect("the tenant");
    assert_eq!(made.mode(), proto::TenantMode::LastWriteWins);
    assert!(made.id > 0 && made.replication_factor == 3);
    let status = admin.create_tenant(request).await.expect_err("it exists");
    assert_eq!(refusal(&status).1, "TENANT_EXISTS");

    let names = |answer: proto::ListTenantsResponse| {
        answer.tenants.into_iter().map(|tenant| tenant.name).collect::<Vec<_>>()
    };
    let listed = admin.list_tenants(proto::ListTenantsRequest {}).await.expect("listed");
    assert_eq!(names(listed.into_inner()), ["default", "orders"]);

    let change = proto::SetTenantRequest {
        name: "orders".into(),
        default_ttl_ms: Some(0),
        ..Default::default()
    };
    admin.set_tenant(change).await.expect("changed");
    let name = "orders".to_owned();
    let shown = admin.get_tenant(proto::GetTenantRequest { name }).await.expect("shown");
    let shown = shown.into_inner().tenant.expect("the tenant");
    assert_eq!((shown.default_ttl_ms, &shown.partition_delimiter[..]), (0, &b":"[..]));

    // A last-write-wins tenant keeps one value.
    for value in ["1", "2"] {
        let request = proto::WriteRequest { tenant: "orders".into(), ..write("k", value) };
        let written = node.key_value().write(request).await.expect("written").into_inner();
        assert_eq!(written.siblings, 1);
    }
    node.stop().await;
}

/// All figures of what is wrong, and nothing of the change is done.
#[tokio::test]
async fn a_change_of_a_tenant_that_may_not_be_is_refused_as_a_whole() {
    let node = TestNode::start().await;
    let mut admin = node.admin();
    let change = proto::SetTenantRequest {
        name: "default".into(),
        default_ttl_ms: Some(10_000),
        max_ttl_ms: Some(5_000),
        replication_factor: Some(2),
    };
    let status = admin.set_tenant(change).await.expect_err("the default is above the maximum");
    let (code, reason, outcome) = refusal(&status);
    assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_TTL"));
    assert_eq!(outcome.as_deref(), Some("not_applied"));
    let name = "default".to_owned();
    let shown = admin.get_tenant(proto::GetTenantRequest { name }).await.expect("shown");
    let shown = shown.into_inner().tenant.expect("the tenant");
    assert_eq!((shown.default_ttl_ms, shown.max_ttl_ms, shown.replication_factor), (0, 0, 3));
    node.stop().await;
}

#[tokio::test]
async fn a_tenant_of_a_bad_name_is_refused_and_not_listed() {
    let node = TestNode::start().await;
    let mut admin = node.admin();
    for bad in ["", "Upper", "a b", "a_b", "\u{e9}", &"a".repeat(64)] {
        let status = admin.create_tenant(create(bad)).await.expect_err(bad);
        let (code, reason, _) = refusal(&status);
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_TENANT_NAME"));
    }
    let status = admin.create_tenant(proto::CreateTenantRequest { tenant: None }).await;
    assert_eq!(refusal(&status.expect_err("none")).1, "INVALID_ARGUMENT");
    let listed = admin.list_tenants(proto::ListTenantsRequest {}).await.expect("listed");
    assert_eq!(listed.into_inner().tenants.len(), 1);
    node.stop().await;
}

#[tokio::test]
async fn upkeep_keeps_the_data() {
    let node = TestNode::start().await;
    let mut admin = node.admin();
    for i in 0..100 {
        node.write(&format!("k{i}"), "v").await;
    }
    let before = node.rows().await;
    admin.flush(proto::FlushRequest {}).await.expect("flushed");
    admin.compact(proto::CompactRequest {}).await.expect("compacted");
    let report = admin.scrub(proto::ScrubRequest {}).await.expect("scrubbed").into_inner();
    assert!(report.damage.is_empty());
    assert_eq!(node.rows().await, before);

    let request = proto::CheckpointRequest { name: "one".into() };
    let made = admin.checkpoint(request.clone()).await.expect("made").into_inner();
    assert!(std::path::Path::new(&made.path).is_dir());
    admin.checkpoint(request).await.expect_err("it exists");
    let outside = proto::CheckpointRequest { name: "../out".into() };
    let status = admin.checkpoint(outside).await.expect_err("outside");
    assert_eq!(refusal(&status).1, "INVALID_ARGUMENT");
    node.stop().await;
}

/// A page's code and text.
pub async fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.expect("the node listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.expect("a status line"), answer)
}

/// A figure of the metrics page.
pub async fn figure(node: &Node, name: &str) -> u64 {
    let (_, text) = get(&node.ready.admin_listen, "/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is missing")).parse().expect("a number")
}

/// Each write of a batch counts, whatever became of it, and what is sent and received either way.
#[tokio::test]
async fn writes_and_bytes_are_counted_one_by_one() {
    let node = TestNode::with(&[("limits.batch_max", "3")]).await;
    let good = |key: &'static str| proto::Mutation {
        key: key.into(),
        change: Some(proto::mutation::Change::Value("value".into())),
        ..Default::default()
    };
    let none = || proto::Mutation { key: "k".into(), ..Default::default() };
    let batch = |tenant: &str, mutations: Vec<proto::Mutation>| proto::BatchWriteRequest {
        tenant: tenant.into(),
        mutations,
        ..Default::default()
    };
    let mut client = node.key_value();
    let outcomes = async || {
        let name = |outcome| format!("pairdb_rpc_writes_total{{outcome=\"{outcome}\"}}");
        (figure(&node.node, &name("ok")).await, figure(&node.node, &name("not_applied")).await)
    };
    client.batch_write(batch("default", vec![good("one"), none(), none()])).await.expect("each");
    assert_eq!(outcomes().await, (1, 2));
    let all = vec![none(); 4];
    client.batch_write(batch("default", all)).await.expect_err("too many");
    assert_eq!(outcomes().await, (1, 6));
    let two = vec![good("a"), good("b")];
    client.batch_write(batch("nobody", two)).await.expect_err("no such tenant");
    assert_eq!(outcomes().await, (1, 8));

    let (received, sent) = ("pairdb_rpc_received_bytes_total", "pairdb_rpc_sent_bytes_total");
    let before = (figure(&node.node, received).await, figure(&node.node, sent).await);
    assert_eq!(before.0, 8, "a key of three and a value of five");
    let keys = vec!["one".into(), "nothing".into()];
    let reads = proto::BatchReadRequest { tenant: "default".into(), keys, ..Default::default() };
    client.batch_read(reads).await.expect("read");
    assert_eq!(
        (figure(&node.node, received).await, figure(&node.node, sent).await),
        (18, before.1 + 5)
    );
    assert_eq!(node.rows().await.len(), 1);
    assert_eq!(figure(&node.node, sent).await, before.1 + 5 + 8, "rows of a scan have their keys");
    node.stop().await;
}

/// Who starts nodes may try again in the same process.
#[tokio::test]
async fn a_start_that_fails_at_its_end_leaves_nothing_running() {
    let dir = tempfile::tempdir().expect("a directory");
    let nowhere = dir.path().join("nowhere").join("ready.json");
    let nowhere = [("node.ready_file", nowhere.to_str().expect("UTF-8"))];
    let data = dir.path().join("data");
    let refused = Node::start(config(&data, &nowhere)).await;
    let Err(Error::System { what, .. }) = refused else { panic!("there is no such directory") };
    assert!(what.starts_with("write the ready file"), "{what}");
    let node = Node::start(config(&data, &[])).await.expect("nobody holds the data");
    node.stop(&CancellationToken::new()).await.expect("stops cleanly");
}

#[tokio::test]
async fn the_pages_show_health_and_every_subsystem() {
    let node = TestNode::start().await;
    node.write("k", "v").await;
    node.read("k").await;
    let admin = &node.node.ready.admin_listen;
    for path in ["/health", "/health/live", "/health/ready", "/ready"] {
        let (code, body) = get(admin, path).await;
        assert_eq!(code, 200, "{path}: {body}");
        assert!(body.contains("\"state\":\"serving\""), "{path}: {body}");
    }
    assert_eq!(get(admin, "/nothing").await.0, 404);

    let (code, metrics) = get(admin, "/metrics").await;
    assert_eq!(code, 200);
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    for name in [
        "pairdb_rpc_requests_total{grpc_code=\"OK\",grpc_method=\"Write\",\
         grpc_service=\"KeyValue\"} 1",
        "pairdb_rpc_request_duration_seconds_count{grpc_method=\"Read\"",
        "pairdb_rpc_writes_total{outcome=\"ok\"} 1",
        "pairdb_rpc_received_bytes_total",
        "pairdb_cache_hits_total",
        "pairdb_memtable_size_bytes",
        "pairdb_sstable_count{level=\"0\"}",
        "pairdb_commit_log_syncs_total",
        "pairdb_compaction_debt_bytes",
        "pairdb_store_pressure_ratio",
        "pairdb_build_info",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    node.stop().await;
}

#[tokio::test]
async fn health_and_status_say_that_the_node_serves() {
    let node = TestNode::start().await;
    let mut health = HealthClient::new(node.client.clone());
    for service in ["", "pairdb.v1.KeyValue", "pairdb.v1.Admin"] {
        let request = HealthCheckRequest { service: service.into() };
        let answer = health.check(request).await.expect("known").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let status = node.admin().node_status(proto::NodeStatusRequest {}).await.expect("answered");
    let status = status.into_inner();
    assert_eq!(status.state, "serving");
    assert_eq!(status.node_id, node.node.ready.node_id);
    assert!(status.figures.contains_key("pairdb_memtable_size_bytes"));
    node.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_cannot_be_reached_is_passed_over() {
    let node = TestNode::start().await;
    // Free again when this is over.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|closed| closed.local_addr());
    let closed = format!("http://{}", closed.expect("a free port"));
    let serves = format!("http://{}", node.node.ready.listen);
    let ask = async |endpoints: &[&String]| {
        let endpoints = endpoints.iter().copied().cloned().collect();
        let client = Client::new(Options { endpoints, ..Options::default() }).expect("two");
        let call = async |admin: &mut Admin, request| admin.node_status(request).await;
        for _ in 0..3 {
            client.admin_call(proto::NodeStatusRequest {}, call).await?;
        }
        Ok::<_, pairdb::client::Error>(())
    };
    ask(&[&closed, &serves]).await.expect("the second serves");
    ask(&[&serves, &closed]).await.expect("the first serves");
    let nobody = ask(&[&closed, &closed]).await.expect_err("nobody is there");
    assert_eq!(nobody.reason(), "UNREACHABLE");
    node.stop().await;
}
