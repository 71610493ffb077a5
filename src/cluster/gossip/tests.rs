//! Nodes that gossip with each other, in memory and in a time of their own.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::*;
use crate::cluster::local::Told;
use crate::cluster::peer::Request;
use crate::cluster::view::{Liveness, View};
use crate::store::environment::ManualClock;

/// Carries messages to inboxes, by address and by name.
#[derive(Default)]
struct Wire {
    inboxes: Mutex<BTreeMap<String, Arc<Inbox>>>,
    cut: Mutex<BTreeSet<String>>,
}

impl Post for Wire {
    fn post(&self, address: &str, request: Request) {
        let Request::Gossip(message) = request else { panic!("only gossip: {request:?}") };
        let inbox = self.inboxes.lock().get(address).cloned();
        if let Some(inbox) = inbox.filter(|_| !self.cut.lock().contains(address)) {
            inbox.put(message);
        }
    }
}

struct Cluster {
    wire: Arc<Wire>,
    began: Instant,
}

const CLUSTER: NodeId = NodeId(77);

impl Cluster {
    fn new() -> Self {
        Self { wire: Arc::default(), began: Instant::now() }
    }

    /// Starts a node whose seed is the node 1, by name.
    fn start(&self, id: u8, generation: u64, cluster: Option<NodeId>) -> (Arc<Local>, Gossip) {
        // Every incarnation has an address of its own, as in a cluster of containers.
        let advertise = SocketAddr::from(([10, 0, generation as u8, id], 7946));
        let clock = Arc::new(ManualClock::new(1));
        let node = NodeId(id.into());
        let address = advertise.to_string();
        let local = Arc::new(Local::new(node, generation, cluster, address.clone(), clock));
        let options = Options::new(advertise, vec!["seed:7946".to_owned()]);
        let facts = Facts { zone: format!("zone-{id}"), ..Facts::default() };
        let post = Arc::clone(&self.wire) as _;
        let gossip = Gossip::start(Arc::clone(&local), post, options, facts);
        let mut inboxes = self.wire.inboxes.lock();
        inboxes.insert(address, Arc::clone(&gossip.inbox));
        if id == 1 {
            inboxes.insert("seed:7946".to_owned(), Arc::clone(&gossip.inbox));
        }
        (local, gossip)
    }

