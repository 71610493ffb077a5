//! Changes of the layout, as operators ask for them: begin, abort, drain, and how far it is.
//!
//! What is decided is decided by the state machine when the command is applied. Here names become
//! ids; [`super::plan`] judges what a state machine cannot know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use super::cluster::Cluster;
use super::status::Problem;
use crate::cluster::NodeId;
use crate::cluster::layout::{Answer, Change, Command, Document, Layout, MemberState};
use crate::cluster::peer::{Class, Reply, Request};
use crate::proto::{self, DrainPhase, TransitionPhase};
use crate::replication::departure::certificate::{Certificate, digest_of};
use crate::replication::progress::{Figures, Task};
use crate::store::Outcome;

/// How long another node may take to give a certificate.
const CERTIFICATE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a node that is behind may take to hear that another one has left.
const HEARD_WITHIN: Duration = Duration::from_secs(2);

/// A change that cannot be.
fn refused(reason: &str, message: impl Into<String>) -> Problem {
    Problem::new(Code::FailedPrecondition, reason.to_owned(), message.into())
        .of_write(Outcome::NotApplied)
}

impl Cluster {
    /// The member of a name or an id.
    ///
    /// # Errors
    /// There is none.
    pub fn member_of(&self, document: &Document, text: &str) -> Result<NodeId, Problem> {
        if let Ok(id) = text.parse::<NodeId>()
            && document.members.contains_key(&id)
        {
            return Ok(id);
        }
        let named = || document.members.iter().filter(|(_, member)| member.name == text);
        // One that comes in for another may have its name.
        let stays = |state: MemberState| !state.is_gone() && state != MemberState::Removing;
        let found = named().find(|(_, member)| stays(member.state));
        let found = found.or_else(|| named().find(|(_, member)| !member.state.is_gone()));
        let found = found.or_else(|| named().next());
        found.map(|(id, _)| *id).ok_or_else(|| {
            let message = format!("{text:?} is the name or id of no member");
            Problem::new(Code::NotFound, "UNKNOWN_NODE", message).of_write(Outcome::NotApplied)
        })
    }

    pub(super) fn change_of(
        &self,
        document: &Document,
        asked: &proto::LayoutChange,
    ) -> Result<Change, Problem> {
        let all = |names: &[String]| {
            names.iter().map(|name| self.member_of(document, name)).collect::<Result<_, _>>()
        };
        let mut change = Change {
            leaves: all(&asked.leaves)?,
            removes: all(&asked.removes)?,
            ..Change::default()
        };
        for new in asked.joins.iter().filter(|new| !new.node.is_empty()) {
            let node = self.member_of(document, &new.node)?;
            if let Some(member) = document.members.get(&node) {
                change.joins.insert(node, member.clone());
            }
        }
        for (name, weight) in &asked.weights {
            change.weights.insert(self.member_of(document, name)?, *weight);
        }
        for (name, zone) in &asked.zones {
            change.zones.insert(self.member_of(document, name)?, zone.clone());
        }
        for (name, factor) in &asked.replication_factors {
            let tenant = self.store.tenant(name).map_err(|error| Problem::from(&error))?;
            let factor = u8::try_from(*factor).unwrap_or(u8::MAX);
            change.factors.insert(tenant.id, factor);
        }
        for one in &asked.accepts_loss {
            let factor = u8::try_from(one.replication_factor).unwrap_or(u8::MAX);
            change.accepts_loss.entry(factor).or_default().insert(one.partition);
        }
        for (old, new) in &asked.replaces {
            change.replaces.insert(self.member_of(document, old)?, new.clone());
        }
        Ok(change)
    }

    /// Begins a change.
    ///
    /// # Errors
    /// It is refused, or it is not known whether it was begun.
    pub async fn commit(
        &self,
        request: &proto::CommitLayoutRequest,
        deadline: Instant,
    ) -> Result<proto::CommitLayoutResponse, Problem> {
        if request.epoch == 0 {
            self.catch_up(deadline).await?;
        }
        let layout = self.layout();
        let document = layout.document();
        let asked = request.change.clone().unwrap_or_default();
        if asked.joins.iter().any(|new| new.node.is_empty()) {
            return Err(Problem::invalid("change", "nodes join by themselves when they start"));
        }
        let change = self.change_of(document, &asked)?;
        let epoch = match request.epoch {
            0 => document.epoch,
            epoch => epoch,
        };
        if let Some(nodes) = given_up(document, &change) {
            let epoch = self.decide(Command::GiveUp { nodes, epoch }, deadline).await?;
            return Ok(proto::CommitLayoutResponse { epoch });
        }
        let mut effects = self.effects(&layout, &change, &BTreeMap::new());
        effects.accept(&asked);
        if let Some(refusal) = effects.refusals.into_iter().next() {
            return Err(refused(&refusal.reason, refusal.message));
        }
        let epoch = self.decide(Command::Change { epoch, change }, deadline).await?;
        Ok(proto::CommitLayoutResponse { epoch })
    }

