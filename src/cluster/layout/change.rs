//! What a change of owners asks for, whether it may be, and the Joint document it makes (T1, T2).

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::NodeId;
use crate::cluster::placement::WEIGHT_MAX;
use crate::store::{Tenant, TenantChange, TenantId};

use super::apply::Applied;
use super::refusal::{Refusal, reason};
use super::{
    Answer, Change, Document, MEMBER_TEXT_BYTES_MAX, MEMBERS_MAX, Member, MemberState, OWNERS_MAX,
    Owner, Owners, Partitions, rules,
};

impl Document {
    /// T1: appends the Joint document of a change planned on `epoch`.
    pub(super) fn begin(&mut self, epoch: u64, change: &Change) -> Applied {
        if let Some(answer) = self.had_before(change) {
            return Ok(answer);
        }
        if self.is_joint() {
            let message = "another transition has not ended: wait for it, or abort it";
            return Err(Refusal::new(reason::TRANSITION_IN_PROGRESS, message));
        }
        self.check_epoch(epoch)?;
        if *change == Change::default() {
            return Err(Refusal::new(reason::NOTHING_TO_DO, "the change is empty"));
        }
        if !change.replaces.is_empty() {
            return self.note_replacements(change);
        }
        let change = &self.with_replaced(change);
        self.check_change(change)?;
        let next = self.owners_after(change);
        let factors = self.factors_after(change);
        let forgets = change.removes.iter().any(|node| !self.owners.contains_key(node));
        let stays = next == self.owners && factors.is_empty();
        if stays && !forgets {
            return Err(Refusal::new(reason::NOTHING_TO_DO, "the owners stay the same"));
        }
        self.check_counts(change, &next)?;
        self.check_loss(change)?;
        if stays {
            self.set_states(change);
            return Ok(self.changed());
        }
        let (old, new) = self.tables(&next);
        let after = Self { next_factors: factors, ..self.clone() };
        let sets = after.each_set(&old, &new);
        let syncers = sets.iter().flat_map(|(current, next)| rules::who_syncs(current, next));
        let syncers: BTreeSet<NodeId> = syncers.collect();
        self.begin_epoch();
        self.syncers = syncers;
        self.next_owners = Some(next);
        self.next_factors = after.next_factors;
        self.lost = change.accepts_loss.clone();
        for (node, member) in &change.joins {
            let joining = Member { state: MemberState::Joining, ..member.clone() };
            self.members.insert(*node, joining);
        }
        self.set_states(change);
        Ok(self.done())
    }

    /// Who owns is only removing until the transition ends: an abort must find it as it was. Who
    /// owns nothing is removed at once.
    fn set_states(&mut self, change: &Change) {
        for node in &change.leaves {
            if let Some(member) = self.members.get_mut(node) {
                member.state = MemberState::Leaving;
            }
        }
        for node in &change.removes {
            let Some(member) = self.members.get_mut(node) else { continue };
            if self.owners.contains_key(node) {
                member.state = MemberState::Removing;
            } else {
                member.state = MemberState::Removed;
                self.departed.remove(node);
            }
        }
    }

    /// A change in which a node joins that comes in for another: that one goes with it.
    fn with_replaced(&self, change: &Change) -> Change {
        let comes = |name: &String| change.joins.values().any(|member| member.name == *name);
        let replaced = self.replacements.iter().filter(|(_, name)| comes(name));
        let mut change = change.clone();
        change.removes.extend(replaced.map(|(node, _)| *node));
        change
    }

