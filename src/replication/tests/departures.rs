//! Rule D1: what a node does not own any more goes to its owners, and only then away. And what a
//! node does that leaves.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::super::departure::certificate::Certificate;
use super::super::hints::HintOptions;
use super::super::*;
use super::cluster::*;
use crate::cluster::NodeId;
use crate::cluster::layout::{Command, Document, Layout, Member, MemberState, Owner, Owners};
use crate::engine::vfs::fault::{Fault, Operation};
use crate::store;

/// A document with members and the cluster's tenants.
pub struct Drawn<'c> {
    cluster: &'c Cluster,
    factor: u8,
    pub states: BTreeMap<usize, MemberState>,
}

impl Drawn<'_> {
    pub fn layout(&self, epoch: u64, current: &[usize], next: Option<&[usize]>) -> Arc<Layout> {
        let owners = |indexes: &[usize]| -> Owners {
            let owner = |index: &usize| (id(*index), Owner { zone: "z".to_owned(), weight: 1 });
            indexes.iter().map(owner).collect()
        };
        let member = |index: usize| Member {
            name: format!("n{}", index + 1),
            zone: "z".to_owned(),
            weight: 1,
            state: self.states.get(&index).copied().unwrap_or(MemberState::Normal),
            address: String::new(),
        };
        let all = 0..self.cluster.nodes.len();
        let tenants = self.cluster.nodes[0].store.tenants().into_iter().map(|tenant| {
            let mut tenant = (*tenant).clone();
            tenant.replication_factor = self.factor;
            (tenant.id, tenant)
        });
        Arc::new(Layout::new(Arc::new(Document {
            cluster_id: NodeId(7),
            epoch,
            version: epoch,
            partition_bits: 2,
            members: all.map(|index| (id(index), member(index))).collect(),
            owners: owners(current),
            next_owners: next.map(owners),
            departed: (0..self.cluster.nodes.len()).map(|index| (id(index), epoch)).collect(),
            tenants: tenants.collect(),
            ..Document::empty()
        })))
    }
}

pub fn drawn(cluster: &Cluster) -> Drawn<'_> {
    Drawn { cluster, factor: 3, states: BTreeMap::new() }
}

/// What the node of this place holds, by itself.
pub fn holds(cluster: &Cluster, at: usize, key: &str) -> bool {
    cluster.digests("default", key)[at] != 0
}

/// Lets the departures of all nodes run for a while.
pub async fn run_departures(cluster: &Cluster, seconds: u32) {
    let closing = CancellationToken::new();
    let running: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| {
            let departure = Arc::clone(&node.departure);
            let (documents, progress) = (departure.layout.clone(), Arc::clone(&departure.progress));
            tokio::spawn(duties::run(documents, progress, closing.clone(), move |layout| {
                let departure = Arc::clone(&departure);
                async move { departure.serve(&layout).await }
            }))
        })
        .collect();
    tokio::time::sleep(seconds * SECOND).await;
    closing.cancel();
    for task in running {
        task.await.expect("it does not panic");
    }
}

pub fn cleared(cluster: &Cluster, at: usize) -> Option<u64> {
    let reports = cluster.nodes[at].reports.lock();
    reports.iter().rev().find_map(|command| match command {
        Command::Cleared { node, epoch } if *node == id(at) => Some(*epoch),
        _ => None,
    })
}

