//! A versioned store: rows with a causal history, in tenants, on the engine.
//!
//! It joins [`causality`](crate::causality) and [`mod@engine`]: what a row means comes
//! from the one, where its bytes are from the other. It knows nothing of networks, other nodes and
//! async runtimes; all its calls are synchronous and may run at the same time.
//!
//! ```text
//! directory
//!   LOCK              held while the store is open
//!   IDENTITY, LEASE   who the node is, and how far its clock may go: `identity`
//!   TENANTS           `catalog`
//!   engine/           the rows
//! ```
//!
//! | | modules | what |
//! |---|---|---|
//! | write | `write`, `prepared`, `idempotency` | writes and deletes; batches that are not durable yet; a write that is sent again is made once |
//! | read | `read`, `scan`, `visit`, `row` | point reads; pages of rows; the rows of a range, one after the other; rows as clients see them |
//! | replicas | `raw`, `replicate`, [`leaves`], `remove` | rows as bytes and digests; rows from other replicas; what has changed; rows that are not owned any more |
//! | rows, tenants | [`key`], [`merge`], [`tenant`], `tenants`, [`catalog`] | where a row lies; how rows join and when they may go; one tenant; all at one moment; where they are kept |
//! | who, when | [`identity`], `minter`, `steady` | actor, generation and the clock's lease; times of writes; the time of day without its jumps ahead |
//! | forgetting, damage | `safe_point`, `damage` | when deletes are forgotten; what cannot be read, until others have given it back |
//! | bounds, world | [`limits`], [`disk`], [`environment`], [`error`], `document` | what may come in; what is refused as the disk fills up; files, time and chance; errors; small files that are replaced as a whole |
//!
//! # Example
//! ```
//! use pairdb::store::{Mutation, Store, StoreOptions};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! let store = Store::open(dir.path(), StoreOptions::default())?;
//! let write = |value: &str, context| Mutation {
//!     key: b"colour".to_vec(),
//!     value: Some(value.into()),
//!     context,
//!     ..Mutation::default()
//! };
//! store.write("default", write("red", None))?;
//! store.write("default", write("blue", None))?; // has not seen "red": both stay
//! let row = store.read("default", b"colour")?;
//! assert_eq!(row.siblings.len(), 2);
//! store.write("default", write("violet", Some(row.context)))?;
//! assert_eq!(store.read("default", b"colour")?.siblings[0].value, b"violet");
//! store.close()?;
//! # Ok::<(), pairdb::store::Error>(())
//! ```

pub mod catalog;
pub mod cursor;
mod damage;
pub mod disk;
pub(crate) mod document;
pub mod environment;
pub mod error;
mod idempotency;
pub mod identity;
pub mod key;
pub mod leaves;
pub mod limits;
pub mod merge;
mod minter;
mod prepared;
mod raw;
mod read;
mod remove;
mod replicate;
mod row;
mod safe_point;
mod scan;
mod steady;
pub mod tenant;
mod tenants;
#[cfg(test)]
mod tests;
mod visit;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::causality::{Actor, ContextKey};
use crate::engine::{self, Engine};

use merge::RowOperator;
use minter::Minter;

pub use catalog::{LocalCatalog, TenantCatalog};
pub use damage::Unreadable;
pub use disk::DiskState;
pub use engine::{ScrubPass, ScrubReport};
pub use environment::{Environment, MonotonicClock, Random, WallClock};
pub use error::{Error, Outcome, Result};
pub use identity::{Identity, IdentityFile, IdentityOptions, Lease, Start, Starting};
pub use key::{EngineKey, KeyRange};
pub use limits::Limits;
pub use prepared::{Prepared, ShippedRow};
pub use raw::{FloorDigest, RawRow};
pub use read::Early;
pub use remove::Permit;
pub use replicate::{ForeignRow, Joined};
pub use row::{ReadRow, Sibling};
pub use safe_point::{Participant, Words};
pub use scan::{RowFilter, RowPage, ScanPage, ScanPlan, ScanRequest, TokenRange};
pub use tenant::{Mode, Retention, Tenant, TenantChange, TenantId, TenantSpec};
pub use visit::{FoundRow, OnDamage, PageBounds};
pub use write::{Done, Mutation, Written};

const LOCK_NAME: &str = "LOCK";
const ENGINE_DIR_NAME: &str = "engine";

