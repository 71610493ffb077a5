//! The sorted list inside a memtable: crossbeam's skiplist, used insert-only.
//!
//! One node a user key. The node's key and its record lie in the [`Arena`]; the node holds a
//! 64-bit prefix beside the key's address, so that nearly every comparison ends without touching
//! the key, and an atomic pointer to the newest record. An update stores a new pointer.
//!
//! # Invariants
//! 1. No node is ever removed or replaced: `insert`, `remove` and `range` of the crate are never
//!    called (`range` leaks there: crossbeam issue 1178). Hence no node is freed before the list
//!    is dropped, and reading needs no epoch pin: [`unprotected`] is a sound guard.
//! 2. All writers of one key hold that key's stripe lock, so the record pointer has one writer at
//!    a time; readers take what they find.
//! 3. Keys and records are immutable once published (the arena's invariant 2).
//!
//! Bytes of a record in the arena, at an address divisible by eight:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | where the log ended behind the newest write in it, native endian (never leaves memory) |
//! | 4 | length of the row, native endian |
//! | 1 | kind |
//! | n | the row |
#![expect(unsafe_code, reason = "pointers into the arena and a guard without a pin")]

use std::cmp::Ordering as Order;
use std::hint::black_box;
use std::ops::Bound;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crossbeam_epoch::{Guard, default_collector, unprotected};
use crossbeam_skiplist::base::{Entry, SkipList};

use super::Logged;
use super::arena::{Arena, Spare};
use crate::engine::key::key_prefix;
use crate::engine::position::Position;
use crate::engine::record::{Kind, Record};

/// What a node costs beside its arena bytes: key, value, counters, 1.33 pointers of tower, malloc.
const NODE_BYTES: usize = 72;
/// What stands before a row: the module page.
const HEADER_BYTES: usize = 13;

/// A key in the arena, or, as a probe, anywhere.
struct ListKey {
    prefix: u64,
    start: NonNull<u8>,
    len: u32,
}

// SAFETY: points at bytes nobody writes; the owner of the list keeps the arena.
unsafe impl Send for ListKey {}
// SAFETY: as above.
unsafe impl Sync for ListKey {}

impl ListKey {
    /// A key over bytes that the caller keeps alive for as long as the value is used.
    fn new(bytes: &[u8]) -> Self {
        Self {
            prefix: key_prefix(bytes),
            start: NonNull::from(bytes).cast(),
            len: bytes.len() as u32,
        }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: `new` was given `len` bytes here; a key in the list points into the arena, which
        // lives as long as the list, a probe into its caller's slice.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len as usize) }
    }
}

impl PartialEq for ListKey {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for ListKey {}

impl PartialOrd for ListKey {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for ListKey {
    fn cmp(&self, other: &Self) -> Order {
        self.prefix.cmp(&other.prefix).then_with(|| self.bytes().cmp(other.bytes()))
    }
}

/// The newest record of a key. Release on store, Acquire on load: publishes the record's bytes.
struct Cell(AtomicPtr<u8>);

impl Cell {
    fn logged(&self) -> Logged<'_> {
        let at = self.0.load(Ordering::Acquire);
        // SAFETY: `put` stored the address of a record in the arena, laid out as the module page
        // says and aligned to 8; it is immutable and lives as long as the list.
        unsafe {
            let end = Position::from_u64(at.cast::<u64>().read());
            let len = at.add(8).cast::<u32>().read() as usize;
            let kind = if at.add(12).read() == Kind::Full as u8 { Kind::Full } else { Kind::Delta };
            let row = slice::from_raw_parts(at.add(HEADER_BYTES), len);
            Logged { record: Record { kind, row }, end }
        }
    }
}

/// See the module page.
pub struct List {
    /// Most of the memory, and free again in no time: dropped before the nodes, which are freed one
    /// by one while the next memtable fills, perhaps with the arena's chunks. Their keys and cells
    /// point into it and are not looked at by then: neither has anything to drop.
    arena: Arena,
    nodes: SkipList<ListKey, Cell>,
}

const _: () = assert!(!std::mem::needs_drop::<ListKey>() && !std::mem::needs_drop::<Cell>());

/// A guard that pins nothing; sound by invariant 1.
fn no_pin() -> &'static Guard {
    // SAFETY: an unprotected guard runs deferred destruction at once and does not keep nodes
    // alive. Nothing is ever deferred here, because nothing is ever unlinked, and nodes live until
    // the list is dropped, for which `&mut self` is needed.
    unsafe { unprotected() }
}

impl List {
    /// For about so many bytes.
    pub fn new(bytes: usize, spare: &Arc<Spare>) -> Self {
        Self { arena: Arena::new(bytes, spare), nodes: SkipList::new(default_collector().clone()) }
    }

