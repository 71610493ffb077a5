//! What a member does by itself while it runs: it passes on every document, fetches one that it
//! missed, puts facts into the next one, and tells the others how it fares.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::async_trait;

use super::health::{Condition, State};
use super::member::LEARN_TIMEOUT;
use super::ticks::Ticks;
use crate::cluster::consensus::Consensus;
use crate::cluster::fence::Fence;
use crate::cluster::gossip::Gossip;
use crate::cluster::layout::{Command, Layout, Member, MemberState};
use crate::cluster::local::Local;
use crate::cluster::peer::Peers;
use crate::cluster::view::{Facts, RunState, View};
use crate::cluster::work::Work;
use crate::replication::Coordinator;
use crate::replication::duties::Report;
use crate::replication::hints::Hints;
use crate::rpc::cluster::Moving;
use crate::rpc::peer::PeerClient;
use crate::store::{self, Store};

/// How often the node's figures are gossiped.
const TELL_INTERVAL: Duration = Duration::from_secs(1);
/// How long one attempt to change the layout may take.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Puts facts of this node into the document.
pub(super) struct Proposals(pub Arc<Consensus>);

#[async_trait]
impl Report for Proposals {
    async fn report(&self, command: Command) -> bool {
        match self.0.propose(command, Instant::now() + PROPOSE_TIMEOUT).await {
            // A fact of another epoch is refused: it means nothing any more.
            Ok(_) => true,
            Err(error) => {
                tracing::debug!(%error, "a fact is not in the layout yet");
                false
            }
        }
    }
}

/// Passes on every document that is adopted.
pub(super) async fn follow(
    mut layout: watch::Receiver<Arc<Layout>>,
    local: Arc<Local>,
    peers: Arc<PeerClient>,
    gossip: Arc<Gossip>,
    coordinator: Arc<Coordinator>,
    mut health: watch::Receiver<Condition>,
    closing: CancellationToken,
) {
    let is_here = |member: &Member| !member.state.is_gone();
    loop {
        let document = Arc::clone(layout.borrow_and_update().document());
        coordinator.forget_peers(|node| document.members.get(&node).is_some_and(is_here));
        local.set_epoch(document.epoch);
        for (node, member) in &document.members {
            peers.hint(*node, member.address.clone());
        }
        let member = document.members.get(&local.node());
        let leaves = member.is_some_and(|member| member.state == MemberState::Leaving);
        let state = health.borrow_and_update().state();
        gossip.tell(|facts| {
            facts.epoch = document.epoch;
            facts.run_state = run_state(facts.run_state, state, leaves);
        });
        tokio::select! {
            changed = layout.changed() => if changed.is_err() { return },
            changed = health.changed() => if changed.is_err() { return },
            () = closing.cancelled() => return,
        }
    }
}

/// What a node that has come in tells of itself, by its health and what the document says.
fn run_state(told: RunState, state: State, leaves: bool) -> RunState {
    match told {
        RunState::Serving | RunState::ReadOnly | RunState::Draining => match state {
            State::Stopping | State::Draining => RunState::Draining,
            _ if leaves => RunState::Draining,
            State::ReadOnly | State::ClockUnsafe | State::LayoutLost => RunState::ReadOnly,
            State::Starting | State::Serving => RunState::Serving,
        },
        other => other,
    }
}

/// Fetches the document when others are heard to act under a later one: consensus may not reach
/// this node.
pub(super) async fn catch_up(
    fence: Arc<Fence>,
    local: Arc<Local>,
    peers: Arc<dyn Peers>,
    view: Arc<dyn View>,
    closing: CancellationToken,
) {
    let mut heard = local.epoch_heard();
    let mut ticks = Ticks::every(TELL_INTERVAL, closing);
    while ticks.next().await {
        let epoch = *heard.borrow_and_update();
        // One without a cluster gets its document when it is let in.
        if epoch > fence.epoch() && local.cluster().is_some() {
            let nodes = view.nodes();
            let ahead = |facts: &&Facts| facts.is_up && facts.epoch > fence.epoch();
            for facts in nodes.values().filter(ahead) {
                let learnt = fence.learn(&*peers, facts.node, epoch, LEARN_TIMEOUT).await;
                if learnt.is_ok() {
                    break;
                }
            }
        }
    }
}

/// The bound of the clock that others may be told; 0: none yet. That they know of no later one is
/// noted first: else the next start would take what is told now for what was told before.
pub(super) async fn lease_to_tell(local: &Local, store: &Arc<Store>, work: &Work) -> u64 {
    if !*local.confirmed().borrow() {
        return 0;
    }
    let of = Arc::clone(store);
    let note = move || {
        of.confirm_lease()?;
        of.follow_clock()?;
        Ok::<_, store::Error>(of.lease())
    };
    let noted = work.run(note).await;
    match noted {
        Ok(Ok(lease)) => {
            local.tell_lease(lease);
            lease
        }
        Ok(Err(error)) => {
            // The next one tries again, if it may.
            tracing::debug!(%error, "cannot note the bound of the clock");
            0
        }
        Err(_) => 0,
    }
}

/// Tells the others how the node fares.
pub(super) async fn tell(
    gossip: Arc<Gossip>,
    local: Arc<Local>,
    store: Arc<Store>,
    hints: Arc<Hints>,
    moving: Moving,
    work: Work,
    closing: CancellationToken,
) {
    let mut ticks = Ticks::every(TELL_INTERVAL, closing);
    while ticks.next().await {
        let of = Arc::clone(&store);
        // It asks the file system for its room.
        let Ok(stats) = work.run(move || of.stats()).await else { continue };
        let lease = lease_to_tell(&local, &store, &work).await;
        gossip.tell(|facts| {
            facts.load = store.pressure();
            facts.load_bytes = stats.engine.data_bytes();
            facts.disk = stats.disk_used;
            facts.disk_room = Some(stats.disk_room);
            facts.hints = hints.stats().pending;
            facts.damaged = stats.partitions_damaged;
            facts.unreadable = stats.blocks_unreadable;
            facts.lease = lease;
            facts.moving = moving.figures().to_text();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients are sent to who serves: not to who stops, also when a document comes meanwhile, nor
    /// to who takes no writes, or may answer for what is not its own.
    #[test]
    fn what_a_node_tells_follows_its_health_and_the_document() {
        use RunState as R;
        for told in [R::Serving, R::ReadOnly, R::Draining] {
            for (state, leaves, tells) in [
                (State::Starting, false, R::Serving),
                (State::Serving, false, R::Serving),
                (State::Serving, true, R::Draining),
                (State::Draining, false, R::Draining),
                (State::Stopping, false, R::Draining),
                (State::ReadOnly, false, R::ReadOnly),
                (State::ClockUnsafe, false, R::ReadOnly),
                (State::LayoutLost, false, R::ReadOnly),
                (State::ReadOnly, true, R::Draining),
            ] {
                assert_eq!(run_state(told, state, leaves), tells, "{told} {state:?} {leaves}");
            }
        }
        for told in [R::Starting, R::Syncing, R::Fenced, R::Down] {
            assert_eq!(run_state(told, State::Serving, false), told);
        }
    }
}
