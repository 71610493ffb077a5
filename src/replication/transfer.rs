//! A node that will own partitions merges them from those who own them.
//!
//! It works on a Joint document, and on nothing else: whoever the document says must sync fetches,
//! for each partition and number of replicas, the rows of enough members of S, page by page, and
//! merges them (`merge`). Some partitions are merged at once, at one rate together.
//!
//! ```text
//! Joint adopted     propose Fenced(node, epoch)
//! must sync         each partition: pages from each source, merged, durable, compared
//! all merged        propose Synced(node, epoch)
//! ```
//!
//! # Invariants
//! 1. A page counts only if its source answered under the epoch of the document: its fence was
//!    durable before the page was read.
//! 2. A source counts when its last page is durable here, and this node was seen to hold all that
//!    the source does.
//! 3. What is proposed names the epoch; a document of another epoch starts the work over.
//!    A node that has lost data of a partition is no source of it for itself, and what it loses
//!    while it merges it merges again.
//! 4. Rows are joined only under the epoch they were asked for under.

mod dead;
mod merge;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::watch;

use self::merge::{From, Place};
use super::Fence;
use super::duties::{RETRY, Report, propose};
use super::progress::{Progress, Rate, Task};
use crate::cluster::NodeId;
use crate::cluster::layout::rules::SourcesNeeded;
use crate::cluster::layout::{Command, Document, Layout, MemberState, ToSync};
use crate::cluster::peer::{PeerError, Peers};
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::store::{self, Store};

/// How often each source has failed since it last gave a partition.
type Failures = Mutex<BTreeMap<NodeId, u32>>;

/// Partitions of which this node held all that it took when it counted itself.
type Sound = Mutex<BTreeSet<u32>>;

/// One that is said to be down is asked as one that failed so often.
const DOWN: u32 = 2;
/// Partitions that are merged at once: while one waits for the disk another one waits for a page.
const AT_ONCE: usize = 4;

/// Why a partition could not be merged from a source.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the layout has gone on")]
    Layout,
    #[error("{rows} rows are not here after they were merged")]
    NotThere { rows: usize },
    #[error("the node is stopping")]
    Stopping,
}

/// What can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of rows in a page.
    pub page_bytes: u32,
    /// How long a page may take.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { page_bytes: 1 << 20, timeout: Duration::from_secs(30) }
    }
}

/// See the module page.
pub struct Transfer {
    /// This node.
    pub node: NodeId,
    /// Its rows.
    pub store: Arc<Store>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who is up.
    pub liveness: Arc<dyn Liveness>,
    /// Where facts are put.
    pub report: Arc<dyn Report>,
    /// The adopted document.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// Under which epoch this node acts.
    pub fence: Arc<dyn Fence>,
    /// Where rows are merged.
    pub work: Work,
    /// What can be set.
    pub settings: Settings,
    /// How fast rows may come.
    pub rate: Arc<Rate>,
    /// What was done.
    pub progress: Arc<Progress>,
}

impl Transfer {
    /// Merges all that the node lacks of what it will own under a Joint `layout`.
    pub async fn serve(&self, layout: &Layout) {
        if !layout.document().is_joint() {
            return;
        }
        let (node, epoch) = (self.node, layout.epoch());
        self.report(Command::Fenced { node, epoch }).await;
        if layout.must_sync(node) {
            self.sync_all(layout).await;
            self.report(Command::Synced { node, epoch }).await;
            self.progress.end();
        }
    }

    async fn report(&self, command: Command) {
        propose(&*self.report, &self.progress, command).await;
    }

    /// Until all that the node must merge is durable here.
    async fn sync_all(&self, layout: &Layout) {
        let mut todo = layout.to_sync(self.node);
        while !todo.is_empty() {
            let partitions = todo.iter().map(|one| one.partition);
            let sound = Mutex::new(partitions.filter(|at| self.is_sound(*at)).collect());
            self.sync(layout, &todo, &sound).await;
            self.make_durable().await;
            // What has lost data since may have lost what was merged.
            let was_sound = sound.into_inner();
            todo.retain(|one| was_sound.contains(&one.partition) && !self.is_sound(one.partition));
        }
    }

    /// Whether the node holds all that it took of a partition.
    fn is_sound(&self, partition: u32) -> bool {
        self.store.check_all_undamaged(&[partition..=partition]).is_ok()
    }

