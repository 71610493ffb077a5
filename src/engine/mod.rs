//! An ordered, durable byte store with a merge operator.
//!
//! It knows keys, opaque row states and a [`MergeOperator`] that joins them. It does not know
//! what a row is, nor clocks, tenants, networks or an async runtime: its threads are its own.
//!
//! ```text
//!            apply, update                                  get, scan
//!                  |                                            |
//!                  v                                            v
//!   commit log <- write -> memtable (active)   <-----  one SuperVersion:
//!                             | seal                    memtables, newest first
//!                             v                         row cache (point reads)
//!                          memtables (sealed)           tables, newest first
//!                             | flush                       ^
//!                             v                             |
//!                          tables, level 0 -- compaction -> levels 1..6
//! ```
//!
//! The state of a key is the join of all its records. Because the join is commutative,
//! associative and idempotent there are no sequence numbers: a record may be applied twice or in
//! another order, and replay and retry are harmless. The one rule of order is that a
//! [`Kind::Full`] record contains everything older than it on this node ([`record`]).
//!
//! | | module | what |
//! |---|---|---|
//! | **write** | `write` | stripe locks, log, memtable |
//! | | `stripes` | locks of keys, shared by hash |
//! | | [`commit_log`] | what was written before it is in a table |
//! | | `memtable` | the newest writes, in key order |
//! | | `pressure` | how close writers are to having to wait, and the wait |
//! | | `space` | room on the disk: what of it is kept free, and for what |
//! | | `ingest` | many rows at once, as a table instead of through the log |
//! | **read** | `super_version` | one consistent view of all sources |
//! | | `read` | point reads |
//! | | `scan`, [`iter`] | reads in key order; cursors and their merge |
//! | | [`cache`] | the row cache |
//! | **files** | [`sstable`] | tables: immutable, sorted, mapped |
//! | | [`version`] | which tables are alive, and where: the manifest |
//! | | [`vfs`] | the file system, real or not |
//! | | `checkpoint` | a copy by hard links |
//! | | `recovery` | opens a store |
//! | **background** | `background` | the threads, and [`Engine::step`] where there are none |
//! | | `flush` | seals memtables and makes them tables |
//! | | `compact` | runs and installs the jobs that [`compaction`] picks |
//! | | `reaper` | frees what takes long to free |
//! | | [`priority`] | threads that others go before |
//! | **forgetting** | `guards`, `safe_point` | the guard and the floor of each partition, as writers check them; their changes |
//! | | `remove`, `ranges` | takes keys out of the tables for good; sets of keys |
//! | **damage** | `scrub` | reads all blocks again; quarantine |
//! | | `discard` | gives up what cannot be read |
//! | **rows** | [`record`], [`merge`] | Full and Delta; what is asked of whoever knows rows |
//! | | [`newest`] | a merge operator for embedders |
//! | **all** | [`options`], [`error`], [`stats`] | settings, errors, counters |
//! | | [`position`], `key` | a place in the log; the first bytes of a key as a number |
//! | | [`clock`], `scale` | time; parts of amounts |
//! | | `varint`, `checksum` | numbers in files; what covers bytes and their place |
//! | **tests** | `rules` | ordering rules that a test can take away |
//!
//! # Embedding
//! ```
//! use pairdb::engine::{Engine, Options, newest::Newest};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! let engine = Engine::open(dir.path(), Options::default(), std::sync::Arc::new(Newest))?;
//! let position = engine.apply(&[(b"key", &Newest::value(1, b"value"))])?;
//! engine.wait_durable(position)?;
//! let row = engine.get(b"key")?.expect("just written");
//! assert_eq!(Newest::decode(&row)?, Some(&b"value"[..]));
//! engine.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//! Memtables are freed on a thread of their own, while writers allocate. With glibc's allocator a
//! writer may wait for it for some milliseconds, with others not (docs/decisions/0084).
//!
//! # Lock order
//! `safe_point_lock`, `flush_lock`, `install_lock`, log mutex. Stripes or `seal_lock`, log mutex:
//! never with one of the three before it. Last `blank` and `compacting`, each held for a moment. A
//! SuperVersion is swapped without a lock (read, copy, compare-and-swap).