    /// Whether another number of replicas of a tenant makes rows move.
    pub(super) fn moves_rows(&self, tenant: &str, factor: u8) -> bool {
        let layout = self.layout();
        let document = layout.document();
        let tenant = document.tenants.values().find(|known| known.name == tenant);
        !document.has_one_owner()
            && tenant.is_some_and(|tenant| tenant.replication_factor != factor)
    }

    /// Ends the transition under way with the owners of before.
    ///
    /// # Errors
    /// There is none, or it is not known whether it was ended.
    pub async fn abort(
        &self,
        request: &proto::AbortLayoutRequest,
        deadline: Instant,
    ) -> Result<proto::AbortLayoutResponse, Problem> {
        let epoch = match request.epoch {
            0 => self.catch_up(deadline).await?,
            epoch => epoch,
        };
        match self.decide(Command::Abort { epoch }, deadline).await {
            Ok(epoch) => Ok(proto::AbortLayoutResponse { epoch }),
            Err(problem) => {
                let phase = self.transition_state(&self.layout()).phase();
                Err(not_aborted(problem, phase))
            }
        }
    }

    /// Has this node learn whatever was decided before; the epoch of that.
    async fn catch_up(&self, deadline: Instant) -> Result<u64, Problem> {
        // Done already, and so only answered: by the leader, behind all that it has decided.
        let layout = self.layout();
        let document = layout.document();
        let command = Command::Form {
            cluster_id: document.cluster_id,
            formation: document.formation,
            partition_bits: document.partition_bits,
            members: BTreeMap::new(),
            now_ms: 0,
        };
        self.decide(command, deadline).await
    }

    /// Has a command decided; the epoch after it, which this node knows on return if it can.
    async fn decide(&self, command: Command, deadline: Instant) -> Result<u64, Problem> {
        let epoch = match self.propose(command, deadline).await? {
            Answer::Done { epoch } => epoch,
            Answer::Refused { reason, message } => return Err(refused(&reason, message)),
            other => return Err(Problem::new(Code::Internal, "INTERNAL", format!("{other:?}"))),
        };
        let mut layout = self.layout.clone();
        let known = layout.wait_for(|layout| layout.epoch() >= epoch);
        // It is decided; a node that lags behind learns it soon.
        let _ = tokio::time::timeout_at(deadline, known).await;
        Ok(epoch)
    }

    /// Begins to drain a node, or calls it off, as is asked; which node it is, and the epoch since
    /// which that is so.
    ///
    /// # Errors
    /// It is refused, with the reason.
    pub async fn drain(
        &self,
        request: &proto::DrainNodeRequest,
        deadline: Instant,
    ) -> Result<(NodeId, u64), Problem> {
        let looks_on = request.status_only || request.epoch != 0;
        if !looks_on {
            // It may have been begun, or ended, through another node.
            self.catch_up(deadline).await?;
        }
        let layout = self.layout();
        let document = layout.document();
        let node = match request.node.as_str() {
            "" => self.node,
            text => self.member_of(document, text)?,
        };
        let state = document.members.get(&node).map(|member| member.state);
        let (owns, epoch) = (document.owners.contains_key(&node), document.epoch);
        let since = match (request.cancel, state) {
            _ if looks_on => request.epoch,
            (_, Some(MemberState::Left)) => epoch,
            (true, Some(MemberState::Leaving)) if owns && document.is_joint() => {
                self.decide(Command::Abort { epoch }, deadline).await?
            }
            (true, Some(MemberState::Leaving)) => {
                let message = "the owners have changed: the node can only leave, and join anew";
                return Err(refused("TOO_LATE", message));
            }
            (true, _) => return Err(refused("NO_TRANSITION", "the node does not leave")),
            (false, Some(MemberState::Leaving)) => epoch,
            (false, _) => {
                let leaves = vec![node.to_string()];
                let change = Some(proto::LayoutChange { leaves, ..Default::default() });
                let request = proto::CommitLayoutRequest { epoch, change };
                self.commit(&request, deadline).await?.epoch
            }
        };
        Ok((node, since))
    }

