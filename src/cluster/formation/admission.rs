//! The answer of a member to a node that looks for a cluster: it becomes a member too, or is
//! refused by name.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::{
    CLOCK_OFFSET_MS_MAX, Formation, encode_document, founding_reply, read_member, reason, refused,
    stands_by,
};
use crate::cluster::NodeId;
use crate::cluster::consensus::{Consensus, ProposeError};
use crate::cluster::layout::{Answer, Command, Document, Member, MemberState};
use crate::cluster::peer::PeerError;
use crate::proto::{JoinReply, JoinRequest};

/// Admits nodes to the cluster of this one.
#[derive(Clone, Debug)]
pub struct Admission {
    formation: Arc<Formation>,
    consensus: Arc<Consensus>,
}

impl Admission {
    /// Admits by proposals to `consensus`.
    pub fn new(formation: Arc<Formation>, consensus: Arc<Consensus>) -> Self {
        Self { formation, consensus }
    }

    /// Answers [`Request::Join`](crate::cluster::peer::Request). A node that is a member already
    /// gets the document: its first answer may have been lost.
    ///
    /// # Errors
    /// [`PeerError::Refused`] with one of [`reason`], or with the layout's own reason.
    pub async fn handle_join(
        &self,
        from: NodeId,
        join: &JoinRequest,
        timeout: Duration,
    ) -> Result<JoinReply, PeerError> {
        let deadline = Instant::now() + timeout;
        let member = read_member(&join.member)?;
        let document = self.formation.fence.document();
        if document.epoch == 0 {
            return self.founding(from, join);
        }
        if self.check(&document, from, &member, join)? {
            return Ok(accepted(&document));
        }
        if !join.promised_id.is_empty() {
            // Free from its promise first, if this node was the one it was given to.
            return Ok(self.no_place(&join.promised_id));
        }
        if join.asks_only {
            return Ok(JoinReply { document: Bytes::new(), ..accepted(&document) });
        }
        let joining = Member { state: MemberState::Joining, ..member };
        let members = [(from, joining)].into();
        let command = Command::Join { epoch: document.epoch, members };
        match self.consensus.propose(command, deadline).await {
            Ok(Answer::Refused { reason, message }) => return Err(refused(&reason, message)),
            Ok(_) => {}
            Err(ProposeError::TooLarge { .. }) => {
                return Err(refused(reason::INVALID_MEMBER, "it is too long".to_owned()));
            }
            // Whether it took effect shows when the node asks again.
            Err(error) => return Err(refused(reason::NO_LEADER, error.to_string())),
        }
        let mut documents = self.formation.fence.watch();
        let stands = documents.wait_for(|layout| layout.document().members.contains_key(&from));
        match timeout_at(deadline, stands).await {
            Ok(Ok(layout)) => Ok(accepted(layout.document())),
            _ => Err(refused(reason::NO_LEADER, "the document did not come in time".to_owned())),
        }
    }

    fn founding(&self, from: NodeId, join: &JoinRequest) -> Result<JoinReply, PeerError> {
        let promise = self.formation.promises.current();
        let holds = stands_by(promise.as_ref(), &join.promised_id);
        match promise.filter(|promise| promise.committed) {
            Some(promise) => founding_reply(&promise, from, holds),
            None => Err(refused(reason::FORMING, "this node has no document yet".to_owned())),
        }
    }

    fn no_place(&self, promised_id: &[u8]) -> JoinReply {
        let promise = self.formation.promises.current();
        let promise_holds = stands_by(promise.as_ref(), promised_id);
        JoinReply { promise_holds, ..JoinReply::default() }
    }

    /// Whether it is a member already.
    fn check(
        &self,
        document: &Document,
        from: NodeId,
        member: &Member,
        join: &JoinRequest,
    ) -> Result<bool, PeerError> {
        let only = NodeId::from_bytes(&join.cluster_id);
        if let Some(only) = only.filter(|only| *only != document.cluster_id) {
            let message = format!("this is {}, the node may only join {only}", document.cluster_id);
            return Err(refused(reason::WRONG_CLUSTER, message));
        }
        if let Some(known) = document.members.get(&from) {
            return match known.state {
                MemberState::Joining | MemberState::Normal | MemberState::Leaving => Ok(true),
                MemberState::Left | MemberState::Removing | MemberState::Removed => {
                    let message = format!("{from} left or was removed; its id is not taken again");
                    Err(refused(reason::NODE_ID_RETIRED, message))
                }
            };
        }
        let offset_ms = join.now_ms.abs_diff(self.formation.environment.clock.now_ms());
        if offset_ms > CLOCK_OFFSET_MS_MAX {
            let message = format!("the clocks are {offset_ms} ms apart");
            return Err(refused(reason::CLOCK_OFFSET, message));
        }
        // One may come in for another under the same name.
        let comes_for = |id: &NodeId| document.replacements.get(id) == Some(&member.name);
        let namesake = document.members.iter().find(|(id, other)| {
            other.name == member.name && !other.state.is_gone() && !comes_for(id)
        });
        if let Some((id, _)) = namesake {
            return Err(refused(reason::NAME_TAKEN, format!("{:?} is {id}", member.name)));
        }
        Ok(false)
    }
}

fn accepted(document: &Document) -> JoinReply {
    JoinReply {
        cluster_id: Bytes::copy_from_slice(&document.cluster_id.to_bytes()),
        document: encode_document(document),
        formation: Bytes::copy_from_slice(&document.formation.to_bytes()),
        ..JoinReply::default()
    }
}
