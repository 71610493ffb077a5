//! `Pipeline`: many tagged operations in flight on one stream.
//!
//! # Invariants
//! 1. An operation holds a permit from its receipt until its answer is taken by the connection.
//!    There are as many permits as places in the channel of answers, so that an engine thread that
//!    answers never waits, and memory is bounded when a client does not read.
//! 2. Operations reach the store in the order of the stream. Writes that arrive together are
//!    submitted together; a read of a key that waits among them submits them first.
//! 3. Every accepted operation is answered, also when the stream ends early on the client's side.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};

use super::deadline::Deadline;
use super::key_value::{
    admit, answer_early, answer_of, bytes_in, count, lost, read_here, read_one,
};
use super::server::Core;
use super::status::Problem;
use crate::engine::Position;
use crate::proto::pipeline_request::Operation;
use crate::proto::pipeline_response::Result as Answered;
use crate::proto::{self, PipelineRequest, PipelineResponse};
use crate::replication::{Level, WriteOptions};
use crate::store::{Early, Mutation, Outcome, Written};

/// Writes submitted together at most; never more than a batch may hold.
const GROUP_MAX: usize = 128;
/// A group is submitted before its values, keys and contexts grow beyond this: far below the limit
/// of a batch, which a write on a pipeline must never meet.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// An answer and the permit of its operation; the final error has none.
type Answer = (Result<PipelineResponse, Status>, Option<OwnedSemaphorePermit>);

/// The answers of a pipeline.
pub(super) struct Answers(mpsc::Receiver<Answer>);

impl Answers {
    pub(super) fn new(receiver: mpsc::Receiver<Answer>) -> Self {
        Self(receiver)
    }
}

impl Stream for Answers {
    type Item = Result<PipelineResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Taking the answer drops the permit: its place in the channel is free.
        self.0.poll_recv(cx).map(|answer| answer.map(|(response, _permit)| response))
    }
}

/// A write that waits for its group.
struct Waiting {
    tag: u64,
    is_delete: bool,
    permit: OwnedSemaphorePermit,
}

/// The writes of one tenant, at one level, that arrived together.
#[derive(Default)]
struct Group {
    tenant: String,
    level: Level,
    waiting: Vec<Waiting>,
    mutations: Vec<Mutation>,
    bytes: usize,
}

/// Serves a stream to its end.
pub(super) async fn run(
    core: &Arc<Core>,
    mut requests: Streaming<PipelineRequest>,
    deadline: Deadline,
    in_flight: Arc<Semaphore>,
    answers: mpsc::Sender<Answer>,
) {
    core.metrics.pipelines.inc();
    let serving = serve(core, &mut requests, deadline, &in_flight, &answers);
    let end = tokio::select! {
        end = serving => end,
        () = core.stopping.cancelled() => {
            Err(Problem::new(Code::Unavailable, "STOPPING", "the node is stopping").into())
        }
        // The client went away: what is submitted goes on.
        () = answers.closed() => Ok(()),
    };
    if let Err(status) = end {
        // Behind the answers of all operations in flight: each still holds its permit.
        let all = in_flight.acquire_many(core.options.pipeline_in_flight_max as u32);
        let _ = deadline.within(core.options.deadline_max).limit(all).await;
        let _ = answers.try_send((Err(status), None));
    }
    core.metrics.pipelines.dec();
}

async fn serve(
    core: &Arc<Core>,
    requests: &mut Streaming<PipelineRequest>,
    deadline: Deadline,
    in_flight: &Arc<Semaphore>,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), Status> {
    let mut group = Group::default();
    loop {
        let permit = Arc::clone(in_flight).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let Some(request) = deadline.limit(requests.message()).await else {
            return Err(Problem::deadline("the pipeline's time is over").into());
        };
        let Some(request) = request? else { return Ok(()) };
        take(core, deadline, &mut group, request, permit, answers).await;
        // What has arrived already joins the group; nothing is waited for.
        while group.waiting.len() < GROUP_MAX.min(core.options.batch_max) {
            let Ok(permit) = Arc::clone(in_flight).try_acquire_owned() else { break };
            let Poll::Ready(next) = poll_now(requests).await else { break };
            let Some(request) = next.transpose()? else {
                submit(core, deadline, &mut group, answers).await;
                return Ok(());
            };
            take(core, deadline, &mut group, request, permit, answers).await;
        }
        submit(core, deadline, &mut group, answers).await;
    }
}

/// The next message if it is there.
async fn poll_now(
    requests: &mut Streaming<PipelineRequest>,
) -> Poll<Option<Result<PipelineRequest, Status>>> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *requests).poll_next(cx))).await
}

