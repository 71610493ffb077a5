//! `ReplicateData`: rows of this node to another member, page by page, each page told of.
//!
//! The caller carries the work: when it is gone, or the node stops, the copy ends behind the page
//! at hand, and the cursor of the last answer goes on from there.
//!
//! | bytes of a cursor | what |
//! |---|---|
//! | 1 | format, 1 |
//! | 8 | checksum of the rest, keyed by the request, little endian |
//! | rest | the engine key to go on from |

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};
use xxhash_rust::xxh3::xxh3_64;

use super::deadline::Deadline;
use super::server::Core;
use super::status::Problem;
use crate::cluster::NodeId;
use crate::cluster::layout::MemberState;
use crate::proto;
use crate::replication::migration::{Error, Migration, Page, Selection};
use crate::store::{TokenRange, cursor};

/// Answers read ahead of the caller.
const AHEAD: usize = 2;

/// The answers of a copy.
pub(super) type Pages = ReceiverStream<Result<proto::ReplicateDataProgress, Status>>;

/// Begins a copy. What cannot be is refused here, with a status of the call.
pub(super) fn stream(
    core: &Arc<Core>,
    request: &proto::ReplicateDataRequest,
    deadline: Deadline,
) -> Result<Pages, Problem> {
    let selection = Arc::new(selection_of(core, request)?);
    let to = receiver_of(core, &request.to)?;
    let seed = scope_of(to, &selection);
    let from = match request.cursor.as_ref() {
        [] => Vec::new(),
        _ if selection.keys.is_some() => {
            return Err(Problem::invalid("cursor", "keys are copied at one go"));
        }
        cursor => cursor::decode(cursor, seed).map_err(|error| Problem::of_read(&error))?.to_vec(),
    };
    let cluster = &core.cluster;
    let migration = Migration {
        store: Arc::clone(&core.store),
        peers: Arc::clone(&cluster.peers),
        layout: cluster.layout.clone(),
        work: core.work.clone(),
        to,
        selection,
    };
    tracing::info!(%to, "copying rows at an operator's word");
    let (pages, receiver) = mpsc::channel(AHEAD);
    let work = Copying { core: Arc::clone(core), migration, seed, rate: request.bytes_per_second };
    core.tasks.spawn(work.run(from, deadline, pages));
    Ok(ReceiverStream::new(receiver))
}

/// A copy under way.
struct Copying {
    core: Arc<Core>,
    migration: Migration,
    seed: u64,
    /// Bytes a second; 0: no limit.
    rate: u64,
}

impl Copying {
    async fn run(
        self,
        mut from: Vec<u8>,
        deadline: Deadline,
        pages: mpsc::Sender<Result<proto::ReplicateDataProgress, Status>>,
    ) {
        loop {
            let begun = Instant::now();
            let page = tokio::select! {
                page = self.migration.page(&from) => page.map_err(|error| problem_of(&error)),
                () = self.core.stopping.cancelled() => Err(problem_of(&Error::Stopping)),
                () = pages.closed() => return,
            };
            let (next, bytes) = match &page {
                Ok(page) => (page.next.clone(), page.bytes),
                Err(_) => (None, 0),
            };
            let item = page.map(|page| self.progress(page)).map_err(Status::from);
            let sent = deadline.limit(pages.send(item)).await;
            let Some(next) = next.filter(|_| matches!(sent, Some(Ok(())))) else { return };
            from = next;
            if self.rate > 0 {
                let least = Duration::from_secs_f64(bytes as f64 / self.rate as f64);
                tokio::select! {
                    () = tokio::time::sleep_until(begun + least) => {}
                    () = self.core.stopping.cancelled() => {}
                    () = pages.closed() => return,
                }
            }
        }
    }

    fn progress(&self, page: Page) -> proto::ReplicateDataProgress {
        let tokens = self.migration.selection.tokens;
        let done = page.next.as_deref().map_or(1.0, |next| share_of(next, tokens));
        proto::ReplicateDataProgress {
            keys: page.keys,
            sent: page.sent,
            bytes: page.bytes,
            newer: page.newer,
            elsewhere: page.elsewhere,
            refused: page.refused,
            refusal: page.refusal,
            digest: page.digest,
            digest_there: page.digest_there,
            done,
            cursor: page
                .next
                .map(|next| cursor::encode(&next, self.seed).into())
                .unwrap_or_default(),
        }
    }
}

