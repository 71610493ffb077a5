//! Rounds: deletes are forgotten by all, and nothing that was acknowledged is lost on the way.

use super::*;
use crate::proto::RoundStep;

fn step_of(request: &Request) -> Option<RoundStep> {
    match request {
        Request::Fence(request) => Some(request.step()),
        _ => None,
    }
}

/// The whole of it: written, deleted, proven, compacted; and gone, on all three, for good.
#[tokio::test(start_paused = true)]
async fn a_deleted_row_is_forgotten_by_all_three_and_a_late_copy_does_not_bring_it_back() {
    for tenant in TENANTS {
        let trio = Trio::new();
        let old = trio.write_at(0, tenant, put("k", "x"));
        trio.deliver(&old, 1).expect("taken");
        trio.deliver(&old, 2).expect("taken");
        trio.write(0, tenant, put("kept", "v"), &[1, 2]);
        trio.write(1, tenant, delete("k"), &[0, 2]);
        assert_eq!(trio.forget(), [2, 2, 2], "nothing is forgotten without a round");
        assert_eq!(trio.round().await, 0);
        assert_eq!(trio.forget(), [1, 1, 1], "in {tenant}");
        for at in 0..3 {
            let refused = trio.deliver(&old, at).expect_err("it is dead");
            assert_eq!(refused.reason(), "BELOW_SAFE_POINT");
        }
        assert_eq!(trio.all_values(tenant, "k"), [[""; 0]; 3]);
        assert_eq!(trio.all_values(tenant, "kept"), [["v"]; 3]);
        // The key is a key like any other again.
        trio.write(2, tenant, put("k", "y"), &[0, 1]);
        assert_eq!(trio.all_values(tenant, "k"), [["y"]; 3]);
    }
}

/// Nobody was told of the delete but one, and no hint is left: the round's own comparison brings
/// it to the others before it proves anything.
#[tokio::test(start_paused = true)]
async fn a_round_brings_what_one_alone_holds_although_it_is_below_the_guard() {
    for tenant in TENANTS {
        let trio = Trio::new();
        trio.write(0, tenant, put("k", "x"), &[1, 2]);
        trio.write_at(2, tenant, delete("k"));
        trio.litter();
        let alone = trio.write_at(1, tenant, put("alone", "v"));
        assert_eq!(trio.round().await, 0);
        assert_eq!(trio.all_values(tenant, "alone"), [["v"]; 3]);
        assert_eq!(trio.forget(), [1, 1, 1], "the delete came to all before it was forgotten");
        // What a message brings is still held to the guard.
        let other = (alone.0, b"another".to_vec(), alone.2);
        let refused = trio.deliver(&other, 0).expect_err("it is below the guard, and unknown");
        assert_eq!(refused.reason(), "BELOW_SAFE_POINT");
    }
}

/// The guard alone is no reason to lose a row: after a round that failed behind its fences, what
/// one replica lacks is still repaired.
#[tokio::test(start_paused = true)]
async fn a_row_below_the_guard_of_a_failed_round_is_repaired_all_the_same() {
    let trio = Trio::new();
    trio.litter();
    trio.write_at(0, "default", put("k", "x"));
    trio.listen(|_, _, request| !matches!(request, Request::Tree(_)));
    assert_eq!(trio.round().await, 1);
    trio.listen(|_, _, _| true);
    let refused = trio.deliver(&other_row(&trio, "l"), 2).expect_err("the fences are there");
    assert_eq!(refused.reason(), "BELOW_SAFE_POINT");
    for with in [1, 2] {
        assert!(trio.compare(0, with).await.expect("compared").is_whole());
    }
    assert_eq!(trio.all_values("default", "k"), [["x"]; 3]);
    assert_eq!(trio.floors_of("default", "k"), [0, 0, 0]);
}

/// A write of the key of which nobody here knows, as old as these nodes.
fn other_row(trio: &Trio, key: &str) -> ForeignRow<Vec<u8>> {
    let (_, _, row) = Trio::new().write_at(0, "default", put("elsewhere", "late"));
    (trio.store(0).tenant("default").expect("there").id, key.into(), row)
}

