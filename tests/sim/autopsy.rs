//! What lies on a node's disk, read as a new process would, on a copy.

use std::collections::BTreeMap;
use std::sync::Arc;

use pairdb::causality::Payload;
use pairdb::causality::codec;
use pairdb::cluster::fence::Fence;
use pairdb::cluster::layout::{Answer, Command, LayoutCatalog, Proposer};
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::config::Config;
use pairdb::store::environment::ManualClock;
use pairdb::store::{EngineKey, Environment, Store, StoreOptions, TokenRange};
use pairdb::verify::history::Version;

/// Proposes nothing: the dead change no layout.
#[derive(Debug)]
struct Nobody;

impl Proposer for Nobody {
    fn propose(&self, _command: Command) -> pairdb::store::Result<Answer> {
        Err(pairdb::store::Error::Closed)
    }
}

/// A row as it was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The live versions, with their dots.
    pub versions: Vec<Version>,
    /// Of all the row holds; 0: of nothing.
    pub digest: u64,
    /// Where it lies in the ring.
    pub token: u64,
}

/// Rows by tenant and key.
pub type Rows = BTreeMap<(String, String), Found>;

/// Everything the disk holds.
pub fn rows(disk: &MemVfs, config: &Config, partition_bits: u32, now_ms: u64) -> Rows {
    let store = open(disk, config, partition_bits, now_ms);
    let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
    let (mut rows, mut cursor) = (Rows::new(), None);
    loop {
        let page = store.rows_by_token(whole, cursor, 1 << 20).expect("it can be read");
        rows.extend(page.rows.iter().map(|(key, _)| found(&store, key)));
        cursor = page.cursor;
        if cursor.is_none() {
            return rows;
        }
    }
}

fn open(disk: &MemVfs, config: &Config, partition_bits: u32, now_ms: u64) -> Store {
    let mut options = StoreOptions {
        engine: config.engine_options().expect("they ran"),
        ..StoreOptions::default()
    };
    options.engine.compaction_threads = 0;
    options.engine.partition_bits = partition_bits;
    let copy = Arc::new(disk.crash_clone_kill());
    let clock = ManualClock::new(now_ms);
    let environment = Environment::simulated(Arc::clone(&copy) as _, &clock, now_ms);
    let fence = Fence::open(copy, &config.node.data_dir).expect("so can the document");
    let tenants = LayoutCatalog::new(&fence.document(), Arc::new(Nobody), Arc::new(clock));
    options.catalog = Some(Arc::new(tenants));
    Store::open_in(&config.node.data_dir, options, environment)
        .expect("whatever a crash leaves can be opened")
}

fn found(store: &Store, engine_key: &[u8]) -> ((String, String), Found) {
    let key = EngineKey::decode(engine_key).expect("the store wrote it");
    let tenant = store.tenant_by_id(key.tenant).expect("it has a row");
    let raw = store.raw_row(key.tenant, key.key).expect("it can be read");
    let digest = store.digest(&raw).expect("so can the row");
    let row = raw.row.expect("it is there");
    let row = codec::decode(&row).expect("the store wrote it");
    let version = |(dot, version): &(_, pairdb::causality::Version<'_>)| match version.payload() {
        Payload::Value { value, .. } => Some(Version {
            value: String::from_utf8_lossy(value).into_owned(),
            hlc: version.time(),
            dot: Some(format!("{dot:?}")),
        }),
        Payload::Tombstone | Payload::Stripped => None,
    };
    let versions = row.live().iter().filter_map(version).collect();
    let place = (tenant.name.clone(), String::from_utf8_lossy(key.key).into_owned());
    (place, Found { versions, digest, token: key.token })
}
