//! Who is there and who owns what.
//!
//! | file | what |
//! |---|---|
//! | [`node_id`] | the name of a node for as long as its directory lives |
//! | [`net`] | connections, handed in, so that a simulation can be the network |
//! | [`peer`] | requests to other nodes, and the answers to theirs |
//! | [`layout`] | the document that decides: members, tenants, who owns which partition |
//! | [`consensus`] | the group that orders changes to the document |
//! | [`fence`] | the document a node acts under, durable before it counts |
//! | [`formation`] | how a node gets its cluster |
//! | [`placement`] | which owners hold which partition |
//!
//! It knows nothing of rows beyond where they belong.

pub mod consensus;
#[cfg(test)]
pub(crate) mod double_net;
pub mod fence;
pub mod formation;
pub mod layout;
pub mod net;
pub mod node_id;
pub mod peer;
pub mod placement;

pub use node_id::NodeId;