mod background;
pub mod cache;
mod checkpoint;
pub(crate) mod checksum;
pub mod clock;
pub mod commit_log;
mod compact;
pub mod compaction;
mod discard;
pub mod error;
mod flush;
mod guards;
mod ingest;
pub mod iter;
pub(crate) mod key;
pub(crate) mod memtable;
pub mod merge;
pub mod newest;
pub mod options;
pub mod position;
mod pressure;
pub mod priority;
mod ranges;
mod read;
mod reaper;
pub mod record;
mod recovery;
mod remove;
mod rules;
mod safe_point;
mod scale;
mod scan;
mod scrub;
mod space;
pub mod sstable;
pub mod stats;
mod stripes;
mod super_version;
#[cfg(test)]
mod tests;
mod varint;
pub mod version;
pub mod vfs;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use background::Background;
use cache::RowCache;
use commit_log::CommitLog;
use compaction::{Compaction, Pacer, PickerOptions};
use guards::Guards;
use memtable::Memtable;
use stats::Counters;
use stripes::Stripes;
use super_version::SuperVersion;
use version::VersionSet;
use vfs::{FileLock, Vfs};

pub use error::{Corruption, Error, Result};
pub use merge::{MergeError, MergeOperator};
pub use options::{Options, SyncMode};
pub use position::Position;
pub use pressure::OnStall;
pub use ranges::Range;
pub use record::{Kind, Record};
pub(crate) use recovery::create_dir_durably;
pub use remove::Permit;
#[cfg(test)]
pub(crate) use rules::open_without as without_rules;
pub use scan::Scan;
pub use scrub::{ScrubPass, ScrubReport};
pub use stats::Stats;
pub use version::{Quarantined, SafePoint};
pub use write::WriteObserver;

/// What the engine takes from the world around it.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The file system.
    pub vfs: Arc<dyn Vfs>,
    /// Time, for ages and rates.
    pub clock: Arc<dyn clock::Clock>,
}

impl Default for Environment {
    /// Real files and the system's clock.
    fn default() -> Self {
        Self { vfs: Arc::new(vfs::os::OsVfs), clock: Arc::new(clock::SystemClock::default()) }
    }
}

/// How long a flush waits for an ingest ahead of it before it looks again.
const INGEST_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// An open store. All calls may run at the same time from several threads.
///
/// Dropping it stops its threads and leaves the rest to recovery, as a crash would, except that
/// what was handed to the log is written out; [`Engine::close`] also flushes, so that the next
/// open has nothing to replay.
pub struct Engine {
    shared: Arc<Shared>,
}

/// State that changes only at an exact position of the log, under its mutex.
pub(crate) struct LogState {
    /// The memtable that log records from here on belong to.
    active: Arc<Memtable>,
    /// See [`SuperVersion::generation`].
    generation: u64,
    /// Ingests that have an epoch and are not installed: nothing may be claimed Full meanwhile.
    queued_ingests: u32,
}

/// What the engine's calls and threads share.
pub(crate) struct Shared {
    // Constant after open.
    dir: PathBuf,
    options: Options,
    picker_options: PickerOptions,
    vfs: Arc<dyn Vfs>,
    clock: Arc<dyn clock::Clock>,
    operator: Arc<dyn MergeOperator>,
    /// Held, not used: keeps other processes out of the directory.
    _lock: Box<dyn FileLock>,

    // Each with its own synchronisation.
    log: CommitLog<LogState>,
    /// For the next memtable.
    blank: Mutex<Option<memtable::Blank>>,
    /// What memtables that are gone have left.
    spare: Arc<memtable::Spare>,
    stripes: Stripes,
    guards: Guards,
    observer: OnceLock<write::Observer>,
    cache: RowCache,
    super_version: ArcSwap<SuperVersion>,
    background: Background,
    counters: Counters,
    /// The manifest and its tables.
    versions: VersionSet,

    /// Held while an edit is made durable and installed, so installs come one after the other.
    install_lock: Mutex<()>,
    /// The running compactions, whose inputs are taken.
    compacting: Mutex<Vec<Arc<Compaction>>>,
    pacer: Pacer,
    /// One flush at a time, one ingest at a time, one writer that seals a full memtable.
    flush_lock: Mutex<()>,
    safe_point_lock: Mutex<()>,
    seal_lock: Mutex<()>,

    /// Milliseconds of `clock` at the last tick, continued from the life of the store before this
    /// open: near enough for cache entries, cheaper than a clock read for each get.
    now_ms: AtomicU64,
    /// What continues `clock`, in milliseconds.
    ages_from_ms: u64,
    /// When a compaction is tried again that there may be no room for, in milliseconds of `clock`.
    less_room_after_ms: AtomicU64,
    /// Whether free space is below the reserve. Relaxed: a write more or less does not matter.
    disk_full: AtomicBool,
    /// From so many bytes in the active memtable on, a write looks whether that is full, or the
    /// disk. Relaxed: as above.
    fill_max: AtomicUsize,
    /// Millionths of the disk in use. Relaxed: a figure.
    disk_used_ppm: AtomicU32,
    /// The first failure after which memory and disk may disagree.
    poisoned: OnceLock<String>,
    closed: AtomicBool,

