//! The layout document a node acts under, and its epoch E, the fence (rule R1 of the transitions).
//!
//! `LAYOUT` is a store document (`store::document` has its bytes): the layout document as it was
//! committed, whole.
//!
//! 1. Only committed documents are adopted, from this node's learner or from a peer; skipping some
//!    is allowed.
//! 2. A document is durable before anybody sees it: before [`Fence::check`] judges by its epoch and
//!    before the watchers are told.
//! 3. The epoch and the version never go down, over restarts too. The cluster never changes, nor
//!    does its formation.
//! 4. While a [`Pass`] is held the epoch is not raised: whoever raises it and then looks at the
//!    store sees everything that was taken under the epochs before.
//! 5. After an error that may have written, nothing is adopted until the next start
//!    ([`Fence::ended`] tells); what was adopted before goes on to count, for nothing was answered
//!    under a later one. After an error that wrote nothing, as on a full disk, the next document
//!    may be adopted.
//!
//! It decides nothing: what a stamp means for a request is told by [`Fence::check`], what to do
//! about it is the caller's.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use std::time::Duration;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch;
use tokio::time::Instant;

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

/// Asking one node for its document: one request at a time, whose answer serves all who wanted it
/// before it was sent.
#[derive(Debug, Default)]
struct Fetching {
    /// Requests sent so far.
    sent: AtomicU64,
    /// Held while one is under way: which of them was answered last.
    answered: tokio::sync::Mutex<u64>,
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
    /// Whom documents are asked of now.
    fetching: Mutex<BTreeMap<NodeId, Arc<Fetching>>>,
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
            fetching: Mutex::default(),
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
        self.fetch(peers, from, timeout, || self.epoch() >= epoch).await?;
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
        self.fetch(peers, from, timeout, || false).await
    }

    /// Asks `from` for its document, unless it is known by then. Every request under way may want
    /// the same one when the epoch changes: they wait for one answer.
    async fn fetch(
        &self,
        peers: &dyn Peers,
        from: NodeId,
        timeout: Duration,
        is_known: impl Fn() -> bool + Send,
    ) -> Result<(), PeerError> {
        if is_known() {
            return Ok(());
        }
        let deadline = Instant::now() + timeout;
        let fetching = {
            let mut all = self.fetching.lock();
            all.retain(|node, one| *node == from || Arc::strong_count(one) > 1);
            Arc::clone(all.entry(from).or_default())
        };
        let sent = fetching.sent.load(Ordering::Relaxed);
        let turn = tokio::time::timeout_at(deadline, fetching.answered.lock()).await;
        let mut answered = turn.map_err(|_| PeerError::Unreachable {
            node: from.to_string(),
            why: "time was over before it could be asked".to_owned(),
        })?;
        if *answered > sent || is_known() {
            return Ok(());
        }
        let number = fetching.sent.fetch_add(1, Ordering::Relaxed) + 1;
        self.ask(peers, from, deadline.saturating_duration_since(Instant::now())).await?;
        *answered = number;
        Ok(())
    }

    async fn ask(
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
        self.keep(document)?;
        self.show(&current, document);
        Ok(())
    }

    /// Makes the node's cluster another one that begins with the same document: see
    /// [`begin_again`](super::consensus::begin_again).
    ///
    /// # Errors
    /// I/O. After what may have been written every later call fails too.
    pub(super) fn form_again(&self, formation: NodeId) -> Result<Arc<Document>> {
        let _adopting = self.adopting.lock();
        let current = self.layout();
        let version = current.version() + 1;
        let document = Document { formation, version, ..(**current.document()).clone() };
        let document = Arc::new(document);
        self.keep(&document)?;
        self.show(&current, &document);
        Ok(document)
    }

    /// Makes a document durable.
    fn keep(&self, document: &Document) -> Result<()> {
        let kept = self.file.replace(&*self.vfs, document);
        if let Err(error @ Error::Unknown { .. }) = &kept {
            let cause = error.to_string();
            self.refused.send_replace(Some(Error::ReadOnly { cause }));
        }
        kept
    }

    /// Acts under a document that is durable.
    fn show(&self, current: &Layout, document: &Arc<Document>) {
        // Who wants to write keeps later readers out: not for a document that stops nobody.
        if document.epoch > current.epoch() {
            *self.gate.write() = document.epoch;
        }
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
        if current.epoch > 0 && next.formation != current.formation {
            let formed = |document: &Document| {
                format!("{} of formation {}", document.cluster_id, document.formation)
            };
            return Err(Error::WrongCluster {
                file: self.file.path().to_path_buf(),
                expected: formed(next),
                found: formed(current),
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
mod tests;
