//! Rows from as many replicas as the level asks for, and their repair.
//!
//! All keys of a batch are read together: one message to each replica for the rows, one for the
//! digests, however many keys of however many replica sets. What each key needs next is decided in
//! `read_key`; here it is sent and waited for.
//!
//! 1. One replica, the best, is asked for the row, the others for digests. Where they differ the
//!    rows are fetched, joined, and written back to whoever of them holds less, before the answer.
//!    The join was judged by the floors of all of them, so it passes their guards: after a round
//!    that came no further than its fence they would not take from each other what it left unequal.
//! 2. Beside a replica that is slower than nearly all its answers were one more is asked, once.
//! 3. On a word of a later epoch everything heard counts for nothing, and the read starts over.
//! 4. A replica's word counts when what it tells of is durable there, this node's own too: a
//!    quorum that shows a row holds it after all of it has lost power.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::read_key::{Behind, Group, ReadKey, Step, Word};
use super::{Coordinator, LaneKind, Layout, Sets, count};
use crate::cluster::NodeId;
use crate::cluster::peer::PeerError;
use crate::engine::Position;
use crate::proto;
use crate::replication::error::{Error, Result};
use crate::replication::fence::Closed;
use crate::replication::lane::{Answers, Load, Parcel, messages_of};
use crate::replication::level::Level;
use crate::replication::reason::REPLY_TOO_LARGE;
use crate::replication::replica::refused_by_store;
use crate::store::{self, Early, RawRow, ReadRow, Tenant, TenantId};

/// No replica is taken for slow before this.
const HEDGE_MIN: Duration = Duration::from_millis(2);

/// This node's own failure, as another's would be told.
fn failure_of(error: &store::Error) -> proto::Failure {
    let (reason, message) = (error.reason().to_owned(), error.to_string());
    proto::Failure { reason, message, ..proto::Failure::default() }
}

/// A key to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRead {
    /// The key.
    pub key: Vec<u8>,
    /// What the client has seen of it: no older row is answered.
    pub min_context: Option<Vec<u8>>,
}

/// What replicas are asked for beside the one that is asked for the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Whether they hold the same.
    Digests,
    /// The row as well.
    Rows,
}

/// How keys are read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Replicas that must take part.
    pub level: Level,
    /// When the caller is told, at the latest.
    pub deadline: Instant,
}

/// Why a read starts over: who said so, and the epoch it knows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stale {
    pub from: Option<NodeId>,
    pub epoch: u64,
}

/// What a replica said to a request about some keys of the group.
struct Heard {
    node: NodeId,
    items: Vec<usize>,
    answers: Result<Answers, PeerError>,
}

/// The replicas of some keys of a batch, in both sets, and those of them that may be asked.
type Replicas = (Sets, Vec<NodeId>);

/// Keys under way.
struct Reading<'r> {
    coordinator: &'r Coordinator,
    tenant: &'r Tenant,
    groups: Vec<Group<'r>>,
    /// Which of them each key belongs to.
    group_of: Vec<usize>,
    epoch: u64,
    options: ReadOptions,
    keys: Vec<ReadKey>,
    rows: Vec<Option<Result<RawRow>>>,
    told: mpsc::UnboundedSender<Heard>,
}

/// What is to be sent, by receiver.
#[derive(Default)]
struct Sending {
    /// Of this node itself.
    own: Vec<usize>,
    /// With `true`: for the whole rows.
    asks: BTreeMap<(NodeId, bool), Vec<usize>>,
    /// Each with the floor that it was judged under.
    repairs: BTreeMap<NodeId, Vec<(usize, Bytes, u64)>>,
}

