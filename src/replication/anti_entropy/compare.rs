//! One node's partitions beside another's.
//!
//! ```text
//! roots of all shared partitions    1,024 hashes a request, each under the higher floor
//! leaves of those that differ       wait `settle`, then only what differs still
//! keys of leaves that differ        merged page by page
//! rows that differ                  see `repair`
//! ```

use std::cmp::Ordering::{Greater, Less};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{AntiEntropy, Error, Summary};
use crate::cluster::NodeId;
use crate::cluster::layout::{Layout, Sets};
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::proto;
use crate::replication::tree::{KeyDigests, LeafPage, leaves_of};

/// Partitions whose roots are asked for at once.
const ROOTS_MAX: usize = 1024;
/// Keys of a page of a leaf.
pub(super) const KEYS_MAX: usize = 4096;
/// Bytes of a page of a leaf, before its last key.
pub(super) const KEYS_BYTES_MAX: usize = 1 << 20;
/// Rows that are fetched at once.
const ROWS_MAX: usize = 64;

/// Which partitions are compared.
#[derive(Clone, Debug)]
pub struct Scope {
    partitions: Vec<RangeInclusive<u32>>,
    /// Leaves that are repaired at most; the rest is left.
    leaves_max: usize,
}

/// Two replicas of a partition, for the tenants of so many replicas.
#[derive(Clone, Copy)]
pub(super) struct Pair<'l> {
    pub layout: &'l Layout,
    pub peer: NodeId,
    pub replicas: u8,
    /// What digests are taken under.
    pub floor: u64,
    /// The partition of this node has lost data: its floor counts as 0.
    pub is_damaged: bool,
    /// So may the peer have: it is asked all the same, and given nothing.
    pub from_damaged: bool,
}

impl Scope {
    /// All of them, as far as `leaves_max` reaches.
    pub fn all(layout: &Layout, leaves_max: usize) -> Self {
        Self { partitions: vec![0..=layout.partitions() - 1], leaves_max }
    }

    /// These, whole.
    pub fn of(partitions: Vec<RangeInclusive<u32>>) -> Self {
        Self { partitions, leaves_max: usize::MAX }
    }

    fn partitions(&self) -> impl Iterator<Item = u32> {
        self.partitions.iter().flat_map(Clone::clone)
    }
}

impl AntiEntropy {
    /// Makes what both nodes hold equal, as far as the scope reaches.
    pub(super) async fn compare(&self, peer: NodeId, scope: &Scope) -> Result<Summary, Error> {
        let layout = self.checked_layout()?;
        let mut summary = Summary::default();
        for replicas in layout.document().replication_factors() {
            let shared: Vec<u32> = self.shared(&layout, peer, replicas, scope).collect();
            summary.partitions = summary.partitions.max(shared.len() as u32);
            let pair = Pair {
                layout: &layout,
                peer,
                replicas,
                floor: 0,
                is_damaged: false,
                from_damaged: false,
            };
            let mut leaves = Vec::new();
            for some in shared.chunks(ROOTS_MAX) {
                for (partition, floor) in
                    self.differing_partitions(pair, some, &mut summary).await?
                {
                    let pair = Pair { floor, ..pair };
                    leaves.extend(self.differing_leaves(pair, partition, &mut summary).await?);
                }
            }
            self.repair_leaves(pair, leaves, scope.leaves_max, &mut summary).await?;
        }
        self.still_under(layout.epoch())?;
        Ok(summary)
    }

