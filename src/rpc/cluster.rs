//! The cluster as the services see it, and the answers to questions about it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;

use super::status::Problem;
use crate::causality::{Dot, Payload, codec};
use crate::cluster::NodeId;
use crate::cluster::consensus::{Consensus, ProposeError};
use crate::cluster::layout::{Answer, Command, Layout, MemberState, reason};
use crate::cluster::peer::{Class, Peers, Reply, Request};
use crate::cluster::view::{Facts, RunState, View};
use crate::proto;
use crate::replication::anti_entropy::{AntiEntropy, Summary};
use crate::replication::coordinator::Coordinator;
use crate::replication::departure::certificate::Certificates;
use crate::replication::hints::Hints;
use crate::replication::progress::{Figures, Progress, Rate};
use crate::replication::{Fence, settled};
use crate::store::{self, Outcome, RawRow, Store, Tenant};

/// How long a replica may take to say what it holds.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// When a change that found no leader may be tried again.
const LEADER_WAIT: Duration = Duration::from_secs(1);
/// Replicas of a partition where no tenant says how many.
const REPLICAS: u8 = 3;

/// The refusal of a node that is not the only owner.
pub(super) fn not_alone() -> Problem {
    let message = "rows of a cluster travel on the peer stream, under its layout";
    Problem::new(Code::FailedPrecondition, "NOT_ALONE", message).of_write(Outcome::NotApplied)
}

/// The parts of a node that make it a member.
pub struct Cluster {
    /// This node.
    pub node: NodeId,
    /// Its rows.
    pub store: Arc<Store>,
    /// Reads and writes.
    pub coordinator: Arc<Coordinator>,
    /// Changes of the layout.
    pub consensus: Arc<Consensus>,
    /// The layout this node acts under.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// Its epoch, while something is done under it.
    pub fence: Arc<dyn Fence>,
    /// What is heard of the others.
    pub view: Arc<dyn View>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// What others missed.
    pub hints: Arc<Hints>,
    /// Comparison of replicas.
    pub anti_entropy: Arc<AntiEntropy>,
    /// Rows on their way to other owners.
    pub moving: Moving,
}

/// What is known of rows that move between owners.
#[derive(Clone)]
pub struct Moving {
    /// How fast they may.
    pub rate: Arc<Rate>,
    /// How far this node is.
    pub progress: Arc<Progress>,
    /// What nodes that left have said.
    pub certificates: Arc<Certificates>,
}

impl Moving {
    /// How far this node is, and what it waits for.
    pub fn figures(&self) -> Figures {
        self.progress.figures_at(&self.rate)
    }
}

