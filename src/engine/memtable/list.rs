//! The sorted list inside a memtable: a skip list that only grows.
//!
//! One node a user key. It lies in an [`Arena`] with its links and its key, and holds a 64-bit
//! prefix of that, so that nearly every comparison ends at a node's first cache line, and an atomic
//! pointer to the newest record, which lies in an arena of its own: the nodes that a search passes
//! stay close together. An update stores a new pointer.
//!
//! # Invariants
//! 1. No node is ever removed or moved: none is freed before the list is dropped, so reading needs
//!    no guard.
//! 2. All writers of one key hold that key's stripe lock, so the record pointer has one writer at
//!    a time, and no key is added twice; readers take what they find.
//! 3. Keys and records are immutable once published (the arena's invariant 2).
//! 4. A node is linked from the lowest level up: who finds it at one level finds it at those below.
//!
//! Bytes of a node, at an address divisible by eight: [`Node`], a [`Link`] for each of its levels,
//! the key. Bytes of a record, at an address divisible by eight:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | length of the row, native endian (never leaves memory) |
//! | 1 | kind |
//! | n | the row |
#![expect(unsafe_code, reason = "pointers into the arenas")]

use std::cmp::Ordering as Order;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::arena::Arena;
use crate::engine::key::key_prefix;
use crate::engine::record::{Kind, Record};

/// Levels of the tallest nodes. One node in four reaches the next level: enough for 16 million.
const HEIGHT_MAX: usize = 12;

/// Release on store, Acquire on load: publishes the node's bytes.
type Link = AtomicPtr<Node>;

/// What a node begins with.
#[repr(C)]
struct Node {
    prefix: u64,
    /// The newest record. Release on store, Acquire on load: publishes the record's bytes.
    record: AtomicPtr<u8>,
    key_bytes: u32,
    height: u32,
}

/// A node of a list that is alive: what makes following it sound.
#[derive(Clone, Copy, PartialEq, Eq)]
struct NodeRef(NonNull<Node>);

impl NodeRef {
    fn node<'a>(self) -> &'a Node {
        // SAFETY: made of a node that `List::add` wrote before it was published, and that lives as
        // long as the list (invariant 1). Those who hand the reference out bound it by the list.
        unsafe { &*self.0.as_ptr() }
    }

    /// The link to the next node at `level`, which is one of this node's.
    fn link<'a>(self, level: usize) -> &'a Link {
        debug_assert!(level < self.node().height as usize);
        // SAFETY: as in `node`; `height` links follow the node.
        unsafe { &*self.0.as_ptr().add(1).cast::<Link>().add(level) }
    }

    fn key<'a>(self) -> &'a [u8] {
        let Node { height, key_bytes, .. } = *self.node();
        // SAFETY: as in `node`; the key follows the links.
        unsafe {
            let key = self.0.as_ptr().add(1).cast::<Link>().add(height as usize).cast::<u8>();
            slice::from_raw_parts(key, key_bytes as usize)
        }
    }

    fn record<'a>(self) -> Record<'a> {
        let at = self.node().record.load(Ordering::Acquire);
        // SAFETY: `store` returned the address of a record in the arena, laid out as the module
        // page says and aligned to 8; it is immutable and lives as long as the list.
        unsafe {
            let len = at.cast::<u32>().read() as usize;
            let kind = if at.add(4).read() == Kind::Full as u8 { Kind::Full } else { Kind::Delta };
            Record { kind, row: slice::from_raw_parts(at.add(5), len) }
        }
    }

    /// How the node's key compares with `key`, whose prefix is `prefix`.
    #[inline]
    fn compare(self, prefix: u64, key: &[u8]) -> Order {
        self.node().prefix.cmp(&prefix).then_with(|| self.key().cmp(key))
    }
}

/// See the module page.
pub struct List {
    head: [Link; HEIGHT_MAX],
    /// Levels in use, or some fewer.
    height: AtomicUsize,
    len: AtomicUsize,
    nodes: Arena,
    records: Arena,
}

/// Where a key belongs at one level: behind the first node, `None` being the head, and before the
/// second.
type Gap = (Option<NodeRef>, Option<NodeRef>);

