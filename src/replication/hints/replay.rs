//! The task that writes hints and delivers them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::frame::Hint;
use super::queue::Batch;
use super::{Counters, Hints, Missed};
use crate::cluster::NodeId;
use crate::cluster::peer::{Class, PeerError, Request};
use crate::proto;
use crate::replication::Layout;
use crate::replication::reason::{BELOW_SAFE_POINT, NOT_A_REPLICA};
use crate::store::{self, TenantId};

/// How often it is looked who has come back.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Rows that are written with one sync at most.
const WRITE_ROWS_MAX: usize = 256;
/// How long a request is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of the first request to a node.
const WINDOW_BYTES_FIRST: u64 = 64 << 10;
/// No request is asked to be smaller than this,
const WINDOW_BYTES_MIN: u64 = 4 << 10;
/// nor larger than this: in bytes.
const WINDOW_BYTES_MAX: u64 = 1 << 20;
/// What an answer adds: in bytes.
const WINDOW_BYTES_STEP: u64 = 64 << 10;

/// A node while there are hints for it.
struct Target {
    up_since: Option<Instant>,
    window_bytes: u64,
}

/// How a stream to a node ended, and the window it had.
struct Ended {
    target: NodeId,
    window_bytes: u64,
    is_calm: bool,
}

/// Why a batch was not delivered.
enum Undelivered {
    /// A later layout: to be sent again at once when it is here.
    Layout,
    /// The node is in trouble: to be left alone for a while.
    Trouble,
}

/// Writes what is missed and delivers it, until no sender is left or the hints are stopped: then
/// what was taken is written still.
pub(super) async fn run(hints: Arc<Hints>, mut missed: mpsc::Receiver<Missed>) {
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut targets: BTreeMap<NodeId, Target> = BTreeMap::new();
    let mut busy: BTreeSet<NodeId> = BTreeSet::new();
    let mut streams: JoinSet<Ended> = JoinSet::new();
    let mut rows = Vec::new();
    let mut closing = std::pin::pin!(hints.closing.cancelled());
    loop {
        tokio::select! {
            biased;
            // What is rarely ready first: while one node is away there is always one more hint,
            // and the others' would never be delivered.
            () = &mut closing, if !missed.is_closed() => missed.close(),
            Some(Ok(ended)) = streams.join_next() => {
                busy.remove(&ended.target);
                if let Some(target) = targets.get_mut(&ended.target) {
                    target.window_bytes = ended.window_bytes;
                    target.up_since = target.up_since.filter(|_| ended.is_calm);
                }
            }
            _ = looks.tick() => {
                if !hints.targets().is_empty() {
                    hints.expire().await;
                }
                let waiting = hints.targets();
                targets.retain(|node, _| waiting.contains(node));
                for node in waiting {
                    let calm = look(&hints, &mut targets, node);
                    if calm && busy.insert(node) {
                        let window_bytes = targets[&node].window_bytes;
                        streams.spawn(deliver(Arc::clone(&hints), node, window_bytes));
                    }
                }
            }
            received = missed.recv_many(&mut rows, WRITE_ROWS_MAX) => {
                if received == 0 {
                    return;
                }
                hints.write(std::mem::take(&mut rows)).await;
            }
        }
    }
}

/// Whether a node has been up for long enough. One that owns nothing any more need not be.
fn look(hints: &Hints, targets: &mut BTreeMap<NodeId, Target>, node: NodeId) -> bool {
    let new = Target { up_since: None, window_bytes: WINDOW_BYTES_FIRST };
    let target = targets.entry(node).or_insert(new);
    let is_owner = {
        let layout = hints.parts.layout.borrow();
        let document = layout.document();
        let next = document.next_owners.as_ref();
        document.owners.contains_key(&node) || next.is_some_and(|next| next.contains_key(&node))
    };
    let is_away = node != hints.parts.node && !hints.parts.liveness.is_up(node);
    if is_owner && is_away {
        target.up_since = None;
        return false;
    }
    let since = *target.up_since.get_or_insert_with(Instant::now);
    since.elapsed() >= hints.options.calm
}

/// Delivers the hints of one node until there are none, or it is in trouble.
async fn deliver(hints: Arc<Hints>, target: NodeId, window_bytes: u64) -> Ended {
    let mut ended = Ended { target, window_bytes, is_calm: true };
    loop {
        let delivered = match hints.head(target, ended.window_bytes).await {
            Ok(None) => return ended,
            Ok(Some(batch)) => {
                let delivered = deliver_batch(&hints, target, &batch).await;
                if delivered.is_ok() {
                    hints.forget(target, batch).await;
                }
                delivered
            }
            // It may be readable a moment later.
            Err(_) => Err(Undelivered::Trouble),
        };
        match delivered {
            Ok(true) => {
                let window = ended.window_bytes + WINDOW_BYTES_STEP;
                ended.window_bytes = window.min(WINDOW_BYTES_MAX);
            }
            Err(Undelivered::Layout) => return ended,
            Ok(false) | Err(Undelivered::Trouble) => {
                ended.window_bytes = (ended.window_bytes / 2).max(WINDOW_BYTES_MIN);
                ended.is_calm = false;
                return ended;
            }
        }
    }
}

