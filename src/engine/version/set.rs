//! The version set: the current version, and the one way to change it.
//!
//! Installing an edit: judge it, open the tables it adds, append it to the manifest, sync, then
//! hand out the new version. Files and directory must be synced before by whoever made the tables.
//!
//! # Invariants
//! 1. What readers see was durable in the manifest before.
//! 2. A table's file is removed after the edit that removes it is durable, and after the last
//!    version that holds it is gone.
//! 3. At open, table files and manifests that the state does not name are removed; file numbers go
//!    on above every number seen.
//!
//! It does not know the log or memtables: the flushed position is a word it keeps.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::edit::VersionEdit;
use super::handle::{FileCounters, TableHandle, TableRef};
use super::manifest::{self, Manifest};
use super::state::VersionState;
use super::table_meta::TableMeta;
use super::tree::{Pins, Version};
use crate::engine::error::{Error, Result};
use crate::engine::options::{LEVELS, Options};
use crate::engine::reaper::Reaper;
use crate::engine::vfs::Vfs;

/// See the module page.
#[derive(Debug)]
pub struct VersionSet {
    // Constant after open.
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    verify_every_read: bool,
    counters: Arc<FileCounters>,
    pins: Arc<Pins>,
    recovery: RecoveryReport,

    /// Orders edits; held over the sync of the manifest.
    manifest: Mutex<Manifest>,
    /// Its length. Relaxed: a figure, to be had while the mutex is held over a sync that hangs.
    manifest_bytes: AtomicU64,
    /// The current version. Stored under `manifest`, loaded by anybody.
    current: ArcSwap<Version>,
    /// Numbers handed out. Relaxed: a number is only unique; edits publish what was used.
    file_next: AtomicU64,
    epoch_next: AtomicU64,
}

/// What opening found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the directory held no store: a new one was made.
    pub created: bool,
    /// Bytes of a torn last edit that were cut off the manifest.
    pub torn_bytes: u64,
    /// Orphaned files removed.
    pub orphans_removed: u64,
}

impl VersionSet {
    /// Opens the tree in `dir`, which exists and is locked by the caller, or makes an empty one.
    ///
    /// # Errors
    /// What [`Manifest::recover`] and the opening of a table return; `Corruption` if a table's
    /// file is gone, or `CURRENT` beside tables.
    pub fn recover(vfs: Arc<dyn Vfs>, dir: &Path, options: &Options) -> Result<Self> {
        let recovered = Manifest::recover(&*vfs, dir, options.partition_bits)?;
        let files = vfs.list(dir).map_err(Error::io("list", dir))?;
        let mut recovery = RecoveryReport { created: recovered.is_none(), ..Default::default() };
        let state = match recovered {
            Some(recovered) => {
                recovery.torn_bytes = recovered.torn_bytes;
                recovered.state
            }
            None if files.iter().any(|file| TableMeta::number_of(file).is_some()) => {
                let what = "it is missing, but there are tables";
                return Err(Error::corrupt(&dir.join("CURRENT"), 0, what));
            }
            None => VersionState::new(options.partition_bits),
        };
        let file_last = files.iter().filter_map(|file| TableMeta::number_of(file)).max();
        let state = state.with_file_next(file_last.map_or(0, |last| last.saturating_add(1)));

        let (counters, pins) = (Arc::new(FileCounters::default()), Arc::new(Pins::default()));
        let opener =
            Opener { vfs: &vfs, dir, verify: options.verify_every_read, counters: &counters };
        let levels = opener.open_all(&state, &files)?;

        let number = files.iter().filter_map(|file| manifest::number_of(file)).max();
        let manifest = Manifest::create(
            Arc::clone(&vfs),
            dir,
            number.map_or(1, |last| last.saturating_add(1)),
            &state,
        )?;
        manifest.install()?;
        recovery.orphans_removed = remove_orphans(&*vfs, dir, &files, &state, &manifest)?;

        let (file_next, epoch_next) = (state.file_next(), state.epoch_next());
        let version = Version::new(0, Arc::new(state), levels, Arc::clone(&pins));
        Ok(Self {
            verify_every_read: options.verify_every_read,
            dir: dir.to_path_buf(),
            vfs,
            counters,
            pins,
            recovery,
            manifest_bytes: AtomicU64::new(manifest.bytes()),
            manifest: Mutex::new(manifest),
            current: ArcSwap::from_pointee(version),
            file_next: AtomicU64::new(file_next),
            epoch_next: AtomicU64::new(epoch_next),
        })
    }

