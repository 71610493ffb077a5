//! Safe-point rounds: a floor is proven, not waited for.
//!
//! ```text
//! fence    every replica: guard := M, mints above M, takes nothing new at or below it
//! pairs    every pair of replicas compares, leaf by leaf, and repairs, until nothing differs
//! install  every replica: floor := M, unless it was started anew since its fence
//! ```
//!
//! The conductor is the replica with the smallest id. Partitions with the same replicas go through
//! a round together. Why it is safe, and what breaks without each part, is argued and tested in
//! `tests` and in the model this was ported from: a version at or below `M` that is not live at one
//! of the replicas after its pair was equal is dead, for nobody takes one any more.
//!
//! # Invariants
//! 1. All replicas take part: one that is down, damaged or started anew voids the round.
//! 2. No round runs while ownership changes or may be disputed.
//! 3. What was compared is durable at a replica before its floor vouches for it: installing syncs
//!    the log first.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use super::compare::Scope;
use super::{AntiEntropy, Error};
use crate::causality::clock::time_of_ms;
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::proto;

/// How often a pair is compared anew because something still differed.
const COMPARES_MAX: usize = 3;

/// Partitions with the same replicas.
struct Group {
    replicas: Vec<NodeId>,
    partitions: Vec<RangeInclusive<u32>>,
}

/// Neighbours in one range.
fn ranges(partitions: &[u32]) -> Vec<RangeInclusive<u32>> {
    let mut ranges: Vec<RangeInclusive<u32>> = Vec::new();
    for partition in partitions {
        match ranges.last_mut() {
            Some(range) if *range.end() + 1 == *partition => *range = *range.start()..=*partition,
            _ => ranges.push(*partition..=*partition),
        }
    }
    ranges
}

/// As messages carry them.
pub(super) fn to_proto(ranges: &[RangeInclusive<u32>]) -> Vec<proto::PartitionRange> {
    ranges
        .iter()
        .map(|range| proto::PartitionRange { first: *range.start(), last: *range.end() })
        .collect()
}

impl AntiEntropy {
    /// Holds a round for every group of partitions this node conducts.
    pub(super) async fn move_safe_points(&self) {
        let layout = self.layout();
        if !layout.safe_points_may_move() {
            return;
        }
        for group in self.groups(&layout) {
            if !group.replicas.iter().all(|node| self.liveness.is_up(*node)) {
                continue;
            }
            let replicas = group.replicas.len();
            match self.round(&layout, &group).await {
                Ok(()) => {
                    self.counters.rounds.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => tracing::debug!(%error, replicas, "no safe point was moved"),
            }
        }
    }

    /// The groups whose first replica by id is this node.
    fn groups(&self, layout: &Layout) -> Vec<Group> {
        let factor = layout.document().replication_factors().into_iter().max().unwrap_or(1);
        let mut groups: BTreeMap<Vec<NodeId>, Vec<u32>> = BTreeMap::new();
        for partition in 0..layout.partitions() {
            let mut replicas = layout.sets(partition, factor).current;
            replicas.sort_unstable();
            if replicas.first() == Some(&self.node) {
                groups.entry(replicas).or_default().push(partition);
            }
        }
        groups
            .into_iter()
            .map(|(replicas, partitions)| Group { replicas, partitions: ranges(&partitions) })
            .collect()
    }

    async fn round(&self, layout: &Layout, group: &Group) -> Result<(), Error> {
        let margin_ms = u64::try_from(self.settings.round_margin.as_millis()).unwrap_or(u64::MAX);
        let time = time_of_ms(self.store.now_ms().saturating_sub(margin_ms));
        let fence = |install| proto::FenceRequest {
            partitions: to_proto(&group.partitions),
            time,
            install,
        };
        let mut incarnations = Vec::with_capacity(group.replicas.len());
        for node in &group.replicas {
            incarnations.push(self.fence_at(layout, *node, fence(0)).await?);
        }
        for (index, one) in group.replicas.iter().enumerate() {
            for other in &group.replicas[index + 1..] {
                self.make_equal(layout, *one, *other, group).await?;
            }
        }
        if self.layout().epoch() != layout.epoch() {
            return Err(PeerError::StaleLayout { epoch: self.layout().epoch() }.into());
        }
        for (node, incarnation) in group.replicas.iter().zip(incarnations) {
            self.fence_at(layout, *node, fence(incarnation)).await?;
        }
        Ok(())
    }

    /// Fences, or installs, at one replica; this node goes the same way as the others.
    async fn fence_at(
        &self,
        layout: &Layout,
        node: NodeId,
        request: proto::FenceRequest,
    ) -> Result<u64, Error> {
        if node == self.node {
            return Ok(self.answer_fence(request).await?.incarnation);
        }
        let body = Request::Fence(request);
        let timeout = self.settings.timeout;
        let call = self.peers.call(node, Class::Background, layout.epoch(), body, timeout);
        match call.await? {
            Reply::Fence(reply) => Ok(reply.incarnation),
            _ => Err(PeerError::NoAnswer { why: format!("{node} answered something else") }.into()),
        }
    }

    /// Has a pair compared until nothing differs.
    async fn make_equal(
        &self,
        layout: &Layout,
        one: NodeId,
        other: NodeId,
        group: &Group,
    ) -> Result<(), Error> {
        if one == self.node {
            return self.compare_until_equal(other, Scope::of(group.partitions.clone())).await;
        }
        let body = Request::Compare(proto::CompareRequest {
            with: other.to_bytes().to_vec().into(),
            partitions: to_proto(&group.partitions),
        });
        // It waits for settling rows, and reads leaves.
        let timeout = self.settings.timeout * 4 + self.settings.settle * COMPARES_MAX as u32;
        self.peers.call(one, Class::Background, layout.epoch(), body, timeout).await?;
        Ok(())
    }

    /// Compares with a node until no leaf is left over; then every row was equal on both at some
    /// moment since this began.
    pub(super) async fn compare_until_equal(
        &self,
        peer: NodeId,
        scope: Scope,
    ) -> Result<(), Error> {
        let refused = self.counters.refused.load(Ordering::Relaxed);
        for _ in 0..COMPARES_MAX {
            let summary = self.compare_with(peer, scope.clone()).await?;
            if summary.leaves_left == 0 {
                break;
            }
        }
        let summary = self.compare_with(peer, scope).await?;
        if summary.leaves_left > 0 || self.counters.refused.load(Ordering::Relaxed) != refused {
            let why = format!("{peer} and this node hold different rows still");
            return Err(PeerError::NoAnswer { why }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_go_into_one_range() {
        assert_eq!(ranges(&[]), []);
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), [0..=2, 5..=5, 7..=8]);
    }
}
