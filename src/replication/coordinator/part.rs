//! A page of a part of the ring, from as many replicas as the level asks for.
//!
//! A part is a run of partitions with the same replicas. One replica, the best, is asked for the
//! rows, the others for digests; where keys are all that is wanted nobody sends rows. Keys on which
//! they do not agree are read like any other, with the join and the repair of `read`.
//!
//! 1. A page counts as read when each set has as many answers as the level asks for, all of them
//!    given under one epoch.
//! 2. A replica that fails, or says nothing of a partition, is replaced by another; when none is
//!    left the page is an error.
//! 3. Beside a replica that is slow one more is asked, once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use super::pages::{Page, PageRow, Place, together};
use super::read::{KeyRead, ReadOptions, Stale};
use super::{Coordinator, Layout, Sets, count, lacking};
use crate::cluster::NodeId;
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::proto::{self, ScanWhat};
use crate::replication::error::{Error, Result};
use crate::replication::fence::Closed;
use crate::replication::level::Level;
use crate::store::{self, KeyRange, OnDamage, PageBounds, ReadRow, RowFilter, Tenant};

/// Partitions of a part at most, where not all partitions have the same replicas.
const RUN_MAX: u32 = 64;
/// Nobody is taken for slow before this: pages are read from disk.
const SLOW: Duration = Duration::from_millis(500);

/// What is wanted of the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// What a read of them finds; rows without a value are passed over.
    Values,
    /// The keys of rows with a value.
    Keys,
    /// The rows as they are stored, tombstones too.
    Raw,
}

/// What a scan shows of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// See [`Want::Values`].
    Row(ReadRow),
    /// See [`Want::Keys`].
    Key,
    /// See [`Want::Raw`].
    Raw(Bytes),
}

impl Seen {
    /// Bytes of the values or the row.
    fn bytes(&self) -> usize {
        match self {
            Self::Row(row) => row.value_bytes(),
            Self::Key => 0,
            Self::Raw(row) => row.len(),
        }
    }
}

/// A row of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScannedRow {
    /// Its key.
    pub key: Bytes,
    /// What is shown of it.
    pub seen: Seen,
}

impl ScannedRow {
    /// What it counts for in a page, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.key.len() + self.seen.bytes()
    }
}

/// A run of partitions with the same replicas.
#[derive(Clone, Debug)]
pub(in crate::replication) struct Part {
    epoch: u64,
    sets: Sets,
    pub range: KeyRange,
}

/// A page of a part.
#[derive(Debug)]
pub(super) struct PartPage {
    pub rows: Vec<ScannedRow>,
    /// Where the next page of the part begins; `None`: it was the last.
    pub next: Option<Vec<u8>>,
}

/// Why a part could not be read.
#[derive(Debug)]
pub(super) enum Failed {
    Stale(Stale),
    Error(Error),
}

impl From<store::Error> for Failed {
    fn from(error: store::Error) -> Self {
        Self::Error(error.into())
    }
}

/// What was heard from a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Asked {
        whole: bool,
    },
    /// Where its page lies.
    Answered {
        page: usize,
        whole: bool,
    },
    Failed,
}

/// What a replica is asked.
#[derive(Clone)]
struct Question {
    filter: Arc<RowFilter>,
    range: KeyRange,
    bounds: PageBounds,
    epoch: u64,
    deadline: Instant,
}

type Asking = BoxFuture<'static, (NodeId, bool, Result<Page, PageError>)>;

/// Why a replica gave no page.
enum PageError {
    Stale(u64),
    Store(store::Error),
    Peer(String),
}

/// A page under way.
struct Reading<'r> {
    coordinator: &'r Arc<Coordinator>,
    question: Question,
    sets: Sets,
    level: Level,
    wants_rows: bool,
    candidates: Vec<NodeId>,
    words: BTreeMap<NodeId, Word>,
    pages: Vec<Page>,
    asking: FuturesUnordered<Asking>,
    why: Error,
}

impl Part {
    /// The part that begins at `start`, an engine key or bytes between two, and ends at `end` at
    /// the latest.
    pub fn at(layout: &Layout, replicas: u8, start: Vec<u8>, end: Option<&[u8]>) -> Self {
        let first = partition_of(layout, &start);
        let sets = layout.sets(first, replicas);
        let (mut last, behind) = (first, layout.partitions());
        if are_alike(layout, replicas) {
            last = behind - 1;
        }
        while last + 1 < behind
            && last - first < RUN_MAX
            && same_members(&sets, &layout.sets(last + 1, replicas))
        {
            last += 1;
        }
        let bits = layout.document().partition_bits;
        let token = u64::from(last + 1).checked_shl(u64::BITS - bits).unwrap_or(0);
        let all =
            KeyRange { start, end: (last + 1 < behind).then(|| token.to_be_bytes().to_vec()) };
        let until = KeyRange { start: Vec::new(), end: end.map(<[u8]>::to_vec) };
        Self { epoch: layout.epoch(), sets, range: all.intersect(until) }
    }

