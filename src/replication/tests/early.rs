//! I8 where all replicas lose power: whoever counts as holding what was read has it on its disk.
//!
//! The stores have no threads: a log is synced by whoever waits for it, and by nobody else.

use crate::cluster::peer::{Reply, Request};
use crate::engine::without_rules;
use crate::proto::{self, ScanWhat};
use crate::replication::Level;
use crate::store::{Mutation, TenantId};

use super::cluster::{Cluster, put, values};

const RULE: [&str; 1] = ["reads_of_what_is_synced"];

fn tokened(value: &str) -> Mutation {
    Mutation { idempotency_key: Some(b"t".to_vec()), ..put("k", value) }
}

/// How somebody learns of a row.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A replica is asked for the row, or its digest.
    Row,
    Digest,
    /// A replica is asked for a page.
    Page(ScanWhat),
    /// Its own coordinator reads it.
    Read(Level),
    /// Its own coordinator refuses another write under the same idempotency key.
    Conflict,
}

const WAYS: [Way; 8] = [
    Way::Row,
    Way::Digest,
    Way::Page(ScanWhat::Rows),
    Way::Page(ScanWhat::Digests),
    Way::Read(Level::One),
    Way::Read(Level::Quorum),
    Way::Read(Level::All),
    Way::Conflict,
];

/// Learns of the row of node 0 in this way.
async fn learn(cluster: &Cluster, tenant: TenantId, way: Way) {
    match way {
        Way::Row | Way::Digest => {
            let keys = vec![proto::RowKey { tenant_id: tenant.0, key: b"k"[..].into() }];
            let digest_only = matches!(way, Way::Digest);
            let request =
                Request::ReadRows(proto::ReadRows { keys, digest_only, ..Default::default() });
            let Ok(Reply::ReadRows(reply)) = cluster.ask(0, 1, request).await else {
                panic!("no rows")
            };
            assert_ne!(reply.answers[0].digest, 0);
        }
        Way::Page(what) => {
            let scan = proto::ScanRows {
                tenant_id: tenant.0,
                rows_max: 10,
                bytes_max: 1 << 20,
                what: what.into(),
                ..Default::default()
            };
            let Ok(Reply::ScanRows(page)) = cluster.ask(0, 1, Request::ScanRows(scan)).await else {
                panic!("no page")
            };
            assert_eq!(page.rows.len(), 1);
        }
        Way::Read(level) => {
            let row = cluster.get(0, level, "k").await.expect("readable");
            assert_eq!(values(&row), ["x"]);
        }
        Way::Conflict => {
            let refused = cluster.put(0, Level::Quorum, tokened("y")).await;
            assert_eq!(refused.expect_err("another value").reason(), "IDEMPOTENCY_CONFLICT");
        }
    }
}

/// Whether the log of a node with a row in memory was synced before somebody learnt of it.
async fn is_synced_first(removed: &[&'static str], way: Way) -> bool {
    let cluster = without_rules(removed, || Cluster::new(3, 31));
    let store = &cluster.nodes[0].store;
    let tenant = store.tenant("default").expect("there").id;
    let prepared = store.prepare("default", &[tokened("x")]);
    assert!(prepared.results[0].is_ok());
    let syncs = store.stats().engine.log.syncs;
    learn(&cluster, tenant, way).await;
    store.stats().engine.log.syncs > syncs
}

/// Of a quorum that shows a row each member holds it when all of them have lost power. Without the
/// rule a member tells of what it may not hold.
#[tokio::test(start_paused = true)]
async fn a_replica_tells_of_what_is_on_its_disk() {
    for way in WAYS {
        assert!(is_synced_first(&[], way).await, "{way:?}");
        assert!(!is_synced_first(&RULE, way).await, "{way:?}: the rule does nothing");
    }
}
