//! Whole groups in one process, on paused time: every wait is virtual, every run the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::cluster::double_net::{DoubleNet, Handler};
use crate::cluster::layout::{Document, MemberState};
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::store::TenantSpec;
use crate::store::environment::ManualClock;

mod again;
mod faults;

const NOW_MS: u64 = 1_700_000_000_000;

fn id(n: u128) -> NodeId {
    NodeId(n)
}

fn member(n: u128) -> Member {
    Member {
        name: format!("n{n}"),
        zone: format!("z{}", n % 3),
        weight: 1,
        state: MemberState::Normal,
        address: format!("n{n}:7946"),
    }
}

fn members(ids: impl IntoIterator<Item = u128>) -> BTreeMap<NodeId, Member> {
    ids.into_iter().map(|n| (id(n), member(n))).collect()
}

fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn create(n: u128) -> Command {
    Command::CreateTenant { spec: TenantSpec::new(format!("t{n}")), now_ms: NOW_MS }
}

/// Whether the document has the tenant of [`create`].
fn has(document: &Arc<Document>, n: u128) -> bool {
    document.tenants.values().any(|tenant| tenant.name == format!("t{n}"))
}

fn is_created(answer: &Result<Answer, ProposeError>) -> bool {
    matches!(answer, Ok(Answer::Tenant(_)))
}

/// A node: its disk, and what runs on it.
struct Node {
    vfs: MemVfs,
    consensus: Arc<Consensus>,
    fence: Arc<Fence>,
}

struct Answering(Arc<Consensus>);

#[tonic::async_trait]
impl Handler for Answering {
    async fn handle(
        &self,
        from: NodeId,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        match request {
            Request::Raft(bytes) => Ok(Reply::Raft(self.0.handle(from, &bytes).await?.into())),
            Request::Propose(bytes) => {
                Ok(Reply::Propose(self.0.handle_propose(&bytes, timeout).await?.into()))
            }
            _ => panic!("the group sends nothing else"),
        }
    }
}

struct Cluster {
    net: DoubleNet,
    nodes: BTreeMap<u128, Node>,
    seed: u64,
}

impl Cluster {
    fn new() -> Self {
        Self { net: DoubleNet::new(), nodes: BTreeMap::new(), seed: 1 }
    }

    async fn start(&mut self, n: u128, vfs: MemVfs, options: ConsensusOptions) {
        let shared = Arc::new(vfs.clone());
        assert!(self.try_start(n, &vfs, shared, options).await, "its files are whole");
    }

    /// Starts on `vfs`, which may fail, over `disk`.
    async fn try_start(
        &mut self,
        n: u128,
        disk: &MemVfs,
        vfs: Arc<dyn engine::vfs::Vfs>,
        options: ConsensusOptions,
    ) -> bool {
        self.seed += 1;
        let environment = Environment::simulated(vfs, &ManualClock::new(NOW_MS), self.seed);
        let dir = Path::new("/");
        let Ok(fence) = Fence::open(Arc::clone(&environment.vfs), dir) else { return false };
        let (fence, peers) = (Arc::new(fence), self.net.peers(id(n)));
        let started =
            Consensus::start(options, &environment, dir, id(n), peers, Arc::clone(&fence), false)
                .await;
        let Ok(consensus) = started.map(Arc::new) else { return false };
        self.net.serve(id(n), &format!("n{n}:7946"), Arc::new(Answering(Arc::clone(&consensus))));
        self.nodes.insert(n, Node { vfs: disk.clone(), consensus, fence });
        true
    }

    /// A group of `1..=n`, formed by all of them at once.
    async fn formed(n: u128) -> Self {
        Self::formed_with(n, ConsensusOptions::default()).await
    }

    async fn formed_with(n: u128, options: ConsensusOptions) -> Self {
        let mut cluster = Self::new();
        for node in 1..=n {
            cluster.start(node, MemVfs::new(), options).await;
        }
        let all = members(1..=n);
        let forming = cluster.nodes.values().map(|node| {
            let (consensus, all) = (Arc::clone(&node.consensus), all.clone());
            tokio::spawn(async move {
                consensus.form((id(99), id(98)), 4, &all, NOW_MS, within(10)).await
            })
        });
        for formed in forming.collect::<Vec<_>>() {
            assert_eq!(formed.await.unwrap(), Ok(Answer::Done { epoch: 1 }));
        }
        cluster
    }

