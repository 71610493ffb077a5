//! What every document obeys: for those that come from a disk or from another node.

use std::collections::BTreeSet;
use std::fmt::Display;

use crate::cluster::placement::{PARTITION_BITS_MAX, WEIGHT_MAX};
use crate::store::catalog::TENANTS_MAX;
use crate::store::tenant::REPLICATION_FACTOR_MAX;

use super::change::check_text;
use super::{Document, MEMBERS_MAX, Member, MemberState, OWNERS_MAX, Owners};

/// No cluster lives to see so many changes; beyond it is damage, and counting on would overflow.
const COUNT_MAX: u64 = 1 << 62;

impl Document {
    /// Holds the document to its rules; says which is broken. [`Document::apply`] keeps them, so
    /// one that breaks them was not made by it.
    ///
    /// # Errors
    /// The rule, in words.
    pub fn check(&self) -> Result<(), String> {
        if !self.is_formed() {
            return holds(*self == Self::empty(), "it has contents but no epoch");
        }
        holds(
            self.epoch < COUNT_MAX && self.version < COUNT_MAX,
            "its epoch or version is damage",
        )?;
        holds(self.epoch <= self.version, "its epoch is above its version")?;
        holds(self.partition_bits <= PARTITION_BITS_MAX, "it has too many partitions")?;
        holds(self.members.len() <= MEMBERS_MAX, "it has too many members")?;
        for (node, member) in &self.members {
            member.check().map_err(|_| format!("member {node} is out of bounds"))?;
            let owns = self.owners.contains_key(node);
            let state = member.state;
            let fits = match (owns, self.next_owners.as_ref()) {
                (true, None) => state == MemberState::Normal,
                (false, None) => !matches!(state, MemberState::Normal | MemberState::Removing),
                (true, Some(next)) if next.contains_key(node) => state == MemberState::Normal,
                (true, Some(_)) => matches!(state, MemberState::Leaving | MemberState::Removing),
                (false, Some(next)) if next.contains_key(node) => state == MemberState::Joining,
                (false, Some(_)) => !matches!(state, MemberState::Normal | MemberState::Removing),
            };
            holds(fits, format_args!("member {node} is {state:?}, not by what it owns"))?;
        }
        self.check_owners(&self.owners)?;
        self.next_owners.iter().try_for_each(|next| self.check_owners(next))?;
        self.check_facts()?;
        self.check_factors()?;
        self.check_lost()?;
        self.check_tenants()
    }

    fn check_owners(&self, owners: &Owners) -> Result<(), String> {
        holds((1..=OWNERS_MAX).contains(&owners.len()), "it has no owners, or too many")?;
        owners.iter().try_for_each(|(node, owner)| {
            holds(self.members.contains_key(node), format_args!("owner {node} is no member"))?;
            let weight = (1..=WEIGHT_MAX).contains(&owner.weight);
            holds(weight, format_args!("owner {node} has no possible weight"))
        })
    }

    fn check_facts(&self) -> Result<(), String> {
        let next = self.next_owners.as_ref();
        let concerned: BTreeSet<_> =
            next.into_iter().flat_map(|next| next.keys().chain(self.owners.keys())).collect();
        for facts in [&self.fenced, &self.synced, &self.syncers] {
            let known = facts.iter().all(|node| concerned.contains(node));
            holds(known, "it has facts about nodes that no transition concerns")?;
        }
        holds(self.synced.is_subset(&self.syncers), "nodes are synced that need not be")?;
        for (node, since) in &self.departed {
            let state = self.members.get(node).map(|member| member.state);
            let gone = state.is_none_or(MemberState::is_gone);
            holds(!gone && *since <= self.epoch, format_args!("{node} cannot have departed"))?;
        }
        self.certificates.iter().try_for_each(|(node, digest)| {
            let left = |member: &Member| member.state == MemberState::Left;
            let left = self.members.get(node).is_some_and(left);
            let short = check_text("certificate digest", digest).is_ok();
            holds(left && short, format_args!("the certificate of {node} is out of place"))
        })
    }

    fn check_factors(&self) -> Result<(), String> {
        let none = self.next_factors.is_empty();
        holds(none || self.is_joint(), "it has numbers of replicas to be, but no transition")?;
        self.next_factors.iter().try_for_each(|(id, factor)| {
            let known = self.tenants.contains_key(id);
            let possible = (1..=REPLICATION_FACTOR_MAX).contains(factor);
            holds(known && possible, format_args!("tenant {id} cannot become what it is to be"))
        })
    }

    fn check_lost(&self) -> Result<(), String> {
        let none = self.lost.is_empty();
        holds(none || self.is_joint(), "it gives partitions up, but no transition does")?;
        let factors = self.replication_factors();
        for (factor, partitions) in &self.lost {
            let last = partitions.last().copied().unwrap_or_default();
            let known = factors.contains(factor) && last < 1 << self.partition_bits;
            holds(known, format_args!("it gives up what there is not: partition {last}"))?;
        }
        self.replacements.iter().try_for_each(|(node, name)| {
            let fits = self.owners.contains_key(node) && check_text("name", name).is_ok();
            holds(fits && !name.is_empty(), format_args!("{node} cannot be replaced by {name:?}"))
        })
    }

    fn check_tenants(&self) -> Result<(), String> {
        holds(self.tenants.len() <= TENANTS_MAX, "it has too many tenants")?;
        let mut names = BTreeSet::new();
        self.tenants.iter().try_for_each(|(id, tenant)| {
            tenant.validate().map_err(|error| format!("tenant {id}: {error}"))?;
            holds(*id == tenant.id, format_args!("tenant {} stands under {id}", tenant.id))?;
            holds(id.0 < self.tenant_id_next, format_args!("tenant {id} is still to come"))?;
            holds(names.insert(&tenant.name), format_args!("{} stands there twice", tenant.name))
        })
    }
}

fn holds(rule: bool, broken: impl Display) -> Result<(), String> {
    if rule { Ok(()) } else { Err(broken.to_string()) }
}