    /// Remembers who comes in for whom. Nothing is begun by it.
    fn note_replacements(&mut self, change: &Change) -> Applied {
        let alone = Change { replaces: change.replaces.clone(), ..Change::default() };
        if *change != alone {
            let message = "a replacement is a change of its own";
            return Err(Refusal::new(reason::MIXED_CHANGE, message));
        }
        let mut replacements = self.replacements.clone();
        for (node, name) in &change.replaces {
            if name.is_empty() {
                replacements.remove(node);
            } else {
                self.check_replacement(*node, name)?;
                // Its node may be on its way: it would come in as one more, and the dead one stay.
                if let Some(other) = replacements.get(node).filter(|other| *other != name) {
                    let old = self.name_of(*node);
                    let message =
                        format!("{old} is to be replaced by {other:?}: cancel that first");
                    return Err(Refusal::new(reason::MIXED_CHANGE, message));
                }
                replacements.insert(*node, name.clone());
            }
        }
        if replacements.values().collect::<BTreeSet<_>>().len() < replacements.len() {
            let message = "a node comes in for one other";
            return Err(Refusal::new(reason::MIXED_CHANGE, message));
        }
        if replacements == self.replacements {
            return Ok(self.done());
        }
        self.replacements = replacements;
        Ok(self.changed())
    }

    fn check_replacement(&self, node: NodeId, name: &str) -> Result<(), Refusal> {
        check_text("name", name)?;
        let unknown = || Refusal::new(reason::UNKNOWN_NODE, format!("{node} is no member"));
        let member = self.members.get(&node).ok_or_else(unknown)?;
        if member.state != MemberState::Normal {
            let name = &member.name;
            let message = format!("{name} cannot be replaced: it is not a normal member");
            return Err(Refusal::new(reason::NOT_AN_OWNER, message));
        }
        let mut others =
            self.members.iter().filter(|(id, other)| **id != node && !other.state.is_gone());
        if others.any(|(_, other)| other.name == name) {
            let message =
                format!("{name:?} is a member already: remove {} when it owns", member.name);
            return Err(Refusal::new(reason::ALREADY_A_MEMBER, message));
        }
        let removes = BTreeSet::from([node]);
        self.check_loss(&Change { removes, ..Change::default() })
    }

    /// Whether exactly what too few replicas would stay of is accepted to be lost.
    fn check_loss(&self, change: &Change) -> Result<(), Refusal> {
        let mut lost = Partitions::new();
        for (partition, factor, left) in self.lost_by(&change.removes) {
            lost.entry(factor).or_default().insert(partition);
            if !is_among(&change.accepts_loss, partition, factor) {
                return Err(too_few_sources(partition, &left));
            }
        }
        if lost == change.accepts_loss {
            return Ok(());
        }
        let message = "the loss of more is accepted than would be lost";
        Err(Refusal::new(reason::LOSS_DIFFERS, message))
    }

    /// Whether enough stay to learn rows from without `nodes` too, which leave.
    pub(super) fn check_sources_without(&self, nodes: &BTreeSet<NodeId>) -> Result<(), Refusal> {
        let table = self.tables(&self.owners).0;
        for (partition, factor, left) in self.lost_by(nodes) {
            // Of what is given up already they may be the last.
            let is_source =
                table.replicas(partition, factor).any(|replica| nodes.contains(&replica));
            if is_source || !is_among(&self.lost, partition, factor) {
                return Err(too_few_sources(partition, &left));
            }
        }
        Ok(())
    }

    fn is_removing(&self, node: &NodeId) -> bool {
        self.members.get(node).is_some_and(|member| member.state == MemberState::Removing)
    }

    /// Those of S who must all be sources: where the loss of the others was accepted, all who stay.
    pub(super) fn survivors(&self, current: &[NodeId]) -> Option<Vec<NodeId>> {
        let stays = current.iter().filter(|node| !self.is_removing(node)).copied();
        let stays: Vec<NodeId> = stays.collect();
        let too_few = stays.len() < rules::blocking(current.len());
        (too_few && !self.lost.is_empty()).then_some(stays)
    }

