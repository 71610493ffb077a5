//! The layout document a node acts under, and its epoch E, the fence (rule R1 of the transitions).
//!
//! `LAYOUT` is a store document (`store::document` has its bytes): the layout document as it was
//! committed, whole.
//!
//! 1. Only committed documents are adopted, from this node's learner or from a peer; skipping some
//!    is allowed.
//! 2. A document is durable before anybody sees it: before [`Fence::check`] judges by its epoch and
//!    before the watchers are told.
//! 3. The epoch and the version never go down, over restarts too. The cluster never changes.
//! 4. While a [`Pass`] is held the epoch is not raised: whoever raises it and then looks at the
//!    store sees everything that was taken under the epochs before.
//! 5. After an error that may have written, nothing is adopted until the next start
//!    ([`Fence::ended`] tells); what was adopted before goes on to count, for nothing was answered
//!    by more. After an error that wrote nothing, as on a full disk, the next document may do.
//!
//! It decides nothing: what a stamp means for a request is told by [`Fence::check`], what to do
//! about it is the caller's.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;

use super::NodeId;
use super::layout::{Document, Layout};
use super::peer::{Class, PeerError, Peers, Reply, Request};
use crate::engine::vfs::Vfs;
use crate::proto::{DocumentReply, DocumentRequest};
use crate::store::document::Document as File;
use crate::store::error::{Error, Result};

const NAME: &str = "LAYOUT";
const FORMAT: u32 = 1;

/// Held while something is done with rows under an epoch: briefly, never while waiting for others,
/// and never twice by one thread.
pub type Pass<'f> = RwLockReadGuard<'f, u64>;

/// Why a stamp does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StampError {
    /// It was given under an earlier layout: refuse, name the epoch. Reads as well as writes.
    #[error("the stamp is of epoch {stamp}, this node has gone on to {epoch}")]
    StaleLayout {
        /// The sender's.
        stamp: u64,
        /// This node's: E.
        epoch: u64,
    },
    /// It was given under a later layout: fetch the document, adopt it, check again.
    #[error("the stamp is of epoch {stamp}, this node knows only {epoch}")]
    MustFetch {
        /// The sender's.
        stamp: u64,
        /// This node's: E.
        epoch: u64,
    },
}

/// See [`Fence::before_shown`].
struct BeforeShown(Box<dyn Fn(&Document) + Send + Sync>);

impl std::fmt::Debug for BeforeShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BeforeShown")
    }
}

/// The adopted document.
#[derive(Debug)]
pub struct Fence {
    // Constant after open.
    vfs: Arc<dyn Vfs>,
    file: File,
    /// That of the published document; read with every message.
    epoch: AtomicU64,
    /// The same, behind the lock that everything done with rows passes.
    gate: RwLock<u64>,
    published: watch::Sender<Arc<Layout>>,
    /// Called with each document before the watchers see it.
    before_shown: OnceLock<BeforeShown>,
    /// Held while a document is adopted.
    adopting: Mutex<()>,
    /// Why none is any more, if so.
    refused: watch::Sender<Option<Error>>,
}

impl Fence {
    /// Opens the fence of the node whose data directory is `dir`. Without a file the document is
    /// the empty one, of epoch 0.
    ///
    /// # Errors
    /// Damage, a newer format, or I/O.
    pub fn open(vfs: Arc<dyn Vfs>, dir: &Path) -> Result<Self> {
        let file = File::new(dir, NAME, FORMAT);
        let document = file.read::<Document>(&*vfs)?.unwrap_or_else(Document::empty);
        document.check().map_err(|why| file.invalid(0, why))?;
        let layout = Layout::new(Arc::new(document));
        Ok(Self {
            vfs,
            file,
            epoch: AtomicU64::new(layout.epoch()),
            gate: RwLock::new(layout.epoch()),
            published: watch::Sender::new(Arc::new(layout)),
            before_shown: OnceLock::new(),
            adopting: Mutex::new(()),
            refused: watch::Sender::new(None),
        })
    }

    /// Reads the file again: for one that opened the fence before it had the directory to itself,
    /// when another process may still have adopted a document.
    ///
    /// # Errors
    /// As [`Fence::open`].
    pub fn reload(&self) -> Result<()> {
        let _adopting = self.adopting.lock();
        let current = self.layout();
        let Some(document) = self.file.read::<Document>(&*self.vfs)? else { return Ok(()) };
        if document.version <= current.version() {
            return Ok(());
        }
        self.check_successor(current.document(), &document)
            .map_err(|why| self.file.invalid(0, why))?;
        self.show(&current, &Arc::new(document));
        Ok(())
    }

    /// The error of a start without a file that must have been there.
    pub(super) fn missing(&self) -> Error {
        self.file.missing()
    }

    /// Waits until no document is adopted any more, and says why.
    pub async fn ended(&self) -> String {
        let mut refused = self.refused.subscribe();
        // The sender is this fence's own.
        match refused.wait_for(Option::is_some).await.ok().and_then(|refused| refused.clone()) {
            Some(error) => error.to_string(),
            None => std::future::pending().await,
        }
    }

