//! Rows kept for a node that missed them.

use crate::cluster::NodeId;
use crate::proto;
use tokio::sync::mpsc;

/// A row that a node missed.
#[derive(Clone, Debug)]
pub struct Missed {
    /// Who.
    pub target: NodeId,
    /// What.
    pub row: proto::RowState,
}

/// Takes hints without waiting.
#[derive(Clone, Debug)]
pub struct HintSender {
    sender: mpsc::Sender<Missed>,
}

impl HintSender {
    /// Keeps a row for `target`.
    pub fn keep(&self, target: NodeId, row: proto::RowState) {
        let _ = self.sender.try_send(Missed { target, row });
    }
}
