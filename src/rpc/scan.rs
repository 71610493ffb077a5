//! `Scan`, `GetKeyRange`, and `StreamKeys` of a tenant: pages of the whole cluster.
//!
//! A scan holds no thread and no snapshot between two pages: the next page is read only when the
//! client has taken the one before the last. It is not a snapshot of one moment: each row is whole,
//! and rows written behind the cursor meanwhile are not seen.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::convert::{bytes_of, level_of, scan_row};
use super::deadline::Deadline;
use super::server::Core;
use super::status::Problem;
use crate::proto;
use crate::replication::{ScannedRow, Seen, Walk, WalkPage, Want};
use crate::store::{PageBounds, ScanRequest};

/// Rows of a page at most.
const PAGE_ROWS: usize = 1000;
/// A page ends with the row that reaches this many bytes.
const PAGE_BYTES: usize = 256 << 10;
/// Pages read ahead of the client.
const PAGES_AHEAD: usize = 2;

/// The answers of a stream of pages.
pub(super) type Pages<T> = ReceiverStream<Result<T, Status>>;

/// Begins a scan.
pub(super) async fn stream(
    core: Arc<Core>,
    request: proto::ScanRequest,
    deadline: Deadline,
) -> Result<Pages<proto::ScanResponse>, Problem> {
    let scan = ScanRequest::from(&request);
    let want = if request.keys_only { Want::Keys } else { Want::Values };
    let walk = walk(&core, &request.tenant, &scan, want, request.consistency)?;
    let rows_left = if request.limit == 0 { u64::MAX } else { request.limit };
    let source = Source { walk, rows_left, bytes: PAGE_BYTES };
    let answer = |page: WalkPage| proto::ScanResponse {
        rows: page.rows.into_iter().map(|row| shown(row.key, row.seen)).collect(),
        cursor: page.cursor.unwrap_or_default().into(),
    };
    pages(core, source, deadline, answer).await
}

/// Begins a stream of a tenant's rows as they are stored.
pub(super) async fn stream_raw(
    core: Arc<Core>,
    request: proto::StreamKeysRequest,
    bytes: usize,
    deadline: Deadline,
) -> Result<Pages<proto::StreamKeysResponse>, Problem> {
    let scan = ScanRequest::from(&request);
    let walk = walk(&core, &request.tenant, &scan, Want::Raw, request.consistency)?;
    let source = Source { walk, rows_left: u64::MAX, bytes };
    let tenant = core.store.tenant(&request.tenant).map_err(|error| Problem::of_read(&error))?;
    let row = move |row: ScannedRow| match row.seen {
        Seen::Raw(raw) => Some(proto::RowState { tenant_id: tenant.id.0, key: row.key, row: raw }),
        Seen::Row(_) | Seen::Key => None,
    };
    let answer = move |page: WalkPage| proto::StreamKeysResponse {
        rows: page.rows.into_iter().filter_map(&row).collect(),
        cursor: page.cursor.unwrap_or_default().into(),
    };
    pages(core, source, deadline, answer).await
}

/// One page of keys.
pub(super) async fn key_range(
    core: &Arc<Core>,
    request: proto::GetKeyRangeRequest,
    deadline: Deadline,
) -> Result<proto::GetKeyRangeResponse, Problem> {
    let scan = ScanRequest::from(&request);
    let walk = walk(core, &request.tenant, &scan, Want::Keys, request.consistency)?;
    let rows_left = if request.limit == 0 { u64::MAX } else { request.limit.into() };
    let mut source = Source { walk, rows_left, bytes: PAGE_BYTES };
    let page = source.next(core, deadline).await?;
    Ok(proto::GetKeyRangeResponse {
        keys: page.rows.into_iter().map(|row| row.key).collect(),
        cursor: page.cursor.unwrap_or_default().into(),
    })
}

fn walk(
    core: &Core,
    tenant: &str,
    scan: &ScanRequest,
    want: Want,
    consistency: i32,
) -> Result<Walk, Problem> {
    let level = level_of(consistency)?;
    let walk = core.cluster.coordinator.walk(tenant, scan, want, level);
    walk.map_err(|error| Problem::of_read(&error))
}

fn shown(key: bytes::Bytes, seen: Seen) -> proto::ScanRow {
    match seen {
        Seen::Row(row) => scan_row(key, row),
        Seen::Key | Seen::Raw(_) => proto::ScanRow { key, ..Default::default() },
    }
}

/// A walk, and how much of it is still wanted.
struct Source {
    walk: Walk,
    rows_left: u64,
    bytes: usize,
}

impl Source {
    async fn next(&mut self, core: &Core, deadline: Deadline) -> Result<WalkPage, Problem> {
        let _place = core.scans.enter(deadline).await?;
        let rows = usize::try_from(self.rows_left).unwrap_or(usize::MAX).min(PAGE_ROWS);
        let bounds = PageBounds { rows, bytes: self.bytes };
        let page = self.walk.page(bounds, core.instant(deadline)).await;
        let page = page.map_err(|error| Problem::of_read(&error))?;
        self.rows_left = self.rows_left.saturating_sub(page.rows.len() as u64);
        core.metrics.bytes_sent.inc_by(page.rows.iter().map(bytes_shown).sum());
        Ok(page)
    }
}

fn bytes_shown(row: &ScannedRow) -> u64 {
    let with_it = match &row.seen {
        Seen::Row(seen) => bytes_of(seen),
        Seen::Key => 0,
        Seen::Raw(raw) => raw.len() as u64,
    };
    row.key.len() as u64 + with_it
}

/// Gives out pages as answers. The first one is read here, so that a request that cannot be served
/// is refused with a status of the call.
async fn pages<T: Send + 'static>(
    core: Arc<Core>,
    mut source: Source,
    deadline: Deadline,
    answer: impl Fn(WalkPage) -> T + Send + 'static,
) -> Result<Pages<T>, Problem> {
    let first = source.next(&core, deadline).await?;
    let (pages, receiver) = mpsc::channel(PAGES_AHEAD);
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        let mut next = Ok(first);
        loop {
            let (last, item) = match next {
                Ok(page) => (page.cursor.is_none() || source.rows_left == 0, Ok(answer(page))),
                Err(problem) => (true, Err(Status::from(problem))),
            };
            // Waits while the client has not taken what was read; ends when it is gone.
            let sent = deadline.limit(pages.send(item)).await;
            if last || !matches!(sent, Some(Ok(()))) {
                return;
            }
            next = tokio::select! {
                next = source.next(&core, deadline) => next,
                () = pages.closed() => return,
                () = core.stopping.cancelled() => {
                    Err(Problem::new(Code::Unavailable, "STOPPING", "the node is stopping"))
                }
            };
        }
    });
    Ok(ReceiverStream::new(receiver))
}
