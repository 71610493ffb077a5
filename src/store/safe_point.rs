//! Safe points of a node that is its own cluster.
//!
//! A round among one replica: choose `M`, fence at it, sync, declare it the floor. Nothing has to
//! be compared, for nobody else has written. `M` lies a margin behind the clock so that no write
//! under way is overtaken; that is for comfort: a write that is, is minted anew.

use super::Store;
use super::error::Result;
use crate::causality::clock;

impl Store {
    /// Moves guard and floor of all partitions up to shortly before now, so that compaction may
    /// forget what was deleted or has expired by then. Returns the floor.
    ///
    /// Only for a node that is its own cluster: among replicas a floor has to be proven.
    ///
    /// # Errors
    /// The log or the manifest could not be synced: the store takes no more writes.
    pub fn advance_safe_points(&self) -> Result<u64> {
        self.check_open()?;
        let margin_ms = self.safe_point_margin_ms;
        let floor = clock::time_of_ms(self.now_ms().saturating_sub(margin_ms));
        let current = self.engine.safe_point(0)?.floor;
        if floor <= current {
            return Ok(current);
        }
        // First the clock: what is minted from here on is above the guard.
        self.raise_clock_to(floor)?;
        let all = 0..=self.engine.partitions() - 1;
        self.engine.fence(all.clone(), floor)?;
        self.engine.set_floor(all, floor)?;
        Ok(floor)
    }
}
