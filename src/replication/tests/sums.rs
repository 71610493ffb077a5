//! What rows add up to is what reading them gives; and rule D1 by sums: what an owner holds is seen
//! from what it adds up to, row by row only where that differs.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::page::Compared;
use super::super::tree::Trees;
use super::super::*;
use super::cluster::*;
use super::departures::*;
use crate::cluster::NodeId;
use crate::cluster::layout::{Document, MemberState};
use crate::cluster::peer::{Reply, Request};
use crate::engine::{SyncMode, without_rules};
use crate::proto::PageRequest;
use crate::store::environment::WallClock as _;
use crate::store::leaves::LEAVES;
use crate::store::{Environment, Mutation, Store, TenantChange, TenantId, TenantSpec, TokenRange};

const KEYS: usize = 40;

fn tenant_of(cluster: &Cluster, name: &str) -> TenantId {
    cluster.nodes[0].store.tenant(name).expect("there").id
}

/// Gives some nodes, by themselves, the row that one of them holds.
fn copy(cluster: &Cluster, tenant: &str, key: &str, from: usize, to: &[usize]) {
    let id = tenant_of(cluster, tenant);
    let row = cluster.nodes[from].store.raw_row(id, key.as_bytes()).expect("readable").row;
    let rows = [(id, key.as_bytes().to_vec(), row.expect("written"))];
    for at in to {
        cluster.nodes[*at].store.replicate(&rows).remove(0).expect("joined");
    }
}

/// A node writes by itself, without any other.
fn write_alone(cluster: &Cluster, at: usize, tenant: &str, mutation: Mutation) -> Vec<u8> {
    cluster.nodes[at].store.write(tenant, mutation).expect("itself").context
}

/// Rows that the first three nodes hold all of.
fn fill(cluster: &Cluster, tenant: &str, others: &[usize]) {
    for n in 0..KEYS {
        let key = format!("key-{n}");
        write_alone(cluster, 2, tenant, put(&key, "v"));
        copy(cluster, tenant, &key, 2, others);
    }
}

/// Requests of a kind to all nodes.
fn sent(cluster: &Cluster, kind: &'static str) -> u64 {
    (0..cluster.nodes.len()).map(|at| cluster.world.sent_to(id(at), kind)).sum()
}

