//! Every touch of the file system goes through here.
//!
//! [`Vfs`] is what the engine needs of a file system and no more. Three of them exist: `os` (real
//! files), `mem` (files in memory that remember what was synced, so that a crash can be replayed:
//! `mem::MemVfs::crash_clone`) and `fault` (wraps another one and makes the n-th call fail).
//!
//! What a caller may rely on after a crash, and nothing else:
//! 1. bytes written before a `sync_data`/`sync_all` that returned `Ok` are there;
//! 2. a name created, renamed or removed before a `sync_dir` of its directory that returned `Ok`
//!    is there, renamed or gone;
//! 3. everything else happened wholly, partly, in another order, or not at all.
//!
//! A directory is a name in its parent like any other: after creating one, sync the parent. The
//! parent of a bare relative name is the empty path, which means the current directory.

pub mod fault;
pub mod hold;
pub mod mem;
pub mod os;

use std::fmt;
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file system. Errors are plain [`io::Error`]s; the caller adds the verb and the path.
pub trait Vfs: fmt::Debug + Send + Sync + 'static {
    /// Creates `path` for reading and writing. It must not exist (`AlreadyExists`).
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading and writing, without truncation.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Maps a whole existing file for reading. The file must never be written or truncated while
    /// the mapping lives; the engine maps only finished tables.
    fn map(&self, path: &Path) -> io::Result<Mapping>;

    /// Renames a file, replacing `to`. Durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after `sync_dir`. Open files and mappings stay readable.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Gives an existing file a second name. Durable after `sync_dir`.
    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Creates a directory and its missing parents; no error if it exists.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// The bare names (without the directory) of the files in a directory, not of the directories
    /// in it, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;

    /// Whether a file or directory of this name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Takes an exclusive lock on the file `path`, creating it if needed; `Ok(None)` if someone
    /// else holds it. The lock lasts until the value is dropped or the process ends.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn FileLock>>>;

    /// Size and free space of the file system that holds `path`.
    fn disk_space(&self, path: &Path) -> io::Result<DiskSpace>;
}

/// An open file. All calls take `&self` and may run at the same time from several threads.
pub trait File: fmt::Debug + Send + Sync + 'static {
    /// Writes all of `bytes` at `offset`, extending the file if needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file holds no byte.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Extends the file to `len` bytes of zeros with blocks really allocated, so that later writes
    /// inside it cannot fail for want of space.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Makes ready for many short writes into `offset..offset + len`, which lie around the end of
    /// what was written: blocks are allocated, the file extended if needed, and writes wholly in
    /// the range need no call to the system and no space any more. What they promise is the same.
    /// A later range replaces this one. For a thread that may wait for the disk.
    ///
    /// # Errors
    /// `Unsupported` where that cannot be had, other errors where it might later. Writes then go
    /// the usual way.
    fn prepare(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Makes written bytes, and the length if it changed, durable.
    fn sync_data(&self) -> io::Result<()>;

    /// Asks the system to start writing dirty pages of the range back; no promise. Spreads the
    /// cost of the later sync.
    fn start_writeback(&self, offset: u64, len: u64);

    /// Waits until what was asked for with [`File::start_writeback`] is written. It is not durable
    /// yet: that takes a sync.
    ///
    /// # Errors
    /// A page could not be written. The sync that follows may not say so again.
    fn wait_writeback(&self, offset: u64, len: u64) -> io::Result<()>;
}

/// Held while a directory is in use.
pub trait FileLock: fmt::Debug + Send + Sync {}

/// Size and free space of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// What is taken, and what an unprivileged process may still take.
    pub total: u64,
    /// What an unprivileged process may still take.
    pub available: u64,
}

/// The bytes of a whole file.
pub enum Mapping {
    /// Mapped by the operating system.
    Os(memmap2::Mmap),
    /// Held in memory.
    Memory(Arc<[u8]>),
    /// Held in memory, with a place that the disk does not give back: of [`fault`].
    Unreadable {
        /// What the file holds.
        bytes: Arc<[u8]>,
        /// The byte that cannot be read.
        at: usize,
    },
}

#[cfg(test)]
thread_local! {
    /// What this thread had fetched of mappings.
    pub(crate) static FETCHED: std::cell::RefCell<Vec<Range<usize>>> = const {
        std::cell::RefCell::new(Vec::new())
    };
}

impl Mapping {
    /// A hint: all of `range` is read next. What of it lies on the disk is fetched at once, where
    /// each page would else be waited for by itself. Costs a call to the system
    /// for each 128 KiB.
    pub fn fetch(&self, range: Range<usize>) {
        debug_assert!(range.end <= self.len());
        #[cfg(test)]
        FETCHED.with_borrow_mut(|fetched| fetched.push(range.clone()));
        match self {
            Self::Os(map) => os::fetch(map, range),
            Self::Memory(_) | Self::Unreadable { .. } => {}
        }
    }

    /// Brings `range` into memory, as touching it would. Where that fails this is an error, and not
    /// the end of the process (`SIGBUS`). So what was not read for a while is to be loaded before
    /// it is touched by whoever looks for damage. Costs a call to the system.
    ///
    /// # Errors
    /// Some of it cannot be read. A system that cannot tell says nothing.
    pub fn load(&self, range: Range<usize>) -> io::Result<()> {
        debug_assert!(range.end <= self.len());
        match self {
            Self::Os(map) => os::load(map, range),
            Self::Memory(_) => Ok(()),
            Self::Unreadable { at, .. } if range.contains(at) => {
                Err(io::Error::other("injected by a test"))
            }
            Self::Unreadable { .. } => Ok(()),
        }
    }

    /// A hint for whoever reads a whole file once: `range` was read. It then no longer counts as
    /// memory of the process. The bytes stay readable.
    pub fn give_back(&self, range: Range<usize>) {
        debug_assert!(range.end <= self.len());
        match self {
            Self::Os(map) => os::give_back(map, range),
            Self::Memory(_) | Self::Unreadable { .. } => {}
        }
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Os(map) => map,
            Self::Memory(bytes) | Self::Unreadable { bytes, .. } => bytes,
        }
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mapping({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests;
