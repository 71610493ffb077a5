use openraft::storage::RaftLogStorageExt;
use openraft::testing::{StoreBuilder, Suite, log_id};
use openraft::{CommittedLeaderId, Vote};

use super::*;
use crate::cluster::NodeId;
use crate::cluster::consensus::state_machine::StateMachine;
use crate::cluster::consensus::types::Proposal;
use crate::cluster::fence::Fence;
use crate::cluster::layout::Command;
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;

/// What openraft's own suite needs to name nodes.
impl From<u64> for NodeId {
    fn from(n: u64) -> Self {
        Self(n.into())
    }
}

/// A snapshot that reaches beyond everything: the log may be cut wherever it is told to.
fn covered() -> watch::Receiver<Option<LogId>> {
    let far = LogId::new(CommittedLeaderId::new(u64::MAX, NodeId(1)), u64::MAX);
    watch::Sender::new(Some(far)).subscribe()
}

fn open(vfs: Arc<dyn Vfs>) -> LogStore {
    LogStore::open(vfs, Path::new("/"), covered()).unwrap()
}

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine> for Builder {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError> {
        let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
        let dir = Path::new("/");
        let fence = Arc::new(Fence::open(Arc::clone(&vfs), dir).unwrap());
        let log = open(Arc::clone(&vfs));
        let machine = StateMachine::open(vfs, dir, fence, watch::Sender::new(None)).unwrap();
        Ok(((), log, machine))
    }
}

/// openraft's conformance tests of storage.
#[test]
fn the_log_and_the_state_machine_do_what_openraft_asks_of_storage() {
    Suite::test_all(Builder).unwrap();
}

fn entry(term: u64, index: u64) -> Entry {
    let command = Command::Fenced { node: NodeId(index.into()), epoch: term };
    Entry {
        log_id: LogId::new(CommittedLeaderId::new(term, NodeId(1)), index),
        payload: EntryPayload::Normal(Proposal::new(command)),
    }
}

/// What the group was told is durable.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    vote: Option<Vote<NodeId>>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, LogId>,
}

impl Told {
    async fn read(log: &mut LogStore) -> Self {
        let entries = log.try_get_log_entries(..).await.unwrap();
        Self {
            vote: log.read_vote().await.unwrap(),
            committed: log.read_committed().await.unwrap(),
            purged: log.get_log_state().await.unwrap().last_purged_log_id,
            entries: entries.iter().map(|entry| (entry.log_id.index, entry.log_id)).collect(),
        }
    }
}

/// Votes, entries, a conflict that is cut, a commit, a purge, more entries. `told` is what was
/// told to be durable, `next` what may be if the last call had an effect.
async fn story(vfs: Arc<dyn Vfs>, told: &mut Told, next: &mut Told) -> Result<(), StorageError> {
    let opened = LogStore::open(vfs, Path::new("/"), covered());
    let mut log = opened.map_err(failed(StorageIOError::read_logs))?;
    next.vote = Some(Vote::new(1, NodeId(1)));
    log.save_vote(&Vote::new(1, NodeId(1))).await?;
    told.clone_from(next);
    next.entries.extend((0..4).map(|n| (n, entry(1, n).log_id)));
    log.blocking_append((0..4).map(|n| entry(1, n))).await?;
    told.clone_from(next);
    next.vote = Some(Vote::new_committed(2, NodeId(2)));
    log.save_vote(&Vote::new_committed(2, NodeId(2))).await?;
    told.clone_from(next);
    next.entries.split_off(&2);
    log.truncate(log_id(1, NodeId(1), 2)).await?;
    told.clone_from(next);
    next.entries.extend((2..5).map(|n| (n, entry(2, n).log_id)));
    log.blocking_append((2..5).map(|n| entry(2, n))).await?;
    told.clone_from(next);
    next.committed = Some(entry(2, 3).log_id);
    log.save_committed(next.committed).await?;
    told.clone_from(next);
    next.purged = Some(entry(1, 1).log_id);
    next.entries = next.entries.split_off(&2);
    log.purge(entry(1, 1).log_id).await?;
    told.clone_from(next);
    next.entries.insert(5, entry(2, 5).log_id);
    log.blocking_append([entry(2, 5)]).await?;
    told.clone_from(next);
    Ok(())
}

