//! Nodes with empty directories on a network in memory and paused time.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::cluster::consensus::{Consensus, ConsensusError, ConsensusOptions};
use crate::cluster::double_net::{DoubleNet, Handler};
use crate::cluster::fence::Fence;
use crate::cluster::layout::{Answer, Layout, MemberState};
use crate::cluster::peer::{Reply, Request};
use crate::engine::vfs::Vfs;
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;
use crate::store::environment::ManualClock;
use crate::store::{IdentityFile, IdentityOptions, Starting};

mod answers;

const NOW_MS: u64 = 1_700_000_000_000;

fn id(n: u128) -> NodeId {
    NodeId(n)
}

fn address(n: u128) -> String {
    format!("n{n}:7946")
}

fn member(n: u128) -> Member {
    Member {
        name: format!("n{n}"),
        zone: "z".to_owned(),
        weight: 1,
        state: MemberState::Joining,
        address: address(n),
    }
}

fn options(expect: usize, seeds: impl IntoIterator<Item = u128>) -> FormationOptions {
    FormationOptions {
        bootstrap_expect: expect,
        seeds: seeds.into_iter().map(address).collect(),
        cluster_id: None,
        poll: Duration::from_millis(250),
    }
}

impl ClusterIdentity for IdentityFile {
    fn cluster_id(&self) -> Option<NodeId> {
        self.identity().cluster_id.map(NodeId)
    }

    fn assign_cluster(&self, cluster_id: NodeId) -> store::Result<()> {
        IdentityFile::assign_cluster(self, cluster_id.0)
    }
}

/// A node: what answers for it, with a consensus group once it has a cluster.
struct Node {
    me: NodeId,
    environment: Environment,
    peers: Arc<dyn super::super::peer::Peers>,
    formation: Arc<Formation>,
    fence: Arc<Fence>,
    identity: Arc<IdentityFile>,
    admission: Mutex<Option<Admission>>,
    consensus: Mutex<Option<Arc<Consensus>>>,
}

#[tonic::async_trait]
impl Handler for Node {
    async fn handle(
        &self,
        from: NodeId,
        request: Request,
        timeout: Duration,
    ) -> Result<Reply, PeerError> {
        let consensus = self.consensus.lock().clone();
        // The peer port lets no message of the group through to a node without a cluster.
        let consensus = consensus.filter(|_| self.identity.cluster_id().is_some());
        let running = || consensus.clone().ok_or_else(|| refused("NO_CLUSTER", String::new()));
        match request {
            Request::Form(form) => self.formation.handle_form(from, &form).map(Reply::Form),
            Request::Join(join) => {
                let admission = self.admission.lock().clone();
                match admission {
                    Some(admission) => admission.handle_join(from, &join, timeout).await,
                    None => self.formation.handle_join(from, &join),
                }
                .map(Reply::Join)
            }
            Request::Raft(bytes) => Ok(Reply::Raft(running()?.handle(from, &bytes).await?.into())),
            Request::Propose(bytes) => {
                Ok(Reply::Propose(running()?.handle_propose(&bytes, timeout).await?.into()))
            }
            _ => panic!("nothing else is asked"),
        }
    }
}

struct World {
    net: DoubleNet,
    seed: std::sync::atomic::AtomicU64,
}

impl World {
    fn new() -> Self {
        Self { net: DoubleNet::new(), seed: 1.into() }
    }

    fn environment(&self, vfs: Arc<dyn Vfs>, clock: &ManualClock) -> Environment {
        let seed = self.seed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Environment::simulated(vfs, clock, seed)
    }

    /// Starts what looks for a cluster; an error is the disk's.
    fn open(
        &self,
        n: u128,
        vfs: Arc<dyn Vfs>,
        now_ms: u64,
        member: Member,
        options: FormationOptions,
    ) -> store::Result<Arc<Node>> {
        self.open_at(n, vfs, &ManualClock::new(now_ms), member, options)
    }

