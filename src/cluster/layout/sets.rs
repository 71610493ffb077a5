//! A document made ready for look-ups: which nodes hold a partition, who must sync what from whom.
//!
//! A [`Layout`] is immutable and shared. Its rank tables are built once for each set of owners: a
//! layout made from its predecessor takes over what did not change.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::cluster::NodeId;
use crate::cluster::placement::RankTable;
use crate::store::tenant::REPLICATION_FACTOR_MAX;
use crate::store::{Tenant, TenantId};

use super::rules::{self, SourcesNeeded};
use super::{Document, MemberState, Owners};

/// A document and its rank tables.
#[derive(Clone, Debug)]
pub struct Layout {
    document: Arc<Document>,
    current: Arc<RankTable>,
    next: Option<Arc<RankTable>>,
}

/// The replicas of a partition at one replication factor, in the order of their ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sets {
    /// S.
    pub current: Vec<NodeId>,
    /// S', during a transition. It may be equal to S.
    pub next: Option<Vec<NodeId>>,
}

/// What a node must merge of one partition, for the tenants of one replication factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToSync {
    /// The partition.
    pub partition: u32,
    /// The replication factor of the tenants it is about, and what it becomes.
    pub factors: (u8, u8),
    /// From whom.
    pub sources: SourcesNeeded,
}

impl Sets {
    /// S and S' together, each node once: those in both first, for two of them count twice.
    pub fn members(&self) -> Vec<NodeId> {
        let Some(next) = &self.next else { return self.current.clone() };
        let (mut members, old): (Vec<_>, Vec<_>) =
            self.current.iter().partition(|node| next.contains(node));
        members.extend(old);
        members.extend(next.iter().filter(|node| !self.current.contains(node)));
        members
    }

    /// Whether a node is in S or S'.
    pub fn contains(&self, node: NodeId) -> bool {
        self.each().any(|set| set.contains(&node))
    }

    /// S, and S' if there is one: what is demanded is demanded of each.
    pub fn each(&self) -> impl Iterator<Item = &[NodeId]> {
        [Some(&self.current), self.next.as_ref()].into_iter().flatten().map(Vec::as_slice)
    }
}

impl Layout {
    /// Ranks all partitions: about a millisecond for ten owners and 1,024 partitions.
    pub fn new(document: Arc<Document>) -> Self {
        Self::build(document, |_| None)
    }

    /// As [`Layout::new`], with the tables of `self` where they still hold.
    pub fn succeeded_by(&self, document: Arc<Document>) -> Self {
        let bits = self.document.partition_bits == document.partition_bits;
        Self::build(document, |owners| match &self.next {
            _ if !bits => None,
            _ if *owners == self.document.owners => Some(Arc::clone(&self.current)),
            Some(next) if Some(owners) == self.document.next_owners.as_ref() => {
                Some(Arc::clone(next))
            }
            _ => None,
        })
    }

    fn build(document: Arc<Document>, known: impl Fn(&Owners) -> Option<Arc<RankTable>>) -> Self {
        let table = |owners: &Owners| {
            let build = || Arc::new(RankTable::new(document.partition_bits, owners));
            known(owners).unwrap_or_else(build)
        };
        let current = table(&document.owners);
        let next = document.next_owners.as_ref().map(table);
        Self { document, current, next }
    }

    /// The document.
    pub fn document(&self) -> &Arc<Document> {
        &self.document
    }

    /// The stamp of messages sent under this layout.
    pub fn epoch(&self) -> u64 {
        self.document.epoch
    }

