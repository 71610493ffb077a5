//! The fence of the layout as replication needs it; consensus keeps it durable.
//!
//! 1. While a pass is held the fence is not raised. So whoever raises it and then looks at the
//!    store sees everything that was taken under the epochs before.
//! 2. The watch of the layout shows a document only after the fence has reached its epoch.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLockReadGuard;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::async_trait;

use crate::cluster::fence::StampError;
use crate::cluster::layout::Layout;
use crate::cluster::peer::{PeerError, Peers};
use crate::cluster::{self, NodeId};

/// Held while something is done under an epoch: briefly, and never while waiting for others.
pub type Pass<'f> = RwLockReadGuard<'f, u64>;

/// Why nothing may be done under an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// The node acts under this later epoch already.
    Stale {
        /// Its own.
        epoch: u64,
    },
    /// The node has not made the asked epoch durable yet: [`Fence::learn`] it first.
    Behind {
        /// Its own.
        epoch: u64,
    },
}

/// The highest layout epoch this node has made durable.
#[async_trait]
pub trait Fence: Send + Sync + 'static {
    /// Goes in under `epoch`.
    ///
    /// # Errors
    /// [`Closed`], if that is not the node's epoch.
    fn enter(&self, epoch: u64) -> Result<Pass<'_>, Closed>;

    /// Fetches the document of `epoch` or a later one from `from`, makes the epoch durable and lets
    /// the watch of the layout show it.
    ///
    /// # Errors
    /// It could not be had within `timeout`.
    async fn learn(&self, from: NodeId, epoch: u64, timeout: Duration) -> Result<(), PeerError>;

    /// Fetches what `from` knows of the layout, also where only tenants have changed.
    ///
    /// # Errors
    /// As [`Fence::learn`].
    async fn refresh(&self, from: NodeId, timeout: Duration) -> Result<(), PeerError>;
}

/// Goes in under an epoch that another node named, or says why its request is refused.
pub(super) fn enter(fence: &dyn Fence, epoch: u64) -> Result<Pass<'_>, PeerError> {
    fence.enter(epoch).map_err(|closed| match closed {
        Closed::Stale { epoch } => PeerError::StaleLayout { epoch },
        Closed::Behind { epoch: own } => {
            unknown(format!("epoch {epoch} is asked for, {own} is known"))
        }
    })
}

/// The layout of an epoch that the fence has reached: the watch shows it a little later.
///
/// # Errors
/// It has gone on, or is not shown in time.
pub(super) async fn layout_of(
    layout: &watch::Receiver<Arc<Layout>>,
    epoch: u64,
    deadline: Instant,
) -> Result<Arc<Layout>, PeerError> {
    let mut layout = layout.clone();
    let reached = layout.wait_for(|layout| layout.epoch() >= epoch);
    match tokio::time::timeout_at(deadline, reached).await {
        Ok(Ok(layout)) if layout.epoch() == epoch => Ok(Arc::clone(&layout)),
        Ok(Ok(layout)) => Err(PeerError::StaleLayout { epoch: layout.epoch() }),
        _ => Err(unknown(format!("epoch {epoch} is not shown yet"))),
    }
}

fn unknown(message: String) -> PeerError {
    PeerError::Refused { reason: "LAYOUT_UNKNOWN".to_owned(), message }
}

/// The fence that consensus keeps, and how a document is fetched for it.
pub struct LayoutFence {
    /// Durable.
    pub fence: Arc<cluster::fence::Fence>,
    /// Where documents are fetched.
    pub peers: Arc<dyn Peers>,
}

#[async_trait]
impl Fence for LayoutFence {
    fn enter(&self, epoch: u64) -> Result<Pass<'_>, Closed> {
        self.fence.enter(epoch).map_err(|error| match error {
            StampError::StaleLayout { epoch, .. } => Closed::Stale { epoch },
            StampError::MustFetch { epoch, .. } => Closed::Behind { epoch },
        })
    }

    async fn learn(&self, from: NodeId, epoch: u64, timeout: Duration) -> Result<(), PeerError> {
        self.fence.learn(&*self.peers, from, epoch, timeout).await
    }

    async fn refresh(&self, from: NodeId, timeout: Duration) -> Result<(), PeerError> {
        self.fence.refresh(&*self.peers, from, timeout).await
    }
}
