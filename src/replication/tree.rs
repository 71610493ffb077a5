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
//! A hash is taken under a floor: usually the partition's own. Beside a replica with a higher one
//! it is taken under that one, and kept too: a floor that only one of the two has does not make
//! them look different.
//!
//! 1. Hashes are brought up to date when they are asked for: leaves written to since, and those
//!    that a higher floor changes, are read again. What was written before that began is in the
//!    answer.
//! 2. A leaf that could not be read stays marked, and nobody gets a hash of it. Nor of a damaged
//!    partition.
//! 3. The rows of a tenant count among those of tenants with as many replicas as it has now. When
//!    that number changes all leaves are read again, though nothing was written to them.
//! 4. Beside its hash a leaf has the sum of its rows (`super::sum`), which is under no floor. It
//!    is what reading them would give: below the floor a compaction may drop rows that nobody
//!    writes to, so while one that may go is there the leaf is read each time.
//! 5. Nobody waits for more reading than `patience`: what was read so far is kept, and what is
//!    missing is not known yet.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3Default;

use super::sum;
use crate::proto::PageSum;
use crate::store::leaves::{DirtyLeaves, LEAF_BITS, LEAVES, leaf_of, tokens_of};
use crate::store::{self, EngineKey, FloorDigest, KeyRange, Result, Store, TenantId};

/// Bytes of rows that are read at once.
const PAGE_BYTES: usize = 1 << 20;
/// Leaves that are read in one go.
const RUN_LEAVES: u32 = 1024;
/// Hashes of leaves that hold nothing.
const ZEROS: [u64; 64] = [0; 64];

/// The hashes of one node.
#[derive(Debug)]
pub struct Trees {
    store: Arc<Store>,
    /// How long one call may read.
    patience: Duration,
    /// Held while leaves are read: one reader at a time.
    hashes: Mutex<Hashes>,
}

/// By number of replicas.
type Classes = BTreeMap<u8, Box<[u64]>>;
/// By number of replicas.
type Sums = BTreeMap<u8, Box<[PageSum]>>;

/// How many replicas tenants had when their rows were hashed, for all hashes alike.
#[derive(Debug, Default)]
struct Factors {
    /// Of the tenants when all of these were last found to be so still.
    version: Option<u64>,
    known: HashMap<TenantId, u8>,
}

/// Hashes under the own floors, and under another one for each partition.
#[derive(Debug)]
struct Hashes {
    factors: Factors,
    own: Classes,
    of_own: OfOwn,
    other: Classes,
    /// By partition: the floor of `other`.
    other_floors: BTreeMap<u32, u64>,
    /// Leaves of `other` to be read again.
    other_stale: DirtyLeaves,
}

/// What else is known of each leaf when it was hashed under the own floor.
#[derive(Debug)]
struct OfOwn {
    sums: Sums,
    /// Those of which a compaction may change the sum: it drops a row, and changes none.
    unsettled: DirtyLeaves,
    /// The least floor under which the hash may be another.
    until: Box<[u64]>,
    /// The least floor under which a row may be forgotten.
    purgeable_at: Box<[u64]>,
}

/// Where the hashes of leaves go.
struct Run<'h> {
    leaves: Range<u32>,
    floor: u64,
    factors: &'h mut Factors,
    classes: &'h mut Classes,
    /// The rest, if they are of this floor.
    of_own: Option<&'h mut OfOwn>,
}

/// Leaves that are marked again if they are not read to their end, for whatever reason.
struct Unread<'m> {
    marks: &'m DirtyLeaves,
    leaves: Range<u32>,
}

impl Unread<'_> {
    fn are_read(mut self) {
        self.leaves = 0..0;
    }
}

impl Drop for Unread<'_> {
    fn drop(&mut self) {
        self.leaves.clone().for_each(|leaf| self.marks.mark_leaf(leaf));
    }
}

