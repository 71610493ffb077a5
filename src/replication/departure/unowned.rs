//! Which rows a node may hold that it does not own.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::store::tenant::Tenant;
use crate::store::{EngineKey, TenantId, TokenRange};

/// What a node does not own under a Stable layout.
#[derive(Clone, Debug)]
pub struct Unowned {
    layout: Arc<Layout>,
    /// The node's place in each partition.
    ranks: Vec<Option<u8>>,
    factors: BTreeMap<TenantId, u8>,
    /// Where there may be rows that it does not own.
    some: Vec<RangeInclusive<u32>>,
    /// Where it owns nothing.
    all: Vec<RangeInclusive<u32>>,
    /// Where there may be both.
    in_part: Vec<RangeInclusive<u32>>,
}

impl Unowned {
    /// What `node` does not own. REQUIRES: a Stable layout.
    pub fn of(layout: &Arc<Layout>, node: NodeId) -> Self {
        let ranks = layout.ranks(node);
        let tenants = layout.document().tenants.values();
        let factors: BTreeMap<TenantId, u8> =
            tenants.map(|tenant| (tenant.id, tenant.replication_factor)).collect();
        let least = factors.values().min().copied().unwrap_or(u8::MAX);
        let most = factors.values().max().copied().unwrap_or(u8::MAX);
        let (some, all) = (runs_beyond(&ranks, least), runs_beyond(&ranks, most));
        let is_in_part = |rank| is_beyond(rank, least) && !is_beyond(rank, most);
        let in_part = runs(ranks.iter().map(is_in_part));
        Self { layout: Arc::clone(layout), some, all, in_part, ranks, factors }
    }

    /// Whether a row is not the node's. Of a tenant that is not known nothing can be said.
    pub fn has(&self, key: &EngineKey<'_>) -> bool {
        self.factor_of(key).is_some()
    }

    /// How many replicas a row has that is not the node's.
    pub fn factor_of(&self, key: &EngineKey<'_>) -> Option<u8> {
        let rank = self.ranks[self.layout.partition_of(key.token) as usize];
        let factor = self.factors.get(&key.tenant).copied();
        factor.filter(|factor| is_beyond(&rank, *factor))
    }

    /// Where such rows may be.
    pub fn ranges(&self) -> Vec<TokenRange> {
        self.tokens_of(&self.some)
    }

    /// Of those, where there is nothing else as long as [`Unowned::knows`] says yes, and the rest.
    pub fn ranges_by_extent(&self) -> (Vec<TokenRange>, Vec<TokenRange>) {
        (self.tokens_of(&self.all), self.tokens_of(&self.in_part))
    }

    /// Whether it was made with all of these tenants. One that came since, under the same epoch,
    /// may have more replicas than any before, and this node rows of it where it owned none.
    pub fn knows(&self, tenants: &[Arc<Tenant>]) -> bool {
        tenants.iter().all(|tenant| self.factors.contains_key(&tenant.id))
    }

    fn tokens_of(&self, runs: &[RangeInclusive<u32>]) -> Vec<TokenRange> {
        let range = |partitions| {
            let (start, end_inclusive) = self.layout.tokens_of(partitions);
            TokenRange { start, end_inclusive }
        };
        runs.iter().map(range).collect()
    }

    /// How many partitions there are where such rows may be.
    pub fn partitions(&self) -> u64 {
        self.some.iter().map(|range| u64::from(range.end() - range.start()) + 1).sum()
    }

    /// Each of them.
    pub fn each(&self) -> impl Iterator<Item = u32> {
        self.some.iter().cloned().flatten()
    }

    /// Partitions in which the node owns no row of any tenant, those among `tenants` included that
    /// came since.
    pub fn wholly(&self, tenants: &[Arc<Tenant>]) -> Vec<RangeInclusive<u32>> {
        let came = tenants.iter().filter(|tenant| !self.factors.contains_key(&tenant.id));
        let factors = came.map(|tenant| tenant.replication_factor);
        let most = factors.chain(self.factors.values().copied()).max().unwrap_or(u8::MAX);
        runs_beyond(&self.ranks, most)
    }
}

/// Whether one of this place is not among so many replicas.
fn is_beyond(rank: &Option<u8>, factor: u8) -> bool {
    rank.is_none_or(|rank| rank >= factor)
}

/// The partitions in which one of these places is not among so many replicas.
fn runs_beyond(ranks: &[Option<u8>], factor: u8) -> Vec<RangeInclusive<u32>> {
    runs(ranks.iter().map(|rank| is_beyond(rank, factor)))
}

/// The places of the true ones, neighbours together.
fn runs(flags: impl Iterator<Item = bool>) -> Vec<RangeInclusive<u32>> {
    let mut runs: Vec<RangeInclusive<u32>> = Vec::new();
    for (at, _) in (0..).zip(flags).filter(|(_, flag)| *flag) {
        match runs.last_mut() {
            Some(run) if *run.end() + 1 == at => *run = *run.start()..=at,
            _ => runs.push(at..=at),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let flags = [true, true, false, true, false];
        assert_eq!(runs(flags.into_iter()), [0..=1, 3..=3]);
        assert_eq!(runs(std::iter::empty()), []);
    }
}
