//! What a coordinator answers when it cannot do what it was asked.

use crate::proto;
use crate::store::{self, Outcome};

/// Result with the coordinator's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store of this node refused it.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Too few replicas are up. Nothing was done.
    #[error("{reachable} of the replicas can be reached, {needed} are needed")]
    Unavailable {
        /// Replicas needed in the set that has the fewest.
        needed: usize,
        /// Replicas of it that are up.
        reachable: usize,
    },
    /// Replicas failed or refused, so that the write cannot be acknowledged any more.
    #[error("{acks} replicas have the write, {needed} are needed: {why}")]
    TooFewAcks {
        /// Replicas that made it durable.
        acks: usize,
        /// Replicas needed.
        needed: usize,
        /// What the last one said.
        why: String,
    },
    /// Time was over before enough replicas had made the write durable.
    #[error("{acks} replicas have the write in time, {needed} are needed")]
    WriteTimeout {
        /// Replicas that made it durable.
        acks: usize,
        /// Replicas needed.
        needed: usize,
    },
    /// Replicas failed, and none is left to ask.
    #[error("{answers} replicas answered, {needed} are needed: {why}")]
    TooFewAnswers {
        /// Replicas that answered.
        answers: usize,
        /// Replicas needed.
        needed: usize,
        /// What the last one said.
        why: String,
    },
    /// Time was over before enough replicas had answered.
    #[error("{answers} replicas answered in time, {needed} are needed")]
    ReadTimeout {
        /// Replicas that answered.
        answers: usize,
        /// Replicas needed.
        needed: usize,
    },
    /// No replica that can be reached shows all that the request's context has seen.
    #[error("no replica that can be reached shows what the context has seen")]
    Stale,
    /// The layout changed and this node did not learn the new one in time. Nothing was done.
    #[error("the layout changed, the new one was not learnt in time")]
    LayoutUnknown,
    /// A forwarded write found no replica that would take it. Nothing was done.
    #[error("no replica took the write: {why}")]
    NotForwarded {
        /// What the last one said.
        why: String,
    },
    /// A write was forwarded, and no answer came back.
    #[error("the replica that was to coordinate did not answer: {why}")]
    Lost {
        /// Why.
        why: String,
    },
    /// A part of the ring cannot be read, and so the scan does not go on. What was shown before it
    /// stands.
    #[error("partition {partition} cannot be read: {source}")]
    Partition {
        /// The first partition that is not read.
        partition: u32,
        /// Why.
        source: Box<Error>,
    },
    /// What the replica said that a request was forwarded to.
    #[error("{}", .0.message)]
    Forwarded(Box<proto::Failure>),
}

impl Error {
    /// A name for programs, in `UPPER_SNAKE`; it never changes.
    pub fn reason(&self) -> &str {
        match self {
            Self::Store(error) => error.reason(),
            Self::Unavailable { .. } => "QUORUM_UNAVAILABLE",
            Self::TooFewAcks { .. } => "TOO_FEW_ACKS",
            Self::WriteTimeout { .. } | Self::ReadTimeout { .. } => "DEADLINE_EXCEEDED",
            Self::TooFewAnswers { .. } => "TOO_FEW_ANSWERS",
            Self::Stale => "STALE",
            Self::LayoutUnknown => "STALE_LAYOUT",
            Self::NotForwarded { .. } => "NOT_FORWARDED",
            Self::Lost { .. } => "NO_ANSWER",
            Self::Partition { source, .. } => source.reason(),
            Self::Forwarded(failure) => &failure.reason,
        }
    }

    /// The error for a write that was not minted because of it.
    pub(crate) fn not_applied(self) -> Self {
        match self.outcome() {
            Outcome::NotApplied => self,
            Outcome::Unknown => Self::NotForwarded { why: self.to_string() },
        }
    }

    /// What became of the write that got this error. Means nothing for reads.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Store(error) => error.outcome(),
            Self::TooFewAcks { .. } | Self::WriteTimeout { .. } | Self::Lost { .. } => {
                Outcome::Unknown
            }
            Self::Forwarded(failure) => match failure.outcome() {
                proto::Outcome::NotApplied => Outcome::NotApplied,
                proto::Outcome::Unknown | proto::Outcome::Unspecified => Outcome::Unknown,
            },
            _ => Outcome::NotApplied,
        }
    }
}