    /// Whether no quorum of S can be formed any more under an earlier epoch (T5). Where its loss
    /// was accepted: whether none who stays takes part in one.
    pub fn is_fenced(&self, current: &[NodeId]) -> bool {
        let is_fenced = |node: &NodeId| self.fenced.contains(node);
        match self.survivors(current) {
            Some(survivors) => survivors.iter().all(is_fenced),
            None => rules::is_fenced(current, is_fenced),
        }
    }

    /// Partitions of which too few replicas would stay without `removes`: number, replication
    /// factor, replicas that stay.
    pub fn lost_by(&self, removes: &BTreeSet<NodeId>) -> Vec<(u32, u8, Vec<NodeId>)> {
        let table = self.tables(&self.owners).0;
        let stays = |node: &NodeId| !removes.contains(node) && !self.is_removing(node);
        let factors = self.replication_factors();
        (0..table.partitions())
            .flat_map(|partition| factors.iter().map(move |factor| (partition, *factor)))
            .filter_map(|(partition, factor)| {
                let all: Vec<NodeId> = table.replicas(partition, factor).collect();
                let left: Vec<NodeId> = all.iter().copied().filter(stays).collect();
                (left.len() < rules::blocking(all.len())).then_some((partition, factor, left))
            })
            .collect()
    }

    /// The answer, if the change only adds nodes and they all own already, or will: its proposer
    /// did not hear the first answer.
    fn had_before(&self, change: &Change) -> Option<Answer> {
        let only_joins = Change { joins: change.joins.clone(), ..Change::default() };
        let owners = self.next_owners.as_ref().unwrap_or(&self.owners);
        let all = !change.joins.is_empty()
            && *change == only_joins
            && change.joins.keys().all(|node| owners.contains_key(node));
        all.then(|| self.done())
    }

    /// Whether each node may do what it is to do.
    fn check_change(&self, change: &Change) -> Result<(), Refusal> {
        for (node, member) in &change.joins {
            member.check()?;
            let state = self.members.get(node).map(|member| member.state);
            match state {
                // It tried before, and that was aborted.
                None | Some(MemberState::Joining) => {}
                Some(MemberState::Normal) => {
                    let message = format!("{} is a member already", self.name_of(*node));
                    return Err(Refusal::new(reason::ALREADY_A_MEMBER, message));
                }
                Some(_) => {
                    let message = format!("{node} left or was removed; its id is not taken again");
                    return Err(Refusal::new(reason::NODE_ID_RETIRED, message));
                }
            }
        }
        let state = |node: &NodeId| {
            let unknown = || Refusal::new(reason::UNKNOWN_NODE, format!("{node} is no member"));
            self.members.get(node).map(|member| member.state).ok_or_else(unknown)
        };
        let refused = |node: &NodeId, what: &str| {
            let name = self.name_of(*node);
            let message =
                format!("{name} cannot {what}: it is no normal member, or does two things");
            Refusal::new(reason::NOT_AN_OWNER, message)
        };
        for node in &change.leaves {
            if state(node)? != MemberState::Normal || change.removes.contains(node) {
                return Err(refused(node, "leave"));
            }
        }
        for node in &change.removes {
            if state(node)?.is_gone() || change.joins.contains_key(node) {
                return Err(refused(node, "be removed"));
            }
        }
        for (node, weight) in &change.weights {
            let goes = change.leaves.contains(node) || change.removes.contains(node);
            if state(node)? != MemberState::Normal || goes {
                return Err(refused(node, "change its weight"));
            }
            check_weight(*weight)?;
        }
        for (node, zone) in &change.zones {
            let goes = change.leaves.contains(node) || change.removes.contains(node);
            if state(node)? != MemberState::Normal || goes {
                return Err(refused(node, "change its zone"));
            }
            check_text("zone", zone)?;
        }
        for (id, factor) in &change.factors {
            let Some(tenant) = self.tenants.get(id) else {
                return Err(Refusal::new(
                    reason::UNKNOWN_TENANT,
                    format!("there is no tenant {id}"),
                ));
            };
            let factor = Some(*factor);
            tenant
                .altered(TenantChange { replication_factor: factor, ..TenantChange::default() })?;
        }
        Ok(())
    }