/// A repair that was on its way when the floor was installed was judged by another floor: it is
/// refused, and so cannot bring back what has been forgotten since.
#[tokio::test(start_paused = true)]
async fn a_repair_that_comes_after_the_floor_it_was_judged_under_is_refused() {
    let history = |removed: &'static [&'static str]| async move {
        let trio = Trio::with(|_| {}, removed);
        trio.write(0, "default", put("k", "x"), &[1]);
        let late: Arc<Mutex<Option<Request>>> = Arc::default();
        let kept = Arc::clone(&late);
        trio.listen(move |_, to, request| {
            let is_it = to == id(2) && matches!(request, Request::RepairRows(_));
            if is_it {
                *kept.lock() = Some(request.clone());
            }
            !is_it
        });
        trio.compare(0, 2).await.expect_err("the repair got lost");
        trio.listen(|_, _, _| true);
        trio.write(1, "default", delete("k"), &[0, 2]);
        assert_eq!(trio.round().await, 0);
        assert_eq!(trio.forget(), [0, 0, 0]);
        let late = late.lock().take().expect("it was sent");
        let handler = trio.net.handlers.lock()[&id(2)].clone();
        let limit = Duration::from_secs(1);
        handler.handle(id(0), Class::Background, 1, late, limit).await.expect("answered");
        trio.values(2, "default", "k")
    };
    assert_eq!(history(&[]).await, [""; 0]);
    assert_eq!(history(&["judged_by_floor_in_force"]).await, ["x"], "the reason for the rule");
}

/// A repair between two others than the pair at hand changes what was compared already. The round
/// sees that news came and compares again.
#[tokio::test(start_paused = true)]
async fn a_round_goes_on_until_no_repair_brought_news() {
    let trio = Trio::new();
    trio.litter();
    // The pair of the first two is equal when it is compared, but the third knows more.
    trio.write_at(2, "default", put("k", "x"));
    let holds = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&holds);
    trio.listen(move |_, to, request| {
        if to == id(1) && step_of(request) == Some(RoundStep::Hold) {
            *counted.lock() += 1;
        }
        true
    });
    assert_eq!(trio.round().await, 0);
    assert_eq!(*holds.lock(), 2, "the first pass brought news, the second none");
    assert_eq!(trio.all_values("default", "k"), [["x"]; 3]);
}

/// News after the last count: what was proven does not hold for that replica any more.
#[tokio::test(start_paused = true)]
async fn a_replica_that_got_news_after_it_held_does_not_install() {
    let history = |removed: &'static [&'static str]| async move {
        let trio = Trio::with(|_| {}, removed);
        trio.litter();
        let store = Arc::clone(trio.store(2));
        // A join of a replica's, made long ago.
        let (tenant, key, row) = other_row(&trio, "k");
        trio.listen(move |_, to, request| {
            if to == id(2) && step_of(request) == Some(RoundStep::Install) {
                let repair = (tenant, key.clone(), row.clone());
                store.repair(&[repair], &[0]).remove(0).expect("taken");
            }
            true
        });
        let failed = trio.round().await;
        let floors = trio.floors_of("default", "k");
        (failed, floors[0] > 0, floors[2] > 0)
    };
    assert_eq!(history(&[]).await, (1, true, false));
    assert_eq!(history(&["news_voids_a_round"]).await, (0, true, true), "the reason");
}

/// A replica that missed the install forgets nothing; the next round moves it, although the others
/// have nothing to forget any more.
#[tokio::test(start_paused = true)]
async fn a_replica_that_missed_an_install_is_caught_up_by_the_next_round() {
    let trio = Trio::new();
    trio.write(0, "default", put("k", "x"), &[1, 2]);
    trio.write(0, "default", delete("k"), &[1, 2]);
    trio.listen(|_, to, request| !(to == id(2) && step_of(request) == Some(RoundStep::Install)));
    assert_eq!(trio.round().await, 1);
    assert_eq!(trio.forget(), [0, 0, 1]);
    trio.listen(|_, _, _| true);
    assert_eq!(trio.compare(0, 2).await.expect("compared"), whole(4), "it is no difference");
    assert_eq!(trio.forget(), [0, 0, 1]);
    assert_eq!(trio.round().await, 0);
    assert_eq!(trio.forget(), [0, 0, 0]);
}

