//! Rows of this node copied to another member at an operator's word, and read back.
//!
//! ```text
//! page      rows of the range as they are stored, in token order
//! ask       the receiver for their digests: what is equal is there
//! send      what is not, as whole rows; they are joined
//! ask       again: what still differs is fetched, and counts if it covers what was sent
//! ```
//!
//! It moves no ownership: that is the layout's. It carries no promise either: replicas become equal
//! by themselves. It is for operators who want certain rows at a certain node now, and proof.
//!
//! 1. Rows are sent only to who may hold them under the layout at hand; others are counted.
//! 2. A row counts only by the receiver's own answer after the copy.
//! 3. In memory there is one page, and the messages made of it.
//! 4. Under a later layout, and after a failure, the page is begun again: rows join.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::Layout;
use super::messages::{MESSAGE_ROWS_MAX, messages};
use super::reason::BELOW_SAFE_POINT;
use super::sum;
use crate::cluster::NodeId;
use crate::cluster::peer::{Class, PeerError, Peers, Reply, Request};
use crate::cluster::work::Work;
use crate::proto;
use crate::store::{self, EngineKey, KeyRange, RawRow, Store, TenantId, TokenRange};

/// Bytes of a page, before its last row.
const PAGE_BYTES: usize = 1 << 20;
/// How long the receiver may take for a message.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often a page is begun, before the receiver's failure is the caller's.
const ATTEMPTS: u32 = 6;
/// Before a page is begun again; twice as long each time.
const WAIT_FIRST: Duration = Duration::from_millis(100);

/// Which rows.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Only this tenant's.
    pub tenant: Option<TenantId>,
    /// Only keys that begin so.
    pub prefix: Vec<u8>,
    /// Only these tokens.
    pub tokens: TokenRange,
    /// Only these keys of the tenant; `None`: all.
    pub keys: Option<Vec<Bytes>>,
}

/// Why a page was not copied. What of it was sent stays where it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A row cannot be read here.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The receiver cannot be reached, or refused.
    #[error("the receiver does not take rows: {0}")]
    Peer(#[from] PeerError),
    /// The receiver refused rows for a reason that may pass.
    #[error("the receiver does not take rows: {reason}: {message}")]
    Refused {
        /// Its reason.
        reason: String,
        /// For people.
        message: String,
    },
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
}

/// What became of a page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Rows that the receiver holds.
    pub keys: u64,
    /// Of those, sent for it.
    pub sent: u64,
    /// Bytes of rows sent.
    pub bytes: u64,
    /// Of those it holds, in a later state.
    pub newer: u64,
    /// Rows it may not hold under the layout.
    pub elsewhere: u64,
    /// Rows it did not take.
    pub refused: u64,
    /// What it said of the last of them.
    pub refusal: String,
    /// XOR of a hash of each row it holds, as it is here.
    pub digest: u64,
    /// The same as it is there.
    pub digest_there: u64,
    /// The engine key to go on from; `None`: it was the last page.
    pub next: Option<Vec<u8>>,
}

/// See the module page.
pub struct Migration {
    /// Its rows.
    pub store: Arc<Store>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who owns what.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// Where rows are read.
    pub work: Work,
    /// Who gets them.
    pub to: NodeId,
    /// Which.
    pub selection: Arc<Selection>,
}

/// A row of a page.
struct Row {
    engine_key: Vec<u8>,
    state: proto::RowState,
    digest: u64,
}

/// What a page is made of.
#[derive(Default)]
struct Gathered {
    rows: Vec<Row>,
    elsewhere: u64,
    next: Option<Vec<u8>>,
}

impl Migration {
    /// Copies the page that begins at the engine key `from`; empty: the first one. Of named keys
    /// all are one page to the caller.
    ///
    /// # Errors
    /// See [`Error`]; the page may be tried again.
    pub async fn page(&self, from: &[u8]) -> Result<Page, Error> {
        let mut page = self.page_at(from).await?;
        if self.selection.keys.is_some() {
            while let Some(next) = page.next.take() {
                page.add(self.page_at(&next).await?);
            }
        }
        Ok(page)
    }

    /// One page of the selected rows.
    pub(super) async fn page_at(&self, from: &[u8]) -> Result<Page, Error> {
        let mut wait = WAIT_FIRST;
        let mut attempt = 1;
        loop {
            let layout = Arc::clone(&self.layout.borrow());
            let error = match self.try_page(&layout, from).await {
                Ok(page) => return Ok(page),
                Err(error @ (Error::Store(_) | Error::Stopping)) => return Err(error),
                Err(error) => error,
            };
            attempt += 1;
            if attempt > ATTEMPTS {
                return Err(error);
            }
            // A later layout ends the wait: it may be what was in the way.
            let mut changes = self.layout.clone();
            let later = changes.wait_for(|now| now.epoch() > layout.epoch());
            let _ = tokio::time::timeout(wait, later).await;
            wait *= 2;
        }
    }

