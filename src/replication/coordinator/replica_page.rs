//! One replica's page: the own one, one that another node is given, one that it gives.
//!
//! 1. A page is given under one epoch: the node's own before the first row was read and after the
//!    last.
//! 2. What comes from another node is taken only if it is a page: in order, and with what was asked
//!    for.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::Coordinator;
use super::pages::{Page, PageRow};
use super::part::{Seen, Want};
use crate::cluster::NodeId;
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::proto::{self, ScanWhat};
use crate::replication::fence::Closed;
use crate::replication::replica::{refused, refused_by_store};
use crate::store::{self, KeyRange, OnDamage, PageBounds, RowFilter, Tenant};

/// What a replica is asked.
#[derive(Clone)]
pub(super) struct Question {
    pub filter: Arc<RowFilter>,
    pub range: KeyRange,
    pub bounds: PageBounds,
    pub epoch: u64,
    pub deadline: Instant,
}

/// What is told of the rows of an own page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tell {
    /// What is told another node: to be laid beside the words of others.
    Word(ScanWhat),
    /// What is shown.
    Seen(Want),
}

/// Why a replica gave no page.
pub(super) enum PageError {
    Stale(u64),
    Store(store::Error),
    Peer(String),
}

impl Coordinator {
    /// This node's own page.
    pub(super) async fn page_here(
        self: Arc<Self>,
        question: Question,
        tell: Tell,
        on_damage: OnDamage,
    ) -> Result<Page, PageError> {
        let _place = self.pages.acquire().await;
        self.check_epoch(question.epoch).map_err(PageError::Stale)?;
        let (epoch, this) = (question.epoch, Arc::clone(&self));
        let read = self.work.run(move || {
            let Question { filter, range, bounds, .. } = question;
            read_page(&this.store, &filter, &range, bounds, tell, on_damage)
        });
        let stopping = || PageError::Peer("the node is stopping".to_owned());
        let page = read.await.map_err(|_| stopping())?;
        // It was given under this epoch if that is still the node's own.
        self.check_epoch(epoch).map_err(PageError::Stale)?;
        page.map_err(PageError::Store)
    }

    fn check_epoch(&self, epoch: u64) -> Result<(), u64> {
        self.fence.enter(epoch).map(drop).map_err(|closed| match closed {
            Closed::Stale { epoch } => epoch,
            Closed::Behind { .. } => epoch + 1,
        })
    }

    /// A page for another node, which asks under `epoch`.
    pub(in crate::replication) async fn page_for(
        self: Arc<Self>,
        filter: RowFilter,
        request: &proto::ScanRows,
        epoch: u64,
        deadline: Instant,
    ) -> Result<proto::ScanRowsReply, PeerError> {
        let range = KeyRange {
            start: request.from.to_vec(),
            end: (!request.to.is_empty()).then(|| request.to.to_vec()),
        };
        let bounds =
            PageBounds { rows: request.rows_max as usize, bytes: request.bytes_max as usize };
        let question = Question { filter: Arc::new(filter), range, bounds, epoch, deadline };
        let tell = Tell::Word(request.what());
        let page = timeout_at(deadline, self.page_here(question, tell, OnDamage::Stop)).await;
        let page = page.map_err(|_| refused("TIMEOUT", "the page was not read in time".into()))?;
        let page = page.map_err(|error| match error {
            PageError::Stale(epoch) => PeerError::StaleLayout { epoch },
            PageError::Store(error) => refused_by_store(error),
            PageError::Peer(why) => refused("STOPPING", why),
        })?;
        let rows = page.rows.into_iter().map(|row| proto::ScannedRow {
            key: row.key,
            row: row.row,
            digest: row.digest.unwrap_or(0),
            floor: row.floor,
            has_value: row.has_value,
        });
        Ok(proto::ScanRowsReply {
            rows: rows.collect(),
            next: page.next.unwrap_or_default().into(),
        })
    }