impl Coordinator {
    /// Reads keys; each has its own outcome, in their order.
    pub async fn read(
        &self,
        tenant: &str,
        reads: Vec<KeyRead>,
        options: ReadOptions,
    ) -> Vec<Result<ReadRow>> {
        let items = reads.len();
        let tenant = match self.store.tenant(tenant) {
            Ok(tenant) => tenant,
            Err(error) => return vec![Err(error.into()); items],
        };
        let mut results: Vec<Option<Result<ReadRow>>> = vec![None; items];
        let mut wanted = Vec::with_capacity(items);
        for (place, read) in reads.into_iter().enumerate() {
            match self.check(&tenant, &read) {
                Ok(()) => wanted.push((place, read)),
                Err(error) => results[place] = Some(Err(error)),
            }
        }
        let keys: Vec<KeyRead> = wanted.iter().map(|(_, read)| read.clone()).collect();
        let rows = self.read_raw(&tenant, keys, options, Others::Digests).await;
        for ((place, read), row) in wanted.into_iter().zip(rows) {
            let shown =
                row.and_then(|raw| Ok(self.store.show(&tenant, &read.key, raw.row.as_deref())?));
            results[place] = Some(shown);
        }
        let lost = || Err(Error::ReadTimeout { answers: 0, needed: 1 });
        results.into_iter().map(|result| result.unwrap_or_else(lost)).collect()
    }

    fn check(&self, tenant: &Tenant, read: &KeyRead) -> Result<()> {
        self.store.limits().check_key(&read.key)?;
        if let Some(context) = &read.min_context {
            self.store.check_context(tenant, &read.key, context)?;
        }
        Ok(())
    }

    /// Reads whole rows.
    pub(super) async fn read_raw(
        &self,
        tenant: &Tenant,
        reads: Vec<KeyRead>,
        options: ReadOptions,
        others: Others,
    ) -> Vec<Result<RawRow>> {
        if reads.is_empty() {
            return Vec::new();
        }
        loop {
            let layout = self.layout();
            let Stale { from, epoch } =
                match self.read_under(&layout, tenant, &reads, options, others).await {
                    Ok(rows) => return rows,
                    Err(stale) => stale,
                };
            count(&self.counters.restarts, reads.len());
            if !self.wait_for_layout(epoch - 1, from, options.deadline).await {
                return reads.iter().map(|_| Err(Error::LayoutUnknown)).collect();
            }
        }
    }

    /// The replicas of keys, each combination once, and which of them each key has.
    fn replicas(
        &self,
        layout: &Layout,
        tenant: &Tenant,
        reads: &[KeyRead],
        level: Level,
    ) -> (Vec<Replicas>, Vec<usize>) {
        let mut found: Vec<Replicas> = Vec::new();
        let mut known: BTreeMap<[Vec<NodeId>; 2], usize> = BTreeMap::new();
        let group_of = reads.iter().map(|read| {
            let (_, sets) = self.sets(layout, tenant, &read.key);
            let mut name = [sets.current.clone(), sets.next.clone().unwrap_or_default()];
            name.iter_mut().for_each(|set| set.sort_unstable());
            *known.entry(name).or_insert_with(|| {
                let candidates = self.candidates(&sets);
                // A newcomer may be empty: at ONE the word of a current owner is asked for (R4).
                let sets = match level {
                    Level::One => Sets { next: None, ..sets },
                    Level::Quorum | Level::All => sets,
                };
                found.push((sets, candidates));
                found.len() - 1
            })
        });
        let group_of = group_of.collect();
        (found, group_of)
    }

    /// Reads keys under one layout.
    async fn read_under(
        &self,
        layout: &Layout,
        tenant: &Tenant,
        reads: &[KeyRead],
        options: ReadOptions,
        others: Others,
    ) -> Result<Vec<Result<RawRow>>, Stale> {
        let (replicas, group_of) = self.replicas(layout, tenant, reads, options.level);
        let reachable = replicas.iter().map(|(sets, _)| self.check_reachable(sets, options.level));
        let reachable: Vec<Result<()>> = reachable.collect();
        let refusal = |group: &usize| reachable[*group].clone().err().map(Err);
        let groups = replicas.iter().map(|(sets, candidates)| Group {
            store: &self.store,
            tenant,
            sets,
            level: options.level,
            candidates,
        });
        // One for each parcel at most, and those are bounded by keys and replicas.
        let (told, mut heard) = mpsc::unbounded_channel();
        let key = |read: &KeyRead| {
            let wants_rows = others == Others::Rows;
            ReadKey::new(read.key.clone(), read.min_context.clone(), wants_rows)
        };
        let mut reading = Reading {
            coordinator: self,
            tenant,
            groups: groups.collect(),
            epoch: layout.epoch(),
            options,
            rows: group_of.iter().map(refusal).collect(),
            group_of,
            keys: reads.iter().map(key).collect(),
            told,
        };
        reading.advance()?;
        let mut hedge_at = Some(Instant::now() + reading.slow_after());
        while reading.rows.iter().any(Option::is_none) {
            let alarm = hedge_at.unwrap_or(options.deadline).min(options.deadline);
            tokio::select! {
                biased;
                // The sender is the reading's own: there is always a next one.
                Some(heard) = heard.recv() => reading.take(heard)?,
                () = tokio::time::sleep_until(alarm) => {
                    if Instant::now() >= options.deadline {
                        reading.time_is_over();
                    } else {
                        hedge_at = None;
                        reading.hedge()?;
                    }
                }
            }
        }
        let lost = || Err(Error::ReadTimeout { answers: 0, needed: 1 });
        Ok(reading.rows.into_iter().map(|row| row.unwrap_or_else(lost)).collect())
    }

