//! Who speaks, and whom it means: the first message of a stream, in both directions.
//!
//! 1. Nothing but this is taken from a node of another cluster or formation, for another node, of
//!    an incarnation that is over, or of a protocol this program does not speak.
//! 2. Where one side has no cluster yet, only what it needs to find, form or join one goes through,
//!    and on the control class only. That is decided anew for every request: the receiver may have
//!    entered a cluster since the stream began.
//! 3. Each tells the other what it has heard of it: who calls by what it knew before, who answers
//!    with the caller's generation. What a member says is taken before anything else is, and nobody
//!    speaks to a node that has found out by it that it was put back.

use std::fmt;

use crate::cluster::NodeId;
use crate::cluster::local::{Heard, Local, PROTOCOLS, Told};
use crate::cluster::peer::{Class, PeerError, Request};
use crate::proto::Hello;

/// Why a node is not spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It belongs to another cluster.
    WrongCluster,
    /// It belongs to another cluster that was formed under the same id.
    WrongFormation,
    /// It means another node, or is another one than was meant.
    WrongNode,
    /// A later incarnation of it is known.
    StaleGeneration,
    /// No version of the protocol is common to both.
    Protocol,
    /// It has no cluster, or this node has none.
    NoCluster,
    /// This node's directory was put back to an earlier state.
    RolledBack,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::WrongCluster,
        Self::WrongFormation,
        Self::WrongNode,
        Self::StaleGeneration,
        Self::Protocol,
        Self::NoCluster,
        Self::RolledBack,
    ];

    /// As it stands in failures, logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::WrongCluster => "WRONG_CLUSTER",
            Self::WrongFormation => "WRONG_FORMATION",
            Self::WrongNode => "WRONG_NODE",
            Self::StaleGeneration => "STALE_GENERATION",
            Self::Protocol => "PROTOCOL",
            Self::NoCluster => "NO_CLUSTER",
            Self::RolledBack => "ROLLED_BACK",
        }
    }
}

/// A refusal, with its figures in the message.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    pub reason: Reason,
    pub message: String,
}

impl Refusal {
    fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string() }
    }
}

impl From<Refusal> for PeerError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused { reason: refusal.reason.name().to_owned(), message: refusal.message }
    }
}

/// The other side of a stream, as it presented itself.
#[derive(Clone, Debug)]
pub(super) struct Partner {
    pub node: NodeId,
    /// Its cluster, and what that was formed as.
    pub cluster: Option<(NodeId, NodeId)>,
    pub heard: Heard,
    pub class: Class,
}

/// The class of a number on the wire.
fn class_of(number: u32) -> Option<Class> {
    Class::ALL.into_iter().find(|class| number_of(*class) == number)
}

/// As it stands on the wire.
fn number_of(class: Class) -> u32 {
    match class {
        Class::Control => 0,
        Class::Foreground => 1,
        Class::Background => 2,
    }
}

/// How this node presents itself to `target`, where that is known.
pub(super) fn hello(local: &Local, target: Option<NodeId>, class: Class) -> Hello {
    let bytes = |id: NodeId| bytes::Bytes::copy_from_slice(&id.to_bytes());
    let told = target.map_or(Told::default(), |target| local.told_by(target));
    Hello {
        cluster_id: bytes(local.cluster().unwrap_or_default()),
        node_id: bytes(local.node()),
        target_id: target.map(bytes).unwrap_or_default(),
        generation: local.generation(),
        protocol_min: PROTOCOLS.0,
        protocol_max: PROTOCOLS.1,
        now_ms: local.now_ms(),
        class: number_of(class),
        address: local.address().to_owned(),
        formation: bytes(local.formation()),
        generation_heard: told.generation,
        lease_heard: told.lease,
        lease_heard_before: told.lease_before,
    }
}

