//! The lease: a bound, durable, that the node's hybrid clock stays at or below.
//!
//! ```text
//! LEASE   two slots of 4096 bytes: | slot | zeros | slot | zeros |
//! slot    magic "PDBLEASE" | format u32 LE | zeros u32 | bound u64 LE | xxh3_64 of these 24, LE
//! ```
//!
//! 1. The bound only grows, and the clock mints nothing above what [`Lease::extend`] returned for.
//! 2. An extension writes the slot that does not hold the current bound and syncs, inside a file
//!    whose length never changes: cheap, and a torn write leaves the other slot. The greatest bound
//!    of a whole slot counts.
//! 3. After a failed write or sync no other is tried: what the file holds is unknown.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use crate::engine;
use crate::engine::vfs::{File, Vfs};
use crate::store::document::{read_file, replace_file};
use crate::store::error::{Error, Result};

/// Apart by a sector of any disk, so that no torn write reaches both.
const SLOT_STRIDE: usize = 4096;
const FILE_BYTES: usize = 2 * SLOT_STRIDE;
const SLOT_BYTES: usize = 32;
const HASHED_BYTES: usize = 24;
const MAGIC: [u8; 8] = *b"PDBLEASE";
const FORMAT: u32 = 1;
pub(super) const NAME: &str = "LEASE";

/// An open lease. All calls may come from several threads.
#[derive(Debug)]
pub struct Lease {
    // Constant after open.
    path: PathBuf,
    file: Arc<dyn File>,
    was_whole: bool,
    /// Written under the lock. Release and acquire: who sees a bound sees it durable.
    bound: AtomicU64,
    writer: Mutex<Writer>,
}

#[derive(Debug)]
struct Writer {
    /// The slot that may be overwritten.
    free: usize,
    /// Why no extension is taken any more.
    refused: Option<Error>,
}

impl Writer {
    fn check(&self) -> Result<()> {
        self.refused.clone().map_or(Ok(()), Err)
    }
}

impl Lease {
    /// Opens the lease in `dir`; `Ok(None)` if there is none.
    pub(super) fn open(vfs: &dyn Vfs, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let Some(bytes) = read_file(vfs, &path, FILE_BYTES as u64)? else {
            return Ok(None);
        };
        let (current, bound) = newest(&path, &bytes)?;
        let is_whole = |slot: &[u8]| slot.first_chunk().and_then(decode).is_some();
        let was_whole = bytes.chunks(SLOT_STRIDE).all(is_whole);
        let file = vfs.open(&path).map_err(engine::Error::io("open", &path))?;
        let writer = Mutex::new(Writer { free: 1 - current, refused: None });
        Ok(Some(Self { path, file, was_whole, bound: AtomicU64::new(bound), writer }))
    }

    /// Puts a lease with bound 0 into `dir`, which has none.
    pub(super) fn create(vfs: &dyn Vfs, dir: &Path) -> Result<Self> {
        let path = dir.join(NAME);
        let mut bytes = vec![0; FILE_BYTES];
        for slot in bytes.chunks_exact_mut(SLOT_STRIDE) {
            slot[..SLOT_BYTES].copy_from_slice(&encode(0));
        }
        replace_file(vfs, &path, &bytes)?;
        Self::open(vfs, dir)?.ok_or_else(|| missing(dir))
    }

    /// The current bound: the greatest time that may have been minted.
    pub fn bound(&self) -> u64 {
        self.bound.load(Ordering::Acquire)
    }

    /// Whether a clock has begun under it: before, its bound is 0.
    pub(super) fn was_used(&self) -> bool {
        self.bound() > 0
    }

    /// Whether both slots were whole when it was opened. If not, an extension was torn, or a later
    /// bound than this one is lost.
    pub(super) fn was_whole(&self) -> bool {
        self.was_whole
    }

