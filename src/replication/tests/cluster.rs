//! Nodes in one process, connected by a network whose moods are drawn from a seed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::async_trait;

use super::super::departure::certificate::Certificates;
use super::super::departure::{self, Departure};
use super::super::duties::Report;
use super::super::fence::{Closed, Fence, Pass};
use super::super::hints::{HintOptions, HintParts, HintSender, Hints};
use super::super::progress::Rate;
use super::super::transfer::{self, Transfer};
use super::super::tree::Trees;
use super::super::*;
use super::gate::Gate;
use crate::cluster::NodeId;
use crate::cluster::layout::{Command, Document, Layout, Owner, Owners};
use crate::cluster::peer::{Class, PeerError, PeerHandler, Peers, Reply, Request};
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::proto;
use crate::store::environment::{ManualClock, SeededRandom};
use crate::store::{
    self, Environment, Mode, Mutation, Random, Store, StoreOptions, TenantChange, TenantSpec,
    Written,
};

pub const T0_MS: u64 = 1_700_000_000_000;
pub const SECOND: Duration = Duration::from_secs(1);
/// Bytes a second that a node moves.
const RATE: u64 = 8 << 20;
/// Of rows that wait for a peer, and of those that wait to be kept as hints.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;

/// How the network treats messages; each is a chance in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mood {
    pub drop: u64,
    pub repeat: u64,
    /// Longest delay of a message, in milliseconds.
    pub delay_ms: u64,
}

/// The network and what everybody would know of it.
pub struct World {
    pub clock: ManualClock,
    random: SeededRandom,
    pub mood: Mutex<Mood>,
    /// Ordered pairs that do not hear each other.
    cut: Mutex<BTreeSet<(NodeId, NodeId)>>,
    down: Mutex<BTreeSet<NodeId>>,
    /// What gets lost on its way, by receiver and kind.
    lost: Mutex<BTreeSet<(NodeId, &'static str)>>,
    /// Pages from which the first row is left out.
    pub damaged_pages: AtomicU64,
    handlers: Mutex<BTreeMap<NodeId, Arc<dyn PeerHandler>>>,
    layout: watch::Sender<Arc<Layout>>,
    /// Messages by receiver and kind.
    pub sent: Mutex<BTreeMap<(NodeId, &'static str), u64>>,
    calls: AtomicU64,
}

impl World {
    fn chance(&self, of_thousand: u64) -> bool {
        of_thousand > 0 && self.below(1000) < of_thousand
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.random.next_u64().expect("seeded") % bound.max(1)
    }

    async fn travel(&self, from: NodeId, to: NodeId) -> bool {
        let mood = *self.mood.lock();
        if mood.delay_ms > 0 {
            tokio::time::sleep(Duration::from_micros(self.below(mood.delay_ms * 1000))).await;
        }
        !self.is_cut(from, to) && !self.chance(mood.drop)
    }

    fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cut.lock().contains(&(from, to)) || self.is_down(to) || self.is_down(from)
    }

    fn is_down(&self, node: NodeId) -> bool {
        self.down.lock().contains(&node)
    }

    /// Nothing goes from one to the other any more; the other way it may.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.cut.lock().insert((from, to));
    }

    pub fn isolate(&self, node: NodeId, nodes: &[NodeId]) {
        for other in nodes.iter().filter(|other| **other != node) {
            self.cut(node, *other);
            self.cut(*other, node);
        }
    }

    pub fn heal(&self) {
        self.cut.lock().clear();
        self.down.lock().clear();
        *self.mood.lock() = Mood::default();
    }

    /// It neither hears nor speaks, and everybody knows.
    pub fn take_down(&self, node: NodeId) {
        self.down.lock().insert(node);
    }

    pub fn bring_up(&self, node: NodeId) {
        self.down.lock().remove(&node);
    }

    /// Requests of a kind do not arrive any more.
    pub fn lose(&self, to: NodeId, kind: &'static str) {
        self.lost.lock().insert((to, kind));
    }

    pub fn sent_to(&self, node: NodeId, kind: &'static str) -> u64 {
        self.sent.lock().get(&(node, kind)).copied().unwrap_or(0)
    }
}

