//! The answers to other nodes' requests about rows.
//!
//! 1. Nothing is done under another epoch than this node's own (R1): an earlier one is refused with
//!    the epoch, a later one is learnt first. While something is done the fence is not raised.
//! 2. A row is taken only if this node is a member of a set of its partition under that epoch; each
//!    row has its own outcome.
//! 3. What was forwarded once is not forwarded again.
//! 4. Rows and digests are told when what they tell of is durable here: they are counted as held.
//!    Where the sync mode acknowledges writes before they are durable, only what clients wait for
//!    is told so early: who asks in the background may give its own durable copy away for it.
//! 5. Whatever comes in has a bound: items of a request, bytes of a row, bytes of a reply.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tonic::async_trait;

use super::convert;
use super::coordinator::{Coordinator, Part, WriteOptions};
use super::error::Error;
use super::fence::{self, Closed, Fence, enter};
use super::reading::{Reading, check_items};
use super::tree::Trees;
use super::{Layout, Level, page, settled};
use crate::cluster::NodeId;
use crate::cluster::peer::{Class, NOT_DURABLE, PeerError, PeerHandler, Reply, Request};
use crate::cluster::work::Work;
use crate::engine::Position;
use crate::proto;
use crate::store::{self, ForeignRow, RowFilter, Store, Tenant, TenantId};

/// An error as it is sent: the one table from errors to codes is the API's.
pub type ToFailure = fn(&Error) -> proto::Failure;

/// Rows that are joined.
pub type Rows = Vec<ForeignRow<Bytes>>;

/// Answers [`WriteRows`](proto::WriteRows), [`RepairRows`](proto::RepairRows),
/// [`ReadRows`](proto::ReadRows), forwarded writes and pages.
pub struct Replica {
    parts: Parts,
    reading: Arc<Reading>,
}

/// What [`Replica::new`] needs.
pub struct Parts {
    /// This node.
    pub node: NodeId,
    /// Its rows.
    pub store: Arc<Store>,
    /// What they add up to.
    pub trees: Arc<Trees>,
    /// Where forwarded writes go.
    pub coordinator: Arc<Coordinator>,
    /// The epoch this node acts under.
    pub fence: Arc<dyn Fence>,
    /// Who owns what.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// Where all is read that no client waits for.
    pub background: Work,
    /// How errors are told.
    pub to_failure: ToFailure,
}

impl Replica {
    /// The replica side of a node.
    pub fn new(parts: Parts) -> Self {
        let reading = Arc::new(Reading {
            node: parts.node,
            store: Arc::clone(&parts.store),
            fence: Arc::clone(&parts.fence),
            to_failure: parts.to_failure,
        });
        Self { parts, reading }
    }

    /// Whether a request is one of those answered here.
    pub fn is_for(request: &Request) -> bool {
        matches!(
            request,
            Request::WriteRows(_)
                | Request::RepairRows(_)
                | Request::ReadRows(_)
                | Request::ForwardWrite(_)
                | Request::ScanRows(_)
                | Request::Page(_)
        )
    }

    /// The layout of `epoch`, which is this node's own by then.
    async fn layout_of(
        &self,
        from: NodeId,
        epoch: u64,
        deadline: Instant,
    ) -> Result<Arc<Layout>, PeerError> {
        let Parts { fence, layout, .. } = &self.parts;
        match fence.enter(epoch).map(drop) {
            Ok(()) => {}
            Err(Closed::Stale { epoch }) => return Err(PeerError::StaleLayout { epoch }),
            Err(Closed::Behind { .. }) => {
                let timeout = deadline.saturating_duration_since(Instant::now());
                fence.learn(from, epoch, timeout).await?;
                drop(enter(&**fence, epoch)?);
            }
        }
        fence::layout_of(layout, epoch, deadline).await
    }

    /// Whether the tenants of all rows of a request are known here.
    fn knows_tenants(&self, request: &Request) -> bool {
        let is_known = |id: u32| self.parts.store.tenant_by_id(TenantId(id)).is_ok();
        match request {
            Request::WriteRows(request) => request.rows.iter().all(|row| is_known(row.tenant_id)),
            Request::RepairRows(request) => {
                let mut states = request.rows.iter().filter_map(|row| row.state.as_ref());
                states.all(|state| is_known(state.tenant_id))
            }
            Request::ReadRows(request) => request.keys.iter().all(|key| is_known(key.tenant_id)),
            Request::ScanRows(request) => is_known(request.tenant_id),
            Request::ForwardWrite(request) => {
                let name = request.request.as_ref().map(|request| request.tenant.as_str());
                name.is_none_or(|name| self.parts.store.tenant(name).is_ok())
            }
            _ => true,
        }
    }