    /// The partitions of a scope that this node and `peer` are both compared in.
    fn shared<'s>(
        &self,
        layout: &'s Layout,
        peer: NodeId,
        replicas: u8,
        scope: &'s Scope,
    ) -> impl Iterator<Item = u32> + 's {
        let both = [self.node, peer];
        scope.partitions().filter(move |partition| {
            let sets = layout.sets(*partition, replicas);
            both.iter().all(|node| is_compared(layout, &sets, *node))
        })
    }

    /// Whether there are any.
    pub(super) fn shares(&self, layout: &Layout, peer: NodeId, scope: &Scope) -> bool {
        let mut factors = layout.document().replication_factors().into_iter();
        factors.any(|replicas| self.shared(layout, peer, replicas, scope).next().is_some())
    }

    async fn repair_leaves(
        &self,
        pair: Pair<'_>,
        mut leaves: Vec<(u32, u64)>,
        leaves_max: usize,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        if leaves.is_empty() {
            return Ok(());
        }
        summary.later += leaves.len().saturating_sub(leaves_max) as u64;
        // Not the same ones every time, if there are too many.
        let turn = self.counters.comparisons.load(Ordering::Relaxed) as usize;
        let begin = turn.wrapping_mul(leaves_max) % leaves.len();
        leaves.rotate_left(begin);
        leaves.truncate(leaves_max);
        tokio::time::sleep(self.settings.settle).await;
        for (leaf, floor) in leaves {
            self.repair_leaf(Pair { floor, ..pair }, leaf, summary).await?;
        }
        Ok(())
    }

    /// The hashes of this node for some partitions, a root for each, under the higher of the floors
    /// named and the own ones.
    pub(super) async fn roots(
        &self,
        replicas: u8,
        partitions: Vec<(u32, u64)>,
    ) -> Result<Vec<Option<(u64, u64)>>, Error> {
        let trees = Arc::clone(&self.trees);
        let work = self.work.run(move || trees.roots(replicas, &partitions));
        work.await.map_err(|_| Error::Stopping)
    }

    /// The hashes of this node for the leaves of a partition, likewise; if it `may_be_damaged`,
    /// those of what is left.
    pub(super) async fn leaves(
        &self,
        replicas: u8,
        partition: u32,
        floor: u64,
        may_be_damaged: bool,
    ) -> Result<Option<(Vec<u64>, u64)>, Error> {
        let trees = Arc::clone(&self.trees);
        let work = self.work.run(move || match may_be_damaged {
            true => trees.hashes_of_damaged(replicas, partition, floor),
            false => trees.hashes(replicas, partition, floor),
        });
        work.await.map_err(|_| Error::Stopping)?.map_err(Error::Store)
    }

    /// Keys and digests of this node.
    pub(super) async fn keys(&self, page: LeafPage) -> Result<(KeyDigests, bool), Error> {
        let trees = Arc::clone(&self.trees);
        let work = self.work.run(move || trees.keys(page, KEYS_MAX, KEYS_BYTES_MAX));
        work.await.map_err(|_| Error::Stopping)?.map_err(Error::Store)
    }

    pub(super) async fn ask(
        &self,
        layout: &Layout,
        peer: NodeId,
        body: Request,
    ) -> Result<Reply, Error> {
        let timeout = self.settings.timeout;
        let call = self.peers.call(peer, Class::Background, layout.epoch(), body, timeout);
        Ok(call.await?)
    }

    pub(super) async fn ask_tree(
        &self,
        pair: Pair<'_>,
        partitions: Vec<u32>,
        floors: Vec<u64>,
        roots: bool,
    ) -> Result<proto::TreeReply, Error> {
        let (replicas, of_damaged) = (pair.replicas.into(), pair.from_damaged);
        let request = proto::TreeRequest { replicas, partitions, roots, floors, of_damaged };
        let Reply::Tree(reply) = self.ask(pair.layout, pair.peer, Request::Tree(request)).await?
        else {
            return Err(PeerError::unexpected().into());
        };
        Ok(reply)
    }

    /// The partitions whose roots differ, with the floor to compare them under. Of those that have
    /// no hash yet it is counted that they were left.
    async fn differing_partitions(
        &self,
        pair: Pair<'_>,
        partitions: &[u32],
        summary: &mut Summary,
    ) -> Result<Vec<(u32, u64)>, Error> {
        // A damaged one is left to its exchange.
        let floor = |partition: &u32| {
            let floor = self.store.floor_of_partition(*partition).ok();
            floor.map(|floor| (*partition, floor))
        };
        let sound: Vec<(u32, u64)> = partitions.iter().filter_map(floor).collect();
        summary.left += (partitions.len() - sound.len()) as u64;
        if sound.is_empty() {
            return Ok(Vec::new());
        }
        let (asked, floors) = sound.iter().copied().unzip();
        let theirs = self.ask_tree(pair, asked, floors, true).await?.roots;
        if theirs.len() != sound.len() {
            let (found, expected) = (theirs.len(), sound.len());
            return Err(Error::Answer { node: pair.peer, what: "roots", found, expected });
        }
        let known = sound.iter().zip(&theirs).filter(|(_, root)| root.known);
        self.note_floors(known.map(|((at, own), root)| (*at, *own, root.own_floor)));
        let known = sound.iter().zip(theirs).filter(|(_, root)| root.known);
        let (asked, theirs): (Vec<(u32, u64)>, Vec<proto::Root>) =
            known.map(|((partition, _), root)| ((*partition, root.floor), root)).unzip();
        summary.left += (sound.len() - asked.len()) as u64;
        let own = self.roots(pair.replicas, asked.clone()).await?;
        let mut differing = Vec::new();
        for ((own, theirs), (partition, _)) in own.into_iter().zip(theirs).zip(asked) {
            match own {
                None => summary.left += 1,
                // Of another floor than asked for: one was installed meanwhile.
                Some(own) if own == (theirs.hash, theirs.floor) => {}
                Some((_, floor)) => differing.push((partition, floor)),
            }
        }
        Ok(differing)
    }

    /// Remembers in which partitions the other's floor, the last, is behind this node's: it forgets
    /// nothing until a round has moved it. Who conducts that round has to see it, whichever of the
    /// two began.
    pub(super) fn note_floors(&self, floors: impl IntoIterator<Item = (u32, u64, u64)>) {
        let is_behind = |(_, own, theirs): &(u32, u64, u64)| theirs < own;
        let behind = floors.into_iter().filter(is_behind).map(|(partition, ..)| partition);
        self.behind.lock().extend(behind);
    }

    /// The leaves of a partition that differ, each with the floor to compare it under.
    async fn differing_leaves(
        &self,
        pair: Pair<'_>,
        partition: u32,
        summary: &mut Summary,
    ) -> Result<Vec<(u32, u64)>, Error> {
        let leaves = leaves_of(partition, self.store.partition_bits());
        let reply = self.ask_tree(pair, vec![partition], vec![pair.floor], false).await?;
        if reply.hashes.len() != leaves.len() {
            let (found, expected) = (reply.hashes.len(), leaves.len());
            return Err(Error::Answer { node: pair.peer, what: "hashes", found, expected });
        }
        let Some((own, floor)) = self.leaves(pair.replicas, partition, reply.floor, false).await?
        else {
            summary.left += 1;
            return Ok(Vec::new());
        };
        let pairs = leaves.zip(own.iter().zip(&reply.hashes));
        let differing = pairs.filter(|(_, (own, theirs))| own != theirs);
        Ok(differing.map(|(leaf, _)| (leaf, floor)).collect())
    }

    /// Makes a leaf equal.
    pub(super) async fn repair_leaf(
        &self,
        pair: Pair<'_>,
        leaf: u32,
        summary: &mut Summary,
    ) -> Result<(), Error> {
        let Pair { replicas, floor, from_damaged, .. } = pair;
        let mut after = Vec::new();
        loop {
            let page = LeafPage { replicas, leaf, after: after.clone(), floor };
            let (own, own_more) = self.keys(page).await?;
            let request = proto::LeafRequest {
                replicas: replicas.into(),
                leaf,
                after: Bytes::copy_from_slice(&after),
                floor,
                of_damaged: from_damaged,
            };
            let request = Request::Leaves(request);
            let Reply::Leaves(reply) = self.ask(pair.layout, pair.peer, request).await? else {
                return Err(PeerError::unexpected().into());
            };
            let theirs: KeyDigests = reply
                .keys
                .into_iter()
                .map(|entry| (entry.engine_key.to_vec(), entry.digest))
                .collect();
            // Only up to where both pages reach.
            let end = match (own_more, reply.more) {
                (true, true) => own.last().min(theirs.last()).map(|(key, _)| key.clone()),
                (true, false) => own.last().map(|(key, _)| key.clone()),
                (false, true) => theirs.last().map(|(key, _)| key.clone()),
                (false, false) => None,
            };
            let within = |(key, _): &(Vec<u8>, u64)| end.as_ref().is_none_or(|end| key <= end);
            let own = own.into_iter().filter(within).collect();
            let theirs = theirs.into_iter().filter(within).collect();
            for some in differing_keys(own, theirs).chunks(ROWS_MAX) {
                self.repair_rows(pair, some, summary).await?;
            }
            match end {
                // A page that does not move on would be asked for for ever.
                Some(end) if end > after => after = end,
                _ => return Ok(()),
            }
        }
    }
}