fn kind_of(request: &Request) -> &'static str {
    match request {
        Request::WriteRows(_) => "write",
        Request::ReadRows(read) if read.digest_only => "digest",
        Request::ReadRows(_) => "read",
        Request::ForwardWrite(_) => "forward",
        Request::ScanRows(scan) => match scan.what() {
            proto::ScanWhat::Rows => "scan",
            proto::ScanWhat::Digests => "scan digest",
            proto::ScanWhat::Keys => "scan keys",
        },
        Request::Page(page) if page.sum => "sum",
        Request::Page(page) if page.digests => "page digests",
        Request::Page(_) => "page",
        _ => "other",
    }
}

/// What a source with a defect would send: a page without its first row.
fn leave_one_out(reply: &mut Reply) {
    if let Reply::Page(reply) = reply {
        let mut rows = page::rows_of(reply).expect("a page of this node");
        rows.drain(..rows.len().min(1));
        page::set_rows(reply, rows);
    }
}

/// One node's view of the others.
struct Links {
    node: NodeId,
    world: Arc<World>,
}

#[async_trait]
impl Peers for Links {
    async fn call(
        &self,
        to: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        let (world, from) = (Arc::clone(&self.world), self.node);
        if world.is_down(to) {
            let why = "it is down".to_owned();
            return Err(PeerError::Unreachable { node: to.to_string(), why });
        }
        world.calls.fetch_add(1, Ordering::Relaxed);
        *world.sent.lock().entry((to, kind_of(&request))).or_default() += 1;
        let there = async move {
            let handler = world.handlers.lock().get(&to).cloned();
            let is_lost = world.lost.lock().contains(&(to, kind_of(&request)));
            let is_page = kind_of(&request) == "page";
            if is_lost || !world.travel(from, to).await {
                return std::future::pending().await;
            }
            let handler = handler.expect("every node was started");
            // Streams do not repeat requests. Rows come twice all the same, as hints and repairs;
            // a forwarded write does not: without a token a copy would be a second write.
            let repeat = world.mood.lock().repeat;
            if !matches!(request, Request::ForwardWrite(_)) && world.chance(repeat) {
                let (handler, request) = (Arc::clone(&handler), request.clone());
                let late = Duration::from_millis(world.below(3000));
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    // Nobody hears the answer to a copy.
                    let _ = handler.handle(from, class, epoch, request, timeout).await;
                });
            }
            // What was sent is done even if the sender stops waiting.
            let handled =
                tokio::spawn(
                    async move { handler.handle(from, class, epoch, request, timeout).await },
                );
            let mut reply = handled.await.expect("the handler does not panic");
            let is_damaged = is_page
                && world.damaged_pages.load(Ordering::Relaxed) > 0
                && world.damaged_pages.fetch_sub(1, Ordering::Relaxed) > 0;
            if let (true, Ok(reply)) = (is_damaged, &mut reply) {
                leave_one_out(reply);
            }
            if !world.travel(to, from).await {
                return std::future::pending().await;
            }
            reply
        };
        match tokio::time::timeout(timeout, tokio::spawn(there)).await {
            Ok(reply) => reply.expect("the network does not panic"),
            Err(_) => Err(PeerError::NoAnswer { why: "time is over".to_owned() }),
        }
    }

    async fn call_address(
        &self,
        address: &str,
        _request: Request,
        _timeout: Duration,
    ) -> Result<(NodeId, Reply), PeerError> {
        let why = "there are no addresses here".to_owned();
        Err(PeerError::Unreachable { node: address.to_owned(), why })
    }
}

impl Liveness for Links {
    fn is_up(&self, node: NodeId) -> bool {
        node == self.node || !self.world.is_down(node)
    }

    fn address(&self, _node: NodeId) -> Option<String> {
        None
    }
}

/// A fence that learns from the world's latest document.
pub struct TestFence {
    gate: Gate,
    shown: watch::Sender<Arc<Layout>>,
    world: Arc<World>,
}

impl TestFence {
    /// The document of the epoch is durable; nobody is shown it yet.
    pub fn raise(&self, epoch: u64) {
        self.gate.raise(epoch);
    }

    /// Adopts a document: the gate first, then the watch.
    pub fn adopt(&self, layout: &Arc<Layout>) {
        self.gate.raise(layout.epoch());
        self.shown.send_if_modified(|shown| {
            let is_later = layout.version() > shown.version();
            if is_later {
                *shown = Arc::clone(layout);
            }
            is_later
        });
    }
}

#[async_trait]
impl Fence for TestFence {
    fn enter(&self, epoch: u64) -> Result<Pass<'_>, Closed> {
        self.gate.enter(epoch)
    }

    async fn learn(&self, _from: NodeId, _epoch: u64, _: Duration) -> Result<(), PeerError> {
        let latest = Arc::clone(&self.world.layout.borrow());
        self.adopt(&latest);
        Ok(())
    }

    async fn refresh(&self, _from: NodeId, _: Duration) -> Result<(), PeerError> {
        let latest = Arc::clone(&self.world.layout.borrow());
        self.adopt(&latest);
        Ok(())
    }
}

