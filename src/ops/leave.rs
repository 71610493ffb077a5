//! A pod that is taken out of its StatefulSet hands over what it holds before it ends.
//!
//! ```text
//! SIGTERM        is the pod to come back? if not: note it, drain, and look again now and then
//! wanted again   the drain is cancelled, and the pod ends as for a restart
//! start          noted, leaving still, and wanted again: the drain is cancelled
//! not serving    a pod that is told to end, and not to come back, says that it is still needed
//! ```
//!
//! 1. Only a drain that was begun here is cancelled here: an operator's goes on.
//! 2. The note is in the data directory before the drain begins, and goes when it is cancelled.
//! 3. A drain that somebody else ended is not begun again by the same process.
//! 4. Who owns nothing and holds nothing of others has nothing to hand over: it ends at once.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::config::{self, Config};
use super::kubernetes::{Fate, Pod};
use super::node::{Error, Node};
use super::stop::End;
use super::world::World;
use crate::client::{self, Admin, Client, Options};
use crate::cluster::NodeId;
use crate::cluster::fence::Fence;
use crate::cluster::layout::{Document, MemberState};
use crate::cluster::net::Net;
use crate::proto::{DrainNodeRequest, DrainPhase};
use crate::store;
use crate::store::identity::{IdentityOptions, Starting};

/// How often it is looked, in mid-drain, whether the pod is wanted again.
const LOOK: Duration = Duration::from_secs(5);
/// The drain was ended by somebody else: the node stays.
const CANCELLED: &str = "DRAIN_CANCELLED";
/// It was given up by somebody else.
const REMOVED: &str = "REMOVED";
/// Why a drain is refused for good, or is over: no wait helps.
const FINAL: [&str; 4] = ["TOO_FEW_OWNERS", "UNKNOWN_NODE", CANCELLED, REMOVED];
/// Why a drain of a node is refused that owns nothing.
const NOT_OWNED: [&str; 2] = ["NOT_AN_OWNER", "UNKNOWN_NODE"];
/// Notes that the drain under way was begun because the set became smaller.
const NOTE: &str = "TAKEN_OUT_OF_SET";

/// Ends a node that was told to before it served. A pod that will not come back can hand over
/// nothing then: if it stands in the layout that it keeps, it says that it is still needed.
///
/// # Errors
/// [`Error::NotDrained`], or the settings cannot be used.
pub async fn end_before_serving(
    config: &Config,
    world: &World,
    fast: &CancellationToken,
) -> Result<(), Error> {
    let pod = Pod::of(&config.kubernetes, |name| std::env::var(name).ok())
        .map_err(|error| config::Error::Invalid(error.to_string()))?;
    let Some(pod) = &pod else { return Ok(()) };
    if !goes_for_good(pod, &*world.net, fast).await {
        return Ok(());
    }
    let why = match owes_nothing_in(config, world) {
        Ok(true) => return Ok(()),
        Ok(false) => "it was told to end before it served".to_owned(),
        Err(error) => format!("it cannot be read what it holds: {error}"),
    };
    tracing::error!(why, "the node could not be drained: its data is still needed");
    Err(Error::NotDrained { why })
}

/// Whether the node of the data directory holds nothing for its cluster.
fn owes_nothing_in(config: &Config, world: &World) -> store::Result<bool> {
    let (dir, environment) = (&config.node.data_dir, &world.environment);
    // No start has come so far as to make it.
    if matches!(environment.vfs.exists(dir), Ok(false)) {
        return Ok(true);
    }
    let read = || {
        let options = IdentityOptions { cluster_later: true, ..IdentityOptions::default() };
        Starting::read(environment, dir, options)
    };
    // The start that was given up may have made the directory while it was read, which then looks
    // as if it lacked something. What is made in one step is there the second time.
    let identity = read().or_else(|_| read())?.identity();
    if identity.cluster_id.is_none() {
        return Ok(true);
    }
    let document = Fence::open(environment.vfs.clone(), dir)?.document();
    let node = NodeId(identity.node_id);
    let state = document.members.get(&node).map(|member| member.state);
    Ok(state.is_some_and(MemberState::is_gone) || owns_nothing(&document, node))
}

/// Whether the node is no owner, will be none, and holds no rows of others: one that never came
/// in.
fn owns_nothing(document: &Document, node: NodeId) -> bool {
    let state = document.members.get(&node).map(|member| member.state);
    matches!(state, None | Some(MemberState::Joining))
        && document.is_formed()
        && !document.is_joint()
        && !document.owners.contains_key(&node)
        && !document.departed.contains_key(&node)
}

