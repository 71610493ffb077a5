//! A batch that this node coordinates, from its log to its last replica.
//!
//! ```text
//! begin   in the log and the memtable here; sent to every other member of the sets; the sync of
//!         the own log runs meanwhile
//! decide  each item when each of its sets has as many durable copies as asked for, or cannot get
//!         them any more, or time is over
//! linger  until every member has answered, a second beyond the deadline at most
//! hint    for every member that has not the row then
//! ```
//!
//! 1. An acknowledgement counts for the attempt that asked for it; a new epoch is a new attempt
//!    (R3), the own copy included. The row stays the same: it is minted once.
//! 2. A member that is down when the batch begins is not waited for: it gets a hint.
//! 3. An item that was refused before its minting was never sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout_at;

use super::write::{SetsOf, WriteDone, WriteOptions};
use super::{Coordinator, LaneKind, Layout, Sets, count, lacking};
use crate::cluster::NodeId;
use crate::cluster::peer::PeerError;
use crate::engine::Position;
use crate::proto;
use crate::replication::error::{Error, Result};
use crate::replication::fence::Closed;
use crate::replication::lane::{Answers, Load, Parcel, messages_of};
use crate::store::{Prepared, ShippedRow, Tenant, Written};

/// How long beyond its deadline a batch waits for slow replicas.
const LINGER: Duration = Duration::from_secs(1);

/// What a replica, or the own log, said of an attempt.
struct Event {
    attempt: u64,
    node: NodeId,
    items: Vec<usize>,
    outcome: Said,
}

enum Said {
    /// One for each item; `None`: durable there.
    Each(Vec<Option<String>>),
    /// Nothing was done, and nothing will be: the replica acts under this later epoch.
    Stale(u64),
    Failed(String),
}

/// One write of the batch.
struct Item {
    place: usize,
    written: Written,
    row: proto::RowState,
    partition: u32,
    sets: Arc<Sets>,
    /// Members with a durable copy.
    acks: Vec<NodeId>,
    /// Members that were asked and have not answered.
    waiting: Vec<NodeId>,
    why: String,
    decided: bool,
}

/// See the module page.
pub(super) struct Flight {
    coordinator: Arc<Coordinator>,
    tenant: Arc<Tenant>,
    options: WriteOptions,
    epoch: u64,
    attempt: u64,
    items: Vec<Item>,
    results: Vec<Option<Result<Written>>>,
    done: Option<WriteDone>,
    layout: watch::Receiver<Arc<Layout>>,
    told: mpsc::UnboundedSender<Event>,
    /// At most one event for each item, member and attempt.
    events: mpsc::UnboundedReceiver<Event>,
}

impl Flight {
    /// Takes a prepared batch over and sends it.
    pub fn begin(
        coordinator: &Arc<Coordinator>,
        layout: &Arc<Layout>,
        tenant: &Arc<Tenant>,
        prepared: Prepared,
        sets_of: &SetsOf,
        options: WriteOptions,
        done: WriteDone,
    ) -> Self {
        let Prepared { results, rows, position } = prepared;
        let (told, events) = mpsc::unbounded_channel();
        let mut results: Vec<Option<Result<Written>>> =
            results.into_iter().map(|result| Some(result.map_err(Error::from))).collect();
        let items = rows.into_iter().filter_map(|shipped| {
            let written = results[shipped.index].take()?.ok()?;
            let partition = layout.partition_of(tenant.token(&shipped.key));
            let sets = match sets_of.get(&partition) {
                Some(sets) => Arc::clone(sets),
                None => Arc::new(layout.sets_of(partition, tenant)),
            };
            Some(Item::new(shipped, written, partition, sets))
        });
        let items = items.collect();
        let mut flight = Self {
            coordinator: Arc::clone(coordinator),
            tenant: Arc::clone(tenant),
            options,
            epoch: layout.epoch(),
            attempt: 0,
            items,
            results,
            done: Some(done),
            layout: coordinator.layout.clone(),
            told,
            events,
        };
        flight.send(Some(position));
        flight
    }

    /// Brings the batch to its end.
    pub async fn run(mut self) {
        self.tell_if_decided();
        while self.done.is_some() {
            tokio::select! {
                biased;
                // The sender is the flight's own: there is always a next one.
                Some(event) = self.events.recv() => self.take(event),
                Ok(()) = self.layout.changed() => self.restart_if_later(),
                () = tokio::time::sleep_until(self.options.deadline) => self.time_is_over(),
            }
            self.tell_if_decided();
        }
        self.linger().await;
        self.hint();
    }