fn whole(partitions: u32) -> Summary {
    Summary { partitions, ..Summary::default() }
}

/// Tenants with different numbers of replicas: some partitions have rows only at nodes that are not
/// the first of all their replicas by id. Each is conducted by one that holds whatever there is.
#[tokio::test(start_paused = true)]
async fn a_tenant_with_fewer_replicas_than_another_has_its_deletes_forgotten_too() {
    let mut trio = Trio::new();
    let layout = document(2, |document| {
        let two = Tenant {
            id: TenantId(3),
            name: "two".to_owned(),
            replication_factor: 2,
            ..document.tenants[&TenantId(1)].clone()
        };
        document.tenants.insert(two.id, two);
        // The first node has the smallest share.
        let weight = |owner: NodeId| if owner == id(0) { 1 } else { 4 };
        document.owners.iter_mut().for_each(|(node, owner)| owner.weight = weight(*node));
    });
    for at in 0..3 {
        let two = TenantSpec { replication_factor: 2, ..TenantSpec::new("two") };
        assert_eq!(trio.store(at).create_tenant(two).expect("created").id, TenantId(3));
    }
    trio.adopt(&layout, &[0, 1, 2]);
    let tenant = trio.store(0).tenant("two").expect("there");
    let replicas = |partition| {
        let set = layout.sets(partition, 2).current;
        (0..3).filter(|at| set.contains(&id(*at))).collect::<Vec<_>>()
    };
    let litter = |trio: &Trio, name: &str| {
        let mut littered = BTreeSet::new();
        for key in (0..40).map(|n| format!("{name}-{n}")) {
            let partition = layout.partition_of(tenant.token(key.as_bytes()));
            let [one, other] = replicas(partition)[..] else { panic!("two replicas") };
            trio.write(one, "two", delete(&key), &[other]);
            littered.insert(partition);
        }
        assert_eq!(littered, ALL.collect());
    };
    litter(&trio, "first");
    trio.advance_ms(1000);
    for at in 0..3 {
        assert_eq!(trio.anti_entropy(at).move_safe_points().await, 0);
    }
    assert_eq!(trio.forget(), [0; 3]);
    assert!((0..3).all(|at| trio.floors(at).iter().all(|floor| *floor > 0)));
    // The first node, which holds nothing there, misses an install; who conducted it is started
    // anew, and nobody has anything to forget any more.
    let partition = ALL.into_iter().find(|it| !replicas(*it).contains(&0)).expect("three nodes");
    litter(&trio, "second");
    trio.listen(|_, to, request| !(to == id(0) && step_of(request) == Some(RoundStep::Install)));
    trio.advance_ms(1000);
    assert!(trio.anti_entropy(1).move_safe_points().await > 0);
    trio.listen(|_, _, _| true);
    trio.forget();
    trio.restart(1);
    let behind = |trio: &Trio| {
        let floors = |at: usize| trio.floors(at)[partition as usize];
        floors(0) < floors(1)
    };
    assert!(behind(&trio));
    trio.compare(0, 1).await.expect("compared");
    trio.advance_ms(1000);
    for at in 0..3 {
        assert_eq!(trio.anti_entropy(at).move_safe_points().await, 0);
    }
    assert!(!behind(&trio), "the one that conducts was told");
}

