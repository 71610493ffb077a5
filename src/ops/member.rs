//! What makes a node a member of a cluster, put together.
//!
//! ```text
//! open      fence (the document acted under), tenants of it, store
//! join in   peer streams, gossip, consensus, hints, coordinator, replica, anti-entropy, transfer
//! enter     form a cluster, or join one; then wait for a document this node stands in
//! ```
//!
//! A node that is alone is a cluster of one, by the same way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::{Config, Size};
use super::follow::{Proposals, catch_up, follow, lease_to_tell, tell};
use super::health::Health;
use super::metrics::MemberParts;
use super::node::Error;
use super::open::Opened;
use super::own::Own;
use super::peer_handler::Handler;
use super::world::World;
use crate::cluster::NodeId;
use crate::cluster::consensus::{Consensus, ConsensusOptions, begin_again};
use crate::cluster::fence::Fence;
use crate::cluster::formation::{Admission, Entered, Formation};
use crate::cluster::gossip::Gossip;
use crate::cluster::layout::{Answer, Layout, MemberState};
use crate::cluster::local::Local;
use crate::cluster::peer::Peers;
use crate::cluster::view::{Addresses, RunState, View};
use crate::cluster::work::Work;
use crate::replication::anti_entropy::{self, AntiEntropy};
use crate::replication::departure::Departure;
use crate::replication::departure::certificate::Certificates;
use crate::replication::duties::{self, Report};
use crate::replication::hints::{HintOptions, HintParts, Hints};
use crate::replication::progress::Rate;
use crate::replication::transfer::Transfer;
use crate::replication::tree::Trees;
use crate::replication::{Coordinator, CoordinatorOptions, LayoutFence, Replica, replica};
use crate::rpc::Cluster;
use crate::rpc::cluster::Moving;
use crate::rpc::peer::{Counters, Options as PeerOptions, PeerClient, PeerService};
use crate::rpc::status::Problem;
use crate::store::{self, Store};

/// How long one node may take to give its document.
pub(super) const LEARN_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a node that is new to its cluster waits to hear of the others before it serves.
const MEET_TIMEOUT: Duration = Duration::from_secs(10);
/// The same for one that was started again: gossip takes a second, and who is down does not come.
const MEET_AGAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// Writes that are answered and still wait for slow replicas.
const LINGERING_MAX: usize = 4096;

fn bytes(size: Size) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

/// What runs: the parts that the services get, and what stays.
pub(super) struct Running {
    pub cluster: Cluster,
    pub service: PeerService,
    pub figures: Arc<MemberParts>,
    pub joined: Joined,
}

/// A member that lives beside the services.
pub(super) struct Joined {
    local: Arc<Local>,
    fence: Arc<Fence>,
    gossip: Arc<Gossip>,
    consensus: Arc<Consensus>,
    formation: Arc<Formation>,
    peers: Arc<PeerClient>,
    coordinator: Arc<Coordinator>,
    hints: Arc<Hints>,
    store: Arc<Store>,
    work: Work,
    closing: CancellationToken,
    tasks: TaskTracker,
}