    /// Sends every undecided item to all members of its sets. With a position this node's copy is
    /// in the log already; without one it is joined again, under the new epoch.
    fn send(&mut self, position: Option<Position>) {
        let me = self.coordinator.node;
        let mut by_node: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        for (index, item) in self.items.iter_mut().enumerate().filter(|(_, item)| !item.decided) {
            for node in item.sets.members() {
                if self.coordinator.is_up(node) {
                    item.waiting.push(node);
                    by_node.entry(node).or_default().push(index);
                }
            }
        }
        let own = by_node.remove(&me);
        for (node, mut items) in by_node {
            let rows: Vec<_> = items.iter().map(|index| self.items[*index].row.clone()).collect();
            for count in messages_of(&rows) {
                let rest = items.split_off(count);
                self.send_to(node, items);
                items = rest;
            }
        }
        // The others first: the own log may be synced right here.
        match (own, position) {
            (Some(items), Some(position)) => self.await_log(items, position),
            (Some(items), None) => self.join_here(items),
            (None, _) => {}
        }
    }

    fn send_to(&self, node: NodeId, items: Vec<usize>) {
        let rows = items.iter().map(|index| self.items[*index].row.clone()).collect();
        let (told, attempt) = (self.told.clone(), self.attempt);
        let answered = Box::new(move |answer| {
            let outcome = said(answer);
            // Gone: nobody waits for it any more.
            let _ = told.send(Event { attempt, node, items, outcome });
        });
        let load = Load::Rows(rows, proto::RowsCause::Write);
        let deadline = self.options.deadline + LINGER;
        let parcel = Parcel { epoch: self.epoch, load, deadline, answered };
        self.coordinator.send(node, LaneKind::Rows, parcel);
    }

    fn await_log(&self, items: Vec<usize>, position: Position) {
        let (told, attempt, node) = (self.told.clone(), self.attempt, self.coordinator.node);
        self.coordinator.store.on_durable(position, move |durable| {
            let outcome = match durable {
                Ok(()) => Said::Each(vec![None; items.len()]),
                Err(error) => Said::Failed(error.to_string()),
            };
            let _ = told.send(Event { attempt, node, items, outcome });
        });
    }

    /// The own copy again: what it counts for is the epoch it is given under.
    fn join_here(&self, items: Vec<usize>) {
        let (told, attempt, node) = (self.told.clone(), self.attempt, self.coordinator.node);
        let pass = match self.coordinator.fence.enter(self.epoch) {
            Ok(pass) => pass,
            Err(closed) => {
                let outcome = match closed {
                    Closed::Stale { epoch } => Said::Stale(epoch),
                    Closed::Behind { .. } => Said::Failed("the own fence is behind".to_owned()),
                };
                let _ = told.send(Event { attempt, node, items, outcome });
                return;
            }
        };
        let rows = items.iter().map(|index| self.items[*index].foreign(&self.tenant));
        let rows: Vec<_> = rows.collect();
        self.coordinator.store.submit_rows(
            &rows,
            Box::new(move |results| {
                let each = results.into_iter().map(|one| one.err().map(|e| e.to_string()));
                let outcome = Said::Each(each.collect());
                let _ = told.send(Event { attempt, node, items, outcome });
            }),
        );
        drop(pass);
    }

    fn take(&mut self, event: Event) {
        let is_late = event.attempt != self.attempt;
        if let Said::Stale(epoch) = event.outcome {
            if is_late {
                return;
            }
            // The items wait on: they are sent again when the layout is here.
            if epoch > self.layout.borrow().epoch() {
                self.coordinator.learn(event.node, epoch, self.options.deadline);
            }
            return self.restart_if_later();
        }
        for (at, index) in event.items.iter().enumerate() {
            let item = &mut self.items[*index];
            // An earlier attempt's word tells a decided item who needs no hint, and nothing else.
            if is_late && !item.decided {
                continue;
            }
            item.waiting.retain(|node| *node != event.node);
            let refusal = match &event.outcome {
                Said::Each(each) => each.get(at).cloned().flatten(),
                Said::Failed(why) => Some(why.clone()),
                Said::Stale(_) => None,
            };
            match refusal {
                None => item.acks.push(event.node),
                Some(why) => item.why = why,
            }
            self.decide(*index);
        }
    }

