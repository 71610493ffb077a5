//! A partition that has lost data gets it back: an exchange of all its rows with each replica that
//! may hold what was lost.
//!
//! Until the last of them the partition is *damaged*: it vouches for nothing, so its floor counts
//! as 0 in every join, and it answers neither reads nor comparisons. It takes writes meanwhile. The
//! exchange is made by the node itself: of all leaves that differ, under the floor of the other.
//!
//! 1. A peer counts only when every row of the partition was made equal with it, and only while
//!    nothing of the partition is unreadable here.
//!    Rows of a tenant that gets more replicas are compared once it has them: until then a
//!    partition of which this node will own such rows is not whole.
//! 2. A peer that is no replica any more gives nothing back. What it had it gives to those who are:
//!    it is waited for until it has, and then all of them are asked, also those who were before.
//!    With fewer replicas, or after a newcomer has merged, it may be the only one with a copy of
//!    what was lost.
//! 3. Peers that have lost data of the partition too wait for each other. Each fetches what the
//!    others have, dead or not, vouched for by none; then it begins again with those who have
//!    lost nothing, whose floors say what of it is dead. Nothing is pushed: who has begun again
//!    may be done with them by then. Where all have lost data nobody knows what is dead, and the
//!    partition stays as it is.
//! 4. As long as there may be rows of a partition here that others own the mark stays: its floor
//!    would judge them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::compare::Pair;
use super::heal::{givers, gives_away};
use super::{AntiEntropy, Error, Summary};
use crate::cluster::NodeId;
use crate::cluster::layout::Layout;
use crate::cluster::peer::PeerError;
use crate::replication::reason::DAMAGED;
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
            if self.store.is_unreadable_in(partition)
                || layout.grows_into(self.node, partition)
                || gives_away(&layout, self.node, partition)
            {
                continue;
            }
            let peers = match self.givers_now(&layout, partition, peers).await {
                Ok(peers) => peers,
                Err(error) => {
                    tracing::warn!(partition, %error, "cannot note who has what was lost");
                    continue;
                }
            };
            let mut damaged_too = BTreeSet::new();
            for peer in peers.into_iter().filter(|peer| self.liveness.is_up(NodeId(*peer))) {
                let exchanged = self.exchange(&layout, NodeId(peer), partition).await;
                // The next interval tries again.
                let Err(error) = exchanged else { continue };
                let peer_id = NodeId(peer);
                tracing::warn!(peer = %peer_id, partition, %error, "cannot get back what was lost");
                if is_damaged_too(&error) {
                    damaged_too.insert(peer);
                }
            }
            if let Err(error) = self.fetch_from_damaged(&layout, partition, &damaged_too).await {
                tracing::warn!(partition, %error, "cannot fetch from those who have lost some too");
            }
        }
        let partitions = self.counters.mended.load(Ordering::Relaxed) - begun;
        if partitions > 0 {
            tracing::info!(partitions, "what was lost is back");
        }
    }

    /// Those who can be asked for what a partition has lost: who was named when it was marked, as
    /// long as each is a replica or has rows to give away. Where no other node has rows of it the
    /// mark goes.
    async fn givers_now(
        &self,
        layout: &Layout,
        partition: u32,
        named: Vec<u128>,
    ) -> Result<Vec<u128>, Error> {
        let replicas = givers(layout, self.node, partition).unwrap_or_default();
        let departed = &layout.document().departed;
        let (mut peers, others): (Vec<u128>, Vec<u128>) =
            named.into_iter().partition(|peer| replicas.contains(peer));
        let (waited_for, gone): (Vec<u128>, Vec<u128>) =
            others.into_iter().partition(|peer| departed.contains_key(&NodeId(*peer)));
        if gone.is_empty() {
            return Ok(peers);
        }
        peers = replicas;
        let mut named = [&peers[..], &waited_for].concat();
        named.sort_unstable();
        self.set_givers(layout, partition, named).await?;
        Ok(peers)
    }

    /// Where all that is missing is the word of peers that have lost data of the partition too, who
    /// wait for this one: fetches what they have, and begins again with the others. Their floors
    /// say what of it is dead; so it takes one that has lost nothing.
    async fn fetch_from_damaged(
        &self,
        layout: &Layout,
        partition: u32,
        damaged: &BTreeSet<u128>,
    ) -> Result<(), Error> {
        let left = self.store.damaged().into_iter().find(|(at, _)| *at == partition);
        let Some((_, left)) = left else { return Ok(()) };
        let mut sound = givers(layout, self.node, partition).unwrap_or_default();
        sound.retain(|peer| !damaged.contains(peer));
        if sound.is_empty() || !left.iter().all(|peer| damaged.contains(peer)) {
            return Ok(());
        }
        let _one = self.running.lock().await;
        for peer in left {
            self.make_whole(layout, NodeId(peer), partition, true).await?;
        }
        self.set_givers(layout, partition, sound).await
    }

    /// Takes note of who can give back what was lost, if `layout` is still the one to act by.
    async fn set_givers(
        &self,
        layout: &Layout,
        partition: u32,
        peers: Vec<u128>,
    ) -> Result<(), Error> {
        let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
        let epoch = layout.epoch();
        let work = self.work.run(move || match fence.enter(epoch) {
            Ok(_pass) => store.set_givers(partition, &peers),
            // It is looked at anew under the layout that came.
            Err(_) => Ok(()),
        });
        Ok(work.await.map_err(|_| Error::Stopping)??)
    }

    /// Makes all rows of a partition equal with a peer's, or as much as those where it may have
    /// lost some too.
    async fn make_whole(
        &self,
        layout: &Layout,
        peer: NodeId,
        partition: u32,
        from_damaged: bool,
    ) -> Result<Summary, Error> {
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
            let pair = Pair { layout, peer, replicas, floor: 0, is_damaged: true, from_damaged };
            let reply = self.ask_tree(pair, vec![partition], vec![0], false).await?;
            let own = self.leaves(replicas, partition, reply.floor, true).await?;
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
        Ok(summary)
    }

    async fn exchange(&self, layout: &Layout, peer: NodeId, partition: u32) -> Result<(), Error> {
        let _one = self.running.lock().await;
        let summary = self.make_whole(layout, peer, partition, false).await?;
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

/// Whether a peer gave no word because it has lost data of the partition.
fn is_damaged_too(error: &Error) -> bool {
    matches!(error, Error::Peer(PeerError::Refused { reason, .. }) if reason == DAMAGED)
}
