//! A bump allocator whose bytes live as long as the memtable that owns it.
//!
//! Records and keys of a memtable are never freed one by one: an update leaves the old record
//! behind and the whole arena goes when the memtable is flushed and its last reader is gone. So a
//! reader needs no reference count, and memory is accounted exactly.
//!
//! Allocation is one `fetch_add` on the current chunk; only the call that overflows a chunk takes a
//! lock. Chunks of full size are mapped, as huge pages where the system has them: a search in a
//! memtable goes all over its records. The first few have pages of the usual size: a store that
//! writes little takes no more memory than it has written. When an arena goes its chunks are
//! [`Spare`] for the next one, which finds memory that was written to before: the system need not
//! zero new pages, which takes milliseconds where a hypervisor must find the memory first
//! (docs/decisions/0072). What is more than a memtable needs goes back to the system at once; an
//! allocator would keep it.
//!
//! A chunk is made before the lock is taken, and gets its pages as they are touched. Both take long
//! enough for a thread of low priority to be preempted meanwhile; nobody is to wait for it then
//! (docs/decisions/0071).
//!
//! # Invariants
//! 1. A chunk's memory never moves, and is freed or made spare only when its arena is dropped.
//! 2. A byte is handed out once; it is written only through the slice of [`Arena::copy`], before
//!    the pointer is published, and is read-only from then on.
#![expect(unsafe_code, reason = "raw chunks: handing out bytes that outlive the borrow")]

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions};
use parking_lot::Mutex;

/// Everything is aligned to this: the lowest bit of an address is left to the list, for a mark.
pub const ALIGN: usize = 2;
/// The first chunk of a small arena, which a test opens hundreds of; they double up to the maximum.
const CHUNK_BYTES_MIN: usize = 16 << 10;
const CHUNK_BYTES_MAX: usize = 2 << 20;
/// Chunks come as huge pages once an arena has so many bytes: what is wasted of the last page is
/// little beside them.
const HUGE_FROM: usize = 16 << 20;

/// Chunks of arenas that are gone, for those that come.
#[derive(Default)]
pub struct Spare {
    /// Kept at most.
    chunks_max: usize,
    /// Mapped ones of [`CHUNK_BYTES_MAX`]. Held for a push or a pop.
    #[expect(clippy::vec_box, reason = "an arena has them boxed")]
    chunks: Mutex<Vec<Box<Chunk>>>,
}

impl Spare {
    /// Keeps no more than arenas of about so many bytes need.
    pub fn new(bytes: usize) -> Self {
        Self { chunks_max: bytes / CHUNK_BYTES_MAX, chunks: Mutex::default() }
    }

    fn take(&self) -> Option<Box<Chunk>> {
        self.chunks.lock().pop()
    }

    /// Keeps a chunk that nobody uses, or gives it back to the system.
    fn give(&self, mut chunk: Box<Chunk>) {
        if chunk.map.is_none() || chunk.capacity != CHUNK_BYTES_MAX {
            return;
        }
        *chunk.used.get_mut() = 0;
        let mut chunks = self.chunks.lock();
        if chunks.len() < self.chunks_max {
            chunks.push(chunk);
        } else {
            // Not under the lock: to unmap it takes long.
            drop(chunks);
        }
    }
}

/// What a mapped chunk is made of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    Small,
    Huge,
}

struct Chunk {
    base: NonNull<u8>,
    capacity: usize,
    /// Owns the bytes at `base`; without it they came from the allocator.
    map: Option<MmapMut>,
    /// Bytes handed out; may run past `capacity`, which means "full".
    used: AtomicUsize,
}

// SAFETY: it owns its bytes, and nothing in it is tied to a thread.
unsafe impl Send for Chunk {}
// SAFETY: its bytes are only reached through what `take` hands out, once each: who may write which
// of them is settled by the `fetch_add` there.
unsafe impl Sync for Chunk {}

/// The first chunk is about such a part of what an arena will hold.
const FIRST_CHUNK_PART: usize = 32;

/// See the module page.
pub struct Arena {
    spare: Arc<Spare>,
    /// Bytes of the first chunk.
    first: usize,
    /// The chunk that is being filled; null before the first allocation. Points into `chunks`.
    /// Acquire/Release: publishes the chunk's fields.
    current: AtomicPtr<Chunk>,
    /// All chunks. Boxed, so that `current` stays valid while the vector grows.
    #[expect(clippy::vec_box, reason = "`current` points at the boxed chunk")]
    chunks: Mutex<Vec<Box<Chunk>>>,
    /// Capacity of all chunks. Relaxed: a statistic.
    reserved: AtomicUsize,
}

