//! Rule T4: a node says that it has merged what it will own only when it has.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::super::*;
use super::cluster::*;
use super::departures::{Drawn, drawn};
use crate::causality::clock::time_of_ms;
use crate::cluster::layout::{Command, Document, MemberState};
use crate::cluster::peer::{PeerError, Reply, Request};
use crate::engine::vfs::Vfs as _;
use crate::proto;
use crate::store::{ForeignRow, Mutation};

const KEYS: usize = 40;

/// Three owners with some keys at ALL, and a fourth node that is to join; it hears of it.
async fn joining(seed: u64) -> Cluster {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], seed);
    for n in 0..KEYS {
        cluster.put(n % 3, Level::All, put(&format!("key-{n}"), "v")).await.expect("all are up");
    }
    let joint = joint(&drawn(&cluster), 2);
    cluster.commit(joint, &[0, 1, 2, 3]);
    cluster
}

fn joint(drawn: &Drawn<'_>, epoch: u64) -> Arc<Layout> {
    let layout = drawn.layout(epoch, &[0, 1, 2], Some(&[0, 1, 2, 3]));
    let syncers = BTreeSet::from([id(3)]);
    Arc::new(Layout::new(Arc::new(Document { syncers, ..Document::clone(layout.document()) })))
}

/// Lets the fourth node merge for a while; whether it says that it has.
async fn merges(cluster: &Cluster, seconds: u32) -> bool {
    merges_at(cluster, 3, seconds).await
}

async fn merges_at(cluster: &Cluster, at: usize, seconds: u32) -> bool {
    node_merges(cluster, at, async { tokio::time::sleep(seconds * SECOND).await }).await
}

/// Lets a node merge while something else goes on; whether it says that it has.
async fn node_merges(cluster: &Cluster, at: usize, meanwhile: impl Future<Output = ()>) -> bool {
    let closing = CancellationToken::new();
    let node = &cluster.nodes[at];
    let (documents, transfer) = (node.departure.layout.clone(), Arc::clone(&node.transfer));
    let progress = Arc::clone(&transfer.progress);
    let running = tokio::spawn(duties::run(documents, progress, closing.clone(), move |layout| {
        let transfer = Arc::clone(&transfer);
        async move { transfer.serve(&layout).await }
    }));
    meanwhile.await;
    closing.cancel();
    running.await.expect("it does not panic");
    let reports = node.reports.lock();
    reports.iter().any(|command| matches!(command, Command::Synced { .. }))
}

/// Rows of which the fourth node will be a replica, and those that it holds.
fn owned_and_held(cluster: &Cluster) -> (usize, usize) {
    let layout = joint(&drawn(cluster), 2);
    let tenant = cluster.nodes[0].store.tenant("default").expect("there");
    let (mut owned, mut held) = (0, 0);
    for n in 0..KEYS {
        let key = format!("key-{n}");
        let partition = layout.partition_of(tenant.token(key.as_bytes()));
        let next = layout.sets_of(partition, &tenant).next.expect("joint");
        owned += usize::from(next.contains(&id(3)));
        held += usize::from(cluster.digests("default", &key)[3] != 0);
    }
    (owned, held)
}

fn sent(cluster: &Cluster, kind: &'static str) -> u64 {
    (0..3).map(|at| cluster.world.sent_to(id(at), kind)).sum()
}

/// Rows are fetched once. That the next source holds nothing else takes a sum, not a list of keys.
#[tokio::test(start_paused = true)]
async fn what_all_sources_hold_is_fetched_once_and_added_up() {
    let cluster = joining(71).await;
    assert!(merges(&cluster, 30).await);
    let (owned, held) = owned_and_held(&cluster);
    assert!(owned > 0 && held == owned, "{held} of {owned}");
    let rows = sent(&cluster, "page");
    assert_eq!((sent(&cluster, "page digests"), sent(&cluster, "read")), (0, 0));
    assert_eq!(sent(&cluster, "sum"), rows, "the first source's pages have their sums");
}

