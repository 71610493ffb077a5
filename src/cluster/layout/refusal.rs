//! Why a command changes nothing.

use crate::store;

use super::Answer;

/// The reasons of [`Answer::Refused`] that are the layout's own; those of tenants are
/// [`store::Error::reason`]'s. They never change: programs compare them.
pub mod reason {
    /// No cluster was formed yet.
    pub const NOT_FORMED: &str = "NOT_FORMED";
    /// Another cluster was formed already.
    pub const ALREADY_FORMED: &str = "ALREADY_FORMED";
    /// A cluster cannot be formed so.
    pub const INVALID_CLUSTER: &str = "INVALID_CLUSTER";
    /// A member's name, zone, address, weight or certificate is not as it must be.
    pub const INVALID_MEMBER: &str = "INVALID_MEMBER";
    /// There are as many members, or owners, as there can be.
    pub const TOO_MANY_MEMBERS: &str = "TOO_MANY_MEMBERS";
    /// It was planned on, or says something about, another epoch than the document's.
    pub const STALE_EPOCH: &str = "STALE_EPOCH";
    /// Another transition has not ended.
    pub const TRANSITION_IN_PROGRESS: &str = "TRANSITION_IN_PROGRESS";
    /// No transition is under way.
    pub const NO_TRANSITION: &str = "NO_TRANSITION";
    /// The change would change nothing.
    pub const NOTHING_TO_DO: &str = "NOTHING_TO_DO";
    /// The node is no member.
    pub const UNKNOWN_NODE: &str = "UNKNOWN_NODE";
    /// The node is a member already.
    pub const ALREADY_A_MEMBER: &str = "ALREADY_A_MEMBER";
    /// The id belonged to a node that left, leaves or was removed.
    pub const NODE_ID_RETIRED: &str = "NODE_ID_RETIRED";
    /// The node owns nothing, or is not in the state for this.
    pub const NOT_AN_OWNER: &str = "NOT_AN_OWNER";
    /// The node has nothing to sync in this transition.
    pub const NOT_A_SYNCER: &str = "NOT_A_SYNCER";
    /// Too few owners would be left.
    pub const TOO_FEW_OWNERS: &str = "TOO_FEW_OWNERS";
    /// Of some partition too few replicas would be left to learn its rows from.
    pub const TOO_FEW_SOURCES: &str = "TOO_FEW_SOURCES";
    /// What is accepted to be lost is not what would be.
    pub const LOSS_DIFFERS: &str = "LOSS_DIFFERS";
    /// A replacement is a change of its own, of one node by one other.
    pub const MIXED_CHANGE: &str = "MIXED_CHANGE";
    /// The tenant is not known.
    pub const UNKNOWN_TENANT: &str = "UNKNOWN_TENANT";
    /// The node votes on the layout still: without it the others might not be enough to.
    pub const STILL_VOTES: &str = "STILL_VOTES";
    /// The replication factor of a cluster of several owners is changed by a change of the layout.
    pub const REPLICATION_FACTOR_FIXED: &str = "REPLICATION_FACTOR_FIXED";

    /// All of them.
    pub const ALL: [&str; 21] = [
        NOT_FORMED,
        ALREADY_FORMED,
        INVALID_CLUSTER,
        INVALID_MEMBER,
        TOO_MANY_MEMBERS,
        STALE_EPOCH,
        TRANSITION_IN_PROGRESS,
        NO_TRANSITION,
        NOTHING_TO_DO,
        UNKNOWN_NODE,
        ALREADY_A_MEMBER,
        NODE_ID_RETIRED,
        NOT_AN_OWNER,
        NOT_A_SYNCER,
        TOO_FEW_OWNERS,
        TOO_FEW_SOURCES,
        LOSS_DIFFERS,
        MIXED_CHANGE,
        UNKNOWN_TENANT,
        STILL_VOTES,
        REPLICATION_FACTOR_FIXED,
    ];
}

/// A command that changes nothing, and why.
#[derive(Debug)]
pub(super) struct Refusal {
    reason: &'static str,
    message: String,
}

impl Refusal {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    pub(super) fn into_message(self) -> String {
        self.message
    }
}

impl From<store::Error> for Refusal {
    fn from(error: store::Error) -> Self {
        Self::new(error.reason(), error.to_string())
    }
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { reason: refusal.reason.to_owned(), message: refusal.message }
    }
}
