//! How a node gets its cluster: it forms one with others, once, or joins one.
//!
//! | file | what |
//! |---|---|
//! | `promise` | what first members have agreed to, durably |
//! | `search` | the search of a node without a cluster |
//! | `admission` | the answer of those who have one |
//!
//! **Forming.** Nodes with empty directories ask their seeds, and so hear of each other. The lowest
//! id among `bootstrap_expect` that hear of each other mints the cluster's id and asks each of the
//! others for a promise, which a node gives once, durably, and only while it has no cluster. When
//! all have promised, it commits; the others learn that when they ask again. From then on all do
//! the same: start the consensus group and call
//! [`Consensus::form`](super::consensus::Consensus::form) until the document is there.
//!
//! **Joining.** Whoever is asked and has a cluster names it. When all that answered have named the
//! same, one of them is asked to propose the node as a member, and answers with a document in which
//! it stands.
//!
//! 1. Two clusters never share a member: each needs the promises of all its members, a node gives
//!    one at a time, and joins no other cluster while it stands by one.
//! 2. A node that has a cluster never forms another, nor does it join one.
//! 3. Every step is durable before the next, in an order that can be resumed: promise, commitment
//!    or document, and last the cluster's id in the node's identity.
//! 4. A cluster is not formed while a seed does not answer: it may know of one. An answer that
//!    cannot be read does.
//! 5. Each formation has a name of its own, that of its promise: clusters that were formed under
//!    one configured id do not take each other for the same.
//! 6. What no document takes, such as a zone that is too long, is refused before it is promised.
//!
//! Nodes that are told different seeds, so that they never hear of each other, form clusters of
//! their own: seeds of first members must overlap. If the initiator is lost for good between its
//! commitment and the first answer that tells of it, the others wait for it, and say so; their
//! directories are empty and may be removed.

mod admission;
mod promise;
mod search;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::promise::{Promise, Promises};
use super::NodeId;
use super::layout::{Document, Member, OWNERS_MAX};
use super::peer::PeerError;
use crate::proto::{FormReply, FormRequest, JoinReply, JoinRequest};
use crate::store::environment::Environment;
use crate::store::{self, Store};

pub use self::admission::Admission;

/// Names of refusals. They never change: programs compare them.
pub mod reason {
    /// The node must belong to another cluster, or does.
    pub const WRONG_CLUSTER: &str = "WRONG_CLUSTER";
    /// The id belonged to a node that left or was removed.
    pub const NODE_ID_RETIRED: &str = "NODE_ID_RETIRED";
    /// A member has this name.
    pub const NAME_TAKEN: &str = "NAME_TAKEN";
    /// The clocks seem too far apart. Ask again: a call that was held up looks the same.
    pub const CLOCK_OFFSET: &str = "CLOCK_OFFSET";
    /// No version of the peer protocol is common to both.
    pub const PROTOCOL: &str = "PROTOCOL";
    /// What the node says of itself is not as it must be.
    pub const INVALID_MEMBER: &str = "INVALID_MEMBER";
    /// The receiver has a cluster: it forms no other.
    pub const HAS_CLUSTER: &str = "HAS_CLUSTER";
    /// The receiver has promised itself to another cluster to be.
    pub const PROMISED: &str = "PROMISED";
    /// The cluster's first document is still to be written. Ask again.
    pub const FORMING: &str = "FORMING";
    /// No leader took the change in time. Ask again.
    pub const NO_LEADER: &str = "NO_LEADER";

    /// Those that asking again does not change.
    pub(super) const FINAL: [&str; 5] =
        [WRONG_CLUSTER, NODE_ID_RETIRED, NAME_TAKEN, PROTOCOL, INVALID_MEMBER];
}

/// Clocks of members are at most so far apart when a node joins.
pub const CLOCK_OFFSET_MS_MAX: u64 = 2000;
/// Nodes without a cluster that are remembered, so that strangers cannot fill the memory.
const CANDIDATES_MAX: usize = 256;
/// A candidate counts only when it was heard of within so many polls.
const FRESH_POLLS: u32 = 12;