/// A node that is started again in the midst of it looks at what it has, and fetches what it lacks.
#[tokio::test(start_paused = true)]
async fn what_was_merged_before_a_restart_is_not_moved_again() {
    let cluster = joining(87).await;
    assert!(merges(&cluster, 30).await);
    let moved = cluster.nodes[3].transfer.rate.total();
    assert!(moved > 0);
    let (owned, held) = owned_and_held(&cluster);
    cluster.put(0, Level::All, put("later", "v")).await.expect("all are up");
    cluster.nodes[3].reports.lock().clear();
    assert!(merges(&cluster, 30).await);
    assert_eq!(owned_and_held(&cluster), (owned, held));
    assert_eq!(cluster.nodes[3].transfer.rate.total(), moved);
}

/// What clients write stands behind what moves: a part of a page at a time, as the rate lets it.
#[tokio::test(start_paused = true)]
async fn rows_come_at_the_rate_and_not_page_by_page() {
    const VALUE_BYTES: usize = 22 << 10;
    const BYTES_PER_SECOND: u64 = 64 << 10;
    const LOOK: Duration = Duration::from_millis(50);
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 86);
    let value = "v".repeat(VALUE_BYTES);
    for n in 0..KEYS {
        cluster.put(n % 3, Level::All, put(&format!("key-{n}"), &value)).await.expect("all are up");
    }
    cluster.commit(joint(&drawn(&cluster), 2), &[0, 1, 2, 3]);
    cluster.nodes[3].transfer.rate.set(BYTES_PER_SECOND);
    let watching = async {
        for looks in 0..1000 {
            let held = owned_and_held(&cluster).1 * VALUE_BYTES;
            let since = (LOOK * looks).as_secs_f64();
            let let_through = (BYTES_PER_SECOND as f64 * since) as usize;
            let slice = (128 << 10) + 2 * VALUE_BYTES;
            assert!(held <= let_through + slice, "{held} bytes after {since} s");
            tokio::time::sleep(LOOK).await;
        }
    };
    assert!(node_merges(&cluster, 3, watching).await);
    let (owned, held) = owned_and_held(&cluster);
    assert!(owned > KEYS / 2 && held == owned, "{held} of {owned}");
}

/// The end-to-end check: what got lost between the source's disk and this node's is seen before
/// anything is said, and fetched again; all else is not.
#[tokio::test(start_paused = true)]
async fn a_row_that_got_lost_on_its_way_is_fetched_before_the_receipt() {
    let cluster = joining(72).await;
    cluster.world.damaged_pages.store(2, Ordering::Relaxed);
    assert!(merges(&cluster, 30).await);
    let (owned, held) = owned_and_held(&cluster);
    assert_eq!(held, owned);
    assert!(sent(&cluster, "page digests") > 0);
    assert_eq!(sent(&cluster, "read"), 2, "one for each page that a row was left out of");
}

/// A source that is behind does not match what another one has given: only what it holds and this
/// node does not is asked of it.
#[tokio::test(start_paused = true)]
async fn sources_that_differ_are_all_merged() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 73);
    for n in 0..KEYS {
        // Each is held by one of them only.
        cluster.world.isolate(id(n % 3), &cluster.ids());
        cluster.put(n % 3, Level::One, put(&format!("key-{n}"), "v")).await.expect("itself");
        cluster.world.heal();
    }
    let mut drawn = drawn(&cluster);
    // Of whoever leaves all is asked: here of all of them.
    drawn.states = (0..3).map(|at| (at, MemberState::Leaving)).collect();
    let joint = joint(&drawn, 2);
    cluster.commit(joint, &[0, 1, 2, 3]);
    assert!(merges(&cluster, 60).await);
    let (owned, held) = owned_and_held(&cluster);
    assert_eq!(held, owned);
}

