//! Safe-point rounds: a floor is proven, not waited for.
//!
//! ```text
//! fence    every replica: guard := M, mints above M, takes nothing new at or below it but repairs
//! pairs    every pair of replicas compares, all leaves, and repairs what differs
//! hold     every replica: its log is synced; did repairs bring it news? then the pairs again
//! install  every replica: floor := M, unless it is not what it was when it held
//! ```
//!
//! All take part that hold rows of some tenant. The conductor is the one with the smallest id among
//! those that hold rows of every tenant, also of those with the fewest replicas: so it has whatever
//! is to be forgotten, and a round is held only where there is something. Partitions with the same
//! replicas go through it together, some at a time.
//!
//! Why it proves what it says: after the fences a replica gets a version at or below `M` from
//! repairs alone, and each of those is counted as *news* when it is taken. Say no replica got news
//! from its last count before the pairs to its install. Then what each holds live at or below `M`
//! only shrinks in that time. So a value that is live at one of them in the end was live there when
//! it was compared with any other, which held it too, for the pair was found or made equal without
//! news. So a value that one does not hold is held by none, and comes from nobody any more.
//!
//! # Invariants
//! 1. All replicas take part: one that is down, damaged or started anew voids the round, and so
//!    does a row that one of a pair did not give or take, a leaf that was not compared.
//! 2. No round runs while ownership changes or may be disputed (D3), nor without tenants; all steps
//!    are of one epoch and one version of the layout.
//! 3. What was compared is durable at all replicas before any of them installs: a floor may be used
//!    at once, and what it was proven from must not be lost by another then.
//! 4. Repairs are judged by floors, never by the guards of the round.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::compare::Scope;
use super::{AntiEntropy, Error, Summary};
use crate::causality::clock::time_of_ms;
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::proto::{self, RoundStep};
use crate::store::Participant;