impl Arena {
    /// For about so many bytes. One for many has only chunks that are mapped: who fills it asks the
    /// allocator for nothing large (see [`Blank`](super::Blank)).
    pub fn new(bytes: usize, spare: &Arc<Spare>) -> Self {
        Self {
            spare: Arc::clone(spare),
            first: (bytes / FIRST_CHUNK_PART).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX),
            current: AtomicPtr::new(ptr::null_mut()),
            chunks: Mutex::new(Vec::new()),
            reserved: AtomicUsize::new(0),
        }
    }

    /// Copies `parts` one after the other into fresh memory and returns where they start. The
    /// bytes stay there, unchanged, until the arena is dropped.
    pub fn copy(&self, parts: &[&[u8]]) -> NonNull<u8> {
        let len = parts.iter().map(|part| part.len()).sum();
        let start = self.allocate(len);
        let mut to = start.as_ptr();
        for part in parts {
            // SAFETY: `allocate` returned `len` bytes that nobody else was given, and the parts
            // add up to `len`; a fresh allocation cannot overlap `part`.
            unsafe {
                ptr::copy_nonoverlapping(part.as_ptr(), to, part.len());
                to = to.add(part.len());
            }
        }
        start
    }

    /// Bytes reserved from the system.
    pub fn reserved_bytes(&self) -> usize {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Bytes handed out; chunks that are no longer filled count whole.
    pub fn used_bytes(&self) -> usize {
        let current = self.current.load(Ordering::Acquire);
        if current.is_null() {
            return 0;
        }
        // SAFETY: `current` points at a boxed chunk that lives as long as the arena.
        let chunk = unsafe { &*current };
        let left = chunk.capacity.saturating_sub(chunk.used.load(Ordering::Relaxed));
        self.reserved_bytes().saturating_sub(left)
    }

    fn allocate(&self, len: usize) -> NonNull<u8> {
        let len = len.next_multiple_of(ALIGN).max(ALIGN);
        loop {
            let current = self.current.load(Ordering::Acquire);
            if !current.is_null() {
                // SAFETY: `current` points at a boxed chunk that lives as long as the arena.
                let chunk = unsafe { &*current };
                if let Some(at) = chunk.take(len) {
                    return at;
                }
            }
            self.grow(current, len);
        }
    }

    /// A chunk that nobody else has.
    fn chunk(&self, capacity: usize) -> Box<Chunk> {
        let spare = (capacity == CHUNK_BYTES_MAX).then(|| self.spare.take()).flatten();
        let pages = if self.reserved_bytes() < HUGE_FROM { Pages::Small } else { Pages::Huge };
        spare.unwrap_or_else(|| Box::new(Chunk::new(capacity, pages)))
    }

    /// Adds a chunk that holds at least `len` bytes, unless another thread has replaced `full`.
    #[cold]
    fn grow(&self, full: *mut Chunk, len: usize) {
        // SAFETY: null, or a boxed chunk that lives as long as the arena.
        let doubled = unsafe { full.as_ref() }.map_or(self.first, |chunk| chunk.capacity * 2);
        let capacity = doubled.clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX).max(len);
        // In vain if another thread is first, but it costs little: it is spare, or no page of it
        // is there yet.
        let mut chunk = self.chunk(capacity);
        let mut chunks = self.chunks.lock();
        if self.current.load(Ordering::Acquire) != full {
            drop(chunks);
            self.spare.give(chunk);
            return;
        }
        self.reserved.fetch_add(capacity, Ordering::Relaxed);
        self.current.store(&raw mut *chunk, Ordering::Release);
        chunks.push(chunk);
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        self.chunks.get_mut().drain(..).for_each(|chunk| self.spare.give(chunk));
    }
}