/// A row's key and digest, in key order within a leaf.
pub type KeyDigests = Vec<(Vec<u8>, u64)>;

/// A page of a leaf that is asked for.
#[derive(Clone, Debug)]
pub struct LeafPage {
    /// Of the tenants that have so many replicas.
    pub replicas: u8,
    /// Which leaf.
    pub leaf: u32,
    /// Begin behind this engine key; empty: with the first.
    pub after: Vec<u8>,
    /// The floor to take digests under.
    pub floor: u64,
}

/// The leaves of a partition.
pub fn leaves_of(partition: u32, partition_bits: u32) -> Range<u32> {
    let shift = LEAF_BITS - partition_bits.min(LEAF_BITS);
    partition << shift..(partition + 1) << shift
}

fn none() -> Box<[u64]> {
    vec![u64::MAX; LEAVES].into()
}

fn indexes(leaves: &Range<u32>) -> Range<usize> {
    leaves.start as usize..leaves.end as usize
}

/// One hash over those of some leaves; 0 if they hold nothing.
fn root_of(hashes: &[u64]) -> u64 {
    // In a small store this is most of them: a few comparisons of memory.
    if hashes.chunks(ZEROS.len()).all(|some| *some == ZEROS[..some.len()]) {
        return 0;
    }
    let mut root = Xxh3Default::new();
    hashes.iter().for_each(|hash| root.update(&hash.to_le_bytes()));
    root.digest().max(1)
}

impl Factors {
    /// How many replicas a tenant's rows have; `None`: it is not known (yet).
    fn of(&mut self, store: &Store, tenant: TenantId) -> Option<u8> {
        if let Some(factor) = self.known.get(&tenant) {
            return Some(*factor);
        }
        let factor = factor_of(store, tenant)?;
        self.known.insert(tenant, factor);
        Some(factor)
    }

    /// Whether a tenant that was hashed has another number of replicas now, or is gone. All are
    /// forgotten then.
    fn have_changed(&mut self, store: &Store) -> bool {
        let version = store.tenants_version();
        if self.version == Some(version) {
            return false;
        }
        let is_same = |(tenant, factor): (&TenantId, &u8)| {
            factor_of(store, *tenant).is_some_and(|now| now == *factor)
        };
        let changed = !self.known.iter().all(is_same);
        if changed {
            self.known.clear();
        }
        // What comes after the look at it is found by the next call.
        self.version = Some(version);
        changed
    }
}

/// Rows of a tenant that is not known (yet) are nobody's to compare.
fn factor_of(store: &Store, tenant: TenantId) -> Option<u8> {
    store.tenant_by_id(tenant).ok().map(|tenant| tenant.replication_factor)
}

impl Hashes {
    /// The first of some leaves that is to be read again for this floor.
    fn next_stale(&self, marks: &DirtyLeaves, leaves: Range<u32>, floor: u64) -> Option<u32> {
        let marked = marks.next(leaves.clone());
        let fresh = leaves.start..marked.unwrap_or(leaves.end);
        let is_due = |until: &u64| *until <= floor;
        let due = self.of_own.until[indexes(&fresh)].iter().position(is_due);
        due.map(|at| leaves.start + at as u32).or(marked)
    }
}

impl OfOwn {
    fn clear(&mut self, leaves: &Range<u32>) {
        self.sums.values_mut().for_each(|sums| sums[indexes(leaves)].fill(PageSum::default()));
        leaves.clone().for_each(|leaf| _ = self.unsettled.take(leaf));
        self.until[indexes(leaves)].fill(u64::MAX);
        self.purgeable_at[indexes(leaves)].fill(u64::MAX);
    }
}

