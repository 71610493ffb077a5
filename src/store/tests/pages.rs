//! Scans and their pages.

use std::collections::BTreeSet;

use super::*;

/// All keys of a scan, page by page.
fn keys_of(node: &Node, tenant: &str, mut request: ScanRequest) -> Vec<String> {
    let mut keys = Vec::new();
    for _ in 0..10_000 {
        let page = node.store().scan(tenant, &request).unwrap();
        assert!(request.limit == 0 || page.rows.len() <= request.limit);
        keys.extend(page.rows.into_iter().map(|(key, _)| String::from_utf8(key).unwrap()));
        match page.cursor {
            Some(cursor) => request.cursor = Some(cursor),
            None => return keys,
        }
    }
    panic!("the scan does not end");
}

fn fill(node: &Node) {
    for user in 0..5 {
        for n in (0..20).rev() {
            node.put("lists", &format!("user{user}:{n:02}"), "v");
        }
        node.put("lists", &format!("user{user}"), "head");
    }
    for n in 0..30 {
        node.put("default", &format!("other{n}"), "v");
    }
}

/// Keys before the same delimiter lie together in the order of their bytes, whatever the page.
#[test]
fn keys_of_a_partition_key_come_in_order() {
    let mut node = Node::new();
    fill(&node);
    node.store().flush().unwrap();
    node.restart();
    let mut expected = vec!["user3".to_owned()];
    expected.extend((0..20).map(|n| format!("user3:{n:02}")));
    for limit in [0, 1, 7, 21] {
        let partition_key = Some(b"user3".to_vec());
        let request = ScanRequest { partition_key, limit, ..ScanRequest::default() };
        assert_eq!(keys_of(&node, "lists", request), expected, "pages of {limit}");
    }
    let within = ScanRequest {
        partition_key: Some(b"user3".to_vec()),
        start: b"user3:05".to_vec(),
        end: b"user3:08".to_vec(),
        limit: 2,
        ..ScanRequest::default()
    };
    assert_eq!(keys_of(&node, "lists", within), ["user3:05", "user3:06", "user3:07"]);
    let prefix = ScanRequest { prefix: b"user3:1".to_vec(), ..ScanRequest::default() };
    assert_eq!(keys_of(&node, "lists", prefix), expected[11..21]);
}

/// A scan of the whole tenant meets each of its rows once, and no other tenant's.
#[test]
fn a_scan_of_a_tenant_meets_each_row_once() {
    let node = Node::new();
    fill(&node);
    for limit in [0, 1, 3, 10] {
        let keys = keys_of(&node, "lists", ScanRequest { limit, ..ScanRequest::default() });
        assert_eq!(keys.len(), 105, "pages of {limit}");
        assert_eq!(keys.iter().collect::<BTreeSet<_>>().len(), 105);
        assert!(keys.iter().all(|key| key.starts_with("user")));
    }
    let prefix = ScanRequest { prefix: b"user1".to_vec(), ..ScanRequest::default() };
    assert_eq!(keys_of(&node, "lists", prefix).len(), 21);
}

/// Deleted and expired rows are passed over; a page by bytes still goes on.
#[test]
fn rows_without_a_value_are_passed_over() {
    let node = Node::new();
    let ttl_ms = Some(1_000);
    for n in 0..10 {
        node.put("default", &format!("kept{n}"), &"v".repeat(100));
        node.put("default", &format!("deleted{n}"), "v");
        node.store().write("default", delete(&format!("deleted{n}"))).unwrap();
        let brief = Mutation { ttl_ms, ..put(&format!("expired{n}"), "v") };
        node.store().write("default", brief).unwrap();
    }
    node.clock.advance_ms(1_000);
    let request = ScanRequest { bytes_max: 250, ..ScanRequest::default() };
    let keys = keys_of(&node, "default", request);
    assert_eq!(keys.len(), 10);
    assert!(keys.iter().all(|key| key.starts_with("kept")));
}

/// Keys only means no bytes of values; the rest of the row is told.
#[test]
fn keys_only_leaves_the_values_out() {
    let node = Node::new();
    node.put("default", "k", "value");
    let request = ScanRequest { keys_only: true, ..ScanRequest::default() };
    let page = node.store().scan("default", &request).unwrap();
    assert_eq!(page.rows.len(), 1);
    assert!(page.rows[0].1.found() && page.rows[0].1.siblings[0].value.is_empty());
}

/// A cursor of another scan would skip rows without a word.
#[test]
fn a_foreign_or_altered_cursor_is_refused() {
    let node = Node::new();
    fill(&node);
    let request = ScanRequest { limit: 3, ..ScanRequest::default() };
    let cursor = node.store().scan("lists", &request).unwrap().cursor.unwrap();
    let with = |cursor: &[u8]| ScanRequest { cursor: Some(cursor.to_vec()), ..request.clone() };
    assert!(node.store().scan("lists", &with(&cursor)).is_ok());
    let mut altered = cursor.clone();
    *altered.last_mut().unwrap() ^= 1;
    let refused = [
        node.store().scan("default", &with(&cursor)),
        node.store().scan("lists", &ScanRequest { prefix: b"u".to_vec(), ..with(&cursor) }),
        node.store().scan("lists", &with(&altered)),
        node.store().scan("lists", &with(b"")),
        node.store().scan("lists", &with(b"\x02\0\0\0\0\0\0\0\0")),
    ];
    for page in refused {
        assert_eq!(page.unwrap_err().reason(), "INVALID_CURSOR");
    }
}

