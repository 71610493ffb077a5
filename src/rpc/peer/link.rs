//! The way to one peer for one class of work: a stream, opened when it is needed.
//!
//! 1. There is at most one stream that takes requests. One that failed is opened again by the first
//!    request after a wait that grows with every failure; before that, requests fail at once.
//! 2. The address is asked for anew each time: a node that comes back elsewhere is found again.
//! 3. Who answers must be the node that was meant; see `hello`.
//! 4. A stream that was begun before this node had a cluster is closed when it enters one: the
//!    other side holds us to what we said. All are closed when it learns that it was put back: no
//!    new one is opened then (see `hello`).

use std::io;
use std::pin::pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tonic::transport::{Endpoint, Uri};
use tonic::{Status, Streaming};

use super::client::Shared;
use super::counters::count;
use super::exchange::{Exchange, Requests};
use super::failure::from_failure;
use super::hello;
use crate::cluster::NodeId;
use crate::cluster::peer::{Class, PeerError, Reply};
use crate::proto::PeerReply;
use crate::proto::peer_client::PeerClient as Service;

/// Whom a link leads to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    Node(NodeId),
    Address(String),
}

impl Target {
    fn node(&self) -> Option<NodeId> {
        match self {
            Self::Node(node) => Some(*node),
            Self::Address(_) => None,
        }
    }