impl List {
    pub fn new() -> Self {
        Self {
            head: [const { Link::new(ptr::null_mut()) }; HEIGHT_MAX],
            height: AtomicUsize::new(1),
            len: AtomicUsize::new(0),
            nodes: Arena::new(),
            records: Arena::new(),
        }
    }

    fn link(&self, at: Option<NodeRef>, level: usize) -> &Link {
        at.map_or(&self.head[level], |node| node.link(level))
    }

    #[inline]
    fn next(&self, at: Option<NodeRef>, level: usize) -> Option<NodeRef> {
        NonNull::new(self.link(at, level).load(Ordering::Acquire)).map(NodeRef)
    }

    /// Walks on at `level` from `from`, which lies before `key`, to where the key belongs. `Err`:
    /// it is there. `known` lies behind the key, if it is a node, and is not compared.
    #[inline]
    fn gap(
        &self,
        level: usize,
        mut from: Option<NodeRef>,
        known: Option<NodeRef>,
        (prefix, key): (u64, &[u8]),
    ) -> Result<Gap, NodeRef> {
        loop {
            let next = self.next(from, level);
            let Some(node) = next.filter(|_| next != known) else { return Ok((from, next)) };
            match node.compare(prefix, key) {
                Order::Less => from = next,
                Order::Equal => return Err(node),
                Order::Greater => return Ok((from, next)),
            }
        }
    }

    /// The node of `key`, or else the first one behind it.
    #[inline]
    fn find(&self, key: &[u8]) -> Result<NodeRef, Option<NodeRef>> {
        let probe = (key_prefix(key), key);
        let mut gap = (None, None);
        for level in (0..self.height.load(Ordering::Relaxed)).rev() {
            gap = match self.gap(level, gap.0, gap.1, probe) {
                Ok(gap) => gap,
                Err(node) => return Ok(node),
            };
        }
        Err(gap.1)
    }

    /// The newest record of `key`.
    pub fn get(&self, key: &[u8]) -> Option<Record<'_>> {
        self.find(key).ok().map(NodeRef::record)
    }

    fn store(&self, kind: Kind, row: &[u8]) -> NonNull<u8> {
        let len = row.len() as u32;
        self.records.copy(&[&len.to_ne_bytes(), &[kind as u8], row])
    }

    /// Adds a record under a key that is not in the list, or answers `false` and changes nothing.
    ///
    /// REQUIRES: the caller holds the key's stripe lock (invariant 2).
    pub fn insert_new(&self, key: &[u8], kind: Kind, row: &[u8]) -> bool {
        let height = height_of(self.len.load(Ordering::Relaxed) as u64);
        let probe = (key_prefix(key), key);
        let mut gaps: [Gap; HEIGHT_MAX] = [(None, None); HEIGHT_MAX];
        let mut gap = (None, None);
        for level in (0..self.height.load(Ordering::Relaxed).max(height)).rev() {
            match self.gap(level, gap.0, gap.1, probe) {
                Ok(found) => gap = found,
                Err(_) => return false,
            }
            gaps[level] = gap;
        }
        let node = self.add(probe, height, self.store(kind, row));
        for (level, gap) in gaps.iter_mut().enumerate().take(height) {
            while !self.link_between(node, level, *gap) {
                // Another key got in between. It is not this one (invariant 2).
                *gap = self.gap(level, gap.0, None, probe).unwrap_or_else(|it| (gap.0, Some(it)));
            }
        }
        self.height.fetch_max(height, Ordering::Relaxed);
        self.len.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// A node that is not linked yet.
    fn add(&self, (prefix, key): (u64, &[u8]), height: usize, record: NonNull<u8>) -> NodeRef {
        let links_bytes = height * size_of::<Link>();
        let bytes = self.nodes.allocate(size_of::<Node>() + links_bytes + key.len());
        let node = bytes.cast::<Node>();
        let record = AtomicPtr::new(record.as_ptr());
        let (key_bytes, levels) = (key.len() as u32, height as u32);
        // SAFETY: the arena gave this many bytes, aligned for a `Node` and so for links, to nobody
        // else; they are written here before anybody is told of them.
        unsafe {
            node.write(Node { prefix, record, key_bytes, height: levels });
            let links = node.as_ptr().add(1).cast::<Link>();
            (0..height).for_each(|level| links.add(level).write(Link::new(ptr::null_mut())));
            ptr::copy_nonoverlapping(key.as_ptr(), links.add(height).cast(), key.len());
        }
        NodeRef(node)
    }

    /// Links `node` into a gap, unless that has been filled meanwhile.
    fn link_between(&self, node: NodeRef, level: usize, (before, behind): Gap) -> bool {
        let behind = behind.map_or(ptr::null_mut(), |node| node.0.as_ptr());
        node.link(level).store(behind, Ordering::Relaxed);
        let link = self.link(before, level);
        let (new, fails) = (node.0.as_ptr(), Ordering::Relaxed);
        link.compare_exchange(behind, new, Ordering::Release, fails).is_ok()
    }

    /// Replaces the record of a key that is in the list.
    ///
    /// REQUIRES: the caller holds the key's stripe lock (invariant 2).
    ///
    /// # Panics
    /// If the key is not in the list.
    pub fn replace(&self, key: &[u8], kind: Kind, row: &[u8]) {
        let node = self.find(key).ok().expect("the caller has found the key");
        let record = self.store(kind, row);
        node.node().record.store(record.as_ptr(), Ordering::Release);
    }

    /// Keys in it.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Memory it takes.
    pub fn bytes(&self) -> usize {
        self.nodes.reserved_bytes() + self.records.reserved_bytes()
    }

    /// Memory it takes without what is reserved ahead.
    pub fn used_bytes(&self) -> usize {
        self.nodes.used_bytes() + self.records.used_bytes()
    }

    /// Every level ascends and holds the nodes of the list that are as tall.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let level = |level: usize| {
            let mut at = self.next(None, level);
            std::iter::from_fn(move || {
                let node = at?;
                at = self.next(at, level);
                Some(node)
            })
        };
        assert_eq!(level(0).count(), self.len());
        assert!(level(0).map(NodeRef::key).is_sorted_by(|a, b| a < b));
        for height in 1..HEIGHT_MAX {
            let tall = level(0).filter(|node| node.node().height as usize > height);
            assert!(level(height).eq(tall), "level {height}");
        }
    }
}

