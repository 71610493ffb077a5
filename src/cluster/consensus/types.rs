//! What the consensus group is made of, in the words of openraft.

use std::io::Cursor;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use crate::cluster::NodeId;
use crate::cluster::layout::{Answer, Command};

openraft::declare_raft_types!(
    /// The types of the group.
    pub TypeConfig:
        D = Proposal,
        R = Answer,
        NodeId = NodeId,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(super) type Raft = openraft::Raft<TypeConfig>;
pub(super) type Entry = openraft::Entry<TypeConfig>;
pub(super) type LogId = openraft::LogId<NodeId>;
pub(super) type Vote = openraft::Vote<NodeId>;
pub(super) type StoredMembership = openraft::StoredMembership<NodeId, openraft::EmptyNode>;
pub(super) type SnapshotMeta = openraft::SnapshotMeta<NodeId, openraft::EmptyNode>;
pub(super) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(super) type StorageError = openraft::StorageError<NodeId>;
pub(super) type StorageIOError = openraft::StorageIOError<NodeId>;

/// A command on its way into the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Proposal {
    /// What is proposed.
    pub command: Command,
    /// Set when the entry is handed to this node's log: from then on it may be committed, whatever
    /// openraft answers. Of the proposing node only.
    #[serde(skip)]
    logged: Logged,
}

/// See [`Proposal`]. Clones are the same mark.
#[derive(Clone, Debug, Default)]
pub(super) struct Logged(Arc<AtomicBool>);

impl Logged {
    // Relaxed is enough: openraft's channels order the mark before the answer.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Proposal {
    pub(super) fn new(command: Command) -> Self {
        Self { command, logged: Logged::default() }
    }

    pub(super) fn logged(&self) -> Logged {
        self.logged.clone()
    }

    pub(super) fn mark_logged(&self) {
        self.logged.set();
    }
}
