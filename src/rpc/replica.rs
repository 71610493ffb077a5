//! The `Replica` service, on the peer port: whole rows in and out.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::cluster::not_alone;
use super::deadline::Deadline;
use super::key_value::admit;
use super::scan;
use super::server::Core;
use super::status::Problem;
use crate::proto;
use crate::proto::replica_server::Replica;
use crate::replication::replica::{Rows, submit_rows};
use crate::store::{self, EngineKey, Outcome, TenantId, TokenRange};

/// Bytes of rows in an answer when the caller names no number.
const BATCH_BYTES: usize = 512 << 10;
/// Most bytes of rows in an answer, before its last row.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// Answers read ahead of the caller.
const AHEAD: usize = 2;

/// The service.
#[derive(Clone)]
pub(super) struct ReplicaService(pub Arc<Core>);

#[tonic::async_trait]
impl Replica for ReplicaService {
    type StreamKeysStream = scan::Pages<proto::StreamKeysResponse>;

    async fn replicate(
        &self,
        request: Request<proto::ReplicateRequest>,
    ) -> Result<Response<proto::ReplicateResponse>, Status> {
        let deadline = Deadline::of(&request);
        let results = join(&self.0, request.into_inner().rows, deadline).await?;
        self.0.metrics.rows_replicated.inc_by(joined(&results));
        Ok(Response::new(proto::ReplicateResponse { results }))
    }

    async fn repair(
        &self,
        request: Request<proto::RepairRequest>,
    ) -> Result<Response<proto::RepairResponse>, Status> {
        let deadline = Deadline::of(&request);
        let results = join(&self.0, request.into_inner().rows, deadline).await?;
        self.0.metrics.rows_repaired.inc_by(joined(&results));
        Ok(Response::new(proto::RepairResponse { results }))
    }

    async fn stream_keys(
        &self,
        request: Request<proto::StreamKeysRequest>,
    ) -> Result<Response<Self::StreamKeysStream>, Status> {
        let deadline = Deadline::of(&request);
        let request = request.into_inner();
        let bytes_max = match request.batch_bytes as usize {
            0 => BATCH_BYTES,
            asked => asked.min(BATCH_BYTES_MAX),
        };
        if !request.tenant.is_empty() {
            let core = Arc::clone(&self.0);
            let stream = scan::stream_raw(core, request, bytes_max, deadline).await?;
            return Ok(Response::new(stream));
        }
        if request.token_start > request.token_end {
            return Err(Problem::invalid("token_start", "is after token_end").into());
        }
        let core = Arc::clone(&self.0);
        let range = TokenRange { start: request.token_start, end_inclusive: request.token_end };
        let cursor = (!request.cursor.is_empty()).then(|| request.cursor.to_vec());
        let first = batch(&core, range, cursor, bytes_max, deadline).await?;
        let (batches, receiver) = mpsc::channel(AHEAD);
        let tasks = core.tasks.clone();
        tasks.spawn(async move {
            let mut next = Ok(first);
            loop {
                let cursor = next.as_ref().ok().map(|one| one.cursor.clone()).unwrap_or_default();
                let sent = deadline.limit(batches.send(next.map_err(Status::from))).await;
                if cursor.is_empty() || !matches!(sent, Some(Ok(()))) {
                    return;
                }
                let cursor = Some(cursor.to_vec());
                next = tokio::select! {
                    next = batch(&core, range, cursor, bytes_max, deadline) => next,
                    () = core.stopping.cancelled() => {
                        Err(Problem::new(Code::Unavailable, "STOPPING", "the node is stopping"))
                    }
                };
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Joins rows at a node that is the only owner, and waits until they are durable.
///
/// Nothing stands between the look at the layout and the join but the fence: who joins the cluster
/// meanwhile was given all that was taken here before, and nothing is taken after.
async fn join(
    core: &Arc<Core>,
    rows: Vec<proto::RowState>,
    deadline: Deadline,
) -> Result<Vec<proto::RowResult>, Problem> {
    let refused = |problem: Problem| problem.of_write(Outcome::NotApplied);
    core.check_batch(rows.len()).map_err(refused)?;
    admit(core, deadline).await?;
    let epoch = core.cluster.check_alone()?;
    let sent = rows.len();
    let rows: Rows =
        rows.into_iter().map(|row| (TenantId(row.tenant_id), row.key, row.row)).collect();
    let parts = Arc::clone(core);
    let submitting = core.blocking.run(deadline, move || {
        submit_rows(&*parts.cluster.fence, epoch, &parts.store, &rows, None)
    });
    // Those that are taken before an error of the wait are harmless to repeat.
    let unknown = |problem: Problem| problem.of_write(Outcome::Unknown);
    let joined = submitting.await.map_err(|problem| match &*problem.reason {
        "TOO_MANY_REQUESTS" => refused(problem),
        _ => unknown(problem),
    })?;
    let joined = joined.map_err(|_| not_alone())?;
    let late = || unknown(Problem::deadline("the rows are not durable in time"));
    let results = deadline.limit(joined).await.ok_or_else(late)?;
    let results = results.map_err(|_| unknown(Problem::from(&store::Error::Closed)))?;
    debug_assert_eq!(results.len(), sent, "one result a row");
    Ok(results
        .into_iter()
        .map(|result| proto::RowResult {
            failure: result.err().map(|error| Problem::from(&error).into()),
        })
        .collect())
}

fn joined(results: &[proto::RowResult]) -> u64 {
    results.iter().filter(|result| result.failure.is_none()).count() as u64
}

async fn batch(
    core: &Arc<Core>,
    range: TokenRange,
    cursor: Option<Vec<u8>>,
    bytes_max: usize,
    deadline: Deadline,
) -> Result<proto::StreamKeysResponse, Problem> {
    let store = Arc::clone(&core.store);
    let page = core.blocking.run(deadline, move || store.rows_by_token(range, cursor, bytes_max));
    let page = page.await?.map_err(|error| Problem::of_read(&error))?;
    let rows = page.rows.into_iter().map(|(engine_key, row)| {
        let at = EngineKey::decode(&engine_key).map_err(|error| Problem::of_read(&error))?;
        Ok(proto::RowState { tenant_id: at.tenant.0, key: at.key.to_vec().into(), row: row.into() })
    });
    Ok(proto::StreamKeysResponse {
        rows: rows.collect::<Result<_, Problem>>()?,
        cursor: page.cursor.unwrap_or_default().into(),
    })
}
