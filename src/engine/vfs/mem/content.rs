//! The bytes of one file in memory, shared between clones until written.
//!
//! A file is a row of granules of 4 KiB; a granule of zeros takes no memory, so that allocated but
//! empty log segments cost nothing. A clone copies two words.

use std::sync::Arc;

use super::random::Random;

/// What the disk writes as a whole or not at all in the good case; see [`Content::tear`].
pub(super) const GRANULE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

type Granule = Option<Arc<[u8; GRANULE_BYTES]>>;

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    granules: Arc<Vec<Granule>>,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Granules that a file of `len` bytes takes.
    pub(super) fn granules_of(len: u64) -> u64 {
        len.div_ceil(GRANULE_BYTES as u64)
    }

    /// Grows to `len` bytes with zeros. Never shrinks: a `File` has no call for it.
    pub(super) fn grow(&mut self, len: u64) {
        if len > self.len {
            Arc::make_mut(&mut self.granules).resize(Self::granules_of(len) as usize, None);
            self.len = len;
        }
    }

    /// Writes and grows as needed.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.grow(offset + bytes.len() as u64);
        let granules = Arc::make_mut(&mut self.granules);
        for (index, within, part) in parts(offset, bytes.len()) {
            let bytes = &bytes[part];
            let granule = &mut granules[index];
            if granule.is_none() && bytes.iter().all(|byte| *byte == 0) {
                continue;
            }
            let granule = granule.get_or_insert_with(|| Arc::new([0; GRANULE_BYTES]));
            Arc::make_mut(granule)[within..within + bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Reads up to the end of the file; the number of bytes read.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let len = self.len.saturating_sub(offset).min(buffer.len() as u64) as usize;
        for (index, within, part) in parts(offset, len) {
            let buffer = &mut buffer[part];
            match &self.granules[index] {
                Some(granule) => buffer.copy_from_slice(&granule[within..within + buffer.len()]),
                None => buffer.fill(0),
            }
        }
        len
    }

    /// The indices of the granules that a write touches.
    pub(super) fn touched(offset: u64, len: usize) -> impl Iterator<Item = usize> {
        parts(offset, len).map(|(index, _, _)| index)
    }

    /// Makes granule `index` what a disk may hold after it was told to replace `self`'s by
    /// `newer`'s and lost power: every sector old or new, and one of them half written.
    pub(super) fn tear(&mut self, newer: &Self, index: usize, random: &mut Random) {
        let Some(mut torn) = self.granule(index) else { return };
        let Some(new) = newer.granule(index) else { return };
        let half_written = random.below((GRANULE_BYTES / SECTOR_BYTES) as u64) as usize;
        let in_order = random.coin();
        for sector in 0..GRANULE_BYTES / SECTOR_BYTES {
            let len = match sector {
                sector if sector == half_written => random.below(SECTOR_BYTES as u64) as usize,
                sector if in_order && sector < half_written => SECTOR_BYTES,
                _ if !in_order && random.coin() => SECTOR_BYTES,
                _ => 0,
            };
            let range = sector * SECTOR_BYTES..sector * SECTOR_BYTES + len;
            torn[range.clone()].copy_from_slice(&new[range]);
        }
        self.put(index, &torn);
    }

    /// Takes granule `index` over from `newer`.
    pub(super) fn take(&mut self, newer: &Self, index: usize) {
        if let Some(new) = newer.granule(index) {
            self.put(index, &new);
        }
    }

    fn granule(&self, index: usize) -> Option<[u8; GRANULE_BYTES]> {
        self.granules.get(index).map(|granule| match granule {
            Some(granule) => **granule,
            None => [0; GRANULE_BYTES],
        })
    }

    /// Replaces a granule up to the end of the file, whose length stays.
    fn put(&mut self, index: usize, bytes: &[u8; GRANULE_BYTES]) {
        let offset = (index * GRANULE_BYTES) as u64;
        let len = self.len.saturating_sub(offset).min(GRANULE_BYTES as u64) as usize;
        self.write(offset, &bytes[..len]);
    }
}

/// Cuts a range of a file at granule borders: granule, offset in it, part of the range.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % GRANULE_BYTES as u64) as usize;
        let part = done..len.min(done + GRANULE_BYTES - within);
        done = part.end;
        Some(((at / GRANULE_BYTES as u64) as usize, within, part))
    })
}
