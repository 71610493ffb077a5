//! What is in memory and not synced: who is told of it, and when.
//!
//! The engine of these stores has no threads: whoever waits for the log syncs it.

use std::sync::mpsc::channel;

use super::*;
use crate::engine::vfs::fault::{Fault, FaultVfs, Operation};
use crate::engine::{Position, without_rules};

const TENANTS: [&str; 2] = ["default", "lww"];
const RULE: [&str; 1] = ["reads_of_what_is_synced"];

fn tokened(key: &str, value: &str) -> Mutation {
    Mutation { idempotency_key: Some(b"t".to_vec()), ..put(key, value) }
}

/// A node, and a write in its memory: with its rules and without the one.
fn with_and_without(tenant: &str, mutation: &Mutation) -> [Node; 2] {
    [Node::new(), without_rules(&RULE, Node::new)].map(|node| {
        let prepared = node.store().prepare(tenant, std::slice::from_ref(mutation));
        assert!(prepared.results[0].is_ok() && lost(&node, tenant, "k"));
        node
    })
}

/// Whether a power loss now may leave nothing under the key.
fn lost(node: &Node, tenant: &str, key: &str) -> bool {
    (0..10).any(|seed| {
        let (vfs, clock) = (node.vfs.crash_clone(seed), node.clock.clone());
        let options = node.options.clone();
        let mut after = Node { vfs, clock, starts: node.starts, options, store: None };
        after.start();
        after.values(tenant, key).is_empty()
    })
}

type Read = fn(&Store, &str);

/// Every way to read the key "k" that waits by itself.
const WAYS: [(&str, Read); 7] = [
    ("read", |store, tenant| assert!(store.read(tenant, b"k").unwrap().found())),
    ("scan", |store, tenant| {
        let page = store.scan(tenant, &ScanRequest::default()).unwrap();
        assert_eq!(page.rows.len(), 1);
    }),
    ("rows_by_token", |store, _| {
        let all = TokenRange { start: 0, end_inclusive: u64::MAX };
        assert_eq!(store.rows_by_token(all, None, 1).unwrap().rows.len(), 1);
    }),
    ("rows_within", |store, _| {
        let all = KeyRange::of_tokens(0, u64::MAX);
        assert_eq!(store.rows_within(&all, 1).unwrap().rows.len(), 1);
    }),
    ("visit_by_token", |store, _| {
        let (all, mut rows) = (TokenRange { start: 0, end_inclusive: u64::MAX }, 0);
        let count = |_: &[u8], _: &[u8]| {
            rows += 1;
            Ok(true)
        };
        assert!(store.visit_by_token(all, None, 1, count).unwrap().is_some());
        assert_eq!(rows, 1);
    }),
    ("raw_row", |store, tenant| {
        let tenant = store.tenant(tenant).unwrap().id;
        assert!(store.raw_row(tenant, b"k").unwrap().row.is_some());
    }),
    ("damaged_row", |store, tenant| {
        let tenant = store.tenant(tenant).unwrap().id;
        assert!(store.damaged_row(tenant, b"k").unwrap().row.is_some());
    }),
];

/// What was read is there after a power loss. Without the rule it may be gone.
#[test]
fn what_a_store_has_shown_it_does_not_lose() {
    for tenant in TENANTS {
        for (name, read) in WAYS {
            let [with, without] = with_and_without(tenant, &put("k", "x"));
            read(with.store(), tenant);
            assert!(!lost(&with, tenant, "k"), "{tenant}, {name}");
            read(without.store(), tenant);
            assert!(lost(&without, tenant, "k"), "{tenant}, {name}: the rule does nothing");
        }
    }
}

