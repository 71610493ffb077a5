//! The same write, sent again.

use super::super::environment::WallClock;
use super::*;

fn tokened(key: &str, value: &str, token: &str) -> Mutation {
    Mutation { idempotency_key: Some(token.into()), ..put(key, value) }
}

/// A retry after a crash finds itself, in both modes, and does not undo what came after it.
#[test]
fn a_retry_is_the_same_write_across_a_crash() {
    for tenant in ["default", "lww"] {
        let mut node = Node::new();
        let first = node.store().write(tenant, tokened("k", "x", "t")).unwrap();
        assert!(!first.duplicate);
        node.crash(7);
        let retry = node.store().write(tenant, tokened("k", "x", "t")).unwrap();
        assert!(retry.duplicate);
        assert_eq!((retry.hlc, node.values(tenant, "k")), (first.hlc, vec!["x".to_owned()]));
        let context = Some(retry.context);
        node.store().write(tenant, Mutation { context, ..put("k", "y") }).unwrap();
        node.store().flush().unwrap();
        node.restart();
        assert!(node.store().write(tenant, tokened("k", "x", "t")).unwrap().duplicate);
        assert_eq!(node.values(tenant, "k"), ["y"]);
    }
}

/// Deletes take tokens too: the retry of one does not delete what was written after it.
#[test]
fn a_retried_delete_deletes_once() {
    for tenant in ["default", "lww"] {
        let node = Node::new();
        node.put(tenant, "k", "x");
        let gone = Mutation { idempotency_key: Some(b"d".to_vec()), ..delete("k") };
        assert!(!node.store().write(tenant, gone.clone()).unwrap().duplicate);
        let context = Some(node.context(tenant, "k"));
        node.store().write(tenant, Mutation { context, ..put("k", "y") }).unwrap();
        assert!(node.store().write(tenant, gone).unwrap().duplicate);
        assert_eq!(node.values(tenant, "k"), ["y"]);
    }
}

/// Nor does the next write of its client, who has seen nothing of it: the context that the retry
/// gives covers what the first attempt did, and no more.
#[test]
fn the_context_of_a_retried_delete_covers_nothing_that_was_written_since() {
    for seen in [false, true] {
        let node = Node::new();
        node.put("default", "k", "x");
        let gone = Mutation { idempotency_key: Some(b"d".to_vec()), ..delete("k") };
        node.store().write("default", gone.clone()).unwrap();
        let context = seen.then(|| node.context("default", "k"));
        node.store().write("default", Mutation { context, ..put("k", "y") }).unwrap();
        let again = node.store().write("default", gone).unwrap();
        assert!(again.duplicate);
        let context = Some(again.context);
        node.store().write("default", Mutation { context, ..put("k", "z") }).unwrap();
        assert_eq!(node.values("default", "k"), ["y", "z"]);
        let row = node.store().read("default", b"k").unwrap();
        assert!(!row.deleted_concurrently, "its own delete is replaced");
    }
}

/// One key for two different writes is a client's mistake, and is named so. Another row is another
/// write.
#[test]
fn another_value_under_the_same_token_is_a_conflict() {
    for tenant in ["default", "lww"] {
        let node = Node::new();
        node.store().write(tenant, tokened("k", "x", "t")).unwrap();
        let refused = node.store().write(tenant, tokened("k", "y", "t")).unwrap_err();
        assert_eq!(refused.reason(), "IDEMPOTENCY_CONFLICT");
        assert_eq!(node.values(tenant, "k"), ["x"]);
        assert!(!node.store().write(tenant, tokened("l", "y", "t")).unwrap().duplicate);
    }
}

/// Two nodes write a last-write-wins key in the same moment: the retry of the write that lost was
/// made, whatever the winner's value is.
#[test]
fn a_retry_is_no_conflict_with_another_nodes_write_of_the_same_time() {
    for with_token in [false, true] {
        let (a, mut b) = (Node::new(), Node::new());
        b.crash(1);
        // Both clocks are at the same time of day, beyond what the crash has cost the one.
        [&a, &b].iter().for_each(|node| node.clock.advance_ms(60_000));
        let actor = |node: &Node| node.store().identity().actor;
        assert_ne!(actor(&a), actor(&b));
        let [loser, winner] = if actor(&a) < actor(&b) { [&a, &b] } else { [&b, &a] };
        let writes = [("x", "t"), ("y", "u")].map(|(value, token)| tokened("k", value, token));
        let mut prepared = Vec::new();
        for (node, write) in [loser, winner].iter().zip(&writes) {
            let mut write = write.clone();
            if !with_token && write.value == Some(b"y".to_vec()) {
                write.idempotency_key = None;
            }
            prepared.push(node.store().prepare("lww", &[write]));
        }
        let times = [0, 1].map(|at: usize| prepared[at].results[0].as_ref().unwrap().hlc);
        assert_eq!(times[0] == times[1], with_token, "{times:?}");
        for (to, from) in [(loser, &prepared[1]), (winner, &prepared[0])] {
            let row = &from.rows[0];
            let sent = [(row.tenant, row.key.clone(), row.row.clone())];
            to.store().replicate(&sent).remove(0).unwrap();
        }
        assert_eq!(a.values("lww", "k"), b.values("lww", "k"));
        for node in [&a, &b] {
            for write in writes.iter().take(1 + usize::from(with_token)) {
                let retry = node.store().write("lww", write.clone()).unwrap();
                assert!(retry.duplicate, "{with_token}");
            }
        }
    }
}

