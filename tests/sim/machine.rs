//! The machine under a node: its disk, its clock, its chance. It outlives the node's processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use pairdb::cluster::work::Work;
use pairdb::engine::SyncMode;
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::config::{self, Config, Size};
use pairdb::ops::node::Node;
use pairdb::ops::world::World;
use pairdb::store::environment::SeededRandom;
use pairdb::store::{Environment, MonotonicClock, WallClock};
use pairdb::verify::recorder::Recorder;
use parking_lot::Mutex;

use crate::autopsy;
use crate::net::SimNet;

/// The time of day when a simulation begins: in 2026.
const BEGIN_MS: u64 = 1_770_000_000_000;

/// Time of the simulation, which its driver advances.
#[derive(Clone, Debug, Default)]
pub struct SimTime(Arc<AtomicU64>);

impl SimTime {
    pub fn set(&self, elapsed: Duration) {
        self.0.store(elapsed.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The clocks of one machine: the simulation's time, wrong by as much as it is told.
#[derive(Clone, Debug)]
struct MachineClock {
    time: SimTime,
    wrong_ms: Arc<AtomicI64>,
}

impl WallClock for MachineClock {
    fn now_ms(&self) -> u64 {
        (BEGIN_MS + self.time.ms()).saturating_add_signed(self.wrong_ms.load(Ordering::Relaxed))
    }
}

impl MonotonicClock for MachineClock {
    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.time.ms())
    }
}

/// A machine.
pub struct Machine {
    pub name: String,
    config: Config,
    seed: u64,
    clock: MachineClock,
    /// What the next process finds.
    disk: Mutex<MemVfs>,
    starts: AtomicU64,
}

impl Machine {
    pub fn new(name: String, config: Config, seed: u64, time: SimTime) -> Self {
        let clock = MachineClock { time, wrong_ms: Arc::default() };
        let disk = Mutex::new(MemVfs::new());
        Self { name, config, seed, clock, disk, starts: AtomicU64::new(0) }
    }

    /// The life of one process: it ends when the host crashes.
    pub async fn run(self: Arc<Self>) -> turmoil::Result {
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        // Each process has chance of its own, or it would mint the identities of the one before.
        let random = SeededRandom::new(self.seed ^ (start + 1).wrapping_mul(0xD134_2543_DE82_EF95));
        let world = World {
            net: Arc::new(SimNet),
            environment: Environment {
                vfs: Arc::new(self.disk.lock().clone()),
                clock: Arc::new(self.clock.clone()),
                monotonic: Arc::new(self.clock.clone()),
                random: Arc::new(random),
            },
            work: Work::Inline,
        };
        let _node = Node::start_in(self.config.clone(), world).await?;
        std::future::pending().await
    }

    /// `kill -9`: what was written is there for the next process.
    pub fn keep_written(&self) {
        let mut disk = self.disk.lock();
        *disk = disk.crash_clone_kill();
    }

    /// Power loss: of what was not synced anything may be gone.
    pub fn lose_power(&self, seed: u64) {
        let mut disk = self.disk.lock();
        *disk = disk.crash_clone(seed);
    }

    /// Writes down what the next process would find.
    pub fn autopsy(&self, recorder: &Recorder, at_us: u64) {
        let now_ms = BEGIN_MS + self.clock.time.ms();
        autopsy::record(&self.disk.lock(), &self.config, now_ms, recorder, at_us);
    }

    /// Makes the time of day wrong by this much.
    pub fn set_clock_wrong(&self, ms: i64) {
        self.clock.wrong_ms.store(ms, Ordering::Relaxed);
    }
}

/// The settings of a simulated node: small, so that flushes and compactions happen.
pub fn small(number: usize, nodes: usize, sync_mode: SyncMode) -> Config {
    let any = |port| format!("0.0.0.0:{port}").parse().expect("an address");
    let mut config = Config {
        listen: config::Listen { client: any(8080), peer: any(7946), admin: any(9091) },
        ..Config::default()
    };
    config.node.data_dir = "/data".into();
    config.node.name = format!("n{number}");
    // Names are resolved within the simulation; there is nobody to overhear.
    config.security.insecure = true;
    config.cluster.bootstrap_expect = nodes as u64;
    if nodes > 1 {
        let seeds = (0..nodes).map(|number| format!("n{number}:7946")).collect::<Vec<_>>();
        config.cluster.seeds = config::Value::parse(&seeds.join(",")).expect("a list");
    }
    config.engine.sync_mode = sync_mode;
    config.engine.memtable_bytes = Size(16 << 10);
    config.engine.log_segment_bytes = Size(64 << 10);
    config.engine.row_cache_bytes = Size(64 << 10);
    config.engine.table_bytes = Size(16 << 10);
    config.engine.base_level_bytes = Size(64 << 10);
    config
}