/// A write whose idempotency key says that it was made, and which is gone, was missed by one of the
/// sources. Whoever is sent it again finds it at a quorum, also when a newcomer is in that.
#[tokio::test(start_paused = true)]
async fn a_newcomer_learns_which_idempotency_keys_were_used() {
    for missing in 0..3 {
        let cluster = Cluster::with_owners(4, &[0, 1, 2], 74);
        let store = |at: usize| &cluster.nodes[at].store;
        let tenant = store(0).tenant("lww").expect("there");
        for n in 0..KEYS {
            let key = format!("key-{n}");
            let copy = |from: usize| {
                let row = store(from).raw_row(tenant.id, key.as_bytes()).expect("readable").row;
                vec![(tenant.id, key.clone().into_bytes(), row.expect("written"))]
            };
            let others = [0, 1, 2].map(|at| (at, at != missing)).into_iter();
            for at in others.filter_map(|(at, is_other)| is_other.then_some(at)) {
                store(at).write("lww", once(&key, "v", &format!("used-{n}"))).expect("itself");
            }
            cluster.world.clock.advance_ms(10);
            store(missing).write("lww", put(&key, "w")).expect("itself");
            let row = copy(missing);
            (0..3).for_each(|at| store(at).replicate(&row).remove(0).expect("joined"));
        }
        let joint = joint(&drawn(&cluster), 2);
        cluster.commit(Arc::clone(&joint), &[0, 1, 2, 3]);
        assert!(merges(&cluster, 30).await);
        let mut held = 0;
        for n in 0..KEYS {
            let (key, used) = (format!("key-{n}"), format!("used-{n}"));
            let row = store(3).raw_row(tenant.id, key.as_bytes()).expect("readable");
            held += usize::from(row.row.is_some());
            let knows = store(3).knows_token(&tenant, key.as_bytes(), &row, used.as_bytes());
            assert!(row.row.is_none() || knows.expect("a row"), "{key} without n{missing}");
        }
        assert!(held > KEYS / 2, "{held}");
    }
}

/// A source that cannot be asked is waited for, and said to be; the work goes on when it is back.
#[tokio::test(start_paused = true)]
async fn nothing_is_said_while_a_source_is_missing() {
    let cluster = joining(74).await;
    cluster.world.lose(id(0), "page");
    cluster.world.lose(id(1), "sum");
    cluster.world.lose(id(2), "sum");
    assert!(!merges(&cluster, 30).await);
    assert!(cluster.nodes[3].transfer.progress.figures().waits_for.contains("rows of n"));
}

/// What could not be kept is not fetched, least of all again and again: the sources serve clients.
/// It is this node's disk that is waited for, and no source's fault.
#[tokio::test(start_paused = true)]
async fn a_node_without_room_fetches_nothing_says_so_and_goes_on_when_there_is_room() {
    let cluster = joining(77).await;
    let node = &cluster.nodes[3];
    let space = node.vfs.disk_space(Path::new("/node")).expect("in memory");
    node.vfs.set_space_limit(Some(space.total - space.available + (1 << 20)));
    node.store.step().expect("it looks at the disk");
    assert!(!merges(&cluster, 30).await);
    assert_eq!(sent(&cluster, "page"), 0);
    let waits_for = node.transfer.progress.figures().waits_for;
    assert!(waits_for.starts_with("room on its disk: "), "{waits_for}");
    node.vfs.set_space_limit(None);
    node.store.step().expect("it looks at the disk");
    assert!(merges(&cluster, 30).await);
    let (owned, held) = owned_and_held(&cluster);
    assert!(owned > 0 && held == owned, "{held} of {owned}");
}