    /// How far a node is on its way out, which began in the epoch `since`, and whether that is the
    /// end of it.
    pub fn drain_progress(&self, node: NodeId, since: u64) -> (proto::DrainProgress, bool) {
        let layout = self.layout();
        let document = layout.document();
        let member = document.members.get(&node);
        let state = member.map(|member| member.state);
        let mut progress = proto::DrainProgress {
            node_id: node.to_string(),
            node_name: member.map(|member| member.name.clone()).unwrap_or_default(),
            epoch: layout.epoch().max(since),
            ..Default::default()
        };
        let own = self.figures_of(node);
        let owns = document.owners.contains_key(&node);
        let phase = match state {
            // What is known here is older than the drain, and says nothing of it.
            _ if layout.epoch() < since => DrainPhase::Unspecified,
            Some(MemberState::Left) => DrainPhase::Left,
            Some(MemberState::Removing | MemberState::Removed) => DrainPhase::Removed,
            Some(MemberState::Leaving) if owns => DrainPhase::Merging,
            Some(MemberState::Leaving) => match own.task {
                Task::Hints => DrainPhase::Hints,
                Task::Certifying => DrainPhase::Certifying,
                Task::None | Task::Merging | Task::HandingOver => DrainPhase::HandingOver,
            },
            _ => DrainPhase::Cancelled,
        };
        progress.set_phase(phase);
        match phase {
            DrainPhase::Merging => {
                let syncers = document.syncers.iter().filter(|one| !document.synced.contains(one));
                let each: Vec<Figures> = syncers.map(|one| self.figures_of(*one)).collect();
                fill(&mut progress, &each);
                progress.waits_for = self.waits_for(&layout);
            }
            DrainPhase::Left => {
                progress.certificate_digest =
                    document.certificates.get(&node).cloned().unwrap_or_default();
            }
            DrainPhase::Unspecified => {
                progress.waits_for.push(format!("the node asked to learn epoch {since}"));
            }
            DrainPhase::Cancelled | DrainPhase::Removed => {}
            DrainPhase::HandingOver | DrainPhase::Hints | DrainPhase::Certifying => {
                fill(&mut progress, &[own]);
                if !self.is_up(node) {
                    progress.waits_for.push(format!("{} to come back", progress.node_name));
                } else if document.is_joint() {
                    // Rule D1: nothing is handed over while there are two sets of owners.
                    let epoch = layout.epoch();
                    progress.waits_for.push(format!("the change of epoch {epoch} to end"));
                }
            }
        }
        let is_over =
            matches!(phase, DrainPhase::Left | DrainPhase::Cancelled | DrainPhase::Removed);
        (progress, is_over)
    }

    pub(super) fn is_up(&self, node: NodeId) -> bool {
        node == self.node || self.view.is_up(node)
    }

    /// What a node does for a change of ownership, as far as it was heard of. What was heard may be
    /// of the phase before, which is over.
    fn figures_of(&self, node: NodeId) -> Figures {
        let figures = match node == self.node {
            true => self.moving.figures(),
            false => {
                let heard = self.view.nodes();
                heard.get(&node).map(|facts| Figures::from_text(&facts.moving)).unwrap_or_default()
            }
        };
        let is_of_now = (figures.task == Task::Merging) == self.layout().document().is_joint();
        if is_of_now { figures } else { Figures::default() }
    }

    /// How far the change of ownership is.
    pub(super) fn transition_state(&self, layout: &Layout) -> proto::TransitionState {
        let document = layout.document();
        let phase = match document.is_formed() {
            false => TransitionPhase::Unspecified,
            true if document.is_joint() => TransitionPhase::Joint,
            true if document.departed.is_empty() && leavers(document).next().is_none() => {
                TransitionPhase::Stable
            }
            true => TransitionPhase::Clearing,
        };
        let names = |nodes: &BTreeSet<NodeId>| nodes.iter().map(NodeId::to_string).collect();
        let progress = document.members.keys().filter_map(|node| {
            let figures = self.figures_of(*node);
            (figures.task != Task::None).then(|| proto::TransferProgress {
                node_id: node.to_string(),
                task: figures.task.name().to_owned(),
                partitions: figures.partitions,
                partitions_done: figures.partitions_done,
                keys: figures.keys,
                bytes: figures.bytes,
                bytes_per_second: figures.bytes_per_second,
                eta_ms: figures.eta.map(|eta| eta.as_millis() as u64),
                waits_for: figures.waits_for,
            })
        });
        proto::TransitionState {
            phase: phase.into(),
            epoch: layout.epoch(),
            fenced: names(&document.fenced),
            syncers: names(&document.syncers),
            synced: names(&document.synced),
            waits_for: self.waits_for(layout),
            departed: document.departed.keys().map(NodeId::to_string).collect(),
            progress: progress.collect(),
            replacements: document
                .replacements
                .iter()
                .map(|(node, name)| (node.to_string(), name.clone()))
                .collect(),
        }
    }

