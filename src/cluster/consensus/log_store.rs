//! Votes and entries of the consensus group: in memory to be read, in `raft/LOG` to be kept.
//!
//! Bodies of the frames (see `log_file` for the bytes around them):
//!
//! | kind | body |
//! |--:|---|
//! | 1 | the vote; the last one counts |
//! | 2 | up to which entry is committed, or null; the last one counts |
//! | 3 | a list of entries, each with the index after that of the entry before it |
//! | 4 | the last entry that was purged; only as the first frame |
//!
//! 1. A vote, entries and the commit index are durable before anybody is told.
//! 2. Indexes have no hole: a log with one is corruption.
//! 3. Cutting either end rewrites the file. It also is rewritten when it has outgrown what it
//!    holds: elections without end would fill the disk.
//! 4. The beginning is cut only behind a durable snapshot. openraft cuts while a snapshot is still
//!    being installed: the cut waits.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{AnyError, EntryPayload, OptionalSend, RaftLogReader};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::log_file::{Frame, LogFile};
use super::types::{Entry, LogId, StorageError, StorageIOError, TypeConfig, Vote};
use crate::engine;
use crate::engine::vfs::Vfs;
use crate::store::error::Result;

const VOTE: u8 = 1;
const COMMITTED: u8 = 2;
const ENTRIES: u8 = 3;
const PURGED: u8 = 4;

/// Entries that are sent at once have at most so many bytes, unless it is one that has more.
const SENT_BYTES_MAX: usize = 1 << 20;

/// The log. Clones are the same log.
#[derive(Clone, Debug)]
pub(super) struct LogStore {
    log: Arc<Mutex<Log>>,
    /// Up to where the durable snapshot reaches. Its sender is the state machine's: gone when no
    /// other will come.
    snapshot: watch::Receiver<Option<LogId>>,
}

#[derive(Debug)]
struct Log {
    file: LogFile,
    contents: Contents,
}

#[derive(Debug, Default)]
struct Contents {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

impl LogStore {
    /// Opens the log in `dir`, which exists. `snapshot` tells up to where the durable snapshot
    /// reaches.
    pub(super) fn open(
        vfs: Arc<dyn Vfs>,
        dir: &Path,
        snapshot: watch::Receiver<Option<LogId>>,
    ) -> Result<Self> {
        let (file, frames) = LogFile::open(vfs, dir)?;
        let mut contents = Contents::default();
        for (n, frame) in frames.iter().enumerate() {
            contents.replay(n, frame).map_err(|why| {
                let what = format!("frame {n} is invalid: {why}");
                engine::Error::corrupt(&dir.join("LOG"), 0, what)
            })?;
        }
        Ok(Self { log: Arc::new(Mutex::new(Log { file, contents })), snapshot })
    }

    /// Whether nothing was ever kept in it.
    pub(super) fn is_new(&self) -> bool {
        let log = self.log.lock();
        let Contents { vote, committed, purged, entries } = &log.contents;
        vote.is_none() && committed.is_none() && purged.is_none() && entries.is_empty()
    }

    /// Up to where the beginning was cut.
    pub(super) fn purged(&self) -> Option<LogId> {
        self.log.lock().contents.purged
    }

    /// The entries in `range`; with `bytes_max` only as many of the first as fit, at least one.
    fn read(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> Vec<Entry> {
        let log = self.log.lock();
        let mut bytes = 0;
        let fits = |entry: &&Entry| {
            let first = bytes == 0;
            bytes += encoded_len(entry);
            first || bytes <= bytes_max
        };
        log.contents
            .entries
            .range(range)
            .map(|(_, entry)| entry)
            .take_while(fits)
            .cloned()
            .collect()
    }
}

impl Log {
    fn append(&mut self, frame: &Frame) -> Result<()> {
        self.file.append(frame)
    }

    fn rewrite_if_overgrown(&mut self) -> Result<()> {
        if self.file.is_overgrown() { self.file.rewrite(&self.contents.frames()) } else { Ok(()) }
    }
}

impl Contents {
    fn replay(&mut self, n: usize, frame: &Frame) -> Result<(), String> {
        match frame.kind {
            VOTE => self.vote = Some(parse(&frame.body)?),
            COMMITTED => self.committed = parse(&frame.body)?,
            ENTRIES => {
                parse::<Vec<Entry>>(&frame.body)?.into_iter().try_for_each(|e| self.add(e))?
            }
            PURGED if n == 0 => self.purged = Some(parse(&frame.body)?),
            kind => return Err(format!("kind {kind} has no place here")),
        }
        Ok(())
    }

