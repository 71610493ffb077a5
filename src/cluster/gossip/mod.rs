//! Who is alive, where, and how it fares: spread by chitchat over the peer port.
//!
//! | file | what |
//! |---|---|
//! | [`transport`] | chitchat's messages as messages between peers that nobody answers |
//! | `keys` | facts as the keys and values of chitchat |
//! | [`view`] | one entry for each node out of all incarnations heard of |
//!
//! It decides nothing: ownership and membership stand in the layout document. A few hundred bytes
//! for each node travel here, never documents, keys or figures in bulk.
//!
//! 1. A restart is a new incarnation to chitchat, the old one lingers as dead. The view shows the
//!    newest only, and an older one is dead as soon as a newer one is heard of.
//! 2. chitchat's own loop may end (it gives up when its socket fails, or panics): it is started
//!    again, as a later incarnation, because others ignore a heartbeat that starts over.
//! 3. All nodes gossip under one name, those without a cluster too: the first nodes find each other
//!    so. A node of another cluster is kept out by the peer port, and out of the view.
//! 4. Seeds are names; the network resolves them for every new connection.
//!
//! Not repeatable by itself: chitchat draws from the thread's random numbers and hashes by random
//! keys. A simulation replaces the system's entropy.

mod keys;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod view;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use self::view::GossipView;

use self::transport::{Inbox, PeerTransport, Seeds};
use super::NodeId;
use super::local::Local;
use super::peer::Post;
use super::view::{Facts, RunState};

/// Under which all nodes gossip, whatever their cluster.
const NAME: &str = "pairdb";
/// Incarnations of chitchat within one generation of the node.
const INCARNATIONS: u64 = 1 << 12;
/// Between the end of chitchat's loop and its next start.
const RESTART_AFTER: Duration = Duration::from_secs(1);
/// Rounds for which a node that leaves goes on to say so.
const FAREWELL_ROUNDS: u32 = 3;

/// What can be set.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where others reach the peer port of this node.
    pub advertise: SocketAddr,
    /// `host:port` of some peers, names or addresses.
    pub seeds: Vec<String>,
    /// Between two rounds.
    pub interval: Duration,
    /// The interval expected of a node that was just heard of for the first time.
    pub interval_initial: Duration,
    /// Intervals beyond this do not count as such.
    pub interval_max: Duration,
    /// A node is dead when it is silent for so many mean intervals.
    pub phi: f64,
    /// A dead incarnation is forgotten after this.
    pub grace: Duration,
}

impl Options {
    /// The defaults: a dead node is noticed within 4 to 8 seconds. A dead incarnation is spoken of
    /// for half of its grace; a message holds about 800.
    pub fn new(advertise: SocketAddr, seeds: Vec<String>) -> Self {
        Self {
            advertise,
            seeds,
            interval: Duration::from_millis(500),
            interval_initial: Duration::from_secs(1),
            interval_max: Duration::from_secs(5),
            phi: 8.0,
            grace: Duration::from_secs(5 * 60),
        }
    }
}

/// The gossip of a running node. It ends when this is dropped.
pub struct Gossip {
    inbox: Arc<Inbox>,
    view: GossipView,
    own: watch::Sender<Facts>,
    interval: Duration,
    tasks: TaskTracker,
    closing: CancellationToken,
    _open: DropGuard,
}

impl Gossip {
    /// Starts to gossip for `local` by `post`. Of `facts` all counts that is the node's own to say:
    /// not who it is, nor whether it is up.
    pub fn start(local: Arc<Local>, post: Arc<dyn Post>, options: Options, facts: Facts) -> Self {
        let mut own = facts;
        own.node = local.node();
        own.generation = local.generation();
        own.cluster = local.cluster();
        own.is_up = true;
        if own.addresses.peer.is_empty() {
            own.addresses.peer = options.advertise.to_string();
        }
        let view = GossipView::new(Arc::clone(&local), own.clone());
        let closing = CancellationToken::new();
        let inbox = Arc::new(Inbox::default());
        let (interval, own) = (options.interval, watch::Sender::new(own));
        let seeds = Seeds::new(&options.seeds);
        let transport = PeerTransport {
            inbox: Arc::clone(&inbox),
            post,
            seeds: Arc::new(seeds),
            own: options.advertise,
            too_long: Arc::default(),
        };
        let runner = Runner { local, options, transport, view: view.clone(), own: own.subscribe() };
        let tasks = TaskTracker::new();
        tasks.spawn(runner.run(closing.clone()));
        let open = closing.clone().drop_guard();
        Self { inbox, view, own, interval, tasks, closing, _open: open }
    }

    /// What is heard of all nodes.
    pub fn view(&self) -> &GossipView {
        &self.view
    }