/// Who must not block is told what to wait for, and other rows are told at once.
#[test]
fn a_peek_says_whether_it_may_be_told() {
    for tenant in TENANTS {
        let node = Node::new();
        node.put(tenant, "durable", "x");
        let position = node.store().prepare(tenant, &[put("k", "x")]).position;
        let id = node.store().tenant(tenant).unwrap().id;
        let peeks = |keys: &[&[u8]]| {
            let raw: Vec<(TenantId, &[u8])> = keys.iter().map(|key| (id, *key)).collect();
            let one = node.store().peek(tenant, keys[keys.len() - 1]);
            [
                one.upto,
                node.store().peek_batch(tenant, keys).upto,
                node.store().peek_raw_rows(&raw).upto,
            ]
        };
        assert_eq!(peeks(&[b"durable", b"k"]), [position; 3]);
        // One of them is refused: then each is read by itself.
        assert_eq!(node.store().peek_batch(tenant, &[b"" as &[u8], b"k"]).upto, position);
        assert_eq!(peeks(&[b"none", b"durable"]), [Position::ZERO; 3]);
        let (tell, told) = channel();
        node.store().on_durable(position, move |durable| tell.send(durable).unwrap());
        told.recv().unwrap().unwrap();
        assert!(!lost(&node, tenant, "k"));
        assert_eq!(peeks(&[b"durable", b"k"]), [Position::ZERO; 3]);
    }
}

/// Hands in a write; what its writer was told.
fn submit(node: &Node, tenant: &str, mutation: Mutation) -> Result<Written> {
    let (tell, told) = channel();
    node.store().submit(tenant, vec![mutation], Box::new(move |all| tell.send(all).unwrap()));
    told.recv().unwrap().remove(0)
}

/// The answer to a retry tells of the first attempt, which nobody may have been told of. One that
/// is refused, because its key was used for another value, tells of it too.
#[test]
fn what_a_retry_is_told_does_not_get_lost() {
    for tenant in TENANTS {
        let [with, _] = with_and_without(tenant, &tokened("k", "x"));
        assert!(submit(&with, tenant, tokened("k", "x")).unwrap().duplicate);
        assert!(!lost(&with, tenant, "k"), "{tenant}: a duplicate");

        let [with, without] = with_and_without(tenant, &tokened("k", "x"));
        let refused = submit(&with, tenant, tokened("k", "y")).unwrap_err();
        assert_eq!(refused.reason(), "IDEMPOTENCY_CONFLICT");
        assert!(!lost(&with, tenant, "k"), "{tenant}: a conflict");
        submit(&without, tenant, tokened("k", "y")).unwrap_err();
        assert!(lost(&without, tenant, "k"), "{tenant}: the rule does nothing");

        let [with, _] = with_and_without(tenant, &tokened("k", "x"));
        with.store().write(tenant, tokened("k", "y")).unwrap_err();
        assert!(!lost(&with, tenant, "k"), "{tenant}: a conflict, for who waits");
    }
}

/// A row that is full, so that a write without a context is refused, is full after a power loss.
#[test]
fn siblings_that_a_write_was_refused_for_are_there() {
    let mut options = StoreOptions::default();
    (options.limits.siblings_max, options.limits.siblings_warn) = (1, 1);
    let node = Node::with(options);
    node.store().prepare("default", &[put("k", "x")]).results.remove(0).unwrap();
    let refused = submit(&node, "default", put("k", "y")).unwrap_err();
    assert_eq!(refused.reason(), "TOO_MANY_SIBLINGS");
    assert!(!lost(&node, "default", "k"));
}

/// What a log may have lost nobody is told, not even by a refusal.
#[test]
fn a_log_that_fails_shows_nothing_of_what_it_held() {
    for tenant in TENANTS {
        let node = Node::new();
        let disk = FaultVfs::new(Arc::new(node.like().vfs));
        let environment = Environment::simulated(Arc::new(disk.clone()), &node.clock, 9);
        let open = || Store::open_in(Path::new(DIR), node.options.clone(), environment.clone());
        let store = open().unwrap();
        store.prepare(tenant, &[tokened("k", "x")]).results.remove(0).unwrap();
        let prepared = store.prepare(tenant, &[tokened("k", "y"), delete("")]);
        assert!(prepared.tells_of_rows());
        let fault = Fault { operation: Some(Operation::SyncData), ..Fault::default() };
        disk.inject(fault);
        store.read(tenant, b"k").unwrap_err();
        let refused = store.write(tenant, tokened("k", "y")).unwrap_err();
        assert_eq!(refused.reason(), "READ_ONLY");
        let results = prepared.settled(Err(refused)).results;
        let reasons = results.iter().map(|result| result.as_ref().unwrap_err().reason());
        assert_eq!(reasons.collect::<Vec<_>>(), ["READ_ONLY", "EMPTY_KEY"]);
    }
}