/// As one replica of several: a partition that has lost data is left to others, also where it looks
/// empty; alone it shows what is left.
#[test]
fn a_visit_ends_before_a_partition_that_has_lost_data() {
    let node = Node::new();
    fill(&node);
    let store = node.store();
    let plan = store.plan_scan("lists", &ScanRequest::default()).unwrap();
    let visit = |range: &KeyRange, on_damage| {
        let mut rows = 0;
        let bounds = PageBounds { rows: 0, bytes: 0 };
        let next = store.visit_rows(&plan.filter, range, bounds, on_damage, |_, _| {
            rows += 1;
            Ok(Some(1))
        });
        next.map(|next| (rows, next))
    };
    let partitions = store.engine.partitions();
    let start = |partition: u32| {
        (u64::from(partition) << (64 - partitions.trailing_zeros())).to_be_bytes().to_vec()
    };
    let (last, middle) = (partitions - 1, partitions / 2);
    for damaged in [last, middle] {
        store.mark_damaged(damaged..=damaged, &[7]).unwrap();
        let (rows, next) = visit(&plan.range, OnDamage::Stop).unwrap();
        assert_eq!(next, Some(start(damaged)));
        let (all, end) = visit(&plan.range, OnDamage::Show).unwrap();
        assert_eq!((all, end), (105, None));
        assert!(rows <= all);
        let behind = KeyRange { start: start(damaged), end: None };
        assert_eq!(visit(&behind, OnDamage::Stop).unwrap_err().reason(), "DAMAGED");
    }
}

/// Makes one page of a node with a row in partition 0 and one in 2, as one replica of several, and
/// `change`s the node at the first row. Returns the floors of the rows, and where to go on.
fn page_while(
    node: &Node,
    change: impl Fn(&Store, &dyn Fn(u32, &str) -> Vec<u8>),
) -> (Vec<u64>, Option<Vec<u8>>) {
    let store = node.store();
    let tenant = store.tenant("lww").unwrap();
    let key_in = |partition: u32, suffix: &str| {
        let mut keys = (0..).map(|n: u32| format!("{n}{suffix}").into_bytes());
        let is_in = |key: &Vec<u8>| {
            crate::engine::version::partition_of(&tenant.engine_key(key), 2) == partition as usize
        };
        keys.find(is_in).expect("there are many")
    };
    for partition in [0, 2] {
        let key = String::from_utf8(key_in(partition, "")).expect("text");
        node.put("lww", &key, "v");
    }
    let plan = store.plan_scan("lww", &ScanRequest::default()).unwrap();
    let (bounds, mut found) = (PageBounds { rows: 0, bytes: 0 }, Vec::new());
    let visit = |_: &EngineKey<'_>, row: FoundRow<'_>| {
        if found.is_empty() {
            // What is written from here on is in a memtable that the page does not look at.
            store.flush()?;
            change(store, &key_in);
        }
        found.push(row.floor);
        Ok(Some(1))
    };
    let next = store.visit_rows(&plan.filter, &plan.range, bounds, OnDamage::Stop, visit).unwrap();
    (found, next)
}

/// The rows of a page are of the moment in which it began: what an exchange has brought since is
/// not among them, so a partition that it mended is still left to others.
#[test]
fn a_partition_that_was_damaged_when_a_page_began_is_left_to_others() {
    use crate::causality::{Payload, Version, clock, codec};
    let node = Node::new();
    node.store().mark_damaged(2..=2, &[7]).unwrap();
    let (found, next) = page_while(&node, |store, key_in| {
        let mut row = Vec::new();
        let payload = Payload::Value { value: b"lost", content_type: "" };
        let version = Version::new(payload, 0, clock::time_of_ms(T0_MS));
        codec::encode_lww_version(Actor::new(7), &version, &mut row);
        let lost = [(store.tenant("lww").unwrap().id, key_in(2, "lost"), row)];
        store.repair(&lost, &[0]).remove(0).unwrap();
        store.mend(2, 7).unwrap();
    });
    assert_eq!((found.len(), next), (1, Some((2_u64 << 62).to_be_bytes().to_vec())));
}

/// Nor does a floor that was set since say anything of them.
#[test]
fn a_page_names_no_floor_that_is_younger_than_its_rows() {
    let node = Node::new();
    let (floors, next) = page_while(&node, |store, _| {
        store.engine.fence(0..=3, 5).unwrap();
        store.engine.set_floor(0..=3, 5).unwrap();
    });
    assert_eq!((floors, next), (vec![0, 0], None));
}

