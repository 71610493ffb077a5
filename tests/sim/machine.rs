//! The machine under a node: its disk, its clock, its chance. It outlives the node's processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use pairdb::cluster::work::Work;
use pairdb::engine::SyncMode;
use pairdb::engine::vfs::fault::FaultVfs;
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::config::{self, Config, Size};
use pairdb::ops::node::Node;
use pairdb::ops::world::World;
use pairdb::replication::anti_entropy;
use pairdb::replication::hints::HintOptions;
use pairdb::store::environment::SeededRandom;
use pairdb::store::{Environment, MonotonicClock, WallClock};
use pairdb::verify::dice::Dice;
use parking_lot::Mutex;

use crate::autopsy::{self, Rows};
use crate::character::Character;
use crate::switch::Switch;
use crate::wire::SimNet;

/// The time of day when a simulation begins: in 2026.
const BEGIN_MS: u64 = 1_770_000_000_000;

const PEER_PORT: u16 = 7946;

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

/// The clocks of one machine: the simulation's time, a little off all the time, a little fast or
/// slow, and wrong by as much as it is told.
#[derive(Clone, Debug)]
struct MachineClock {
    time: SimTime,
    off_ms: i64,
    /// Parts per million.
    drift: i64,
    wrong_ms: Arc<AtomicI64>,
}

impl MachineClock {
    fn new(dice: &Dice, time: SimTime) -> Self {
        let off_ms = dice.below(800) as i64 - 400;
        let drift = dice.below(1_000) as i64 - 500;
        Self { time, off_ms, drift, wrong_ms: Arc::default() }
    }
}

impl WallClock for MachineClock {
    fn now_ms(&self) -> u64 {
        let ms = self.time.ms();
        let drift_ms = ms as i64 * self.drift / 1_000_000;
        let wrong_ms = self.off_ms + drift_ms + self.wrong_ms.load(Ordering::Relaxed);
        (BEGIN_MS + ms).saturating_add_signed(wrong_ms)
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
    hints: HintOptions,
    anti_entropy: anti_entropy::Settings,
    seed: u64,
    clock: MachineClock,
    /// What the next process finds.
    disk: Arc<Mutex<MemVfs>>,
    /// Of the process that runs.
    switch: Mutex<Switch>,
    starts: AtomicU64,
}

impl Machine {
    pub fn new(config: Config, character: &Character, dice: &Dice, time: SimTime) -> Self {
        let clock = MachineClock::new(dice, time);
        Self {
            name: config.node.name.clone(),
            config,
            hints: character.hints(),
            anti_entropy: character.anti_entropy(),
            seed: dice.next(),
            clock,
            disk: Arc::default(),
            switch: Mutex::default(),
            starts: AtomicU64::new(0),
        }
    }

    /// The life of one process: it ends when the host crashes.
    pub async fn run(self: Arc<Self>) -> turmoil::Result {
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        // Each process has chance of its own, or it would mint the identities of the one before.
        let random = SeededRandom::new(self.seed ^ (start + 1).wrapping_mul(0xD134_2543_DE82_EF95));
        let switch = self.switch.lock().clone();
        let disk = FaultVfs::new(Arc::new(self.disk.lock().clone()));
        let steps = switch.clone();
        disk.on_call(move |_, call| {
            if call.operation.changes_disk() {
                steps.step();
            }
        });
        let world = World {
            net: Arc::new(SimNet { switch }),
            environment: Environment {
                vfs: Arc::new(disk),
                clock: Arc::new(self.clock.clone()),
                monotonic: Arc::new(self.clock.clone()),
                random: Arc::new(random),
            },
            work: Work::Inline,
            hints: self.hints.clone(),
            anti_entropy: self.anti_entropy.clone(),
        };
        let mut config = self.config.clone();
        config.cluster.advertise = format!("{}:{PEER_PORT}", turmoil::lookup(self.name.as_str()));
        let _node = Node::start_in(config, world).await?;
        std::future::pending().await
    }

    /// Stops the process after so many more steps (see `switch`). The next one finds what was
    /// written, or, after a loss of power, of what was not synced whatever the seed leaves.
    pub fn stop_after(&self, steps: u64, power_loss: Option<u64>) {
        let disk = Arc::clone(&self.disk);
        let stop = move || {
            let mut disk = disk.lock();
            *disk = match power_loss {
                None => disk.crash_clone_kill(),
                Some(seed) => disk.crash_clone(seed),
            };
        };
        self.switch.lock().arm(steps, Box::new(stop));
    }

    /// Whether the process has stopped.
    pub fn has_stopped(&self) -> bool {
        self.switch.lock().is_stopped()
    }

    /// Stops the process now if it was to be stopped and took too few steps for it.
    pub fn stop_now(&self) {
        self.switch.lock().fire();
    }

    /// Makes the machine ready for the next process.
    pub fn restart(&self) {
        *self.switch.lock() = Switch::default();
    }

    /// What the next process would find.
    pub fn rows(&self) -> Rows {
        let now_ms = BEGIN_MS + self.clock.time.ms();
        autopsy::rows(&self.disk.lock(), &self.config, now_ms)
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
        listen: config::Listen { client: any(8080), peer: any(PEER_PORT), admin: any(9091) },
        ..Config::default()
    };
    config.node.data_dir = "/data".into();
    config.node.name = format!("n{number}");
    // Names are resolved within the simulation; there is nobody to overhear.
    config.security.insecure = true;
    config.cluster.bootstrap_expect = nodes as u64;
    if nodes > 1 {
        let seeds = (0..nodes).map(|number| format!("n{number}:{PEER_PORT}")).collect::<Vec<_>>();
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
