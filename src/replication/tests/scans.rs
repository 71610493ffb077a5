//! Scans over a whole cluster.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use super::super::*;
use super::cluster::*;
use crate::cluster::layout::{Document, Layout};
use crate::store::{KeyRange, Mutation, PageBounds, ScanRequest};

/// Two replicas of each row: of four nodes none holds everything.
const TWO: &str = "two";

fn delete(key: &str, context: Vec<u8>) -> Mutation {
    Mutation { key: key.into(), context: Some(context), ..Mutation::default() }
}

fn bounds(rows: usize) -> PageBounds {
    PageBounds { rows, bytes: 0 }
}

fn text(row: &ScannedRow) -> String {
    let key = String::from_utf8(row.key.to_vec()).expect("text");
    match &row.seen {
        Seen::Row(seen) => format!("{key}={}", values(seen).join(",")),
        Seen::Key => key,
        Seen::Raw(row) => format!("{key} {} bytes", row.len()),
    }
}

/// All pages of a scan, each asked of the next of `nodes`.
async fn scan_through(
    cluster: &Cluster,
    nodes: &[usize],
    tenant: &str,
    mut request: ScanRequest,
    want: Want,
    level: Level,
) -> Result<Vec<String>> {
    let mut shown = Vec::new();
    for at in nodes.iter().cycle().take(10_000) {
        let coordinator = &cluster.nodes[*at].coordinator;
        let mut walk = coordinator.walk(tenant, &request, want, level)?;
        let deadline = Instant::now() + 2 * SECOND;
        let page = walk.page(bounds(request.limit), deadline).await?;
        assert!(request.limit == 0 || page.rows.len() <= request.limit);
        shown.extend(page.rows.iter().map(text));
        match page.cursor {
            Some(cursor) => request.cursor = Some(cursor),
            None => return Ok(shown),
        }
    }
    panic!("the scan does not end");
}

async fn scan(cluster: &Cluster, at: usize, tenant: &str, level: Level) -> Result<Vec<String>> {
    scan_through(cluster, &[at], tenant, ScanRequest::default(), Want::Values, level).await
}

async fn fill(cluster: &Cluster, tenant: &str, count: usize) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for n in 0..count {
        let key = format!("user{}:{n}", n % 20);
        let written = cluster.write(n % 3, tenant, Level::All, put(&key, "v"));
        written.await.expect("all are up");
        keys.insert(key);
    }
    keys
}

fn as_set(shown: Vec<String>) -> BTreeSet<String> {
    let count = shown.len();
    let set: BTreeSet<String> = shown.into_iter().collect();
    assert_eq!(set.len(), count, "each once");
    set
}

/// Nobody holds everything, any node shows everything, and a cursor goes on through any other.
#[tokio::test(start_paused = true)]
async fn every_row_of_the_cluster_is_shown_once_through_any_node_and_across_nodes() {
    let cluster = Cluster::new(4, 60);
    let keys = fill(&cluster, TWO, 100).await;
    let whole = KeyRange::of_tokens(0, u64::MAX);
    for node in &cluster.nodes {
        let held = node.store.rows_within(&whole, usize::MAX).expect("readable");
        assert!(held.rows.len() < 100, "nobody holds everything");
    }
    for level in [Level::One, Level::Quorum, Level::All] {
        for nodes in [&[0][..], &[1], &[2], &[3], &[0, 1, 2, 3]] {
            for limit in [0, 1, 9, 40] {
                let request = ScanRequest { limit, ..ScanRequest::default() };
                let shown = scan_through(&cluster, nodes, TWO, request, Want::Keys, level).await;
                assert_eq!(as_set(shown.expect("all are up")), keys, "{level:?} {nodes:?} {limit}");
            }
        }
        let shown = as_set(scan(&cluster, 1, TWO, level).await.expect("all are up"));
        assert!(shown.iter().all(|row| row.ends_with("=v")) && shown.len() == 100);
    }
    assert_eq!(scan(&cluster, 0, "lww", Level::Quorum).await.expect("all are up"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_rows_of_a_partition_key_come_in_order_from_its_replicas_only() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2, 3], 61);
    let keys = fill(&cluster, TWO, 140).await;
    let mut expected: Vec<String> =
        keys.into_iter().filter(|key| key.starts_with("user3:")).collect();
    expected.sort_unstable();
    cluster.world.sent.lock().clear();
    let request =
        ScanRequest { partition_key: Some(b"user3".to_vec()), limit: 4, ..ScanRequest::default() };
    let shown = scan_through(&cluster, &[0], TWO, request, Want::Keys, Level::All).await;
    assert_eq!(shown.expect("all are up"), expected);
    let asked: BTreeSet<_> = cluster.world.sent.lock().keys().map(|(node, _)| *node).collect();
    assert!(asked.len() <= 2, "{asked:?} were asked");
}

