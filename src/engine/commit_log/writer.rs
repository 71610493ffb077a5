//! Appending, group commit, and the life of segments.
//!
//! Three locks, never two at a time except `io` before `inner`:
//! - `inner`, the log mutex: held for the copy into the buffer and for what the caller decides at
//!   an exact position; never during I/O;
//! - `io`, the lock of the files: held by the thread that writes, for all that wait for it;
//! - `segments`: which files are there; never held during I/O.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::allocation::{Files, SPARES_MAX, Tip, keeps_blocks};
use super::frame;
use super::group::{Group, Tail};
use super::progress::{OnDurable, Progress, Turn};
use super::segment::{self, Segment};
use crate::engine::error::{Error, Result};
use crate::engine::options::{KEY_BYTES_MAX, ROW_BYTES_MAX, SyncMode};
use crate::engine::vfs::Vfs;
use crate::engine::{Options, Position};

/// Options of a commit log.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Only [`SyncMode::Always`] makes a difference here: blocks are allocated ahead and flushed
    /// segments are used again, so that a sync has little or no metadata to write. Else space is
    /// made ahead by whoever calls [`CommitLog::make_room`]. Who syncs when is the engine's
    /// business.
    pub sync_mode: SyncMode,
    /// Bytes of a full segment, 4 KiB to 1 GiB.
    pub segment_bytes: u32,
    /// Bytes by which a segment's file grows first, or that are prepared ahead at a time.
    pub grow_bytes: u32,
    /// Bytes that may wait in the buffer before [`CommitLog::lock`] writes them out first.
    pub group_bytes_max: usize,
}

impl From<&Options> for LogOptions {
    fn from(options: &Options) -> Self {
        let (sync_mode, segment_bytes) = (options.sync_mode, options.log_segment_bytes);
        Self { sync_mode, segment_bytes, grow_bytes: 1 << 20, group_bytes_max: 1 << 20 }
    }
}

/// Counters since the log was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Bytes written, headers and padding included.
    pub bytes: u64,
    /// Those of them that were written where room had been made: without a call to the system,
    /// which does not count them as written by this process.
    pub bytes_prepared: u64,
    /// Frames written.
    pub frames: u64,
    /// Records written.
    pub records: u64,
    /// Syncs of segment files.
    pub syncs: u64,
    /// Segments begun.
    pub segments: u64,
    /// Segments that reused the file of a flushed one.
    pub segments_from_spares: u64,
}

/// The commit log: see the [module page](super). `S` is what the engine may change only at an exact
/// position of the log: active memtable, generation, queued ingests. The guards change under the
/// same mutex, but lie outside: writers look at them without it first.
pub struct CommitLog<S> {
    // Constant after creation.
    vfs: Arc<dyn Vfs>,
    directory: PathBuf,
    options: LogOptions,
    // Locks; see the page of this module.
    inner: Mutex<Inner<S>>,
    io: Mutex<Io>,
    segments: Mutex<Segments>,
    progress: Progress,
    /// See [`CommitLog::wants_room`]. A hint: set and cleared under `io`.
    wants_room: AtomicBool,
    /// End of what was appended. Stored under `inner`, Release: a caller that passes a position on
    /// to another thread has it covered.
    appended: AtomicU64,
    counters: Counters,
}

struct Inner<S> {
    tail: Tail,
    /// Nothing may be appended any more.
    ended: bool,
    state: S,
}

struct Io {
    /// Empty between turns.
    group: Group,
    tip: Tip,
}

#[derive(Default)]
struct Segments {
    /// Files written to and not retired, oldest first; the last one is being written.
    live: VecDeque<Segment>,
    spares: Vec<Segment>,
    /// The last live segment has got its name since the directory was synced.
    name_is_new: bool,
}

#[derive(Default)]
struct Counters {
    bytes: AtomicU64,
    bytes_prepared: AtomicU64,
    frames: AtomicU64,
    records: AtomicU64,
    syncs: AtomicU64,
    segments: AtomicU64,
    segments_from_spares: AtomicU64,
}

