//! The other nodes, reached over streams.
//!
//! A node has one link for each class; an address, where nobody knows yet who lives there, has one
//! for the control class. A circuit breaker before the links of a node keeps calls away from a peer
//! that fails or crawls; the control class passes it by, because consensus has its own pace and an
//! election must not wait for it.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tonic::async_trait;

use super::Options;
use super::counters::{Counters, count};
use super::link::{Link, Target};
use crate::cluster::NodeId;
use crate::cluster::local::Local;
use crate::cluster::net::Net;
use crate::cluster::peer::{Class, PeerError, Peers, Post, Reply, Request};
use crate::cluster::view::Liveness;
use crate::resilience::Invalid;
use crate::resilience::breaker::{Breaker, Permit, State};
use crate::resilience::retry::Backoff;
use crate::store::environment::Random;

/// Addresses with a link of their own; more are not talked to until others fall silent.
const ADDRESSES_MAX: usize = 1024;

/// What all links share.
pub(super) struct Shared {
    pub local: Arc<Local>,
    pub net: Arc<dyn Net>,
    pub options: Options,
    pub counters: Arc<Counters>,
    pub closing: CancellationToken,
    pub tasks: TaskTracker,
    random: Arc<dyn Random>,
    liveness: OnceLock<Arc<dyn Liveness>>,
    // Held for a look-up.
    hints: RwLock<BTreeMap<NodeId, String>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Shared {
    /// Where a node is reached: what gossip says, or else the last hint.
    pub fn address(&self, node: NodeId) -> Option<String> {
        let heard = self.liveness.get().and_then(|liveness| liveness.address(node));
        heard.or_else(|| self.hints.read().get(&node).cloned())
    }

    /// The wait after so many failures in a row.
    pub fn backoff(&self, failures: u32) -> Duration {
        let backoff = Backoff::new(self.options.backoff_first, self.options.backoff_longest);
        // Without randomness all wait the longest: late, but not wrong.
        backoff.wait(failures, self.random.next_u64().unwrap_or(u64::MAX))
    }
}

/// A node and the ways to it.
struct Node {
    links: [Arc<Link>; Class::ALL.len()],
    breaker: Breaker,
}

/// See the module.
pub struct PeerClient {
    shared: Arc<Shared>,
    // Held for a look-up, for writing when a new one is asked for.
    nodes: RwLock<BTreeMap<NodeId, Arc<Node>>>,
    addresses: RwLock<BTreeMap<String, Arc<Link>>>,
    // All streams end with this.
    _open: DropGuard,
}

impl PeerClient {
    /// A client that speaks for `local` over `net`. Nothing is connected yet. `random` spreads the
    /// waits after failures.
    ///
    /// # Errors
    /// The setting of the breaker that cannot be used.
    pub fn new(
        local: Arc<Local>,
        net: Arc<dyn Net>,
        options: Options,
        counters: Arc<Counters>,
        random: Arc<dyn Random>,
    ) -> Result<Self, Invalid> {
        // Each peer has one of its own, made when it is first asked.
        Breaker::new("peers", options.breaker.clone())?;
        let closing = CancellationToken::new();
        let shared = Shared {
            local,
            net,
            options,
            counters,
            closing: closing.clone(),
            tasks: TaskTracker::new(),
            random,
            liveness: OnceLock::new(),
            hints: RwLock::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            nodes: RwLock::default(),
            addresses: RwLock::default(),
            _open: closing.drop_guard(),
        })
    }

    /// Asks `liveness` for addresses from now on. The first call counts.
    pub fn listen_to(&self, liveness: Arc<dyn Liveness>) {
        // Gossip itself travels over this client: it cannot be there before.
        let _ = self.shared.liveness.set(liveness);
    }

    /// Where a node may be reached if nothing better is heard.
    pub fn hint(&self, node: NodeId, address: String) {
        self.shared.hints.write().insert(node, address);
    }

    /// What the breaker before a node lets pass; none if the node was never asked.
    pub fn breaker(&self, node: NodeId) -> Option<State> {
        self.nodes.read().get(&node).map(|node| node.breaker.state())
    }

