//! A partition of one source: its rows are merged, and then it is seen that they are here.
//!
//! ```text
//! copy       pages of rows, in token order, each with what it adds up to; joined, durable.
//!            Only the first page, if its first rows are here already
//! fence      what the source takes no more from messages this node takes no more
//! add up     what is here: rows and a digest of all of them. Equal: it is done
//! compare    else digests by key; the rows that differ are fetched and joined,
//!            and each of them is read back: it must change nothing to join it again
//! forget     what is here and dead by the floor of the source: see `dead`
//! ```
//!
//! Of a source after the first nothing is copied: what the first one had is here, so its sum is
//! most often equal at once, to the sum that was made of this node's rows for the first one. Sums
//! differ where rows were written in between, which is no fault: the comparison then says of each
//! row by itself that it is here. A sum of either side may be older than the other's: rows only
//! grow, so who held as much then does now.
//!
//! 1. A partition is merged only when the sums were equal, or every row that differed was seen to
//!    be covered here, under the epoch. A fault is tried again from the comparison on, not from the
//!    first row; what is fetched twice is what differs. So it is after a restart, in all partitions
//!    that were copied before.
//! 2. A newcomer vouches for nothing, its floor is 0; but it is fenced where its sources are before
//!    it says that it has merged. Else a late copy of a value that all of them have forgotten with
//!    its delete would find two newcomers, and a quorum.
//! 3. Rows of a source are judged by floors, not by the guard: a round that came no further than
//!    its fence must not keep them out.
//! 4. Only rows that this node is to merge from that source are joined, whatever it sends.
//! 5. What is equal may be in memory only: whoever says that all is merged makes it durable first.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{Error, Transfer};
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::engine::Position;
use crate::proto;
use crate::replication::Fence;
use crate::replication::messages::MESSAGE_ROWS_MAX;
use crate::replication::page::{self, Asking, Compared, Told};
use crate::replication::reason::{NOT_A_REPLICA, REPLY_TOO_LARGE};
use crate::replication::sum;
use crate::store::{self, EngineKey, RawRow, Store, TenantId, TokenRange};

/// Rows that are joined under one pass of the fence: who raises the epoch waits for it, and all
/// that clients ask for waits behind that.
const UNDER_ONE_PASS: usize = 64;
/// Rows of a first page by which it is judged whether the partition was copied before.
const SAMPLE_ROWS: usize = 16;
/// Bytes of rows that go at once, but for the last row of them: a sync of the log that clients wait
/// for finds no more of them in front of it at the default rate.
const SLICE_BYTES: u64 = 128 << 10;

/// A row as the store joins it.
type Row = (TenantId, Bytes, Bytes);
/// Such rows.
type Rows = Vec<Row>;

/// What is merged, from whom.
pub(super) struct From<'l> {
    pub layout: &'l Layout,
    pub source: NodeId,
    pub partition: u32,
}

impl From<'_> {
    pub(super) fn tokens(&self) -> TokenRange {
        let (start, end_inclusive) = self.layout.tokens_of(&(self.partition..=self.partition));
        TokenRange { start, end_inclusive }
    }
}

/// How far the rows of a source are copied.
pub(super) enum Place {
    /// From the cursor on they are not; what it told of those before.
    Behind(Bytes, Told),
    /// All are.
    Copied(Told),
    /// They need not be.
    Skipped,
}

impl Default for Place {
    fn default() -> Self {
        Self::Behind(Bytes::new(), Told::default())
    }
}

impl Transfer {
    /// Merges what a source holds of a partition; `place` is where it was left, `own` what this
    /// node's rows of the partition added up to, if that is known.
    pub(super) async fn merge(
        &self,
        from: &From<'_>,
        place: &mut Place,
        own: &mut Option<proto::PageSum>,
    ) -> Result<(), Error> {
        while let Place::Behind(cursor, told) = place {
            self.check_store()?;
            let kind = proto::PageRequest::default();
            let page = self.asking(from).page(kind, cursor.clone()).await?;
            *own = None;
            if self.join_page(from, page.clone(), cursor.is_empty()).await? {
                *place = Place::Skipped;
                break;
            }
            told.add(&page)?;
            *place = match page.cursor.is_empty() {
                true => Place::Copied(*told),
                false => Place::Behind(page.cursor, *told),
            };
        }
        let told = match place {
            Place::Copied(told) => *told,
            Place::Behind(..) | Place::Skipped => self.asking(from).sum().await?,
        };
        self.fence(from, told.words.guard).await?;
        let was_equal = *own == Some(told.sum);
        if was_equal || *own.insert(self.own_sum(from).await?) == told.sum {
            return Ok(());
        }
        self.compare(from).await?;
        let floor = told.words.floor;
        if self.store.keeps("newcomer_forgets") { self.forget(from, floor).await } else { Ok(()) }
    }