/// How tall the `n`-th node is. By chance as far as the keys go, which their writers choose.
fn height_of(n: u64) -> usize {
    let mixed = (n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = mixed ^ (mixed >> 32);
    (1 + mixed.trailing_zeros() as usize / 2).min(HEIGHT_MAX)
}

/// A position in a list that somebody keeps alive through `O`.
///
/// Weakly consistent: it sees keys inserted ahead of it while it walks, which is right, because
/// records of concurrent writers may or may not be seen by a scan.
pub struct Walk<O: AsRef<List> + 'static> {
    /// `None`: not positioned, or past the end. In the list of `owner`.
    at: Option<NodeRef>,
    /// Owns the list that `at` points into; never replaced while the walk lives.
    owner: Arc<O>,
}

// SAFETY: a node may be read by any thread as long as its list lives, which `owner` sees to.
unsafe impl<O: AsRef<List> + Send + Sync> Send for Walk<O> {}

impl<O: AsRef<List>> Walk<O> {
    pub fn new(owner: Arc<O>) -> Self {
        Self { at: None, owner }
    }

    fn list(&self) -> &List {
        (*self.owner).as_ref()
    }

    pub fn seek_to_first(&mut self) {
        self.at = self.list().next(None, 0);
    }

    /// Moves to the first key at or after `key`.
    pub fn seek(&mut self, key: &[u8]) {
        self.at = self.list().find(key).map_or_else(|behind| behind, Some);
    }

    /// Moves to the next key. No effect past the end.
    pub fn next(&mut self) {
        if self.at.is_some() {
            self.at = self.list().next(self.at, 0);
        }
    }

    /// The key it stands on.
    pub fn key(&self) -> Option<&[u8]> {
        self.at.map(NodeRef::key)
    }

    /// First eight bytes of the key it stands on.
    pub fn prefix(&self) -> Option<u64> {
        self.at.map(|at| at.node().prefix)
    }

    /// The newest record of the key it stands on.
    pub fn record(&self) -> Option<Record<'_>> {
        self.at.map(NodeRef::record)
    }
}