/// Starts the parts of a member. It answers its peers as soon as its service is served.
pub(super) async fn start(
    config: &Config,
    world: &World,
    opened: Opened,
    addresses: Addresses,
    peer_addr: SocketAddr,
    health: &Health,
) -> Result<Running, Error> {
    let Opened { store, fence } = opened;
    let dir = &config.node.data_dir;
    let failed = |source: store::Error| Error::Open { dir: dir.clone(), source };
    let environment = &world.environment;
    let own = Own::new(config, world, &store, peer_addr)?;
    let (node, local) = (own.node, Arc::clone(&own.local));
    if begin_again(environment, dir, node, &fence).map_err(failed)? {
        let formation = fence.document().formation;
        tracing::warn!(%formation, "brought back from a checkpoint: a cluster of one begins again");
    }
    let formation = own.open_formation(config, world, &store, &fence).map_err(failed)?;
    // Before anybody is spoken to.
    local.formed_as(formation.formation());
    let certificates = Certificates::open(Arc::clone(&environment.vfs), &dir.join("certificates"));
    let moving = Moving {
        rate: Arc::new(Rate::new(config.cluster.transfer_rate_bytes.0)),
        progress: Arc::default(),
        certificates: Arc::new(certificates.map_err(failed)?),
    };
    let counters = Arc::new(Counters::default());
    let peers = own.peers(world, &counters);
    let gossip = own.start_gossip(config, &fence, &peers, addresses);
    let view: Arc<dyn View> = Arc::new(gossip.view().clone());
    let others: Arc<dyn Peers> = Arc::clone(&peers) as _;
    let consensus = Consensus::start(
        ConsensusOptions::default(),
        environment,
        dir,
        node,
        Arc::clone(&others),
        Arc::clone(&fence),
        store.identity().cluster_id.is_some(),
    );
    let consensus = consensus.await.map_err(|error| match error {
        crate::cluster::consensus::ConsensusError::Store(error) => failed(error),
        error => Error::System {
            what: "start the layout group".to_owned(),
            source: std::io::Error::other(error.to_string()),
        },
    })?;
    let consensus = Arc::new(consensus);
    let layout_fence: Arc<dyn crate::replication::Fence> =
        Arc::new(LayoutFence { fence: Arc::clone(&fence), peers: Arc::clone(&others) });
    let liveness = Arc::new(gossip.view().clone());
    let (hints, hint_sender) = Hints::start(
        &dir.join("hints"),
        HintParts {
            node,
            store: Arc::clone(&store),
            peers: Arc::clone(&others),
            layout: fence.watch(),
            fence: Arc::clone(&layout_fence),
            liveness: Arc::clone(&liveness) as _,
            work: world.work.clone(),
        },
        HintOptions {
            waiting_bytes_max: bytes(config.cluster.hint_queue_bytes_max),
            ..world.hints.clone()
        },
    )
    .map_err(|error| failed(error.into()))?;
    let coordinator = Coordinator::new(CoordinatorOptions {
        node,
        store: Arc::clone(&store),
        peers: Arc::clone(&others),
        layout: fence.watch(),
        fence: Arc::clone(&layout_fence),
        liveness: Arc::clone(&liveness) as _,
        hints: Some(hint_sender),
        lingering_max: LINGERING_MAX,
        queue_bytes_max: bytes(config.cluster.queue_bytes_max),
        work: world.work.clone(),
        pages_max: usize::try_from(config.limits.scan_threads).unwrap_or(usize::MAX),
    });
    let trees = Arc::new(Trees::new(Arc::clone(&store), world.anti_entropy.patience()));
    let replica = Replica::new(replica::Parts {
        node,
        store: Arc::clone(&store),
        trees: Arc::clone(&trees),
        coordinator: Arc::clone(&coordinator),
        fence: Arc::clone(&layout_fence),
        layout: fence.watch(),
        background: world.background.clone(),
        to_failure: |error| Problem::from(error).into(),
    });
    let anti_entropy = AntiEntropy::new(anti_entropy::Parts {
        node,
        store: Arc::clone(&store),
        trees,
        peers: Arc::clone(&others),
        layout: fence.watch(),
        fence: Arc::clone(&layout_fence),
        liveness: Arc::clone(&liveness) as _,
        work: world.background.clone(),
        settings: world.anti_entropy.clone(),
    });
    let closing = CancellationToken::new();
    let tasks = TaskTracker::new();
    tasks.spawn(catch_up(
        Arc::clone(&fence),
        Arc::clone(&local),
        Arc::clone(&others),
        Arc::clone(&view),
        closing.clone(),
    ));
    let report: Arc<dyn Report> = Arc::new(Proposals(Arc::clone(&consensus)));
    let transfer = Arc::new(Transfer {
        node,
        store: Arc::clone(&store),
        peers: Arc::clone(&others),
        liveness: Arc::clone(&liveness) as _,
        report: Arc::clone(&report),
        layout: fence.watch(),
        fence: Arc::clone(&layout_fence),
        work: world.background.clone(),
        settings: world.transfer.clone(),
        rate: Arc::clone(&moving.rate),
        progress: Arc::clone(&moving.progress),
    });
    let departure = Arc::new(Departure {
        node,
        store: Arc::clone(&store),
        peers: Arc::clone(&others),
        liveness: Arc::clone(&liveness) as _,
        layout: fence.watch(),
        fence: Arc::clone(&layout_fence),
        report,
        hints: Arc::clone(&hints),
        certificates: Arc::clone(&moving.certificates),
        work: world.background.clone(),
        settings: world.departure.clone(),
        rate: Arc::clone(&moving.rate),
        progress: Arc::clone(&moving.progress),
    });
    let (documents, progress) = (fence.watch(), Arc::clone(&moving.progress));
    tasks.spawn(duties::run(documents, progress, closing.clone(), move |layout| {
        let (transfer, departure) = (Arc::clone(&transfer), Arc::clone(&departure));
        async move {
            transfer.serve(&layout).await;
            departure.serve(&layout).await;
        }
    }));
    tasks.spawn(Arc::clone(&anti_entropy).run(closing.clone()));
    let handler = Handler {
        fence: Arc::clone(&fence),
        gossip: Arc::clone(&gossip),
        consensus: Arc::clone(&consensus),
        admission: Admission::new(Arc::clone(&formation), Arc::clone(&consensus)),
        formation: Arc::clone(&formation),
        replica,
        anti_entropy: Arc::clone(&anti_entropy),
        certificates: Arc::clone(&moving.certificates),
        peers: Arc::clone(&others),
        local: Arc::clone(&local),
    };
    let service = PeerService::new(
        Arc::clone(&local),
        Arc::new(handler),
        PeerOptions::default(),
        Arc::clone(&counters),
    );
    let figures = MemberParts {
        node,
        view: Arc::clone(&view),
        layout: fence.watch(),
        consensus: Arc::clone(&consensus),
        coordinator: Arc::clone(&coordinator),
        hints: Arc::clone(&hints),
        anti_entropy: Arc::clone(&anti_entropy),
        transfer: Arc::clone(&moving.progress),
        rate: Arc::clone(&moving.rate),
        peers: Arc::clone(&peers),
        counters,
    };
    let cluster = Cluster {
        node,
        store: Arc::clone(&store),
        coordinator: Arc::clone(&coordinator),
        consensus: Arc::clone(&consensus),
        layout: fence.watch(),
        fence: layout_fence,
        view,
        peers: others,
        hints: Arc::clone(&hints),
        anti_entropy,
        moving: moving.clone(),
    };
    tasks.spawn(follow(
        fence.watch(),
        Arc::clone(&local),
        Arc::clone(&peers),
        Arc::clone(&gossip),
        Arc::clone(&coordinator),
        health.watch(),
        closing.clone(),
    ));
    tasks.spawn(tell(
        Arc::clone(&gossip),
        Arc::clone(&local),
        Arc::clone(&store),
        Arc::clone(&hints),
        moving.clone(),
        world.work.clone(),
        closing.clone(),
    ));
    let joined = Joined {
        local,
        fence,
        gossip,
        consensus,
        formation,
        peers,
        coordinator,
        hints,
        store,
        work: world.work.clone(),
        closing,
        tasks,
    };
    Ok(Running { cluster, service, figures: Arc::new(figures), joined })
}

