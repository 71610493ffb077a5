//! A node on free ports, in this process, and what tests ask of it.

use bytes::Bytes;
use pairdb::ops::config::{Config, Source, load};
use pairdb::ops::node::Node;
use pairdb::proto;
use pairdb::proto::admin_client::AdminClient;
use pairdb::proto::key_value_client::KeyValueClient;
use pairdb::proto::replica_client::ReplicaClient;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// A running node.
pub struct TestNode {
    pub node: Node,
    pub client: Channel,
    _dir: tempfile::TempDir,
}

/// Settings for a test: free ports, a directory of its own.
pub fn config(dir: &std::path::Path, settings: &[(&str, &str)]) -> Config {
    let own = [
        ("node.data_dir", dir.to_str().expect("a UTF-8 path")),
        ("listen.client", "127.0.0.1:0"),
        ("listen.peer", "127.0.0.1:0"),
        ("listen.admin", "127.0.0.1:0"),
        ("engine.log_segment_bytes", "4MiB"),
    ];
    let all = own.iter().chain(settings);
    let environment = all.map(|(name, value)| {
        let name = format!("PAIRDB__{}", name.to_uppercase().replace('.', "__"));
        (name, (*value).to_owned())
    });
    let source = Source { environment: environment.collect(), ..Source::default() };
    load(&source).expect("the settings are valid").config
}

impl TestNode {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let node = Node::start(config(dir.path(), settings)).await.expect("the node starts");
        let client = connect(&node.ready.listen).await;
        Self { node, client, _dir: dir }
    }

    pub fn key_value(&self) -> KeyValueClient<Channel> {
        KeyValueClient::new(self.client.clone()).max_decoding_message_size(64 << 20)
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.client.clone())
    }

    pub async fn replica(&self) -> ReplicaClient<Channel> {
        ReplicaClient::new(connect(&self.node.ready.peer_listen).await)
    }

    /// All rows of the default tenant: what a refused request must leave alone.
    pub async fn rows(&self) -> Vec<proto::ScanRow> {
        let request = proto::ScanRequest { tenant: "default".into(), ..Default::default() };
        let mut pages = self.key_value().scan(request).await.expect("scans").into_inner();
        let mut rows = Vec::new();
        while let Some(page) = pages.message().await.expect("a page") {
            rows.extend(page.rows);
        }
        rows
    }

    pub async fn read(&self, key: &str) -> proto::ReadResponse {
        let answer = self.key_value().read(read(key)).await;
        answer.expect("a read of a key that may be").into_inner()
    }

    pub async fn write(&self, key: &str, value: &str) -> proto::WriteResponse {
        let answer = self.key_value().write(write(key, value)).await;
        answer.expect("a write that may be").into_inner()
    }

    pub async fn stop(self) {
        self.node.stop(&CancellationToken::new()).await.expect("stops cleanly");
    }
}

pub async fn connect(address: &str) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).expect("an address");
    endpoint.connect().await.expect("the node listens")
}

pub fn write(key: &str, value: &str) -> proto::WriteRequest {
    proto::WriteRequest {
        tenant: "default".into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        ..Default::default()
    }
}

pub fn read(key: &str) -> proto::ReadRequest {
    let key = Bytes::copy_from_slice(key.as_bytes());
    proto::ReadRequest { tenant: "default".into(), key, ..Default::default() }
}

pub fn delete(key: &str, context: Bytes) -> proto::DeleteRequest {
    let key = Bytes::copy_from_slice(key.as_bytes());
    proto::DeleteRequest { tenant: "default".into(), key, context, ..Default::default() }
}

/// The values of a row, sorted.
pub fn values(row: &proto::ReadResponse) -> Vec<&str> {
    let mut values: Vec<&str> = row
        .siblings
        .iter()
        .map(|sibling| std::str::from_utf8(&sibling.value).expect("tests write UTF-8"))
        .collect();
    values.sort_unstable();
    values
}

/// Code, reason and outcome of a refusal. Panics unless it has an `ErrorInfo` of our domain.
pub fn refusal(status: &Status) -> (Code, String, Option<String>) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "pairdb");
    (status.code(), info.reason.clone(), info.metadata.get("outcome").cloned())
}
