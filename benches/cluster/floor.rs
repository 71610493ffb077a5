//! What moving bytes costs by itself on this machine: a file written in order, and rows in messages
//! over one gRPC stream, neither looked at nor kept.

use std::io::Write as _;
use std::path::Path;
use std::pin::Pin;
use std::time::Instant;

use bytes::Bytes;
use pairdb::proto;
use pairdb::proto::replica_client::ReplicaClient;
use pairdb::proto::replica_server::{Replica, ReplicaServer};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status};

/// Bytes of a message, as of a page.
const MESSAGE_BYTES: usize = 1 << 20;
/// Of both.
const TOTAL_BYTES: usize = 512 << 20;

const MIB: f64 = (1 << 20) as f64;

/// MiB a second that a file takes, to its end on the disk.
pub fn disk_mib_per_s(disk: &Path) -> f64 {
    let mut file = tempfile::tempfile_in(disk).expect("a file where the nodes have theirs");
    let piece = vec![0x5a; MESSAGE_BYTES];
    let began = Instant::now();
    for _ in 0..TOTAL_BYTES / MESSAGE_BYTES {
        file.write_all(&piece).expect("there is room");
    }
    file.sync_data().expect("the disk is well");
    TOTAL_BYTES as f64 / MIB / began.elapsed().as_secs_f64()
}

/// The same page again and again.
struct Pages(proto::StreamKeysResponse);

#[tonic::async_trait]
impl Replica for Pages {
    type StreamKeysStream =
        Pin<Box<dyn Stream<Item = Result<proto::StreamKeysResponse, Status>> + Send>>;

    async fn replicate(
        &self,
        _: Request<proto::ReplicateRequest>,
    ) -> Result<Response<proto::ReplicateResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn repair(
        &self,
        _: Request<proto::RepairRequest>,
    ) -> Result<Response<proto::RepairResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn stream_keys(
        &self,
        _: Request<proto::StreamKeysRequest>,
    ) -> Result<Response<Self::StreamKeysStream>, Status> {
        let page = self.0.clone();
        let pages = (0..TOTAL_BYTES / MESSAGE_BYTES).map(move |_| Ok(page.clone()));
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }
}

/// MiB of rows a second that come over a stream of loopback.
pub fn stream_mib_per_s(runtime: &Runtime, value_bytes: usize) -> f64 {
    let row = |_| proto::RowState {
        tenant_id: 1,
        key: Bytes::from_static(&[b'k'; 16]),
        row: Bytes::from(vec![b'v'; value_bytes]),
    };
    let rows = (0..MESSAGE_BYTES / (value_bytes + 16)).map(row).collect();
    let page = proto::StreamKeysResponse { rows, ..Default::default() };
    runtime.block_on(async move {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = Server::builder().add_service(ReplicaServer::new(Pages(page)));
        let serving = tokio::spawn(server.serve_with_incoming(incoming));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
        let channel = endpoint.connect().await.expect("it listens");
        let mut client = ReplicaClient::new(channel).max_decoding_message_size(4 * MESSAGE_BYTES);
        let began = Instant::now();
        let stream = client.stream_keys(proto::StreamKeysRequest::default()).await;
        let mut stream = stream.expect("it answers").into_inner();
        let mut bytes = 0;
        while let Some(page) = stream.next().await {
            let rows = page.expect("to the end").rows;
            bytes += rows.iter().map(|row| row.key.len() + row.row.len()).sum::<usize>();
        }
        let rate = bytes as f64 / MIB / began.elapsed().as_secs_f64();
        serving.abort();
        rate
    })
}
