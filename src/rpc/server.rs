//! The two listeners and their life: 8080 for clients and operators, 7946 for peers.
//!
//! Stopping: health says NOT_SERVING and long streams end, then clients' connections are told to
//! go and their calls in flight finish. Peers are answered until after that: a write in flight here
//! may need theirs, and they must hear that the node goes. What is left after that is cut.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::transport::server::Router;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tower::layer::util::{Identity, Stack};

use super::admin::AdminService;
use super::blocking::Blocking;
use super::cluster::Cluster;
use super::connection::Connections;
use super::deadline::Deadline;
use super::front::{Front, FrontLayer};
use super::key_value::KeyValueService;
use super::limits::{Admission, Gate};
use super::metrics::Metrics;
use super::peer::PeerService;
use super::replica::ReplicaService;
use super::status::Problem;
use crate::cluster::incoming::Incoming;
use crate::cluster::net::Net;
use crate::cluster::work::Work;
use crate::proto::FILE_DESCRIPTOR_SET;
use crate::proto::admin_server::AdminServer;
use crate::proto::key_value_server::KeyValueServer;
use crate::proto::peer_server::PeerServer;
use crate::proto::replica_server::ReplicaServer;
use crate::store::Store;

/// The names that health is asked for; "" is the node.
const SERVICES: [&str; 5] =
    ["", "pairdb.v1.KeyValue", "pairdb.v1.Admin", "pairdb.v1.Replica", "pairdb.v1.Peer"];

/// Pages of scans put together at once, for each thread that reads them.
const SCANS_PER_THREAD: usize = 8;

/// What can be set. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest message taken.
    pub message_bytes_max: usize,
    /// Items of a batch.
    pub batch_max: usize,
    /// Unary reads and writes served at once, over all connections of a listener.
    pub concurrency_max: usize,
    /// Unary reads and writes that may wait for their turn.
    pub queue_max: usize,
    /// How long they may wait.
    pub queue_wait_max: Duration,
    /// Pipelines open at once.
    pub pipelines_max: usize,
    /// Operations of one pipeline between their receipt and the sending of their answer.
    pub pipeline_in_flight_max: usize,
    /// Threads that read pages of scans and streams.
    pub scan_threads: usize,
    /// Streams of one connection.
    pub streams_per_connection_max: u32,
    /// Cap on the time of a unary call.
    pub deadline_max: Duration,
    /// Greatest delay of a write under pressure.
    pub delay_max: Duration,
    /// Calls that take longer are logged.
    pub slow: Duration,
    /// Whether reflection is served.
    pub reflection: bool,
    /// Checkpoints are made in here.
    pub checkpoint_dir: PathBuf,
    /// Once asked to stop, the node has ended by then.
    pub stop_max: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            message_bytes_max: 4 << 20,
            batch_max: 1000,
            concurrency_max: 1024,
            queue_max: 1024,
            queue_wait_max: Duration::from_secs(2),
            pipelines_max: 1024,
            pipeline_in_flight_max: 1024,
            scan_threads: 4,
            streams_per_connection_max: 1024,
            deadline_max: Duration::from_secs(30),
            delay_max: Duration::from_millis(100),
            slow: Duration::from_millis(500),
            reflection: true,
            checkpoint_dir: PathBuf::from("checkpoints"),
            stop_max: Duration::from_secs(30),
        }
    }
}

/// A question to the node.
pub type Ask<T> = Box<dyn Fn() -> T + Send + Sync>;

/// What `Admin.NodeStatus` says of the node.
pub struct NodeFacts {
    /// The node's id.
    pub node_id: String,
    /// Its name.
    pub node_name: String,
    /// Its zone.
    pub zone: String,
    /// The program's version.
    pub version: String,
    /// "serving" or why not.
    pub state: Ask<String>,
    /// Figures by name.
    pub figures: Ask<Vec<(String, f64)>>,
}

/// What is served.
pub struct Parts {
    /// The rows.
    pub store: Arc<Store>,
    /// The cluster the node is part of.
    pub cluster: Cluster,
    /// What can be set.
    pub options: Options,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Of the node.
    pub facts: NodeFacts,
    /// The service for the other nodes.
    pub peers: PeerService,
    /// Where work that waits for the disk is run.
    pub work: Work,
    /// Cancelled when an operator asks the node to stop.
    pub asked_to_stop: CancellationToken,
}

/// What the services share.
pub(super) struct Core {
    pub store: Arc<Store>,
    pub cluster: Cluster,
    pub options: Options,
    pub metrics: Arc<Metrics>,
    pub facts: NodeFacts,
    pub started: Instant,
    pub admission: Admission,
    pub pipelines: Gate,
    /// Bounds the pages of scans that are put together at once.
    pub scans: Gate,
    pub blocking: Blocking,
    pub upkeep: Blocking,
    pub work: Work,
    /// Cancelled when the node stops: streams end by themselves.
    pub stopping: CancellationToken,
    /// See [`Parts::asked_to_stop`].
    pub asked_to_stop: CancellationToken,
    /// Whether clients are served.
    pub serving: Arc<AtomicBool>,
    /// Producers of streams.
    pub tasks: TaskTracker,
}