impl<S> CommitLog<S> {
    /// Creates a log in `directory` that begins with segment `first_segment` (from
    /// [`next_segment_number`](super::next_segment_number)). Spares that lie there are removed;
    /// segments that lie there are never appended to.
    ///
    /// # Errors
    /// `OutOfBounds` when the number or the segment size is; `Io`.
    pub fn create(
        vfs: Arc<dyn Vfs>,
        directory: &Path,
        options: LogOptions,
        first_segment: u32,
        state: S,
    ) -> Result<Self> {
        check_bounds("log_segment_bytes", options.segment_bytes.into(), 4 << 10, 1 << 30)?;
        let lowest = segment::next_segment_number(&*vfs, directory, [])?;
        check_bounds("first commit log segment", first_segment.into(), lowest.into(), u64::MAX)?;
        segment::remove_spares(&*vfs, directory)?;
        let files = Files { vfs: &*vfs, directory, options };
        let tip = files.open(first_segment, None)?;
        let live = VecDeque::from([tip.segment.clone()]);
        let segments = Segments { live, spares: Vec::new(), name_is_new: true };
        let tail = Tail::new(first_segment, options.segment_bytes as usize)?;
        let log = Self {
            directory: directory.to_path_buf(),
            vfs,
            options,
            appended: AtomicU64::new(tail.position().to_u64()),
            inner: Mutex::new(Inner { tail, ended: false, state }),
            io: Mutex::new(Io { group: Group::default(), tip }),
            segments: Mutex::new(segments),
            progress: Progress::new(),
            wants_room: AtomicBool::new(false),
            counters: Counters::default(),
        };
        log.counters.segment(false);
        Ok(log)
    }

