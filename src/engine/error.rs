//! The engine's errors, named by what the caller can do about them.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::merge::MergeError;
use super::version::EditError;

/// Result with the engine's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Bytes on disk that are not what was written there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is corrupt at byte {offset}: {what}", file.display())]
pub struct Corruption {
    /// The damaged file.
    pub file: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What was expected and what was found.
    pub what: String,
}

/// Why the engine could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file operation failed. Reads may be tried again; a failed write or sync of the log or the
    /// manifest has poisoned the engine.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// A verb: "read", "write", "sync", ...
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Damaged data. The rest of the store stays readable.
    #[error(transparent)]
    Corruption(#[from] Corruption),

    /// An earlier write or sync failed, so what the files hold is unknown: writes are refused until
    /// the store is opened anew.
    #[error("the store takes no more writes since a write failed ({cause}); open it anew")]
    Poisoned {
        /// The first failure.
        cause: String,
    },

    /// Another process (or this one) has the directory open.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The data directory.
        path: PathBuf,
    },

    /// The file was written by a newer version of the program.
    #[error("{} has format version {found}; this program reads up to {supported}", file.display())]
    FormatTooNew {
        /// The file.
        file: PathBuf,
        /// The version it names.
        found: u32,
        /// The newest version this program can read.
        supported: u32,
    },

    /// An argument or option is out of bounds; nothing was changed.
    #[error("{what} is {found}, the limit is {limit}")]
    OutOfBounds {
        /// The name of the argument or option.
        what: &'static str,
        /// What was given.
        found: u64,
        /// The limit it breaks.
        limit: u64,
    },

    /// A state too old to be taken: it may have been deleted and forgotten here.
    #[error("the record is at or below the safe point of its partition")]
    BelowSafePoint,

    /// Flush or compaction could not keep up within the time given. Nothing was written; try again.
    #[error("writes are stalled: no memtable became free within {waited_ms} ms")]
    Stalled {
        /// How long the call waited, in milliseconds.
        waited_ms: u64,
    },

    /// Too little free space for what was asked. Nothing was written for it.
    #[error("{} has {available} bytes free, below the reserve of {reserve}", path.display())]
    DiskFull {
        /// The data directory.
        path: PathBuf,
        /// Free bytes.
        available: u64,
        /// Bytes that have to be free: what is kept, and what is to be written beside it.
        reserve: u64,
    },

    /// The engine is closing or closed.
    #[error("the store is closed")]
    Closed,

    /// A change of the tree breaks a rule; nothing was changed. At open: the directory does not fit
    /// the options.
    #[error(transparent)]
    Edit(#[from] EditError),

    /// The caller handed over a state that its own operator cannot read.
    #[error(transparent)]
    Merge(#[from] MergeError),
}

impl Error {
    /// For `map_err`: an I/O error of `operation` (a verb) on `path`.
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { operation, path, source }
    }

    /// Whether it failed for want of something that may come back: disk space, descriptors, memory.
    /// Nothing is wrong with what is on the disk.
    pub(crate) fn is_shortage(&self) -> bool {
        let Self::Io { source, .. } = self else { return self.is_storage_full() };
        let number = Errno::from_io_error(source);
        self.is_storage_full() || matches!(number, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
    }

    /// Whether it failed for want of disk space, which may come back.
    pub(crate) fn is_storage_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        match self {
            Self::DiskFull { .. } => true,
            Self::Io { source, .. } => full.contains(&source.kind()),
            _ => false,
        }
    }

    /// Corruption of `file` at `offset`.
    pub(crate) fn corrupt(file: &Path, offset: u64, what: impl Into<String>) -> Self {
        Self::Corruption(Corruption { file: file.to_path_buf(), offset, what: what.into() })
    }
}