    /// Joins rows; with floors, repairs that were judged under them.
    async fn write_rows(
        &self,
        layout: &Layout,
        rows: Vec<proto::RowState>,
        floors: Option<Vec<u64>>,
        deadline: Instant,
    ) -> Result<Reply, PeerError> {
        check_items(rows.len())?;
        let refusals: Vec<Option<proto::Failure>> = rows
            .iter()
            .map(|row| self.reading.refusal(layout, TenantId(row.tenant_id), &row.key))
            .collect();
        let floors: Option<Vec<u64>> = floors.map(|floors| {
            let taken = floors.into_iter().zip(&refusals).filter(|(_, no)| no.is_none());
            taken.map(|(floor, _)| floor).collect()
        });
        let taken = rows.into_iter().zip(&refusals).filter(|(_, no)| no.is_none());
        let rows: Rows =
            taken.map(|(row, _)| (TenantId(row.tenant_id), row.key, row.row)).collect();
        let Parts { fence, store, .. } = &self.parts;
        let joined = submit_rows(&**fence, layout.epoch(), store, &rows, floors.as_deref())?;
        // They are in the log and can be read: whoever is not told must not take them for undone.
        let lost = |why: &str| refused(NOT_DURABLE, why.to_owned());
        let joined = tokio::time::timeout_at(deadline, joined).await;
        let mut joined = joined
            .map_err(|_| lost("the rows are not durable in time"))?
            .map_err(|_| lost("the store is stopping"))?
            .into_iter();
        let results = refusals.into_iter().map(|refusal| {
            let failure = refusal.or_else(|| {
                let result = joined.next().unwrap_or(Err(store::Error::Closed));
                result.err().map(|error| self.reading.failure(error))
            });
            proto::RowResult { failure }
        });
        Ok(Reply::WriteRows(proto::WriteRowsReply { results: results.collect() }))
    }

    /// What a client waits for is read right here, cheaper than to hand it over; all else would
    /// stand in its way.
    async fn read_rows(
        &self,
        class: Class,
        layout: Arc<Layout>,
        request: proto::ReadRows,
        deadline: Instant,
    ) -> Result<Reply, PeerError> {
        let early = if class == Class::Background {
            let reading = Arc::clone(&self.reading);
            let peeking = self.parts.background.run(move || reading.peek(&layout, &request));
            peeking.await.map_err(|_| stopping())??
        } else {
            self.reading.peek(&layout, &request)?
        };
        let answers = if early.upto == Position::ZERO {
            early.found
        } else {
            let told = tokio::time::timeout_at(deadline, settled(&self.parts.store, early)).await;
            told.map_err(|_| refused(NOT_DURABLE, "the rows are not durable in time".to_owned()))?
                .map_err(refused_by_store)?
        };
        Ok(Reply::ReadRows(proto::ReadRowsReply { answers }))
    }

    async fn forward_write(
        &self,
        request: proto::ForwardWrite,
        deadline: Instant,
    ) -> Result<Reply, PeerError> {
        use proto::batch_write_result::Result as Item;
        let request = request.request.unwrap_or_default();
        let items = request.mutations.len();
        check_items(items)?;
        let tenant = self.parts.store.tenant(&request.tenant).map_err(refused_by_store)?;
        let batch: Option<Vec<_>> = request.mutations.into_iter().map(convert::received).collect();
        let Some(batch) = batch else {
            return Err(refused("INVALID_ARGUMENT", "neither a value nor a delete".to_owned()));
        };
        let Some(level) = Level::of(request.consistency) else {
            return Err(refused("INVALID_ARGUMENT", "the consistency level is unknown".to_owned()));
        };
        let options = WriteOptions { level, deadline };
        let (done, outcomes) = oneshot::channel();
        let done = Box::new(move |results| {
            // Who forwarded it may be gone; the writes go on.
            let _ = done.send(results);
        });
        let taken = self.parts.coordinator.submit_forwarded(&tenant, batch, options, done);
        taken.map_err(|()| PeerError::NotAReplica)?;
        let lost = || Err(Error::Lost { why: "the coordinator is stopping".to_owned() });
        let outcomes = outcomes.await.unwrap_or_else(|_| (0..items).map(|_| lost()).collect());
        let results = outcomes.into_iter().map(|result| {
            let item = match result {
                Ok(written) => Item::Written(written.into()),
                Err(error) => Item::Failure((self.parts.to_failure)(&error)),
            };
            proto::BatchWriteResult { result: Some(item) }
        });
        let response = Some(proto::BatchWriteResponse { results: results.collect() });
        Ok(Reply::ForwardWrite(proto::ForwardWriteReply { response }))
    }

