//! The stream that tells how a node gets on with leaving.
//!
//! The work is the node's own: it began with a decision about the layout, and goes on whether
//! anybody looks on or not.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::deadline::Deadline;
use super::server::Core;
use super::status::Problem;
use crate::cluster::NodeId;
use crate::proto;

/// How often it is told at least.
const INTERVAL: Duration = Duration::from_secs(1);
/// Messages ahead of the client.
const AHEAD: usize = 4;

/// The answers of a drain.
pub(super) type Progresses = ReceiverStream<Result<proto::DrainProgress, Status>>;

/// Begins, or looks on, as the request says. What is refused is refused as a status of the call.
pub(super) async fn stream(
    core: Arc<Core>,
    request: proto::DrainNodeRequest,
    deadline: Deadline,
) -> Result<Progresses, Problem> {
    let (node, since) = core.cluster.drain(&request, core.instant(deadline)).await?;
    let (sender, receiver) = mpsc::channel(AHEAD);
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        let mut layout = core.cluster.layout.clone();
        let mut stopping = false;
        loop {
            layout.borrow_and_update();
            let (progress, is_over) = tell(&core, node, since).await;
            if deadline.limit(sender.send(Ok(progress))).await.is_none_or(|sent| sent.is_err()) {
                return;
            }
            if is_over || request.status_only {
                return;
            }
            if stopping {
                let problem = Problem::new(Code::Unavailable, "STOPPING", "the node is stopping");
                let _ = sender.send(Err(problem.into())).await;
                return;
            }
            tokio::select! {
                _ = layout.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
                // Once more: it may stop because it has left.
                () = core.stopping.cancelled() => stopping = true,
                () = sender.closed() => return,
            }
        }
    });
    Ok(ReceiverStream::new(receiver))
}

async fn tell(core: &Core, node: NodeId, since: u64) -> (proto::DrainProgress, bool) {
    let (mut progress, is_over) = core.cluster.drain_progress(node, since);
    if progress.phase() == proto::DrainPhase::Left
        && let Some(json) = core.cluster.certificate(node).await
    {
        progress.certificate = String::from_utf8_lossy(&json).into_owned();
    }
    (progress, is_over)
}