/// A node owns the rows of a tenant with three replicas, and not those of one with a single replica
/// in the same partition. What of these its sources still hold it neither gets nor is asked to
/// compare: nobody would wait for it to give them back, and the source does not read them out.
#[tokio::test(start_paused = true)]
async fn rows_that_a_node_will_not_own_are_not_merged() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 75);
    let tenant = cluster.nodes[0].store.tenant("lww").expect("there");
    for n in 0..KEYS {
        let key = format!("key-{n}");
        cluster.put(n % 3, Level::All, put(&key, "v")).await.expect("all are up");
        cluster.write(0, "lww", Level::All, put(&key, "v")).await.expect("all are up");
        // What was left behind differs from what the owner has.
        cluster.nodes[n % 3].store.write("lww", put(&key, "w")).expect("itself");
    }
    let mut document = Document::clone(joint(&drawn(&cluster), 2).document());
    document.tenants.get_mut(&tenant.id).expect("there").replication_factor = 1;
    let layout = Arc::new(Layout::new(Arc::new(document)));
    cluster.commit(Arc::clone(&layout), &[0, 1, 2, 3]);
    assert!(merges(&cluster, 60).await);
    let (owned, held) = owned_and_held(&cluster);
    assert!(owned > 0 && held == owned, "{held} of {owned}");
    let mut owned = 0;
    for n in 0..KEYS {
        let key = format!("key-{n}");
        let partition = layout.partition_of(tenant.token(key.as_bytes()));
        let sets = layout.sets_of(partition, &tenant);
        let holds = cluster.digests("lww", &key)[3] != 0;
        assert_eq!(holds, sets.contains(id(3)), "{key}");
        owned += usize::from(holds);
    }
    assert!(owned > 0);
}

/// The exit for a leaver that is dead for good: who waits for its rows goes on without them.
#[tokio::test(start_paused = true)]
async fn a_leaver_that_is_given_up_is_not_waited_for_any_more() {
    let cluster = joining(76).await;
    let mut drawn = drawn(&cluster);
    drawn.states = [(0, MemberState::Leaving)].into();
    cluster.commit(joint(&drawn, 3), &[0, 1, 2, 3]);
    cluster.world.take_down(id(0));
    let given_up = async {
        tokio::time::sleep(30 * SECOND).await;
        let waits_for = cluster.nodes[3].transfer.progress.figures().waits_for;
        assert!(waits_for.contains("rows of n1"), "{waits_for}");
        drawn.states = [(0, MemberState::Removing)].into();
        let mut document = Document::clone(joint(&drawn, 3).document());
        document.version += 1;
        cluster.commit(Arc::new(Layout::new(Arc::new(document))), &[1, 2, 3]);
        tokio::time::sleep(30 * SECOND).await;
    };
    assert!(node_merges(&cluster, 3, given_up).await);
    let (owned, held) = owned_and_held(&cluster);
    assert_eq!(held, owned);
}

/// One that is up and answers no page does not hold up what the others can give.
#[tokio::test(start_paused = true)]
async fn a_source_that_fails_is_not_asked_for_ever_when_others_would_do() {
    let cluster = joining(77).await;
    cluster.world.lose(id(0), "page");
    cluster.world.lose(id(0), "sum");
    assert!(merges(&cluster, 60).await);
    let (owned, held) = owned_and_held(&cluster);
    assert_eq!(held, owned);
}

/// Three owners, of which those at `holders` of a key hold it.
fn holding(seed: u64, holders: impl Fn(usize) -> Vec<usize>) -> Cluster {
    let cluster = Cluster::with_owners(3, &[0, 1, 2], seed);
    for n in 0..KEYS {
        for at in holders(n) {
            let written = cluster.nodes[at].store.write("default", put(&format!("key-{n}"), "v"));
            written.expect("itself");
        }
    }
    cluster
}

/// From three replicas to one.
fn to_one_replica(cluster: &Cluster) {
    let layout = drawn(cluster).layout(2, &[0, 1, 2], Some(&[0, 1, 2]));
    let syncers = (0..3).map(id).collect();
    let next_factors = layout.document().tenants.keys().map(|tenant| (*tenant, 1)).collect();
    let document = Document { syncers, next_factors, ..Document::clone(layout.document()) };
    cluster.commit(Arc::new(Layout::new(Arc::new(document))), &[0, 1, 2]);
}