/// D1: a row that only the one who goes holds is on a quorum of the owners before it goes there.
#[tokio::test(start_paused = true)]
async fn a_row_goes_only_when_a_quorum_of_its_owners_has_it() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 61);
    cluster.put(2, Level::All, put("all", "v")).await.expect("three are up");
    cluster.world.isolate(id(2), &cluster.ids());
    cluster.put(2, Level::One, put("one", "v")).await.expect("itself");
    cluster.world.heal();
    cluster.world.take_down(id(0));
    cluster.world.take_down(id(1));
    cluster.commit(drawn(&cluster).layout(2, &[0, 1, 3], None), &[0, 1, 2, 3]);
    run_departures(&cluster, 10).await;
    assert!(holds(&cluster, 2, "one") && cleared(&cluster, 2).is_none(), "one of three has it");
    cluster.world.heal();
    run_departures(&cluster, 10).await;
    for key in ["one", "all"] {
        assert!(!holds(&cluster, 2, key), "{key} went");
        let copies = [0, 1, 3].into_iter().filter(|at| holds(&cluster, *at, key)).count();
        assert!(copies >= 2, "{key}");
    }
    assert_eq!(cleared(&cluster, 2), Some(2));
    let row = cluster.get(3, Level::Quorum, "one").await.expect("all are up");
    assert_eq!(values(&row), ["v"]);
}

/// `no_dominance_check`: that some owner has the key is not enough, it must have all of the row.
#[tokio::test(start_paused = true)]
async fn an_owner_that_is_behind_gets_what_it_lacks() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 62);
    cluster.put(2, Level::All, put("k", "v")).await.expect("three are up");
    cluster.world.isolate(id(2), &cluster.ids());
    cluster.put(2, Level::One, put("k", "w")).await.expect("itself");
    cluster.world.heal();
    cluster.commit(drawn(&cluster).layout(2, &[0, 1, 3], None), &[0, 1, 2, 3]);
    run_departures(&cluster, 10).await;
    assert!(!holds(&cluster, 2, "k"));
    let row = cluster.get(0, Level::Quorum, "k").await.expect("all are up");
    assert_eq!(values(&row), ["v", "w"]);
}

/// A node that gave its rows away and is to own them again has forgotten what it wrote to them. A
/// write of it that has seen nothing must not pass for one that has seen all of that.
#[tokio::test(start_paused = true)]
async fn what_a_node_wrote_before_it_gave_its_rows_away_is_not_replaced_by_what_it_writes_later() {
    for is_aborted in [false, true] {
        let cluster = Cluster::with_owners(4, &[0, 1, 2], 63);
        let drawn = drawn(&cluster);
        if is_aborted {
            // It has come to own them for a while only.
            cluster.commit(drawn.layout(2, &[0, 1, 3], Some(&[0, 1, 2])), &[0, 1, 2, 3]);
        }
        cluster.put(2, Level::All, put("k", "x")).await.expect("all are up");
        cluster.commit(drawn.layout(3, &[0, 1, 3], None), &[0, 1, 2, 3]);
        run_departures(&cluster, 10).await;
        assert!(!holds(&cluster, 2, "k"));
        cluster.commit(drawn.layout(4, &[0, 1, 3], Some(&[0, 1, 2])), &[0, 1, 2, 3]);
        cluster.put(2, Level::All, put("k", "y")).await.expect("all are up");
        for at in [0, 1, 3] {
            assert_eq!(cluster.local(at, "k"), ["x", "y"]);
        }
    }
}

/// How far it is is told by the partitions that were looked through, not by those that had rows.
#[tokio::test(start_paused = true)]
async fn partitions_count_as_handed_over_when_they_were_looked_through() {
    let mut cluster = Cluster::with_owners(4, &[0, 1, 2], 65);
    let departure = Arc::get_mut(&mut cluster.nodes[2].departure).expect("it has not begun");
    departure.settings.page_bytes = 1;
    let tenant = cluster.nodes[0].store.tenant("default").expect("it is there");
    let token = |key: &String| tenant.token(key.as_bytes());
    // All in the last partition; the last of them must be sent, and its turn does not come.
    let keys = (0..100).map(|n| format!("key-{n}")).filter(|key| token(key) >> 62 == 3);
    let mut keys: Vec<String> = keys.collect();
    keys.sort_by_key(token);
    let last = keys.pop().expect("one of many");
    for key in &keys {
        cluster.put(2, Level::All, put(key, "v")).await.expect("three are up");
    }
    cluster.world.isolate(id(2), &cluster.ids());
    cluster.put(2, Level::One, put(&last, "v")).await.expect("itself");
    cluster.world.heal();
    let layout = drawn(&cluster).layout(2, &[0, 1], None);
    cluster.commit(Arc::clone(&layout), &[0, 1, 2, 3]);
    let departure = Arc::clone(&cluster.nodes[2].departure);
    departure.rate.set(1);
    departure.rate.take(1 << 20).await;
    let progress = Arc::clone(&departure.progress);
    let serving = tokio::spawn(async move { departure.serve(&layout).await });
    tokio::time::sleep(SECOND).await;
    let figures = progress.figures();
    assert_eq!(figures.keys, keys.len() as u64);
    assert_eq!((figures.partitions, figures.partitions_done), (4, 3), "the last is under way");
    serving.abort();
}

