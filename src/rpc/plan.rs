//! What a change of the layout would do: what moves where, the balance after it, and why it cannot
//! be. Nothing is changed by asking.
//!
//! Sizes are estimates from what the nodes say of themselves; whether those who would take rows
//! over are up and have room is hearsay too, and judged before anything is proposed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cluster::Cluster;
use super::status::Problem;
use crate::cluster::NodeId;
use crate::cluster::layout::{
    Answer, Change, Command, Document, Layout, Member, MemberState, rules,
};
use crate::cluster::view::Nodes;
use crate::proto;

const QUORUM_DOWN: &str = "QUORUM_DOWN";

/// What a change would do.
pub(super) struct Effects {
    movements: Vec<proto::Movement>,
    balance: Vec<proto::NodeBalance>,
    pub refusals: Vec<proto::LayoutRefusal>,
}

impl Effects {
    /// Leaves the refusals out that the caller accepts.
    pub fn accept(&mut self, asked: &proto::LayoutChange) {
        self.refusals.retain(|one| !asked.accepts_down || one.reason != QUORUM_DOWN);
    }
}

impl Cluster {
    /// What a change would do.
    ///
    /// # Errors
    /// A name in it is not known.
    pub fn plan(
        &self,
        request: &proto::PlanLayoutRequest,
    ) -> Result<proto::PlanLayoutResponse, Problem> {
        let layout = self.layout();
        let document = layout.document();
        let asked = request.change.clone().unwrap_or_default();
        let mut change = self.change_of(document, &asked)?;
        let mut names = BTreeMap::new();
        let unnamed = asked.joins.iter().filter(|new| new.node.is_empty());
        for (new, n) in unnamed.zip(1_u128..) {
            // No minted id is that small.
            names.insert(NodeId(n), format!("new-{n}"));
            let member = Member {
                name: format!("new-{n}"),
                zone: new.zone.clone(),
                weight: new.weight.max(1),
                state: MemberState::Joining,
                address: String::new(),
            };
            change.joins.insert(NodeId(n), member);
        }
        let mut refusals = Vec::new();
        if !change.replaces.is_empty() {
            refusals = self.effects(&layout, &change, &names).refusals;
            change = when_replaced(document, change, &mut names);
        }
        let mut effects = self.effects(&layout, &change, &names);
        // What stands in the way of being remembered is said first, and said once.
        effects.refusals.retain(|one| !refusals.contains(one));
        effects.accept(&asked);
        refusals.append(&mut effects.refusals);
        let bytes: BTreeMap<&str, u64> =
            effects.movements.iter().fold(BTreeMap::new(), |mut all, one| {
                *all.entry(one.to.as_str()).or_default() += one.bytes;
                all
            });
        let slowest = bytes.values().max().copied().unwrap_or(0);
        let rate = self.moving.rate.get();
        let lost = document.lost_by(&change.removes).into_iter();
        let lost = lost.filter(|_| !change.removes.is_empty());
        Ok(proto::PlanLayoutResponse {
            epoch: layout.epoch(),
            bytes: bytes.values().sum(),
            duration_ms: slowest.saturating_mul(1000).checked_div(rate).unwrap_or(0),
            lost: lost
                .map(|(partition, factor, left)| proto::LostPartition {
                    partition,
                    replication_factor: factor.into(),
                    replicas_left: left.iter().map(NodeId::to_string).collect(),
                    tenants: document
                        .tenants
                        .values()
                        .filter(|tenant| tenant.replication_factor == factor)
                        .map(|tenant| tenant.name.clone())
                        .collect(),
                })
                .collect(),
            warnings: self.alive(&layout, &change).chain(warnings(document, &change)).collect(),
            refusals,
            movements: effects.movements,
            balance: effects.balance,
        })
    }

    /// Who would be taken out although it is up, and could hand over what only it has.
    fn alive(&self, layout: &Layout, change: &Change) -> impl Iterator<Item = String> {
        let members = &layout.document().members;
        let up = change.removes.iter().filter(|node| self.is_up(**node));
        let up = up.filter_map(|node| members.get(node));
        let say = |member: &Member| format!("{} is up: drain loses nothing of its", member.name);
        up.map(say).collect::<Vec<_>>().into_iter()
    }

