//! Who is not spoken to.

use proptest::prelude::*;

use super::*;
use crate::proto::{DocumentRequest, Hello};
use crate::rpc::peer::hello::{self, Reason};

/// Asks, expects that `refuser` refuses for `reason`, before anything was asked of the handler.
async fn refused(one: &TestNode, two: &TestNode, refuser: &TestNode, reason: Reason) {
    let error = one.ask(two, "hello").await.expect_err("refused");
    assert!(!error.may_have_run());
    assert!(error.to_string().contains(reason.name()), "{error}");
    assert_eq!(refuser.counters.refused(reason), 1);
    assert_eq!(two.asked() + refuser.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_of_another_cluster_is_refused() {
    let (world, _) = World::in_memory();
    let one = world.node(1, Some(CLUSTER)).await;
    let two = world.node(2, Some(NodeId(101))).await;
    refused(&one, &two, &two, Reason::WrongCluster).await;
}

/// One template of a configuration, a node that was once started without its seeds: two clusters
/// of one id. Taken for one they would act under each other's layouts.
#[tokio::test(start_paused = true)]
async fn a_node_of_a_cluster_that_was_formed_apart_under_the_same_id_is_refused() {
    let (world, _) = World::in_memory();
    let one = world.node(1, Some(CLUSTER)).await;
    let two = world.node(2, Some(CLUSTER)).await;
    one.local.formed_as(NodeId(11));
    two.local.formed_as(NodeId(12));
    refused(&one, &two, &two, Reason::WrongFormation).await;
    let three = world.node(3, Some(CLUSTER)).await;
    three.local.formed_as(NodeId(12));
    assert_eq!(three.ask(&two, "the same").await, echoed("the same"));
}

#[tokio::test(start_paused = true)]
async fn a_node_at_the_address_of_another_is_not_taken_for_it() {
    let (world, _) = World::in_memory();
    let one = world.node(1, Some(CLUSTER)).await;
    let two = world.node(2, Some(CLUSTER)).await;
    let three = world.node(3, Some(CLUSTER)).await;
    // The address of two was given to three.
    world.book.0.lock().insert(two.node, three.address.clone());
    refused(&one, &two, &three, Reason::WrongNode).await;
}

#[tokio::test(start_paused = true)]
async fn an_older_incarnation_is_refused_also_on_the_stream_it_has() {
    let (world, _) = World::in_memory();
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let two = world.node(2, Some(CLUSTER)).await;
    let old = world.start(1, Some(CLUSTER), 5, at(2001)).await;
    assert_eq!(old.ask(&two, "first").await, echoed("first"));
    let new = world.start(1, Some(CLUSTER), 6, at(2002)).await;
    assert_eq!(new.ask(&two, "newer").await, echoed("newer"));
    // Its stream is still there.
    let error = old.ask(&two, "old").await.expect_err("it is over");
    assert!(error.to_string().contains("STALE_GENERATION"), "{error}");
    let older = world.start(1, Some(CLUSTER), 4, at(2003)).await;
    let error = older.ask(&two, "older").await.expect_err("it is over");
    assert!(error.to_string().contains("STALE_GENERATION"), "{error}");
    assert_eq!(two.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_node_without_a_cluster_may_only_look_for_one() {
    let (world, _) = World::in_memory();
    let one = world.node(1, None).await;
    let two = world.node(2, Some(CLUSTER)).await;
    for (asker, asked) in [(&one, &two), (&two, &one)] {
        let document = || Request::Document(DocumentRequest {});
        let ask = |class, request| asker.client.call(asked.node, class, 1, request, LONG);
        assert!(ask(Class::Control, document()).await.is_ok());
        let raft = Request::Raft(Bytes::new());
        for (class, request) in [(Class::Control, raft), (Class::Foreground, document())] {
            let error = ask(class, request).await.expect_err("not yet");
            assert!(matches!(&error, PeerError::Refused { reason, .. } if reason == "NO_CLUSTER"));
        }
    }
    // It joins: the streams it had before say otherwise and are replaced.
    one.local.enter(CLUSTER, NodeId::default());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(one.ask(&two, "member").await, echoed("member"));
    assert_eq!(two.ask(&one, "member").await, echoed("member"));
}

fn hello_of(local: &Local) -> Hello {
    hello::hello(local, None, Class::Control)
}

fn local(id: u128) -> Local {
    let clock = Arc::new(ManualClock::new(1));
    Local::new(NodeId(id), 1, Some(CLUSTER), "a:1".to_owned(), clock)
}

#[test]
fn only_an_overlap_of_protocols_is_spoken() {
    let one = local(1);
    for (min, max, speaks) in [(1, 1, true), (0, 7, true), (2, 7, false), (0, 0, false)] {
        let mut theirs = hello_of(&local(2));
        (theirs.protocol_min, theirs.protocol_max) = (min, max);
        let checked = hello::check(&one, &theirs, None);
        assert_eq!(checked.is_ok(), speaks, "{min} to {max}");
        if let Err(refusal) = checked {
            assert_eq!(refusal.reason, Reason::Protocol);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_hello_makes_a_node_panic_and_no_wrong_one_passes(
        ids in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 3),
        class in 0..5_u32,
        min in 0..3_u32,
        max in 0..3_u32,
    ) {
        let bytes = |at: usize| Bytes::from(ids[at].clone());
        let theirs = Hello {
            cluster_id: bytes(0),
            node_id: bytes(1),
            target_id: bytes(2),
            class,
            protocol_min: min,
            protocol_max: max,
            ..Hello::default()
        };
        // Random ids are never those of the cluster and this node.
        let passed = hello::check(&local(1), &theirs, None).is_ok();
        let nobody = ids[0] == [0; 16] && ids[1].len() == 16 && ids[2].is_empty();
        prop_assert!(!passed || (nobody && class < 3 && min <= 1 && max >= 1));
    }
}