/// Whether it is known that the pod will not come back.
async fn goes_for_good(pod: &Pod, net: &dyn Net, fast: &CancellationToken) -> bool {
    let fate = tokio::select! {
        fate = pod.fate(net) => fate,
        () = fast.cancelled() => return false,
    };
    match fate {
        Ok(Fate::Returns) => false,
        Ok(Fate::Leaves { ordinal, replicas }) => {
            tracing::info!(ordinal, replicas, "the pod will not come back");
            true
        }
        Err(error) => {
            tracing::warn!(%error, "it is not known whether the pod comes back: it keeps all");
            false
        }
    }
}

impl Node {
    /// Drains the node, if it is a pod that will not come back.
    pub(super) async fn leave_for_good(&self, fast: &CancellationToken) -> Result<(), Error> {
        let Some(pod) = &self.pod else { return Ok(()) };
        if !goes_for_good(pod, &*self.net, fast).await {
            return Ok(());
        }
        self.health.stop();
        if self.member_state() != Some(MemberState::Leaving)
            && let Err(error) = std::fs::write(self.note(), b"")
        {
            tracing::warn!(%error, "cannot note that the set became smaller");
        }
        let timeout = self.config.kubernetes.drain_timeout;
        let drained = tokio::select! {
            drained = self.drain() => drained,
            () = self.wanted_again(pod) => return self.cancel().await,
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

    /// Cancels a drain that an earlier life of the pod began, if the pod is wanted again. Never
    /// ends.
    pub(super) async fn stay_if_wanted(&self) -> End {
        match &self.pod {
            Some(pod) if self.member_state() == Some(MemberState::Leaving) => {
                self.wanted_again(pod).await;
                // It goes on where it cannot be cancelled any more; whoever looks sees it.
                let _ = self.cancel().await;
            }
            // What was noted was refused, or cancelled by hand.
            Some(_) => self.forget(),
            None => {}
        }
        std::future::pending().await
    }

    /// Returns when the pod is to stay after all, if its drain was begun here.
    async fn wanted_again(&self, pod: &Pod) {
        while self.note().exists() {
            if let Ok(Fate::Returns) = pod.fate(&*self.net).await {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        std::future::pending().await
    }

    fn holds_nothing(&self) -> bool {
        let node = NodeId(self.store.identity().node_id);
        owns_nothing(self.joined.layout().borrow().document(), node)
    }

    async fn cancel(&self) -> Result<(), Error> {
        if self.member_state() == Some(MemberState::Leaving) {
            tracing::info!("the pod is wanted again: the drain is cancelled");
            self.ask_for_drain(DrainPhase::Cancelled).await.map_err(|error| {
                tracing::warn!(%error, "the drain cannot be cancelled");
                Error::NotDrained { why: error.to_string() }
            })?;
        }
        self.forget();
        Ok(())
    }

    fn forget(&self) {
        // It may not be there.
        let _ = std::fs::remove_file(self.note());
    }

    fn note(&self) -> PathBuf {
        self.config.node.data_dir.join(NOTE)
    }

    /// Drains until the node has left. What is in the way may pass: the change of another pod, say.
    async fn drain(&self) -> Result<(), String> {
        let mut said = String::new();
        loop {
            let error = match self.ask_for_drain(DrainPhase::Left).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if NOT_OWNED.contains(&error.reason()) && self.holds_nothing() {
                tracing::info!(%error, "the node owns nothing: there is nothing to hand over");
                return Ok(());
            }
            if FINAL.contains(&error.reason()) {
                return Err(error.to_string());
            }
            if said != error.reason() {
                error.reason().clone_into(&mut said);
                tracing::warn!(%error, "the drain waits");
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Asks the own admin service for a drain, or for its end, as an operator would, and follows
    /// it until `wanted`.
    async fn ask_for_drain(&self, wanted: DrainPhase) -> Result<(), client::Error> {
        let endpoints = vec![format!("http://{}", reachable(self.server.client_addr))];
        let options = Options { endpoints, ..Options::default() };
        let client = Client::over(&self.net, options)?;
        let said = |status| client::Error::of(&status, false);
        let call = async |admin: &mut Admin, request| admin.drain_node(request).await;
        let cancel = wanted == DrainPhase::Cancelled;
        let request = DrainNodeRequest { cancel, ..Default::default() };
        let mut progress = client.admin_stream(request, call).await?;
        let mut phase = DrainPhase::Unspecified;
        while let Some(told) = progress.message().await.map_err(said)? {
            if told.phase() != phase {
                phase = told.phase();
                tracing::info!(phase = phase.as_str_name(), keys = told.keys, "draining");
            }
        }
        if phase == wanted {
            return Ok(());
        }
        let (reason, message) = match phase {
            DrainPhase::Cancelled => (CANCELLED, "the drain was cancelled"),
            DrainPhase::Removed => (REMOVED, "the node is taken out without its help"),
            _ => ("DRAIN_GOES_ON", "nobody tells how the drain gets on"),
        };
        Err(client::Error::Call {
            code: tonic::Code::Aborted,
            reason: reason.to_owned(),
            message: message.to_owned(),
            outcome: None,
            retry_after: None,
        })
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
