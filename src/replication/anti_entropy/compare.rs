//! One node's partitions beside another's.
//!
//! ```text
//! roots of all shared partitions    1,024 hashes a request
//! leaves of those that differ       wait `settle`, then only what differs still
//! keys of leaves that differ        merged page by page
//! rows that differ                  joined; put where they are missing
//! ```

use std::cmp::Ordering::{Greater, Less};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::tree::{KeyDigests, leaves_of};
use super::{AntiEntropy, Error, Summary};
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{Class, PeerError, Reply, Request};
use crate::proto;
use crate::store::{self, EngineKey, RawRow};

/// Partitions whose roots are asked for at once.
const ROOTS_MAX: usize = 1024;
/// Keys of a page of a leaf.
pub(super) const KEYS_MAX: usize = 4096;
/// Rows that are fetched at once.
const ROWS_MAX: usize = 64;

/// Which partitions are compared.
#[derive(Clone, Debug)]
pub struct Scope(Vec<RangeInclusive<u32>>);

impl Scope {
    /// All of them.
    pub fn all(layout: &Layout) -> Self {
        Self(vec![0..=layout.partitions() - 1])
    }

    /// These.
    pub fn of(ranges: Vec<RangeInclusive<u32>>) -> Self {
        Self(ranges)
    }

    fn partitions(&self) -> impl Iterator<Item = u32> {
        self.0.iter().flat_map(Clone::clone)
    }
}

/// What a reply should have been.
fn unexpected(node: NodeId) -> PeerError {
    PeerError::NoAnswer { why: format!("{node} answered something else") }
}

impl AntiEntropy {
    /// Makes what both nodes hold equal, up to `leaves_max`.
    pub(super) async fn compare(&self, peer: NodeId, scope: &Scope) -> Result<Summary, Error> {
        let layout = self.layout();
        let mut summary = Summary::default();
        for replicas in layout.document().replication_factors() {
            let shared: Vec<u32> = scope
                .partitions()
                .filter(|partition| {
                    let sets = layout.sets(*partition, replicas);
                    sets.contains(self.node) && sets.contains(peer)
                })
                .collect();
            summary.partitions = summary.partitions.max(shared.len() as u32);
            let mut leaves = Vec::new();
            for some in shared.chunks(ROOTS_MAX) {
                for partition in self.differing_partitions(&layout, peer, replicas, some).await? {
                    leaves.extend(self.differing(&layout, peer, replicas, partition).await?);
                }
            }
            if leaves.is_empty() {
                continue;
            }
            let room = self.settings.leaves_max.saturating_sub(summary.leaves_left as usize);
            summary.leaves_left += leaves.len().saturating_sub(room) as u64;
            // Not the same ones every time, if there are too many.
            let turn = self.counters.comparisons.load(Ordering::Relaxed) as usize;
            let begin = turn.wrapping_mul(self.settings.leaves_max) % leaves.len();
            leaves.rotate_left(begin);
            leaves.truncate(room);
            tokio::time::sleep(self.settings.settle).await;
            for leaf in leaves {
                summary.rows += self.repair_leaf(&layout, peer, replicas, leaf).await?;
            }
        }
        Ok(summary)
    }

    /// The hashes of this node for some partitions: a root for each.
    pub(super) async fn roots(
        &self,
        layout: &Layout,
        replicas: u8,
        partitions: Vec<u32>,
    ) -> Result<Vec<u64>, Error> {
        let bits = layout.document().partition_bits;
        let trees = Arc::clone(&self.trees);
        let work = self.work.run(move || {
            let root = |partition| trees.root(replicas, leaves_of(partition, bits));
            partitions.into_iter().map(root).collect::<store::Result<Vec<u64>>>()
        });
        work.await.map_err(|_| Error::Stopping)?.map_err(Error::Store)
    }

    /// The hashes of this node for the leaves of a partition.
    pub(super) async fn leaves(
        &self,
        layout: &Layout,
        replicas: u8,
        partition: u32,
    ) -> Result<Vec<u64>, Error> {
        let leaves = leaves_of(partition, layout.document().partition_bits);
        let trees = Arc::clone(&self.trees);
        let work = self.work.run(move || trees.hashes(replicas, leaves));
        work.await.map_err(|_| Error::Stopping)?.map_err(Error::Store)
    }

    /// Keys and digests of this node.
    pub(super) async fn keys(
        &self,
        replicas: u8,
        leaf: u32,
        after: Vec<u8>,
        max: usize,
    ) -> Result<(KeyDigests, bool), Error> {
        let trees = Arc::clone(&self.trees);
        let work = self.work.run(move || trees.keys(replicas, leaf, &after, max));
        work.await.map_err(|_| Error::Stopping)?.map_err(Error::Store)
    }

    async fn ask(&self, layout: &Layout, peer: NodeId, body: Request) -> Result<Reply, Error> {
        let timeout = self.settings.timeout;
        let call = self.peers.call(peer, Class::Background, layout.epoch(), body, timeout);
        Ok(call.await?)
    }

    async fn ask_tree(
        &self,
        layout: &Layout,
        peer: NodeId,
        request: proto::TreeRequest,
        expected: usize,
    ) -> Result<Vec<u64>, Error> {
        let Reply::Tree(reply) = self.ask(layout, peer, Request::Tree(request)).await? else {
            return Err(unexpected(peer).into());
        };
        let found = reply.hashes.len();
        if found != expected {
            return Err(Error::Answer { node: peer, what: "hashes", found, expected });
        }
        Ok(reply.hashes)
    }

