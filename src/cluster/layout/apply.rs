//! The state machine: what each command makes of the document.
//!
//! ```text
//!                Form                Join, Change                 T5, by itself
//! nothing, e = 0 ----> Stable, e = 1 ------------> Joint, e + 1 ----------------> Stable, e + 2
//!                                                       |  Abort
//!                                                       +-------> Stable, e + 2, as before
//! ```
//!
//! `apply` is total: any document that passes [`Document::check`] and any command give an answer.
//! Commands that may be sent twice (all but `CreateTenant`, which its name protects) answer the
//! second time that they are done, or that their epoch has passed.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::NodeId;
use crate::cluster::placement::{PARTITION_BITS_MAX, RankTable};
use crate::store::tenant::DEFAULT_TENANT;
use crate::store::{Error, Tenant, TenantChange, TenantId, TenantSpec};

use super::refusal::{Refusal, reason};
use super::{
    Answer, Change, Command, Document, Member, MemberState, OWNERS_MAX, Owner, Owners, Partitions,
};

/// The result of one command.
pub(super) type Applied = Result<Answer, Refusal>;

impl Document {
    /// What there is before a cluster was formed.
    pub fn empty() -> Self {
        Self {
            cluster_id: NodeId::default(),
            formation: NodeId::default(),
            epoch: 0,
            version: 0,
            partition_bits: 0,
            members: BTreeMap::new(),
            owners: Owners::new(),
            next_owners: None,
            fenced: BTreeSet::new(),
            synced: BTreeSet::new(),
            syncers: BTreeSet::new(),
            departed: BTreeMap::new(),
            certificates: BTreeMap::new(),
            tenants: BTreeMap::new(),
            tenant_id_next: 1,
            next_factors: BTreeMap::new(),
            lost: Partitions::new(),
            replacements: BTreeMap::new(),
        }
    }

    /// Whether a node is the only owner.
    pub fn is_owned_by(&self, node: NodeId) -> bool {
        self.owners.len() == 1 && self.owners.contains_key(&node)
    }

    /// Whether one node owns all rows, and no transition is under way.
    pub fn has_one_owner(&self) -> bool {
        self.owners.len() == 1 && !self.is_joint()
    }

    /// A node as people know it: its name, or its id where it is no member.
    pub fn name_of(&self, node: NodeId) -> String {
        let member = self.members.get(&node);
        member.map_or_else(|| node.to_string(), |member| member.name.clone())
    }

    /// Whether a transition is under way: there are two sets of owners.
    pub fn is_joint(&self) -> bool {
        self.next_owners.is_some()
    }

    /// Whether a cluster was formed.
    pub fn is_formed(&self) -> bool {
        self.epoch > 0
    }

    /// The distinct replication factors of the tenants: each partition has a set of replicas for
    /// each.
    pub fn replication_factors(&self) -> BTreeSet<u8> {
        self.tenants.values().map(|tenant| tenant.replication_factor).collect()
    }

    /// The same, each with what it becomes in the transition under way.
    pub fn factor_classes(&self) -> BTreeSet<(u8, u8)> {
        self.tenants.values().map(|tenant| self.factors_of(tenant)).collect()
    }

    /// The replicas a tenant has, and will have: the document's word, whatever the tenant at hand
    /// says, which may be of another document.
    pub fn factors_of(&self, tenant: &Tenant) -> (u8, u8) {
        let known = self.tenants.get(&tenant.id).unwrap_or(tenant);
        let current = known.replication_factor;
        (current, self.next_factors.get(&tenant.id).copied().unwrap_or(current))
    }

    /// Applies a command: deterministic and total. A refusal leaves the document as it was.
    pub fn apply(&mut self, command: &Command) -> Answer {
        self.applied(command).unwrap_or_else(Answer::from)
    }

