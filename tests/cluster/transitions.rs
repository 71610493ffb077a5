//! Nodes that come, leave and are taken out while writes go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pairdb::proto::admin_client::AdminClient;
use pairdb::proto::key_value_client::KeyValueClient;
use pairdb::proto::{
    ClusterStatusRequest, CommitLayoutRequest, ConsistencyLevel, DrainNodeRequest, DrainPhase,
    DrainProgress, LayoutChange, PlanLayoutRequest, ReadRequest, TransitionPhase,
    VerifyCertificateRequest, WriteRequest,
};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::nodes::Nodes;
use crate::operators::follower_among;

/// Longest wait for a change that nothing is in the way of.
const PATIENCE: Duration = Duration::from_secs(120);

async fn admin(nodes: &Nodes, at: usize) -> AdminClient<Channel> {
    AdminClient::new(nodes.channel(at).await)
}

/// Acknowledged writes of a load: fewer are no load, and checks of them show nothing.
const WRITES_MIN: usize = 20;

/// A writer that goes on until it is told to stop, by way of several nodes.
struct Load {
    stop: Arc<AtomicBool>,
    /// Writes that were acknowledged, and how many of them were looked at.
    count: watch::Receiver<usize>,
    seen: usize,
    written: tokio::task::JoinHandle<BTreeMap<String, String>>,
}

impl Load {
    async fn start(nodes: &Nodes, at: &[usize], prefix: &str) -> Self {
        let mut clients = Vec::new();
        for at in at {
            clients.push(KeyValueClient::new(nodes.channel(*at).await));
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, prefix) = (Arc::clone(&stop), prefix.to_owned());
        let (counter, count) = watch::channel(0);
        let written = tokio::spawn(async move {
            let mut acknowledged = BTreeMap::new();
            for n in 0.. {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let (key, value) = (format!("{prefix}-{n}"), format!("value {n}"));
                let request = WriteRequest {
                    tenant: "default".to_owned(),
                    key: key.clone().into(),
                    value: value.clone().into(),
                    ..WriteRequest::default()
                };
                let many = clients.len();
                match clients[n % many].write(request).await {
                    Ok(_) => {
                        acknowledged.insert(key, value);
                        // The test may have ended.
                        let _ = counter.send(acknowledged.len());
                    }
                    Err(status) => assert!(may_be_tried_again(&status), "{key}: {status}"),
                }
            }
            acknowledged
        });
        let mut load = Self { stop, count, seen: 0, written };
        load.some().await;
        load
    }

    /// Waits until some more writes are acknowledged.
    async fn some(&mut self) {
        let wanted = *self.count.borrow() + WRITES_MIN;
        let enough = tokio::time::timeout(PATIENCE, self.count.wait_for(|count| *count >= wanted));
        drop(enough.await.expect("writes go on").expect("no error but retryable ones"));
        self.seen = *self.count.borrow();
    }

    /// That writes were acknowledged since the last look: while this happened.
    fn went_on_while(&mut self, what: &str) {
        let count = *self.count.borrow();
        assert!(count > self.seen, "no write was acknowledged while {what}");
        self.seen = count;
    }

    /// What was acknowledged.
    async fn end(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::SeqCst);
        self.written.await.expect("no error but retryable ones")
    }
}

fn may_be_tried_again(status: &Status) -> bool {
    let codes = [Code::Unavailable, Code::DeadlineExceeded, Code::Aborted, Code::Cancelled];
    // A connection that a node closed when it had left.
    codes.contains(&status.code()) || status.message().contains("transport error")
}

async fn check_readable(nodes: &Nodes, at: usize, written: &BTreeMap<String, String>) {
    let mut client = KeyValueClient::new(nodes.channel(at).await);
    for consistency in [ConsistencyLevel::Quorum, ConsistencyLevel::All] {
        for (key, value) in written {
            let request = ReadRequest {
                tenant: "default".to_owned(),
                key: key.clone().into(),
                consistency: consistency.into(),
                ..ReadRequest::default()
            };
            let row = client.read(request).await.unwrap_or_else(|e| panic!("{key}: {e}"));
            let values: Vec<_> =
                row.into_inner().siblings.into_iter().map(|one| one.value).collect();
            assert_eq!(values, [value.as_bytes()], "{key} at {consistency:?}");
        }
    }
}

