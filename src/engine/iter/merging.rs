//! Merges sources, newest to oldest, into groups: one key with all its records.
//!
//! # Invariants
//! 1. While the cursor stands on a group, no source has moved: key and records are borrowed from
//!    the sources' own cursors, without a copy. [`MergingCursor::next_group`] moves them, and the
//!    borrow checker sees to it that nothing borrowed is left by then.
//! 2. A group's records are ordered newest to oldest, that is, by source.

use super::Cursor;
use super::loser_tree::LoserTree;
use crate::engine::error::Result;
use crate::engine::record::Record;

/// A cursor over the groups of several sources. `C` may be a boxed `dyn` [`Cursor`].
///
/// A new cursor stands nowhere, and so does one after an error; both may be positioned anew.
#[derive(Debug)]
pub struct MergingCursor<C> {
    /// Newest first.
    sources: Vec<C>,
    tree: LoserTree,
    /// The sources that stand on the smallest key, newest first. Empty at the end.
    group: Vec<usize>,
}

impl<C: Cursor> MergingCursor<C> {
    /// Merges `sources`, which are given newest first.
    pub fn new(sources: Vec<C>) -> Self {
        Self { tree: LoserTree::default(), group: Vec::with_capacity(sources.len()), sources }
    }

    /// Goes to the first key of all sources, or to the end.
    pub fn seek_to_first(&mut self) -> Result<()> {
        self.position(C::seek_to_first)
    }

    /// Goes to the first key at or above `key`, or to the end.
    pub fn seek(&mut self, key: &[u8]) -> Result<()> {
        self.position(|source| source.seek(key))
    }

    /// Goes to the next key, or to the end. REQUIRES: `valid()`.
    pub fn next_group(&mut self) -> Result<()> {
        let Self { sources, tree, group, .. } = self;
        for at in group.drain(..) {
            // The group's sources win one after the other: they hold the smallest key.
            debug_assert_eq!(tree.winner(), Some(at));
            let source = &mut sources[at];
            source.next()?;
            let head = source.valid().then(|| source.prefix());
            tree.replace_winner(head, |a, b| sources[a].key().cmp(sources[b].key()));
        }
        self.gather();
        Ok(())
    }

    /// Whether the cursor stands on a key.
    #[inline]
    pub fn valid(&self) -> bool {
        !self.group.is_empty()
    }

    /// The key. REQUIRES: `valid()`.
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.sources[self.group[0]].key()
    }

    /// The first eight bytes of the key, as of [`Cursor::prefix`]. REQUIRES: `valid()`.
    #[inline]
    pub fn prefix(&self) -> u64 {
        self.sources[self.group[0]].prefix()
    }

    /// The records of the key, newest first; at least one if `valid()`.
    #[inline]
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> + Clone {
        self.group.iter().map(|at| self.sources[*at].record())
    }

    /// The sources of [`records`](Self::records), in their order.
    #[inline]
    pub fn standing(&self) -> impl Iterator<Item = &C> {
        self.group.iter().map(|at| &self.sources[*at])
    }

    /// The sources of [`records`](Self::records), as numbers of the list the cursor was made of.
    #[inline]
    pub fn group(&self) -> &[usize] {
        &self.group
    }

    fn position(&mut self, mut position: impl FnMut(&mut C) -> Result<()>) -> Result<()> {
        self.group.clear();
        let Self { sources, tree, .. } = self;
        for source in sources.iter_mut() {
            position(source)?;
        }
        let heads = sources.iter().map(|source| source.valid().then(|| source.prefix()));
        tree.rebuild(heads, |a, b| sources[a].key().cmp(sources[b].key()));
        self.gather();
        Ok(())
    }

    /// Finds the sources that stand on the winner's key.
    #[inline]
    fn gather(&mut self) {
        let Self { sources, tree, group } = self;
        let Some(winner) = tree.winner() else { return };
        group.push(winner);
        if !tree.winner_is_alone() {
            let key = sources[winner].key();
            group.extend(tree.tied().filter(|at| *at > winner && sources[*at].key() == key));
        }
    }
}
