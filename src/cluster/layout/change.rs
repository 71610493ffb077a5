//! What a change of owners asks for, whether it may be, and the Joint document it makes (T1, T2).

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::NodeId;
use crate::cluster::placement::WEIGHT_MAX;
use crate::store::{Tenant, TenantChange, TenantId};

use super::apply::{Applied, SetPair};
use super::refusal::{Refusal, reason};
use super::{
    Answer, Change, Document, MEMBER_TEXT_BYTES_MAX, MEMBERS_MAX, Member, MemberState, OWNERS_MAX,
    Owner, Owners, rules,
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
        self.check_change(change)?;
        let next = self.owners_after(change);
        let factors = self.factors_after(change);
        let forgets = change.removes.iter().any(|node| !self.owners.contains_key(node));
        let stays = next == self.owners && factors.is_empty();
        if stays && !forgets {
            return Err(Refusal::new(reason::NOTHING_TO_DO, "the owners stay the same"));
        }
        self.check_counts(change, &next)?;
        if stays {
            self.set_states(change);
            return Ok(self.changed());
        }
        let (old, new) = self.tables(&next);
        let after = Self { next_factors: factors, ..self.clone() };
        let sets = after.each_set(&old, &new);
        self.check_sources(&sets, &change.removes)?;
        let syncers = sets.iter().flat_map(|(current, next)| rules::who_syncs(current, next));
        let syncers: BTreeSet<NodeId> = syncers.collect();
        self.begin_epoch();
        self.syncers = syncers;
        self.next_owners = Some(next);
        self.next_factors = after.next_factors;
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

    /// Whether of each S a blocking count stays to learn its rows from, without `removes` and
    /// whoever is taken out already.
    pub(super) fn check_sources(
        &self,
        sets: &BTreeSet<SetPair>,
        removes: &BTreeSet<NodeId>,
    ) -> Result<(), Refusal> {
        let stays = |node: &&NodeId| {
            let state = self.members.get(node).map(|member| member.state);
            !removes.contains(node) && state != Some(MemberState::Removing)
        };
        for (current, _) in sets {
            let sources = current.iter().filter(stays).count();
            if sources < rules::blocking(current.len()) {
                let message = format!("of the replicas {current:?} only {sources} would be left");
                return Err(Refusal::new(reason::TOO_FEW_SOURCES, message));
            }
        }
        Ok(())
    }

    /// Partitions of which too few replicas would stay without `removes`: number, replication
    /// factor, replicas that stay.
    pub fn lost_by(&self, removes: &BTreeSet<NodeId>) -> Vec<(u32, u8, Vec<NodeId>)> {
        let table = self.tables(&self.owners).0;
        let stays = |node: &NodeId| {
            let state = self.members.get(node).map(|member| member.state);
            !removes.contains(node) && state != Some(MemberState::Removing)
        };
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
                    let message = format!("{node} is a member already");
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
            let message = format!("{node} cannot {what}: it is not a normal member, or does both");
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
