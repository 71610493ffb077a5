//! A copy of the store that costs no copying: hard links to the tables and a manifest of its own.
//!
//! Tables are immutable, so a link is as good as a copy on the same file system. The checkpoint
//! holds everything written before the call and is a store like any other: it can be opened,
//! copied away, or deleted.

use std::path::Path;

use super::error::{Error, Result};
use super::recovery::create_dir_durably;
use super::version::{Manifest, TableMeta};
use super::{Engine, Shared};

impl Engine {
    /// Makes `dir`, which must not hold a store, a store with everything written so far. Returns
    /// the size of its tables in bytes.
    ///
    /// # Errors
    /// [`Error::Io`] if a link cannot be made (`dir` must be on the same file system) or `dir`
    /// holds files already. What was linked by then stays; it is no store, for it has no `CURRENT`.
    pub fn checkpoint(&self, dir: &Path) -> Result<u64> {
        self.shared.checkpoint(dir)
    }
}

impl Shared {
    fn checkpoint(&self, dir: &Path) -> Result<u64> {
        create_dir_durably(&*self.vfs, dir)?;
        let files = self.vfs.list(dir).map_err(Error::io("list", dir))?;
        if let Some(file) = files.first() {
            let source = std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                format!("it holds {} already", file.display()),
            );
            return Err(Error::Io { operation: "checkpoint into", path: dir.into(), source });
        }
        self.flush_all()?;
        // Pins the tables: none of them is deleted before it is linked.
        let version = self.version();
        for table in version.tables() {
            let number = table.meta.number;
            let to = TableMeta::path(dir, number);
            let from = self.versions.table_path(number);
            self.vfs.hard_link(&from, &to).map_err(Error::io("link", &to))?;
        }
        self.vfs.sync_dir(dir).map_err(Error::io("sync", dir))?;
        let state = version.state();
        Manifest::create(self.vfs.clone(), dir, 1, state)?.install()?;
        Ok(version.bytes())
    }
}