/// How a node looks for its cluster.
#[derive(Clone, Debug)]
pub struct FormationOptions {
    /// Nodes that form a new cluster together. 1, and no seeds: this one alone, at once; with
    /// seeds: it only joins.
    pub bootstrap_expect: usize,
    /// host:port of the peer ports of other nodes. The own one among them does no harm.
    pub seeds: Vec<String>,
    /// The only cluster to join, and the id of one that is formed. Two may be formed under it, by a
    /// node that was not told its seeds: they are told apart by their formations.
    pub cluster_id: Option<NodeId>,
    /// How often the others are asked.
    pub poll: Duration,
}

/// Where the cluster's id is kept.
pub trait ClusterIdentity: Send + Sync + 'static {
    /// The cluster, if there is one.
    fn cluster_id(&self) -> Option<NodeId>;

    /// Gives the node its cluster, durably, for ever.
    ///
    /// # Errors
    /// It has another one, or I/O.
    fn assign_cluster(&self, cluster_id: NodeId) -> store::Result<()>;
}

impl ClusterIdentity for Store {
    fn cluster_id(&self) -> Option<NodeId> {
        self.identity().cluster_id.map(NodeId)
    }

    fn assign_cluster(&self, cluster_id: NodeId) -> store::Result<()> {
        Store::assign_cluster(self, cluster_id.0)
    }
}

/// How a node came to its cluster, and so what is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entered {
    /// It is of this cluster; the document is there or comes from the consensus group.
    Member {
        /// The cluster.
        cluster_id: NodeId,
    },
    /// It is one of the first: call [`Consensus::form`](super::consensus::Consensus::form) with
    /// these until it succeeds.
    Founder {
        /// The cluster.
        cluster_id: NodeId,
        /// Names this formation of it, and no other.
        formation: NodeId,
        /// Its first members.
        members: BTreeMap<NodeId, Member>,
    },
}

/// Why a node has no cluster.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FormationError {
    /// A seed says that it never will, and why.
    #[error("{address} refuses this node: {reason}: {message}")]
    Refused {
        /// The seed.
        address: String,
        /// One of [`reason`].
        reason: String,
        /// For people.
        message: String,
    },
    /// The seeds have clusters, but not the same: none was joined.
    #[error(
        "the seeds are of different clusters, {clusters}: \
         correct the seeds, or name the cluster to join"
    )]
    SeveralClusters {
        /// Each with the seeds that are of it.
        clusters: String,
    },
    /// The time is over.
    #[error("no cluster was found or formed in time: {last}")]
    TimedOut {
        /// What was in the way last.
        last: String,
    },
    /// The files.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The way of a node to its cluster.
pub struct Formation {
    // Constant after open.
    environment: Environment,
    me: NodeId,
    /// As it will stand in the document of a cluster it joins.
    member: Member,
    options: FormationOptions,
    identity: Arc<dyn ClusterIdentity>,
    fence: Arc<super::fence::Fence>,
    // Each with its own synchronisation.
    promises: Promises,
    candidates: Mutex<Candidates>,
}

impl std::fmt::Debug for Formation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Formation").field("me", &self.me).finish_non_exhaustive()
    }
}

/// Other nodes without a cluster.
#[derive(Debug, Default)]
struct Candidates {
    /// Heard of from themselves, and when.
    heard: BTreeMap<NodeId, (Member, Instant)>,
    /// Where others may be, by hearsay.
    addresses: BTreeSet<String>,
}

impl Formation {
    /// Opens the formation of node `me`, whose data directory is `dir`. `member` is how it will
    /// stand in the document; its state does not matter.
    ///
    /// # Errors
    /// Damage, a newer format, or I/O.
    pub fn open(
        environment: &Environment,
        dir: &Path,
        me: NodeId,
        member: Member,
        options: FormationOptions,
        identity: Arc<dyn ClusterIdentity>,
        fence: Arc<super::fence::Fence>,
    ) -> store::Result<Self> {
        Ok(Self {
            environment: environment.clone(),
            me,
            member,
            options,
            identity,
            fence,
            promises: Promises::open(Arc::clone(&environment.vfs), dir)?,
            candidates: Mutex::default(),
        })
    }

