//! Answers that come late, that nobody can read, or that contradict each other.

use crate::cluster::double_net::DoubleNet;

use super::*;

/// Answers every Join with the same reply.
struct Saying(JoinReply);

#[tonic::async_trait]
impl Handler for Saying {
    async fn handle(
        &self,
        _from: NodeId,
        request: Request,
        _timeout: Duration,
    ) -> Result<Reply, PeerError> {
        match request {
            Request::Join(_) => Ok(Reply::Join(self.0.clone())),
            _ => Err(refused("UNKNOWN_REQUEST", String::new())),
        }
    }
}

fn says(net: &DoubleNet, n: u128, document: Vec<u8>) {
    let cluster_id = Bytes::copy_from_slice(&id(1000 + n).to_bytes());
    let reply = JoinReply { cluster_id, document: document.into(), ..JoinReply::default() };
    net.serve(id(n), &address(n), Arc::new(Saying(reply)));
}

/// A slow address keeps a round open: one seed answered before it began a cluster, is believed only
/// after the promise was given to it, and then seems to have forgotten it.
#[tokio::test(start_paused = true)]
async fn a_promise_is_not_taken_back_on_an_answer_that_is_older_than_it() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=2).map(|n| world.start(n, &MemVfs::new(), options(2, [1, 2]))).collect();
    let _silent = world.start(9, &MemVfs::new(), options(2, [1, 2]));
    world.net.cut(id(2), id(9));
    nodes[1].formation.hear_of([address(9).as_str()]);
    assert_eq!(clusters(enter_all(&nodes, 30).await).len(), 1);
}

/// Templates name the seeds of an old cluster beside those of a new one: were both to take the
/// node, one would wait for ever for it to sync.
#[tokio::test(start_paused = true)]
async fn a_node_whose_seeds_are_of_two_clusters_joins_neither_and_names_both() {
    let world = World::new();
    let ones: Vec<_> = (1..=2).map(|n| world.start(n, &MemVfs::new(), options(1, []))).collect();
    let formed = clusters(enter_all(&ones, 5).await);
    assert_eq!(formed.len(), 2);
    let node = world.start(3, &MemVfs::new(), options(1, [1, 2]));
    let error = node.enter(10).await.unwrap_err().to_string();
    for cluster in &formed {
        assert!(error.contains(&cluster.to_string()), "{error}");
    }
    for one in &ones {
        assert!(!one.fence.document().is_joint(), "{error}");
    }
    assert!(node.identity.cluster_id().is_none());
}

/// The seeds may be told apart by name: then there is nothing to guess.
#[tokio::test(start_paused = true)]
async fn a_node_that_is_told_its_cluster_is_refused_by_the_other_and_taken_by_none() {
    let world = World::new();
    let ones: Vec<_> = (1..=2).map(|n| world.start(n, &MemVfs::new(), options(1, []))).collect();
    let formed = clusters(enter_all(&ones, 5).await);
    let only = FormationOptions { cluster_id: Some(formed[1]), ..options(1, [1, 2]) };
    let node = world.open(3, Arc::new(MemVfs::new()), NOW_MS, member(3), only).unwrap();
    assert_eq!(refusal(&node).await, reason::WRONG_CLUSTER);
    assert!(!ones[0].fence.document().is_joint() && !ones[1].fence.document().is_joint());
}