/// Where nothing can be forgotten no round is held: not on an idle cluster, not where only values
/// are written.
#[tokio::test(start_paused = true)]
async fn no_round_is_held_where_nothing_can_be_forgotten() {
    let trio = Trio::new();
    for key in 0..50 {
        trio.write(0, "default", put(&format!("k{key}"), "x"), &[1, 2]);
    }
    trio.listen(|_, _, request| {
        assert!(step_of(request).is_none(), "nobody is asked for anything");
        true
    });
    assert_eq!(trio.round().await, 0);
    assert_eq!(trio.floors(0), [0; 4]);
    trio.listen(|_, _, _| true);
    trio.write(0, "default", delete("k7"), &[1, 2]);
    assert_eq!(trio.round().await, 0);
    assert_eq!(trio.floors(0).iter().filter(|floor| **floor > 0).count(), 1, "one partition");
    let held = trio.anti_entropy(0).counters.rounds.load(Ordering::Relaxed);
    assert_eq!(trio.round().await, 0);
    assert_eq!(trio.anti_entropy(0).counters.rounds.load(Ordering::Relaxed), held);
}

/// A comparison may leave leaves for later; a round that did so would prove nothing.
#[tokio::test(start_paused = true)]
async fn a_round_compares_all_leaves_however_few_a_comparison_repairs_at_a_time() {
    let trio = Trio::with(|settings| settings.leaves_max = 1, &[]);
    for key in 0..40 {
        trio.write_at(key % 3, "default", put(&format!("k{key}"), "x"));
    }
    trio.litter();
    let scope = compare::Scope::all(&trio.anti_entropy(0).layout(), 1);
    let later = trio.anti_entropy(0).compare_with(id(1), &scope).await.expect("compared").later;
    assert!(later > 10, "{later}");
    assert_eq!(trio.round().await, 0);
    let digests = |at: usize| {
        let row = |key: usize| trio.values(at, "default", &format!("k{key}"));
        (0..40).map(row).collect::<Vec<_>>()
    };
    assert!((0..3).all(|at| trio.floors(at).iter().all(|floor| *floor > 0)));
    assert_eq!(trio.forget(), [40; 3]);
    assert_eq!(digests(0), digests(1));
    assert_eq!(digests(0), digests(2));
}

/// D3 and R1: no step is taken in Joint, while a node that departed may hold old rows, without
/// tenants, under another epoch or version than the conductor's.
#[tokio::test(start_paused = true)]
async fn no_safe_point_moves_while_ownership_changes_or_may_be_disputed() {
    let trio = Trio::new();
    trio.write(0, "default", delete("k"), &[1, 2]);
    let joint = document(2, |document| document.next_owners = Some(document.owners.clone()));
    let departed = document(3, |document| {
        document.departed.insert(id(5), 3);
    });
    let without_tenants = document(4, |document| document.tenants.clear());
    for layout in [joint, departed, without_tenants] {
        trio.adopt(&layout, &[0, 1, 2]);
        assert_eq!(trio.round().await, 0);
        assert_eq!(trio.floors_of("default", "k"), [0; 3]);
    }
    trio.adopt(&document(5, |_| {}), &[0, 1, 2]);
    trio.adopt(&document(6, |document| document.version = 7), &[2]);
    assert_eq!(trio.round().await, 1, "one acts under a later epoch");
    trio.adopt(&document(6, |document| document.version = 8), &[0, 1]);
    assert_eq!(trio.round().await, 1, "one does not know all the others know");
    assert_eq!(trio.floors_of("default", "k"), [0; 3]);
    trio.adopt(&document(6, |document| document.version = 8), &[2]);
    assert_eq!(trio.round().await, 0);
    assert!(trio.floors_of("default", "k").iter().all(|floor| *floor > 0));
}

/// The layout goes on between the proof and the install.
#[tokio::test(start_paused = true)]
async fn a_floor_is_not_installed_under_another_layout_than_it_was_proven_under() {
    let trio = Trio::new();
    trio.write(0, "default", delete("k"), &[1, 2]);
    let (gate, shown) = (Arc::clone(&trio.nodes[2].gate), trio.nodes[2].shown.clone());
    trio.listen(move |_, to, request| {
        if to == id(2) && step_of(request) == Some(RoundStep::Install) {
            let joint = document(2, |it| it.next_owners = Some(it.owners.clone()));
            gate.raise(2);
            shown.send_replace(joint);
        }
        true
    });
    assert_eq!(trio.round().await, 1);
    assert_eq!(trio.floors_of("default", "k")[2], 0);
}

