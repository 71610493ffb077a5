//! The epoch under which a node acts, in memory.

use parking_lot::RwLock;

use super::super::fence::{Closed, Pass};

/// The epoch under which this node acts, behind a lock that everything done with rows passes.
///
/// Raise it when the document of the epoch is durable, and show the document to coordinators only
/// then.
#[derive(Debug)]
pub struct Gate(RwLock<u64>);

impl Gate {
    /// A gate at `epoch`.
    pub fn new(epoch: u64) -> Self {
        Self(RwLock::new(epoch))
    }

    /// Goes in under `epoch`.
    ///
    /// # Errors
    /// [`Closed`], if it is at another one.
    pub fn enter(&self, epoch: u64) -> Result<Pass<'_>, Closed> {
        let own = self.0.read();
        match (*own).cmp(&epoch) {
            std::cmp::Ordering::Equal => Ok(own),
            std::cmp::Ordering::Greater => Err(Closed::Stale { epoch: *own }),
            std::cmp::Ordering::Less => Err(Closed::Behind { epoch: *own }),
        }
    }

    /// Waits until nobody acts under an earlier epoch, and lets nobody do so from here on.
    pub fn raise(&self, epoch: u64) {
        let mut own = self.0.write();
        *own = epoch.max(*own);
    }
}