    /// What a change of ownership waits for, in words.
    fn waits_for(&self, layout: &Layout) -> Vec<String> {
        let document = layout.document();
        let who = |node: &NodeId| {
            let name = document.name_of(*node);
            let down = if self.is_up(*node) { "" } else { ", which is down," };
            let why = self.figures_of(*node).waits_for;
            let why = if why.is_empty() { why } else { format!(" ({why})") };
            (format!("{name}{down}"), why)
        };
        let mut waits = Vec::new();
        if document.is_joint() {
            for node in document.syncers.difference(&document.synced) {
                let (name, why) = who(node);
                waits.push(format!("{name} to merge its partitions{why}"));
            }
            let owners = document.owners.keys().filter(|node| !document.fenced.contains(node));
            let is_fenced = (0..layout.partitions()).all(|partition| {
                document
                    .replication_factors()
                    .into_iter()
                    .all(|factor| document.is_fenced(&layout.sets(partition, factor).current))
            });
            for node in owners.filter(|_| !is_fenced) {
                waits.push(format!("{} to learn the new layout", who(node).0));
            }
        } else {
            for node in document.departed.keys() {
                let (name, why) = who(node);
                waits.push(format!("{name} to hand over rows that it does not own{why}"));
            }
            for node in leavers(document).filter(|node| !document.departed.contains_key(node)) {
                let (name, why) = who(node);
                waits.push(format!("{name} to leave{why}"));
            }
            let due = self.consensus.votes_due(document);
            for (nodes, what) in [(due.to_begin, ""), (due.to_end, " no more")] {
                let each = nodes.iter().map(|node| who(node).0);
                waits.extend(each.map(|name| format!("{name} to vote on the layout{what}")));
            }
        }
        waits
    }

    /// The certificate of a node that left, from here or from one that keeps it.
    pub async fn certificate(&self, node: NodeId) -> Option<Vec<u8>> {
        if let Ok(Some(json)) = self.moving.certificates.read(node) {
            return Some(json);
        }
        let layout = self.layout();
        for other in layout.document().owners.keys().filter(|other| **other != self.node) {
            let node_id = node.to_bytes().to_vec().into();
            let request = proto::CertificateRequest { node_id, certificate: Default::default() };
            let (epoch, request) = (layout.epoch(), Request::Certificate(request));
            let timeout = CERTIFICATE_TIMEOUT;
            let asked = self.peers.call(*other, Class::Background, epoch, request, timeout);
            if let Ok(Reply::Certificate(reply)) = asked.await
                && !reply.certificate.is_empty()
            {
                return Some(reply.certificate.to_vec());
            }
        }
        None
    }

    /// Checks a certificate.
    ///
    /// # Errors
    /// There is none to check.
    pub async fn verify(
        &self,
        request: &proto::VerifyCertificateRequest,
    ) -> Result<proto::VerifyCertificateResponse, Problem> {
        let layout = self.layout();
        let document = layout.document();
        let json = match (request.certificate.as_str(), request.node.as_str()) {
            ("", "") => {
                return Err(Problem::invalid("certificate", "it is empty, and no node is named"));
            }
            ("", name) => {
                let node = self.member_of(document, name)?;
                let none = || {
                    let message = format!("no node that can be reached keeps one of {name}");
                    Problem::new(Code::NotFound, "NO_CERTIFICATE", message)
                };
                self.certificate(node).await.ok_or_else(none)?
            }
            (json, _) => json.as_bytes().to_vec(),
        };
        let digest = digest_of(&json);
        let certificate = match Certificate::parse(&json) {
            Ok(certificate) => certificate,
            Err(problem) => {
                let problem = format!("it cannot be read: {problem}");
                return Ok(proto::VerifyCertificateResponse {
                    problem,
                    digest,
                    ..Default::default()
                });
            }
        };
        self.hear_of_departure(&certificate).await;
        let problem = problem_of(self.layout().document(), &certificate, &digest);
        let (keys, bytes) = certificate.totals();
        Ok(proto::VerifyCertificateResponse {
            valid: problem.is_empty(),
            problem,
            node_id: certificate.node_id.to_string(),
            node_name: certificate.node_name.clone(),
            epoch: certificate.epoch,
            made_ms: certificate.made_ms,
            partitions: certificate.partitions.len() as u64,
            keys,
            bytes,
            digest,
            certificate: String::from_utf8_lossy(&json).into_owned(),
        })
    }

