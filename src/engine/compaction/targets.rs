//! How large each level should be: a dynamic base level.
//!
//! The last level holds nine tenths of the data, whatever the amount, if the levels above it are
//! sized from it upwards: each a `level_ratio`-th of the one below, until one is at most
//! `base_level_bytes`. That one is the base level: level 0 is compacted into it, and the levels
//! between stay empty. So space amplification stays near `1 + 1 / level_ratio` while a store grows.
//!
//! A base level that is small beside what level 0 brings at once would pass most of it on at once,
//! and each byte that goes on rewrites what is below. So it may be as large as that, within
//! `base_level_bytes`, as far as its keys are new: their records take no more space there than in
//! the last level. Those that overwrite something below go on when the base level has its share.
//!
//! The base level never lies below a level that holds tables, or newer records would pass older
//! ones.

use super::picker::PickerOptions;
use crate::engine::options::LEVELS;
use crate::engine::scale::scale;
use crate::engine::version::VersionState;

/// The sizes that levels should have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    /// Where level 0 is compacted to.
    pub base_level: usize,
    /// Target of each level in bytes; 0 for level 0 and the levels above the base level.
    pub bytes: [u64; LEVELS],
}

impl Targets {
    /// The targets for a tree of this shape.
    pub fn new(state: &VersionState, options: &PickerOptions) -> Self {
        let sizes: [u64; LEVELS] = std::array::from_fn(|level| state.level_bytes(level));
        let last = LEVELS - 1;
        let mut base_level = (1..LEVELS).find(|level| sizes[*level] > 0).unwrap_or(last);
        let largest = sizes[1..].iter().max().copied().unwrap_or(0);
        let mut size = (base_level..last).fold(largest, |size, _| size / options.level_ratio);
        while base_level > 1 && size > options.base_level_bytes {
            base_level -= 1;
            size /= options.level_ratio;
        }
        size = size.max(options.base_level_bytes / options.level_ratio).max(1);
        let mut bytes = [0; LEVELS];
        for target in &mut bytes[base_level..] {
            *target = size;
            size = size.saturating_mul(options.level_ratio);
        }
        let arriving = options.arriving_bytes.min(options.base_level_bytes);
        bytes[base_level] = bytes[base_level].max(new_share(state, base_level, arriving));
        Self { base_level, bytes }
    }

    /// About how many bytes compaction must read and write until every level is within its target.
    /// The measure of falling behind: pressure and pace follow it.
    pub fn debt_bytes(&self, state: &VersionState, options: &PickerOptions) -> u64 {
        let behind = state.level(0).len() >= options.level0_tables_trigger;
        let mut arriving = if behind { state.level_bytes(0) } else { 0 };
        let mut debt = arriving;
        for level in self.base_level..LEVELS - 1 {
            let size = state.level_bytes(level).saturating_add(arriving);
            let excess = size.saturating_sub(self.bytes[level]);
            if excess == 0 {
                break;
            }
            // Each byte that goes down rewrites what it overlaps there.
            let below = state.level_bytes(level + 1);
            debt = debt.saturating_add(excess).saturating_add(scale(excess, below, size));
            arriving = excess;
        }
        debt
    }
}

/// As much of `bytes` as the tables of `level` have new keys; all if it has none.
fn new_share(state: &VersionState, level: usize, bytes: u64) -> u64 {
    let (mut visible, mut old) = (0_u64, 0_u64);
    for table in state.level(level) {
        visible += table.visible_bytes();
        old += scale(table.visible_bytes(), table.overwrites, table.entries);
    }
    if visible == 0 { bytes } else { scale(bytes, visible.saturating_sub(old), visible) }
}