    /// The current version.
    pub fn current(&self) -> Arc<Version> {
        self.current.load_full()
    }

    /// A file number that no other table has or had.
    pub fn allocate_file_number(&self) -> u64 {
        self.file_next.fetch_add(1, Ordering::Relaxed)
    }

    /// An epoch above all before: of a new memtable, or of an ingest.
    pub fn allocate_epoch(&self) -> u64 {
        self.epoch_next.fetch_add(1, Ordering::Relaxed)
    }

    /// The path of table `number`.
    pub fn table_path(&self, number: u64) -> PathBuf {
        TableMeta::path(&self.dir, number)
    }

    /// What opening found.
    pub fn recovery(&self) -> RecoveryReport {
        self.recovery
    }

    /// What became of obsolete files.
    pub fn file_counters(&self) -> &FileCounters {
        &self.counters
    }

    /// Who frees tables that nobody needs any more, and what else is dear to free.
    pub fn reaper(&self) -> &Arc<Reaper> {
        &self.pins.reaper
    }

    /// Length of the manifest in bytes. Waits for nothing.
    pub fn manifest_bytes(&self) -> u64 {
        self.manifest_bytes.load(Ordering::Relaxed)
    }

    /// Versions that are superseded but still read: how many, and for how many milliseconds the
    /// oldest one is superseded. Their tables keep their space.
    pub fn pinned_versions(&self, now_ms: u64) -> (usize, u64) {
        let (count, since) = self.pins.oldest();
        (count, since.map_or(0, |since| now_ms.saturating_sub(since)))
    }

    /// Waits until the files of tables that were replaced are removed, at most about `limit`: as
    /// long as somebody reads them they stay.
    pub fn wait_until_freed(&self, limit: Duration) {
        self.pins.wait_until_freed(limit);
    }

    /// Whether it is unknown what the manifest holds, since an earlier write or sync of it failed:
    /// every edit is refused.
    pub fn is_in_doubt(&self) -> bool {
        self.manifest.lock().check().is_err()
    }

    /// Makes `edit` durable and installs the version it leads to, which is returned.
    ///
    /// The next file number and epoch are filled in. The caller has synced the files of added
    /// tables and their directory.
    ///
    /// # Errors
    /// `Edit` naming the broken rule, or what opening an added table returns: nothing is changed.
    /// `Io` if the manifest could not be written or synced; whether the edit will be found at the
    /// next open is unknown, and every later call fails with `Poisoned`.
    pub fn log_and_apply(&self, mut edit: VersionEdit, now_ms: u64) -> Result<Arc<Version>> {
        let mut manifest = self.manifest.lock();
        manifest.check()?;
        let before = self.current.load_full();
        edit.file_next =
            Some(self.file_next.load(Ordering::Relaxed).max(before.state().file_next()));
        edit.epoch_next =
            Some(self.epoch_next.load(Ordering::Relaxed).max(before.state().epoch_next()));
        let state = Arc::new(before.state().apply(&edit)?);
        let levels = self.levels(&before, &state)?;
        manifest.append(&edit)?;
        Ok(self.install(&mut manifest, &before, state, levels, now_ms))
    }

    /// The open tables of `state`: those of `before`, and newly opened ones.
    fn levels(&self, before: &Version, state: &VersionState) -> Result<[Vec<TableRef>; LEVELS]> {
        let handles: HashMap<u64, &Arc<TableHandle>> =
            before.tables().map(|table| (table.meta.number, &table.handle)).collect();
        let opener = Opener {
            vfs: &self.vfs,
            dir: &self.dir,
            verify: self.verify_every_read,
            counters: &self.counters,
        };
        collect_levels(state, |meta| match handles.get(&meta.number) {
            Some(handle) => Ok(Arc::clone(handle)),
            None => opener.open(meta.number),
        })
    }