    /// What the node's cluster was formed as, if it has one: zero in old documents too.
    pub fn formation(&self) -> NodeId {
        let document = self.fence.document();
        match self.promises.current() {
            _ if document.is_formed() => document.formation,
            Some(promise) if promise.committed => promise.id,
            _ => NodeId::default(),
        }
    }

    /// The first members of a cluster that is committed and whose document is still to be written.
    pub fn founding(&self) -> Option<BTreeMap<NodeId, Member>> {
        if self.fence.epoch() > 0 {
            return None;
        }
        self.promises.current().filter(|promise| promise.committed).map(|promise| promise.members)
    }

    /// Hears of nodes without a cluster, from gossip or a configuration: they will be asked.
    pub fn hear_of<'a>(&self, addresses: impl IntoIterator<Item = &'a str>) {
        let mut candidates = self.candidates.lock();
        for address in addresses {
            candidates.hear_of(address);
        }
    }

    /// Answers an invitation to form a cluster ([`Request::Form`](super::peer::Request)).
    ///
    /// # Errors
    /// [`PeerError::Refused`] with [`reason::HAS_CLUSTER`], [`reason::PROMISED`],
    /// [`reason::WRONG_CLUSTER`], or when it cannot be read or kept.
    pub fn handle_form(&self, from: NodeId, form: &FormRequest) -> Result<FormReply, PeerError> {
        let asked = self.read_form(from, form)?;
        let given = self.promises.current().is_some_and(|promise| promise.id == asked.id);
        if let Some(cluster_id) = self.identity.cluster_id().filter(|_| !given) {
            return Err(refused(reason::HAS_CLUSTER, format!("{} is of {cluster_id}", self.me)));
        }
        if self.options.cluster_id.is_some_and(|only| only != asked.cluster_id) {
            let message = format!("{} must not be of {}", self.me, asked.cluster_id);
            return Err(refused(reason::WRONG_CLUSTER, message));
        }
        let stands = self.promises.replace(None, Some(asked.clone())).map_err(unkept)?;
        if stands.as_ref().is_some_and(|stands| stands.id == asked.id) {
            return Ok(FormReply {});
        }
        let other = stands.map(|stands| stands.cluster_id).unwrap_or_default();
        Err(refused(reason::PROMISED, format!("{} has promised itself to {other}", self.me)))
    }

    fn read_form(&self, from: NodeId, form: &FormRequest) -> Result<Promise, PeerError> {
        let invalid = |why: &str| refused("INVALID_ARGUMENT", why.to_owned());
        let read_id = |bytes| NodeId::from_bytes(bytes).filter(|id| id.0 != 0);
        let id = read_id(&form.promise_id).ok_or_else(|| invalid("the promise id is none"))?;
        let cluster_id = read_id(&form.cluster_id);
        let cluster_id = cluster_id.ok_or_else(|| invalid("the cluster id is none"))?;
        let members: BTreeMap<NodeId, Member> = read_members(&form.records)?;
        let ids: Option<Vec<NodeId>> =
            form.members.iter().map(|id| NodeId::from_bytes(id)).collect();
        if !ids.is_some_and(|ids| ids.iter().eq(members.keys())) {
            return Err(invalid("the members are not those of the records"));
        }
        if members.len() > OWNERS_MAX {
            return Err(invalid("there are more members than a cluster may have"));
        }
        members.values().try_for_each(check_member)?;
        let promise = Promise { id, cluster_id, members, committed: false };
        if promise.initiator() != Some(from) || !promise.members.contains_key(&self.me) {
            return Err(invalid("it is not from the first member, or not for this one"));
        }
        Ok(promise)
    }

    /// Answers, without a cluster, a node that looks for one ([`Request::Join`](
    /// super::peer::Request)): each hears of the other.
    ///
    /// # Errors
    /// [`PeerError::Refused`] when it cannot be read.
    pub fn handle_join(&self, from: NodeId, join: &JoinRequest) -> Result<JoinReply, PeerError> {
        let member = read_member(&join.member)?;
        check_member(&member)?;
        let promise = self.promises.current();
        let promise_holds = stands_by(promise.as_ref(), &join.promised_id);
        if let Some(promise) = promise.filter(|promise| promise.committed) {
            return founding_reply(&promise, from, promise_holds);
        }
        let mut candidates = self.candidates.lock();
        candidates.hear(from, member);
        let mut known = candidates.fresh(self.freshness());
        known.insert(self.me, self.member.clone());
        Ok(JoinReply { members: encode_members(&known), promise_holds, ..JoinReply::default() })
    }

    fn freshness(&self) -> Duration {
        self.options.poll * FRESH_POLLS
    }
}

