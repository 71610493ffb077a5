//! The machine under a node: its disk, its clock, its chance. It outlives the node's processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use pairdb::cluster::fence::Fence;
use pairdb::cluster::layout::Document;
use pairdb::cluster::work::Work;
use pairdb::engine::SyncMode;
use pairdb::engine::vfs::fault::{self, FaultVfs, Operation};
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::config::{self, Config, Size};
use pairdb::ops::node::{Error, Node};
use pairdb::ops::shutdown::Shutdown;
use pairdb::ops::world::World;
use pairdb::replication::anti_entropy;
use pairdb::replication::hints::HintOptions;
use pairdb::replication::{departure, transfer};
use pairdb::store::environment::SeededRandom;
use pairdb::store::{Environment, MonotonicClock, WallClock};
use pairdb::verify::dice::Dice;
use parking_lot::Mutex;

use crate::autopsy::{Disk, Rows};
use crate::character::Character;
use crate::line::Peering;
use crate::observer::Observer;
use crate::step::{File, Step};
use crate::switch::{Aim, Hand, Stopped, Switch};
use crate::tamper::{Chance, Tamper};
use crate::wire::SimNet;

/// The time of day when a simulation begins: in 2026.
const BEGIN_MS: u64 = 1_770_000_000_000;

pub const PEER_PORT: u16 = 7946;

/// How long a node that moves rows waits for an answer.
const PAGE_TIMEOUT: Duration = Duration::from_secs(2);

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

/// How a process ended by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It handed over all it had.
    Left,
    /// It is no member any more, and said so.
    Fenced,
    /// It found no cluster; whoever looks after it starts it again.
    NoCluster,
    /// Its disk fails.
    Broken,
}

/// What a machine is made of.
pub struct Parts {
    pub number: usize,
    pub config: Config,
    /// There are `2^partition_bits`.
    pub partition_bits: u32,
    pub observer: Observer,
    pub time: SimTime,
}

/// A machine.
pub struct Machine {
    pub name: String,
    number: usize,
    config: Config,
    partition_bits: u32,
    observer: Observer,
    /// Of what befalls its messages.
    chance: Chance,
    hints: HintOptions,
    anti_entropy: anti_entropy::Settings,
    seed: u64,
    clock: MachineClock,
    /// What the next process finds.
    disk: Arc<Mutex<MemVfs>>,
    /// Of the process that runs.
    switch: Mutex<Switch>,
    starts: AtomicU64,
    /// Of the process that runs, or ran last.
    ended: Mutex<Option<Ended>>,
    /// What it writes to, and whether that fails.
    faulty: Mutex<(Option<FaultVfs>, bool)>,
    /// Whether the document on its disk may be another than when it was looked at.
    document_changed: Arc<AtomicBool>,
}

impl Machine {
    pub fn new(parts: Parts, character: &Character, dice: &Dice) -> Self {
        let clock = MachineClock::new(dice, parts.time);
        Self {
            name: parts.config.node.name.clone(),
            number: parts.number,
            config: parts.config,
            partition_bits: parts.partition_bits,
            observer: parts.observer,
            chance: Chance::default(),
            hints: character.hints(),
            anti_entropy: character.anti_entropy(),
            seed: dice.next(),
            clock,
            disk: Arc::default(),
            switch: Mutex::default(),
            starts: AtomicU64::new(0),
            ended: Mutex::default(),
            faulty: Mutex::default(),
            document_changed: Arc::default(),
        }
    }

    /// The life of one process: it ends when the host crashes.
    pub async fn run(self: Arc<Self>) -> turmoil::Result {
        let switch = self.switch.lock().clone();
        let ended = match self.live(switch.clone()).await {
            // What one that was stopped believes reaches nobody.
            _ if switch.stopped().is_some() => None,
            Ok(()) => Some(Ended::Left),
            Err(Error::Fenced { .. }) => Some(Ended::Fenced),
            Err(Error::System { what, source }) if what.contains("member") => {
                tracing::info!(machine = self.name, %source, "no cluster");
                Some(Ended::NoCluster)
            }
            // Nothing is ever put back here, whatever else fails.
            Err(error @ Error::RolledBack) => return Err(error.into()),
            Err(_) if self.faulty.lock().1 => Some(Ended::Broken),
            Err(error) => return Err(error.into()),
        };
        *self.ended.lock() = ended;
        std::future::pending().await
    }