async fn drained(mut admin: AdminClient<Channel>, node: &str) -> Vec<DrainProgress> {
    let request = DrainNodeRequest { node: node.to_owned(), ..DrainNodeRequest::default() };
    let mut stream = admin.drain_node(request).await.expect("it may leave").into_inner();
    let mut told = Vec::new();
    let all = async {
        while let Some(progress) = stream.message().await.expect("told to the end") {
            told.push(progress);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("it hangs: {told:#?}"));
    told
}

/// Law: after a drain has ended, deleting the node's directory changes no read. Its process ends
/// by itself, with code 0.
#[tokio::test(flavor = "multi_thread")]
async fn a_drained_node_can_be_deleted_while_writes_go_on() {
    let mut nodes = Nodes::start(3);
    let mut before = Load::start(&nodes, &[0, 1, 2], "before").await;
    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    before.went_on_while("n3 joined");
    let mut written = before.end().await;
    let mut load = Load::start(&nodes, &[0, 1, fourth], "during").await;
    let told = drained(admin(&nodes, 0).await, "n2").await;
    let last = told.last().expect("something was told");
    assert_eq!(last.phase(), DrainPhase::Left, "{told:#?}");
    assert_eq!(nodes.wait(2), 0, "a node that has left ends without a failure");
    load.went_on_while("n2 was drained");
    nodes.delete(2);
    load.some().await;
    written.extend(load.end().await);
    check_readable(&nodes, fourth, &written).await;

    let verify = VerifyCertificateRequest {
        certificate: last.certificate.clone(),
        ..VerifyCertificateRequest::default()
    };
    let verified = admin(&nodes, 1).await.verify_certificate(verify).await.expect("it can be read");
    let verified = verified.into_inner();
    assert!(verified.valid && verified.keys > 0 && verified.node_name == "n2", "{verified:#?}");
    assert_eq!(verified.digest, last.certificate_digest);
    let forged = last.certificate.replacen("\"keys\":", "\"keys\":1", 1);
    let verify = VerifyCertificateRequest { certificate: forged, ..Default::default() };
    let verified = admin(&nodes, 1).await.verify_certificate(verify).await.expect("it can be read");
    assert!(!verified.into_inner().valid);
}

/// Of two nodes both vote on the layout. The one that leads is drained, and deleted as soon as that
/// has ended: the other one can be changed still.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_two_nodes_needs_nobodys_vote() {
    let mut nodes = Nodes::start(2);
    nodes.ok(0, &["tenant", "set", "default", "--replication-factor", "1"]);
    let written = nodes.write_keys("key", 10, 0);
    nodes.wait_until_stable(0, 2);
    let other = follower_among(&nodes, [0, 1]);
    let leaver = 1 - other;
    let told = drained(admin(&nodes, other).await, &format!("n{leaver}")).await;
    assert_eq!(told.last().map(DrainProgress::phase), Some(DrainPhase::Left), "{told:#?}");
    // It may have ended by itself.
    nodes.kill(leaver);
    nodes.delete(leaver);
    nodes.ok(other, &["tenant", "create", "late"]);
    assert_eq!(nodes.ok(other, &["get", &written[0]]), written[0]);
}

/// A drain that cannot be safe refuses at once, and says why; one that was begun can be called off.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_would_leave_too_few_nodes_is_refused_with_the_reason() {
    let mut nodes = Nodes::start(3);
    let written = nodes.write_keys("key", 10, 0);
    let request = DrainNodeRequest { node: "n1".to_owned(), ..DrainNodeRequest::default() };
    let refused = admin(&nodes, 0).await.drain_node(request).await.expect_err("three are needed");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("2 owners would be left"), "{refused}");
    let unknown = DrainNodeRequest { node: "n9".to_owned(), ..DrainNodeRequest::default() };
    let refused = admin(&nodes, 0).await.drain_node(unknown).await.expect_err("nobody");
    assert_eq!(refused.code(), Code::NotFound, "{refused}");

    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    nodes.kill(fourth);
    nodes.wait_until_down(0, 1);
    let request = DrainNodeRequest { node: "n1".to_owned(), ..DrainNodeRequest::default() };
    let refused = admin(&nodes, 0).await.drain_node(request).await.expect_err("n3 is down");
    assert!(refused.message().contains("n3 would take over"), "{refused}");
    assert_eq!(nodes.ok(1, &["get", &written[0]]), written[0]);
}

