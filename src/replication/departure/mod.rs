//! A node gives away what it does not own any more, and leaves when it has nothing left to give.
//!
//! | file | what |
//! |---|---|
//! | here | the order of things: clear, and for one that leaves: hints, certificate, farewell |
//! | [`unowned`] | which rows are not the node's |
//! | `partition` | those of a partition, compared with each owner by what they add up to |
//! | [`cover`] | rows are on a quorum of their owners |
//! | [`certificate`] | what a node says when it has left |
//!
//! It works under a Stable document, and under nothing else: rule D1 of the transitions. It begins
//! with every document, so also after an abort, after a start, and on a node that wakes up late.
//!
//! ```text
//! Stable adopted    each partition: rows that are not ours, each on Q(owners)?   else pushed
//!                   all are: remove them, if our epoch is still the same
//!                   nothing is left: safe points of these partitions reset; propose Cleared
//! leaving           hints of ours on Q(owners), or delivered
//!                   certificate kept here and by two owners; propose Left
//! ```
//!
//! # Invariants
//! 1. A row is removed only after a quorum of its owners was seen, under this node's epoch E, to
//!    hold durably a row at or above it, and only if E is still the same. Once E names a document
//!    in which the node is no owner it takes no such row, so those that were seen are all there
//!    are: what is removed is what was covered.
//! 2. While the document is Joint nothing is removed.
//! 3. `Cleared` is proposed when no row is left, and names the epoch it was so under.
//! 4. What goes by whole ranges goes only while every tenant is one of the document's: one that was
//!    made since, under the same epoch, may have more replicas and this node among them. Safe
//!    points that it has by such a tenant stay.
//! 5. Every step can be done again: a node that is stopped anywhere goes on at its next start.

pub mod certificate;
pub mod cover;
mod partition;
pub mod unowned;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Fence;
use super::duties::{RETRY, Report, propose};
use super::hints::Hints;
use super::progress::{Progress, Rate, Task};
use crate::cluster::NodeId;
use crate::cluster::layout::{Command, Layout, MemberState};
use crate::cluster::peer::{Class, Peers, Reply, Request};
use crate::cluster::view::Liveness;
use crate::cluster::work::Work;
use crate::proto;
use crate::resilience::retry::Backoff;
use crate::store::{self, Store};

use certificate::{CERTIFICATE_FORMAT, Certificate, Certificates, PartitionProof, digest_of};
use cover::{Cover, Held, Uncovered};
use partition::Own;
use unowned::Unowned;

/// Other nodes that keep a certificate, where there are so many.
const KEEPERS: usize = 2;
/// How long it is waited after the same failure has come again and again: each time all rows that
/// are not the node's are read and compared anew.
const RETRIES: Backoff = Backoff::new(RETRY, Duration::from_secs(60));
/// Partitions that are compared at once: while owners add one up this node adds up another one.
const AT_ONCE: usize = 4;

/// Why something could not be given away yet.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("the layout has gone on")]
    Layout,
    #[error("the node is stopping")]
    Stopping,
}

impl Error {
    /// What is waited for, for people.
    fn words(&self) -> String {
        match self {
            Self::Store(error) => format!("its store to let rows of others go: {error}"),
            Self::Layout | Self::Stopping => self.to_string(),
        }
    }

    /// What kind it is: the words of the same trouble may tell of other figures each time.
    fn kind(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason(),
            Self::Layout => "LAYOUT",
            Self::Stopping => "STOPPING",
        }
    }
}

/// How often the same trouble was met in a row.
#[derive(Default)]
struct Streak {
    kind: &'static str,
    count: u32,
}

impl Streak {
    /// Counts one more; whether it is another trouble than before.
    fn meet(&mut self, error: &Error) -> bool {
        let is_new = error.kind() != self.kind;
        self.count = if is_new { 1 } else { self.count.saturating_add(1) };
        self.kind = error.kind();
        is_new
    }
}

/// What can be set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of rows that are looked at together.
    pub page_bytes: usize,
    /// How long a request may take.
    pub timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { page_bytes: 1 << 20, timeout: Duration::from_secs(30) }
    }
}

/// See the module page.
pub struct Departure {
    /// This node.
    pub node: NodeId,
    /// Its rows.
    pub store: Arc<Store>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who is up.
    pub liveness: Arc<dyn Liveness>,
    /// The adopted document: its epoch is durable here.
    pub layout: watch::Receiver<Arc<Layout>>,
    /// Under which epoch this node acts.
    pub fence: Arc<dyn Fence>,
    /// Where facts are put.
    pub report: Arc<dyn Report>,
    /// What others missed.
    pub hints: Arc<Hints>,
    /// Certificates of this node and of others.
    pub certificates: Arc<Certificates>,
    /// Where the disk is waited for.
    pub work: Work,
    /// What can be set.
    pub settings: Settings,
    /// How fast rows may go.
    pub rate: Arc<Rate>,
    /// What was done.
    pub progress: Arc<Progress>,
}

