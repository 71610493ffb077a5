//! What lies on a node's disk, read as a new process would, on a copy.

use std::sync::Arc;

use pairdb::causality::Payload;
use pairdb::causality::codec;
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::config::Config;
use pairdb::store::environment::ManualClock;
use pairdb::store::{EngineKey, Environment, Store, StoreOptions, TokenRange};
use pairdb::verify::history::{Event, Version};
use pairdb::verify::recorder::Recorder;

/// Writes into the history which versions the disk holds, with their dots.
pub fn record(disk: &MemVfs, config: &Config, now_ms: u64, recorder: &Recorder, at_us: u64) {
    let mut options = StoreOptions {
        engine: config.engine_options().expect("they ran"),
        ..StoreOptions::default()
    };
    options.engine.compaction_threads = 0;
    let copy = Arc::new(disk.crash_clone_kill());
    let environment = Environment::simulated(copy, &ManualClock::new(now_ms), now_ms);
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
