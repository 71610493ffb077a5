//! What a client sees of writes, deletes and expiry.

use super::super::environment::WallClock;
use super::*;
use crate::causality::{Payload, clock};

/// Concurrent writes stay until one that has seen them; a delete with their context ends them all.
#[test]
fn siblings_stay_until_somebody_has_seen_them() {
    let node = Node::new();
    node.put("default", "k", "x");
    let written = node.put("default", "k", "y");
    assert_eq!((written.siblings, written.duplicate), (2, false));
    assert_eq!(node.values("default", "k"), ["x", "y"]);
    let context = Some(node.context("default", "k"));
    node.store().write("default", Mutation { context, ..put("k", "z") }).unwrap();
    assert_eq!(node.values("default", "k"), ["z"]);
    let context = Some(node.context("default", "k"));
    node.store().write("default", Mutation { context, ..delete("k") }).unwrap();
    let row = node.store().read("default", b"k").unwrap();
    assert!(!row.found() && !row.deleted_concurrently);
    let context = Some(row.context);
    node.store().write("default", Mutation { context, ..put("k", "again") }).unwrap();
    let row = node.store().read("default", b"k").unwrap();
    assert_eq!((values(&row), row.deleted_concurrently), (vec!["again".to_owned()], false));
}

/// The context of a reply covers what its client has seen and its own write, never a sibling that
/// it has not read. Two clients that only ever write lose nothing to each other.
#[test]
fn the_context_of_a_reply_covers_no_sibling_that_was_not_read() {
    let node = Node::new();
    let first = node.put("default", "k", "mine 1");
    node.put("default", "k", "theirs");
    let context = Some(first.context);
    let second = node.store().write("default", Mutation { context, ..put("k", "mine 2") }).unwrap();
    assert_eq!(node.values("default", "k"), ["mine 2", "theirs"]);
    let context = Some(second.context);
    node.store().write("default", Mutation { context, ..put("k", "mine 3") }).unwrap();
    assert!(node.values("default", "k").contains(&"theirs".to_owned()));
}

/// Alone with a key, a client needs no read between its writes.
#[test]
fn the_context_of_a_reply_replaces_ones_own_write() {
    for tenant in ["default", "lww"] {
        let node = Node::new();
        let mut context = None;
        for value in ["a", "b", "c"] {
            let mutation = Mutation { context, ..put("k", value) };
            context = Some(node.store().write(tenant, mutation).unwrap().context);
            assert_eq!(node.values(tenant, "k"), [value]);
        }
    }
}

/// Without a context a delete covers what the node holds; a later write is not hurt by it.
#[test]
fn a_delete_without_context_covers_what_is_there() {
    for tenant in ["default", "lww"] {
        let node = Node::new();
        node.put(tenant, "k", "x");
        node.put(tenant, "k", "y");
        let deleted = node.store().write(tenant, delete("k")).unwrap();
        assert_eq!(deleted.siblings, 0);
        assert!(node.values(tenant, "k").is_empty());
        node.put(tenant, "k", "z");
        assert_eq!(node.values(tenant, "k"), ["z"]);
    }
}

/// A write that had not seen the delete, and a delete that had not seen the write: both are told.
#[test]
fn a_concurrent_delete_is_reported_beside_the_value() {
    let node = Node::new();
    node.put("default", "k", "x");
    let context = node.context("default", "k");
    let seen = || Some(context.clone());
    node.store().write("default", Mutation { context: seen(), ..put("k", "y") }).unwrap();
    node.store().write("default", Mutation { context: seen(), ..delete("k") }).unwrap();
    let row = node.store().read("default", b"k").unwrap();
    assert_eq!((values(&row), row.deleted_concurrently), (vec!["y".to_owned()], true));
}

#[test]
fn an_expired_value_is_gone_at_once_and_stays_gone() {
    for tenant in ["default", "lww"] {
        let mut node = Node::new();
        let ttl_ms = Some(1_000);
        node.store().write(tenant, Mutation { ttl_ms, ..put("k", "x") }).unwrap();
        node.clock.advance_ms(999);
        let row = node.store().read(tenant, b"k").unwrap();
        assert_eq!(row.siblings[0].expires_at_ms, T0_MS + 1_000);
        node.clock.advance_ms(1);
        assert!(node.values(tenant, "k").is_empty());
        node.restart();
        assert!(node.values(tenant, "k").is_empty());
        node.put(tenant, "k", "y");
        assert_eq!(node.values(tenant, "k"), ["y"]);
    }
}