impl Candidates {
    fn hear(&mut self, node: NodeId, member: Member) {
        if self.heard.len() >= CANDIDATES_MAX && !self.heard.contains_key(&node) {
            let oldest = self.heard.iter().min_by_key(|(_, (_, heard))| *heard);
            if let Some(oldest) = oldest.map(|(id, _)| *id) {
                self.heard.remove(&oldest);
            }
        }
        self.hear_of(&member.address);
        self.heard.insert(node, (member, Instant::now()));
    }

    fn hear_of(&mut self, address: &str) {
        if self.addresses.len() < CANDIDATES_MAX && !address.is_empty() {
            self.addresses.insert(address.to_owned());
        }
    }

    /// Those heard of lately.
    fn fresh(&self, within: Duration) -> BTreeMap<NodeId, Member> {
        let fresh = self.heard.iter().filter(|(_, (_, heard))| heard.elapsed() <= within);
        fresh.map(|(id, (member, _))| (*id, member.clone())).collect()
    }
}

/// Whether the promise that was named is this node's.
fn stands_by(promise: Option<&Promise>, named: &[u8]) -> bool {
    promise.is_some_and(|promise| named == promise.id.to_bytes())
}

fn founding_reply(
    promise: &Promise,
    from: NodeId,
    promise_holds: bool,
) -> Result<JoinReply, PeerError> {
    if !promise.members.contains_key(&from) {
        let message = format!("the document of {} is still to be written", promise.cluster_id);
        return Err(refused(reason::FORMING, message));
    }
    Ok(JoinReply {
        cluster_id: Bytes::copy_from_slice(&promise.cluster_id.to_bytes()),
        members: encode_members(&promise.members),
        promise_holds,
        ..JoinReply::default()
    })
}

/// A promise keeps members as they are for ever: one that no document takes has no place in it.
fn check_member(member: &Member) -> Result<(), PeerError> {
    member.validate().map_err(|why| refused(reason::INVALID_MEMBER, why))
}

fn refused(reason: &str, message: String) -> PeerError {
    PeerError::Refused { reason: reason.to_owned(), message }
}

fn unkept(error: store::Error) -> PeerError {
    refused(error.reason(), error.to_string())
}

fn encode_members(members: &BTreeMap<NodeId, Member>) -> Bytes {
    serde_json::to_vec(members).expect("members are plain data").into()
}

fn encode_document(document: &Document) -> Bytes {
    serde_json::to_vec(document).expect("a document is plain data").into()
}

fn read_members(json: &[u8]) -> Result<BTreeMap<NodeId, Member>, PeerError> {
    serde_json::from_slice(json).map_err(|error| refused("INVALID_ARGUMENT", error.to_string()))
}

fn read_member(json: &[u8]) -> Result<Member, PeerError> {
    serde_json::from_slice(json).map_err(|error| refused("INVALID_ARGUMENT", error.to_string()))
}

#[cfg(test)]
mod tests;
