//! This node, as it presents itself to others, and whom it will not listen to any more.
//!
//! 1. The generation heard of a node only grows; who comes with a lower one is an incarnation that
//!    is over, or a copy of the directory, and is not listened to.
//! 2. A node that hears of a higher generation of its own id is such a copy itself:
//!    [`Local::superseded`] says so, and it must fence itself.
//! 3. A node of whom others have heard a later bound of its clock than its disk held when it
//!    started has lost what it had promised: its directory was put back to an earlier state.
//!    [`Local::rolled_back`] says so, and it must not go on. Only what it told in an earlier
//!    generation counts: what it tells now is later than what it found.
//! 4. A cluster, once entered, does not change, nor does what it was formed as.

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
    lease_found: u64,
    rolled_back: watch::Sender<bool>,
    // Held for a look-up.
    known: Mutex<BTreeMap<NodeId, Known>>,
}

/// What was heard of a node.
#[derive(Debug, Default)]
struct Known {
    /// Its highest generation.
    generation: Arc<AtomicU64>,
    /// The generation of `lease`, and the greatest bound of its clock that it told in it.
    of: u64,
    lease: u64,
    /// The greatest that it told in those before.
    lease_before: u64,
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
        let own = Known { generation: Arc::new(generation.into()), ..Known::default() };
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
            lease_found: u64::MAX,
            rolled_back: watch::Sender::new(false),
            known: Mutex::new(BTreeMap::from([(node, own)])),
        }
    }

    /// With the bound of its clock that its disk held when it started. Without one it is never
    /// found to be put back.
    pub fn with_lease_found(self, lease_found: u64) -> Self {
        Self { lease_found, ..self }
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

    /// Whether others know of a later state of this node than the one it was started with.
    pub fn rolled_back(&self) -> watch::Receiver<bool> {
        self.rolled_back.subscribe()
    }

    /// Hears of a bound of a node's clock that it told in a generation.
    pub fn hear_lease(&self, node: NodeId, generation: u64, lease: u64) {
        if node == self.node {
            if generation < self.generation {
                self.hear_own_lease(lease);
            }
            return;
        }
        let mut known = self.known.lock();
        // Who is not remembered has no generation either.
        let Some(known) = known.get_mut(&node) else { return };
        if generation > known.of {
            known.lease_before = known.lease_before.max(known.lease);
            (known.of, known.lease) = (generation, lease);
        } else if generation == known.of {
            known.lease = known.lease.max(lease);
        } else {
            known.lease_before = known.lease_before.max(lease);
        }
    }

    /// Hears of a bound that this node is said to have told in an earlier generation.
    pub fn hear_own_lease(&self, lease: u64) {
        if lease > self.lease_found {
            self.rolled_back.send_replace(true);
        }
    }

    /// The greatest bound that a node told in generations before its highest one; 0: none is known.
    pub fn lease_heard(&self, node: NodeId) -> u64 {
        let known = self.known.lock();
        known.get(&node).map_or(0, |known| {
            let is_over = known.generation.load(Ordering::Relaxed) > known.of;
            if is_over { known.lease_before.max(known.lease) } else { known.lease_before }
        })
    }

    /// Hears of a generation of a node.
    ///
    /// # Errors
    /// The higher one that is known.
    pub fn hear_generation(&self, node: NodeId, generation: u64) -> Result<Heard, u64> {
        let mut known = self.known.lock();
        let full = known.len() >= KNOWN_MAX;
        let highest = match known.get(&node) {
            Some(known) => Arc::clone(&known.generation),
            None => {
                let highest = Arc::new(AtomicU64::new(generation));
                if !full {
                    let generation = Arc::clone(&highest);
                    known.insert(node, Known { generation, ..Known::default() });
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

    /// What a node tells in this life is later than what it found: it does not count against it.
    #[test]
    fn a_node_that_was_put_back_learns_it_from_what_it_had_told_before() {
        let (peer, x) = (local(), NodeId(2));
        let told = |generation, lease| {
            let _ = peer.hear_generation(x, generation);
            peer.hear_lease(x, generation, lease);
            peer.lease_heard(x)
        };
        assert_eq!((told(7, 100), told(7, 300), told(7, 200)), (0, 0, 0), "it still lives");
        peer.hear_generation(x, 8).expect("a later one");
        assert_eq!(peer.lease_heard(x), 300, "before it has told anything");
        assert_eq!((told(8, 500), told(7, 400), told(9, 600)), (300, 400, 500));
        assert_eq!(peer.lease_heard(NodeId(3)), 0);

        let started = |found| {
            let clock = Arc::new(ManualClock::new(5));
            Local::new(x, 8, None, "a:2".into(), clock).with_lease_found(found)
        };
        for (found, is_back) in [(300, false), (299, true)] {
            let node = started(found);
            node.hear_own_lease(300);
            assert_eq!(*node.rolled_back().borrow(), is_back, "by a peer's word");
            let node = started(found);
            node.hear_lease(x, 8, 900);
            assert!(!*node.rolled_back().borrow(), "it is its own word");
            node.hear_lease(x, 7, 300);
            assert_eq!(*node.rolled_back().borrow(), is_back, "by what it had gossiped");
        }
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
