//! Rows from as many replicas as the level asks for, and their repair.
//!
//! All keys of a batch are read together: one message to each replica for the rows, one for the
//! digests, however many keys of however many replica sets. What each key needs next is decided in
//! `read_key`; here it is sent and waited for.
//!
//! 1. One replica, the best, is asked for the row, the others for digests. Where they differ the
//!    rows are fetched, joined, and written back to whoever of them holds less, before the answer.
//! 2. Beside a replica that is slower than nearly all its answers were one more is asked, once.
//! 3. On a word of a later epoch everything heard counts for nothing, and the read starts over.
//! 4. Of reads at ONE that this node answers by itself a small share is read again at QUORUM, with
//!    nobody waiting: so replicas that nobody compares otherwise are compared where they are read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
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
/// One of so many reads at ONE is checked.
const CHECK_ONE_OF: u64 = 100;
/// Checks under way at most; beyond, none is begun.
pub(super) const CHECKS_MAX: usize = 32;
/// How long a check may take.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Why a replica did not tell a row: those before it had filled the reply.
pub(in crate::replication) const REPLY_TOO_LARGE: &str = "REPLY_TOO_LARGE";

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
    repairs: BTreeMap<NodeId, Vec<(usize, Bytes)>>,
}

impl Coordinator {
    /// Reads a key right here, if that is all the level asks for: this node is the whole cluster,
    /// or a replica at ONE. `None`: it takes others, see [`Coordinator::read`].
    pub fn read_here(
        self: &Arc<Self>,
        tenant: &str,
        read: &KeyRead,
        level: Level,
    ) -> Option<Result<ReadRow>> {
        let layout = self.layout();
        let is_solo = self.is_solo(&layout);
        if !self.is_enough(&layout, is_solo, tenant, std::slice::from_ref(read), level) {
            return None;
        }
        let _pass = self.fence.enter(layout.epoch()).ok()?;
        let row = self.store.read(tenant, &read.key);
        if !is_solo {
            // Where the own copy cannot be read another one may do.
            row.as_ref().ok()?;
            self.check_sometimes(tenant, &read.key);
        }
        Some(row.map_err(Error::from))
    }

    /// As [`Coordinator::read_here`], for all of these keys or none of them. A whole batch is looked
    /// up under one layout.
    pub fn read_batch_here(
        self: &Arc<Self>,
        tenant: &str,
        reads: &[KeyRead],
        level: Level,
    ) -> Option<Vec<Result<ReadRow>>> {
        let layout = self.layout();
        let is_solo = self.is_solo(&layout);
        if !self.is_enough(&layout, is_solo, tenant, reads, level) {
            return None;
        }
        let _pass = self.fence.enter(layout.epoch()).ok()?;
        let keys: Vec<&[u8]> = reads.iter().map(|read| &read.key[..]).collect();
        let rows = self.store.read_batch(tenant, &keys);
        if !is_solo {
            rows.iter().all(Result::is_ok).then_some(())?;
            reads.iter().for_each(|read| self.check_sometimes(tenant, &read.key));
        }
        Some(rows.into_iter().map(|row| row.map_err(Error::from)).collect())
    }

    /// Whether this node's own word on these keys is all that is asked for.
    fn is_enough(
        &self,
        layout: &Layout,
        is_solo: bool,
        tenant: &str,
        reads: &[KeyRead],
        level: Level,
    ) -> bool {
        if reads.iter().any(|read| read.min_context.is_some()) {
            return false;
        }
        if is_solo {
            return true;
        }
        if level != Level::One {
            return false;
        }
        let Ok(tenant) = self.store.tenant(tenant) else { return false };
        reads.iter().all(|read| {
            let (_, sets) = self.sets(layout, &tenant, &read.key);
            sets.current.contains(&self.node)
                && self.store.check_undamaged(&tenant, &read.key).is_ok()
        })
    }

    /// Reads one key of a hundred again at QUORUM, which repairs whoever is behind.
    fn check_sometimes(self: &Arc<Self>, tenant: &str, key: &[u8]) {
        let turn = self.reads_at_one.fetch_add(1, Ordering::Relaxed);
        // Not every hundredth in turn: a client that reads a hundred keys over and over would have
        // the same one checked for ever.
        let is_chosen =
            xxhash_rust::xxh3::xxh3_64(&turn.to_le_bytes()).is_multiple_of(CHECK_ONE_OF);
        if !is_chosen || self.checks.available_permits() == 0 {
            return;
        }
        let Ok(tenant) = self.store.tenant(tenant) else { return };
        let (this, key) = (Arc::clone(self), key.to_vec());
        tokio::spawn(async move {
            let Ok(_place) = this.checks.try_acquire() else { return };
            count(&this.counters.checks, 1);
            let deadline = Instant::now() + CHECK_TIMEOUT;
            let options = ReadOptions { level: Level::Quorum, deadline };
            // Nobody waits for it: what cannot be checked now is checked another time.
            let _ = this.read_raw(&tenant, vec![KeyRead { key, min_context: None }], options).await;
        });
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
    pub(super) async fn read_raw(
        &self,
        tenant: &Tenant,
        reads: Vec<KeyRead>,
        options: ReadOptions,
    ) -> Vec<Result<RawRow>> {
        if reads.is_empty() {
            return Vec::new();
        }
        loop {
            let layout = self.layout();
            let Stale { from, epoch } =
                match self.read_under(&layout, tenant, &reads, options).await {
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
        let (told, mut heard) = mpsc::unbounded_channel();
        let key = |read: &KeyRead| ReadKey::new(read.key.clone(), read.min_context.clone());
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

    fn repair(&self, index: usize, nodes: &[NodeId], raw: RawRow, sending: &mut Sending) {
        let Some(row) = raw.row.map(Bytes::from) else { return };
        count(&self.coordinator.counters.repairs, nodes.len());
        for node in nodes {
            sending.repairs.entry(*node).or_default().push((index, row.clone()));
        }
    }

    /// This node's own word on keys.
    fn read_own(&mut self, indexes: &[usize]) -> Result<(), Stale> {
        let coordinator = self.coordinator;
        let words = {
            let _pass = coordinator.fence.enter(self.epoch).map_err(|closed| match closed {
                Closed::Stale { epoch } => Stale { from: None, epoch },
                Closed::Behind { .. } => Stale { from: None, epoch: self.epoch + 1 },
            })?;
            let keys = indexes.iter().map(|index| &self.keys[*index].key[..]);
            let keys: Vec<(TenantId, &[u8])> = keys.map(|key| (self.tenant.id, key)).collect();
            coordinator.store.raw_rows(&keys)
        };
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