    async fn live(&self, switch: Switch) -> Result<(), Error> {
        let start = self.starts.fetch_add(1, Ordering::Relaxed);
        // Each process has chance of its own, or it would mint the identities of the one before.
        let seed = self.seed ^ (start + 1).wrapping_mul(0xD134_2543_DE82_EF95);
        let disk = FaultVfs::new(Arc::new(self.disk.lock().clone()));
        let (steps, document_changed) = (switch.clone(), Arc::clone(&self.document_changed));
        disk.on_call(move |_, call| {
            if call.operation.changes_disk() {
                let step = Step::of_call(call);
                if step == Step::Write(File::Document) {
                    document_changed.store(true, Ordering::Relaxed);
                }
                steps.step(step);
            }
        });
        *self.faulty.lock() = (Some(disk.clone()), false);
        let tamper = Tamper::new(seed, Arc::clone(&self.chance));
        let peering = Peering { node: self.number, tamper, observer: self.observer.clone() };
        let world = World {
            net: Arc::new(SimNet { switch, peering: Some(peering) }),
            environment: Environment {
                vfs: Arc::new(disk),
                clock: Arc::new(self.clock.clone()),
                monotonic: Arc::new(self.clock.clone()),
                random: Arc::new(SeededRandom::new(seed)),
            },
            work: Work::Inline,
            background: Work::Inline,
            hints: self.hints.clone(),
            anti_entropy: self.anti_entropy.clone(),
            // A few rows a page, so that there are several.
            transfer: transfer::Settings { page_bytes: 1 << 10, timeout: PAGE_TIMEOUT },
            departure: departure::Settings { page_bytes: 1 << 10, timeout: PAGE_TIMEOUT },
            partition_bits: self.partition_bits,
        };
        let mut config = self.config.clone();
        config.cluster.advertise = format!("{}:{PEER_PORT}", turmoil::lookup(self.name.as_str()));
        Node::start_in(config, world).await?.run(Shutdown::default()).await
    }

    /// Stops the process at a step (see `switch`). The next one finds what was written, or, after a
    /// loss of power, of what was not synced whatever the seed leaves.
    pub fn stop_at(&self, aim: Aim, power_loss: Option<u64>) {
        self.arm(Hand::Fate, aim, power_loss);
    }

    /// The same for who strikes.
    pub fn strike_at(&self, aim: Aim, power_loss: Option<u64>) {
        self.arm(Hand::Striker, aim, power_loss);
    }

    fn arm(&self, hand: Hand, aim: Aim, power_loss: Option<u64>) {
        let disk = Arc::clone(&self.disk);
        let stop = move || {
            let mut disk = disk.lock();
            *disk = match power_loss {
                None => disk.crash_clone_kill(),
                Some(seed) => disk.crash_clone(seed),
            };
        };
        self.switch.lock().arm(hand, aim, Box::new(stop));
    }

    /// Has the disk fail what is written and synced, after so many such calls, until the process
    /// ends. What was not synced by then is at the mercy of `power_loss`.
    pub fn fail_disk(&self, skip: u64, power_loss: u64) {
        let mut faulty = self.faulty.lock();
        let Some(disk) = &faulty.0 else { return };
        for operation in [Operation::WriteAt, Operation::SyncData] {
            let times = u64::MAX;
            let operation = Some(operation);
            disk.inject(fault::Fault { operation, skip, times, ..fault::Fault::default() });
        }
        faulty.1 = true;
        drop(faulty);
        self.spare();
        self.stop_at(Aim { steps: None, skip: u64::MAX, after: false }, Some(power_loss));
    }

    /// Whether it does.
    pub fn disk_fails(&self) -> bool {
        self.faulty.lock().1
    }