/// What a store is opened with.
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Of the engine.
    pub engine: engine::Options,
    /// What may come in.
    pub limits: Limits,
    /// When deletes are forgotten.
    pub safe_points: SafePoints,
    /// Which cluster the node belongs to, and whether it takes a new actor.
    pub identity: IdentityOptions,
    /// Where the tenants are, if not in the store's own directory: then the cluster keeps them.
    pub catalog: Option<Arc<dyn TenantCatalog>>,
}

/// How a node that is its own cluster sets its safe points. All in milliseconds.
#[derive(Clone, Debug)]
pub struct SafePoints {
    /// How far behind the clock they are set: longer than a write takes.
    pub margin_ms: u64,
    /// How long one that counts stays before it is moved.
    pub interval_ms: u64,
    /// How long one may wait for memtables to become tables before they are flushed for it.
    pub flush_ms: u64,
}

impl Default for SafePoints {
    fn default() -> Self {
        Self { margin_ms: 12_000, interval_ms: 60_000, flush_ms: 600_000 }
    }
}

/// The store's figures at one moment. Counters count since it was opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StoreStats {
    /// Of the engine.
    pub engine: engine::Stats,
    /// Tenants there are.
    pub tenants: u64,
    /// Tokens that rows forgot before their window was over, because they had too many.
    pub tokens_evicted: u64,
    /// Times the actor was replaced because data was found damaged.
    pub actor_rotations: u64,
    /// Blocks of tables that cannot be read now.
    pub blocks_unreadable: u64,
    /// Blocks that were given up, for others have their rows.
    pub blocks_discarded: u64,
    /// Partitions that have lost data and have not got all of it back yet.
    pub partitions_damaged: u64,
    /// Versions that one replica had below the floors of two and another had not: somebody has
    /// lost data without noticing. They were kept.
    pub below_safe_point: u64,
    /// How far the hybrid clock runs ahead of the wall clock, in milliseconds.
    pub clock_ahead_ms: u64,
    /// The floor below which deletes are forgotten, on the hybrid logical clock.
    pub safe_point: u64,
    /// The fraction of the disk that is in use.
    pub disk_used: f64,
    /// Bytes of it that values may still take.
    pub disk_room: u64,
    /// What that allows.
    pub disk_state: DiskState,
}

#[derive(Debug, Default)]
struct Counters {
    tokens_evicted: AtomicU64,
    actor_rotations: AtomicU64,
    blocks_discarded: AtomicU64,
    below_safe_point: AtomicU64,
}

impl Counters {
    fn tokens_evicted(&self, n: usize) {
        if n > 0 {
            self.tokens_evicted.fetch_add(n as u64, Ordering::Relaxed);
        }
    }
}

/// An open store.
///
/// Dropping it without [`Store::close`] is an unclean stop: nothing acknowledged is lost, and the
/// next open takes a new actor.
#[derive(Debug)]
pub struct Store {
    // Constant after open.
    dir: PathBuf,
    environment: Environment,
    limits: Limits,
    safe_points: SafePoints,

    // Each with its own synchronisation.
    /// Keys contexts and cursors to the cluster. Changes once, when the node gets one, before it
    /// serves.
    cluster_hash: AtomicU64,
    engine: Engine,
    catalog: Arc<dyn TenantCatalog>,
    identity: IdentityFile,
    /// The identity's, where every write finds it without a lock.
    actor: AtomicU64,
    minter: Minter,
    counters: Counters,
    closed: AtomicBool,
    /// Why no writes are taken until the next start, if so: no new actor could be minted.
    read_only: std::sync::OnceLock<String>,
    /// Damaged places met so far.
    damage: Mutex<damage::Met>,
    floor_state: Mutex<safe_point::FloorState>,
    /// Leaves written to since they were last looked at.
    dirty: Arc<leaves::DirtyLeaves>,

    /// Held, not used: keeps other processes out of the directory. The last to be dropped.
    _lock: Box<dyn engine::vfs::FileLock>,
}

/// The engine's clock over the environment's.
#[derive(Debug)]
struct EngineClock(Arc<dyn MonotonicClock>);

