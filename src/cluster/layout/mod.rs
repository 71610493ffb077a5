//! The document that decides: members, tenants, who owns which partition.
//!
//! | file | what |
//! |---|---|
//! | here | the document and the commands that change it, as they are stored and sent |
//! | [`rules`] | the arithmetic of transitions |
//! | `apply` | [`Document::apply`]: the state machine that consensus drives |
//! | `change` | what a change of owners asks for, and whether it may be |
//! | `check` | [`Document::check`]: what every document obeys, for those from outside |
//! | `sets` | [`Layout`], [`Sets`]: a document made ready for look-ups |
//! | `catalog` | [`LayoutCatalog`]: the tenants of the document, as the store wants them |
//! | `refusal` | why a command changes nothing |
//!
//! It is pure: no file, no clock, no network. A document is *Stable* (one set of owners) or *Joint*
//! (two: reads and writes need their quorum in both); a change of owners is Stable, Joint, Stable.
//!
//! 1. A document is a function of the commands before it: equal commands in equal order give equal
//!    documents on every node, of every version of the program.
//! 2. Every precondition is judged when the command is applied, whatever its proposer knew.
//! 3. The epoch grows by one with each document that owns differently: Joint, finish, abort. It is
//!    the stamp of every message between nodes. The version grows with every change.
//! 4. Whether a transition ends is decided here, by facts in the document; nobody's liveness is.
//! 5. A node's or a tenant's id is never given twice.
//! 6. A refused command changes nothing. Sizes and counts are bounded.
//!
//! # The rules of a transition
//! Comments in `cluster` and `replication` name them by these ids. S is the set of replicas of a
//! partition that owns, S' the one that will; Q(X) is a quorum of X, B(X) a blocking count: so many
//! members of X that each quorum of X has one of them ([`rules`] has the numbers). E is the highest
//! epoch that a node has adopted. In parentheses: the tests that do without the rule, most of them
//! searches of `model`.
//!
//! | id | rule | without it |
//! |---|---|---|
//! | R1 | every message about rows carries the epoch of its sender. Below E it is refused, reads as well as writes; above E the document is fetched and E is durable before the message is acted upon. E never falls | a quorum of S still forms under an old epoch: its reads miss what S' acknowledged, and S' misses its writes (`no_write_fence`, `no_read_fence`, `volatile_fence`, `learn_later`) |
//! | R2 | a write goes to all members of S and S', and counts when each of them has as many durable copies as its level asks for | a quorum of the one set misses a write that only the other has (`double_write_...`) |
//! | R3 | under a later epoch the same row is sent again to all members, and no acknowledgement from before counts | a copy counts that was dropped since (`acks_survive_restamp`) |
//! | R4 | a quorum read needs Q(S) and Q(S'), and under a later epoch starts over; at ONE a member of S is asked, for one that is only in S' may be empty | who still reads from S misses what S' alone acknowledged; what was read once disappears (`read_old_set_only`, `switched_reads_instead_of_joint_reads`) |
//! | T1 | Joint follows only Stable, the one that the change was planned on, and each S keeps B(S) members that are not being removed; judged when the command is applied | two changes mix, or there is nobody left to learn the rows from |
//! | T2 | newcomers, S' without S, always sync; survivors too where an old quorum could miss a new one, as from three replicas to one | a survivor that missed a write stands alone for it (`survivors_do_not_sync`) |
//! | T3 | a source gives rows only under the Joint epoch, its fence durable before | it takes a write under the old epoch after it was read (`snapshot_before_fence`) |
//! | T4 | a node is synced when it has merged, durably and in this epoch, B(S) members of S and each that is leaving | a write of a quorum of S was on none of its sources (`one_source`), or was made after they were merged, since an abort lies between (`stale_receipt`) |
//! | T5 | Stable(S') follows by itself when all who must are synced and B(S) of each S are fenced. Nobody's liveness is judged | S' answers before it holds what S acknowledged. Of the fence reports alone no history was found that needs them (`fence_reports_are_not_what_three_to_two_replicas_need`) |
//! | T6 | until then an abort leads back to Stable(S); what was reported of the aborted epoch is void | a change that cannot end blocks all others |
//! | T7 | what the last transition left behind (rows not owned, nodes far behind, hints) does not hold up the next | one node that is down blocks all changes |
//! | D1 | under a Stable document only, a node removes a row that it does not own when Q(owners) durably hold a row at or above it, and E is still the same | the last copy of a write at ONE is removed (`no_dominance_check`) |
//! | D2 | a hint is sent under the sender's present E; where its target owns the row no more it goes to all owners. Hints never count as acknowledgements | the row is refused, or kept by somebody who does not own it |
//! | D3 | no safe point moves in Joint, nor after it until each departed node that is not removed has finished D1 | it wakes with an old value whose delete was forgotten (`purge_before_departed_report`) |
//! | L1 | a node that leaves is a source for all (T4), then clears itself (D1), hands over its hints, has its certificate kept by two others, and only then has left. If it dies it can be given up: it is then removed | rows that it alone held are lost; or it dies and holds up the transition for ever |
//! | L2 | a node that is removed stays a member of S until T5. Where fewer than B(S) stay it is refused, unless the loss of exactly those partitions is accepted: then T4 and T5 ask all who stay there, and nobody else | an abort leads back to a set without a quorum (`removal_before_finish`) |
//! | L3 | a node that joins owns from T5 on. If it dies for good the change is aborted, and planned again without it | it is asked before it has the rows |

