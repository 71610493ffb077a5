//! Who coordinates each write of a batch, and the batch put together again.
//!
//! A batch falls apart into groups: what this node coordinates, what it forwards to each other
//! replica, what is refused. The groups go their ways at the same time; the caller gets the
//! outcomes in the order of the batch when the last group is done.
//!
//! 1. What this node coordinates lies in its log before [`Coordinator::submit`] returns, or before
//!    what it returns has ended, unless the fence held it up: writes of one caller keep their
//!    order.
//! 2. Writes that must know more than this node does are made once it has learnt it (`learn`).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::flight::Flight;
use super::learn::to_learn;
use super::{Coordinator, Layout, Level, Sets, count, lacking};
use crate::cluster::NodeId;
use crate::replication::error::{Error, Result};
use crate::replication::fence::Closed;
use crate::replication::settled;
use crate::store::{self, Early, Mutation, Prepared, Tenant, Written};

/// How a batch is written.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// Replicas that must have it.
    pub level: Level,
    /// When the caller is told, at the latest.
    pub deadline: Instant,
}

/// What is called with the outcomes, in the order of the batch.
pub type WriteDone = Box<dyn FnOnce(Vec<Result<Written>>) + Send>;

/// Where a group of a batch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Here,
    To(NodeId),
}

/// Writes of a batch with their places in it.
#[derive(Default)]
struct Group {
    places: Vec<usize>,
    mutations: Vec<Mutation>,
}

/// Replica sets by partition, so that a batch looks each up once.
pub(super) type SetsOf = BTreeMap<u32, Arc<Sets>>;

impl Coordinator {
    /// Writes a batch. `done` is called once, on any task or thread, and must not block.
    ///
    /// `Some` if other replicas are asked first: whoever submits operations that must keep their
    /// order waits for it before the next one. The batch does not depend on that.
    pub fn submit(
        self: &Arc<Self>,
        tenant: &str,
        batch: Vec<Mutation>,
        options: WriteOptions,
        done: WriteDone,
    ) -> Option<JoinHandle<()>> {
        let layout = self.layout();
        if self.is_solo(&layout)
            && let Ok(_pass) = self.fence.enter(layout.epoch())
        {
            let told = Box::new(move |results: Vec<store::Result<Written>>| {
                done(results.into_iter().map(|result| result.map_err(Error::from)).collect());
            });
            self.store.submit(tenant, batch, told);
            return None;
        }
        let tenant = match self.store.tenant(tenant) {
            Ok(tenant) => tenant,
            Err(error) => {
                done(refused(batch.len(), &error.into()));
                return None;
            }
        };
        if !batch.iter().any(|mutation| to_learn(&tenant, mutation, options.level).is_some()) {
            self.place(&layout, &tenant, batch, BTreeMap::new(), options, done);
            return None;
        }
        let this = Arc::clone(self);
        Some(tokio::spawn(async move {
            let failed = this.learn_first(&layout, &tenant, &batch, options).await;
            // Under the same layout: who came to hold a row meanwhile has not asked.
            this.place(&layout, &tenant, batch, failed, options, done);
        }))
    }

    /// Writes a batch and waits for the outcomes, in its order.
    pub async fn write(
        self: &Arc<Self>,
        tenant: &str,
        batch: Vec<Mutation>,
        options: WriteOptions,
    ) -> Vec<Result<Written>> {
        let items = batch.len();
        let (done, outcomes) = oneshot::channel();
        let done = Box::new(move |results| {
            // The caller may be gone; the writes go on.
            let _ = done.send(results);
        });
        self.submit(tenant, batch, options, done);
        let lost = || Error::Lost { why: "the node is stopping".to_owned() };
        outcomes.await.unwrap_or_else(|_| refused(items, &lost()))
    }

    /// Writes a batch that another node forwarded: what this node does not hold is not passed on.
    pub(crate) fn submit_forwarded(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        batch: Vec<Mutation>,
        options: WriteOptions,
        done: WriteDone,
    ) -> Result<(), ()> {
        let layout = self.layout();
        let is_here =
            |mutation: &Mutation| self.sets(&layout, tenant, &mutation.key).1.contains(self.node);
        if self.is_leaving(&layout) || !batch.iter().all(is_here) {
            return Err(());
        }
        self.submit(&tenant.name, batch, options, done);
        Ok(())
    }

    /// Sends every write of the batch on its way, but those that `failed` already.
    fn place(
        self: &Arc<Self>,
        layout: &Arc<Layout>,
        tenant: &Arc<Tenant>,
        batch: Vec<Mutation>,
        failed: BTreeMap<usize, Error>,
        options: WriteOptions,
        done: WriteDone,
    ) {
        let mut sets_of = SetsOf::new();
        let mut groups: BTreeMap<Way, Group> = BTreeMap::new();
        let items = batch.len();
        let mut failed = failed;
        for (place, mutation) in batch.into_iter().enumerate() {
            if failed.contains_key(&place) {
                continue;
            }
            match self.way(layout, tenant, &mutation.key, options.level, &mut sets_of) {
                Ok(way) => {
                    let group = groups.entry(way).or_default();
                    group.places.push(place);
                    group.mutations.push(mutation);
                }
                Err(error) => {
                    failed.insert(place, error);
                }
            }
        }
        let gather = Gather::new(items, groups.len(), failed, done);
        for (way, Group { places, mutations }) in groups {
            let gather = Arc::clone(&gather);
            let done: WriteDone = Box::new(move |results| gather.take(&places, results));
            match way {
                Way::Here => self.begin(layout, tenant, mutations, &sets_of, options, done),
                Way::To(_) => self.forward(tenant, mutations, options, done),
            }
        }
    }

