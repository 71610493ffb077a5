//! Rows kept for a node that missed them, and their delivery when it is back.
//!
//! Hints make a short absence cheap; they carry no promise. They never count as acknowledgements,
//! and what is not kept, or lost, the comparison of replicas finds.
//!
//! ```text
//! hints/<node id>-<number>.hints     segments for one node, numbers from 1
//! ```
//!
//! Segment header, 36 bytes; numbers are little endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `PDBH` |
//! | 4 | format, 1 |
//! | 16 | id of the node, as in messages (big endian) |
//! | 8 | number of the segment |
//! | 4 | CRC-32 of the bytes before |
//!
//! Frame, one for each row:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | CRC-32 of the segment's number (8), the frame's offset (8) and the rest of the frame |
//! | 4 | length of the body, which follows |
//! | 8 | when the row was missed, wall clock in milliseconds |
//! | 4 | tenant |
//! | 2 | length of the key |
//! | n | key |
//! | rest | row |
//!
//! # Invariants
//! 1. Bounded: by age, by bytes for each node, by a share of the disk for all. What does not fit is
//!    not kept, and counted.
//! 2. Keeping never waits: a queue, bounded in rows and bytes, leads to the one task that writes.
//! 3. A node gets its hints only after it has been up for a while, by one stream, in requests whose
//!    size grows while they are answered and is halved when one is not.
//! 4. A row that its target does not hold any more goes to all its current replicas; for one of
//!    them that is away it becomes a hint of its own.
//! 5. A row that is refused is put behind the others, so that it holds none of them up.
//! 6. What waits for the disk is done on threads for that, and who asks for figures waits for
//!    nothing: a disk that hangs holds up hints, and nobody else.

mod frame;
mod queue;
mod replay;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fence::Fence;
use crate::cluster::NodeId;
use crate::cluster::peer::Peers;
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::engine;
use crate::proto;
use crate::resilience::bytes::{ByteBudget, Charge};
use crate::store::Store;

use frame::Hint;
pub use queue::Batch;
use queue::Queue;

/// Rows that wait to be written as hints at most, whatever their size.
const WAITING_MAX: usize = 8192;

/// The bounds of hints.
#[derive(Clone, Debug)]
pub struct HintOptions {
    /// How long a hint is kept.
    pub age_max: Duration,
    /// Bytes for each node.
    pub target_bytes_max: u64,
    /// The share of the disk that all of them may take, in percent.
    pub disk_percent_max: u64,
    /// A segment is closed at this size, in bytes.
    pub segment_bytes: u64,
    /// How long a node must be up before it gets its hints.
    pub calm: Duration,
    /// Bytes of rows that may wait in memory to be written as hints.
    pub waiting_bytes_max: usize,
}

impl Default for HintOptions {
    fn default() -> Self {
        Self {
            age_max: Duration::from_secs(3 * 3600),
            target_bytes_max: 1 << 30,
            disk_percent_max: 5,
            segment_bytes: 8 << 20,
            calm: Duration::from_secs(10),
            waiting_bytes_max: 64 << 20,
        }
    }
}

/// What hints work with.
pub struct HintParts {
    /// This node.
    pub node: NodeId,
    /// Its rows; its files and clock are used too.
    pub store: Arc<Store>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who owns what.
    pub layout: tokio::sync::watch::Receiver<Arc<super::Layout>>,
    /// Under which epoch this node acts.
    pub fence: Arc<dyn Fence>,
    /// Who is up.
    pub liveness: Arc<dyn Liveness>,
    /// Where their files are written and read.
    pub work: Work,
}

/// What is kept for each node.
type Queues = BTreeMap<NodeId, Queue>;

/// Figures since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HintStats {
    /// Bytes on disk now.
    pub bytes: u64,
    /// Nodes there are hints for now.
    pub targets: u64,
    /// Rows to deliver, as far as they were counted.
    pub pending: u64,
    /// Rows kept.
    pub kept: u64,
    /// Rows not kept: no room, or they could not be written.
    pub refused: u64,
    /// Rows delivered.
    pub delivered: u64,
    /// Rows dropped undelivered: too old, or their target has forgotten deletes since.
    pub dropped: u64,
    /// Bytes of rows that wait in memory to be kept.
    pub waiting_bytes: u64,
    /// Bytes lost: too old as a whole segment, or not readable.
    pub lost_bytes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    kept: AtomicU64,
    refused: AtomicU64,
    delivered: AtomicU64,
    dropped: AtomicU64,
    lost_bytes: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }
}

/// A row that a node missed.
#[derive(Debug)]
struct Missed {
    target: NodeId,
    row: proto::RowState,
    /// Given back when it is written.
    charge: Charge,
}

/// Takes hints without waiting. Clones lead to the same task.
#[derive(Clone)]
pub struct HintSender {
    sender: mpsc::Sender<Missed>,
    hints: Arc<Hints>,
}

