//! Who votes: up to five members, spread over the zones. A pure function of the document.
//!
//! 1. Only members that are normal vote. Those who join or leave learn.
//! 2. The number is odd, but for two: four voters survive no more failures than three, while with
//!    two nodes the second copy of the layout is worth waiting for the other node.
//! 3. Zones take turns, so that no zone has two more than another that could have had one.
//! 4. A voter stays one where the zones allow it: a change of voters moves logs.
//!
//! It does not ask who is alive: a dead voter votes again when it returns, and is replaced when the
//! document no longer has it as normal.

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::NodeId;
use crate::cluster::layout::{Member, MemberState};

/// Most voters of a group.
const VOTERS_MAX: usize = 5;

/// Who of `members` should vote, when `current` do now.
pub fn voters(members: &BTreeMap<NodeId, Member>, current: &BTreeSet<NodeId>) -> BTreeSet<NodeId> {
    let mut zones: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
    for (id, member) in members.iter().filter(|(_, member)| member.state == MemberState::Normal) {
        zones.entry(&member.zone).or_default().push(*id);
    }
    let normal = zones.values().map(Vec::len).sum();
    let wanted = voters_wanted(normal);
    let mut ranked: Vec<(usize, bool, &str, NodeId)> = Vec::with_capacity(normal);
    for (zone, mut ids) in zones {
        ids.sort_by_key(|id| (!current.contains(id), *id));
        let in_turn = ids.into_iter().enumerate();
        ranked.extend(in_turn.map(|(turn, id)| (turn, !current.contains(&id), zone, id)));
    }
    ranked.sort();
    ranked.into_iter().take(wanted).map(|(_, _, _, id)| id).collect()
}

/// Who should vote in a group whose voters are `configs`, two while they change; `None` if they are
/// those who do, or if nobody could vote instead.
pub(super) fn successors(
    members: &BTreeMap<NodeId, Member>,
    configs: &[BTreeSet<NodeId>],
) -> Option<BTreeSet<NodeId>> {
    let current = configs.last().cloned().unwrap_or_default();
    let named = voters(members, &current);
    (!named.is_empty() && (configs.len() > 1 || named != current)).then_some(named)
}

/// How those who vote differ from those who should.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VotesDue {
    /// Who should vote, and does not yet.
    pub to_begin: BTreeSet<NodeId>,
    /// Who votes, and should not any more.
    pub to_end: BTreeSet<NodeId>,
}

impl VotesDue {
    /// Of a group whose voters are `configs`: two while they change, and each must agree.
    pub(super) fn of(members: &BTreeMap<NodeId, Member>, configs: &[BTreeSet<NodeId>]) -> Self {
        let Some(named) = successors(members, configs) else { return Self::default() };
        let votes = |id: &NodeId| configs.iter().all(|config| config.contains(id));
        let to_end = configs.iter().flatten().filter(|id| !named.contains(id)).copied().collect();
        let to_begin = named.iter().filter(|id| configs.is_empty() || !votes(id)).copied();
        Self { to_begin: to_begin.collect(), to_end }
    }
}

fn voters_wanted(normal: usize) -> usize {
    match normal.min(VOTERS_MAX) {
        few @ 0..=2 => few,
        many => many - (many + 1) % 2,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn members(zones: &[(u128, &str)]) -> BTreeMap<NodeId, Member> {
        let member = |zone: &str| Member {
            name: String::new(),
            zone: zone.to_owned(),
            weight: 1,
            state: MemberState::Normal,
            address: String::new(),
        };
        zones.iter().map(|(id, zone)| (NodeId(*id), member(zone))).collect()
    }

    fn set(ids: &[u128]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    #[test]
    fn there_are_one_two_three_or_five_voters() {
        let wanted: Vec<usize> = (0..9).map(voters_wanted).collect();
        assert_eq!(wanted, [0, 1, 2, 3, 3, 5, 5, 5, 5]);
    }

    #[test]
    fn zones_take_turns() {
        let all = members(&[(1, "a"), (2, "a"), (3, "a"), (4, "b"), (5, "c"), (6, "c")]);
        assert_eq!(voters(&all, &set(&[])), set(&[1, 2, 4, 5, 6]));
        let four = members(&[(1, "a"), (2, "a"), (3, "b"), (4, "c")]);
        assert_eq!(voters(&four, &set(&[])), set(&[1, 3, 4]));
    }

    #[test]
    fn those_who_join_or_leave_do_not_vote() {
        let mut all = members(&[(1, "a"), (2, "a"), (3, "a"), (4, "a"), (5, "a"), (6, "a")]);
        let states = [
            MemberState::Joining,
            MemberState::Leaving,
            MemberState::Left,
            MemberState::Removing,
            MemberState::Removed,
        ];
        for (member, state) in all.values_mut().zip(states) {
            member.state = state;
        }
        assert_eq!(voters(&all, &set(&[1, 2])), set(&[6]));
    }

    /// A change of voters is over when all of its halves are what is named.
    #[test]
    fn votes_are_due_until_those_who_should_vote_do_and_no_others() {
        let all = members(&[(1, "a"), (2, "b"), (3, "c")]);
        let due = |configs: &[&[u128]]| {
            let configs: Vec<_> = configs.iter().map(|config| set(config)).collect();
            VotesDue::of(&all, &configs)
        };
        let differ =
            |begin: &[u128], end: &[u128]| VotesDue { to_begin: set(begin), to_end: set(end) };
        assert_eq!(due(&[&[1, 2, 4]]), differ(&[3], &[4]));
        assert_eq!(due(&[&[1, 2, 4], &[1, 2, 3]]), differ(&[3], &[4]), "half of it");
        assert_eq!(due(&[&[1, 2], &[1, 2, 3]]), differ(&[3], &[]));
        assert_eq!(due(&[&[1, 2, 3]]), VotesDue::default());
        assert_eq!(due(&[]), differ(&[1, 2, 3], &[]), "nothing is heard of the group");
        let nobody = VotesDue::of(&BTreeMap::new(), &[set(&[1])]);
        assert_eq!(nobody, VotesDue::default());
    }

    #[test]
    fn a_newcomer_of_a_known_zone_takes_nobodys_vote() {
        let all = members(&[(1, "a"), (2, "a"), (3, "a"), (4, "a")]);
        assert_eq!(voters(&all, &set(&[2, 3, 4])), set(&[2, 3, 4]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn no_zone_has_two_votes_more_than_one_that_could_have_more(
            zones in prop::collection::vec("[a-d]", 0..12),
            current in prop::collection::btree_set(0..12_u128, 0..6),
        ) {
            let named: Vec<(u128, &str)> =
                zones.iter().enumerate().map(|(id, zone)| (id as u128, zone.as_str())).collect();
            let all = members(&named);
            let current = current.into_iter().map(NodeId).collect();
            let chosen = voters(&all, &current);
            prop_assert_eq!(chosen.len(), voters_wanted(all.len()));
            let count = |zone: &str, of: &mut dyn Iterator<Item = &NodeId>| {
                of.filter(|id| all[id].zone == zone).count()
            };
            for zone in &zones {
                for other in &zones {
                    let has = count(zone, &mut chosen.iter());
                    let others = count(other, &mut chosen.iter());
                    let spare = count(other, &mut all.keys()) > others;
                    prop_assert!(!spare || has <= others + 1, "{zone} {has}, {other} {others}");
                }
            }
            prop_assert_eq!(voters(&all, &chosen), chosen, "choosing again changes nothing");
        }
    }
}