    /// Whether a node is one of its replicas.
    pub fn contains(&self, node: NodeId) -> bool {
        self.sets.contains(node)
    }

    /// Where what lies behind it begins, if it ends before `end`; an empty `end` is the ring's.
    pub fn behind(&self, end: &[u8]) -> Option<Vec<u8>> {
        let own = self.range.end.as_deref()?;
        (end.is_empty() || own < end).then(|| own.to_vec())
    }

    /// The rest of it.
    pub fn from(&self, start: Vec<u8>) -> Self {
        Self { range: KeyRange { start, end: self.range.end.clone() }, ..self.clone() }
    }
}

/// Whether all partitions have the same replicas: there are not more nodes than that.
fn are_alike(layout: &Layout, replicas: u8) -> bool {
    let document = layout.document();
    let few = |owners: usize| owners <= usize::from(replicas);
    few(document.owners.len()) && document.next_owners.as_ref().is_none_or(|next| few(next.len()))
}

fn same_members(one: &Sets, other: &Sets) -> bool {
    let same = |a: &[NodeId], b: &[NodeId]| a.len() == b.len() && a.iter().all(|n| b.contains(n));
    one.each().count() == other.each().count()
        && one.each().zip(other.each()).all(|(a, b)| same(a, b))
}

/// The partition of an engine key, or of bytes between two.
pub(super) fn partition_of(layout: &Layout, start: &[u8]) -> u32 {
    let mut token = [0; 8];
    let bytes = start.len().min(token.len());
    token[..bytes].copy_from_slice(&start[..bytes]);
    layout.partition_of(u64::from_be_bytes(token))
}

impl Coordinator {
    /// Reads a page of a part.
    pub(super) async fn read_part(
        self: Arc<Self>,
        filter: Arc<RowFilter>,
        part: Part,
        want: Want,
        bounds: PageBounds,
        options: ReadOptions,
    ) -> Result<PartPage, Failed> {
        let tenant = Arc::clone(&filter.tenant);
        let candidates = self.candidates(&part.sets);
        // A newcomer may be empty: at ONE the word of a current owner is asked for (R4).
        let sets = match options.level {
            Level::One => Sets { next: None, ..part.sets },
            Level::Quorum | Level::All => part.sets,
        };
        self.check_reachable(&sets, options.level).map_err(Failed::Error)?;
        let (epoch, deadline) = (part.epoch, options.deadline);
        let reading = Reading {
            coordinator: &self,
            question: Question { filter, range: part.range, bounds, epoch, deadline },
            sets,
            level: options.level,
            wants_rows: want != Want::Keys,
            candidates,
            words: BTreeMap::new(),
            pages: Vec::new(),
            asking: FuturesUnordered::new(),
            why: Error::ReadTimeout { answers: 0, needed: 1 },
        };
        let pages = reading.run().await?;
        let digest = |row: &[u8], floor| self.store.digest_under(row, floor);
        let together = together(&tenant, pages, digest)?;
        let rows = self.settle(&tenant, together.places, want, options).await?;
        Ok(PartPage { rows, next: together.next })
    }

    /// What is shown of each place; what is disputed is read.
    async fn settle(
        &self,
        tenant: &Tenant,
        places: Vec<Place>,
        want: Want,
        options: ReadOptions,
    ) -> Result<Vec<ScannedRow>, Failed> {
        let disputed = places.iter().filter_map(|place| match place {
            Place::Disputed(key) => Some(KeyRead { key: key.to_vec(), min_context: None }),
            Place::Agreed(_) => None,
        });
        let disputed: Vec<KeyRead> = disputed.collect();
        let mut read = match disputed.is_empty() {
            true => Vec::new(),
            false => self.read_raw(tenant, disputed, options).await,
        }
        .into_iter();
        let mut rows = Vec::with_capacity(places.len());
        for place in places {
            let (key, seen) = match place {
                Place::Agreed(PageRow { key, row: Some(row), .. }) => {
                    let seen = self.see(tenant, &key, row, want)?;
                    (key, seen)
                }
                Place::Agreed(PageRow { key, has_value, .. }) => {
                    (key, has_value.then_some(Seen::Key))
                }
                Place::Disputed(key) => {
                    let lost = || Err(Error::ReadTimeout { answers: 0, needed: 1 });
                    let raw = read.next().unwrap_or_else(lost).map_err(Failed::Error)?;
                    let seen = match raw.row {
                        Some(row) => self.see(tenant, &key, row.into(), want)?,
                        None => None,
                    };
                    (key, seen)
                }
            };
            rows.extend(seen.map(|seen| ScannedRow { key, seen }));
        }
        Ok(rows)
    }

