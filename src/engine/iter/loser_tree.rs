//! A tournament of `k` sorted sources (Knuth, volume 3, 5.4.1: a tree of losers).
//!
//! Each inner node remembers who lost there; the winner of all stands at the top. When the winner
//! advances, only its path to the top is played again: `log2 k` comparisons, against stored losers,
//! without the two comparisons a level that a binary heap needs.
//!
//! Contestants are compared by the first eight bytes of their keys, held as numbers in a flat
//! array; the whole key is asked for only when two numbers are equal. Equal keys are won by the
//! lower source, which is the newer one. A source that has ended loses against everybody.
//!
//! The tree knows numbers and sources. Keys stay with the caller, who compares them on request.

use std::cmp::Ordering;

/// A tree of losers over the sources `0..k`.
#[derive(Debug, Default)]
pub struct LoserTree {
    /// Per source: the number of its key; `None` once it has ended.
    heads: Vec<Option<u64>>,
    /// `losers[0]` is the winner; `losers[1..k]` are the inner nodes. The children of node `n` are
    /// `2 n` and `2 n + 1`, where `k + s` is the leaf of source `s`.
    losers: Vec<usize>,
}

impl LoserTree {
    /// Plays a tournament of all sources anew. `heads` are the first numbers, `None` for a source
    /// without records; `compare` orders the whole keys of two sources.
    pub fn rebuild(
        &mut self,
        heads: impl IntoIterator<Item = Option<u64>>,
        mut compare: impl FnMut(usize, usize) -> Ordering,
    ) {
        self.heads.clear();
        self.heads.extend(heads);
        let sources = self.heads.len();
        self.losers.clear();
        self.losers.resize(sources.max(1), 0);
        // Winners of the nodes, from the leaves up; only losers are kept afterwards.
        let mut winners = vec![0; 2 * sources.max(1)];
        for source in 0..sources {
            winners[sources + source] = source;
        }
        for node in (1..sources).rev() {
            let (left, right) = (winners[2 * node], winners[2 * node + 1]);
            let (winner, loser) = self.play(left, right, &mut compare);
            winners[node] = winner;
            self.losers[node] = loser;
        }
        self.losers[0] = if sources > 1 { winners[1] } else { 0 };
    }

    /// The source with the smallest key, the lowest one among equals; `None` if all have ended.
    #[inline]
    pub fn winner(&self) -> Option<usize> {
        let winner = *self.losers.first()?;
        self.heads.get(winner).is_some_and(Option::is_some).then_some(winner)
    }

    /// The number of the winner's key.
    #[inline]
    pub fn winning_prefix(&self) -> Option<u64> {
        self.heads.get(*self.losers.first()?).copied().flatten()
    }

    /// Whether no other source has the winner's number; then none has its key either.
    ///
    /// Only the losers on the winner's path are asked: a source of the same number elsewhere lost
    /// to one that lies between it and the winner, and the last such one lost to the winner.
    #[inline]
    pub fn winner_is_alone(&self) -> bool {
        let Some(&winner) = self.losers.first() else { return true };
        let mut node = (self.heads.len() + winner) / 2;
        while node > 0 {
            if self.heads[self.losers[node]] == self.heads[winner] {
                return false;
            }
            node /= 2;
        }
        true
    }

    /// The sources that have the winner's number, ascending.
    pub fn tied(&self) -> impl Iterator<Item = usize> {
        let prefix = self.winning_prefix();
        (0..self.heads.len()).filter(move |at| prefix.is_some() && self.heads[*at] == prefix)
    }

    /// Replaces the winner's number, its source having advanced, and plays its path again.
    #[inline]
    pub fn replace_winner(
        &mut self,
        head: Option<u64>,
        mut compare: impl FnMut(usize, usize) -> Ordering,
    ) {
        let Some(&source) = self.losers.first() else { return };
        let Some(slot) = self.heads.get_mut(source) else { return };
        *slot = head;
        let mut winner = source;
        let mut node = (self.heads.len() + source) / 2;
        while node > 0 {
            let (wins, loses) = self.play(winner, self.losers[node], &mut compare);
            winner = wins;
            self.losers[node] = loses;
            node /= 2;
        }
        self.losers[0] = winner;
    }

    /// Winner and loser of two sources.
    #[inline]
    fn play(
        &self,
        a: usize,
        b: usize,
        compare: &mut impl FnMut(usize, usize) -> Ordering,
    ) -> (usize, usize) {
        let a_wins = match (self.heads[a], self.heads[b]) {
            (Some(x), Some(y)) if x != y => x < y,
            (Some(_), Some(_)) => compare(a, b).then(a.cmp(&b)) == Ordering::Less,
            (None, None) => a < b,
            (x, _) => x.is_some(),
        };
        if a_wins { (a, b) } else { (b, a) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::engine::key::key_prefix;

    proptest! {
        /// The tree yields what a stable sort by (key, source) yields, for any number of sources,
        /// with equal keys, keys that differ only behind byte eight, and empty sources.
        #[test]
        fn tree_equals_sort(
            mut sources in proptest::collection::vec(
                proptest::collection::vec(
                    proptest::collection::vec(0_u8..2, 0..11), 0..12), 0..13),
        ) {
            for source in &mut sources {
                source.sort();
            }
            let mut expected: Vec<(Vec<u8>, usize)> = Vec::new();
            for (at, source) in sources.iter().enumerate() {
                expected.extend(source.iter().map(|key| (key.clone(), at)));
            }
            expected.sort();

            let mut places = vec![0; sources.len()];
            let mut tree = LoserTree::default();
            let heads = sources.iter().map(|source| source.first().map(|key| key_prefix(key)));
            tree.rebuild(heads, |a, b| sources[a][0].cmp(&sources[b][0]));
            let mut found = Vec::new();
            while let Some(winner) = tree.winner() {
                let key = sources[winner][places[winner]].clone();
                prop_assert_eq!(tree.winning_prefix(), Some(key_prefix(&key)));
                let tied = |at: usize| {
                    let head = sources[at].get(places[at]);
                    head.is_some_and(|head| key_prefix(head) == key_prefix(&key))
                };
                let tied: Vec<_> = (0..sources.len()).filter(|at| tied(*at)).collect();
                prop_assert_eq!(tree.winner_is_alone(), tied.len() == 1);
                prop_assert_eq!(tree.tied().collect::<Vec<_>>(), tied);
                found.push((key, winner));
                places[winner] += 1;
                let head = sources[winner].get(places[winner]).map(|key| key_prefix(key));
                tree.replace_winner(head, |a, b| {
                    sources[a][places[a]].cmp(&sources[b][places[b]])
                });
            }
            prop_assert_eq!(found, expected);
        }
    }
}
