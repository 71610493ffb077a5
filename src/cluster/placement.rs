//! Which owners hold which partition: zone-aware weighted rendezvous hashing.
//!
//! ```text
//! draw(partition, node)  xxh3_64(partition u32 BE | node id, 16 bytes)
//! cost                   -log2(draw / 2^64), in 2^-48, an integer
//! order within a zone    cost / weight, least first; then node id
//! round                  a node's place in that order: 0, 1, ...
//! rank list              by (round, cost / weight, node id)
//! ```
//!
//! The first `n` of a partition's rank list are its replicas at replication factor `n`. Nothing
//! here is stored or sent: every node computes it from the owners.
//!
//! 1. Equal owners give equal lists on every machine: only integers are computed, for a float's
//!    logarithm differs from one platform to another in its last bit, and two nodes that disagree
//!    on a replica set lose writes. These bytes and numbers are a format; they never change.
//! 2. A replication factor's replicas begin with those of every lower one.
//! 3. An owner that comes changes at most one replica of each partition at each replication
//!    factor, and brings no other change than itself. One that goes is the mirror image.
//! 4. Within a zone a node's share is in proportion to its weight; the zones take turns, whatever
//!    their weight, so the first replicas lie in as many zones as there are.

use xxhash_rust::xxh3::xxh3_64;

use crate::store::tenant::REPLICATION_FACTOR_MAX;

use super::NodeId;
use super::layout::Owners;

/// Greatest weight of an owner.
pub const WEIGHT_MAX: u32 = 1_000_000;
/// Most partitions are 2 to the power of this.
pub const PARTITION_BITS_MAX: u32 = 14;

/// Binary digits behind the point of a [`cost`].
const COST_FRACTION_BITS: u32 = 48;

/// The rank lists of all partitions for one set of owners, as far as replicas can be.
#[derive(Debug)]
pub struct RankTable {
    nodes: Vec<NodeId>,
    /// Ranks kept of each partition.
    width: usize,
    /// Indexes into `nodes`, partition after partition.
    ranks: Vec<u16>,
}

impl RankTable {
    /// Ranks `owners` for each of `2^partition_bits` partitions.
    ///
    /// Takes about a tenth of a microsecond for each partition and owner. Of more than 65,536
    /// owners the last are left out; a document never has so many.
    pub fn new(partition_bits: u32, owners: &Owners) -> Self {
        let ranked = Ranked::new(owners);
        let width = ranked.nodes.len().min(usize::from(REPLICATION_FACTOR_MAX));
        let partitions = 1_u32 << partition_bits.min(PARTITION_BITS_MAX);
        let mut ranks = Vec::with_capacity(partitions as usize * width);
        let mut order = Vec::with_capacity(ranked.nodes.len());
        for partition in 0..partitions {
            ranked.rank(partition, &mut order);
            ranks.extend(order.iter().take(width).map(|entry| entry.node));
        }
        Self { nodes: ranked.nodes, width, ranks }
    }

    /// The replicas of a partition at a replication factor, best first. As many as there are
    /// owners, if they are fewer; none for a partition there is not.
    pub fn replicas(
        &self,
        partition: u32,
        replication_factor: u8,
    ) -> impl Iterator<Item = NodeId> + '_ {
        let start = (partition as usize).saturating_mul(self.width);
        let ranks = self.ranks.get(start..start.saturating_add(self.width)).unwrap_or_default();
        let wanted = usize::from(replication_factor);
        ranks.iter().take(wanted).map(|index| self.nodes[usize::from(*index)])
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u32 {
        self.ranks.len().checked_div(self.width).unwrap_or(0) as u32
    }
}

/// Owners, made ready for ranking.
struct Ranked {
    nodes: Vec<NodeId>,
    weights: Vec<u32>,
    /// Of each node, a number for its zone.
    zones: Vec<u16>,
}

/// A node while a partition is ranked.
#[derive(Clone, Copy)]
struct Entry {
    node: u16,
    zone: u16,
    round: u16,
    cost: u64,
    weight: u32,
}

impl Entry {
    /// Which of two is better: exact, as fractions. Ties go to the lower id: nodes are numbered in
    /// the order of their ids.
    fn order(&self, other: &Self) -> std::cmp::Ordering {
        let ours = u128::from(self.cost) * u128::from(other.weight);
        let theirs = u128::from(other.cost) * u128::from(self.weight);
        ours.cmp(&theirs).then(self.node.cmp(&other.node))
    }
}

impl Ranked {
    fn new(owners: &Owners) -> Self {
        let owners = || owners.iter().take(usize::from(u16::MAX) + 1);
        let mut names: Vec<&str> = owners().map(|(_, owner)| owner.zone.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let number = |zone: &str| names.partition_point(|name| *name < zone) as u16;
        Self {
            nodes: owners().map(|(node, _)| *node).collect(),
            weights: owners().map(|(_, owner)| owner.weight.max(1)).collect(),
            zones: owners().map(|(_, owner)| number(&owner.zone)).collect(),
        }
    }

    /// Leaves the rank list of `partition` in `order`.
    fn rank(&self, partition: u32, order: &mut Vec<Entry>) {
        order.clear();
        order.extend(self.nodes.iter().enumerate().map(|(index, node)| Entry {
            node: index as u16,
            zone: self.zones[index],
            round: 0,
            cost: cost(draw(partition, *node)),
            weight: self.weights[index],
        }));
        order.sort_unstable_by(|a, b| a.zone.cmp(&b.zone).then_with(|| a.order(b)));
        for index in 1..order.len() {
            let before = order[index - 1];
            if order[index].zone == before.zone {
                order[index].round = before.round + 1;
            }
        }
        order.sort_unstable_by(|a, b| a.round.cmp(&b.round).then_with(|| a.order(b)));
    }
}

fn draw(partition: u32, node: NodeId) -> u64 {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&partition.to_be_bytes());
    bytes[4..].copy_from_slice(&node.to_bytes());
    xxh3_64(&bytes)
}

/// `-log2(draw / 2^64)` in units of `2^-48`, from 0 (excluded) to 64 (included). It is
/// exponentially distributed, so that the least of `cost / weight` falls on each node in
/// proportion to its weight.
fn cost(draw: u64) -> u64 {
    let draw = draw.max(1);
    let zeros = draw.leading_zeros();
    // The mantissa is in [1, 2) with 63 digits behind the point. Squaring it doubles its
    // logarithm, whose next digit is whether the square is 2 or more.
    let mut mantissa = draw << zeros;
    let mut log = u64::from(63 - zeros);
    for _ in 0..COST_FRACTION_BITS {
        let square = u128::from(mantissa) * u128::from(mantissa);
        let digit = (square >> 127) as u64;
        mantissa = (square >> (63 + digit)) as u64;
        log = log << 1 | digit;
    }
    (64 << COST_FRACTION_BITS) - log
}

#[cfg(test)]
mod tests;
