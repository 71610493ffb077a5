//! The `KeyValue` service.
//!
//! # Invariants
//! 1. A write is submitted exactly once, and only after its admission; from then on its call ends
//!    with the store's answer or with outcome `unknown`.
//! 2. What the store answers is counted even if the call is gone.
//! 3. The answer to a batch of reads has the bound in bytes that a batch has on its way in, but for
//!    its last row; what is over is told to be asked for again. The first row is always told.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::oneshot;
use tonic::{Code, Request, Response, Status, Streaming};

use super::convert::{bytes_of, level_of};
use super::deadline::Deadline;
use super::limits::REFUSE_AT;
use super::metrics::Metrics;
use super::pipeline::{self, Answers};
use super::scan;
use super::server::Core;
use super::status::Problem;
use crate::engine::Position;
use crate::proto;
use crate::proto::key_value_server::KeyValue;
use crate::replication::reason::REPLY_TOO_LARGE;
use crate::replication::{self, KeyRead, Level, ReadOptions, WriteOptions, settled};
use crate::store::{self, Early, Mutation, Outcome, Written};

/// Keys of a batch that are read before other calls get their turn on the worker.
const READ_CHUNK: usize = 64;
/// Keys of a batch that are asked of other replicas in one go, while it is not known how large
/// their rows are: all of them are in memory before one is left out.
const ASK_FIRST: usize = 128;
/// The same, later.
const ASK_CHUNK: usize = 256;

/// When that which had no room in an answer may be asked for.
const AT_ONCE: Duration = Duration::from_millis(1);

/// The service.
#[derive(Clone)]
pub(super) struct KeyValueService(pub Arc<Core>);

#[tonic::async_trait]
impl KeyValue for KeyValueService {
    type PipelineStream = Answers;
    type ScanStream = scan::Pages<proto::ScanResponse>;

    async fn write(
        &self,
        request: Request<proto::WriteRequest>,
    ) -> Result<Response<proto::WriteResponse>, Status> {
        let deadline = Deadline::of(&request);
        let mut request = request.into_inner();
        let tenant = std::mem::take(&mut request.tenant);
        let consistency = request.consistency;
        let written = write_one(&self.0, deadline, consistency, tenant, request.into()).await?;
        Ok(Response::new(written.into()))
    }

    async fn delete(
        &self,
        request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        let deadline = Deadline::of(&request);
        let mut request = request.into_inner();
        let tenant = std::mem::take(&mut request.tenant);
        let consistency = request.consistency;
        let written = write_one(&self.0, deadline, consistency, tenant, request.into()).await?;
        Ok(Response::new(written.into()))
    }

    async fn read(
        &self,
        request: Request<proto::ReadRequest>,
    ) -> Result<Response<proto::ReadResponse>, Status> {
        let deadline = Deadline::of(&request);
        Ok(Response::new(read_one(&self.0, deadline, &request.into_inner()).await?))
    }

    async fn batch_write(
        &self,
        request: Request<proto::BatchWriteRequest>,
    ) -> Result<Response<proto::BatchWriteResponse>, Status> {
        let deadline = Deadline::of(&request);
        let results = batch_write(&self.0, deadline, request.into_inner()).await?;
        Ok(Response::new(proto::BatchWriteResponse { results }))
    }

    async fn batch_read(
        &self,
        request: Request<proto::BatchReadRequest>,
    ) -> Result<Response<proto::BatchReadResponse>, Status> {
        let deadline = Deadline::of(&request);
        let results = batch_read(&self.0, deadline, request.into_inner()).await?;
        Ok(Response::new(proto::BatchReadResponse { results }))
    }

    async fn pipeline(
        &self,
        request: Request<Streaming<proto::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let deadline = Deadline::of(&request);
        let core = Arc::clone(&self.0);
        let place = core.pipelines.enter(deadline).await?;
        let (outlet, answers) = pipeline::channel(core.options.pipeline_in_flight_max);
        let tasks = core.tasks.clone();
        tasks.spawn(async move {
            let _place = place;
            pipeline::run(&core, request.into_inner(), deadline, outlet).await;
        });
        Ok(Response::new(answers))
    }

    async fn scan(
        &self,
        request: Request<proto::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        let deadline = Deadline::of(&request);
        let stream = scan::stream(Arc::clone(&self.0), request.into_inner(), deadline).await?;
        Ok(Response::new(stream))
    }