    pub(super) fn effects(
        &self,
        layout: &Layout,
        change: &Change,
        names: &BTreeMap<NodeId, String>,
    ) -> Effects {
        let document = layout.document();
        let mut effects =
            Effects { movements: Vec::new(), balance: Vec::new(), refusals: Vec::new() };
        let mut next = Document::clone(document);
        let command = Command::Change { epoch: document.epoch, change: change.clone() };
        if let Answer::Refused { reason, message } = next.apply(&command) {
            effects.refusals.push(proto::LayoutRefusal { reason, message });
            return effects;
        }
        let next = Layout::new(Arc::new(next));
        let name = |node: &NodeId| names.get(node).cloned().unwrap_or_else(|| node.to_string());
        let heard = self.view.nodes();
        let sizes = self.sizes(layout, &heard);
        let mut moved: BTreeMap<(NodeId, NodeId), (u32, u64)> = BTreeMap::new();
        for node in next.document().syncers.clone() {
            for one in next.to_sync(node) {
                let needed = one.sources;
                let others = needed.of.iter().filter(|source| **source != node);
                let count = needed.count.saturating_sub(usize::from(needed.of.contains(&node)));
                for (nth, source) in others.enumerate() {
                    if nth < count || needed.leaving.contains(source) {
                        let pair = moved.entry((*source, node)).or_default();
                        pair.0 += 1;
                        pair.1 += sizes.get(source).copied().unwrap_or(0);
                    }
                }
            }
        }
        let movement = |((from, to), (partitions, bytes)): (&(NodeId, NodeId), &(u32, u64))| {
            let (from, to, partitions, bytes) = (name(from), name(to), *partitions, *bytes);
            proto::Movement { from, to, partitions, bytes }
        };
        effects.movements = moved.iter().map(movement).collect();
        effects.balance = balance(layout, &next, &sizes, &name);
        effects.refusals = self.obstacles(layout, &moved, &sizes, &heard);
        // One that is still to come is taken to come up.
        let is_up = |node: &NodeId| names.contains_key(node) || self.is_up(*node);
        effects.refusals.extend(lost_quorums(layout, &next, is_up));
        effects
    }

    /// About how many bytes a partition has at each node.
    fn sizes(&self, layout: &Layout, heard: &Nodes) -> BTreeMap<NodeId, u64> {
        let factor = layout.document().replication_factors().last().copied().unwrap_or(1);
        let held = partitions_held(layout, factor);
        let bytes = |node: &NodeId| match *node == self.node {
            true => self.store.stats().engine.data_bytes(),
            false => heard.get(node).map_or(0, |facts| facts.load_bytes),
        };
        held.iter().map(|(node, held)| (*node, bytes(node) / u64::from(*held).max(1))).collect()
    }

    /// Why those who would take rows over cannot.
    fn obstacles(
        &self,
        layout: &Layout,
        moved: &BTreeMap<(NodeId, NodeId), (u32, u64)>,
        sizes: &BTreeMap<NodeId, u64>,
        heard: &Nodes,
    ) -> Vec<proto::LayoutRefusal> {
        // Of each partition one copy stays, however many are fetched.
        let mut takes: BTreeMap<NodeId, (u32, u64)> = BTreeMap::new();
        for ((source, to), (partitions, _)) in moved {
            let size = sizes.get(source).copied().unwrap_or(0);
            let (most, bytes) = takes.entry(*to).or_default();
            *most = (*most).max(*partitions);
            *bytes = (*bytes).max(u64::from(*partitions).saturating_mul(size));
        }
        let members = &layout.document().members;
        let mut refusals = Vec::new();
        for (node, (partitions, bytes)) in takes {
            let Some(member) = members.get(&node) else { continue };
            let room = match (node == self.node, heard.get(&node)) {
                (true, _) => Some(self.store.disk_room()),
                // One that has just come has not said yet; it is taken to have room.
                (false, Some(facts)) if facts.is_up => Some(facts.disk_room.unwrap_or(u64::MAX)),
                (false, _) => None,
            };
            refusals.extend(obstacle(&member.name, partitions, bytes, room));
        }
        refusals
    }
}

/// What a replacement becomes when its node joins: one that is like the old one, as far as it is
/// known.
fn when_replaced(
    document: &Document,
    mut change: Change,
    names: &mut BTreeMap<NodeId, String>,
) -> Change {
    for (old, name) in std::mem::take(&mut change.replaces) {
        let Some(member) = document.members.get(&old).filter(|_| !name.is_empty()) else {
            continue;
        };
        let n = names.len() as u128 + 1;
        names.insert(NodeId(n), format!("new-{n}"));
        let state = MemberState::Joining;
        change.joins.insert(NodeId(n), Member { name, state, ..member.clone() });
        change.removes.insert(old);
    }
    change
}

/// Why a node cannot take rows over; `room` is what values may still take of its disk, `None`: it
/// is down.
fn obstacle(
    name: &str,
    partitions: u32,
    bytes: u64,
    room: Option<u64>,
) -> Option<proto::LayoutRefusal> {
    let (reason, message) = match room {
        None => {
            let message = format!("{name} would take over {partitions} partitions and is down");
            ("RECEIVER_DOWN", message)
        }
        Some(room) if u128::from(bytes) * 13 > u128::from(room) * 10 => {
            let message = format!(
                "{name} would take over about {bytes} bytes and has {room} free beside its reserve"
            );
            ("NO_SPACE", message)
        }
        Some(_) => return None,
    };
    Some(proto::LayoutRefusal { reason: reason.to_owned(), message })
}

