//! Files in memory that remember what was synced, so that a crash can be replayed.
//!
//! [`MemVfs::crash_clone`] answers what a machine could find after a power loss at this moment,
//! [`MemVfs::crash_clone_kill`] what the next process finds after `kill -9`.
//!
//! What a power loss keeps:
//! 1. the bytes and the length that the last `sync_data` of a file saw;
//! 2. the names that the last `sync_dir` of their directory saw, directories among them: one whose
//!    own name was not synced in its parent may be gone with all that is in it;
//! 3. of every granule of 4 KiB written since: the old one, the new one, or a torn one;
//! 4. the old length or the new one; any subset of the names created, linked, renamed and removed
//!    since. A rename inside a directory happens or does not; one across two directories may keep
//!    both names or none.
//!
//! How likely each is to survive differs from seed to seed, from nothing to everything. It does not
//! model: versions of a granule between two syncs other than torn ones, media that lose what was
//! synced.

mod content;
mod names;
mod random;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use self::content::{Content, GRANULE_BYTES};
use self::names::{Change, Directory, Entry};
use self::random::Random;
use super::{DiskSpace, File, FileLock, Mapping, Vfs};

/// A file system in memory. Clones of the value are the same file system.
#[derive(Clone, Debug)]
pub struct MemVfs {
    state: Arc<Mutex<State>>,
}

/// One lock over everything, so that a crash clone is one moment of all files.
#[derive(Clone, Debug)]
struct State {
    directories: BTreeMap<PathBuf, Directory>,
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    locks: BTreeSet<PathBuf>,
    space_limit: Option<u64>,
}

/// A file apart from its names.
#[derive(Clone, Debug, Default)]
struct Node {
    current: Content,
    synced: Content,
    dirty: BTreeSet<usize>,
    handles: usize,
    links: usize,
}

#[derive(Debug)]
struct MemFile {
    state: Arc<Mutex<State>>,
    node: u64,
}

#[derive(Debug)]
struct MemLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

impl Default for MemVfs {
    fn default() -> Self {
        Self::new()
    }
}

impl MemVfs {
    /// An empty file system without a space limit. The roots `/` and the current directory exist.
    pub fn new() -> Self {
        let roots = ["/", ""].map(|root| (PathBuf::from(root), Directory::default()));
        Self::from_state(State {
            directories: BTreeMap::from(roots),
            nodes: BTreeMap::new(),
            next_node: 1,
            locks: BTreeSet::new(),
            space_limit: None,
        })
    }

    /// Refuses (`StorageFull`) whatever makes the files take more than `bytes`, counted in granules
    /// of 4 KiB. `None` lifts the limit.
    pub fn set_space_limit(&self, bytes: Option<u64>) {
        self.state.lock().space_limit = bytes;
    }

    /// What a power loss at this moment may leave, by `seed`; see the module page. Locks are free,
    /// everything in the clone is synced, and the original goes on undisturbed.
    #[must_use]
    pub fn crash_clone(&self, seed: u64) -> Self {
        let mut state = self.state.lock().clone();
        state.lose_power(&mut Random::new(seed));
        Self::from_state(state)
    }

    /// What the next process finds if this one is killed now: everything written, synced or not
    /// (and still at risk if power is lost afterwards). Locks are free.
    #[must_use]
    pub fn crash_clone_kill(&self) -> Self {
        let mut state = self.state.lock().clone();
        state.locks.clear();
        state.nodes.values_mut().for_each(|node| node.handles = 0);
        state.drop_unreachable();
        Self::from_state(state)
    }

