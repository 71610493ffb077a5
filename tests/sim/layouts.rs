//! The documents that nodes act under, as they are found on their disks: whether they follow each
//! other as they must (I13, I14), and who is to hold what.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use pairdb::cluster::NodeId;
use pairdb::cluster::layout::{Document, Layout, Member, MemberState};
use pairdb::store::TenantId;
use parking_lot::Mutex;

use crate::autopsy::{Found, Rows};

/// The latest document, shared with the operator.
pub type Latest = Arc<Mutex<Option<Arc<Layout>>>>;

/// What a transition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Join,
    Drain,
    Remove,
    /// One is taken out, and by the same change another one comes in.
    Replace,
    /// Weights, zones, numbers of replicas.
    Shift,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Join, Self::Drain, Self::Remove, Self::Replace, Self::Shift];
}

/// What a node is to a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// It merges what it will own.
    Gainer,
    /// It owns less than before, and has to hand over.
    Loser,
    /// It owned and will.
    Source,
    /// It leads the layout group.
    Leader,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

/// The machine of a member: its name says it.
pub fn machine_of(member: &Member) -> usize {
    member.name.strip_prefix('n').and_then(|number| number.parse().ok()).expect("n and a number")
}

/// The member of a machine: the one that is not gone, if there were several.
pub fn member_of(document: &Document, machine: usize) -> Option<(NodeId, &Member)> {
    let of = |member: &Member| machine_of(member) == machine;
    let gone = |member: &Member| matches!(member.state, MemberState::Left | MemberState::Removed);
    let members = || document.members.iter().filter(|(_, member)| of(member));
    let found = members().find(|(_, member)| !gone(member)).or_else(|| members().next());
    found.map(|(node, member)| (*node, member))
}

/// Who does what in one.
struct Transition {
    kind: Kind,
    gainers: BTreeSet<usize>,
    losers: BTreeSet<usize>,
    /// Of the owners before those that own after it.
    sources: BTreeSet<usize>,
}

impl Transition {
    fn of(layout: &Layout) -> Self {
        let document = layout.document();
        let mut losers = BTreeSet::new();
        for partition in 0..layout.partitions() {
            for tenant in document.tenants.values() {
                let sets = layout.sets_of(partition, tenant);
                let next = sets.next.unwrap_or_default();
                losers.extend(sets.current.into_iter().filter(|node| !next.contains(node)));
            }
        }
        let next = document.next_owners.as_ref().expect("it is Joint");
        let stays = document.owners.keys().filter(|node| next.contains_key(*node));
        let machines = |nodes: &mut dyn Iterator<Item = &NodeId>| -> BTreeSet<usize> {
            nodes.filter_map(|node| document.members.get(node)).map(machine_of).collect()
        };
        Self {
            kind: kind_of(document),
            gainers: machines(&mut document.syncers.iter()),
            losers: machines(&mut losers.iter()),
            sources: machines(&mut stays.into_iter()),
        }
    }
}

/// See the module.
#[derive(Default)]
pub struct Layouts {
    latest: Latest,
    /// By version.
    seen: BTreeMap<u64, Arc<Document>>,
    /// The last transition.
    last: Option<Transition>,
    /// Tenants and partitions of which too few replicas were left, and whose loss was accepted.
    pub lost: BTreeSet<(TenantId, u32)>,
    pub broken: Vec<String>,
}

impl Layouts {
    /// Shows the latest to others.
    pub fn new(latest: Latest) -> Self {
        Self { latest, ..Self::default() }
    }

    /// A node acts under this document. Whether it is the latest so far.
    pub fn see(&mut self, machine: usize, document: Document) -> bool {
        if !document.is_formed() {
            return false;
        }
        if let Some(known) = self.seen.get(&document.version) {
            if **known != document {
                let what = format!("I13: n{machine} has another document {}", document.version);
                self.broken.push(what);
            }
            return false;
        }
        let document = Arc::new(document);
        self.seen.insert(document.version, Arc::clone(&document));
        self.check_epoch(&document);
        let mut latest = self.latest.lock();
        if latest.as_ref().is_some_and(|latest| latest.version() > document.version) {
            return false;
        }
        let layout = Arc::new(Layout::new(document));
        if layout.document().is_joint() {
            self.last = Some(Transition::of(&layout));
        }
        *latest = Some(layout);
        true
    }