    fn member(&self, id: u8) -> Gossip {
        self.start(id, 1, Some(CLUSTER)).1
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

/// Waits for the view to be so, a minute at most.
async fn until(gossip: &Gossip, what: &str, is_so: impl Fn(&GossipView) -> bool) {
    let mut changes = gossip.view().watch();
    let waiting = async {
        while !is_so(gossip.view()) {
            changes.changed().await.expect("the view lives");
        }
    };
    let so = tokio::time::timeout(Duration::from_secs(60), waiting).await;
    so.unwrap_or_else(|_| panic!("not within a minute: {what}: {:?}", gossip.view().nodes()));
}

fn up(view: &GossipView) -> Vec<u128> {
    view.nodes().values().filter(|node| node.is_up).map(|node| node.node.0).collect()
}

#[tokio::test(start_paused = true)]
async fn nodes_find_each_other_through_a_seed_and_learn_each_others_facts() {
    let cluster = Cluster::new();
    let nodes: Vec<_> = (1..=5).map(|id| cluster.member(id)).collect();
    for node in &nodes {
        until(node, "five are up", |view| up(view) == [1, 2, 3, 4, 5]).await;
    }
    assert!(cluster.elapsed() < Duration::from_secs(10), "{:?}", cluster.elapsed());
    let facts = nodes[4].view().nodes()[&NodeId(2)].clone();
    assert_eq!((facts.zone.as_str(), facts.cluster), ("zone-2", Some(CLUSTER)));
    assert_eq!(nodes[4].view().address(NodeId(2)), Some("10.0.1.2:7946".to_owned()));
    nodes[1].tell(|facts| {
        facts.run_state = RunState::Serving;
        facts.epoch = 9;
        facts.disk = 0.25;
    });
    until(&nodes[4], "what two says", |view| {
        let two = view.nodes()[&NodeId(2)].clone();
        (two.run_state, two.epoch, two.disk) == (RunState::Serving, 9, 0.25)
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_falls_silent_is_down_within_eight_seconds_and_up_when_it_is_heard_again() {
    let cluster = Cluster::new();
    let (one, two, three) = (cluster.member(1), cluster.member(2), cluster.member(3));
    until(&one, "three are up", |view| up(view).len() == 3).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let silent = ["10.0.1.2:7946".to_owned()];
    cluster.wire.cut.lock().extend(silent);
    let inbox = Arc::clone(&three.inbox);
    // Its own messages are lost too.
    cluster.wire.inboxes.lock().insert("10.0.1.2:7946".to_owned(), inbox);
    drop(two);
    let cut = Instant::now();
    until(&one, "two is down", |view| !view.is_up(NodeId(2))).await;
    assert!(cut.elapsed() < Duration::from_secs(8), "{:?}", cut.elapsed());
    // It comes back under another address and a higher generation.
    let (_, _back) = cluster.start(2, 2, Some(CLUSTER));
    until(&one, "two is up again", |view| view.is_up(NodeId(2))).await;
    assert_eq!(one.view().address(NodeId(2)), Some("10.0.2.2:7946".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn an_older_incarnation_is_dead_as_soon_as_a_newer_one_is_heard_of() {
    let cluster = Cluster::new();
    let one = cluster.member(1);
    let (old_local, _old) = cluster.start(2, 1, Some(CLUSTER));
    until(&one, "the old one", |view| view.is_up(NodeId(2))).await;
    let (_, _new) = cluster.start(2, 2, Some(CLUSTER));
    let generation = |view: &GossipView| view.nodes()[&NodeId(2)].generation;
    until(&one, "the new one", |view| generation(view) == 2).await;
    // The old one is alive and gossips; nobody is shown it any more, and it learns of it.
    let mut superseded = old_local.superseded();
    superseded.wait_for(|superseded| *superseded).await.expect("the node lives");
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(generation(one.view()), 2);
    assert!(one.view().is_up(NodeId(2)));
}

#[tokio::test(start_paused = true)]
async fn nodes_without_a_cluster_find_each_other_and_a_cluster_shows_no_strangers() {
    let cluster = Cluster::new();
    let (local, one) = cluster.start(1, 1, None);
    let (_, _two) = cluster.start(2, 1, None);
    let (_, _stranger) = cluster.start(3, 1, Some(NodeId(78)));
    until(&one, "all are seen", |view| up(view) == [1, 2, 3]).await;
    assert_eq!(one.view().nodes()[&NodeId(2)].cluster, None);
    local.enter(CLUSTER, NodeId::default());
    until(&one, "the stranger is gone", |view| up(view) == [1, 2]).await;
    assert_eq!(one.view().nodes()[&NodeId(1)].cluster, Some(CLUSTER));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_is_down_at_once() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.member(1), cluster.member(2));
    until(&one, "two is up", |view| view.is_up(NodeId(2))).await;
    let left = Instant::now();
    tokio::join!(two.leave(), until(&one, "two is down", |view| !view.is_up(NodeId(2))));
    assert!(left.elapsed() < Duration::from_secs(2), "{:?}", left.elapsed());
}

/// A node that is alone says no farewell: what ends under its gossip is then no fault.
#[tokio::test(start_paused = true)]
async fn a_gossip_that_was_ended_falls_silent_and_leaves_nothing_running() {
    let cluster = Cluster::new();
    let (one, two) = (cluster.member(1), cluster.member(2));
    until(&one, "two is up", |view| view.is_up(NodeId(2))).await;
    two.end().await;
    assert!(two.tasks.is_empty(), "its loop runs");
    until(&one, "two is silent", |view| !view.is_up(NodeId(2))).await;
    two.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_gossip_loop_that_ends_is_started_again_and_is_believed() {
    let cluster = Cluster::new();
    let one = cluster.member(1);
    let clock = Arc::new(ManualClock::new(1));
    let advertise = SocketAddr::from(([10, 0, 1, 2], 7946));
    let local = Local::new(NodeId(2), 1, Some(CLUSTER), advertise.to_string(), clock);
    let (own, _) = watch::channel(Facts { node: NodeId(2), ..Facts::default() });
    let transport = PeerTransport {
        inbox: Arc::default(),
        post: Arc::clone(&cluster.wire) as _,
        seeds: Arc::new(Seeds::new(&["seed:7946".to_owned()])),
        own: advertise,
        too_long: Arc::default(),
    };
    let inbox = Arc::clone(&transport.inbox);
    cluster.wire.inboxes.lock().insert(advertise.to_string(), inbox);
    let local = Arc::new(local);
    let view = GossipView::new(Arc::clone(&local), own.borrow().clone());
    let options = Options::new(advertise, Vec::new());
    let mut runner = Runner { local, options, transport, view, own: own.subscribe() };
    // Its first life ends after a while.
    let _ = tokio::time::timeout(Duration::from_secs(20), runner.live(0)).await;
    until(&one, "two was up", |view| view.nodes().contains_key(&NodeId(2))).await;
    own.send_modify(|facts| facts.hints = 5);
    let hints = |view: &GossipView| view.nodes()[&NodeId(2)].hints;
    tokio::select! {
        () = runner.live(1) => panic!("it does not end"),
        () = until(&one, "news of its second life", |view| hints(view) == 5) => {}
    }
    assert!(one.view().is_up(NodeId(2)));
}

/// A node that was brought back from a checkpoint is of the same cluster by its id. What it told
/// before is passed on by one who waits to join, and must not make it seem to be put back.
#[tokio::test(start_paused = true)]
async fn what_was_told_in_a_cluster_formed_apart_is_not_remembered() {
    let cluster = Cluster::new();
    let (_, waits) = cluster.start(1, 1, None);
    let (old, before) = cluster.start(2, 7, Some(CLUSTER));
    old.formed_as(NodeId(11));
    before.tell(|facts| facts.lease = 900);
    let lease = |view: &GossipView| view.nodes().get(&NodeId(2)).map_or(0, |two| two.lease);
    until(&waits, "what two told", |view| lease(view) == 900).await;
    drop(before);
    let (new, after) = cluster.start(2, 8, Some(CLUSTER));
    new.formed_as(NodeId(12));
    after.tell(|facts| facts.lease = 300);
    let (third, joins) = cluster.start(3, 1, Some(CLUSTER));
    third.formed_as(NodeId(12));
    until(&joins, "what two tells now", |view| lease(view) == 300).await;
    let told = Told { generation: 8, lease: 300, lease_before: 0 };
    assert_eq!(third.told_by(NodeId(2)), told);
    let (fourth, joins) = cluster.start(4, 1, Some(CLUSTER));
    fourth.formed_as(NodeId(11));
    until(&joins, "what two tells now", |view| lease(view) == 300).await;
    let told = Told { generation: 8, lease: 0, lease_before: 900 };
    assert_eq!(fourth.told_by(NodeId(2)), told, "of the same formation it is");
}

#[test]
fn later_incarnations_are_higher_and_name_their_generation() {
    let earlier = incarnation_of(7, u64::MAX);
    assert!(incarnation_of(7, 0) < incarnation_of(7, 1) && earlier < incarnation_of(8, 0));
    assert_eq!((generation_of(earlier), generation_of(incarnation_of(8, 3))), (7, 8));
}
