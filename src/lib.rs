//! PairDB: a leaderless, replicated key-value store in one binary.
//!
//! The crate is layered; a module may use only modules above it in this list
//! (`tests/architecture.rs` holds it to that):
//!
//! | module | what it is |
//! |---|---|
//! | [`causality`] | rows: versions, dots, their join, the hybrid clock. Pure |
//! | [`engine`] | ordered byte store with a merge operator: log, memtable, SSTables |
//! | [`store`] | rows in the engine: tenants, keys, limits, the node's identity |
//! | [`proto`] | generated messages, services and clients |
//! | [`cluster`] | who is there and who owns what |
//! | [`resilience`] | deadlines, retries, circuit breakers, bulkheads. Knows no other module |
//! | [`replication`] | what must be where: coordinator, replicas, hints |
//! | [`rpc`] | the gRPC services over the store |
//! | [`client`] | the Rust client of the services |
//! | [`ops`] | settings, metrics, health, the life of a node |
//! | [`verify`] | records what clients see of a cluster, and checks it |
//! | [`cli`] | the commands of the binary |
//!
//! [`engine`] is usable by itself as an embedded library; see its module page.

pub mod causality;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod engine;
pub mod ops;
pub mod proto;
pub mod replication;
pub mod resilience;
pub mod rpc;
pub mod store;
pub mod verify;