    /// The owners of an epoch are one set, or two, and follow from those of the epoch before.
    fn check_epoch(&mut self, document: &Arc<Document>) {
        let of = |epoch| self.seen.values().filter(move |other| other.epoch == epoch);
        let (owners, next) = (&document.owners, &document.next_owners);
        let (mut broken, mut lost) = (Vec::new(), Vec::new());
        if of(document.epoch).any(|other| (&other.owners, &other.next_owners) != (owners, next)) {
            broken.push(format!("I13: two sets of owners in epoch {}", document.epoch));
        }
        for before in of(document.epoch - 1) {
            let follows = match &before.next_owners {
                None => owners == &before.owners && next.is_some(),
                Some(next_owners) => {
                    next.is_none() && (owners == &before.owners || owners == next_owners)
                }
            };
            if !follows {
                let epoch = document.epoch;
                broken.push(format!("I13: the owners of epoch {epoch} do not follow"));
            }
            if before.next_owners.as_ref() == Some(owners) {
                lost.extend(lost_by(before));
            }
        }
        self.lost.extend(lost);
        self.broken.extend(broken);
        if document.is_joint() {
            self.check_movement(document);
        }
    }

    /// I14: who comes or goes changes at most one replica of a partition.
    fn check_movement(&mut self, document: &Arc<Document>) {
        let next = document.next_owners.as_ref().expect("it is Joint");
        let changed = |from: &BTreeMap<_, _>, to: &BTreeMap<_, _>| {
            from.keys().filter(|node| !to.contains_key(*node)).count()
        };
        let (came, went) = (changed(next, &document.owners), changed(&document.owners, next));
        let same = next
            .iter()
            .all(|(node, owner)| document.owners.get(node).is_none_or(|before| before == owner));
        if came + went != 1 || !same || !document.next_factors.is_empty() {
            return;
        }
        let layout = Layout::new(Arc::clone(document));
        for partition in 0..layout.partitions() {
            for factor in document.replication_factors() {
                let sets = layout.sets(partition, factor);
                let next = sets.next.unwrap_or_default();
                let new = next.iter().filter(|node| !sets.current.contains(node)).count();
                if new > 1 {
                    self.broken.push(format!("I14: partition {partition} changes {new} replicas"));
                }
            }
        }
    }

    /// Whether what a tenant held under a key is lost.
    pub fn is_lost(&self, tenant: &str, key: &str) -> bool {
        let Some(layout) = self.latest() else { return false };
        let tenant = layout.document().tenants.values().find(|one| one.name == tenant);
        tenant.is_some_and(|tenant| {
            let partition = layout.partition_of(tenant.token(key.as_bytes()));
            self.lost.contains(&(tenant.id, partition))
        })
    }

    pub fn latest(&self) -> Option<Arc<Layout>> {
        self.latest.lock().clone()
    }

    /// What a machine does in the transition under way or just over.
    pub fn roles(&self, machine: usize, leader: Option<usize>) -> Option<(Kind, Vec<Role>)> {
        let latest = self.latest()?;
        let last = self.last.as_ref().filter(|_| !is_settled(latest.document()))?;
        let plays = [
            (Role::Gainer, last.gainers.contains(&machine)),
            (Role::Loser, last.losers.contains(&machine)),
            (Role::Source, last.sources.contains(&machine)),
            (Role::Leader, leader == Some(machine)),
        ];
        let roles = plays.into_iter().filter(|(_, plays)| *plays).map(|(role, _)| role);
        Some((last.kind, roles.collect()))
    }
}

/// Whether no transition is under way, and nobody has anything left to hand over.
pub fn is_settled(document: &Document) -> bool {
    let busy = |member: &Member| matches!(member.state, MemberState::Leaving);
    !document.is_joint() && document.departed.is_empty() && !document.members.values().any(busy)
}

fn kind_of(document: &Document) -> Kind {
    let next = document.next_owners.as_ref().expect("it is Joint");
    let is = |state| document.members.values().any(|member| member.state == state);
    let comes = next.keys().any(|node| !document.owners.contains_key(node));
    match () {
        () if comes && is(MemberState::Removing) => Kind::Replace,
        () if comes => Kind::Join,
        () if is(MemberState::Leaving) => Kind::Drain,
        () if is(MemberState::Removing) => Kind::Remove,
        () => Kind::Shift,
    }
}

/// What is lost if this Joint document is followed by the one with its next owners.
fn lost_by(document: &Document) -> impl Iterator<Item = (TenantId, u32)> {
    document.lost.iter().flat_map(|(factor, partitions)| {
        let tenants = document.tenants.values();
        let tenants = tenants.filter(move |tenant| tenant.replication_factor == *factor);
        tenants.flat_map(|tenant| partitions.iter().map(|partition| (tenant.id, *partition)))
    })
}

/// Whether all hold what they are to hold: the owners of each row the same, down to what no client
/// sees, and nobody else anything. If not, why.
pub fn agree(layout: &Layout, rows: &BTreeMap<usize, Rows>) -> Result<(), String> {
    for (place, found) in rows.values().flatten() {
        let owners = owners_of(layout, place, found);
        let held = |machine: &usize| rows.get(machine).and_then(|rows| rows.get(place));
        for machine in rows.keys().filter(|machine| !owners.contains(machine)) {
            if held(machine).is_some() {
                return Err(format!("I14: n{machine} holds {place:?}, which {owners:?} own"));
            }
        }
        for owner in &owners {
            let digest = held(owner).map_or(0, |found| found.digest);
            if digest != found.digest {
                return Err(format!("n{owner} holds another {place:?}"));
            }
        }
    }
    Ok(())
}