impl Chunk {
    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, ALIGN).expect("rows are bounded far below isize::MAX")
    }

    fn new(capacity: usize, pages: Pages) -> Self {
        #[cfg(test)]
        tests::put_off();
        if capacity >= CHUNK_BYTES_MAX {
            // If it cannot be had, the allocator is asked, which knows what to do then.
            // Not populated here: who touches a page first waits for it alone.
            if let Ok(mut map) = MmapOptions::new().len(capacity).map_anon() {
                if pages == Pages::Huge {
                    // A hint.
                    let _ = map.advise(Advice::HugePage);
                }
                let base = NonNull::from(&mut map[..]).cast();
                return Self { base, capacity, map: Some(map), used: AtomicUsize::new(0) };
            }
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout is not empty: a chunk holds at least `CHUNK_BYTES_MIN` bytes.
        let base = unsafe { alloc(layout) };
        let base = NonNull::new(base).unwrap_or_else(|| handle_alloc_error(layout));
        Self { base, capacity, map: None, used: AtomicUsize::new(0) }
    }

    fn take(&self, len: usize) -> Option<NonNull<u8>> {
        // The counter cannot wrap: each failing call makes its thread leave the chunk.
        let at = self.used.fetch_add(len, Ordering::Relaxed);
        // SAFETY: `at + len <= capacity`, so the pointer stays inside the chunk.
        (at + len <= self.capacity).then(|| unsafe { self.base.add(at) })
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if self.map.is_none() {
            // SAFETY: allocated in `new` with this layout, freed once.
            unsafe { dealloc(self.base.as_ptr(), Self::layout(self.capacity)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    thread_local! {
        /// Called by this thread when it makes its next chunk.
        static PUT_OFF: RefCell<Option<Box<dyn FnOnce()>>> = RefCell::default();
    }

    pub(super) fn put_off() {
        if let Some(wait) = PUT_OFF.take() {
            wait();
        }
    }

    /// A thread with a low priority makes a chunk and does not get its core back: all writers of a
    /// node stood still behind it.
    #[test]
    fn nobody_waits_for_a_thread_that_makes_a_chunk() {
        const SOME: usize = 1 << 10;
        let arena = Arena::new(0, &Arc::default());
        let (reached, is_reached) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel::<()>();
        let (done, is_done) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                PUT_OFF.set(Some(Box::new(move || {
                    reached.send(()).expect("the test waits");
                    may_go_on.recv().expect("the test goes on");
                })));
                arena.copy(&[&[1; SOME]]);
            });
            is_reached.recv().expect("it comes there");
            let arena = &arena;
            scope.spawn(move || {
                for _ in 0..100 {
                    arena.copy(&[&[2; SOME]]);
                }
                done.send(()).expect("the test waits");
            });
            let others = is_done.recv_timeout(Duration::from_secs(10));
            go_on.send(()).expect("it waits");
            others.expect("others allocate meanwhile");
        });
        assert!(arena.used_bytes() >= 101 * SOME);
    }

    /// The next arena writes where one was that is gone; more than is to be kept is not, nor what
    /// has another size.
    #[test]
    fn chunks_of_an_arena_that_is_gone_are_used_again() {
        const CHUNKS: usize = 4;
        let spare = Arc::new(Spare::new(CHUNKS * CHUNK_BYTES_MAX));
        let fill = |chunks: usize| {
            let arena = Arena::new(usize::MAX, &spare);
            let half = [7; CHUNK_BYTES_MAX / 2];
            let at = (0..chunks).map(|_| (arena.copy(&[&half]), arena.copy(&[&half])).0);
            let at: Vec<_> = at.collect();
            (arena, at)
        };
        let kept = || spare.chunks.lock().len();
        let (arena, first) = fill(CHUNKS - 1);
        assert_eq!(kept(), 0, "they are in use");
        drop(arena);
        assert_eq!(kept(), CHUNKS - 1);
        let (arena, second) = fill(CHUNKS + 2);
        assert_eq!(kept(), 0);
        assert!(first.iter().all(|at| second.contains(at)), "{first:?} {second:?}");
        drop(arena);
        assert_eq!(kept(), CHUNKS);
        // One is held, so that there is room for one that should not be kept.
        let (_held, (arena, _)) = (fill(1), fill(1));
        assert_eq!(kept(), CHUNKS - 2);
        arena.copy(&[&vec![7; CHUNK_BYTES_MAX + 1]]);
        drop(arena);
        assert_eq!(kept(), CHUNKS - 1, "of the two only the one of full size");
    }

    #[test]
    fn bytes_of_concurrent_writers_do_not_overlap() {
        let arena = Arena::new(0, &Arc::default());
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let arena = &arena;
                scope.spawn(move || {
                    let kept: Vec<_> = (0..2_000usize)
                        .map(|i| {
                            let bytes = vec![thread ^ i as u8; 1 + i % 97];
                            (arena.copy(&[&bytes[..1], &bytes[1..]]), bytes)
                        })
                        .collect();
                    for (at, bytes) in kept {
                        // SAFETY: the arena outlives the scope and wrote `bytes.len()` bytes.
                        let found = unsafe { std::slice::from_raw_parts(at.as_ptr(), bytes.len()) };
                        assert_eq!(found, bytes);
                    }
                });
            }
        });
    }

    #[test]
    fn an_allocation_larger_than_a_chunk_gets_its_own() {
        let arena = Arena::new(0, &Arc::default());
        let large = vec![7u8; 3 << 20];
        let at = arena.copy(&[&large]);
        // SAFETY: the arena is alive and wrote these bytes.
        let found = unsafe { std::slice::from_raw_parts(at.as_ptr(), large.len()) };
        assert_eq!(found, large);
        assert!(arena.reserved_bytes() >= large.len());
    }
}