/// How far the partitions were looked through.
#[derive(Default)]
struct Seen {
    /// With what was found in them, and who holds all of it.
    found: BTreeMap<u32, (Own, BTreeSet<NodeId>)>,
    partitions: u64,
    has_begun: bool,
}

impl Departure {
    /// Gives away all that is not the node's under `layout`.
    pub async fn serve(&self, layout: &Arc<Layout>) {
        let document = layout.document();
        if !document.is_formed() || document.is_joint() {
            return;
        }
        let state = document.members.get(&self.node).map(|member| member.state);
        if state.is_none_or(MemberState::is_gone) {
            return;
        }
        let leaves = state == Some(MemberState::Leaving);
        self.clear(layout, leaves).await;
        if document.departed.contains_key(&self.node) {
            let (node, epoch) = (self.node, layout.epoch());
            self.report(Command::Cleared { node, epoch }).await;
        }
        if leaves {
            self.leave(layout).await;
        }
        self.progress.end();
    }

    async fn report(&self, command: Command) {
        propose(&*self.report, &self.progress, command).await;
    }

    /// Until nothing is left that is not the node's.
    async fn clear(&self, layout: &Arc<Layout>, leaves: bool) {
        let unowned = Arc::new(Unowned::of(layout, self.node));
        if unowned.partitions() == 0 {
            return;
        }
        let mut failures = Streak::default();
        loop {
            let error = match self.clear_once(layout, &unowned, leaves).await {
                Ok(true) => return,
                Ok(false) => {
                    failures.count = 0;
                    continue;
                }
                Err(error) => error,
            };
            if failures.meet(&error) && matches!(error, Error::Store(_)) {
                tracing::warn!(%error, "cannot give rows away");
            } else {
                tracing::debug!(%error, failures = failures.count, "cannot give rows away");
            }
            if self.progress.figures().task == Task::None {
                // It has found none to give away, and is not done all the same.
                self.progress.begin(Task::HandingOver, unowned.partitions());
            }
            self.progress.wait_for(error.words());
            tokio::time::sleep(RETRIES.wait(failures.count, u64::MAX)).await;
        }
    }

    /// Whether nothing was left.
    async fn clear_once(
        &self,
        layout: &Arc<Layout>,
        unowned: &Arc<Unowned>,
        leaves: bool,
    ) -> Result<bool, Error> {
        let seen = Mutex::new(Seen::default());
        let each = futures_util::stream::iter(unowned.each()).map(Ok);
        let look = |partition| self.look_through(layout, unowned, partition, &seen);
        each.try_for_each_concurrent(AT_ONCE, look).await?;
        let found = seen.into_inner().found;
        if found.is_empty() {
            self.reset(layout, unowned).await?;
            return Ok(true);
        }
        let keys: u64 = found.values().map(|(own, _)| own.keys).sum();
        tracing::info!(epoch = layout.epoch(), keys, "rows of others are all with their owners");
        if leaves {
            let draft = self.certificate_of(layout, found);
            self.certificates.keep_draft(&draft)?;
        }
        self.remove(layout, unowned).await?;
        Ok(false)
    }

    /// Sees to it that all rows of a partition that are not the node's are with their owners.
    async fn look_through(
        &self,
        layout: &Layout,
        unowned: &Arc<Unowned>,
        partition: u32,
        seen: &Mutex<Seen>,
    ) -> Result<(), Error> {
        let own = self.add_up(layout, unowned, partition).await?;
        if own.keys > 0 {
            self.begin(unowned, &mut seen.lock());
            let owners = self.cover_partition(layout, unowned, partition, &own).await?;
            seen.lock().found.insert(partition, (own, owners));
        }
        let mut seen = seen.lock();
        seen.partitions += 1;
        if seen.has_begun {
            self.progress.reached(seen.partitions);
        }
        Ok(())
    }

    /// Something was found that must be handed over.
    fn begin(&self, unowned: &Unowned, seen: &mut Seen) {
        if !std::mem::replace(&mut seen.has_begun, true) {
            self.progress.begin(Task::HandingOver, unowned.partitions());
            self.progress.reached(seen.partitions);
        }
    }