/// What is asked of owners that hold all that the node does does not grow with its rows.
#[tokio::test(start_paused = true)]
async fn owners_that_hold_all_are_asked_for_sums_and_for_no_digest_of_a_row() {
    let cluster = Cluster::with_owners(3, &[0, 1, 2], 90);
    fill(&cluster, "default", &[0, 1]);
    cluster.commit(drawn(&cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
    run_departures(&cluster, 10).await;
    assert_eq!(cleared(&cluster, 2), Some(2));
    assert!((0..KEYS).all(|n| !holds(&cluster, 2, &format!("key-{n}"))));
    assert_eq!(sent(&cluster, "sum"), 4 * 2, "of each partition, to each owner");
    let kinds = ["page", "page digests", "digest", "read", "write"];
    assert_eq!(kinds.map(|kind| sent(&cluster, kind)), [0; 5]);
    assert_eq!(cluster.nodes[2].departure.rate.total(), 0, "nothing had to go");
}

/// How the row of an owner may be another one than that of the node that goes.
#[derive(Clone, Copy, Debug)]
enum Differs {
    Missing,
    Older,
    Newer,
    Concurrent,
}

const DIFFERS: [Differs; 4] =
    [Differs::Missing, Differs::Older, Differs::Newer, Differs::Concurrent];

/// All rows are with both owners, but for one that differs at the second of them.
fn differing(removed: &[&'static str], differs: Differs) -> Cluster {
    let cluster = without_rules(removed, || Cluster::with_owners(3, &[0, 1, 2], 91));
    fill(&cluster, "default", &[0, 1]);
    if matches!(differs, Differs::Concurrent) {
        write_alone(&cluster, 1, "default", put("k", "w"));
    }
    let context = write_alone(&cluster, 2, "default", put("k", "v"));
    if matches!(differs, Differs::Older | Differs::Newer) {
        copy(&cluster, "default", "k", 2, &[1]);
    }
    match differs {
        Differs::Older => drop(write_alone(&cluster, 2, "default", over("k", "w", &context))),
        Differs::Newer => drop(write_alone(&cluster, 1, "default", over("k", "w", &context))),
        Differs::Missing | Differs::Concurrent => {}
    }
    copy(&cluster, "default", "k", 2, &[0]);
    cluster.commit(drawn(&cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
    cluster
}

/// `no_dominance_check`: a sum that differs says of no row that it is there. The one that differs
/// is found among its neighbours, and it alone is sent.
#[tokio::test(start_paused = true)]
async fn the_one_row_that_differs_at_an_owner_is_found_and_brought_there() {
    for differs in DIFFERS {
        let cluster = differing(&[], differs);
        let own = cluster.nodes[2].store.raw_row(tenant_of(&cluster, "default"), b"k");
        let bytes = 1 + own.expect("readable").row.expect("written").len() as u64;
        run_departures(&cluster, 10).await;
        assert_eq!(cleared(&cluster, 2), Some(2), "{differs:?}");
        let expected: &[&str] = match differs {
            Differs::Missing => &["v"],
            Differs::Older | Differs::Newer => &["w"],
            Differs::Concurrent => &["v", "w"],
        };
        assert_eq!(cluster.local(1, "k"), expected, "{differs:?}");
        let moved = cluster.nodes[2].departure.rate.total();
        assert_eq!(moved, bytes, "{differs:?}: one row, to one owner");
        let to = |at, kind| cluster.world.sent_to(id(at), kind);
        assert_eq!([to(0, "page digests"), to(0, "digest"), to(0, "write")], [0; 3]);
        assert_eq!([to(1, "page digests"), to(1, "digest"), to(1, "write")], [1; 3]);
    }
}

/// The reason for the rule: an owner that is believed whatever it adds up to lacks what it lacked.
#[tokio::test(start_paused = true)]
async fn an_owner_whose_sum_is_not_looked_at_lacks_what_it_lacked() {
    let cluster = differing(&["owners_sum_is_equal"], Differs::Missing);
    run_departures(&cluster, 10).await;
    assert_eq!(cleared(&cluster, 2), Some(2));
    assert!(!holds(&cluster, 1, "k"), "the rule does nothing");
}

/// Whether a node knows that an idempotency key was used.
fn knows(cluster: &Cluster, at: usize, tenant: &str, key: &str, used: &str) -> bool {
    let store = &cluster.nodes[at].store;
    let tenant = store.tenant(tenant).expect("there");
    let row = store.raw_row(tenant.id, key.as_bytes()).expect("readable");
    store.knows_token(&tenant, key.as_bytes(), &row, used.as_bytes()).expect("a row")
}

/// The write that an idempotency key names is gone, and a replica has missed it: what says that it
/// was made is with another one. Who is sent that write again must know, also when the other one
/// has gone. Where the owner's row is newer and its guard above, it takes the key all the same.
#[tokio::test(start_paused = true)]
async fn an_owner_learns_which_idempotency_keys_were_used() {
    for is_newer in [false, true] {
        let cluster = Cluster::with_owners(3, &[0, 1, 2], 99);
        fill(&cluster, "lww", &[0, 1]);
        write_alone(&cluster, 2, "lww", once("k", "v", "used"));
        copy(&cluster, "lww", "k", 2, &[0]);
        cluster.world.clock.advance_ms(10);
        write_alone(&cluster, 1, "lww", put("k", "w"));
        copy(&cluster, "lww", "k", 1, &[0, 2]);
        if is_newer {
            cluster.world.clock.advance_ms(10);
            write_alone(&cluster, 1, "lww", put("k", "x"));
            cluster.world.clock.advance_ms(3000);
            let time = crate::causality::clock::time_of_ms(cluster.world.clock.now_ms() - 1000);
            cluster.nodes[1].store.fence(&[0..=3], time).expect("fenced");
        }
        let known = |at| knows(&cluster, at, "lww", "k", "used");
        assert_eq!([0, 1, 2].map(known), [true, false, true], "{is_newer}");
        cluster.commit(drawn(&cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
        run_departures(&cluster, 10).await;
        assert_eq!(cleared(&cluster, 2), Some(2));
        assert!(known(1), "{is_newer}");
        let kinds = ["write", "repair"].map(|kind| cluster.world.sent_to(id(1), kind));
        assert_eq!(kinds, [1, 0], "{is_newer}: the row, which is not refused");
        let row = cluster.nodes[1].store.read("lww", b"k").expect("readable");
        assert_eq!(values(&row), [if is_newer { "x" } else { "w" }]);
    }
}

/// Tenants have their own numbers of replicas, so of one partition a node gives away some rows and
/// keeps others, to other owners each: asker and owner add up the same ones all the same.
#[tokio::test(start_paused = true)]
async fn sums_agree_where_tenants_have_other_numbers_of_replicas() {
    const FACTORS: [(&str, u8); 3] = [("default", 3), ("two", 2), ("lww", 1)];
    let cluster = Cluster::with_owners(4, &[0, 1, 2, 3], 92);
    let drawn = drawn(&cluster).layout(2, &[0, 1, 2], None);
    let mut document = Document::clone(drawn.document());
    for (tenant, factor) in FACTORS {
        // All four hold everything.
        fill(&cluster, tenant, &[0, 1, 3]);
        let tenant = tenant_of(&cluster, tenant);
        document.tenants.get_mut(&tenant).expect("there").replication_factor = factor;
    }
    let layout = Arc::new(Layout::new(Arc::new(document)));
    cluster.commit(Arc::clone(&layout), &[0, 1, 2, 3]);
    run_departures(&cluster, 10).await;
    for at in 0..4 {
        assert_eq!(cleared(&cluster, at), Some(2), "n{at}");
    }
    assert!(sent(&cluster, "sum") > 0);
    let kinds = ["page", "page digests", "digest", "read", "write"];
    assert_eq!(kinds.map(|kind| sent(&cluster, kind)), [0; 5]);
    for (name, factor) in FACTORS {
        let tenant = cluster.nodes[0].store.tenant(name).expect("there");
        for n in 0..KEYS {
            let key = format!("key-{n}");
            let partition = layout.partition_of(tenant.token(key.as_bytes()));
            let mut owners = layout.sets_of(partition, &tenant).current;
            owners.sort_unstable();
            assert_eq!(owners.len(), usize::from(factor));
            let digests = cluster.digests(name, &key);
            let held: Vec<NodeId> = (0..4).filter(|at| digests[*at] != 0).map(id).collect();
            assert_eq!(held, owners, "{name}, {key}");
        }
    }
}

/// Owners take writes while they are compared: what is newer there counts, and nothing gets lost.
#[tokio::test(start_paused = true)]
async fn writes_that_come_in_between_do_not_keep_rows_from_going() {
    let mut cluster = Cluster::with_owners(3, &[0, 1, 2], 93);
    // So many pages that writes come between them.
    let departure = Arc::get_mut(&mut cluster.nodes[2].departure).expect("it has not begun");
    departure.settings.page_bytes = 1;
    fill(&cluster, "default", &[0, 1]);
    cluster.commit(drawn(&cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
    cluster.world.mood.lock().delay_ms = 40;
    let writing = async {
        for n in 0..KEYS {
            let key = format!("key-{n}");
            let context = cluster.get(0, Level::Quorum, &key).await.expect("both are up").context;
            let written = cluster.put(n % 2, Level::Quorum, over(&key, "w", &context)).await;
            written.expect("both are up");
            cluster.put(n % 2, Level::Quorum, put(&format!("new-{n}"), "w")).await.expect("both");
        }
    };
    tokio::join!(run_departures(&cluster, 60), writing);
    assert_eq!(cleared(&cluster, 2), Some(2));
    for n in 0..KEYS {
        let key = format!("key-{n}");
        assert!(!holds(&cluster, 2, &key), "{key} went");
        for key in [key, format!("new-{n}")] {
            let row = cluster.get(0, Level::Quorum, &key).await.expect("both are up");
            assert_eq!(values(&row), ["w"], "{key}");
        }
    }
}

/// Whether a row is on the disks of both owners when the node that had it has let it go. One of
/// them had it in memory only.
async fn is_on_disks(removed: &[&'static str]) -> bool {
    let cluster = without_rules(removed, || Cluster::with_owners(3, &[0, 1, 2], 94));
    let tenant = tenant_of(&cluster, "default");
    let prepared = cluster.nodes[1].store.prepare("default", &[put("k", "v")]);
    assert!(prepared.results[0].is_ok());
    let found = cluster.nodes[1].store.peek_raw_rows(&[(tenant, b"k")]).found.remove(0);
    let rows = [(tenant, b"k".to_vec(), found.expect("readable").row.expect("in memory"))];
    for at in [0, 2] {
        cluster.nodes[at].store.replicate(&rows).remove(0).expect("joined");
    }
    cluster.commit(drawn(&cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
    run_departures(&cluster, 10).await;
    assert_eq!(cleared(&cluster, 2), Some(2));
    assert_eq!(sent(&cluster, "digest"), 0, "sums are equal");
    let holds_after_power_loss = |at: usize, seed: u64| {
        let disk = Arc::new(cluster.nodes[at].vfs.crash_clone(seed));
        let environment = Environment::simulated(disk, &cluster.world.clock, seed);
        let store = Store::open_in(Path::new("/node"), options(), environment).expect("opens");
        store.raw_row(tenant, b"k").expect("readable").row.is_some()
    };
    (0..10).all(|seed| holds_after_power_loss(0, seed) && holds_after_power_loss(1, seed))
}

/// An owner counts for what it holds durably: what it adds up is on its disk when it tells the sum.
#[tokio::test(start_paused = true)]
async fn a_row_that_an_owner_has_in_memory_only_does_not_count() {
    assert!(is_on_disks(&[]).await);
    assert!(!is_on_disks(&["reads_of_what_is_synced"]).await, "the rule does nothing");
}

/// Rows of one node alone, which were durable there, are on the disks of the owners when it is seen
/// that it holds nothing of its own any more; also of such as acknowledge what is not synced.
async fn given_away_are_on_disks(removed: &[&'static str], are_there: bool) -> bool {
    let mut options = options();
    options.engine.sync_mode = SyncMode::Os;
    let cluster =
        without_rules(removed, || Cluster::with_options(3, &[0, 1, 2], 97, &options.clone()));
    let tenant = tenant_of(&cluster, "default");
    fill(&cluster, "default", if are_there { &[0, 1] } else { &[] });
    cluster.nodes[2].store.flush().expect("flushed");
    cluster.commit(drawn(&cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
    run_departures(&cluster, 10).await;
    assert_eq!(cleared(&cluster, 2), Some(2));
    let holds_after_power_loss = |at: usize, seed: u64| {
        let disk = Arc::new(cluster.nodes[at].vfs.crash_clone(seed));
        let environment = Environment::simulated(disk, &cluster.world.clock, seed);
        let store = Store::open_in(Path::new("/node"), options.clone(), environment);
        let store = store.expect("opens");
        let row = |n| store.raw_row(tenant, format!("key-{n}").as_bytes()).expect("readable").row;
        (0..KEYS).all(|n| row(n).is_some())
    };
    (0..10).all(|seed| holds_after_power_loss(0, seed) && holds_after_power_loss(1, seed))
}

#[tokio::test(start_paused = true)]
async fn what_is_given_away_is_durable_in_every_sync_mode() {
    for are_there in [false, true] {
        assert!(given_away_are_on_disks(&[], are_there).await, "{are_there}");
        let removed = ["counted_when_durable"];
        assert!(!given_away_are_on_disks(&removed, are_there).await, "the rule does nothing");
    }
}

/// A quorum of the owners is enough, as it is row by row: who is down gets them from the others.
#[tokio::test(start_paused = true)]
async fn who_is_down_is_not_waited_for_where_the_others_are_enough() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 95);
    fill(&cluster, "default", &[0, 1, 3]);
    cluster.world.take_down(id(3));
    cluster.commit(drawn(&cluster).layout(2, &[0, 1, 3], None), &[0, 1, 2]);
    run_departures(&cluster, 10).await;
    assert_eq!(cleared(&cluster, 2), Some(2));
    assert_eq!(["page digests", "digest"].map(|kind| sent(&cluster, kind)), [0; 2]);
}

/// An owner that has lost data has no word on what it adds up to, even if that is equal: it is
/// given the rows.
#[tokio::test(start_paused = true)]
async fn an_owner_that_has_lost_data_is_given_the_rows_again() {
    let cluster = Cluster::with_owners(3, &[0, 1, 2], 96);
    fill(&cluster, "default", &[0, 1]);
    cluster.nodes[1].store.mark_damaged(0..=3, &[1, 3]).expect("marked");
    cluster.commit(drawn(&cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
    run_departures(&cluster, 10).await;
    assert_eq!(cleared(&cluster, 2), Some(2));
    let to = |at| (cluster.world.sent_to(id(at), "write"), cluster.world.sent_to(id(at), "digest"));
    assert_eq!((to(0), to(1)), ((0, 0), (4, 4)), "each partition, to the one owner");
}

/// The figures of a certificate do not depend on how the rows were seen to be there.
#[tokio::test(start_paused = true)]
async fn a_certificate_says_the_same_whether_sums_were_equal_or_not() {
    let mut said = Vec::new();
    for lacks in [false, true] {
        let cluster = Cluster::with_owners(3, &[0, 1, 2], 97);
        fill(&cluster, "default", if lacks { &[0] } else { &[0, 1] });
        let mut leaving = drawn(&cluster);
        leaving.states = BTreeMap::from([(2, MemberState::Leaving)]);
        cluster.commit(leaving.layout(2, &[0, 1], None), &[0, 1, 2]);
        run_departures(&cluster, 30).await;
        assert_eq!(sent(&cluster, "write") > 0, lacks);
        let json = cluster.nodes[2].certificates.read(id(2)).expect("reads").expect("kept");
        let certificate = departure::certificate::Certificate::parse(&json).expect("its own");
        assert_eq!(certificate.totals().0, KEYS as u64);
        assert!(certificate.partitions.iter().all(|one| one.owners == [id(0), id(1)]));
        said.push(certificate.partitions);
    }
    assert_eq!(said[0], said[1]);
}

/// While nobody merges, rows are given to nobody who does not own them: only what says whether they
/// are there, to who has them and is no owner.
#[tokio::test(start_paused = true)]
async fn under_a_stable_layout_pages_say_what_is_there_and_have_no_rows() {
    let cluster = Cluster::with_owners(3, &[0, 1, 2], 98);
    fill(&cluster, "default", &[0, 1]);
    cluster.commit(drawn(&cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
    let ask = async |from: usize, at: usize, sum: bool, digests: bool| {
        let page = PageRequest { token_end: u64::MAX, sum, digests, ..Default::default() };
        match cluster.ask_as(id(from), at, 2, Request::Page(page)).await {
            Ok(Reply::Page(page)) => {
                let sum = page.sum.unwrap_or_default().rows as usize;
                (sum, page.keys.len(), page.rows.len())
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(2, 0, true, false).await, (KEYS, 0, 0));
    assert_eq!(ask(2, 0, false, true).await, (0, KEYS, 0));
    assert_eq!(ask(2, 0, false, false).await, (0, 0, 0), "no rows");
    assert_eq!(ask(1, 0, true, false).await, (0, 0, 0), "they are its own");
    assert_eq!(ask(0, 2, true, false).await, (0, 0, 0), "it owns none of them");
}

/// What may happen to rows between two looks at what they add up to.
#[derive(Clone, Debug)]
enum Step {
    Put(usize, usize),
    /// The same under an idempotency key of its own.
    Once(usize, usize),
    Delete(usize, usize),
    /// A floor that so many seconds are below.
    Floor(u64),
    /// To the disk, and what is dead by the floor away.
    Forget,
    /// A tenant has so many replicas, in the store and the layout or the layout alone.
    Factor(usize, u8, bool),
    Damage(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..TENANTS.len(), 0..12_usize).prop_map(|(tenant, key)| Step::Put(tenant, key)),
        3 => (0..TENANTS.len(), 0..12_usize).prop_map(|(tenant, key)| Step::Once(tenant, key)),
        3 => (0..TENANTS.len(), 0..12_usize).prop_map(|(tenant, key)| Step::Delete(tenant, key)),
        2 => (0..5_u64).prop_map(Step::Floor),
        2 => Just(Step::Forget),
        1 => (0..TENANTS.len(), 1..4_u8, any::<bool>())
            .prop_map(|(tenant, factor, both)| Step::Factor(tenant, factor, both)),
        1 => (0..4_u32).prop_map(Step::Damage),
    ];
    proptest::collection::vec(step, 1..30)
}

const TENANTS: [&str; 3] = ["default", "two", "lww"];

fn take(cluster: &Cluster, document: &mut Document, step: &Step) {
    let store = &cluster.nodes[0].store;
    match *step {
        Step::Put(tenant, key) | Step::Once(tenant, key) => {
            let context = store.read(TENANTS[tenant], format!("k{key}").as_bytes());
            let context = context.map(|row| row.context).unwrap_or_default();
            let mut write = over(&format!("k{key}"), "v", &context);
            let used = format!("{}", cluster.world.clock.now_ms());
            write.idempotency_key = matches!(step, Step::Once(..)).then(|| used.into());
            store.write(TENANTS[tenant], write).expect("written");
        }
        Step::Delete(tenant, key) => {
            cluster.world.clock.advance_ms(1);
            store.write(TENANTS[tenant], delete(&format!("k{key}"), None)).expect("deleted");
        }
        Step::Floor(behind) => {
            cluster.world.clock.advance_ms(3000);
            let time = cluster.world.clock.now_ms() - behind * 1000;
            let time = crate::causality::clock::time_of_ms(time);
            for partition in 0..4 {
                let Ok(was) = store.fence(&[partition..=partition], time) else { continue };
                let _ = store.install_floor(&[partition..=partition], time, was);
            }
        }
        Step::Forget => {
            store.flush().expect("flushed");
            store.compact().expect("compacted");
            while store.step().expect("worked") {}
        }
        Step::Factor(tenant, factor, both) => {
            let id = tenant_of(cluster, TENANTS[tenant]);
            document.tenants.get_mut(&id).expect("there").replication_factor = factor;
            if both {
                let replication_factor = Some(factor);
                let change = TenantChange { replication_factor, ..TenantChange::default() };
                store.alter_tenant(TENANTS[tenant], change).expect("altered");
            }
        }
        Step::Damage(partition) => {
            store.mark_damaged(partition..=partition, &[7]).expect("marked");
            store.set_givers(partition, &[]).expect("nobody has what was lost");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Law: what is kept is what reading the rows gives, whatever happened since; so it does not
    /// matter to anybody which of the two a node has told.
    #[test]
    fn what_is_kept_is_what_reading_gives(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime");
        let _within = runtime.enter();
        let cluster = Cluster::with_owners(4, &[0, 1, 2], 95);
        let (store, trees) = (&cluster.nodes[0].store, &cluster.nodes[0].trees);
        let joint = drawn(&cluster).layout(2, &[0, 1, 2], Some(&[0, 1, 3]));
        let mut documents = [joint, drawn(&cluster).layout(2, &[0, 1, 2], None)]
            .map(|layout| Document::clone(layout.document()));
        cluster.commit(Arc::new(Layout::new(Arc::new(documents[1].clone()))), &[0]);
        let mut kept = 0;
        for step in &steps {
            documents.iter_mut().for_each(|document| take(&cluster, document, step));
            for layout in documents.clone().map(|document| Layout::new(Arc::new(document))) {
                for partition in 0..4 {
                    let range = tokens_of(&layout, partition);
                    let mut compared = Compared::new(&layout, id(0), id(3));
                    let sum = sum::kept(trees, store, &mut compared, range).expect("readable");
                    let read = sum::read(store, &mut compared, range, 1 << 20).expect("readable");
                    prop_assert!(sum.is_none_or(|sum| sum == read), "{step:?}: {sum:?} {read:?}");
                    kept += usize::from(sum.is_some());
                }
            }
        }
        // Only a layout that knows other numbers of replicas than the store, or damage, may be why
        // none is.
        let is_in_the_way =
            |step: &Step| matches!(step, Step::Factor(_, _, false) | Step::Damage(_));
        prop_assert!(kept > 0 || steps.iter().any(is_in_the_way));
    }
}

/// Who asks again costs no reading: only leaves that were written to are read.
#[tokio::test]
async fn what_was_added_up_is_not_read_again() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 96);
    fill(&cluster, "default", &[0]);
    let layout = drawn(&cluster).layout(2, &[0, 1, 2], Some(&[0, 1, 3]));
    cluster.commit(Arc::clone(&layout), &[0]);
    let node = &cluster.nodes[0];
    let all = || {
        let mut compared = Compared::new(&layout, id(0), id(3));
        let mut all = crate::proto::PageSum::default();
        for partition in 0..4 {
            let range = tokens_of(&layout, partition);
            let of_one = sum::kept(&node.trees, &node.store, &mut compared, range);
            sum::add(&mut all, &of_one.expect("readable").expect("kept"));
        }
        all
    };
    // A row of which a floor allows more to be forgotten than anybody does is as it is.
    let context = node.store.read("default", b"key-0").expect("readable").context;
    write_alone(&cluster, 0, "default", over("key-0", "u", &context));
    take(&cluster, &mut Document::clone(layout.document()), &Step::Floor(0));
    let before = all();
    assert_eq!(before.rows, KEYS as u64);
    write_alone(&cluster, 0, "default", put("key-0", "w"));
    // Whoever takes a mark reads the leaf after: here nobody does.
    let marks = node.store.dirty_leaves();
    let written: Vec<u32> = (0..LEAVES as u32).filter(|leaf| marks.take(*leaf)).collect();
    assert_eq!((written.len(), all()), (1, before));
    marks.mark_leaf(written[0]);
    let after = all();
    assert!(after.rows == before.rows && after != before);
}

/// What was added up and has been found unreadable since is not vouched for: who gives rows away by
/// such a sum would remove what can be read.
#[tokio::test]
async fn what_cannot_be_read_any_more_is_not_kept() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 95);
    let layout = drawn(&cluster).layout(2, &[0, 1, 2], Some(&[0, 1, 3]));
    // Real files: those in memory do not change under who has them open.
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(Store::open(dir.path(), options()).expect("opens"));
    for tenant in layout.document().tenants.values().skip(1) {
        store.create_tenant(TenantSpec::new(&tenant.name)).expect("created");
    }
    for n in 0..KEYS {
        store.write("default", put(&format!("key-{n}"), "v")).expect("written");
    }
    store.compact().expect("compacted");
    let trees = Trees::new(Arc::clone(&store), SECOND);
    let kept = || {
        let mut compared = Compared::new(&layout, id(0), id(3));
        let of = |partition| {
            let range = tokens_of(&layout, partition);
            sum::kept(&trees, &store, &mut compared, range).expect("nothing is read again")
        };
        (0..4).map(of).collect::<Vec<_>>()
    };
    let before = kept();
    assert_eq!(before.iter().flatten().map(|sum| sum.rows).sum::<u64>(), KEYS as u64);
    let files = std::fs::read_dir(dir.path().join("engine")).expect("lists");
    let paths = files.map(|file| file.expect("listed").path());
    for table in paths.filter(|path| path.extension().is_some_and(|end| end == "sst")) {
        let file = std::fs::File::options().read(true).write(true).open(table).expect("opens");
        let mut byte = [0];
        file.read_exact_at(&mut byte, 40).expect("read");
        file.write_all_at(&[byte[0] ^ 4], 40).expect("written");
    }
    assert_eq!(kept(), before, "nobody has found it");
    assert!(!store.scrub().expect("read").damaged.is_empty());
    let lost = (0..4).filter(|at| store.is_unreadable_in(*at)).collect::<Vec<_>>();
    assert!(!lost.is_empty());
    for (partition, (now, then)) in (0..4).zip(kept().into_iter().zip(before)) {
        assert_eq!(now, then.filter(|_| !lost.contains(&partition)));
    }
}

fn tokens_of(layout: &Layout, partition: u32) -> TokenRange {
    let (start, end_inclusive) = layout.tokens_of(&(partition..=partition));
    TokenRange { start, end_inclusive }
}
