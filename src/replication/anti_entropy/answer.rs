//! The other side: what this node answers when others compare with it or conduct a round.
//!
//! 1. A request is answered under its epoch (R1): this node acted under it before it looked, and
//!    still does when it answers. A floor is installed while the fence is held at it.
//! 2. Only a replica of a partition has a word on it, and only an undamaged one. One that has lost
//!    data is told what is here by another one: no word, for it goes by no floor.
//! 3. No step of a round is taken while ownership changes, while somebody may hold rows that it
//!    does not own (D3), or under another version of the layout than the conductor's: it may know
//!    tenants, and so replicas, that the conductor does not.

use std::ops::RangeInclusive;
use std::sync::Arc;

use tokio::time::Instant;

use super::compare::Scope;
use super::{AntiEntropy, Error};
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{PeerError, Reply, Request};
use crate::proto::{self, RoundStep};
use crate::replication::fence;
use crate::replication::replica::refused_by_store;
use crate::replication::tree::LeafPage;
use crate::store::leaves::{LEAF_BITS, LEAVES};
use crate::store::{self, Participant};

/// Most partitions of one request.
const PARTITIONS_MAX: usize = 1024;
/// Most ranges of partitions of one request.
const RANGES_MAX: usize = 16_384;

fn invalid(what: &str, found: impl std::fmt::Display, limit: impl std::fmt::Display) -> PeerError {
    let message = format!("{what} is {found}, the limit is {limit}");
    PeerError::Refused { reason: "INVALID_ARGUMENT".to_owned(), message }
}

fn refused(reason: &str, message: impl Into<String>) -> PeerError {
    PeerError::Refused { reason: reason.to_owned(), message: message.into() }
}

fn failed(error: Error) -> PeerError {
    match error {
        Error::Peer(error) => error,
        Error::Store(error) => refused_by_store(error),
        error => refused("FAILED", error.to_string()),
    }
}

fn replicas(found: u32) -> Result<u8, PeerError> {
    u8::try_from(found).map_err(|_| invalid("replicas", found, u8::MAX))
}

impl AntiEntropy {
    /// Answers a request of another replica, made under `epoch`. `None`: it is for somebody else.
    pub async fn answer(
        self: &Arc<Self>,
        epoch: u64,
        request: &Request,
    ) -> Option<Result<Reply, PeerError>> {
        Some(match request {
            Request::Tree(request) => self.answer_tree(epoch, request).await.map(Reply::Tree),
            Request::Leaves(request) => self.answer_leaves(epoch, request).await.map(Reply::Leaves),
            Request::Fence(request) => {
                self.answer_fence(epoch, request.clone()).await.map(Reply::Fence).map_err(failed)
            }
            Request::Compare(request) => {
                self.answer_compare(epoch, request).await.map(Reply::Compare)
            }
            _ => return None,
        })
    }

    /// The layout of `epoch`, under which this node acts.
    async fn layout_under(&self, epoch: u64) -> Result<Arc<Layout>, PeerError> {
        self.still_under(epoch)?;
        let deadline = Instant::now() + self.settings.timeout;
        let layout = fence::layout_of(&self.layout, epoch, deadline).await?;
        self.check_bits(&layout).map_err(failed)?;
        Ok(layout)
    }

    fn check_replica(
        &self,
        layout: &Layout,
        replicas: u8,
        mut partitions: impl Iterator<Item = u32>,
    ) -> Result<(), PeerError> {
        let is_mine = |partition| layout.sets(partition, replicas).contains(self.node);
        if partitions.all(is_mine) { Ok(()) } else { Err(PeerError::NotAReplica) }
    }

    async fn answer_tree(
        &self,
        epoch: u64,
        request: &proto::TreeRequest,
    ) -> Result<proto::TreeReply, PeerError> {
        let layout = self.layout_under(epoch).await?;
        let replicas = replicas(request.replicas)?;
        let (partitions, floors) = (&request.partitions, &request.floors);
        // Leaves are many: one partition at a time.
        let max = if request.roots { PARTITIONS_MAX } else { 1 };
        if partitions.len() > max {
            return Err(invalid("the number of partitions", partitions.len(), max));
        }
        if floors.len() != partitions.len() {
            return Err(invalid("the number of floors", floors.len(), partitions.len()));
        }
        if let Some(found) = partitions.iter().find(|one| **one >= layout.partitions()) {
            return Err(invalid("a partition", found, layout.partitions() - 1));
        }
        self.check_replica(&layout, replicas, partitions.iter().copied())?;
        // Hashes are kept for each number of replicas that was asked for.
        if !layout.document().replication_factors().contains(&replicas) {
            return Err(refused("NO_SUCH_TENANT", format!("no tenant has {replicas} replicas")));
        }
        let each = partitions.iter().copied().zip(floors.iter().copied());
        let mut reply = proto::TreeReply::default();
        if request.roots {
            let roots = self.roots(replicas, each.clone().collect()).await.map_err(failed)?;
            let root = |(root, (partition, _)): (Option<(u64, u64)>, _)| {
                let own_floor = self.store.floor_of_partition(partition);
                let (Some((hash, floor)), Ok(own_floor)) = (root, own_floor) else {
                    return proto::Root::default();
                };
                proto::Root { known: true, hash, floor, own_floor }
            };
            reply.roots = roots.into_iter().zip(each.clone()).map(root).collect();
            // What roots are asked under is the floor of who asks.
            let known = reply.roots.iter().zip(each).filter(|(root, _)| root.known);
            self.note_floors(known.map(|(root, (at, theirs))| (at, root.own_floor, theirs)));
        } else if let Some((partition, floor)) = each.clone().next() {
            let leaves = self.leaves(replicas, partition, floor, request.of_damaged).await;
            let leaves = leaves.map_err(failed)?;
            let not_yet = || refused("NOT_READY", "the partition was not read yet");
            (reply.hashes, reply.floor) = leaves.ok_or_else(not_yet)?;
        }
        self.still_under(epoch)?;
        Ok(reply)
    }