    /// A page of a tenant's rows. Only the partitions that this node is a replica of are told of.
    async fn scan_rows(
        &self,
        layout: &Layout,
        request: proto::ScanRows,
        deadline: Instant,
    ) -> Result<Reply, PeerError> {
        let tenant =
            self.parts.store.tenant_by_id(TenantId(request.tenant_id)).map_err(refused_by_store)?;
        if !self.holds(layout, &tenant, &request.from, &request.to) {
            return Err(PeerError::NotAReplica);
        }
        let filter = RowFilter {
            tenant,
            partition_key: request.partition_key.as_ref().map(|key| key.to_vec()),
            prefix: request.prefix.to_vec(),
            start: request.start.to_vec(),
            end: request.end.to_vec(),
        };
        let coordinator = Arc::clone(&self.parts.coordinator);
        let page = coordinator.page_for(filter, &request, layout.epoch(), deadline).await?;
        Ok(Reply::ScanRows(page))
    }

    /// Whether this node is a replica of all partitions from the place `from` to the place `to`.
    fn holds(&self, layout: &Layout, tenant: &Tenant, from: &[u8], to: &[u8]) -> bool {
        let mut part =
            Part::at(layout, tenant, from.to_vec(), Some(to).filter(|to| !to.is_empty()));
        loop {
            if !part.contains(self.parts.node) {
                return false;
            }
            match part.behind(to) {
                Some(start) => part = Part::at(layout, tenant, start, None),
                None => return true,
            }
        }
    }
}

/// Joins rows under an epoch; with floors, repairs that were judged under them. Their outcomes come
/// once they are durable.
///
/// # Errors
/// The node acts under another epoch: nothing was joined.
pub fn submit_rows(
    fence: &dyn Fence,
    epoch: u64,
    store: &Store,
    rows: &Rows,
    floors: Option<&[u64]>,
) -> Result<oneshot::Receiver<Vec<store::Result<()>>>, PeerError> {
    let (done, joined) = oneshot::channel();
    let told = Box::new(move |results| {
        // Nobody may wait any more; the rows are there all the same.
        let _ = done.send(results);
    });
    let _pass = enter(fence, epoch)?;
    match floors {
        None => store.submit_rows(rows, told),
        Some(floors) => store.submit_repairs(rows, floors, told),
    }
    Ok(joined)
}

#[async_trait]
impl PeerHandler for Replica {
    async fn handle(
        &self,
        from: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        let deadline = Instant::now() + timeout;
        let layout = self.layout_of(from, epoch, deadline).await?;
        if !self.knows_tenants(&request) {
            // A tenant that was just created: the sender knows it. Without it the rows are refused.
            let _ = self.parts.fence.refresh(from, timeout).await;
        }
        let is_counted = class == Class::Background && is_of_rows(&request);
        let reply = match request {
            Request::WriteRows(request) => {
                self.write_rows(&layout, request.rows, None, deadline).await
            }
            Request::RepairRows(request) => {
                let floors = request.rows.iter().map(|row| row.floor).collect();
                let states = request.rows.into_iter().map(|row| row.state.unwrap_or_default());
                self.write_rows(&layout, states.collect(), Some(floors), deadline).await
            }
            Request::ReadRows(request) => self.read_rows(class, layout, request, deadline).await,
            Request::ForwardWrite(request) => self.forward_write(request, deadline).await,
            Request::ScanRows(request) => self.scan_rows(&layout, request, deadline).await,
            Request::Page(request) => {
                let (store, trees) = (Arc::clone(&self.parts.store), Arc::clone(&self.parts.trees));
                let (node, fence) = (self.parts.node, Arc::clone(&self.parts.fence));
                let page = move || {
                    let mut compared = page::Compared::new(&layout, node, from);
                    page::answer(&store, &trees, &*fence, &mut compared, &request)
                };
                // It reads a good deal, perhaps from the disk.
                let page = self.parts.background.run(page).await;
                page.map_err(|_| stopping())?
            }
            _ => Err(refused("UNIMPLEMENTED", "it is not about rows".to_owned())),
        }?;
        if is_counted && self.parts.store.keeps("counted_when_durable") {
            let store = Arc::clone(&self.parts.store);
            let durable = self.parts.background.run(move || store.sync_acknowledged()).await;
            durable.map_err(|_| stopping())?.map_err(refused_by_store)?;
        }
        Ok(reply)
    }
}

/// Whether it gives rows, or asks which are here.
fn is_of_rows(request: &Request) -> bool {
    matches!(
        request,
        Request::WriteRows(_) | Request::RepairRows(_) | Request::ReadRows(_) | Request::Page(_)
    )
}

pub(super) fn refused(reason: &str, message: String) -> PeerError {
    PeerError::Refused { reason: reason.to_owned(), message }
}

fn stopping() -> PeerError {
    refused("STOPPING", "the node is stopping".to_owned())
}

/// What the store refused, as a peer is told.
pub(super) fn refused_by_store(error: store::Error) -> PeerError {
    refused(error.reason(), error.to_string())
}
