//! A node that will own partitions merges them from those who own them.
//!
//! It works on a Joint document, and on nothing else: whoever the document says must sync fetches,
//! for each partition and number of replicas, the rows of enough members of S, page by page, and
//! merges them. Rows join, so pages may come from different moments and twice.
//!
//! ```text
//! Joint adopted     propose Fenced(node, epoch)
//! must sync         each partition: pages from each source, merged, durable
//! all merged        propose Synced(node, epoch)
//! ```
//!
//! # Invariants
//! 1. A page counts only if its source answered under the epoch of the document: its fence was
//!    durable before the page was read.
//! 2. A source counts when its last page is durable here.
//! 3. What is proposed names the epoch; a document of another epoch starts the work over.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::async_trait;

use crate::cluster::NodeId;
use crate::cluster::layout::{Command, Layout};
use crate::cluster::peer::{Class, PeerError, Peers, Reply, Request};
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::proto;
use crate::store::leaves::LEAF_BITS;
use crate::store::{self, Store, TenantId};

/// How long after a failure the rest is tried again.
const RETRY: Duration = Duration::from_millis(500);

/// Puts a fact into the document.
#[async_trait]
pub trait Report: Send + Sync + 'static {
    /// Whether it is there. A failure is tried again by the caller.
    async fn report(&self, command: Command) -> bool;
}

/// Why a partition could not be merged from a source.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Store(#[from] store::Error),
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

/// What was done so far, since the start.
#[derive(Debug, Default)]
pub struct Progress {
    /// Partitions that must be merged under the document at hand.
    pub partitions: AtomicU64,
    /// Of those, merged.
    pub merged: AtomicU64,
    /// Rows received.
    pub rows: AtomicU64,
    /// Bytes of them.
    pub bytes: AtomicU64,
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
    /// The adopted document: its epoch is durable here.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// Where facts are put.
    pub report: Arc<dyn Report>,
    /// Where rows are merged.
    pub work: Work,
    /// What can be set.
    pub settings: Settings,
    /// What was done.
    pub progress: Progress,
}

impl Transfer {
    /// Does what each document asks for, until told to stop.
    pub async fn run(self: Arc<Self>, closing: CancellationToken) {
        let mut layout = self.layout.clone();
        loop {
            let document = Arc::clone(&layout.borrow_and_update());
            tokio::select! {
                () = self.serve(&document) => {
                    tokio::select! {
                        changed = layout.changed() => if changed.is_err() { return },
                        () = closing.cancelled() => return,
                    }
                }
                // Another document: what was begun under this one is dropped.
                changed = wait_for_epoch(&mut layout, document.epoch()) => {
                    if !changed {
                        return;
                    }
                }
                () = closing.cancelled() => return,
            }
        }
    }

    async fn serve(&self, layout: &Layout) {
        if !layout.document().is_joint() {
            return;
        }
        let (node, epoch) = (self.node, layout.epoch());
        self.report(Command::Fenced { node, epoch }).await;
        if layout.must_sync(node) {
            self.sync(layout).await;
            self.report(Command::Synced { node, epoch }).await;
        }
    }

    /// Until it is there, or another document comes.
    async fn report(&self, command: Command) {
        while !self.report.report(command.clone()).await {
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn sync(&self, layout: &Layout) {
        let todo = layout.to_sync(self.node);
        self.progress.partitions.store(todo.len() as u64, Ordering::Relaxed);
        self.progress.merged.store(0, Ordering::Relaxed);
        tracing::info!(epoch = layout.epoch(), partitions = todo.len(), "merging partitions");
        // Sources merged per partition: the tenants of one number of replicas come along with those
        // of another.
        let mut partition_merged: Option<(u32, BTreeSet<NodeId>)> = None;
        for one in todo {
            let mut merged = match partition_merged.take() {
                Some((partition, merged)) if partition == one.partition => merged,
                _ => BTreeSet::new(),
            };
            if one.sources.of.contains(&self.node) {
                // Its own fence is durable, or this document would not be here.
                merged.insert(self.node);
            }
            while !one.sources.is_synced_by(&merged) {
                let Some(source) = self.next_source(&one.sources.of, &merged) else {
                    tokio::time::sleep(RETRY).await;
                    continue;
                };
                match self.merge(layout, one.partition, source).await {
                    Ok(()) => {
                        merged.insert(source);
                    }
                    Err(error) => {
                        tracing::debug!(%source, partition = one.partition, %error, "cannot merge");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            self.progress.merged.fetch_add(1, Ordering::Relaxed);
            partition_merged = Some((one.partition, merged));
        }
    }

    /// In the order of ranks: the sources of fewer replicas are the first of those of more.
    fn next_source(&self, of: &[NodeId], merged: &BTreeSet<NodeId>) -> Option<NodeId> {
        let left = || of.iter().filter(|node| !merged.contains(node)).copied();
        left().find(|node| self.liveness.is_up(*node)).or_else(|| left().next())
    }

    async fn merge(&self, layout: &Layout, partition: u32, source: NodeId) -> Result<(), Error> {
        let bits = layout.document().partition_bits.min(LEAF_BITS);
        let token_start = u64::from(partition).checked_shl(u64::BITS - bits).unwrap_or(0);
        let token_end = token_start | u64::MAX.checked_shr(bits).unwrap_or(0);
        let mut cursor = Bytes::new();
        loop {
            let request = Request::Page(proto::PageRequest {
                token_start,
                token_end,
                cursor: cursor.clone(),
                bytes_max: self.settings.page_bytes,
            });
            let timeout = self.settings.timeout;
            let call = self.peers.call(source, Class::Background, layout.epoch(), request, timeout);
            let Reply::Page(page) = call.await? else {
                let why = format!("{source} answered something else");
                return Err(PeerError::NoAnswer { why }.into());
            };
            self.merge_rows(page.rows).await?;
            if page.cursor.is_empty() {
                return Ok(());
            }
            cursor = page.cursor;
        }
    }

    async fn merge_rows(&self, rows: Vec<proto::RowState>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let bytes: usize = rows.iter().map(|row| row.key.len() + row.row.len()).sum();
        self.progress.rows.fetch_add(rows.len() as u64, Ordering::Relaxed);
        self.progress.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let rows: Vec<_> =
            rows.into_iter().map(|row| (TenantId(row.tenant_id), row.key, row.row)).collect();
        let store = Arc::clone(&self.store);
        let results = self.work.run(move || store.replicate(&rows)).await;
        results.map_err(|_| Error::Stopping)?.into_iter().try_for_each(|result| Ok(result?))
    }
}

/// Waits for a document of another epoch. `false`: there will be none.
async fn wait_for_epoch(layout: &mut watch::Receiver<Arc<Layout>>, epoch: u64) -> bool {
    layout.wait_for(|layout| layout.epoch() != epoch).await.is_ok()
}