    fn from_state(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn handle(&self, state: &mut State, node: u64) -> Arc<dyn File> {
        state.node_mut(node).handles += 1;
        Arc::new(MemFile { state: Arc::clone(&self.state), node })
    }
}

impl State {
    fn directory_of<'p>(&mut self, path: &'p Path) -> Result<(&mut Directory, &'p OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::new(ErrorKind::InvalidInput, "the path names no file"));
        };
        let directory = self.directories.get_mut(parent).ok_or(ErrorKind::NotFound)?;
        Ok((directory, name))
    }

    fn entry(&mut self, path: &Path) -> Result<Option<Entry>> {
        let (directory, name) = self.directory_of(path)?;
        Ok(directory.names.get(name).copied())
    }

    fn file(&mut self, path: &Path) -> Result<u64> {
        match self.entry(path)? {
            Some(Entry::File(node)) => Ok(node),
            Some(Entry::Directory) => Err(ErrorKind::IsADirectory.into()),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    fn node_mut(&mut self, node: u64) -> &mut Node {
        self.nodes.get_mut(&node).expect("a node lives while a name or a handle refers to it")
    }

    fn create(&mut self, path: &Path) -> Result<u64> {
        let node = self.next_node;
        let (directory, name) = self.directory_of(path)?;
        if directory.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        directory.apply(Change::Insert(name.into(), Entry::File(node)));
        self.next_node += 1;
        self.nodes.insert(node, Node { links: 1, ..Node::default() });
        Ok(node)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        let node = self.file(from)?;
        match self.entry(to)? {
            Some(Entry::Directory) => return Err(ErrorKind::IsADirectory.into()),
            Some(Entry::File(replaced)) if replaced == node => return Ok(()),
            Some(Entry::File(replaced)) => self.node_mut(replaced).links -= 1,
            None => {}
        }
        let entry = Entry::File(node);
        if from.parent() == to.parent() {
            let (directory, from) = self.directory_of(from)?;
            let to = to.file_name().unwrap_or_default();
            directory.apply(Change::Rename(from.into(), to.into(), entry));
        } else {
            let (directory, name) = self.directory_of(to)?;
            directory.apply(Change::Insert(name.into(), entry));
            let (directory, name) = self.directory_of(from)?;
            directory.apply(Change::Remove(name.into(), entry));
        }
        Ok(())
    }

    fn create_dir_all(&mut self, path: &Path) -> Result<()> {
        if self.directories.contains_key(path) {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.create_dir_all(parent)?;
        }
        let (parent, name) = self.directory_of(path)?;
        if parent.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        parent.apply(Change::Insert(name.into(), Entry::Directory));
        self.directories.insert(path.to_path_buf(), Directory::default());
        Ok(())
    }

    /// Bytes taken by the files that somebody can still reach.
    fn space_used(&self) -> u64 {
        let live = self.nodes.values().filter(|node| node.links + node.handles > 0);
        let granules: u64 = live.map(|node| Content::granules_of(node.current.len())).sum();
        granules * GRANULE_BYTES as u64
    }

    fn check_space(&self, node: u64, len: u64) -> Result<()> {
        let (Some(limit), Some(node)) = (self.space_limit, self.nodes.get(&node)) else {
            return Ok(());
        };
        let before = Content::granules_of(node.current.len());
        let growth = Content::granules_of(len).saturating_sub(before) * GRANULE_BYTES as u64;
        if growth > 0 && self.space_used() + growth > limit {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    /// Forgets the files that no handle, no name and no possible crash can reach.
    fn drop_unreachable(&mut self) {
        let entries = self.directories.values().flat_map(Directory::entries);
        let reachable: BTreeSet<u64> = entries
            .filter_map(|entry| match entry {
                Entry::File(node) => Some(node),
                Entry::Directory => None,
            })
            .collect();
        self.nodes.retain(|id, node| node.handles > 0 || reachable.contains(id));
    }

    fn lose_power(&mut self, random: &mut Random) {
        let keep_percent = [0, 20, 50, 80, 100][random.below(5) as usize];
        self.locks.clear();
        for directory in self.directories.values_mut() {
            directory.lose_power(random, keep_percent);
        }
        self.drop_lost_directories();
        for node in self.nodes.values_mut() {
            node.lose_power(random, keep_percent);
        }
        for directory in self.directories.values() {
            for entry in directory.names.values() {
                if let Entry::File(node) = entry {
                    self.nodes.get_mut(node).expect("kept for its synced name").links += 1;
                }
            }
        }
        self.drop_unreachable();
    }

    /// Drops directories whose name, or that of one above them, did not survive. Parents sort
    /// before their children.
    fn drop_lost_directories(&mut self) {
        let mut kept: BTreeMap<PathBuf, Directory> = BTreeMap::new();
        for (path, directory) in std::mem::take(&mut self.directories) {
            let survives = match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => kept
                    .get(parent)
                    .is_some_and(|parent| parent.names.get(name) == Some(&Entry::Directory)),
                _ => true,
            };
            if survives {
                kept.insert(path, directory);
            }
        }
        self.directories = kept;
    }
}

impl Node {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.current.write(offset, bytes);
        self.dirty.extend(Content::touched(offset, bytes.len()));
    }

    fn sync(&mut self) {
        self.synced = self.current.clone();
        self.dirty.clear();
    }

    fn lose_power(&mut self, random: &mut Random, keep_percent: u64) {
        let mut after = std::mem::take(&mut self.synced);
        if random.percent(keep_percent) {
            after.grow(self.current.len());
        }
        for index in std::mem::take(&mut self.dirty) {
            if random.percent(15) {
                after.tear(&self.current, index, random);
            } else if random.percent(keep_percent) {
                after.take(&self.current, index);
            }
        }
        *self = Self { current: after.clone(), synced: after, ..Self::default() };
    }
}

impl Vfs for MemVfs {
    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        let node = state.create(path)?;
        Ok(self.handle(&mut state, node))
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn File>> {
        let mut state = self.state.lock();
        let node = state.file(path)?;
        Ok(self.handle(&mut state, node))
    }

    fn map(&self, path: &Path) -> Result<Mapping> {
        let mut state = self.state.lock();
        let node = state.file(path)?;
        let content = state.node_mut(node).current.clone();
        drop(state);
        let mut bytes = vec![0; content.len() as usize];
        content.read(0, &mut bytes);
        Ok(Mapping::Memory(bytes.into()))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.state.lock().rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        let mut state = self.state.lock();
        let node = state.file(path)?;
        let (directory, name) = state.directory_of(path)?;
        directory.apply(Change::Remove(name.into(), Entry::File(node)));
        state.node_mut(node).links -= 1;
        Ok(())
    }

    fn hard_link(&self, from: &Path, to: &Path) -> Result<()> {
        let mut state = self.state.lock();
        let node = state.file(from)?;
        let (directory, name) = state.directory_of(to)?;
        if directory.names.contains_key(name) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        directory.apply(Change::Insert(name.into(), Entry::File(node)));
        state.node_mut(node).links += 1;
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        self.state.lock().create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        let mut state = self.state.lock();
        let directory = state.directories.get_mut(path).ok_or(ErrorKind::NotFound)?;
        if directory.sync() {
            state.drop_unreachable();
        }
        Ok(())
    }

    fn list(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let state = self.state.lock();
        let directory = state.directories.get(path).ok_or(ErrorKind::NotFound)?;
        let files = directory.names.iter().filter(|(_, entry)| **entry != Entry::Directory);
        Ok(files.map(|(name, _)| PathBuf::from(name)).collect())
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        let mut state = self.state.lock();
        if state.directories.contains_key(path) {
            return Ok(true);
        }
        match state.entry(path) {
            Ok(entry) => Ok(entry.is_some()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn FileLock>>> {
        let mut state = self.state.lock();
        if state.entry(path)?.is_none() {
            state.create(path)?;
        }
        if !state.locks.insert(path.to_path_buf()) {
            return Ok(None);
        }
        Ok(Some(Box::new(MemLock { state: Arc::clone(&self.state), path: path.to_path_buf() })))
    }

    fn disk_space(&self, _path: &Path) -> Result<DiskSpace> {
        let state = self.state.lock();
        let total = state.space_limit.unwrap_or(1 << 50);
        Ok(DiskSpace { total, available: total.saturating_sub(state.space_used()) })
    }
}

impl File for MemFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let mut state = self.state.lock();
        state.check_space(self.node, offset + bytes.len() as u64)?;
        state.node_mut(self.node).write(offset, bytes);
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        Ok(self.state.lock().node_mut(self.node).current.read(offset, buffer))
    }

    fn len(&self) -> Result<u64> {
        Ok(self.state.lock().node_mut(self.node).current.len())
    }

    fn allocate(&self, len: u64) -> Result<()> {
        let mut state = self.state.lock();
        state.check_space(self.node, len)?;
        state.node_mut(self.node).current.grow(len);
        Ok(())
    }

    fn prepare(&self, offset: u64, len: u64) -> Result<()> {
        self.allocate(offset + len)
    }

    fn sync_data(&self) -> Result<()> {
        self.state.lock().node_mut(self.node).sync();
        Ok(())
    }

    fn start_writeback(&self, _offset: u64, _len: u64) {}

    fn wait_writeback(&self, _offset: u64, _len: u64) -> Result<()> {
        Ok(())
    }
}

impl Drop for MemFile {
    fn drop(&mut self) {
        self.state.lock().node_mut(self.node).handles -= 1;
    }
}

impl FileLock for MemLock {}

impl Drop for MemLock {
    fn drop(&mut self) {
        self.state.lock().locks.remove(&self.path);
    }
}
