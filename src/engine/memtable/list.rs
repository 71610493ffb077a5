//! The sorted list inside a memtable: crossbeam's skiplist, used insert-only.
//!
//! One node a user key. A node holds a 64-bit prefix of the key, so that nearly every comparison
//! ends without touching the key, and an atomic pointer to the newest record in the [`Arena`],
//! beside which the whole key lies. An update stores a new pointer. A node that also had the key's
//! own address and length would be a third larger, and there are half a million of them.
//!
//! # Invariants
//! 1. No node is ever removed or replaced: `insert`, `remove` and `range` of the crate are never
//!    called (`range` leaks there: crossbeam issue 1178). Hence no node is freed before the list
//!    is dropped, and reading needs no epoch pin: [`unprotected`] is a sound guard.
//! 2. All writers of one key hold that key's stripe lock, so the record pointer has one writer at
//!    a time; readers take what they find.
//! 3. Keys and records are immutable once published (the arena's invariant 2). All records that a
//!    node ever points to have the same key, so its place in the order never changes.
//!
//! Bytes of a record in the arena, at an even address; numbers are native endian, for they never
//! leave memory:
//!
//! | bytes | what |
//! |---|---|
//! | 8 | where the log ended behind the newest write in it |
//! | 4 | length of the row |
//! | 2 | length of the key |
//! | 1 | kind |
//! | n | the key |
//! | m | the row |
#![expect(unsafe_code, reason = "pointers into the arena and a guard without a pin")]

use std::cell::Cell;
use std::cmp::Ordering as Order;
use std::hint::black_box;
use std::ops::Bound;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crossbeam_epoch::{Guard, default_collector, unprotected};
use crossbeam_skiplist::base::{Entry, SkipList};

use super::Logged;
use super::arena::{ALIGN as ARENA_ALIGN, Arena, Spare};
use crate::engine::key::key_prefix;
use crate::engine::options::{JOINED_BYTES_MAX, KEY_BYTES_MAX};
use crate::engine::position::Position;
use crate::engine::record::{Kind, Record};

/// What a node costs beside its arena bytes: prefix, pointer, counters, two pointers of tower,
/// and what the allocator rounds up.
const NODE_BYTES: usize = 56;
/// What stands before a key: the module page.
const HEADER_BYTES: usize = 15;
/// Set in the pointer of a [`Slot`] that is looked for. Records lie at even addresses.
const PROBE: usize = 1;

const _: () = assert!(ARENA_ALIGN.is_multiple_of(2) && align_of::<&[u8]>().is_multiple_of(2));
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize && JOINED_BYTES_MAX <= u32::MAX as usize);

/// A key of the list and the newest record under it; or a key that is looked for.
struct Slot {
    prefix: u64,
    /// A record in the arena, or, marked with [`PROBE`], a `&[u8]` of whoever looks for it. Release
    /// on store, Acquire on load: publishes the record's bytes.
    at: AtomicPtr<u8>,
}

/// What lies at a record's address.
struct Stored<'a> {
    key: &'a [u8],
    logged: Logged<'a>,
}

impl Slot {
    /// Calls `search` with a slot that orders as `key`.
    fn with_probe<T>(key: &[u8], search: impl FnOnce(&Self) -> T) -> T {
        let at = ptr::from_ref(&key).map_addr(|address| address | PROBE);
        search(&Self { prefix: key_prefix(key), at: AtomicPtr::new(at.cast_mut().cast()) })
    }

    fn key(&self) -> &[u8] {
        let at = self.at.load(Ordering::Acquire);
        if at.addr() & PROBE != 0 {
            let key = at.map_addr(|address| address & !PROBE).cast::<&[u8]>();
            // SAFETY: only `with_probe` marks a pointer, and what it points to lives longer than
            // the slot, which is never in a list.
            return unsafe { *key };
        }
        // SAFETY: not marked, so `store` made it; see `stored`.
        unsafe { Self::read(at) }.key
    }

    /// REQUIRES: it is in the list.
    fn stored(&self) -> Stored<'_> {
        let at = self.at.load(Ordering::Acquire);
        debug_assert_eq!(at.addr() & PROBE, 0, "a probe has no record");
        // SAFETY: what is in the list points at what `store` wrote, which lives as long as it.
        unsafe { Self::read(at) }
    }

    /// # Safety
    /// `at` was returned by `List::store`, of a list that lives for `'a`.
    unsafe fn read<'a>(at: *const u8) -> Stored<'a> {
        // SAFETY: `store` wrote a record here, laid out as the module page says; it is immutable
        // and lives as long as the list.
        unsafe {
            let end = Position::from_u64(at.cast::<u64>().read_unaligned());
            let row_len = at.add(8).cast::<u32>().read_unaligned() as usize;
            let key_len = usize::from(at.add(12).cast::<u16>().read_unaligned());
            let kind = if at.add(14).read() == Kind::Full as u8 { Kind::Full } else { Kind::Delta };
            let key = slice::from_raw_parts(at.add(HEADER_BYTES), key_len);
            let row = slice::from_raw_parts(at.add(HEADER_BYTES + key_len), row_len);
            Stored { key, logged: Logged { record: Record { kind, row }, end } }
        }
    }
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Slot {}

impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Slot {
    fn cmp(&self, other: &Self) -> Order {
        self.prefix.cmp(&other.prefix).then_with(|| self.key().cmp(other.key()))
    }
}