    /// As errors name it.
    pub fn name(&self) -> String {
        match self {
            Self::Node(node) => node.to_string(),
            Self::Address(address) => address.clone(),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Link {
    target: Target,
    class: Class,
    shared: Arc<Shared>,
    // Held for a few instructions.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    exchange: Option<Arc<Exchange>>,
    /// In a row.
    failures: u32,
    /// No new stream before this, and why.
    closed: Option<(Instant, PeerError)>,
}

impl Link {
    pub fn new(target: Target, class: Class, shared: Arc<Shared>) -> Self {
        Self { target, class, shared, state: Mutex::default() }
    }

    /// The stream, opened if there is none.
    pub fn exchange(self: &Arc<Self>) -> Result<Arc<Exchange>, PeerError> {
        let mut state = self.state.lock();
        if let Some(exchange) = &state.exchange
            && exchange.takes()
        {
            return Ok(Arc::clone(exchange));
        }
        if let Some((until, why)) = &state.closed
            && Instant::now() < *until
        {
            return Err(why.clone());
        }
        if self.shared.closing.is_cancelled() {
            return Err(PeerError::Unreachable {
                node: self.target.name(),
                why: "this node is stopping".to_owned(),
            });
        }
        let options = &self.shared.options;
        let in_flight = options.in_flight_max(self.class);
        let exchange = Arc::new(Exchange::new(self.target.name(), options, in_flight));
        state.exchange = Some(Arc::clone(&exchange));
        drop(state);
        let run = Arc::clone(self).run(Arc::clone(&exchange));
        self.shared.tasks.spawn(run);
        Ok(exchange)
    }

    /// Whether nothing would be lost if the link were forgotten.
    pub fn is_idle(&self) -> bool {
        let state = self.state.lock();
        let waits = state.closed.as_ref().is_some_and(|(until, _)| Instant::now() < *until);
        state.exchange.is_none() && !waits
    }

    async fn run(self: Arc<Self>, exchange: Arc<Exchange>) {
        let ended = tokio::select! {
            ended = self.drive(&exchange) => ended,
            () = self.shared.closing.cancelled() => {
                Err(exchange.unreachable("this node is stopping"))
            }
        };
        let why = match &ended {
            Ok(()) => exchange.unreachable("the stream was closed"),
            Err(why) => why.clone(),
        };
        let mut state = self.state.lock();
        // One that was closed may have a successor already, which is not to blame.
        if state.exchange.as_ref().is_some_and(|current| Arc::ptr_eq(current, &exchange)) {
            state.exchange = None;
            state.closed = ended.err().map(|why| {
                state.failures = state.failures.saturating_add(1);
                let wait = self.shared.backoff(state.failures);
                (Instant::now() + wait, why)
            });
        }
        drop(state);
        let unanswered = exchange.end(&why);
        if unanswered > 0 {
            tracing::debug!(peer = self.target.name(), unanswered, "a stream broke: {why}");
        }
    }

    /// Opens the stream and reads it to its end.
    async fn drive(&self, exchange: &Arc<Exchange>) -> Result<(), PeerError> {
        let counters = &self.shared.counters;
        let cluster = self.shared.local.cluster();
        let opening = timeout(self.shared.options.open_timeout, self.open(exchange)).await;
        let opened = opening.unwrap_or_else(|_| Err(exchange.unreachable("it does not answer")));
        let mut replies = opened.inspect_err(|_| count(&counters.streams_failed))?;
        count(&counters.streams_opened);
        self.state.lock().failures = 0;
        let mut reading = pin!(read(&self.shared, exchange, &mut replies));
        tokio::select! {
            ended = &mut reading => {
                return ended.and(Err(exchange.unreachable("it ended the stream")));
            }
            () = self.until_useless(exchange, cluster) => exchange.close(),
        }
        // What is in flight is still answered, each within its own time.
        let rest = timeout(self.shared.options.close_timeout, reading).await;
        rest.unwrap_or(Ok(()))
    }

    /// Returns when the stream is of no use any more.
    async fn until_useless(&self, exchange: &Exchange, cluster: Option<NodeId>) {
        let mut entered = self.shared.local.cluster_watch();
        let mut rolled_back = self.shared.local.rolled_back();
        let changed = async {
            // They fail only when the node itself is gone.
            tokio::select! {
                _ = entered.wait_for(|now| *now != cluster) => {}
                _ = rolled_back.wait_for(|back| *back) => {}
            }
        };
        let mut changed = pin!(changed);
        loop {
            tokio::select! {
                () = &mut changed => return,
                () = tokio::time::sleep(self.shared.options.idle_timeout) => {
                    if exchange.was_idle() {
                        return;
                    }
                }
            }
        }
    }

    async fn open(&self, exchange: &Arc<Exchange>) -> Result<Streaming<PeerReply>, PeerError> {
        let shared = &self.shared;
        let address = match &self.target {
            Target::Address(address) => address.clone(),
            Target::Node(node) => {
                let address = shared.address(*node);
                address.ok_or_else(|| exchange.unreachable("its address is not known"))?
            }
        };
        let lost = |what: &str, why: &dyn std::fmt::Display| {
            exchange.unreachable(&format!("cannot {what} {address}: {why}"))
        };
        let channel = endpoint(&shared.options)
            .connect_with_connector(connector(Arc::clone(shared), address.clone()))
            .await
            .map_err(|error| lost("connect to", &root(&error)))?;
        let limit = shared.options.message_bytes_max;
        let mut service =
            Service::new(channel).max_decoding_message_size(limit).max_encoding_message_size(limit);
        let target = self.target.node();
        let hello = hello::hello(&shared.local, target, self.class);
        let requests = Requests::new(Arc::clone(exchange), hello);
        let replies = service.exchange(requests).await;
        let mut replies = replies.map_err(|status| lost("talk to", &status))?.into_inner();
        let first = replies.message().await.map_err(|status| lost("talk to", &status))?;
        let body = first.and_then(|reply| reply.body);
        let theirs = match body {
            Some(Reply::Hello(theirs)) => theirs,
            Some(Reply::Failure(failure)) => {
                let refused = from_failure(failure, &self.target.name());
                return Err(lost("talk to", &refused));
            }
            _ => return Err(lost("talk to", &"it did not say who it is")),
        };
        let partner = hello::check(&shared.local, &theirs, target).map_err(|refusal| {
            shared.counters.refuse(&refusal, &address);
            lost("talk to", &PeerError::from(refusal))
        })?;
        exchange.open(partner.node);
        Ok(replies)
    }
}

/// Takes answers until the stream ends.
async fn read(
    shared: &Shared,
    exchange: &Exchange,
    replies: &mut Streaming<PeerReply>,
) -> Result<(), PeerError> {
    loop {
        match replies.message().await {
            Ok(Some(reply)) => {
                shared.local.hear_epoch(reply.epoch);
                if reply.id == 0 {
                    // The stream as a whole is refused: what follows is its end.
                    if let Some(Reply::Failure(failure)) = reply.body {
                        return Err(exchange.unreachable(&failure.message));
                    }
                    continue;
                }
                exchange.answer(reply);
            }
            Ok(None) => return Ok(()),
            Err(status) => return Err(exchange.unreachable(&text(&status))),
        }
    }
}

fn text(status: &Status) -> String {
    format!("the stream broke: {}", status.message())
}

/// The innermost cause: the others only say that there is one.
fn root(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Windows large enough for a batch of rows in one flight, and frames for a page of them;
/// keep-alive finds a peer whose machine went away without a word.
fn endpoint(options: &super::Options) -> Endpoint {
    // The name is never resolved: the connector knows where to.
    Endpoint::from_static("http://peer.pairdb.invalid")
        .initial_stream_window_size(options.window_bytes)
        .initial_connection_window_size(options.window_bytes)
        .max_frame_size(options.frame_bytes)
        .http2_keep_alive_interval(options.keep_alive)
        .keep_alive_timeout(options.keep_alive)
        .keep_alive_while_idle(true)
}

type Io = hyper_util::rt::TokioIo<Box<dyn crate::cluster::net::Stream>>;

/// Connects to `address`, whatever it is asked for.
fn connector(
    shared: Arc<Shared>,
    address: String,
) -> impl tower::Service<Uri, Response = Io, Error = io::Error, Future: Send> + Send + 'static {
    tower::service_fn(move |_: Uri| {
        let (shared, address) = (Arc::clone(&shared), address.clone());
        async move {
            let stream = shared.net.connect(&address).await?;
            Ok::<Io, io::Error>(hyper_util::rt::TokioIo::new(stream))
        }
    })
}
