//! The identity of one write.

use std::fmt;

use super::actor::Actor;

/// The hash of a tenant, key and idempotency key: the same write has the same token everywhere.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(u128);

impl Token {
    /// The token with this hash.
    pub const fn new(hash: u128) -> Self {
        Self(hash)
    }

    /// The hash.
    pub const fn to_u128(self) -> u128 {
        self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The identity of one write.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Dot {
    /// A write without an idempotency key, named by who minted it and when.
    Plain {
        /// The minting actor.
        actor: Actor,
        /// The time of the minting clock; no actor ever mints the same one twice.
        time: u64,
    },
    /// A write with an idempotency key, named by the key: a retry through another node is the same
    /// dot. Never in last-write-wins rows, where the two times of a retried token would make both
    /// copies lose (`traces::lww_plain_dots`).
    Token(Token),
}
