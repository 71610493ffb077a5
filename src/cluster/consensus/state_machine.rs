//! The document as the state machine of the group, and its snapshots in `raft/SNAPSHOT`.
//!
//! `SNAPSHOT` is a store document (`store::document` has its bytes): what openraft calls the
//! meta data, and the layout document as it was then.
//!
//! 1. The state is the last snapshot and the committed entries after it, replayed at every start.
//! 2. A snapshot is durable before openraft is told of it, so before the log loses an entry.
//! 3. Every change is handed to the fence, which makes it durable and then shows it: an answer is
//!    given only for what is durable and visible on this node.
//! 4. A node has not left while it votes (`STILL_VOTES`): whoever deletes it when it has must not
//!    find that the others cannot agree on anything without it.

#![expect(clippy::result_large_err, reason = "the error is openraft's, and so is its size")]

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{
    AnyError, CommittedLeaderId, EntryPayload, Membership, OptionalSend, RaftSnapshotBuilder,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::types::{
    Entry, LogId, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
    TypeConfig,
};
use crate::cluster::NodeId;
use crate::cluster::fence::Fence;
use crate::cluster::layout::{Answer, Command, Document, reason};
use crate::engine::vfs::Vfs;
use crate::store::document::Document as File;
use crate::store::error::Result;

const NAME: &str = "SNAPSHOT";
const FORMAT: u32 = 1;

/// The state machine. Clones are the same one.
#[derive(Clone, Debug)]
pub(super) struct StateMachine {
    // Constant.
    vfs: Arc<dyn Vfs>,
    file: File,
    fence: Arc<Fence>,
    /// Told up to where the file reaches, durably.
    durable: watch::Sender<Option<LogId>>,
    // Shared with the builder of snapshots.
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    document: Document,
    snapshot: Option<Stored>,
}

/// What stands in the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    meta: SnapshotMeta,
    document: Document,
}

impl StateMachine {
    /// Opens the state machine in `dir`, which exists; it begins with the snapshot there. `durable`
    /// is told of each snapshot that will survive a crash, the first one now.
    pub(super) fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        fence: Arc<Fence>,
        durable: watch::Sender<Option<LogId>>,
    ) -> Result<Self> {
        let file = File::new(dir, NAME, FORMAT);
        let snapshot = file.read::<Stored>(&*vfs)?;
        let mut state = State {
            applied: None,
            membership: StoredMembership::default(),
            document: Document::empty(),
            snapshot: None,
        };
        if let Some(stored) = snapshot {
            stored.document.check().map_err(|why| file.invalid(0, why))?;
            state.load(stored);
            durable.send_replace(state.applied);
        }
        // The fence may have missed it: a crash came between the snapshot and the adoption.
        fence.adopt(&Arc::new(state.document.clone()))?;
        Ok(Self { vfs, file, fence, durable, state: Arc::new(Mutex::new(state)) })
    }

    /// Whether it never had a snapshot.
    pub(super) fn is_new(&self) -> bool {
        self.state.lock().snapshot.is_none()
    }

    /// Makes `document` the state that a group of `me` alone begins with at its next start.
    pub(super) fn begin_with(&self, me: NodeId, document: &Document) -> Result<()> {
        // Before whatever it will vote for, and so before all entries.
        let at = LogId::new(CommittedLeaderId::new(0, me), 1);
        let voters = Membership::new(vec![[me].into()], ());
        let meta = SnapshotMeta {
            last_log_id: Some(at),
            last_membership: StoredMembership::new(Some(at), voters),
            snapshot_id: at.to_string(),
        };
        self.file.replace(&*self.vfs, &Stored { meta, document: document.clone() })
    }

    fn save(&self, stored: &Stored) -> Result<(), StorageError> {
        self.file.replace(&*self.vfs, stored).map_err(|error| {
            let signature = Some(stored.meta.signature());
            StorageError::from(StorageIOError::write_snapshot(signature, AnyError::new(&error)))
        })?;
        self.durable.send_replace(stored.meta.last_log_id);
        Ok(())
    }

    fn publish(&self, document: Document) -> Result<(), StorageError> {
        self.fence
            .adopt(&Arc::new(document))
            .map_err(|error| StorageIOError::write_state_machine(AnyError::new(&error)).into())
    }
}

impl State {
    fn load(&mut self, stored: Stored) {
        self.applied = stored.meta.last_log_id;
        self.membership = stored.meta.last_membership.clone();
        self.document = stored.document.clone();
        self.snapshot = Some(stored);
    }

