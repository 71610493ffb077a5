//! Rows as replicas exchange them: shipped, digested, joined under floors.

use super::*;
use crate::causality::clock::time_of_ms;

fn raw(node: &Node, tenant: &str, key: &str) -> RawRow {
    let tenant = node.store().tenant(tenant).unwrap().id;
    node.store().raw_row(tenant, key.as_bytes()).unwrap()
}

fn digest(node: &Node, raw: &RawRow) -> u64 {
    node.store().digest(raw).unwrap()
}

fn ship(from: &Node, to: &Node, tenant: &str, batch: &[Mutation]) -> Prepared {
    let prepared = from.store().prepare(tenant, batch);
    let rows: Vec<ForeignRow<Vec<u8>>> =
        prepared.rows.iter().map(|row| (row.tenant, row.key.clone(), row.row.clone())).collect();
    to.store().replicate(&rows).into_iter().for_each(|joined| joined.unwrap());
    prepared
}

/// The others have the row before the own disk has it: that is what overlapping is for.
#[test]
fn what_a_prepared_batch_ships_is_the_row_itself() {
    let (a, b) = (Node::new(), Node::new());
    for tenant in ["default", "lww"] {
        let bad = Mutation { ttl_ms: Some(0), ..put("bad", "v") };
        let batch = [put("k", "1"), bad, put("k", "2"), delete("gone")];
        let prepared = ship(&a, &b, tenant, &batch);
        let places: Vec<usize> = prepared.rows.iter().map(|row| row.index).collect();
        assert_eq!(places, [0, 2, 3], "nothing is shipped of what was refused");
        assert!(prepared.results[1].is_err());
        for key in ["k", "gone", "bad"] {
            let (here, there) = (raw(&a, tenant, key), raw(&b, tenant, key));
            assert_eq!(digest(&a, &here), digest(&b, &there), "{tenant} {key}");
        }
        let (told, durable) = std::sync::mpsc::channel();
        a.store().on_durable(prepared.position, move |result| told.send(result).unwrap());
        durable.try_recv().unwrap().unwrap();
    }
    assert_eq!(a.values("default", "k"), ["1", "2"]);
    assert_eq!(b.values("lww", "k"), ["2"]);
}

/// The first attempt may not have reached the others, so its duplicate is sent again.
#[test]
fn a_duplicate_ships_its_row_again() {
    let (a, b) = (Node::new(), Node::new());
    let write = [Mutation { idempotency_key: Some(b"t".to_vec()), ..put("k", "v") }];
    for tenant in ["default", "lww"] {
        a.store().prepare(tenant, &write);
        let again = ship(&a, &b, tenant, &write);
        assert!(again.results[0].as_ref().unwrap().duplicate);
        assert_eq!(b.values(tenant, "k"), ["v"]);
        let tenant = a.store().tenant(tenant).unwrap();
        let known = a.store().knows_token(&tenant, b"k", &raw(&b, &tenant.name, "k"), b"t");
        assert!(known.unwrap());
    }
}

/// One replica's compaction came before the other's: that is no difference.
#[test]
fn what_compaction_may_take_away_does_not_change_a_digest() {
    let node = Node::new();
    let none = RawRow::default();
    for tenant in ["default", "lww"] {
        node.put(tenant, "k", "v");
        node.store().write(tenant, delete("k")).unwrap();
        let mut tombstone = raw(&node, tenant, "k");
        assert_ne!(digest(&node, &tombstone), digest(&node, &none));
        tombstone.floor = time_of_ms(T0_MS + 1000);
        assert_eq!(digest(&node, &tombstone), digest(&node, &none), "{tenant}");
        node.put(tenant, "k", "w");
        let mut value = raw(&node, tenant, "k");
        value.floor = time_of_ms(T0_MS + 1000);
        assert_ne!(digest(&node, &value), digest(&node, &none));
    }
}

/// `floor_authority`: a copy that was rolled back to before the delete does not bring it back; and
/// what nobody can have forgotten is kept, and counted.
#[test]
fn a_floor_decides_about_what_the_other_side_has_alone() {
    let node = Node::new();
    node.put("default", "k", "v");
    let above = time_of_ms(T0_MS + 1000);
    let held = |floor| RawRow { floor, ..raw(&node, "default", "k") };
    let absent = |floor| RawRow { row: None, floor };
    let joined = |x, y| {
        let joined = node.store().join_raw(x, y).unwrap();
        let tenant = node.store().tenant("default").unwrap();
        values(&node.store().show(&tenant, b"k", joined.row.as_deref()).unwrap())
    };
    assert_eq!(joined(held(0), absent(0)), ["v"], "missed");
    assert!(joined(held(0), absent(above)).is_empty(), "dead");
    assert!(joined(absent(above), held(0)).is_empty(), "on either side");
    assert_eq!(node.store().stats().below_safe_point, 0);
    assert_eq!(joined(held(above), absent(above)), ["v"], "lost by somebody");
    assert_eq!(node.store().stats().below_safe_point, 1);
    assert_eq!(node.store().join_raw(held(3), absent(5)).unwrap().floor, 5);
}