/// Of the keys that the first node will own alone, those that it does not hold.
fn not_held(cluster: &Cluster) -> Vec<String> {
    let layout = cluster.nodes[0].departure.layout.borrow();
    let tenant = cluster.nodes[0].store.tenant("default").expect("there");
    let is_owned = |key: &String| {
        let partition = layout.partition_of(tenant.token(key.as_bytes()));
        layout.sets_of(partition, &tenant).next.expect("joint") == [id(0)]
    };
    let keys: Vec<String> = (0..KEYS).map(|n| format!("key-{n}")).filter(is_owned).collect();
    assert!(!keys.is_empty());
    let holds = |key: &String| {
        let row = cluster.nodes[0].store.damaged_row(tenant.id, key.as_bytes());
        row.expect("readable").row.is_some()
    };
    keys.into_iter().filter(|key| !holds(key)).collect()
}

/// A round begins, and gets no further.
fn fence_all(cluster: &Cluster) {
    cluster.world.clock.advance_ms(2000);
    for node in &cluster.nodes {
        node.store.fence(&[0..=3], time_of_ms(T0_MS + 1000)).expect("fenced");
    }
}

/// One that has lost data knows less than a member of S is counted for: all the others are asked.
#[tokio::test(start_paused = true)]
async fn a_survivor_that_has_lost_data_is_no_source_of_itself() {
    let cluster = holding(78, |n| vec![n % 3]);
    fence_all(&cluster);
    cluster.nodes[0].store.mark_damaged(0..=3, &[2, 3]).expect("marked");
    to_one_replica(&cluster);
    let while_damaged = async { tokio::time::sleep(60 * SECOND).await };
    assert!(node_merges(&cluster, 0, while_damaged).await);
    assert_eq!(not_held(&cluster), Vec::<String>::new());
}

/// A round was voided after its fences: no member takes what is at or below them as a late write,
/// and what only one of them holds is to be merged all the same.
#[tokio::test(start_paused = true)]
async fn a_survivor_merges_rows_below_its_guard() {
    let cluster = holding(79, |_| vec![1, 2]);
    fence_all(&cluster);
    to_one_replica(&cluster);
    let merging = async { tokio::time::sleep(60 * SECOND).await };
    assert!(node_merges(&cluster, 0, merging).await);
    assert_eq!(not_held(&cluster), Vec::<String>::new());
}

