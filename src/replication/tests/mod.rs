//! Clusters in one process, on a paused clock.

mod batches;
mod cluster;
mod deletes;
mod departures;
mod directed;
mod early;
mod epochs;
pub mod gate;
mod histories;
mod kept;
mod migrations;
mod refusals;
mod scans;
mod sums;
mod transfers;