    /// The numbers of replicas that become others.
    fn factors_after(&self, change: &Change) -> BTreeMap<TenantId, u8> {
        let differs = |(id, factor): &(&TenantId, &u8)| {
            self.tenants.get(id).is_some_and(|tenant| tenant.replication_factor != **factor)
        };
        change.factors.iter().filter(differs).map(|(id, factor)| (*id, *factor)).collect()
    }

    fn owners_after(&self, change: &Change) -> Owners {
        let mut next = self.owners.clone();
        next.retain(|node, _| !change.leaves.contains(node) && !change.removes.contains(node));
        for (node, weight) in &change.weights {
            if let Some(owner) = next.get_mut(node) {
                owner.weight = *weight;
            }
        }
        for (node, zone) in &change.zones {
            if let Some(owner) = next.get_mut(node) {
                owner.zone.clone_from(zone);
            }
        }
        let joins: Vec<(NodeId, Owner)> =
            change.joins.iter().map(|(node, member)| (*node, member.owner())).collect();
        next.extend(joins);
        next
    }

    /// Whether there are neither too many members nor too few owners.
    fn check_counts(&self, change: &Change, next: &Owners) -> Result<(), Refusal> {
        let new = change.joins.keys().filter(|node| !self.members.contains_key(node)).count();
        if next.len() > OWNERS_MAX || self.members.len() + new > MEMBERS_MAX {
            let message = format!(
                "there can be {OWNERS_MAX} owners and {MEMBERS_MAX} members with those that left"
            );
            return Err(Refusal::new(reason::TOO_MANY_MEMBERS, message));
        }
        // Who leaves of its own will must not leave rows with fewer replicas than they should have.
        let factor = |tenant: &Tenant| {
            change.factors.get(&tenant.id).copied().unwrap_or(tenant.replication_factor)
        };
        let factor = self.tenants.values().map(factor).max().map_or(1, usize::from);
        let least = if change.leaves.is_empty() { 1 } else { factor };
        if next.len() < least {
            let message = format!("{} owners would be left, {least} are needed", next.len());
            return Err(Refusal::new(reason::TOO_FEW_OWNERS, message));
        }
        Ok(())
    }
}

fn is_among(partitions: &Partitions, partition: u32, factor: u8) -> bool {
    partitions.get(&factor).is_some_and(|some| some.contains(&partition))
}

fn too_few_sources(partition: u32, left: &[NodeId]) -> Refusal {
    let message = format!("of the replicas of partition {partition} only {left:?} would be left");
    Refusal::new(reason::TOO_FEW_SOURCES, message)
}

impl Member {
    /// Whether a document would take it; for whoever has it before a document does.
    ///
    /// # Errors
    /// What is out of its bounds, in words.
    pub fn validate(&self) -> Result<(), String> {
        self.check().map_err(Refusal::into_message)
    }

    /// Whether what it says of itself is within its bounds.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        check_text("name", &self.name)?;
        check_text("zone", &self.zone)?;
        check_text("address", &self.address)?;
        check_weight(self.weight)
    }
}

fn check_weight(weight: u32) -> Result<(), Refusal> {
    if (1..=WEIGHT_MAX).contains(&weight) {
        return Ok(());
    }
    let message = format!("a weight of {weight}: it must be 1 to {WEIGHT_MAX}");
    Err(Refusal::new(reason::INVALID_MEMBER, message))
}

pub(super) fn check_text(what: &str, text: &str) -> Result<(), Refusal> {
    if text.len() <= MEMBER_TEXT_BYTES_MAX {
        return Ok(());
    }
    let found = text.len();
    let message = format!("a {what} of {found} bytes: the limit is {MEMBER_TEXT_BYTES_MAX}");
    Err(Refusal::new(reason::INVALID_MEMBER, message))
}
