//! Who mints dots.

use std::fmt;

/// One uninterrupted incarnation of a node's knowledge: a random number, durable in the data
/// directory.
///
/// An actor is replaced by a fresh one whenever the node may have forgotten something it told
/// others (an unclean start, a damaged block, a restored directory). Otherwise a new dot of it
/// would claim, in other rows, to have seen the forgotten one, and kill it there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Actor(u64);

impl Actor {
    /// The actor with this number, which the caller drew at random.
    pub const fn new(random: u64) -> Self {
        Self(random)
    }

    /// The number.
    pub const fn to_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