/// In Joint nothing is removed, and nothing is said to be.
#[tokio::test(start_paused = true)]
async fn while_the_layout_changes_nothing_is_removed() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 63);
    cluster.put(2, Level::All, put("k", "v")).await.expect("three are up");
    cluster.commit(drawn(&cluster).layout(2, &[0, 1, 2], Some(&[0, 1, 3])), &[0, 1, 2, 3]);
    run_departures(&cluster, 10).await;
    assert!(holds(&cluster, 2, "k") && cleared(&cluster, 2).is_none());
}

/// A newcomer whose transition was aborted gives back what it was given, by the same way.
#[tokio::test(start_paused = true)]
async fn after_an_abort_the_newcomer_clears_what_it_has() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 64);
    cluster.commit(drawn(&cluster).layout(2, &[0, 1, 2], Some(&[0, 1, 3])), &[0, 1, 2, 3]);
    cluster.put(0, Level::All, put("k", "v")).await.expect("four are up");
    assert!(holds(&cluster, 3, "k"));
    cluster.commit(drawn(&cluster).layout(3, &[0, 1, 2], None), &[0, 1, 2, 3]);
    run_departures(&cluster, 10).await;
    assert!(!holds(&cluster, 3, "k"));
    assert_eq!(cleared(&cluster, 3), Some(3));
    assert!((0..3).all(|at| holds(&cluster, at, "k")), "owners keep theirs");
}

/// One that wakes up late, under an epoch that is over, removes nothing by what it knew.
#[tokio::test(start_paused = true)]
async fn a_node_that_wakes_up_late_learns_first_and_clears_then() {
    let cluster = Cluster::with_owners(5, &[0, 1, 2], 65);
    cluster.put(2, Level::All, put("k", "v")).await.expect("three are up");
    // It knows the second document; the owners have gone on to the fourth.
    let second = drawn(&cluster).layout(2, &[0, 1, 3], None);
    cluster.nodes[2].fence.adopt(&second);
    cluster.commit(drawn(&cluster).layout(4, &[0, 3, 4], None), &[0, 1, 3, 4]);
    run_departures(&cluster, 10).await;
    assert!(!holds(&cluster, 2, "k"));
    assert_eq!(cleared(&cluster, 2), Some(4), "by the owners of the fourth");
    let copies = [0, 3, 4].into_iter().filter(|at| holds(&cluster, *at, "k")).count();
    assert!(copies >= 2);
}

/// A delete is a row too: it must not be lost on the way, or what it deleted comes back.
#[tokio::test(start_paused = true)]
async fn deletes_are_handed_over_like_values() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 66);
    let written = cluster.put(2, Level::All, put("k", "v")).await.expect("three are up");
    cluster.world.isolate(id(2), &cluster.ids());
    let delete = store::Mutation { value: None, ..over("k", "", &written.context) };
    cluster.put(2, Level::One, delete).await.expect("itself");
    cluster.world.heal();
    cluster.commit(drawn(&cluster).layout(2, &[0, 1, 3], None), &[0, 1, 2, 3]);
    run_departures(&cluster, 10).await;
    let row = cluster.get(0, Level::Quorum, "k").await.expect("all are up");
    assert!(!row.found(), "{row:?}");
}

