//! A memory cgroup, below the one this process is in, for data that shall not fit in memory.

use std::path::{Path, PathBuf};

use crate::store::Result;

/// A cgroup with a limit; removed when dropped, which works once its processes have ended.
pub struct MemoryCgroup {
    dir: PathBuf,
}

impl MemoryCgroup {
    /// Makes one for `bytes` of memory, page cache included.
    ///
    /// # Errors
    /// There is no memory controller, or not for us to use.
    pub fn new(bytes: u64) -> Result<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let v1 = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|name| name == "memory").then_some(path)
        });
        let v2 = own.lines().find_map(|line| line.strip_prefix("0::"));
        let (parent, limit) = match (v1, v2) {
            (Some(path), _) => (format!("/sys/fs/cgroup/memory{path}"), "memory.limit_in_bytes"),
            (None, Some(path)) => (format!("/sys/fs/cgroup{path}"), "memory.max"),
            (None, None) => return Err("this process is in no cgroup".into()),
        };
        let dir = Path::new(&parent).join(format!("pairdb-peers-{}", std::process::id()));
        std::fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let cgroup = Self { dir };
        let limit = cgroup.dir.join(limit);
        // Not `fs::write`: it would make a plain file where there is no controller.
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .open(&limit)
            .map_err(|error| format!("{}: {error}", limit.display()))?;
        std::io::Write::write_all(&mut file, bytes.to_string().as_bytes())?;
        Ok(cgroup)
    }

    /// The file that a process writes its id to.
    pub fn procs(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        // If it stays it holds nothing but a name.
        let _ = std::fs::remove_dir(&self.dir);
    }
}