    fn open_at(
        &self,
        n: u128,
        vfs: Arc<dyn Vfs>,
        clock: &ManualClock,
        member: Member,
        options: FormationOptions,
    ) -> store::Result<Arc<Node>> {
        let environment = self.environment(vfs, clock);
        let dir = Path::new("/");
        let later = IdentityOptions { cluster_later: true, ..IdentityOptions::default() };
        let identity = Arc::new(Starting::read(&environment, dir, later)?.begin()?);
        let fence = Arc::new(Fence::open(Arc::clone(&environment.vfs), dir)?);
        let formation = Formation::open(
            &environment,
            dir,
            id(n),
            member,
            options,
            Arc::clone(&identity) as Arc<dyn ClusterIdentity>,
            Arc::clone(&fence),
        )?;
        let node = Arc::new(Node {
            me: id(n),
            environment,
            peers: self.net.peers(id(n)),
            formation: Arc::new(formation),
            fence,
            identity,
            admission: Mutex::default(),
            consensus: Mutex::default(),
        });
        self.net.serve(id(n), &address(n), Arc::clone(&node) as Arc<dyn Handler>);
        Ok(node)
    }

    fn start(&self, n: u128, vfs: &MemVfs, options: FormationOptions) -> Arc<Node> {
        self.open(n, Arc::new(vfs.clone()), NOW_MS, member(n), options).unwrap()
    }
}

impl Node {
    /// Looks for a cluster and takes its place in it, until it acts under a document.
    async fn enter(self: &Arc<Self>, seconds: u64) -> Result<NodeId, FormationError> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let consensus = self.group().await?;
        let entered = self.formation.run(&self.peers, deadline).await?;
        let admission = Admission::new(Arc::clone(&self.formation), Arc::clone(&consensus));
        *self.admission.lock() = Some(admission);
        if let Entered::Founder { cluster_id, formation, members } = entered {
            let formed =
                consensus.form((cluster_id, formation), 4, &members, NOW_MS, deadline).await;
            if !matches!(formed, Ok(Answer::Done { .. })) {
                return Err(FormationError::TimedOut { last: format!("{formed:?}") });
            }
        }
        let mut watch = self.fence.watch();
        let document = tokio::time::timeout_at(deadline, watch.wait_for(|l| l.epoch() > 0)).await;
        let document =
            document.map_err(|_| FormationError::TimedOut { last: "no document".into() });
        let _document = document?.expect("the fence lives");
        Ok(self.identity.cluster_id().expect("assigned"))
    }

    /// The group, which runs before the node has a cluster: its log is there before anything else.
    async fn group(&self) -> Result<Arc<Consensus>, FormationError> {
        let running = self.consensus.lock().clone();
        if let Some(consensus) = running {
            return Ok(consensus);
        }
        let (pace, dir) = (ConsensusOptions::default(), Path::new("/"));
        let (peers, fence) = (Arc::clone(&self.peers), Arc::clone(&self.fence));
        let has_cluster = self.identity.cluster_id().is_some();
        let started =
            Consensus::start(pace, &self.environment, dir, self.me, peers, fence, has_cluster);
        let failed = |error: ConsensusError| FormationError::TimedOut { last: error.to_string() };
        let consensus = Arc::new(started.await.map_err(failed)?);
        *self.consensus.lock() = Some(Arc::clone(&consensus));
        Ok(consensus)
    }

    async fn stop(&self) {
        let consensus = self.consensus.lock().take();
        *self.admission.lock() = None;
        if let Some(consensus) = consensus {
            consensus.shutdown().await;
        }
    }
}

/// All enter at the same time.
async fn enter_all(nodes: &[Arc<Node>], seconds: u64) -> Vec<Result<NodeId, FormationError>> {
    let entering: Vec<_> = nodes
        .iter()
        .map(|node| {
            let node = Arc::clone(node);
            tokio::spawn(async move { node.enter(seconds).await })
        })
        .collect();
    let mut entered = Vec::new();
    for task in entering {
        entered.push(task.await.unwrap());
    }
    entered
}

