//! Replicas that differ become equal, and ones that do not are left alone.

use super::*;
use crate::replication::tree::LeafPage;

/// No hint, no read, no message: the comparison alone.
#[tokio::test(start_paused = true)]
async fn replicas_become_equal_without_hints() {
    for tenant in TENANTS {
        let trio = Trio::new();
        for key in 0..60 {
            trio.write_at(key % 3, tenant, put(&format!("k{key}"), &format!("v{key}")));
        }
        for (at, with) in [(0, 1), (0, 2), (1, 2)] {
            let summary = trio.compare(at, with).await.expect("compared");
            assert!(summary.is_whole() && summary.rows > 0, "{summary:?}");
        }
        trio.compare(0, 1).await.expect("compared");
        for key in 0..60 {
            let expected = vec![format!("v{key}")];
            assert!(trio.all_values(tenant, &format!("k{key}")).iter().all(|it| *it == expected));
        }
        let again = trio.compare(0, 1).await.expect("compared");
        assert_eq!((again.rows, again.left), (0, 0));
    }
}

/// Who asks for a repair waits for all of it, however little a comparison does at a time, and is
/// told whom it did not reach.
#[tokio::test(start_paused = true)]
async fn a_repair_comes_to_all_that_differs_and_names_who_is_down() {
    let trio = Trio::with(|settings| settings.leaves_max = 1, &[]);
    for key in 0..40 {
        trio.write_at(key % 3, "default", put(&format!("k{key}"), "v"));
    }
    let whole = trio.anti_entropy(0).repair(None).await.expect("compared");
    assert!(whole.summary.is_whole() && whole.summary.rows >= 40, "{whole:?}");
    assert_eq!(whole.down, []);
    for key in 0..40 {
        assert_eq!(trio.values(0, "default", &format!("k{key}")), ["v"]);
    }
    trio.write_at(0, "default", put("late", "v"));
    trio.net.down.lock().insert(id(2));
    let partly = trio.anti_entropy(0).repair(None).await.expect("compared");
    assert_eq!(partly.down, [id(2)]);
    assert_eq!(trio.values(1, "default", "late"), ["v"]);
}

/// A newcomer lacks all that it merges. To compare it with owners would bring it over row by row,
/// beside the pages. What it misses later is found also while others still merge.
#[tokio::test(start_paused = true)]
async fn a_newcomer_is_not_compared_while_it_merges() {
    let trio = Trio::new();
    let joint = |epoch, synced: &[NodeId]| {
        document(epoch, |document| {
            document.next_owners = Some(document.owners.clone());
            document.owners.remove(&id(2));
            document.synced.extend(synced);
        })
    };
    trio.adopt(&joint(2, &[]), &[0, 1, 2]);
    trio.write_at(0, "default", put("k", "v"));
    let asked = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&asked);
    trio.listen(move |from, to, _| {
        seen.lock().insert([from, to]);
        true
    });
    trio.anti_entropy(0).compare_all().await;
    trio.anti_entropy(1).compare_all().await;
    assert_eq!(*asked.lock(), BTreeSet::from([[id(0), id(1)]]));
    assert_eq!(trio.values(1, "default", "k"), ["v"]);
    assert_eq!(trio.values(2, "default", "k"), [""; 0]);
    trio.adopt(&joint(3, &[id(2)]), &[0, 1, 2]);
    trio.anti_entropy(0).compare_all().await;
    assert_eq!(trio.values(2, "default", "k"), ["v"]);
}

/// Tombstones that one has forgotten and the other, whose floor is lower, must keep are not sent
/// back and forth; neither is a row of which only clock entries differ.
#[tokio::test(start_paused = true)]
async fn what_only_one_floor_covers_makes_no_difference() {
    let trio = Trio::new();
    for tenant in TENANTS {
        trio.write(0, tenant, put("k", "x"), &[1, 2]);
        trio.write(1, tenant, delete("k"), &[0, 2]);
        trio.write(2, tenant, put("kept", "v"), &[0, 1]);
    }
    trio.advance_ms(1000);
    trio.declare(&[0], trio.now());
    assert_eq!(trio.forget(), [2, 4, 4]);
    for (at, with) in [(0, 1), (1, 2), (2, 0)] {
        let summary = trio.compare(at, with).await.expect("compared");
        assert_eq!((summary.rows, summary.left), (0, 0), "{at} and {with}");
    }
    assert_eq!(trio.forget(), [2, 4, 4]);
    // A new write beside them is found all the same.
    trio.advance_ms(1000);
    trio.write_at(1, "default", put("k", "y"));
    assert_eq!(trio.compare(0, 1).await.expect("compared").rows, 1);
    assert_eq!(trio.values(0, "default", "k"), ["y"]);
}

