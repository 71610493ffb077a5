//! Compaction driver (temporary).
use super::error::Result;
use super::{Engine, Shared};
impl Engine {
    /// Compacts.
    pub fn compact_all(&self) -> Result<()> {
        self.shared.flush_all()
    }
}
impl Shared {
    pub(super) fn compact_once(&self) -> Result<bool> {
        Ok(false)
    }
    pub(super) fn compaction_debt(&self, _view: &super::super_version::SuperVersion) -> u64 {
        0
    }
}
