//! One entry for each node out of all incarnations heard of.
//!
//! 1. Of a node the newest incarnation counts; the others are dead, whatever is heard of them.
//! 2. A node that said it stops is down at once.
//! 3. Nodes of other clusters are left out; nodes without one are in.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::Entry;
use crate::cluster::NodeId;
use crate::cluster::local::Local;
use crate::cluster::view::{Facts, Liveness, Nodes, RunState, View};

/// What gossip heard. Clones are the same view.
#[derive(Clone, Debug)]
pub struct GossipView {
    local: Arc<Local>,
    nodes: Arc<watch::Sender<Arc<Nodes>>>,
}

impl GossipView {
    /// Knows only this node.
    pub(super) fn new(local: Arc<Local>, own: Facts) -> Self {
        let nodes = Arc::new(BTreeMap::from([(own.node, own)]));
        Self { local, nodes: Arc::new(watch::Sender::new(nodes)) }
    }

    /// Takes over what is known now. `own` is this node; of others there may be several entries.
    pub(super) fn update(&self, own: Facts, entries: Vec<Entry>) {
        let mut newest: BTreeMap<NodeId, Entry> = BTreeMap::new();
        for entry in entries {
            let Facts { node, cluster, formation, generation, .. } = entry.facts;
            if own.cluster.is_some() && cluster.is_some() && cluster != own.cluster {
                continue;
            }
            if cluster == own.cluster {
                self.local.hear_epoch(entry.facts.epoch);
                // An older one is known already where this fails.
                let _ = self.local.hear_generation(node, generation);
                // A node brought back from a checkpoint forms the cluster anew: what it told in the
                // old one does not count, though somebody without a cluster may pass it on.
                if formation == own.formation {
                    self.local.hear_lease(node, generation, entry.facts.lease);
                }
            }
            let known =
                newest.get(&node).is_some_and(|other| other.incarnation > entry.incarnation);
            if node != own.node && !known {
                newest.insert(node, entry);
            }
        }
        let mut nodes: Nodes = BTreeMap::from([(own.node, own)]);
        for (node, mut entry) in newest {
            entry.facts.is_up &= entry.facts.run_state != RunState::Down;
            nodes.insert(node, entry.facts);
        }
        self.nodes.send_if_modified(|current| {
            let changed = **current != nodes;
            if changed {
                *current = Arc::new(nodes);
            }
            changed
        });
    }
}

impl Liveness for GossipView {
    fn is_up(&self, node: NodeId) -> bool {
        node == self.local.node() || self.nodes.borrow().get(&node).is_some_and(|node| node.is_up)
    }

    fn address(&self, node: NodeId) -> Option<String> {
        self.nodes.borrow().get(&node).map(|facts| facts.addresses.peer.clone())
    }
}

impl View for GossipView {
    fn watch(&self) -> watch::Receiver<Arc<Nodes>> {
        self.nodes.subscribe()
    }
}