    async fn get_key_range(
        &self,
        request: Request<proto::GetKeyRangeRequest>,
    ) -> Result<Response<proto::GetKeyRangeResponse>, Status> {
        let deadline = Deadline::of(&request);
        let page = scan::key_range(&self.0, request.into_inner(), deadline).await?;
        Ok(Response::new(page))
    }

    async fn topology(
        &self,
        request: Request<proto::TopologyRequest>,
    ) -> Result<Response<proto::TopologyResponse>, Status> {
        Ok(Response::new(self.0.cluster.topology(&request.into_inner().tenant)?))
    }
}

/// Reads a row.
pub(super) async fn read_one(
    core: &Core,
    deadline: Deadline,
    request: &proto::ReadRequest,
) -> Result<proto::ReadResponse, Problem> {
    let level = level_of(request.consistency)?;
    if let Some(row) = read_here(core, level, request) {
        return answer_early(core, deadline, request.key.len(), row).await;
    }
    let row = read_by_others(core, deadline, level, request).await;
    answer_of(core, request.key.len(), row)
}

/// Reads a row with the help of other replicas.
pub(super) async fn read_by_others(
    core: &Core,
    deadline: Deadline,
    level: Level,
    request: &proto::ReadRequest,
) -> replication::Result<store::ReadRow> {
    let options = ReadOptions { level, deadline: core.instant(deadline) };
    let read = key_read(request.key.to_vec(), &request.min_context);
    let rows = core.cluster.coordinator.read(&request.tenant, vec![read], options).await;
    rows.into_iter().next().unwrap_or_else(|| Err(store::Error::Closed.into()))
}

/// Reads a row on this thread, where that is all it takes. It is told when it is durable.
pub(super) fn read_here(
    core: &Core,
    level: Level,
    request: &proto::ReadRequest,
) -> Option<Early<replication::Result<store::ReadRow>>> {
    let read = key_read(request.key.to_vec(), &request.min_context);
    core.cluster.coordinator.read_here(&request.tenant, &read, level)
}

/// The answer with a row that was read here, once it is durable.
pub(super) async fn answer_early(
    core: &Core,
    deadline: Deadline,
    key_bytes: usize,
    row: Early<replication::Result<store::ReadRow>>,
) -> Result<proto::ReadResponse, Problem> {
    let row = durable_within(core, deadline, row).await?;
    answer_of(core, key_bytes, row)
}

/// What was found here, once it is durable.
async fn durable_within<T>(core: &Core, deadline: Deadline, early: Early<T>) -> Result<T, Problem> {
    if early.upto == Position::ZERO {
        return Ok(early.found);
    }
    let deadline = deadline.within(core.options.deadline_max);
    match deadline.limit(settled(&core.store, early)).await {
        Some(Ok(found)) => Ok(found),
        Some(Err(error)) => Err(Problem::of_read(&error)),
        None => Err(Problem::deadline("what was read is not durable yet")),
    }
}

pub(super) fn answer_of(
    core: &Core,
    key_bytes: usize,
    row: replication::Result<store::ReadRow>,
) -> Result<proto::ReadResponse, Problem> {
    let row = row.map_err(|error| Problem::of_read(&error))?;
    core.metrics.bytes_received.inc_by(key_bytes as u64);
    core.metrics.bytes_sent.inc_by(bytes_of(&row));
    Ok(row.into())
}

fn key_read(key: Vec<u8>, min_context: &[u8]) -> KeyRead {
    let min_context = (!min_context.is_empty()).then(|| min_context.to_vec());
    KeyRead { key, min_context }
}

