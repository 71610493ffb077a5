//! What lies on a node's disk, read as a new process would, on a copy.

use std::sync::Arc;

use pairdb::causality::Payload;
use pairdb::causality::codec;
use pairdb::cluster::fence::Fence;
use pairdb::cluster::layout::{Answer, Command, LayoutCatalog, Proposer};
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::config::Config;
use pairdb::store::environment::ManualClock;
use pairdb::store::{EngineKey, Environment, Store, StoreOptions, TokenRange};
use pairdb::verify::history::{Event, Version};
use pairdb::verify::recorder::Recorder;

/// Proposes nothing: the dead change no layout.
#[derive(Debug)]
struct Nobody;

impl Proposer for Nobody {
    fn propose(&self, _command: Command) -> pairdb::store::Result<Answer> {
        Err(pairdb::store::Error::Closed)
    }
}

/// Writes into the history which versions the disk holds, with their dots.
pub fn record(disk: &MemVfs, config: &Config, now_ms: u64, recorder: &Recorder, at_us: u64) {
    let mut options = StoreOptions {
        engine: config.engine_options().expect("they ran"),
        ..StoreOptions::default()
    };
    options.engine.compaction_threads = 0;
    let copy = Arc::new(disk.crash_clone_kill());
    let clock = ManualClock::new(now_ms);
    let environment = Environment::simulated(Arc::clone(&copy) as _, &clock, now_ms);
    let fence = Fence::open(copy, &config.node.data_dir).expect("so can the document");
    let tenants = LayoutCatalog::new(&fence.document(), Arc::new(Nobody), Arc::new(clock));
    options.catalog = Some(Arc::new(tenants));
    let store = Store::open_in(&config.node.data_dir, options, environment)
        .expect("whatever a crash leaves can be opened");
    let whole = TokenRange { start: 0, end_inclusive: u64::MAX };
    let mut cursor = None;
    loop {
        let page = store.rows_by_token(whole, cursor, 1 << 20).expect("it can be read");
        for (key, row) in &page.rows {
            record_row(&store, config, (key, row), recorder, at_us);
        }
        cursor = page.cursor;
        if cursor.is_none() {
            return;
        }
    }
}

fn record_row(
    store: &Store,
    config: &Config,
    (key, row): (&[u8], &[u8]),
    recorder: &Recorder,
    at_us: u64,
) {
    let key = EngineKey::decode(key).expect("the store wrote it");
    let row = codec::decode(row).expect("the store wrote it");
    let tenants = store.tenants();
    let tenant = tenants.iter().find(|tenant| tenant.id == key.tenant).expect("it has a row");
    let version = |(dot, version): &(_, pairdb::causality::Version<'_>)| match version.payload() {
        Payload::Value { value, .. } => Some(Version {
            value: String::from_utf8_lossy(value).into_owned(),
            hlc: version.time(),
            dot: Some(format!("{dot:?}")),
        }),
        Payload::Tombstone | Payload::Stripped => None,
    };
    recorder.event(Event::Row {
        id: recorder.next_op(),
        at_us,
        node: config.node.name.clone(),
        tenant: tenant.name.clone(),
        key: String::from_utf8_lossy(key.key).into_owned(),
        versions: row.live().iter().filter_map(version).collect(),
    });
}
