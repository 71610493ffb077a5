//! What a node is by itself: its name and address, and how it gets in touch with the others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::config::Config;
use super::node::Error;
use super::world::World;
use crate::cluster::NodeId;
use crate::cluster::fence::Fence;
use crate::cluster::formation::{Formation, FormationOptions};
use crate::cluster::gossip::{self, Gossip};
use crate::cluster::layout::{Member, MemberState};
use crate::cluster::local::{Local, PROTOCOLS};
use crate::cluster::view::{Addresses, Facts, RunState};
use crate::rpc::peer::{Counters, Options as PeerOptions, PeerClient};
use crate::store::{self, Store};

/// How often the cluster's nodes without one are asked.
const POLL: Duration = Duration::from_millis(500);

/// What a node has before it is in touch with anybody.
pub(super) struct Own {
    pub node: NodeId,
    pub local: Arc<Local>,
    /// Where the others reach it.
    advertise: SocketAddr,
    /// As which it joins.
    member: Member,
}

impl Own {
    /// As the settings and the store say; `bound` is the port it listens on for others.
    ///
    /// # Errors
    /// Others could not reach it.
    pub fn new(
        config: &Config,
        world: &World,
        store: &Store,
        bound: SocketAddr,
    ) -> Result<Self, Error> {
        let identity = store.identity();
        let node = NodeId(identity.node_id);
        let advertise = advertised(config, bound)?;
        let local = Local::new(
            node,
            identity.generation,
            identity.cluster_id.map(NodeId),
            advertise.to_string(),
            Arc::clone(&world.environment.clock),
        );
        let name = match config.node.name.as_str() {
            "" => node.to_string(),
            name => name.to_owned(),
        };
        let member = Member {
            name,
            zone: config.node.zone.clone(),
            weight: 1,
            state: MemberState::Joining,
            address: advertise.to_string(),
        };
        let local = Arc::new(local.with_lease_found(store.lease_found()));
        Ok(Self { node, local, advertise, member })
    }

    /// What it has promised to those it would form a cluster with.
    ///
    /// # Errors
    /// Damage, a newer format, or I/O.
    pub fn open_formation(
        &self,
        config: &Config,
        world: &World,
        store: &Arc<Store>,
        fence: &Arc<Fence>,
    ) -> store::Result<Arc<Formation>> {
        let expect = config.cluster.bootstrap_expect;
        let options = FormationOptions {
            bootstrap_expect: usize::try_from(expect).unwrap_or(usize::MAX),
            seeds: config.cluster.seeds.0.clone(),
            cluster_id: config.cluster.id.0.map(NodeId),
            poll: POLL,
        };
        let (environment, dir) = (&world.environment, &config.node.data_dir);
        let (identity, fence) = (Arc::clone(store) as _, Arc::clone(fence));
        let member = self.member.clone();
        let formation =
            Formation::open(environment, dir, self.node, member, options, identity, fence)?;
        Ok(Arc::new(formation))
    }

    /// Streams to the others, none of which is open yet.
    pub fn peers(&self, world: &World, counters: &Arc<Counters>) -> Arc<PeerClient> {
        let peers = PeerClient::new(
            Arc::clone(&self.local),
            Arc::clone(&world.net),
            PeerOptions::default(),
            Arc::clone(counters),
            Arc::clone(&world.environment.random),
        );
        Arc::new(peers.expect("the default settings are in their bounds"))
    }

    /// Begins to speak of itself.
    pub fn start_gossip(
        &self,
        config: &Config,
        fence: &Fence,
        peers: &Arc<PeerClient>,
        addresses: Addresses,
    ) -> Arc<Gossip> {
        let facts = Facts {
            node: self.node,
            name: self.member.name.clone(),
            zone: self.member.zone.clone(),
            addresses: Addresses { peer: self.advertise.to_string(), ..addresses },
            run_state: RunState::Starting,
            version: super::VERSION.to_owned(),
            protocols: PROTOCOLS,
            ..Facts::default()
        };
        // The members known from before too: seeds may be gone for good.
        let mut seeds = config.cluster.seeds.0.clone();
        let known = fence.document();
        let others = known.members.iter().filter(|(id, _)| **id != self.node);
        seeds.extend(others.map(|(_, member)| member.address.clone()));
        seeds.sort_unstable();
        seeds.dedup();
        let options = gossip::Options::new(self.advertise, seeds);
        let post = Arc::clone(peers) as _;
        let gossip = Arc::new(Gossip::start(Arc::clone(&self.local), post, options, facts));
        peers.listen_to(Arc::new(gossip.view().clone()));
        for (id, member) in &known.members {
            peers.hint(*id, member.address.clone());
        }
        gossip
    }
}

/// Where the others reach this node.
fn advertised(config: &Config, bound: SocketAddr) -> Result<SocketAddr, Error> {
    if let Some(address) = config.cluster.advertised()? {
        return Ok(address);
    }
    let is_alone = config.cluster.seeds.0.is_empty() && config.cluster.bootstrap_expect <= 1;
    if bound.ip().is_unspecified() && !is_alone {
        let what = format!("listen.peer is {bound}: others need cluster.advertise to reach it");
        return Err(Error::Config(super::config::Error::Invalid(what)));
    }
    Ok(bound)
}