/// A cursor that stands beside another tenant's row does not name it.
#[test]
fn a_cursor_names_no_other_tenants_key() {
    use super::scan::next_start;
    let [low, mine, high] = [1, 2, 3].map(TenantId);
    for (other, expected) in [
        (low, EngineKey { token: 9, tenant: mine, key: b"" }.encode()),
        (high, 10u64.to_be_bytes().to_vec()),
    ] {
        let place = EngineKey { token: 9, tenant: other, key: b"secret" };
        let next = next_start(mine, &place, &place.encode()).unwrap();
        assert_eq!(next, expected);
        assert!(
            next > place.encode()
                && next <= EngineKey { tenant: mine, token: 10, key: b"a" }.encode()
        );
    }
    let last = EngineKey { token: u64::MAX, tenant: high, key: b"secret" };
    assert_eq!(next_start(mine, &last, &last.encode()), None);
}

/// What a replica streams arrives whole at another: same rows, same digests, tombstones included.
#[test]
fn rows_stream_from_one_replica_to_another() {
    let (from, to) = (Node::new(), Node::new());
    fill(&from);
    from.store().write("default", delete("other3")).unwrap();
    let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
    let all = |node: &Node| node.store().rows_by_token(whole, None, usize::MAX).unwrap().rows;
    let mut cursor = None;
    loop {
        let page = from.store().rows_by_token(whole, cursor, 1_000).unwrap();
        let rows = page.rows.iter().map(|(engine_key, row)| {
            let place = EngineKey::decode(engine_key).unwrap();
            (place.tenant, place.key.to_vec(), row.clone())
        });
        for joined in to.store().replicate(&rows.collect::<Vec<_>>()) {
            joined.unwrap();
        }
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(all(&from), all(&to));
    assert!(to.values("default", "other3").is_empty());
    assert_eq!(to.values("lists", "user2:07"), ["v"]);
    let half = TokenRange { start: 0, end_inclusive: u64::MAX / 2 };
    let rows = from.store().rows_by_token(half, None, usize::MAX).unwrap().rows;
    assert!(!rows.is_empty() && rows.len() < all(&from).len());
    assert!(
        rows.iter().all(|(key, _)| EngineKey::decode(key).unwrap().token <= half.end_inclusive)
    );
}

/// A visit meets what a page of rows has, ends behind the row that says so, and goes on there.
#[test]
fn rows_are_visited_where_a_page_would_have_them() {
    let node = Node::new();
    fill(&node);
    let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
    let mut pages = Vec::new();
    let mut cursor: Option<Vec<u8>> = None;
    loop {
        let mut visited = Vec::new();
        let visit = |key: &[u8], row: &[u8]| {
            visited.push((key.to_vec(), row.to_vec()));
            Ok(visited.len() < 3)
        };
        cursor = node.store().visit_by_token(whole, cursor.as_deref(), 1_000, visit).unwrap();
        assert!(visited.len() <= 3);
        pages.push(visited);
        if cursor.is_none() {
            break;
        }
    }
    let all = node.store().rows_by_token(whole, None, usize::MAX).unwrap().rows;
    assert_eq!(pages.concat(), all);
    let refuses = |_: &[u8], _: &[u8]| Err(Error::Closed);
    let refused = node.store().visit_by_token(whole, None, 1_000, refuses);
    assert!(matches!(refused, Err(Error::Closed)));
}

/// Rows of a peer are not clients' writes, but bytes from a network all the same.
#[test]
fn a_bad_row_of_a_peer_is_refused_alone() {
    use crate::causality::{Payload, Version, clock, codec};
    let node = Node::new();
    let row = |time| {
        let mut row = Vec::new();
        let payload = Payload::Value { value: b"v", content_type: "" };
        codec::encode_lww_version(Actor::new(7), &Version::new(payload, 0, time), &mut row);
        row
    };
    let (lww, default) =
        (node.store().tenant("lww").unwrap().id, node.store().tenant("default").unwrap().id);
    let now = clock::time_of_ms(T0_MS);
    let results = node.store().replicate(&[
        (lww, b"a".to_vec(), row(now)),
        (default, b"b".to_vec(), row(now)),
        (TenantId(99), b"c".to_vec(), row(now)),
        (lww, b"".to_vec(), row(now)),
        (lww, b"d".to_vec(), b"garbage".to_vec()),
        (lww, b"e".to_vec(), row(u64::MAX - 5)),
        (lww, b"f".to_vec(), row(now)),
    ]);
    let reasons: Vec<_> =
        results.iter().map(|r| r.as_ref().err().map_or("", Error::reason)).collect();
    assert_eq!(
        reasons,
        [
            "",
            "INVALID_ARGUMENT",
            "UNKNOWN_TENANT_ID",
            "EMPTY_KEY",
            "INVALID_ARGUMENT",
            "CLOCK_UNSAFE",
            "",
        ]
    );
    assert_eq!(node.values("lww", "f"), ["v"]);
    node.put("lww", "e", "mine");
}
