//! What a node knows of the others from hearsay: who is up, where it is reached, how it fares.
//!
//! Hearsay decides nothing. Ownership, tenants and membership come from the layout document; this
//! says whom to ask first, where to dial and what to show. `cluster::gossip` fills it.
//!
//! 1. There is one entry for each node id: that of the highest generation heard of. An older
//!    incarnation is dead from the moment a newer one is heard of.
//! 2. Nodes without a cluster are listed too: the first nodes must find each other before there is
//!    a cluster. Whoever looks for members asks the layout document.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use tokio::sync::watch;

use super::NodeId;

/// Who is up, and where it is reached.
pub trait Liveness: Send + Sync + 'static {
    /// Whether the node was heard of lately. A node itself is always up in its own view.
    fn is_up(&self, node: NodeId) -> bool;

    /// `host:port` of its peer port, as it was last heard of, up or not.
    fn address(&self, node: NodeId) -> Option<String>;
}

/// All nodes heard of.
pub type Nodes = BTreeMap<NodeId, Facts>;

/// Everything heard of, and a watch of its changes.
pub trait View: Liveness {
    /// The nodes, this one included. The receiver is notified of every change.
    fn watch(&self) -> watch::Receiver<Arc<Nodes>>;

    /// The nodes now.
    fn nodes(&self) -> Arc<Nodes> {
        self.watch().borrow().clone()
    }
}

/// What a node does, as it says itself. What it is to the cluster stands in the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum RunState {
    /// It is on its way up, or has no cluster yet.
    #[default]
    Starting,
    /// It takes over what it will own.
    Syncing,
    /// It serves.
    Serving,
    /// It should be sent no writes: its disk has failed, its clock is wrong, or it does not follow
    /// the layout any more.
    ReadOnly,
    /// It hands over what it owns, or stops.
    Draining,
    /// It was told that another one acts under its id, or that it was removed.
    Fenced,
    /// It said that it stops.
    Down,
}

impl RunState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Starting,
        Self::Syncing,
        Self::Serving,
        Self::ReadOnly,
        Self::Draining,
        Self::Fenced,
        Self::Down,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Syncing => "syncing",
            Self::Serving => "serving",
            Self::ReadOnly => "read_only",
            Self::Draining => "draining",
            Self::Fenced => "fenced",
            Self::Down => "down",
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RunState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let state = Self::ALL.into_iter().find(|state| state.name() == text);
        state.ok_or_else(|| format!("{text:?} is no run state"))
    }
}

/// Where a node is reached, each `host:port`; empty where it did not say.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Addresses {
    /// Peers.
    pub peer: String,
    /// Clients and operators.
    pub client: String,
    /// Metrics and health over HTTP.
    pub admin: String,
}

impl Addresses {
    /// Where clients reach the node, `host:port`. One that serves them on all its addresses is
    /// reached where its peers reach it; empty: it is not known where.
    pub fn for_clients(&self) -> String {
        let is_any = |host: &str| {
            let ip: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
            ip.is_ok_and(|ip| ip.is_unspecified())
        };
        match (self.client.rsplit_once(':'), self.peer.rsplit_once(':')) {
            (Some((host, _)), _) if !is_any(host) => self.client.clone(),
            (Some((_, port)), Some((host, _))) if !is_any(host) => format!("{host}:{port}"),
            _ => String::new(),
        }
    }
}

/// What is known of a node, by its own word except for `is_up`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Facts {
    /// The node.
    pub node: NodeId,
    /// Grows with every start of the node.
    pub generation: u64,
    /// Whether it was heard of lately.
    pub is_up: bool,
    /// Its cluster; none while it looks for one.
    pub cluster: Option<NodeId>,
    /// What its cluster was formed as; zero: it is not known.
    pub formation: NodeId,
    /// Its name, for people.
    pub name: String,
    /// Its failure zone.
    pub zone: String,
    /// Where it is reached.
    pub addresses: Addresses,
    /// What it does.
    pub run_state: RunState,
    /// Its program's version, for people.
    pub version: String,
    /// Oldest and newest version of the peer protocol it speaks.
    pub protocols: (u32, u32),
    /// The layout epoch it knows.
    pub epoch: u64,
    /// The pressure of its store, 0 to 1.
    pub load: f64,
    /// Bytes of its rows, about.
    pub load_bytes: u64,
    /// The used share of its disk, 0 to 1.
    pub disk: f64,
    /// Bytes of its disk that values may still take, if it has looked.
    pub disk_room: Option<u64>,
    /// How far it is with rows that move between owners, in the words of who moves them.
    pub moving: String,
    /// Hints it keeps for others.
    pub hints: u64,
    /// Partitions of it that have lost data and get it back.
    pub damaged: u64,
    /// Blocks of its tables that cannot be read.
    pub unreadable: u64,
    /// The durable bound of its clock: it was never below what it told.
    pub lease: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_listens_everywhere_is_reached_where_its_peers_reach_it() {
        let address = |client: &str, peer: &str| {
            let (client, peer) = (client.to_owned(), peer.to_owned());
            Addresses { client, peer, ..Addresses::default() }.for_clients()
        };
        assert_eq!(address("10.0.0.1:8080", "10.0.0.2:7946"), "10.0.0.1:8080");
        assert_eq!(address("node-1:8080", "10.0.0.2:7946"), "node-1:8080");
        assert_eq!(address("0.0.0.0:8080", "10.0.0.2:7946"), "10.0.0.2:8080");
        assert_eq!(address("[::]:8080", "[fd00::2]:7946"), "[fd00::2]:8080");
        assert_eq!(address("0.0.0.0:8080", "node-2:7946"), "node-2:8080");
        assert_eq!(address("0.0.0.0:8080", "[::0]:7946"), "");
        assert_eq!(address("0.0.0.0:8080", ""), "");
        assert_eq!(address("", "10.0.0.2:7946"), "");
    }

    #[test]
    fn every_run_state_is_read_as_it_is_written() {
        for state in RunState::ALL {
            assert_eq!(state.to_string().parse(), Ok(state));
        }
        assert!("Serving".parse::<RunState>().is_err());
    }
}