impl engine::clock::Clock for EngineClock {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Store {
    /// Opens the store in `dir` in the real world, creating it if the directory is empty.
    ///
    /// # Errors
    /// An option out of its bounds, a directory in use, of another cluster or a newer format,
    /// damage, or I/O. A start that is refused for what the directory holds has changed nothing in
    /// it, except that there may be an empty `LOCK`.
    pub fn open(dir: &Path, options: StoreOptions) -> Result<Self> {
        Self::open_in(dir, options, Environment::system())
    }

    /// Opens the store in a world of the caller's choice.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_in(dir: &Path, options: StoreOptions, environment: Environment) -> Result<Self> {
        let limits = options.limits.validated()?;
        // Which writes may have it is decided here: `check_disk`.
        let mut engine_options = engine::Options { guard_reserve: false, ..options.engine };
        engine_options.validate()?;
        let vfs = &*environment.vfs;
        create_dir(vfs, dir)?;
        let lock_path = dir.join(LOCK_NAME);
        let lock = vfs.lock(&lock_path).map_err(engine::Error::io("lock", &lock_path))?;
        let lock = lock.ok_or_else(|| Error::Locked { path: dir.to_path_buf() })?;
        let engine_dir = dir.join(ENGINE_DIR_NAME);
        let starting = Starting::read(&environment, dir, options.identity)?;
        // Without its rows the node would say of each that there is none, and be believed.
        engine_options.create_if_missing &= !starting.has_run();
        let open_engine = || {
            Engine::open_in(
                &engine_dir,
                engine_options,
                Arc::new(RowOperator { token_window_ms: limits.token_window_ms }),
                engine::Environment {
                    vfs: Arc::clone(&environment.vfs),
                    clock: Arc::new(EngineClock(Arc::clone(&environment.monotonic))),
                },
            )
        };
        // In this order a start that is refused has changed nothing; see `identity`.
        let (catalog, identity, engine) = if starting.is_first() {
            refuse_rows(vfs, &engine_dir)?;
            let catalog = open_catalog(&environment, dir, options.catalog, true)?;
            (catalog, starting.begin()?, open_engine()?)
        } else {
            let catalog = open_catalog(&environment, dir, options.catalog, false)?;
            let engine = open_engine()?;
            (catalog, starting.begin()?, engine)
        };
        let minter = Minter::open(Arc::clone(identity.lease()), &environment)?;
        let began = environment.monotonic.elapsed();
        let dirty = Arc::new(leaves::DirtyLeaves::all());
        let written = Arc::clone(&dirty);
        engine.observe(Box::new(move |key| written.mark_key(key)));
        Ok(Self {
            dir: dir.to_path_buf(),
            cluster_hash: AtomicU64::new(cluster_hash(identity.identity().cluster_id)),
            actor: AtomicU64::new(identity.identity().actor),
            environment,
            limits,
            safe_points: options.safe_points,
            engine,
            catalog,
            identity,
            minter,
            counters: Counters::default(),
            closed: AtomicBool::new(false),
            read_only: std::sync::OnceLock::new(),
            damage: Mutex::default(),
            floor_state: Mutex::new(safe_point::FloorState::new(began)),
            dirty,
            _lock: lock,
        })
    }

    /// Creates a tenant; durable on return.
    ///
    /// # Errors
    /// [`Error::TenantExists`], a name or setting that is not allowed, or I/O.
    pub fn create_tenant(&self, spec: TenantSpec) -> Result<Arc<Tenant>> {
        self.check_open()?;
        self.catalog.create(spec)
    }

    /// The tenant of this name.
    ///
    /// # Errors
    /// [`Error::UnknownTenant`], [`Error::InvalidTenantName`].
    pub fn tenant(&self, name: &str) -> Result<Arc<Tenant>> {
        self.catalog.get(name)
    }

    /// All tenants, by name.
    pub fn tenants(&self) -> Vec<Arc<Tenant>> {
        self.catalog.list()
    }

    /// Alters a tenant; durable on return.
    ///
    /// # Errors
    /// [`Error::UnknownTenant`], a setting that is not allowed, or I/O.
    pub fn alter_tenant(&self, name: &str, change: TenantChange) -> Result<Arc<Tenant>> {
        self.check_open()?;
        self.catalog.alter(name, change)
    }

    /// Makes everything written so far tables, durable on return.
    ///
    /// # Errors
    /// I/O, which may leave the store read-only.
    pub fn flush(&self) -> Result<()> {
        Ok(self.engine.flush()?)
    }