/// Blind writes with a short life must not fill the row with what nobody can see.
#[test]
fn expired_siblings_do_not_count() {
    let node = Node::new();
    for n in 0..200 {
        let ttl_ms = Some(1_000);
        let mutation = Mutation { ttl_ms, ..put("k", &n.to_string()) };
        node.store().write("default", mutation).unwrap();
        node.clock.advance_ms(500);
    }
    assert_eq!(node.values("default", "k").len(), 1);
}

/// With the wall clock set back, writes still come after what they replace.
#[test]
fn the_last_write_wins_even_with_the_clock_set_back() {
    let mut node = Node::new();
    node.put("lww", "k", "x");
    node.clock.set_ms(T0_MS - 1_000_000);
    node.put("lww", "k", "y");
    assert_eq!(node.values("lww", "k"), ["y"]);
    node.crash(1);
    node.clock.set_ms(T0_MS - 2_000_000);
    node.put("lww", "k", "z");
    assert_eq!(node.values("lww", "k"), ["z"]);
}

/// A row from a node whose clock is ahead: a client that has read it wins over it, a client that
/// has not may lose.
#[test]
fn a_last_write_never_loses_to_what_its_client_has_seen() {
    use crate::causality::{Version, clock, codec};
    let node = Node::new();
    let ahead = clock::time_of_ms(T0_MS + 1_500);
    let mut row = Vec::new();
    let payload = Payload::Value { value: b"ahead", content_type: "" };
    codec::encode_lww_version(Actor::new(77), &Version::new(payload, 0, ahead), &mut row);
    let tenant = node.store().tenant("lww").unwrap().id;
    node.store().replicate(&[(tenant, b"k".to_vec(), row)]).remove(0).unwrap();
    assert_eq!(node.values("lww", "k"), ["ahead"]);
    let context = Some(node.context("lww", "k"));
    node.store().write("lww", Mutation { context, ..put("k", "mine") }).unwrap();
    assert_eq!(node.values("lww", "k"), ["mine"]);
}

fn lww_row(value: &str, time_ms: u64) -> Vec<u8> {
    use crate::causality::{Version, clock, codec};
    let payload = Payload::Value { value: value.as_bytes(), content_type: "" };
    let version = Version::new(payload, 0, clock::time_of_ms(time_ms));
    let mut row = Vec::new();
    codec::encode_lww_version(Actor::new(77), &version, &mut row);
    row
}

/// A write is above what this node holds, also one that reads nothing, and also on a node that has
/// minted nothing for so long that its lease has run out.
#[test]
fn a_last_write_never_loses_to_what_its_node_has_held_before() {
    let node = Node::new();
    node.put("lww", "other", "v");
    node.clock.advance_ms(60_000);
    let tenant = node.store().tenant("lww").unwrap().id;
    for ahead_ms in [5_000, 9_000, 30_000] {
        let row = lww_row("ahead", node.clock.now_ms() + ahead_ms);
        node.store().replicate(&[(tenant, b"k".to_vec(), row)]).remove(0).unwrap();
        assert_eq!(node.values("lww", "k"), ["ahead"]);
        node.put("lww", "k", "mine");
        assert_eq!(node.values("lww", "k"), ["mine"]);
    }
    // No row keeps a node from writing: one so far ahead that this clock could not follow is not
    // followed.
    let row = lww_row("far", node.clock.now_ms() + minter::AHEAD_MS_MAX);
    node.store().replicate(&[(tenant, b"k".to_vec(), row)]).remove(0).unwrap();
    node.put("lww", "l", "mine");
}