/// The shown row is on as many replicas as the level asks for when it is shown.
#[tokio::test(start_paused = true)]
async fn a_scan_at_quorum_repairs_the_replica_that_is_behind_and_one_shows_what_it_has() {
    let cluster = Cluster::new(3, 62);
    cluster.put(0, Level::All, put("old", "v")).await.expect("all are up");
    cluster.world.isolate(id(2), &cluster.ids());
    cluster.put(0, Level::Quorum, put("new", "v")).await.expect("two hear each other");
    let old = cluster.get(0, Level::Quorum, "old").await.expect("two hear each other");
    let over = over("old", "w", &old.context);
    cluster.put(0, Level::Quorum, over).await.expect("two hear each other");
    cluster.world.heal();
    assert_eq!(scan(&cluster, 2, "default", Level::One).await.expect("itself"), ["old=v"]);
    let shown = scan(&cluster, 2, "default", Level::Quorum).await.expect("healed");
    assert_eq!(as_set(shown), BTreeSet::from(["new=v".to_owned(), "old=w".to_owned()]));
    assert_eq!(
        (cluster.local(2, "new"), cluster.local(2, "old")),
        (vec!["v".into()], vec!["w".into()])
    );
    let stats = cluster.nodes[2].coordinator.stats();
    assert_eq!(stats.repairs, 2, "by the read of the two keys");
}

/// A deleted key does not come back through a replica that has not heard of the delete.
#[tokio::test(start_paused = true)]
async fn a_deleted_key_is_not_shown_at_quorum_though_one_replica_still_has_it() {
    let cluster = Cluster::new(3, 63);
    for key in ["gone", "kept"] {
        cluster.put(0, Level::All, put(key, "v")).await.expect("all are up");
    }
    let row = cluster.get(0, Level::Quorum, "gone").await.expect("all are up");
    cluster.world.isolate(id(2), &cluster.ids());
    cluster.put(0, Level::Quorum, delete("gone", row.context)).await.expect("two");
    cluster.world.heal();
    for want in [Want::Keys, Want::Values] {
        let request = ScanRequest::default();
        let shown = scan_through(&cluster, &[2], "default", request, want, Level::Quorum).await;
        assert_eq!(shown.expect("healed").len(), 1, "{want:?}");
    }
    let request = ScanRequest::default();
    let raw = scan_through(&cluster, &[2], "default", request, Want::Raw, Level::Quorum).await;
    assert_eq!(raw.expect("healed").len(), 2, "as it is stored there is a tombstone");
}

#[tokio::test(start_paused = true)]
async fn with_a_node_down_quorum_scans_go_on_and_all_names_a_partition() {
    let cluster = Cluster::new(3, 64);
    let keys = fill(&cluster, "default", 60).await;
    cluster.world.take_down(id(1));
    for at in [0, 2] {
        let shown = scan(&cluster, at, "default", Level::Quorum).await.expect("two are up");
        assert_eq!(shown.len(), keys.len());
    }
    let failed = scan(&cluster, 0, "default", Level::All).await.expect_err("one is down");
    assert_eq!(failed.reason(), "QUORUM_UNAVAILABLE");
    assert!(matches!(failed, Error::Partition { partition: 0, .. }), "{failed}");
    // With two replicas QUORUM is both: the partitions of the one that is down cannot be read.
    let failed = scan(&cluster, 0, TWO, Level::Quorum).await.expect_err("one is down");
    assert!(matches!(failed, Error::Partition { .. }), "{failed}");
    scan(&cluster, 0, TWO, Level::One).await.expect("each row is on one that is up");
}