    /// Compacts all tables.
    ///
    /// # Errors
    /// I/O, or damaged tables.
    pub fn compact(&self) -> Result<()> {
        self.watch(self.engine.compact_all().map_err(Into::into))
    }

    /// Makes `dir`, on the same file system and not holding files yet, a store with everything
    /// written so far. Opened, it has this node's identity under a new actor: it is for a restore
    /// of this node, not for a second one beside it.
    ///
    /// # Errors
    /// I/O; what lies in `dir` then is no store.
    pub fn checkpoint(&self, dir: &Path) -> Result<()> {
        let vfs = &*self.environment.vfs;
        let io = engine::Error::io;
        self.engine.checkpoint(&dir.join(ENGINE_DIR_NAME))?;
        // After the rows: the lease that is copied is then above all of their times.
        for name in vfs.list(&self.dir).map_err(io("list", &self.dir))? {
            let from = self.dir.join(&name);
            if name.as_os_str() == LOCK_NAME || name.extension().is_some_and(|end| end == "tmp") {
                continue;
            }
            if let Some(bytes) = document::read_file(vfs, &from, document::DOCUMENT_BYTES_MAX)? {
                document::replace_file(vfs, &dir.join(&name), &bytes)?;
            }
        }
        Ok(vfs.sync_dir(dir).map_err(io("sync", dir))?)
    }

    /// How far the engine is behind: 0 idle, 1 refuses writes.
    pub fn pressure(&self) -> f64 {
        self.engine.pressure()
    }

    /// Why writes are refused whatever the load, if they are: the pressure is 1 then too.
    pub fn refusal(&self) -> Option<Error> {
        self.check_open().err().or_else(|| self.engine.refusal().map(Into::into))
    }

    /// The store's figures now.
    pub fn stats(&self) -> StoreStats {
        let ahead =
            self.minter.last().saturating_sub(crate::causality::clock::time_of_ms(self.now_ms()));
        StoreStats {
            engine: self.engine.stats(),
            tenants: self.catalog.list().len() as u64,
            tokens_evicted: self.counters.tokens_evicted.load(Ordering::Relaxed),
            actor_rotations: self.counters.actor_rotations.load(Ordering::Relaxed),
            blocks_unreadable: self.engine.quarantined().len() as u64,
            blocks_discarded: self.counters.blocks_discarded.load(Ordering::Relaxed),
            partitions_damaged: self.damaged().len() as u64,
            below_safe_point: self.counters.below_safe_point.load(Ordering::Relaxed),
            clock_ahead_ms: crate::causality::clock::ms_of_time(ahead),
            safe_point: self.engine.safe_point(0).map_or(0, |point| point.floor),
            disk_used: self.engine.disk_used(),
            disk_room: self.disk_room(),
            disk_state: self.disk_state(),
        }
    }

    /// There are `2^partition_bits` partitions.
    pub fn partition_bits(&self) -> u32 {
        self.engine.options().partition_bits
    }

    /// Which leaves of the token space were written to.
    pub fn dirty_leaves(&self) -> &leaves::DirtyLeaves {
        &self.dirty
    }

    /// Does one piece of background work; `false`: there was none. For stores whose engine has no
    /// threads (`compaction_threads = 0`).
    ///
    /// # Errors
    /// The work failed.
    pub fn step(&self) -> Result<bool> {
        self.watch(self.engine.step().map_err(Into::into))
    }

    /// Who the node is.
    pub fn identity(&self) -> Identity {
        self.identity.identity()
    }