    /// Where the write of a key goes.
    fn way(
        &self,
        layout: &Layout,
        tenant: &Tenant,
        key: &[u8],
        level: Level,
        sets_of: &mut SetsOf,
    ) -> Result<Way> {
        let partition = layout.partition_of(tenant.token(key));
        let sets =
            sets_of.entry(partition).or_insert_with(|| Arc::new(layout.sets_of(partition, tenant)));
        self.check_reachable(sets, level)?;
        if sets.contains(self.node) && !self.is_leaving(layout) {
            return Ok(Way::Here);
        }
        let members = sets.members();
        // Which of them is decided when it is sent; here it only keeps equal ways together.
        let mut others = members.into_iter().filter(|node| *node != self.node);
        let first = others.find(|node| self.is_up(*node));
        let none = Error::Unavailable { needed: 1, reachable: 0 };
        first.map(Way::To).ok_or(none)
    }

    /// Refuses what too few replicas are up for.
    pub(super) fn check_reachable(&self, sets: &Sets, level: Level) -> Result<()> {
        match lacking(sets, level, |node| self.is_up(node)) {
            Some((needed, reachable)) => {
                count(&self.counters.unavailable, 1);
                Err(Error::Unavailable { needed, reachable })
            }
            None => Ok(()),
        }
    }

    /// Puts what this node coordinates into its log and sends it on.
    fn begin(
        self: &Arc<Self>,
        layout: &Arc<Layout>,
        tenant: &Arc<Tenant>,
        mutations: Vec<Mutation>,
        sets_of: &SetsOf,
        options: WriteOptions,
        done: WriteDone,
    ) {
        let epoch = layout.epoch();
        let prepared = match self.fence.enter(epoch) {
            Ok(_pass) => self.store.prepare(&tenant.name, &mutations),
            Err(closed) => {
                let later = match closed {
                    Closed::Stale { epoch } => epoch.saturating_sub(1),
                    Closed::Behind { .. } => epoch,
                };
                return self.again(tenant, mutations, later, options, done);
            }
        };
        if prepared.tells_of_rows() {
            return self.begin_later(layout, tenant, prepared, sets_of.clone(), options, done);
        }
        let flight = Flight::begin(self, layout, tenant, prepared, sets_of, options, done);
        self.flights.spawn(flight.run());
    }

    /// Sends a batch on when the own log is durable: it refuses a write for what another one has
    /// left in memory.
    fn begin_later(
        self: &Arc<Self>,
        layout: &Arc<Layout>,
        tenant: &Arc<Tenant>,
        prepared: Prepared,
        sets_of: SetsOf,
        options: WriteOptions,
        done: WriteDone,
    ) {
        let (this, layout, tenant) = (Arc::clone(self), Arc::clone(layout), Arc::clone(tenant));
        self.flights.spawn(async move {
            let early = Early { found: (), upto: prepared.position };
            let durable = settled(&this.store, early).await;
            let prepared = prepared.settled(durable);
            Flight::begin(&this, &layout, &tenant, prepared, &sets_of, options, done).run().await;
        });
    }

    /// Submits a batch of which nothing was done once the layout is later than `epoch`.
    fn again(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        mutations: Vec<Mutation>,
        epoch: u64,
        options: WriteOptions,
        done: WriteDone,
    ) {
        let (this, tenant) = (Arc::clone(self), Arc::clone(tenant));
        tokio::spawn(async move {
            if this.wait_for_layout(epoch, None, options.deadline).await {
                this.submit(&tenant.name, mutations, options, done);
            } else {
                done(refused(mutations.len(), &Error::LayoutUnknown));
            }
        });
    }
}

/// The same answer for each item.
pub(super) fn refused(items: usize, error: &Error) -> Vec<Result<Written>> {
    vec![Err(error.clone()); items]
}

/// The outcomes of a batch while its groups are under way.
struct Gather(Mutex<Gathered>);

struct Gathered {
    results: Vec<Option<Result<Written>>>,
    groups: usize,
    done: Option<WriteDone>,
}

impl Gather {
    fn new(
        items: usize,
        groups: usize,
        failed: BTreeMap<usize, Error>,
        done: WriteDone,
    ) -> Arc<Self> {
        let mut results: Vec<Option<Result<Written>>> = Vec::new();
        results.resize_with(items, || None);
        for (place, error) in failed {
            results[place] = Some(Err(error));
        }
        let gather = Self(Mutex::new(Gathered { results, groups, done: Some(done) }));
        gather.tell_if_done();
        Arc::new(gather)
    }

    /// A group is done.
    fn take(&self, places: &[usize], results: Vec<Result<Written>>) {
        let mut gathered = self.0.lock();
        for (place, result) in places.iter().zip(results) {
            gathered.results[*place] = Some(result);
        }
        gathered.groups -= 1;
        drop(gathered);
        self.tell_if_done();
    }

    fn tell_if_done(&self) {
        let mut gathered = self.0.lock();
        if gathered.groups > 0 {
            return;
        }
        let Some(done) = gathered.done.take() else { return };
        let results = std::mem::take(&mut gathered.results);
        drop(gathered);
        let lost = || Err(Error::Lost { why: "a group of the batch gave no outcome".to_owned() });
        done(results.into_iter().map(|result| result.unwrap_or_else(lost)).collect());
    }
}