    /// Tries until all of the rows are with a quorum of their owners.
    async fn cover_all(
        &self,
        layout: &Layout,
        rows: &[Held],
        seen: &[BTreeSet<NodeId>],
    ) -> Vec<BTreeSet<NodeId>> {
        loop {
            match self.try_cover(layout, rows, seen).await {
                Some(holders) => return holders,
                None => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Who holds each of the rows, if it is a quorum of its owners; some were `seen` to.
    async fn try_cover(
        &self,
        layout: &Layout,
        rows: &[Held],
        seen: &[BTreeSet<NodeId>],
    ) -> Option<Vec<BTreeSet<NodeId>>> {
        let cover = Cover {
            store: &self.store,
            peers: &self.peers,
            fence: &self.fence,
            layout,
            rate: &self.rate,
            timeout: self.settings.timeout,
        };
        match cover.cover(rows, seen).await {
            Ok(holders) => {
                let bytes = rows.iter().map(Held::bytes).sum();
                self.progress.moved(rows.len() as u64, bytes);
                Some(holders)
            }
            Err(error) => {
                tracing::debug!(%error, "rows are not with their owners yet");
                self.progress.wait_for(self.words(layout, &error));
                None
            }
        }
    }

    /// Who is waited for, by name.
    fn words(&self, layout: &Layout, error: &Uncovered) -> String {
        let each = error
            .by
            .iter()
            .map(|(node, why)| format!("{} to take rows: {why}", layout.document().name_of(*node)));
        each.collect::<Vec<_>>().join("; ")
    }

    /// Removes the rows that are not the node's: all of them were covered under this epoch.
    async fn remove(&self, layout: &Layout, unowned: &Arc<Unowned>) -> Result<(), Error> {
        let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
        let (unowned, epoch) = (Arc::clone(unowned), layout.epoch());
        let removing = self.work.run(move || {
            let all_known =
                || unowned.knows(&store.tenants()) || !store.keeps("only_known_tenants_go");
            let (mut wholly, mut in_part) = unowned.ranges_by_extent();
            if !all_known() {
                (wholly, in_part) = (Vec::new(), unowned.ranges());
            }
            store.remove_rows(&wholly, &in_part, &|key| unowned.has(key), &|install| {
                let _pass = fence.enter(epoch).ok()?;
                // Asked after it was settled what goes: a row of a tenant that is known by now only
                // cannot be in that.
                (wholly.is_empty() || all_known()).then(install)
            })
        });
        let removed = removing.await.map_err(|_| Error::Stopping)??.ok_or(Error::Layout)?;
        tracing::info!(epoch, bytes = removed, "removed rows of others");
        Ok(())
    }

    /// Whoever owns one of these partitions again starts anew.
    async fn reset(&self, layout: &Layout, unowned: &Arc<Unowned>) -> Result<(), Error> {
        let (store, fence) = (Arc::clone(&self.store), Arc::clone(&self.fence));
        let (unowned, epoch) = (Arc::clone(unowned), layout.epoch());
        let work = self.work.run(move || {
            let _pass = fence.enter(epoch).map_err(|_| Error::Layout)?;
            Ok(store.forget_safe_points(|| match store.keeps("only_known_tenants_go") {
                // A tenant that is known later has no row here yet, and no round of its owners can
                // have fenced this node.
                true => unowned.wholly(&store.tenants()),
                false => unowned.wholly(&[]),
            })?)
        });
        work.await.map_err(|_| Error::Stopping)?
    }

    fn certificate_of(
        &self,
        layout: &Layout,
        found: BTreeMap<u32, (Own, BTreeSet<NodeId>)>,
    ) -> Certificate {
        let document = layout.document();
        let proof = |(partition, (own, owners)): (u32, (Own, BTreeSet<NodeId>))| PartitionProof {
            partition,
            keys: own.keys,
            bytes: own.bytes,
            digest: format!("{:016x}", own.digest),
            owners: owners.into_iter().collect(),
        };
        let member = document.members.get(&self.node);
        Certificate {
            format: CERTIFICATE_FORMAT,
            cluster_id: document.cluster_id,
            node_id: self.node,
            node_name: member.map(|member| member.name.clone()).unwrap_or_default(),
            epoch: layout.epoch(),
            made_ms: self.store.now_ms(),
            hints: 0,
            partitions: found.into_iter().map(proof).collect(),
        }
    }

    /// The node holds nothing any more: its hints, its certificate, farewell.
    async fn leave(&self, layout: &Arc<Layout>) {
        self.progress.begin(Task::Hints, 0);
        let hints = self.hand_hints_over(layout).await;
        self.progress.begin(Task::Certifying, 0);
        let json = loop {
            match self.certify(layout, hints) {
                Ok(json) => break json,
                Err(error) => {
                    tracing::warn!(%error, "cannot keep the certificate");
                    self.progress.wait_for(error.to_string());
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        self.have_kept(layout, &json).await;
        let (node, digest) = (self.node, digest_of(&json));
        tracing::info!(digest, "all is handed over: leaving");
        // The group forgets a node that left, perhaps before it hears that it did.
        loop {
            self.report(Command::Left { node, digest: digest.clone() }).await;
            self.progress.wait_for("its vote on the layout to end, or to hear that it has left");
            for owner in self.owners_up(layout) {
                let _ = self.fence.refresh(owner, self.settings.timeout).await;
                if self.has_left() {
                    return;
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn has_left(&self) -> bool {
        let layout = self.layout.borrow();
        let member = layout.document().members.get(&self.node);
        member.is_some_and(|member| member.state == MemberState::Left)
    }

    /// Until no hint is left; how many were handed over. What is too old meanwhile is not: it may
    /// have been deleted and forgotten by its owners.
    async fn hand_hints_over(&self, layout: &Layout) -> u64 {
        let mut all = 0;
        loop {
            // Those that came meanwhile too.
            let targets = self.hints.targets();
            if targets.is_empty() {
                return all;
            }
            for target in targets {
                // One that cannot be read holds up none of the others.
                if let Err(error) = self.hand_over_those_of(layout, target, &mut all).await {
                    let name = layout.document().name_of(target);
                    self.progress.wait_for(format!("its hints for {name} to be readable: {error}"));
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Until no hint for one node is left; `all` counts what was handed over.
    ///
    /// # Errors
    /// They cannot be read: they are a moment later, or too old in the end.
    async fn hand_over_those_of(
        &self,
        layout: &Layout,
        target: NodeId,
        all: &mut u64,
    ) -> std::io::Result<()> {
        while let Some(batch) = self.hints.head(target, self.settings.page_bytes as u64).await? {
            let rows: Vec<Held> = self
                .hints
                .rows_in_time(&batch)
                .filter_map(|row| {
                    // Of a tenant that is not known there is no owner.
                    let tenant = store::TenantId(row.tenant_id);
                    let known = self.store.tenant_by_id(tenant).ok()?;
                    let partition = layout.partition_of(known.token(&row.key));
                    let owners = layout.sets_of(partition, &known).current;
                    let (key, row) = (row.key.clone(), row.row.clone());
                    Some(Held { tenant, key, row, owners })
                })
                .collect();
            let seen = vec![BTreeSet::new(); rows.len()];
            if !rows.is_empty() && self.try_cover(layout, &rows, &seen).await.is_none() {
                tokio::time::sleep(RETRY).await;
                continue;
            }
            *all += rows.len() as u64;
            self.hints.handed_over(target, batch).await;
        }
        Ok(())
    }

    /// The text of the node's certificate; the one it has kept, if it has.
    fn certify(&self, layout: &Layout, hints: u64) -> store::Result<Vec<u8>> {
        if let Some(kept) = self.certificates.read(self.node)? {
            return Ok(kept);
        }
        let draft = self.certificates.draft(self.node)?;
        let draft = draft.unwrap_or_else(|| self.certificate_of(layout, BTreeMap::new()));
        let certificate = Certificate { hints, made_ms: self.store.now_ms(), ..draft };
        let json = certificate.to_json();
        self.certificates.keep(self.node, &json)?;
        Ok(json)
    }

    /// Owners that are up, this node not among them.
    fn owners_up(&self, layout: &Layout) -> Vec<NodeId> {
        let owners = layout.document().owners.keys().copied();
        owners.filter(|node| *node != self.node && self.liveness.is_up(*node)).collect()
    }

    /// Until as many others keep the certificate as should.
    async fn have_kept(&self, layout: &Layout, json: &[u8]) {
        let mut keepers = BTreeSet::new();
        let others = layout.document().owners.keys().filter(|node| **node != self.node).count();
        let wanted = KEEPERS.min(others);
        loop {
            for owner in self.owners_up(layout) {
                if keepers.len() >= wanted {
                    return;
                }
                let request = Request::Certificate(proto::CertificateRequest {
                    node_id: self.node.to_bytes().to_vec().into(),
                    certificate: Bytes::copy_from_slice(json),
                });
                let (epoch, timeout) = (layout.epoch(), self.settings.timeout);
                let call = self.peers.call(owner, Class::Background, epoch, request, timeout);
                match call.await {
                    Ok(Reply::Certificate(_)) => {
                        keepers.insert(owner);
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%owner, %error, "it does not keep it"),
                }
            }
            if keepers.len() >= wanted {
                return;
            }
            self.progress.wait_for("another node to keep the certificate");
            tokio::time::sleep(RETRY).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On a full disk other bytes are free at each try: all rows would be read twice a second.
    #[test]
    fn the_same_trouble_with_other_figures_is_the_same() {
        let path = std::path::PathBuf::new;
        let full = |available| store::Error::DiskFull { path: path(), available, reserve: 9 };
        let mut failures = Streak::default();
        assert!(failures.meet(&Error::Store(full(1))));
        assert!(!failures.meet(&Error::Store(full(2))));
        assert_eq!(failures.count, 2);
        assert!(failures.meet(&Error::Layout));
        assert_eq!(failures.count, 1);
    }
}
