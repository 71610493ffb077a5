//! Who is there and who owns what.
//!
//! | file | what |
//! |---|---|
//! | [`node_id`] | the name of a node for as long as its directory lives |
//! | [`net`] | connections, handed in, so that a simulation can be the network |
//! | [`peer`] | requests to other nodes, and the answers to theirs |
//! | [`view`] | what is known of the others from hearsay: who is up and where |
//! | [`layout`] | the document that decides: members, tenants, who owns which partition |
//! | [`placement`] | which owners hold which partition |
//!
//! It knows nothing of rows beyond where they belong.

pub mod layout;
pub mod net;
pub mod node_id;
pub mod peer;
pub mod placement;
pub mod view;

pub use node_id::NodeId;