/// Which rows a request means.
fn selection_of(core: &Core, request: &proto::ReplicateDataRequest) -> Result<Selection, Problem> {
    let tenant = match request.tenant.as_str() {
        "" => None,
        name => {
            let tenant = core.store.tenant(name).map_err(|error| Problem::of_read(&error))?;
            Some(tenant.id)
        }
    };
    let tokens = TokenRange {
        start: request.token_start.unwrap_or(0),
        end_inclusive: request.token_end.unwrap_or(u64::MAX),
    };
    if tokens.start > tokens.end_inclusive {
        return Err(Problem::invalid("token_start", "is after token_end"));
    }
    core.check_batch(request.keys.len())?;
    let keys = (!request.keys.is_empty()).then(|| request.keys.clone());
    if keys.is_some() && tenant.is_none() {
        return Err(Problem::invalid("tenant", "keys need their tenant"));
    }
    let has_tokens = request.token_start.is_some() || request.token_end.is_some();
    if keys.is_some() && (has_tokens || !request.prefix.is_empty()) {
        return Err(Problem::invalid("keys", "are not restricted further"));
    }
    if keys.iter().flatten().any(Bytes::is_empty) {
        return Err(Problem::invalid("keys", "one of them is empty"));
    }
    Ok(Selection { tenant, prefix: request.prefix.to_vec(), tokens, keys })
}

/// The member that is to have the rows.
fn receiver_of(core: &Core, named: &str) -> Result<NodeId, Problem> {
    let layout = Arc::clone(&core.cluster.layout.borrow());
    let node = core.cluster.member_of(layout.document(), named)?;
    if node == core.cluster.node {
        let message = "the receiver is the node that has the rows";
        return Err(Problem::new(Code::InvalidArgument, "SAME_NODE", message));
    }
    let state = layout.document().members.get(&node).map(|member| member.state);
    if state.is_none_or(MemberState::is_gone) {
        let message = format!("{named:?} has left the cluster");
        return Err(Problem::new(Code::FailedPrecondition, "NOT_A_MEMBER", message));
    }
    Ok(node)
}

/// A hash of what must stay the same from call to call.
fn scope_of(to: NodeId, selection: &Selection) -> u64 {
    let mut scope = b"copy".to_vec();
    scope.extend_from_slice(&to.to_bytes());
    scope.extend_from_slice(&selection.tenant.map_or(0, |tenant| tenant.0).to_le_bytes());
    scope.extend_from_slice(&selection.tokens.start.to_le_bytes());
    scope.extend_from_slice(&selection.tokens.end_inclusive.to_le_bytes());
    scope.extend_from_slice(&selection.prefix);
    xxh3_64(&scope)
}

/// How much of a range of tokens lies before an engine key, 0 to 1.
fn share_of(engine_key: &[u8], tokens: TokenRange) -> f64 {
    let Some(token) = engine_key.first_chunk::<8>() else { return 0.0 };
    let passed = u64::from_be_bytes(*token).saturating_sub(tokens.start);
    let all = tokens.end_inclusive - tokens.start;
    if all == 0 { 1.0 } else { (passed as f64 / all as f64).min(1.0) }
}

fn problem_of(error: &Error) -> Problem {
    let code = Code::Unavailable;
    match error {
        Error::Store(error) => Problem::of_read(error),
        Error::Peer(error) => Problem {
            retry_after: Some(Duration::from_secs(1)),
            ..Problem::new(code, "RECEIVER_UNAVAILABLE", error.to_string())
        },
        Error::Refused { reason, message } => Problem {
            retry_after: Some(Duration::from_secs(1)),
            ..Problem::new(code, "RECEIVER_REFUSES", format!("{reason}: {message}"))
        },
        Error::Stopping => Problem::new(code, "STOPPING", error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(prefix: &[u8]) -> Selection {
        let tokens = TokenRange { start: 0, end_inclusive: u64::MAX };
        Selection { tenant: None, prefix: prefix.to_vec(), tokens, keys: None }
    }

    #[test]
    fn a_cursor_is_of_one_receiver_and_one_selection() {
        let scope = |to, prefix: &[u8]| scope_of(NodeId(to), &selection(prefix));
        assert_eq!(scope(1, b"a"), scope(1, b"a"));
        assert!(scope(1, b"a") != scope(2, b"a") && scope(1, b"a") != scope(1, b"b"));
    }

    #[test]
    fn the_share_that_is_done_grows_with_the_token() {
        let key = |token: u64| [&token.to_be_bytes()[..], b"tenant"].concat();
        let tokens = TokenRange { start: 100, end_inclusive: 300 };
        assert_eq!(share_of(&key(100), tokens), 0.0);
        assert_eq!(share_of(&key(200), tokens), 0.5);
        assert_eq!(share_of(&key(900), tokens), 1.0);
        assert_eq!(share_of(b"", tokens), 0.0);
        assert_eq!(share_of(&key(5), TokenRange { start: 5, end_inclusive: 5 }), 1.0);
    }
}
