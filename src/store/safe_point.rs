//! Safe points: the steps of a round among replicas, which `replication` conducts, and the whole of
//! it for a node that is its own cluster.
//!
//! A round among one replica: choose `M`, fence at it, sync, declare it the floor. Nothing has to
//! be compared, for nobody else has written. `M` lies a margin behind the clock so that no write
//! under way is overtaken; that is for comfort: a write that is, is minted anew.
//!
//! A floor does not count before the memtables of its time are tables, and a new floor begins to
//! wait anew. So a round is held only when the floor before it has been of use:
//!
//! 1. A floor that waits stays. If it waits for `safe_point_flush_ms`, because next to nothing is
//!    written, what it waits for is flushed: deletes are forgotten on a node that goes idle too.
//! 2. A floor that counts stays for `safe_point_interval_ms`, so that compactions meet it.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::error::{Error, Result};
use super::{Store, leaves};
use crate::causality::clock;

/// Since when the floor has been as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct FloorState {
    waits: bool,
    since: Duration,
}

impl FloorState {
    pub fn new(now: Duration) -> Self {
        Self { waits: false, since: now }
    }
}

impl Store {
    /// The floor of the partition that a token lies in.
    ///
    /// # Errors
    /// [`Error::Damaged`]: the partition vouches for nothing.
    pub fn floor_at(&self, token: u64) -> Result<u64> {
        let bits = self.engine.options().partition_bits;
        let partition = token.checked_shr(u64::BITS - bits).unwrap_or(0) as u32;
        let point = self.engine.safe_point(partition)?;
        if point.is_damaged() {
            return Err(Error::Damaged { partition });
        }
        Ok(point.floor)
    }

    /// Takes part in a safe-point round: from here on this node mints above `time` in these
    /// partitions and takes nothing new at or below it; durable. Waits for writes that began
    /// before.
    ///
    /// # Errors
    /// [`Error::Damaged`]; `time` is ahead of the clock; I/O.
    pub fn fence(&self, partitions: RangeInclusive<u32>, time: u64) -> Result<()> {
        self.check_writable()?;
        for partition in partitions.clone() {
            if self.engine.safe_point(partition)?.is_damaged() {
                return Err(Error::Damaged { partition });
            }
        }
        self.minter.check_ahead(time)?;
        self.raise_clock_to(time)?;
        Ok(self.engine.fence(partitions, time)?)
    }

    /// Ends a safe-point round that was proven: what is at or below `time` and not live in these
    /// partitions is dead. Durable, with all that was compared.
    ///
    /// # Errors
    /// As [`Store::fence`]; the partitions were not fenced at `time`.
    pub fn install_floor(&self, partitions: RangeInclusive<u32>, time: u64) -> Result<()> {
        self.check_writable()?;
        self.engine.set_floor(partitions.clone(), time)?;
        // Digests leave out what the floor covers.
        let shift = leaves::LEAF_BITS - self.engine.options().partition_bits;
        let (first, last) = (*partitions.start(), *partitions.end());
        (first << shift..(last + 1) << shift).for_each(|leaf| self.dirty.mark_leaf(leaf));
        Ok(())
    }

    /// Moves guard and floor of all partitions up to shortly before now, so that compaction may
    /// forget what was deleted or has expired by then; or leaves them where they are for a while,
    /// as the module page says. Returns the floor. To be called every second or so.
    ///
    /// Only for a node that is its own cluster: among replicas a floor has to be proven.
    ///
    /// # Errors
    /// A table, the log or the manifest could not be written or synced.
    pub fn advance_safe_points(&self) -> Result<u64> {
        self.check_writable()?;
        // Held to the end: one round at a time.
        let mut state = self.floor_state.lock();
        let now = self.environment.monotonic.elapsed();
        let lasts =
            |state: &FloorState, ms| now.saturating_sub(state.since) < Duration::from_millis(ms);
        let current = self.engine.safe_point(0)?.floor;
        let waits = self.engine.floor_waits();
        if state.waits != waits {
            *state = FloorState { waits, since: now };
        }
        if waits {
            if lasts(&state, self.safe_points.flush_ms) {
                return Ok(current);
            }
            self.engine.flush()?;
            *state = FloorState { waits: false, since: now };
        }
        let floor = clock::time_of_ms(self.now_ms().saturating_sub(self.safe_points.margin_ms));
        let is_new = current > 0 && lasts(&state, self.safe_points.interval_ms);
        if is_new || floor <= current {
            return Ok(current);
        }
        // First the clock: what is minted from here on is above the guard.
        self.raise_clock_to(floor)?;
        let all = 0..=self.engine.partitions() - 1;
        self.engine.fence(all.clone(), floor)?;
        self.engine.set_floor(all, floor)?;
        *state = FloorState { waits: self.engine.floor_waits(), since: now };
        Ok(floor)
    }
}