    /// R3: a later epoch makes everything collected so far void.
    fn restart_if_later(&mut self) {
        let layout = Arc::clone(&self.layout.borrow_and_update());
        if layout.epoch() <= self.epoch || self.done.is_none() {
            return;
        }
        self.epoch = layout.epoch();
        self.attempt += 1;
        let mut again = 0;
        for item in self.items.iter_mut().filter(|item| !item.decided) {
            item.acks.clear();
            item.waiting.clear();
            item.sets = Arc::new(layout.sets_of(item.partition, &self.tenant));
            again += 1;
        }
        count(&self.coordinator.counters.restarts, again);
        self.send(None);
    }

    /// Looks whether an item is done, or can never be.
    fn decide(&mut self, index: usize) {
        let item = &mut self.items[index];
        if item.decided {
            return;
        }
        let level = self.options.level;
        if lacking(&item.sets, level, |node| item.acks.contains(&node)).is_none() {
            item.decided = true;
            self.results[item.place] = Some(Ok(item.written.clone()));
            return;
        }
        let possible = |node: NodeId| item.acks.contains(&node) || item.waiting.contains(&node);
        if let Some((needed, acks)) = lacking(&item.sets, level, possible) {
            item.decided = true;
            let why = item.why.clone();
            self.results[item.place] = Some(Err(Error::TooFewAcks { acks, needed, why }));
            count(&self.coordinator.counters.unknown, 1);
        }
    }

    fn time_is_over(&mut self) {
        for item in self.items.iter_mut().filter(|item| !item.decided) {
            item.decided = true;
            let has = |node: NodeId| item.acks.contains(&node);
            let (needed, acks) = lacking(&item.sets, self.options.level, has).unwrap_or_default();
            self.results[item.place] = Some(Err(Error::WriteTimeout { acks, needed }));
            count(&self.coordinator.counters.unknown, 1);
        }
    }

    fn tell_if_decided(&mut self) {
        if self.items.iter().any(|item| !item.decided) {
            return;
        }
        let Some(done) = self.done.take() else { return };
        let lost = || Err(Error::Lost { why: "the write gave no outcome".to_owned() });
        let results = std::mem::take(&mut self.results).into_iter();
        done(results.map(|result| result.unwrap_or_else(lost)).collect());
    }

    /// Waits for the members that were asked and have not answered yet.
    async fn linger(&mut self) {
        let lingering = &self.coordinator.lingering;
        let place = lingering.fetch_add(1, Ordering::Relaxed);
        let end = self.options.deadline + LINGER;
        while place < self.coordinator.lingering_max
            && self.items.iter().any(|item| !item.waiting.is_empty())
        {
            match timeout_at(end, self.events.recv()).await {
                Ok(Some(Event { attempt, outcome: Said::Stale(_), node, items }))
                    if attempt == self.attempt =>
                {
                    for index in items {
                        self.items[index].waiting.retain(|waiting| *waiting != node);
                    }
                }
                Ok(Some(event)) => self.take(event),
                Ok(None) | Err(_) => break,
            }
        }
        self.coordinator.lingering.fetch_sub(1, Ordering::Relaxed);
    }

    /// Keeps a hint for every member that has not the row.
    fn hint(&self) {
        let Some(hints) = &self.coordinator.hints else { return };
        for item in &self.items {
            for node in item.sets.members() {
                if node != self.coordinator.node && !item.acks.contains(&node) {
                    hints.keep(node, item.row.clone());
                }
            }
        }
    }
}

impl Item {
    fn new(shipped: ShippedRow, written: Written, partition: u32, sets: Arc<Sets>) -> Self {
        let row = proto::RowState {
            tenant_id: shipped.tenant.0,
            key: shipped.key.into(),
            row: shipped.row.into(),
        };
        Self {
            place: shipped.index,
            written,
            row,
            partition,
            sets,
            acks: Vec::new(),
            waiting: Vec::new(),
            why: String::new(),
            decided: false,
        }
    }

    fn foreign(&self, tenant: &Tenant) -> (crate::store::TenantId, Bytes, Bytes) {
        (tenant.id, self.row.key.clone(), self.row.row.clone())
    }
}

/// What a peer's answer says.
fn said(answer: Result<Answers, PeerError>) -> Said {
    let refusal = |result: proto::RowResult| {
        result.failure.map(|failure| format!("{}: {}", failure.reason, failure.message))
    };
    match answer {
        Ok(Answers::Rows(results)) => Said::Each(results.into_iter().map(refusal).collect()),
        Ok(Answers::Keys(_)) => Said::Failed("a reply to something else".to_owned()),
        Err(PeerError::StaleLayout { epoch }) => Said::Stale(epoch),
        Err(error) => Said::Failed(error.to_string()),
    }
}
