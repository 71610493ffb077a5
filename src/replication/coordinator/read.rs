//! Rows from as many replicas as the level asks for, and their repair.
//!
//! Keys of the same replica sets are read together: one message to each replica, however many keys.
//! What each key needs next is decided in `read_key`; here it is sent and waited for.
//!
//! 1. One replica, the best, is asked for the row, the others for digests. Where they differ the
//!    rows are fetched, joined, and written back to whoever of them holds less, before the answer.
//! 2. Beside a replica that is slower than nearly all its answers were one more is asked, once.
//! 3. On a word of a later epoch everything heard counts for nothing, and the read starts over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::read_key::{Group, ReadKey, Step, Word};
use super::write::WriteOptions;
use super::{Coordinator, LaneKind, Layout, Sets, count};
use crate::cluster::NodeId;
use crate::cluster::peer::PeerError;
use crate::proto;
use crate::replication::error::{Error, Result};
use crate::replication::fence::Closed;
use crate::replication::lane::{Answers, Load, Parcel};
use crate::replication::level::Level;
use crate::store::{Mutation, RawRow, ReadRow, Tenant, TenantId};

/// No replica is taken for slow before this.
const HEDGE_MIN: Duration = Duration::from_millis(2);

/// A key to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRead {
    /// The key.
    pub key: Vec<u8>,
    /// What the client has seen of it: no older row is answered.
    pub min_context: Option<Vec<u8>>,
}

/// How keys are read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Replicas that must take part.
    pub level: Level,
    /// When the caller is told, at the latest.
    pub deadline: Instant,
}

/// Why a group starts over: who said so, and the epoch it knows.
struct Stale {
    from: Option<NodeId>,
    epoch: u64,
}

/// What a replica said to a request about some keys of the group.
struct Heard {
    node: NodeId,
    items: Vec<usize>,
    answers: Result<Answers, PeerError>,
}

/// Keys under way.
struct Reading<'r> {
    coordinator: &'r Coordinator,
    tenant: &'r Tenant,
    group: Group<'r>,
    epoch: u64,
    options: ReadOptions,
    keys: Vec<ReadKey>,
    rows: Vec<Option<Result<RawRow>>>,
    told: mpsc::UnboundedSender<Heard>,
}

/// What is to be sent, by receiver.
#[derive(Default)]
struct Sending {
    /// With `true`: for the whole rows.
    asks: BTreeMap<(NodeId, bool), Vec<usize>>,
    repairs: BTreeMap<NodeId, Vec<(usize, Bytes)>>,
}

impl Coordinator {
    /// Reads a key right here, if that is all the level asks for: this node is the whole cluster,
    /// or a replica at ONE. `None`: it takes others, see [`Coordinator::read`].
    pub fn read_here(&self, tenant: &str, read: &KeyRead, level: Level) -> Option<Result<ReadRow>> {
        let layout = self.layout();
        if !self.is_solo(&layout) {
            if level != Level::One || read.min_context.is_some() {
                return None;
            }
            let tenant = self.store.tenant(tenant).ok()?;
            let (_, sets) = self.sets(&layout, &tenant, &read.key);
            if !sets.current.contains(&self.node) {
                return None;
            }
            self.store.check_undamaged(&tenant, &read.key).ok()?;
        } else if read.min_context.is_some() {
            return None;
        }
        let _pass = self.fence.enter(layout.epoch()).ok()?;
        let row = self.store.read(tenant, &read.key);
        // Where the own copy cannot be read another one may do.
        let is_last = self.is_solo(&layout);
        if is_last || row.is_ok() { Some(row.map_err(Error::from)) } else { None }
    }