async fn batch_read(
    core: &Core,
    deadline: Deadline,
    request: proto::BatchReadRequest,
) -> Result<Vec<proto::BatchReadResult>, Problem> {
    core.check_batch(request.keys.len())?;
    core.store.tenant(&request.tenant).map_err(|error| Problem::of_read(&error))?;
    if !request.min_contexts.is_empty() && request.min_contexts.len() != request.keys.len() {
        return Err(Problem::invalid("min_contexts", "must be none, or one for each key"));
    }
    let level = level_of(request.consistency)?;
    core.metrics.bytes_received.inc_by(request.keys.iter().map(|key| key.len() as u64).sum());
    let options = ReadOptions { level, deadline: core.instant(deadline) };
    let coordinator = &core.cluster.coordinator;
    let no_context = Bytes::new();
    let reads = request.keys.iter().enumerate().map(|(at, key)| {
        key_read(key.to_vec(), request.min_contexts.get(at).unwrap_or(&no_context))
    });
    let reads: Vec<KeyRead> = reads.collect();
    let mut answer = BatchAnswer::new(core, reads.len());
    while answer.results.len() < reads.len() && !answer.is_full() {
        if deadline.passed() {
            return Err(Problem::deadline("the batch is not read to its end"));
        }
        let left = &reads[answer.results.len()..];
        let some = left.len().min(READ_CHUNK).min(answer.room());
        let rows = match coordinator.read_batch_here(&request.tenant, &left[..some], level) {
            Some(rows) => durable_within(core, deadline, rows).await?,
            // It takes others: a message to each.
            None => {
                let some = left.len().min(ASK_CHUNK).min(answer.room());
                coordinator.read(&request.tenant, left[..some].to_vec(), options).await
            }
        };
        rows.into_iter().for_each(|row| answer.add(core, row));
        tokio::task::yield_now().await;
    }
    Ok(answer.finish(reads.len()))
}

/// The answer to a batch of reads in the making.
struct BatchAnswer {
    results: Vec<proto::BatchReadResult>,
    bytes: usize,
    bytes_max: usize,
    /// Of the items so far.
    largest: usize,
}