#[tokio::test(start_paused = true)]
async fn a_layout_with_another_number_of_partitions_than_the_store_is_refused() {
    let trio = Trio::new();
    trio.write(0, "default", delete("k"), &[1, 2]);
    trio.adopt(&document(2, |document| document.partition_bits = 3), &[0, 1, 2]);
    assert_eq!(trio.round().await, 1);
    let refused = trio.compare(0, 1).await.expect_err("they mean different partitions");
    assert!(matches!(refused, Error::Partitions { layout: 3, store: 2 }), "{refused}");
    assert_eq!(trio.floors_of("default", "k"), [0; 3]);
}

/// A week of absence delays what is forgotten, and costs nothing else.
#[tokio::test(start_paused = true)]
async fn one_that_is_down_blocks_the_round() {
    let mut trio = Trio::new();
    trio.write(0, "default", delete("k"), &[1, 2]);
    trio.lose_power(2, 1);
    assert_eq!(trio.round().await, 1);
    assert_eq!(trio.store(0).floor_of_partition(0).expect("sound"), 0);
    trio.start(2);
    assert_eq!(trio.round().await, 0);
    assert_eq!(trio.forget(), [0, 0, 0]);
}

/// Started anew since it was compared: nobody knows what it lost.
#[tokio::test(start_paused = true)]
async fn incarnation() {
    let trio = Trio::new();
    trio.write(0, "default", delete("k"), &[1, 2]);
    let time = trio.now();
    let was = trio.store(2).fence(&[ALL], time).expect("fenced");
    let mut trio = trio;
    trio.crash(2, 3);
    let store = trio.store(2);
    assert!(!store.install_floor(&[ALL], time, was).expect("no error"));
    let is = store.fence(&[ALL], time).expect("fenced");
    assert_ne!(is.incarnation, was.incarnation);
    assert!(store.install_floor(&[ALL], time, is).expect("no error"));
}

/// A round came as far as its fence, and ended. What the replicas do not hold alike below it they
/// do not take from messages any more, but a reader at QUORUM brings it from one to the other: he
/// is answered, at once, and not only when the comparison has passed by.
#[tokio::test(start_paused = true)]
async fn a_read_repairs_what_a_failed_round_has_fenced() {
    for tenant in TENANTS {
        let trio = Trio::new();
        let row = trio.write_at(0, tenant, put("k", "v"));
        trio.advance_ms(1000);
        for at in 0..3 {
            trio.store(at).fence(&[ALL], trio.now()).expect("fenced");
        }
        assert!(trio.deliver(&row, 1).is_err(), "late messages stay out");
        trio.net.down.lock().insert(id(2));
        assert_eq!(trio.quorum(0, tenant, "k").await.expect("two are up"), [b"v"]);
        assert_eq!(trio.values(1, tenant, "k"), ["v"]);
        trio.net.down.lock().remove(&id(2));
        // The one that is behind coordinates.
        trio.net.down.lock().insert(id(0));
        assert_eq!(trio.quorum(2, tenant, "k").await.expect("two are up"), [b"v"]);
        assert_eq!(trio.all_values(tenant, "k"), [["v"]; 3]);
    }
}

/// A repair by a read obeys the floors: what one replica has declared dead is not brought to it,
/// not even by another that gave the same digest as one who had not heard yet.
#[tokio::test(start_paused = true)]
async fn a_read_brings_nothing_back_that_a_floor_calls_dead() {
    let trio = Trio::new();
    trio.write(0, "default", put("k", "x"), &[1, 2]);
    trio.write(1, "default", delete("k"), &[2]);
    trio.advance_ms(1000);
    trio.declare(&[1, 2], trio.now());
    for at in 1..3 {
        trio.store(at).flush().expect("flushed");
        trio.store(at).compact().expect("forgotten");
    }
    for at in 0..3 {
        assert_eq!(trio.quorum(at, "default", "k").await.expect("all are up").len(), 0);
    }
    assert_eq!([trio.values(1, "default", "k"), trio.values(2, "default", "k")], [[""; 0]; 2]);
}
