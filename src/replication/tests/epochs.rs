//! Changes of the layout under way: R1 to R4 of the transitions, as far as a coordinator and a
//! replica keep them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use tonic::async_trait;

use super::super::*;
use super::cluster::*;
use super::departures::drawn;
use crate::cluster::NodeId;
use crate::cluster::peer::{PeerError, Reply, Request};
use crate::proto;
use crate::replication::page;
use crate::store::{Outcome, TenantId};

/// R1: who acts under an earlier epoch learns the later one, and starts over under it.
#[tokio::test(start_paused = true)]
async fn a_coordinator_that_is_behind_is_refused_and_starts_over() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 31);
    cluster.put(0, Level::All, put("k", "v")).await.expect("three are up");
    cluster.commit(layout(2, &[0, 1, 2], Some(&[0, 1, 3])), &[1, 2, 3]);
    let row = cluster.get(0, Level::Quorum, "k").await.expect("started over");
    assert_eq!(values(&row), ["v"]);
    assert!(cluster.nodes[0].coordinator.stats().restarts > 0);
    cluster.commit(layout(3, &[0, 1, 2], None), &[1, 2]);
    cluster.put(0, Level::Quorum, over("k", "w", &row.context)).await.expect("started over");
    let row = cluster.get(1, Level::Quorum, "k").await.expect("three are up");
    assert_eq!(values(&row), ["w"], "sent again, minted once");
}

/// Both sets must have it: two of three is not enough where the new set has one of three.
#[tokio::test(start_paused = true)]
async fn while_the_layout_changes_a_write_needs_both_sets() {
    let cluster = Cluster::with_owners(5, &[0, 1, 2], 32);
    cluster.commit(layout(2, &[0, 1, 2], Some(&[0, 3, 4])), &[0, 1, 2, 3, 4]);
    cluster.put(0, Level::Quorum, put("k", "v")).await.expect("five are up");
    assert_eq!(cluster.digests("default", "k").iter().filter(|digest| **digest != 0).count(), 5);
    cluster.world.take_down(id(3));
    cluster.world.take_down(id(4));
    let refused = cluster.put(0, Level::Quorum, put("k", "w")).await.expect_err("one of the new");
    assert_eq!((refused.reason(), refused.outcome()), ("QUORUM_UNAVAILABLE", Outcome::NotApplied));
}

/// R3, `acks_survive_restamp`: node 3 took the row under epoch 2. That word is void under epoch 4,
/// where it may have dropped the row since.
#[tokio::test(start_paused = true)]
async fn acks_survive_restamp_not() {
    let cluster = Cluster::with_owners(5, &[0, 1, 2], 33);
    let all = [0, 1, 2, 3, 4];
    cluster.commit(layout(2, &[0, 1, 2], Some(&[0, 3, 4])), &all);
    for cut in [1, 2, 4] {
        cluster.world.cut(id(0), id(cut));
    }
    let write = cluster.put(0, Level::Quorum, put("k", "v"));
    let change = async {
        tokio::time::sleep(SECOND / 10).await;
        assert_ne!(cluster.digests("default", "k")[3], 0, "it has acknowledged");
        cluster.world.heal();
        cluster.world.cut(id(0), id(3));
        cluster.world.cut(id(0), id(4));
        cluster.commit(layout(3, &[0, 1, 2], None), &[]);
        cluster.commit(layout(4, &[0, 1, 2], Some(&[0, 3, 4])), &all);
    };
    let (outcome, ()) = tokio::join!(write, change);
    let failed = outcome.expect_err("under epoch 4 only node 0 of the new set has it");
    assert_eq!(failed.outcome(), Outcome::Unknown);
    assert_ne!(cluster.digests("default", "k")[1], 0, "it was sent again");
}

/// R4: a newcomer may be empty.
#[tokio::test(start_paused = true)]
async fn at_one_a_newcomer_asks_somebody_who_owned_before() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 34);
    cluster.put(0, Level::All, put("k", "v")).await.expect("three are up");
    cluster.commit(layout(2, &[0, 1, 2], Some(&[0, 1, 3])), &[0, 1, 2, 3]);
    let row = cluster.get(3, Level::One, "k").await.expect("four are up");
    assert_eq!(values(&row), ["v"]);
    assert!(cluster.local(3, "k").is_empty());
}