/// A dead node is taken out without its help; when it comes back it is told, and ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_that_comes_back_is_fenced_and_says_so() {
    let mut nodes = Nodes::start(3);
    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    let mut load = Load::start(&nodes, &[0, 1], "load").await;
    nodes.kill(fourth);
    nodes.wait_until_down(0, 1);
    load.went_on_while("n3 was dead");
    let change = Some(LayoutChange { removes: vec!["n3".to_owned()], ..LayoutChange::default() });
    let mut admin = admin(&nodes, 0).await;
    let plan = admin.plan_layout(PlanLayoutRequest { change: change.clone() }).await;
    let plan = plan.expect("it is planned").into_inner();
    assert!(plan.refusals.is_empty() && plan.lost.is_empty(), "{plan:#?}");
    assert!(plan.warnings.iter().any(|warning| warning.contains("n3")), "{plan:#?}");
    let mut next: Vec<u32> = plan.balance.iter().map(|one| one.partitions_next).collect();
    next.sort_unstable();
    assert_eq!(next, [0, 1024, 1024, 1024]);
    let commit = CommitLayoutRequest { epoch: plan.epoch, change };
    admin.commit_layout(commit).await.expect("it is begun");
    nodes.wait_until_stable(0, 3);
    load.went_on_while("n3 was taken out");
    let written = load.end().await;
    check_readable(&nodes, 1, &written).await;
    let (code, stderr) = nodes.restart_refused(fourth);
    assert_eq!(code, 77, "{stderr}");
    assert!(stderr.contains("FENCED"), "{stderr}");
}

async fn commit(nodes: &Nodes, at: usize, change: LayoutChange) -> u64 {
    let request = CommitLayoutRequest { epoch: 0, change: Some(change) };
    let begun = admin(nodes, at).await.commit_layout(request).await;
    begun.unwrap_or_else(|status| panic!("it is not begun: {status}")).into_inner().epoch
}

/// Waits until the transition of this epoch is over and nobody holds what it does not own.
async fn settled(nodes: &Nodes, at: usize, epoch: u64) {
    let mut admin = admin(nodes, at).await;
    let all = async {
        loop {
            let status = admin.cluster_status(ClusterStatusRequest {}).await.expect("it answers");
            let state = status.into_inner().layout.and_then(|layout| layout.state);
            let state = state.expect("there is a layout");
            if state.epoch > epoch && state.phase() == TransitionPhase::Stable {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all).await.expect("it settles");
}

/// More replicas, fewer, and another share of the partitions: each is a transition like a join.
#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_replicas_and_weights_change_while_writes_go_on() {
    let mut nodes = Nodes::start(3);
    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    nodes.wait_until_up(0, 4);
    nodes.wait_until_up(1, 4);
    let mut load = Load::start(&nodes, &[0, 1, 2, fourth], "load").await;
    let factor = |factor| LayoutChange {
        replication_factors: [("default".to_owned(), factor)].into(),
        ..LayoutChange::default()
    };
    let epoch = commit(&nodes, 0, factor(4)).await;
    settled(&nodes, 1, epoch).await;
    load.went_on_while("replicas became four");
    let epoch = commit(&nodes, 1, factor(2)).await;
    settled(&nodes, 0, epoch).await;
    load.went_on_while("replicas became two");
    let epoch = commit(&nodes, 0, factor(3)).await;
    settled(&nodes, 2, epoch).await;
    load.went_on_while("replicas became three");
    let heavier =
        LayoutChange { weights: [("n0".to_owned(), 3)].into(), ..LayoutChange::default() };
    let epoch = commit(&nodes, 2, heavier).await;
    settled(&nodes, 0, epoch).await;
    load.went_on_while("a weight changed");
    let zone =
        LayoutChange { zones: [("n3".to_owned(), "z0".to_owned())].into(), ..Default::default() };
    let epoch = commit(&nodes, 0, zone).await;
    settled(&nodes, 0, epoch).await;
    load.went_on_while("a zone changed");
    let written = load.end().await;
    check_readable(&nodes, 0, &written).await;
    let keys: Vec<String> = written.into_keys().take(20).collect();
    nodes.wait_until_equal(&keys, 1, PATIENCE);
}

/// Bytes of rows that some nodes fetched or gave away because owners changed.
fn transferred(nodes: &Nodes, which: &[usize]) -> f64 {
    let name = "pairdb_transfer_bytes_total ";
    let of = |at: &usize| {
        let (_, page) = nodes.page(*at, "/metrics");
        let value = page.lines().find_map(|line| line.strip_prefix(name));
        value.and_then(|value| value.trim().parse::<f64>().ok()).expect("it is shown")
    };
    which.iter().map(of).sum()
}

/// Law: a join moves the newcomer's share and a drain the leaver's, each row once; at most a tenth
/// more than with shares that are all equal.
#[tokio::test(flavor = "multi_thread")]
async fn a_join_and_a_drain_move_little_more_than_the_ideal_share() {
    const KEYS: usize = 1500;
    const VALUE: usize = 4096;
    let mut nodes = Nodes::start(3);
    let mut client = KeyValueClient::new(nodes.channel(0).await);
    for n in 0..KEYS {
        let request = WriteRequest {
            tenant: "default".to_owned(),
            key: format!("key-{n}").into(),
            value: vec![b'v'; VALUE].into(),
            consistency: ConsistencyLevel::All.into(),
            ..WriteRequest::default()
        };
        client.write(request).await.expect("all are up");
    }
    let ideal = (KEYS * VALUE) as f64 * 3.0 / 4.0;
    let of_ideal = |moved: f64| {
        let ratio = moved / ideal;
        assert!((0.9..=1.1).contains(&ratio), "{ratio} of the ideal share");
    };
    let epoch = 1;
    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    settled(&nodes, 0, epoch).await;
    let joined = transferred(&nodes, &[0, 1, 2, fourth]);
    of_ideal(joined);
    let before = transferred(&nodes, &[0, 1, 2]);
    let told = drained(admin(&nodes, 0).await, "n3").await;
    assert_eq!(told.last().map(DrainProgress::phase), Some(DrainPhase::Left), "{told:#?}");
    of_ideal(transferred(&nodes, &[0, 1, 2]) - before);
}

/// A drain is resumed by whatever is left of it: the leaver is killed, and started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_goes_on_after_the_leaver_was_killed() {
    let mut nodes = Nodes::start(3);
    let fourth = nodes.join();
    nodes.wait_until_stable(0, 4);
    let mut written = nodes.write_keys("key", 60, 0);
    let request = DrainNodeRequest { node: "n1".to_owned(), ..DrainNodeRequest::default() };
    let mut looking_on = admin(&nodes, 0).await;
    let stream = looking_on.drain_node(request).await.expect("it may leave").into_inner();
    nodes.kill(1);
    drop(stream);
    written.extend(nodes.write_keys("while", 10, 0));
    nodes.restart(1);
    let told = drained(admin(&nodes, fourth).await, "n1").await;
    assert_eq!(told.last().map(DrainProgress::phase), Some(DrainPhase::Left), "{told:#?}");
    assert_eq!(nodes.wait(1), 0);
    nodes.delete(1);
    for key in &written {
        assert_eq!(&nodes.ok(fourth, &["get", key]), key);
        assert_eq!(&nodes.ok(0, &["get", key, "--consistency", "all"]), key);
    }
}