    fn applied(&mut self, command: &Command) -> Applied {
        if let Command::Form { cluster_id, formation, partition_bits, members, now_ms } = command {
            return self.form((*cluster_id, *formation), *partition_bits, members, *now_ms);
        }
        if !self.is_formed() {
            return Err(Refusal::new(reason::NOT_FORMED, "no cluster was formed yet"));
        }
        match command {
            Command::Form { .. } => Ok(self.done()),
            Command::CreateTenant { spec, now_ms } => self.create_tenant(spec, *now_ms),
            Command::AlterTenant { name, change } => self.alter_tenant(name, change),
            Command::Join { epoch, members } => {
                self.begin(*epoch, &Change { joins: members.clone(), ..Change::default() })
            }
            Command::Change { epoch, change } => self.begin(*epoch, change),
            Command::Fenced { node, epoch } => self.note_fenced(*node, *epoch),
            Command::Synced { node, epoch } => self.note_synced(*node, *epoch),
            Command::Abort { epoch } => self.abort(*epoch),
            Command::GiveUp { nodes, epoch } => self.give_up(nodes, *epoch),
            Command::Cleared { node, epoch } => self.note_cleared(*node, *epoch),
            Command::Left { node, digest } => self.note_left(*node, digest),
        }
    }

    pub(super) fn done(&self) -> Answer {
        Answer::Done { epoch: self.epoch }
    }

    /// Another document, owning as before.
    pub(super) fn changed(&mut self) -> Answer {
        self.version += 1;
        self.done()
    }

    fn form(
        &mut self,
        (cluster_id, formation): (NodeId, NodeId),
        partition_bits: u32,
        members: &BTreeMap<NodeId, Member>,
        now_ms: u64,
    ) -> Applied {
        if self.is_formed() {
            let same = (self.cluster_id, self.formation) == (cluster_id, formation);
            let message = format!("cluster {} was formed already", self.cluster_id);
            return if same {
                Ok(self.done())
            } else {
                Err(Refusal::new(reason::ALREADY_FORMED, message))
            };
        }
        let invalid = |why: &str| Err(Refusal::new(reason::INVALID_CLUSTER, why));
        if cluster_id == NodeId::default() {
            return invalid("the cluster id is zero");
        }
        if partition_bits > PARTITION_BITS_MAX {
            return invalid("there would be too many partitions");
        }
        if members.is_empty() || members.len() > OWNERS_MAX {
            return invalid("it must have 1 to 256 members");
        }
        for member in members.values() {
            member.check()?;
        }
        let id = TenantId(1);
        let tenant = Tenant::create(id, now_ms, TenantSpec::new(DEFAULT_TENANT))?;
        let normal = |member: &Member| Member { state: MemberState::Normal, ..member.clone() };
        *self = Self {
            cluster_id,
            formation,
            epoch: 1,
            version: 1,
            partition_bits,
            members: members.iter().map(|(node, member)| (*node, normal(member))).collect(),
            owners: members.iter().map(|(node, member)| (*node, member.owner())).collect(),
            tenants: BTreeMap::from([(id, tenant)]),
            tenant_id_next: id.0 + 1,
            ..Self::empty()
        };
        Ok(self.done())
    }

    fn create_tenant(&mut self, spec: &TenantSpec, now_ms: u64) -> Applied {
        let taken = |name: &str| self.tenants.values().any(|tenant| tenant.name == name);
        let (count, next) = (self.tenants.len(), self.tenant_id_next);
        let (tenant, next) = Tenant::create_next(next, now_ms, spec.clone(), count, taken)?;
        self.tenants.insert(tenant.id, tenant.clone());
        self.tenant_id_next = next;
        self.changed();
        Ok(Answer::Tenant(Box::new(tenant)))
    }

    fn alter_tenant(&mut self, name: &str, change: &TenantChange) -> Applied {
        let found = self.tenants.values().find(|tenant| tenant.name == name);
        let Some(tenant) = found else {
            crate::store::tenant::validate_name(name)?;
            return Err(Error::UnknownTenant { name: name.to_owned() }.into());
        };
        let altered = tenant.altered(change.clone())?;
        if altered.replication_factor != tenant.replication_factor && !self.has_one_owner() {
            // Other replicas would own its rows at once, without having them.
            let message = "in a cluster of several owners the replication factor is changed by a \
                           change of the layout";
            return Err(Refusal::new(reason::REPLICATION_FACTOR_FIXED, message));
        }
        if altered != *tenant {
            self.tenants.insert(altered.id, altered.clone());
            self.changed();
        }
        Ok(Answer::Tenant(Box::new(altered)))
    }