/// It is paused, and nobody knows yet.
#[tokio::test(start_paused = true)]
async fn a_replica_that_does_not_answer_is_passed_by() {
    let cluster = Cluster::new(3, 65);
    let keys = fill(&cluster, "default", 30).await;
    cluster.world.isolate(id(1), &[id(1), id(0)]);
    let began = Instant::now();
    let shown = scan(&cluster, 0, "default", Level::Quorum).await.expect("the third answers");
    assert_eq!(shown.len(), keys.len());
    assert!(began.elapsed() < SECOND, "nobody waited for the deadline");
}

/// What was given out before stands, and the scan goes on from there when the partition is back.
#[tokio::test(start_paused = true)]
async fn a_scan_ends_where_it_cannot_go_on_and_goes_on_later() {
    let cluster = Cluster::new(3, 66);
    let keys = fill(&cluster, TWO, 80).await;
    let layout = layout(1, &[0, 1, 2], None);
    let sets = |partition| layout.sets(partition, 2);
    let down = (0..3).map(id).find(|node| !sets(0).contains(*node)).expect("two of three hold it");
    assert!((1..4).any(|partition| sets(partition).contains(down)));
    cluster.world.take_down(down);
    let at = (0..3).find(|at| id(*at) != down).expect("another one");
    let coordinator = &cluster.nodes[at].coordinator;
    let request = ScanRequest::default();
    let mut walk = coordinator.walk(TWO, &request, Want::Keys, Level::All).expect("a tenant");
    let page = walk.page(bounds(0), Instant::now() + SECOND).await.expect("the first partition");
    assert!(!page.rows.is_empty() && page.cursor.is_some());
    let failed = walk.page(bounds(0), Instant::now() + SECOND).await.expect_err("it is down");
    assert!(matches!(failed, Error::Partition { partition: 1.., .. }), "{failed}");
    cluster.world.bring_up(down);
    let rest = walk.page(bounds(0), Instant::now() + SECOND).await.expect("it is back");
    let shown = page.rows.iter().chain(&rest.rows).map(text).collect();
    assert_eq!((as_set(shown), rest.cursor), (keys, None));
}

/// R4: both sets must answer, and at ONE the newcomer's word, which may be empty, is not asked for.
#[tokio::test(start_paused = true)]
async fn while_the_layout_changes_both_sets_are_asked_and_newcomers_are_not_trusted() {
    let cluster = Cluster::with_owners(5, &[0, 1, 2], 67);
    let keys = fill(&cluster, "default", 40).await;
    let all = [0, 1, 2, 3, 4];
    cluster.commit(layout(2, &[0, 1, 2], Some(&[0, 3, 4])), &all);
    for at in all {
        let shown = scan(&cluster, at, "default", Level::One).await.expect("all are up");
        assert_eq!(shown.len(), keys.len(), "through node {at} at ONE");
    }
    cluster.world.take_down(id(3));
    let shown = scan(&cluster, 0, "default", Level::Quorum).await.expect("two of each set");
    assert_eq!(shown.len(), keys.len());
    for key in &keys {
        assert_ne!(
            cluster.digests("default", key)[4],
            0,
            "the newcomer that answered was repaired"
        );
    }
    cluster.world.take_down(id(4));
    let failed = scan(&cluster, 0, "default", Level::Quorum).await.expect_err("one of the new set");
    assert_eq!(failed.reason(), "QUORUM_UNAVAILABLE");
}

/// The layout goes on in the middle of a walk, on a node that has not been told.
#[tokio::test(start_paused = true)]
async fn a_walk_goes_on_under_a_later_layout_without_losing_or_repeating_a_row() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 68);
    let keys = fill(&cluster, TWO, 90).await;
    let coordinator = &cluster.nodes[0].coordinator;
    let request = ScanRequest::default();
    let mut walk = coordinator.walk(TWO, &request, Want::Values, Level::All).expect("a tenant");
    let deadline = || Instant::now() + 2 * SECOND;
    let mut shown = Vec::new();
    let first = walk.page(bounds(20), deadline()).await.expect("three are up");
    shown.extend(first.rows);
    cluster.commit(layout(2, &[0, 1, 2], Some(&[0, 1, 3])), &[1, 2, 3]);
    let mut has_next = true;
    while has_next {
        let page = walk.page(bounds(20), deadline()).await.expect("four are up");
        has_next = page.cursor.is_some();
        shown.extend(page.rows);
    }
    let of_key = |row: &ScannedRow| String::from_utf8(row.key.to_vec()).expect("text");
    assert_eq!(as_set(shown.iter().map(of_key).collect()), keys);
    assert!(coordinator.stats().restarts > 0);
}

