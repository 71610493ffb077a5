//! A client's request on its way over the replicas.
//!
//! | file | what |
//! |---|---|
//! | `write` | who coordinates each write of a batch; the batch put together again |
//! | `flight` | a batch that this node coordinates, from its log to its last replica |
//! | `learn` | what a coordinator asks for before it makes a write |
//! | `forward` | writes of rows that this node does not hold |
//! | `read` | rows from as many replicas as the level asks for, and their repair |
//! | `read_here` | reads that this node answers by itself |
//! | `read_key` | what a coordinator knows of one key, and what follows from it |
//! | `walk` | the rows of a tenant, part of the ring after part |
//! | `part` | a page of one part, from as many replicas as the level asks for |
//! | `replica_page` | one replica's page: the own, another's, one for another |
//! | `pages` | what pages of several replicas say together |
//!
//! # Invariants
//! 1. A write is refused before it is minted if too few replicas are up. From its minting on it
//!    ends as done or as unknown, never as "not applied".
//! 2. It is acknowledged when *each* replica set (there are two while the layout changes) has as
//!    many durable copies as the level asks for, all of them given under one epoch. Hints count
//!    for nothing.
//! 3. When the epoch changes, what was collected under the old one counts for nothing: the same
//!    row is sent again under the new one, and a read starts over.
//! 4. A read at QUORUM or ALL returns a row that enough replicas of each set hold when it returns.
//! 5. A node that is the whole cluster goes straight to its store.
//! 6. A delete without a context at QUORUM or ALL covers what was acknowledged at either of them
//!    before it, whoever coordinates it.
//! 7. A node that leaves mints nothing: it forwards every write, also of rows it still holds.

mod flight;
mod forward;
mod learn;
mod pages;
mod part;
mod read;
mod read_here;
mod read_key;
mod replica_page;
mod walk;
mod write;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::fence::Fence;
use super::hints::HintSender;
use super::lane::{Lane, Parcel};
use super::level::Level;
use super::{Layout, Sets};
use crate::cluster::NodeId;
use crate::cluster::layout::MemberState;
use crate::cluster::peer::Peers;
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::resilience::bytes::ByteBudget;
use crate::resilience::scores::Scores;
use crate::store::{Store, Tenant};

pub(super) use part::Part;
pub use part::{ScannedRow, Seen, Want};
pub use read::{KeyRead, ReadOptions};
pub use walk::{Walk, WalkPage};
pub use write::WriteOptions;

/// What a coordinator works with.
pub struct CoordinatorOptions {
    /// This node.
    pub node: NodeId,
    /// Its rows.
    pub store: Arc<Store>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who owns what.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// Under which epoch this node acts.
    pub fence: Arc<dyn Fence>,
    /// Who is up.
    pub liveness: Arc<dyn Liveness>,
    /// Takes what a replica missed; without it that is left to the comparison of replicas.
    pub hints: Option<HintSender>,
    /// Writes that are answered and still wait for slow replicas, at most; beyond, what a replica
    /// has not answered by then becomes a hint at once.
    pub lingering_max: usize,
    /// Bytes of keys and rows that may wait for each peer; more is refused.
    pub queue_bytes_max: usize,
    /// Where pages of the own store are read.
    pub work: Work,
    /// How many of them at once, for whomever.
    pub pages_max: usize,
}

/// Coordinates requests. All calls may run at the same time.
pub struct Coordinator {
    // Constant.
    node: NodeId,
    store: Arc<Store>,
    peers: Arc<dyn Peers>,
    layout: watch::Receiver<Arc<Layout>>,
    fence: Arc<dyn Fence>,
    liveness: Arc<dyn Liveness>,
    hints: Option<HintSender>,
    lingering_max: usize,
    queue_bytes_max: usize,
    work: Work,

    // Each with its own synchronisation.
    lanes: Mutex<BTreeMap<(NodeId, LaneKind), Lane>>,
    scores: Arc<Scores<NodeId>>,
    /// An epoch, shifted by one, and whether this node is the whole cluster in it.
    solo: AtomicU64,
    lingering: AtomicUsize,
    /// Batches that this node coordinates, until their last replica.
    flights: TaskTracker,
    /// Bounds pages of the own store, for whomever they are read.
    pages: Semaphore,
    /// Bounds reads that nobody waits for.
    checks: Semaphore,
    // Relaxed: only says whose turn it is.
    reads_at_one: AtomicU64,
    counters: Counters,
}

/// Writes wait for the disk of the peer; reads do not wait behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LaneKind {
    Rows,
    Keys,
}