impl Joined {
    /// Becomes true when another process acts as this node.
    pub fn superseded(&self) -> watch::Receiver<bool> {
        self.local.superseded()
    }

    /// Becomes true when others know of a later state of this node than its directory holds.
    pub fn rolled_back(&self) -> watch::Receiver<bool> {
        self.local.rolled_back()
    }

    /// The layout the node acts under.
    pub fn layout(&self) -> watch::Receiver<Arc<Layout>> {
        self.fence.watch()
    }

    /// Has `health` told when the node follows the layout no more: it would serve an old one on.
    pub fn tell_health(&self, health: Health) {
        let (consensus, fence) = (Arc::clone(&self.consensus), Arc::clone(&self.fence));
        self.tasks.spawn(self.closing.clone().run_until_cancelled_owned(async move {
            let why = tokio::select! {
                why = consensus.ended() => why,
                why = fence.ended() => why,
            };
            tracing::error!(why, "the layout is not followed any more: restart the node");
            health.set_layout_lost(why);
        }));
    }

    /// Waits until the node stands in a document it acts under.
    ///
    /// # Errors
    /// It was refused or put back, or no cluster was found in time.
    pub async fn enter(&self, config: &Config) -> Result<(), Error> {
        let mut rolled_back = self.rolled_back();
        tokio::select! {
            // In this order: the place that it stands in is not its own any more.
            biased;
            _ = rolled_back.wait_for(|back| *back) => Err(Error::RolledBack),
            found = self.find_place(config) => found,
        }
    }

