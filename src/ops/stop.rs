//! The end of a node's life, by a signal or `pairdb stop`.
//!
//! ```text
//!    readiness off; others are told; as long as `shutdown_grace` says all goes on
//! 1. no new calls of clients; their calls finish; meanwhile the others hear that the node is down
//! 2. writes that were answered reach their slow replicas, or become hints
//! 3. no new requests of peers; what they asked is answered
//! 4. hints on disk, the memtables flushed, the log synced, the stop marked clean
//! ```
//!
//! A pod that will not come back drains before all that: see `leave`.
//! The numbered steps take `shutdown_timeout` at most. A second signal skips the waiting and the
//! flush: the next start then replays the log. Nothing acknowledged is lost either way.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::node::{Error, Node, TICK, blocking};
use super::rolled_back;
use super::shutdown::Shutdown;
use crate::cluster::NodeId;
use crate::cluster::layout::MemberState;

/// Until when steps 1 to 3 may go on, as shares of `shutdown_timeout`: a client that does not read
/// takes no time from the writes that others wait for. The rest is for the flush.
const CLIENTS_END: f64 = 0.4;
const WRITES_END: f64 = 0.55;
const PEERS_END: f64 = 0.7;

/// Why a node ends.
pub(super) enum End {
    /// A signal.
    Signalled,
    /// An operator's call: a restart is meant.
    Asked,
    /// It handed over all it had.
    Left,
    /// It is no member any more.
    Removed,
    /// See [`Node::must_end`].
    Condemned,
}

