//! `Scan` and `GetKeyRange`: pages of the store, read on the blocking pool.
//!
//! It reads the rows of this node: at ONE, and only on a node that holds all partitions of the
//! tenant. Another one refuses, for what it would show is not all.
//!
//! A scan holds no thread and no snapshot between two pages: the next page is read only when the
//! client has taken the one before the last. It is not a snapshot of one moment: each row is whole,
//! and rows written behind the cursor meanwhile are not seen.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::convert::{bytes_of, scan_row};
use super::deadline::Deadline;
use super::server::Core;
use super::status::Problem;
use crate::proto;
use crate::store::{ScanPage, ScanRequest};

/// Rows of a page at most.
const PAGE_ROWS: usize = 1000;
/// A page ends with the row that reaches this many bytes.
const PAGE_BYTES: usize = 256 << 10;
/// Pages read ahead of the client.
const PAGES_AHEAD: usize = 2;

/// The answers of a scan.
pub(super) type Pages = ReceiverStream<Result<proto::ScanResponse, Status>>;

/// Begins a scan. Its first page is read here, so that a request that cannot be served is refused
/// with a status of the call.
pub(super) async fn stream(
    core: Arc<Core>,
    request: proto::ScanRequest,
    deadline: Deadline,
) -> Result<Pages, Problem> {
    let mut scan = ScanRequest::from(&request);
    let mut left = match request.limit {
        0 => u64::MAX,
        limit => limit,
    };
    let first = page(&core, &request.tenant, &mut scan, &mut left, deadline).await?;
    let (pages, receiver) = mpsc::channel(PAGES_AHEAD);
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        let mut next = Ok(first);
        loop {
            let (last, item) = match next {
                Ok(response) => (response.cursor.is_empty() || left == 0, Ok(response)),
                Err(problem) => (true, Err(Status::from(problem))),
            };
            // Waits while the client has not taken what was read; ends when it is gone.
            let sent = deadline.limit(pages.send(item)).await;
            if last || !matches!(sent, Some(Ok(()))) {
                return;
            }
            next = tokio::select! {
                next = page(&core, &request.tenant, &mut scan, &mut left, deadline) => next,
                () = core.stopping.cancelled() => {
                    Err(Problem::new(Code::Unavailable, "STOPPING", "the node is stopping"))
                }
            };
        }
    });
    Ok(ReceiverStream::new(receiver))
}

/// Reads the next page and moves the scan behind it.
async fn page(
    core: &Arc<Core>,
    tenant: &str,
    scan: &mut ScanRequest,
    left: &mut u64,
    deadline: Deadline,
) -> Result<proto::ScanResponse, Problem> {
    scan.limit = usize::try_from(*left).unwrap_or(usize::MAX).min(PAGE_ROWS);
    scan.bytes_max = PAGE_BYTES;
    let found = read(core, tenant, scan.clone(), deadline).await?;
    *left -= (found.rows.len() as u64).min(*left);
    scan.cursor = found.cursor.clone();
    core.metrics.bytes_sent.inc_by(found.rows.iter().map(|(_, row)| bytes_of(row)).sum());
    let keys_only = scan.keys_only;
    Ok(proto::ScanResponse {
        rows: found.rows.into_iter().map(|(key, row)| scan_row(key, row, keys_only)).collect(),
        cursor: found.cursor.unwrap_or_default().into(),
    })
}

/// One page of keys.
pub(super) async fn key_range(
    core: &Arc<Core>,
    request: proto::GetKeyRangeRequest,
    deadline: Deadline,
) -> Result<proto::GetKeyRangeResponse, Problem> {
    let mut scan = ScanRequest::from(&request);
    scan.limit = match request.limit as usize {
        0 => PAGE_ROWS,
        limit => limit.min(PAGE_ROWS),
    };
    scan.bytes_max = PAGE_BYTES;
    let found = read(core, &request.tenant, scan, deadline).await?;
    Ok(proto::GetKeyRangeResponse {
        keys: found.rows.into_iter().map(|(key, _)| key.into()).collect(),
        cursor: found.cursor.unwrap_or_default().into(),
    })
}

async fn read(
    core: &Arc<Core>,
    tenant: &str,
    scan: ScanRequest,
    deadline: Deadline,
) -> Result<ScanPage, Problem> {
    let epoch = core.cluster.check_whole(tenant)?;
    let (store, tenant) = (Arc::clone(&core.store), tenant.to_owned());
    let page = core.blocking.run(deadline, move || store.scan(&tenant, scan)).await?;
    if core.cluster.layout.borrow().epoch() != epoch {
        return Err(Problem::new(Code::Unavailable, "STALE_LAYOUT", "the layout has changed"));
    }
    page.map_err(|error| Problem::of_read(&error))
}