impl Cluster {
    pub(super) fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layout.borrow())
    }

    /// Changes the layout.
    ///
    /// # Errors
    /// It was not answered: it did not happen, or its outcome is unknown.
    pub async fn propose(&self, command: Command, deadline: Instant) -> Result<Answer, Problem> {
        let answer = self.consensus.propose(command, deadline).await.map_err(|error| {
            let code = match error {
                ProposeError::TooLarge { .. } => Code::InvalidArgument,
                _ => Code::Unavailable,
            };
            let reason = match &error {
                ProposeError::NoLeader => "NO_LEADER",
                ProposeError::TooLarge { .. } => "COMMAND_TOO_LARGE",
                ProposeError::Stopped { .. } => "STOPPING",
                ProposeError::Unknown { .. } => "LAYOUT_UNKNOWN",
            };
            let problem = Problem::new(code, reason, error.to_string()).of_write(error.outcome());
            // Nothing was done: once there is a leader it can be.
            let retry_after = matches!(error, ProposeError::NoLeader).then_some(LEADER_WAIT);
            Problem { retry_after, ..problem }
        })?;
        let is_early = |of: &str| of == reason::NOT_FORMED;
        match &answer {
            Answer::Refused { reason, .. } if is_early(reason) => {
                Err(Problem::starting().of_write(Outcome::NotApplied))
            }
            _ => Ok(answer),
        }
    }

    /// Waits until this node knows the tenant as it was answered.
    pub async fn wait_for_tenant(&self, tenant: &Tenant, deadline: Instant) {
        let mut layout = self.layout.clone();
        let known = layout.wait_for(|layout| {
            layout.document().tenants.get(&tenant.id).is_some_and(|one| one == tenant)
        });
        // It is committed; a node that lags behind learns it soon.
        let _ = tokio::time::timeout_at(deadline, known).await;
    }

    /// Refuses what passes the rules of a layout by, where there are others that keep them. The
    /// epoch under which it may be done.
    ///
    /// # Errors
    /// The node is not the only owner.
    pub fn check_alone(&self) -> Result<u64, Problem> {
        let layout = self.layout();
        let document = layout.document();
        match document.is_owned_by(self.node) && !document.is_joint() {
            true => Ok(layout.epoch()),
            false => Err(not_alone()),
        }
    }

    /// The cluster as this node knows it.
    pub fn status(&self) -> proto::ClusterStatusResponse {
        let layout = self.layout();
        let document = layout.document();
        let heard = self.view.nodes();
        let group = self.consensus.status();
        let mut partitions = std::collections::BTreeMap::<NodeId, u32>::new();
        for partition in 0..layout.partitions() {
            for node in layout.sets(partition, REPLICAS).current {
                *partitions.entry(node).or_default() += 1;
            }
        }
        let mut nodes: Vec<proto::NodeEntry> = document
            .members
            .iter()
            .map(|(id, member)| {
                let facts = heard.get(id).cloned().unwrap_or_default();
                let mut entry = entry_of(*id, facts);
                entry.name.clone_from(&member.name);
                entry.zone.clone_from(&member.zone);
                entry.state = state_name(member.state).to_owned();
                entry.partitions = partitions.get(id).copied().unwrap_or(0);
                entry.voter = group.voters.contains(id);
                if entry.address.is_empty() {
                    entry.address.clone_from(&member.address);
                }
                if *id == self.node {
                    let stats = self.store.stats();
                    entry.load_bytes = stats.engine.data_bytes();
                    entry.hints_pending = self.hints.stats().pending;
                    entry.partitions_damaged = stats.partitions_damaged;
                    entry.blocks_unreadable = stats.blocks_unreadable;
                    entry.up = true;
                }
                entry
            })
            .collect();
        let others = heard.iter().filter(|(id, _)| !document.members.contains_key(id));
        nodes.extend(others.map(|(id, facts)| {
            let state = "candidate".to_owned();
            proto::NodeEntry { state, ..entry_of(*id, facts.clone()) }
        }));
        nodes.sort_by(|one, other| (&one.name, &one.node_id).cmp(&(&other.name, &other.node_id)));
        let agrees = |id: &NodeId| {
            let facts = heard.get(id);
            let agrees = |facts: &Facts| !facts.is_up || facts.epoch == layout.epoch();
            *id == self.node || facts.is_none_or(agrees)
        };
        let mut members = document.members.iter().filter(|(_, member)| !member.state.is_gone());
        let agreed = layout.epoch() > 0 && members.all(|(id, _)| agrees(id));
        let cluster_id = match document.epoch {
            0 => String::new(),
            _ => document.cluster_id.to_string(),
        };
        proto::ClusterStatusResponse {
            cluster_id,
            nodes,
            layout: Some(proto::LayoutState {
                version: layout.epoch(),
                agreed,
                transition: transition_of(&layout),
                leader: group.leader.map(|leader| leader.to_string()).unwrap_or_default(),
                state: Some(self.transition_state(&layout)),
            }),
        }
    }

    /// Which nodes hold which partitions.
    ///
    /// # Errors
    /// The tenant is not known, or the key cannot be one.
    pub fn ring(&self, request: &proto::RingRequest) -> Result<proto::RingResponse, Problem> {
        let layout = self.layout();
        let tenant = match request.tenant.as_str() {
            "" => None,
            name => Some(self.store.tenant(name).map_err(|error| Problem::of_read(&error))?),
        };
        let all = match (&request.key, &tenant) {
            (None, _) => 0..layout.partitions(),
            (Some(key), _) if key.is_empty() => {
                return Err(Problem::of_read(&store::Error::EmptyKey));
            }
            (Some(key), Some(tenant)) => {
                let partition = layout.partition_of(tenant.token(key));
                partition..partition + 1
            }
            (Some(_), None) => return Err(Problem::invalid("tenant", "a key needs its tenant")),
        };
        let bits = layout.document().partition_bits;
        let names = |nodes: Vec<NodeId>| nodes.iter().map(NodeId::to_string).collect();
        let partitions = all.map(|partition| {
            let sets = match &tenant {
                Some(tenant) => layout.sets_of(partition, tenant),
                None => layout.sets(partition, REPLICAS),
            };
            proto::PartitionEntry {
                partition,
                token_start: u64::from(partition).checked_shl(u64::BITS - bits).unwrap_or(0),
                replicas: names(sets.current),
                next_replicas: names(sets.next.unwrap_or_default()),
            }
        });
        Ok(proto::RingResponse { partitions: partitions.collect() })
    }

    /// Who holds which keys of a tenant. In a transition those who own now: they have the rows.
    ///
    /// # Errors
    /// The tenant is not known.
    pub fn topology(&self, tenant: &str) -> Result<proto::TopologyResponse, Problem> {
        let tenant = self.store.tenant(tenant).map_err(|error| Problem::of_read(&error))?;
        let layout = self.layout();
        let heard = self.view.nodes();
        let owners: Vec<NodeId> = layout.document().owners.keys().copied().collect();
        let node = |id: &NodeId| {
            let facts = heard.get(id).cloned().unwrap_or_default();
            let is_up = (*id == self.node || facts.is_up) && facts.run_state == RunState::Serving;
            proto::ServingNode {
                node_id: id.to_string(),
                address: facts.addresses.for_clients(),
                up: is_up,
            }
        };
        let place = |id: NodeId| owners.binary_search(&id).unwrap_or_default() as u32;
        let holders = (0..layout.partitions())
            .flat_map(|partition| layout.sets(partition, tenant.replication_factor).current);
        Ok(proto::TopologyResponse {
            epoch: layout.epoch(),
            tenant_id: tenant.id.0,
            partition_delimiter: tenant.delimiter().unwrap_or_default().to_vec().into(),
            partition_bits: layout.document().partition_bits,
            nodes: owners.iter().map(node).collect(),
            replicas: owners.len().min(usize::from(tenant.replication_factor)) as u32,
            holders: holders.map(place).collect(),
        })
    }

    /// What each replica of a key holds.
    ///
    /// # Errors
    /// The tenant is not known.
    pub async fn explain(
        &self,
        request: &proto::ExplainKeyRequest,
    ) -> Result<proto::ExplainKeyResponse, Problem> {
        let tenant = self.store.tenant(&request.tenant);
        let tenant = tenant.map_err(|error| Problem::of_read(&error))?;
        if request.key.is_empty() {
            return Err(Problem::of_read(&store::Error::EmptyKey));
        }
        let layout = self.layout();
        let token = tenant.token(&request.key);
        let partition = layout.partition_of(token);
        let members = layout.sets_of(partition, &tenant).members();
        let mut replicas = Vec::with_capacity(members.len());
        for node in members {
            let raw = self.raw_row_of(&layout, node, &tenant, &request.key).await;
            let name = layout.document().members.get(&node).map(|member| member.name.clone());
            replicas.push(self.replica_entry(node, name.unwrap_or_default(), raw));
        }
        let verdict = verdict_of(&replicas);
        Ok(proto::ExplainKeyResponse { token, partition, replicas, verdict })
    }

    async fn raw_row_of(
        &self,
        layout: &Layout,
        node: NodeId,
        tenant: &Tenant,
        key: &Bytes,
    ) -> Result<RawRow, String> {
        if node == self.node {
            let row = settled(&self.store, self.store.peek_raw_rows(&[(tenant.id, key)]));
            let row = tokio::time::timeout(EXPLAIN_TIMEOUT, row).await;
            let rows = row.map_err(|_| "the row is not durable in time".to_owned())?;
            let row = rows.and_then(|mut rows| rows.pop().unwrap_or(Err(store::Error::Closed)));
            return row.map_err(|error| error.to_string());
        }
        let keys = vec![proto::RowKey { tenant_id: tenant.id.0, key: key.clone() }];
        let body =
            Request::ReadRows(proto::ReadRows { keys, digest_only: false, ..Default::default() });
        let epoch = layout.epoch();
        let call = self.peers.call(node, Class::Foreground, epoch, body, EXPLAIN_TIMEOUT);
        match call.await {
            Ok(Reply::ReadRows(reply)) => match reply.answers.into_iter().next() {
                Some(proto::RowAnswer { failure: Some(failure), .. }) => Err(failure.message),
                Some(answer) => {
                    Ok(RawRow { row: answer.row.map(|row| row.to_vec()), floor: answer.floor })
                }
                None => Err("it answered nothing".to_owned()),
            },
            Ok(_) => Err("it answered something else".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn replica_entry(
        &self,
        node: NodeId,
        name: String,
        raw: Result<RawRow, String>,
    ) -> proto::ReplicaEntry {
        let mut entry =
            proto::ReplicaEntry { node: name, node_id: node.to_string(), ..Default::default() };
        match raw.and_then(|raw| self.describe(&raw, &mut entry).map_err(|e| e.to_string())) {
            Ok(()) => {}
            Err(error) => entry.error = error,
        }
        entry
    }

    fn describe(&self, raw: &RawRow, entry: &mut proto::ReplicaEntry) -> store::Result<()> {
        entry.floor = raw.floor;
        let digest = self.store.digest(raw)?;
        if digest != 0 {
            entry.digest = format!("{digest:016x}");
        }
        let Some(bytes) = &raw.row else { return Ok(()) };
        let row = codec::decode(bytes).map_err(|error| store::Error::InvalidArgument {
            what: "row",
            why: error.to_string(),
        })?;
        for (dot, version) in row.live() {
            let dot = match dot {
                Dot::Plain { actor, time } => format!("{actor}@{time:016x}"),
                Dot::Token(token) => format!("token {token:?}"),
            };
            let what = match version.payload() {
                Payload::Value { value, .. } => {
                    entry.siblings += 1;
                    format!("value of {} bytes", value.len())
                }
                Payload::Tombstone => "tombstone".to_owned(),
                Payload::Stripped => "expired value".to_owned(),
            };
            entry.dots.push(format!("{dot} {what}"));
        }
        let clocks = row.clock_entries().iter();
        entry.clock = clocks.map(|(actor, time)| format!("{actor}@{time:016x}")).collect();
        Ok(())
    }

    /// The hints this node keeps.
    pub fn hints(&self) -> proto::ListHintsResponse {
        let hints = self.hints.by_target().into_iter();
        let hints = hints.map(|(node, (pending, bytes))| {
            let node_id = node.to_string();
            proto::HintEntry { node_id, pending, bytes }
        });
        proto::ListHintsResponse { hints: hints.collect() }
    }

    /// Compares partitions now.
    ///
    /// # Errors
    /// A replica that is up could not be compared with.
    pub async fn repair(
        &self,
        request: &proto::RepairPartitionsRequest,
    ) -> Result<proto::RepairPartitionsResponse, Problem> {
        let partitions = self.layout().partitions();
        if request.partition.is_some_and(|partition| partition >= partitions) {
            return Err(Problem::invalid("partition", format!("there are {partitions}")));
        }
        let done = self.anti_entropy.repair(request.partition).await.map_err(|error| {
            Problem::new(Code::Unavailable, "REPAIR_INCOMPLETE", error.to_string())
        })?;
        let Summary { partitions, rows, refused, left, later } = done.summary;
        let layout = self.layout();
        let name_of = |node: &NodeId| layout.document().name_of(*node);
        let nodes_down = done.down.iter().map(name_of).collect();
        Ok(proto::RepairPartitionsResponse {
            partitions,
            rows,
            rows_refused: refused,
            partitions_left: left,
            leaves_left: later,
            nodes_down,
        })
    }
}

fn entry_of(id: NodeId, facts: Facts) -> proto::NodeEntry {
    proto::NodeEntry {
        name: facts.name,
        node_id: id.to_string(),
        up: facts.is_up,
        zone: facts.zone,
        client_address: facts.addresses.for_clients(),
        address: facts.addresses.peer,
        load_bytes: facts.load_bytes,
        hints_pending: facts.hints,
        partitions_damaged: facts.damaged,
        blocks_unreadable: facts.unreadable,
        generation: facts.generation,
        epoch: facts.epoch,
        disk_used: facts.disk,
        run_state: facts.run_state.name().to_owned(),
        version: facts.version,
        ..Default::default()
    }
}

fn state_name(state: MemberState) -> &'static str {
    match state {
        MemberState::Joining => "joining",
        MemberState::Normal => "normal",
        MemberState::Leaving => "leaving",
        MemberState::Left => "left",
        MemberState::Removing => "removing",
        MemberState::Removed => "removed",
    }
}

fn transition_of(layout: &Layout) -> String {
    let document = layout.document();
    if !document.is_joint() {
        return String::new();
    }
    let waits: Vec<String> = document
        .members
        .keys()
        .filter(|node| layout.must_sync(**node) && !document.synced.contains(node))
        .map(|node| document.members[node].name.clone())
        .collect();
    match waits.as_slice() {
        [] => "ending".to_owned(),
        names => format!("waits for {} to merge partitions", names.join(", ")),
    }
}

fn verdict_of(replicas: &[proto::ReplicaEntry]) -> String {
    let (answered, silent): (Vec<_>, Vec<_>) =
        replicas.iter().partition(|replica| replica.error.is_empty());
    let all = replicas.len();
    let digests: std::collections::BTreeSet<&str> =
        answered.iter().map(|replica| replica.digest.as_str()).collect();
    let what = match (digests.len(), digests.first()) {
        (0, _) => "no replica answers".to_owned(),
        (1, Some(&"")) => format!("no row on any of {} replicas that answer", answered.len()),
        (1, _) => format!("{} of {all} replicas hold the same row", answered.len()),
        _ => format!(
            "{} replicas hold {} different rows: a QUORUM read or the next comparison joins them",
            answered.len(),
            digests.len()
        ),
    };
    match silent.len() {
        0 => what,
        down => format!("{what}; {down} of {all} do not answer"),
    }
}