    /// The owners to be, of a Joint document that something is said about.
    fn joint_of(&self, epoch: u64) -> Result<&Owners, Refusal> {
        self.check_epoch(epoch)?;
        let message = "no transition is under way";
        self.next_owners.as_ref().ok_or_else(|| Refusal::new(reason::NO_TRANSITION, message))
    }

    pub(super) fn check_epoch(&self, epoch: u64) -> Result<(), Refusal> {
        if epoch == self.epoch {
            return Ok(());
        }
        let message = format!("it is about epoch {epoch}, the layout is at {}", self.epoch);
        Err(Refusal::new(reason::STALE_EPOCH, message))
    }

    fn note_fenced(&mut self, node: NodeId, epoch: u64) -> Applied {
        let next = self.joint_of(epoch)?;
        if !self.owners.contains_key(&node) && !next.contains_key(&node) {
            let message = format!("{node} owns nothing before or after the transition");
            return Err(Refusal::new(reason::NOT_AN_OWNER, message));
        }
        if self.fenced.insert(node) {
            self.changed();
            self.finish_if_complete();
        }
        Ok(self.done())
    }

    fn note_synced(&mut self, node: NodeId, epoch: u64) -> Applied {
        self.joint_of(epoch)?;
        if !self.syncers.contains(&node) {
            let message = format!("{node} has nothing to sync");
            return Err(Refusal::new(reason::NOT_A_SYNCER, message));
        }
        if self.synced.insert(node) {
            self.changed();
            self.finish_if_complete();
        }
        Ok(self.done())
    }

    /// T5: appends the Stable document of the next owners, once all syncers are synced and of each
    /// set a blocking count is fenced.
    fn finish_if_complete(&mut self) {
        let Some(next) = &self.next_owners else { return };
        if !self.syncers.is_subset(&self.synced) {
            return;
        }
        let (old, new) = self.tables(next);
        let sets = self.each_set(&old, &new);
        if !sets.iter().all(|(set, _)| self.is_fenced(set)) {
            return;
        }
        let departed = departed(sets.iter().map(|(current, next)| (current, next)));
        let Some(next) = self.next_owners.take() else { return };
        for (tenant, factor) in std::mem::take(&mut self.next_factors) {
            if let Some(tenant) = self.tenants.get_mut(&tenant) {
                tenant.replication_factor = factor;
            }
        }
        for (node, member) in &mut self.members {
            match member.state {
                MemberState::Joining if next.contains_key(node) => {
                    member.state = MemberState::Normal;
                }
                MemberState::Removing => member.state = MemberState::Removed,
                _ => {}
            }
            if let Some(owner) = next.get(node) {
                member.weight = owner.weight;
                member.zone.clone_from(&owner.zone);
            }
        }
        self.owners = next;
        self.end_transition(departed);
    }

    /// L1: nodes that were to hand over what they have are dead; the transition goes on without
    /// their help. All of them, or none: who asks is told of one outcome.
    fn give_up(&mut self, nodes: &BTreeSet<NodeId>, epoch: u64) -> Applied {
        self.joint_of(epoch)?;
        let mut dead = nodes.clone();
        for node in nodes {
            match self.members.get(node).map(|member| member.state) {
                Some(MemberState::Removing) => _ = dead.remove(node),
                Some(MemberState::Leaving) if self.owners.contains_key(node) => {}
                _ => {
                    let name = self.name_of(*node);
                    let message = format!("{name} is not leaving in this transition");
                    return Err(Refusal::new(reason::NOT_AN_OWNER, message));
                }
            }
        }
        if dead.is_empty() {
            return Ok(self.done());
        }
        self.check_sources_without(&dead)?;
        for (_, member) in self.members.iter_mut().filter(|(node, _)| dead.contains(node)) {
            member.state = MemberState::Removing;
        }
        Ok(self.changed())
    }

    /// T6: back to the old owners. Always safe: nothing was written to less than their quorum.
    fn abort(&mut self, epoch: u64) -> Applied {
        let next = self.joint_of(epoch)?;
        let (old, new) = self.tables(next);
        let sets = self.each_set(&old, &new);
        let departed = departed(sets.iter().map(|(current, next)| (next, current)));
        self.next_owners = None;
        self.next_factors.clear();
        for (node, member) in &mut self.members {
            let owns = self.owners.contains_key(node);
            match member.state {
                MemberState::Leaving if owns => member.state = MemberState::Normal,
                MemberState::Removing => member.state = MemberState::Normal,
                _ => {}
            }
        }
        self.end_transition(departed);
        Ok(self.done())
    }