    #[cfg(test)]
    removed_rules: Mutex<std::collections::HashSet<&'static str>>,
    #[cfg(test)]
    hooks: Mutex<tests::Hooks>,
}

impl Engine {
    /// Opens the store in `dir` on the real file system, creating it if the directory is empty.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Corruption`], [`Error::FormatTooNew`], [`Error::Io`], or
    /// [`Error::OutOfBounds`] for an option. The directory is unchanged then, except that a first
    /// open may have created it.
    pub fn open(dir: &Path, options: Options, operator: Arc<dyn MergeOperator>) -> Result<Self> {
        Self::open_in(dir, options, operator, Environment::default())
    }

    /// Opens the store in an environment of the caller's choice.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_in(
        dir: &Path,
        options: Options,
        operator: Arc<dyn MergeOperator>,
        environment: Environment,
    ) -> Result<Self> {
        let shared = Arc::new(recovery::open(dir, options, operator, environment)?);
        shared.look_at_disk();
        shared.pace_by(&shared.version());
        let engine = Self { shared };
        if engine.shared.options.compaction_threads > 0 {
            let reaper = engine.shared.versions.reaper();
            reaper.start().map_err(Error::io("start a thread for", dir))?;
            engine.shared.background.start(&engine.shared)?;
        }
        Ok(engine)
    }

    /// Flushes everything, stops the threads and refuses writes from here on. Reads stay possible.
    /// No log is left: it would only say what the tables say.
    ///
    /// # Errors
    /// The flush failed. The engine is closed all the same; nothing acknowledged is lost, the next
    /// open replays the log.
    pub fn close(&self) -> Result<()> {
        if self.shared.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let flushed = self.flush();
        self.shared.background.stop();
        self.shared.versions.reaper().stop();
        // Whatever became of the flush: nobody else syncs the log any more.
        let ended = self.shared.end_log();
        flushed.and(ended)
    }

    /// Makes everything written so far tables, durable on return.
    ///
    /// # Errors
    /// A table or the manifest could not be written.
    pub fn flush(&self) -> Result<()> {
        self.shared.flush_all()
    }

    /// The directory the store is in.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// The options it was opened with.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.shared.background.stop();
        self.shared.versions.reaper().stop();
        // Nobody is left to tell; what was acknowledged has been written out already.
        let _ = self.shared.log.write_out(self.shared.log.appended_upto());
        // Unless there was a close.
        self.shared.log.forsake();
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Engine({})", self.shared.dir.display())
    }
}

impl Shared {
    /// Time of the last tick, in milliseconds.
    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    /// The tree now, for those who need tables for long: with a whole view they would keep
    /// memtables that are flushed meanwhile.
    fn version(&self) -> Arc<version::Version> {
        Arc::clone(&self.super_version.load().version)
    }

    /// Whether writes are refused because the engine is closing.
    fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Refuses writes from here on. The first cause is kept.
    fn poison(&self, cause: &str) {
        self.poisoned.get_or_init(|| cause.to_owned());
        self.background.progress();
    }

    /// Refuses work whose result could not be installed.
    fn check_unpoisoned(&self) -> Result<()> {
        match self.poisoned.get() {
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// Seals the active memtable and works off the queue as it is then.
    fn flush_all(&self) -> Result<()> {
        let epoch = self.seal(false);
        loop {
            let installs = self.background.installs();
            if self.super_version.load().oldest_unflushed_epoch() > epoch {
                return Ok(());
            }
            if !self.flush_first()? {
                // An ingest is at the head; its caller installs it and then tells.
                self.background.wait_for_install(installs, INGEST_WAIT);
            }
        }
    }

    /// Calls the test's hook of this name, if a test has set one.
    #[cfg(test)]
    fn hook(&self, name: &'static str) {
        tests::run_hook(self, name);
    }

    #[cfg(not(test))]
    #[inline(always)]
    fn hook(&self, _name: &'static str) {}
}

#[cfg(test)]
impl Engine {
    /// Has a test's code run at the hook of this name, once.
    pub fn at_hook(&self, name: &'static str, run: impl FnOnce() + Send + 'static) {
        self.shared.hooks.lock().insert(name, Box::new(|_| run()));
    }
}