    async fn try_page(&self, layout: &Arc<Layout>, from: &[u8]) -> Result<Page, Error> {
        let gathered = self.gather(layout, from.to_vec()).await?;
        let Gathered { rows, elsewhere, next } = gathered;
        let mut page = Page { elsewhere, next, ..Page::default() };
        let all: Vec<&Row> = rows.iter().collect();
        let found = self.digests(layout, &all).await?;
        let mut differing = Vec::new();
        for (row, found) in rows.iter().zip(found) {
            if found == row.digest {
                page.hold(row, found);
            } else {
                differing.push(row);
            }
        }
        let refusals = self.send(layout, &differing, &mut page).await?;
        let found = self.digests(layout, &differing).await?;
        let mut doubtful = Vec::new();
        for (row, found) in differing.iter().zip(found) {
            if found == row.digest {
                page.hold(row, found);
            } else {
                doubtful.push(*row);
            }
        }
        let covered = self.covered(layout, &doubtful).await?;
        for (row, found) in doubtful.iter().zip(covered) {
            match found {
                Some(digest) => {
                    page.hold(row, digest);
                    page.newer += 1;
                }
                None => {
                    page.refused += 1;
                    let why = refusals.get(&row.engine_key).cloned();
                    page.refusal = why.unwrap_or_else(|| "it holds an earlier state".to_owned());
                }
            }
        }
        page.sent = differing.len() as u64 - page.refused;
        Ok(page)
    }

    /// Reads a page of rows that the receiver may hold.
    async fn gather(&self, layout: &Arc<Layout>, from: Vec<u8>) -> Result<Gathered, Error> {
        let (store, layout) = (Arc::clone(&self.store), Arc::clone(layout));
        let (to, selection) = (self.to, Arc::clone(&self.selection));
        let gathering = self.work.run(move || gather(&store, &layout, to, &selection, from));
        gathering.await.map_err(|_| Error::Stopping)?.map_err(Error::Store)
    }

    async fn ask(&self, layout: &Layout, request: Request) -> Result<Reply, Error> {
        let epoch = layout.epoch();
        Ok(self.peers.call(self.to, Class::Background, epoch, request, TIMEOUT).await?)
    }

    async fn read(
        &self,
        layout: &Layout,
        rows: &[&Row],
        digest_only: bool,
    ) -> Result<Vec<proto::RowAnswer>, Error> {
        let keys = rows.iter().map(|row| proto::RowKey {
            tenant_id: row.state.tenant_id,
            key: row.state.key.clone(),
        });
        let request = proto::ReadRows { keys: keys.collect(), digest_only, ..Default::default() };
        let reply = self.ask(layout, Request::ReadRows(request)).await?;
        let answers = reply.row_answers(rows.len())?;
        match answers.iter().find_map(|answer| answer.failure.as_ref()) {
            Some(failure) => Err(refused(failure)),
            None => Ok(answers),
        }
    }

    /// The receiver's digest of each row; 0 where it has none.
    async fn digests(&self, layout: &Layout, rows: &[&Row]) -> Result<Vec<u64>, Error> {
        let mut digests = Vec::with_capacity(rows.len());
        for some in rows.chunks(MESSAGE_ROWS_MAX) {
            let answers = self.read(layout, some, true).await?;
            digests.extend(answers.iter().map(|answer| answer.digest));
        }
        Ok(digests)
    }

    /// Sends rows. What it will never take is in the answer, with its word on it.
    async fn send(
        &self,
        layout: &Layout,
        rows: &[&Row],
        page: &mut Page,
    ) -> Result<BTreeMap<Vec<u8>, String>, Error> {
        let mut refusals = BTreeMap::new();
        for some in messages(rows, |row| row.bytes()) {
            let bytes: usize = some.iter().map(|row| row.bytes()).sum();
            let rows = some.iter().map(|row| row.state.clone()).collect();
            let cause = proto::RowsCause::Copy.into();
            let request = Request::WriteRows(proto::WriteRows { rows, cause });
            let results = self.ask(layout, request).await?.row_results(some.len())?;
            for (row, result) in some.iter().zip(results) {
                match result.failure {
                    None => {}
                    Some(failure) if failure.reason == BELOW_SAFE_POINT => {
                        refusals.insert(row.engine_key.clone(), failure.message);
                    }
                    Some(failure) => return Err(refused(&failure)),
                }
            }
            page.bytes += bytes as u64;
        }
        Ok(refusals)
    }

