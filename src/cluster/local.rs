//! This node, as it presents itself to others, and whom it will not listen to any more.
//!
//! 1. The generation heard of a node only grows; who comes with a lower one is an incarnation that
//!    is over, or a copy of the directory, and is not listened to.
//! 2. A node that hears of a higher generation of its own id is such a copy itself:
//!    [`Local::superseded`] says so, and it must fence itself.
//! 3. A node of whom others have heard a later bound of its clock than it can have told has lost
//!    what it had promised: its directory was put back to an earlier state. [`Local::rolled_back`]
//!    says so, and it must not go on. What it told in earlier generations is no more than its disk
//!    held when it started, and what it told in this one is known here ([`Local::tell_lease`]).
//!    What was told in a later one is another process's: 2 is about that.
//! 4. A cluster, once entered, does not change, nor does what it was formed as.

use std::cmp::Ordering::{Equal, Greater, Less};
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
    /// The greatest bound that others were told in this life.
    lease_told: AtomicU64,
    rolled_back: watch::Sender<bool>,
    confirmed: watch::Sender<bool>,
    // Held for a look-up.
    known: Mutex<BTreeMap<NodeId, Known>>,
}

/// What was heard of a node.
#[derive(Debug, Default)]
struct Known {
    /// Its highest generation.
    highest: Arc<AtomicU64>,
    /// In the highest generation it told anything in.
    told: Told,
}

/// The bounds of its clock that a node has told others, as far as somebody has heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// A generation of it; 0: it was not heard of.
    pub generation: u64,
    /// The greatest bound that it told in that; 0: none.
    pub lease: u64,
    /// The greatest that it told in earlier ones; 0: none.
    pub lease_before: u64,
}

impl Told {
    fn hear(&mut self, generation: u64, lease: u64) {
        if generation > self.generation {
            self.lease_before = self.lease_before.max(self.lease);
            (self.generation, self.lease) = (generation, lease);
        } else if generation == self.generation {
            self.lease = self.lease.max(lease);
        } else {
            self.lease_before = self.lease_before.max(lease);
        }
    }
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
        let own = Known { highest: Arc::new(generation.into()), ..Known::default() };
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
            lease_told: AtomicU64::new(0),
            rolled_back: watch::Sender::new(false),
            confirmed: watch::Sender::new(false),
            known: Mutex::new(BTreeMap::from([(node, own)])),
        }
    }

    /// With the bound of its clock that its disk held when it started; `u64::MAX`, as without:
    /// whatever others were told in earlier generations, it may have been there.
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

    /// Whether somebody who knows this generation knows of no later state of this node. Before that
    /// nobody is told a bound of this life: it would pass for one of an earlier life in the next.
    pub fn confirmed(&self) -> watch::Receiver<bool> {
        self.confirmed.subscribe()
    }

    /// Others are told this bound from now on. To be called before they are.
    pub fn tell_lease(&self, lease: u64) {
        self.lease_told.fetch_max(lease, Ordering::Relaxed);
    }

    /// Hears of a bound of a node's clock that it told in a generation. Its own old ones come back
    /// to a node by those who have heard them.
    pub fn hear_lease(&self, node: NodeId, generation: u64, lease: u64) {
        // Who is not remembered has no generation either.
        if node != self.node
            && let Some(known) = self.known.lock().get_mut(&node)
        {
            known.told.hear(generation, lease);
        }
    }

    /// What a node has told, in its highest generation and before.
    pub fn told_by(&self, node: NodeId) -> Told {
        let known = self.known.lock();
        known.get(&node).map_or(Told::default(), |known| {
            let mut told = known.told;
            let highest = known.highest.load(Ordering::Relaxed);
            if highest > told.generation {
                told.hear(highest, 0);
            }
            told
        })
    }

    /// Another member says what it has heard of this node.
    pub fn hear_of_itself(&self, told: Told) {
        let Told { generation, lease, lease_before } = told;
        let is_back = match generation.cmp(&self.generation) {
            Less => lease.max(lease_before) > self.lease_found,
            Equal => {
                lease_before > self.lease_found || lease > self.lease_told.load(Ordering::Relaxed)
            }
            // It speaks of a copy of this node: what that one told was never here. But it is the
            // later one, or this node was started with a clock behind that of an earlier start.
            Greater => {
                self.superseded.send_replace(true);
                return;
            }
        };
        if is_back {
            self.rolled_back.send_replace(true);
        } else if generation == self.generation && !*self.rolled_back.borrow() {
            self.confirmed.send_replace(true);
        }
    }

    /// Hears of a generation of a node.
    ///
    /// # Errors
    /// The higher one that is known.
    pub fn hear_generation(&self, node: NodeId, generation: u64) -> Result<Heard, u64> {
        let mut known = self.known.lock();
        let full = known.len() >= KNOWN_MAX;
        let highest = match known.get(&node) {
            Some(known) => Arc::clone(&known.highest),
            None => {
                let highest = Arc::new(AtomicU64::new(generation));
                if !full {
                    let highest = Arc::clone(&highest);
                    known.insert(node, Known { highest, ..Known::default() });
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

    fn told(generation: u64, lease: u64, lease_before: u64) -> Told {
        Told { generation, lease, lease_before }
    }

    #[test]
    fn what_a_node_told_is_kept_apart_by_whether_its_life_is_over() {
        let (peer, x) = (local(), NodeId(2));
        let hear = |generation, lease| {
            let _ = peer.hear_generation(x, generation);
            peer.hear_lease(x, generation, lease);
            peer.told_by(x)
        };
        peer.hear_lease(x, 7, 900);
        assert_eq!(peer.told_by(x), Told::default(), "of a stranger nothing is kept");
        assert_eq!(hear(7, 100), told(7, 100, 0));
        assert_eq!((hear(7, 300), hear(7, 200)), (told(7, 300, 0), told(7, 300, 0)));
        peer.hear_generation(x, 8).expect("a later one");
        assert_eq!(peer.told_by(x), told(8, 0, 300), "before it has told anything");
        assert_eq!((hear(7, 400), hear(8, 500)), (told(8, 0, 400), told(8, 500, 400)));
        assert_eq!((hear(7, 450), hear(9, 600)), (told(8, 500, 450), told(9, 600, 500)));
        assert_eq!(peer.told_by(peer.node()), told(10, 0, 0));
    }

    /// In generation 8 it found 300, and has told 400.
    #[test]
    fn a_node_that_was_put_back_learns_it_from_what_it_cannot_have_told() {
        for (heard, is_back) in [
            (told(0, 0, 0), false),
            (told(7, 300, 200), false),
            (told(7, 301, 0), true),
            (told(7, 0, 301), true),
            (told(8, 400, 300), false),
            (told(8, 401, 0), true),
            (told(8, 0, 301), true),
            (told(9, 900, 800), false),
        ] {
            let clock = Arc::new(ManualClock::new(5));
            let node = Local::new(NodeId(2), 8, None, "a:2".into(), clock).with_lease_found(300);
            node.tell_lease(400);
            node.tell_lease(0);
            node.hear_of_itself(heard);
            assert_eq!(*node.rolled_back().borrow(), is_back, "{heard:?}");
            let knows_this_life = heard.generation == 8 && !is_back;
            assert_eq!(*node.confirmed().borrow(), knows_this_life, "{heard:?}");
            node.hear_of_itself(told(7, 301, 0));
            node.hear_of_itself(told(8, 0, 0));
            assert!(*node.rolled_back().borrow(), "another one knows more");
            assert_eq!(*node.confirmed().borrow(), knows_this_life, "no more after that");
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
