//! The search of a node without a cluster; see the module page above for the protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::promise::Promise;
use super::{Entered, Formation, FormationError, encode_members, read_members, reason};
use crate::cluster::NodeId;
use crate::cluster::layout::{Document, Member, MemberState};
use crate::cluster::peer::{PeerError, Peers, Reply, Request};
use crate::proto::{FormRequest, JoinReply, JoinRequest};
use crate::store::identity::uuid;
use crate::store::{self};

/// Rounds in which a member may fail to answer before the initiator gives up and looks again.
const ROUNDS_MAX: u32 = 8;

type Answers = BTreeMap<String, Result<(NodeId, Reply), PeerError>>;

/// What the answers of one round come to.
enum Round {
    /// The node has its cluster.
    Entered(Entered),
    /// Not yet; what was in the way, if anything was.
    Waiting(Option<String>),
}

/// What one answer comes to.
pub(super) enum Heard {
    /// The node has its cluster.
    Entered(Entered),
    /// The sender is of this cluster and formation, and may be asked to take the node.
    Offer(NodeId, NodeId),
    /// Nothing may be begun: there is a cluster, or may be.
    InTheWay(String),
    /// At most other nodes to ask.
    Nothing,
}

impl Formation {
    /// Looks for a cluster until the node has one, resuming what an earlier life began. The node
    /// answers the requests of others meanwhile.
    ///
    /// # Errors
    /// See [`FormationError`]. After [`FormationError::TimedOut`] it may be called again.
    pub async fn run(
        &self,
        peers: &Arc<dyn Peers>,
        deadline: Instant,
    ) -> Result<Entered, FormationError> {
        if let Some(entered) = self.resume()? {
            return Ok(entered);
        }
        let mut rounds = 0;
        loop {
            let next_poll = Instant::now() + self.options.poll;
            let waits_for;
            if let Some(promise) = self.own_promise() {
                rounds += 1;
                match self.gather(peers, promise, rounds > ROUNDS_MAX).await? {
                    Round::Entered(entered) => return Ok(entered),
                    Round::Waiting(why) => waits_for = why,
                }
            } else {
                rounds = 0;
                match self.ask(peers).await? {
                    Round::Entered(entered) => return Ok(entered),
                    Round::Waiting(None) if self.begin()? => continue,
                    Round::Waiting(why) => waits_for = why,
                }
            }
            if next_poll >= deadline {
                let last = waits_for.unwrap_or_else(|| {
                    let expect = self.options.bootstrap_expect;
                    format!("fewer than {expect} nodes were heard of")
                });
                return Err(FormationError::TimedOut { last });
            }
            sleep_until(next_poll).await;
        }
    }

    /// What an earlier life had reached, or what needs nobody else.
    fn resume(&self) -> store::Result<Option<Entered>> {
        let committed = self.promises.current().filter(|promise| promise.committed);
        let document = self.fence.document();
        if let Some(cluster_id) = self.identity.cluster_id() {
            let founding = committed.filter(|promise| promise.cluster_id == cluster_id);
            return match founding {
                _ if document.epoch > 0 => Ok(Some(Entered::Member { cluster_id })),
                Some(promise) => Ok(Some(founder(promise))),
                // Who joins has its document before its cluster.
                None => Err(self.fence.missing()),
            };
        }
        // One that does not name this node came by hearsay, while it was still asking.
        if document.members.contains_key(&self.me) {
            self.identity.assign_cluster(document.cluster_id)?;
            return Ok(Some(Entered::Member { cluster_id: document.cluster_id }));
        }
        if let Some(promise) = committed {
            return self.enter_as_founder(promise).map(Some);
        }
        let invalid = |what, why| store::Error::InvalidArgument { what, why };
        self.member.validate().map_err(|why| invalid("this node as a member", why))?;
        let alone = self.options.bootstrap_expect <= 1 && self.options.seeds.is_empty();
        if alone && self.promises.current().is_none() {
            let promise = Promise {
                id: self.mint_id()?,
                cluster_id: self.mint()?,
                members: BTreeMap::from([(self.me, first_member(&self.member))]),
                committed: true,
            };
            self.promises.replace(None, Some(promise.clone()))?;
            return self.enter_as_founder(promise).map(Some);
        }
        Ok(None)
    }