    /// Ends all streams and waits for them to be gone.
    pub async fn close(&self) {
        self.shared.closing.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn node(&self, id: NodeId) -> Arc<Node> {
        if let Some(node) = self.nodes.read().get(&id) {
            return Arc::clone(node);
        }
        let link = |class| Arc::new(Link::new(Target::Node(id), class, Arc::clone(&self.shared)));
        let node = || {
            let settings = self.shared.options.breaker.clone();
            let breaker = Breaker::new(format!("peer {id}"), settings);
            let breaker = breaker.expect("the settings are those that were checked");
            Arc::new(Node { links: Class::ALL.map(link), breaker })
        };
        Arc::clone(self.nodes.write().entry(id).or_insert_with(node))
    }

    fn address(&self, address: &str) -> Result<Arc<Link>, PeerError> {
        if let Some(link) = self.addresses.read().get(address) {
            return Ok(Arc::clone(link));
        }
        let mut addresses = self.addresses.write();
        // Addresses come and go with every restart of every node.
        addresses.retain(|_, link| !link.is_idle());
        if addresses.len() >= ADDRESSES_MAX {
            let why = format!("links to {ADDRESSES_MAX} addresses are open, which is the limit");
            return Err(PeerError::Overloaded { node: address.to_owned(), why });
        }
        let target = Target::Address(address.to_owned());
        let link = || Arc::new(Link::new(target, Class::Control, Arc::clone(&self.shared)));
        Ok(Arc::clone(addresses.entry(address.to_owned()).or_insert_with(link)))
    }

    async fn ask(
        &self,
        link: &Arc<Link>,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<(NodeId, Reply), PeerError> {
        let counters = &self.shared.counters;
        count(&counters.requests_sent);
        let answer = link.exchange()?.call(epoch, request, timeout).await;
        match &answer {
            Err(PeerError::NoAnswer { .. }) => count(&counters.requests_unanswered),
            Err(PeerError::Overloaded { .. }) => count(&counters.requests_overloaded),
            _ => {}
        }
        answer
    }
}

/// A call that was given less time than this says nothing of a peer that did not answer it: one
/// client's short deadlines must not keep everybody else's calls from a node that is well.
const JUDGED_FROM: Duration = Duration::from_millis(500);

/// A refusal is an answer: the peer lives. A full queue says nothing of it.
fn tell(permit: Permit<'_>, error: Option<&PeerError>, timeout: Duration) {
    match error {
        Some(PeerError::Unreachable { .. } | PeerError::NoAnswer { .. })
            if timeout < JUDGED_FROM =>
        {
            drop(permit);
        }
        Some(PeerError::Unreachable { .. } | PeerError::NoAnswer { .. }) => permit.failed(),
        Some(PeerError::Overloaded { .. }) => drop(permit),
        _ => permit.succeeded(),
    }
}

#[async_trait]
impl Peers for PeerClient {
    async fn call(
        &self,
        to: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        let node = self.node(to);
        let permit = match class {
            Class::Control => None,
            Class::Foreground | Class::Background => {
                Some(node.breaker.enter().map_err(|rejected| PeerError::Unreachable {
                    node: to.to_string(),
                    why: rejected.to_string(),
                })?)
            }
        };
        let answer = self.ask(&node.links[class as usize], epoch, request, timeout).await;
        if let Some(permit) = permit {
            tell(permit, answer.as_ref().err(), timeout);
        }
        answer.map(|(_, reply)| reply)
    }

    async fn call_address(
        &self,
        address: &str,
        request: Request,
        timeout: Duration,
    ) -> Result<(NodeId, Reply), PeerError> {
        let link = self.address(address)?;
        self.ask(&link, self.shared.local.epoch(), request, timeout).await
    }
}

impl Post for PeerClient {
    fn post(&self, address: &str, request: Request) {
        let epoch = self.shared.local.epoch();
        let exchange = self.address(address).and_then(|link| link.exchange());
        if exchange.map_or(true, |exchange| exchange.post(epoch, request)) {
            count(&self.shared.counters.posts_lost);
        }
    }
}
