//! The fence on disks that fail, and documents that come from others.

use super::*;
use crate::cluster::double_net::{DoubleNet, Handler};
use crate::cluster::layout::{Command, Member, MemberState};
use crate::engine::vfs::fault::FaultVfs;
use crate::engine::vfs::mem::MemVfs;

fn document(version: u64, epoch: u64) -> Arc<Document> {
    let member = Member {
        name: "n1".to_owned(),
        zone: "z1".to_owned(),
        weight: 1,
        state: MemberState::Normal,
        address: "n1:7946".to_owned(),
    };
    let mut document = Document::empty();
    let form = Command::Form {
        cluster_id: NodeId(7),
        formation: NodeId(70),
        partition_bits: 2,
        members: [(NodeId(1), member)].into(),
        now_ms: 1,
    };
    document.apply(&form);
    Arc::new(Document { version, epoch, ..document })
}

fn open(vfs: &Arc<dyn Vfs>) -> Fence {
    Fence::open(Arc::clone(vfs), Path::new("/")).unwrap()
}

#[test]
fn a_stamp_below_the_epoch_is_stale_and_one_above_it_must_be_fetched_first() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let fence = open(&vfs);
    assert_eq!(fence.check(0), Ok(()));
    fence.adopt(&document(3, 2)).unwrap();
    assert_eq!(fence.check(1), Err(StampError::StaleLayout { stamp: 1, epoch: 2 }));
    assert_eq!(fence.check(2), Ok(()));
    assert_eq!(fence.check(3), Err(StampError::MustFetch { stamp: 3, epoch: 2 }));
}

/// `no_write_fence`: a snapshot taken after the fence must hold what passed before it.
#[test]
fn the_epoch_does_not_rise_while_somebody_acts_under_it() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let fence = open(&vfs);
    fence.adopt(&document(1, 1)).unwrap();
    assert_eq!(fence.enter(0).unwrap_err(), StampError::StaleLayout { stamp: 0, epoch: 1 });
    let pass = fence.enter(1).unwrap();
    std::thread::scope(|scope| {
        let adopting = scope.spawn(|| fence.adopt(&document(2, 2)));
        while open(&vfs).epoch() < 2 {
            std::thread::yield_now();
        }
        // The document is durable, and waits for the pass.
        assert_eq!((fence.epoch(), fence.layout().epoch(), *pass), (1, 1, 1));
        drop(pass);
        adopting.join().unwrap().unwrap();
    });
    assert_eq!(fence.enter(1).unwrap_err(), StampError::StaleLayout { stamp: 1, epoch: 2 });
    assert_eq!(*fence.enter(2).unwrap(), 2);
}

struct Answering(Arc<Fence>);