    /// Who may be asked: this node first, then those in both sets, then the fast ones. Newcomers
    /// last, for at ONE they are only asked for what nobody else shows.
    pub(super) fn candidates(&self, sets: &Sets) -> Vec<NodeId> {
        let mut nodes = sets.members();
        nodes.retain(|node| self.is_up(*node));
        nodes.sort_by_cached_key(|node| {
            let is_new = !sets.current.contains(node);
            let is_old = sets.next.as_ref().is_some_and(|next| !next.contains(node));
            (is_new, *node != self.node, is_old, self.scores.cost(node))
        });
        nodes
    }
}

impl Reading<'_> {
    /// Takes every key as far as it comes without waiting, and sends what it needs.
    fn advance(&mut self) -> Result<(), Stale> {
        let mut sending = Sending::default();
        let mut indexes: Vec<usize> = (0..self.keys.len()).collect();
        loop {
            for index in indexes {
                while self.rows[index].is_none() {
                    if !self.step(index, &mut sending) {
                        break;
                    }
                }
            }
            if sending.own.is_empty() {
                break;
            }
            // All that this node has to say is read at once; its keys go on from there.
            indexes = std::mem::take(&mut sending.own);
            self.read_own(&indexes)?;
        }
        self.send(sending);
        Ok(())
    }

    /// One step of a key. `false`: it waits.
    fn step(&mut self, index: usize, sending: &mut Sending) -> bool {
        let key = &mut self.keys[index];
        let step = match key.step(&self.groups[self.group_of[index]]) {
            Ok(step) => step,
            Err(error) => {
                self.rows[index] = Some(Err(error.into()));
                return true;
            }
        };
        match step {
            Step::Wait => return false,
            Step::Ask(node, _) if node == self.coordinator.node => {
                key.words.insert(node, Word::Asked(true));
                sending.own.push(index);
                return false;
            }
            Step::Ask(node, whole) => {
                if !key.words.is_empty() && whole && key.min_context.is_some() {
                    count(&self.coordinator.counters.widened, 1);
                }
                key.words.insert(node, Word::Asked(whole));
                sending.asks.entry((node, whole)).or_default().push(index);
            }
            Step::Fetch(nodes) => {
                count(&self.coordinator.counters.mismatches, 1);
                for node in nodes {
                    key.words.insert(node, Word::Fetching);
                    sending.asks.entry((node, true)).or_default().push(index);
                }
            }
            Step::Repair(nodes, raw) => self.repair(index, &nodes, raw, sending),
            Step::Done(raw, behind) => {
                self.repair(index, &behind, raw.clone(), sending);
                self.rows[index] = Some(Ok(raw));
            }
            Step::TooFew { answers, needed } => {
                let why = key.why.clone();
                self.rows[index] = Some(Err(Error::TooFewAnswers { answers, needed, why }));
            }
            Step::Stale => self.rows[index] = Some(Err(Error::Stale)),
        }
        true
    }

    fn repair(&self, index: usize, nodes: &[Behind], raw: RawRow, sending: &mut Sending) {
        let Some(row) = raw.row.map(Bytes::from) else { return };
        count(&self.coordinator.counters.repairs, nodes.len());
        for (node, floor) in nodes {
            sending.repairs.entry(*node).or_default().push((index, row.clone(), *floor));
        }
    }

    /// This node's own word on keys. What is in memory alone is heard later, when it is durable.
    fn read_own(&mut self, indexes: &[usize]) -> Result<(), Stale> {
        let coordinator = self.coordinator;
        let Early { found: words, upto } = {
            let _pass = coordinator.fence.enter(self.epoch).map_err(|closed| match closed {
                Closed::Stale { epoch } => Stale { from: None, epoch },
                Closed::Behind { .. } => Stale { from: None, epoch: self.epoch + 1 },
            })?;
            let keys = indexes.iter().map(|index| &self.keys[*index].key[..]);
            let keys: Vec<(TenantId, &[u8])> = keys.map(|key| (self.tenant.id, key)).collect();
            coordinator.store.peek_raw_rows(&keys)
        };
        if upto != Position::ZERO {
            self.await_own(indexes.to_vec(), words, upto);
            return Ok(());
        }
        for (index, word) in indexes.iter().zip(words) {
            let key = &mut self.keys[*index];
            let word = word.and_then(|raw| {
                let digest = coordinator.store.digest(&raw)?;
                Ok(Word::Row { raw, digest })
            });
            match word {
                Ok(word) => key.take(coordinator.node, word),
                Err(error) => key.fail(coordinator.node, error.to_string()),
            }
        }
        Ok(())
    }

    /// Has this node's own word on keys heard when its log is durable up to `upto`.
    fn await_own(&self, items: Vec<usize>, words: Vec<store::Result<RawRow>>, upto: Position) {
        let (store, node, told) = (&self.coordinator.store, self.coordinator.node, &self.told);
        let answer = |word: store::Result<RawRow>| {
            let word = word.and_then(|raw| Ok((store.digest(&raw)?, raw)));
            match word {
                Ok((digest, raw)) => proto::RowAnswer {
                    row: raw.row.map(Bytes::from),
                    digest,
                    floor: raw.floor,
                    failure: None,
                },
                Err(error) => {
                    let failure = Some(failure_of(&error));
                    proto::RowAnswer { failure, ..proto::RowAnswer::default() }
                }
            }
        };
        let answers = words.into_iter().map(answer).collect();
        let told = told.clone();
        store.on_durable(upto, move |durable| {
            let answers = durable.map(|()| Answers::Keys(answers));
            let answers = answers.map_err(|error| refused_by_store(error.into()));
            // Gone: the read is over.
            let _ = told.send(Heard { node, items, answers });
        });
    }

    fn send(&mut self, sending: Sending) {
        for ((node, whole), items) in sending.asks {
            let key = |index: &usize| proto::RowKey {
                tenant_id: self.tenant.id.0,
                key: self.keys[*index].key.clone().into(),
            };
            let load = Load::Keys(items.iter().map(key).collect(), !whole);
            self.send_to(node, LaneKind::Keys, load, items);
        }
        for (node, rows) in sending.repairs {
            if node == self.coordinator.node {
                self.repair_own(rows);
                continue;
            }
            let floors: Vec<u64> = rows.iter().map(|(_, _, floor)| *floor).collect();
            let state = |(index, row, _): (usize, Bytes, u64)| {
                let (tenant_id, key) = (self.tenant.id.0, self.keys[index].key.clone().into());
                (index, proto::RowState { tenant_id, key, row })
            };
            let (items, rows): (Vec<usize>, Vec<_>) = rows.into_iter().map(state).unzip();
            let counts = messages_of(&rows);
            let judge = |(state, floor)| proto::JudgedRow { state: Some(state), floor };
            let mut rows = rows.into_iter().zip(floors).map(judge);
            let mut items = items.into_iter();
            for count in counts {
                let load = Load::Repairs(rows.by_ref().take(count).collect());
                let items = items.by_ref().take(count).collect();
                self.send_to(node, LaneKind::Rows, load, items);
            }
        }
    }

    fn send_to(&self, node: NodeId, kind: LaneKind, load: Load, items: Vec<usize>) {
        let told = self.told.clone();
        let answered = Box::new(move |answers| {
            // Gone: the read is over.
            let _ = told.send(Heard { node, items, answers });
        });
        let (epoch, deadline) = (self.epoch, self.options.deadline);
        self.coordinator.send(node, kind, Parcel { epoch, load, deadline, answered });
    }

    fn repair_own(&self, repairs: Vec<(usize, Bytes, u64)>) {
        let node = self.coordinator.node;
        let (mut items, mut rows, mut floors) = (Vec::new(), Vec::new(), Vec::new());
        for (index, row, floor) in repairs {
            items.push(index);
            rows.push((self.tenant.id, Bytes::from(self.keys[index].key.clone()), row));
            floors.push(floor);
        }
        let told = self.told.clone();
        let Ok(_pass) = self.coordinator.fence.enter(self.epoch) else {
            let answers = Err(PeerError::StaleLayout { epoch: self.epoch + 1 });
            let _ = told.send(Heard { node, items, answers });
            return;
        };
        let joined = Box::new(move |results: Vec<store::Result<()>>| {
            let result = |result: store::Result<()>| proto::RowResult {
                failure: result.err().map(|error| failure_of(&error)),
            };
            let answers = Ok(Answers::Rows(results.into_iter().map(result).collect()));
            let _ = told.send(Heard { node, items, answers });
        });
        self.coordinator.store.submit_repairs(&rows, &floors, joined);
    }

    fn take(&mut self, heard: Heard) -> Result<(), Stale> {
        let Heard { node, items, answers } = heard;
        match answers {
            Err(PeerError::StaleLayout { epoch }) => {
                let from = (node != self.coordinator.node).then_some(node);
                return Err(Stale { from, epoch: epoch.max(self.epoch + 1) });
            }
            Err(error) => {
                items.iter().for_each(|index| self.keys[*index].fail(node, error.to_string()));
            }
            Ok(Answers::Keys(answers)) => {
                let mut again = Sending::default();
                for (index, answer) in items.iter().zip(answers) {
                    let left_out = answer.failure.as_ref().map(|failure| &failure.reason[..]);
                    if left_out == Some(REPLY_TOO_LARGE) {
                        // Only rows fill a reply, and the first of each is told.
                        again.asks.entry((node, true)).or_default().push(*index);
                    } else {
                        self.keys[*index].hear(node, answer);
                    }
                }
                self.send(again);
            }
            Ok(Answers::Rows(results)) => {
                for (index, result) in items.iter().zip(results) {
                    match result.failure {
                        None => self.keys[*index].repaired(node),
                        Some(failure) => self.keys[*index].fail(node, failure.reason),
                    }
                }
            }
        }
        self.advance()
    }

    /// How long the slowest of those asked takes for nearly all its answers.
    fn slow_after(&self) -> Duration {
        let asked = self.keys.iter().flat_map(ReadKey::waits_for);
        let p95 = asked.map(|node| self.coordinator.scores.p95(&node)).max();
        p95.unwrap_or_default().max(HEDGE_MIN)
    }

    fn hedge(&mut self) -> Result<(), Stale> {
        let mut sending = Sending::default();
        let mut own = Vec::new();
        for (index, key) in self.keys.iter_mut().enumerate() {
            if self.rows[index].is_some() || key.waits_for().next().is_none() {
                continue;
            }
            let candidates = self.groups[self.group_of[index]].candidates;
            let Some(node) = key.hedge(candidates) else { continue };
            count(&self.coordinator.counters.hedges, 1);
            match node == self.coordinator.node {
                true => own.push(index),
                false => sending.asks.entry((node, true)).or_default().push(index),
            }
        }
        self.read_own(&own)?;
        self.send(sending);
        self.advance()
    }

    fn time_is_over(&mut self) {
        let keys = self.keys.iter().zip(&self.group_of).zip(&mut self.rows);
        for ((key, group), row) in keys.filter(|(_, row)| row.is_none()) {
            let (answers, needed) = key.progress(&self.groups[*group]);
            *row = Some(Err(Error::ReadTimeout { answers, needed }));
        }
    }
}