/// With fewer replicas than owners a node keeps what it owns and gives away the rest; the keys of
/// its certificate are those it held.
#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_hands_over_its_rows_and_hints_and_says_so() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2, 3], 67);
    for n in 0..40 {
        let key = format!("k{n}");
        cluster.put(n % 4, Level::All, put(&key, "v")).await.expect("four are up");
    }
    // A hint for one that is down all the time.
    cluster.world.take_down(id(1));
    let key = (0..40).map(|n| format!("h{n}"));
    for key in key {
        let _ = cluster.put(3, Level::One, put(&key, "v")).await;
    }
    tokio::time::sleep(SECOND).await;
    assert!(cluster.nodes[3].hints.stats().pending > 0);
    let held = (0..40).filter(|n| holds(&cluster, 3, &format!("k{n}"))).count();
    let states = BTreeMap::from([(3, MemberState::Leaving)]);
    let leaving = Drawn { states, ..drawn(&cluster) };
    cluster.commit(leaving.layout(2, &[0, 1, 2], None), &[0, 1, 2, 3]);
    run_departures(&cluster, 30).await;
    assert_eq!(cleared(&cluster, 3), Some(2));
    assert!((0..40).all(|n| !holds(&cluster, 3, &format!("k{n}"))));
    assert_eq!(cluster.nodes[3].hints.stats().bytes, 0, "no hint is left");
    let json = cluster.nodes[3].certificates.read(id(3)).expect("reads").expect("kept");
    let certificate = Certificate::parse(&json).expect("its own");
    assert!(certificate.totals().0 >= held as u64 && certificate.hints > 0, "{certificate:?}");
    let kept_by = |at: usize| cluster.nodes[at].certificates.read(id(3)).expect("reads").is_some();
    assert_eq!([0, 2].map(kept_by), [true, true], "two others keep it");
    let left = cluster.nodes[3]
        .reports
        .lock()
        .iter()
        .any(|command| matches!(command, Command::Left { node, .. } if *node == id(3)));
    assert!(left);
    for n in 0..40 {
        let row = cluster.get(0, Level::Quorum, &format!("h{n}")).await.expect("two of three");
        assert_eq!(values(&row), ["v"], "h{n}");
    }
}

/// A node that owns a partition again vouches for nothing in it.
#[tokio::test(start_paused = true)]
async fn safe_points_of_partitions_that_went_are_reset() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 68);
    cluster.put(2, Level::All, put("k", "v")).await.expect("three are up");
    let store = &cluster.nodes[2].store;
    let time = crate::causality::clock::time_of_ms(T0_MS - 1000);
    let all = [0..=3];
    let was = store.fence(&all, time).expect("fenced");
    assert!(store.install_floor(&all, time, was).expect("installed"));
    cluster.commit(drawn(&cluster).layout(2, &[0, 1, 3], None), &[0, 1, 2, 3]);
    run_departures(&cluster, 10).await;
    assert_eq!(store.floor_at(0).expect("sound"), 0);
}

/// Nothing is removed by what was seen under an epoch that is over: by then the node may own again,
/// and take what nobody else has.
#[tokio::test(start_paused = true)]
async fn a_later_epoch_keeps_what_was_covered_under_an_earlier_one() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 69);
    cluster.put(2, Level::All, put("k", "v")).await.expect("three are up");
    let second = drawn(&cluster).layout(2, &[0, 1, 3], None);
    cluster.commit(Arc::clone(&second), &[0, 1, 3]);
    // It has made epoch 3 durable, and its task works under the second document still.
    cluster.nodes[2].fence.raise(3);
    let departure = Arc::clone(&cluster.nodes[2].departure);
    let served = tokio::time::timeout(10 * SECOND, departure.serve(&second)).await;
    assert!(served.is_err(), "it never ends under this epoch");
    assert!(holds(&cluster, 2, "k") && cleared(&cluster, 2).is_none());
    let copies = [0, 1, 3].into_iter().filter(|at| holds(&cluster, *at, "k")).count();
    assert!(copies >= 2, "they were covered all the same");
}