impl Node {
    /// Serves until it is asked to stop, has left the cluster, or must not go on; then stops.
    ///
    /// # Errors
    /// It must not go on, or was to leave and has not, or the store could not be closed cleanly.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        let end = tokio::select! {
            end = self.wait_for_end(&shutdown) => end,
            end = self.stay_if_wanted() => end,
        };
        match end {
            End::Signalled => {
                let left = tokio::select! {
                    biased;
                    // Nobody speaks to it any more, so a drain would not end.
                    () = self.must_end() => Ok(()),
                    left = self.leave_for_good(&shutdown.fast) => left,
                };
                self.stop(&shutdown.fast).await?;
                left
            }
            End::Asked => self.stop(&shutdown.fast).await,
            End::Left => {
                tracing::info!("this node has left the cluster: its directory may be deleted");
                // It may be deleted already, and nobody needs what is in it. A failure would have
                // the node started again, as a new one.
                self.stop(&shutdown.fast).await.or_else(|error| match error {
                    Error::Close(error) => {
                        tracing::warn!(%error, "the store of a node that has left was not closed");
                        Ok(())
                    }
                    error => Err(error),
                })
            }
            End::Removed => {
                tracing::error!("this node was removed from the cluster: stopping");
                self.stop(&shutdown.fast).await?;
                Err(Error::Fenced { has_left: false })
            }
            // Which says why.
            End::Condemned => self.stop(&shutdown.fast).await,
        }
    }

    /// Waits until the node must not go on: its directory was put back to an earlier state, or
    /// another process acts as this node.
    async fn must_end(&self) {
        let mut superseded = self.joined.superseded();
        let mut rolled_back = self.joined.rolled_back();
        tokio::select! {
            _ = superseded.wait_for(|over| *over) => {}
            _ = rolled_back.wait_for(|back| *back) => {}
        }
    }

    /// Why it must not go on, if it must not. Then it stops at once, without the mark of a clean
    /// stop: the actor is never used again.
    fn verdict(&self, fast: &CancellationToken) -> Option<Error> {
        let verdict = if *self.joined.rolled_back().borrow() {
            tracing::error!("others know of a later state of this node: it was put back; stopping");
            // Nothing is to be started from the directory again.
            if let Err(error) = rolled_back::note(&*self.vfs, &self.config.node.data_dir) {
                tracing::error!(%error, "cannot note that the directory was put back");
            }
            Error::RolledBack
        } else if *self.joined.superseded().borrow() {
            tracing::error!(
                "another process acts as this node, with a later start: stopping at once"
            );
            Error::Superseded
        } else {
            return None;
        };
        fast.cancel();
        Some(verdict)
    }

    async fn wait_for_end(&self, shutdown: &Shutdown) -> End {
        let mut layout = self.joined.layout();
        loop {
            layout.borrow_and_update();
            match self.member_state() {
                Some(MemberState::Left) => return End::Left,
                Some(MemberState::Removed) => return End::Removed,
                state => self.show(state == Some(MemberState::Leaving)).await,
            }
            tokio::select! {
                // In this order: one that must not go on is not asked whether it may stop well.
                biased;
                () = self.must_end() => return End::Condemned,
                () = shutdown.graceful.cancelled() => return End::Signalled,
                () = self.asked_to_stop.cancelled() => return End::Asked,
                changed = layout.changed() => if changed.is_err() { return End::Asked },
            }
        }
    }

    /// What the node is to the cluster, as it knows itself.
    pub(super) fn member_state(&self) -> Option<MemberState> {
        let node = NodeId(self.store.identity().node_id);
        let layout = self.joined.layout();
        let layout = layout.borrow();
        layout.document().members.get(&node).map(|member| member.state)
    }

    /// A node that leaves is not ready for new work; one that stays after all is again.
    async fn show(&self, leaves: bool) {
        if self.health.set_leaving(leaves) {
            self.show_health().await;
        }
    }

    /// Stops; `fast` cuts the waiting short.
    ///
    /// # Errors
    /// The store could not be closed cleanly, or the node turned out to be one that must not go on.
    pub async fn stop(mut self, fast: &CancellationToken) -> Result<(), Error> {
        let mut verdict = self.verdict(fast);
        self.health.stop();
        self.joined.prepare_to_stop();
        self.show_health().await;
        let ready_file = &self.config.node.ready_file;
        if !ready_file.as_os_str().is_empty() {
            // It may be gone already.
            let _ = std::fs::remove_file(ready_file);
        }
        tokio::select! {
            () = tokio::time::sleep(self.config.node.shutdown_grace) => {}
            () = fast.cancelled() => {}
        }
        let timeout = self.config.node.shutdown_timeout;
        let end = tokio::time::sleep(timeout);
        tokio::select! {
            () = self.finish_calls(timeout) => {}
            () = fast.cancelled() => {}
        }
        // It may have heard of it while it stopped.
        verdict = verdict.or_else(|| self.verdict(fast));
        self.closing.cancel();
        let store = self.store;
        let joined = self.joined;
        let closing = async {
            joined.stop().await;
            for task in self.upkeep {
                // One that panicked has said so.
                let _ = task.await;
            }
            let _ = tokio::time::timeout(TICK, self.admin).await;
            blocking(&self.work, move || store.close()).await?.map_err(Error::Close)
        };
        // Without the flush nothing acknowledged is lost either: the next start replays the log.
        tokio::select! {
            biased;
            () = fast.cancelled() => tracing::warn!("stopping without a flush, as asked"),
            closed = closing => closed?,
            () = end => tracing::warn!("stopping without a flush: it did not end in time"),
        }
        tracing::info!("stopped");
        verdict.map_or(Ok(()), Err)
    }

    /// Steps 1 to 3 of a stop: what began before it ends, each in its share of `timeout`.
    async fn finish_calls(&mut self, timeout: Duration) {
        let begin = Instant::now();
        let end = begin + timeout.mul_f64(CLIENTS_END);
        let farewell = tokio::time::timeout_at(end, self.joined.say_farewell());
        let (finished, _) = tokio::join!(self.server.stop_clients(end), farewell);
        if !finished {
            tracing::warn!("calls were cut: they did not finish in time");
        }
        let end = begin + timeout.mul_f64(WRITES_END);
        if tokio::time::timeout_at(end, self.joined.finish_writes()).await.is_err() {
            tracing::warn!("replicas still lack writes: the comparison of replicas will find them");
        }
        if !self.server.stop_peers(begin + timeout.mul_f64(PEERS_END)).await {
            tracing::warn!("requests of peers were cut: they did not finish in time");
        }
    }
}