    /// [`Coordinator::read_here`] for several keys: the rows of all, or of none.
    pub fn read_all_here(
        &self,
        tenant: &str,
        reads: &[KeyRead],
        level: Level,
    ) -> Option<Vec<Result<ReadRow>>> {
        let layout = self.layout();
        if !self.is_solo(&layout) || reads.iter().any(|read| read.min_context.is_some()) {
            return reads.iter().map(|read| self.read_here(tenant, read, level)).collect();
        }
        let _pass = self.fence.enter(layout.epoch()).ok()?;
        let keys: Vec<&[u8]> = reads.iter().map(|read| &read.key[..]).collect();
        let rows = self.store.read_batch(tenant, &keys);
        Some(rows.into_iter().map(|row| row.map_err(Error::from)).collect())
    }

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
        let rows = self.read_raw(&tenant, keys, options).await;
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
    async fn read_raw(
        &self,
        tenant: &Tenant,
        reads: Vec<KeyRead>,
        options: ReadOptions,
    ) -> Vec<Result<RawRow>> {
        let mut rows: Vec<Option<Result<RawRow>>> = vec![None; reads.len()];
        let mut left: Vec<usize> = (0..reads.len()).collect();
        while !left.is_empty() {
            let layout = self.layout();
            let mut groups: BTreeMap<Vec<NodeId>, (Sets, Vec<usize>)> = BTreeMap::new();
            for place in std::mem::take(&mut left) {
                let (_, sets) = self.sets(&layout, tenant, &reads[place].key);
                // In the order of the ranks: both sets, one after the other, say which they are.
                let mut name = sets.current.clone();
                name.extend(sets.next.iter().flatten());
                groups.entry(name).or_insert_with(|| (sets, Vec::new())).1.push(place);
            }
            let groups = groups.into_values().map(|(sets, places)| {
                let keys = places.iter().map(|place| reads[*place].clone()).collect();
                let layout = Arc::clone(&layout);
                async move { (places, self.read_group(&layout, tenant, sets, keys, options).await) }
            });
            let mut stale = None;
            for (places, outcome) in join_all(groups.collect()).await {
                match outcome {
                    Ok(outcomes) => {
                        for (place, outcome) in places.into_iter().zip(outcomes) {
                            rows[place] = Some(outcome);
                        }
                    }
                    Err(later) => {
                        count(&self.counters.restarts, places.len());
                        left.extend(places);
                        stale = Some(later);
                    }
                }
            }
            if let Some(Stale { from, epoch }) = stale
                && !self.wait_for_layout(epoch - 1, from, options.deadline).await
            {
                left.drain(..).for_each(|place| rows[place] = Some(Err(Error::LayoutUnknown)));
            }
        }
        let lost = || Err(Error::LayoutUnknown);
        rows.into_iter().map(|row| row.unwrap_or_else(lost)).collect()
    }

