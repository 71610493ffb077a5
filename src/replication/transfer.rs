//! A node that will own partitions merges them from those who own them.
//!
//! It works on a Joint document, and on nothing else: whoever the document says must sync fetches,
//! for each partition and number of replicas, the rows of enough members of S, page by page, and
//! merges them. Rows join, so pages may come from different moments and twice. Of the first source
//! it takes the rows, of the others digests, and the rows that differ.
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
//! 4. Rows are joined only under the epoch they were asked for under.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::Fence;
use super::duties::{RETRY, Report, propose};
use super::messages::MESSAGE_ROWS_MAX;
use super::progress::{Progress, Rate, Task};
use crate::cluster::NodeId;
use crate::cluster::layout::rules::SourcesNeeded;
use crate::cluster::layout::{Command, Document, Layout};
use crate::cluster::peer::{Class, PeerError, Peers, Reply, Request};
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::proto;
use crate::store::{self, EngineKey, RawRow, Store, TenantId};

/// Why a partition could not be merged from a source.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the layout has gone on")]
    Layout,
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
            self.sync(layout).await;
            self.make_durable().await;
            self.report(Command::Synced { node, epoch }).await;
            self.progress.end();
        }
    }

    async fn report(&self, command: Command) {
        propose(&*self.report, &self.progress, command).await;
    }

    /// What was here already when it was compared may have been in memory only.
    async fn make_durable(&self) {
        loop {
            let store = Arc::clone(&self.store);
            match self.work.run(move || store.flush()).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => self.progress.wait_for(format!("its own disk: {error}")),
                Err(_) => return,
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn sync(&self, layout: &Layout) {
        let todo = layout.to_sync(self.node);
        self.progress.begin(Task::Merging, todo.len() as u64);
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
            // Where each source was left; a token is good under this epoch.
            let mut cursors: BTreeMap<NodeId, Bytes> = BTreeMap::new();
            while !one.sources.is_synced_by(&merged) {
                let Some(source) = self.next_source(&one.sources, &merged) else {
                    tokio::time::sleep(RETRY).await;
                    continue;
                };
                let cursor = cursors.entry(source).or_default();
                // Of what one source had the next ones have nearly all.
                let digests = !merged.is_empty();
                let from = From { source, partition: one.partition, digests };
                match self.merge(layout, &from, cursor).await {
                    Ok(()) => {
                        merged.insert(source);
                    }
                    Err(error) => {
                        tracing::debug!(%source, partition = one.partition, %error, "cannot merge");
                        self.progress.wait_for(waits_for(layout, source, &error));
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            self.progress.done(1);
            partition_merged = Some((one.partition, merged));
        }
    }

    /// In the order of ranks: the sources of fewer replicas are the first of those of more. Those
    /// who leave come last, if they are not up: nobody can stand in for them.
    fn next_source(&self, sources: &SourcesNeeded, merged: &BTreeSet<NodeId>) -> Option<NodeId> {
        let left = || sources.of.iter().filter(|node| !merged.contains(node)).copied();
        let needed = |node: &NodeId| {
            let count = sources.of.iter().filter(|node| merged.contains(node)).count();
            count < sources.count || sources.leaving.contains(node)
        };
        let up = |node: &NodeId| self.liveness.is_up(*node);
        left().filter(needed).find(up).or_else(|| left().find(needed))
    }

    async fn merge(&self, layout: &Layout, from: &From, cursor: &mut Bytes) -> Result<(), Error> {
        let From { source, partition, digests } = *from;
        let (token_start, token_end) = layout.tokens_of(&(partition..=partition));
        loop {
            let request = Request::Page(proto::PageRequest {
                token_start,
                token_end,
                cursor: cursor.clone(),
                bytes_max: self.settings.page_bytes,
                digests,
            });
            let Reply::Page(page) = self.ask(layout, source, request).await? else {
                return Err(PeerError::unexpected().into());
            };
            self.merge_rows(layout.epoch(), page.rows).await?;
            let lacking = self.lacking(page.keys).await?;
            self.fetch(layout, source, lacking).await?;
            if page.cursor.is_empty() {
                return Ok(());
            }
            *cursor = page.cursor;
        }
    }

    async fn ask(
        &self,
        layout: &Layout,
        source: NodeId,
        request: Request,
    ) -> Result<Reply, PeerError> {
        let (epoch, timeout) = (layout.epoch(), self.settings.timeout);
        self.peers.call(source, Class::Background, epoch, request, timeout).await
    }

    /// Those of some rows that this node does not hold as they are elsewhere.
    async fn lacking(&self, keys: Vec<proto::KeyDigest>) -> Result<Vec<proto::RowKey>, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let store = Arc::clone(&self.store);
        let looking = self.work.run(move || {
            let mut lacking = Vec::new();
            for theirs in keys {
                let at = EngineKey::decode(&theirs.engine_key)?;
                // A partition that is damaged here has no word on the row.
                let own = store.raw_row(at.tenant, at.key).unwrap_or_default();
                if store.digest(&RawRow { floor: 0, ..own })? != theirs.digest {
                    let (tenant_id, key) = (at.tenant.0, Bytes::copy_from_slice(at.key));
                    lacking.push(proto::RowKey { tenant_id, key });
                }
            }
            Ok(lacking)
        });
        looking.await.map_err(|_| Error::Stopping)?
    }

    /// Fetches rows by their keys and joins them.
    async fn fetch(
        &self,
        layout: &Layout,
        source: NodeId,
        mut keys: Vec<proto::RowKey>,
    ) -> Result<(), Error> {
        while !keys.is_empty() {
            let asked: Vec<_> = keys.drain(..keys.len().min(MESSAGE_ROWS_MAX)).collect();
            let request =
                Request::ReadRows(proto::ReadRows { keys: asked.clone(), digest_only: false });
            let answers = self.ask(layout, source, request).await?.row_answers(asked.len())?;
            let mut rows = Vec::with_capacity(asked.len());
            for (key, answer) in asked.into_iter().zip(answers) {
                match (answer.failure, answer.row) {
                    (Some(failure), _) if failure.reason == "REPLY_TOO_LARGE" => keys.push(key),
                    (Some(failure), _) => {
                        let (reason, message) = (failure.reason, failure.message);
                        return Err(PeerError::Refused { reason, message }.into());
                    }
                    (None, Some(row)) => {
                        rows.push(proto::RowState { tenant_id: key.tenant_id, key: key.key, row });
                    }
                    // It was forgotten in between: a delete that all replicas had.
                    (None, None) => {}
                }
            }
            self.merge_rows(layout.epoch(), rows).await?;
        }
        Ok(())
    }

    /// Joins rows under an epoch, durably.
    async fn merge_rows(&self, epoch: u64, rows: Vec<proto::RowState>) -> Result<(), Error> {
        if rows.is_empty() {
            return Ok(());
        }
        let count = rows.len() as u64;
        let bytes: usize = rows.iter().map(|row| row.key.len() + row.row.len()).sum();
        self.rate.take(bytes as u64).await;
        let rows: Vec<_> =
            rows.into_iter().map(|row| (TenantId(row.tenant_id), row.key, row.row)).collect();
        let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
        let (done, joined) = oneshot::channel();
        // Of a page that was asked for under another epoch the rows may not be this node's.
        let begun = self.work.run(move || {
            let _pass = fence.enter(epoch).map_err(|_| Error::Layout)?;
            store.submit_rows(&rows, Box::new(move |results| drop(done.send(results))));
            Ok::<_, Error>(())
        });
        begun.await.map_err(|_| Error::Stopping)??;
        let results = joined.await.map_err(|_| Error::Stopping)?;
        results.into_iter().try_for_each(|result| result)?;
        self.progress.moved(count, bytes as u64);
        Ok(())
    }
}

/// What is merged, from whom.
struct From {
    source: NodeId,
    partition: u32,
    /// Digests first: most of it is here already.
    digests: bool,
}

/// Who is waited for, by name.
fn waits_for(layout: &Layout, source: NodeId, error: &Error) -> String {
    let member = layout.document().members.get(&source);
    let name = member.map_or_else(|| source.to_string(), |member| member.name.clone());
    format!("rows of {name}: {error}")
}

/// A node that will own partitions vouches for nothing in them: what it lacks is not dead.
#[derive(Debug)]
pub struct Newcomer {
    store: Arc<Store>,
    /// The last epoch that was looked at.
    epoch: AtomicU64,
}

impl Newcomer {
    /// Of the node whose rows these are.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, epoch: AtomicU64::new(0) }
    }

    /// Takes back what the node has vouched for in partitions of which it will own rows that it
    /// did not own. To be called before anybody acts under the document.
    pub fn begin_anew(&self, document: &Document) {
        let node = NodeId(self.store.identity().node_id);
        let next = document.next_owners.as_ref();
        let is_new = self.epoch.swap(document.epoch, Ordering::Relaxed) != document.epoch;
        if !is_new || !next.is_some_and(|next| next.contains_key(&node)) {
            return;
        }
        let layout = Layout::new(Arc::new(document.clone()));
        for partition in layout.newly_owned(node) {
            if let Err(error) = self.store.reset_safe_points(partition..=partition) {
                // The store takes no writes then.
                tracing::error!(%error, partition, "cannot take safe points back");
            }
        }
    }
}
