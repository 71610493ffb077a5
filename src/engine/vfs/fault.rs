//! A file system that fails when a test wants it to.
//!
//! [`FaultVfs`] wraps another [`Vfs`], numbers every call from 1, tells a hook of it before it
//! happens, and lets [`Fault`]s decide whether it happens. Handles opened through it are wrapped
//! too. It knows nothing of crashes: for those, the hook takes a crash clone of a
//! [`MemVfs`](super::mem::MemVfs) below. The moment after call n is the moment before call n + 1.

use std::fmt;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{DiskSpace, File, FileLock, Mapping, Vfs};

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "each is the method of Vfs or File of that name")]
pub enum Operation {
    Create,
    Open,
    Map,
    Rename,
    Remove,
    HardLink,
    CreateDirAll,
    SyncDir,
    List,
    Exists,
    Lock,
    DiskSpace,
    WriteAt,
    ReadAt,
    Len,
    Allocate,
    Prepare,
    SyncData,
    StartWriteback,
    WaitWriteback,
}

impl Operation {
    /// Whether the call may change what is on disk or promises that it is there; a test of crashes
    /// needs no other moments.
    pub const fn changes_disk(self) -> bool {
        !matches!(
            self,
            Self::Open
                | Self::Map
                | Self::List
                | Self::Exists
                | Self::DiskSpace
                | Self::ReadAt
                | Self::Len
        )
    }
}

/// One call of a [`Vfs`] or of a file opened through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// What it asks for.
    pub operation: Operation,
    /// The file or directory; for a rename or link the new name; for a handle, the name it was
    /// opened by.
    pub path: PathBuf,
    /// Where in the file it reads or writes, in bytes; otherwise 0.
    pub offset: u64,
    /// Bytes read, written, allocated or written back; otherwise 0.
    pub len: u64,
}

/// A rule that makes calls go wrong. The default matches every call and fails the first.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Only this operation; `None` is any.
    pub operation: Option<Operation>,
    /// Only paths that contain this text; empty is any.
    pub path_contains: String,
    /// Matching calls let through before the first that goes wrong.
    pub skip: u64,
    /// Matching calls that go wrong after that; `u64::MAX` is all of them.
    pub times: u64,
    /// What happens to them.
    pub effect: Effect,
}

/// How a call goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing is done and this error returned. A call that can return no error is left out.
    Fail(ErrorKind),
    /// The same with an error of the system, by its number: some have no [`ErrorKind`].
    FailOs(i32),
    /// A write puts down its first bytes, at most this many, and then fails with this error. Other
    /// operations just fail.
    ShortWrite(u64, ErrorKind),
    /// A read or mapping that covers this byte of the file shows the bit (0 to 7) flipped. Other
    /// operations are not touched.
    FlipBit(u64, u8),
    /// A read that covers this byte of the file fails; a mapping cannot load it. Other operations
    /// are not touched.
    Unreadable(u64),
}

impl Default for Fault {
    fn default() -> Self {
        Self {
            operation: None,
            path_contains: String::new(),
            skip: 0,
            times: 1,
            effect: Effect::Fail(ErrorKind::Other),
        }
    }
}

type Hook = Box<dyn FnMut(u64, &Call) + Send>;
/// Called before every call, by several threads at a time.
type Gate = Arc<dyn Fn(&Call) + Send + Sync>;

#[derive(Default)]
struct Plan {
    calls: u64,
    faults: Vec<Fault>,
}

struct Shared {
    plan: Mutex<Plan>,
    hook: Mutex<Option<Hook>>,
    gate: Mutex<Option<Gate>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan.lock();
        write!(f, "{} calls, faults {:?}", plan.calls, plan.faults)
    }
}

/// Wraps a file system and makes chosen calls fail. Clones share counter, faults and hook.
#[derive(Clone, Debug)]
pub struct FaultVfs {
    inner: Arc<dyn Vfs>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct FaultFile {
    inner: Arc<dyn File>,
    path: PathBuf,
    shared: Arc<Shared>,
}

impl FaultVfs {
    /// Wraps `inner`; nothing fails yet.
    pub fn new(inner: Arc<dyn Vfs>) -> Self {
        let shared =
            Shared { plan: Mutex::default(), hook: Mutex::new(None), gate: Mutex::new(None) };
        Self { inner, shared: Arc::new(shared) }
    }

