//! The one table between [`PeerError`] and the `Failure` that carries it.
//!
//! | error | reason | code |
//! |---|---|---|
//! | `Overloaded` | `OVERLOADED` | RESOURCE_EXHAUSTED |
//! | `StaleLayout` | `STALE_LAYOUT`, metadata `epoch` | FAILED_PRECONDITION |
//! | `NotAReplica` | `NOT_A_REPLICA` | FAILED_PRECONDITION |
//! | `NoAnswer` | `NO_ANSWER` | UNKNOWN |
//! | `Unreachable` | `UNREACHABLE` | UNAVAILABLE |
//! | `Refused` | its own | FAILED_PRECONDITION |
//!
//! 1. What an error says of the outcome survives the wire: `NO_ANSWER` and a refusal's own
//!    `NOT_DURABLE` stay the only ones after which the request may have been done.

use tonic::Code;

use crate::cluster::peer::PeerError;
use crate::proto::Failure;
use crate::replication::reason::NOT_A_REPLICA;

const OVERLOADED: &str = "OVERLOADED";
const STALE_LAYOUT: &str = "STALE_LAYOUT";
const NO_ANSWER: &str = "NO_ANSWER";
const UNREACHABLE: &str = "UNREACHABLE";
/// Of [`STALE_LAYOUT`], in the metadata.
const EPOCH: &str = "epoch";

/// The error as a message.
pub(super) fn to_failure(error: PeerError) -> Failure {
    let text = error.to_string();
    let mut failure = Failure::default();
    let (code, reason, message) = match error {
        PeerError::Overloaded { why, .. } => (Code::ResourceExhausted, OVERLOADED.to_owned(), why),
        PeerError::StaleLayout { epoch } => {
            failure.metadata.insert(EPOCH.to_owned(), epoch.to_string());
            (Code::FailedPrecondition, STALE_LAYOUT.to_owned(), text)
        }
        PeerError::NotAReplica => (Code::FailedPrecondition, NOT_A_REPLICA.to_owned(), text),
        PeerError::NoAnswer { why } => (Code::Unknown, NO_ANSWER.to_owned(), why),
        PeerError::Unreachable { why, .. } => (Code::Unavailable, UNREACHABLE.to_owned(), why),
        PeerError::Refused { reason, message } => (Code::FailedPrecondition, reason, message),
    };
    failure.code = code as i32;
    failure.reason = reason;
    failure.message = message;
    failure
}

/// The error that `node` meant.
pub(super) fn from_failure(failure: Failure, node: &str) -> PeerError {
    let Failure { reason, message, metadata, .. } = failure;
    match reason.as_str() {
        OVERLOADED => PeerError::Overloaded { node: node.to_owned(), why: message },
        STALE_LAYOUT => match metadata.get(EPOCH).and_then(|epoch| epoch.parse().ok()) {
            Some(epoch) => PeerError::StaleLayout { epoch },
            None => PeerError::Refused { reason, message },
        },
        NOT_A_REPLICA => PeerError::NotAReplica,
        NO_ANSWER => PeerError::NoAnswer { why: message },
        UNREACHABLE => PeerError::Unreachable { node: node.to_owned(), why: message },
        _ => PeerError::Refused { reason, message },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_means_the_same_on_both_sides_of_the_wire() {
        let node = || "n".to_owned();
        let why = || "because".to_owned();
        for error in [
            PeerError::Overloaded { node: node(), why: why() },
            PeerError::StaleLayout { epoch: u64::MAX },
            PeerError::NotAReplica,
            PeerError::NoAnswer { why: why() },
            PeerError::Unreachable { node: node(), why: why() },
            PeerError::Refused { reason: "QUOTA".into(), message: why() },
        ] {
            let failure = to_failure(error.clone());
            assert_ne!(failure.code, 0);
            assert_eq!(from_failure(failure, "n"), error);
        }
    }

    #[test]
    fn a_failure_without_its_figure_is_still_a_refusal() {
        let failure = Failure { reason: STALE_LAYOUT.into(), ..Failure::default() };
        assert!(matches!(from_failure(failure, "n"), PeerError::Refused { .. }));
        let bare = from_failure(Failure::default(), "n");
        assert!(!bare.may_have_run());
    }
}