/// What fails again and again is tried ever less often: each time costs the owners reading too. And
/// it is told.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_given_away_is_not_tried_twice_a_second_for_ever() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2], 80);
    cluster.put(2, Level::All, put("k", "v")).await.expect("three are up");
    let second = drawn(&cluster).layout(2, &[0, 1, 3], None);
    cluster.commit(Arc::clone(&second), &[0, 1, 3]);
    // As above: its own epoch refuses what the task wants to do.
    cluster.nodes[2].fence.raise(3);
    let departure = Arc::clone(&cluster.nodes[2].departure);
    let progress = Arc::clone(&departure.progress);
    let serving = tokio::spawn(async move { departure.serve(&second).await });
    let mut asked = Vec::new();
    for _ in 0..2 {
        let before = cluster.world.sent_to(id(0), "sum");
        tokio::time::sleep(600 * SECOND).await;
        asked.push(cluster.world.sent_to(id(0), "sum") - before);
        assert_eq!(progress.figures().waits_for, "the layout has gone on");
    }
    assert!((10..25).contains(&asked[0]) && (9..=11).contains(&asked[1]), "{asked:?}");
    serving.abort();
}

/// A tenant with fewer replicas: of one partition a node owns the rows of one tenant and not those
/// of another. Only these go.
#[tokio::test(start_paused = true)]
async fn of_a_partition_only_the_rows_of_the_tenants_that_others_own_go() {
    let cluster = Cluster::with_owners(3, &[0, 1, 2], 70);
    for n in 0..30 {
        let key = format!("k{n}");
        cluster.put(0, Level::All, put(&key, "v")).await.expect("three are up");
        cluster.write(0, "lww", Level::All, put(&key, "v")).await.expect("three are up");
    }
    let three = drawn(&cluster).layout(2, &[0, 1, 2], None);
    let mut document = Document::clone(three.document());
    let one = cluster.nodes[0].store.tenant("lww").expect("there").id;
    document.tenants.get_mut(&one).expect("there").replication_factor = 1;
    let layout = Arc::new(Layout::new(Arc::new(document)));
    cluster.commit(Arc::clone(&layout), &[0, 1, 2]);
    run_departures(&cluster, 20).await;
    let tenant = cluster.nodes[0].store.tenant("lww").expect("there");
    for n in 0..30 {
        let key = format!("k{n}");
        assert!((0..3).all(|at| holds(&cluster, at, &key)), "{key} has three replicas");
        let partition = layout.partition_of(tenant.token(key.as_bytes()));
        let owner = layout.sets_of(partition, &tenant).current;
        let digests = cluster.digests("lww", &key);
        let held: Vec<NodeId> = (0..3).filter(|at| digests[*at] != 0).map(id).collect();
        assert_eq!(held, owner, "{key} has one");
    }
}

/// Whose rows the node owns is said by the document. A tenant that it does not name was made since,
/// and may have more replicas than all others: its rows stay where no other tenant's do.
#[tokio::test(start_paused = true)]
async fn rows_of_a_tenant_that_the_document_does_not_name_stay() {
    let stays = async |removed: &[&'static str]| {
        let nodes = || Cluster::with_owners(4, &[0, 1, 2], 78);
        let cluster = crate::engine::without_rules(removed, nodes);
        cluster.put(2, Level::All, put("k", "v")).await.expect("three are up");
        cluster.write(2, "lww", Level::All, put("k", "v")).await.expect("three are up");
        let named = drawn(&cluster).layout(2, &[0, 1, 3], None);
        let mut document = Document::clone(named.document());
        let unnamed = cluster.nodes[0].store.tenant("lww").expect("there").id;
        document.tenants.remove(&unnamed).expect("was named");
        cluster.commit(Arc::new(Layout::new(Arc::new(document))), &[0, 1, 2, 3]);
        run_departures(&cluster, 10).await;
        assert!(!holds(&cluster, 2, "k") && cleared(&cluster, 2) == Some(2));
        cluster.digests("lww", "k")[2] != 0
    };
    assert!(stays(&[]).await);
    assert!(!stays(&["only_known_tenants_go"]).await, "the rule is what keeps them");
}