/// Checks how the other side presented itself; `expected` is the node that was meant.
pub(super) fn check(
    local: &Local,
    hello: &Hello,
    expected: Option<NodeId>,
) -> Result<Partner, Refusal> {
    let malformed = |what: &str| Refusal::new(Reason::Protocol, format!("{what} is malformed"));
    let (min, max) = (hello.protocol_min, hello.protocol_max);
    if max < PROTOCOLS.0 || min > PROTOCOLS.1 || min > max {
        let (from, to) = PROTOCOLS;
        let message = format!("it speaks protocols {min} to {max}, this node {from} to {to}");
        return Err(Refusal::new(Reason::Protocol, message));
    }
    let class = class_of(hello.class).ok_or_else(|| malformed("the class"))?;
    let cluster = NodeId::from_bytes(&hello.cluster_id).ok_or_else(|| malformed("cluster_id"))?;
    let formation = match hello.formation.is_empty() {
        true => NodeId::default(),
        false => NodeId::from_bytes(&hello.formation).ok_or_else(|| malformed("formation"))?,
    };
    let cluster = (cluster != NodeId::default()).then_some((cluster, formation));
    let node = NodeId::from_bytes(&hello.node_id).ok_or_else(|| malformed("node_id"))?;
    same_cluster(local, cluster)?;
    if !hello.target_id.is_empty() {
        let target = NodeId::from_bytes(&hello.target_id).ok_or_else(|| malformed("target_id"))?;
        if target != local.node() {
            let message = format!("it means {target}, this is {}", local.node());
            return Err(Refusal::new(Reason::WrongNode, message));
        }
    }
    if expected.is_some_and(|expected| expected != node) {
        return Err(Refusal::new(Reason::WrongNode, format!("it is {node}")));
    }
    if cluster.is_some() {
        local.hear_of_itself(Told {
            generation: hello.generation_heard,
            lease: hello.lease_heard,
            lease_before: hello.lease_heard_before,
        });
    }
    not_rolled_back(local)?;
    let heard = local.hear_generation(node, hello.generation);
    let heard = heard.map_err(|known| stale(node, hello.generation, known))?;
    Ok(Partner { node, cluster, heard, class })
}

fn stale(node: NodeId, generation: u64, known: u64) -> Refusal {
    let message = format!("{node} was heard of in generation {known}, this one is {generation}");
    Refusal::new(Reason::StaleGeneration, message)
}

/// A node that has lost what it had promised neither answers nor asks: others would count it.
fn not_rolled_back(local: &Local) -> Result<(), Refusal> {
    if *local.rolled_back().borrow() {
        let message = "the data directory of this node was put back to an earlier state";
        return Err(Refusal::new(Reason::RolledBack, message));
    }
    Ok(())
}

fn same_cluster(local: &Local, theirs: Option<(NodeId, NodeId)>) -> Result<bool, Refusal> {
    let (Some(own), Some((theirs, formation))) = (local.cluster(), theirs) else {
        return Ok(false);
    };
    if own != theirs {
        let message = format!("it is of cluster {theirs}, this node of {own}");
        return Err(Refusal::new(Reason::WrongCluster, message));
    }
    if formation != local.formation() {
        let message = format!(
            "cluster {own} was formed twice: its is {formation}, this node's is {}",
            local.formation()
        );
        return Err(Refusal::new(Reason::WrongFormation, message));
    }
    Ok(true)
}

/// Whether `partner` may ask this now.
pub(super) fn admit(local: &Local, partner: &Partner, request: &Request) -> Result<(), Refusal> {
    not_rolled_back(local)?;
    if let Err(known) = partner.heard.check() {
        return Err(stale(partner.node, partner.heard.generation(), known));
    }
    if same_cluster(local, partner.cluster)? {
        return Ok(());
    }
    let open = matches!(
        request,
        Request::Document(_) | Request::Join(_) | Request::Form(_) | Request::Gossip(_)
    );
    if open && partner.class == Class::Control {
        return Ok(());
    }
    let who = if local.cluster().is_none() { "this node" } else { "the sender" };
    Err(Refusal::new(Reason::NoCluster, format!("{who} has no cluster yet")))
}
