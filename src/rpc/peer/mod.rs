//! Nodes talk to each other: tagged requests on long-lived streams, on the peer port.
//!
//! | file | what |
//! |---|---|
//! | [`client`] | [`PeerClient`]: the other nodes as `cluster::peer::Peers` |
//! | `link` | the way to one peer for one class of work |
//! | `exchange` | the asking half of one stream |
//! | [`service`] | [`PeerService`]: the answering half |
//! | [`hello`] | who speaks and whom it means; who is not spoken to |
//! | `failure` | errors as messages |
//! | [`counters`] | what is counted |
//!
//! # Invariants
//! 1. One stream for each peer and class, opened by who asks. A stream is bound to the cluster, the
//!    nodes and the generations its two sides named in their first messages.
//! 2. A request is sent at most once. If it was not sent the error says so; if it was and no answer
//!    came, the error says that too.
//! 3. Every queue is bounded in number and bytes, every wait by time.
//!    One answer that exceeds what a message may have fails alone, and not the stream.
//! 4. A connection for each stream: bulk never stands before a write in a buffer of TCP.

use std::time::Duration;

use crate::cluster::peer::Class;
use crate::engine::options::ROW_BYTES_MAX;
use crate::resilience::breaker;

pub mod client;
pub mod counters;
mod exchange;
mod failure;
pub mod hello;
mod link;
pub mod service;
#[cfg(test)]
mod tests;

pub use client::PeerClient;
pub use counters::Counters;
pub use hello::Reason;
pub use service::PeerService;

/// What can be set. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Options {
    /// Largest message taken or sent: a row as large as the engine takes, and beside it as much as
    /// a page or a batch holds before its last row.
    pub message_bytes_max: usize,
    /// Requests on one stream between their sending and their answer, for each class.
    pub in_flight: [usize; Class::ALL.len()],
    /// Requests served at once over all streams, for each class.
    pub served: [usize; Class::ALL.len()],
    /// Bytes of requests on one stream that wait for their answer.
    pub stream_bytes_max: usize,
    /// How much may be under way on a connection before the receiver says that it goes on.
    pub window_bytes: u32,
    /// Largest frame taken. Each frame of a message is a call to the system, and may wake whoever
    /// waits for it on the other side: a page in frames of 16 KiB, which is what HTTP/2 begins
    /// with, wakes threads a hundred times.
    pub frame_bytes: u32,
    /// How long opening a stream may take, from the connection to the other side's name.
    pub open_timeout: Duration,
    /// How long a stream that is closed waits for answers.
    pub close_timeout: Duration,
    /// A stream on which nothing was asked for so long is closed.
    pub idle_timeout: Duration,
    /// A connection that is silent for so long is asked for a sign of life, and has as long again
    /// to give it.
    pub keep_alive: Duration,
    /// The longest first wait after a failure.
    pub backoff_first: Duration,
    /// The longest wait after many.
    pub backoff_longest: Duration,
    /// The longest time a request is served, whatever its sender says.
    pub deadline_max: Duration,
    /// When calls to a peer fail at once.
    pub breaker: breaker::Settings,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            message_bytes_max: ROW_BYTES_MAX + (16 << 20),
            in_flight: [256, 4096, 64],
            served: [4096, 16_384, 256],
            stream_bytes_max: 64 << 20,
            window_bytes: 8 << 20,
            frame_bytes: 1 << 20,
            open_timeout: Duration::from_secs(3),
            close_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            keep_alive: Duration::from_secs(2),
            backoff_first: Duration::from_millis(50),
            backoff_longest: Duration::from_secs(2),
            deadline_max: Duration::from_secs(60),
            breaker: breaker::Settings::default(),
        }
    }
}

impl Options {
    fn in_flight_max(&self, class: Class) -> usize {
        self.in_flight[class as usize]
    }
}