impl Trees {
    /// All leaves are unknown until they are asked for.
    pub fn new(store: Arc<Store>, patience: Duration) -> Self {
        let hashes = Hashes {
            factors: Factors::default(),
            own: Classes::new(),
            of_own: OfOwn {
                sums: Sums::new(),
                unsettled: DirtyLeaves::all(),
                until: none(),
                purgeable_at: none(),
            },
            other: Classes::new(),
            other_floors: BTreeMap::new(),
            other_stale: DirtyLeaves::all(),
        };
        Self { store, patience, hashes: Mutex::new(hashes) }
    }

    /// When a call that begins now has to end.
    fn deadline(&self) -> Duration {
        self.store.environment().monotonic.elapsed().saturating_add(self.patience)
    }

    fn is_over(&self, deadline: Duration) -> bool {
        self.store.environment().monotonic.elapsed() >= deadline
    }

    /// The hashes of a partition's leaves, for tenants with `replicas` replicas, under the higher
    /// of `floor` and the own floor; and that floor. `None`: not all were read yet. Reads what was
    /// written to since the last call: run it where waiting for the disk is allowed.
    ///
    /// # Errors
    /// A source that cannot be read, or a damaged partition.
    pub fn hashes(
        &self,
        replicas: u8,
        partition: u32,
        floor: u64,
    ) -> Result<Option<(Vec<u64>, u64)>> {
        let own_floor = self.store.floor_of_partition(partition)?;
        self.hashes_until(replicas, partition, (own_floor, floor), self.deadline())
    }

