//! One shard of the row cache: a map into a slab of entries, and S3-FIFO over them.
//!
//! New entries go into the queue `small` (a tenth of the bytes). At its end an entry that was hit
//! moves to `main`, one that was not leaves and is remembered by its hash; a remembered key goes
//! straight into `main` the next time. At the end of `main` an entry goes round again once for
//! each hit, three at most. So a scan passes through `small` and leaves `main` alone, and a hit
//! only counts up: it moves nothing.
//!
//! A key that was missed and got no entry ([`super::admission`]) is remembered like one that left.
//!
//! The memory of those who left is a table of fingerprints with one place per hash, overwritten by
//! whoever comes next; its size is fixed and forgetting is free.
//!
//! # Invariants
//! 1. A slot is in exactly one of: `small`, `main`, the free list. The map holds the slots of the
//!    queues, by hash.
//! 2. `bytes` of a queue is the sum of its entries' charges; both together never exceed the limit
//!    when a call returns.
//! 3. Two keys of one hash do not live here at the same time; the key decides what is a hit.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasherDefault, Hasher};

use super::admission::RECENT_PART;
use super::row_cache::Cached;

/// Map slot, reference counts and allocator headers of one entry, in bytes.
const OVERHEAD_BYTES: usize = 32 + 16 + 32;
/// Hits that are remembered per entry.
const HITS_MAX: u8 = 3;
/// Bytes of cache per fingerprint, about two small entries.
const BYTES_PER_FINGERPRINT: usize = 512;
const NONE: u32 = u32::MAX;

/// Keys of the map are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("the map's keys are u64");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Entry {
    hash: u64,
    key: Box<[u8]>,
    cached: Cached,
    filled_at_ms: u64,
    charge: u32,
    hits: u8,
    queue: Queue,
    /// Towards the head of the queue, which leaves first; in the free list, the next free slot.
    before: u32,
    after: u32,
}

/// A doubly linked list of slots.
#[derive(Debug)]
struct List {
    head: u32,
    tail: u32,
    bytes: usize,
}

impl Default for List {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, bytes: 0 }
    }
}

/// See the module page. Everything in it is protected by the lock of its owner.
#[derive(Debug, Default)]
pub(super) struct Shard {
    /// Fills of other epochs are refused.
    pub epoch: u64,
    pub hits: u64,
    pub misses: u64,
    pub evictions: u64,

    limit: usize,
    map: HashMap<u64, u32, BuildHasherDefault<Identity>>,
    slots: Vec<Entry>,
    free: Option<u32>,
    small: List,
    main: List,
    fingerprints: Box<[u32]>,
}

/// What an entry of this key and state is charged, in bytes.
pub(super) fn charge(key: &[u8], cached: &Cached) -> usize {
    let row = match cached {
        Cached::Negative => 0,
        Cached::Row(row) => row.len(),
    };
    size_of::<Entry>() + OVERHEAD_BYTES + key.len() + row
}