    fn mint(&self) -> store::Result<NodeId> {
        self.options.cluster_id.map_or_else(|| self.mint_id(), Ok)
    }

    fn mint_id(&self) -> store::Result<NodeId> {
        uuid::mint(&*self.environment.random).map(NodeId)
    }

    fn enter_as_founder(&self, promise: Promise) -> store::Result<Entered> {
        self.identity.assign_cluster(promise.cluster_id)?;
        Ok(founder(promise))
    }

    /// The promise this node asks others for.
    fn own_promise(&self) -> Option<Promise> {
        self.promises.current().filter(|promise| promise.initiator() == Some(self.me))
    }

    /// Begins a cluster if enough nodes are there and this is the one to do it.
    fn begin(&self) -> store::Result<bool> {
        let expect = self.options.bootstrap_expect;
        // Whoever has heard of a document knows of a cluster.
        let knows_one = self.fence.document().epoch > 0;
        if expect <= 1 || knows_one || self.promises.current().is_some() {
            return Ok(false);
        }
        let mut candidates = self.candidates.lock().fresh(self.freshness());
        candidates.insert(self.me, self.member.clone());
        let mut names = BTreeSet::new();
        let members: BTreeMap<NodeId, Member> = candidates
            .into_iter()
            .filter(|(_, member)| names.insert(member.name.clone()))
            .take(expect)
            .map(|(id, member)| (id, first_member(&member)))
            .collect();
        if members.len() < expect || members.keys().next() != Some(&self.me) {
            return Ok(false);
        }
        let (id, cluster_id) = (self.mint_id()?, self.mint()?);
        let promise = Promise { id, cluster_id, members, committed: false };
        Ok(self.promises.replace(None, Some(promise.clone()))? == Some(promise))
    }

    /// Asks the members of the own promise for theirs; commits when all have given it, gives up
    /// when one cannot.
    async fn gather(
        &self,
        peers: &Arc<dyn Peers>,
        promise: Promise,
        give_up: bool,
    ) -> Result<Round, FormationError> {
        let bytes = |id: NodeId| Bytes::copy_from_slice(&id.to_bytes());
        let request = Request::Form(FormRequest {
            cluster_id: bytes(promise.cluster_id),
            members: promise.members.keys().map(|id| bytes(*id)).collect(),
            records: encode_members(&promise.members),
            promise_id: bytes(promise.id),
        });
        let others = promise.members.iter().filter(|(id, _)| **id != self.me);
        let others: Vec<(NodeId, String)> =
            others.map(|(id, member)| (*id, member.address.clone())).collect();
        let answers = self
            .call_all(peers, others.iter().map(|(_, address)| address.clone()).collect(), &request)
            .await;
        let mut missing = None;
        let mut hopeless = give_up;
        for (id, address) in others {
            match answers.get(&address) {
                Some(Ok((who, Reply::Form(_)))) if *who == id => {}
                Some(Err(error @ PeerError::Refused { .. })) => {
                    hopeless = true;
                    missing = Some(format!("{address} makes no promise: {error}"));
                }
                Some(Err(error)) => missing = Some(format!("{address} does not answer: {error}")),
                _ => missing = Some(format!("{address} is not {id}")),
            }
        }
        if missing.is_none() {
            let committed = Promise { committed: true, ..promise.clone() };
            self.promises.replace(Some(&promise), Some(committed.clone()))?;
            return Ok(Round::Entered(self.enter_as_founder(committed)?));
        }
        if hopeless {
            self.promises.replace(Some(&promise), None)?;
        }
        Ok(Round::Waiting(missing))
    }

    /// Asks all known addresses for a cluster, and tells them of this node.
    async fn ask(&self, peers: &Arc<dyn Peers>) -> Result<Round, FormationError> {
        let promise = self.promises.current();
        let mut addresses: BTreeSet<String> = self.options.seeds.iter().cloned().collect();
        addresses.extend(self.candidates.lock().addresses.iter().cloned());
        if let Some(promise) = &promise {
            addresses.extend(promise.members.values().map(|member| member.address.clone()));
        }
        addresses.remove(&self.member.address);
        let request = self.join_request(promise.as_ref(), true);
        let answers = self.call_all(peers, addresses, &request).await;
        let mut in_the_way = promise.as_ref().map(|promise| {
            let initiator = promise.initiator().unwrap_or_default();
            format!("{initiator} has not committed the cluster {}", promise.cluster_id)
        });
        let mut offers = Offers::default();
        for (address, answer) in answers {
            match self.hear(promise.as_ref(), &address, answer)? {
                Heard::Entered(entered) => return Ok(Round::Entered(entered)),
                Heard::Offer(cluster_id, formation) => {
                    let by_seed = self.options.seeds.contains(&address);
                    offers.add(by_seed, (cluster_id, formation), address);
                }
                Heard::InTheWay(why) => in_the_way = Some(why),
                Heard::Nothing => {}
            }
        }
        match offers.choose()? {
            Some(addresses) => self.join(peers, addresses).await,
            None => Ok(Round::Waiting(in_the_way)),
        }
    }

