//! A partition of one source: its rows are merged, and then it is seen that they are here.
//!
//! ```text
//! copy       pages of rows, in token order; joined, durable
//! add up     both sides: rows and a digest of all of them. Equal: it is done
//! compare    else digests by key; the rows that differ are fetched and joined under the floors of
//!            both, and each of them is read back: it must change nothing to join it again
//! ```
//!
//! Of a source after the first nothing is copied: what the first one had is here, so its sum is
//! most often equal at once. Sums differ where rows were written in between, which is no fault:
//! the comparison then says of each row by itself that it is here.
//!
//! 1. A partition is merged only when the sums were equal, or every row that differed was seen to
//!    be covered here, under the epoch. A fault is tried again from the comparison on, not from the
//!    first row; what is fetched twice is what differs.
//! 2. Only rows that this node is to merge from that source are joined, whatever it sends.
//! 3. What is equal may be in memory only: whoever says that all is merged makes it durable first.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Error, Transfer};
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::proto;
use crate::replication::messages::MESSAGE_ROWS_MAX;
use crate::replication::page;
use crate::store::{self, EngineKey, RawRow, Store, TenantId, TokenRange};

/// Rows as the store joins them.
type Rows = Vec<(TenantId, Bytes, Bytes)>;

/// Rows of a source, each with its floor.
type Words = Vec<(TenantId, Bytes, RawRow)>;

/// What is merged, from whom.
pub(super) struct From<'l> {
    pub layout: &'l Layout,
    pub source: NodeId,
    pub partition: u32,
}

impl From<'_> {
    fn tokens(&self) -> TokenRange {
        let (start, end_inclusive) = self.layout.tokens_of(&(self.partition..=self.partition));
        TokenRange { start, end_inclusive }
    }
}

/// How far the rows of a source are copied.
pub(super) enum Place {
    /// From here on they are not.
    Behind(Bytes),
    /// All are, or need not be.
    Copied,
}

impl Default for Place {
    fn default() -> Self {
        Self::Behind(Bytes::new())
    }
}

impl Transfer {
    /// Merges what a source holds of a partition; `place` is where it was left.
    pub(super) async fn merge(&self, from: &From<'_>, place: &mut Place) -> Result<(), Error> {
        while let Place::Behind(cursor) = place {
            let request = proto::PageRequest { packed: true, ..self.page_of(from, cursor.clone()) };
            let mut page = self.ask_page(from, request).await?;
            let mut rows = page::rows_of(&mut page).map_err(|why| PeerError::NoAnswer { why })?;
            let mut merged = self.merged(from);
            rows.retain(|row| {
                let tenant = from.layout.document().tenants.get(&TenantId(row.tenant_id));
                tenant.is_some_and(|tenant| merged.has(tenant.id, tenant.token(&row.key)))
            });
            self.copy(from, rows).await?;
            *place = match page.cursor.is_empty() {
                true => Place::Copied,
                false => Place::Behind(page.cursor),
            };
        }
        if self.adds_up(from).await? { Ok(()) } else { self.compare(from).await }
    }

    /// Whether both sides hold the same.
    async fn adds_up(&self, from: &From<'_>) -> Result<bool, Error> {
        let mut theirs = proto::PageSum::default();
        let mut cursor = Bytes::new();
        loop {
            let request = proto::PageRequest { sum: true, ..self.page_of(from, cursor) };
            let page = self.ask_page(from, request).await?;
            page::add(&mut theirs, &page.sum.ok_or_else(PeerError::unexpected)?);
            cursor = page.cursor;
            if cursor.is_empty() {
                break;
            }
        }
        let (store, range) = (Arc::clone(&self.store), from.tokens());
        let bytes = self.settings.page_bytes as usize;
        let (layout, source, node) = (from.layout.clone(), from.source, self.node);
        let own = self.work.run(move || {
            own_sum(&store, range, bytes, &mut page::Merged::new(&layout, source, node))
        });
        let own = own.await;
        Ok(own.map_err(|_| Error::Stopping)?? == theirs)
    }

    /// Sees of each row that a source holds that it is here, and fetches those that are not.
    async fn compare(&self, from: &From<'_>) -> Result<(), Error> {
        let mut cursor = Bytes::new();
        loop {
            let request = proto::PageRequest { digests: true, ..self.page_of(from, cursor) };
            let mut page = self.ask_page(from, request).await?;
            let mut merged = self.merged(from);
            page.keys.retain(|one| merged.has_key(&one.engine_key));
            let lacking = self.lacking(page.keys).await?;
            self.fetch(from, lacking).await?;
            cursor = page.cursor;
            if cursor.is_empty() {
                return Ok(());
            }
        }
    }