/// A node that was started anew without a clean end runs ahead of its wall clock for a while. What
/// clients are given by it is good at every other node.
#[test]
fn a_context_of_a_node_that_runs_ahead_is_taken_by_others() {
    for tenant in ["default", "lww"] {
        let mut options = StoreOptions::default();
        options.identity.cluster_id = Some(7);
        let (mut one, other) = (Node::with(options.clone()), Node::with(options));
        for seed in 0..3 {
            one.crash(seed);
        }
        let written = one.put(tenant, "k", "x");
        assert!(clock::ms_of_time(written.hlc) > T0_MS + 2_000, "it runs ahead");
        for context in [written.context, one.context(tenant, "k")] {
            let context = Some(context);
            other.store().write(tenant, Mutation { context, ..put("k", "y") }).expect("taken");
        }
        let row = other.store().read(tenant, b"k").unwrap();
        assert!(row.siblings.iter().all(|one| one.hlc > written.hlc));
    }
}

/// But no context is taken that no row could be from: it would mute an actor for so long.
#[test]
fn a_context_of_a_time_that_no_row_may_have_is_refused() {
    let (node, ahead) = (Node::new(), Node::new());
    let context_at = |ahead_ms: u64| {
        ahead.clock.set_ms(T0_MS + ahead_ms);
        let mut ahead = ahead.like();
        ahead.start();
        ahead.put("default", "k", "x").context
    };
    for (ahead_ms, is_taken) in [(0, true), (3_000_000, true), (4_000_000, false)] {
        let context = Some(context_at(ahead_ms));
        let written = node.store().write("default", Mutation { context, ..put("k", "y") });
        let reason = written.map(drop).map_err(|error| error.reason());
        let expected = if is_taken { Ok(()) } else { Err("INVALID_CONTEXT") };
        assert_eq!(reason, expected, "{ahead_ms}");
    }
}

/// Every limit is refused by its own name, and nothing of the write appears.
#[test]
fn each_limit_is_refused_by_name() {
    let limits =
        Limits { value_bytes_max: 100, siblings_max: 3, siblings_warn: 2, ..Limits::default() };
    let node = Node::with(StoreOptions { limits, ..StoreOptions::default() });
    let long = "k".repeat(4097);
    let typed = Mutation { content_type: "t".repeat(256), ..put("k", "v") };
    let keyed = |len: usize| Mutation { idempotency_key: Some(vec![0; len]), ..put("k", "v") };
    let lives = |ttl_ms| Mutation { ttl_ms: Some(ttl_ms), ..put("k", "v") };
    let table: Vec<(Mutation, &str)> = vec![
        (put("", "v"), "EMPTY_KEY"),
        (put(&long, "v"), "KEY_TOO_LONG"),
        (put("k", &"v".repeat(101)), "VALUE_TOO_LONG"),
        (typed, "CONTENT_TYPE_TOO_LONG"),
        (keyed(0), "INVALID_IDEMPOTENCY_KEY"),
        (keyed(65), "INVALID_IDEMPOTENCY_KEY"),
        (lives(0), "INVALID_TTL"),
        (lives(u64::MAX), "INVALID_TTL"),
        (Mutation { ttl_ms: Some(5), ..delete("k") }, "INVALID_ARGUMENT"),
        (Mutation { context: Some(vec![1; 70_000]), ..put("k", "v") }, "INVALID_CONTEXT"),
    ];
    for (mutation, reason) in table {
        for tenant in ["default", "lww"] {
            let refused = node.store().write(tenant, mutation.clone()).unwrap_err();
            assert_eq!((refused.reason(), refused.outcome()), (reason, Outcome::NotApplied));
        }
    }
    assert!(node.values("default", "k").is_empty() && node.values("lww", "k").is_empty());
    let unknown = node.store().write("nobody", put("k", "v")).unwrap_err();
    assert_eq!(unknown.reason(), "UNKNOWN_TENANT");
    assert_eq!(node.store().read("No", b"k").unwrap_err().reason(), "INVALID_TENANT_NAME");
    assert_eq!(node.store().read("default", b"").unwrap_err().reason(), "EMPTY_KEY");
    let many = node.store().write_batch("default", vec![put("k", "v"); 1001]);
    assert!(many.iter().all(|r| r.as_ref().is_err_and(|e| e.reason() == "BATCH_TOO_LARGE")));
}