impl Shard {
    /// A shard of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        let fingerprints = (limit / BYTES_PER_FINGERPRINT).next_power_of_two();
        let fingerprints = vec![0; fingerprints].into_boxed_slice();
        let entries = limit.saturating_sub(size_of_val(&*fingerprints));
        Self { limit: entries, fingerprints, ..Self::default() }
    }

    /// Bytes charged.
    pub fn bytes(&self) -> usize {
        self.small.bytes + self.main.bytes
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// The state of `key`, if it is here and was filled after `oldest_ms`.
    #[inline]
    pub fn get(&mut self, key: &[u8], hash: u64, oldest_ms: u64) -> Option<&Cached> {
        let Some(slot) = self.find(key, hash) else {
            self.misses += 1;
            return None;
        };
        if self.slots[slot as usize].filled_at_ms < oldest_ms {
            self.misses += 1;
            self.evictions += 1;
            self.remove(slot);
            return None;
        }
        self.hits += 1;
        let entry = &mut self.slots[slot as usize];
        entry.hits = (entry.hits + 1).min(HITS_MAX);
        Some(&entry.cached)
    }

    /// The state of `key`, without counting a hit.
    pub fn peek(&self, key: &[u8], hash: u64) -> Option<&Cached> {
        self.find(key, hash).map(|slot| &self.slots[slot as usize].cached)
    }

    /// Puts `key` in, in place of what it or another key of its hash had. REQUIRES: its charge is
    /// at most the shard's limit.
    pub fn insert(&mut self, key: &[u8], hash: u64, cached: Cached, now_ms: u64) {
        if let Some(slot) = self.find(key, hash) {
            self.replace(slot, cached, now_ms);
        } else {
            self.discard_hash(hash);
            let charge = charge(key, &cached);
            self.make_room(charge);
            let queue = if self.recall(hash) { Queue::Main } else { Queue::Small };
            let entry = Entry {
                hash,
                key: key.into(),
                cached,
                filled_at_ms: now_ms,
                charge: charge as u32,
                hits: 0,
                queue,
                before: NONE,
                after: NONE,
            };
            let slot = self.allocate(entry);
            self.map.insert(hash, slot);
            self.push(slot, queue);
        }
    }

    /// Gives `key`, if it is here, another state; its age and hits stay.
    pub fn update(&mut self, key: &[u8], hash: u64, cached: Cached) {
        if let Some(slot) = self.find(key, hash) {
            let filled_at_ms = self.slots[slot as usize].filled_at_ms;
            self.replace(slot, cached, filled_at_ms);
        }
    }

    /// Forgets `key`.
    pub fn discard(&mut self, key: &[u8], hash: u64) {
        if let Some(slot) = self.find(key, hash) {
            self.remove(slot);
        }
    }

    /// Forgets every key that `goes` names. Looks at each entry.
    pub fn discard_keys(&mut self, goes: &dyn Fn(&[u8]) -> bool) {
        let goes = |slot: &u32| goes(&self.slots[*slot as usize].key);
        let slots: Vec<_> = self.map.values().copied().filter(goes).collect();
        slots.into_iter().for_each(|slot| self.remove(slot));
    }

    #[inline]
    fn find(&self, key: &[u8], hash: u64) -> Option<u32> {
        let slot = *self.map.get(&hash)?;
        (*self.slots[slot as usize].key == *key).then_some(slot)
    }

    fn discard_hash(&mut self, hash: u64) {
        if let Some(slot) = self.map.get(&hash).copied() {
            self.remove(slot);
        }
    }

    fn replace(&mut self, slot: u32, cached: Cached, now_ms: u64) {
        let entry = &mut self.slots[slot as usize];
        let (before, after) = (entry.charge, charge(&entry.key, &cached) as u32);
        entry.cached = cached;
        entry.charge = after;
        entry.filled_at_ms = now_ms;
        let queue = entry.queue;
        let list = self.list(queue);
        list.bytes = list.bytes - before as usize + after as usize;
        self.make_room(0);
    }

    /// Evicts until `bytes` more fit.
    fn make_room(&mut self, bytes: usize) {
        while self.bytes() + bytes > self.limit {
            let from_small = self.small.bytes > self.limit / 10 || self.main.head == NONE;
            let slot = if from_small { self.small.head } else { self.main.head };
            let Some(entry) = self.slots.get_mut(slot as usize) else { return };
            let hits = entry.hits;
            if hits == 0 {
                let hash = entry.hash;
                self.evictions += 1;
                self.remove(slot);
                if from_small {
                    self.remember(hash);
                }
            } else {
                entry.hits = if from_small { 0 } else { hits - 1 };
                self.unlink(slot);
                self.push(slot, Queue::Main);
            }
        }
    }

    /// The place and the value of a hash among the fingerprints; zero stands for none.
    fn fingerprint(&self, hash: u64) -> (usize, u32) {
        let place = hash as usize & (self.fingerprints.len() - 1);
        (place, (hash >> 32) as u32 | 1)
    }

    fn remember(&mut self, hash: u64) {
        let (place, fingerprint) = self.fingerprint(hash);
        self.fingerprints[place] = fingerprint;
    }

    /// Whether the hash is remembered; remembers it. With `recent`, a part of the fingerprints is
    /// used, so that it is soon forgotten and the fingerprints stay near the processor.
    pub fn is_asked_again(&mut self, hash: u64, recent: bool) -> bool {
        let (place, fingerprint) = self.fingerprint(hash);
        let places = self.fingerprints.len() / if recent { RECENT_PART } else { 1 };
        let known = &mut self.fingerprints[place & places.saturating_sub(1)];
        std::mem::replace(known, fingerprint) == fingerprint
    }

    /// Whether the hash is remembered; forgets it.
    fn recall(&mut self, hash: u64) -> bool {
        let (place, fingerprint) = self.fingerprint(hash);
        let known = self.fingerprints[place] == fingerprint;
        if known {
            self.fingerprints[place] = 0;
        }
        known
    }

    fn list(&mut self, queue: Queue) -> &mut List {
        match queue {
            Queue::Small => &mut self.small,
            Queue::Main => &mut self.main,
        }
    }

    fn allocate(&mut self, entry: Entry) -> u32 {
        match self.free {
            Some(slot) => {
                let free = std::mem::replace(&mut self.slots[slot as usize], entry).before;
                self.free = (free != NONE).then_some(free);
                slot
            }
            None => {
                self.slots.push(entry);
                (self.slots.len() - 1) as u32
            }
        }
    }

    /// Adds a slot at the tail of a queue.
    fn push(&mut self, slot: u32, queue: Queue) {
        let tail = self.list(queue).tail;
        let entry = &mut self.slots[slot as usize];
        entry.queue = queue;
        entry.before = tail;
        entry.after = NONE;
        let charge = entry.charge as usize;
        if let Some(last) = self.slots.get_mut(tail as usize) {
            last.after = slot;
        }
        let list = self.list(queue);
        list.tail = slot;
        list.bytes += charge;
        if list.head == NONE {
            list.head = slot;
        }
    }

    /// Takes a slot out of its queue.
    fn unlink(&mut self, slot: u32) {
        let entry = &self.slots[slot as usize];
        let (queue, before, after) = (entry.queue, entry.before, entry.after);
        let charge = entry.charge as usize;
        if let Some(entry) = self.slots.get_mut(before as usize) {
            entry.after = after;
        }
        if let Some(entry) = self.slots.get_mut(after as usize) {
            entry.before = before;
        }
        let list = self.list(queue);
        list.bytes -= charge;
        if list.head == slot {
            list.head = after;
        }
        if list.tail == slot {
            list.tail = before;
        }
    }

    /// Takes a slot out of queue and map, and frees it and its bytes.
    fn remove(&mut self, slot: u32) {
        self.unlink(slot);
        let free = self.free.unwrap_or(NONE);
        let entry = &mut self.slots[slot as usize];
        entry.key = Box::default();
        entry.cached = Cached::Negative;
        entry.before = free;
        if let MapEntry::Occupied(occupied) = self.map.entry(entry.hash) {
            occupied.remove();
        }
        self.free = Some(slot);
    }

    /// Checks the numbered invariants, for tests.
    #[cfg(test)]
    pub fn check(&self) {
        let mut seen = 0;
        for (queue, list) in [(Queue::Small, &self.small), (Queue::Main, &self.main)] {
            let (mut at, mut before, mut bytes) = (list.head, NONE, 0);
            while at != NONE {
                let entry = &self.slots[at as usize];
                assert_eq!((entry.queue, entry.before), (queue, before));
                assert_eq!(self.map.get(&entry.hash), Some(&at));
                assert_eq!(entry.charge as usize, charge(&entry.key, &entry.cached));
                bytes += entry.charge as usize;
                seen += 1;
                (before, at) = (at, entry.after);
            }
            assert_eq!((list.tail, list.bytes), (before, bytes));
        }
        assert_eq!(seen, self.map.len());
        assert!(self.bytes() <= self.limit);
        let mut free = 0;
        let mut at = self.free;
        while let Some(slot) = at {
            free += 1;
            let before = self.slots[slot as usize].before;
            at = (before != NONE).then_some(before);
        }
        assert_eq!(seen + free, self.slots.len());
    }
}