    fn see(
        &self,
        tenant: &Tenant,
        key: &[u8],
        row: Bytes,
        want: Want,
    ) -> store::Result<Option<Seen>> {
        Ok(match want {
            Want::Raw => Some(Seen::Raw(row)),
            Want::Keys => self.store.has_value(&row)?.then_some(Seen::Key),
            Want::Values => {
                let row = self.store.show(tenant, key, Some(&row))?;
                row.found().then_some(Seen::Row(row))
            }
        })
    }

    /// This node's own page. `is_only`: there is no other replica.
    async fn page_here(
        self: Arc<Self>,
        question: Question,
        what: ScanWhat,
        is_only: bool,
    ) -> Result<Page, PageError> {
        let _place = self.pages.acquire().await;
        let on_damage = if is_only { OnDamage::Show } else { OnDamage::Stop };
        self.check_epoch(question.epoch).map_err(PageError::Stale)?;
        let (epoch, this) = (question.epoch, Arc::clone(&self));
        let read = self.work.run(move || {
            let Question { filter, range, bounds, .. } = question;
            read_page(&this.store, &filter, &range, bounds, what, on_damage)
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
        let refused = |reason: &str, message: String| PeerError::Refused {
            reason: reason.to_owned(),
            message,
        };
        let page = timeout_at(deadline, self.page_here(question, request.what(), false)).await;
        let page = page.map_err(|_| refused("TIMEOUT", "the page was not read in time".into()))?;
        let page = page.map_err(|error| match error {
            PageError::Stale(epoch) => PeerError::StaleLayout { epoch },
            PageError::Store(error) => refused(error.reason(), error.to_string()),
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
    async fn page_of(
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

fn read_page(
    store: &store::Store,
    filter: &RowFilter,
    range: &KeyRange,
    bounds: PageBounds,
    what: ScanWhat,
    on_damage: OnDamage,
) -> store::Result<Page> {
    let mut rows = Vec::new();
    let next = store.visit_rows(filter, range, bounds, on_damage, |place, found| {
        let told = what != ScanWhat::Rows;
        rows.push(PageRow {
            token: place.token,
            key: Bytes::copy_from_slice(place.key),
            row: (!told).then(|| Bytes::copy_from_slice(found.row)),
            digest: match what {
                ScanWhat::Digests => Some(store.digest_under(found.row, found.floor)?),
                ScanWhat::Rows | ScanWhat::Keys => None,
            },
            floor: found.floor,
            has_value: told && store.has_value(found.row)?,
        });
        // As if the row were told: so pages of equal replicas end alike.
        Ok(Some(place.key.len() + found.row.len()))
    })?;
    Ok(Page { rows, next })
}

impl Reading<'_> {
    /// The pages, that with the rows first.
    async fn run(mut self) -> Result<Vec<Page>, Failed> {
        let deadline = self.question.deadline;
        let mut slow_at = Some(Instant::now() + SLOW);
        loop {
            self.ask_all();
            if let Some((needed, answers)) = self.lacks(|word| !matches!(word, Word::Failed)) {
                return Err(Failed::Error(self.too_few(needed, answers)));
            }
            if self.is_read() {
                return Ok(self.in_order());
            }
            let alarm = slow_at.unwrap_or(deadline).min(deadline);
            match timeout_at(alarm, self.asking.next()).await {
                Ok(Some((node, whole, answer))) => self.take(node, whole, answer)?,
                // There is nobody to ask: nobody owns anything yet.
                Ok(None) => return Err(Failed::Error(self.too_few(1, 0))),
                Err(_) if Instant::now() >= deadline => {
                    let lacks = self.lacks(|word| matches!(word, Word::Answered { .. }));
                    let (needed, answers) = lacks.unwrap_or((1, 0));
                    return Err(Failed::Error(Error::ReadTimeout { answers, needed }));
                }
                Err(_) => {
                    slow_at = None;
                    self.hedge();
                }
            }
        }
    }

    /// Members that the level needs and that `has` does not count, for the set that lacks most.
    fn lacks(&self, has: impl Fn(&Word) -> bool) -> Option<(usize, usize)> {
        lacking(&self.sets, self.level, |node| self.words.get(&node).is_some_and(&has))
    }

    fn is_read(&self) -> bool {
        let is_answer = |word: &Word| matches!(word, Word::Answered { .. });
        self.lacks(is_answer).is_none() && (!self.wants_rows || self.whole().is_some())
    }

    /// The page with the rows, if it is here.
    fn whole(&self) -> Option<usize> {
        self.words.values().find_map(|word| match word {
            Word::Answered { page, whole: true } => Some(*page),
            _ => None,
        })
    }

    fn asks_whole(&self) -> bool {
        let is_whole = |word: &Word| {
            matches!(word, Word::Asked { whole: true } | Word::Answered { whole: true, .. })
        };
        self.wants_rows && !self.words.values().any(is_whole)
    }

    /// Asks as many as are needed.
    fn ask_all(&mut self) {
        while let Some(node) = self.wanted() {
            let whole = self.asks_whole();
            self.ask(node, whole);
        }
        // The one with the rows failed, and there are digests enough: any of those has rows too.
        if self.asks_whole() {
            let answered = self
                .candidates
                .iter()
                .copied()
                .find(|node| matches!(self.words.get(node), Some(Word::Answered { .. })));
            if let Some(node) = answered {
                self.ask(node, true);
            }
        }
    }

    fn wanted(&self) -> Option<NodeId> {
        let may =
            |node: NodeId| self.words.get(&node).is_some_and(|word| !matches!(word, Word::Failed));
        let lacks = |node: &NodeId| {
            self.sets.each().filter(|set| set.contains(node)).any(|set| {
                let found = set.iter().filter(|node| may(**node)).count();
                found < self.level.needed(set.len())
            })
        };
        let is_new = |node: &&NodeId| !self.words.contains_key(node);
        self.candidates.iter().filter(is_new).find(|node| lacks(node)).copied()
    }

    fn hedge(&mut self) {
        let is_new = |node: &&NodeId| !self.words.contains_key(node);
        let Some(node) = self.candidates.iter().find(is_new).copied() else { return };
        count(&self.coordinator.counters.hedges, 1);
        // It may be the one with the rows that is slow.
        let whole = self.wants_rows && self.whole().is_none();
        self.ask(node, whole);
    }

    fn ask(&mut self, node: NodeId, whole: bool) {
        self.words.insert(node, Word::Asked { whole });
        let what = match (whole, self.level) {
            (true, _) => ScanWhat::Rows,
            // Nobody's word is laid beside another's.
            (false, Level::One) if !self.wants_rows => ScanWhat::Keys,
            (false, _) => ScanWhat::Digests,
        };
        let (this, question) = (Arc::clone(self.coordinator), self.question.clone());
        let is_only = self.sets.members() == [this.node];
        self.asking.push(Box::pin(async move {
            let page = match node == this.node {
                true => this.page_here(question, what, is_only).await,
                false => this.page_of(node, question, what).await,
            };
            (node, whole, page)
        }));
    }

    fn take(
        &mut self,
        node: NodeId,
        whole: bool,
        answer: Result<Page, PageError>,
    ) -> Result<(), Failed> {
        let word = match answer {
            Ok(page) => {
                self.pages.push(page);
                Word::Answered { page: self.pages.len() - 1, whole }
            }
            Err(PageError::Stale(epoch)) => {
                let from = (node != self.coordinator.node).then_some(node);
                let epoch = epoch.max(self.question.epoch + 1);
                return Err(Failed::Stale(Stale { from, epoch }));
            }
            Err(PageError::Store(error)) => {
                self.why = error.into();
                Word::Failed
            }
            Err(PageError::Peer(why)) => {
                self.why = Error::TooFewAnswers { answers: 0, needed: 1, why };
                Word::Failed
            }
        };
        self.words.insert(node, word);
        Ok(())
    }

    /// Why the page cannot be read: in the words of the store where there is only this one.
    fn too_few(self, needed: usize, answers: usize) -> Error {
        match self.why {
            why @ Error::Store(_) if self.sets.members() == [self.coordinator.node] => why,
            Error::TooFewAnswers { why, .. } => Error::TooFewAnswers { answers, needed, why },
            why => Error::TooFewAnswers { answers, needed, why: why.to_string() },
        }
    }

    fn in_order(mut self) -> Vec<Page> {
        if let Some(whole) = self.whole() {
            self.pages.swap(0, whole);
        }
        self.pages
    }
}