impl HintSender {
    /// Keeps a row for `target`, if there is room.
    pub fn keep(&self, target: NodeId, row: proto::RowState) {
        let bytes = usize::try_from(frame::frame_bytes(&row)).unwrap_or(usize::MAX);
        let charge = self.hints.waiting.take(bytes);
        let missed = charge.map(|charge| Missed { target, row, charge });
        if missed.is_none_or(|missed| self.sender.try_send(missed).is_err()) {
            Counters::add(&self.hints.counters.refused, 1);
        }
    }
}

/// All hints of a node.
pub struct Hints {
    // Constant after open.
    parts: HintParts,
    options: HintOptions,
    dir: PathBuf,

    // Each with its own synchronisation.
    /// Held while the disk is waited for: see [`Hints::on_disk`].
    queues: Mutex<Queues>,
    /// Rows and bytes that are kept for each node, as they were when the queues were let go.
    kept: Mutex<BTreeMap<NodeId, (u64, u64)>>,
    /// What is taken and not written yet.
    waiting: ByteBudget,
    counters: Counters,
    closing: CancellationToken,
    tasks: TaskTracker,
}

impl Hints {
    /// Opens the hints in `dir`, which is created if need be, and starts their task on the current
    /// runtime. It ends when the last sender is gone, or at [`Hints::stop`].
    ///
    /// # Errors
    /// The directory cannot be read or made.
    pub fn start(
        dir: &Path,
        parts: HintParts,
        options: HintOptions,
    ) -> engine::Result<(Arc<Self>, HintSender)> {
        let vfs = Arc::clone(&parts.store.environment().vfs);
        engine::create_dir_durably(&*vfs, dir)?;
        let now_ms = parts.store.environment().clock.now_ms();
        let mut queues = Queues::new();
        let mut counters = Counters::default();
        let names = vfs.list(dir).map_err(engine::Error::io("list", dir))?;
        let mut found: Vec<_> = names.iter().filter_map(|name| Queue::parse(name)).collect();
        found.sort_unstable();
        for (target, number) in found {
            let queue = queues.entry(target).or_insert_with(|| Queue::new(&vfs, dir, target));
            // One that cannot be opened is no reason to stay down.
            if queue.found(number, now_ms).is_err() {
                *counters.refused.get_mut() += 1;
            }
        }
        let (sender, missed) = mpsc::channel(WAITING_MAX);
        let dir = dir.to_path_buf();
        let hints = Arc::new(Self {
            waiting: ByteBudget::new(options.waiting_bytes_max),
            parts,
            options,
            dir,
            kept: Mutex::new(kept_in(&queues)),
            queues: Mutex::new(queues),
            counters,
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        hints.tasks.spawn(replay::run(Arc::clone(&hints), missed));
        Ok((Arc::clone(&hints), HintSender { sender, hints }))
    }

    /// Takes no more hints, writes those that were taken, delivers none any more, and returns when
    /// all that is done.
    pub async fn stop(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// The figures now.
    pub fn stats(&self) -> HintStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let of_each = self.kept.lock();
        HintStats {
            bytes: of_each.values().map(|(_, bytes)| bytes).sum(),
            targets: of_each.len() as u64,
            pending: of_each.values().map(|(rows, _)| rows).sum(),
            kept: get(&self.counters.kept),
            refused: get(&self.counters.refused),
            delivered: get(&self.counters.delivered),
            dropped: get(&self.counters.dropped),
            waiting_bytes: self.waiting.used() as u64,
            lost_bytes: get(&self.counters.lost_bytes),
        }
    }

    /// Rows and bytes that are kept for each node.
    pub fn by_target(&self) -> BTreeMap<NodeId, (u64, u64)> {
        self.kept.lock().clone()
    }

    fn now_ms(&self) -> u64 {
        self.parts.store.environment().clock.now_ms()
    }

    /// Bytes that all hints may take, as the disk is now.
    fn bytes_max(&self) -> u64 {
        let space = self.parts.store.environment().vfs.disk_space(&self.dir);
        space.map_or(0, |space| space.total / 100 * self.options.disk_percent_max)
    }

    /// Writes rows that were missed.
    async fn write(self: &Arc<Self>, missed: Vec<Missed>) {
        let created_ms = self.now_ms();
        let mut by_target: BTreeMap<NodeId, Vec<Hint>> = BTreeMap::new();
        let mut charges = Vec::with_capacity(missed.len());
        for Missed { target, row, charge } in missed {
            by_target.entry(target).or_default().push(Hint { created_ms, row });
            charges.push(charge);
        }
        self.append(by_target).await;
    }

    /// Adds hints to the queues of their targets, as far as there is room. `false`: some could not
    /// be written.
    async fn append(self: &Arc<Self>, by_target: BTreeMap<NodeId, Vec<Hint>>) -> bool {
        if by_target.is_empty() {
            return true;
        }
        let given = by_target.values().map(Vec::len).sum();
        let appended = self.on_disk(|hints, queues| hints.append_to(queues, by_target)).await;
        appended.unwrap_or_else(|_| {
            Counters::add(&self.counters.refused, given);
            false
        })
    }

    fn append_to(&self, queues: &mut Queues, by_target: BTreeMap<NodeId, Vec<Hint>>) -> bool {
        let bytes_max = self.bytes_max();
        let mut all: u64 = queues.values().map(Queue::bytes).sum();
        let mut is_written = true;
        for (target, mut hints) in by_target {
            let vfs = &self.parts.store.environment().vfs;
            let queue = queues.entry(target).or_insert_with(|| Queue::new(vfs, &self.dir, target));
            let given = hints.len();
            let mut own = queue.bytes();
            hints.retain(|hint| {
                let bytes = frame::frame_bytes(&hint.row);
                let fits = own + bytes <= self.options.target_bytes_max && all + bytes <= bytes_max;
                own += if fits { bytes } else { 0 };
                all += if fits { bytes } else { 0 };
                fits
            });
            let written = match hints.is_empty() {
                true => Ok(()),
                false => queue.append(&hints, self.options.segment_bytes),
            };
            is_written &= written.is_ok();
            let kept = if written.is_ok() { hints.len() } else { 0 };
            Counters::add(&self.counters.kept, kept);
            Counters::add(&self.counters.refused, given - kept);
        }
        is_written
    }

    /// Drops what is too old.
    async fn expire(self: &Arc<Self>) {
        let oldest_ms = self.oldest_ms();
        let expired = self.on_disk(move |hints, queues| {
            for queue in queues.values_mut() {
                let lost = queue.expire(oldest_ms);
                hints.counters.lost_bytes.fetch_add(lost, Ordering::Relaxed);
            }
        });
        // Else at the next look.
        let _ = expired.await;
    }

    /// A hint that was kept before this is delivered to nobody.
    fn oldest_ms(&self) -> u64 {
        self.now_ms().saturating_sub(self.options.age_max.as_millis() as u64)
    }

    /// The rows of a batch that are not too old to be delivered.
    pub fn rows_in_time<'b>(&self, batch: &'b Batch) -> impl Iterator<Item = &'b proto::RowState> {
        let oldest_ms = self.oldest_ms();
        let in_time = batch.hints.iter().filter(move |hint| hint.created_ms >= oldest_ms);
        in_time.map(|hint| &hint.row)
    }