    /// Does not strike it at any step.
    pub fn spare(&self) {
        self.switch.lock().disarm(Hand::Striker);
    }

    /// Where the process has stopped, if it has, and for whom.
    pub fn stopped(&self) -> Option<(Stopped, Hand)> {
        self.switch.lock().stopped()
    }

    /// Stops the process now if it was to be stopped and took too few steps for it.
    pub fn stop_now(&self) {
        self.switch.lock().fire();
    }

    /// How the process ended by itself, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.ended.lock().clone()
    }

    /// Empties the disk: the next process is another node.
    pub fn wipe(&self) {
        *self.disk.lock() = MemVfs::default();
        self.observer.forget(self.number);
    }

    /// The document on the disk, if it may be another than at the last call.
    pub fn changed_document(&self) -> Option<Document> {
        if !self.document_changed.swap(false, Ordering::Relaxed) {
            return None;
        }
        let disk = self.disk.lock().clone();
        let fence = Fence::open(Arc::new(disk), &self.config.node.data_dir);
        Some(Document::clone(&fence.expect("it can be read at any moment").document()))
    }

    /// Has messages befallen by this chance, of 10,000.
    pub fn set_tampering(&self, of_10_000: u64) {
        self.chance.store(of_10_000, Ordering::Relaxed);
    }

    /// Makes the machine ready for the next process.
    pub fn restart(&self) {
        *self.switch.lock() = Switch::default();
        *self.ended.lock() = None;
        *self.faulty.lock() = (None, false);
    }

    /// What the next process would find; `None`: some of it cannot be read.
    pub fn rows(&self) -> Option<Rows> {
        self.read_disk(|disk| disk.rows())
    }

    /// Whether the next process would find its tables whole.
    pub fn is_whole(&self) -> bool {
        self.read_disk(|disk| disk.is_whole())
    }

    /// Flips a bit in a table, for the next process to find. Where, if there is one.
    pub fn rot(&self, dice: &Dice) -> Option<String> {
        self.read_disk(|disk| disk.rot(dice))
    }

    fn read_disk<T>(&self, read: impl FnOnce(Disk<'_>) -> T) -> T {
        let now_ms = BEGIN_MS + self.clock.time.ms();
        let (config, partition_bits) = (&self.config, self.partition_bits);
        read(Disk { files: &self.disk.lock(), config, partition_bits, now_ms })
    }

    /// Makes the time of day wrong by this much.
    pub fn set_clock_wrong(&self, ms: i64) {
        self.clock.wrong_ms.store(ms, Ordering::Relaxed);
    }
}

/// The settings of a simulated node: small, so that flushes and compactions happen. `founders`
/// form the cluster; the others join it.
pub fn small(number: usize, founders: usize, sync_mode: SyncMode) -> Config {
    let any = |port| format!("0.0.0.0:{port}").parse().expect("an address");
    let mut config = Config {
        listen: config::Listen { client: any(8080), peer: any(PEER_PORT), admin: any(9091) },
        ..Config::default()
    };
    config.node.data_dir = "/data".into();
    config.node.name = format!("n{number}");
    // Names are resolved within the simulation; there is nobody to overhear.
    config.security.insecure = true;
    config.cluster.bootstrap_expect = if number < founders { founders as u64 } else { 1 };
    if founders > 1 {
        let seeds = (0..founders).map(|number| format!("n{number}:{PEER_PORT}"));
        let seeds = seeds.collect::<Vec<_>>().join(",");
        config.cluster.seeds = config::Value::parse(&seeds).expect("a list");
    }
    config.engine.sync_mode = sync_mode;
    config.engine.memtable_bytes = Size(16 << 10);
    config.engine.log_segment_bytes = Size(64 << 10);
    config.engine.row_cache_bytes = Size(64 << 10);
    config.engine.table_bytes = Size(16 << 10);
    config.engine.base_level_bytes = Size(64 << 10);
    // What nobody reads is looked at in time, too.
    config.engine.scrub_interval = Duration::from_secs(2);
    config
}