    /// [`Trees::hashes`] of a partition that may be damaged: its own floor counts as 0 then. For
    /// the exchange that mends it, or another one's.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub fn hashes_of_damaged(
        &self,
        replicas: u8,
        partition: u32,
        floor: u64,
    ) -> Result<Option<(Vec<u64>, u64)>> {
        let own_floor = match self.store.floor_of_partition(partition) {
            Err(store::Error::Damaged { .. }) => 0,
            own_floor => own_floor?,
        };
        self.hashes_until(replicas, partition, (own_floor, floor), self.deadline())
    }

    /// One hash for each partition, each under the higher of the floor named with it and the own
    /// one; and that floor. `None` where a partition is damaged, cannot be read or was not read
    /// yet.
    pub fn roots(&self, replicas: u8, partitions: &[(u32, u64)]) -> Vec<Option<(u64, u64)>> {
        let deadline = self.deadline();
        let root = |(partition, floor): &(u32, u64)| {
            let hashes = self
                .store
                .floor_of_partition(*partition)
                .and_then(|own| self.hashes_until(replicas, *partition, (own, *floor), deadline));
            let (hashes, floor) = hashes
                .inspect_err(|error| tracing::debug!(partition, %error, "no hash"))
                .ok()??;
            Some((root_of(&hashes), floor))
        };
        partitions.iter().map(root).collect()
    }

    /// The least floor above the own one under which a row of a partition may be forgotten;
    /// `u64::MAX`: none. `None`: not all was read yet.
    ///
    /// # Errors
    /// As [`Trees::hashes`].
    pub fn purgeable_at(&self, partition: u32) -> Result<Option<u64>> {
        let floor = self.store.floor_of_partition(partition)?;
        let leaves = leaves_of(partition, self.store.partition_bits());
        let mut hashes = self.hashes.lock();
        if !self.refresh(&mut hashes, leaves.clone(), floor, self.deadline())? {
            return Ok(None);
        }
        let least = hashes.of_own.purgeable_at[indexes(&leaves)].iter().min();
        Ok(Some(least.copied().unwrap_or(u64::MAX)))
    }

    /// What the rows of a partition add up to, those of tenants with so many replicas. `None`: not
    /// all were read yet, or the partition is damaged.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub fn sum(&self, partition: u32, factors: &BTreeSet<u8>) -> Result<Option<PageSum>> {
        let Ok(floor) = self.store.floor_of_partition(partition) else { return Ok(None) };
        let leaves = leaves_of(partition, self.store.partition_bits());
        let deadline = self.deadline();
        let mut hashes = self.hashes.lock();
        let mut from = leaves.start;
        while let Some(leaf) = hashes.of_own.unsettled.next(from..leaves.end) {
            self.store.dirty_leaves().mark_leaf(leaf);
            from = leaf + 1;
        }
        if !self.refresh(&mut hashes, leaves.clone(), floor, deadline)? {
            return Ok(None);
        }
        let mut sum = PageSum::default();
        for (_, of_class) in
            hashes.of_own.sums.iter().filter(|(factor, _)| factors.contains(factor))
        {
            of_class[indexes(&leaves)].iter().for_each(|leaf| sum::add(&mut sum, leaf));
        }
        Ok(Some(sum))
    }

    fn hashes_until(
        &self,
        replicas: u8,
        partition: u32,
        (own_floor, floor): (u64, u64),
        deadline: Duration,
    ) -> Result<Option<(Vec<u64>, u64)>> {
        let leaves = leaves_of(partition, self.store.partition_bits());
        let mut hashes = self.hashes.lock();
        if !self.refresh(&mut hashes, leaves.clone(), own_floor, deadline)? {
            return Ok(None);
        }
        let zeros = || vec![0; LEAVES].into();
        let own = hashes.own.entry(replicas).or_insert_with(zeros);
        let mut all = own[indexes(&leaves)].to_vec();
        if floor <= own_floor {
            return Ok(Some((all, own_floor)));
        }
        if !self.refresh_other(&mut hashes, partition, leaves.clone(), floor, deadline)? {
            return Ok(None);
        }
        let hashes = &mut *hashes;
        let other = hashes.other.entry(replicas).or_insert_with(zeros);
        for (hash, leaf) in all.iter_mut().zip(leaves) {
            if hashes.of_own.until[leaf as usize] <= floor {
                *hash = other[leaf as usize];
            }
        }
        Ok(Some((all, floor)))
    }

    /// `false`: the time is over, and there is more to read.
    fn refresh(
        &self,
        hashes: &mut Hashes,
        leaves: Range<u32>,
        floor: u64,
        deadline: Duration,
    ) -> Result<bool> {
        if hashes.factors.have_changed(&self.store) {
            // Due under every floor: those of `other` are read again after them.
            hashes.of_own.until.fill(0);
        }
        let marks = self.store.dirty_leaves();
        let mut leaf = leaves.start;
        while let Some(first) = hashes.next_stale(marks, leaf..leaves.end, floor) {
            if self.is_over(deadline) {
                return Ok(false);
            }
            leaf = first;
            let is_stale =
                |leaf: u32| marks.is_marked(leaf) || hashes.of_own.until[leaf as usize] <= floor;
            let end = leaves.end.min(leaf + RUN_LEAVES);
            let run = leaf..(leaf..end).find(|leaf| !is_stale(*leaf)).unwrap_or(end);
            leaf = run.end;
            let unread = Unread { marks, leaves: run.clone() };
            run.clone().for_each(|leaf| {
                marks.take(leaf);
                hashes.other_stale.mark_leaf(leaf);
            });
            let into = Run {
                leaves: run,
                floor,
                factors: &mut hashes.factors,
                classes: &mut hashes.own,
                of_own: Some(&mut hashes.of_own),
            };
            self.rehash(into)?;
            unread.are_read();
        }
        Ok(true)
    }

    /// As [`Trees::refresh`], for the hashes under a floor that others have.
    fn refresh_other(
        &self,
        hashes: &mut Hashes,
        partition: u32,
        leaves: Range<u32>,
        floor: u64,
        deadline: Duration,
    ) -> Result<bool> {
        if hashes.other_floors.insert(partition, floor) != Some(floor) {
            leaves.clone().for_each(|leaf| hashes.other_stale.mark_leaf(leaf));
        }
        for leaf in leaves {
            let is_needed = hashes.of_own.until[leaf as usize] <= floor;
            if !is_needed || !hashes.other_stale.is_marked(leaf) {
                continue;
            }
            if self.is_over(deadline) {
                return Ok(false);
            }
            self.rehash(Run {
                leaves: leaf..leaf + 1,
                floor,
                factors: &mut hashes.factors,
                classes: &mut hashes.other,
                of_own: None,
            })?;
            hashes.other_stale.take(leaf);
        }
        Ok(true)
    }

    fn rehash(&self, run: Run<'_>) -> Result<()> {
        let Run { leaves, floor, factors, classes, mut of_own } = run;
        for class in classes.values_mut() {
            class[indexes(&leaves)].fill(0);
        }
        if let Some(of_own) = &mut of_own {
            of_own.clear(&leaves);
        }
        let range = KeyRange::of_tokens(tokens_of(leaves.start).0, tokens_of(leaves.end - 1).1);
        self.each_row(range, floor, |key, row, found| {
            let at = EngineKey::decode(key)?;
            let leaf = leaf_of(at.token) as usize;
            let Some(replicas) = factors.of(&self.store, at.tenant) else {
                // Looked at again when its tenant is known.
                self.store.dirty_leaves().mark_leaf(leaf as u32);
                return Ok(true);
            };
            if found.digest != 0 {
                let class = classes.entry(replicas).or_insert_with(|| vec![0; LEAVES].into());
                class[leaf] ^= sum::hash_of(key, found.digest);
            }
            if let Some(of_own) = &mut of_own {
                of_own.until[leaf] = of_own.until[leaf].min(found.until);
                of_own.purgeable_at[leaf] = of_own.purgeable_at[leaf].min(found.purgeable_at);
                if found.digest == 0 {
                    of_own.unsettled.mark_leaf(leaf as u32);
                }
                let none = || vec![PageSum::default(); LEAVES].into();
                let sums = of_own.sums.entry(replicas).or_insert_with(none);
                sum::add_row(&mut sums[leaf], key, row);
            }
            Ok(true)
        })
    }

    /// Keys of a leaf with their digests, until there are `keys_max` or `bytes_max` bytes of them;
    /// and whether there are more.
    ///
    /// # Errors
    /// A source that cannot be read.
    pub fn keys(
        &self,
        page: LeafPage,
        keys_max: usize,
        bytes_max: usize,
    ) -> Result<(KeyDigests, bool)> {
        let LeafPage { replicas, leaf, after, floor } = page;
        let (mut keys, mut bytes) = (Vec::new(), 0);
        let mut more = false;
        let (first, last) = tokens_of(leaf);
        let mut range = KeyRange::of_tokens(first, last);
        if !after.is_empty() {
            range.start = range.start.max([&after[..], &[0]].concat());
        }
        self.each_row(range, floor, |key, _, found| {
            let tenant = EngineKey::decode(key)?.tenant;
            let is_one = factor_of(&self.store, tenant) == Some(replicas);
            if found.digest == 0 || !is_one {
                return Ok(true);
            }
            if keys.len() == keys_max || bytes >= bytes_max {
                more = true;
                return Ok(false);
            }
            bytes += key.len() + size_of::<u64>();
            keys.push((key.to_vec(), found.digest));
            Ok(true)
        })?;
        Ok((keys, more))
    }

    /// Calls `each` with engine key, bytes and digest of every row of a range, until it says no.
    fn each_row(
        &self,
        mut range: KeyRange,
        floor: u64,
        mut each: impl FnMut(&[u8], &[u8], FloorDigest) -> Result<bool>,
    ) -> Result<()> {
        let mut goes_on = true;
        loop {
            let next = self.store.visit_within(&range, PAGE_BYTES, |key, row| {
                goes_on = each(key, row, self.store.floor_digest(row, floor)?)?;
                Ok(goes_on)
            })?;
            match next {
                Some(next) if goes_on => range.start = next,
                _ => return Ok(()),
            }
        }
    }
}