    /// Fences this node where the source is.
    async fn fence(&self, from: &From<'_>, guard: u64) -> Result<(), Error> {
        let (store, partition) = (Arc::clone(&self.store), from.partition);
        if !self.store.keeps("newcomer_fenced") || store.guard_of_partition(partition)? >= guard {
            return Ok(());
        }
        let fencing = self.work.run(move || store.fence_as_others(&[partition..=partition], guard));
        fencing.await.map_err(|_| Error::Stopping)??;
        Ok(())
    }

    /// What this node's rows add up to, those that it merges from the source.
    async fn own_sum(&self, from: &From<'_>) -> Result<proto::PageSum, Error> {
        let (store, range) = (Arc::clone(&self.store), from.tokens());
        let bytes = self.settings.page_bytes as usize;
        let (layout, source, node) = (from.layout.clone(), from.source, self.node);
        let adding = self.work.run(move || {
            let mut merged = Compared::new(&layout, source, node);
            sum::read(&store, &mut merged, range, bytes)
        });
        adding.await.map_err(|_| Error::Stopping)?.map_err(Error::from)
    }

    /// Sees of each row that a source holds that it is here, and fetches those that are not.
    async fn compare(&self, from: &From<'_>) -> Result<(), Error> {
        let mut cursor = Bytes::new();
        loop {
            let kind = proto::PageRequest { digests: true, ..Default::default() };
            let mut page = self.asking(from).page(kind, cursor).await?;
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

    /// Rows that this node could not keep are not fetched: not from one who needs its network, not
    /// again and again.
    fn check_store(&self) -> store::Result<()> {
        self.store.refusal().map_or(Ok(()), Err)
    }

    fn merged<'l>(&self, from: &From<'l>) -> Compared<'l> {
        Compared::new(from.layout, from.source, self.node)
    }

    fn asking<'a>(&'a self, from: &From<'a>) -> Asking<'a> {
        Asking {
            peers: &*self.peers,
            layout: from.layout,
            source: from.source,
            range: from.tokens(),
            bytes_max: self.settings.page_bytes as usize,
            timeout: self.settings.timeout,
        }
    }

    pub(super) async fn ask(&self, from: &From<'_>, request: Request) -> Result<Reply, PeerError> {
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
                if sum::digest_of(own.row.as_deref()) != theirs.digest {
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
            self.check_store()?;
            let asked: Vec<_> = keys.drain(..keys.len().min(MESSAGE_ROWS_MAX)).collect();
            let request = Request::ReadRows(proto::ReadRows {
                keys: asked.clone(),
                digest_only: false,
                ..Default::default()
            });
            let answers = self.ask(from, request).await?.row_answers(asked.len())?;
            let mut rows = Vec::with_capacity(asked.len());
            for (key, answer) in asked.into_iter().zip(answers) {
                if answer.failure.as_ref().is_some_and(|it| it.reason == REPLY_TOO_LARGE) {
                    keys.push(key);
                    continue;
                }
                // No word: who is no replica of a row is no source of it. No row: it was forgotten
                // in between, a delete that all replicas had.
                let Some(row) = word(answer)?.and_then(|answer| answer.row) else { continue };
                rows.push((TenantId(key.tenant_id), key.key, row));
            }
            let rows = Arc::new(rows);
            self.join(from, &rows).await?;
            let store = Arc::clone(&self.store);
            let missing = self.work.run(move || missing(&store, &rows)).await;
            match missing.map_err(|_| Error::Stopping)?? {
                0 => {}
                rows => return Err(Error::NotThere { rows }),
            }
        }
        Ok(())
    }

    /// Joins the rows of a page, those that are merged. Says whether it joined none, because the
    /// first page began with rows that are here.
    async fn join_page(
        &self,
        from: &From<'_>,
        page: proto::PageReply,
        is_first: bool,
    ) -> Result<bool, Error> {
        let (layout, source, node) = (from.layout.clone(), from.source, self.node);
        let store = Arc::clone(&self.store);
        let merged = self.work.run(move || {
            let mut rows = page::rows_of(&page).map_err(|why| PeerError::NoAnswer { why })?;
            let mut merged = Compared::new(&layout, source, node);
            rows.retain(|row| {
                let tenant = layout.document().tenants.get(&TenantId(row.tenant_id));
                tenant.is_some_and(|tenant| merged.has(tenant.id, tenant.token(&row.key)))
            });
            let rows = rows.into_iter().map(|it| (TenantId(it.tenant_id), it.key, it.row));
            let rows: Rows = rows.collect();
            let first = &rows[..rows.len().min(SAMPLE_ROWS)];
            let is_here = is_first && !first.is_empty() && missing(&store, first)? == 0;
            Ok::<_, Error>((rows, is_here))
        });
        let (rows, is_here) = merged.await.map_err(|_| Error::Stopping)??;
        if !is_here {
            self.join(from, &Arc::new(rows)).await?;
        }
        Ok(is_here)
    }