    /// Asks members of one cluster, one after the other, to take this node.
    async fn join(
        &self,
        peers: &Arc<dyn Peers>,
        addresses: Vec<String>,
    ) -> Result<Round, FormationError> {
        let mut in_the_way = None;
        for address in addresses {
            if self.promises.current().is_some() {
                return Ok(Round::Waiting(Some("a promise was given meanwhile".to_owned())));
            }
            let request = self.join_request(None, false);
            let answer = peers.call_address(&address, request, self.patience()).await;
            match self.hear(None, &address, answer)? {
                Heard::Entered(entered) => return Ok(Round::Entered(entered)),
                Heard::InTheWay(why) => in_the_way = Some(why),
                Heard::Offer(..) | Heard::Nothing => {}
            }
        }
        Ok(Round::Waiting(in_the_way.or_else(|| Some("no member has answered".to_owned()))))
    }

    fn join_request(&self, promise: Option<&Promise>, asks_only: bool) -> Request {
        let id_bytes = |id: Option<NodeId>| {
            id.map(|id| Bytes::copy_from_slice(&id.to_bytes())).unwrap_or_default()
        };
        let member = serde_json::to_vec(&self.member).expect("a member is plain data");
        Request::Join(JoinRequest {
            member: member.into(),
            now_ms: self.environment.clock.now_ms(),
            cluster_id: id_bytes(self.options.cluster_id),
            promised_id: id_bytes(promise.map(|promise| promise.id)),
            asks_only,
        })
    }

    /// Takes what came of asking one address; `asked` is the promise that was named.
    fn hear(
        &self,
        asked: Option<&Promise>,
        address: &str,
        answer: Result<(NodeId, Reply), PeerError>,
    ) -> Result<Heard, FormationError> {
        let is_seed = self.options.seeds.iter().any(|seed| seed == address);
        match answer {
            Ok((from, Reply::Join(reply))) if from != self.me => {
                Ok(match self.take(asked, from, &reply)? {
                    Heard::InTheWay(why) => Heard::InTheWay(format!("{address}: {why}")),
                    heard => heard,
                })
            }
            Ok(_) => Ok(Heard::Nothing),
            Err(PeerError::Refused { reason, message })
                if is_seed && reason::FINAL.contains(&reason.as_str()) =>
            {
                Err(FormationError::Refused { address: address.to_owned(), reason, message })
            }
            // It may know of a cluster: nothing is begun without its answer.
            Err(error) if is_seed => Ok(Heard::InTheWay(format!("{address}: {error}"))),
            Err(_) => Ok(Heard::Nothing),
        }
    }

    /// Takes what one node has replied to a question that named the promise `asked`.
    pub(super) fn take(
        &self,
        asked: Option<&Promise>,
        from: NodeId,
        reply: &JoinReply,
    ) -> store::Result<Heard> {
        let promise = self.promises.current();
        if !reply.document.is_empty() {
            return self.take_document(promise, &reply.document);
        }
        let named = NodeId::from_bytes(&reply.cluster_id);
        let is_founding = !reply.members.is_empty();
        if let Some(promise) = promise {
            if is_founding && named == Some(promise.cluster_id) {
                let committed = Promise { committed: true, ..promise.clone() };
                self.promises.replace(Some(&promise), Some(committed.clone()))?;
                return self.enter_as_founder(committed).map(Heard::Entered);
            }
            // An answer to a question that named no promise, or another one, says nothing of this.
            let meant = asked == Some(&promise);
            if meant && promise.initiator() == Some(from) && !reply.promise_holds {
                self.promises.replace(Some(&promise), None)?;
            }
        } else if let Some(cluster_id) = named.filter(|_| !is_founding) {
            let formation = NodeId::from_bytes(&reply.formation).unwrap_or_default();
            return Ok(Heard::Offer(cluster_id, formation));
        }
        self.note(from, reply);
        Ok(Heard::Nothing)
    }