/// Whether a node's rows of a partition are compared with those of others that have it. Who will
/// own it merges all of it, page by page (`transfer`). Until it has, every leaf differs, and to
/// mend that row by row is what clients would notice.
fn is_compared(layout: &Layout, sets: &Sets, node: NodeId) -> bool {
    let has_merged = || layout.document().synced.contains(&node);
    sets.current.contains(&node) || (sets.contains(node) && has_merged())
}

/// The keys that only one side has, or both with different digests.
fn differing_keys(own: KeyDigests, theirs: KeyDigests) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let (mut own, mut theirs) = (own.into_iter().peekable(), theirs.into_iter().peekable());
    loop {
        let order = match (own.peek(), theirs.peek()) {
            (Some(one), Some(other)) => one.0.cmp(&other.0),
            (Some(_), None) => Less,
            (None, Some(_)) => Greater,
            (None, None) => return keys,
        };
        let one = if order.is_le() { own.next() } else { None };
        let other = if order.is_ge() { theirs.next() } else { None };
        match (one, other) {
            (Some(one), Some(other)) if one.1 == other.1 => {}
            (Some((key, _)), _) | (None, Some((key, _))) => keys.push(key),
            (None, None) => return keys,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_differ_that_one_side_lacks_or_holds_differently() {
        let list = |pairs: &[(&str, u64)]| -> KeyDigests {
            pairs.iter().map(|(key, digest)| (key.as_bytes().to_vec(), *digest)).collect()
        };
        let own = list(&[("a", 1), ("b", 2), ("d", 4)]);
        let theirs = list(&[("b", 2), ("c", 3), ("d", 5), ("e", 6)]);
        let expected: Vec<Vec<u8>> = ["a", "c", "d", "e"].map(|key| key.into()).to_vec();
        assert_eq!(differing_keys(own.clone(), theirs.clone()), expected);
        assert_eq!(differing_keys(theirs, own), expected);
        assert_eq!(differing_keys(list(&[("a", 1)]), list(&[("a", 1)])), Vec::<Vec<u8>>::new());
    }
}
