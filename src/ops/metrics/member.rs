//! The figures of a member: whom it hears of, what layout it acts under, how its requests, hints,
//! comparisons and peers fare.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::figures::{Figure, counter, gauge};
use crate::cluster::NodeId;
use crate::cluster::consensus::Consensus;
use crate::cluster::layout::Layout;
use crate::cluster::view::{RunState, View};
use crate::replication::Coordinator;
use crate::replication::anti_entropy::AntiEntropy;
use crate::replication::hints::Hints;
use crate::replication::progress::{Progress, Rate};
use crate::resilience::breaker;
use crate::rpc::peer::{Counters, PeerClient, Reason};

/// The parts whose figures are shown.
pub struct MemberParts {
    /// This node.
    pub node: NodeId,
    /// What is heard of the others.
    pub view: Arc<dyn View>,
    /// The layout it acts under.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// The group that decides it.
    pub consensus: Arc<Consensus>,
    /// Reads and writes.
    pub coordinator: Arc<Coordinator>,
    /// What others missed.
    pub hints: Arc<Hints>,
    /// Comparison of replicas.
    pub anti_entropy: Arc<AntiEntropy>,
    /// What it moves because owners change.
    pub transfer: Arc<Progress>,
    /// How fast it may.
    pub rate: Arc<Rate>,
    /// Its links to the others.
    pub peers: Arc<PeerClient>,
    /// Both sides of the peer port.
    pub counters: Arc<Counters>,
}

impl MemberParts {
    /// All figures now.
    pub fn figures(&self) -> Vec<Figure> {
        let mut all = self.of_layout();
        all.extend(self.of_nodes());
        all.extend(self.of_coordinator());
        all.extend(self.of_hints());
        all.extend(self.of_anti_entropy());
        all.extend(self.of_peers());
        all
    }

    fn of_layout(&self) -> Vec<Figure> {
        let layout = Arc::clone(&self.layout.borrow());
        let document = layout.document();
        let members = document.members.values().filter(|member| !member.state.is_gone()).count();
        let group = self.consensus.status();
        let moved = self.transfer.figures();
        vec![
            gauge("pairdb_layout_epoch", document.epoch, "Epoch of the layout acted under."),
            gauge("pairdb_layout_version", document.version, "Version of that document."),
            flag("pairdb_layout_in_transition", document.is_joint(), "1 while owners change."),
            gauge("pairdb_layout_members", members as u64, "Members in it that are not gone."),
            gauge("pairdb_layout_owners", document.owners.len() as u64, "Nodes that own rows."),
            gauge("pairdb_layout_group_term", group.term, "Grows with every election."),
            flag("pairdb_layout_group_leads", group.is_leader, "1 on the leader of the layout."),
            flag(
                "pairdb_layout_group_has_leader",
                group.leader.is_some(),
                "0 while the layout cannot be changed.",
            ),
            gauge(
                "pairdb_transfer_partitions",
                moved.partitions,
                "Partitions of the task that a change of owners gives this node.",
            ),
            gauge("pairdb_transfer_partitions_done", moved.partitions_done, "Of those, done."),
            gauge("pairdb_transfer_rows", moved.keys, "Rows moved for it."),
            gauge("pairdb_transfer_moved_bytes", moved.bytes, "Bytes of those rows."),
            gauge("pairdb_transfer_rate_bytes", moved.bytes_per_second, "Bytes a second of late."),
            gauge("pairdb_transfer_limit_bytes", self.rate.get(), "The most there may be; 0: any."),
            counter(
                "pairdb_transfer_bytes_total",
                self.rate.total(),
                "Bytes of rows fetched, or given to others, because owners changed.",
            ),
        ]
    }

    fn of_nodes(&self) -> Vec<Figure> {
        let nodes = self.view.nodes();
        let in_state = |state: RunState| {
            let count = nodes.values().filter(|facts| facts.is_up && facts.run_state == state);
            gauge("pairdb_gossip_nodes_up", count.count() as u64, "Nodes heard of lately.")
                .label("state", state)
        };
        let mut all: Vec<Figure> = RunState::ALL.into_iter().map(in_state).collect();
        let known = nodes.len() as u64;
        all.push(gauge("pairdb_gossip_nodes_known", known, "Nodes heard of, up or not."));
        for id in nodes.keys().filter(|id| **id != self.node) {
            let passes = match self.peers.breaker(*id) {
                None | Some(breaker::State::Closed) => 0,
                Some(breaker::State::HalfOpen) => 1,
                Some(breaker::State::Open) => 2,
            };
            all.push(
                gauge(
                    "pairdb_peer_breaker_state",
                    passes,
                    "Calls to a node: 0 pass, 1 a few probe it, 2 none pass.",
                )
                .label("node", id),
            );
        }
        all
    }