    /// Reads keys of the same sets under one layout.
    async fn read_group(
        &self,
        layout: &Layout,
        tenant: &Tenant,
        sets: Sets,
        reads: Vec<KeyRead>,
        options: ReadOptions,
    ) -> Result<Vec<Result<RawRow>>, Stale> {
        let candidates = self.candidates(&sets);
        // A newcomer may be empty: at ONE the word of a current owner is asked for (R4).
        let sets = match options.level {
            Level::One => Sets { next: None, ..sets },
            Level::Quorum | Level::All => sets,
        };
        if let Err(error) = self.check_reachable(&sets, options.level) {
            return Ok(reads.iter().map(|_| Err(error.clone())).collect());
        }
        let (told, mut heard) = mpsc::unbounded_channel();
        let mut reading = Reading {
            coordinator: self,
            tenant,
            group: Group {
                store: &self.store,
                tenant,
                sets: &sets,
                level: options.level,
                candidates: &candidates,
            },
            epoch: layout.epoch(),
            options,
            rows: vec![None; reads.len()],
            keys: reads.into_iter().map(|read| ReadKey::new(read.key, read.min_context)).collect(),
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
    fn candidates(&self, sets: &Sets) -> Vec<NodeId> {
        let mut nodes = sets.members();
        nodes.retain(|node| self.is_up(*node));
        nodes.sort_by_cached_key(|node| {
            let is_new = !sets.current.contains(node);
            let is_old = sets.next.as_ref().is_some_and(|next| !next.contains(node));
            (is_new, *node != self.node, is_old, self.scores.cost(*node))
        });
        nodes
    }

    /// Asks a quorum which of the idempotency keys of a last-write-wins batch it knows, and takes
    /// their rows over. Says which writes failed by that.
    pub(super) async fn learn_tokens(
        &self,
        tenant: &Tenant,
        batch: &[Mutation],
        options: WriteOptions,
    ) -> BTreeMap<usize, Error> {
        let tokened = |mutation: &&Mutation| mutation.idempotency_key.is_some();
        let (mut places, mut reads) = (Vec::new(), Vec::new());
        let mut failed = BTreeMap::new();
        let layout = self.layout();
        for (place, mutation) in batch.iter().enumerate().filter(|(_, one)| tokened(one)) {
            let (_, sets) = self.sets(&layout, tenant, &mutation.key);
            // Who coordinates asks; a forwarded write is asked for there.
            if !sets.contains(self.node) {
                continue;
            }
            match self.store.limits().check_key(&mutation.key) {
                Ok(()) => {
                    places.push(place);
                    reads.push(KeyRead { key: mutation.key.clone(), min_context: None });
                }
                Err(error) => {
                    failed.insert(place, error.into());
                }
            }
        }
        let options = ReadOptions { level: Level::Quorum, deadline: options.deadline };
        let rows = self.read_raw(tenant, reads, options).await;
        let mut known: Vec<(TenantId, Vec<u8>, Vec<u8>)> = Vec::new();
        for (place, row) in places.into_iter().zip(rows) {
            match row {
                Ok(RawRow { row: Some(row), .. }) => {
                    known.push((tenant.id, batch[place].key.clone(), row));
                }
                Ok(_) => {}
                Err(error) => {
                    failed.insert(place, error.not_applied());
                }
            }
        }
        if !known.is_empty() {
            // Only for the read that makes the write: nobody relies on it being durable.
            self.store.submit_rows(&known, Box::new(|_| {}));
        }
        failed
    }
}

impl Reading<'_> {
    /// Takes every key as far as it comes without waiting, and sends what it needs.
    fn advance(&mut self) -> Result<(), Stale> {
        let mut sending = Sending::default();
        for index in 0..self.keys.len() {
            while self.rows[index].is_none() {
                if !self.step(index, &mut sending)? {
                    break;
                }
            }
        }
        self.send(sending);
        Ok(())
    }

    /// One step of a key. `false`: it waits.
    fn step(&mut self, index: usize, sending: &mut Sending) -> Result<bool, Stale> {
        let key = &mut self.keys[index];
        let step = match key.step(&self.group) {
            Ok(step) => step,
            Err(error) => {
                self.rows[index] = Some(Err(error.into()));
                return Ok(true);
            }
        };
        match step {
            Step::Wait => return Ok(false),
            Step::Ask(node, _) if node == self.coordinator.node => self.read_own(index)?,
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
        Ok(true)
    }

    fn repair(&self, index: usize, nodes: &[NodeId], raw: RawRow, sending: &mut Sending) {
        let Some(row) = raw.row.map(Bytes::from) else { return };
        count(&self.coordinator.counters.repairs, nodes.len());
        for node in nodes {
            sending.repairs.entry(*node).or_default().push((index, row.clone()));
        }
    }

    /// This node's own word on a key.
    fn read_own(&mut self, index: usize) -> Result<(), Stale> {
        let coordinator = self.coordinator;
        let key = &mut self.keys[index];
        let read = {
            let _pass = coordinator.fence.enter(self.epoch).map_err(|closed| match closed {
                Closed::Stale { epoch } => Stale { from: None, epoch },
                Closed::Behind { .. } => Stale { from: None, epoch: self.epoch + 1 },
            })?;
            coordinator.store.raw_row(self.tenant.id, &key.key)
        };
        let word = read.and_then(|raw| {
            let digest = coordinator.store.digest(&raw)?;
            Ok(Word::Row { raw, digest })
        });
        match word {
            Ok(word) => key.take(coordinator.node, word),
            Err(error) => key.fail(coordinator.node, error.to_string()),
        }
        Ok(())
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
            let (items, rows): (Vec<usize>, Vec<Bytes>) = rows.into_iter().unzip();
            if node == self.coordinator.node {
                self.repair_own(items, rows);
                continue;
            }
            let state = |(index, row): (&usize, Bytes)| proto::RowState {
                tenant_id: self.tenant.id.0,
                key: self.keys[*index].key.clone().into(),
                row,
            };
            let rows = items.iter().zip(rows).map(state).collect();
            let load = Load::Rows(rows, proto::RowsCause::ReadRepair);
            self.send_to(node, LaneKind::Rows, load, items);
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

    fn repair_own(&self, items: Vec<usize>, rows: Vec<Bytes>) {
        let node = self.coordinator.node;
        let rows = items
            .iter()
            .zip(rows)
            .map(|(index, row)| (self.tenant.id, Bytes::from(self.keys[*index].key.clone()), row));
        let rows: Vec<_> = rows.collect();
        let told = self.told.clone();
        let Ok(_pass) = self.coordinator.fence.enter(self.epoch) else {
            let answers = Err(PeerError::StaleLayout { epoch: self.epoch + 1 });
            let _ = told.send(Heard { node, items, answers });
            return;
        };
        let joined = Box::new(move |results: Vec<crate::store::Result<()>>| {
            let result = |result: crate::store::Result<()>| proto::RowResult {
                failure: result.err().map(|error| proto::Failure {
                    reason: error.reason().to_owned(),
                    message: error.to_string(),
                    ..proto::Failure::default()
                }),
            };
            let answers = Ok(Answers::Rows(results.into_iter().map(result).collect()));
            let _ = told.send(Heard { node, items, answers });
        });
        self.coordinator.store.submit_rows(&rows, joined);
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
                for (index, answer) in items.iter().zip(answers) {
                    self.keys[*index].hear(node, answer);
                }
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
        let p95 = asked.map(|node| self.coordinator.scores.p95(node)).max();
        p95.unwrap_or_default().max(HEDGE_MIN)
    }

    fn hedge(&mut self) -> Result<(), Stale> {
        let mut sending = Sending::default();
        let mut own = Vec::new();
        for (index, key) in self.keys.iter_mut().enumerate() {
            if self.rows[index].is_some() || key.waits_for().next().is_none() {
                continue;
            }
            let Some(node) = key.hedge(self.group.candidates) else { continue };
            count(&self.coordinator.counters.hedges, 1);
            match node == self.coordinator.node {
                true => own.push(index),
                false => sending.asks.entry((node, true)).or_default().push(index),
            }
        }
        own.into_iter().try_for_each(|index| self.read_own(index))?;
        self.send(sending);
        self.advance()
    }

    fn time_is_over(&mut self) {
        for (key, row) in self.keys.iter().zip(&mut self.rows).filter(|(_, row)| row.is_none()) {
            let (answers, needed) = key.progress(&self.group);
            *row = Some(Err(Error::ReadTimeout { answers, needed }));
        }
    }
}

/// Polls all futures to their ends, in turns, on this task.
async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|future| Ok(Box::pin(future))).collect();
    std::future::poll_fn(|context| {
        let mut is_done = true;
        for slot in &mut running {
            if let Ok(future) = slot {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(output) => *slot = Err(Some(output)),
                    std::task::Poll::Pending => is_done = false,
                }
            }
        }
        if is_done { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|slot| slot.err().flatten()).collect()
}