/// Up to five nodes and down to three again, one drain called off on the way.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_come_and_go_and_a_drain_is_called_off() {
    let mut nodes = Nodes::start(3);
    let mut load = Load::start(&nodes, &[0, 1], "load").await;
    for owners in 4..=5 {
        nodes.join();
        nodes.wait_until_stable(0, owners);
        load.went_on_while("one joined");
    }
    // A receiver that does not answer keeps the transition open.
    nodes.pause(4);
    let request = DrainNodeRequest { node: "n3".to_owned(), ..DrainNodeRequest::default() };
    let mut stream = admin(&nodes, 0).await.drain_node(request).await.expect("all seem to be up");
    let first = stream.get_mut().message().await.expect("told").expect("something");
    assert_eq!(first.phase(), DrainPhase::Merging, "{first:#?}");
    let cancel =
        DrainNodeRequest { node: "n3".to_owned(), cancel: true, ..DrainNodeRequest::default() };
    let called_off = admin(&nodes, 0).await.drain_node(cancel).await.expect("it is not too late");
    let told = called_off.into_inner().message().await.expect("told").expect("something");
    assert_eq!(told.phase(), DrainPhase::Cancelled, "{told:#?}");
    nodes.resume(4);
    nodes.wait_until_stable(0, 5);
    settled(&nodes, 0, told.epoch - 1).await;
    load.went_on_while("a drain was called off");
    for (at, name, left) in [(3, "n3", 4), (4, "n4", 3)] {
        let told = drained(admin(&nodes, 0).await, name).await;
        assert_eq!(told.last().map(DrainProgress::phase), Some(DrainPhase::Left), "{told:#?}");
        assert_eq!(nodes.wait(at), 0);
        nodes.delete(at);
        nodes.wait_until_stable(0, left);
        load.went_on_while("one left");
    }
    let written = load.end().await;
    check_readable(&nodes, 1, &written).await;
}