    /// The machine loses power: what was not synced may be lost.
    async fn crash(&mut self, n: u128) -> MemVfs {
        self.seed += 1;
        let node = self.nodes.remove(&n).unwrap();
        let disk = node.vfs.crash_clone(self.seed);
        self.net.stop(id(n));
        node.consensus.shutdown().await;
        disk
    }

    fn group(&self, n: u128) -> &Consensus {
        &self.nodes[&n].consensus
    }

    /// Waits until `ready` holds for the group as node `n` sees it.
    async fn wait(&self, n: u128, ready: impl Fn(&GroupStatus) -> bool) -> GroupStatus {
        let mut metrics = self.group(n).raft.metrics();
        tokio::time::timeout(Duration::from_secs(30), async {
            while !ready(&self.group(n).status()) {
                metrics.changed().await.expect("the group runs");
            }
        })
        .await
        .unwrap_or_else(|_| panic!("node {n} waits in vain: {:?}", self.group(n).status()));
        self.group(n).status()
    }

    async fn leader(&self, of: u128) -> u128 {
        self.wait(of, |status| status.leader.is_some()).await.leader.unwrap().0
    }

    /// Waits until node `n` acts under a document of at least this version.
    async fn learned(&self, n: u128, version: u64) -> Arc<Document> {
        let mut watch = self.nodes[&n].fence.watch();
        let learned = watch.wait_for(|layout| layout.version() >= version);
        let learned = tokio::time::timeout(Duration::from_secs(30), learned).await;
        Arc::clone(learned.expect("it learns in time").expect("the fence lives").document())
    }
}