#[tonic::async_trait]
impl Handler for Answering {
    async fn handle(
        &self,
        _from: NodeId,
        request: Request,
        _timeout: Duration,
    ) -> Result<Reply, PeerError> {
        assert_eq!(request, Request::Document(DocumentRequest {}));
        Ok(Reply::Document(self.0.handle_document()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_later_document_is_learned_from_a_peer_and_durable_before_it_counts() {
    let net = DoubleNet::new();
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let (ours, theirs) = (open(&vfs), Arc::new(open(&(Arc::new(MemVfs::new()) as Arc<dyn Vfs>))));
    net.serve(NodeId(2), "n2:7946", Arc::new(Answering(Arc::clone(&theirs))));
    let peers = net.peers(NodeId(1));
    let learn = |epoch| ours.learn(&*peers, NodeId(2), epoch, Duration::from_secs(1));
    assert!(learn(1).await.is_err(), "it has none itself");
    theirs.adopt(&document(6, 5)).unwrap();
    learn(4).await.unwrap();
    assert_eq!((ours.epoch(), open(&vfs).epoch()), (5, 5));
    let error = learn(6).await.unwrap_err();
    assert!(matches!(&error, PeerError::Refused { reason, .. } if reason == "STALE_LAYOUT"));
}

#[test]
fn an_older_document_changes_nothing_and_the_fence_survives_a_restart() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let fence = open(&vfs);
    let watch = fence.watch();
    fence.adopt(&document(5, 4)).unwrap();
    fence.adopt(&document(4, 3)).unwrap();
    assert_eq!((fence.epoch(), watch.borrow().version()), (4, 5));
    assert_eq!(open(&vfs).document(), document(5, 4));
}

#[test]
fn a_document_of_another_cluster_or_with_an_epoch_that_fell_is_refused() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let fence = open(&vfs);
    fence.adopt(&document(5, 4)).unwrap();
    let other = Arc::new(Document { cluster_id: NodeId(8), ..(*document(6, 5)).clone() });
    assert_eq!(fence.adopt(&other).unwrap_err().reason(), "WRONG_CLUSTER");
    let twin = Arc::new(Document { formation: NodeId(71), ..(*document(6, 5)).clone() });
    let refusal = fence.adopt(&twin).unwrap_err();
    assert_eq!(refusal.reason(), "WRONG_CLUSTER", "another cluster formed under the same id");
    assert!(refusal.to_string().contains(&NodeId(71).to_string()), "{refusal}");
    assert_eq!(fence.adopt(&document(6, 3)).unwrap_err().reason(), "INVALID_ARGUMENT");
    assert_eq!((fence.epoch(), open(&vfs).epoch()), (4, 4));
}

/// A disk that was full, or a call that failed before the new file took the old one's place,
/// has changed nothing: once there is room again the fence goes on. After the rename nobody
/// knows what stands there.
#[tokio::test]
async fn a_full_disk_stops_the_fence_only_while_it_is_full() {
    use crate::engine::vfs::fault::{Effect, Fault, Operation};
    let fails = [
        (Operation::Create, true),
        (Operation::WriteAt, true),
        (Operation::SyncData, true),
        (Operation::Rename, false),
        (Operation::SyncDir, false),
    ];
    for (operation, goes_on) in fails {
        let faults = FaultVfs::new(Arc::new(MemVfs::new()));
        let vfs: Arc<dyn Vfs> = Arc::new(faults.clone());
        let fence = open(&vfs);
        fence.adopt(&document(1, 1)).unwrap();
        let effect = Effect::Fail(std::io::ErrorKind::StorageFull);
        faults.inject(Fault { operation: Some(operation), effect, ..Fault::default() });
        fence.adopt(&document(2, 2)).unwrap_err();
        assert_eq!(fence.epoch(), 1, "{operation:?}");
        assert_eq!(fence.adopt(&document(3, 3)).is_ok(), goes_on, "{operation:?}");
        assert_eq!(fence.epoch(), if goes_on { 3 } else { 1 }, "{operation:?}");
        let ended = tokio::time::timeout(Duration::from_millis(1), fence.ended()).await;
        assert_eq!(ended.is_err(), goes_on, "{operation:?}: {ended:?}");
    }
}

/// A new process opens the fence while the old one, which is stopping, still adopts a document
/// and answers under it: the new one must not start below.
#[test]
fn a_document_that_was_adopted_by_another_process_meanwhile_counts_after_a_reload() {
    let vfs: Arc<dyn Vfs> = Arc::new(MemVfs::new());
    let stopping = open(&vfs);
    stopping.adopt(&document(4, 4)).unwrap();
    let starting = open(&vfs);
    let told = Arc::new(Mutex::new(Vec::new()));
    let shown = Arc::clone(&told);
    starting.before_shown(move |document| shown.lock().push(document.epoch));
    starting.reload().unwrap();
    stopping.adopt(&document(5, 5)).unwrap();
    starting.reload().unwrap();
    assert_eq!((starting.epoch(), *starting.enter(5).unwrap()), (5, 5));
    assert_eq!(starting.layout().epoch(), 5);
    assert_eq!(*told.lock(), [5], "the tenants of the document are shown with it");
}

/// `volatile_fence`: an epoch that was acted on must not be forgotten by a crash. The process
/// dies at every file call in turn, and whatever was visible before must be there after.
#[test]
fn an_epoch_that_was_shown_is_durable_whichever_file_call_is_the_last() {
    let calls = {
        let faults = FaultVfs::new(Arc::new(MemVfs::new()));
        let vfs: Arc<dyn Vfs> = Arc::new(faults.clone());
        let fence = open(&vfs);
        (1..=3).for_each(|n| fence.adopt(&document(n, n)).unwrap());
        faults.calls()
    };
    for last in 1..=calls {
        let below = MemVfs::new();
        let faults = FaultVfs::new(Arc::new(below.clone()));
        faults.fail_call(last, std::io::ErrorKind::Other);
        let vfs: Arc<dyn Vfs> = Arc::new(faults);
        let Ok(fence) = Fence::open(vfs, Path::new("/")) else { continue };
        let mut shown = 0;
        for n in 1..=3 {
            let adopted = fence.adopt(&document(n, n));
            assert_eq!(adopted.is_ok(), fence.epoch() == n);
            shown = fence.epoch();
            if adopted.is_err() {
                break;
            }
        }
        for seed in 0..4 {
            let after: Arc<dyn Vfs> = Arc::new(below.crash_clone(seed));
            let epoch = open(&after).epoch();
            assert!(epoch >= shown, "call {last}: {shown} was shown, {epoch} is left");
        }
    }
}

/// An epoch that rises lets every request in flight want the document: they share the answers, on
/// the link on which elections are held.
#[tokio::test(start_paused = true)]
async fn many_that_want_a_document_ask_for_it_once() {
    struct Counting(Arc<Fence>, AtomicU64);

    #[tonic::async_trait]
    impl Handler for Counting {
        async fn handle(&self, _: NodeId, _: Request, _: Duration) -> Result<Reply, PeerError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Reply::Document(self.0.handle_document()))
        }
    }

    let net = DoubleNet::new();
    let fresh = || open(&(Arc::new(MemVfs::new()) as Arc<dyn Vfs>));
    let (ours, theirs) = (fresh(), Arc::new(fresh()));
    theirs.adopt(&document(6, 5)).unwrap();
    let counting = Arc::new(Counting(Arc::clone(&theirs), AtomicU64::new(0)));
    net.serve(NodeId(2), "n2:7946", Arc::clone(&counting) as _);
    let peers = net.peers(NodeId(1));
    let second = Duration::from_secs(1);
    let learn = || ours.learn(&*peers, NodeId(2), 5, second);
    let all = futures_util::future::join_all((0..500).map(|_| learn()));
    assert!(all.await.iter().all(Result::is_ok));
    assert_eq!((ours.epoch(), counting.1.load(Ordering::Relaxed)), (5, 1));
    // What is asked anew each time: one answer for all who came before its request was sent.
    let refresh = || ours.refresh(&*peers, NodeId(2), second);
    let all = futures_util::future::join_all((0..500).map(|_| refresh()));
    assert!(all.await.iter().all(Result::is_ok));
    let asked = counting.1.load(Ordering::Relaxed) - 1;
    assert!(asked <= 2, "the first may have been sent before the second wanted it: {asked}");
    // A failure is everybody's own: the next in turn asks again, until its time is over.
    net.stop(NodeId(2));
    let all = futures_util::future::join_all((0..5).map(|_| refresh()));
    assert!(all.await.iter().all(Result::is_err));
    assert!(ours.fetching.lock().len() <= 1, "who is not asked is not remembered");
}