/// A replica that has lost data gives no word, not even that it holds nothing.
#[tokio::test(start_paused = true)]
async fn a_partition_that_has_lost_data_is_read_from_others() {
    let cluster = Cluster::new(3, 69);
    let keys = fill(&cluster, "default", 40).await;
    let store = &cluster.nodes[1].store;
    for partition in [0, 2] {
        store.mark_damaged(partition..=partition, &[1, 3]).expect("marked");
    }
    for level in [Level::One, Level::Quorum] {
        let shown = scan(&cluster, 1, "default", level).await.expect("two others are whole");
        assert_eq!(shown.len(), keys.len(), "{level:?}");
    }
    let failed = scan(&cluster, 1, "default", Level::All).await.expect_err("it has no word");
    assert!(matches!(failed, Error::Partition { partition: 0, .. }), "{failed}");
}

/// Rows travel once, digests from the others; where only keys are wanted no row travels.
#[tokio::test(start_paused = true)]
async fn one_replica_sends_rows_and_for_keys_none_does() {
    let cluster = Cluster::new(3, 70);
    fill(&cluster, "default", 40).await;
    let sent = |kind| (1..3).map(|at| cluster.world.sent_to(id(at), kind)).sum::<u64>();
    scan(&cluster, 0, "default", Level::All).await.expect("all are up");
    assert_eq!((sent("scan"), sent("scan digest")), (0, 2), "the rows are the own");
    let request = ScanRequest::default();
    let shown = scan_through(&cluster, &[0], "default", request, Want::Keys, Level::All).await;
    assert_eq!(shown.expect("all are up").len(), 40);
    assert_eq!((sent("scan"), sent("scan digest"), sent("read")), (0, 4, 0));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_of_one_scans_by_itself_in_one_page() {
    let cluster = Cluster::new(1, 71);
    for n in 0..50 {
        cluster.put(0, Level::All, put(&format!("key-{n}"), "v")).await.expect("itself");
    }
    let coordinator = &cluster.nodes[0].coordinator;
    let request = ScanRequest::default();
    let mut walk = coordinator.walk("default", &request, Want::Values, Level::All).expect("known");
    let page = walk.page(bounds(0), Instant::now() + SECOND).await.expect("itself");
    assert_eq!((page.rows.len(), page.cursor), (50, None));
    assert!(cluster.world.sent.lock().is_empty());
}

/// A page ends with the row that reaches its bytes, whatever was read ahead.
#[tokio::test(start_paused = true)]
async fn a_page_is_bounded_in_bytes() {
    let cluster = Cluster::new(3, 72);
    for n in 0..30 {
        let big = "v".repeat(1000);
        cluster.put(0, Level::All, put(&format!("key-{n}"), &big)).await.expect("all are up");
    }
    let coordinator = &cluster.nodes[0].coordinator;
    let request = ScanRequest::default();
    let mut walk =
        coordinator.walk("default", &request, Want::Values, Level::Quorum).expect("known");
    let (mut rows, mut has_next) = (0, true);
    while has_next {
        let bounds = PageBounds { rows: 0, bytes: 2500 };
        let page = walk.page(bounds, Instant::now() + SECOND).await.expect("all are up");
        assert!(page.rows.len() <= 3);
        has_next = page.cursor.is_some();
        rows += page.rows.len();
    }
    assert_eq!(rows, 30);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_not_asked_for_partitions_it_does_not_hold() {
    use crate::cluster::peer::{PeerError, Request};
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 73);
    let request = Request::ScanRows(crate::proto::ScanRows { tenant_id: 1, ..Default::default() });
    assert_eq!(cluster.ask(3, 1, request.clone()).await, Err(PeerError::NotAReplica));
    cluster.ask(0, 1, request.clone()).await.expect("it holds all");
    cluster.commit(layout(2, &[0, 1, 2], None), &[0]);
    let stale = cluster.ask(0, 1, request).await;
    assert_eq!(stale, Err(PeerError::StaleLayout { epoch: 2 }));
}

/// What the way through the coordinator costs where it is all the cluster.
#[tokio::test]
#[ignore = "measures"]
async fn a_cluster_of_one_scans_about_as_fast_as_its_store() {
    let cluster = Cluster::new(1, 74);
    let node = &cluster.nodes[0];
    for n in 0..40 {
        let batch = (0..500).map(|m| put(&format!("key-{n}-{m}"), &"v".repeat(100))).collect();
        let options = WriteOptions { level: Level::One, deadline: Instant::now() + SECOND };
        node.coordinator.write("default", batch, options).await;
        node.store.flush().expect("flushed");
        if n % 8 == 7 {
            node.store.compact().expect("compacted");
        }
    }
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let (mut rows, mut request) = (0, ScanRequest { limit: 1000, ..ScanRequest::default() });
        loop {
            let page = node.store.scan("default", &request).expect("readable");
            rows += page.rows.len();
            let Some(cursor) = page.cursor else { break };
            request.cursor = Some(cursor);
        }
        let alone = began.elapsed();
        let began = std::time::Instant::now();
        let request = ScanRequest::default();
        let mut walk =
            node.coordinator.walk("default", &request, Want::Values, Level::One).expect("known");
        let mut walked = 0;
        loop {
            let page = walk.page(bounds(1000), Instant::now() + SECOND).await.expect("readable");
            walked += page.rows.len();
            if page.cursor.is_none() {
                break;
            }
        }
        assert_eq!((rows, walked), (20_000, 20_000));
        println!("{rows} rows: the store alone {alone:?}, the walk {:?}", began.elapsed());
    }
}