    /// Raises the bound to `to`, durable when it returns; a lower `to` changes nothing. After an
    /// error the bound is what it was and stays so until the next start.
    pub fn extend(&self, to: u64) -> Result<()> {
        let mut writer = self.writer.lock();
        writer.check()?;
        if to <= self.bound() {
            return Ok(());
        }
        let offset = (writer.free * SLOT_STRIDE) as u64;
        let written = self.file.write_at(offset, &encode(to));
        let synced = written
            .map_err(engine::Error::io("write", &self.path))
            .and_then(|()| self.file.sync_data().map_err(engine::Error::io("sync", &self.path)));
        if let Err(error) = synced {
            writer.refused = Some(Error::ReadOnly { cause: error.to_string() });
            return Err(error.into());
        }
        writer.free = 1 - writer.free;
        self.bound.store(to, Ordering::Release);
        Ok(())
    }

    /// Whether it can be extended, as far as was seen. Waits for an extension under way.
    pub fn check(&self) -> Result<()> {
        self.writer.lock().check()
    }

    /// Takes no more extensions and returns the last bound.
    pub(super) fn close(&self) -> u64 {
        let mut writer = self.writer.lock();
        writer.refused.get_or_insert(Error::Closed);
        self.bound()
    }
}

/// The lease should exist and does not.
pub(super) fn missing(dir: &Path) -> Error {
    engine::Error::corrupt(&dir.join(NAME), 0, "it is missing beside an IDENTITY").into()
}