    fn add(&mut self, entry: Entry) -> Result<(), String> {
        let (found, expected) = (entry.log_id.index, self.next_index());
        if expected.is_some_and(|expected| found != expected) {
            return Err(format!("it has index {found} instead of {}", expected.unwrap_or(0)));
        }
        self.entries.insert(found, entry);
        Ok(())
    }

    /// The index the next entry must have. A log that holds nothing may begin anywhere: it may
    /// have lost its beginning to a snapshot.
    fn next_index(&self) -> Option<u64> {
        let last = self.entries.last_key_value().map(|(index, _)| *index);
        last.or(self.purged.map(|id| id.index)).map(|index| index + 1)
    }

    fn frames(&self) -> Vec<Frame> {
        let mut frames = Vec::new();
        frames.extend(self.purged.map(|purged| encode(PURGED, &purged)));
        frames.extend(self.vote.as_ref().map(|vote| encode(VOTE, vote)));
        frames.extend(self.committed.map(|committed| encode(COMMITTED, &Some(committed))));
        frames.extend(self.entries.values().map(|entry| encode(ENTRIES, &[entry])));
        frames
    }
}

fn encode<T: Serialize + ?Sized>(kind: u8, content: &T) -> Frame {
    let body = serde_json::to_vec(content).expect("the types of the group are plain data");
    Frame { kind, body }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

/// About how long an entry is when it is sent. Only commands may be long.
fn encoded_len(entry: &Entry) -> usize {
    const SMALL_BYTES: usize = 1024;
    match &entry.payload {
        EntryPayload::Normal(proposal) => {
            SMALL_BYTES + serde_json::to_vec(&proposal.command).map_or(0, |bytes| bytes.len())
        }
        EntryPayload::Blank | EntryPayload::Membership(_) => SMALL_BYTES,
    }
}

fn failed(make: fn(AnyError) -> StorageIOError) -> impl Fn(crate::store::Error) -> StorageError {
    move |error| make(AnyError::new(&error)).into()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        let bounds: (Bound<u64>, Bound<u64>) =
            (range.start_bound().cloned(), range.end_bound().cloned());
        Ok(self.read(bounds, usize::MAX))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        Ok(self.read(start..end, SENT_BYTES_MAX))
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let log = self.log.lock();
        let last = log.contents.entries.last_key_value().map(|(_, entry)| entry.log_id);
        let last_purged_log_id = log.contents.purged;
        Ok(LogState { last_purged_log_id, last_log_id: last.or(last_purged_log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let mut log = self.log.lock();
        let saved = log.append(&encode(VOTE, vote)).and_then(|()| {
            log.contents.vote = Some(*vote);
            log.rewrite_if_overgrown()
        });
        saved.map_err(failed(StorageIOError::write_vote))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.log.lock().contents.vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        let mut log = self.log.lock();
        if log.contents.committed == committed {
            return Ok(());
        }
        let saved = log.append(&encode(COMMITTED, &committed)).and_then(|()| {
            log.contents.committed = committed;
            log.rewrite_if_overgrown()
        });
        saved.map_err(failed(StorageIOError::write_logs))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.log.lock().contents.committed)
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        for entry in &entries {
            if let EntryPayload::Normal(proposal) = &entry.payload {
                proposal.mark_logged();
            }
        }
        let mut log = self.log.lock();
        let appended = log.append(&encode(ENTRIES, &entries));
        if let Err(error) = appended {
            callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
            return Err(failed(StorageIOError::write_logs)(error));
        }
        for entry in entries {
            log.contents.entries.insert(entry.log_id.index, entry);
        }
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        let mut log = self.log.lock();
        drop(log.contents.entries.split_off(&since.index));
        let frames = log.contents.frames();
        log.file.rewrite(&frames).map_err(failed(StorageIOError::write_logs))
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        if self.snapshot.wait_for(|durable| *durable >= Some(upto)).await.is_err() {
            let why = format!("no snapshot up to {upto} was written");
            return Err(StorageIOError::write_logs(AnyError::error(why)).into());
        }
        let mut log = self.log.lock();
        let contents = &mut log.contents;
        contents.entries = contents.entries.split_off(&(upto.index + 1));
        contents.purged = contents.purged.max(Some(upto));
        let frames = contents.frames();
        log.file.rewrite(&frames).map_err(failed(StorageIOError::write_logs))
    }
}

#[cfg(test)]
mod tests;
