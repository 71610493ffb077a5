//! Three replicas in one process: files in memory, clocks set by hand, a network that a test can
//! listen to. They are compared, hold rounds, crash, lose data; what happens in between is said by
//! each test.

mod damage;
mod differ;
mod model;
mod refusals;
mod rounds;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tonic::async_trait;

use super::super::coordinator::{Coordinator, CoordinatorOptions, KeyRead, ReadOptions};
use super::super::error;
use super::super::fence::{Closed, Fence, Pass};
use super::super::level::Level;
use super::super::replica::{self, Replica};
use super::super::tests::gate::Gate;
use super::*;
use crate::causality::clock::time_of_ms;
use crate::cluster::layout::{Document, Member, MemberState, Owner, Owners};
use crate::cluster::peer::{Class, PeerHandler, Reply, Request};
use crate::engine::SyncMode;
use crate::engine::vfs::mem::MemVfs;
use crate::proto;
use crate::store::environment::{ManualClock, WallClock};
use crate::store::{
    Environment, ForeignRow, Limits, Mode, Mutation, Retention, StoreOptions, Tenant, TenantChange,
    TenantId, TenantSpec, TokenRange,
};

const T0_MS: u64 = 1_700_000_000_000;
const BITS: u32 = 2;
const ALL: std::ops::RangeInclusive<u32> = 0..=3;
/// Deletes, with values that were written before.
const TENANTS: [&str; 2] = ["default", "lww"];

/// What a test does when a request passes; `false`: it gets lost.
type Tap = Box<dyn FnMut(NodeId, NodeId, &Request) -> bool + Send>;

/// The network.
#[derive(Default)]
struct Net {
    handlers: Mutex<BTreeMap<NodeId, Arc<dyn PeerHandler>>>,
    down: Mutex<BTreeSet<NodeId>>,
    tap: Mutex<Option<Tap>>,
}

/// One node's end of it.
struct Link {
    node: NodeId,
    net: Arc<Net>,
}