    /// Waits a while for the document that remembers a certificate: this node may be behind, and
    /// must not say of a good one that nobody knows it.
    async fn hear_of_departure(&self, certificate: &Certificate) {
        let mut layout = self.layout.clone();
        let is_known = |layout: &Arc<Layout>| {
            let document = layout.document();
            document.cluster_id != certificate.cluster_id
                || document.certificates.contains_key(&certificate.node_id)
        };
        // If it does not come, the answer says so.
        let _ = tokio::time::timeout(HEARD_WITHIN, layout.wait_for(is_known)).await;
    }
}

/// Why a certificate is not the one that the cluster remembers; empty: it is.
fn problem_of(document: &Document, certificate: &Certificate, digest: &str) -> String {
    let known = document.certificates.get(&certificate.node_id);
    match known {
        _ if certificate.cluster_id != document.cluster_id => {
            format!("it is of cluster {}", certificate.cluster_id)
        }
        None => format!("the cluster knows of no node {} that left", certificate.node_id),
        Some(known) if known != digest => {
            format!("its digest is {digest}, the cluster remembers {known}")
        }
        Some(_) => String::new(),
    }
}

/// Why a change is not aborted. One that is not settled is under way to whoever asks for that.
fn not_aborted(problem: Problem, phase: TransitionPhase) -> Problem {
    if problem.reason != "NO_TRANSITION" || phase != TransitionPhase::Clearing {
        return problem;
    }
    let message = "the change has taken effect: the owners have changed, and rows are only cleared \
                   away where they were before";
    Problem { message: message.to_owned(), ..problem }
}

/// Who owns nothing any more, and has not left yet.
fn leavers(document: &Document) -> impl Iterator<Item = &NodeId> {
    let members = document.members.iter();
    let leaves = members.filter(|(_, member)| member.state == MemberState::Leaving);
    leaves.map(|(node, _)| node).filter(|node| !document.owners.contains_key(node))
}

/// The nodes that a change takes out of a transition under way, if that is all it does.
fn given_up(document: &Document, change: &Change) -> Option<BTreeSet<NodeId>> {
    let removes = change.removes.clone();
    let only = Change { removes: removes.clone(), ..Change::default() } == *change;
    let leaves = |node: &NodeId| {
        let state = document.members.get(node).map(|member| member.state);
        matches!(state, Some(MemberState::Leaving | MemberState::Removing))
            && document.owners.contains_key(node)
    };
    let all = document.is_joint() && only && !removes.is_empty() && removes.iter().all(leaves);
    all.then_some(removes)
}

/// The figures of all who work on a phase.
fn fill(progress: &mut proto::DrainProgress, each: &[Figures]) {
    let sum = |of: fn(&Figures) -> u64| each.iter().map(of).sum();
    progress.partitions = sum(|one| one.partitions);
    progress.partitions_done = sum(|one| one.partitions_done);
    progress.keys = sum(|one| one.keys);
    progress.bytes = sum(|one| one.bytes);
    progress.bytes_per_second = sum(|one| one.bytes_per_second);
    let eta = each.iter().filter_map(|one| one.eta).max();
    progress.eta_ms = eta.map(|eta| eta.as_millis() as u64);
    let waits = each.iter().map(|one| one.waits_for.clone());
    progress.waits_for = waits.filter(|text| !text.is_empty()).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_has_taken_effect_is_not_said_to_be_none() {
        let problem = refused("NO_TRANSITION", "no transition is under way");
        assert_eq!(not_aborted(problem.clone(), TransitionPhase::Stable), problem);
        let clearing = not_aborted(problem, TransitionPhase::Clearing);
        assert_eq!(clearing.reason, "NO_TRANSITION");
        assert!(clearing.message.contains("has taken effect"), "{}", clearing.message);
        let stale = refused("STALE_EPOCH", "it is another one");
        assert_eq!(not_aborted(stale.clone(), TransitionPhase::Clearing), stale);
    }
}