pub struct Node {
    pub id: NodeId,
    /// Its disk.
    pub vfs: MemVfs,
    /// What goes wrong with that.
    pub faults: FaultVfs,
    pub store: Arc<Store>,
    pub trees: Arc<Trees>,
    pub coordinator: Arc<Coordinator>,
    pub fence: Arc<TestFence>,
    pub hints: Arc<Hints>,
    pub missed: HintSender,
    pub departure: Arc<Departure>,
    pub transfer: Arc<Transfer>,
    newcomer: transfer::Newcomer,
    pub certificates: Arc<Certificates>,
    /// What it proposed.
    pub reports: Reports,
}

/// Commands that were proposed; nobody applies them.
pub type Reports = Arc<Mutex<Vec<Command>>>;

struct Noted(Reports);

#[async_trait]
impl Report for Noted {
    async fn report(&self, command: Command) -> bool {
        self.0.lock().push(command);
        true
    }
}

/// What a node answers: a replica's requests, and those about certificates.
struct Answering {
    replica: Replica,
    certificates: Arc<Certificates>,
}

#[async_trait]
impl PeerHandler for Answering {
    async fn handle(
        &self,
        from: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        let Request::Certificate(request) = request else {
            return self.replica.handle(from, class, epoch, request, timeout).await;
        };
        let node = NodeId::from_bytes(&request.node_id).expect("sixteen bytes");
        self.certificates.keep(node, &request.certificate).expect("kept");
        Ok(Reply::Certificate(proto::CertificateReply::default()))
    }
}

pub struct Cluster {
    pub world: Arc<World>,
    pub nodes: Vec<Node>,
}

pub fn failure(error: &Error) -> proto::Failure {
    let outcome = match error.outcome() {
        store::Outcome::NotApplied => proto::Outcome::NotApplied,
        store::Outcome::Unknown => proto::Outcome::Unknown,
    };
    proto::Failure {
        reason: error.reason().to_owned(),
        message: error.to_string(),
        outcome: outcome.into(),
        ..proto::Failure::default()
    }
}

pub fn id(index: usize) -> NodeId {
    NodeId(index as u128 + 1)
}

fn owners(indexes: &[usize]) -> Owners {
    let owner = |index: &usize| (id(*index), Owner { zone: "z".to_owned(), weight: 1 });
    indexes.iter().map(owner).collect()
}

pub fn layout(epoch: u64, current: &[usize], next: Option<&[usize]>) -> Arc<Layout> {
    Arc::new(Layout::new(Arc::new(Document {
        cluster_id: NodeId(7),
        epoch,
        version: epoch,
        partition_bits: 2,
        owners: owners(current),
        next_owners: next.map(owners),
        ..Document::empty()
    })))
}

impl Cluster {
    /// `nodes` nodes, of which all own; epoch 1.
    pub fn new(nodes: usize, seed: u64) -> Self {
        let all: Vec<usize> = (0..nodes).collect();
        Self::with_owners(nodes, &all, seed)
    }

    pub fn with_owners(nodes: usize, owners: &[usize], seed: u64) -> Self {
        Self::with_options(nodes, owners, seed, &options())
    }