    async fn answer_leaves(
        &self,
        epoch: u64,
        request: &proto::LeafRequest,
    ) -> Result<proto::LeafReply, PeerError> {
        let layout = self.layout_under(epoch).await?;
        let leaf = request.leaf;
        if leaf as usize >= LEAVES {
            return Err(invalid("the leaf", leaf, LEAVES - 1));
        }
        let replicas = replicas(request.replicas)?;
        let partition = leaf >> (LEAF_BITS - self.store.partition_bits());
        self.check_replica(&layout, replicas, std::iter::once(partition))?;
        let sound = |_| match self.store.floor_of_partition(partition) {
            Err(store::Error::Damaged { .. }) if request.of_damaged => Ok(()),
            floor => floor.map(|_| ()),
        };
        sound(()).map_err(|error| failed(error.into()))?;
        let (after, floor) = (request.after.to_vec(), request.floor);
        let keys = self.keys(LeafPage { replicas, leaf, after, floor }).await;
        let (keys, more) = keys.map_err(failed)?;
        // Not damaged meanwhile either.
        sound(()).map_err(|error| failed(error.into()))?;
        self.still_under(epoch)?;
        let keys = keys
            .into_iter()
            .map(|(key, digest)| proto::KeyDigest { engine_key: key.into(), digest })
            .collect();
        Ok(proto::LeafReply { keys, more })
    }

    pub(super) async fn answer_fence(
        &self,
        epoch: u64,
        request: proto::FenceRequest,
    ) -> Result<proto::FenceReply, Error> {
        let layout = self.layout_under(epoch).await?;
        check_round(&layout, request.version)?;
        let ranges = ranges_of(&request.partitions, layout.partitions())?;
        let factor = layout.document().replication_factors().into_iter().max().unwrap_or(1);
        self.check_replica(&layout, factor, ranges.iter().flat_map(Clone::clone))?;
        let (store, time, step) = (Arc::clone(&self.store), request.time, request.step());
        let (fence, shown) = (Arc::clone(&self.fence), self.layout.clone());
        let was = Participant { incarnation: request.incarnation, news: request.news };
        let work = self.work.run(move || match step {
            RoundStep::Fence => Ok(store.fence(&ranges, time)?),
            RoundStep::Hold => Ok(store.hold(&ranges)?),
            RoundStep::Install => {
                // Held to the end: no other layout is acted upon before the floor is there.
                let _pass = fence
                    .enter(epoch)
                    .map_err(|_| refused("LAYOUT_CHANGING", "ownership changes"))?;
                check_round(&shown.borrow(), request.version)?;
                if !store.install_floor(&ranges, time, was)? {
                    let why = "the node is not what it was when it held".to_owned();
                    return Err(Error::Void { why });
                }
                Ok(was)
            }
            RoundStep::Unspecified => Err(refused("INVALID_ARGUMENT", "no step").into()),
        });
        let Participant { incarnation, news } = work.await.map_err(|_| Error::Stopping)??;
        self.still_under(epoch)?;
        Ok(proto::FenceReply { incarnation, news })
    }

    async fn answer_compare(
        &self,
        epoch: u64,
        request: &proto::CompareRequest,
    ) -> Result<proto::CompareReply, PeerError> {
        let layout = self.layout_under(epoch).await?;
        let with = NodeId::from_bytes(&request.with);
        let with = with.ok_or_else(|| invalid("the length of the id", request.with.len(), 16))?;
        let ranges = ranges_of(&request.partitions, layout.partitions())?;
        let summary = self.compare_with(with, &Scope::of(ranges)).await.map_err(failed)?;
        self.still_under(epoch)?;
        let (rows, refused, left) = (summary.rows, summary.refused, summary.left);
        Ok(proto::CompareReply { rows, refused, left })
    }
}

/// Whether a round may go on under a layout.
fn check_round(layout: &Layout, version: u64) -> Result<(), PeerError> {
    if !layout.safe_points_may_move() {
        return Err(refused("LAYOUT_CHANGING", "ownership changes or may be disputed"));
    }
    if layout.version() != version {
        let message = format!("version {version} is asked for, {} is known", layout.version());
        return Err(refused("LAYOUT_CHANGING", message));
    }
    Ok(())
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