/// The machine dies at every file call in turn: of what the group was told, nothing is missing, and
/// of what it was not told, only the last call may be there, and that as a whole.
#[tokio::test]
async fn a_crash_at_any_file_call_loses_no_vote_and_no_acknowledged_entry() {
    let faults = FaultVfs::new(Arc::new(MemVfs::new()));
    let (mut told, mut next) = Default::default();
    story(Arc::new(faults.clone()), &mut told, &mut next).await.unwrap();
    let calls = faults.calls();
    assert!(calls > 20, "the story has {calls} calls");
    for last in 1..=calls + 1 {
        let below = MemVfs::new();
        let faults = FaultVfs::new(Arc::new(below.clone()));
        faults.fail_call(last, std::io::ErrorKind::Other);
        let (mut told, mut next) = (Told::default(), Told::default());
        let ended = story(Arc::new(faults), &mut told, &mut next).await;
        assert_eq!(ended.is_ok(), last > calls, "an error of call {last} was kept secret");
        for seed in 0..8 {
            let vfs: Arc<dyn Vfs> = Arc::new(below.crash_clone(seed));
            let mut log = open(vfs);
            let found = Told::read(&mut log).await;
            assert!(found == told || found == next, "call {last}: {found:?}, {told:?}");
        }
    }
}

/// After a failed sync the disk may hold less than the cache shows: nothing may be built on it.
#[tokio::test]
async fn after_a_failed_write_nothing_is_written_until_the_next_start() {
    let faults = FaultVfs::new(Arc::new(MemVfs::new()));
    let mut log = open(Arc::new(faults.clone()));
    faults.fail_call(faults.calls() + 1, std::io::ErrorKind::Other);
    log.blocking_append([entry(1, 0)]).await.unwrap_err();
    faults.heal();
    log.save_vote(&Vote::new(2, NodeId(1))).await.unwrap_err();
    log.blocking_append([entry(1, 0)]).await.unwrap_err();
}

/// A minority votes for itself for weeks; its disk must not fill with old votes.
#[tokio::test]
async fn votes_that_were_overtaken_do_not_fill_the_disk() {
    let vfs = MemVfs::new();
    let mut log = open(Arc::new(vfs.clone()));
    for term in 0..12_000 {
        log.save_vote(&Vote::new(term, NodeId(1))).await.unwrap();
    }
    let len = vfs.open(Path::new("/LOG")).unwrap().len().unwrap();
    assert!(len < 2 << 20, "{len} bytes");
    let mut log = open(Arc::new(vfs));
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(11_999, NodeId(1))));
}

/// openraft asks only for the last entry's id: a hole would go unnoticed until it is too late.
#[test]
fn a_log_with_a_hole_is_corruption() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let (mut file, _) = LogFile::open(Arc::clone(&vfs), Path::new("/")).unwrap();
    file.append(&encode(ENTRIES, &[entry(1, 0), entry(1, 2)])).unwrap();
    assert_eq!(LogStore::open(vfs, Path::new("/"), covered()).unwrap_err().reason(), "CORRUPTION");
}

/// What is sent at once is bounded in bytes, but never nothing: openraft would wait for ever.
#[tokio::test]
async fn entries_are_handed_out_in_bounded_pieces_of_at_least_one() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let mut log = open(vfs);
    log.blocking_append((0..5).map(|n| entry(1, n))).await.unwrap();
    let one = encoded_len(&entry(1, 0));
    assert_eq!(log.read(0..5, 2 * one).len(), 2);
    assert_eq!(log.read(3..5, 1).len(), 1);
    assert_eq!(log.limited_get_log_entries(1, 4).await.unwrap().len(), 3);
}

/// openraft sends a snapshot to the state machine and cuts the log at once: a crash in between
/// would leave neither.
#[tokio::test(start_paused = true)]
async fn the_log_is_cut_only_when_the_snapshot_that_covers_it_is_durable() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let durable = watch::Sender::new(Some(entry(1, 1).log_id));
    let open = || LogStore::open(Arc::clone(&vfs), Path::new("/"), durable.subscribe()).unwrap();
    let mut log = open();
    log.blocking_append((0..4).map(|n| entry(1, n))).await.unwrap();
    let mut cut = log.clone();
    let cutting = tokio::spawn(async move { cut.purge(entry(1, 3).log_id).await });
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(!cutting.is_finished());
    assert_eq!((open().purged(), Told::read(&mut open()).await.entries.len()), (None, 4));
    durable.send_replace(Some(entry(1, 3).log_id));
    cutting.await.unwrap().unwrap();
    assert_eq!(open().purged(), Some(entry(1, 3).log_id));
}

/// The state machine has ended: waiting for its snapshot would hang the whole group.
#[tokio::test(start_paused = true)]
async fn a_cut_behind_a_snapshot_that_never_comes_fails_and_changes_nothing() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let durable = watch::Sender::new(None);
    let mut log = LogStore::open(Arc::clone(&vfs), Path::new("/"), durable.subscribe()).unwrap();
    log.blocking_append((0..4).map(|n| entry(1, n))).await.unwrap();
    drop(durable);
    log.purge(entry(1, 3).log_id).await.unwrap_err();
    assert_eq!(Told::read(&mut open(vfs)).await.entries.len(), 4);
}
