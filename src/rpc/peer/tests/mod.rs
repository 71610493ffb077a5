//! Nodes that talk to each other, over a network in memory and over the machine's.

mod net;
mod put_back;
mod refusals;
mod speed;
mod streams;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::async_trait;

use self::net::MemNet;
use super::{Counters, Options, PeerClient, PeerService};
use crate::cluster::NodeId;
use crate::cluster::incoming::Incoming;
use crate::cluster::local::Local;
use crate::cluster::net::{Net, TokioNet};
use crate::cluster::peer::{Class, PeerError, PeerHandler, Peers, Reply, Request};
use crate::cluster::view::Liveness;
use crate::proto::peer_server::PeerServer;
use crate::rpc::connection::Connections;
use crate::store::environment::{ManualClock, SeededRandom};

const CLUSTER: NodeId = NodeId(100);
const LONG: Duration = Duration::from_secs(30);

/// Answers `Raft(bytes)` with the same bytes; some of them mean more.
#[derive(Default)]
struct Echo {
    asked: AtomicU64,
    dropped: AtomicU64,
    /// Requests "hold" wait for it.
    gate: Notify,
    holds: Notify,
    posts: Mutex<Vec<(NodeId, Request)>>,
    posted: Notify,
}

struct CountDrop<'a>(&'a AtomicU64);

impl Drop for CountDrop<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[async_trait]
impl PeerHandler for Echo {
    async fn handle(
        &self,
        _from: NodeId,
        _class: Class,
        epoch: u64,
        request: Request,
        _timeout: Duration,
    ) -> Result<Reply, PeerError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let bytes = match request {
            Request::Raft(bytes) => bytes,
            Request::Document(_) => {
                return Ok(Reply::Document(crate::proto::DocumentReply::default()));
            }
            _ => return Err(PeerError::NotAReplica),
        };
        match &bytes[..] {
            b"hold" => {
                let _gone = CountDrop(&self.dropped);
                self.holds.notify_one();
                self.gate.notified().await;
            }
            b"large" => return Ok(Reply::Raft(vec![b'x'; 2000].into())),
            b"stale" => return Err(PeerError::StaleLayout { epoch: epoch + 1 }),
            _ => {}
        }
        Ok(Reply::Raft(bytes))
    }

    fn take_post(&self, from: NodeId, request: Request) {
        self.posts.lock().push((from, request));
        self.posted.notify_one();
    }
}

/// Where everybody is, for all nodes of a test.
#[derive(Default)]
struct Book(Mutex<BTreeMap<NodeId, String>>);

impl Liveness for Book {
    fn is_up(&self, _node: NodeId) -> bool {
        true
    }

    fn address(&self, node: NodeId) -> Option<String> {
        self.0.lock().get(&node).cloned()
    }
}

/// What the nodes of a test share.
struct World {
    net: Arc<dyn Net>,
    /// A network that has ports of its own.
    ports: bool,
    book: Arc<Book>,
    options: Options,
    /// By the nodes started from here on.
    lease_found: u64,
}

impl World {
    fn new(net: Arc<dyn Net>, ports: bool) -> Self {
        let (book, options) = (Arc::default(), Options::default());
        Self { net, ports, book, options, lease_found: u64::MAX }
    }

    /// Over the loopback of the machine.
    fn on_loopback() -> Self {
        Self::new(Arc::new(TokioNet), true)
    }

    /// Over memory, and the network itself.
    fn in_memory() -> (Self, Arc<MemNet>) {
        let net = Arc::new(MemNet::default());
        (Self::new(Arc::clone(&net) as _, false), net)
    }

    async fn node(&self, id: u128, cluster: Option<NodeId>) -> TestNode {
        self.start(id, cluster, 1, "127.0.0.1:0".parse().expect("an address")).await
    }

    async fn start(
        &self,
        id: u128,
        cluster: Option<NodeId>,
        generation: u64,
        at: SocketAddr,
    ) -> TestNode {
        // The network in memory gives no free ports: one for each node.
        let port = at.port().max(1000 + u16::try_from(id).expect("small"));
        let at = if self.ports { at } else { SocketAddr::new(at.ip(), port) };
        let listener = self.net.bind(at).await.expect("bound");
        let address = listener.local_addr().expect("bound").to_string();
        let node = NodeId(id);
        let clock = Arc::new(ManualClock::new(1));
        let local = Local::new(node, generation, cluster, address.clone(), clock);
        let local = Arc::new(local.with_lease_found(self.lease_found));
        self.book.0.lock().insert(node, address.clone());
        let handler = Arc::new(Echo::default());
        let counters = Arc::new(Counters::default());
        let options = || self.options.clone();
        let service = PeerService::new(
            Arc::clone(&local),
            Arc::clone(&handler) as _,
            options(),
            Arc::clone(&counters),
        );
        let limit = service.message_bytes_max();
        let server = PeerServer::new(service.clone())
            .max_decoding_message_size(limit)
            .max_encoding_message_size(limit);
        let serving = tokio::spawn(
            tonic::transport::Server::builder()
                .initial_stream_window_size(8 << 20)
                .initial_connection_window_size(8 << 20)
                .max_frame_size(service.frame_bytes())
                .add_service(server)
                .serve_with_incoming(Connections(Incoming::new(listener))),
        );
        let client = PeerClient::new(
            Arc::clone(&local),
            Arc::clone(&self.net),
            options(),
            Arc::clone(&counters),
            Arc::new(SeededRandom::new(7)),
        )
        .expect("the settings are valid");
        client.listen_to(Arc::clone(&self.book) as _);
        let client = Arc::new(client);
        TestNode { node, address, local, handler, counters, service, client, serving }
    }
}

struct TestNode {
    node: NodeId,
    address: String,
    local: Arc<Local>,
    handler: Arc<Echo>,
    counters: Arc<Counters>,
    service: PeerService,
    client: Arc<PeerClient>,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Drop for TestNode {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl TestNode {
    /// Asks `to` to echo.
    async fn ask(&self, to: &TestNode, text: &'static str) -> Result<Reply, PeerError> {
        self.ask_within(to, text, LONG).await
    }

    async fn ask_within(
        &self,
        to: &TestNode,
        text: &'static str,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        let request = Request::Raft(Bytes::from_static(text.as_bytes()));
        self.client.call(to.node, Class::Foreground, 1, request, timeout).await
    }

    fn asked(&self) -> u64 {
        self.handler.asked.load(Ordering::Relaxed)
    }
}

fn echoed(text: &'static str) -> Result<Reply, PeerError> {
    Ok(Reply::Raft(Bytes::from_static(text.as_bytes())))
}