/// Delivers what can be delivered and puts the rest behind the other hints. `false`: its target has
/// taken nothing of it.
async fn deliver_batch(
    hints: &Arc<Hints>,
    target: NodeId,
    batch: &Batch,
) -> Result<bool, Undelivered> {
    let layout = Arc::clone(&hints.parts.layout.borrow());
    let mut again: BTreeMap<NodeId, Vec<Hint>> = BTreeMap::new();
    let mut taken = 0;
    for (node, given) in by_node(hints, &layout, target, batch) {
        let rows: Vec<_> = given.iter().map(|hint| hint.row.clone()).collect();
        let answered = match node == hints.parts.node {
            true => join_here(hints, layout.epoch(), rows).await,
            false => send(hints, node, layout.epoch(), rows).await,
        };
        // Who took the rows of a node that is gone for good does not wait for who is away.
        let is_heir = node != target && node != hints.parts.node;
        let refusals = match answered {
            Err(Undelivered::Trouble) if is_heir => {
                again.entry(node).or_default().extend(given);
                continue;
            }
            answered => answered?,
        };
        for (hint, refusal) in given.into_iter().zip(refusals) {
            match refusal.as_deref() {
                None => taken += 1,
                Some(NOT_A_REPLICA) => return Err(Undelivered::Layout),
                Some(BELOW_SAFE_POINT) => Counters::add(&hints.counters.dropped, 1),
                Some(_) => again.entry(node).or_default().push(hint),
            }
        }
    }
    Counters::add(&hints.counters.delivered, taken);
    let is_refused = again.contains_key(&target);
    if !hints.append(again).await {
        return Err(Undelivered::Trouble);
    }
    Ok(taken > 0 || !is_refused)
}

/// Who is to get which hints of a batch.
fn by_node(
    hints: &Hints,
    layout: &Layout,
    target: NodeId,
    batch: &Batch,
) -> BTreeMap<NodeId, Vec<Hint>> {
    let oldest_ms = hints.oldest_ms();
    let mut by_node: BTreeMap<NodeId, Vec<Hint>> = BTreeMap::new();
    for hint in &batch.hints {
        let tenant = hints.parts.store.tenant_by_id(TenantId(hint.row.tenant_id));
        let Some(tenant) = tenant.ok().filter(|_| hint.created_ms >= oldest_ms) else {
            Counters::add(&hints.counters.dropped, 1);
            continue;
        };
        let partition = layout.partition_of(tenant.token(&hint.row.key));
        let sets = layout.sets_of(partition, &tenant);
        let to = if sets.contains(target) { vec![target] } else { sets.members() };
        for node in to {
            by_node.entry(node).or_default().push(hint.clone());
        }
    }
    by_node
}

/// Sends rows to a node; the reason of each refusal.
async fn send(
    hints: &Arc<Hints>,
    node: NodeId,
    epoch: u64,
    rows: Vec<proto::RowState>,
) -> Result<Vec<Option<String>>, Undelivered> {
    let cause = proto::RowsCause::Hint.into();
    let given = rows.len();
    let request = Request::WriteRows(proto::WriteRows { rows, cause });
    let peers = &hints.parts.peers;
    let reply = peers.call(node, Class::Background, epoch, request, TIMEOUT).await;
    match reply.and_then(|reply| reply.row_results(given)) {
        Ok(results) => {
            let reason = |one: proto::RowResult| one.failure.map(|failure| failure.reason);
            Ok(results.into_iter().map(reason).collect())
        }
        Err(PeerError::StaleLayout { epoch }) => {
            // What it cannot learn now it learns from the next node that says so.
            let _ = hints.parts.fence.learn(node, epoch, TIMEOUT).await;
            Err(Undelivered::Layout)
        }
        _ => Err(Undelivered::Trouble),
    }
}

/// Joins rows that this node has come to own itself.
async fn join_here(
    hints: &Arc<Hints>,
    epoch: u64,
    rows: Vec<proto::RowState>,
) -> Result<Vec<Option<String>>, Undelivered> {
    let rows: Vec<_> =
        rows.into_iter().map(|row| (TenantId(row.tenant_id), row.key, row.row)).collect();
    let (done, joined) = oneshot::channel();
    {
        let Ok(_pass) = hints.parts.fence.enter(epoch) else { return Err(Undelivered::Layout) };
        hints.parts.store.submit_rows(
            &rows,
            Box::new(move |results| {
                let _ = done.send(results);
            }),
        );
    }
    let results = joined.await.map_err(|_| Undelivered::Trouble)?;
    let reason = |one: store::Result<()>| one.err().map(|error| error.reason().to_owned());
    Ok(results.into_iter().map(reason).collect())
}