fn clusters(entered: Vec<Result<NodeId, FormationError>>) -> Vec<NodeId> {
    let mut clusters: Vec<NodeId> =
        entered.into_iter().map(|cluster| cluster.expect("all enter")).collect();
    clusters.dedup();
    clusters
}

#[tokio::test(start_paused = true)]
async fn a_node_without_seeds_is_a_cluster_of_its_own_at_once_and_stays_it() {
    let world = World::new();
    let vfs = MemVfs::new();
    let node = world.start(1, &vfs, options(1, []));
    let cluster = node.enter(5).await.unwrap();
    assert_eq!(node.fence.document().members.keys().collect::<Vec<_>>(), [&id(1)]);
    node.stop().await;
    let again = world.start(1, &vfs.crash_clone(1), options(1, []));
    assert_eq!(again.enter(5).await.unwrap(), cluster);
}

#[tokio::test(start_paused = true)]
async fn three_nodes_with_empty_directories_form_one_cluster() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=3).map(|n| world.start(n, &MemVfs::new(), options(3, [1, 2, 3]))).collect();
    assert_eq!(clusters(enter_all(&nodes, 20).await).len(), 1);
    for node in &nodes {
        let document = node.fence.document();
        assert_eq!((document.epoch, document.members.len()), (1, 3));
        assert!(document.members.values().all(|member| member.state == MemberState::Normal));
    }
}

/// Each knows only its neighbour: they find the others by asking around.
#[tokio::test(start_paused = true)]
async fn nodes_find_each_other_over_one_seed() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=3).map(|n| world.start(n, &MemVfs::new(), options(3, [n % 3 + 1]))).collect();
    assert_eq!(clusters(enter_all(&nodes, 20).await).len(), 1);
}

/// More nodes than needed: the first ones form the cluster, the others join it.
#[tokio::test(start_paused = true)]
async fn of_five_nodes_three_form_and_two_join() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=5).map(|n| world.start(n, &MemVfs::new(), options(3, [1, 2, 3, 4, 5]))).collect();
    let first = enter_all(&nodes, 60).await;
    let formed: Vec<_> = first.iter().filter_map(|entered| entered.as_ref().ok()).collect();
    // One joins at a time: the other waits for the end of a transition that nobody finishes here.
    assert!(formed.len() >= 4, "{first:?}");
    assert!(formed.iter().all(|cluster| *cluster == formed[0]), "{first:?}");
}

#[tokio::test(start_paused = true)]
async fn too_few_nodes_form_nothing_and_say_so() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=2).map(|n| world.start(n, &MemVfs::new(), options(3, [1, 2]))).collect();
    for entered in enter_all(&nodes, 10).await {
        let error = entered.unwrap_err();
        assert!(error.to_string().contains("fewer than 3"), "{error}");
    }
    assert!(nodes.iter().all(|node| node.identity.cluster_id().is_none()));
}

/// A seed that is silent may know of a cluster: forming beside it would make a second one.
#[tokio::test(start_paused = true)]
async fn nothing_is_formed_while_a_seed_does_not_answer() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=3).map(|n| world.start(n, &MemVfs::new(), options(3, [1, 2, 3, 9]))).collect();
    for entered in enter_all(&nodes, 15).await {
        let error = entered.unwrap_err();
        assert!(error.to_string().contains("n9:7946"), "{error}");
    }
    let ninth = world.start(9, &MemVfs::new(), options(3, [1, 2, 3, 9]));
    let all: Vec<_> = nodes.into_iter().chain([ninth]).collect();
    let entered = enter_all(&all, 60).await;
    let formed: Vec<_> = entered.iter().filter_map(|entered| entered.as_ref().ok()).collect();
    assert!(formed.len() >= 3 && formed.iter().all(|cluster| *cluster == formed[0]), "{entered:?}");
}

