//! The leader's task: keeps the members of the group in line with the document.
//!
//! 1. Every live member of the document is in the group, at least as a learner; those who left or
//!    were removed are not.
//! 2. Voters are those [`voters()`](super::voters::voters) names; they change by joint consensus.
//! 3. One step at a time, each bounded in time. One that failed is tried again, in pauses that grow
//!    to [`PAUSE_MAX`], for ever: a change of members that is left half done needs more nodes than
//!    a whole one, and nothing tells when the group could finish it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::{ChangeMembers, EmptyNode, ServerState};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::types::Raft;
use super::voters::successors;
use crate::cluster::NodeId;
use crate::cluster::layout::{Document, Layout};

/// Between two tries, at most.
const PAUSE_MAX: Duration = Duration::from_secs(30);

type Step = ChangeMembers<NodeId, EmptyNode>;

/// See the module page.
pub(super) struct Keeper {
    raft: Raft,
    layouts: watch::Receiver<Arc<Layout>>,
    /// Between a step that failed and the next try; doubled each time, up to [`PAUSE_MAX`].
    pause: Duration,
    /// For a step.
    patience: Duration,
}

impl Keeper {
    pub(super) fn new(
        raft: Raft,
        layouts: watch::Receiver<Arc<Layout>>,
        pause: Duration,
        patience: Duration,
    ) -> Self {
        Self { raft, layouts, pause, patience }
    }

    /// Runs until the group has stopped.
    pub(super) async fn run(mut self) {
        let mut metrics = self.raft.server_metrics();
        let mut pause = self.pause;
        loop {
            let (leads, membership) = {
                let metrics = metrics.borrow_and_update();
                (metrics.state == ServerState::Leader, Arc::clone(&metrics.membership_config))
            };
            let layout = Arc::clone(&self.layouts.borrow_and_update());
            let configs = membership.membership().get_joint_config();
            let nodes = membership.nodes().map(|(id, _)| *id).collect();
            let step = if leads { next_step(layout.document(), configs, &nodes) } else { None };
            let failed = match step {
                Some(step) => !self.take(step).await,
                None => false,
            };
            pause = if failed { (2 * pause).min(PAUSE_MAX) } else { self.pause };
            let ended = tokio::select! {
                biased;
                changed = metrics.changed() => changed.is_err(),
                changed = self.layouts.changed() => changed.is_err(),
                () = sleep(pause), if failed => false,
            };
            if ended {
                return;
            }
        }
    }

    /// Whether the step was committed.
    async fn take(&self, step: Step) -> bool {
        let changed = timeout(self.patience, self.raft.change_membership(step, true)).await;
        matches!(changed, Ok(Ok(_)))
    }
}

/// The next change that brings a group of `nodes`, whose voters are `configs` (two while they
/// change), closer to the document.
fn next_step(
    document: &Document,
    configs: &[BTreeSet<NodeId>],
    nodes: &BTreeSet<NodeId>,
) -> Option<Step> {
    if document.epoch == 0 {
        return None;
    }
    let wanted: BTreeSet<NodeId> = document
        .members
        .iter()
        .filter(|(_, member)| !member.state.is_gone())
        .map(|(id, _)| *id)
        .collect();
    let missing: BTreeMap<NodeId, EmptyNode> =
        wanted.difference(nodes).map(|id| (*id, EmptyNode {})).collect();
    if !missing.is_empty() {
        return Some(ChangeMembers::AddNodes(missing));
    }
    if let Some(named) = successors(&document.members, configs) {
        return Some(ChangeMembers::ReplaceAllVoters(named));
    }
    let votes = |id: &NodeId| configs.last().is_some_and(|current| current.contains(id));
    let gone: BTreeSet<NodeId> =
        nodes.difference(&wanted).filter(|id| !votes(id)).copied().collect();
    if gone.is_empty() { None } else { Some(ChangeMembers::RemoveNodes(gone)) }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cluster::layout::{Member, MemberState};

    fn set(ids: &[u128]) -> BTreeSet<NodeId> {
        ids.iter().map(|id| NodeId(*id)).collect()
    }

    /// Of epoch 1, with members 1, 2 and so on in these states.
    pub fn document(states: &[MemberState]) -> Document {
        let member = |state| Member {
            name: String::new(),
            zone: String::new(),
            weight: 1,
            state,
            address: String::new(),
        };
        let members = states.iter().zip(1..).map(|(state, id)| (NodeId(id), member(*state)));
        Document { epoch: 1, members: members.collect(), ..Document::empty() }
    }

    #[test]
    fn a_newcomer_learns_before_it_votes_and_one_who_left_stops_voting_before_it_goes() {
        use MemberState::{Joining, Left, Normal};
        let joining = document(&[Normal, Joining]);
        let step = next_step(&joining, &[set(&[1])], &set(&[1]));
        assert_eq!(step, Some(ChangeMembers::AddNodes([(NodeId(2), EmptyNode {})].into())));
        assert_eq!(next_step(&joining, &[set(&[1])], &set(&[1, 2])), None);

        let joined = document(&[Normal, Normal]);
        let step = next_step(&joined, &[set(&[1])], &set(&[1, 2]));
        assert_eq!(step, Some(ChangeMembers::ReplaceAllVoters(set(&[1, 2]))));
        assert_eq!(next_step(&joined, &[set(&[1, 2])], &set(&[1, 2])), None);

        let left = document(&[Left, Normal]);
        let step = next_step(&left, &[set(&[1, 2])], &set(&[1, 2]));
        assert_eq!(step, Some(ChangeMembers::ReplaceAllVoters(set(&[2]))));
        let step = next_step(&left, &[set(&[2])], &set(&[1, 2]));
        assert_eq!(step, Some(ChangeMembers::RemoveNodes(set(&[1]))));
        assert_eq!(next_step(&left, &[set(&[2])], &set(&[2])), None);
    }

    #[test]
    fn a_change_of_voters_that_was_cut_short_is_finished() {
        let document = document(&[MemberState::Normal, MemberState::Normal]);
        let step = next_step(&document, &[set(&[1]), set(&[1, 2])], &set(&[1, 2]));
        assert_eq!(step, Some(ChangeMembers::ReplaceAllVoters(set(&[1, 2]))));
    }

    #[test]
    fn before_the_cluster_is_formed_nothing_is_changed() {
        assert_eq!(next_step(&Document::empty(), &[set(&[1, 2, 3])], &set(&[1, 2, 3])), None);
    }
}