impl BatchAnswer {
    fn new(core: &Core, items: usize) -> Self {
        let bytes_max = core.store.limits().batch_bytes_max;
        Self { results: Vec::with_capacity(items), bytes: 0, bytes_max, largest: 0 }
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    /// Rows for which there is room if none is larger than those so far.
    fn room(&self) -> usize {
        match self.largest {
            0 => ASK_FIRST,
            largest => ((self.bytes_max - self.bytes.min(self.bytes_max)) / largest).max(1),
        }
    }

    fn add(&mut self, core: &Core, row: replication::Result<store::ReadRow>) {
        if self.is_full() {
            return self.results.push(self.left_out());
        }
        let item = proto::BatchReadResult { result: Some(batch_row(core, row)) };
        let bytes = item.encoded_len();
        self.bytes += bytes;
        self.largest = self.largest.max(bytes);
        self.results.push(item);
    }

    fn left_out(&self) -> proto::BatchReadResult {
        let limit = self.bytes_max;
        let message =
            format!("the rows before it fill the answer, which has {limit} bytes at most");
        let problem = Problem::new(Code::ResourceExhausted, REPLY_TOO_LARGE, message);
        let problem = Problem { retry_after: Some(AT_ONCE), ..problem.with("limit", limit) };
        let failure = proto::batch_read_result::Result::Failure(problem.into());
        proto::BatchReadResult { result: Some(failure) }
    }

    /// With the items that were not read.
    fn finish(mut self, items: usize) -> Vec<proto::BatchReadResult> {
        if self.results.len() < items {
            let left_out = self.left_out();
            self.results.resize(items, left_out);
        }
        self.results
    }
}

fn batch_row(
    core: &Core,
    row: replication::Result<store::ReadRow>,
) -> proto::batch_read_result::Result {
    use proto::batch_read_result::Result as Item;
    match row {
        Ok(row) => {
            core.metrics.bytes_sent.inc_by(bytes_of(&row));
            Item::Row(row.into())
        }
        Err(error) => Item::Failure(Problem::of_read(&error).into()),
    }
}

/// Writes one mutation and waits until it is durable.
async fn write_one(
    core: &Arc<Core>,
    deadline: Deadline,
    consistency: i32,
    tenant: String,
    mutation: Mutation,
) -> Result<Written, Problem> {
    let level = level_of(consistency).map_err(|problem| refused(core, 1, problem))?;
    let mut results = submit(core, deadline, level, &tenant, vec![mutation]).await?;
    results.pop().unwrap_or_else(|| Err(lost()))
}

/// Hands mutations to the coordinator and waits for what becomes of them.
///
/// An error of the whole says what became of all of them.
async fn submit(
    core: &Arc<Core>,
    deadline: Deadline,
    level: Level,
    tenant: &str,
    mutations: Vec<Mutation>,
) -> Result<Vec<Result<Written, Problem>>, Problem> {
    admit(core, deadline).await.map_err(|problem| refused(core, mutations.len(), problem))?;
    let (answer, durable) = oneshot::channel();
    let metrics = Arc::clone(&core.metrics);
    core.metrics.bytes_received.inc_by(mutations.iter().map(bytes_in).sum());
    core.cluster.coordinator.submit(
        tenant,
        mutations,
        WriteOptions { level, deadline: core.instant(deadline) },
        Box::new(move |results| {
            let results = results.into_iter().map(|result| count(&metrics, result)).collect();
            // Nobody may be there any more; the outcome is counted all the same.
            let _: Result<(), Vec<_>> = answer.send(results);
        }),
    );
    match deadline.limit(durable).await {
        Some(Ok(results)) => Ok(results),
        Some(Err(_dropped)) => Err(lost()),
        None => Err(Problem::deadline("the write is submitted and not yet durable")
            .of_write(Outcome::Unknown)),
    }
}

/// Waits as the pressure demands. A store that takes no writes at all says why: that it is behind
/// would be untrue, and a retry of no use.
pub(super) async fn admit(core: &Core, deadline: Deadline) -> Result<(), Problem> {
    let pressure = core.store.pressure();
    let refusal = if pressure < REFUSE_AT { None } else { core.store.refusal() };
    let admitted = match refusal {
        Some(error) => Err(Problem::from(&error)),
        None => core.admission.admit(pressure, deadline).await,
    };
    admitted.map_err(|problem| problem.of_write(Outcome::NotApplied))
}

/// Counts writes that are refused before they are submitted. The problem says that they were not
/// applied.
pub(super) fn refused(core: &Core, writes: usize, problem: Problem) -> Problem {
    core.metrics.refused(writes as u64);
    problem.of_write(Outcome::NotApplied)
}

/// Counts a write's outcome and turns its error into a problem.
pub(super) fn count(
    metrics: &Metrics,
    result: replication::Result<Written>,
) -> Result<Written, Problem> {
    metrics.written(result.as_ref().err().map(replication::Error::outcome));
    result.map_err(|error| Problem::from(&error))
}

/// The store dropped a submitted write without an answer: it is closing or its thread died.
pub(super) fn lost() -> Problem {
    Problem::new(Code::Unavailable, "STOPPING", "the store stopped before the write was durable")
        .of_write(Outcome::Unknown)
}

/// Bytes of key and value.
pub(super) fn bytes_in(mutation: &Mutation) -> u64 {
    (mutation.key.len() + mutation.value.as_ref().map_or(0, |value| value.len())) as u64
}

async fn batch_write(
    core: &Arc<Core>,
    deadline: Deadline,
    request: proto::BatchWriteRequest,
) -> Result<Vec<proto::BatchWriteResult>, Problem> {
    use proto::batch_write_result::Result as Item;
    let judged = core.check_batch(request.mutations.len()).and_then(|()| {
        core.store.tenant(&request.tenant).map_err(|error| Problem::from(&error))?;
        level_of(request.consistency)
    });
    let level = judged.map_err(|problem| refused(core, request.mutations.len(), problem))?;
    if request.mutations.is_empty() {
        return Ok(Vec::new());
    }
    // Mutations that say nothing keep their place in the answer and do not reach the store.
    let mut items: Vec<Option<Item>> = Vec::with_capacity(request.mutations.len());
    let mut mutations = Vec::with_capacity(request.mutations.len());
    for mutation in request.mutations {
        match Mutation::try_from(mutation) {
            Ok(mutation) => {
                mutations.push(mutation);
                items.push(None);
            }
            Err(problem) => {
                let problem = refused(core, 1, problem);
                items.push(Some(Item::Failure(problem.into())));
            }
        }
    }
    let mut results = match mutations.is_empty() {
        true => Vec::new(),
        false => submit(core, deadline, level, &request.tenant, mutations).await?,
    }
    .into_iter();
    let fill = |item: Option<Item>| {
        let result = item.unwrap_or_else(|| match results.next().unwrap_or_else(|| Err(lost())) {
            Ok(written) => Item::Written(written.into()),
            Err(problem) => Item::Failure(problem.into()),
        });
        proto::BatchWriteResult { result: Some(result) }
    };
    Ok(items.into_iter().map(fill).collect())
}