#[async_trait]
impl Peers for Link {
    async fn call(
        &self,
        to: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        let unreachable = || {
            let why = "it is down".to_owned();
            PeerError::Unreachable { node: to.to_string(), why }
        };
        // Taken out while it runs: it may use the network itself.
        let tap = self.net.tap.lock().take();
        if let Some(mut tap) = tap {
            let passes = tap(self.node, to, &request);
            self.net.tap.lock().get_or_insert(tap);
            if !passes {
                return Err(PeerError::NoAnswer { why: "it got lost".to_owned() });
            }
        }
        if self.net.down.lock().contains(&to) {
            return Err(unreachable());
        }
        let handler = self.net.handlers.lock().get(&to).cloned().ok_or_else(unreachable)?;
        handler.handle(self.node, class, epoch, request, timeout).await
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

impl Liveness for Link {
    fn is_up(&self, node: NodeId) -> bool {
        !self.net.down.lock().contains(&node)
    }

    fn address(&self, _node: NodeId) -> Option<String> {
        None
    }
}

#[async_trait]
impl Fence for Gate {
    fn enter(&self, epoch: u64) -> Result<Pass<'_>, Closed> {
        Gate::enter(self, epoch)
    }

    async fn learn(&self, _: NodeId, _: u64, _: Duration) -> Result<(), PeerError> {
        Ok(())
    }

    async fn refresh(&self, _: NodeId, _: Duration) -> Result<(), PeerError> {
        Ok(())
    }
}

struct Handler {
    replica: Replica,
    anti_entropy: Arc<AntiEntropy>,
}

#[async_trait]
impl PeerHandler for Handler {
    async fn handle(
        &self,
        from: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        if Replica::is_for(&request) {
            return self.replica.handle(from, class, epoch, request, timeout).await;
        }
        self.anti_entropy.answer(epoch, &request).await.expect("about rows or rounds")
    }
}

/// A node that runs.
struct Running {
    store: Arc<Store>,
    anti_entropy: Arc<AntiEntropy>,
    coordinator: Arc<Coordinator>,
}

struct Node {
    id: NodeId,
    vfs: MemVfs,
    clock: ManualClock,
    /// Differs at every start, as the machine's randomness would.
    starts: u64,
    gate: Arc<Gate>,
    shown: watch::Sender<Arc<Layout>>,
    running: Option<Running>,
}

struct Trio {
    net: Arc<Net>,
    nodes: Vec<Node>,
    settings: Settings,
    sync_mode: SyncMode,
    removed: Vec<&'static str>,
    accepts_log_corruption: bool,
}

fn id(index: usize) -> NodeId {
    NodeId(index as u128 + 1)
}

fn put(key: &str, value: &str) -> Mutation {
    Mutation { key: key.into(), value: Some(value.into()), ..Mutation::default() }
}

fn delete(key: &str) -> Mutation {
    Mutation { key: key.into(), ..Mutation::default() }
}

/// Three owners, two tenants; `change` makes it another.
fn document(epoch: u64, change: impl FnOnce(&mut Document)) -> Arc<Layout> {
    let owner = |index| (id(index), Owner { zone: "z".to_owned(), weight: 1 });
    let member = |index| {
        let member = Member {
            name: format!("n{index}"),
            zone: "z".to_owned(),
            weight: 1,
            state: MemberState::Normal,
            address: String::new(),
        };
        (id(index), member)
    };
    let mut document = Document {
        cluster_id: NodeId(7),
        epoch,
        version: epoch,
        partition_bits: BITS,
        owners: (0..3).map(owner).collect::<Owners>(),
        members: (0..3).map(member).collect(),
        ..Document::empty()
    };
    // Of the tenants only how many replicas they have is looked up here.
    let tenant = Tenant {
        id: TenantId(1),
        name: "default".to_owned(),
        created_at_ms: T0_MS,
        mode: Mode::Siblings,
        partition_delimiter: None,
        default_ttl_ms: None,
        max_ttl_ms: None,
        replication_factor: 3,
        retention: Retention::default(),
    };
    document.tenants.insert(tenant.id, tenant);
    change(&mut document);
    Arc::new(Layout::new(Arc::new(document)))
}

impl Trio {
    fn new() -> Self {
        Self::with(|_| {}, &[])
    }

