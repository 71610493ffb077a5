//! What each document of the layout asks of this node, one document at a time.
//!
//! While it is Joint a node merges what it will own ([`super::transfer`]), under a Stable one it
//! gives away what it does not own ([`super::departure`]).
//!
//! 1. When another document comes, what was begun under the one before is dropped wherever it
//!    stands, with its figures: both can be begun again at any point.
//! 2. A fact is proposed until it is in the document or another document comes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::async_trait;

use super::progress::Progress;
use crate::cluster::layout::{Command, Layout};

/// How long after a failure the rest is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// Puts a fact into the document.
#[async_trait]
pub trait Report: Send + Sync + 'static {
    /// Whether it is there. A failure is tried again by the caller.
    async fn report(&self, command: Command) -> bool;
}

/// Until the fact is there, or the caller is dropped because another document came.
pub(super) async fn propose(report: &dyn Report, progress: &Progress, command: Command) {
    while !report.report(command.clone()).await {
        progress.wait_for("a leader of the layout");
        tokio::time::sleep(RETRY).await;
    }
}

/// Serves each document until another one comes, until told to stop.
pub async fn run<F: Future<Output = ()>>(
    mut documents: watch::Receiver<Arc<Layout>>,
    progress: Arc<Progress>,
    closing: CancellationToken,
    serve: impl Fn(Arc<Layout>) -> F,
) {
    loop {
        let layout = Arc::clone(&documents.borrow_and_update());
        let epoch = layout.epoch();
        let work = async {
            serve(layout).await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = work => {}
            changed = documents.wait_for(|now| now.epoch() != epoch) => {
                progress.end();
                if changed.is_err() {
                    return;
                }
            }
            () = closing.cancelled() => return,
        }
    }
}
