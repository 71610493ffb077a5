//! A network in memory for tests: links that can be cut, replies that can be lost.
//!
//! A call takes a millisecond each way on tokio's time. What is cut gives no answer, as a real
//! network that drops packets does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tonic::async_trait;

use super::NodeId;
use super::peer::{Class, PeerError, Peers, Reply, Request};

const DELAY: Duration = Duration::from_millis(1);

/// Answers for a node.
#[async_trait]
pub(crate) trait Handler: Send + Sync + 'static {
    /// See [`super::peer::PeerHandler`].
    async fn handle(
        &self,
        from: NodeId,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError>;
}

/// The network. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct DoubleNet {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    handlers: BTreeMap<NodeId, Arc<dyn Handler>>,
    addresses: BTreeMap<String, NodeId>,
    /// Both ways.
    cut: BTreeSet<(NodeId, NodeId)>,
    /// From, to.
    replies_lost: BTreeSet<(NodeId, NodeId)>,
}

struct Links {
    net: DoubleNet,
    me: NodeId,
}

impl DoubleNet {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn peers(&self, me: NodeId) -> Arc<dyn Peers> {
        Arc::new(Links { net: self.clone(), me })
    }

    pub(crate) fn serve(&self, node: NodeId, address: &str, handler: Arc<dyn Handler>) {
        let mut state = self.state.lock();
        state.addresses.insert(address.to_owned(), node);
        state.handlers.insert(node, handler);
    }

    pub(crate) fn stop(&self, node: NodeId) {
        self.state.lock().handlers.remove(&node);
    }

    pub(crate) fn cut(&self, one: NodeId, other: NodeId) {
        self.state.lock().cut.extend([(one, other), (other, one)]);
    }

    pub(crate) fn lose_replies(&self, from: NodeId, to: NodeId) {
        self.state.lock().replies_lost.insert((from, to));
    }

    pub(crate) fn heal(&self) {
        let mut state = self.state.lock();
        state.cut.clear();
        state.replies_lost.clear();
    }

    async fn deliver(
        &self,
        from: NodeId,
        to: NodeId,
        request: Request,
        within: Duration,
    ) -> Result<Reply, PeerError> {
        sleep(DELAY).await;
        let (handler, cut) = {
            let state = self.state.lock();
            (state.handlers.get(&to).cloned(), state.cut.contains(&(from, to)))
        };
        if cut {
            std::future::pending::<()>().await;
        }
        let Some(handler) = handler else {
            let why = "it does not run".to_owned();
            return Err(PeerError::Unreachable { node: to.to_string(), why });
        };
        // The receiver works on whether or not the caller waits.
        let reply = tokio::spawn(async move { handler.handle(from, request, within).await });
        let reply =
            reply.await.unwrap_or_else(|error| Err(PeerError::NoAnswer { why: error.to_string() }));
        sleep(DELAY).await;
        let lost = {
            let state = self.state.lock();
            state.cut.contains(&(from, to)) || state.replies_lost.contains(&(to, from))
        };
        if lost {
            std::future::pending::<()>().await;
        }
        reply
    }
}

#[async_trait]
impl Peers for Links {
    async fn call(
        &self,
        to: NodeId,
        _class: Class,
        _epoch: u64,
        request: Request,
        within: Duration,
    ) -> Result<Reply, PeerError> {
        let delivered = timeout(within, self.net.deliver(self.me, to, request, within)).await;
        delivered.unwrap_or_else(|_| Err(PeerError::NoAnswer { why: "in time".to_owned() }))
    }

    async fn call_address(
        &self,
        address: &str,
        request: Request,
        within: Duration,
    ) -> Result<(NodeId, Reply), PeerError> {
        let to = self.net.state.lock().addresses.get(address).copied();
        let Some(to) = to else {
            let why = "nobody listens".to_owned();
            return Err(PeerError::Unreachable { node: address.to_owned(), why });
        };
        Ok((to, self.call(to, Class::Control, 0, request, within).await?))
    }
}