    /// A page of another node.
    pub(super) async fn page_of(
        self: Arc<Self>,
        node: NodeId,
        question: Question,
        what: ScanWhat,
    ) -> Result<Page, PageError> {
        let Question { filter, range, bounds, epoch, deadline } = question;
        // Within a partition key somebody waits for few rows; all else is bulk.
        let class = match filter.partition_key {
            Some(_) => Class::Foreground,
            None => Class::Background,
        };
        let request = Request::ScanRows(proto::ScanRows {
            tenant_id: filter.tenant.id.0,
            from: range.start.into(),
            to: range.end.unwrap_or_default().into(),
            partition_key: filter.partition_key.clone().map(Bytes::from),
            prefix: filter.prefix.clone().into(),
            start: filter.start.clone().into(),
            end: filter.end.clone().into(),
            rows_max: u32::try_from(bounds.rows).unwrap_or(u32::MAX),
            bytes_max: u32::try_from(bounds.bytes).unwrap_or(u32::MAX),
            what: what.into(),
        });
        let timeout = deadline.saturating_duration_since(Instant::now());
        match self.peers.call(node, class, epoch, request, timeout).await {
            Ok(Reply::ScanRows(reply)) => received(&filter.tenant, reply, what)
                .ok_or_else(|| PageError::Peer("its rows are out of order".to_owned())),
            Ok(_) => Err(PageError::Peer("a reply to something else".to_owned())),
            Err(PeerError::StaleLayout { epoch }) => Err(PageError::Stale(epoch)),
            Err(error) => Err(PageError::Peer(error.to_string())),
        }
    }
}

/// The page of a reply, if it is one: its rows in order, each with what was asked for.
fn received(tenant: &Tenant, reply: proto::ScanRowsReply, what: ScanWhat) -> Option<Page> {
    let row = |row: proto::ScannedRow| PageRow {
        token: tenant.token(&row.key),
        key: row.key,
        row: row.row,
        seen: None,
        digest: (what == ScanWhat::Digests).then_some(row.digest),
        floor: row.floor,
        has_value: row.has_value,
    };
    let rows: Vec<PageRow> = reply.rows.into_iter().map(row).collect();
    let is_sorted = rows.is_sorted_by(|a, b| (a.token, &a.key) < (b.token, &b.key));
    let has_rows = what != ScanWhat::Rows || rows.iter().all(|row| row.row.is_some());
    let next = (!reply.next.is_empty()).then(|| reply.next.to_vec());
    (is_sorted && has_rows).then_some(Page { rows, next })
}

/// What is shown of a row, if anything is.
pub(super) fn see(
    store: &store::Store,
    tenant: &Tenant,
    key: &[u8],
    row: &[u8],
    want: Want,
) -> store::Result<Option<Seen>> {
    Ok(match want {
        Want::Raw => Some(Seen::Raw(Bytes::copy_from_slice(row))),
        Want::Keys => store.has_value(row)?.then_some(Seen::Key),
        Want::Values => {
            let row = store.show(tenant, key, Some(row))?;
            row.found().then_some(Seen::Row(row))
        }
    })
}

fn read_page(
    store: &store::Store,
    filter: &RowFilter,
    range: &KeyRange,
    bounds: PageBounds,
    tell: Tell,
    on_damage: OnDamage,
) -> store::Result<Page> {
    let mut rows = Vec::new();
    let next = store.visit_rows(filter, range, bounds, on_damage, |place, found| {
        let mut told = PageRow {
            token: place.token,
            key: Bytes::new(),
            row: None,
            seen: None,
            digest: None,
            floor: found.floor,
            has_value: false,
        };
        match tell {
            Tell::Seen(want) => {
                told.seen = see(store, &filter.tenant, place.key, found.row, want)?;
            }
            Tell::Word(ScanWhat::Rows) => told.row = Some(Bytes::copy_from_slice(found.row)),
            Tell::Word(ScanWhat::Digests) => {
                told.digest = Some(store.digest_under(found.row, found.floor)?);
                told.has_value = store.has_value(found.row)?;
            }
            Tell::Word(ScanWhat::Keys) => told.has_value = store.has_value(found.row)?,
        }
        if !matches!(tell, Tell::Seen(_)) || told.seen.is_some() {
            told.key = Bytes::copy_from_slice(place.key);
            rows.push(told);
        }
        // As if the row were told: so pages of equal replicas end alike.
        Ok(Some(place.key.len() + found.row.len()))
    })?;
    Ok(Page { rows, next })
}
