//! The store in a world under control: files in memory, a clock that is set by hand.

mod damage;
mod disk;
mod early;
mod elsewhere;
mod faults;
mod idempotent;
mod model;
mod pages;
mod raw;
mod refused;
mod safe;
mod writes;

use std::path::Path;
use std::sync::Arc;

use super::environment::ManualClock;
use super::*;
use crate::engine::vfs::Vfs;
use crate::engine::vfs::mem::MemVfs;

const DIR: &str = "/node";
const T0_MS: u64 = 1_700_000_000_000;

/// A node that can be stopped, killed and started again.
struct Node {
    vfs: MemVfs,
    clock: ManualClock,
    /// Differs at every start, as the machine's randomness would.
    starts: u64,
    options: StoreOptions,
    store: Option<Store>,
}

impl Node {
    /// Safe points are moved whenever they are asked to.
    fn new() -> Self {
        let safe_points = SafePoints { interval_ms: 0, flush_ms: 0, ..SafePoints::default() };
        Self::with(StoreOptions { safe_points, ..StoreOptions::default() })
    }

    fn with(mut options: StoreOptions) -> Self {
        options.engine.compaction_threads = 0;
        options.engine.partition_bits = 2;
        options.engine.log_segment_bytes = 256 << 10;
        options.engine.memtable_bytes = 256 << 10;
        options.engine.row_cache_bytes = 64 << 10;
        let clock = ManualClock::new(T0_MS);
        let mut node = Self { vfs: MemVfs::new(), clock, starts: 0, options, store: None };
        node.start();
        let lww = TenantSpec { mode: Mode::LastWriteWins, ..TenantSpec::new("lww") };
        node.store().create_tenant(lww).unwrap();
        let lists =
            TenantSpec { partition_delimiter: Some(b":".to_vec()), ..TenantSpec::new("lists") };
        node.store().create_tenant(lists).unwrap();
        node
    }

    /// Another stopped node with the same files; what happens to one is not seen by the other.
    fn like(&self) -> Self {
        let (vfs, clock) = (self.vfs.crash_clone_kill(), self.clock.clone());
        Self { vfs, clock, starts: self.starts, options: self.options.clone(), store: None }
    }

    fn try_start(&mut self) -> Result<()> {
        self.starts += 1;
        let environment =
            Environment::simulated(Arc::new(self.vfs.clone()), &self.clock, self.starts);
        self.store = Some(Store::open_in(Path::new(DIR), self.options.clone(), environment)?);
        Ok(())
    }

    fn start(&mut self) {
        self.try_start().unwrap();
    }

    fn restart(&mut self) {
        self.store.take().expect("started").close().unwrap();
        self.start();
    }

    /// Power loss: what was not synced may be gone.
    fn crash(&mut self, seed: u64) {
        let after = self.vfs.crash_clone(seed);
        drop(self.store.take());
        self.vfs = after;
        self.start();
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("started")
    }

    fn put(&self, tenant: &str, key: &str, value: &str) -> Written {
        self.store().write(tenant, put(key, value)).unwrap()
    }

    fn values(&self, tenant: &str, key: &str) -> Vec<String> {
        values(&self.store().read(tenant, key.as_bytes()).unwrap())
    }

    fn context(&self, tenant: &str, key: &str) -> Vec<u8> {
        self.store().read(tenant, key.as_bytes()).unwrap().context
    }

    /// Works off all background work.
    fn settle(&self) {
        while self.store().step().unwrap() {}
    }
}

fn put(key: &str, value: &str) -> Mutation {
    Mutation {
        key: key.into(),
        value: Some(value.into()),
        content_type: "text/plain".to_owned(),
        ..Mutation::default()
    }
}

fn delete(key: &str) -> Mutation {
    Mutation { key: key.into(), ..Mutation::default() }
}

fn values(row: &ReadRow) -> Vec<String> {
    let text = |sibling: &Sibling| String::from_utf8(sibling.value.clone()).expect("text");
    let mut values: Vec<String> = row.siblings.iter().map(text).collect();
    values.sort_unstable();
    values
}