/// Two items of a batch with one token are one write.
#[test]
fn a_token_twice_in_a_batch_is_one_write() {
    for tenant in ["default", "lww"] {
        let node = Node::new();
        let batch = vec![tokened("k", "x", "t"), tokened("k", "x", "t")];
        let results = node.store().write_batch(tenant, batch);
        let duplicates: Vec<bool> = results.iter().map(|r| r.as_ref().unwrap().duplicate).collect();
        assert_eq!(duplicates, [false, true]);
        assert_eq!(node.values(tenant, "k"), ["x"]);
    }
}

/// After the window the row has forgotten the token, so a key that says its age is refused.
#[test]
fn a_key_with_a_birth_time_is_refused_after_its_window() {
    let node = Node::new();
    let born = format!("{T0_MS:012x}");
    let uuid = format!("{}-{}-7abc-8d01-020304050607", &born[..8], &born[8..]);
    let write = Mutation { idempotency_key: Some(uuid.into_bytes()), ..put("k", "x") };
    node.store().write("default", write.clone()).unwrap();
    node.clock.advance_ms(3_600_000);
    assert!(node.store().write("default", write.clone()).unwrap().duplicate);
    node.clock.advance_ms(24 * 3_600_000);
    let refused = node.store().write("default", write).unwrap_err();
    assert_eq!(refused.reason(), "TOKEN_EXPIRED");
}

/// Writes `key` so often under idempotency keys that its row forgets the oldest ones, each write in
/// a millisecond of its own and with the context of the one before. Returns the last context.
fn overwrite(node: &Node, tenant: &str, key: &str) -> Vec<u8> {
    let mut context = None;
    for n in 0..1_100 {
        node.clock.advance_ms(1);
        let write = Mutation { context, ..tokened(key, "v", &n.to_string()) };
        context = Some(node.store().write(tenant, write).unwrap().context);
    }
    context.expect("written")
}

/// A delete of an old version and of more tokens than a row remembers: what it deletes stays so,
/// after a crash that brings back the records which the delete was made from, and on a replica
/// that gets the delete alone.
#[test]
fn a_row_that_forgets_tokens_forgets_no_delete() {
    let mut node = Node::new();
    node.store().write("default", tokened("k", "old", "old")).unwrap();
    overwrite(&node, "default", "k");
    assert_eq!(node.values("default", "k"), ["old", "v"]);
    node.store().flush().unwrap();
    let mut replica = node.like();
    replica.start();
    let context = Some(node.context("default", "k"));
    let batch = [Mutation { context, ..delete("k") }];
    let prepared = node.store().prepare("default", &batch);
    assert!(prepared.results[0].is_ok());
    let row = &prepared.rows[0];
    let sent = [(row.tenant, row.key.clone(), row.row.clone())];
    replica.store().replicate(&sent).pop().unwrap().unwrap();
    assert_eq!(replica.values("default", "k"), [""; 0]);
    let (told, durable) = std::sync::mpsc::channel();
    node.store().on_durable(prepared.position, move |result| told.send(result).unwrap());
    durable.recv().unwrap().unwrap();
    assert_eq!(node.values("default", "k"), [""; 0]);
    node.crash(7);
    assert_eq!(node.values("default", "k"), [""; 0]);
}

/// A key that says its age is recognised or refused, also where the row had to forget it within
/// its window: taken for a new write it would undo what came after it. The clock of its client may
/// be right, or ahead.
#[test]
fn a_retry_that_was_forgotten_early_is_refused() {
    let uuid = |node: &Node, ahead_ms: u64| {
        let born = format!("{:012x}", node.clock.now_ms() + ahead_ms);
        format!("{}-{}-7abc-8d01-020304050607", &born[..8], &born[8..])
    };
    for (tenant, ahead_ms) in [("default", 0), ("lww", 0), ("default", 1_500), ("lww", 1_500)] {
        let node = Node::new();
        let early = tokened("k", "early", &uuid(&node, ahead_ms));
        let context = Some(node.store().write(tenant, early.clone()).unwrap().context);
        assert!(node.store().write(tenant, early.clone()).unwrap().duplicate);
        node.clock.advance_ms(1);
        node.store().write(tenant, Mutation { context, ..put("k", "v") }).unwrap();
        let context = overwrite(&node, tenant, "k");
        let refused = node.store().write(tenant, early).unwrap_err();
        assert_eq!(refused.reason(), "TOKEN_EXPIRED");
        // By its birth a new one cannot be told from those either before their time has passed.
        node.clock.advance_ms(node.options.limits.clock_skew_ms_max);
        let uuid = uuid(&node, ahead_ms);
        let write = Mutation { context: Some(context), ..tokened("k", "new", &uuid) };
        assert!(!node.store().write(tenant, write.clone()).unwrap().duplicate);
        assert!(node.store().write(tenant, write).unwrap().duplicate);
        assert!(!node.values(tenant, "k").contains(&"early".to_owned()));
    }
}

/// A row keeps a bounded number of tokens, and forgets dead ones first.
#[test]
fn a_row_keeps_a_bounded_number_of_tokens() {
    let node = Node::new();
    overwrite(&node, "default", "k");
    assert!(node.store().stats().tokens_evicted > 0);
    assert!(node.store().write("default", tokened("k", "v", "1099")).unwrap().duplicate);
    assert_eq!(node.values("default", "k"), ["v"]);
}
