//! Who is there and who owns what.
//!
//! | file | what |
//! |---|---|
//! | [`node_id`] | the name of a node for as long as its directory lives |
//! | [`local`] | this node, as it presents itself, and whom it will not listen to any more |
//! | [`net`] | connections, handed in, so that a simulation can be the network |
//! | [`incoming`] | connections as they come, whatever becomes of single ones |
//! | [`work`] | where work that waits for the disk is run, handed in too |
//! | [`peer`] | requests to other nodes, and the answers to theirs |
//! | [`view`] | what is known of the others from hearsay: who is up and where |
//! | [`gossip`] | that hearsay, spread by chitchat |
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
pub mod gossip;
pub mod incoming;
pub mod layout;
pub mod local;
pub mod net;
pub mod node_id;
pub mod peer;
pub mod placement;
pub mod view;
pub mod work;

pub use node_id::NodeId;