/// Two values are deleted and forgotten with their deletes, everywhere; two of the three owners are
/// replaced before another round; late copies come to the new ones, of `early` while they merge, of
/// `late` afterwards. What a quorum of the two reads then, and how many of the old rows they hold.
/// The new owners are started again, when they have heard that they have merged, or before.
async fn after_late_copies(removed: &[&'static str], has_heard: bool) -> ([Vec<String>; 2], usize) {
    let cluster = crate::engine::without_rules(removed, || Cluster::with_owners(5, &[0, 1, 2], 75));
    for n in 0..KEYS {
        cluster.put(n % 3, Level::All, put(&format!("key-{n}"), "v")).await.expect("all are up");
    }
    let store = |at: usize| &cluster.nodes[at].store;
    let write = |mutation| {
        let row = store(0).prepare("default", &[mutation]).rows.remove(0);
        (row.tenant, row.key, row.row)
    };
    let give = |row: &ForeignRow<Vec<u8>>, at: usize| {
        store(at).replicate(std::slice::from_ref(row)).remove(0)
    };
    let copies = ["early", "late"].map(|key| write(put(key, "x")));
    let deletes =
        ["early", "late"].map(|key| write(Mutation { key: key.into(), ..Mutation::default() }));
    for row in copies.iter().chain(&deletes) {
        (1..3).for_each(|at| give(row, at).expect("taken"));
    }
    cluster.world.clock.advance_ms(1000);
    let floor = time_of_ms(store(0).now_ms());
    for at in 0..3 {
        let was = store(at).fence(&[0..=3], floor).expect("fenced");
        assert!(store(at).install_floor(&[0..=3], floor, was).expect("installed"));
        store(at).flush().expect("flushed");
        store(at).compact().expect("forgotten");
        assert_eq!(store(at).raw_row(copies[0].0, b"late").expect("readable").row, None);
    }

    let joint = drawn(&cluster).layout(2, &[0, 1, 2], Some(&[0, 3, 4]));
    let syncers = BTreeSet::from([id(3), id(4)]);
    let joint = Layout::new(Arc::new(Document { syncers, ..Document::clone(joint.document()) }));
    let document = Document::clone(joint.document());
    cluster.commit(Arc::new(joint), &[0, 1, 2, 3, 4]);
    for at in 3..5 {
        give(&copies[0], at).expect("it knows of no fence yet");
        assert!(merges_at(&cluster, at, 30).await);
    }
    let synced = BTreeSet::from([id(3), id(4)]);
    let kept = if has_heard { Document { synced, ..document } } else { document };
    for at in 3..5 {
        // As it does when it is started again.
        transfer::Newcomer::new(id(at), Arc::clone(store(at))).begin_again(&kept);
        // Whether it is taken is what this is about.
        let _ = give(&copies[1], at);
    }
    let stable = drawn(&cluster).layout(3, &[0, 3, 4], None);
    cluster.commit(stable, &[0, 1, 2, 3, 4]);
    cluster.world.take_down(id(0));
    let mut read = Vec::new();
    for key in ["early", "late"] {
        read.push(values(&cluster.get(3, Level::Quorum, key).await.expect("two of three")));
    }
    let held = (0..KEYS).filter(|n| {
        let key = format!("key-{n}");
        (3..5).all(|at| cluster.local(at, &key) == ["v"])
    });
    (read.try_into().expect("two"), held.count())
}

/// Newcomers vouch for nothing, but they are fenced where those are who they have their rows from,
/// and what they were given before they forget. Also if they are started again, having said that
/// they have merged but not heard that they have.
#[tokio::test(start_paused = true)]
async fn two_newcomers_do_not_bring_back_what_was_forgotten() {
    let (gone, back) = (Vec::<String>::new, || vec!["x".to_owned()]);
    for heard in [true, false] {
        let without = async |rule| after_late_copies(&[rule], heard).await;
        assert_eq!(after_late_copies(&[], heard).await, ([gone(), gone()], KEYS));
        assert_eq!(without("newcomer_fenced").await, ([gone(), back()], KEYS));
        assert_eq!(without("newcomer_forgets").await, ([back(), gone()], KEYS));
        assert_eq!(without("synced_stays_fenced").await, ([gone(), back()], KEYS));
    }
}

/// T4, `one_source` (I1): of three old owners one alone may lack what the others
/// acknowledged. A blocking count of two is merged, or nothing is said.
#[tokio::test(start_paused = true)]
async fn one_source_of_three_is_not_enough() {
    let cluster = joining(75).await;
    cluster.world.take_down(id(1));
    cluster.world.take_down(id(2));
    assert!(!merges(&cluster, 30).await);
    cluster.world.bring_up(id(2));
    assert!(merges(&cluster, 30).await, "two of them are");
}

/// T3, `snapshot_before_fence` (I1): what a source gives away it gives under its fence, so no write
/// of an earlier epoch can come after it.
#[tokio::test(start_paused = true)]
async fn a_page_is_given_under_a_fence_that_is_there_before_it() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 76);
    let joint = joint(&drawn(&cluster), 2);
    // Node 0 has not heard of it.
    cluster.commit(joint, &[1, 2, 3]);
    let page = proto::PageRequest { token_end: u64::MAX, ..Default::default() };
    let fence = &cluster.nodes[0].fence;
    assert!(fence.enter(1).is_ok());
    let given = cluster.ask(0, 2, Request::Page(page.clone())).await;
    assert!(matches!(given, Ok(Reply::Page(_))), "{given:?}");
    assert!(fence.enter(1).is_err() && fence.enter(2).is_ok(), "it was raised first");
    let late = cluster.ask(0, 1, Request::Page(page)).await;
    assert!(matches!(late, Err(PeerError::StaleLayout { epoch: 2 })), "{late:?}");
}