    /// Locks the log mutex. Writes out first while more than the cap waits, so that the buffer is
    /// bounded by the cap and what is appended under one guard. The guard must not be held over a
    /// call of this log.
    pub fn lock(&self) -> LogGuard<'_, S> {
        loop {
            let inner = self.inner.lock();
            if inner.tail.waiting_bytes() <= self.options.group_bytes_max
                || self.progress.check().is_err()
            {
                return LogGuard { inner, log: self };
            }
            let end = inner.tail.position();
            drop(inner);
            // A failure has poisoned the log: the next round returns, and the append refuses.
            let _ = self.write_out(end);
        }
    }

    /// Hands what was appended up to `upto` to the operating system: it then survives `kill -9`.
    ///
    /// # Errors
    /// `Io` for the thread whose write failed, `Poisoned` for all others and ever after;
    /// `OutOfBounds` for a position that no append returned.
    pub fn write_out(&self, upto: Position) -> Result<()> {
        if self.progress.written() >= upto {
            return Ok(());
        }
        self.check_appended(upto)?;
        // A write takes as long as a thread needs to fall asleep and wake up: this lock spins for
        // that long first, and a thread that runs may overtake those that sleep.
        let mut io = self.io.lock();
        if self.progress.written() >= upto {
            return Ok(());
        }
        self.progress.check()?;
        let end = self.write_group(&mut io);
        self.progress.wrote(&end);
        end.map(|_| ())
    }

    /// Makes what was appended up to `upto` durable. One thread syncs for all that wait; what is
    /// appended meanwhile is the next group. Callbacks that became due run in this thread.
    ///
    /// # Errors
    /// As [`CommitLog::write_out`]. A failed sync is never repeated.
    pub fn sync(&self, upto: Position) -> Result<()> {
        if self.progress.durable() >= upto {
            return Ok(());
        }
        self.check_appended(upto)?;
        match self.progress.turn_to_sync(upto)? {
            Turn::Done => Ok(()),
            Turn::Lead => {
                let end = self.sync_group();
                self.progress.synced(&end);
                end.map(|_| ())
            }
        }
    }

    /// Tells those who still wait for a write to be durable that nobody will know: `Poisoned`, for
    /// `Closed` would say that it was not taken. For an owner that goes away, after its last sync.
    pub fn forsake(&self) {
        self.progress.forsake();
    }

    /// Whether [`CommitLog::make_room`] has something to do.
    #[inline]
    pub fn wants_room(&self) -> bool {
        self.wants_room.load(Ordering::Relaxed)
    }

    /// Prepares room for the writes to come, if they are near the end of it. May wait for the disk,
    /// for which no writer waits meanwhile.
    pub fn make_room(&self) {
        let (segment, range) = {
            let io = self.io.lock();
            self.wants_room.store(false, Ordering::Relaxed);
            let Some(range) = self.files().wanted(&io.tip) else { return };
            (io.tip.segment.clone(), range)
        };
        // Without it the writers go on as well as they can, and report what they meet.
        let is_ready = segment.file.prepare(range.start, range.end - range.start).is_ok();
        let mut io = self.io.lock();
        if io.tip.segment.number == segment.number {
            io.tip.prepared = is_ready.then_some(range);
        }
    }

    /// Calls `done` once `upto` is durable, or with `Poisoned` if it will not be; at once if that
    /// is known, otherwise in the thread that advances the log. It must be short and must not lock
    /// the log. Somebody has to call [`CommitLog::sync`].
    pub fn on_durable(&self, upto: Position, done: OnDurable) {
        self.progress.on_durable(upto, done);
    }

    /// Everything before this position was appended (and may still wait in the buffer).
    pub fn appended_upto(&self) -> Position {
        Position::from_u64(self.appended.load(Ordering::Acquire))
    }

    /// Everything before this position survives `kill -9`.
    pub fn written_upto(&self) -> Position {
        self.progress.written()
    }

    /// Everything before this position survives power loss.
    pub fn durable_upto(&self) -> Position {
        self.progress.durable()
    }

    /// Refuses with `Poisoned` after a failure.
    pub fn check(&self) -> Result<()> {
        self.progress.check()
    }

    /// The first failure, if there was one: the log takes no more writes.
    pub fn poisoned(&self) -> Option<String> {
        self.progress.poisoned()
    }

    /// Recycles or removes the segments wholly below `flushed`. For after the manifest edit with
    /// that position is synced, by one thread at a time.
    ///
    /// # Errors
    /// `Io`, the first there was; the segments concerned stay until the next call, the others go.
    pub fn retire(&self, flushed: Position) -> Result<()> {
        // Begins the segment that `flushed` may lie in front of. If that fails the log is poisoned,
        // which is its writers' business: what is flushed is flushed, and the last segment stays.
        let _ = self.write_out(flushed);
        let mut outcome = Ok(());
        let mut left = Vec::new();
        loop {
            let oldest = self.segments.lock().pop_below(flushed.segment());
            let Some((segment, is_room)) = oldest else { break };
            if let Err(error) = self.take_back(&segment, is_room) {
                left.push(segment);
                outcome = outcome.and(Err(error));
            }
        }
        let mut segments = self.segments.lock();
        left.into_iter().rev().for_each(|segment| segments.live.push_front(segment));
        outcome
    }

    /// Makes a segment a spare if there `is_room` for one, or removes it. One that is gone already
    /// is what was wanted.
    fn take_back(&self, segment: &Segment, is_room: bool) -> Result<()> {
        let from = segment::log_path(&self.directory, segment.number);
        let is_spare = is_room && keeps_blocks(self.options.sync_mode);
        let (done, what) = if is_spare {
            let to = segment::spare_path(&self.directory, segment.number);
            (self.vfs.rename(&from, &to), "rename")
        } else {
            (self.vfs.remove(&from), "remove")
        };
        match done {
            Ok(()) if is_spare => self.segments.lock().spares.push(segment.clone()),
            Err(source) if source.kind() != ErrorKind::NotFound => {
                return Err(Error::io(what, &from)(source));
            }
            Ok(()) | Err(_) => {}
        }
        Ok(())
    }

    /// Removes all files of a log that has [ended](LogGuard::end) and is flushed to its end, so
    /// that the next open has nothing to look at. For after the manifest edit with the end is
    /// synced: whatever of the files is left by a crash then counts for nothing.
    ///
    /// # Errors
    /// `Io`; the next open removes what is left.
    pub fn remove_files(&self) -> Result<()> {
        let end = self.appended_upto();
        self.write_out(end)?;
        segment::remove_spares(&*self.vfs, &self.directory)?;
        segment::remove_segments(&*self.vfs, &self.directory, end.segment())
    }

    /// Counters since the log was created.
    pub fn stats(&self) -> LogStats {
        let counters = &self.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogStats {
            bytes: load(&counters.bytes),
            bytes_prepared: load(&counters.bytes_prepared),
            frames: load(&counters.frames),
            records: load(&counters.records),
            syncs: load(&counters.syncs),
            segments: load(&counters.segments),
            segments_from_spares: load(&counters.segments_from_spares),
        }
    }

    /// Bytes that one append may take: a segment without its headers.
    pub fn append_bytes_max(&self) -> usize {
        self.options.segment_bytes as usize - segment::HEADER_BYTES - frame::HEADER_BYTES_MAX
    }

    fn check_appended(&self, upto: Position) -> Result<()> {
        let limit = self.appended_upto().to_u64();
        check_bounds("commit log position", upto.to_u64(), 0, limit)
    }

    /// Writes everything that waits.
    fn write_group(&self, io: &mut Io) -> Result<Position> {
        let Io { group, tip } = io;
        let end = {
            let mut inner = self.inner.lock();
            let end = inner.tail.take(group, self.progress.durable());
            self.appended.store(end.to_u64(), Ordering::Release);
            end
        };
        group.seal();
        let written = self.write_pieces(group, tip);
        self.counters.group(group);
        group.clear(2 * self.options.group_bytes_max);
        written.map(|()| end)
    }

    fn write_pieces(&self, group: &Group, tip: &mut Tip) -> Result<()> {
        for (position, bytes) in group.pieces() {
            if position.segment() != tip.segment.number {
                *tip = self.open_segment(position.segment())?;
            }
            if self.files().write(tip, position.offset().into(), bytes)? {
                self.counters.bytes_prepared.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        }
        if self.files().wanted(tip).is_some() {
            self.wants_room.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The next file to write to.
    fn open_segment(&self, number: u32) -> Result<Tip> {
        let spare = self.segments.lock().spares.pop();
        let was_spare = spare.is_some();
        let tip = self.files().open(number, spare)?;
        let mut segments = self.segments.lock();
        segments.live.push_back(tip.segment.clone());
        segments.name_is_new = true;
        self.counters.segment(was_spare);
        Ok(tip)
    }

    /// One turn to sync: everything appended so far, names before bytes, oldest segment first.
    fn sync_group(&self) -> Result<Position> {
        self.write_out(self.appended_upto())?;
        let end = self.progress.written();
        let first = self.progress.durable().segment();
        let (name_is_new, unsynced) = {
            let mut segments = self.segments.lock();
            let name_is_new = std::mem::take(&mut segments.name_is_new);
            let live = segments.live.iter();
            let live = live.filter(|live| (first..=end.segment()).contains(&live.number));
            (name_is_new, live.cloned().collect::<Vec<_>>())
        };
        if name_is_new {
            self.vfs.sync_dir(&self.directory).map_err(Error::io("sync", &self.directory))?;
        }
        for segment in unsynced {
            if let Err(source) = segment.file.sync_data() {
                let path = segment::log_path(&self.directory, segment.number);
                return Err(Error::io("sync", &path)(source));
            }
            self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        }
        Ok(end)
    }

    fn files(&self) -> Files<'_> {
        Files { vfs: &*self.vfs, directory: &self.directory, options: self.options }
    }
}

impl<S> std::fmt::Debug for CommitLog<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitLog")
            .field("directory", &self.directory)
            .field("appended_upto", &self.appended_upto())
            .field("written_upto", &self.written_upto())
            .field("durable_upto", &self.durable_upto())
            .finish_non_exhaustive()
    }
}