    /// The highest epoch known, durably: E.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// The adopted document, made ready for look-ups.
    pub fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.published.borrow())
    }

    /// The adopted document.
    pub fn document(&self) -> Arc<Document> {
        Arc::clone(self.published.borrow().document())
    }

    /// Has `tell` called with each document that is adopted from now on, before the watchers see
    /// it. The first call counts.
    pub fn before_shown(&self, tell: impl Fn(&Document) + Send + Sync + 'static) {
        let _ = self.before_shown.set(BeforeShown(Box::new(tell)));
    }

    /// Tells of every document that is adopted; some may be skipped.
    pub fn watch(&self) -> watch::Receiver<Arc<Layout>> {
        self.published.subscribe()
    }

    /// Judges the epoch under which a request was sent. What is done with rows goes through
    /// [`Fence::enter`] instead: the epoch may rise right after this.
    ///
    /// # Errors
    /// See [`StampError`].
    pub fn check(&self, stamp: u64) -> Result<(), StampError> {
        judge(stamp, self.epoch())
    }

    /// Goes in under the epoch `stamp`, which stays the node's while the pass is held.
    ///
    /// # Errors
    /// See [`StampError`].
    pub fn enter(&self, stamp: u64) -> Result<Pass<'_>, StampError> {
        let pass = self.gate.read();
        judge(stamp, *pass)?;
        Ok(pass)
    }

    /// Fetches the document of `epoch` or a later one from `from` and adopts it. Nothing is asked
    /// if this node knows it by now.
    ///
    /// # Errors
    /// The call's; [`PeerError::Refused`] for a document that is not of that epoch, or cannot be
    /// adopted.
    pub async fn learn(
        &self,
        peers: &dyn Peers,
        from: NodeId,
        epoch: u64,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        if self.epoch() >= epoch {
            return Ok(());
        }
        self.refresh(peers, from, timeout).await?;
        if self.epoch() < epoch {
            let reason = "STALE_LAYOUT".to_owned();
            let message = format!("{from} knows no document of epoch {epoch}");
            return Err(PeerError::Refused { reason, message });
        }
        Ok(())
    }

    /// Fetches the document that `from` has, and adopts it if it is later than this node's.
    ///
    /// # Errors
    /// As [`Fence::learn`].
    pub async fn refresh(
        &self,
        peers: &dyn Peers,
        from: NodeId,
        timeout: Duration,
    ) -> Result<(), PeerError> {
        let request = Request::Document(DocumentRequest {});
        let reply = peers.call(from, Class::Control, self.epoch(), request, timeout).await?;
        let refused = |reason: &str, message: String| PeerError::Refused {
            reason: reason.to_owned(),
            message,
        };
        let Reply::Document(reply) = reply else {
            return Err(refused("INTERNAL", "the reply is of another kind".to_owned()));
        };
        let document: Document = serde_json::from_slice(&reply.document)
            .map_err(|error| refused("INVALID_ARGUMENT", error.to_string()))?;
        self.adopt(&Arc::new(document)).map_err(|error| refused(error.reason(), error.to_string()))
    }

    /// Answers [`Request::Document`].
    pub fn handle_document(&self) -> DocumentReply {
        let document = self.document();
        let known = document.is_formed().then(|| serde_json::to_vec(&*document));
        let json = known.map(|json| json.expect("a document is plain data")).unwrap_or_default();
        DocumentReply { document: json.into() }
    }

    /// Makes a committed document the one to act under, durably, and tells the watchers. One that
    /// is not newer changes nothing.
    ///
    /// # Errors
    /// [`Error::WrongCluster`]; [`Error::InvalidArgument`] for a document that cannot follow the
    /// current one; I/O. After I/O that may have written every later call fails too.
    pub fn adopt(&self, document: &Arc<Document>) -> Result<()> {
        let _adopting = self.adopting.lock();
        if let Some(error) = &*self.refused.borrow() {
            return Err(error.clone());
        }
        let current = self.layout();
        if document.version <= current.version() {
            return Ok(());
        }
        self.check_successor(current.document(), document)?;
        if let Err(error) = self.file.replace(&*self.vfs, &**document) {
            if matches!(error, Error::Unknown { .. }) {
                let cause = error.to_string();
                self.refused.send_replace(Some(Error::ReadOnly { cause }));
            }
            return Err(error);
        }
        self.show(&current, document);
        Ok(())
    }

    /// Acts under a document that is durable.
    fn show(&self, current: &Layout, document: &Arc<Document>) {
        *self.gate.write() = document.epoch;
        self.epoch.store(document.epoch, Ordering::Release);
        if let Some(tell) = self.before_shown.get() {
            (tell.0)(document);
        }
        self.published.send_replace(Arc::new(current.succeeded_by(Arc::clone(document))));
    }

    fn check_successor(&self, current: &Document, next: &Document) -> Result<()> {
        let invalid = |why| Error::InvalidArgument { what: "layout document", why };
        next.check().map_err(invalid)?;
        if current.epoch > 0 && next.cluster_id != current.cluster_id {
            return Err(Error::WrongCluster {
                file: self.file.path().to_path_buf(),
                expected: next.cluster_id.to_string(),
                found: current.cluster_id.to_string(),
            });
        }
        if next.epoch < current.epoch {
            let why = format!(
                "version {} has epoch {}, version {} had {}",
                next.version, next.epoch, current.version, current.epoch
            );
            return Err(invalid(why));
        }
        Ok(())
    }
}

fn judge(stamp: u64, epoch: u64) -> Result<(), StampError> {
    match stamp.cmp(&epoch) {
        std::cmp::Ordering::Less => Err(StampError::StaleLayout { stamp, epoch }),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(StampError::MustFetch { stamp, epoch }),
    }
}

#[cfg(test)]
mod tests {
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
        let (ours, theirs) =
            (open(&vfs), Arc::new(open(&(Arc::new(MemVfs::new()) as Arc<dyn Vfs>))));
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
}
