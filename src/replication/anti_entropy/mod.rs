//! Replicas compare what they hold and make it equal, all the time, by themselves.
//!
//! | file | what |
//! |---|---|
//! | [`compare`] | one node's partitions beside another's: roots, leaves, keys |
//! | [`repair`] | rows that differ: joined, put where they are missing |
//! | [`heal`] | blocks that cannot be read any more: marked, given up, fetched from others |
//! | [`exchange`] | a partition that has lost data gets it back from each of its peers |
//! | [`round`] | safe points: fence, compare every pair, hold, install the floor |
//! | [`answer`] | the other side of each |
//!
//! Of two nodes the one with the smaller id begins; every `interval` it asks each other one for the
//! roots of all partitions they share. Equal roots end it: a few bytes for each partition. What
//! differs is looked at twice, `settle` apart, so that writes under way are not taken for damage.
//!
//! # Invariants
//! 1. A row that differs is joined from both, under the floors of both, and the join is put where
//!    it is missing; nothing is ever removed because the other side lacks it, unless a floor says
//!    that it is dead. The join is taken while the floors it was made under are in force.
//! 2. One comparison runs at a time on each node, and each holds a bounded number of keys.
//! 3. A round that did not get an answer from every replica, for every pair, moves no floor.
//! 4. What is answered, compared, repaired and installed is so under one epoch, that of the
//!    request (R1 of the transitions).
//! 5. A newcomer is compared when it has merged what it will own, and not before.
//! 6. A damaged partition gives no hash and no row, and its node takes part in no round of it.

pub mod answer;
pub mod compare;
pub mod exchange;
pub mod heal;
pub mod repair;
pub mod round;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex as SyncMutex;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{PeerError, Peers};
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::store::{self, Store};

use super::fence::{self, Fence};
use super::tree::Trees;

/// How often it is looked whether there is damage to mend.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

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
    /// How often safe points are moved, where there is something to forget; `None`: never, and no
    /// delete is forgotten.
    pub round_interval: Option<Duration>,
    /// How soon a round that failed is tried again.
    pub round_retry: Duration,
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
            round_interval: Some(Duration::from_secs(1800)),
            round_retry: Duration::from_secs(120),
            round_margin: Duration::from_secs(3 * 3600 + 12),
        }
    }
}

impl Settings {
    /// How long leaves may be read for one answer: whoever asks for hashes waits for as long as one
    /// request may take, for both sides' work.
    pub fn patience(&self) -> Duration {
        self.timeout / 4
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
    /// The layout has another number of partitions than this node's store.
    #[error("the layout has 2^{layout} partitions, the store 2^{store}")]
    Partitions {
        /// The layout's bits.
        layout: u32,
        /// The store's.
        store: u32,
    },
    /// A safe-point round proved nothing.
    #[error("the round is void: {why}")]
    Void {
        /// Why.
        why: String,
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
    /// Rows that one of the sides did not give or take.
    pub refused: u64,
    /// Partitions that were left for the next comparison: not read yet, or damaged.
    pub left: u64,
    /// Leaves that were left for it: too many for one.
    pub later: u64,
}

/// What a repair that somebody asked for came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Of all comparisons.
    pub summary: Summary,
    /// Other replicas that are down.
    pub down: Vec<NodeId>,
}

impl Summary {
    /// Whether every row was equal on both at some moment.
    pub fn is_whole(&self) -> bool {
        self.refused == 0 && self.left == 0 && self.later == 0
    }

    fn add(&mut self, other: Self) {
        self.partitions = self.partitions.max(other.partitions);
        self.rows += other.rows;
        self.refused += other.refused;
        self.left += other.left;
        self.later += other.later;
    }
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
    /// Rounds that did not.
    pub rounds_failed: AtomicU64,
    /// Partitions that lost data and have got it back.
    pub mended: AtomicU64,
    /// Tables with blocks that cannot be read and may hold rows nobody else has. Not a count.
    pub kept: AtomicU64,
}

/// See the module page.
pub struct AntiEntropy {
    node: NodeId,
    store: Arc<Store>,
    peers: Arc<dyn Peers>,
    layout: watch::Receiver<Arc<Layout>>,
    fence: Arc<dyn Fence>,
    liveness: Arc<dyn Liveness>,
    work: Work,
    settings: Settings,
    trees: Arc<Trees>,
    /// Partitions where a replica's floor was seen to be behind this node's.
    behind: SyncMutex<BTreeSet<u32>>,
    /// Tables whose unreadable blocks stay, as was told.
    kept: SyncMutex<BTreeSet<u64>>,
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
    /// Their hashes.
    pub trees: Arc<Trees>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who owns what.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// The epoch this node acts under.
    pub fence: Arc<dyn Fence>,
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
        let Parts { node, store, trees, peers, layout, fence, liveness, work, settings } = parts;
        Arc::new(Self {
            node,
            store,
            peers,
            layout,
            fence,
            liveness,
            work,
            settings,
            trees,
            behind: SyncMutex::default(),
            kept: SyncMutex::default(),
            running: Mutex::default(),
            counters: Counters::default(),
        })
    }

    fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layout.borrow())
    }

    /// The layout, if it is of this store.
    fn checked_layout(&self) -> Result<Arc<Layout>, Error> {
        let layout = self.layout();
        self.check_bits(&layout)?;
        Ok(layout)
    }

    fn check_bits(&self, layout: &Layout) -> Result<(), Error> {
        let (layout, store) = (layout.document().partition_bits, self.store.partition_bits());
        if layout == store { Ok(()) } else { Err(Error::Partitions { layout, store }) }
    }

    /// Whether this node still acts under `epoch`, and so did since it last said so.
    fn still_under(&self, epoch: u64) -> Result<(), PeerError> {
        fence::enter(&*self.fence, epoch).map(drop)
    }

    /// Compares and moves safe points until told to stop.
    pub async fn run(self: Arc<Self>, closing: CancellationToken) {
        let mut comparisons = tokio::time::interval(self.settings.interval);
        comparisons.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let interval = self.settings.round_interval;
        let mut round_at = interval.map(|interval| Instant::now() + interval);
        let mut looks = tokio::time::interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let work = async {
                tokio::select! {
                    biased;
                    _ = comparisons.tick() => {}
                    _ = looks.tick() => return self.heal().await,
                }
                self.heal().await;
                self.exchange_damaged().await;
                self.compare_all().await;
                self.settle_floors().await;
                let (Some(interval), Some(at)) = (interval, round_at) else { return };
                if Instant::now() >= at {
                    let wait = match self.move_safe_points().await {
                        0 => interval,
                        _ => self.settings.round_retry.min(interval),
                    };
                    round_at = Some(Instant::now() + wait);
                }
            };
            tokio::select! {
                () = work => {}
                () = closing.cancelled() => return,
            }
        }
    }

    /// Has what floors wait for flushed, when they have waited for long.
    async fn settle_floors(&self) {
        if self.layout().document().is_owned_by(self.node) {
            // A node that is alone moves its safe points by itself.
            return;
        }
        let store = Arc::clone(&self.store);
        match self.work.run(move || store.settle_floors()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot flush what safe points wait for"),
            Err(error) => tracing::error!(%error, "flushing for safe points panicked"),
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
            let _ = self
                .compare_with(peer, &compare::Scope::all(&layout, self.settings.leaves_max))
                .await;
        }
    }

    /// Compares partitions of this node with all their other replicas that are up, now, as often as
    /// it takes to come to all leaves that differ.
    ///
    /// # Errors
    /// The first failure; the others were compared all the same.
    pub async fn repair(&self, partition: Option<u32>) -> Result<Repaired, Error> {
        let layout = self.layout();
        let mut repaired = Repaired::default();
        let mut failed = None;
        let scope = match partition {
            Some(partition) => compare::Scope::of(vec![partition..=partition]),
            None => compare::Scope::all(&layout, self.settings.leaves_max),
        };
        for peer in layout.document().members.keys().copied() {
            if peer == self.node || !self.shares(&layout, peer, &scope) {
                continue;
            }
            if !self.liveness.is_up(peer) {
                repaired.down.push(peer);
                continue;
            }
            match self.compare_to_the_end(peer, &scope).await {
                Ok(summary) => repaired.summary.add(summary),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(repaired), Err)
    }

    /// Compares with one node until no leaf is left for later, or there are no fewer than before:
    /// who writes faster than rows are compared is not waited for.
    async fn compare_to_the_end(
        &self,
        peer: NodeId,
        scope: &compare::Scope,
    ) -> Result<Summary, Error> {
        let mut last = self.compare_with(peer, scope).await?;
        let (mut rows, mut refused) = (last.rows, last.refused);
        while last.later > 0 {
            let before = last.later;
            last = self.compare_with(peer, scope).await?;
            rows += last.rows;
            refused += last.refused;
            if last.later >= before {
                break;
            }
        }
        Ok(Summary { rows, refused, ..last })
    }

    /// Compares with one node; counted and logged.
    async fn compare_with(&self, peer: NodeId, scope: &compare::Scope) -> Result<Summary, Error> {
        let _one = self.running.lock().await;
        let result = self.compare(peer, scope).await;
        match &result {
            Ok(summary) => {
                self.counters.comparisons.fetch_add(1, Ordering::Relaxed);
                self.counters.rows.fetch_add(summary.rows, Ordering::Relaxed);
                self.counters.refused.fetch_add(summary.refused, Ordering::Relaxed);
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