    /// Calls made so far.
    pub fn calls(&self) -> u64 {
        self.shared.plan.lock().calls
    }

    /// Adds a fault. Where several match a call, the first one added that is due decides.
    pub fn inject(&self, fault: Fault) {
        self.shared.plan.lock().faults.push(fault);
    }

    /// Fails call `number` (the first call ever made is 1) with `error`.
    pub fn fail_call(&self, number: u64, error: ErrorKind) {
        let mut plan = self.shared.plan.lock();
        let skip = number.saturating_sub(plan.calls + 1);
        plan.faults.push(Fault { skip, effect: Effect::Fail(error), ..Fault::default() });
    }

    /// Takes all faults away.
    pub fn heal(&self) {
        self.shared.plan.lock().faults.clear();
    }

    /// Has `hook` called before every call with its number, one call at a time. It may use the
    /// wrapped file system, but not this one: that call would wait for itself.
    pub fn on_call(&self, hook: impl FnMut(u64, &Call) + Send + 'static) {
        *self.shared.hook.lock() = Some(Box::new(hook));
    }

    /// Has every call pass `gate` first, several at a time. It may wait: so a disk hangs for some
    /// calls and not for others.
    pub fn hold_calls(&self, gate: impl Fn(&Call) + Send + Sync + 'static) {
        *self.shared.gate.lock() = Some(Arc::new(gate));
    }

    fn before(&self, operation: Operation, path: &Path) -> Result<Option<Effect>> {
        self.shared.before(operation, path, 0, 0)
    }

    fn wrap(&self, path: &Path, inner: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(FaultFile { inner, path: path.to_path_buf(), shared: Arc::clone(&self.shared) })
    }
}

impl Shared {
    /// Counts the call, tells the hook, and finds what goes wrong with it. Plain failures are
    /// returned as the error they are.
    fn before(
        &self,
        operation: Operation,
        path: &Path,
        offset: u64,
        len: u64,
    ) -> Result<Option<Effect>> {
        let call = Call { operation, path: path.to_path_buf(), offset, len };
        let gate = self.gate.lock().clone();
        if let Some(gate) = gate {
            gate(&call);
        }
        let mut hook = self.hook.lock();
        let (number, effect) = self.plan.lock().next(&call);
        if let Some(hook) = hook.as_mut() {
            hook(number, &call);
        }
        drop(hook);
        match effect {
            Some(Effect::Fail(error)) => Err(injected(error)),
            Some(Effect::FailOs(number)) => Err(Error::from_raw_os_error(number)),
            Some(Effect::ShortWrite(_, error)) if operation != Operation::WriteAt => {
                Err(injected(error))
            }
            Some(Effect::Unreadable(_)) if operation == Operation::ReadAt => {
                Err(injected(ErrorKind::Other))
            }
            other => Ok(other),
        }
    }
}

impl Plan {
    fn next(&mut self, call: &Call) -> (u64, Option<Effect>) {
        self.calls += 1;
        let mut effect = None;
        for fault in &mut self.faults {
            if !fault.matches(call) {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else if fault.times > 0 && effect.is_none() {
                fault.times -= u64::from(fault.times != u64::MAX);
                effect = Some(fault.effect);
            }
        }
        (self.calls, effect)
    }
}

impl Fault {
    fn matches(&self, call: &Call) -> bool {
        let concerns = match self.effect {
            Effect::FlipBit(at, _) | Effect::Unreadable(at) => match call.operation {
                Operation::Map => true,
                Operation::ReadAt => call.offset <= at && at - call.offset < call.len,
                _ => false,
            },
            _ => true,
        };
        concerns
            && self.operation.is_none_or(|operation| operation == call.operation)
            && call.path.to_string_lossy().contains(&self.path_contains)
    }
}

fn injected(error: ErrorKind) -> Error {
    Error::new(error, "injected by a test")
}

/// Flips a bit of `bytes`, which begin at `offset` of the file, if it lies in them.
fn flip(bytes: &mut [u8], offset: u64, effect: Option<Effect>) {
    let Some(Effect::FlipBit(at, bit)) = effect else { return };
    let byte = at.checked_sub(offset).and_then(|index| bytes.get_mut(index as usize));
    if let Some(byte) = byte {
        *byte ^= 1 << (bit & 7);
    }
}

impl Vfs for FaultVfs {
    fn create(&self, path: &Path) -> Result<Arc<dyn File>> {
        self.before(Operation::Create, path)?;
        Ok(self.wrap(path, self.inner.create(path)?))
    }

