//! Damage on this node's own disk, mended from the other replicas.
//!
//! ```text
//! a block cannot be read               known by its ranges of keys: `store::damage`
//! every partition that it may touch    marked: it vouches for nothing and answers nothing
//! the block                            given up: its table goes on without it
//! every other replica                  an exchange of all rows of the partition: `exchange`
//! the last one                         the mark goes, the partition vouches and answers again
//! ```
//!
//! Meanwhile the others answer what is read at QUORUM. A block is given up early, not when its rows
//! are back: a write to one of its keys has to read the row, and could not be taken until then.
//! What the block hid, older values and what was deleted since, is seen again by nobody but the
//! exchange, which knows from the others' floors what of it is dead.
//!
//! 1. A block stays, and its keys fail by name, if it may hold a row of which no other node has a
//!    copy: of a tenant with one replica. Nobody is told that there is nothing when there was.
//! 2. Partitions are marked, durably, before the block goes; both under the epoch by whose layout
//!    it was decided. So are those that this node does not own any more and has not given away
//!    yet: their rows are judged by its floor when their owners get them, and what the block hid
//!    may be what the floor says is forgotten. The mark goes with the last of these rows.
//! 3. Who is to give rows back is every other replica by the layout of the time. One that is
//!    none any more has left its rows to those who are, once it has given all away: then all of
//!    them are asked anew.
//! 4. A node that will own a partition when tenants have got more replicas is asked for nothing,
//!    but it holds rows: its partition is marked, or it would vouch for what it has lost of them.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::{AntiEntropy, Error};
use crate::cluster::NodeId;
use crate::cluster::layout::{Layout, Sets};
use crate::replication::fence::Fence;
use crate::store::{self, Store, Unreadable};

/// Who else holds rows of a partition of which `node` does, ascending; `None`: it holds none.
pub(super) fn givers(layout: &Layout, node: NodeId, partition: u32) -> Option<Vec<u128>> {
    let factors = layout.document().replication_factors().into_iter();
    let mut all_sets: Vec<Sets> = factors.map(|factor| layout.sets(partition, factor)).collect();
    // With more replicas for its tenants than there are now it is one of them.
    let grows = layout.grows_into(node, partition);
    all_sets.retain(|sets| grows || sets.contains(node));
    if all_sets.is_empty() {
        return None;
    }
    let members = all_sets.iter().flat_map(Sets::members).filter(|one| *one != node);
    let mut givers: Vec<u128> = members.map(|one| one.0).collect();
    givers.sort_unstable();
    givers.dedup();
    Some(givers)
}

/// Whether some tenant's rows of a partition are with `node` alone.
fn is_sole_holder(layout: &Layout, node: NodeId, partition: u32) -> bool {
    let mut factors = layout.document().replication_factors().into_iter();
    factors.any(|factor| layout.sets(partition, factor).current == [node])
}

/// Whether rows of a partition may be here that others own, and are still to be given to them.
pub(super) fn gives_away(layout: &Layout, node: NodeId, partition: u32) -> bool {
    let document = layout.document();
    let mut factors = document.replication_factors().into_iter();
    document.departed.contains_key(&node)
        && factors.any(|factor| !layout.sets(partition, factor).contains(node))
}

/// Who owns rows of a partition, ascending.
fn owners(layout: &Layout, partition: u32) -> Vec<u128> {
    let factors = layout.document().replication_factors().into_iter();
    let owners: BTreeSet<NodeId> =
        factors.flat_map(|factor| layout.sets(partition, factor).current).collect();
    owners.into_iter().map(|one| one.0).collect()
}

/// The partitions of a table's unreadable blocks of which this node has rows, each with those who
/// can give them back; `None`: nobody can, of some of them.
fn marks(layout: &Layout, node: NodeId, table: &Unreadable) -> Option<Vec<(u32, Vec<u128>)>> {
    let mut partitions: Vec<u32> = table.blocks.iter().flat_map(Clone::clone).collect();
    partitions.sort_unstable();
    partitions.dedup();
    if partitions.iter().any(|partition| is_sole_holder(layout, node, *partition)) {
        return None;
    }
    let mark = |partition| match givers(layout, node, partition) {
        Some(peers) => Some((partition, peers)),
        None if gives_away(layout, node, partition) => Some((partition, owners(layout, partition))),
        None => None,
    };
    Some(partitions.into_iter().filter_map(mark).collect())
}

/// What became of unreadable blocks.
#[derive(Debug, Default)]
struct Outcome {
    /// Some were given up.
    has_begun: bool,
    /// The tables whose blocks have to stay.
    kept: Vec<Unreadable>,
}

/// Gives up the blocks that others can replace.
fn give_up(
    store: &Store,
    fence: &dyn Fence,
    node: NodeId,
    layout: &Layout,
) -> store::Result<Outcome> {
    store.scrub_suspects()?;
    let mut outcome = Outcome::default();
    for table in store.unreadable() {
        let Some(marks) = marks(layout, node, &table) else {
            outcome.kept.push(table);
            continue;
        };
        {
            // Another layout may have others to ask; it is looked at anew then.
            let Ok(_pass) = fence.enter(layout.epoch()) else { break };
            store.mark_each_damaged(&marks)?;
        }
        let has_gone = store.discard(&table, &|install| {
            let entered = fence.enter(layout.epoch());
            entered.ok().map(|_pass| install())
        })?;
        if has_gone {
            let (table, blocks, partitions) = (table.table, table.blocks.len(), marks.len());
            tracing::error!(
                table,
                blocks,
                partitions,
                "blocks of a table could not be read; their rows are fetched from other replicas"
            );
        }
        outcome.has_begun |= has_gone;
    }
    Ok(outcome)
}

impl AntiEntropy {
    /// Looks for new damage and mends it, as far as the others are up: what is left is exchanged
    /// beside the next comparisons. Cheap if there is none.
    pub(super) async fn heal(&self) {
        if !self.store.has_damage() {
            return;
        }
        match self.give_up_unreadable().await {
            Ok(true) => self.exchange_damaged().await,
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "cannot give up blocks that cannot be read"),
        }
    }

    /// Whether some were given up.
    async fn give_up_unreadable(&self) -> Result<bool, Error> {
        let layout = self.checked_layout()?;
        if layout.document().tenants.is_empty() {
            // Whose rows may be where is not known yet.
            return Ok(false);
        }
        let (store, fence) = (self.store.clone(), self.fence.clone());
        let node = self.node;
        let work = self.work.run(move || give_up(&store, &*fence, node, &layout));
        let Outcome { has_begun, kept } = work.await.map_err(|_| Error::Stopping)??;
        let mut told = self.kept.lock();
        for Unreadable { table, blocks } in &kept {
            if told.insert(*table) {
                let (table, blocks) = (*table, blocks.len());
                let why = "and may hold rows of which there is no other copy";
                tracing::error!(table, blocks, "blocks of a table cannot be read, {why}");
            }
        }
        told.retain(|table| kept.iter().any(|one| one.table == *table));
        self.counters.kept.store(kept.len() as u64, Ordering::Relaxed);
        Ok(has_begun)
    }
}
