//! What must be where: writes and reads over the replicas of a row, and what brings replicas back
//! together.
//!
//! | file | what |
//! |---|---|
//! | [`coordinator`] | a client's request on its way over the replicas |
//! | [`replica`] | the answers to other nodes' requests |
//! | [`anti_entropy`] | replicas compare themselves and become equal; safe points |
//! | [`transfer`] | a node merges what it will own |
//! | [`departure`] | a node gives away what it does not own any more |
//! | [`duties`] | when the last two do what, by the document |
//! | [`migration`] | rows copied to a member at an operator's word |
//! | [`progress`] | how far it is with either, and how fast it may be |
//! | [`hints`] | rows kept for a node that missed them |
//! | [`fence`] | the layout's fence, as it is needed here |
//! | [`level`], [`error`] | what a caller asks for and what it is told |
//! | `early` | what was found in memory is told when it is durable |
//! | [`reason`] | why a row was not taken or told, where others act on it |
//! | `lane`, `messages` | the way to one peer; rows cut into messages |
//! | `convert` | what the store answers, as messages and back |
//! | `page` | rows of a range of tokens, a page at a time |
//! | [`tree`], `sum` | hashes of leaves, kept up to date; what rows add up to |
//! | `reading` | rows by their keys |
//!
//! Ownership comes from the layout document, liveness from hearsay: the first decides, the second
//! only spares waiting. Everything here runs on tokio's clock and in one thread if need be.

pub mod anti_entropy;
mod convert;
pub mod coordinator;
pub mod departure;
pub mod duties;
mod early;
pub mod error;
pub mod fence;
pub mod hints;
mod lane;
pub mod level;
mod messages;
pub mod migration;
mod page;
pub mod progress;
mod reading;
pub mod reason;
pub mod replica;
mod sum;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod tree;

pub use coordinator::{
    Coordinator, CoordinatorOptions, KeyRead, ReadOptions, ScannedRow, Seen, Walk, WalkPage, Want,
    WriteOptions,
};
pub use early::settled;
pub use error::{Error, Result};
pub use fence::{Closed, Fence, LayoutFence, Pass};
pub use level::Level;
pub use replica::Replica;

use crate::cluster::layout::{Layout, Sets};
