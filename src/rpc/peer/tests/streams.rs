//! Requests and answers, and what becomes of them when something breaks.

use super::*;
use crate::resilience::breaker::State;

/// Two nodes, the first of which asks the second.
async fn pair(world: &World) -> (TestNode, TestNode) {
    (world.node(1, Some(CLUSTER)).await, world.node(2, Some(CLUSTER)).await)
}

async fn ask_and_answer(world: World) {
    let (one, two) = pair(&world).await;
    assert_eq!(one.ask(&two, "hello").await, echoed("hello"));
    assert_eq!(two.ask(&one, "back").await, echoed("back"));
    let stale = one.ask(&two, "stale").await;
    assert_eq!(stale, Err(PeerError::StaleLayout { epoch: 2 }));
    let request = Request::Raft(Bytes::from_static(b"who"));
    let (who, _) = one.client.call_address(&two.address, request, LONG).await.expect("answered");
    assert_eq!(who, two.node);
    // One to the node, one to the address.
    assert_eq!(two.counters.streams_accepted.load(Ordering::Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_talk_over_the_loopback_of_the_machine() {
    ask_and_answer(World::on_loopback()).await;
}

#[tokio::test(start_paused = true)]
async fn two_nodes_talk_over_a_network_in_memory_in_one_thread() {
    ask_and_answer(World::in_memory().0).await;
}

#[tokio::test(start_paused = true)]
async fn a_later_request_may_be_answered_first() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    let held = one.ask(&two, "hold");
    let quick = async {
        two.handler.holds.notified().await;
        let quick = one.ask(&two, "quick").await;
        two.handler.gate.notify_one();
        quick
    };
    let (held, quick) = tokio::join!(held, quick);
    assert_eq!((held, quick), (echoed("hold"), echoed("quick")));
}

#[tokio::test(start_paused = true)]
async fn many_requests_in_flight_each_get_their_own_answer() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    let asking: Vec<_> = (0..1000_u32)
        .map(|number| {
            let client = Arc::clone(&one.client);
            let (to, text) = (two.node, Bytes::from(number.to_string()));
            tokio::spawn(async move {
                let request = Request::Raft(text.clone());
                let reply = client.call(to, Class::Foreground, 1, request, LONG).await;
                assert_eq!(reply, Ok(Reply::Raft(text)));
            })
        })
        .collect();
    for asked in asking {
        asked.await.expect("its own answer");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_leaves_no_answer_for_what_was_sent_and_is_made_again() {
    let (world, net) = World::in_memory();
    let (one, two) = pair(&world).await;
    let (held, ()) = tokio::join!(one.ask(&two, "hold"), async {
        two.handler.holds.notified().await;
        net.cut();
    });
    assert!(matches!(held, Err(PeerError::NoAnswer { .. })), "{held:?}");
    // The first wait is 50 ms at most.
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(one.ask(&two, "again").await, echoed("again"));
    let dropped = two.handler.dropped.load(Ordering::Relaxed);
    assert_eq!(dropped, 1, "nobody waits for it: it does not go on");
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_be_reached_is_dialed_less_and_less() {
    let (world, net) = World::in_memory();
    let (one, two) = pair(&world).await;
    world.book.0.lock().insert(two.node, "nowhere:1".to_owned());
    for _ in 0..10_000 {
        let lost = one.ask(&two, "lost").await;
        assert!(matches!(lost, Err(PeerError::Unreachable { .. })), "{lost:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Ten seconds with waits of up to two.
    assert!((7..40).contains(&net.dials()), "{}", net.dials());
    // It is back, and elsewhere.
    world.book.0.lock().insert(two.node, two.address.clone());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(one.ask(&two, "found").await, echoed("found"));
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_dialed_where_nothing_is_heard() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    world.book.0.lock().clear();
    let unknown = one.ask(&two, "where").await;
    assert!(matches!(unknown, Err(PeerError::Unreachable { .. })), "{unknown:?}");
    one.client.hint(two.node, two.address.clone());
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(one.ask(&two, "there").await, echoed("there"));
}

#[tokio::test(start_paused = true)]
async fn a_request_ends_by_its_time_at_both_ends() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    let began = tokio::time::Instant::now();
    let late = one.ask_within(&two, "hold", Duration::from_millis(200)).await;
    assert!(matches!(late, Err(PeerError::NoAnswer { .. })), "{late:?}");
    assert_eq!(began.elapsed().as_millis(), 200);
    assert_eq!(one.ask(&two, "next").await, echoed("next"));
    assert_eq!(two.handler.dropped.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_network_that_swallows_everything_is_noticed() {
    let (mut world, _) = World::in_memory();
    world.options.open_timeout = Duration::from_secs(1);
    let (one, two) = pair(&world).await;
    // Bound, and nobody accepts.
    let silent = "10.0.0.9:1".parse().expect("an address");
    let _deaf = world.net.bind(silent).await.expect("bound");
    world.book.0.lock().insert(two.node, silent.to_string());
    let began = tokio::time::Instant::now();
    let lost = one.ask(&two, "lost").await;
    assert!(matches!(lost, Err(PeerError::Unreachable { .. })), "{lost:?}");
    assert_eq!(began.elapsed().as_secs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_stream_refuses_and_has_room_again() {
    let (mut world, _) = World::in_memory();
    world.options.in_flight = [2; 3];
    let (one, two) = pair(&world).await;
    let third = async {
        two.handler.holds.notified().await;
        two.handler.holds.notified().await;
        let third = one.ask(&two, "third").await;
        two.handler.gate.notify_one();
        two.handler.gate.notify_waiters();
        third
    };
    let (first, second, third) = tokio::join!(one.ask(&two, "hold"), one.ask(&two, "hold"), third);
    let node = two.node.to_string();
    let Err(PeerError::Overloaded { node: full, why }) = third else { panic!("{third:?}") };
    assert!(full == node && why.starts_with("2 of 2 calls"), "{full}: {why}");
    assert_eq!((first, second), (echoed("hold"), echoed("hold")));
    assert_eq!(one.ask(&two, "fourth").await, echoed("fourth"));
}

#[tokio::test(start_paused = true)]
async fn a_full_node_refuses_what_it_has_no_place_for() {
    let (mut world, _) = World::in_memory();
    world.options.served = [1; 3];
    let (one, two) = pair(&world).await;
    let three = world.node(3, Some(CLUSTER)).await;
    let (held, refused) = tokio::join!(one.ask(&two, "hold"), async {
        two.handler.holds.notified().await;
        let refused = three.ask(&two, "more").await;
        two.handler.gate.notify_one();
        refused
    });
    assert_eq!(held, echoed("hold"));
    assert!(matches!(refused, Err(PeerError::Overloaded { .. })), "{refused:?}");
    assert_eq!(two.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_large_is_not_sent() {
    let (mut world, _) = World::in_memory();
    world.options.message_bytes_max = 1000;
    let (one, two) = pair(&world).await;
    for (bytes, fits) in [(900, true), (1000, false)] {
        let request = Request::Raft(Bytes::from(vec![b'x'; bytes]));
        let reply = one.client.call(two.node, Class::Background, 1, request, LONG).await;
        assert_eq!(reply.is_ok(), fits, "{reply:?}");
    }
    assert_eq!(two.asked(), 1);
}

/// The stream goes on, and with it the calls that are under way on it.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_too_large_fails_alone() {
    let (mut world, _) = World::in_memory();
    world.options.message_bytes_max = 1000;
    let (one, two) = pair(&world).await;
    let (held, large) = tokio::join!(one.ask(&two, "hold"), async {
        two.handler.holds.notified().await;
        let large = one.ask(&two, "large").await;
        two.handler.gate.notify_one();
        large
    });
    assert_eq!(held, echoed("hold"));
    let told = large.expect_err("it is over the limit").to_string();
    assert!(told.contains("1000"), "{told}");
    assert_eq!(one.ask(&two, "more").await, echoed("more"));
    assert_eq!(one.counters.streams_opened.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_without_an_answer_arrives_and_the_oldest_of_too_many_is_lost() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    for number in 0..100_u8 {
        let message = Request::Gossip(Bytes::from(vec![number]));
        crate::cluster::peer::Post::post(&*one.client, &two.address, message);
    }
    while two.handler.posts.lock().len() < 64 {
        two.handler.posted.notified().await;
    }
    let posts = std::mem::take(&mut *two.handler.posts.lock());
    let kept: Vec<_> = (36..100_u8).collect();
    let arrived: Vec<_> = posts
        .into_iter()
        .map(|(from, post)| match post {
            Request::Gossip(bytes) if from == one.node => bytes[0],
            other => panic!("{other:?} from {from}"),
        })
        .collect();
    assert_eq!(arrived, kept);
    assert_eq!(one.counters.posts_lost.load(Ordering::Relaxed), 36);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_stops_answers_what_it_began() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    let (held, ()) = tokio::join!(one.ask(&two, "hold"), async {
        two.handler.holds.notified().await;
        two.service.stop();
        two.handler.gate.notify_one();
        two.service.stopped().await;
    });
    assert_eq!(held, echoed("hold"));
    assert_eq!(two.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_closes_ends_its_streams() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    let (held, ()) = tokio::join!(one.ask(&two, "hold"), async {
        two.handler.holds.notified().await;
        one.client.close().await;
    });
    assert!(matches!(held, Err(PeerError::NoAnswer { .. })), "{held:?}");
    let late = one.ask(&two, "late").await;
    assert!(matches!(late, Err(PeerError::Unreachable { .. })), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_nobody_uses_is_closed_and_opened_again() {
    let (world, net) = World::in_memory();
    let (one, two) = pair(&world).await;
    assert_eq!(one.ask(&two, "first").await, echoed("first"));
    tokio::time::sleep(Duration::from_secs(700)).await;
    assert_eq!(one.ask(&two, "second").await, echoed("second"));
    assert_eq!(net.dials(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_ahead_of_the_own_is_heard_of() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    two.local.set_epoch(9);
    assert_eq!(one.ask(&two, "hello").await, echoed("hello"));
    assert_eq!(*one.local.epoch_heard().borrow(), 9);
    let request = Request::Raft(Bytes::new());
    let asked = one.client.call(two.node, Class::Control, 12, request, LONG).await;
    assert!(asked.is_ok());
    assert_eq!(*two.local.epoch_heard().borrow(), 12);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_left_alone_except_for_the_control_class() {
    let (world, _) = World::in_memory();
    let (one, two) = pair(&world).await;
    let hold = async |timeout| {
        let calls = (0..20).map(|_| one.ask_within(&two, "hold", timeout));
        for late in futures_util::future::join_all(calls).await {
            assert!(matches!(late, Err(PeerError::NoAnswer { .. })), "{late:?}");
        }
    };
    hold(Duration::from_millis(10)).await;
    assert_eq!(one.client.breaker(two.node), Some(State::Closed), "nobody could do it in time");
    hold(Duration::from_millis(600)).await;
    assert_eq!(one.client.breaker(two.node), Some(State::Open));
    let refused = one.ask(&two, "hello").await.expect_err("open");
    assert!(!refused.may_have_run() && refused.to_string().contains("breaker"), "{refused}");
    let request = Request::Raft(Bytes::from_static(b"vote"));
    let voted = one.client.call(two.node, Class::Control, 1, request, LONG).await;
    assert_eq!(voted, echoed("vote"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..3 {
        assert_eq!(one.ask(&two, "hello").await, echoed("hello"));
    }
    assert_eq!(one.client.breaker(two.node), Some(State::Closed));
}
