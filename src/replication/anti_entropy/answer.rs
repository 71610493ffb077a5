//! The other side: what this node answers when others compare with it or conduct a round.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::compare::{KEYS_MAX, Scope};
use super::{AntiEntropy, Error};
use crate::cluster::NodeId;
use crate::cluster::peer::{PeerError, Reply, Request};
use crate::proto;
use crate::store::leaves::LEAVES;

/// Most partitions of one request.
const PARTITIONS_MAX: usize = 1024;
/// Most ranges of partitions of one request.
const RANGES_MAX: usize = 16_384;

fn invalid(what: &str, found: impl std::fmt::Display, limit: impl std::fmt::Display) -> PeerError {
    let message = format!("{what} is {found}, the limit is {limit}");
    PeerError::Refused { reason: "INVALID_ARGUMENT".to_owned(), message }
}

fn failed(error: Error) -> PeerError {
    match error {
        Error::Peer(error) => error,
        error => PeerError::Refused { reason: "FAILED".to_owned(), message: error.to_string() },
    }
}

fn replicas(found: u32) -> Result<u8, PeerError> {
    u8::try_from(found).map_err(|_| invalid("replicas", found, u8::MAX))
}

impl AntiEntropy {
    /// Answers a request of another replica, made under this node's epoch. `None`: it is for
    /// somebody else.
    pub async fn answer(self: &Arc<Self>, request: &Request) -> Option<Result<Reply, PeerError>> {
        Some(match request {
            Request::Tree(request) => self.answer_tree(request).await.map(Reply::Tree),
            Request::Leaves(request) => self.answer_leaves(request).await.map(Reply::Leaves),
            Request::Fence(request) => {
                self.answer_fence(request.clone()).await.map(Reply::Fence).map_err(failed)
            }
            Request::Compare(request) => self.answer_compare(request).await.map(Reply::Compare),
            _ => return None,
        })
    }

    async fn answer_tree(
        &self,
        request: &proto::TreeRequest,
    ) -> Result<proto::TreeReply, PeerError> {
        let layout = self.layout();
        let replicas = replicas(request.replicas)?;
        let partitions = &request.partitions;
        // Leaves are many: one partition at a time.
        let max = if request.roots { PARTITIONS_MAX } else { 1 };
        if partitions.len() > max {
            return Err(invalid("the number of partitions", partitions.len(), max));
        }
        if let Some(found) = partitions.iter().find(|one| **one >= layout.partitions()) {
            return Err(invalid("a partition", found, layout.partitions() - 1));
        }
        let hashes = match (request.roots, partitions.first()) {
            (true, _) => self.roots(&layout, replicas, partitions.clone()).await,
            (false, Some(partition)) => self.leaves(&layout, replicas, *partition).await,
            (false, None) => Ok(Vec::new()),
        };
        Ok(proto::TreeReply { hashes: hashes.map_err(failed)? })
    }

    async fn answer_leaves(
        &self,
        request: &proto::LeafRequest,
    ) -> Result<proto::LeafReply, PeerError> {
        if request.leaf as usize >= LEAVES {
            return Err(invalid("the leaf", request.leaf, LEAVES - 1));
        }
        let replicas = replicas(request.replicas)?;
        let keys = self.keys(replicas, request.leaf, request.after.to_vec(), KEYS_MAX).await;
        let (keys, more) = keys.map_err(failed)?;
        let keys = keys
            .into_iter()
            .map(|(key, digest)| proto::KeyDigest { engine_key: key.into(), digest })
            .collect();
        Ok(proto::LeafReply { keys, more })
    }

    pub(super) async fn answer_fence(
        &self,
        request: proto::FenceRequest,
    ) -> Result<proto::FenceReply, Error> {
        let incarnation = self.store.identity().generation;
        let layout = self.layout();
        if !layout.safe_points_may_move() {
            let message = "ownership changes or may be disputed".to_owned();
            let reason = "LAYOUT_CHANGING".to_owned();
            return Err(PeerError::Refused { reason, message }.into());
        }
        if request.install != 0 && request.install != incarnation {
            let message = "the node was started anew since its fence".to_owned();
            let reason = "ROUND_VOID".to_owned();
            return Err(PeerError::Refused { reason, message }.into());
        }
        let ranges = ranges_of(&request.partitions, layout.partitions())?;
        let (store, time) = (Arc::clone(&self.store), request.time);
        let work = self.work.run(move || {
            ranges.into_iter().try_for_each(|range| match request.install {
                0 => store.fence(range, time),
                _ => store.install_floor(range, time),
            })
        });
        work.await.map_err(|_| Error::Stopping)??;
        Ok(proto::FenceReply { incarnation })
    }

    async fn answer_compare(
        &self,
        request: &proto::CompareRequest,
    ) -> Result<proto::CompareReply, PeerError> {
        let with = NodeId::from_bytes(&request.with);
        let with = with.ok_or_else(|| invalid("the length of the id", request.with.len(), 16))?;
        let ranges = ranges_of(&request.partitions, self.layout().partitions())?;
        self.compare_until_equal(with, Scope::of(ranges)).await.map_err(failed)?;
        Ok(proto::CompareReply {})
    }
}

/// Ranges of partitions that exist.
fn ranges_of(
    ranges: &[proto::PartitionRange],
    partitions: u32,
) -> Result<Vec<RangeInclusive<u32>>, PeerError> {
    if ranges.len() > RANGES_MAX {
        return Err(invalid("the number of ranges", ranges.len(), RANGES_MAX));
    }
    let check = |range: &proto::PartitionRange| {
        if range.first > range.last || range.last >= partitions {
            return Err(invalid("a partition", range.first.max(range.last), partitions - 1));
        }
        Ok(range.first..=range.last)
    };
    ranges.iter().map(check).collect()
}