/// What is read ahead has the time of the page it was begun for. A reader may take longer than that
/// with a page and ask for the next one all the same.
#[tokio::test(start_paused = true)]
async fn a_reader_may_pause_between_pages_for_as_long_as_he_likes() {
    let cluster = Cluster::with_owners(4, &[1, 2, 3], 73);
    let mut keys = BTreeSet::new();
    for n in 0..400 {
        let key = format!("key-{n}");
        cluster.put(1, Level::All, put(&key, "v")).await.expect("all are up");
        keys.insert(key);
    }
    let coordinator = &cluster.nodes[0].coordinator;
    let request = ScanRequest::default();
    let mut walk = coordinator.walk("default", &request, Want::Keys, Level::Quorum).expect("known");
    let (mut shown, mut has_next) = (Vec::new(), true);
    while has_next {
        let page = walk.page(bounds(40), Instant::now() + 2 * SECOND).await.expect("all are up");
        has_next = page.cursor.is_some();
        shown.extend(page.rows.iter().map(text));
        tokio::time::sleep(30 * SECOND).await;
    }
    assert_eq!(as_set(shown), keys);
}

/// R4 with another number of replicas: a quorum of the four to be, not of the two that are. Scans
/// took the tenant's own number for both sets, and could miss what the new set had acknowledged.
#[tokio::test(start_paused = true)]
async fn while_the_number_of_replicas_changes_a_scan_asks_a_quorum_of_the_new_number_too() {
    let cluster = Cluster::new(4, 68);
    let keys = fill(&cluster, TWO, 40).await;
    let all = [0, 1, 2, 3];
    let joint = layout(2, &all, Some(&all));
    let tenant = cluster.nodes[0].store.tenant(TWO).expect("there");
    let next_factors = [(tenant.id, 4)].into();
    let tenants = [(tenant.id, (*tenant).clone())].into();
    let document = Document { tenants, next_factors, ..Document::clone(joint.document()) };
    cluster.commit(Arc::new(Layout::new(Arc::new(document))), &all);
    let shown = scan(&cluster, 0, TWO, Level::Quorum).await.expect("all are up");
    assert_eq!(shown.len(), keys.len());
    let partition = joint.partition_of(tenant.token(b"user3:0"));
    let replicas = joint.sets(partition, 2).current;
    let others = (0..4).filter(|at| !replicas.contains(&id(*at)));
    others.for_each(|at| cluster.world.take_down(id(at)));
    let request = ScanRequest { partition_key: Some(b"user3".to_vec()), ..ScanRequest::default() };
    let at = (0..4).find(|at| replicas.contains(&id(*at))).expect("two hold it");
    let shown = scan_through(&cluster, &[at], TWO, request, Want::Keys, Level::Quorum).await;
    assert_eq!(shown.expect_err("two of four are none").reason(), "QUORUM_UNAVAILABLE");
}