impl Core {
    /// When a call must be answered; streams without an end ask anew for each operation.
    pub fn instant(&self, deadline: Deadline) -> tokio::time::Instant {
        deadline.instant_within(self.options.deadline_max)
    }

    /// Refuses a batch of more than the node's limit.
    pub fn check_batch(&self, found: usize) -> Result<(), Problem> {
        let limit = self.options.batch_max;
        if found <= limit {
            return Ok(());
        }
        let message = format!("the batch has {found} items, the limit is {limit}");
        Err(Problem::new(tonic::Code::InvalidArgument, "BATCH_TOO_LARGE", message)
            .with("found", found)
            .with("limit", limit))
    }
}

/// The listeners, bound and not yet served.
pub struct Listeners {
    client: Incoming,
    peer: Incoming,
}

impl Listeners {
    /// Binds both addresses in `net`. Port 0 takes any free port.
    ///
    /// # Errors
    /// The address that cannot be bound, and why.
    pub async fn bind(
        net: &dyn Net,
        client: SocketAddr,
        peer: SocketAddr,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let client = net.bind(client).await.map_err(|error| (client, error))?;
        let peer = net.bind(peer).await.map_err(|error| (peer, error))?;
        Ok(Self { client: Incoming::new(client), peer: Incoming::new(peer) })
    }

    /// Where clients and peers are listened to.
    ///
    /// # Errors
    /// The addresses cannot be read.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.client.local_addr()?, self.peer.local_addr()?))
    }
}

/// The running services.
pub struct Server {
    /// Where clients and operators are served.
    pub client_addr: SocketAddr,
    /// Where peers are served.
    pub peer_addr: SocketAddr,
    core: Arc<Core>,
    serving: Serving,
    peers: PeerService,
    client_port: Served,
    peer_port: Served,
}

/// A listener that is served.
struct Served {
    closing: CancellationToken,
    running: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Served {
    fn start(router: Router<Stack<FrontLayer, Identity>>, listener: Incoming) -> Self {
        let closing = CancellationToken::new();
        let closed = closing.clone().cancelled_owned();
        let serving = router.serve_with_incoming_shutdown(Connections(listener), closed);
        Self { closing, running: tokio::spawn(serving) }
    }

    /// Takes no more calls, and waits until those in flight and `others` have ended, or `end`.
    /// Returns whether they have.
    async fn stop(&mut self, others: impl Future<Output = ()>, end: Instant) -> bool {
        self.closing.cancel();
        let running = &mut self.running;
        let all = async {
            // A listener that failed was logged when it did.
            let _ = running.await;
            others.await;
        };
        let finished = tokio::time::timeout_at(end, all).await.is_ok();
        if !finished {
            self.running.abort();
        }
        finished
    }
}

impl Server {
    /// Serves `store` on the listeners, and `peers` on the peer port if the node has any. Health
    /// says NOT_SERVING until [`Serving::update`].
    ///
    /// # Errors
    /// The bound addresses cannot be read.
    pub async fn start(listeners: Listeners, parts: Parts) -> io::Result<Self> {
        let Parts { store, cluster, options, metrics, facts, peers, work, asked_to_stop } = parts;
        let client_addr = listeners.client.local_addr()?;
        let peer_addr = listeners.peer.local_addr()?;
        let wait = options.queue_wait_max;
        let rows = Gate::new("rows", options.scan_threads, options.queue_max, wait);
        // A page waits for other nodes most of its time.
        let scans = options.scan_threads.saturating_mul(SCANS_PER_THREAD);
        let core = Arc::new(Core {
            store,
            cluster,
            metrics,
            facts,
            started: Instant::now(),
            admission: Admission { delay_max: options.delay_max },
            pipelines: Gate::new("pipelines", options.pipelines_max, 0, wait),
            scans: Gate::new("scans", scans, options.queue_max, wait),
            blocking: Blocking::new(rows, work.clone()),
            upkeep: Blocking::new(
                Gate::new("upkeep", 1, 16, Duration::from_secs(3600)),
                work.clone(),
            ),
            work,
            stopping: CancellationToken::new(),
            asked_to_stop,
            serving: Arc::default(),
            tasks: TaskTracker::new(),
            options,
        });
        let (client_health, client) = client_router(&core).await;
        let (peer_health, peer) = peer_router(&core, peers.clone()).await;
        let client_port = Served::start(client, listeners.client);
        let peer_port = Served::start(peer, listeners.peer);
        let serving = Serving {
            reporters: Arc::new(tokio::sync::Mutex::new([client_health, peer_health])),
            has_begun: Arc::clone(&core.serving),
        };
        Ok(Self { client_addr, peer_addr, core, serving, peers, client_port, peer_port })
    }