    /// Refuses writes from here on, makes all of them tables and leaves the mark of a clean stop.
    ///
    /// # Errors
    /// The flush failed. Nothing acknowledged is lost; the next open replays the log.
    pub fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.engine.close()?;
        self.identity.close()
    }

    /// What the store is run with.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// What may come in.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Milliseconds since 1970 by the node's clock.
    pub fn now_ms(&self) -> u64 {
        self.environment.clock.now_ms()
    }

    /// [`Store::now_ms`] for what is made durable and cannot be taken back: a step of the clock of
    /// more than some minutes does not count before it has stood for as long.
    pub fn steady_ms(&self) -> u64 {
        self.minter.steady_ms()
    }

    fn actor(&self) -> Actor {
        Actor::new(self.actor.load(Ordering::Acquire))
    }

    /// Gives the node its cluster; see [`IdentityFile::assign_cluster`]. What clients were given
    /// before is of no use after.
    ///
    /// # Errors
    /// [`Error::WrongCluster`] if it has another one; I/O.
    pub fn assign_cluster(&self, cluster_id: u128) -> Result<()> {
        self.identity.assign_cluster(cluster_id)?;
        self.cluster_hash.store(cluster_hash(Some(cluster_id)), Ordering::Release);
        Ok(())
    }

    fn raise_clock_to(&self, time: u64) -> Result<()> {
        self.minter.raise_to(time)
    }

    fn context_key(&self, engine_key: &[u8]) -> ContextKey {
        ContextKey::new(self.cluster_hash.load(Ordering::Acquire), engine_key)
    }

    /// Whether the store takes writes, as far as that does not depend on load or space.
    ///
    /// # Errors
    /// [`Error::Closed`], or [`Error::ReadOnly`] with the first failure.
    pub fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        self.engine.poisoned().map_or(Ok(()), |cause| Err(Error::ReadOnly { cause }))
    }

    /// The durable bound of the clock: no time above it was ever minted.
    pub fn lease(&self) -> u64 {
        self.identity.lease().bound()
    }

    /// See [`IdentityFile::lease_found`].
    pub fn lease_found(&self) -> u64 {
        self.identity.lease_found()
    }

    /// See [`IdentityFile::confirm_lease`].
    ///
    /// # Errors
    /// I/O, after which the next start may be unclean.
    pub fn confirm_lease(&self) -> Result<()> {
        self.identity.confirm_lease()
    }

    /// Has the bound of the clock follow what was written and taken from others. To be called now
    /// and then by a node whose bound others remember.
    ///
    /// # Errors
    /// I/O, after which no times are minted until the next start.
    pub fn follow_clock(&self) -> Result<()> {
        self.minter.follow()
    }

    /// Whether writes that begin here get a time: the lease of the clock can be extended, and the
    /// clock is not too far ahead of the wall clock.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] until the next start; [`Error::ClockUnsafe`] until the clock is right.
    pub fn check_mints(&self) -> Result<()> {
        self.minter.check()
    }

    /// Whether this layer takes writes.
    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::Closed);
        }
        match self.read_only.get() {
            Some(cause) => Err(Error::ReadOnly { cause: cause.clone() }),
            None => Ok(()),
        }
    }
}

/// Creates the directory, durably: its name too. Where no store ever ran the name is synced even
/// if it is there, for a first start that was killed may have left it unsynced.
fn create_dir(vfs: &dyn engine::vfs::Vfs, dir: &Path) -> Result<()> {
    engine::create_dir_durably(vfs, dir)?;
    if !IdentityFile::exists(vfs, dir)?
        && let Some(parent) = dir.parent()
    {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        vfs.sync_dir(parent).map_err(engine::Error::io("sync", parent))?;
    }
    Ok(())
}

/// What contexts and cursors are keyed with.
fn cluster_hash(cluster_id: Option<u128>) -> u64 {
    xxh3_64(&cluster_id.unwrap_or_default().to_be_bytes())
}

/// The catalog that was handed in; or that of the directory, which is written anew only where no
/// store ever ran.
fn open_catalog(
    environment: &Environment,
    dir: &Path,
    elsewhere: Option<Arc<dyn TenantCatalog>>,
    is_first: bool,
) -> Result<Arc<dyn TenantCatalog>> {
    if let Some(catalog) = elsewhere {
        if LocalCatalog::exists(&*environment.vfs, dir)? {
            // The cluster would give the ids of its tenants, and so their rows, to others.
            let why = format!("{} has tenants of its own: it was no cluster's", dir.display());
            return Err(Error::InvalidArgument { what: "data directory", why });
        }
        return Ok(catalog);
    }
    let open = if is_first { LocalCatalog::open_or_create } else { LocalCatalog::open };
    Ok(Arc::new(open(environment, dir)?))
}

/// A directory with rows is not a new one.
fn refuse_rows(vfs: &dyn engine::vfs::Vfs, engine_dir: &Path) -> Result<()> {
    if vfs.exists(engine_dir).map_err(engine::Error::io("look for", engine_dir))? {
        let what = "it holds rows, but IDENTITY, which says whose, is missing";
        return Err(engine::Error::corrupt(engine_dir, 0, what).into());
    }
    Ok(())
}
