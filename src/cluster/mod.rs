//! Who is there and who owns what.
//!
//! | file | what |
//! |---|---|
//! | [`node_id`] | the name of a node for as long as its directory lives |
//! | [`net`] | connections, handed in, so that a simulation can be the network |
//! | [`incoming`] | connections as they come, whatever becomes of single ones |
//! | [`work`] | where work that waits for the disk is run, handed in too |
//! | [`peer`] | requests to other nodes, and the answers to theirs |
//! | [`layout`] | the document that decides: members, tenants, who owns which partition |
//!
//! It knows nothing of rows beyond where they belong.

pub mod incoming;
pub mod layout;
pub mod net;
pub mod node_id;
pub mod peer;
pub mod work;

pub use node_id::NodeId;
