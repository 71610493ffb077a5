//! Tests of the engine as a whole: against a model, with crashes at every file call, with random
//! options, and rule by rule.

mod bounds;
mod close;
mod crash;
mod damage;
mod early;
mod excise;
mod hangs;
mod interleaved;
mod kept;
mod metamorphic;
mod model;
mod newest;
mod older;
mod overwrites;
mod poison;
mod pressure;
mod reaper;
mod remove;
mod row;
mod rules;
mod space;
mod ticks;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use super::clock::Clock;
use super::rules::removed_at_open;
use super::vfs::Vfs;
use super::{Engine, Environment, Options, Result, Shared};
use row::RowJoin;
pub use rules::increments;

/// Code that a test runs in the middle of an operation, once.
pub type Hooks = HashMap<&'static str, Box<dyn FnOnce(&Shared) + Send>>;

pub fn run_hook(shared: &Shared, name: &'static str) {
    let hook = shared.hooks.lock().remove(name);
    if let Some(hook) = hook {
        hook(shared);
    }
}

/// `cases`, times `PAIRDB_TEST_EFFORT` if that is set: for a long search at night.
pub fn effort(cases: u32) -> u32 {
    let factor = std::env::var("PAIRDB_TEST_EFFORT").ok().and_then(|factor| factor.parse().ok());
    cases.saturating_mul(factor.unwrap_or(1))
}

/// A clock that stands still.
#[derive(Debug)]
pub struct StoppedClock;

impl Clock for StoppedClock {
    fn now_ns(&self) -> u64 {
        0
    }
}

/// Options under which a few dozen writes reach every level, without threads.
pub fn tiny() -> Options {
    Options {
        log_segment_bytes: 8 << 10,
        memtable_bytes: 4 << 10,
        row_cache_bytes: 64 << 10,
        block_bytes: 400,
        table_bytes: 1 << 10,
        base_level_bytes: 4 << 10,
        level_ratio: 3,
        partition_bits: 0,
        disk_reserve_bytes: 0,
        compaction_threads: 0,
        ..Options::default()
    }
}

pub fn open(vfs: Arc<dyn Vfs>, options: Options) -> Result<Engine> {
    let environment = Environment { vfs, clock: Arc::new(StoppedClock) };
    let operator = RowJoin { checks_claims: removed_at_open().is_empty() };
    Engine::open_in(Path::new("/db"), options, Arc::new(operator), environment)
}
