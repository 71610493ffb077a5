//! Rows that this node does not own any more.
//!
//! What "own" means is the caller's: it names the ranges and the rows, and says for how long it
//! holds that nobody writes one of them.

use std::ops::RangeInclusive;

use super::error::Result;
use super::key::{EngineKey, KeyRange};
use super::scan::TokenRange;
use super::{Store, leaves};
use crate::engine;

/// Runs an install if it may still be done, and says whether it did. See [`Store::remove_rows`].
pub type Permit<'p> =
    dyn Fn(&mut dyn FnMut() -> engine::Result<()>) -> Option<engine::Result<()>> + 'p;

impl Store {
    /// Removes all rows of the ranges `wholly`, and of the ranges `in_part` those that `goes`
    /// names, for good: of all that was written before the call nothing is left under their keys.
    /// The first costs nearly nothing, whatever they hold; see [`engine::Engine::remove`]. Returns
    /// about how many bytes of tables went out of sight, or `None` if the permit was refused: then
    /// some of the rows may be left.
    ///
    /// `permit` runs what it is given if no such row can have been written since the caller knew
    /// of all of them, and while none can.
    ///
    /// # Errors
    /// A table could not be read or written.
    pub fn remove_rows(
        &self,
        wholly: &[TokenRange],
        in_part: &[TokenRange],
        goes: &dyn Fn(&EngineKey<'_>) -> bool,
        permit: &Permit<'_>,
    ) -> Result<Option<u64>> {
        self.check_open()?;
        let keys_of = |range: &TokenRange| -> engine::Range {
            let keys = KeyRange::of_tokens(range.start, range.end_inclusive);
            (keys.start, keys.end)
        };
        let keys_of = |ranges: &[TokenRange]| ranges.iter().map(keys_of).collect::<Vec<_>>();
        let goes = |key: &[u8]| EngineKey::decode(key).is_ok_and(|key| goes(&key));
        let permit = |install: &mut dyn FnMut() -> engine::Result<()>| match permit(install) {
            None => Ok(false),
            Some(installed) => installed.map(|()| true),
        };
        let removed = self.engine.remove(&keys_of(wholly), &keys_of(in_part), &goes, &permit);
        for range in wholly.iter().chain(in_part) {
            let leaves = leaves::leaf_of(range.start)..=leaves::leaf_of(range.end_inclusive);
            leaves.for_each(|leaf| self.dirty.mark_leaf(leaf));
        }
        self.watch(removed.map_err(Into::into))
    }

    /// Takes back what this node has vouched for in partitions: it starts anew there, as a
    /// replica that knows of no round, and under another actor. Rows that it has written and then
    /// given away are not here any more, so what it writes next does not follow from them; under
    /// the same actor it would seem to. What has lost data has lost no less. Durable. No
    /// partition: nothing is done.
    ///
    /// # Errors
    /// I/O, which may leave the store read-only.
    pub fn begin_anew(&self, partitions: &[RangeInclusive<u32>]) -> Result<()> {
        self.begin_with(partitions, engine::Engine::reset_safe_points)
    }

    /// The same for a node that may have begun anew before, in an earlier life: its guards stay, so
    /// that it takes no more from messages than it took then.
    ///
    /// # Errors
    /// As [`Store::begin_anew`].
    pub fn begin_again(&self, partitions: &[RangeInclusive<u32>]) -> Result<()> {
        self.begin_with(partitions, engine::Engine::reset_floors)
    }

    fn begin_with(
        &self,
        partitions: &[RangeInclusive<u32>],
        reset: impl FnOnce(&engine::Engine, &[RangeInclusive<u32>]) -> engine::Result<()>,
    ) -> Result<()> {
        if partitions.is_empty() {
            return Ok(());
        }
        reset(&self.engine, partitions)?;
        // Their hashes were taken under the floors that are gone.
        partitions.iter().for_each(|range| self.mark_leaves(range));
        self.rotate_on_loss()
    }

    /// Takes the same back for partitions of whose rows none is left: no data of them is missed any
    /// more. Which these are is asked while no safe point can change.
    ///
    /// # Errors
    /// As [`Store::begin_anew`].
    pub fn forget_safe_points(
        &self,
        partitions: impl FnOnce() -> Vec<RangeInclusive<u32>>,
    ) -> Result<()> {
        let forgotten = self.engine.forget_safe_points(partitions)?;
        forgotten.iter().for_each(|range| self.mark_leaves(range));
        Ok(())
    }
}
