//! Running a node: its settings, its life from start to stop, and what an operator sees of it.
//!
//! | file | what |
//! |---|---|
//! | [`config`] | settings from file, environment and flags |
//! | [`node`] | the life of `pairdb serve` |
//! | `open` | opens its store as the settings say |
//! | `rolled_back` | refuses a directory that was put back to an earlier state |
//! | `stop` | its end |
//! | `own` | what it is by itself, and how it gets in touch with the others |
//! | `member`, `follow` | what makes it a member of a cluster, and what a member does by itself |
//! | `peer_handler` | the answers to other nodes: each request to the part it is for |
//! | [`world`] | the network, the files and the time it lives in |
//! | [`health`] | what state the node is in, and what that means for live and ready |
//! | [`admin_http`] | `/metrics` and `/health...` over HTTP |
//! | [`metrics`] | the registry, and figures that are read when they are asked for |
//! | [`logging`] | log lines |
//! | `kubernetes`, [`leave`] | whether a pod that is told to end is to come back, and what if not |
//! | `scrub` | tables read again every so often |
//! | [`shutdown`] | signals |
//! | `ticks` | work that is done every so often |

pub mod admin_http;
pub mod config;
mod follow;
pub mod health;
mod kubernetes;
pub mod leave;
pub mod logging;
mod member;
pub mod metrics;
pub mod node;
mod open;
mod own;
mod peer_handler;
mod rolled_back;
mod scrub;
pub mod shutdown;
mod stop;
mod ticks;
pub mod world;

/// The program's version and the commit it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("PAIRDB_COMMIT"), ")");
