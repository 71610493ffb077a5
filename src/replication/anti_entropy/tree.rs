//! Hashes of the leaves of the token space, as far as this node holds them.
//!
//! A leaf is the tokens that share their top 18 bits ([`crate::store::leaves`]); a partition is a
//! run of leaves. The hash of a leaf is the XOR of `xxh3_64(engine key | digest)` over its rows, so
//! that neither the order of rows nor how they came counts. Rows without a canonical digest (they
//! may be purged under the floor) count as absent.
//!
//! Replicas of a partition do not all hold the same tenants: the fourth holds only those with four
//! replicas or more. So there is one hash for each number of replicas.
//!
//! 1. Hashes are brought up to date when they are asked for: leaves written to since are read
//!    again. What was written before that began is in the answer.
//! 2. A leaf that could not be read stays marked, and nobody gets a hash of it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use crate::store::leaves::{LEAF_BITS, LEAVES, leaf_of, tokens_of};
use crate::store::{EngineKey, KeyRange, RawRow, Result, Store};

/// Bytes of rows that are read at once.
const PAGE_BYTES: usize = 1 << 20;

/// Hashes of leaves that hold nothing.
const ZEROS: [u64; 64] = [0; 64];

/// The hashes of one node.
#[derive(Debug)]
pub struct Trees {
    store: Arc<Store>,
    /// By number of replicas. Held while leaves are read: one reader at a time.
    hashes: Mutex<BTreeMap<u8, Box<[u64]>>>,
}

/// A row's key and digest, in key order within a leaf.
pub type KeyDigests = Vec<(Vec<u8>, u64)>;

/// The leaves of a partition.
pub fn leaves_of(partition: u32, partition_bits: u32) -> Range<u32> {
    let shift = LEAF_BITS - partition_bits.min(LEAF_BITS);
    partition << shift..(partition + 1) << shift
}

impl Trees {
    /// All leaves are unknown until they are asked for.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, hashes: Mutex::default() }
    }

    /// The hashes of leaves, for tenants with `replicas` replicas. Reads what was written to since
    /// the last call: run it where waiting for the disk is allowed.
    ///
    /// # Errors
    /// A source that cannot be read, or a damaged partition.
    pub fn hashes(&self, replicas: u8, leaves: Range<u32>) -> Result<Vec<u64>> {
        let mut hashes = self.hashes.lock();
        self.refresh(&mut hashes, leaves.clone())?;
        let zeros = || vec![0; LEAVES].into();
        let class = hashes.entry(replicas).or_insert_with(zeros);
        Ok(class[leaves.start as usize..leaves.end as usize].to_vec())
    }

    /// One hash over those of some leaves; 0 if they hold nothing.
    ///
    /// # Errors
    /// As [`Trees::hashes`].
    pub fn root(&self, replicas: u8, leaves: Range<u32>) -> Result<u64> {
        let hashes = self.hashes(replicas, leaves)?;
        // In a small store this is most of them: a few comparisons of memory.
        if hashes.chunks(ZEROS.len()).all(|some| *some == ZEROS[..some.len()]) {
            return Ok(0);
        }
        let mut root = Xxh3Default::new();
        hashes.iter().for_each(|hash| root.update(&hash.to_le_bytes()));
        Ok(root.digest().max(1))
    }

    fn refresh(&self, hashes: &mut BTreeMap<u8, Box<[u64]>>, leaves: Range<u32>) -> Result<()> {
        let marks = self.store.dirty_leaves();
        let mut leaf = leaves.start;
        while let Some(first) = marks.next(leaf..leaves.end) {
            marks.take(first);
            leaf = first + 1;
            while leaf < leaves.end && marks.take(leaf) {
                leaf += 1;
            }
            if let Err(error) = self.rehash(hashes, first..leaf) {
                (first..leaf).for_each(|leaf| marks.mark_leaf(leaf));
                return Err(error);
            }
        }
        Ok(())
    }

    fn rehash(&self, hashes: &mut BTreeMap<u8, Box<[u64]>>, leaves: Range<u32>) -> Result<()> {
        for class in hashes.values_mut() {
            class[leaves.start as usize..leaves.end as usize].fill(0);
        }
        let mut piece = Vec::new();
        let range = KeyRange::of_tokens(tokens_of(leaves.start).0, tokens_of(leaves.end - 1).1);
        self.each_row(range, |key, digest| {
            let at = EngineKey::decode(key)?;
            let Some(replicas) = self.replicas_of(&at) else {
                // Looked at again when its tenant is known.
                self.store.dirty_leaves().mark_leaf(leaf_of(at.token));
                return Ok(true);
            };
            piece.clear();
            piece.extend_from_slice(key);
            piece.extend_from_slice(&digest.to_le_bytes());
            let class = hashes.entry(replicas).or_insert_with(|| vec![0; LEAVES].into());
            class[leaf_of(at.token) as usize] ^= xxh3_64(&piece);
            Ok(true)
        })
    }

    /// Up to `max` keys of a leaf with their digests, behind `after`, for tenants with `replicas`
    /// replicas; and whether there are more.
    ///
    /// # Errors
    /// As [`Trees::hashes`].
    pub fn keys(
        &self,
        replicas: u8,
        leaf: u32,
        after: &[u8],
        max: usize,
    ) -> Result<(KeyDigests, bool)> {
        let mut keys = Vec::new();
        let mut more = false;
        let (first, last) = tokens_of(leaf);
        let mut range = KeyRange::of_tokens(first, last);
        if !after.is_empty() {
            range.start = range.start.max([after, &[0]].concat());
        }
        self.each_row(range, |key, digest| {
            let is_one = self.replicas_of(&EngineKey::decode(key)?) == Some(replicas);
            if is_one && keys.len() == max {
                more = true;
                return Ok(false);
            }
            if is_one {
                keys.push((key.to_vec(), digest));
            }
            Ok(true)
        })?;
        Ok((keys, more))
    }

    /// Rows of a tenant that is not known (yet) are nobody's to compare.
    fn replicas_of(&self, key: &EngineKey<'_>) -> Option<u8> {
        self.store.tenant_by_id(key.tenant).ok().map(|tenant| tenant.replication_factor)
    }

    /// Calls `each` with engine key and digest of every row of a range, until it says no.
    fn each_row(
        &self,
        mut range: KeyRange,
        mut each: impl FnMut(&[u8], u64) -> Result<bool>,
    ) -> Result<()> {
        loop {
            let page = self.store.rows_within(range.clone(), PAGE_BYTES)?;
            for (key, row) in page.rows {
                let floor = self.store.floor_at(EngineKey::decode(&key)?.token)?;
                let digest = self.store.digest(&RawRow { row: Some(row), floor })?;
                if digest != 0 && !each(&key, digest)? {
                    return Ok(());
                }
            }
            match page.cursor {
                Some(next) => range.start = next,
                None => return Ok(()),
            }
        }
    }
}