#[test]
fn a_row_covers_what_its_own_context_has_seen_and_nothing_later() {
    let node = Node::new();
    for tenant in ["default", "lww"] {
        let spec = node.store().tenant(tenant).unwrap();
        let covers =
            |raw: &RawRow, context: &[u8]| node.store().covers(&spec, b"k", raw, context).unwrap();
        let none = RawRow::default();
        let nothing = node.context(tenant, "k");
        node.put(tenant, "k", "1");
        let (first, seen) = (raw(&node, tenant, "k"), node.context(tenant, "k"));
        let token = Some(b"t".to_vec());
        let second =
            Mutation { context: Some(seen.clone()), idempotency_key: token, ..put("k", "2") };
        node.store().write(tenant, second).unwrap();
        let (later, seen_later) = (raw(&node, tenant, "k"), node.context(tenant, "k"));
        assert!(covers(&none, &nothing) && !covers(&none, &seen));
        assert!(covers(&first, &seen) && !covers(&first, &seen_later));
        assert!(covers(&later, &seen) && covers(&later, &seen_later));
        let forgotten = RawRow { row: None, floor: time_of_ms(T0_MS + 1000) };
        assert!(covers(&forgotten, &seen_later), "below the floor absence has meaning");
        assert!(node.store().check_context(&spec, b"other", &seen).is_err());
    }
}

#[test]
fn a_damaged_partition_gives_no_word() {
    let node = Node::new();
    node.put("default", "k", "v");
    node.store().engine.set_damaged(0..=3, &[7]).unwrap();
    let tenant = node.store().tenant("default").unwrap().id;
    let refused = node.store().raw_row(tenant, b"k").unwrap_err();
    assert_eq!(refused.reason(), "DAMAGED");
    let tenant_now = node.store().tenant("default").unwrap();
    assert!(node.store().check_undamaged(&tenant_now, b"k").is_err());
    node.store().engine.set_damaged(0..=3, &[]).unwrap();
    assert!(raw(&node, "default", "k").row.is_some());
}

/// What replicas hold was accepted once: where the limit of keys is lower, or has been lowered, a
/// replica gives the rows that it has taken all the same, and clients are held to the limit.
#[test]
fn a_replica_gives_every_row_that_it_takes() {
    let from = Node::new();
    let mut options = from.options.clone();
    options.limits.key_bytes_max = 16;
    let to = Node::with(options);
    let key = "k".repeat(20);
    for tenant in ["default", "lww"] {
        ship(&from, &to, tenant, &[put(&key, "v")]);
        let sent = raw(&from, tenant, &key);
        assert!(sent.row.is_some());
        assert_eq!(raw(&to, tenant, &key), sent);
        let (store, id) = (to.store(), to.store().tenant(tenant).unwrap().id);
        assert_eq!(store.damaged_row(id, key.as_bytes()).unwrap(), sent);
        let mut found = store.peek_raw_rows(&[(id, key.as_bytes())]).found;
        assert_eq!(found.remove(0).unwrap(), sent);
        let refused = store.read(tenant, key.as_bytes()).unwrap_err();
        assert_eq!(refused.reason(), "KEY_TOO_LONG");
    }
}

#[test]
fn garbage_is_refused_and_not_joined() {
    let node = Node::new();
    node.put("default", "k", "v");
    let good = raw(&node, "default", "k");
    let bad = RawRow { row: Some(b"\xffgarbage".to_vec()), floor: 0 };
    assert!(node.store().join_raw(good, bad.clone()).is_err());
    assert!(node.store().digest(&RawRow { floor: 9, ..bad }).is_err());
}

/// A partition that is marked as damaged while a row of it is read: what was found, or was not, may
/// be of after the loss, and no floor vouches for it.
#[test]
fn a_row_of_a_partition_that_lost_data_meanwhile_is_no_word() {
    for early in [false, true] {
        let mut node = Node::new();
        node.put("default", "k", "x");
        let store = Arc::new(node.store.take().expect("started"));
        let tenant = store.tenant("default").unwrap().id;
        let read = || match early {
            false => store.raw_row(tenant, b"k"),
            true => store.peek_raw_rows(&[(tenant, b"k")]).found.remove(0),
        };
        assert!(read().unwrap().row.is_some());
        let loses = Arc::clone(&store);
        let lose = move || loses.mark_damaged(0..=3, &[7]).unwrap();
        store.engine.at_hook("read:pinned", lose);
        assert_eq!(read().unwrap_err().reason(), "DAMAGED", "{early}");
    }
}

/// Others remember the bound of a node's clock, and know by it a directory that was put back. One
/// that takes rows and writes none itself would be put back by days without being found out.
#[test]
fn the_bound_of_the_clock_follows_what_is_taken_from_others() {
    let (writer, replica) = (Node::new(), Node::new());
    let mut bounds = vec![replica.store().lease()];
    for round in 0..3 {
        writer.clock.advance_ms(30_000);
        replica.clock.advance_ms(30_000);
        replica.store().follow_clock().unwrap();
        assert_eq!(replica.store().lease(), *bounds.last().unwrap(), "nothing came");
        ship(&writer, &replica, "default", &[put("k", &format!("v{round}"))]);
        replica.store().follow_clock().unwrap();
        bounds.push(replica.store().lease());
    }
    assert!(bounds.is_sorted_by(|one, next| one < next), "{bounds:?}");
}