    /// The next epoch is Stable; those in `departed` may hold what they do not own.
    fn end_transition(&mut self, departed: BTreeSet<NodeId>) {
        self.begin_epoch();
        self.departed.extend(departed.into_iter().map(|node| (node, self.epoch)));
        let members = &self.members;
        let stays = |node: &NodeId| {
            members.get(node).is_some_and(|member| member.state != MemberState::Removed)
        };
        self.departed.retain(|node, _| stays(node));
        self.forget_replacements();
    }

    /// Nobody comes in for who owns nothing.
    pub(super) fn forget_replacements(&mut self) {
        let owners = &self.owners;
        self.replacements.retain(|node, _| owners.contains_key(node));
    }

    /// Facts about the epoch before say nothing about this one.
    pub(super) fn begin_epoch(&mut self) {
        self.version += 1;
        self.epoch += 1;
        self.fenced.clear();
        self.synced.clear();
        self.syncers.clear();
        self.lost.clear();
    }

    fn note_cleared(&mut self, node: NodeId, epoch: u64) -> Applied {
        if epoch > self.epoch {
            self.check_epoch(epoch)?;
        }
        match self.departed.get(&node) {
            None => Ok(self.done()),
            Some(since) if epoch < *since => {
                let message = format!("it is about epoch {epoch}, rows remained at {since}");
                Err(Refusal::new(reason::STALE_EPOCH, message))
            }
            Some(_) => {
                self.departed.remove(&node);
                Ok(self.changed())
            }
        }
    }

    fn note_left(&mut self, node: NodeId, digest: &str) -> Applied {
        let next = self.next_owners.as_ref();
        let owns =
            self.owners.contains_key(&node) || next.is_some_and(|next| next.contains_key(&node));
        let Some(member) = self.members.get_mut(&node) else {
            return Err(Refusal::new(reason::UNKNOWN_NODE, format!("{node} is no member")));
        };
        if member.state == MemberState::Left {
            return Ok(self.done());
        }
        if member.state != MemberState::Leaving || owns {
            let message = format!("{node} has not finished leaving");
            return Err(Refusal::new(reason::NOT_AN_OWNER, message));
        }
        super::change::check_text("certificate digest", digest)?;
        member.state = MemberState::Left;
        self.certificates.insert(node, digest.to_owned());
        self.departed.remove(&node);
        Ok(self.changed())
    }

    /// The rank tables of the owners and of the next ones.
    pub(super) fn tables(&self, next: &Owners) -> (RankTable, RankTable) {
        let table = |owners| RankTable::new(self.partition_bits, owners);
        (table(&self.owners), table(next))
    }

    /// S and S' of each partition and replication factor, each pair once.
    pub(super) fn each_set(&self, old: &RankTable, new: &RankTable) -> BTreeSet<SetPair> {
        let classes = self.factor_classes();
        let partitions = 0..1_u32 << self.partition_bits.min(PARTITION_BITS_MAX);
        partitions
            .flat_map(|partition| classes.iter().map(move |class| (partition, *class)))
            .map(|(partition, (factor, next))| {
                let set = |table: &RankTable, factor| table.replicas(partition, factor).collect();
                (set(old, factor), set(new, next))
            })
            .collect()
    }
}

/// S and S' of a partition.
pub(super) type SetPair = (Vec<NodeId>, Vec<NodeId>);

/// Who is in the first of some pair and not in the second.
fn departed<'a>(
    pairs: impl Iterator<Item = (&'a Vec<NodeId>, &'a Vec<NodeId>)>,
) -> BTreeSet<NodeId> {
    pairs
        .flat_map(|(from, to)| from.iter().filter(move |node| !to.contains(node)).copied())
        .collect()
}

impl Member {
    pub(super) fn owner(&self) -> Owner {
        Owner { zone: self.zone.clone(), weight: self.weight }
    }
}
