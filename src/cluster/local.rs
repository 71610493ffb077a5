//! This node, as it presents itself to others, and whom it will not listen to any more.
//!
//! 1. The generation heard of a node only grows; who comes with a lower one is an incarnation that
//!    is over, or a copy of the directory, and is not listened to.
//! 2. A node that hears of a higher generation of its own id is such a copy itself:
//!    [`Local::superseded`] says so, and it must fence itself.
//! 3. A cluster, once entered, does not change, nor does what it was formed as.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::NodeId;
use crate::store::environment::WallClock;

/// Generations that are remembered: far more than a cluster has nodes, so that strangers cannot
/// fill the memory.
const KNOWN_MAX: usize = 10_000;

/// The versions of the peer protocol this program speaks, oldest and newest.
pub const PROTOCOLS: (u32, u32) = (1, 1);

/// This node.
#[derive(Debug)]
pub struct Local {
    // Constant after creation.
    node: NodeId,
    generation: u64,
    address: String,
    clock: Arc<dyn WallClock>,
    // Set once, when the node enters a cluster; the formation before it.
    cluster: watch::Sender<Option<NodeId>>,
    formation: OnceLock<NodeId>,
    // Relaxed: figures that others only compare; what an epoch means is learned from its document.
    epoch: AtomicU64,
    epoch_heard: watch::Sender<u64>,
    superseded: watch::Sender<bool>,
    // Held for a look-up.
    known: Mutex<BTreeMap<NodeId, Arc<AtomicU64>>>,
}

impl Local {
    /// The node `node` in its `generation`, whose peer port others reach at `address`
    /// (`host:port`).
    pub fn new(
        node: NodeId,
        generation: u64,
        cluster: Option<NodeId>,
        address: String,
        clock: Arc<dyn WallClock>,
    ) -> Self {
        let own = Arc::new(AtomicU64::new(generation));
        Self {
            node,
            generation,
            address,
            clock,
            cluster: watch::Sender::new(cluster),
            formation: OnceLock::new(),
            epoch: AtomicU64::new(0),
            epoch_heard: watch::Sender::new(0),
            superseded: watch::Sender::new(false),
            known: Mutex::new(BTreeMap::from([(node, own)])),
        }
    }

    /// Its id.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Its generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Where its peer port is reached.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its cluster, if it has one.
    pub fn cluster(&self) -> Option<NodeId> {
        *self.cluster.borrow()
    }

    /// Notified when it enters a cluster.
    pub fn cluster_watch(&self) -> watch::Receiver<Option<NodeId>> {
        self.cluster.subscribe()
    }

    /// What its cluster was formed as; zero: that is not known, or it has none.
    pub fn formation(&self) -> NodeId {
        self.formation.get().copied().unwrap_or_default()
    }

    /// Its cluster was formed as this. Later calls change nothing.
    pub fn formed_as(&self, formation: NodeId) {
        if formation != NodeId::default() {
            let _ = self.formation.set(formation);
        }
    }

    /// It enters a cluster that was formed as `formation`. Later calls change nothing.
    pub fn enter(&self, cluster: NodeId, formation: NodeId) {
        self.formed_as(formation);
        self.cluster.send_if_modified(|own| {
            let enters = own.is_none();
            if enters {
                *own = Some(cluster);
            }
            enters
        });
    }

    /// Milliseconds since 1970 by its clock.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// The layout epoch it acts under.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// It acts under a later epoch.
    pub fn set_epoch(&self, epoch: u64) {
        self.epoch.fetch_max(epoch, Ordering::Relaxed);
    }

    /// Somebody acts under this epoch.
    pub fn hear_epoch(&self, epoch: u64) {
        if epoch > self.epoch() {
            self.epoch_heard.send_if_modified(|heard| {
                let later = epoch > *heard;
                *heard = epoch.max(*heard);
                later
            });
        }
    }

    /// The highest epoch that others were heard to act under, where it is higher than the own one
    /// was. Whoever sees it above [`Local::epoch`] fetches the document.
    pub fn epoch_heard(&self) -> watch::Receiver<u64> {
        self.epoch_heard.subscribe()
    }

    /// Whether another process acts as this node, with a higher generation.
    pub fn superseded(&self) -> watch::Receiver<bool> {
        self.superseded.subscribe()
    }

    /// Hears of a generation of a node.
    ///
    /// # Errors
    /// The higher one that is known.
    pub fn hear_generation(&self, node: NodeId, generation: u64) -> Result<Heard, u64> {
        let mut known = self.known.lock();
        let full = known.len() >= KNOWN_MAX;
        let highest = match known.get(&node) {
            Some(highest) => Arc::clone(highest),
            None => {
                let highest = Arc::new(AtomicU64::new(generation));
                if !full {
                    known.insert(node, Arc::clone(&highest));
                }
                highest
            }
        };
        drop(known);
        if node == self.node && generation > self.generation {
            self.superseded.send_replace(true);
        }
        match highest.fetch_max(generation, Ordering::Relaxed) {
            before if before > generation => Err(before),
            _ => Ok(Heard { generation, highest }),
        }
    }
}

/// A generation that was the highest when it was heard of.
#[derive(Clone, Debug)]
pub struct Heard {
    generation: u64,
    highest: Arc<AtomicU64>,
}

impl Heard {
    /// It.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it still is.
    ///
    /// # Errors
    /// The higher one that is known by now.
    pub fn check(&self) -> Result<(), u64> {
        match self.highest.load(Ordering::Relaxed) {
            highest if highest > self.generation => Err(highest),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::environment::ManualClock;

    fn local() -> Local {
        let clock = Arc::new(ManualClock::new(5));
        Local::new(NodeId(1), 10, None, "a:1".into(), clock)
    }

    #[test]
    fn an_incarnation_is_over_once_a_later_one_is_heard_of() {
        let local = local();
        let old = local.hear_generation(NodeId(2), 7).expect("the first");
        assert_eq!(old.check(), Ok(()));
        local.hear_generation(NodeId(2), 8).expect("a later one");
        assert_eq!(old.check(), Err(8));
        assert_eq!(local.hear_generation(NodeId(2), 7).expect_err("it is over"), 8);
        local.hear_generation(NodeId(2), 8).expect("the same again");
    }

    #[test]
    fn a_copy_of_a_node_learns_that_it_is_one() {
        let local = local();
        assert!(local.hear_generation(NodeId(1), 9).is_err(), "a copy that is behind");
        assert!(!*local.superseded().borrow());
        local.hear_generation(NodeId(1), 11).expect("one that is ahead");
        assert!(*local.superseded().borrow());
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let local = local();
        for node in 0..2 * KNOWN_MAX as u128 {
            let _ = local.hear_generation(NodeId(node), 1);
        }
        assert_eq!(local.known.lock().len(), KNOWN_MAX);
    }

    #[test]
    fn a_cluster_is_entered_once_and_later_epochs_are_heard_of() {
        let local = local();
        local.enter(NodeId(3), NodeId(30));
        local.enter(NodeId(4), NodeId(40));
        assert_eq!((local.cluster(), local.formation()), (Some(NodeId(3)), NodeId(30)));
        let mut heard = local.epoch_heard();
        local.set_epoch(4);
        local.hear_epoch(4);
        assert!(!heard.has_changed().expect("the node lives"));
        local.hear_epoch(6);
        local.hear_epoch(5);
        assert_eq!(*heard.borrow_and_update(), 6);
    }
}
