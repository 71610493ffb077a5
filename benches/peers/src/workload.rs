//! The workloads: names, what they start from, how many operations they do.

use serde::{Deserialize, Serialize};

use crate::store::{Compression, Durability, EngineName};

/// What a workload starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Base {
    /// An empty directory.
    Empty,
    /// `keys` keys with values of 100 bytes, written in random order and compacted to rest.
    Small,
    /// `records` keys with values of 1,000 bytes, likewise.
    Records,
    /// Half of `keys` as [`Small`](Base::Small), with states to be joined instead of values.
    States,
}

/// One of YCSB's core workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ycsb {
    /// Half reads, half updates.
    A,
    /// 95 reads, 5 updates in 100.
    B,
    /// Reads.
    C,
    /// 95 reads of what is new, 5 inserts in 100.
    D,
    /// 95 scans of 1 to 100 keys, 5 inserts in 100.
    E,
    /// Half reads, half read-modify-writes.
    F,
}

/// What a workload does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Puts all keys once, in key order.
    FillSeq,
    /// Puts all keys once, in random order.
    FillRandom,
    /// The same with fewer keys, each write synced.
    FillSync,
    /// Puts random keys that exist.
    Overwrite,
    /// Gets random keys that exist.
    ReadRandom,
    /// Gets keys that do not exist.
    ReadMissing,
    /// Seeks a random key and walks 100.
    SeekRandom,
    /// Gets random keys beside one writer of [`WRITER_PER_S`].
    ReadWhileWriting,
    /// Deletes random keys.
    DeleteRandom,
    /// See [`Ycsb`].
    Ycsb(Ycsb),
    /// Puts and gets one key by turns.
    HotKey,
    /// Joins states into existing keys without reading them, then reads.
    Merge,
    /// Fills four times the memory of a cgroup, then reads random keys.
    Larger,
    /// Opens a store that was closed, and gets a key.
    OpenClean,
    /// Opens a store whose process was killed with a memtable full of writes, and gets a key.
    OpenKilled,
}

/// Puts a second beside the readers of [`Kind::ReadWhileWriting`]: the same for all engines, or
/// the one that writes fastest would read slowest.
pub const WRITER_PER_S: u64 = 20_000;

/// A workload.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Its name on the command line and in results.
    pub name: &'static str,
    /// What it does.
    pub kind: Kind,
    /// What it starts from.
    pub base: Base,
    /// Threads that call the engine.
    pub threads: u64,
    /// Whether it is also run with lz4.
    pub with_lz4: bool,
}

const fn workload(name: &'static str, kind: Kind, base: Base, threads: u64) -> Workload {
    Workload { name, kind, base, threads, with_lz4: false }
}

const fn both_tables(name: &'static str, kind: Kind, base: Base, threads: u64) -> Workload {
    Workload { name, kind, base, threads, with_lz4: true }
}

/// All of them, in the order in which they run.
pub const WORKLOADS: &[Workload] = &[
    workload("fillseq", Kind::FillSeq, Base::Empty, 1),
    both_tables("fillrandom-1", Kind::FillRandom, Base::Empty, 1),
    workload("fillrandom-2", Kind::FillRandom, Base::Empty, 2),
    workload("fillrandom-8", Kind::FillRandom, Base::Empty, 8),
    workload("fillsync-1", Kind::FillSync, Base::Empty, 1),
    workload("fillsync-8", Kind::FillSync, Base::Empty, 8),
    workload("fillsync-32", Kind::FillSync, Base::Empty, 32),
    workload("hotkey-8", Kind::HotKey, Base::Empty, 8),
    workload("merge-2", Kind::Merge, Base::States, 2),
    workload("overwrite", Kind::Overwrite, Base::Small, 1),
    workload("readrandom-1", Kind::ReadRandom, Base::Small, 1),
    both_tables("readrandom-2", Kind::ReadRandom, Base::Small, 2),
    workload("readmissing-1", Kind::ReadMissing, Base::Small, 1),
    workload("readmissing-2", Kind::ReadMissing, Base::Small, 2),
    both_tables("seekrandom-2", Kind::SeekRandom, Base::Small, 2),
    workload("readwhilewriting-2", Kind::ReadWhileWriting, Base::Small, 2),
    workload("deleterandom", Kind::DeleteRandom, Base::Small, 1),
    workload("open-clean", Kind::OpenClean, Base::Small, 1),
    workload("open-killed", Kind::OpenKilled, Base::Small, 1),
    both_tables("ycsb-a", Kind::Ycsb(Ycsb::A), Base::Records, 2),
    workload("ycsb-b", Kind::Ycsb(Ycsb::B), Base::Records, 2),
    both_tables("ycsb-c", Kind::Ycsb(Ycsb::C), Base::Records, 2),
    workload("ycsb-d", Kind::Ycsb(Ycsb::D), Base::Records, 2),
    workload("ycsb-e", Kind::Ycsb(Ycsb::E), Base::Records, 2),
    workload("ycsb-f", Kind::Ycsb(Ycsb::F), Base::Records, 2),
    workload("larger", Kind::Larger, Base::Empty, 2),
];