    /// Takes a message of another node. Never waits.
    pub fn receive(&self, message: Bytes) {
        self.inbox.put(message);
    }

    /// Says something new of this node.
    pub fn tell(&self, change: impl FnOnce(&mut Facts)) {
        self.own.send_if_modified(|facts| {
            let before = facts.clone();
            change(facts);
            (facts.node, facts.generation, facts.is_up) = (before.node, before.generation, true);
            *facts != before
        });
    }

    /// Says that this node stops, for some rounds, and ends.
    pub async fn leave(&self) {
        self.tell(|facts| facts.run_state = RunState::Down);
        tokio::time::sleep(self.interval * FAREWELL_ROUNDS).await;
        self.end().await;
    }

    /// Ends without a word. The next call does nothing.
    pub async fn end(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The task behind a [`Gossip`].
struct Runner {
    local: Arc<Local>,
    options: Options,
    transport: PeerTransport,
    view: GossipView,
    own: watch::Receiver<Facts>,
}

impl Runner {
    async fn run(mut self, closing: CancellationToken) {
        for incarnation in 0.. {
            tokio::select! {
                () = self.live(incarnation) => {}
                () = closing.cancelled() => return,
            }
            tracing::error!(incarnation, "the gossip has ended and is started again");
            tokio::select! {
                () = tokio::time::sleep(RESTART_AFTER) => {}
                () = closing.cancelled() => return,
            }
        }
    }

    /// One life of chitchat's loop.
    async fn live(&mut self, incarnation: u64) {
        let config = self.config(incarnation);
        let facts = self.own.borrow_and_update().clone();
        let chitchat = match spawn_chitchat(config, keys::of(&facts), &self.transport).await {
            Ok(chitchat) => Running(chitchat),
            Err(error) => {
                tracing::error!(%error, "cannot start the gossip");
                return;
            }
        };
        let mut cluster = self.local.cluster_watch();
        let mut changes = chitchat.0.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
        let mut ended = std::pin::pin!(chitchat.0.termination_watcher());
        loop {
            self.refresh(&chitchat.0).await;
            tokio::select! {
                // In this order, so that the end is not overlooked.
                biased;
                _ = &mut ended => return,
                // Their senders live as long as the node does.
                _ = self.own.changed() => {}
                _ = cluster.changed() => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    fn config(&self, incarnation: u64) -> ChitchatConfig {
        let options = &self.options;
        let generation = incarnation_of(self.local.generation(), incarnation);
        let node = self.local.node().to_string();
        ChitchatConfig {
            chitchat_id: ChitchatId::new(node, generation, options.advertise),
            cluster_id: NAME.to_owned(),
            gossip_interval: options.interval,
            listen_addr: options.advertise,
            seed_nodes: self.transport.seeds.addresses(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: options.phi,
                sampling_window_size: 1000,
                max_interval: options.interval_max,
                initial_interval: options.interval_initial,
                dead_node_grace_period: options.grace,
            },
            marked_for_deletion_grace_period: options.grace,
            catchup_callback: None,
            extra_liveness_predicate: None,
        }
    }

    /// Says what is new here, and takes what is new elsewhere into the view.
    async fn refresh(&mut self, chitchat: &ChitchatHandle) {
        let mut own = self.own.borrow_and_update().clone();
        own.cluster = self.local.cluster();
        own.formation = self.local.formation();
        own.epoch = own.epoch.max(self.local.epoch());
        let entries = chitchat
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                for (key, value) in keys::of(&own) {
                    if state.get(&key) != Some(value.as_str()) {
                        state.set(key, value);
                    }
                }
                let live: Vec<ChitchatId> = chitchat.live_nodes().cloned().collect();
                let entry =
                    |(id, state): (&ChitchatId, _)| keys::read(id, state, live.contains(id));
                chitchat.node_states().iter().filter_map(entry).collect::<Vec<_>>()
            })
            .await;
        self.view.update(own, entries);
    }
}

/// Ends chitchat's loop when it is dropped.
struct Running(ChitchatHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The generation chitchat sees: later incarnations of a node are higher than all earlier ones.
fn incarnation_of(generation: u64, incarnation: u64) -> u64 {
    generation.saturating_mul(INCARNATIONS).saturating_add(incarnation.min(INCARNATIONS - 1))
}

/// The node's generation out of what chitchat sees.
fn generation_of(incarnation: u64) -> u64 {
    incarnation / INCARNATIONS
}

/// An incarnation of a node, as it was heard of.
#[derive(Debug)]
struct Entry {
    incarnation: u64,
    facts: Facts,
}

/// The node that a name of chitchat means.
fn node_of(id: &ChitchatId) -> Option<NodeId> {
    id.node_id.parse().ok()
}