/// Answers a read, or puts a write into the group.
async fn take(
    core: &Arc<Core>,
    deadline: Deadline,
    group: &mut Group,
    request: PipelineRequest,
    permit: OwnedSemaphorePermit,
    answers: &mpsc::Sender<Answer>,
) {
    core.metrics.pipeline_operations.inc();
    let tag = request.tag;
    let (tenant, level, mutation, is_delete) = match request.operation {
        Some(Operation::Read(read)) => {
            if group.mutations.iter().any(|mutation| mutation.key == read.key) {
                submit(core, deadline, group, answers).await;
            }
            return read_and_answer(core, deadline, tag, read, permit, answers);
        }
        Some(Operation::Write(mut write)) => {
            let tenant = std::mem::take(&mut write.tenant);
            (tenant, Level::of(write.consistency), Mutation::from(write), false)
        }
        Some(Operation::Delete(mut delete)) => {
            let tenant = std::mem::take(&mut delete.tenant);
            (tenant, Level::of(delete.consistency), Mutation::from(delete), true)
        }
        None => {
            let problem = Problem::invalid("operation", "none is given");
            return answer(answers, tag, Answered::Failure(problem.into()), permit);
        }
    };
    let bytes = mutation.bytes();
    let is_other = group.tenant != tenant || group.level != level;
    if is_other || group.bytes + bytes > GROUP_BYTES_MAX {
        submit(core, deadline, group, answers).await;
        (group.tenant, group.level) = (tenant, level);
    }
    group.bytes += bytes;
    group.waiting.push(Waiting { tag, is_delete, permit });
    group.mutations.push(mutation);
}

/// Answers a read right here where that is all it takes; else it goes on by itself, and others of
/// the stream with it.
fn read_and_answer(
    core: &Arc<Core>,
    deadline: Deadline,
    tag: u64,
    read: proto::ReadRequest,
    permit: OwnedSemaphorePermit,
    answers: &mpsc::Sender<Answer>,
) {
    let to_answer = |row: Result<proto::ReadResponse, Problem>| match row {
        Ok(row) => Answered::Read(row),
        Err(problem) => Answered::Failure(problem.into()),
    };
    let early = match read_here(core, &read) {
        Some(Early { found, upto: Position::ZERO }) => {
            let row = answer_of(core, read.key.len(), found);
            return answer(answers, tag, to_answer(row), permit);
        }
        early => early,
    };
    let (core, answers) = (Arc::clone(core), answers.clone());
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        let row = match early {
            Some(early) => answer_early(&core, deadline, read.key.len(), early).await,
            None => read_one(&core, deadline, read).await,
        };
        answer(&answers, tag, to_answer(row), permit);
    });
}

/// Submits the group; its answers come when it is durable.
async fn submit(
    core: &Arc<Core>,
    deadline: Deadline,
    group: &mut Group,
    answers: &mpsc::Sender<Answer>,
) {
    if group.waiting.is_empty() {
        return;
    }
    let waiting = std::mem::take(&mut group.waiting);
    let mutations = std::mem::take(&mut group.mutations);
    group.bytes = 0;
    if let Err(problem) = admit(core, deadline).await {
        for one in waiting {
            core.metrics.written(Some(Outcome::NotApplied));
            let problem = problem.clone();
            answer(answers, one.tag, Answered::Failure(problem.into()), one.permit);
        }
        return;
    }
    core.metrics.bytes_received.inc_by(mutations.iter().map(bytes_in).sum());
    let (metrics, answers) = (Arc::clone(&core.metrics), answers.clone());
    let held = core.cluster.coordinator.submit(
        &group.tenant,
        mutations,
        WriteOptions { level: group.level, deadline: core.instant(deadline) },
        Box::new(move |results| {
            let mut results = results.into_iter().map(|result| count(&metrics, result));
            for one in waiting {
                let result = results.next().unwrap_or_else(|| Err(lost()));
                answer(&answers, one.tag, written(result, one.is_delete), one.permit);
            }
        }),
    );
    if let Some(held) = held {
        // What comes next on the stream sees it. However it ends, it has told each of them.
        let _ = held.await;
    }
}

fn written(result: Result<Written, Problem>, is_delete: bool) -> Answered {
    match result {
        Ok(written) if is_delete => Answered::Deleted(written.into()),
        Ok(written) => Answered::Written(written.into()),
        Err(problem) => Answered::Failure(problem.into()),
    }
}

/// Never waits: the permit is a place in the channel. Fails only when the client is gone.
fn answer(
    answers: &mpsc::Sender<Answer>,
    tag: u64,
    result: Answered,
    permit: OwnedSemaphorePermit,
) {
    let response = PipelineResponse { tag, result: Some(result) };
    let _ = answers.try_send((Ok(response), Some(permit)));
}