/// The held log mutex. Dereferences to the engine's state.
pub struct LogGuard<'a, S> {
    inner: MutexGuard<'a, Inner<S>>,
    log: &'a CommitLog<S>,
}

impl<S> LogGuard<'_, S> {
    /// Appends `records` (key, row) as one unit: a recovery finds all of them or none. Only copies
    /// into the buffer. The end of the append: durable once [`CommitLog::durable_upto`] reaches it.
    ///
    /// # Errors
    /// `OutOfBounds` for a key or row that is too long or an append larger than
    /// [`CommitLog::append_bytes_max`]; `Poisoned`; `Closed` after [`LogGuard::end`] or
    /// [`LogGuard::refuse`]. Nothing was appended then.
    pub fn append(&mut self, records: &[(&[u8], &[u8])]) -> Result<Position> {
        self.log.progress.check()?;
        if self.inner.ended {
            return Err(Error::Closed);
        }
        let mut bytes_max = 0_usize;
        for (key, row) in records {
            check_bounds("key bytes", key.len() as u64, 0, KEY_BYTES_MAX as u64)?;
            check_bounds("row bytes", row.len() as u64, 0, ROW_BYTES_MAX as u64)?;
            bytes_max = bytes_max.saturating_add(frame::record_bytes_max(key, row));
        }
        let limit = self.log.append_bytes_max() as u64;
        check_bounds("bytes of one commit log append", bytes_max as u64, 0, limit)?;
        if records.is_empty() {
            return Ok(self.inner.tail.position());
        }
        let durable = self.log.durable_upto();
        let end = self.inner.tail.append(records, bytes_max, durable)?;
        self.log.appended.store(end.to_u64(), Ordering::Release);
        Ok(end)
    }

    /// The exact position now, at the border of two frames: where a recovery may begin. The next
    /// append starts a frame.
    pub fn close_frame(&mut self) -> Position {
        let end = self.inner.tail.close_frame(self.log.durable_upto());
        self.log.appended.store(end.to_u64(), Ordering::Release);
        end
    }

    /// As [`LogGuard::close_frame`], for a position that will be flushed: the next append also
    /// starts a segment if the current one holds enough, so that the flush frees all of it.
    pub fn cut(&mut self) -> Position {
        let durable = self.log.durable_upto();
        let end = self.inner.tail.cut(self.log.options.grow_bytes, durable);
        self.log.appended.store(end.to_u64(), Ordering::Release);
        end
    }

    /// Refuses every append from now on, of a log that is kept for the next open. The exact
    /// position behind everything in it.
    pub fn refuse(&mut self) -> Position {
        self.inner.ended = true;
        self.close_frame()
    }

    /// Refuses every append from now on. The end of the log: a position in front of a segment that
    /// there will never be, and behind everything in the log's files.
    ///
    /// # Errors
    /// `OutOfBounds` after 2^32 segments.
    pub fn end(&mut self) -> Result<Position> {
        let end = self.inner.tail.end(self.log.durable_upto())?;
        self.inner.ended = true;
        self.log.appended.store(end.to_u64(), Ordering::Release);
        Ok(end)
    }
}