/// The machines that are to hold a row.
pub fn owners_of(layout: &Layout, (tenant, _): &(String, String), found: &Found) -> Vec<usize> {
    let document = layout.document();
    let tenant = document.tenants.values().find(|one| one.name == *tenant);
    let factor = tenant.map_or(1, |tenant| tenant.replication_factor);
    let sets = layout.sets(layout.partition_of(found.token), factor);
    sets.current.iter().filter_map(|node| document.members.get(node)).map(machine_of).collect()
}

#[cfg(test)]
mod tests {
    use pairdb::cluster::layout::{Answer, Change, Command};

    use super::*;

    fn member(number: usize) -> Member {
        Member {
            name: format!("n{number}"),
            zone: String::new(),
            weight: 1,
            state: MemberState::Joining,
            address: String::new(),
        }
    }

    fn applied(document: &Document, command: &Command) -> Document {
        let mut next = document.clone();
        let answer = next.apply(command);
        assert!(matches!(answer, Answer::Done { .. }), "{answer:?}");
        next
    }

    fn formed() -> Document {
        let members = (0..3).map(|number| (NodeId(number as u128 + 1), member(number))).collect();
        let (cluster_id, partition_bits, now_ms) = (NodeId(9), 4, 1);
        let formation = NodeId(8);
        let form = Command::Form { cluster_id, formation, partition_bits, members, now_ms };
        applied(&Document::empty(), &form)
    }

    fn joint() -> Document {
        let joins = [(NodeId(4), member(3))].into();
        let change = Change { joins, ..Change::default() };
        applied(&formed(), &Command::Change { epoch: 1, change })
    }

    #[test]
    fn documents_that_follow_from_each_other_are_not_accused() {
        let mut layouts = Layouts::default();
        assert!(layouts.see(0, formed()) && layouts.see(1, joint()));
        assert!(!layouts.see(2, formed()) && !layouts.see(2, joint()));
        layouts.see(0, applied(&joint(), &Command::Abort { epoch: 2 }));
        assert!(layouts.broken.is_empty(), "{:?}", layouts.broken);
    }

    #[test]
    fn two_documents_of_a_version_and_owners_that_do_not_follow_are_seen() {
        let mut layouts = Layouts::default();
        layouts.see(0, formed());
        layouts.see(1, Document { tenant_id_next: 77, ..formed() });
        assert!(layouts.broken[0].contains("another document"), "{:?}", layouts.broken);
        layouts.see(0, joint());
        let next_owners = joint().next_owners.expect("it is Joint");
        let owners = next_owners.into_iter().skip(1).collect();
        layouts.see(0, Document { owners, epoch: 3, version: 9, ..formed() });
        assert!(layouts.broken[1].contains("do not follow"), "{:?}", layouts.broken);
    }

    #[test]
    fn only_what_was_given_up_by_a_change_that_ended_counts_as_lost() {
        let removes = [NodeId(1), NodeId(2)].into();
        let change =
            Change { removes, accepts_loss: [(3, (0..16).collect())].into(), ..Change::default() };
        let joint = applied(&formed(), &Command::Change { epoch: 1, change });
        let mut layouts = Layouts::default();
        layouts.see(0, joint.clone());
        layouts.see(0, applied(&joint, &Command::Abort { epoch: 2 }));
        assert!(!layouts.is_lost("default", "k"));

        let (node, epoch) = (NodeId(3), 2);
        let synced = applied(&joint, &Command::Synced { node, epoch });
        let ended = applied(&synced, &Command::Fenced { node, epoch });
        let mut layouts = Layouts::default();
        layouts.see(0, joint);
        layouts.see(0, ended);
        assert!(layouts.is_lost("default", "k") && !layouts.is_lost("another", "k"));
    }

    #[test]
    fn rows_at_others_than_their_owners_and_owners_that_differ_are_seen() {
        let layout = Layout::new(Arc::new(formed()));
        let found = |digest| Found { digest, token: 1 << 60, ..Found::default() };
        let place = || ("default".to_owned(), "k".to_owned());
        let held = |digest| Rows::from([(place(), found(digest))]);
        let mut rows: BTreeMap<usize, Rows> = (0..3).map(|machine| (machine, held(7))).collect();
        assert_eq!(agree(&layout, &rows), Ok(()));
        rows.insert(3, held(7));
        assert!(agree(&layout, &rows).is_err_and(|why| why.contains("I14")));
        rows.remove(&3);
        rows.insert(1, held(8));
        assert!(agree(&layout, &rows).is_err());
        rows.insert(1, Rows::new());
        assert!(agree(&layout, &rows).is_err());
    }
}
