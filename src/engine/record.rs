//! What is stored under a key: a row state and how much it claims.
//!
//! A [`Kind::Delta`] is always safe: it is joined with whatever is older. A [`Kind::Full`] is a
//! *claim*: it is the join of everything at or older than it on this node, so a reader may stop at
//! it. When the claim may be made is decided in few places (read-modify-write, flush, compaction);
//! wherever there is doubt the same bytes go in as a Delta.
//!
//! | newer \ older | Delta | Full |
//! |---|---|---|
//! | Delta | Delta = join | Full = join |
//! | Full | Full, older dropped undecoded | Full, older dropped undecoded |

/// How much a record claims; see the module page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Kind {
    /// To be joined with older records of the key.
    Delta = 0,
    /// The join of everything at or older than it on this node; hides older records.
    Full = 1,
}

impl Kind {
    /// The kind of `newer` (self) composed over `older`: Full as soon as one of them is.
    #[must_use]
    pub const fn over(self, older: Self) -> Self {
        match (self, older) {
            (Self::Delta, Self::Delta) => Self::Delta,
            _ => Self::Full,
        }
    }
}

/// A record as it is found in a source, borrowed from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Record<'a> {
    /// What the record claims.
    pub kind: Kind,
    /// The row state, in the encoding of the [`MergeOperator`](super::MergeOperator).
    pub row: &'a [u8],
}