    /// Of each row the digest of what the receiver holds, if that covers it.
    async fn covered(&self, layout: &Layout, rows: &[&Row]) -> Result<Vec<Option<u64>>, Error> {
        let mut covered = Vec::with_capacity(rows.len());
        // One at a time: they are few, and each may be as large as a reply.
        for row in rows {
            let answers = self.read(layout, std::slice::from_ref(row), false).await?;
            let answer = answers.into_iter().next().ok_or_else(PeerError::unexpected)?;
            let theirs = RawRow { row: answer.row.map(|row| row.to_vec()), floor: answer.floor };
            let floor = self.store.floor_at(EngineKey::decode(&row.engine_key)?.token)?;
            let own = RawRow { row: Some(row.state.row.to_vec()), floor };
            let joined = self.store.join_raw(own, theirs.clone())?;
            let theirs = RawRow { row: theirs.row, floor: joined.floor };
            let (both, alone) = (self.store.digest(&joined)?, self.store.digest(&theirs)?);
            covered.push((both == alone).then_some(alone));
        }
        Ok(covered)
    }
}

impl Page {
    /// Counts the page behind this one too.
    fn add(&mut self, behind: Self) {
        self.keys += behind.keys;
        self.sent += behind.sent;
        self.bytes += behind.bytes;
        self.newer += behind.newer;
        self.elsewhere += behind.elsewhere;
        self.refused += behind.refused;
        if behind.refused > 0 {
            self.refusal = behind.refusal;
        }
        self.digest ^= behind.digest;
        self.digest_there ^= behind.digest_there;
        self.next = behind.next;
    }

    /// The receiver holds a row, with this digest.
    fn hold(&mut self, row: &Row, digest_there: u64) {
        self.keys += 1;
        self.digest ^= sum::hash_of(&row.engine_key, row.digest);
        self.digest_there ^= sum::hash_of(&row.engine_key, digest_there);
    }
}

impl Row {
    fn bytes(&self) -> usize {
        self.state.key.len() + self.state.row.len()
    }
}

/// A page of the selected rows; those that `to` may not hold are only counted.
fn gather(
    store: &Store,
    layout: &Layout,
    to: NodeId,
    selection: &Selection,
    from: Vec<u8>,
) -> store::Result<Gathered> {
    let page = match (&selection.keys, selection.tenant) {
        (Some(keys), Some(tenant)) => {
            let of_tenant = store.tenant_by_id(tenant)?;
            let each = keys.iter().map(|key| (of_tenant.engine_key(key), key));
            let named: BTreeMap<Vec<u8>, &Bytes> = each.filter(|(at, _)| *at >= from).collect();
            let (mut rows, mut cursor, mut bytes) = (Vec::new(), None, 0);
            for (engine_key, key) in named {
                if bytes >= PAGE_BYTES {
                    cursor = Some(engine_key);
                    break;
                }
                if let Some(row) = store.raw_row(tenant, key)?.row {
                    bytes += engine_key.len() + row.len();
                    rows.push((engine_key, row));
                }
            }
            store::RowPage { rows, cursor }
        }
        _ => {
            let mut range =
                KeyRange::of_tokens(selection.tokens.start, selection.tokens.end_inclusive);
            range.start = range.start.max(from);
            store.rows_within(&range, PAGE_BYTES)?
        }
    };
    let mut gathered = Gathered { next: page.cursor, ..Gathered::default() };
    // The rows come by token: there are few partitions in a page.
    let mut members: BTreeMap<(u32, TenantId), bool> = BTreeMap::new();
    for (engine_key, row) in page.rows {
        let at = EngineKey::decode(&engine_key)?;
        let is_selected = selection.tenant.is_none_or(|tenant| tenant == at.tenant)
            && at.key.starts_with(&selection.prefix);
        // A tenant that is not known (yet) is nobody's to copy.
        let tenant = store.tenant_by_id(at.tenant).ok().filter(|_| is_selected);
        let Some(tenant) = tenant else { continue };
        let partition = layout.partition_of(at.token);
        let is_member = members
            .entry((partition, tenant.id))
            .or_insert_with(|| layout.sets_of(partition, &tenant).contains(to));
        if !*is_member {
            gathered.elsewhere += 1;
            continue;
        }
        let raw = RawRow { row: Some(row), floor: store.floor_at(at.token)? };
        let digest = store.digest(&raw)?;
        if digest == 0 {
            continue;
        }
        let state = proto::RowState {
            tenant_id: at.tenant.0,
            key: Bytes::copy_from_slice(at.key),
            row: raw.row.unwrap_or_default().into(),
        };
        gathered.rows.push(Row { engine_key, state, digest });
    }
    Ok(gathered)
}

fn refused(failure: &proto::Failure) -> Error {
    Error::Refused { reason: failure.reason.clone(), message: failure.message.clone() }
}