/// One was rolled back to before a delete that the others have forgotten. What it holds is dead by
/// their floor: it is dropped there and not adopted here, in either mode.
#[tokio::test(start_paused = true)]
async fn what_is_dead_by_the_others_floor_is_dropped() {
    for tenant in TENANTS {
        let trio = Trio::new();
        let old = trio.write_at(0, tenant, put("k", "x"));
        trio.deliver(&old, 1).expect("taken");
        trio.write(0, tenant, delete("k"), &[1]);
        trio.advance_ms(1000);
        trio.declare(&[0, 1], trio.now());
        assert_eq!(trio.forget(), [0, 0, 0]);
        trio.deliver(&old, 2).expect("its floor is 0");
        assert_eq!(trio.values(2, tenant, "k"), ["x"]);
        for (at, with) in [(0, 2), (1, 2), (0, 1)] {
            assert!(trio.compare(at, with).await.expect("compared").is_whole());
        }
        assert_eq!(trio.all_values(tenant, "k"), [[""; 0]; 3], "in {tenant}");
        let again = trio.compare(0, 2).await.expect("compared");
        assert_eq!((again.rows, again.left), (0, 0), "and that is the end of it");
        assert_eq!(trio.round().await, 0);
    }
}

/// Below both floors: somebody has lost data without noticing. It is kept, by both.
#[tokio::test(start_paused = true)]
async fn what_one_has_lost_below_both_floors_is_given_back_and_counted() {
    let trio = Trio::new();
    trio.write_at(0, "default", put("k", "x"));
    trio.advance_ms(1000);
    trio.declare(&[0, 1], trio.now());
    trio.compare(0, 1).await.expect("compared");
    assert_eq!(trio.values(1, "default", "k"), ["x"]);
    assert!(trio.store(0).stats().below_safe_point > 0);
}

/// More rows in one leaf than fit a message: sent in several, all of them there in the end.
#[tokio::test(start_paused = true)]
async fn rows_that_fill_several_messages_are_all_repaired() {
    let trio = Trio::new();
    for at in 0..3 {
        let delimiter = Some(b":".to_vec());
        let lists = TenantSpec { partition_delimiter: delimiter, ..TenantSpec::new("lists") };
        trio.store(at).create_tenant(lists).expect("created");
    }
    let value = "v".repeat(60_000);
    let repairs = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&repairs);
    trio.listen(move |_, _, request| {
        *counted.lock() += usize::from(matches!(request, Request::RepairRows(_)));
        true
    });
    for key in 0..40 {
        trio.write_at(key % 2, "lists", put(&format!("list:{key}"), &value));
    }
    for key in 0..40 {
        trio.write_at(0, "lists", put(&format!("list:more-{key}"), &value));
    }
    let summary = trio.compare(0, 1).await.expect("compared");
    assert!(summary.is_whole(), "{summary:?}");
    assert!(*repairs.lock() >= 4, "60 rows of 60 kB are more than a few messages");
    for key in 0..40 {
        assert_eq!(trio.values(1, "lists", &format!("list:more-{key}"))[0], value);
        assert_eq!(trio.values(0, "lists", &format!("list:{key}"))[0], value);
    }
}