/// Why partitions that can be read and written now could not be after the change: too few of their
/// owners to be are up. No row has to move for that where the number of replicas goes down, and
/// none could move to get out of it.
fn lost_quorums(
    layout: &Layout,
    next: &Layout,
    is_up: impl Fn(&NodeId) -> bool,
) -> Option<proto::LayoutRefusal> {
    let has_quorum =
        |set: &[NodeId]| set.iter().filter(|node| is_up(node)).count() >= rules::quorum(set.len());
    let (mut partitions, mut down) = (BTreeSet::new(), BTreeSet::new());
    for (factor, factor_next) in next.document().factor_classes() {
        for partition in 0..layout.partitions() {
            let after = next.sets(partition, factor_next);
            let after = after.next.unwrap_or(after.current);
            if has_quorum(&layout.sets(partition, factor).current) && !has_quorum(&after) {
                partitions.insert(partition);
                down.extend(after.into_iter().filter(|node| !is_up(node)));
            }
        }
    }
    if partitions.is_empty() {
        return None;
    }
    let names: Vec<String> = down.iter().map(|node| next.document().name_of(*node)).collect();
    let message = format!(
        "{} partitions could not be read or written after it at QUORUM: of their owners to be too \
         few are up, {} down",
        partitions.len(),
        match names.as_slice() {
            [one] => format!("{one} is"),
            several => format!("{} are", several.join(", ")),
        }
    );
    Some(proto::LayoutRefusal { reason: QUORUM_DOWN.to_owned(), message })
}

fn partitions_held(layout: &Layout, factor: u8) -> BTreeMap<NodeId, u32> {
    let mut held = BTreeMap::new();
    for partition in 0..layout.partitions() {
        for node in layout.sets(partition, factor).current {
            *held.entry(node).or_default() += 1;
        }
    }
    held
}

/// The nodes before and after.
fn balance(
    layout: &Layout,
    next: &Layout,
    sizes: &BTreeMap<NodeId, u64>,
    name: &dyn Fn(&NodeId) -> String,
) -> Vec<proto::NodeBalance> {
    let classes = next.document().factor_classes();
    let factor = layout.document().replication_factors().last().copied().unwrap_or(1);
    let factor_next = classes.iter().map(|(_, next)| *next).max().unwrap_or(1);
    let before = partitions_held(layout, factor);
    let mut after: BTreeMap<NodeId, u32> = BTreeMap::new();
    for partition in 0..next.partitions() {
        let sets = next.sets(partition, factor_next);
        for node in sets.next.unwrap_or(sets.current) {
            *after.entry(node).or_default() += 1;
        }
    }
    let size = sizes.values().sum::<u64>() / (sizes.len() as u64).max(1);
    let nodes: BTreeSet<NodeId> = before.keys().chain(after.keys()).copied().collect();
    let entry = |node: NodeId| {
        let of = |held: &BTreeMap<NodeId, u32>| held.get(&node).copied().unwrap_or(0);
        let (partitions, partitions_next) = (of(&before), of(&after));
        let member = next.document().members.get(&node);
        proto::NodeBalance {
            node_id: name(&node),
            name: member.map(|member| member.name.clone()).unwrap_or_default(),
            partitions,
            partitions_next,
            bytes: u64::from(partitions) * sizes.get(&node).copied().unwrap_or(0),
            bytes_next: u64::from(partitions_next) * sizes.get(&node).copied().unwrap_or(size),
        }
    };
    nodes.into_iter().map(entry).collect()
}