    fn merged<'l>(&self, from: &From<'l>) -> page::Merged<'l> {
        page::Merged::new(from.layout, from.source, self.node)
    }

    fn page_of(&self, from: &From<'_>, cursor: Bytes) -> proto::PageRequest {
        let TokenRange { start: token_start, end_inclusive: token_end } = from.tokens();
        let bytes_max = self.settings.page_bytes;
        proto::PageRequest { token_start, token_end, cursor, bytes_max, ..Default::default() }
    }

    async fn ask_page(
        &self,
        from: &From<'_>,
        request: proto::PageRequest,
    ) -> Result<proto::PageReply, Error> {
        match self.ask(from, Request::Page(request)).await? {
            Reply::Page(page) => Ok(page),
            _ => Err(PeerError::unexpected().into()),
        }
    }

    async fn ask(&self, from: &From<'_>, request: Request) -> Result<Reply, PeerError> {
        let (epoch, timeout) = (from.layout.epoch(), self.settings.timeout);
        self.peers.call(from.source, Class::Background, epoch, request, timeout).await
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

    /// Fetches rows by their keys, joins them, and sees that they are here.
    async fn fetch(&self, from: &From<'_>, mut keys: Vec<proto::RowKey>) -> Result<(), Error> {
        while !keys.is_empty() {
            let asked: Vec<_> = keys.drain(..keys.len().min(MESSAGE_ROWS_MAX)).collect();
            let request =
                Request::ReadRows(proto::ReadRows { keys: asked.clone(), digest_only: false });
            let answers = self.ask(from, request).await?.row_answers(asked.len())?;
            let mut words = Vec::with_capacity(asked.len());
            for (key, answer) in asked.into_iter().zip(answers) {
                match (answer.failure, answer.row) {
                    (Some(failure), _) if failure.reason == "REPLY_TOO_LARGE" => keys.push(key),
                    // Who is no replica of a row is no source of it.
                    (Some(failure), _) if failure.reason == "NOT_A_REPLICA" => {}
                    (Some(failure), _) => {
                        let (reason, message) = (failure.reason, failure.message);
                        return Err(PeerError::Refused { reason, message }.into());
                    }
                    (None, Some(row)) => {
                        let theirs = RawRow { row: Some(row.to_vec()), floor: answer.floor };
                        words.push((TenantId(key.tenant_id), key.key, theirs));
                    }
                    // It was forgotten in between: a delete that all replicas had.
                    (None, None) => {}
                }
            }
            self.repair(from, words).await?;
        }
        Ok(())
    }

    /// Joins rows under the floors of both sides and sees that they are here. The guard is not
    /// asked, which a survivor may have from a round that was voided: as in any comparison of
    /// replicas.
    async fn repair(&self, from: &From<'_>, words: Words) -> Result<(), Error> {
        let store = Arc::clone(&self.store);
        let joined = self.work.run(move || Ok::<_, Error>((joins(&store, &words)?, words))).await;
        let ((rows, floors), words) = joined.map_err(|_| Error::Stopping)??;
        let results = self.submit(from, rows, Some(floors)).await?;
        results.into_iter().try_for_each(|result| result)?;
        let store = Arc::clone(&self.store);
        let missing = self.work.run(move || joins(&store, &words)).await;
        match missing.map_err(|_| Error::Stopping)??.0.len() {
            0 => Ok(()),
            rows => Err(Error::NotThere { rows }),
        }
    }

    /// Joins the rows of a page. What the guard of a survivor refuses is found by the comparison.
    async fn copy(&self, from: &From<'_>, rows: Vec<proto::RowState>) -> Result<(), Error> {
        let rows = rows.into_iter().map(|row| (TenantId(row.tenant_id), row.key, row.row));
        let results = self.submit(from, rows.collect(), None).await?;
        let is_fine = |result| match result {
            Err(store::Error::BelowSafePoint) => Ok(()),
            result => result,
        };
        Ok(results.into_iter().try_for_each(is_fine)?)
    }

    /// Joins rows under the epoch, durably; with floors, as repairs that were judged under them.
    async fn submit(
        &self,
        from: &From<'_>,
        rows: Rows,
        floors: Option<Vec<u64>>,
    ) -> Result<Vec<store::Result<()>>, Error> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let count = rows.len() as u64;
        let bytes: usize = rows.iter().map(|(_, key, row)| key.len() + row.len()).sum();
        self.rate.take(bytes as u64).await;
        let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
        let (done, joined) = oneshot::channel();
        let epoch = from.layout.epoch();
        // Of a page that was asked for under another epoch the rows may not be this node's.
        let begun = self.work.run(move || {
            let _pass = fence.enter(epoch).map_err(|_| Error::Layout)?;
            let told = Box::new(move |results| drop(done.send(results)));
            match floors {
                None => store.submit_rows(&rows, told),
                Some(floors) => store.submit_repairs(&rows, &floors, told),
            }
            Ok::<_, Error>(())
        });
        begun.await.map_err(|_| Error::Stopping)??;
        let results = joined.await.map_err(|_| Error::Stopping)?;
        self.progress.moved(count, bytes as u64);
        Ok(results)
    }
}

/// What this node's rows of a range add up to, those that are merged.
fn own_sum(
    store: &Store,
    range: TokenRange,
    bytes: usize,
    merged: &mut page::Merged<'_>,
) -> store::Result<proto::PageSum> {
    let mut sum = proto::PageSum::default();
    let mut cursor = None;
    loop {
        let mut page = store.rows_by_token(range, cursor, bytes)?;
        page.rows.retain(|(engine_key, _)| merged.has_key(engine_key));
        page::add(&mut sum, &page::sum_of(store, &page)?);
        match page.cursor {
            Some(next) => cursor = Some(next),
            None => return Ok(sum),
        }
    }
}

/// Of some rows of a source the joins with this node's own, where that says more than its own does;
/// and this node's floors.
fn joins(store: &Store, words: &Words) -> store::Result<(Rows, Vec<u64>)> {
    let (mut rows, mut floors) = (Rows::new(), Vec::new());
    for (tenant, key, theirs) in words {
        let own = match store.raw_row(*tenant, key) {
            Err(store::Error::Damaged { .. }) => store.damaged_row(*tenant, key)?,
            own => own?,
        };
        let floor = own.floor;
        let joined = store.join_raw(own.clone(), theirs.clone())?;
        let own = RawRow { floor: joined.floor, ..own };
        if store.digest(&own)? != store.digest(&joined)?
            && let Some(row) = joined.row
        {
            rows.push((*tenant, key.clone(), row.into()));
            floors.push(floor);
        }
    }
    Ok((rows, floors))
}