    /// What `grpc.health.v1` says.
    pub fn serving(&self) -> Serving {
        self.serving.clone()
    }

    /// Takes no new calls of clients; streams end, calls in flight finish by `end`. Returns whether
    /// they did. Peers are answered as before.
    pub async fn stop_clients(&mut self, end: Instant) -> bool {
        self.serving.update(|| false).await;
        self.core.stopping.cancel();
        self.core.tasks.close();
        let streams = Arc::clone(&self.core);
        self.client_port.stop(async move { streams.tasks.wait().await }, end).await
    }

    /// Takes no new requests of peers; what they asked is answered by `end`. Returns whether it
    /// was.
    pub async fn stop_peers(&mut self, end: Instant) -> bool {
        self.peers.stop();
        let peers = self.peers.clone();
        self.peer_port.stop(async move { peers.stopped().await }, end).await
    }
}

/// What `grpc.health.v1` says of the node, on both ports.
#[derive(Clone)]
pub struct Serving {
    /// One at a time: the last to look is the last to say.
    reporters: Arc<tokio::sync::Mutex<[HealthReporter; 2]>>,
    /// Calls are taken. Never taken back: calls that come while the node stops are finished.
    has_begun: Arc<AtomicBool>,
}

impl Serving {
    /// Says whether the node serves, as it is when nobody else says it at the same time.
    pub async fn update(&self, is_ready: impl Fn() -> bool) {
        let reporters = self.reporters.lock().await;
        let is_ready = is_ready();
        if is_ready {
            self.has_begun.store(true, Ordering::Release);
        }
        let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        for reporter in &*reporters {
            set_all(reporter, status).await;
        }
    }
}

async fn set_all(reporter: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

fn front(core: &Core, serving: Arc<AtomicBool>) -> FrontLayer {
    let options = &core.options;
    FrontLayer(Arc::new(Front {
        gate: Gate::new(
            "this node",
            options.concurrency_max,
            options.queue_max,
            options.queue_wait_max,
        ),
        metrics: Arc::clone(&core.metrics),
        deadline_max: options.deadline_max,
        slow: options.slow,
        serving,
        layout: core.cluster.layout.clone(),
    }))
}

/// Windows large enough for a batch in one flight; keep-alive finds dead peers within 40 s.
fn builder(
    core: &Core,
    serving: Arc<AtomicBool>,
) -> tonic::transport::Server<Stack<FrontLayer, Identity>> {
    tonic::transport::Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_concurrent_streams(core.options.streams_per_connection_max)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .layer(front(core, serving))
}

async fn client_router(core: &Arc<Core>) -> (HealthReporter, Router<Stack<FrontLayer, Identity>>) {
    let (reporter, health) = health_reporter();
    set_all(&reporter, ServingStatus::NotServing).await;
    let limit = core.options.message_bytes_max;
    let key_value = KeyValueServer::new(KeyValueService(Arc::clone(core)));
    let admin = AdminServer::new(AdminService(Arc::clone(core)));
    let reflection = core.options.reflection.then(|| {
        let v1 = reflection_builder().build_v1().expect("the build wrote the descriptors");
        let alpha = reflection_builder().build_v1alpha().expect("the same descriptors");
        (v1, alpha)
    });
    let (v1, alpha) = reflection.unzip();
    let router = builder(core, Arc::clone(&core.serving))
        .add_service(key_value.max_decoding_message_size(limit))
        .add_service(admin.max_decoding_message_size(limit))
        .add_service(health)
        .add_optional_service(v1)
        .add_optional_service(alpha);
    (reporter, router)
}

fn reflection_builder() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

async fn peer_router(
    core: &Arc<Core>,
    peers: PeerService,
) -> (HealthReporter, Router<Stack<FrontLayer, Identity>>) {
    let (reporter, health) = health_reporter();
    set_all(&reporter, ServingStatus::NotServing).await;
    let replica = ReplicaServer::new(ReplicaService(Arc::clone(core)))
        // A batch may hold rows at their cap.
        .max_decoding_message_size(core.options.message_bytes_max.max(16 << 20));
    let (limit, frame_bytes) = (peers.message_bytes_max(), peers.frame_bytes());
    let peers =
        PeerServer::new(peers).max_decoding_message_size(limit).max_encoding_message_size(limit);
    (
        reporter,
        builder(core, Arc::new(AtomicBool::new(true)))
            .max_frame_size(frame_bytes)
            .add_service(replica)
            .add_service(peers)
            .add_service(health),
    )
}