    /// What was here already when it was compared may have been in memory only.
    async fn make_durable(&self) {
        loop {
            let store = Arc::clone(&self.store);
            let why = match self.work.run(move || store.flush()).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            self.progress.wait_for(format!("its own disk: {why}"));
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn sync(&self, layout: &Layout, todo: &[ToSync], sound: &Sound) {
        self.progress.begin(Task::Merging, todo.len() as u64);
        tracing::info!(epoch = layout.epoch(), partitions = todo.len(), "merging partitions");
        let failures = Failures::default();
        let partitions = todo.chunk_by(|one, other| one.partition == other.partition);
        let merging =
            partitions.map(|of_one| self.sync_partition(layout, of_one, sound, &failures));
        futures_util::stream::iter(merging).for_each_concurrent(AT_ONCE, |one| one).await;
    }

    /// Merges a partition, once for each number of replicas: the tenants of one number come along
    /// with those of another.
    async fn sync_partition(
        &self,
        layout: &Layout,
        todo: &[ToSync],
        sound: &Sound,
        failures: &Failures,
    ) {
        let mut merged = BTreeSet::new();
        // How far each source is; good under this epoch.
        let mut places: BTreeMap<NodeId, Place> = BTreeMap::new();
        let mut own = None;
        for ToSync { partition, factors, .. } in todo {
            loop {
                if !merged.contains(&self.node) && self.is_sound(*partition) {
                    // Its own fence is durable, or this document would not be here.
                    sound.lock().insert(*partition);
                    merged.insert(self.node);
                }
                let latest = self.latest(layout);
                let sources = latest.sources_needed(*partition, *factors);
                if sources.is_synced_by(&merged) {
                    break;
                }
                let Some(source) = self.next_source(&latest, &sources, &merged, failures) else {
                    self.progress.wait_for("its own rows: some of them are lost");
                    tokio::time::sleep(RETRY).await;
                    continue;
                };
                // Of what one source had the next ones have nearly all.
                let is_first = !sources.of.iter().any(|node| merged.contains(node));
                let first = if is_first { Place::default() } else { Place::Skipped };
                let place = places.entry(source).or_insert(first);
                let from = From { layout, source, partition: *partition };
                match self.merge(&from, place, &mut own).await {
                    Ok(()) => {
                        merged.insert(source);
                        failures.lock().remove(&source);
                    }
                    Err(error) => {
                        tracing::debug!(%source, partition, %error, "cannot merge");
                        if !matches!(error, Error::Store(_)) {
                            *failures.lock().entry(source).or_default() += 1;
                        }
                        self.progress.wait_for(waits_for(layout, source, &error));
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            self.progress.done(1);
        }
    }

    /// The latest document of the epoch: one that leaves and is waited for may have been given up.
    fn latest(&self, layout: &Layout) -> Layout {
        let now = self.layout.borrow();
        if now.epoch() == layout.epoch() { Layout::clone(&now) } else { layout.clone() }
    }

    /// Who has failed least; among equals in the order of ranks: the sources of fewer replicas are
    /// the first of those of more. Nobody is asked for ever while others would do, and nobody is
    /// given up: who leaves cannot be stood in for. Those who are taken out are as good as down: a
    /// newcomer may not have heard yet that they are.
    fn next_source(
        &self,
        layout: &Layout,
        sources: &SourcesNeeded,
        merged: &BTreeSet<NodeId>,
        failures: &Failures,
    ) -> Option<NodeId> {
        let count = sources.of.iter().filter(|node| merged.contains(node)).count();
        let needed = |node: &NodeId| count < sources.count || sources.leaving.contains(node);
        let failures = failures.lock();
        let goes = |node: &NodeId| {
            let member = layout.document().members.get(node);
            member.is_some_and(|member| member.state == MemberState::Removing)
        };
        let trouble = |node: &NodeId| {
            let failed = failures.get(node).copied().unwrap_or(0);
            failed + if self.liveness.is_up(*node) && !goes(node) { 0 } else { DOWN }
        };
        let left = sources.of.iter().filter(|node| **node != self.node && !merged.contains(node));
        left.copied().filter(needed).min_by_key(trouble)
    }
}

/// What is waited for: this node's own disk, or another node, by name.
fn waits_for(layout: &Layout, source: NodeId, error: &Error) -> String {
    match error {
        Error::Store(store::Error::DiskFull { available, reserve, .. }) => {
            format!("room on its disk: {available} bytes are free, {reserve} are its reserve")
        }
        Error::Store(error) => format!("its own store: {error}"),
        error => format!("rows of {}: {error}", layout.document().name_of(source)),
    }
}

/// A node that will own partitions vouches for nothing in them: what it lacks is not dead.
#[derive(Debug)]
pub struct Newcomer {
    node: NodeId,
    store: Arc<Store>,
    /// The last epoch that was looked at.
    epoch: AtomicU64,
}

impl Newcomer {
    /// Of the node whose rows these are.
    pub fn new(node: NodeId, store: Arc<Store>) -> Self {
        Self { node, store, epoch: AtomicU64::new(0) }
    }

    /// Takes back what the node has vouched for in partitions of which it will own rows that it
    /// did not own, and has it write under another actor. To be called when a document is adopted,
    /// before anybody acts under it.
    pub fn begin_anew(&self, document: &Document) {
        self.begin(document, Store::begin_anew);
    }

    /// The same at a start, under the document that was adopted before it. The node stays fenced
    /// as it was: it may have merged all and said so, and the others may have gone on, without its
    /// having heard of it. It would own unfenced what its sources have forgotten.
    pub fn begin_again(&self, document: &Document) {
        match self.store.keeps("synced_stays_fenced") {
            true => self.begin(document, Store::begin_again),
            false => self.begin(document, Store::begin_anew),
        }
    }

    fn begin(
        &self,
        document: &Document,
        begin: impl FnOnce(&Store, &[RangeInclusive<u32>]) -> store::Result<()>,
    ) {
        let node = self.node;
        let next = document.next_owners.as_ref();
        let is_new = self.epoch.swap(document.epoch, Ordering::Relaxed) != document.epoch;
        // One that has heard that it has merged has begun already.
        let has_merged = document.synced.contains(&node) && self.store.keeps("synced_stays_fenced");
        if !is_new || has_merged || !next.is_some_and(|next| next.contains_key(&node)) {
            return;
        }
        let layout = Layout::new(Arc::new(document.clone()));
        let partitions: Vec<_> = layout.newly_owned(node).into_iter().map(|at| at..=at).collect();
        if let Err(error) = begin(&self.store, &partitions) {
            // The store takes no writes then.
            tracing::error!(%error, "cannot begin anew with partitions");
        }
    }
}
