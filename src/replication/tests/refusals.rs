//! What a replica does not take from a peer, and the name it gives for that.

use std::sync::Arc;

use super::super::*;
use super::cluster::*;
use crate::cluster::peer::{Class, PeerError, PeerHandler as _, Reply, Request};
use crate::cluster::work::Background;
use crate::proto;
use crate::store::limits::KEY_BYTES_CEILING;

fn reason(refused: Result<Reply, PeerError>) -> String {
    match refused {
        Err(PeerError::Refused { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

fn forward(tenant: &str, mutations: Vec<proto::Mutation>) -> Request {
    let request = proto::BatchWriteRequest { tenant: tenant.to_owned(), mutations, consistency: 0 };
    Request::ForwardWrite(proto::ForwardWrite { request: Some(request) })
}

fn deletion() -> proto::Mutation {
    let change = Some(proto::mutation::Change::Delete(true));
    proto::Mutation { key: "k".into(), change, ..Default::default() }
}

#[tokio::test(start_paused = true)]
async fn a_request_of_an_epoch_that_nobody_knows_is_refused_by_name() {
    let cluster = Cluster::new(3, 100);
    let rows = Request::WriteRows(proto::WriteRows::default());
    assert_eq!(reason(cluster.ask(1, 9, rows).await), "LAYOUT_UNKNOWN");
    let page = Request::Page(proto::PageRequest::default());
    assert_eq!(reason(cluster.ask(1, 9, page).await), "LAYOUT_UNKNOWN");
}

#[tokio::test(start_paused = true)]
async fn a_forwarded_write_that_means_nothing_is_refused_by_name() {
    let cluster = Cluster::new(1, 101);
    let ask = async |request| reason(cluster.ask(0, 1, request).await);
    let nothing = proto::Mutation { key: "k".into(), ..Default::default() };
    assert_eq!(ask(forward("default", vec![nothing])).await, "INVALID_ARGUMENT");
    assert_eq!(ask(forward("nobody", vec![deletion()])).await, "UNKNOWN_TENANT");
    assert_eq!(ask(forward("default", vec![deletion(); 10_001])).await, "BATCH_TOO_LARGE");
    assert_eq!(ask(Request::Document(proto::DocumentRequest {})).await, "UNIMPLEMENTED");
}

#[tokio::test(start_paused = true)]
async fn too_many_rows_and_keys_that_cannot_be_are_refused_by_name() {
    let cluster = Cluster::new(1, 102);
    let state = |key: Vec<u8>| proto::RowState {
        tenant_id: 1,
        key: key.into(),
        row: b"any".to_vec().into(),
    };
    let write = |rows| Request::WriteRows(proto::WriteRows { rows, cause: 0 });
    let many = vec![state(b"k".to_vec()); 10_001];
    assert_eq!(reason(cluster.ask(0, 1, write(many.clone())).await), "BATCH_TOO_LARGE");
    let repairs = many.into_iter().map(|row| proto::JudgedRow { state: Some(row), floor: 0 });
    let repairs = Request::RepairRows(proto::RepairRows { rows: repairs.collect() });
    assert_eq!(reason(cluster.ask(0, 1, repairs).await), "BATCH_TOO_LARGE");
    let rows = vec![state(Vec::new()), state(vec![b'k'; KEY_BYTES_CEILING + 1])];
    let Ok(Reply::WriteRows(reply)) = cluster.ask(0, 1, write(rows)).await else {
        panic!("an answer")
    };
    let reasons = reply.results.iter().map(|one| one.failure.as_ref().map(|no| &no.reason[..]));
    assert_eq!(reasons.collect::<Vec<_>>(), [Some("EMPTY_KEY"), Some("KEY_TOO_LONG")]);
}

/// What no client waits for is read behind what one waits for. When the background has stopped it
/// is refused, and clients are served to the end.
#[tokio::test(start_paused = true)]
async fn rows_that_no_client_waits_for_are_read_in_the_background() {
    let cluster = Cluster::new(1, 103);
    cluster.put(0, Level::All, put("k", "v")).await.expect("itself");
    let node = &cluster.nodes[0];
    let background = Background::start().expect("threads");
    let replica = Replica::new(replica::Parts {
        node: node.id,
        store: Arc::clone(&node.store),
        trees: Arc::clone(&node.trees),
        coordinator: Arc::clone(&node.coordinator),
        fence: Arc::clone(&node.fence) as Arc<dyn Fence>,
        layout: node.departure.layout.clone(),
        background: background.work(),
        to_failure: failure,
    });
    background.stop();
    let tenant_id = node.store.tenant("default").expect("there").id.0;
    let keys = vec![proto::RowKey { tenant_id, key: "k".into() }];
    let request =
        Request::ReadRows(proto::ReadRows { keys, digest_only: true, ..Default::default() });
    let ask = async |class| replica.handle(node.id, class, 1, request.clone(), SECOND).await;
    assert_eq!(reason(ask(Class::Background).await), "STOPPING");
    assert!(matches!(ask(Class::Foreground).await, Ok(Reply::ReadRows(_))));
}

/// Its answers are the fastest, and no reason to fail what the others can do.
#[tokio::test(start_paused = true)]
async fn writes_pass_by_a_replica_that_takes_none() {
    let cluster = Cluster::with_owners(4, &[1, 2, 3], 104);
    cluster.nodes[1].store.close().expect("closed");
    for key in 0..40 {
        let put = put(&format!("k{key}"), "v");
        cluster.put(0, Level::Quorum, put).await.expect("two replicas take it");
    }
    let forwards = cluster.world.sent_to(id(1), "forward");
    assert!(forwards > 0, "it was asked, and refused");
}
