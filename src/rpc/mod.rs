//! The node's gRPC services, over one [`Store`](crate::store::Store).
//!
//! | file | what |
//! |---|---|
//! | `convert` | messages to and from the store's types |
//! | [`status`] | the one table of errors: code, reason, outcome, retry |
//! | `front` | the layer before every call: request id, limits, deadline, metrics |
//! | `receipt` | the bodies of calls that have a deadline |
//! | `method` | the calls the layer knows, by path |
//! | [`deadline`] | `grpc-timeout` and the server's cap |
//! | [`request_id`] | `x-request-id`: accepted, checked, made, echoed |
//! | [`limits`] | bounded concurrency with a bounded queue; admission by the store's pressure |
//! | `connection` | connections of any network, as the gRPC library takes them |
//! | `blocking` | bounded pools: rows of the `Replica` service; upkeep |
//! | `key_value`, `pipeline`, `scan`, `replica`, `admin` | the services |
//! | `room` | room for the answers of a pipeline |
//! | `migrate` | rows copied to another member |
//! | `plan`, `transition` | a change of the layout: what it would do; begin, abort, how far it is |
//! | `drain` | the stream that tells how a node gets on with leaving |
//! | [`peer`] | the streams between nodes, both sides |
//! | [`cluster`] | the cluster as the services see it, and the questions about it |
//! | [`metrics`] | what the layer and the services count |
//! | [`server`] | listeners and their life |
//!
//! # Invariants
//! 1. No fsync, scan or compaction runs on an async worker. A write is put into log and memtable
//!    there, and its call waits for the engine's threads to sync it (`Coordinator::submit`); pages
//!    of rows and upkeep run in a place for blocking work ([`Work`](crate::cluster::work::Work)). A
//!    point read runs inline: it costs less than a hand-over.
//! 2. Nothing waits without a limit: every queue is bounded, every wait ends at a deadline.
//! 3. A write that was submitted is never answered `not_applied`, whatever happens to its call.
//! 4. Every error carries an `ErrorInfo` of domain `pairdb`.

mod admin;
mod blocking;
pub mod cluster;
mod connection;
mod convert;
pub mod deadline;
mod drain;
mod front;
mod key_value;
pub mod limits;
mod method;
pub mod metrics;
mod migrate;
pub mod peer;
mod pipeline;
mod plan;
mod receipt;
mod replica;
pub mod request_id;
mod room;
mod scan;
pub mod server;
pub mod status;
mod transition;

pub use cluster::Cluster;
pub use front::LAYOUT_HEADER;
pub use metrics::Metrics;
pub use server::{Listeners, NodeFacts, Options, Parts, Server, Serving};
