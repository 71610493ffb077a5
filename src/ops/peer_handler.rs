//! The answers of a node to the others: each request goes to the part it is for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::async_trait;

use crate::cluster::NodeId;
use crate::cluster::consensus::Consensus;
use crate::cluster::fence::{Fence, StampError};
use crate::cluster::formation::{Admission, Formation};
use crate::cluster::gossip::Gossip;
use crate::cluster::local::Local;
use crate::cluster::peer::{Class, PeerError, PeerHandler, Peers, Reply, Request};
use crate::proto;
use crate::replication::Replica;
use crate::replication::anti_entropy::AntiEntropy;
use crate::replication::departure::certificate::Certificates;
use crate::store;

/// Answers the other nodes: each request goes to the part it is for.
pub(super) struct Handler {
    pub fence: Arc<Fence>,
    pub gossip: Arc<Gossip>,
    pub consensus: Arc<Consensus>,
    pub admission: Admission,
    pub formation: Arc<Formation>,
    pub replica: Replica,
    pub anti_entropy: Arc<AntiEntropy>,
    pub certificates: Arc<Certificates>,
    pub peers: Arc<dyn Peers>,
    pub local: Arc<Local>,
}

impl Handler {
    /// Whether this node is known by an address that means every machine to itself.
    fn is_nowhere(&self) -> bool {
        let address = self.local.address().parse::<SocketAddr>();
        address.is_ok_and(|address| address.ip().is_unspecified())
    }

    /// Keeps a certificate, or gives it.
    fn certificate(
        &self,
        request: &proto::CertificateRequest,
    ) -> Result<proto::CertificateReply, PeerError> {
        let refused = |error: store::Error| PeerError::Refused {
            reason: error.reason().to_owned(),
            message: error.to_string(),
        };
        let node = NodeId::from_bytes(&request.node_id).ok_or_else(|| PeerError::Refused {
            reason: "INVALID_ARGUMENT".to_owned(),
            message: "the node id is none".to_owned(),
        })?;
        if request.certificate.is_empty() {
            let kept = self.certificates.read(node).map_err(refused)?.unwrap_or_default();
            return Ok(proto::CertificateReply { certificate: kept.into() });
        }
        self.certificates.keep(node, &request.certificate).map_err(refused)?;
        Ok(proto::CertificateReply::default())
    }

    /// The rule of stamps for what is not a replica's own business.
    async fn pass(&self, from: NodeId, epoch: u64, timeout: Duration) -> Result<(), PeerError> {
        if let Err(StampError::MustFetch { .. }) = self.fence.check(epoch) {
            self.fence.learn(&*self.peers, from, epoch, timeout).await?;
        }
        self.fence.check(epoch).map_err(|error| match error {
            StampError::StaleLayout { epoch, .. } | StampError::MustFetch { epoch, .. } => {
                PeerError::StaleLayout { epoch }
            }
        })
    }
}

#[async_trait]
impl PeerHandler for Handler {
    async fn handle(
        &self,
        from: NodeId,
        class: Class,
        epoch: u64,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        match request {
            Request::Raft(message) => {
                Ok(Reply::Raft(self.consensus.handle(from, &message).await?.into()))
            }
            Request::Propose(command) => {
                Ok(Reply::Propose(self.consensus.handle_propose(&command, timeout).await?.into()))
            }
            Request::Document(_) => Ok(Reply::Document(self.fence.handle_document())),
            Request::Join(_) if self.is_nowhere() => {
                let reason = "INVALID_MEMBER".to_owned();
                let message =
                    "others cannot reach this seed: it needs cluster.advertise".to_owned();
                Err(PeerError::Refused { reason, message })
            }
            Request::Join(join) if self.local.cluster().is_some() => {
                Ok(Reply::Join(self.admission.handle_join(from, &join, timeout).await?))
            }
            Request::Join(join) => Ok(Reply::Join(self.formation.handle_join(from, &join)?)),
            Request::Form(form) => Ok(Reply::Form(self.formation.handle_form(from, &form)?)),
            request if Replica::is_for(&request) => {
                self.replica.handle(from, class, epoch, request, timeout).await
            }
            request => {
                self.pass(from, epoch, timeout).await?;
                if let Request::Certificate(request) = request {
                    return self.certificate(&request).map(Reply::Certificate);
                }
                match self.anti_entropy.answer(epoch, &request).await {
                    Some(answer) => answer,
                    None => {
                        let reason = "UNKNOWN_REQUEST".to_owned();
                        let message = "this node does not know the request".to_owned();
                        Err(PeerError::Refused { reason, message })
                    }
                }
            }
        }
    }

    fn take_post(&self, _from: NodeId, request: Request) {
        if let Request::Gossip(message) = request {
            self.gossip.receive(message);
        }
    }
}