/// A node that lost its disk comes back under another id: it must join what is there, not begin
/// anew, though it is told to expect three.
#[tokio::test(start_paused = true)]
async fn a_node_that_lost_its_disk_joins_the_cluster_that_is_there() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=3).map(|n| world.start(n, &MemVfs::new(), options(3, [1, 2, 3]))).collect();
    let cluster = clusters(enter_all(&nodes, 20).await)[0];
    let fourth = world.start(4, &MemVfs::new(), options(3, [1, 2, 3]));
    assert_eq!(fourth.enter(20).await.unwrap(), cluster);
    let document = fourth.fence.document();
    assert_eq!(document.members[&id(4)].state, MemberState::Joining);
    assert!(document.is_joint());
}

fn form(from: u128, members: &[u128], promise: u128) -> FormRequest {
    let bytes = |n: u128| Bytes::copy_from_slice(&id(n).to_bytes());
    let records: BTreeMap<NodeId, Member> = members.iter().map(|n| (id(*n), member(*n))).collect();
    assert_eq!(members[0], from);
    FormRequest {
        cluster_id: bytes(1000 + promise),
        members: members.iter().map(|n| bytes(*n)).collect(),
        records: encode_members(&records),
        promise_id: bytes(promise),
    }
}

fn reason_of<T: std::fmt::Debug>(result: Result<T, PeerError>) -> String {
    match result.unwrap_err() {
        PeerError::Refused { reason, .. } => reason,
        error => panic!("{error}"),
    }
}

/// Two that want to begin ask the same node: it promises itself to one of them, also over a crash.
#[tokio::test(start_paused = true)]
async fn a_promise_is_given_to_one_cluster_only_and_kept_over_a_crash() {
    let world = World::new();
    let vfs = MemVfs::new();
    let node = world.start(5, &vfs, options(2, [1]));
    node.formation.handle_form(id(1), &form(1, &[1, 5], 7)).unwrap();
    node.formation.handle_form(id(1), &form(1, &[1, 5], 7)).unwrap();
    let second = node.formation.handle_form(id(2), &form(2, &[2, 5], 8));
    assert_eq!(reason_of(second), reason::PROMISED);
    let again = world.start(5, &vfs.crash_clone(3), options(2, [1]));
    let second = again.formation.handle_form(id(2), &form(2, &[2, 5], 8));
    assert_eq!(reason_of(second), reason::PROMISED);
    again.formation.handle_form(id(1), &form(1, &[1, 5], 7)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_node_with_a_cluster_makes_no_promise() {
    let world = World::new();
    let node = world.start(5, &MemVfs::new(), options(1, []));
    node.enter(5).await.unwrap();
    let asked = node.formation.handle_form(id(1), &form(1, &[1, 5], 7));
    assert_eq!(reason_of(asked), reason::HAS_CLUSTER);
}

/// Only who is first among the members may ask, and only members may be asked.
#[tokio::test(start_paused = true)]
async fn an_invitation_by_or_for_somebody_else_is_refused() {
    let world = World::new();
    let node = world.start(5, &MemVfs::new(), options(2, [1]));
    let asked = node.formation.handle_form(id(2), &form(1, &[1, 5], 7));
    assert_eq!(reason_of(asked), "INVALID_ARGUMENT");
    let asked = node.formation.handle_form(id(1), &form(1, &[1, 2], 7));
    assert_eq!(reason_of(asked), "INVALID_ARGUMENT");
    let garbage = FormRequest { records: Bytes::from_static(b"{"), ..form(1, &[1, 5], 7) };
    assert_eq!(reason_of(node.formation.handle_form(id(1), &garbage)), "INVALID_ARGUMENT");
    assert_eq!(node.formation.promises.current(), None);
}

/// The initiator gave up and asks anew: who had promised is free again, and all enter one cluster.
#[tokio::test(start_paused = true)]
async fn a_promise_whose_initiator_gave_up_is_taken_back() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=3).map(|n| world.start(n, &MemVfs::new(), options(3, [1, 2, 3]))).collect();
    let forgotten = form(1, &[1, 2, 3], 7);
    nodes[1].formation.handle_form(id(1), &forgotten).unwrap();
    assert_eq!(clusters(enter_all(&nodes, 60).await).len(), 1);
    assert!(nodes[1].formation.promises.current().is_some_and(|promise| promise.id != id(7)));
}

