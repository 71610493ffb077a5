//! Requests to other nodes, and the answers to theirs.
//!
//! [`Peers`] is how everything in the cluster talks to a node; `rpc::peer` implements it on streams
//! (see `peer.proto`), tests in memory. [`PeerHandler`] is who answers. Both sides speak the bodies
//! of the messages; ids, deadlines and the order of answers are the transport's.
//!
//! 1. A request is sent at most once. Whoever sends it again does so knowingly.
//! 2. Every call ends by its timeout; the queues below are bounded and refuse what is too much.
//! 3. A reply is of the node that was meant: the streams are bound to cluster, node and generation.

use std::time::Duration;

use tonic::async_trait;

use super::NodeId;
use crate::proto::{self, peer_reply, peer_request};

/// The body of a request.
pub type Request = peer_request::Body;
/// The body of a reply.
pub type Reply = peer_reply::Body;

/// Classes of work. Each has a stream of its own, so that bulk never stands in the way of a write
/// and nothing stands in the way of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Consensus, gossip, documents, joining.
    Control,
    /// Reads and writes somebody waits for.
    Foreground,
    /// Hints, repair, transfer.
    Background,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Control, Self::Foreground, Self::Background];
}

/// The reason of a peer that has what it was sent, and has not seen it durable in time.
pub const NOT_DURABLE: &str = "NOT_DURABLE";

/// Why a peer gave no answer, or which answer it gave instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Nothing was sent: it cannot be reached, its address is not known, or its breaker is open.
    #[error("{node} cannot be reached: {why}")]
    Unreachable {
        /// The peer: its id, or its address where that is all there is.
        node: String,
        /// Why.
        why: String,
    },
    /// It was sent, and there was no answer: it may have been done.
    #[error("no answer: {why}")]
    NoAnswer {
        /// Why.
        why: String,
    },
    /// The queue to the peer, or of it, is full. Nothing was done.
    #[error("too much waits for {node}: {why}")]
    Overloaded {
        /// The peer.
        node: String,
        /// How much, and the limit.
        why: String,
    },
    /// The peer acts under a later layout: nothing was done. Learn it and send again.
    #[error("the layout has gone on to epoch {epoch}")]
    StaleLayout {
        /// The peer's.
        epoch: u64,
    },
    /// The peer owns nothing of the kind under the epoch of the request. Nothing was done.
    #[error("the node is no replica of it")]
    NotAReplica,
    /// It refused: nothing was done, but where the reason is [`NOT_DURABLE`].
    #[error("{reason}: {message}")]
    Refused {
        /// UPPER_SNAKE_CASE, as in `ErrorInfo`.
        reason: String,
        /// For people.
        message: String,
    },
}

impl PeerError {
    /// Whether what was asked may have been done.
    pub fn may_have_run(&self) -> bool {
        match self {
            Self::NoAnswer { .. } => true,
            Self::Refused { reason, .. } => reason == NOT_DURABLE,
            _ => false,
        }
    }

    /// The reply is none to the request.
    pub fn unexpected() -> Self {
        Self::NoAnswer { why: "a reply to something else".to_owned() }
    }
}

impl Reply {
    /// What became of each of `rows` rows that were written.
    ///
    /// # Errors
    /// [`PeerError::unexpected`], also where it tells of another number of rows.
    pub fn row_results(self, rows: usize) -> Result<Vec<proto::RowResult>, PeerError> {
        match self {
            Self::WriteRows(reply) if reply.results.len() == rows => Ok(reply.results),
            _ => Err(PeerError::unexpected()),
        }
    }

    /// The answer about each of `keys` keys that were read.
    ///
    /// # Errors
    /// As for [`Reply::row_results`].
    pub fn row_answers(self, keys: usize) -> Result<Vec<proto::RowAnswer>, PeerError> {
        match self {
            Self::ReadRows(reply) if reply.answers.len() == keys => Ok(reply.answers),
            _ => Err(PeerError::unexpected()),
        }
    }
}

/// The other nodes.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Asks a node, under a layout epoch.
    ///
    /// # Errors
    /// See [`PeerError`]; [`PeerError::NoAnswer`] when `timeout` is over.
    async fn call(
        &self,
        to: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError>;

    /// Asks whoever is at `address` (`host:port`), on [`Class::Control`]: for seeds. Says who it
    /// was.
    ///
    /// # Errors
    /// As [`Peers::call`].
    async fn call_address(
        &self,
        address: &str,
        request: Request,
        timeout: Duration,
    ) -> Result<(NodeId, Reply), PeerError>;
}

/// Answers the requests of other nodes.
#[async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers one request of `from`, which acts under the layout of `epoch` and waits for
    /// `timeout`; of its class it depends who waits behind it. [`PeerError::Unreachable`] and
    /// [`PeerError::NoAnswer`] are not for it to give.
    ///
    /// The future is dropped when the time is over or the asker has gone: what must not stop half
    /// way runs elsewhere.
    ///
    /// # Errors
    /// See [`PeerError`].
    async fn handle(
        &self,
        from: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError>;

    /// Takes a message that is not answered: gossip. It must not wait; what it cannot take at once
    /// is lost. By default everything is.
    fn take_post(&self, from: NodeId, request: Request) {
        let _ = (from, request);
    }
}

/// Sends what is not answered.
pub trait Post: Send + Sync + 'static {
    /// Sends `request` to whoever is at `address` (`host:port`), on [`Class::Control`], if there is
    /// a way to. Never waits; of what cannot be sent soon enough the oldest is lost.
    fn post(&self, address: &str, request: Request);
}