    fn apply(&mut self, entry: Entry) -> Answer {
        self.applied = Some(entry.log_id);
        match entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(proposal) => return self.apply_command(&proposal.command),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
        }
        Answer::Done { epoch: self.document.epoch }
    }

    fn apply_command(&mut self, command: &Command) -> Answer {
        match command {
            Command::Left { node, .. } if self.votes(*node) => Answer::Refused {
                reason: reason::STILL_VOTES.to_owned(),
                message: format!("{node} votes on the layout still"),
            },
            _ => self.document.apply(command),
        }
    }

    /// Whether a node's vote may be needed. It is the same on all nodes: changes of voters are
    /// entries of the log.
    fn votes(&self, node: NodeId) -> bool {
        self.membership.membership().voter_ids().any(|voter| voter == node)
    }
}

impl Stored {
    /// As it is sent: the bytes are those of the layout document alone.
    fn to_snapshot(&self) -> Result<Snapshot, StorageError> {
        let bytes = serde_json::to_vec(&self.document).map_err(|error| {
            StorageIOError::read_snapshot(Some(self.meta.signature()), AnyError::new(&error))
        })?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: Box::new(Cursor::new(bytes)) })
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let mut state = self.state.lock();
        // The same state is the same snapshot: its name may be, too.
        let at = state.applied.map_or_else(|| "none".to_owned(), |id| id.to_string());
        let meta = SnapshotMeta {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
            snapshot_id: at,
        };
        let stored = Stored { meta, document: state.document.clone() };
        self.save(&stored)?;
        let snapshot = stored.to_snapshot();
        state.snapshot = Some(stored);
        snapshot
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let state = self.state.lock();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut state = self.state.lock();
        let answers = entries.into_iter().map(|entry| state.apply(entry)).collect();
        self.publish(state.document.clone())?;
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::new(Cursor::new(Vec::new())))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let invalid = |error| StorageIOError::read_snapshot(Some(meta.signature()), error);
        let document: Document = serde_json::from_slice(snapshot.get_ref())
            .map_err(|error| invalid(AnyError::new(&error)))?;
        document.check().map_err(|why| invalid(AnyError::error(why)))?;
        let stored = Stored { meta: meta.clone(), document };
        let mut state = self.state.lock();
        self.save(&stored)?;
        state.load(stored);
        self.publish(state.document.clone())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        self.state.lock().snapshot.as_ref().map(Stored::to_snapshot).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::keeper::tests::document;
    use super::super::types::Proposal;
    use super::*;
    use crate::cluster::layout::MemberState;

    fn state() -> State {
        let document = document(&[MemberState::Normal, MemberState::Leaving]);
        State { applied: None, membership: StoredMembership::default(), document, snapshot: None }
    }

    fn apply(state: &mut State, payload: EntryPayload<TypeConfig>) -> Answer {
        let index = state.applied.map_or(1, |at| at.index + 1);
        let log_id = LogId::new(CommittedLeaderId::new(1, NodeId(1)), index);
        state.apply(Entry { log_id, payload })
    }

    /// Of two nodes one is drained. Were it gone before its vote is, the other one could never
    /// change anything any more.
    #[test]
    fn a_node_that_votes_has_not_left() {
        let mut state = state();
        let voters = |sets: &[&[u128]]| {
            let set = |ids: &&[u128]| ids.iter().map(|id| NodeId(*id)).collect::<BTreeSet<_>>();
            EntryPayload::Membership(Membership::new(sets.iter().map(set).collect(), ()))
        };
        let left = || {
            let digest = "digest".to_owned();
            EntryPayload::Normal(Proposal::new(Command::Left { node: NodeId(2), digest }))
        };
        for voters in [voters(&[&[1, 2]]), voters(&[&[1, 2], &[1]])] {
            apply(&mut state, voters);
            let before = state.document.clone();
            let answer = apply(&mut state, left());
            assert!(
                matches!(&answer, Answer::Refused { reason, .. } if reason == "STILL_VOTES"),
                "{answer:?}"
            );
            assert_eq!(state.document, before);
        }
        apply(&mut state, voters(&[&[1]]));
        assert_eq!(apply(&mut state, left()), Answer::Done { epoch: 1 });
        assert_eq!(state.document.members[&NodeId(2)].state, MemberState::Left);
    }
}