impl Workload {
    /// The workload of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        WORKLOADS.iter().find(|workload| workload.name == name)
    }

    /// Whether it changes its base, so that it needs a copy.
    pub fn mutates(&self) -> bool {
        !matches!(
            self.kind,
            Kind::ReadRandom
                | Kind::ReadMissing
                | Kind::SeekRandom
                | Kind::OpenClean
                | Kind::Ycsb(Ycsb::C)
        )
    }

    /// When its writes are acknowledged.
    pub fn durability(&self) -> Durability {
        if self.kind == Kind::FillSync { Durability::Disk } else { Durability::Os }
    }
}

/// How much of everything.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Scale {
    /// Keys with values of 100 bytes.
    pub keys: u64,
    /// Keys with values of 1,000 bytes.
    pub records: u64,
    /// Memory of [`Kind::Larger`], page cache included, in MiB.
    pub memory_mib: u64,
    /// Operations a second at most, of all threads of a workload.
    pub pace: Option<u64>,
}

impl Scale {
    /// Operations a thread of a workload does.
    pub fn count(&self, workload: &Workload) -> u64 {
        let total = match workload.kind {
            Kind::FillSeq | Kind::FillRandom | Kind::Overwrite | Kind::ReadRandom => self.keys,
            Kind::ReadMissing => 2 * self.keys,
            Kind::ReadWhileWriting | Kind::Merge => self.keys,
            Kind::SeekRandom => self.keys / 20,
            Kind::DeleteRandom => self.keys / 2,
            Kind::HotKey => self.keys / 2,
            Kind::FillSync => match workload.threads {
                1 => self.keys / 100,
                8 => self.keys / 50,
                _ => self.keys * 3 / 100,
            },
            Kind::Ycsb(Ycsb::E) => self.records / 4,
            Kind::Ycsb(_) => 2 * self.records,
            Kind::Larger => self.larger_keys(),
            Kind::OpenKilled => self.keys.min(400_000),
            Kind::OpenClean => 1,
        };
        (total / workload.threads).max(1)
    }

    /// Keys of [`Kind::Larger`].
    pub fn larger_keys(&self) -> u64 {
        4 * (self.memory_mib << 20) / 1_016
    }
}

/// What a child process is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// What of the workload.
    pub step: Step,
    /// Engine.
    pub engine: EngineName,
    /// Compression of all its tables.
    pub compression: Compression,
    /// Name of the workload; the name of a step that belongs to none is empty.
    pub workload: String,
    /// Round, from 0.
    pub round: u32,
    /// The engine's directory.
    pub dir: std::path::PathBuf,
    /// How much.
    pub scale: Scale,
    /// The `cgroup.procs` of a cgroup to join first.
    pub cgroup: Option<std::path::PathBuf>,
}

/// The steps that need a process of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Makes a base.
    Load(Base),
    /// Runs the workload.
    Measure,
    /// Writes, says so, and waits to be killed.
    WriteUntilKilled,
    /// Opens the store and prints its options.
    Options,
}