/// A write that this node may not take yet waits for the document, and is minted only then.
#[tokio::test(start_paused = true)]
async fn the_fence_guards_the_coordinators_own_write_too() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 35);
    cluster.nodes[0].fence.raise(2);
    let write = cluster.put(0, Level::Quorum, put("k", "v"));
    let tell = async {
        tokio::time::sleep(SECOND / 2).await;
        assert!(cluster.local(0, "k").is_empty(), "nothing is taken under epoch 1");
        cluster.commit(layout(2, &[0, 1, 2], None), &[0, 1, 2]);
    };
    let (written, ()) = tokio::join!(write, tell);
    written.expect("the document came");
    cluster.nodes[1].fence.raise(3);
    let refused = cluster.put(1, Level::Quorum, put("k", "w")).await.expect_err("it never came");
    assert_eq!((refused.reason(), refused.outcome()), ("STALE_LAYOUT", Outcome::NotApplied));
}

fn keys(of: &[&str]) -> Request {
    let key = |key: &&str| proto::RowKey { tenant_id: 1, key: key.as_bytes().to_vec().into() };
    Request::ReadRows(proto::ReadRows {
        keys: of.iter().map(key).collect(),
        digest_only: false,
        ..Default::default()
    })
}

#[tokio::test(start_paused = true)]
async fn a_replica_answers_under_its_own_epoch_only() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 36);
    cluster.commit(layout(2, &[0, 1, 2], None), &[1]);
    let stale = cluster.ask(1, 1, keys(&["k"])).await;
    assert_eq!(stale, Err(PeerError::StaleLayout { epoch: 2 }), "reads too");
    let learnt = cluster.ask(2, 2, keys(&["k"])).await.expect("it learns first");
    assert!(matches!(learnt, Reply::ReadRows(_)));
    assert!(cluster.nodes[2].fence.enter(2).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_row_that_is_not_owned_is_refused_by_name_and_the_others_are_taken() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 37);
    let Ok(Reply::ReadRows(reply)) = cluster.ask(3, 1, keys(&["k"])).await else {
        panic!("an answer")
    };
    assert_eq!(reply.answers[0].failure.as_ref().expect("refused").reason, "NOT_A_REPLICA");
    cluster.put(0, Level::All, put("k", "v")).await.expect("three are up");
    let Ok(Reply::ReadRows(reply)) = cluster.ask(0, 1, keys(&["k"])).await else {
        panic!("an answer")
    };
    let row = |tenant_id, row: &[u8]| proto::RowState {
        tenant_id,
        key: b"k".to_vec().into(),
        row: row.to_vec().into(),
    };
    let good = reply.answers[0].row.clone().expect("whole");
    let huge = vec![0; crate::engine::options::ROW_BYTES_MAX + 1];
    let rows = vec![row(1, &good), row(77, &good), row(1, b"garbage"), row(1, &huge)];
    let request = Request::WriteRows(proto::WriteRows { rows, cause: 0 });
    let Ok(Reply::WriteRows(reply)) = cluster.ask(1, 1, request).await else { panic!("an answer") };
    let reasons = reply.results.iter().map(|one| one.failure.as_ref().map(|no| &no.reason[..]));
    let named = [None, Some("UNKNOWN_TENANT_ID"), Some("INVALID_ARGUMENT"), Some("ROW_TOO_LARGE")];
    assert_eq!(reasons.collect::<Vec<_>>(), named);
}