    pub fn with_options(nodes: usize, owners: &[usize], seed: u64, options: &StoreOptions) -> Self {
        let world = Arc::new(World {
            clock: ManualClock::new(T0_MS),
            random: SeededRandom::new(seed),
            mood: Mutex::default(),
            cut: Mutex::default(),
            down: Mutex::default(),
            handlers: Mutex::default(),
            layout: watch::Sender::new(layout(1, owners, None)),
            sent: Mutex::default(),
            lost: Mutex::default(),
            damaged_pages: AtomicU64::new(0),
            calls: AtomicU64::new(0),
        });
        let nodes = (0..nodes).map(|index| Node::start(&world, index, seed, options)).collect();
        Self { world, nodes }
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id).collect()
    }

    /// Commits a document; who has not been told acts under the old one.
    pub fn commit(&self, layout: Arc<Layout>, told: &[usize]) {
        self.world.layout.send_replace(Arc::clone(&layout));
        for node in told.iter().map(|index| &self.nodes[*index]) {
            node.newcomer.begin_anew(layout.document());
            node.fence.adopt(&layout);
            for tenant in layout.document().tenants.values() {
                let replication_factor = Some(tenant.replication_factor);
                let change = TenantChange { replication_factor, ..TenantChange::default() };
                node.store.alter_tenant(&tenant.name, change).expect("altered");
            }
        }
    }

    pub async fn put(&self, at: usize, level: Level, mutation: Mutation) -> Result<Written> {
        self.write(at, "default", level, mutation).await
    }

    pub async fn write(
        &self,
        at: usize,
        tenant: &str,
        level: Level,
        mutation: Mutation,
    ) -> Result<Written> {
        let options = WriteOptions { level, deadline: Instant::now() + 2 * SECOND };
        let written = self.nodes[at].coordinator.write(tenant, vec![mutation], options);
        written.await.pop().expect("one outcome")
    }

    pub async fn get(&self, at: usize, level: Level, key: &str) -> Result<store::ReadRow> {
        self.read(at, "default", level, key, None).await
    }

    pub async fn read(
        &self,
        at: usize,
        tenant: &str,
        level: Level,
        key: &str,
        min_context: Option<Vec<u8>>,
    ) -> Result<store::ReadRow> {
        let read = KeyRead { key: key.into(), min_context };
        let coordinator = &self.nodes[at].coordinator;
        if let Some(row) = coordinator.read_here(tenant, &read, level) {
            return settled(&self.nodes[at].store, row).await?;
        }
        let options = ReadOptions { level, deadline: Instant::now() + 2 * SECOND };
        coordinator.read(tenant, vec![read], options).await.pop().expect("one row")
    }

    /// Asks a node directly.
    pub async fn ask(&self, at: usize, epoch: u64, request: Request) -> Result<Reply, PeerError> {
        self.ask_as(NodeId(99), at, epoch, request).await
    }

    /// The same, as `from`.
    pub async fn ask_as(
        &self,
        from: NodeId,
        at: usize,
        epoch: u64,
        request: Request,
    ) -> Result<Reply, PeerError> {
        let handler = self.world.handlers.lock().get(&id(at)).cloned();
        let handler = handler.expect("started");
        handler.handle(from, Class::Foreground, epoch, request, SECOND).await
    }

    /// The digests of a key on all nodes.
    pub fn digests(&self, tenant: &str, key: &str) -> Vec<u64> {
        let digest = |node: &Node| {
            let tenant = node.store.tenant(tenant).expect("there").id;
            let raw = node.store.raw_row(tenant, key.as_bytes()).expect("readable");
            node.store.digest(&raw).expect("a row")
        };
        self.nodes.iter().map(digest).collect()
    }

    /// What a node holds by itself.
    pub fn local(&self, at: usize, key: &str) -> Vec<String> {
        values(&self.nodes[at].store.read("default", key.as_bytes()).expect("readable"))
    }
}

/// Those of all nodes.
pub fn options() -> StoreOptions {
    let mut options = StoreOptions::default();
    options.engine.compaction_threads = 0;
    options.engine.partition_bits = 2;
    options.engine.log_segment_bytes = 256 << 10;
    options.engine.memtable_bytes = 256 << 10;
    options.engine.row_cache_bytes = 64 << 10;
    options.identity.cluster_id = Some(7);
    options
}