/// The same of safe points: a partition that a node owns for such a tenant is vouched for, and what
/// rounds have agreed with it is not its own to forget.
#[tokio::test(start_paused = true)]
async fn safe_points_of_partitions_that_an_unnamed_tenant_owns_stay() {
    let time = crate::causality::clock::time_of_ms(T0_MS - 1000);
    let kept = async |removed: &[&'static str]| {
        let nodes = || Cluster::with_owners(4, &[0, 1, 2, 3], 79);
        let cluster = crate::engine::without_rules(removed, nodes);
        for node in &cluster.nodes {
            node.store.fence(&[0..=3], time).expect("fenced");
        }
        let named = Drawn { factor: 2, ..drawn(&cluster) }.layout(2, &[0, 1, 2, 3], None);
        let mut document = Document::clone(named.document());
        let unnamed = cluster.nodes[0].store.tenant("lww").expect("there");
        assert_eq!(unnamed.replication_factor, 3, "the others have two");
        document.tenants.remove(&unnamed.id).expect("was named");
        let layout = Arc::new(Layout::new(Arc::new(document)));
        cluster.commit(Arc::clone(&layout), &[0, 1, 2, 3]);
        run_departures(&cluster, 10).await;
        // By the place of a node among the four that a partition has.
        let mut kept = [0; 4];
        for (at, node) in cluster.nodes.iter().enumerate() {
            assert_eq!(cleared(&cluster, at), Some(2));
            for (partition, rank) in (0..4).zip(layout.ranks(id(at))) {
                let guard = node.store.guard_of_partition(partition).expect("there");
                kept[usize::from(rank.expect("four own"))] += usize::from(guard == time);
            }
        }
        kept
    };
    assert_eq!(kept(&[]).await, [4, 4, 4, 0]);
    assert_eq!(kept(&["only_known_tenants_go"]).await, [4, 4, 0, 0], "the rule keeps them");
}

/// Three owners of which the last one alone has a write in each tenant, and a time since.
async fn with_an_old_write(seed: u64) -> (Cluster, u64) {
    let cluster = Cluster::with_owners(3, &[0, 1, 2], seed);
    cluster.world.isolate(id(2), &cluster.ids());
    for tenant in ["default", "lww"] {
        cluster.write(2, tenant, Level::One, put("k", "v")).await.expect("itself");
    }
    cluster.world.heal();
    cluster.world.clock.advance_ms(2000);
    (cluster, crate::causality::clock::time_of_ms(T0_MS + 1000))
}

/// The last one of three owns nothing any more, and says that it holds nothing.
async fn give_away(cluster: &Cluster) {
    cluster.commit(drawn(cluster).layout(2, &[0, 1], None), &[0, 1, 2]);
    run_departures(cluster, 10).await;
    assert_eq!(cleared(cluster, 2), Some(2));
}

/// A round was voided after its fences by the change that took the node its rows: guards stay up,
/// no floor can rise while it has not given them away, and it is the only one that has a write.
#[tokio::test(start_paused = true)]
async fn a_row_below_the_guards_of_a_voided_round_goes_to_its_owners() {
    let (cluster, time) = with_an_old_write(71).await;
    for node in &cluster.nodes {
        node.store.fence(&[0..=3], time).expect("fenced");
    }
    give_away(&cluster).await;
    for tenant in ["default", "lww"] {
        let row = cluster.read(0, tenant, Level::Quorum, "k", None).await.expect("both are up");
        assert_eq!(values(&row), ["v"], "{tenant}");
    }
}