    /// The oldest hints for a node; `None`: there are none. They stay until
    /// [`Hints::handed_over`], or are too old.
    ///
    /// # Errors
    /// They cannot be read now.
    pub async fn head(
        self: &Arc<Self>,
        target: NodeId,
        bytes_max: u64,
    ) -> io::Result<Option<Batch>> {
        let read = self.on_disk(move |hints, queues| {
            let Some(queue) = queues.get_mut(&target) else { return Ok(None) };
            let (batch, lost) = queue.head(bytes_max);
            hints.counters.lost_bytes.fetch_add(lost, Ordering::Relaxed);
            Ok(Some(batch?).filter(|batch| !batch.hints.is_empty()))
        });
        read.await?
    }

    /// Forgets hints whose rows are where they belong without their target's help.
    pub async fn handed_over(self: &Arc<Self>, target: NodeId, batch: Batch) {
        Counters::add(&self.counters.delivered, batch.hints.len());
        self.forget(target, batch).await;
    }

    /// Forgets hints of which all has become what it could.
    async fn forget(self: &Arc<Self>, target: NodeId, batch: Batch) {
        let forgotten = self.on_disk(move |_, queues| {
            if let Some(queue) = queues.get_mut(&target) {
                queue.delivered(&batch);
            }
        });
        // Else they are delivered again, harmlessly.
        let _ = forgotten.await;
    }

    /// Nodes there are hints for.
    pub fn targets(&self) -> Vec<NodeId> {
        self.kept.lock().keys().copied().collect()
    }

    /// Does something with the queues that may wait for the disk.
    ///
    /// # Errors
    /// The node is stopping, and it was not done; or it panicked.
    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&Self, &mut Queues) -> T + Send + 'static,
    ) -> io::Result<T> {
        let hints = Arc::clone(self);
        let acting = self.parts.work.run(move || {
            let mut queues = hints.queues.lock();
            let done = act(&hints, &mut queues);
            *hints.kept.lock() = kept_in(&queues);
            done
        });
        acting.await.map_err(io::Error::other)
    }
}

/// Rows and bytes of the queues that hold any.
fn kept_in(queues: &Queues) -> BTreeMap<NodeId, (u64, u64)> {
    let kept = queues.iter().filter(|(_, queue)| !queue.is_empty());
    kept.map(|(node, queue)| (*node, (queue.rows(), queue.bytes()))).collect()
}
