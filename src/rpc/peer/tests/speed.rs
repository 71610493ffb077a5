//! What a stream carries.

use super::*;

/// Not a test of the machine: a floor so low that only a mistake (a task, a frame or a wait for
/// each request) falls below it. Prints what it found.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_carries_many_small_requests() {
    let world = World::on_loopback();
    let one = world.node(1, Some(CLUSTER)).await;
    let two = world.node(2, Some(CLUSTER)).await;
    assert_eq!(one.ask(&two, "warm").await, echoed("warm"));
    let (askers, each) = (512, if cfg!(debug_assertions) { 40 } else { 4000 });
    let began = tokio::time::Instant::now();
    let asking: Vec<_> = (0..askers)
        .map(|_| {
            let (client, to) = (Arc::clone(&one.client), two.node);
            tokio::spawn(async move {
                for _ in 0..each {
                    let request = Request::Raft(Bytes::from_static(&[7; 100]));
                    client.call(to, Class::Foreground, 1, request, LONG).await.expect("answered");
                }
            })
        })
        .collect();
    for asked in asking {
        asked.await.expect("all answered");
    }
    let rate = f64::from(askers * each) / began.elapsed().as_secs_f64();
    println!("{rate:.0} requests/s over one stream");
    assert!(rate > 2000.0, "{rate:.0} requests/s");
}

/// Each write is a call to the system, and may wake the other side: in frames of 16 KiB a page is
/// more than sixty.
#[tokio::test(start_paused = true)]
async fn a_page_is_written_a_few_times() {
    let (world, net) = World::in_memory();
    let one = world.node(1, Some(CLUSTER)).await;
    let two = world.node(2, Some(CLUSTER)).await;
    assert_eq!(one.ask(&two, "warm").await, echoed("warm"));
    let before = net.writes();
    let page = Bytes::from(vec![7; 1 << 20]);
    let request = Request::Raft(page.clone());
    let reply = one.client.call(two.node, Class::Background, 1, request, LONG).await;
    assert_eq!(reply, Ok(Reply::Raft(page)));
    // There and back, with the first words of a connection.
    let writes = net.writes() - before;
    println!("{writes} writes");
    assert!(writes < 30, "{writes} writes for a page there and back");
}
