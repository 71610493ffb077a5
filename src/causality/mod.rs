//! Rows and their causal history: what was written, what has seen what, and what may be forgotten.
//!
//! A [`Row`] is a state of a join-semilattice; replicas, memtables, tables and the network all
//! combine rows with the one [`join::join`]. This module is pure: bytes and numbers in, bytes and
//! numbers out. It opens no file, reads no clock and draws no random number; whoever calls it
//! hands those in.
//!
//! | file | what it holds |
//! |---|---|
//! | [`actor`], [`dot`] | who wrote, and the identity of one write |
//! | [`clock`] | the hybrid logical clock and its durable lease |
//! | [`version`], [`row`] | one sibling; all of a key's state |
//! | [`join`] | the lattice join, with and without floors |
//! | [`mod@write`] | one write on top of a row |
//! | [`floor`] | safe points: what is refused, forgotten, pruned |
//! | [`forget`] | which tokens a row forgets early, and what it contains all the same |
//! | [`context`] | what a client has seen, as opaque bytes |
//! | [`codec`] | the canonical bytes of a row |
//!
//! # Invariants
//! 1. Every live dot of a row is *seen* by the row: its actor's entry (or its token) covers it.
//! 2. A dot names one write. Two versions under one dot are retries of it, and one total order
//!    ([`version::Version::rank`]) decides which bytes stay.
//! 3. Equal rows have equal bytes, so rows are compared and hashed without being decoded.
//! 4. A last-write-wins row holds at most one version and no clock entries: its version's own time
//!    is at or above everything it has ever seen, so entries would say nothing more.

pub mod actor;
pub mod clock;
pub mod codec;
pub mod context;
pub mod dot;
pub mod floor;
pub mod forget;
pub mod join;
pub mod row;
pub mod version;
mod wire;
pub mod write;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod traces;

pub use actor::Actor;
pub use clock::HybridClock;
pub use codec::DecodeError;
pub use context::{Context, ContextError, ContextKey};
pub use dot::{Dot, Token};
pub use join::{ModeMismatch, join_with_floors};
pub use row::{Mode, Row};
pub use version::{Payload, Version};
pub use write::{NewVersion, Outcome};