/// How often the pairs are compared anew because repairs brought news.
const PASSES_MAX: usize = 4;
/// Partitions of one round at most: one that cannot be moved keeps no more than these back.
const PARTITIONS_MAX: usize = 64;

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
    /// Holds a round for every group of partitions that this node conducts and that have something
    /// to forget. Returns how many rounds failed.
    pub async fn move_safe_points(&self) -> usize {
        let Ok(layout) = self.checked_layout() else { return 1 };
        if !layout.safe_points_may_move() || layout.document().tenants.is_empty() {
            return 0;
        }
        let margin_ms = u64::try_from(self.settings.round_margin.as_millis()).unwrap_or(u64::MAX);
        let time = time_of_ms(self.store.steady_ms().saturating_sub(margin_ms));
        let (groups, mut failed) = match self.groups(&layout, time).await {
            Ok(groups) => groups,
            Err(_) => return 1,
        };
        for group in groups {
            match self.round(&layout, &group, time).await {
                Ok(()) => {
                    self.counters.rounds.fetch_add(1, Ordering::Relaxed);
                    let mut behind = self.behind.lock();
                    for partition in group.partitions.into_iter().flatten() {
                        behind.remove(&partition);
                    }
                }
                Err(error) => {
                    failed += 1;
                    self.counters.rounds_failed.fetch_add(1, Ordering::Relaxed);
                    let replicas = group.replicas.len();
                    tracing::debug!(%error, replicas, "no safe point was moved");
                }
            }
        }
        failed
    }

    /// The rounds to hold: of the partitions that this node conducts, those where `time` would let
    /// something be forgotten; and how many partitions nothing is known of yet.
    async fn groups(&self, layout: &Layout, time: u64) -> Result<(Vec<Group>, usize), Error> {
        let factors = layout.document().replication_factors();
        let least = factors.first().copied().unwrap_or(1);
        let most = factors.last().copied().unwrap_or(1);
        let mut sets: BTreeMap<Vec<NodeId>, Vec<u32>> = BTreeMap::new();
        for partition in 0..layout.partitions() {
            // Some of the others, for more replicas are the same ones and others beside them.
            let conductor = layout.sets(partition, least).current.into_iter().min();
            if conductor == Some(self.node) {
                let mut replicas = layout.sets(partition, most).current;
                replicas.sort_unstable();
                sets.entry(replicas).or_default().push(partition);
            }
        }
        let behind: BTreeSet<u32> = self.behind.lock().clone();
        let (mut groups, mut unknown) = (Vec::new(), 0);
        for (replicas, partitions) in sets {
            let (wanted, unread) = self.worth_a_round(partitions, &behind, time).await?;
            unknown += unread;
            for some in wanted.chunks(PARTITIONS_MAX) {
                groups.push(Group { replicas: replicas.clone(), partitions: ranges(some) });
            }
        }
        Ok((groups, unknown))
    }

    async fn worth_a_round(
        &self,
        partitions: Vec<u32>,
        behind: &BTreeSet<u32>,
        time: u64,
    ) -> Result<(Vec<u32>, usize), Error> {
        let trees = Arc::clone(&self.trees);
        let look = move || {
            let at = |partition: u32| (partition, trees.purgeable_at(partition));
            partitions.into_iter().map(at).collect::<Vec<_>>()
        };
        let found = self.work.run(look).await.map_err(|_| Error::Stopping)?;
        let unread = found.iter().filter(|(_, at)| !matches!(at, Ok(Some(_)))).count();
        let is_worth = |(partition, at): &(u32, _)| match at {
            Ok(Some(at)) => *at <= time || behind.contains(partition),
            _ => false,
        };
        let wanted = found.iter().filter(|one| is_worth(one)).map(|(partition, _)| *partition);
        Ok((wanted.collect(), unread))
    }

    /// One round.
    async fn round(&self, layout: &Layout, group: &Group, time: u64) -> Result<(), Error> {
        if let Some(down) = group.replicas.iter().find(|node| !self.liveness.is_up(**node))
            && self.store.keeps("all_replicas")
        {
            return Err(Error::Void { why: format!("{down} is down") });
        }
        let up = |node: &NodeId| self.liveness.is_up(*node);
        let replicas = group.replicas.iter().copied().filter(up).collect();
        let group = &Group { replicas, partitions: group.partitions.clone() };
        let ask = |step, was: Participant| proto::FenceRequest {
            partitions: to_proto(&group.partitions),
            time,
            step: RoundStep::into(step),
            incarnation: was.incarnation,
            news: was.news,
            version: layout.version(),
        };
        let nobody = Participant { incarnation: 0, news: 0 };
        let mut were = Vec::with_capacity(group.replicas.len());
        for node in &group.replicas {
            were.push(self.step_at(layout, *node, ask(RoundStep::Fence, nobody)).await?);
        }
        for _ in 0..PASSES_MAX {
            self.compare_pairs(layout, group).await?;
            let mut are = Vec::with_capacity(were.len());
            for node in &group.replicas {
                are.push(self.step_at(layout, *node, ask(RoundStep::Hold, nobody)).await?);
            }
            let restarted =
                |(was, is): (&Participant, &Participant)| was.incarnation != is.incarnation;
            if were.iter().zip(&are).any(restarted) {
                let why = "a replica was started anew, or lost data".to_owned();
                return Err(Error::Void { why });
            }
            if were == are {
                return self.install(layout, group, |was| ask(RoundStep::Install, was), are).await;
            }
            were = are;
        }
        Err(Error::Void { why: format!("news came in {PASSES_MAX} passes") })
    }

    /// Installs at every replica, also where another one does not: what was proven holds at each.
    async fn install(
        &self,
        layout: &Layout,
        group: &Group,
        ask: impl Fn(Participant) -> proto::FenceRequest,
        were: Vec<Participant>,
    ) -> Result<(), Error> {
        let mut failed = None;
        for (node, was) in group.replicas.iter().zip(were) {
            if let Err(error) = self.step_at(layout, *node, ask(was)).await {
                failed = failed.or(Some(error));
            }
        }
        let Some(error) = failed else { return Ok(()) };
        let mut behind = self.behind.lock();
        behind.extend(group.partitions.iter().flat_map(Clone::clone));
        Err(error)
    }

    /// One step at one replica; this node goes the same way as the others.
    async fn step_at(
        &self,
        layout: &Layout,
        node: NodeId,
        request: proto::FenceRequest,
    ) -> Result<Participant, Error> {
        let epoch = layout.epoch();
        let reply = if node == self.node {
            self.answer_fence(epoch, request).await?
        } else {
            let (body, timeout) = (Request::Fence(request), self.settings.timeout);
            match self.peers.call(node, Class::Background, epoch, body, timeout).await? {
                Reply::Fence(reply) => reply,
                _ => return Err(PeerError::unexpected().into()),
            }
        };
        Ok(Participant { incarnation: reply.incarnation, news: reply.news })
    }

    /// Has every pair compared, whole.
    async fn compare_pairs(&self, layout: &Layout, group: &Group) -> Result<(), Error> {
        for (index, one) in group.replicas.iter().enumerate() {
            for other in &group.replicas[index + 1..] {
                let summary = self.compare_pair(layout, *one, *other, group).await?;
                if !summary.is_whole() {
                    let Summary { refused, left, .. } = summary;
                    let why = format!("{one} and {other}: {refused} rows refused, {left} left");
                    return Err(Error::Void { why });
                }
            }
        }
        Ok(())
    }

    async fn compare_pair(
        &self,
        layout: &Layout,
        one: NodeId,
        other: NodeId,
        group: &Group,
    ) -> Result<Summary, Error> {
        if one == self.node {
            return self.compare_with(other, &Scope::of(group.partitions.clone())).await;
        }
        let body = Request::Compare(proto::CompareRequest {
            with: other.to_bytes().to_vec().into(),
            partitions: to_proto(&group.partitions),
        });
        // It waits for settling rows, reads leaves, and asks in its turn.
        let timeout = self.settings.timeout * 6 + self.settings.settle;
        let call = self.peers.call(one, Class::Background, layout.epoch(), body, timeout);
        let Reply::Compare(reply) = call.await? else {
            return Err(PeerError::unexpected().into());
        };
        let proto::CompareReply { rows, refused, left } = reply;
        // Of a scope that leaves nothing for later.
        Ok(Summary { partitions: 0, rows, refused, left, later: 0 })
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
