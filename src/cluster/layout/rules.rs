//! The arithmetic of transitions: quorums, blocking counts, who must sync, from whom.
//!
//! Pure functions of sets; [`Document`](super::Document) and [`Layout`](super::Layout) apply them
//! to partitions, the search in `model.rs` tries every history against them.
//!
//! 1. Two quorums of a set meet. A blocking count of a set meets each of its quorums.
//! 2. Any quorum of S, copied by those [`who_syncs`] names from a blocking count of S, is on every
//!    quorum of S'.

use std::collections::BTreeSet;

use crate::cluster::NodeId;

/// Q: how many of a set of `len` are a quorum.
pub const fn quorum(len: usize) -> usize {
    len / 2 + 1
}

/// B: how many of a set of `len` meet each of its quorums. 1 of an empty set, which has none.
pub const fn blocking(len: usize) -> usize {
    if len == 0 { 1 } else { len + 1 - quorum(len) }
}

/// Which members of `next` must merge a blocking count of `current` before `next` may stand alone
/// (T2): newcomers always; survivors too, if the copies that an old quorum leaves on survivors and
/// one on each newcomer do not meet every quorum of `next`.
pub fn who_syncs<T: Copy + PartialEq>(current: &[T], next: &[T]) -> Vec<T> {
    let newcomers: Vec<T> = next.iter().filter(|node| !current.contains(node)).copied().collect();
    let survivors = next.len() - newcomers.len();
    let beyond_a_quorum = current.len().saturating_sub(quorum(current.len()));
    let sure = survivors.saturating_sub(beyond_a_quorum) + newcomers.len();
    if sure >= blocking(next.len()) { newcomers } else { next.to_vec() }
}

/// Whether those who refuse lower stamps leave no quorum of `current` under such a stamp (T5).
pub fn is_fenced<T>(current: &[T], refuses: impl Fn(&T) -> bool) -> bool {
    current.iter().filter(|node| refuses(node)).count() >= blocking(current.len())
}

/// What a node must have merged before it counts as synced for a partition (T4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcesNeeded {
    /// S: who may be asked. A node that is in it is a source itself once it is fenced.
    pub of: Vec<NodeId>,
    /// How many of them at least.
    pub count: usize,
    /// Who must be among them: those who leave and can still be asked; where the loss of others was
    /// accepted, all who stay.
    pub leaving: Vec<NodeId>,
}

impl SourcesNeeded {
    /// Whether having merged `sources`, durably and under this epoch, is enough.
    pub fn is_synced_by(&self, sources: &BTreeSet<NodeId>) -> bool {
        self.leaving.iter().all(|node| sources.contains(node))
            && self.of.iter().filter(|node| sources.contains(node)).count() >= self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_and_blocking_counts_are_those_of_the_rules() {
        assert_eq!([1, 2, 3, 4, 5].map(quorum), [1, 2, 2, 3, 3]);
        assert_eq!([1, 2, 3, 4, 5].map(blocking), [1, 1, 2, 2, 3]);
        assert_eq!(blocking(0), 1, "nobody can vouch for a set of nobody");
        for len in 1..=15 {
            assert!(2 * quorum(len) > len && quorum(len) + blocking(len) == len + 1);
        }
    }

    /// The examples the rule was stated with: survivors sync where RF falls by more than one.
    #[test]
    fn survivors_sync_where_an_old_quorum_could_miss_a_new_one() {
        let set = |len: u8| (0..len).collect::<Vec<_>>();
        assert_eq!(who_syncs(&set(3), &set(1)), set(1));
        assert_eq!(who_syncs(&set(5), &set(3)), set(3));
        for (from, to) in [(3, 2), (4, 3), (5, 4), (1, 1)] {
            assert_eq!(who_syncs(&set(from), &set(to)), Vec::<u8>::new(), "{from} to {to}");
        }
        for (from, to) in [(1, 2), (1, 3), (2, 3), (3, 4), (3, 5)] {
            let newcomers: Vec<u8> = (from..to).collect();
            assert_eq!(who_syncs(&set(from), &set(to)), newcomers, "{from} to {to}");
        }
        for len in 1..=5_u8 {
            for kept in 0..=len {
                let next: Vec<u8> = (0..kept).chain(10..10 + len - kept).collect();
                assert_eq!(who_syncs(&set(len), &next), next[usize::from(kept)..].to_vec());
            }
        }
    }

    /// The claim behind `who_syncs`, tried on all sets of up to five and all quorums of them: what
    /// an old quorum took, carried on by the syncers alone, is on every new quorum.
    #[test]
    fn what_an_old_quorum_took_is_on_every_new_one_after_the_sync() {
        let subsets = |of: u32| (0_u32..64).filter(move |set| set & !of == 0);
        for current in subsets(0b1_1111).filter(|set| *set != 0) {
            for next in subsets(0b11_1111).filter(|set| (1..=5).contains(&set.count_ones())) {
                let list = |set: u32| (0..6).filter(|i| set >> i & 1 == 1).collect::<Vec<u32>>();
                let syncers = who_syncs(&list(current), &list(next));
                let synced: u32 = syncers.iter().map(|i| 1 << i).sum();
                let needed = quorum(current.count_ones() as usize);
                for took in subsets(current).filter(|set| set.count_ones() as usize == needed) {
                    let holders = ((took | synced) & next).count_ones() as usize;
                    let missed = next.count_ones() as usize - holders;
                    assert!(missed < quorum(next.count_ones() as usize), "{current:b} {next:b}");
                }
            }
        }
    }

    #[test]
    fn a_leaving_node_is_a_source_that_others_cannot_stand_in_for() {
        let ids = |ids: &[u128]| ids.iter().map(|id| NodeId(*id)).collect::<Vec<_>>();
        let set = |list: &[u128]| ids(list).into_iter().collect::<BTreeSet<_>>();
        let needed = SourcesNeeded { of: ids(&[1, 2, 3]), count: 2, leaving: ids(&[3]) };
        assert!(needed.is_synced_by(&set(&[1, 3])));
        assert!(!needed.is_synced_by(&set(&[1, 2])), "the one that leaves is missing");
        assert!(!needed.is_synced_by(&set(&[3])), "no blocking count");
        assert!(!needed.is_synced_by(&set(&[3, 4, 5])), "strangers do not count");
    }
}