/// All members form the cluster at the same time: one document comes of it, everywhere.
#[tokio::test(start_paused = true)]
async fn three_nodes_that_all_form_the_cluster_form_it_once() {
    let cluster = Cluster::formed(3).await;
    for n in 1..=3 {
        let document = cluster.learned(n, 1).await;
        assert_eq!((document.version, document.epoch, document.cluster_id), (1, 1, id(99)));
        assert_eq!(document.members, members(1..=3));
    }
    let status = cluster.group(2).status();
    assert_eq!((status.voters.len(), status.learners.len()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_proposal_reaches_the_leader_from_every_node_and_every_node_learns_of_it() {
    let cluster = Cluster::formed(3).await;
    for n in 1..=3 {
        let answer = cluster.group(n).propose(create(n), within(5)).await;
        assert!(is_created(&answer), "{answer:?}");
    }
    for n in 1..=3 {
        let document = cluster.learned(n, 4).await;
        assert!((1..=3).all(|k| has(&document, k)));
    }
}

#[tokio::test(start_paused = true)]
async fn the_others_elect_a_leader_when_theirs_dies_and_it_follows_when_it_returns() {
    let mut cluster = Cluster::formed(3).await;
    let dead = cluster.leader(1).await;
    let alive: Vec<u128> = (1..=3).filter(|n| *n != dead).collect();
    let disk = cluster.crash(dead).await;
    let answer = cluster.group(alive[0]).propose(create(7), within(20)).await;
    assert!(is_created(&answer), "{answer:?}");

    cluster.start(dead, disk, ConsensusOptions::default()).await;
    let document = cluster.learned(dead, 2).await;
    assert!(has(&document, 7));
    assert_ne!(cluster.leader(dead).await, dead);
}

/// All lose power at once, again and again: what was answered is there, and the group goes on.
#[tokio::test(start_paused = true)]
async fn what_was_answered_survives_a_power_loss_of_all_nodes() {
    let mut cluster = Cluster::formed(3).await;
    for round in 0..6_u128 {
        let from = round % 3 + 1;
        let answer = cluster.group(from).propose(create(100 + round), within(20)).await;
        assert!(is_created(&answer), "round {round}: {answer:?}");
        let mut disks = Vec::new();
        for n in 1..=3 {
            disks.push((n, cluster.crash(n).await));
        }
        for (n, disk) in disks {
            cluster.start(n, disk, ConsensusOptions::default()).await;
        }
        for n in 1..=3 {
            let document = cluster.learned(n, round as u64 + 2).await;
            assert!((0..=round).all(|k| has(&document, 100 + k)), "round {round}");
        }
    }
}

/// A leader cut off with a minority takes proposals it cannot commit: it must not say that they
/// failed, and must not show them.
#[tokio::test(start_paused = true)]
async fn a_minority_commits_nothing_and_says_that_it_does_not_know() {
    let cluster = Cluster::formed(3).await;
    let leader = cluster.leader(1).await;
    let others: BTreeSet<u128> = (1..=3).filter(|n| *n != leader).collect();
    for other in &others {
        cluster.net.cut(id(leader), id(*other));
    }
    let lost = cluster.group(leader).propose(create(7), within(10)).await;
    assert_eq!(lost.unwrap_err().outcome(), Outcome::Unknown);
    assert!(!has(&cluster.nodes[&leader].fence.document(), 7));

    let first = *others.first().unwrap();
    let kept = cluster.group(first).propose(create(8), within(20)).await;
    assert!(is_created(&kept), "{kept:?}");
    cluster.net.heal();
    let document = cluster.learned(leader, 2).await;
    assert!(has(&document, 8) && !has(&document, 7), "what the minority took is gone");
}

/// A follower cut off from everybody has nobody to propose to: nothing happened, and it says so.
#[tokio::test(start_paused = true)]
async fn a_proposal_that_never_reached_a_leader_was_not_applied() {
    let cluster = Cluster::formed(3).await;
    let leader = cluster.leader(1).await;
    let lonely = (1..=3).find(|n| *n != leader).unwrap();
    (1..=3).filter(|n| *n != lonely).for_each(|n| cluster.net.cut(id(lonely), id(n)));
    cluster.wait(lonely, |status| status.leader.is_none()).await;
    let refused = cluster.group(lonely).propose(create(7), within(5)).await;
    assert_eq!(refused, Err(ProposeError::NoLeader));
}

/// The reply of the leader is lost: the command took effect, and the proposer must not say no.
#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_an_unknown_outcome() {
    let cluster = Cluster::formed(3).await;
    let leader = cluster.leader(1).await;
    let follower = (1..=3).find(|n| *n != leader).unwrap();
    cluster.net.lose_replies(id(leader), id(follower));
    let answer = cluster.group(follower).propose(create(7), within(2)).await;
    assert_eq!(answer.unwrap_err().outcome(), Outcome::Unknown);
    assert!(has(&cluster.learned(leader, 2).await, 7));
}

/// A node that was away for longer than the log reaches back gets the snapshot, and its own log
/// starts behind it.
#[tokio::test(start_paused = true)]
async fn a_node_that_was_away_too_long_is_caught_up_by_a_snapshot() {
    let options = ConsensusOptions { snapshot_entries: 8, ..ConsensusOptions::default() };
    let mut cluster = Cluster::formed(3).await;
    for n in 1..=3 {
        let disk = cluster.crash(n).await;
        cluster.start(n, disk, options).await;
    }
    let away = (1..=3).find(|n| Some(id(*n)) != cluster.group(1).status().leader).unwrap();
    let disk = cluster.crash(away).await;
    let from = away % 3 + 1;
    for n in 0..60 {
        let answer = cluster.group(from).propose(create(1000 + n), within(20)).await;
        assert!(is_created(&answer), "{answer:?}");
    }
    cluster.start(away, disk, options).await;
    let document = cluster.learned(away, 61).await;
    assert_eq!(document.tenants.len(), 61);
    let disk = cluster.crash(away).await;
    assert!(engine::vfs::Vfs::exists(&disk, Path::new("/raft/SNAPSHOT")).unwrap());
    cluster.start(away, disk, options).await;
    assert_eq!(cluster.nodes[&away].fence.document().version, 61);
    cluster.wait(away, |status| status.leader.is_some()).await;
}

/// The document decides who is in the group: a newcomer learns, and votes once it is normal.
#[tokio::test(start_paused = true)]
async fn a_member_of_the_document_becomes_a_learner_of_the_group() {
    let mut cluster = Cluster::formed(3).await;
    cluster.start(4, MemVfs::new(), ConsensusOptions::default()).await;
    let joining = Member { state: MemberState::Joining, ..member(4) };
    let members = [(id(4), joining)].into();
    let answer = cluster.group(2).propose(Command::Join { epoch: 1, members }, within(5)).await;
    assert_eq!(answer, Ok(Answer::Done { epoch: 2 }));
    let document = cluster.learned(4, 2).await;
    assert_eq!(document.members[&id(4)].state, MemberState::Joining);
    let status = cluster.wait(4, |status| status.learners.contains(&id(4))).await;
    assert_eq!(status.voters, (1..=3).map(id).collect());
    let answer = cluster.group(4).propose(create(4), within(5)).await;
    assert!(is_created(&answer), "{answer:?}");
}

/// A group of one whose disk fails at call `failing`: what was answered, and whether the call was
/// reached.
async fn answered_until(failing: u64, disk: &MemVfs, options: ConsensusOptions) -> (u128, bool) {
    let faults = FaultVfs::new(Arc::new(disk.clone()));
    faults.fail_call(failing, std::io::ErrorKind::Other);
    let mut cluster = Cluster::new();
    let mut answered = 0;
    if cluster.try_start(1, disk, Arc::new(faults.clone()), options).await {
        let form =
            cluster.group(1).form((id(99), id(98)), 4, &members([1]), NOW_MS, within(3)).await;
        if form.is_ok() {
            for n in 1..=12 {
                if !is_created(&cluster.group(1).propose(create(n), within(3)).await) {
                    break;
                }
                answered = n;
            }
        }
        let _disk = cluster.crash(1).await;
    }
    (answered, faults.calls() >= failing)
}

/// The disk fails and the power goes at every third file call in turn, from the first start over
/// elections, commits, snapshots and purges: every answer that was given still holds.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_file_call_takes_no_answer_back() {
    let options = ConsensusOptions { snapshot_entries: 4, ..ConsensusOptions::default() };
    for failing in (1..).step_by(3) {
        let disk = MemVfs::new();
        let (answered, reached) = answered_until(failing, &disk, options).await;
        let mut cluster = Cluster::new();
        cluster.start(1, disk.crash_clone(failing), options).await;
        let formed =
            cluster.group(1).form((id(99), id(98)), 4, &members([1]), NOW_MS, within(9)).await;
        assert_eq!(formed, Ok(Answer::Done { epoch: 1 }), "call {failing}");
        let document = cluster.nodes[&1].fence.document();
        assert!(
            (1..=answered).all(|n| has(&document, n)),
            "call {failing}: {answered} {document:?}"
        );
        if !reached {
            assert!(answered == 12 && failing > 150, "{answered} {failing}");
            break;
        }
    }
}

/// A vote that is forgotten may be given twice.
#[tokio::test(start_paused = true)]
async fn a_log_that_is_missing_beside_a_snapshot_is_corruption() {
    let options = ConsensusOptions { snapshot_entries: 4, ..ConsensusOptions::default() };
    let disk = MemVfs::new();
    answered_until(u64::MAX, &disk, options).await;
    engine::vfs::Vfs::remove(&disk, Path::new("/raft/LOG")).unwrap();
    let shared: Arc<dyn engine::vfs::Vfs> = Arc::new(disk.clone());
    let mut cluster = Cluster::new();
    assert!(!cluster.try_start(1, &disk, shared, options).await);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_is_too_long_is_refused_before_it_is_proposed() {
    let cluster = Cluster::formed(1).await;
    let long = Member { name: "x".repeat(COMMAND_BYTES_MAX), ..member(2) };
    let command = Command::Join { epoch: 1, members: [(id(2), long)].into() };
    let refused = cluster.group(1).propose(command, within(5)).await.unwrap_err();
    assert!(matches!(refused, ProposeError::TooLarge { .. }), "{refused}");
}

/// Whose vote a message carries is whose message it must be: a node cannot speak for another.
#[tokio::test(start_paused = true)]
async fn a_message_under_another_nodes_vote_is_refused() {
    let cluster = Cluster::formed(3).await;
    let vote = openraft::Vote::new(1000, id(2));
    let forged = network::tests_vote(openraft::raft::VoteRequest::new(vote, None));
    let refused = cluster.group(1).handle(id(3), &forged).await.unwrap_err();
    assert!(matches!(&refused, PeerError::Refused { reason, .. } if reason == "PERMISSION_DENIED"));
    assert!(cluster.group(1).status().term < 1000);
    assert!(cluster.group(1).handle(id(3), b"garbage").await.is_err());
}

/// The same seed makes the same history: no thread, clock or chance of the machine has a say.
#[test]
fn the_same_seeds_elect_the_same_leaders() {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let began = Instant::now();
            let mut cluster = Cluster::formed(5).await;
            let mut trace = Vec::new();
            for _ in 0..3 {
                let from = *cluster.nodes.keys().next().unwrap();
                let leader = cluster.leader(from).await;
                let disk = cluster.crash(leader).await;
                let from = *cluster.nodes.keys().next().unwrap();
                let answer = cluster.group(from).propose(create(leader), within(30)).await;
                trace.push((leader, answer, began.elapsed()));
                cluster.start(leader, disk, ConsensusOptions::default()).await;
            }
            trace
        })
    };
    assert_eq!(run(), run());
}