    /// Takes a document in which this node stands. One that cannot be taken is of another version,
    /// garbled or of another cluster: the next answer may do, but there is a cluster.
    fn take_document(&self, promise: Option<Promise>, json: &[u8]) -> store::Result<Heard> {
        let in_the_way = |why: String| Ok(Heard::InTheWay(why));
        let document = match serde_json::from_slice::<Document>(json) {
            Ok(document) => document,
            Err(error) => return in_the_way(format!("its document cannot be read: {error}")),
        };
        if let Err(why) = document.check() {
            return in_the_way(format!("its document is damaged: {why}"));
        }
        let cluster_id = document.cluster_id;
        let only = promise.map(|promise| promise.cluster_id).or(self.options.cluster_id);
        if let Some(only) = only.filter(|only| *only != cluster_id) {
            return in_the_way(format!("its document is of {cluster_id}, not of {only}"));
        }
        self.fence.adopt(&Arc::new(document))?;
        self.identity.assign_cluster(cluster_id)?;
        Ok(Heard::Entered(Entered::Member { cluster_id }))
    }

    /// Notes the nodes another one knows: itself as heard of, the others as addresses to ask.
    fn note(&self, from: NodeId, reply: &JoinReply) {
        let Ok(members) = read_members(&reply.members) else { return };
        let mut candidates = self.candidates.lock();
        for (id, member) in members.into_iter().filter(|(id, _)| *id != self.me) {
            if id == from && member.validate().is_ok() {
                candidates.hear(id, member);
            } else {
                candidates.hear_of(&member.address);
            }
        }
    }

    /// Asks all at the same time; the answers are in the order of the addresses.
    async fn call_all(
        &self,
        peers: &Arc<dyn Peers>,
        addresses: BTreeSet<String>,
        request: &Request,
    ) -> Answers {
        let within = self.patience();
        let mut calls = JoinSet::new();
        for address in addresses {
            let (peers, request) = (Arc::clone(peers), request.clone());
            calls.spawn(async move {
                let answer = peers.call_address(&address, request, within).await;
                (address, answer)
            });
        }
        calls.join_all().await.into_iter().collect()
    }

    /// For a call: a member that admits this node waits for the consensus group first.
    fn patience(&self) -> Duration {
        (self.options.poll * 8).max(Duration::from_secs(2))
    }
}

/// Members that would take this node.
#[derive(Default)]
struct Offers {
    /// Their addresses by their clusters, each with its formation: ids may be configured.
    of_seeds: BTreeMap<(NodeId, NodeId), Vec<String>>,
    /// Of those known by hearsay.
    of_others: BTreeMap<(NodeId, NodeId), Vec<String>>,
}

impl Offers {
    fn add(&mut self, by_seed: bool, cluster: (NodeId, NodeId), address: String) {
        let offers = if by_seed { &mut self.of_seeds } else { &mut self.of_others };
        offers.entry(cluster).or_default().push(address);
    }

    /// The members to ask, if there are any and all are of one cluster. Seeds come first: the
    /// operator has named them.
    fn choose(self) -> Result<Option<Vec<String>>, FormationError> {
        let Self { of_seeds, mut of_others } = self;
        let mut offers = of_seeds;
        if offers.is_empty() {
            std::mem::swap(&mut offers, &mut of_others);
        }
        if offers.len() > 1 {
            let clusters = offers
                .iter()
                .map(|((id, formation), addresses)| {
                    format!("{id} of formation {formation} ({})", addresses.join(", "))
                })
                .collect::<Vec<_>>()
                .join(" and ");
            return Err(FormationError::SeveralClusters { clusters });
        }
        Ok(offers.into_values().next())
    }
}

fn first_member(member: &Member) -> Member {
    Member { state: MemberState::Normal, ..member.clone() }
}

fn founder(promise: Promise) -> Entered {
    let Promise { id: formation, cluster_id, members, .. } = promise;
    Entered::Founder { cluster_id, formation, members }
}
