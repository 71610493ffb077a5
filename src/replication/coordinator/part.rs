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
//!
//! Where one answer is enough and this node has it, what is shown is made from the rows where they
//! lie, as in any other read of the own store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout_at};

use super::pages::{Page, PageRow, Place, together};
use super::read::{KeyRead, Others, ReadOptions, Stale};
use super::replica_page::{PageError, Question, Tell, see};
use super::{Coordinator, Layout, Sets, count, lacking};
use crate::cluster::NodeId;
use crate::proto::ScanWhat;
use crate::replication::error::{Error, Result};
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

type Asking = BoxFuture<'static, (NodeId, bool, Result<Page, PageError>)>;

/// A page under way.
struct Reading<'r> {
    coordinator: &'r Arc<Coordinator>,
    question: Question,
    sets: Sets,
    level: Level,
    want: Want,
    candidates: Vec<NodeId>,
    words: BTreeMap<NodeId, Word>,
    pages: Vec<Page>,
    asking: FuturesUnordered<Asking>,
    why: Error,
}

impl Part {
    /// The part that begins at `start`, an engine key or bytes between two, and ends at `end` at
    /// the latest.
    pub fn at(layout: &Layout, tenant: &Tenant, start: Vec<u8>, end: Option<&[u8]>) -> Self {
        let first = partition_of(layout, &start);
        let sets = layout.sets_of(first, tenant);
        let (mut last, behind) = (first, layout.partitions());
        if are_alike(layout, tenant) {
            last = behind - 1;
        }
        while last + 1 < behind
            && last - first < RUN_MAX
            && same_members(&sets, &layout.sets_of(last + 1, tenant))
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
fn are_alike(layout: &Layout, tenant: &Tenant) -> bool {
    let document = layout.document();
    let (current, next) = document.factors_of(tenant);
    let few = |owners: usize, replicas: u8| owners <= usize::from(replicas);
    few(document.owners.len(), current)
        && document.next_owners.as_ref().is_none_or(|owners| few(owners.len(), next))
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
            want,
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
            false => self.read_raw(tenant, disputed, options, Others::Digests).await,
        }
        .into_iter();
        let mut rows = Vec::with_capacity(places.len());
        for place in places {
            let (key, seen) = match place {
                Place::Agreed(PageRow { key, seen: Some(seen), .. }) => (key, Some(seen)),
                Place::Agreed(PageRow { key, row: Some(row), .. }) => {
                    let seen = see(&self.store, tenant, &key, &row, want)?;
                    (key, seen)
                }
                Place::Agreed(PageRow { key, has_value, .. }) => {
                    (key, has_value.then_some(Seen::Key))
                }
                Place::Disputed(key) => {
                    let lost = || Err(Error::ReadTimeout { answers: 0, needed: 1 });
                    let raw = read.next().unwrap_or_else(lost).map_err(Failed::Error)?;
                    let seen = match raw.row {
                        Some(row) => see(&self.store, tenant, &key, &row, want)?,
                        None => None,
                    };
                    (key, seen)
                }
            };
            rows.extend(seen.map(|seen| ScannedRow { key, seen }));
        }
        Ok(rows)
    }
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

    fn wants_rows(&self) -> bool {
        self.want != Want::Keys
    }

    fn is_read(&self) -> bool {
        let is_answer = |word: &Word| matches!(word, Word::Answered { .. });
        self.lacks(is_answer).is_none() && (!self.wants_rows() || self.whole().is_some())
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
        self.wants_rows() && !self.words.values().any(is_whole)
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
        let whole = self.wants_rows() && self.whole().is_none();
        self.ask(node, whole);
    }

    fn ask(&mut self, node: NodeId, whole: bool) {
        self.words.insert(node, Word::Asked { whole });
        let what = match (whole, self.level) {
            (true, _) => ScanWhat::Rows,
            // Nobody's word is laid beside another's.
            (false, Level::One) if !self.wants_rows() => ScanWhat::Keys,
            (false, _) => ScanWhat::Digests,
        };
        let (this, question) = (Arc::clone(self.coordinator), self.question.clone());
        let members = self.sets.members();
        let is_enough = members.len() == 1 || self.level == Level::One;
        let tell = if is_enough { Tell::Seen(self.want) } else { Tell::Word(what) };
        let on_damage = if members == [this.node] { OnDamage::Show } else { OnDamage::Stop };
        self.asking.push(Box::pin(async move {
            let page = match node == this.node {
                true => this.page_here(question, tell, on_damage).await,
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