/// The owners have forgotten a row below their floor: there is nothing more to give them, though
/// what the two have together is not the same bytes as nothing.
#[tokio::test(start_paused = true)]
async fn what_the_owners_have_forgotten_is_with_them() {
    let (cluster, time) = with_an_old_write(72).await;
    for node in &cluster.nodes[..2] {
        let was = node.store.fence(&[0..=3], time).expect("fenced");
        assert!(node.store.install_floor(&[0..=3], time, was).expect("installed"));
    }
    give_away(&cluster).await;
    for tenant in ["default", "lww"] {
        let row = cluster.read(0, tenant, Level::Quorum, "k", None).await.expect("both are up");
        assert!(!row.found(), "{tenant}: it was dead");
    }
}

/// Has a node keep rows for others, as ones that they have missed.
fn keep_hints(cluster: &Cluster, keeper: &Node, hints: &[(usize, &str)]) {
    let tenant = keeper.store.tenant("default").expect("there").id;
    cluster.nodes[0].store.write("default", put("k", "v")).expect("itself");
    let row = cluster.nodes[0].store.raw_row(tenant, b"k").expect("readable").row;
    let row = bytes::Bytes::from(row.expect("written"));
    for (target, key) in hints {
        let key = bytes::Bytes::copy_from_slice(key.as_bytes());
        let (tenant_id, row) = (tenant.0, row.clone());
        keeper.missed.keep(id(*target), crate::proto::RowState { tenant_id, key, row });
    }
}

/// Hints of one node that cannot be read hold up those of no other, and are told of.
#[tokio::test(start_paused = true)]
async fn a_leaver_hands_over_the_hints_that_it_can_read() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2, 3], 74);
    let leaver = &cluster.nodes[3];
    cluster.world.take_down(id(2));
    keep_hints(&cluster, leaver, &[(1, "unreadable"), (2, "readable")]);
    tokio::time::sleep(SECOND).await;
    assert_eq!(leaver.hints.targets(), [id(1), id(2)]);
    leaver.faults.inject(Fault {
        operation: Some(Operation::ReadAt),
        path_contains: id(1).to_string(),
        times: u64::MAX,
        ..Fault::default()
    });
    let states = BTreeMap::from([(3, MemberState::Leaving)]);
    let leaving = Drawn { states, ..drawn(&cluster) };
    cluster.commit(leaving.layout(2, &[0, 1, 2], None), &[0, 1, 2, 3]);
    run_departures(&cluster, 30).await;
    assert!((0..2).all(|at| holds(&cluster, at, "readable")));
    assert_eq!(leaver.hints.targets(), [id(1)]);
    let told = leaver.departure.progress.figures().waits_for;
    assert!(told.contains("its hints for n2 to be readable"), "{told}");
}

/// A hint that is too old to be delivered is too old to be handed over: its row may have been
/// deleted and forgotten since. Nobody waits for who does not take it.
#[tokio::test(start_paused = true)]
async fn a_leaver_hands_over_no_hint_that_is_too_old() {
    let cluster = Cluster::with_owners(4, &[0, 1, 2, 3], 73);
    let leaver = &cluster.nodes[3];
    keep_hints(&cluster, leaver, &[(1, "old")]);
    tokio::time::sleep(SECOND).await;
    assert!(leaver.hints.stats().pending > 0);
    (0..3).for_each(|at| cluster.world.lose(id(at), "write"));
    let states = BTreeMap::from([(3, MemberState::Leaving)]);
    let leaving = Drawn { states, ..drawn(&cluster) };
    cluster.commit(leaving.layout(2, &[0, 1, 2], None), &[0, 1, 2, 3]);
    let age = HintOptions::default().age_max.as_millis() as u64 + 1000;
    let ageing = async {
        tokio::time::sleep(20 * SECOND).await;
        let is_left = |command: &Command| matches!(command, Command::Left { .. });
        assert!(!leaver.reports.lock().iter().any(is_left), "the hint is waited for");
        cluster.world.clock.advance_ms(age);
    };
    tokio::join!(run_departures(&cluster, 60), ageing);
    let is_left = |command: &Command| matches!(command, Command::Left { .. });
    assert!(leaver.reports.lock().iter().any(is_left));
    assert!((0..3).all(|at| !holds(&cluster, at, "old")));
}
