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
//! A pod that is beyond its StatefulSet's replicas drains before all that: it will not come back.
//! The numbered steps take `shutdown_timeout` at most. A second signal skips the waiting and the
//! flush: the next start then replays the log. Nothing acknowledged is lost either way.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::health::State;
use super::kubernetes::Fate;
use super::node::{Error, Node, TICK, blocking};
use super::shutdown::Shutdown;
use crate::client::{self, Client, Options};
use crate::proto;

/// The share of `shutdown_timeout` that calls in flight may take; the rest is for the flush.
const CALLS_SHARE: f64 = 0.7;

impl Node {
    /// Serves until asked to stop, by `shutdown` or by an operator's call, then stops.
    ///
    /// # Errors
    /// The store could not be closed cleanly.
    pub async fn run(self, shutdown: Shutdown) -> Result<(), Error> {
        let mut superseded = self.joined.superseded();
        let is_over = tokio::select! {
            () = shutdown.graceful.cancelled() => false,
            () = self.asked_to_stop.cancelled() => false,
            _ = superseded.wait_for(|over| *over) => true,
        };
        if !is_over {
            // Who asks for a stop by a call means a restart, and says so.
            let left = match shutdown.graceful.is_cancelled() {
                true => self.leave_for_good(&shutdown.fast).await,
                false => Ok(()),
            };
            self.stop(&shutdown.fast).await?;
            return left;
        }
        tracing::error!("another process acts as this node, with a later start: stopping at once");
        // Without the mark of a clean stop: the actor is never used again.
        shutdown.fast.cancel();
        self.stop(&shutdown.fast).await?;
        Err(Error::Superseded)
    }

    /// Stops; `fast` cuts the waiting short.
    ///
    /// # Errors
    /// The store could not be closed cleanly.
    pub async fn stop(mut self, fast: &CancellationToken) -> Result<(), Error> {
        self.health.set(State::Stopping);
        self.joined.prepare_to_stop();
        self.server.set_serving(false).await;
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
            () = self.finish_calls(Instant::now() + timeout.mul_f64(CALLS_SHARE)) => {}
            () = fast.cancelled() => {}
        }
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
            blocking(self.work, move || store.close()).await?.map_err(Error::Close)
        };
        // Without the flush nothing acknowledged is lost either: the next start replays the log.
        tokio::select! {
            closed = closing => closed?,
            () = fast.cancelled() => tracing::warn!("stopping without a flush, as asked"),
            () = end => tracing::warn!("stopping without a flush: it did not end in time"),
        }
        tracing::info!("stopped");
        Ok(())
    }

    /// Drains the node, if it is a pod that will not come back.
    async fn leave_for_good(&self, fast: &CancellationToken) -> Result<(), Error> {
        let Some(pod) = &self.pod else { return Ok(()) };
        let fate = tokio::select! {
            fate = pod.fate(&*self.net) => fate,
            () = fast.cancelled() => return Ok(()),
        };
        match fate {
            Ok(Fate::Returns) => return Ok(()),
            Ok(Fate::Leaves { ordinal, replicas }) => {
                tracing::info!(ordinal, replicas, "the pod will not come back: draining");
            }
            Err(error) => {
                tracing::warn!(%error, "it is not known whether the pod comes back: it keeps all");
                return Ok(());
            }
        }
        self.health.set(State::Stopping);
        let timeout = self.config.kubernetes.drain_timeout;
        let drained = tokio::select! {
            drained = self.drain() => drained,
            () = tokio::time::sleep(timeout) => {
                Err(format!("the drain did not end within {timeout:?}"))
            }
            () = fast.cancelled() => Err("the drain was interrupted".to_owned()),
        };
        drained.map_err(|why| {
            tracing::error!(why, "the node could not be drained: its data is still needed");
            Error::NotDrained { why }
        })
    }

    /// Asks the own admin service for a drain, as an operator would, and follows it.
    async fn drain(&self) -> Result<(), String> {
        let endpoints = vec![format!("http://{}", reachable(self.server.client_addr))];
        let options = Options { endpoints, ..Options::default() };
        let client = Client::over(&self.net, options).map_err(|error| error.to_string())?;
        let said = |status| client::Error::of(&status, false).to_string();
        let asked = client.admin().drain_node(proto::DrainNodeRequest::default()).await;
        let mut progress = asked.map_err(said)?.into_inner();
        let mut phase = proto::DrainPhase::Unspecified;
        while let Some(told) = progress.message().await.map_err(said)? {
            if told.phase() != phase {
                phase = told.phase();
                tracing::info!(phase = phase.as_str_name(), keys = told.keys, "draining");
            }
        }
        match phase {
            proto::DrainPhase::Left => Ok(()),
            other => Err(format!("it ended in {}", other.as_str_name())),
        }
    }

    /// Steps 1 to 3 of a stop: what began before it ends, by `end`.
    async fn finish_calls(&mut self, end: Instant) {
        let farewell = tokio::time::timeout_at(end, self.joined.say_farewell());
        let (finished, _) = tokio::join!(self.server.stop_clients(end), farewell);
        if !finished {
            tracing::warn!("calls were cut: they did not finish in time");
        }
        if tokio::time::timeout_at(end, self.joined.finish_writes()).await.is_err() {
            tracing::warn!("replicas still lack writes: the comparison of replicas will find them");
        }
        if !self.server.stop_peers(end).await {
            tracing::warn!("requests of peers were cut: they did not finish in time");
        }
    }
}

/// Where a listener is reached from this machine.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        match address {
            SocketAddr::V4(_) => address.set_ip(Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(_) => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        }
    }
    address
}