/// Found with three processes that started at once: a node asked its initiator for a cluster, gave
/// it the promise while the answer was under way, and took the answer, which knew of no promise,
/// for a refusal of it. The initiator founded the cluster alone and for ever.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_older_than_the_promise_does_not_take_it_back() {
    let world = World::new();
    let node = world.start(2, &MemVfs::new(), options(3, [1]));
    node.formation.handle_form(id(1), &form(1, &[1, 2, 3], 5)).expect("it gives it");
    let promise = node.formation.promises.current().expect("given");
    let late = JoinReply { promise_holds: false, ..JoinReply::default() };
    node.formation.take(None, id(1), &late).expect("kept");
    assert_eq!(node.formation.promises.current(), Some(promise.clone()));
    node.formation.take(Some(&promise), id(1), &late).expect("kept");
    assert_eq!(node.formation.promises.current(), None, "here it was asked about");
}

/// Every file call of every node in turn is the last before a power loss, once for each of the
/// three: whatever was half done is resumed, and there is one cluster of all three in the end.
#[test]
fn a_crash_at_any_step_is_resumed_to_one_cluster() {
    for victim in 1..=3_u128 {
        let mut failing = 1;
        loop {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            if !runtime.block_on(crash_and_resume(victim, failing)) {
                break;
            }
            failing += 3;
        }
        assert!(failing > 20, "{failing}");
    }
}

/// Whether the call was reached.
async fn crash_and_resume(victim: u128, failing: u64) -> bool {
    let world = World::new();
    let disks: Vec<MemVfs> = (1..=3).map(|_| MemVfs::new()).collect();
    let faults = FaultVfs::new(Arc::new(disks[victim as usize - 1].clone()));
    faults.fail_call(failing, std::io::ErrorKind::Other);
    let mut nodes = Vec::new();
    for n in 1..=3 {
        let disk = &disks[n as usize - 1];
        let vfs: Arc<dyn Vfs> =
            if n == victim { Arc::new(faults.clone()) } else { Arc::new(disk.clone()) };
        if let Ok(node) = world.open(n, vfs, NOW_MS, member(n), options(3, [1, 2, 3])) {
            nodes.push(node);
        }
    }
    let _first = enter_all(&nodes, 15).await;
    for node in &nodes {
        node.stop().await;
    }
    let reached = faults.calls() >= failing;
    let seed = failing;
    let again: Vec<_> = (1..=3)
        .map(|n| {
            let disk = disks[n as usize - 1].crash_clone(seed);
            world.start(n, &disk, options(3, [1, 2, 3]))
        })
        .collect();
    let entered = enter_all(&again, 60).await;
    let context = format!("victim {victim}, call {failing}: {entered:?}");
    let found: Vec<_> = entered.into_iter().filter_map(Result::ok).collect();
    assert_eq!(found.len(), 3, "{context}");
    assert!(found.iter().all(|cluster| *cluster == found[0]), "{context}");
    for node in &again {
        node.stop().await;
    }
    reached
}

async fn one_node_cluster(world: &World) -> Arc<Node> {
    let node = world.start(1, &MemVfs::new(), options(1, []));
    node.enter(5).await.unwrap();
    node
}