    /// With other settings, and with rules removed.
    fn with(change: impl FnOnce(&mut Settings), removed: &[&'static str]) -> Self {
        let mut settings = Settings {
            settle: Duration::ZERO,
            round_margin: Duration::ZERO,
            ..Settings::default()
        };
        change(&mut settings);
        let layout = document(1, |_| {});
        let node = |index| Node {
            id: id(index),
            vfs: MemVfs::new(),
            clock: ManualClock::new(T0_MS),
            starts: 0,
            gate: Arc::new(Gate::new(1)),
            shown: watch::Sender::new(Arc::clone(&layout)),
            running: None,
        };
        let nodes = (0..3).map(node).collect();
        let removed = removed.to_vec();
        let sync_mode = SyncMode::Always;
        let net = Arc::default();
        let accepts_log_corruption = false;
        let mut trio = Self { net, nodes, settings, sync_mode, removed, accepts_log_corruption };
        (0..3).for_each(|at| trio.start(at));
        for node in &trio.nodes {
            let lww = TenantSpec { mode: Mode::LastWriteWins, ..TenantSpec::new("lww") };
            node.running.as_ref().expect("started").store.create_tenant(lww).expect("created");
        }
        trio
    }

    /// A clean stop, and another start.
    fn restart(&mut self, at: usize) {
        self.store(at).close().expect("closed");
        self.stop(at);
        self.start(at);
    }

    fn start(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        node.starts += 1;
        let mut options = StoreOptions::default();
        options.engine.compaction_threads = 0;
        options.engine.sync_mode = self.sync_mode;
        options.engine.partition_bits = BITS;
        options.engine.accept_log_corruption = self.accepts_log_corruption;
        options.engine.log_segment_bytes = 4 << 20;
        options.engine.memtable_bytes = 8 << 20;
        options.engine.row_cache_bytes = 16 << 10;
        options.identity.cluster_id = Some(7);
        options.limits = Limits { token_window_ms: HOUR_MS, ..Limits::default() };
        let seed = node.starts * 10 + at as u64;
        let environment = Environment::simulated(Arc::new(node.vfs.clone()), &node.clock, seed);
        let store = crate::engine::without_rules(&self.removed, || {
            Store::open_in(Path::new("/node"), options, environment).expect("opens")
        });
        let store = Arc::new(store);
        let link = Arc::new(Link { node: node.id, net: Arc::clone(&self.net) });
        let fence: Arc<dyn Fence> = Arc::clone(&node.gate) as _;
        let layout = node.shown.subscribe();
        let trees = Arc::new(Trees::new(Arc::clone(&store), self.settings.patience()));
        let anti_entropy = AntiEntropy::new(Parts {
            node: node.id,
            store: Arc::clone(&store),
            trees: Arc::clone(&trees),
            peers: Arc::clone(&link) as _,
            layout: layout.clone(),
            fence: Arc::clone(&fence),
            liveness: Arc::clone(&link) as _,
            work: Work::Inline,
            settings: self.settings.clone(),
        });
        let coordinator = Coordinator::new(CoordinatorOptions {
            node: node.id,
            store: Arc::clone(&store),
            peers: Arc::clone(&link) as _,
            layout: layout.clone(),
            fence: Arc::clone(&fence),
            liveness: link,
            hints: None,
            lingering_max: 10,
            queue_bytes_max: 1 << 20,
            pages_max: 4,
            work: Work::Inline,
        });
        let failure = |error: &error::Error| proto::Failure {
            reason: error.reason().to_owned(),
            message: error.to_string(),
            ..proto::Failure::default()
        };
        let replica = Replica::new(replica::Parts {
            node: node.id,
            store: Arc::clone(&store),
            trees,
            coordinator: coordinator.clone(),
            fence,
            layout,
            background: Work::Inline,
            to_failure: failure,
        });
        let handler = Handler { replica, anti_entropy: Arc::clone(&anti_entropy) };
        self.net.handlers.lock().insert(node.id, Arc::new(handler));
        self.net.down.lock().remove(&node.id);
        node.running = Some(Running { store, anti_entropy, coordinator });
    }

    fn stop(&mut self, at: usize) -> MemVfs {
        let node = &mut self.nodes[at];
        self.net.handlers.lock().remove(&node.id);
        self.net.down.lock().insert(node.id);
        node.running = None;
        node.vfs.clone()
    }

    /// Power loss: what was not synced is gone, as far as `seed` has it.
    fn lose_power(&mut self, at: usize, seed: u64) {
        let vfs = self.stop(at);
        self.nodes[at].vfs = vfs.crash_clone(seed);
    }

    fn crash(&mut self, at: usize, seed: u64) {
        self.lose_power(at, seed);
        self.start(at);
    }

    fn store(&self, at: usize) -> &Arc<Store> {
        &self.nodes[at].running.as_ref().expect("it runs").store
    }

    fn anti_entropy(&self, at: usize) -> &Arc<AntiEntropy> {
        &self.nodes[at].running.as_ref().expect("it runs").anti_entropy
    }

    fn coordinator(&self, at: usize) -> &Arc<Coordinator> {
        &self.nodes[at].running.as_ref().expect("it runs").coordinator
    }

    /// What a client reads at QUORUM from a node.
    async fn quorum(&self, at: usize, tenant: &str, key: &str) -> error::Result<Vec<Vec<u8>>> {
        let read = KeyRead { key: key.into(), min_context: None };
        let deadline = Instant::now() + Duration::from_secs(5);
        let options = ReadOptions { level: Level::Quorum, deadline };
        let row = self.coordinator(at).read(tenant, vec![read], options).await.remove(0)?;
        Ok(row.siblings.into_iter().map(|sibling| sibling.value).collect())
    }

    fn advance_ms(&self, ms: u64) {
        self.nodes.iter().for_each(|node| node.clock.advance_ms(ms));
    }

    /// Has `tap` called with every request.
    fn listen(&self, tap: impl FnMut(NodeId, NodeId, &Request) -> bool + Send + 'static) {
        *self.net.tap.lock() = Some(Box::new(tap));
    }

    fn adopt(&self, layout: &Arc<Layout>, nodes: &[usize]) {
        for node in nodes.iter().map(|at| &self.nodes[*at]) {
            node.gate.raise(layout.epoch());
            node.shown.send_replace(Arc::clone(layout));
        }
    }

    /// Writes at one node; what it would ship to others.
    fn write_at(&self, at: usize, tenant: &str, mutation: Mutation) -> ForeignRow<Vec<u8>> {
        let mut prepared = self.store(at).prepare(tenant, &[mutation]);
        prepared.results.remove(0).expect("written");
        let row = prepared.rows.remove(0);
        (row.tenant, row.key, row.row)
    }

    /// Writes at one node and brings it to others.
    fn write(&self, at: usize, tenant: &str, mutation: Mutation, to: &[usize]) {
        let row = self.write_at(at, tenant, mutation);
        for other in to {
            self.deliver(&row, *other).expect("taken");
        }
    }

    /// Leaves something to forget in every partition, of which all know.
    fn litter(&self) {
        for n in 0..16 {
            let others: Vec<usize> = (0..3).filter(|at| *at != n % 3).collect();
            self.write(n % 3, "default", delete(&format!("gone-{n}")), &others);
        }
    }

    fn deliver(&self, row: &ForeignRow<Vec<u8>>, at: usize) -> store::Result<()> {
        self.store(at).replicate(std::slice::from_ref(row)).remove(0)
    }

    fn values(&self, at: usize, tenant: &str, key: &str) -> Vec<String> {
        let row = self.store(at).read(tenant, key.as_bytes()).expect("readable");
        let text = |one: &store::Sibling| String::from_utf8(one.value.clone()).expect("text");
        let mut values: Vec<String> = row.siblings.iter().map(text).collect();
        values.sort_unstable();
        values
    }

    /// What all three read.
    fn all_values(&self, tenant: &str, key: &str) -> Vec<Vec<String>> {
        (0..3).map(|at| self.values(at, tenant, key)).collect()
    }

    async fn compare(&self, at: usize, with: usize) -> Result<Summary, Error> {
        self.anti_entropy(at).compare_with(id(with), &compare::Scope::of(vec![ALL])).await
    }

    /// A second later, a round over everything; how many of its parts failed.
    async fn round(&self) -> usize {
        self.advance_ms(1000);
        self.anti_entropy(0).move_safe_points().await
    }

    fn floors(&self, at: usize) -> Vec<u64> {
        let floor = |partition| self.store(at).floor_of_partition(partition).expect("sound");
        ALL.map(floor).collect()
    }

    /// The floor of a key's partition at each.
    fn floors_of(&self, tenant: &str, key: &str) -> Vec<u64> {
        let floor = |at: usize| {
            let id = self.store(at).tenant(tenant).expect("there").id;
            self.store(at).raw_row(id, key.as_bytes()).expect("readable").floor
        };
        (0..3).map(floor).collect()
    }

    /// Flushes and compacts everything, everywhere; returns how many rows are left at each.
    fn forget(&self) -> Vec<usize> {
        let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
        let rows = |at: usize| {
            let store = self.store(at);
            store.flush().expect("flushed");
            store.compact().expect("compacted");
            while store.step().expect("worked") {}
            store.rows_by_token(whole, None, usize::MAX).expect("read").rows.len()
        };
        (0..3).map(rows).collect()
    }

    /// Declares a floor at some nodes by hand, as if a round had come only so far.
    fn declare(&self, nodes: &[usize], time: u64) {
        for at in nodes {
            let store = self.store(*at);
            let was = store.fence(&[ALL], time).expect("fenced");
            assert!(store.install_floor(&[ALL], time, was).expect("installed"));
        }
    }

    fn now(&self) -> u64 {
        time_of_ms(self.nodes[0].clock.now_ms())
    }
}

const HOUR_MS: u64 = 3_600_000;
