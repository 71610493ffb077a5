//! One rule, one story.

use super::super::*;
use super::cluster::*;

#[tokio::test(start_paused = true)]
async fn a_quorum_write_is_seen_by_a_quorum_read_through_every_node() {
    let cluster = Cluster::new(3, 1);
    let written = cluster.put(0, Level::Quorum, put("k", "v")).await.expect("three are up");
    assert_eq!(written.siblings, 1);
    for at in 0..3 {
        let row = cluster.get(at, Level::Quorum, "k").await.expect("three are up");
        assert_eq!(values(&row), ["v"]);
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_three_down_changes_nothing_for_quorum() {
    let cluster = Cluster::new(3, 2);
    cluster.world.take_down(id(2));
    cluster.put(0, Level::Quorum, put("k", "v")).await.expect("two are up");
    let row = cluster.get(1, Level::Quorum, "k").await.expect("two are up");
    assert_eq!(values(&row), ["v"]);
    let refused = cluster.put(0, Level::All, put("k", "w")).await.expect_err("not all are up");
    assert_eq!(refused.reason(), "QUORUM_UNAVAILABLE");
}