    fn install(
        &self,
        manifest: &mut Manifest,
        before: &Arc<Version>,
        state: Arc<VersionState>,
        levels: [Vec<TableRef>; LEVELS],
        now_ms: u64,
    ) -> Arc<Version> {
        let after = Arc::new(Version::new(before.id() + 1, state, levels, Arc::clone(&self.pins)));
        self.pins.supersede(before.id(), now_ms);
        self.current.store(Arc::clone(&after));
        let kept: HashSet<u64> = after.tables().map(|table| table.meta.number).collect();
        for table in before.tables().filter(|table| !kept.contains(&table.meta.number)) {
            table.handle.mark_obsolete();
        }
        if manifest.rewrite_due() {
            self.rewrite(manifest, after.state());
        }
        self.manifest_bytes.store(manifest.bytes(), Ordering::Relaxed);
        after
    }

    /// Replaces the manifest by a snapshot. The state is durable already, so failing is no error
    /// of the edit: without a new manifest the old one goes on; if it is unknown which one is in
    /// use, the next edit is refused.
    fn rewrite(&self, manifest: &mut Manifest, state: &VersionState) {
        let number = manifest.number() + 1;
        let new = match Manifest::create(Arc::clone(&self.vfs), &self.dir, number, state) {
            Ok(new) => new,
            Err(_) => {
                // Whatever was written under that number must not be in the way the next time.
                let _ = self.vfs.remove(&manifest::path(&self.dir, number));
                return manifest.put_rewrite_off();
            }
        };
        if let Err(error) = new.install() {
            return manifest.poison(&error);
        }
        let old = std::mem::replace(manifest, new);
        // If this fails, the next open does it.
        let _ = self.vfs.remove(old.path());
    }
}

struct Opener<'a> {
    vfs: &'a Arc<dyn Vfs>,
    dir: &'a Path,
    verify: bool,
    counters: &'a Arc<FileCounters>,
}

impl Opener<'_> {
    fn open(&self, number: u64) -> Result<Arc<TableHandle>> {
        TableHandle::open(self.vfs, self.dir, number, self.verify, self.counters)
    }

    fn open_all(&self, state: &VersionState, files: &[PathBuf]) -> Result<[Vec<TableRef>; LEVELS]> {
        let there: HashSet<u64> =
            files.iter().filter_map(|file| TableMeta::number_of(file)).collect();
        collect_levels(state, |meta| {
            let number = meta.number;
            if there.contains(&number) {
                self.open(number)
            } else {
                let path = TableMeta::path(self.dir, number);
                Err(Error::corrupt(&path, 0, "it is missing, but the manifest names it"))
            }
        })
    }
}

fn collect_levels(
    state: &VersionState,
    mut open: impl FnMut(&TableMeta) -> Result<Arc<TableHandle>>,
) -> Result<[Vec<TableRef>; LEVELS]> {
    let mut levels: [Vec<TableRef>; LEVELS] = Default::default();
    for (level, tables) in levels.iter_mut().enumerate() {
        for meta in state.level(level) {
            tables.push(TableRef { meta: Arc::clone(meta), handle: open(meta)? });
        }
    }
    Ok(levels)
}

/// Removes table files and manifests that are not in use. A file that cannot be removed fails the
/// open: a directory that refuses this will refuse more.
fn remove_orphans(
    vfs: &dyn Vfs,
    dir: &Path,
    files: &[PathBuf],
    state: &VersionState,
    manifest: &Manifest,
) -> Result<u64> {
    let named: HashSet<u64> = state.tables().map(|table| table.number).collect();
    let mut removed = 0;
    for file in files {
        let orphan = match (TableMeta::number_of(file), manifest::number_of(file)) {
            (Some(number), _) => !named.contains(&number),
            (None, Some(number)) => number != manifest.number(),
            (None, None) => false,
        };
        if orphan {
            let path = dir.join(file.file_name().unwrap_or_default());
            vfs.remove(&path).map_err(Error::io("remove", &path))?;
            removed += 1;
        }
    }
    Ok(removed)
}