    /// Grows with every change, also of what is no matter of ownership.
    pub fn version(&self) -> u64 {
        self.document.version
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u32 {
        1 << self.document.partition_bits
    }

    /// The partition a token lies in: its top bits.
    pub fn partition_of(&self, token: u64) -> u32 {
        let shift = u64::BITS - self.document.partition_bits;
        token.checked_shr(shift).unwrap_or(0) as u32
    }

    /// The replicas of a partition. As many as `replication_factor`, or as there are owners.
    pub fn sets(&self, partition: u32, replication_factor: u8) -> Sets {
        self.sets_at(partition, (replication_factor, replication_factor))
    }

    /// The replicas of a tenant's rows in a partition. How many they are stands in the document:
    /// who asks by the tenant's own word may mean another one's.
    pub fn sets_of(&self, partition: u32, tenant: &Tenant) -> Sets {
        self.sets_at(partition, self.document.factors_of(tenant))
    }

    fn sets_at(&self, partition: u32, (factor, next): (u8, u8)) -> Sets {
        let set = |table: &Arc<RankTable>, factor| table.replicas(partition, factor).collect();
        Sets {
            current: set(&self.current, factor),
            next: self.next.as_ref().map(|table| set(table, next)),
        }
    }

    /// The place of a node among all that may hold each partition, best first: it holds those of
    /// tenants with more replicas than that. `None`: it holds nothing of it. By the current owners.
    pub fn ranks(&self, node: NodeId) -> Vec<Option<u8>> {
        let rank = |partition| {
            let mut replicas = self.current.replicas(partition, REPLICATION_FACTOR_MAX);
            replicas.position(|replica| replica == node).map(|rank| rank as u8)
        };
        (0..self.partitions()).map(rank).collect()
    }

    /// Partitions of which a node will own rows of some tenant that it does not own now.
    pub fn newly_owned(&self, node: NodeId) -> Vec<u32> {
        let classes = self.document.factor_classes();
        let is_new = |class: &(u8, u8), partition| {
            let Sets { current, next } = self.sets_at(partition, *class);
            !current.contains(&node) && next.is_some_and(|next| next.contains(&node))
        };
        let new = |partition: &u32| classes.iter().any(|class| is_new(class, *partition));
        (0..self.partitions()).filter(new).collect()
    }

    /// Whether a node will own rows of a partition because their tenants get more replicas: with
    /// the numbers as they are it would not.
    pub fn grows_into(&self, node: NodeId, partition: u32) -> bool {
        self.document.factor_classes().into_iter().any(|(factor, next)| {
            !self.sets(partition, factor).contains(node)
                && self.sets_at(partition, (factor, next)).contains(node)
        })
    }

    /// The tokens of neighbouring partitions: the first and the last.
    pub fn tokens_of(&self, partitions: &RangeInclusive<u32>) -> (u64, u64) {
        let shift = u64::BITS - self.document.partition_bits;
        let first = |partition: u32| u64::from(partition).checked_shl(shift).unwrap_or(0);
        let within = u64::MAX.checked_shr(self.document.partition_bits).unwrap_or(0);
        (first(*partitions.start()), first(*partitions.end()) | within)
    }

    /// Whether the transition waits for this node to have merged what it will own (T2).
    pub fn must_sync(&self, node: NodeId) -> bool {
        self.document.is_joint() && self.document.syncers.contains(&node)
    }

    /// From whom a node that must sync a partition learns its rows (T4). Nothing is needed when no
    /// transition is under way.
    pub fn sources_needed(&self, partition: u32, factors: (u8, u8)) -> SourcesNeeded {
        let Sets { current: of, next } = self.sets_at(partition, factors);
        if next.is_none() {
            return SourcesNeeded { of, count: 0, leaving: Vec::new() };
        }
        let leaves = |node: &NodeId| {
            let member = self.document.members.get(node);
            member.is_some_and(|member| member.state == MemberState::Leaving)
        };
        match self.document.survivors(&of) {
            Some(survivors) => SourcesNeeded { count: survivors.len(), leaving: survivors, of },
            None => {
                let leaving = of.iter().filter(|node| leaves(node)).copied().collect();
                SourcesNeeded { count: rules::blocking(of.len()), leaving, of }
            }
        }
    }

    /// All a node must merge before it may propose that it is synced (T2, T4), by partition, then
    /// replication factor.
    pub fn to_sync(&self, node: NodeId) -> Vec<ToSync> {
        if !self.must_sync(node) {
            return Vec::new();
        }
        let classes = self.document.factor_classes();
        (0..self.partitions())
            .flat_map(|partition| classes.iter().map(move |class| (partition, *class)))
            .filter(|(partition, class)| {
                let Sets { current, next } = self.sets_at(*partition, *class);
                rules::who_syncs(&current, &next.unwrap_or_default()).contains(&node)
            })
            .map(|(partition, factors)| ToSync {
                partition,
                factors,
                sources: self.sources_needed(partition, factors),
            })
            .collect()
    }

    /// Whether `source` is one from whom `node` merges a tenant's rows of a partition (T2). Of the
    /// rows of a tenant that the document does not name nothing is merged: it was created in this
    /// transition, and all its writes go to both sets.
    pub fn is_merged(
        &self,
        partition: u32,
        tenant: TenantId,
        source: NodeId,
        node: NodeId,
    ) -> bool {
        let Some(tenant) = self.document.tenants.get(&tenant) else { return false };
        let Sets { current, next } = self.sets_of(partition, tenant);
        let syncs = |next: Vec<NodeId>| rules::who_syncs(&current, &next).contains(&node);
        current.contains(&source) && next.is_some_and(syncs)
    }

    /// Whether a tenant's rows of a partition go from `node` to `owner` (D1): under a Stable layout
    /// the one does not own them, the other does. Of the rows of a tenant that the document does
    /// not name nothing can be said.
    pub fn is_given(&self, partition: u32, tenant: TenantId, owner: NodeId, node: NodeId) -> bool {
        let Some(tenant) = self.document.tenants.get(&tenant) else { return false };
        let Sets { current, next } = self.sets_of(partition, tenant);
        next.is_none() && current.contains(&owner) && !current.contains(&node)
    }

    /// Whether safe points may move (D3): no transition is under way and nobody may still hold rows
    /// that it does not own, which would come back to where their deletes were forgotten.
    pub fn safe_points_may_move(&self) -> bool {
        !self.document.is_joint() && self.document.departed.is_empty()
    }
}