    /// Joins rows under the epoch, durably.
    ///
    /// They go at the rate limit slice by slice, and are waited for together: what clients write
    /// meanwhile is synced behind a slice, not behind all of a page.
    async fn join(&self, from: &From<'_>, rows: &Arc<Rows>) -> Result<(), Error> {
        let epoch = from.layout.epoch();
        let mut joined = Position::ZERO;
        let mut bytes_joined = 0;
        let mut rest = 0..rows.len();
        while !rest.is_empty() {
            let (slice, bytes) = first_slice(&rows[rest.clone()]);
            let slice = rest.start..rest.start + slice;
            rest.start = slice.end;
            self.rate.take(bytes).await;
            let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
            let rows = Arc::clone(rows);
            let joining = self.work.run(move || join_slice(&store, &*fence, epoch, &rows[slice]));
            joined = joined.max(joining.await.map_err(|_| Error::Stopping)??);
            bytes_joined += bytes;
        }
        self.wait_durable(joined).await?;
        self.progress.moved(rows.len() as u64, bytes_joined);
        Ok(())
    }

    /// Waits for what was joined to be durable.
    pub(super) async fn wait_durable(&self, joined: Position) -> Result<(), Error> {
        let (done, durable) = oneshot::channel();
        self.store.on_durable(joined, move |result| drop(done.send(result)));
        durable.await.map_err(|_| Error::Stopping)?.map_err(store::Error::from)?;
        Ok(())
    }
}

/// How many of some rows are the first slice, and their bytes.
fn first_slice(rows: &[Row]) -> (usize, u64) {
    let mut bytes = 0;
    for (count, (_, key, row)) in rows.iter().enumerate() {
        if bytes >= SLICE_BYTES {
            return (count, bytes);
        }
        bytes += (key.len() + row.len()) as u64;
    }
    (rows.len(), bytes)
}

/// Joins rows under the epoch, and says what is to be waited for.
fn join_slice(
    store: &Store,
    fence: &dyn Fence,
    epoch: u64,
    rows: &[Row],
) -> Result<Position, Error> {
    let mut end = Position::ZERO;
    for some in rows.chunks(UNDER_ONE_PASS) {
        // It may read from the disk: others would stand behind that.
        let (judged, floors) = judge(store, some)?;
        // Of a page that was asked for under another epoch the rows may not be this node's.
        let _pass = fence.enter(epoch).map_err(|_| Error::Layout)?;
        let (results, position) = store.join_repairs(&judged, &floors);
        results.into_iter().try_for_each(|result| result)?;
        end = end.max(position);
    }
    Ok(end)
}

/// Rows as they may be joined here under the floors of their partitions, with these.
fn judge(store: &Store, rows: &[Row]) -> store::Result<(Rows, Vec<u64>)> {
    let (mut judged, mut floors) = (Rows::with_capacity(rows.len()), Vec::new());
    for (tenant, key, row) in rows {
        let own = match store.floor_at(store.tenant_by_id(*tenant)?.token(key)) {
            // It vouches for nothing: whatever it lacks may be alive.
            Ok(0) | Err(store::Error::Damaged { .. }) => RawRow::default(),
            _ => store.raw_row(*tenant, key)?,
        };
        let floor = own.floor;
        let row = match floor {
            0 => row.clone(),
            _ => {
                let theirs = RawRow { row: Some(row.to_vec()), floor: 0 };
                let Some(joined) = store.join_raw(own, theirs)?.row else { continue };
                joined.into()
            }
        };
        judged.push((*tenant, key.clone(), row));
        floors.push(floor);
    }
    Ok((judged, floors))
}

/// How many of some rows this node does not cover: joined once more they would change what is here.
fn missing(store: &Store, rows: &[Row]) -> store::Result<usize> {
    let mut missing = 0;
    for (tenant, key, row) in rows {
        let own = own_row(store, *tenant, key)?;
        let theirs = RawRow { row: Some(row.to_vec()), floor: 0 };
        let joined = store.join_raw(own.clone(), theirs)?;
        missing += usize::from(!store.says_all_of(own.row.as_deref(), &joined)?);
    }
    Ok(missing)
}

/// What this node holds under a key, also of a partition that has lost data.
pub(super) fn own_row(store: &Store, tenant: TenantId, key: &[u8]) -> store::Result<RawRow> {
    match store.raw_row(tenant, key) {
        Err(store::Error::Damaged { .. }) => store.damaged_row(tenant, key),
        own => own,
    }
}

/// What a source says of a row; none, of one that is not its.
pub(super) fn word(answer: proto::RowAnswer) -> Result<Option<proto::RowAnswer>, PeerError> {
    match &answer.failure {
        None => Ok(Some(answer)),
        Some(failure) if failure.reason == NOT_A_REPLICA => Ok(None),
        Some(failure) => {
            let (reason, message) = (failure.reason.clone(), failure.message.clone());
            Err(PeerError::Refused { reason, message })
        }
    }
}