async fn refusal(node: &Arc<Node>) -> String {
    match node.enter(10).await.unwrap_err() {
        FormationError::Refused { reason, .. } => reason,
        error => panic!("{error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_that_may_not_join_is_refused_by_name() {
    let world = World::new();
    let first = one_node_cluster(&world).await;
    let disk = || Arc::new(MemVfs::new()) as Arc<dyn Vfs>;

    let only = FormationOptions { cluster_id: Some(id(77)), ..options(1, [1]) };
    let other = world.open(2, disk(), NOW_MS, member(2), only).unwrap();
    assert_eq!(refusal(&other).await, reason::WRONG_CLUSTER);

    let late = NOW_MS + CLOCK_OFFSET_MS_MAX + 1;
    let late = world.open(3, disk(), late, member(3), options(1, [1])).unwrap();
    let error = late.enter(10).await.unwrap_err();
    assert!(matches!(error, FormationError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains(reason::CLOCK_OFFSET), "{error}");

    let namesake = Member { name: "n1".to_owned(), ..member(4) };
    let namesake = world.open(4, disk(), NOW_MS, namesake, options(1, [1])).unwrap();
    assert_eq!(refusal(&namesake).await, reason::NAME_TAKEN);
    let mut document = (*first.fence.document()).clone();
    document.replacements.insert(id(1), "n2".to_owned());
    document.version += 1;
    first.fence.adopt(&Arc::new(document)).unwrap();
    assert_eq!(refusal(&namesake).await, reason::NAME_TAKEN, "it comes in for nobody");

    let mut document = (*first.fence.document()).clone();
    let gone = Member { state: MemberState::Removed, ..member(5) };
    document.members.insert(id(5), gone);
    document.version += 1;
    first.fence.adopt(&Arc::new(document)).unwrap();
    let removed = world.open(5, disk(), NOW_MS, member(5), options(1, [1])).unwrap();
    assert_eq!(refusal(&removed).await, reason::NODE_ID_RETIRED);
    assert!(removed.identity.cluster_id().is_none());
}

/// The answer is lost after the node became a member: it asks again and is let in.
#[tokio::test(start_paused = true)]
async fn a_node_whose_admission_was_not_heard_asks_again() {
    let world = World::new();
    let first = one_node_cluster(&world).await;
    let node = world.start(2, &MemVfs::new(), options(1, [1]));
    let mut documents = first.fence.watch();
    let lost = async {
        let admitted = |layout: &Arc<Layout>| layout.document().members.contains_key(&id(2));
        documents.wait_for(admitted).await.unwrap();
        world.net.lose_replies(id(1), id(2));
    };
    let (entered, ()) = tokio::join!(node.enter(4), lost);
    let error = entered.unwrap_err();
    assert!(matches!(error, FormationError::TimedOut { .. }), "{error}");
    assert!(first.fence.document().members.contains_key(&id(2)));
    world.net.heal();
    assert_eq!(Some(node.enter(10).await.unwrap()), first.identity.cluster_id());
}

/// A document reaches a node also while it still asks to be let in: it is no member by that, and
/// asks on; nor is it when it is started anew: seed 20 of the simulation, where it took itself for
/// one and waited for ever.
#[tokio::test(start_paused = true)]
async fn a_node_that_has_heard_of_a_document_without_it_asks_to_be_in_one() {
    for (expect, is_restarted) in [(3, false), (1, true)] {
        let world = World::new();
        let first = one_node_cluster(&world).await;
        let vfs = MemVfs::new();
        let mut node = world.start(2, &vfs, options(expect, [1]));
        node.group().await.unwrap();
        node.fence.adopt(&first.fence.document()).unwrap();
        if is_restarted {
            node.stop().await;
            node = world.start(2, &vfs, options(expect, [1]));
        }
        assert_eq!(Some(node.enter(10).await.unwrap()), first.identity.cluster_id());
        assert!(node.fence.document().members.contains_key(&id(2)));
        assert_eq!(node.identity.cluster_id(), first.identity.cluster_id());
    }
}

/// A cluster is not had without a document: its epoch was answered by, and must not fall.
#[tokio::test(start_paused = true)]
async fn a_document_that_is_missing_on_a_member_is_corruption() {
    let world = World::new();
    one_node_cluster(&world).await;
    let vfs = MemVfs::new();
    let node = world.start(2, &vfs, options(1, [1]));
    node.enter(10).await.unwrap();
    node.stop().await;
    vfs.remove(Path::new("/LAYOUT")).unwrap();
    let again = world.start(2, &vfs, options(1, [1]));
    let deadline = Instant::now() + Duration::from_secs(5);
    let error = again.formation.run(&again.peers, deadline).await.unwrap_err();
    assert!(matches!(&error, FormationError::Store(error) if error.reason() == "CORRUPTION"));
    assert!(error.to_string().contains("LAYOUT"), "{error}");
}
