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
            let founding =
                committed.filter(|promise| document.epoch == 0 && promise.cluster_id == cluster_id);
            return Ok(Some(match founding {
                Some(promise) => founder(promise),
                None => Entered::Member { cluster_id },
            }));
        }
        if document.epoch > 0 {
            self.identity.assign_cluster(document.cluster_id)?;
            return Ok(Some(Entered::Member { cluster_id: document.cluster_id }));
        }
        if let Some(promise) = committed {
            return self.enter_as_founder(promise).map(Some);
        }
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
        if expect <= 1 || self.promises.current().is_some() {
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
        let id_bytes = |id: Option<NodeId>| {
            id.map(|id| Bytes::copy_from_slice(&id.to_bytes())).unwrap_or_default()
        };
        let member = serde_json::to_vec(&self.member).expect("a member is plain data");
        let request = Request::Join(JoinRequest {
            member: member.into(),
            now_ms: self.environment.clock.now_ms(),
            cluster_id: id_bytes(self.options.cluster_id),
            promised_id: id_bytes(promise.as_ref().map(|promise| promise.id)),
        });
        let mut addresses: BTreeSet<String> = self.options.seeds.iter().cloned().collect();
        addresses.extend(self.candidates.lock().addresses.iter().cloned());
        if let Some(promise) = &promise {
            addresses.extend(promise.members.values().map(|member| member.address.clone()));
        }
        addresses.remove(&self.member.address);
        let answers = self.call_all(peers, addresses, &request).await;
        let mut in_the_way = promise.as_ref().map(|promise| {
            let initiator = promise.initiator().unwrap_or_default();
            format!("{initiator} has not committed the cluster {}", promise.cluster_id)
        });
        for (address, answer) in answers {
            let is_seed = self.options.seeds.contains(&address);
            match answer {
                Ok((from, Reply::Join(reply))) if from != self.me => {
                    if let Some(entered) = self.take(from, &reply, promise.as_ref())? {
                        return Ok(Round::Entered(entered));
                    }
                }
                Ok(_) => {}
                Err(PeerError::Refused { reason, message })
                    if is_seed && reason::FINAL.contains(&reason.as_str()) =>
                {
                    return Err(FormationError::Refused { address, reason, message });
                }
                // It may know of a cluster: nothing is begun without its answer.
                Err(error) if is_seed => in_the_way = Some(format!("{address}: {error}")),
                Err(_) => {}
            }
        }
        Ok(Round::Waiting(in_the_way))
    }

    /// Takes what one node has answered to a question that named the promise `asked`.
    pub(super) fn take(
        &self,
        from: NodeId,
        reply: &JoinReply,
        asked: Option<&Promise>,
    ) -> store::Result<Option<Entered>> {
        let promise = self.promises.current();
        if !reply.document.is_empty() {
            // What cannot be read is of another version or garbled: the next answer may do.
            let Ok(document) = serde_json::from_slice::<Document>(&reply.document) else {
                return Ok(None);
            };
            let cluster_id = document.cluster_id;
            let promised = promise.map(|promise| promise.cluster_id);
            let only = promised.or(self.options.cluster_id);
            if only.is_some_and(|only| only != cluster_id) {
                return Ok(None);
            }
            self.fence.adopt(&Arc::new(document))?;
            self.identity.assign_cluster(cluster_id)?;
            return Ok(Some(Entered::Member { cluster_id }));
        }
        let named = NodeId::from_bytes(&reply.cluster_id);
        if let Some(promise) = promise {
            if named == Some(promise.cluster_id) {
                let committed = Promise { committed: true, ..promise.clone() };
                self.promises.replace(Some(&promise), Some(committed.clone()))?;
                return self.enter_as_founder(committed).map(Some);
            }
            // A promise given since the question was asked is not what the answer is about.
            let is_asked = asked.is_some_and(|asked| asked.id == promise.id);
            if is_asked && promise.initiator() == Some(from) && !reply.promise_holds {
                self.promises.replace(Some(&promise), None)?;
            }
        }
        self.note(from, reply);
        Ok(None)
    }

    /// Notes the nodes another one knows: itself as heard of, the others as addresses to ask.
    fn note(&self, from: NodeId, reply: &JoinReply) {
        let Ok(members) = read_members(&reply.members) else { return };
        let mut candidates = self.candidates.lock();
        for (id, member) in members.into_iter().filter(|(id, _)| *id != self.me) {
            if id == from {
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
        // A member that admits this node waits for the consensus group first.
        let within = (self.options.poll * 8).max(Duration::from_secs(2));
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
}

fn first_member(member: &Member) -> Member {
    Member { state: MemberState::Normal, ..member.clone() }
}

fn founder(promise: Promise) -> Entered {
    Entered::Founder { cluster_id: promise.cluster_id, members: promise.members }
}