fn encode(bound: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(&MAGIC);
    slot[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    slot[16..24].copy_from_slice(&bound.to_le_bytes());
    let checksum = xxh3_64(&slot[..HASHED_BYTES]);
    slot[HASHED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
    slot
}

/// Which slot counts, and its bound.
fn newest(path: &Path, bytes: &[u8]) -> Result<(usize, u64)> {
    let mut newest: Option<(usize, u64)> = None;
    for (index, stride) in bytes.chunks(SLOT_STRIDE).enumerate() {
        let Some((format, bound)) = stride.first_chunk().and_then(decode) else { continue };
        if format > FORMAT {
            let file = path.to_path_buf();
            return Err(Error::FormatTooNew { file, found: format, supported: FORMAT });
        }
        if newest.is_none_or(|(_, greatest)| bound > greatest) {
            newest = Some((index, bound));
        }
    }
    // A short file would grow with the next extension, which is then not what was promised.
    if bytes.len() != FILE_BYTES {
        let what = format!("it has {} bytes, not {FILE_BYTES}", bytes.len());
        return Err(engine::Error::corrupt(path, bytes.len() as u64, what).into());
    }
    newest.ok_or_else(|| engine::Error::corrupt(path, 0, "neither of its slots is whole").into())
}

/// Format and bound of a whole slot.
fn decode(slot: &[u8; SLOT_BYTES]) -> Option<(u32, u64)> {
    let (hashed, checksum) = slot.split_at(HASHED_BYTES);
    if !hashed.starts_with(&MAGIC) || xxh3_64(hashed).to_le_bytes() != checksum {
        return None;
    }
    let format = u32::from_le_bytes(*hashed[8..].first_chunk()?);
    let bound = u64::from_le_bytes(*hashed[16..].first_chunk()?);
    Some((format, bound))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use proptest::prelude::*;

    use crate::engine::vfs::fault::{Effect, Fault, FaultVfs, Operation};
    use crate::engine::vfs::mem::MemVfs;

    use super::*;

    fn dir() -> &'static Path {
        Path::new("/")
    }

    fn reopened(vfs: &dyn Vfs) -> Result<u64> {
        Lease::open(vfs, dir()).map(|lease| lease.expect("the lease exists").bound())
    }

    #[test]
    fn the_slots_are_a_format() {
        let bytes = encode(0x0102_0304_0506_0708);
        let expected = b"PDBLEASE\x01\0\0\0\0\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01";
        assert_eq!(bytes[..HASHED_BYTES], expected[..]);
        assert_eq!(bytes[HASHED_BYTES..], xxh3_64(expected).to_le_bytes());
    }

    #[test]
    fn the_bound_grows_and_outlives_a_power_loss_at_any_time() {
        let vfs = MemVfs::new();
        let lease = Lease::create(&vfs, dir()).unwrap();
        for to in [5, 9, 7, 9, u64::MAX] {
            let before = lease.bound();
            lease.extend(to).unwrap();
            assert_eq!(lease.bound(), before.max(to));
            for seed in 0..10 {
                assert_eq!(reopened(&vfs.crash_clone(seed)).unwrap(), lease.bound());
            }
        }
    }

    /// The write of an extension is torn: the bound before it is still there, in the other slot.
    #[test]
    fn a_torn_extension_leaves_the_bound_before() {
        let vfs = MemVfs::new();
        let faults = FaultVfs::new(Arc::new(vfs.clone()));
        let lease = Lease::create(&faults, dir()).unwrap();
        lease.extend(5).unwrap();
        lease.extend(9).unwrap();
        faults.inject(Fault {
            operation: Some(Operation::WriteAt),
            effect: Effect::ShortWrite(20, ErrorKind::Other),
            ..Fault::default()
        });
        assert_eq!(lease.extend(11).unwrap_err().reason(), "ENGINE");
        faults.heal();
        assert_eq!(lease.extend(12).unwrap_err().reason(), "READ_ONLY", "not tried again");
        assert_eq!((lease.bound(), reopened(&vfs).unwrap()), (9, 9));
    }

    #[test]
    fn a_failed_sync_is_not_believed_later() {
        let vfs = MemVfs::new();
        let faults = FaultVfs::new(Arc::new(vfs.clone()));
        let lease = Lease::create(&faults, dir()).unwrap();
        faults.inject(Fault { operation: Some(Operation::SyncData), ..Fault::default() });
        lease.extend(5).unwrap_err();
        assert_eq!(lease.extend(6).unwrap_err().reason(), "READ_ONLY");
        assert_eq!(lease.bound(), 0);
    }

    #[test]
    fn a_closed_lease_is_not_extended() {
        let vfs = MemVfs::new();
        let lease = Lease::create(&vfs, dir()).unwrap();
        lease.extend(5).unwrap();
        assert_eq!(lease.close(), 5);
        assert!(matches!(lease.extend(6), Err(Error::Closed)));
        assert_eq!(reopened(&vfs).unwrap(), 5);
    }

    #[test]
    fn a_newer_format_is_refused_by_its_version() {
        let mut slot = encode(5);
        slot[8] = 2;
        let checksum = xxh3_64(&slot[..HASHED_BYTES]);
        slot[HASHED_BYTES..].copy_from_slice(&checksum.to_le_bytes());
        let mut bytes = vec![0; FILE_BYTES];
        bytes[..SLOT_BYTES].copy_from_slice(&slot);
        let error = newest(Path::new("LEASE"), &bytes).unwrap_err();
        assert!(matches!(error, Error::FormatTooNew { found: 2, supported: 1, .. }), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Damage may hide a bound but never makes one up, and both slots bad is said by name.
        #[test]
        fn damage_never_invents_a_bound(
            flips in prop::collection::vec((0..2_usize, 0..SLOT_BYTES, 0..8_u32), 1..6),
            len in 0..=FILE_BYTES,
        ) {
            let mut bytes = vec![0; FILE_BYTES];
            bytes[..SLOT_BYTES].copy_from_slice(&encode(5));
            bytes[SLOT_STRIDE..SLOT_STRIDE + SLOT_BYTES].copy_from_slice(&encode(9));
            for (slot, at, bit) in flips {
                bytes[slot * SLOT_STRIDE + at] ^= 1 << bit;
            }
            let path = Path::new("LEASE");
            match newest(path, &bytes) {
                Ok(found) => prop_assert!([(0, 5), (1, 9)].contains(&found)),
                Err(error) => prop_assert_eq!(error.reason(), "CORRUPTION"),
            }
            if len < FILE_BYTES {
                prop_assert_eq!(newest(path, &bytes[..len]).unwrap_err().reason(), "CORRUPTION");
            }
        }
    }
}
