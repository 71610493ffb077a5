//! Rows copied to another member at an operator's word.

use std::sync::Arc;

use super::cluster::*;
use crate::replication::Level;
use crate::replication::migration::{Migration, Selection};
use crate::store::{TenantId, TokenRange};

/// A call may name a thousand keys, and a row may have megabytes: one page of them is in memory.
#[tokio::test(start_paused = true)]
async fn of_named_keys_no_more_than_a_page_is_in_memory() {
    let mut options = options();
    options.engine.memtable_bytes = 64 << 20;
    options.engine.log_segment_bytes = 64 << 20;
    let cluster = Cluster::with_options(3, &[0, 1, 2], 61, &options);
    cluster.world.take_down(id(2));
    let keys: Vec<String> = (0..30).map(|n| format!("key-{n}")).collect();
    let value = "v".repeat(64 << 10);
    for key in &keys {
        cluster.put(0, Level::Quorum, put(key, &value)).await.expect("two are up");
    }
    cluster.world.bring_up(id(2));
    // One twice, and one that is not there.
    let named = keys.iter().chain(&keys[..1]).map(String::as_str).chain(["nobody"]);
    let keys = Some(named.map(|key| key.to_owned().into()).collect());
    let tokens = TokenRange { start: 0, end_inclusive: u64::MAX };
    let tenant = Some(TenantId(1));
    let from = &cluster.nodes[0].transfer;
    let migration = Migration {
        store: Arc::clone(&from.store),
        peers: Arc::clone(&from.peers),
        layout: from.layout.clone(),
        work: from.work.clone(),
        to: id(2),
        selection: Arc::new(Selection { tenant, prefix: Vec::new(), tokens, keys }),
    };
    let first = migration.page_at(&[]).await.expect("copied");
    assert_eq!((first.keys, first.next.is_some()), (16, true), "a mebibyte of rows");
    let all = migration.page(&[]).await.expect("copied");
    assert_eq!((all.keys, all.refused, all.next), (30, 0, None));
    assert_eq!(all.digest, all.digest_there);
    assert!((0..30).all(|n| cluster.local(2, &format!("key-{n}")) == [value.as_str()]));
}