mod apply;
mod catalog;
mod change;
mod check;
#[cfg(test)]
mod model;
mod refusal;
pub mod rules;
mod sets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Deserializer, Serialize};

use super::NodeId;
use crate::store::{Tenant, TenantChange, TenantId, TenantSpec};

pub use catalog::{LayoutCatalog, Proposer, error_of};
pub use refusal::reason;
pub use sets::{Layout, Sets, ToSync};

/// Most owners at a time, and so most members that are not retired.
pub const OWNERS_MAX: usize = 256;
/// Most members, with those that left or were removed: their ids are remembered for ever.
pub const MEMBERS_MAX: usize = 4096;
/// Longest name, zone or address of a member, in bytes.
pub const MEMBER_TEXT_BYTES_MAX: usize = 255;

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

impl MemberState {
    /// Whether it is none of the cluster any more.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Left | Self::Removed)
    }
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

/// Partitions, by the number of replicas that some tenants have of them.
pub type Partitions = BTreeMap<u8, BTreeSet<u32>>;

/// A layout document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// The cluster.
    pub cluster_id: NodeId,
    /// The formation it comes from: minted for it and never again. It tells clusters apart that
    /// were formed under one configured id. Zero in those that are older than this field.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub formation: NodeId,
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
    /// Who must be in `synced` before the transition can end. Of this epoch only.
    pub syncers: BTreeSet<NodeId>,
    /// Who may hold rows that it does not own, and the epoch of the Stable document since which.
    /// Deletes are not forgotten before none of them does.
    pub departed: BTreeMap<NodeId, u64>,
    /// Digests of the certificates of those who left.
    pub certificates: BTreeMap<NodeId, String>,
    /// The tenants.
    pub tenants: BTreeMap<TenantId, Tenant>,
    /// The id of the next one.
    pub tenant_id_next: u32,
    /// The numbers of replicas to be, where they differ from the tenants'. In Joint documents only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub next_factors: BTreeMap<TenantId, u8>,
    /// Where too few replicas stay, and the loss was accepted: T4 and T5 are waived there, those
    /// who stay are all sources. In Joint documents only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub lost: Partitions,
    /// Who is removed by the same change by which a node of this name joins.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub replacements: BTreeMap<NodeId, String>,
}

fn is_zero(id: &NodeId) -> bool {
    *id == NodeId::default()
}

/// A change of owners: any number of each.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Change {
    /// Who joins.
    pub joins: BTreeMap<NodeId, Member>,
    /// Who hands over all it has and leaves.
    pub leaves: BTreeSet<NodeId>,
    /// Who is taken out without its help: dead, or as good as. One that owns nothing is removed at
    /// once, others when the transition ends.
    pub removes: BTreeSet<NodeId>,
    /// New weights.
    pub weights: BTreeMap<NodeId, u32>,
    /// New zones.
    pub zones: BTreeMap<NodeId, String>,
    /// New numbers of replicas.
    pub factors: BTreeMap<TenantId, u8>,
    /// What may be lost by `removes`: exactly that, or the change is refused.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub accepts_loss: Partitions,
    /// Who shall be removed when a node of this name joins, in one change; an empty name takes that
    /// back. It begins nothing, and is a change of its own.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub replaces: BTreeMap<NodeId, String>,
}

/// A change to the document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// The first entry of a cluster: its members own everything from the start.
    Form {
        /// The cluster.
        cluster_id: NodeId,
        /// See [`Document::formation`].
        #[serde(default, skip_serializing_if = "is_zero")]
        formation: NodeId,
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
    /// Stable to Joint: owners change in any way.
    Change {
        /// The epoch of the document this was planned on.
        epoch: u64,
        /// What changes.
        change: Change,
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
    /// Nodes that leave are dead: the transition under way goes on without their help. All of them
    /// are given up, or none. Rows that only they held are lost.
    GiveUp {
        /// Which. A log may hold commands that named one.
        #[serde(alias = "node", deserialize_with = "one_or_several")]
        nodes: BTreeSet<NodeId>,
        /// The epoch of the Joint document.
        epoch: u64,
    },
    /// A node holds no row any more that it does not own.
    Cleared {
        /// Which.
        node: NodeId,
        /// The epoch of the Stable document it acted under.
        epoch: u64,
    },
    /// A node that leaves has handed over all it had.
    Left {
        /// Which.
        node: NodeId,
        /// The digest of its certificate.
        digest: String,
    },
}

fn one_or_several<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<NodeId>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Named {
        One(NodeId),
        Several(BTreeSet<NodeId>),
    }
    Ok(match Named::deserialize(from)? {
        Named::One(node) => BTreeSet::from([node]),
        Named::Several(nodes) => nodes,
    })
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