impl Node {
    fn start(world: &Arc<World>, index: usize, seed: u64, options: &StoreOptions) -> Self {
        let vfs = MemVfs::new();
        let seed = seed.wrapping_mul(1000) + index as u64;
        let faults = FaultVfs::new(Arc::new(vfs.clone()));
        let environment = Environment::simulated(Arc::new(faults.clone()), &world.clock, seed);
        let store =
            Store::open_in(Path::new("/node"), options.clone(), environment).expect("opens");
        let lww = TenantSpec { mode: Mode::LastWriteWins, ..TenantSpec::new("lww") };
        store.create_tenant(lww).expect("created");
        let two = TenantSpec {
            replication_factor: 2,
            partition_delimiter: Some(b":".to_vec()),
            ..TenantSpec::new("two")
        };
        store.create_tenant(two).expect("created");
        let store = Arc::new(store);
        let id = id(index);
        let links = Arc::new(Links { node: id, world: Arc::clone(world) });
        let first = Arc::clone(&world.layout.borrow());
        let shown = watch::Sender::new(Arc::clone(&first));
        let layout = shown.subscribe();
        let gate = Gate::new(first.epoch());
        let fence = Arc::new(TestFence { gate, shown, world: Arc::clone(world) });
        let parts = HintParts {
            node: id,
            store: Arc::clone(&store),
            peers: Arc::clone(&links) as Arc<dyn Peers>,
            layout: layout.clone(),
            fence: Arc::clone(&fence) as Arc<dyn Fence>,
            liveness: Arc::clone(&links) as Arc<dyn Liveness>,
            // A disk that hangs must not hold up the others.
            work: Work::Threads,
        };
        let options = HintOptions { waiting_bytes_max: QUEUE_BYTES_MAX, ..HintOptions::default() };
        let (hints, sender) =
            Hints::start(Path::new("/node/hints"), parts, options).expect("opens");
        let certificates =
            Certificates::open(Arc::new(vfs.clone()), Path::new("/node/certificates"));
        let certificates = Arc::new(certificates.expect("opens"));
        let reports = Reports::default();
        let departure = Arc::new(Departure {
            node: id,
            store: Arc::clone(&store),
            peers: Arc::clone(&links) as Arc<dyn Peers>,
            liveness: Arc::clone(&links) as Arc<dyn Liveness>,
            layout: layout.clone(),
            fence: Arc::clone(&fence) as Arc<dyn Fence>,
            report: Arc::new(Noted(Arc::clone(&reports))),
            hints: Arc::clone(&hints),
            certificates: Arc::clone(&certificates),
            work: Work::Inline,
            settings: departure::Settings { timeout: SECOND, ..departure::Settings::default() },
            rate: Arc::new(Rate::new(RATE)),
            progress: Arc::default(),
        });
        let trees = Arc::new(Trees::new(Arc::clone(&store), SECOND));
        let transfer = Arc::new(Transfer {
            node: id,
            store: Arc::clone(&store),
            peers: Arc::clone(&links) as Arc<dyn Peers>,
            liveness: Arc::clone(&links) as Arc<dyn Liveness>,
            report: Arc::new(Noted(Arc::clone(&reports))),
            layout: layout.clone(),
            fence: Arc::clone(&fence) as Arc<dyn Fence>,
            work: Work::Inline,
            settings: transfer::Settings { timeout: SECOND, ..transfer::Settings::default() },
            rate: Arc::new(Rate::new(RATE)),
            progress: Arc::default(),
        });
        let newcomer = transfer::Newcomer::new(id, Arc::clone(&store));
        let coordinator = Coordinator::new(CoordinatorOptions {
            node: id,
            store: Arc::clone(&store),
            peers: Arc::clone(&links) as Arc<dyn Peers>,
            layout: layout.clone(),
            fence: Arc::clone(&fence) as Arc<dyn Fence>,
            liveness: links,
            hints: Some(sender.clone()),
            lingering_max: 1000,
            queue_bytes_max: QUEUE_BYTES_MAX,
            work: Work::Inline,
            pages_max: 4,
        });
        let replica = Replica::new(replica::Parts {
            node: id,
            store: Arc::clone(&store),
            trees: Arc::clone(&trees),
            coordinator: Arc::clone(&coordinator),
            fence: Arc::clone(&fence) as Arc<dyn Fence>,
            layout,
            background: Work::Inline,
            to_failure: failure,
        });
        let answering = Answering { replica, certificates: Arc::clone(&certificates) };
        world.handlers.lock().insert(id, Arc::new(answering));
        Self {
            id,
            vfs,
            faults,
            store,
            trees,
            coordinator,
            fence,
            hints,
            missed: sender,
            departure,
            transfer,
            newcomer,
            certificates,
            reports,
        }
    }
}

pub fn put(key: &str, value: &str) -> Mutation {
    Mutation { key: key.into(), value: Some(value.into()), ..Mutation::default() }
}

pub fn over(key: &str, value: &str, context: &[u8]) -> Mutation {
    Mutation { context: Some(context.to_vec()), ..put(key, value) }
}

pub fn once(key: &str, value: &str, token: &str) -> Mutation {
    Mutation { idempotency_key: Some(token.into()), ..put(key, value) }
}

pub fn delete(key: &str, context: Option<Vec<u8>>) -> Mutation {
    Mutation { key: key.into(), context, ..Mutation::default() }
}

pub fn values(row: &store::ReadRow) -> Vec<String> {
    let text = |one: &store::Sibling| String::from_utf8(one.value.clone()).expect("text");
    let mut values: Vec<String> = row.siblings.iter().map(text).collect();
    values.sort_unstable();
    values
}
