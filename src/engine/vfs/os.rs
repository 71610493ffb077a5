//! Real files.
//!
//! What it adds to plain system calls:
//! 1. every call that a signal interrupted is repeated, except syncs, whose outcome would then be
//!    unknown: they fail;
//! 2. blocks are allocated with `fallocate`; where the file system has none, zeros are written;
//! 3. mappings are advised as random, since point reads touch single blocks;
//! 4. a write into a range that was prepared is a copy into a mapping of the file
//!    (docs/decisions/0040).
//!
//! Apart from those mappings it holds no state and does no caching: what the operating system says
//! is what the caller gets.

use std::fs::{self, File as StdFile, OpenOptions, TryLockError};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use parking_lot::Mutex;
use rustix::fs::{Advice, FallocateFlags};
use rustix::io::Errno;

use super::{DiskSpace, File, FileLock, Mapping, Vfs};

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsVfs;

#[derive(Debug)]
struct OsFile {
    file: StdFile,
    prepared: Mutex<Option<Prepared>>,
}

/// A range of a file that is written through memory. Its blocks are allocated, in a file system
/// that writes them where they are, and its pages were there and writable when it was made: so no
/// write into it can want space. What the system cannot read back after it has evicted a page is a
/// bus error, as with the mappings that are read.
#[derive(Debug)]
struct Prepared {
    map: MmapRaw,
    /// Where in the file it begins.
    offset: u64,
}

/// Held open: the lock goes when the file is closed.
#[derive(Debug)]
struct OsLock {
    _file: StdFile,
}

impl FileLock for OsLock {}

impl Vfs for OsVfs {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path)?;
        Ok(Arc::new(OsFile::new(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(Arc::new(OsFile::new(file)))
    }

    fn map(&self, path: &Path) -> io::Result<Mapping> {
        let file = StdFile::open(path)?;
        let map = map_file(&file)?;
        if !map.is_empty() {
            map.advise(memmap2::Advice::Random)?;
        }
        Ok(Mapping::Os(map))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn hard_link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let directory = StdFile::open(or_current(path))?;
        // rustix, not std, as in `sync_data`.
        Ok(rustix::fs::fsync(&directory)?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(or_current(path))? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                names.push(PathBuf::from(entry.file_name()));
            }
        }
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        or_current(path).try_exists()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn FileLock>>> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(OsLock { _file: file }))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn disk_space(&self, path: &Path) -> io::Result<DiskSpace> {
        let stat = rustix::fs::statvfs(or_current(path))?;
        // What is kept for the superuser is neither used nor to be had, as `df` counts.
        let used = stat.f_blocks.saturating_sub(stat.f_bfree);
        Ok(DiskSpace {
            total: used.saturating_add(stat.f_bavail).saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

impl File for OsFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Under the lock, so that two copies of overlapping ranges are no data race.
        if self.prepared.lock().as_ref().is_some_and(|range| range.write(offset, bytes)) {
            return Ok(());
        }
        self.file.write_all_at(bytes, offset)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let allocated = rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, len)
        });
        match allocated {
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeros(len),
            other => Ok(other?),
        }
    }

    fn prepare(&self, offset: u64, len: u64) -> io::Result<()> {
        let before = if len == 0 {
            self.prepared.lock().take()
        } else {
            let range = Prepared::new(&self.file, offset, len)?;
            self.prepared.lock().replace(range)
        };
        // Unmapped here, not under the lock.
        drop(before);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        // rustix, not std: std repeats an interrupted sync, and the second one may report a success
        // that hides the first one's error.
        Ok(rustix::fs::fdatasync(&self.file)?)
    }

    fn start_writeback(&self, offset: u64, len: u64) {
        // On Linux DONTNEED queues the dirty pages of the range for writing without waiting. Pages
        // that are already clean lose their place in the page cache, so callers pass only what they
        // have just written. An error here is one that the later sync reports.
        let _ = rustix::fs::fadvise(&self.file, offset, NonZeroU64::new(len), Advice::DontNeed);
    }

    #[expect(unsafe_code, reason = "no safe crate at hand has sync_file_range")]
    fn wait_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        let (fd, flags) = (self.file.as_raw_fd(), libc::SYNC_FILE_RANGE_WAIT_BEFORE);
        // SAFETY: it takes numbers only, and the descriptor is open as long as `self`.
        let done = unsafe { libc::sync_file_range(fd, offset as i64, len as i64, flags) };
        match done {
            0 => Ok(()),
            _ => match io::Error::last_os_error() {
                // Of a sandbox that has no such call: the sync waits for all of it.
                error if error.kind() == io::ErrorKind::Unsupported => Ok(()),
                error => Err(error),
            },
        }
    }
}

