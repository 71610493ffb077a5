//! How many replicas must take part before a call is answered.

use crate::proto::ConsistencyLevel;

/// A consistency level. It is asked of each replica set apart: of one, or of two while the layout
/// changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Level {
    /// One replica.
    One,
    /// More than half.
    #[default]
    Quorum,
    /// Every one.
    All,
}

impl Level {
    /// The level of a request, QUORUM where it names none; `None` if this program does not know it:
    /// a stronger one must not be answered as a weaker one.
    pub fn of(level: i32) -> Option<Self> {
        Some(match ConsistencyLevel::try_from(level).ok()? {
            ConsistencyLevel::One => Self::One,
            ConsistencyLevel::Unspecified | ConsistencyLevel::Quorum => Self::Quorum,
            ConsistencyLevel::All => Self::All,
        })
    }

    /// As a request carries it.
    pub fn to_proto(self) -> i32 {
        match self {
            Self::One => ConsistencyLevel::One.into(),
            Self::Quorum => ConsistencyLevel::Quorum.into(),
            Self::All => ConsistencyLevel::All.into(),
        }
    }

    /// Replicas needed of a set of `members`.
    pub fn needed(self, members: usize) -> usize {
        match self {
            Self::One => 1.min(members),
            Self::Quorum if members == 0 => 0,
            Self::Quorum => members / 2 + 1,
            Self::All => members,
        }
    }
}