    async fn find_place(&self, config: &Config) -> Result<(), Error> {
        let deadline = Instant::now() + config.cluster.join_timeout;
        let is_new = self.local.cluster().is_none();
        let refused = |error: &dyn std::fmt::Display| Error::System {
            what: "become a member of a cluster".to_owned(),
            source: std::io::Error::other(error.to_string()),
        };
        let peers: Arc<dyn Peers> = Arc::clone(&self.peers) as _;
        let entered = self.formation.run(&peers, deadline).await.map_err(|e| refused(&e))?;
        let cluster_id = match &entered {
            Entered::Member { cluster_id } | Entered::Founder { cluster_id, .. } => *cluster_id,
        };
        self.local.enter(cluster_id, self.formation.formation());
        if let Entered::Founder { cluster_id, formation, members } = entered {
            for (node, member) in &members {
                self.peers.hint(*node, member.address.clone());
            }
            let partition_bits = self.store.partition_bits();
            let now_ms = self.store.now_ms();
            let cluster = (cluster_id, formation);
            let formed = self.consensus.form(cluster, partition_bits, &members, now_ms, deadline);
            if let Answer::Refused { reason, message } = formed.await.map_err(|e| refused(&e))? {
                return Err(refused(&format!("the cluster cannot be formed: {reason}: {message}")));
            }
        }
        self.ask_others().await;
        let node = self.local.node();
        let mut layout = self.fence.watch();
        let stands = layout.wait_for(|layout| layout.document().members.contains_key(&node));
        let state = match tokio::time::timeout_at(deadline, stands).await {
            Ok(Ok(layout)) => layout.document().members.get(&node).map(|member| member.state),
            _ => return Err(refused(&"no layout document that names the node came in time")),
        };
        if let Some(state) = state.filter(|state| state.is_gone()) {
            self.gossip.tell(|facts| facts.run_state = RunState::Fenced);
            return Err(Error::Fenced { has_left: state == MemberState::Left });
        }
        let lease = lease_to_tell(&self.local, &self.store, &self.work).await;
        self.gossip.tell(|facts| {
            facts.lease = lease;
            facts.cluster = Some(cluster_id);
            facts.run_state = match state {
                Some(MemberState::Leaving) => RunState::Draining,
                _ => RunState::Serving,
            };
        });
        self.meet(cluster_id, if is_new { MEET_TIMEOUT } else { MEET_AGAIN_TIMEOUT }).await;
        Ok(())
    }

    /// Waits a while until the others are heard of, and so this node by them: what is written
    /// before becomes hints for those that seem to be down, or is refused. One of them may be, so
    /// it goes on then.
    async fn meet(&self, cluster_id: NodeId, timeout: Duration) {
        let others = self.fence.layout().sets(0, u8::MAX).members();
        let mut nodes = self.gossip.view().watch();
        let all = nodes.wait_for(|nodes| {
            others.iter().all(|other| {
                nodes.get(other).is_some_and(|node| node.is_up && node.cluster == Some(cluster_id))
            })
        });
        let _met = tokio::time::timeout(timeout, all).await.is_ok();
    }

    /// Asks the members that are known for the layout: a node that was away, and perhaps removed
    /// meanwhile, must not serve under an old one because consensus does not reach it.
    async fn ask_others(&self) {
        let document = self.fence.document();
        let (node, fence, peers) = (self.local.node(), &self.fence, &*self.peers);
        let others = document.members.keys().filter(|other| **other != node);
        let asked = others.map(|other| fence.refresh(peers, *other, LEARN_TIMEOUT));
        // Whoever does not answer may be down; gossip and stamps tell the rest.
        futures_util::future::join_all(asked).await;
    }

    /// Tells the others that the node is about to stop: who can choose asks another one.
    pub fn prepare_to_stop(&self) {
        self.gossip.tell(|facts| facts.run_state = RunState::Draining);
    }

    /// Says farewell. It must be told while peers are still answered: hearsay travels both ways.
    pub async fn say_farewell(&self) {
        if self.gossip.view().nodes().len() > 1 {
            // Nobody listens to a node that is alone.
            self.gossip.leave().await;
        }
    }

    /// Returns when each row this node has coordinated is with all its replicas, or has become a
    /// hint.
    pub async fn finish_writes(&self) {
        self.coordinator.landed().await;
    }

    /// Ends what runs.
    pub async fn stop(self) {
        self.hints.stop().await;
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.consensus.shutdown().await;
        self.gossip.end().await;
        self.peers.close().await;
    }
}