impl<S> Deref for LogGuard<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.inner.state
    }
}

impl<S> DerefMut for LogGuard<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.inner.state
    }
}

impl Segments {
    /// Takes the oldest segment off if it lies below `number` and is not being written; with it,
    /// whether there is room to keep its file.
    fn pop_below(&mut self, number: u32) -> Option<(Segment, bool)> {
        if self.live.len() < 2 || self.live.front()?.number >= number {
            return None;
        }
        let keep = self.spares.len() < SPARES_MAX;
        self.live.pop_front().map(|segment| (segment, keep))
    }
}

impl Counters {
    fn group(&self, group: &Group) {
        self.bytes.fetch_add(group.bytes(), Ordering::Relaxed);
        self.frames.fetch_add(group.frames(), Ordering::Relaxed);
        self.records.fetch_add(group.records(), Ordering::Relaxed);
    }

    fn segment(&self, was_spare: bool) {
        self.segments.fetch_add(1, Ordering::Relaxed);
        self.segments_from_spares.fetch_add(was_spare.into(), Ordering::Relaxed);
    }
}

fn check_bounds(what: &'static str, found: u64, least: u64, most: u64) -> Result<()> {
    match found {
        found if found < least => Err(Error::OutOfBounds { what, found, limit: least }),
        found if found > most => Err(Error::OutOfBounds { what, found, limit: most }),
        _ => Ok(()),
    }
}