/// A page of a leaf ends by its bytes too.
#[test]
fn a_page_of_a_leaf_is_bounded_by_keys_and_by_bytes() {
    let trio = Trio::new();
    let store = Arc::clone(trio.store(0));
    for key in 0..20 {
        let key = format!("list:{key:0>100}");
        store.write("default", put(&key, "v")).expect("written");
    }
    let trees = Trees::new(Arc::clone(&store), Duration::from_secs(1));
    let mut pages = 0;
    let mut found = 0;
    for leaf in 0..crate::store::leaves::LEAVES as u32 {
        if !store.dirty_leaves().is_marked(leaf) {
            continue;
        }
        let page = |after| LeafPage { replicas: 3, leaf, after, floor: 0 };
        let (keys, more) = trees.keys(page(Vec::new()), 1, usize::MAX).expect("read");
        let (by_bytes, _) = trees.keys(page(Vec::new()), usize::MAX, 1).expect("read");
        assert_eq!(keys, by_bytes, "the first key is always in it");
        assert!(keys.len() <= 1);
        pages += usize::from(more);
        let (all, more) = trees.keys(page(Vec::new()), usize::MAX, usize::MAX).expect("read");
        assert!(!more);
        found += all.len();
        if found == 20 {
            break;
        }
    }
    assert_eq!((found, pages), (20, 0), "each has a leaf of its own");
}

/// The first hash after a start reads everything. Nobody waits for it: what was read by the end of
/// the asker's patience is kept, and the next call goes on.
#[test]
fn hashes_that_are_not_read_yet_are_not_known_and_nobody_waits() {
    let trio = Trio::new();
    for key in 0..20 {
        trio.write_at(0, "default", put(&format!("k{key}"), "x"));
    }
    let partitions: Vec<(u32, u64)> = ALL.map(|partition| (partition, 0)).collect();
    let hasty = Trees::new(Arc::clone(trio.store(0)), Duration::ZERO);
    assert_eq!(hasty.roots(3, &partitions), [None; 4]);
    assert_eq!(hasty.purgeable_at(0).expect("sound"), None);
    let patient = Trees::new(Arc::clone(trio.store(0)), Duration::from_secs(1));
    assert!(patient.roots(3, &partitions).iter().all(Option::is_some));
    let summary = Summary { left: 1, ..Summary::default() };
    assert!(!summary.is_whole(), "and such a comparison proves nothing");
}

/// A tenant gets another number of replicas. What was hashed before, among the rows of those with
/// as many as it had, is found all the same: nothing was written that would have it read again.
#[tokio::test(start_paused = true)]
async fn rows_are_compared_with_those_of_tenants_that_have_as_many_replicas_now() {
    let trio = Trio::new();
    let adopt = |epoch, factor: u8| {
        for at in 0..3 {
            let change =
                TenantChange { replication_factor: Some(factor), ..TenantChange::default() };
            trio.store(at).alter_tenant("default", change).expect("altered");
        }
        let alter = |document: &mut Document| {
            let tenants = document.tenants.values_mut();
            tenants.for_each(|tenant| tenant.replication_factor = factor);
        };
        let layout = document(epoch, alter);
        trio.adopt(&layout, &[0, 1, 2]);
        layout
    };
    let partitions: Vec<(u32, u64)> = ALL.map(|partition| (partition, 0)).collect();
    for (epoch, factor) in [(2, 2), (3, 3)] {
        let key = |n: usize| format!("{factor}-{n}");
        for n in 0..16 {
            trio.write_at(0, "default", put(&key(n), "x"));
        }
        for at in 0..3 {
            let roots = trio.anti_entropy(at).trees.roots(5 - factor, &partitions);
            assert!(roots.iter().all(Option::is_some));
        }
        let layout = adopt(epoch, factor);
        let summary = trio.compare(0, 1).await.expect("compared");
        assert!(summary.is_whole() && summary.rows > 0, "{summary:?}");
        let tenant = trio.store(0).tenant("default").expect("there");
        for key in (0..16).map(key) {
            let token = tenant.token(key.as_bytes());
            let sets = layout.sets(layout.partition_of(token), factor);
            let held = trio.values(1, "default", &key).len();
            assert_eq!(held == 1, [0, 1].iter().all(|at| sets.contains(id(*at))), "{key}");
        }
        let again = trio.compare(0, 1).await.expect("compared");
        assert_eq!((again.rows, again.left), (0, 0));
    }
}
