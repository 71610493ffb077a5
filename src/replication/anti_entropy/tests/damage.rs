//! Replicas that have lost data: they vouch for nothing until they have it back.

use super::*;

const OTHERS: [u128; 2] = [1, 2];

/// A damaged partition gives no hash, no keys, no rows; its node takes part in no round. Nothing
/// looks equal because nothing is there.
#[tokio::test(start_paused = true)]
async fn a_damaged_partition_answers_nothing_and_blocks_the_round() {
    let trio = Trio::new();
    trio.write(0, "default", delete("k"), &[1, 2]);
    trio.store(2).mark_damaged(ALL, &OTHERS).expect("marked");
    let summary = trio.compare(0, 2).await.expect("compared");
    assert_eq!((summary.rows, summary.left), (0, 4), "no partition was compared");
    let summary = trio.compare(2, 0).await.expect("compared");
    assert_eq!((summary.rows, summary.left), (0, 4));
    let ask = |request| {
        let handler = trio.net.handlers.lock()[&id(2)].clone();
        async move { handler.handle(id(0), 1, request, Duration::from_secs(1)).await }
    };
    let leaves = proto::LeafRequest { replicas: 3, ..Default::default() };
    let refused = ask(Request::Leaves(leaves)).await.expect_err("it has no word");
    assert!(refused.to_string().contains("DAMAGED"), "{refused}");
    let page = proto::PageRequest { token_end: u64::MAX, ..Default::default() };
    let refused = ask(Request::Page(page)).await.expect_err("it has no word");
    assert!(refused.to_string().contains("DAMAGED"), "{refused}");
    assert_eq!(trio.round().await, 1);
    assert_eq!(trio.store(0).floor_of_partition(0).expect("sound"), 0);
    let time = trio.now();
    assert!(trio.store(2).fence(&[ALL], time).is_err());
}

/// It gets back what it lost, drops what it should not have, and vouches again: after an exchange
/// with each of the others, not before.
#[tokio::test(start_paused = true)]
async fn a_damaged_replica_gets_its_rows_back_from_both_others() {
    for tenant in TENANTS {
        let mut trio = Trio::new();
        let old = trio.write_at(0, tenant, put("dead", "x"));
        trio.deliver(&old, 1).expect("taken");
        trio.deliver(&old, 2).expect("taken");
        let before = trio.nodes[2].vfs.crash_clone(1);
        trio.write(0, tenant, delete("dead"), &[1, 2]);
        for key in 0..20 {
            trio.write(key % 3, tenant, put(&format!("k{key}"), "v"), &[0, 1, 2]);
        }
        assert_eq!(trio.round().await, 0);
        trio.forget();
        // Its disk is set back to before the delete.
        trio.stop(2);
        trio.nodes[2].vfs = before;
        trio.start(2);
        let born = trio.store(2).identity().actor;
        trio.store(2).mark_damaged(ALL, &OTHERS).expect("marked");
        assert_ne!(trio.store(2).identity().actor, born);
        trio.net.down.lock().insert(id(1));
        trio.anti_entropy(2).exchange_damaged().await;
        assert_eq!(trio.store(2).damaged().len(), 4, "one has not been exchanged with");
        assert!(trio.store(2).damaged().iter().all(|(_, peers)| peers[..] == [2]));
        trio.net.down.lock().remove(&id(1));
        trio.anti_entropy(2).exchange_damaged().await;
        assert_eq!(trio.store(2).damaged(), []);
        for key in 0..20 {
            assert_eq!(trio.all_values(tenant, &format!("k{key}")), [["v"]; 3]);
        }
        assert_eq!(trio.all_values(tenant, "dead"), [[""; 0]; 3]);
        assert_eq!(trio.round().await, 0);
    }
}
