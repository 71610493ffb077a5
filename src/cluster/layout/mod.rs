//! The document that decides: members, tenants, who owns which partition.
//!
//! Consensus puts [`Command`]s in order.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::NodeId;
use crate::store::{Tenant, TenantChange, TenantId, TenantSpec};

/// What a member is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberState {
    /// It will own partitions when the transition ends.
    Joining,
    /// It owns partitions.
    Normal,
    /// It will own nothing when the transition ends, and hands over what it has.
    Leaving,
    /// It handed over all it had. Its id is never taken again.
    Left,
    /// It is taken out without its help; becomes removed when the transition ends.
    Removing,
    /// It was declared dead. Its id is never taken again.
    Removed,
}

/// A node as the document knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name, for people.
    pub name: String,
    /// Its failure zone.
    pub zone: String,
    /// Its share of the partitions beside the others'.
    pub weight: u32,
    /// See [`MemberState`].
    pub state: MemberState,
    /// host:port of its peer port when it joined. Only a hint: gossip knows better.
    pub address: String,
}

/// What placement needs to know of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// Its failure zone.
    pub zone: String,
    /// Its share.
    pub weight: u32,
}

/// The owners of a document: partitions are placed among them.
pub type Owners = BTreeMap<NodeId, Owner>;

/// A layout document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The cluster.
    pub cluster_id: NodeId,
    /// Grows by one with every committed change of ownership. 0: no cluster was formed.
    pub epoch: u64,
    /// Grows with every committed change.
    pub version: u64,
    /// There are `2^partition_bits` partitions: the top bits of the token.
    pub partition_bits: u32,
    /// All nodes there are and ever were.
    pub members: BTreeMap<NodeId, Member>,
    /// Who owns: S.
    pub owners: Owners,
    /// Who will: S'. Set in Joint documents only.
    pub next_owners: Option<Owners>,
    /// Who refuses, durably, everything stamped below this epoch. Of this epoch only.
    pub fenced: BTreeSet<NodeId>,
    /// Who holds, durably, all it will own. Of this epoch only.
    pub synced: BTreeSet<NodeId>,
    /// The tenants.
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// The id of the next one.
    pub tenant_id_next: u32,
}

/// A change to the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The first entry of a cluster: its members own everything from the start.
    Form {
        /// The cluster.
        cluster_id: NodeId,
        /// See [`Document::partition_bits`].
        partition_bits: u32,
        /// The first members.
        members: BTreeMap<NodeId, Member>,
        /// Wall clock of the proposer.
        now_ms: u64,
    },
    /// Adds a tenant.
    CreateTenant {
        /// What it is made from.
        spec: TenantSpec,
        /// Wall clock of the proposer.
        now_ms: u64,
    },
    /// Alters a tenant.
    AlterTenant {
        /// Its name.
        name: String,
        /// What to alter.
        change: TenantChange,
    },
    /// Stable to Joint: nodes join.
    Join {
        /// The epoch of the document this was planned on.
        epoch: u64,
        /// Those who join.
        members: BTreeMap<NodeId, Member>,
    },
    /// A node has made the epoch durable and refuses lower stamps.
    Fenced {
        /// Which.
        node: NodeId,
        /// The epoch.
        epoch: u64,
    },
    /// A node has merged all it must, durably, under this epoch.
    Synced {
        /// Which.
        node: NodeId,
        /// The epoch.
        epoch: u64,
    },
    /// Joint back to Stable with the old owners.
    Abort {
        /// The epoch of the Joint document.
        epoch: u64,
    },
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// It took effect, or had before.
    Done {
        /// The document's epoch after it.
        epoch: u64,
    },
    /// A tenant as it is now.
    Tenant(Box<Tenant>),
    /// Nothing changed.
    Refused {
        /// UPPER_SNAKE_CASE.
        reason: String,
        /// For people.
        message: String,
    },
}