#[derive(Debug, Default)]
struct Counters {
    forwarded: AtomicU64,
    unavailable: AtomicU64,
    unknown: AtomicU64,
    overloaded: AtomicU64,
    restarts: AtomicU64,
    mismatches: AtomicU64,
    repairs: AtomicU64,
    hedges: AtomicU64,
    widened: AtomicU64,
    checks: AtomicU64,
}

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CoordinatorStats {
    /// Writes handed to a replica.
    pub forwarded: u64,
    /// Writes and reads refused because too few replicas were up.
    pub unavailable: u64,
    /// Writes whose outcome was told as unknown.
    pub unknown: u64,
    /// Messages, or parts of them, that found no room on the way to their peer.
    pub overloaded: u64,
    /// Bytes of keys and rows that wait for peers now, or are under way to them.
    pub queued_bytes: u64,
    /// Writes sent again, and reads started over, under a new epoch.
    pub restarts: u64,
    /// Keys read whose replicas differed.
    pub mismatches: u64,
    /// Rows sent to replicas that a read found behind.
    pub repairs: u64,
    /// Reads that asked one more replica because one was slow.
    pub hedges: u64,
    /// Keys read from more replicas because of what the client had seen.
    pub widened: u64,
    /// Reads at ONE that were checked at QUORUM, with nobody waiting.
    pub checks: u64,
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

impl Coordinator {
    /// A coordinator. Its tasks run on the current runtime.
    pub fn new(options: CoordinatorOptions) -> Arc<Self> {
        Arc::new(Self {
            node: options.node,
            store: options.store,
            peers: options.peers,
            layout: options.layout,
            fence: options.fence,
            liveness: options.liveness,
            hints: options.hints,
            lingering_max: options.lingering_max,
            queue_bytes_max: options.queue_bytes_max,
            work: options.work,
            lanes: Mutex::default(),
            scores: Arc::default(),
            solo: AtomicU64::new(u64::MAX),
            lingering: AtomicUsize::new(0),
            flights: TaskTracker::new(),
            pages: Semaphore::new(options.pages_max.max(1)),
            checks: Semaphore::new(read_here::CHECKS_MAX),
            reads_at_one: AtomicU64::new(0),
            counters: Counters::default(),
        })
    }

    /// The figures now.
    pub fn stats(&self) -> CoordinatorStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        CoordinatorStats {
            forwarded: get(&counters.forwarded),
            unavailable: get(&counters.unavailable),
            unknown: get(&counters.unknown),
            overloaded: get(&counters.overloaded),
            queued_bytes: self.lanes.lock().values().map(|lane| lane.bytes() as u64).sum(),
            restarts: get(&counters.restarts),
            mismatches: get(&counters.mismatches),
            repairs: get(&counters.repairs),
            hedges: get(&counters.hedges),
            widened: get(&counters.widened),
            checks: get(&counters.checks),
        }
    }

    /// Returns when no write of this node waits for a replica any more: each has its row, or a hint
    /// is kept for it. For a node that stops, once nobody begins writes on it.
    pub async fn landed(&self) {
        self.flights.close();
        self.flights.wait().await;
    }

    fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layout.borrow())
    }

    /// Whether this node is the only owner. Looked up once for each epoch.
    fn is_solo(&self, layout: &Layout) -> bool {
        let known = self.solo.load(Ordering::Relaxed);
        if known != u64::MAX && known >> 1 == layout.epoch() {
            return known & 1 == 1;
        }
        // Every replica set has all owners up to its factor.
        let solo = layout.sets(0, u8::MAX).members() == [self.node];
        self.solo.store(layout.epoch() << 1 | u64::from(solo), Ordering::Relaxed);
        solo
    }

    fn sets(&self, layout: &Layout, tenant: &Tenant, key: &[u8]) -> (u32, Sets) {
        let partition = layout.partition_of(tenant.token(key));
        (partition, layout.sets_of(partition, tenant))
    }

    /// Whether this node hands over what it has: others coordinate then.
    fn is_leaving(&self, layout: &Layout) -> bool {
        leaves(layout, self.node)
    }

    fn is_up(&self, node: NodeId) -> bool {
        node == self.node || self.liveness.is_up(node)
    }

    /// Sends a parcel to a peer, on the lane of its kind.
    fn send(&self, node: NodeId, kind: LaneKind, parcel: Parcel) {
        let mut lanes = self.lanes.lock();
        let lane = lanes.entry((node, kind)).or_insert_with(|| {
            let budget = ByteBudget::new(self.queue_bytes_max);
            Lane::start(node, Arc::clone(&self.peers), Arc::clone(&self.scores), budget)
        });
        let lane = lane.clone();
        drop(lanes);
        if !lane.send(node, parcel) {
            count(&self.counters.overloaded, 1);
        }
    }

    /// Forgets the ways to nodes that `is_known` does not know any more.
    pub fn forget_peers(&self, is_known: impl Fn(NodeId) -> bool) {
        self.lanes.lock().retain(|(node, _), _| is_known(*node));
        self.scores.keep(|node| is_known(*node));
    }

    /// Waits until the layout is later than `epoch`, asking `from`, who knows of one. `false`: it
    /// was not learnt in time.
    async fn wait_for_layout(&self, epoch: u64, from: Option<NodeId>, deadline: Instant) -> bool {
        let mut layout = self.layout.clone();
        if layout.borrow_and_update().epoch() > epoch {
            return true;
        }
        if let Some(from) = from {
            self.learn(from, epoch + 1, deadline);
        }
        let later = layout.wait_for(|layout| layout.epoch() > epoch);
        matches!(tokio::time::timeout_at(deadline, later).await, Ok(Ok(_)))
    }

    /// Lets the document of at least `epoch` be fetched from `from`.
    fn learn(&self, from: NodeId, epoch: u64, deadline: Instant) {
        let fence = Arc::clone(&self.fence);
        let timeout = deadline.saturating_duration_since(Instant::now());
        tokio::spawn(async move {
            // Whoever waits for the layout sees that it came; that it did not, its deadline.
            let _ = fence.learn(from, epoch, timeout.max(Duration::from_millis(1))).await;
        });
    }
}

/// Whether a node hands over what it has.
fn leaves(layout: &Layout, node: NodeId) -> bool {
    let member = layout.document().members.get(&node);
    member.is_some_and(|member| member.state == MemberState::Leaving)
}

/// A replica set that has not as many as the level asks for: what it needs and what it has.
fn lacking(sets: &Sets, level: Level, has: impl Fn(NodeId) -> bool) -> Option<(usize, usize)> {
    let mut all = sets.each().map(|set| {
        let needed = level.needed(set.len());
        (needed, set.iter().filter(|node| has(**node)).count())
    });
    all.find(|(needed, found)| found < needed)
}
