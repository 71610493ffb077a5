//! Replicas compare what they hold and make it equal, all the time, by themselves.
//!
//! | file | what |
//! |---|---|
//! | [`tree`] | hashes of leaves, kept up to date by reading what was written to |
//! | [`compare`] | one node's partitions beside another's: roots, leaves, keys, rows |
//! | [`round`] | safe points: fence, compare every pair, install the floor |
//! | [`answer`] | the other side of each |
//!
//! Of two nodes the one with the smaller id begins; every `interval` it asks each other one for the
//! roots of all partitions they share. Equal roots end it: 8 bytes for each partition. What differs
//! is looked at twice, `settle` apart, so that writes under way are not taken for damage.
//!
//! # Invariants
//! 1. A row that differs is joined from both, under the floors of both, and the join is put where
//!    it is missing; nothing is ever removed because the other side lacks it, unless a floor says
//!    that it is dead.
//! 2. One comparison runs at a time on each node, and each holds a bounded number of keys.
//! 3. A round that did not get an answer from every replica, for every pair, moves no floor.

pub mod answer;
pub mod compare;
pub mod round;
pub mod tree;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{PeerError, Peers};
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::store::{self, Store};

use tree::Trees;

/// What can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How often a node compares itself with each other one.
    pub interval: Duration,
    /// How long a difference must last.
    pub settle: Duration,
    /// How long one request may take.
    pub timeout: Duration,
    /// Leaves that are repaired in one comparison; the rest waits for the next.
    pub leaves_max: usize,
    /// How often safe points are moved; `None`: never, and no delete is forgotten. The default, for
    /// a repair does not pass the guard of a round yet: what a replica missed for longer than
    /// `round_margin` could not be given to it any more.
    pub round_interval: Option<Duration>,
    /// How far behind the clock they are set: longer than hints live, so that little is refused.
    pub round_margin: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            settle: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            leaves_max: 256,
            round_interval: None,
            round_margin: Duration::from_secs(3 * 3600 + 12),
        }
    }
}

/// Why two nodes could not be compared.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Of this node's store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Of the other node.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// The other node answered something else than it was asked.
    #[error("{node} answered with {found} {what}, {expected} were asked for")]
    Answer {
        /// Who.
        node: NodeId,
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// What was compared and repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Partitions looked at.
    pub partitions: u32,
    /// Rows that differed and were made equal.
    pub rows: u64,
    /// Leaves that differed and were left for the next comparison.
    pub leaves_left: u64,
}

/// Counted since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Comparisons that ended.
    pub comparisons: AtomicU64,
    /// Comparisons that failed.
    pub failures: AtomicU64,
    /// Rows made equal.
    pub rows: AtomicU64,
    /// Rows that one of the sides did not take.
    pub refused: AtomicU64,
    /// Rounds that moved floors.
    pub rounds: AtomicU64,
}

/// See the module page.
pub struct AntiEntropy {
    node: NodeId,
    store: Arc<Store>,
    peers: Arc<dyn Peers>,
    layout: watch::Receiver<Arc<Layout>>,
    liveness: Arc<dyn Liveness>,
    work: Work,
    settings: Settings,
    trees: Arc<Trees>,
    /// Held by the comparison that runs.
    running: Mutex<()>,
    /// What happened so far.
    pub counters: Counters,
}

/// What [`AntiEntropy::new`] needs.
pub struct Parts {
    /// This node.
    pub node: NodeId,
    /// Its rows.
    pub store: Arc<Store>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who owns what.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// Who is up.
    pub liveness: Arc<dyn Liveness>,
    /// Where leaves are read.
    pub work: Work,
    /// What can be set.
    pub settings: Settings,
}

impl AntiEntropy {
    /// Nothing runs before [`AntiEntropy::run`].
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { node, store, peers, layout, liveness, work, settings } = parts;
        let trees = Arc::new(Trees::new(Arc::clone(&store)));
        Arc::new(Self {
            node,
            store,
            peers,
            layout,
            liveness,
            work,
            settings,
            trees,
            running: Mutex::default(),
            counters: Counters::default(),
        })
    }

    fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layout.borrow())
    }

    /// Compares and moves safe points until told to stop.
    pub async fn run(self: Arc<Self>, closing: CancellationToken) {
        let mut comparisons = tokio::time::interval(self.settings.interval);
        comparisons.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last_round = Instant::now();
        loop {
            let work = async {
                comparisons.tick().await;
                self.compare_all().await;
                let due = |interval| last_round.elapsed() >= interval;
                if self.settings.round_interval.is_some_and(due) {
                    last_round = Instant::now();
                    self.move_safe_points().await;
                }
            };
            tokio::select! {
                () = work => {}
                () = closing.cancelled() => return,
            }
        }
    }

    /// Compares this node with each other one that is up and has a greater id.
    async fn compare_all(&self) {
        let layout = self.layout();
        for peer in layout.document().members.keys().copied() {
            if peer <= self.node || !self.liveness.is_up(peer) {
                continue;
            }
            // The next interval tries again.
            let _ = self.compare_with(peer, compare::Scope::all(&layout)).await;
        }
    }

    /// Compares partitions of this node with all their other replicas that are up, now.
    ///
    /// # Errors
    /// The first failure; the others were compared all the same.
    pub async fn repair(&self, partition: Option<u32>) -> Result<Summary, Error> {
        let layout = self.layout();
        let mut total = Summary::default();
        let mut failed = None;
        for peer in layout.document().members.keys().copied() {
            if peer == self.node || !self.liveness.is_up(peer) {
                continue;
            }
            let scope = match partition {
                Some(partition) => compare::Scope::of(vec![partition..=partition]),
                None => compare::Scope::all(&layout),
            };
            match self.compare_with(peer, scope).await {
                Ok(summary) => {
                    total.partitions = total.partitions.max(summary.partitions);
                    total.rows += summary.rows;
                    total.leaves_left += summary.leaves_left;
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(total), Err)
    }

    /// Compares with one node; counted and logged.
    async fn compare_with(&self, peer: NodeId, scope: compare::Scope) -> Result<Summary, Error> {
        let _one = self.running.lock().await;
        let result = self.compare(peer, &scope).await;
        match &result {
            Ok(summary) => {
                self.counters.comparisons.fetch_add(1, Ordering::Relaxed);
                self.counters.rows.fetch_add(summary.rows, Ordering::Relaxed);
                if summary.rows > 0 {
                    tracing::info!(%peer, rows = summary.rows, "made rows equal");
                }
            }
            Err(error) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%peer, %error, "cannot compare");
            }
        }
        result
    }
}