/// One template names the cluster, and a node was started once without its seeds: it formed a
/// cluster of its own under the id of the others.
#[tokio::test(start_paused = true)]
async fn two_clusters_that_were_formed_under_one_id_are_told_apart() {
    let world = World::new();
    let named = |seeds: &[u128]| FormationOptions {
        cluster_id: Some(id(77)),
        ..options(1, seeds.iter().copied())
    };
    let ones: Vec<_> = (1..=2).map(|n| world.start(n, &MemVfs::new(), named(&[]))).collect();
    assert_eq!(clusters(enter_all(&ones, 5).await), [id(77)], "both");
    let [one, two] = [&ones[0], &ones[1]].map(|node| node.fence.document());
    assert_ne!(one.formation, two.formation);
    assert_eq!(ones[0].formation.formation(), one.formation);
    let later = Document { version: one.version + 5, epoch: one.epoch + 5, ..(*two).clone() };
    let refusal = ones[0].fence.adopt(&Arc::new(later)).unwrap_err();
    assert_eq!(refusal.reason(), "WRONG_CLUSTER");
    let node = world.start(3, &MemVfs::new(), named(&[1, 2]));
    let error = node.enter(10).await.unwrap_err();
    assert!(matches!(error, FormationError::SeveralClusters { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&one.formation.to_string()), "{text}");
    assert!(text.contains(&two.formation.to_string()), "{text}");
}

/// The first member of a cluster that can be reached has no leader: another one is asked.
#[tokio::test(start_paused = true)]
async fn a_node_is_admitted_by_the_next_seed_when_the_first_cannot() {
    let world = World::new();
    let nodes: Vec<_> =
        (1..=3).map(|n| world.start(n, &MemVfs::new(), options(3, [1, 2, 3]))).collect();
    let cluster = clusters(enter_all(&nodes, 20).await)[0];
    world.net.cut(id(1), id(2));
    world.net.cut(id(1), id(3));
    let fourth = world.start(4, &MemVfs::new(), options(1, [1, 2, 3]));
    assert_eq!(fourth.enter(60).await.unwrap(), cluster);
}

/// A call that was held up looks like a clock that is behind: it is measured again.
#[tokio::test(start_paused = true)]
async fn a_clock_that_seemed_wrong_once_keeps_nobody_out() {
    let world = World::new();
    let first = one_node_cluster(&world).await;
    let clock = ManualClock::new(NOW_MS - CLOCK_OFFSET_MS_MAX - 1);
    let disk = Arc::new(MemVfs::new());
    let node = world.open_at(2, disk, &clock, member(2), options(1, [1])).unwrap();
    let entering = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.enter(20).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!entering.is_finished() && !first.fence.document().is_joint());
    clock.advance_ms(CLOCK_OFFSET_MS_MAX);
    assert_eq!(Some(entering.await.unwrap().unwrap()), first.identity.cluster_id());
}

/// A seed of a newer version answers with a document this one cannot read: there is a cluster.
#[tokio::test(start_paused = true)]
async fn nothing_is_formed_beside_a_cluster_whose_document_cannot_be_read() {
    let mut broken = Document::empty();
    (broken.epoch, broken.version) = (7, 3);
    let newer = br#"{"cluster_id":"x","from_the_future":1}"#.to_vec();
    for document in [newer, serde_json::to_vec(&broken).unwrap()] {
        let world = World::new();
        says(&world.net, 9, document);
        let nodes: Vec<_> =
            (1..=3).map(|n| world.start(n, &MemVfs::new(), options(3, [1, 2, 3, 9]))).collect();
        for entered in enter_all(&nodes, 15).await {
            let error = entered.unwrap_err();
            assert!(matches!(error, FormationError::TimedOut { .. }), "{error}");
            assert!(error.to_string().contains("n9:7946"), "{error}");
        }
        assert!(nodes.iter().all(|node| node.identity.cluster_id().is_none()));
    }
}

fn with_zone(n: u128, bytes: usize) -> Member {
    Member { zone: "z".repeat(bytes), ..member(n) }
}

/// What the document would refuse is refused before it is promised: a promise keeps it for ever.
#[tokio::test(start_paused = true)]
async fn a_member_that_no_document_takes_is_refused_before_anybody_promises() {
    let world = World::new();
    let disks: Vec<MemVfs> = (1..=3).map(|_| MemVfs::new()).collect();
    let open = |n: u128, member: Member| {
        let disk = Arc::new(disks[n as usize - 1].clone());
        world.open(n, disk, NOW_MS, member, options(3, [1, 2, 3])).unwrap()
    };
    let nodes = vec![open(1, member(1)), open(2, member(2)), open(3, with_zone(3, 300))];
    let entered = enter_all(&nodes, 10).await;
    let error = entered[2].as_ref().unwrap_err().to_string();
    assert!(error.contains("zone"), "{error}");
    assert!(nodes.iter().all(|node| node.formation.promises.current().is_none()));
    for node in &nodes {
        node.stop().await;
    }
    let again: Vec<_> = (1..=3).map(|n| open(n, member(n))).collect();
    assert_eq!(clusters(enter_all(&again, 60).await).len(), 1);
}

/// Neither from a node of another version, which does not look.
#[tokio::test(start_paused = true)]
async fn an_invitation_with_a_member_that_no_document_takes_is_refused() {
    let world = World::new();
    let node = world.start(5, &MemVfs::new(), options(2, [1]));
    let records: BTreeMap<NodeId, Member> = [(id(1), with_zone(1, 300)), (id(5), member(5))].into();
    let bad = FormRequest { records: encode_members(&records), ..form(1, &[1, 5], 7) };
    assert_eq!(reason_of(node.formation.handle_form(id(1), &bad)), reason::INVALID_MEMBER);
    let candidate = JoinRequest {
        member: serde_json::to_vec(&with_zone(1, 300)).unwrap().into(),
        ..JoinRequest::default()
    };
    let heard = node.formation.handle_join(id(1), &candidate);
    assert_eq!(reason_of(heard), reason::INVALID_MEMBER);
    assert_eq!(node.formation.promises.current(), None);
}