/// A row full of siblings takes no more, except from one who resolves some.
#[test]
fn a_full_row_takes_only_what_resolves_it() {
    let limits = Limits { siblings_max: 3, siblings_warn: 2, ..Limits::default() };
    let node = Node::with(StoreOptions { limits, ..StoreOptions::default() });
    let warned: Vec<bool> =
        ["a", "b", "c"].iter().map(|v| node.put("default", "k", v).sibling_warning).collect();
    assert_eq!(warned, [false, true, true]);
    let context = Some(node.context("default", "k"));
    let full = node.store().write("default", put("k", "d")).unwrap_err();
    assert!(matches!(full, Error::TooManySiblings { found: 4, limit: 3 }), "{full}");
    node.store().write("default", Mutation { context, ..put("k", "e") }).unwrap();
    assert_eq!(node.values("default", "k"), ["e"]);
}

#[test]
fn a_row_beyond_its_size_is_refused() {
    let limits = Limits { value_bytes_max: 60_000, row_bytes_max: 130_000, ..Limits::default() };
    let node = Node::with(StoreOptions { limits, ..StoreOptions::default() });
    let value = "v".repeat(60_000);
    node.put("default", "k", &value);
    node.put("default", "k", &value);
    let refused = node.store().write("default", put("k", &value)).unwrap_err();
    assert_eq!(refused.reason(), "ROW_TOO_LARGE");
    let context = Some(node.context("default", "k"));
    node.store().write("default", Mutation { context, ..put("k", &value) }).unwrap();
}

/// A context that was altered, made for another key or tenant, or is from the future would delete
/// what nobody has seen.
#[test]
fn a_forged_context_is_refused() {
    let node = Node::new();
    for tenant in ["default", "lww"] {
        node.put(tenant, "k", "x");
        let context = node.context(tenant, "k");
        let give = |key: &str, context: Vec<u8>| {
            let context = Some(context);
            node.store().write(tenant, Mutation { context, ..put(key, "y") })
        };
        let mut bad = context.clone();
        *bad.last_mut().unwrap() ^= 1;
        let cut = context[..context.len() - 1].to_vec();
        for (key, context) in [("k", bad), ("k", cut), ("k", Vec::new()), ("l", context.clone())] {
            assert_eq!(give(key, context).unwrap_err().reason(), "INVALID_CONTEXT");
        }
        assert_eq!(node.values(tenant, "k"), ["x"]);
        node.clock.set_ms(T0_MS - 3_600_000);
        give("k", context).expect("the node's own clock has been there");
        node.clock.set_ms(T0_MS);
    }
}

/// Items of a batch are independent: one that is refused keeps no other out, and the order of the
/// outcomes is that of the batch.
#[test]
fn each_item_of_a_batch_has_its_own_outcome() {
    for tenant in ["default", "lww"] {
        let node = Node::new();
        let token = Mutation { idempotency_key: Some(b"t".to_vec()), ..put("b", "2") };
        let batch = vec![put("a", "1"), put("", "x"), token, delete("c"), put("a", "3")];
        let results = node.store().write_batch(tenant, batch);
        let refused: Vec<bool> = results.iter().map(Result::is_err).collect();
        assert_eq!(refused, [false, true, false, false, false]);
        assert_eq!(node.values(tenant, "b"), ["2"]);
        let both = node.values(tenant, "a");
        assert_eq!(both, if tenant == "lww" { vec!["3"] } else { vec!["1", "3"] });
        let keys = [b"a".to_vec(), Vec::new(), b"c".to_vec()];
        let Early { found: rows, .. } = node.store().peek_batch(tenant, &keys);
        assert!(rows[0].as_ref().unwrap().found() && rows[1].is_err());
        assert!(!rows[2].as_ref().unwrap().found());
    }
}

/// The asynchronous door answers every item once, also when nothing could be written.
#[test]
fn submit_answers_once() {
    let node = Node::new();
    for (tenant, expected) in [("default", [true, false]), ("nobody", [false, false])] {
        let (told, outcomes) = std::sync::mpsc::channel();
        let done = Box::new(move |results: Vec<Result<Written>>| {
            told.send(results.iter().map(Result::is_ok).collect::<Vec<_>>()).unwrap();
        });
        node.store().submit(tenant, vec![put("a", "1"), put("", "2")], done);
        assert_eq!(outcomes.recv().unwrap(), expected);
        assert!(outcomes.recv().is_err(), "dropped after one answer");
    }
}

