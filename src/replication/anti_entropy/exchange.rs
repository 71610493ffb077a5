//! A partition that has lost data gets it back: an exchange of all its rows with each replica that
//! may hold what was lost.
//!
//! Until the last of them the partition is *damaged*: it vouches for nothing, so its floor counts
//! as 0 in every join, and it answers neither reads nor comparisons. It takes writes meanwhile. The
//! exchange is made by the node itself: of all leaves that differ, under the floor of the other.
//!
//! 1. A peer counts only when every row of the partition was made equal with it, and only while
//!    nothing of the partition is unreadable here.
//!    Rows of tenants that get more replicas are compared when they have them: not before that is a
//!    partition whole of which this node will own such rows.
//! 2. A peer that is no replica any more gives nothing back. What it had went to those who are
//!    before it ceased to be one, so all of them are asked then, also those who were before.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::compare::Pair;
use super::heal::givers;
use super::{AntiEntropy, Error, Summary};
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::PeerError;
use crate::replication::tree::leaves_of;

impl AntiEntropy {
    /// Exchanges what damaged partitions lack with the peers that are up.
    pub(super) async fn exchange_damaged(&self) {
        let damaged = self.store.damaged();
        let Ok(layout) = self.checked_layout() else { return };
        if layout.document().tenants.is_empty() {
            return;
        }
        let begun = self.counters.mended.load(Ordering::Relaxed);
        for (partition, peers) in damaged {
            if self.store.is_unreadable_in(partition) || layout.grows_into(self.node, partition) {
                continue;
            }
            let peers = match self.givers_now(&layout, partition, peers).await {
                Ok(peers) => peers,
                Err(error) => {
                    tracing::warn!(partition, %error, "cannot note who has what was lost");
                    continue;
                }
            };
            for peer in peers.into_iter().map(NodeId) {
                if !self.liveness.is_up(peer) {
                    continue;
                }
                // The next interval tries again.
                if let Err(error) = self.exchange(&layout, peer, partition).await {
                    tracing::warn!(%peer, partition, %error, "cannot get back what was lost");
                }
            }
        }
        let partitions = self.counters.mended.load(Ordering::Relaxed) - begun;
        if partitions > 0 {
            tracing::info!(partitions, "what was lost is back");
        }
    }

    /// Those who are to give back what a partition has lost: who was named when it was marked, as
    /// long as all of them are replicas. Where no other node has rows of it the mark goes.
    async fn givers_now(
        &self,
        layout: &Layout,
        partition: u32,
        named: Vec<u128>,
    ) -> Result<Vec<u128>, Error> {
        let replicas = givers(layout, self.node, partition).unwrap_or_default();
        if named.iter().all(|peer| replicas.contains(peer)) {
            return Ok(named);
        }
        let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
        let (epoch, peers) = (layout.epoch(), replicas.clone());
        let work = self.work.run(move || match fence.enter(epoch) {
            Ok(_pass) => store.set_givers(partition, &peers).map(|()| peers),
            // It is looked at anew under the layout that came.
            Err(_) => Ok(Vec::new()),
        });
        Ok(work.await.map_err(|_| Error::Stopping)??)
    }

    async fn exchange(&self, layout: &Layout, peer: NodeId, partition: u32) -> Result<(), Error> {
        let _one = self.running.lock().await;
        let mut summary = Summary::default();
        let shares = |replicas: &u8| {
            let sets = layout.sets(partition, *replicas);
            sets.contains(self.node) && sets.contains(peer)
        };
        let factors = layout.document().replication_factors();
        let shared: Vec<u8> = factors.into_iter().filter(shares).collect();
        if shared.is_empty() {
            return Err(PeerError::NotAReplica.into());
        }
        for replicas in shared {
            let pair = Pair { layout, peer, replicas, floor: 0, is_damaged: true };
            let reply = self.ask_tree(pair, vec![partition], vec![0], false).await?;
            let trees = Arc::clone(&self.trees);
            let hash = move || trees.hashes_of_damaged(replicas, partition, reply.floor);
            let own = self.work.run(hash).await.map_err(|_| Error::Stopping)??;
            let leaves = leaves_of(partition, self.store.partition_bits());
            let own = own.map(|(own, _)| own).filter(|own| own.len() == reply.hashes.len());
            let not_yet = || PeerError::NoAnswer { why: "not all was read yet".to_owned() };
            let hashes = own.ok_or_else(not_yet)?.into_iter().zip(reply.hashes);
            for (leaf, _) in leaves.zip(hashes).filter(|(_, (own, theirs))| own != theirs) {
                self.repair_leaf(Pair { floor: reply.floor, ..pair }, leaf, &mut summary).await?;
            }
        }
        self.still_under(layout.epoch())?;
        if !summary.is_whole() {
            let why = format!("{} rows were not given or taken", summary.refused);
            return Err(PeerError::NoAnswer { why }.into());
        }
        let store = Arc::clone(&self.store);
        let work = self.work.run(move || store.mend(partition, peer.0));
        work.await.map_err(|_| Error::Stopping)??;
        if self.store.floor_of_partition(partition).is_ok() {
            self.counters.mended.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(partition, rows = summary.rows, "a partition is whole again");
        }
        Ok(())
    }
}
