//! Which node each key goes to: the rings of the tenants in use, and connections to their nodes.
//!
//! 1. What is known may be old, and nothing depends on it: any node serves any request. A ring is
//!    asked for again when it has an age, when a node says that the layout went on, and when a node
//!    fails.
//! 2. While a ring is asked for nobody waits, except for a tenant's first.
//! 3. Nodes and tenants that are not used any more are forgotten; both are bounded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tonic::Request;

use super::connections::{Connection, Connections, Connector};
use super::ring::Ring;
use crate::proto;
use crate::proto::key_value_client::KeyValueClient;
use crate::resilience::scores::Scores;

/// A ring is asked for again at this age.
const AGE_MAX: Duration = Duration::from_secs(10);
/// One in which nodes are down, at this age: one that has just come may not be heard of everywhere.
const AGE_MAX_PARTIAL: Duration = Duration::from_secs(1);
/// After a failure, or a hint, it is asked for again at this age.
const AGE_MIN: Duration = Duration::from_millis(200);
/// How long it may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// Tenants whose rings are kept; requests of others go to any node.
const TENANTS_MAX: usize = 64;

/// See the module page.
#[derive(Debug)]
pub(super) struct Routes {
    connector: Connector,
    /// The nodes the client was given: asked where no other can be.
    given: Arc<Connections>,
    rings: RwLock<BTreeMap<String, Arc<Known>>>,
    nodes: Mutex<BTreeMap<String, Arc<Connections>>>,
    scores: Scores<String>,
}

/// What is known of a tenant.
#[derive(Debug)]
struct Known {
    /// `None`: it could not be had.
    ring: RwLock<Option<Arc<Ring>>>,
    asked: Mutex<Instant>,
    is_asking: AtomicBool,
}

/// Where an attempt goes.
pub(super) struct Way {
    pub at: Connection,
    /// The node, if it was chosen.
    pub node: Option<String>,
    /// By the layout of this epoch.
    pub epoch: u64,
}

impl Routes {
    pub fn new(connector: Connector, given: Arc<Connections>) -> Arc<Self> {
        Arc::new(Self {
            connector,
            given,
            rings: RwLock::default(),
            nodes: Mutex::default(),
            scores: Scores::default(),
        })
    }

    /// The ring of a tenant, if there is one. Waits for the first.
    pub async fn ring(self: &Arc<Self>, tenant: &str) -> Option<Arc<Ring>> {
        let known = self.rings.read().get(tenant).cloned();
        let Some(known) = known else { return self.first(tenant).await };
        let ring = known.ring.read().clone();
        let is_partial = ring.as_ref().is_some_and(|ring| !ring.is_whole());
        let age_max = if is_partial { AGE_MAX_PARTIAL } else { AGE_MAX };
        if known.asked.lock().elapsed() >= age_max {
            self.ask_again(tenant, &known);
        }
        ring
    }

    async fn first(self: &Arc<Self>, tenant: &str) -> Option<Arc<Ring>> {
        let known = {
            let mut rings = self.rings.write();
            if rings.len() >= TENANTS_MAX {
                return None;
            }
            let known = || {
                Arc::new(Known {
                    ring: RwLock::default(),
                    asked: Mutex::new(Instant::now()),
                    is_asking: AtomicBool::new(false),
                })
            };
            Arc::clone(rings.entry(tenant.to_owned()).or_insert_with(known))
        };
        self.ask(tenant, &known).await;
        known.ring.read().clone()
    }

    /// A node failed, or said that the layout went on.
    pub fn doubt(self: &Arc<Self>, tenant: &str) {
        let known = self.rings.read().get(tenant).cloned();
        if let Some(known) = known
            && known.asked.lock().elapsed() >= AGE_MIN
        {
            self.ask_again(tenant, &known);
        }
    }

    fn ask_again(self: &Arc<Self>, tenant: &str, known: &Arc<Known>) {
        if known.is_asking.swap(true, Ordering::AcqRel) {
            return;
        }
        let (this, tenant, known) = (Arc::clone(self), tenant.to_owned(), Arc::clone(known));
        tokio::spawn(async move {
            this.ask(&tenant, &known).await;
            known.is_asking.store(false, Ordering::Release);
        });
    }

    /// Asks a node that is known to be up, else one of those given.
    async fn ask(&self, tenant: &str, known: &Known) {
        *known.asked.lock() = Instant::now();
        let old = known.ring.read().clone();
        let best = old.as_ref().and_then(|ring| ring.nodes().min_by_key(|uri| self.cost(uri)));
        let best = best.and_then(|uri| self.connections(uri));
        for connections in best.into_iter().chain([Arc::clone(&self.given)]) {
            let mut request = Request::new(proto::TopologyRequest { tenant: tenant.to_owned() });
            request.set_timeout(ASK_TIMEOUT);
            let mut client = KeyValueClient::new(connections.next().channel);
            let answer = tokio::time::timeout(ASK_TIMEOUT, client.topology(request)).await;
            let Ok(Ok(answer)) = answer else { continue };
            let Some(ring) = Ring::of(answer.into_inner()) else { continue };
            *known.ring.write() = Some(Arc::new(ring));
            self.forget_gone();
            return;
        }
    }

    /// Forgets nodes of which no ring speaks any more.
    fn forget_gone(&self) {
        let known: Vec<Arc<Known>> = self.rings.read().values().cloned().collect();
        let rings: Vec<Arc<Ring>> =
            known.iter().filter_map(|known| known.ring.read().clone()).collect();
        let is_known = |uri: &str| rings.iter().any(|ring| ring.nodes().any(|node| node == uri));
        self.nodes.lock().retain(|uri, _| is_known(uri));
        self.scores.keep(|uri| is_known(uri));
    }

    fn connections(&self, uri: &str) -> Option<Arc<Connections>> {
        let mut nodes = self.nodes.lock();
        if let Some(connections) = nodes.get(uri) {
            return Some(Arc::clone(connections));
        }
        // What a server names as an address may be none.
        let connections = Arc::new(self.connector.to(&[uri.to_owned()]).ok()?);
        nodes.insert(uri.to_owned(), Arc::clone(&connections));
        Some(connections)
    }

    /// The way to the cheapest holder of a key that was not tried yet; when all were, or no key is
    /// named, to the cheapest other node.
    pub fn way(&self, ring: &Ring, key: Option<&[u8]>, tried: &[String]) -> Option<Way> {
        let is_fresh = |uri: &&str| !tried.iter().any(|tried| tried == uri);
        // The first of the cheapest: the better rank.
        let holders = key.into_iter().flat_map(|key| ring.holders(key)).filter(is_fresh);
        let holder = holders.min_by_key(|uri| self.cost(uri));
        let best =
            holder.or_else(|| ring.nodes().filter(is_fresh).min_by_key(|uri| self.cost(uri)));
        self.way_to(ring, best?)
    }

    /// The way to a node.
    pub fn way_to(&self, ring: &Ring, uri: &str) -> Option<Way> {
        let at = self.connections(uri)?.next();
        Some(Way { at, node: Some(uri.to_owned()), epoch: ring.epoch })
    }

    /// The lower the better.
    pub fn cost(&self, uri: &str) -> u64 {
        self.scores.cost(uri)
    }

    /// An attempt goes out.
    pub fn begin(&self, way: &Way) {
        if let Some(node) = &way.node {
            self.scores.begin(node);
        }
    }

    /// It has ended.
    pub fn end(&self, way: &Way, took: Duration) {
        if let Some(node) = &way.node {
            self.scores.end(node, took);
        }
    }
}