/// What is allowed and should be known.
fn warnings(document: &Document, change: &Change) -> Vec<String> {
    let mut warnings = Vec::new();
    for node in &change.removes {
        let name = document.name_of(*node);
        warnings.push(format!("writes that only {name} acknowledged (consistency ONE) are lost"));
    }
    let goes = |node: &NodeId| change.leaves.contains(node) || change.removes.contains(node);
    let stays = document.owners.iter().filter(|(node, _)| !goes(node));
    let zone = |node: &NodeId, zone: &str| {
        change.zones.get(node).cloned().unwrap_or_else(|| zone.to_owned())
    };
    let mut zones: BTreeSet<String> =
        stays.clone().map(|(node, owner)| zone(node, &owner.zone)).collect();
    zones.extend(change.joins.values().map(|member| member.zone.clone()));
    let owners = stays.count() + change.joins.len();
    for tenant in document.tenants.values() {
        let factor = change.factors.get(&tenant.id).copied().unwrap_or(tenant.replication_factor);
        let name = &tenant.name;
        if usize::from(factor) > owners {
            warnings.push(format!("tenant {name} wants {factor} replicas, {owners} nodes stay"));
        } else if usize::from(factor) > zones.len() && zones.len() > 1 {
            let zones = zones.len();
            warnings.push(format!("tenant {name} wants {factor} replicas in {zones} zones"));
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::layout::Owner;
    use crate::store::TenantSpec;

    /// A drain that could not end is not begun: it says which node lacks what.
    #[test]
    fn a_receiver_that_is_down_or_has_no_room_is_named() {
        let reason = |bytes, room| obstacle("n1", 7, bytes, room).map(|one| one.reason);
        assert_eq!(reason(0, None), Some("RECEIVER_DOWN".to_owned()), "even for nothing");
        assert_eq!(reason(1000, Some(1299)), Some("NO_SPACE".to_owned()), "1.3 times as much");
        assert_eq!(reason(1000, Some(1301)), None);
        assert_eq!(reason(0, Some(0)), None);
        let refusal = obstacle("n1", 7, 1000, Some(10)).expect("too little");
        let text = "n1 would take over about 1000 bytes and has 10 free beside its reserve";
        assert_eq!(refusal.message, text);
    }

    fn member(name: &str, state: MemberState) -> Member {
        let (zone, address) = (String::new(), String::new());
        Member { name: name.to_owned(), zone, weight: 3, state, address }
    }

    /// With fewer replicas no row moves, so nobody is asked whether it is up; of partitions with a
    /// replica that is down one of two would be left.
    #[test]
    fn fewer_replicas_are_refused_where_a_quorum_would_be_lost() {
        let mut document = Document::empty();
        let members =
            (1..=3_u128).map(|n| (NodeId(n), member(&format!("n{n}"), MemberState::Normal)));
        document.members = members.collect();
        let (zone, weight) = (String::new(), 1);
        let owner = |n| (NodeId(n), Owner { zone: zone.clone(), weight });
        (document.owners, document.epoch) = ((1..=3).map(owner).collect(), 1);
        document.partition_bits = 4;
        let spec = TenantSpec { replication_factor: 3, ..TenantSpec::new("t") };
        let created = document.apply(&Command::CreateTenant { spec, now_ms: 0 });
        let Answer::Tenant(tenant) = created else { panic!("it is created: {created:?}") };
        let mut changed = document.clone();
        let factors = BTreeMap::from([(tenant.id, 2)]);
        let change = Change { factors, ..Change::default() };
        let answer = changed.apply(&Command::Change { epoch: 1, change });
        assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
        let [now, next] = [document, changed].map(|one| Layout::new(Arc::new(one)));
        assert_eq!(lost_quorums(&now, &next, |_| true), None);
        let refusal = lost_quorums(&now, &next, |node| *node != NodeId(2)).expect("n2 is down");
        let refusals = vec![refusal.clone()];
        let mut effects = Effects { movements: Vec::new(), balance: Vec::new(), refusals };
        effects.accept(&proto::LayoutChange::default());
        assert_eq!(effects.refusals.len(), 1);
        effects.accept(&proto::LayoutChange { accepts_down: true, ..Default::default() });
        assert_eq!(effects.refusals, []);
        assert_eq!(refusal.reason, "QUORUM_DOWN");
        assert!(refusal.message.ends_with("too few are up, n2 is down"), "{}", refusal.message);
        let none = |node: &NodeId| *node == NodeId(1);
        assert_eq!(lost_quorums(&now, &next, none), None, "there is none to be lost");
    }

    /// What a replacement will do is planned as if its node had come, in the old one's place.
    #[test]
    fn a_replacement_is_planned_as_a_join_and_a_removal() {
        let mut document = Document::empty();
        document.members.insert(NodeId(100), member("old", MemberState::Normal));
        let mut names = BTreeMap::new();
        let replaces = BTreeMap::from([(NodeId(100), "new".to_owned())]);
        let asked = Change { replaces, ..Change::default() };
        let planned = when_replaced(&document, asked, &mut names);
        assert_eq!(planned.removes, BTreeSet::from([NodeId(100)]));
        let joins = BTreeMap::from([(NodeId(1), member("new", MemberState::Joining))]);
        assert_eq!((planned.joins, planned.replaces), (joins, BTreeMap::new()));
        assert_eq!(names[&NodeId(1)], "new-1");
        let cancelled = BTreeMap::from([(NodeId(100), String::new())]);
        let cancelled = Change { replaces: cancelled, ..Change::default() };
        let planned = when_replaced(&document, cancelled, &mut names);
        assert_eq!(planned, Change::default());
    }
}