    fn of_coordinator(&self) -> Vec<Figure> {
        let stats = self.coordinator.stats();
        vec![
            counter(
                "pairdb_coordinator_forwarded_total",
                stats.forwarded,
                "Writes handed to a replica.",
            ),
            counter(
                "pairdb_coordinator_unavailable_total",
                stats.unavailable,
                "Requests refused because too few replicas were up.",
            ),
            counter(
                "pairdb_coordinator_unknown_total",
                stats.unknown,
                "Writes whose outcome was told as unknown.",
            ),
            counter(
                "pairdb_coordinator_overloaded_total",
                stats.overloaded,
                "Messages that found no room on the way to a node.",
            ),
            gauge(
                "pairdb_coordinator_queued_bytes",
                stats.queued_bytes,
                "Bytes of rows that wait for other nodes, or are under way to them.",
            ),
            counter(
                "pairdb_coordinator_restarts_total",
                stats.restarts,
                "Requests started over under a new layout.",
            ),
            counter(
                "pairdb_coordinator_mismatches_total",
                stats.mismatches,
                "Keys read whose replicas differed.",
            ),
            counter(
                "pairdb_coordinator_read_repairs_total",
                stats.repairs,
                "Rows sent to replicas that a read found behind.",
            ),
            counter(
                "pairdb_coordinator_hedges_total",
                stats.hedges,
                "Reads that asked one more replica because one was slow.",
            ),
            counter(
                "pairdb_coordinator_widened_total",
                stats.widened,
                "Keys read from more replicas because of what the client had seen.",
            ),
            counter(
                "pairdb_coordinator_checks_total",
                stats.checks,
                "Reads at ONE that were checked at QUORUM, with nobody waiting.",
            ),
        ]
    }

    fn of_hints(&self) -> Vec<Figure> {
        let stats = self.hints.stats();
        vec![
            gauge("pairdb_hints_size_bytes", stats.bytes, "Bytes of hints on disk."),
            gauge("pairdb_hints_targets", stats.targets, "Nodes there are hints for."),
            gauge("pairdb_hints_pending", stats.pending, "Rows to deliver."),
            gauge(
                "pairdb_hints_waiting_bytes",
                stats.waiting_bytes,
                "Bytes of rows that wait in memory to be kept.",
            ),
            counter("pairdb_hints_kept_total", stats.kept, "Rows kept for others."),
            counter("pairdb_hints_refused_total", stats.refused, "Rows there was no room for."),
            counter("pairdb_hints_delivered_total", stats.delivered, "Rows delivered."),
            counter(
                "pairdb_hints_dropped_total",
                stats.dropped,
                "Rows dropped undelivered: too old, or deleted for good since.",
            ),
            counter("pairdb_hints_lost_bytes_total", stats.lost_bytes, "Bytes of hints lost."),
        ]
    }

    fn of_anti_entropy(&self) -> Vec<Figure> {
        let counters = &self.anti_entropy.counters;
        vec![
            counter(
                "pairdb_anti_entropy_comparisons_total",
                get(&counters.comparisons),
                "Comparisons with another replica that ended.",
            ),
            counter(
                "pairdb_anti_entropy_failures_total",
                get(&counters.failures),
                "Comparisons that failed.",
            ),
            counter("pairdb_anti_entropy_rows_total", get(&counters.rows), "Rows made equal."),
            counter(
                "pairdb_anti_entropy_refused_total",
                get(&counters.refused),
                "Rows that one of the sides did not take.",
            ),
            counter(
                "pairdb_safe_point_rounds_total",
                get(&counters.rounds),
                "Rounds that proved what may be forgotten.",
            ),
            counter(
                "pairdb_safe_point_rounds_failed_total",
                get(&counters.rounds_failed),
                "Rounds that proved nothing: a replica was away, or had news.",
            ),
            counter(
                "pairdb_anti_entropy_mended_total",
                get(&counters.mended),
                "Partitions that lost data and have got it back.",
            ),
        ]
    }

    fn of_peers(&self) -> Vec<Figure> {
        let c = &self.counters;
        let mut all = vec![
            counter("pairdb_peer_streams_opened_total", get(&c.streams_opened), "Streams opened."),
            counter(
                "pairdb_peer_streams_failed_total",
                get(&c.streams_failed),
                "Streams that could not be opened.",
            ),
            counter(
                "pairdb_peer_streams_accepted_total",
                get(&c.streams_accepted),
                "Streams that others opened.",
            ),
            counter("pairdb_peer_requests_sent_total", get(&c.requests_sent), "Requests sent."),
            counter(
                "pairdb_peer_requests_unanswered_total",
                get(&c.requests_unanswered),
                "Requests without an answer.",
            ),
            counter(
                "pairdb_peer_requests_overloaded_total",
                get(&c.requests_overloaded),
                "Requests that a full queue did not take.",
            ),
            counter(
                "pairdb_peer_requests_received_total",
                get(&c.requests_received),
                "Requests received.",
            ),
            counter(
                "pairdb_peer_posts_lost_total",
                get(&c.posts_lost),
                "Messages without an answer that were not sent.",
            ),
        ];
        all.extend(Reason::ALL.into_iter().map(|reason| {
            counter("pairdb_peer_refused_total", c.refused(reason), "Peers refused.")
                .label("reason", reason.name())
        }));
        all
    }
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn flag(name: &'static str, holds: bool, help: &'static str) -> Figure {
    gauge(name, u64::from(holds), help)
}
