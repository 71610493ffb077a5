//! What is refused as the disk fills up.
//!
//! | disk used, by default | refused |
//! |--:|---|
//! | 80 % | nothing: a warning |
//! | 90 % | large values |
//! | 95 % | all values |
//! | all but the engine's reserve and what is to be flushed | all values |
//! | all but a quarter of the reserve and what is to be flushed | everything |
//!
//! Deletes, rows of other replicas and compaction may have the reserve: they are how space comes
//! back. Its last quarter is for log and manifest. How full the disk is was looked at half a second
//! ago at most, and more often where that could be too late.

use super::Store;
use super::error::{Error, Result};
use super::limits::Limits;
use crate::engine;

/// What the disk's filling allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskState {
    /// Everything.
    #[default]
    Ok = 0,
    /// Everything; somebody should make room.
    Warn = 1,
    /// Small values and deletes.
    LargeRefused = 2,
    /// Deletes.
    WritesRefused = 3,
}

impl DiskState {
    /// The state of a disk of which the fraction `used` is taken.
    pub fn of(used: f64, limits: &Limits) -> Self {
        let percent = used * 100.0;
        let reached = |threshold: u64| percent >= threshold as f64;
        if reached(limits.disk_full_percent) {
            Self::WritesRefused
        } else if reached(limits.disk_large_percent) {
            Self::LargeRefused
        } else if reached(limits.disk_warn_percent) {
            Self::Warn
        } else {
            Self::Ok
        }
    }

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::LargeRefused => "large_refused",
            Self::WritesRefused => "writes_refused",
        }
    }
}

impl Store {
    /// What the disk's filling allows now.
    pub fn disk_state(&self) -> DiskState {
        if self.engine.below_reserve() {
            return DiskState::WritesRefused;
        }
        DiskState::of(self.engine.disk_used(), &self.limits)
    }

    /// Bytes that values may still take, those of other replicas too if deletes are to have room
    /// behind them. 0 if the disk cannot be asked.
    pub fn disk_room(&self) -> u64 {
        let space = self.environment.vfs.disk_space(&self.dir);
        space.map_or(0, |space| {
            let reserve = self.reserve(space.total, self.limits.disk_full_percent);
            space.available.saturating_sub(reserve)
        })
    }

    /// What stays free of a disk of `total` bytes if values may have `percent` of it.
    fn reserve(&self, total: u64, percent: u64) -> u64 {
        let rest = total / 100 * (100 - percent.min(100));
        rest.max(self.engine.reserve_bytes())
    }

    /// Refuses a client's value of `value_bytes` if the disk is too full for it.
    pub(super) fn check_disk(&self, value_bytes: usize) -> Result<()> {
        let percent = match self.disk_state() {
            DiskState::WritesRefused => self.limits.disk_full_percent,
            DiskState::LargeRefused if value_bytes > self.limits.large_value_bytes => {
                self.limits.disk_large_percent
            }
            DiskState::Ok | DiskState::Warn | DiskState::LargeRefused => return Ok(()),
        };
        let path = self.dir.clone();
        let space = self.environment.vfs.disk_space(&path);
        let space = space.map_err(engine::Error::io("measure", &path))?;
        let reserve = self.reserve(space.total, percent);
        Err(Error::DiskFull { path, available: space.available, reserve })
    }
}