    async fn differing_partitions(
        &self,
        layout: &Layout,
        peer: NodeId,
        replicas: u8,
        partitions: &[u32],
    ) -> Result<Vec<u32>, Error> {
        let request = proto::TreeRequest {
            replicas: replicas.into(),
            partitions: partitions.to_vec(),
            roots: true,
        };
        let theirs = self.ask_tree(layout, peer, request, partitions.len()).await?;
        let own = self.roots(layout, replicas, partitions.to_vec()).await?;
        let pairs = partitions.iter().zip(own.iter().zip(&theirs));
        Ok(pairs.filter(|(_, (own, theirs))| own != theirs).map(|(p, _)| *p).collect())
    }

    /// The leaves of a partition that differ.
    async fn differing(
        &self,
        layout: &Layout,
        peer: NodeId,
        replicas: u8,
        partition: u32,
    ) -> Result<Vec<u32>, Error> {
        let request = proto::TreeRequest {
            replicas: replicas.into(),
            partitions: vec![partition],
            roots: false,
        };
        let leaves = leaves_of(partition, layout.document().partition_bits);
        let theirs = self.ask_tree(layout, peer, request, leaves.len()).await?;
        let own = self.leaves(layout, replicas, partition).await?;
        let pairs = leaves.zip(own.iter().zip(&theirs));
        Ok(pairs.filter(|(_, (own, theirs))| own != theirs).map(|(leaf, _)| leaf).collect())
    }

    /// Makes a leaf equal. Returns how many rows differed.
    async fn repair_leaf(
        &self,
        layout: &Layout,
        peer: NodeId,
        replicas: u8,
        leaf: u32,
    ) -> Result<u64, Error> {
        let mut after = Vec::new();
        let mut repaired = 0;
        loop {
            let (own, own_more) = self.keys(replicas, leaf, after.clone(), KEYS_MAX).await?;
            let request = proto::LeafRequest {
                replicas: replicas.into(),
                leaf,
                after: Bytes::copy_from_slice(&after),
            };
            let Reply::Leaves(reply) = self.ask(layout, peer, Request::Leaves(request)).await?
            else {
                return Err(unexpected(peer).into());
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
            let keys = differing_keys(own, theirs);
            for some in keys.chunks(ROWS_MAX) {
                repaired += self.repair_rows(layout, peer, some).await?;
            }
            match end {
                // A page that does not move on would be asked for for ever.
                Some(end) if end > after => after = end,
                _ => return Ok(repaired),
            }
        }
    }

    /// Joins rows from both sides and puts the join where it is missing.
    async fn repair_rows(
        &self,
        layout: &Layout,
        peer: NodeId,
        engine_keys: &[Vec<u8>],
    ) -> Result<u64, Error> {
        let decode = |key: &Vec<u8>| {
            let at = EngineKey::decode(key)?;
            Ok((at.tenant, at.key.to_vec()))
        };
        let keys: Vec<_> = engine_keys.iter().map(decode).collect::<Result<_, Error>>()?;
        let row_keys = keys.iter().map(|(tenant, key)| proto::RowKey {
            tenant_id: tenant.0,
            key: Bytes::copy_from_slice(key),
        });
        let request = proto::ReadRows { keys: row_keys.collect(), digest_only: false };
        let Reply::ReadRows(reply) = self.ask(layout, peer, Request::ReadRows(request)).await?
        else {
            return Err(unexpected(peer).into());
        };
        if reply.answers.len() != keys.len() {
            let (found, expected) = (reply.answers.len(), keys.len());
            return Err(Error::Answer { node: peer, what: "rows", found, expected });
        }
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for ((tenant, key), answer) in keys.into_iter().zip(reply.answers) {
            if let Some(failure) = &answer.failure {
                // It has no word on this row; the next comparison asks again.
                self.refused(peer, std::iter::once(&failure.message));
                continue;
            }
            let theirs = RawRow { row: answer.row.map(|row| row.to_vec()), floor: answer.floor };
            let own = self.store.raw_row(tenant, &key)?;
            let joined = self.store.join_raw(own.clone(), theirs.clone())?;
            let Some(row) = joined.row else { continue };
            if theirs.row.as_ref() != Some(&row) {
                there.push(proto::RowState {
                    tenant_id: tenant.0,
                    key: key.clone().into(),
                    row: row.clone().into(),
                });
            }
            if own.row.as_ref() != Some(&row) {
                here.push((tenant, key, row));
            }
        }
        let repaired = here.len().max(there.len()) as u64;
        if !here.is_empty() {
            let store = Arc::clone(&self.store);
            let results = self.work.run(move || store.replicate(&here)).await;
            let results = results.map_err(|_| Error::Stopping)?;
            self.refused(peer, results.iter().filter_map(|result| result.as_ref().err()));
        }
        if !there.is_empty() {
            let cause = proto::RowsCause::AntiEntropy.into();
            let request = Request::WriteRows(proto::WriteRows { rows: there, cause });
            let Reply::WriteRows(reply) = self.ask(layout, peer, request).await? else {
                return Err(unexpected(peer).into());
            };
            let failures = reply.results.iter().filter_map(|result| result.failure.as_ref());
            self.refused(peer, failures.map(|failure| &failure.message));
        }
        Ok(repaired)
    }

    /// Counts rows that one of the sides did not give or take. They keep no other row from being
    /// repaired; as long as they differ, no safe point moves.
    fn refused<E: std::fmt::Display>(&self, peer: NodeId, errors: impl Iterator<Item = E>) {
        for error in errors {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(%peer, %error, "a row was not taken");
        }
    }
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