    fn open(&self, path: &Path) -> Result<Arc<dyn File>> {
        self.before(Operation::Open, path)?;
        Ok(self.wrap(path, self.inner.open(path)?))
    }

    fn map(&self, path: &Path) -> Result<Mapping> {
        let effect = self.before(Operation::Map, path)?;
        let map = self.inner.map(path)?;
        if effect.is_none() {
            return Ok(map);
        }
        let mut bytes = map.to_vec();
        if let Some(Effect::Unreadable(at)) = effect {
            return Ok(Mapping::Unreadable { bytes: bytes.into(), at: at as usize });
        }
        flip(&mut bytes, 0, effect);
        Ok(Mapping::Memory(bytes.into()))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.before(Operation::Rename, to)?;
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.before(Operation::Remove, path)?;
        self.inner.remove(path)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> Result<()> {
        self.before(Operation::HardLink, to)?;
        self.inner.hard_link(from, to)
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        self.before(Operation::CreateDirAll, path)?;
        self.inner.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.before(Operation::SyncDir, path)?;
        self.inner.sync_dir(path)
    }

    fn list(&self, path: &Path) -> Result<Vec<PathBuf>> {
        self.before(Operation::List, path)?;
        self.inner.list(path)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.before(Operation::Exists, path)?;
        self.inner.exists(path)
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn FileLock>>> {
        self.before(Operation::Lock, path)?;
        self.inner.lock(path)
    }

    fn disk_space(&self, path: &Path) -> Result<DiskSpace> {
        self.before(Operation::DiskSpace, path)?;
        self.inner.disk_space(path)
    }
}

impl FaultFile {
    fn before(&self, operation: Operation, offset: u64, len: u64) -> Result<Option<Effect>> {
        self.shared.before(operation, &self.path, offset, len)
    }
}

impl File for FaultFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        match self.before(Operation::WriteAt, offset, bytes.len() as u64)? {
            Some(Effect::ShortWrite(len, error)) => {
                self.inner.write_at(offset, &bytes[..bytes.len().min(len as usize)])?;
                Err(injected(error))
            }
            _ => self.inner.write_at(offset, bytes),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let effect = self.before(Operation::ReadAt, offset, buffer.len() as u64)?;
        let read = self.inner.read_at(offset, buffer)?;
        flip(&mut buffer[..read], offset, effect);
        Ok(read)
    }

    fn len(&self) -> Result<u64> {
        self.before(Operation::Len, 0, 0)?;
        self.inner.len()
    }

    fn allocate(&self, len: u64) -> Result<()> {
        self.before(Operation::Allocate, 0, len)?;
        self.inner.allocate(len)
    }

    fn prepare(&self, offset: u64, len: u64) -> Result<()> {
        self.before(Operation::Prepare, offset, len)?;
        self.inner.prepare(offset, len)
    }

    fn sync_data(&self) -> Result<()> {
        self.before(Operation::SyncData, 0, 0)?;
        self.inner.sync_data()
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        if self.before(Operation::StartWriteback, offset, len).is_ok() {
            self.inner.start_writeback(offset, len);
        }
    }

    fn wait_writeback(&self, offset: u64, len: u64) -> Result<()> {
        self.before(Operation::WaitWriteback, offset, len)?;
        self.inner.wait_writeback(offset, len)
    }
}