/// Who submits is a thread of an async runtime: with no room before a flush it is refused at once,
/// by name and with nothing done, and does not wait for the flush, let alone do it.
#[test]
fn submit_refuses_where_a_write_would_wait() {
    for tenant in ["default", "lww"] {
        let node = Node::new();
        let submit = |key: String| {
            let (told, outcomes) = std::sync::mpsc::channel();
            let done = Box::new(move |mut results: Vec<Result<Written>>| {
                told.send(results.remove(0)).unwrap();
            });
            node.store().submit(tenant, vec![put(&key, &"v".repeat(16 << 10))], done);
            outcomes.recv().unwrap()
        };
        let refused =
            (0..500).find_map(|n| submit(format!("key{n}")).err().map(|error| (n, error)));
        let (n, error) = refused.expect("nobody flushes");
        assert_eq!((error.reason(), error.outcome()), ("OVERLOADED", Outcome::NotApplied));
        assert!(node.values(tenant, &format!("key{n}")).is_empty(), "refused means not there");
        assert_eq!(node.store().stats().engine.stalls, 0, "nobody waited");
        assert_eq!(node.store().pressure(), 1.0, "so the next is refused at the door");

        node.store().write(tenant, put("patient", "v")).expect("a write waits for room");
        node.settle();
        submit(format!("key{n}")).expect("there is room");
    }
}

#[test]
fn a_closed_store_takes_no_writes() {
    let node = Node::new();
    node.store().close().unwrap();
    let refused = node.store().write("default", put("k", "v")).unwrap_err();
    assert_eq!((refused.reason(), refused.outcome()), ("CLOSED", Outcome::NotApplied));
}

/// Each unclean start takes a new actor, or an acknowledged write could die elsewhere; a clean one
/// need not.
#[test]
fn an_unclean_start_takes_a_new_actor() {
    let mut node = Node::new();
    let first = node.store().actor();
    node.restart();
    assert_eq!(node.store().actor(), first);
    node.crash(3);
    assert_ne!(node.store().actor(), first);
}

/// Writes of a byte each may be writes to rows of megabytes: a batch of them changes what it may,
/// some at a time, and refuses the rest.
#[test]
fn a_small_batch_does_not_take_memory_without_bound() {
    const ROW_BYTES: usize = 3 << 20;
    let mut node = Node::new();
    let engine = &mut node.options.engine;
    (engine.log_segment_bytes, engine.memtable_bytes) = (64 << 20, 512 << 20);
    node.restart();
    for n in 0..3 {
        node.put("default", "large", &n.to_string().repeat(1 << 20));
    }
    let small = Mutation { idempotency_key: Some(b"small".to_vec()), ..put("large", "small") };
    node.store().write("default", small.clone()).unwrap();

    let frames = || node.store().engine.stats().log.frames;
    let before = frames();
    let written = node.store().write_batch("default", vec![small.clone(); 20]);
    assert!(written.into_iter().all(|one| one.unwrap().duplicate));
    // Twenty rows fit into a segment; 16 MiB of them are held at a time.
    assert_eq!(frames() - before, 4);

    // Those of other replicas are held until they are sent.
    let prepared = node.store().prepare("default", &vec![small; 40]);
    let shipped: usize = prepared.rows.iter().map(|row| row.row.len()).sum();
    assert!((64 << 20..(64 << 20) + 2 * ROW_BYTES).contains(&shipped), "{shipped}");
    let taken = prepared.results.iter().take_while(|one| one.is_ok()).count();
    assert_eq!(taken, prepared.rows.len());
    for refused in &prepared.results[taken..] {
        let refused = refused.as_ref().unwrap_err();
        let expected = ("BATCH_ROWS_TOO_LARGE", Outcome::NotApplied);
        assert_eq!((refused.reason(), refused.outcome()), expected);
    }
}