/// See the module page.
pub struct List {
    /// Most of the memory, and free again in no time: dropped before the nodes, which are freed one
    /// by one while the next memtable fills, perhaps with the arena's chunks. Their slots point
    /// into it and are not looked at by then: they have nothing to drop.
    arena: Arena,
    nodes: SkipList<Slot, ()>,
}

const _: () = assert!(!std::mem::needs_drop::<Slot>());

/// A guard that pins nothing; sound by invariant 1.
fn no_pin() -> &'static Guard {
    // SAFETY: an unprotected guard runs deferred destruction at once and does not keep nodes
    // alive. Nothing is ever deferred here, because nothing is ever unlinked, and nodes live until
    // the list is dropped, for which `&mut self` is needed.
    unsafe { unprotected() }
}

/// A thread that adds keys asks the allocator for so many bytes, for nothing, after each
/// [`KEYS_PER_ASK`] of them.
const ASKED_BYTES: usize = 2048;
const KEYS_PER_ASK: u32 = 256;

thread_local! {
    /// Keys that this thread has added.
    static ADDED: Cell<u32> = const { Cell::new(0) };
}

/// Nodes of a list that is gone are freed one by one on another thread, into the heap of the one
/// that allocated them. glibc only puts them on a list there, and puts hundreds of thousands
/// together at once, for tens of milliseconds with the heap locked, when something larger is asked
/// for or freed. Asked often, it has little to put together (docs/decisions/0084). An allocator
/// without such a list answers in nanoseconds.
fn ask_allocator() {
    let added = ADDED.get().wrapping_add(1);
    ADDED.set(added);
    if added.is_multiple_of(KEYS_PER_ASK) {
        drop(black_box(Vec::<u8>::with_capacity(ASKED_BYTES)));
    }
}

impl List {
    /// For about so many bytes.
    pub fn new(bytes: usize, spare: &Arc<Spare>) -> Self {
        Self { arena: Arena::new(bytes, spare), nodes: SkipList::new(default_collector().clone()) }
    }

    /// Where `key` is in the list.
    pub fn find(&self, key: &[u8]) -> Option<Found<'_>> {
        let entry = Slot::with_probe(key, |probe| self.nodes.get(probe, no_pin()))?;
        Some(Found { list: self, slot: entry.key() })
    }

    fn store(&self, key: &[u8], logged: Logged<'_>) -> NonNull<u8> {
        let Logged { record: Record { kind, row }, end } = logged;
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&end.to_u64().to_ne_bytes());
        header[8..12].copy_from_slice(&(row.len() as u32).to_ne_bytes());
        header[12..14].copy_from_slice(&(key.len() as u16).to_ne_bytes());
        header[14] = kind as u8;
        self.arena.copy(&[&header, key, row])
    }

    /// Adds a record under a key that is not in the list, or answers `false` and changes nothing.
    ///
    /// REQUIRES: the caller holds the key's stripe lock (invariant 2).
    pub fn insert_new(&self, key: &[u8], logged: Logged<'_>) -> bool {
        let record = self.store(key, logged);
        let slot = Slot { prefix: key_prefix(key), at: AtomicPtr::new(record.as_ptr()) };
        let entry = self.nodes.get_or_insert(slot, (), no_pin());
        let inserted = entry.key().at.load(Ordering::Relaxed) == record.as_ptr();
        // A RefEntry has no Drop: without this the node's reference count would stay raised.
        entry.release(no_pin());
        ask_allocator();
        inserted
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

/// A key that is in the list.
pub struct Found<'a> {
    list: &'a List,
    slot: &'a Slot,
}

impl<'a> Found<'a> {
    /// Its newest record.
    pub fn logged(&self) -> Logged<'a> {
        self.slot.stored().logged
    }

    /// Replaces its record.
    ///
    /// REQUIRES: the caller holds the key's stripe lock (invariant 2).
    pub fn replace(&self, logged: Logged<'_>) {
        let record = self.list.store(self.slot.key(), logged);
        self.slot.at.store(record.as_ptr(), Ordering::Release);
    }
}

/// A position in a list that somebody keeps alive through `O`.
///
/// Weakly consistent: it sees keys inserted ahead of it while it walks, which is right, because
/// records of concurrent writers may or may not be seen by a scan.
pub struct Walk<O: AsRef<List> + 'static> {
    /// `None`: not positioned, or past the end.
    at: Option<Entry<'static, 'static, Slot, ()>>,
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
        let nodes = &self.list().nodes;
        self.at =
            Slot::with_probe(key, |probe| nodes.lower_bound(Bound::Included(probe), no_pin()));
    }

    /// Moves to the next key. No effect past the end.
    pub fn next(&mut self) {
        self.at = self.at.take().and_then(|entry| entry.next());
    }

    /// Brings near what [`Walk::key`] and [`Walk::logged`] will look at.
    pub fn touch(&self) {
        if let Some(entry) = &self.at {
            black_box(entry.key().stored().logged.record.kind);
        }
    }

    /// The key it stands on.
    pub fn key(&self) -> Option<&[u8]> {
        self.at.as_ref().map(|entry| entry.key().stored().key)
    }

    /// First eight bytes of the key it stands on.
    pub fn prefix(&self) -> Option<u64> {
        self.at.as_ref().map(|entry| entry.key().prefix)
    }

    /// The newest record of the key it stands on.
    pub fn logged(&self) -> Option<Logged<'_>> {
        self.at.as_ref().map(|entry| entry.key().stored().logged)
    }
}