impl Prepared {
    fn new(file: &StdFile, offset: u64, len: u64) -> io::Result<Self> {
        if !writes_in_place(file)? {
            return Err(io::ErrorKind::Unsupported.into());
        }
        rustix::io::retry_on_intr(|| {
            rustix::fs::fallocate(file, FallocateFlags::empty(), offset, len)
        })?;
        let map = MmapOptions::new().offset(offset).len(len as usize).map_raw(file)?;
        // Here a page that cannot be had is an error, at the first write it would be a bus error.
        map.advise(memmap2::Advice::PopulateWrite)?;
        Ok(Self { map, offset })
    }

    /// Writes `bytes` if they lie wholly in the range; whether they do.
    #[expect(unsafe_code, reason = "a copy into a file's mapping")]
    fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let Some(at) = offset.checked_sub(self.offset) else { return false };
        if at.saturating_add(bytes.len() as u64) > self.map.len() as u64 {
            return false;
        }
        // SAFETY: the mapping is writable and lives as long as `self`, and the range checked above
        // lies in it and in the file, which nobody shortens (the engine's directory lock keeps
        // others of ours away). Nobody holds a reference into it, and all copies into mappings of
        // this file are made under the lock of its handle.
        unsafe {
            let to = self.map.as_mut_ptr().add(at as usize);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        true
    }
}

/// Whether the file system writes a block again where it is, so that what was allocated once never
/// wants space again. One that copies on write, or may (it lies over another one), does not.
fn writes_in_place(file: &StdFile) -> io::Result<bool> {
    const EXT4: u64 = 0xEF53;
    const XFS: u64 = 0x5846_5342;
    const TMPFS: u64 = 0x0102_1994;
    let kind = rustix::fs::fstatfs(file)?.f_type as u64;
    Ok([EXT4, XFS, TMPFS].contains(&kind))
}

impl OsFile {
    fn new(file: StdFile) -> Self {
        Self { file, prepared: Mutex::new(None) }
    }

    /// Allocates by writing: from the current end to `len`.
    fn write_zeros(&self, len: u64) -> io::Result<()> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        let mut offset = self.len()?;
        while offset < len {
            let part = ZEROS.len().min((len - offset) as usize);
            self.file.write_all_at(&ZEROS[..part], offset)?;
            offset += part as u64;
        }
        Ok(())
    }
}

/// The empty path (the parent of a bare name) means the current directory.
fn or_current(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// What Linux takes of one hint that a range is needed, by default: it leaves the rest of it out.
const FETCH_BYTES: usize = 128 << 10;

/// See [`Mapping::fetch`]. An error would only mean that the hint was not taken.
pub(super) fn fetch(map: &memmap2::Mmap, range: Range<usize>) {
    for start in range.clone().step_by(FETCH_BYTES) {
        let len = FETCH_BYTES.min(range.end - start);
        let _ = map.advise_range(memmap2::Advice::WillNeed, start, len);
    }
}

/// See [`Mapping::load`]. The system tells a page that it could not fetch by `EFAULT`, or one that
/// broke in memory by `EHWPOISON`; any other error is about the call, as on systems that lack it.
#[cfg(target_os = "linux")]
pub(super) fn load(map: &memmap2::Mmap, range: Range<usize>) -> io::Result<()> {
    let loaded = map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
    loaded.or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::FAULT | Errno::HWPOISON) => Err(error),
        _ => Ok(()),
    })
}

/// See [`Mapping::load`].
#[cfg(not(target_os = "linux"))]
pub(super) fn load(_: &memmap2::Mmap, _: Range<usize>) -> io::Result<()> {
    Ok(())
}

/// See [`Mapping::give_back`]. An error would only mean that the hint was not taken.
#[expect(unsafe_code, reason = "advice that some mappings do not survive; these do")]
pub(super) fn give_back(map: &memmap2::Mmap, range: Range<usize>) {
    if !range.is_empty() {
        // SAFETY: the mapping is of a file, shared and never written through; by the contract of
        // `Vfs::map` the file does not change. Pages given back are read from it again when they
        // are touched, with the same bytes, so no reference into the mapping can tell.
        let _ = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
        };
    }
}

#[expect(unsafe_code, reason = "a mapping is only as constant as its file, by contract of Vfs")]
fn map_file(file: &StdFile) -> io::Result<memmap2::Mmap> {
    // SAFETY: the contract of `Vfs::map` forbids writing or truncating the file while the mapping
    // lives, and the engine's directory lock keeps other processes of ours away from it.
    unsafe { memmap2::Mmap::map(file) }
}