#[tokio::test(start_paused = true)]
async fn a_request_has_a_bound() {
    let cluster = Cluster::new(1, 38);
    let many: Vec<&str> = vec!["k"; 10_001];
    let refused = cluster.ask(0, 1, keys(&many)).await.expect_err("too many");
    assert!(matches!(refused, PeerError::Refused { reason, .. } if reason == "BATCH_TOO_LARGE"));
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_write_is_not_forwarded_again() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 39);
    let mutation = proto::Mutation {
        key: b"k".to_vec().into(),
        change: Some(proto::mutation::Change::Delete(true)),
        ..Default::default()
    };
    let request = proto::BatchWriteRequest {
        tenant: "default".to_owned(),
        mutations: vec![mutation],
        consistency: 0,
    };
    let request = Request::ForwardWrite(proto::ForwardWrite { request: Some(request) });
    let refused = cluster.ask(3, 1, request.clone()).await;
    assert_eq!(refused, Err(PeerError::NotAReplica));
    let Ok(Reply::ForwardWrite(reply)) = cluster.ask(0, 1, request).await else {
        panic!("an answer")
    };
    assert_eq!(reply.response.expect("there").results.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn pages_are_answered_to_who_will_own_the_rows() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 40);
    for n in 0..20 {
        cluster.put(0, Level::All, put(&format!("key-{n}"), "v")).await.expect("three are up");
    }
    // All of them go from the third node to the fourth.
    let joint = drawn(&cluster).layout(2, &[0, 1, 2], Some(&[0, 1, 3]));
    cluster.commit(joint, &[0, 1, 2, 3]);
    let (mut cursor, mut rows) = (bytes::Bytes::new(), 0);
    loop {
        let page = proto::PageRequest {
            token_start: 0,
            token_end: u64::MAX,
            cursor: cursor.clone(),
            bytes_max: 100,
            ..Default::default()
        };
        let request = Request::Page(page.clone());
        let Ok(Reply::Page(nothing)) = cluster.ask_as(id(0), 1, 2, request).await else {
            panic!("a page")
        };
        assert!(nothing.rows.is_empty(), "it merges nothing");
        let Ok(Reply::Page(page)) = cluster.ask_as(id(3), 1, 2, Request::Page(page)).await else {
            panic!("a page")
        };
        rows += page::rows_of(&page).expect("readable").len();
        cursor = page.cursor;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(rows, 20);
}

/// A fence whose node goes on to another epoch as soon as somebody has looked.
struct Rising {
    epoch: RwLock<u64>,
    looks: AtomicU64,
}

#[async_trait]
impl Fence for Rising {
    fn enter(&self, epoch: u64) -> Result<Pass<'_>, Closed> {
        match self.looks.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(self.epoch.read()),
            _ => Err(Closed::Stale { epoch: epoch + 1 }),
        }
    }

    async fn learn(&self, _: NodeId, _: u64, _: Duration) -> Result<(), PeerError> {
        Ok(())
    }

    async fn refresh(&self, _: NodeId, _: Duration) -> Result<(), PeerError> {
        Ok(())
    }
}

/// Pages are read without holding up who raises the epoch: if it rose meanwhile, the page is not
/// what it was asked for.
#[tokio::test(start_paused = true)]
async fn a_page_is_refused_if_the_epoch_rose_while_it_was_read() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 41);
    let joint = drawn(&cluster).layout(2, &[0, 1, 2], Some(&[0, 1, 3]));
    let rising = Rising { epoch: RwLock::new(2), looks: AtomicU64::new(0) };
    let mut compared = page::Compared::new(&joint, id(0), id(3));
    let request = proto::PageRequest { token_end: u64::MAX, ..Default::default() };
    let answer = page::answer(
        &cluster.nodes[0].store,
        &cluster.nodes[0].trees,
        &rising,
        &mut compared,
        &request,
    );
    assert_eq!(answer, Err(PeerError::StaleLayout { epoch: 3 }));
}

/// Who comes in between the look at the layout and the join is given all that was taken before, and
/// nothing after: a row that is joined then would be here, where nobody reads it.
#[tokio::test(start_paused = true)]
async fn rows_are_joined_under_the_epoch_that_was_looked_at_or_not_at_all() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 42);
    cluster.put(0, Level::All, put("k", "v")).await.expect("three are up");
    let held = |at: usize| {
        let store = &cluster.nodes[at].store;
        store.raw_row(TenantId(1), b"k").expect("undamaged").row
    };
    let row = held(0).expect("it owns the row");
    let rows: replica::Rows = vec![(TenantId(1), "k".into(), row.into())];
    let other = &cluster.nodes[3].store;
    let rising = Rising { epoch: RwLock::new(1), looks: AtomicU64::new(0) };
    drop(rising.enter(1).expect("it looks"));
    let refused = replica::submit_rows(&rising, 1, other, &rows, None).expect_err("it rose");
    assert_eq!(refused, PeerError::StaleLayout { epoch: 2 });
    assert_eq!(held(3), None);
    rising.looks.store(0, Ordering::Relaxed);
    let joined = replica::submit_rows(&rising, 1, other, &rows, None).expect("it may");
    joined.await.expect("answered").remove(0).expect("joined");
    assert_eq!(held(3), held(0));
}