    /// The newest record of `key`.
    pub fn get(&self, key: &[u8]) -> Option<Logged<'_>> {
        let entry = self.nodes.get(&ListKey::new(key), no_pin())?;
        Some(entry.value().logged())
    }

    fn store(&self, logged: Logged<'_>) -> NonNull<u8> {
        let Logged { record: Record { kind, row }, end } = logged;
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&end.to_u64().to_ne_bytes());
        header[8..12].copy_from_slice(&(row.len() as u32).to_ne_bytes());
        header[12] = kind as u8;
        self.arena.copy(&[&header, row])
    }

    /// Adds a record under a key that is not in the list, or answers `false` and changes nothing.
    ///
    /// REQUIRES: the caller holds the key's stripe lock (invariant 2).
    pub fn insert_new(&self, key: &[u8], logged: Logged<'_>) -> bool {
        let record = self.store(logged);
        let start = self.arena.copy(&[key]);
        let list_key = ListKey { prefix: key_prefix(key), start, len: key.len() as u32 };
        let cell = Cell(AtomicPtr::new(record.as_ptr()));
        let entry = self.nodes.get_or_insert(list_key, cell, no_pin());
        let inserted = entry.value().0.load(Ordering::Relaxed) == record.as_ptr();
        // A RefEntry has no Drop: without this the node's reference count would never be even.
        entry.release(no_pin());
        inserted
    }

    /// Replaces the record of a key that is in the list.
    ///
    /// REQUIRES: the caller holds the key's stripe lock (invariant 2).
    ///
    /// # Panics
    /// If the key is not in the list.
    pub fn replace(&self, key: &[u8], logged: Logged<'_>) {
        let probe = ListKey::new(key);
        let entry = self.nodes.get(&probe, no_pin()).expect("the caller has found the key");
        let record = self.store(logged);
        entry.value().0.store(record.as_ptr(), Ordering::Release);
    }

    /// Keys in it.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        self.arena.reserved_bytes() + self.len() * NODE_BYTES
    }

    /// Memory it takes without what is reserved ahead.
    pub fn used_bytes(&self) -> usize {
        self.arena.used_bytes() + self.len() * NODE_BYTES
    }
}

/// A position in a list that somebody keeps alive through `O`.
///
/// Weakly consistent: it sees keys inserted ahead of it while it walks, which is right, because
/// records of concurrent writers may or may not be seen by a scan.
pub struct Walk<O: AsRef<List> + 'static> {
    /// `None`: not positioned, or past the end.
    at: Option<Entry<'static, 'static, ListKey, Cell>>,
    /// Owns the list that `at` points into; never replaced while the walk lives.
    owner: Arc<O>,
}

// SAFETY: an `Entry` holds shared references to the list, a node and the static unprotected guard;
// the first two are `Sync`, and the last is only ever read as "pin nothing".
unsafe impl<O: AsRef<List> + Send + Sync> Send for Walk<O> {}

impl<O: AsRef<List>> Walk<O> {
    pub fn new(owner: Arc<O>) -> Self {
        Self { at: None, owner }
    }

    fn list(&self) -> &'static List {
        let list: &List = (*self.owner).as_ref();
        // SAFETY: `owner` is an `Arc` held by this value, so the list lives at a fixed address as
        // long as `self`; every reference made from this stays inside `at` or is handed out with
        // the lifetime of a borrow of `self`.
        unsafe { &*std::ptr::from_ref(list) }
    }

    pub fn seek_to_first(&mut self) {
        self.at = self.list().nodes.front(no_pin());
    }

    /// Moves to the first key at or after `key`.
    pub fn seek(&mut self, key: &[u8]) {
        let probe = ListKey::new(key);
        let found = self.list().nodes.lower_bound(Bound::Included(&probe), no_pin());
        self.at = found;
    }

    /// Moves to the next key. No effect past the end.
    pub fn next(&mut self) {
        self.at = self.at.take().and_then(|entry| entry.next());
    }

    /// Brings near what [`Walk::key`] and [`Walk::record`] will look at.
    pub fn touch(&self) {
        if let Some(entry) = &self.at {
            // The key lies behind the record: the two ends of what is needed.
            black_box((entry.value().logged().record.kind, entry.key().bytes().first()));
        }
    }

    /// The key it stands on.
    pub fn key(&self) -> Option<&[u8]> {
        self.at.as_ref().map(|entry| entry.key().bytes())
    }

    /// First eight bytes of the key it stands on.
    pub fn prefix(&self) -> Option<u64> {
        self.at.as_ref().map(|entry| entry.key().prefix)
    }

    /// The newest record of the key it stands on.
    pub fn logged(&self) -> Option<Logged<'_>> {
        self.at.as_ref().map(|entry| entry.value().logged())
    }
}
