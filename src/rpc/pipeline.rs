//! `Pipeline`: many tagged operations in flight on one stream.
//!
//! # Invariants
//! 1. An operation holds a permit from its receipt until its answer is taken by the connection.
//!    There are as many permits as places in the channel of answers, so that an engine thread that
//!    answers never waits.
//! 2. An answer of a read has room for its bytes (`room`), from before it waits for the connection:
//!    memory is bounded when a client does not read. While there is none nothing else is taken from
//!    the stream, and what was taken before is on its way.
//! 3. Operations reach the store in the order of the stream. Writes that arrive together are
//!    submitted together; a read of a key that waits among them submits them first.
//! 4. Every accepted operation is answered, also when the stream ends early on the client's side,
//!    in a message that cannot be read, or because the node stops.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tonic::{Code, Status, Streaming};

use super::convert::{bytes_of, level_of};
use super::deadline::Deadline;
use super::key_value::{
    admit, answer_early, answer_of, bytes_in, count, lost, read_by_others, read_here, refused,
};
use super::room::{Gone, Room, Taken};
use super::server::Core;
use super::status::{self, Problem};
use crate::engine::Position;
use crate::proto::pipeline_request::Operation;
use crate::proto::pipeline_response::Result as Answered;
use crate::proto::{self, PipelineRequest, PipelineResponse};
use crate::replication::{self, Level, WriteOptions};
use crate::store::{self, Early, Mutation, Written};

/// Writes submitted together at most; never more than a batch may hold.
const GROUP_MAX: usize = 128;
/// A group is submitted before its values, keys and contexts grow beyond this: far below the limit
/// of a batch, which a write on a pipeline must never meet.
const GROUP_BYTES_MAX: usize = 1 << 20;

/// What an operation holds until its answer is taken.
struct Held {
    _place: OwnedSemaphorePermit,
    _room: Taken,
}

/// An answer; the final error holds nothing.
type Answer = (Result<PipelineResponse, Status>, Option<Held>);

/// Where answers go.
#[derive(Clone)]
pub(super) struct Outlet {
    answers: mpsc::Sender<Answer>,
    in_flight: Arc<Semaphore>,
    room: Room,
}

/// The answers of a pipeline.
pub(super) struct Answers {
    answers: mpsc::Receiver<Answer>,
    room: Room,
}

/// The way of the answers to `in_flight_max` operations.
pub(super) fn channel(in_flight_max: usize) -> (Outlet, Answers) {
    // One more than operations: the error that ends the stream.
    let (sender, answers) = mpsc::channel(in_flight_max + 1);
    let (in_flight, room) = (Arc::new(Semaphore::new(in_flight_max)), Room::new(in_flight_max));
    (Outlet { answers: sender, in_flight, room: room.clone() }, Answers { answers, room })
}

impl Stream for Answers {
    type Item = Result<PipelineResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Taking the answer drops what it held: its place in the channel and its room are free.
        self.answers.poll_recv(cx).map(|answer| answer.map(|(response, _held)| response))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.room.close();
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
    outlet: Outlet,
) {
    core.metrics.pipelines.inc();
    let serving = serve(core, &mut requests, deadline, &outlet);
    let end = tokio::select! {
        end = serving => end,
        // The client went away: what is submitted goes on.
        () = outlet.answers.closed() => Ok(()),
    };
    if let Err(status) = end {
        // Behind the answers of all operations in flight: each still holds its permit.
        let all = outlet.in_flight.acquire_many(core.options.pipeline_in_flight_max as u32);
        let _ = deadline.within(core.options.deadline_max).limit(all).await;
        let _ = outlet.answers.try_send((Err(status), None));
    }
    core.metrics.pipelines.dec();
}

async fn serve(
    core: &Arc<Core>,
    requests: &mut Streaming<PipelineRequest>,
    deadline: Deadline,
    outlet: &Outlet,
) -> Result<(), Status> {
    let mut group = Group::default();
    let mut stops = pin!(core.stopping.cancelled());
    loop {
        // A stop ends the stream here, where nothing is taken that is not answered.
        let (permit, request) = tokio::select! {
            next = next_of(requests, deadline, outlet) => match next? {
                Some(next) => next,
                None => return Ok(()),
            },
            () = &mut stops => return Err(stopping().into()),
        };
        take(core, deadline, &mut group, request, permit, outlet).await;
        // What has arrived already joins the group; nothing is waited for.
        while group.waiting.len() < GROUP_MAX.min(core.options.batch_max) {
            let Ok(permit) = Arc::clone(&outlet.in_flight).try_acquire_owned() else { break };
            let Poll::Ready(next) = poll_now(requests).await else { break };
            let Some(Ok(request)) = next else {
                // What came before the end is good, however it ends.
                submit(core, deadline, &mut group, outlet).await;
                return next.transpose().map(drop).map_err(broken);
            };
            take(core, deadline, &mut group, request, permit, outlet).await;
        }
        submit(core, deadline, &mut group, outlet).await;
    }
}

/// The next message, and a permit for it; `None` is the end of the stream.
async fn next_of(
    requests: &mut Streaming<PipelineRequest>,
    deadline: Deadline,
    outlet: &Outlet,
) -> Result<Option<(OwnedSemaphorePermit, PipelineRequest)>, Status> {
    let next = async {
        let permit = Arc::clone(&outlet.in_flight).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        Ok(requests.message().await.map_err(broken)?.map(|request| (permit, request)))
    };
    let over = || Err(Problem::deadline("the pipeline's time is over").into());
    deadline.limit(next).await.unwrap_or_else(over)
}

/// What ends a stream that cannot be read on. Of the message itself nothing is known.
fn broken(status: Status) -> Status {
    status::complete(status, false)
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
    outlet: &Outlet,
) {
    core.metrics.pipeline_operations.inc();
    let tag = request.tag;
    let (tenant, level, mutation, is_delete) = match request.operation {
        Some(Operation::Read(read)) => {
            let level = match level_of(read.consistency) {
                Ok(level) => level,
                Err(problem) => {
                    return answer(outlet, tag, Answered::Failure(problem.into()), permit);
                }
            };
            if group.mutations.iter().any(|mutation| mutation.key == read.key) {
                submit(core, deadline, group, outlet).await;
            }
            let read = (tag, level, read);
            return read_and_answer(core, deadline, group, read, permit, outlet).await;
        }
        Some(Operation::Write(mut write)) => {
            let tenant = std::mem::take(&mut write.tenant);
            (tenant, level_of(write.consistency), Mutation::from(write), false)
        }
        Some(Operation::Delete(mut delete)) => {
            let tenant = std::mem::take(&mut delete.tenant);
            (tenant, level_of(delete.consistency), Mutation::from(delete), true)
        }
        None => {
            let problem = Problem::invalid("operation", "none is given");
            return answer(outlet, tag, Answered::Failure(problem.into()), permit);
        }
    };
    let level = match level {
        Ok(level) => level,
        Err(problem) => {
            let problem = refused(core, 1, problem);
            return answer(outlet, tag, Answered::Failure(problem.into()), permit);
        }
    };
    let bytes = mutation.bytes();
    let is_other = group.tenant != tenant || group.level != level;
    if is_other || group.bytes + bytes > GROUP_BYTES_MAX {
        submit(core, deadline, group, outlet).await;
        (group.tenant, group.level) = (tenant, level);
    }
    group.bytes += bytes;
    group.waiting.push(Waiting { tag, is_delete, permit });
    group.mutations.push(mutation);
}

/// Answers a read right here where that is all it takes; else it goes on by itself, and others of
/// the stream with it.
async fn read_and_answer(
    core: &Arc<Core>,
    deadline: Deadline,
    group: &mut Group,
    (tag, level, read): (u64, Level, proto::ReadRequest),
    permit: OwnedSemaphorePermit,
    outlet: &Outlet,
) {
    let early = read_here(core, level, &read);
    let bytes = match &early {
        Some(early) => answer_bytes(&early.found),
        None => outlet.room.expected(),
    };
    let taken = match outlet.room.try_take(bytes) {
        Some(taken) => taken,
        None => {
            // They have come before it, and need no room.
            submit(core, deadline, group, outlet).await;
            match room_for(core, deadline, outlet, bytes).await {
                Ok(taken) => taken,
                Err(problem) => {
                    return answer(outlet, tag, Answered::Failure(problem.into()), permit);
                }
            }
        }
    };
    if let Some(Early { found, upto: Position::ZERO }) = early {
        let row = answer_of(core, read.key.len(), found);
        return answer_read(outlet, tag, row, permit, taken);
    }
    let (core, outlet) = (Arc::clone(core), outlet.clone());
    let tasks = core.tasks.clone();
    tasks.spawn(async move {
        let reading = async {
            let key_bytes = read.key.len();
            let Some(early) = early else {
                let read = || read_by_others(&core, deadline, level, &read);
                let wait = |bytes| room_for(&core, deadline, &outlet, bytes);
                return match outlet.room.fit(taken, read, answer_bytes, wait).await {
                    Ok((row, taken)) => (answer_of(&core, key_bytes, row), taken),
                    Err(problem) => (Err(problem), Taken::default()),
                };
            };
            (answer_early(&core, deadline, key_bytes, early).await, taken)
        };
        tokio::select! {
            (row, taken) = reading => answer_read(&outlet, tag, row, permit, taken),
            // Nobody waits for it.
            () = outlet.answers.closed() => {}
        }
    });
}

/// What the answer with a row takes.
fn answer_bytes(row: &replication::Result<store::ReadRow>) -> usize {
    row.as_ref().map_or(0, |row| bytes_of(row) as usize)
}

/// Waits for room for an answer, as long as there is somebody to take it.
async fn room_for(
    core: &Core,
    deadline: Deadline,
    outlet: &Outlet,
    bytes: usize,
) -> Result<Taken, Problem> {
    tokio::select! {
        taken = deadline.limit(outlet.room.take(bytes)) => match taken {
            Some(Ok(taken)) => Ok(taken),
            Some(Err(Gone)) => Err(Problem::new(Code::Cancelled, "CANCELLED", "nobody listens")),
            None => Err(Problem::deadline("the answers before it are not received yet")),
        },
        () = core.stopping.cancelled() => Err(stopping()),
    }
}

fn stopping() -> Problem {
    Problem::new(Code::Unavailable, "STOPPING", "the node is stopping")
}

/// Submits the group; its answers come when it is durable.
async fn submit(core: &Arc<Core>, deadline: Deadline, group: &mut Group, outlet: &Outlet) {
    if group.waiting.is_empty() {
        return;
    }
    let waiting = std::mem::take(&mut group.waiting);
    let mutations = std::mem::take(&mut group.mutations);
    group.bytes = 0;
    let admitted = tokio::select! {
        biased;
        admitted = admit(core, deadline) => admitted,
        () = core.stopping.cancelled() => Err(stopping()),
    };
    if let Err(problem) = admitted {
        let problem = refused(core, waiting.len(), problem);
        for one in waiting {
            let problem = problem.clone();
            answer(outlet, one.tag, Answered::Failure(problem.into()), one.permit);
        }
        return;
    }
    core.metrics.bytes_received.inc_by(mutations.iter().map(bytes_in).sum());
    let (metrics, outlet) = (Arc::clone(&core.metrics), outlet.clone());
    let held = core.cluster.coordinator.submit(
        &group.tenant,
        mutations,
        WriteOptions { level: group.level, deadline: core.instant(deadline) },
        Box::new(move |results| {
            let mut results = results.into_iter().map(|result| count(&metrics, result));
            for one in waiting {
                let result = results.next().unwrap_or_else(|| Err(lost()));
                answer(&outlet, one.tag, written(result, one.is_delete), one.permit);
            }
        }),
    );
    if let Some(held) = held {
        // What comes next on the stream sees it. However it ends, it has told each of them; nothing
        // comes next when the node stops.
        let _ = core.stopping.run_until_cancelled(held).await;
    }
}

fn written(result: Result<Written, Problem>, is_delete: bool) -> Answered {
    match result {
        Ok(written) if is_delete => Answered::Deleted(written.into()),
        Ok(written) => Answered::Written(written.into()),
        Err(problem) => Answered::Failure(problem.into()),
    }
}

fn answer_read(
    outlet: &Outlet,
    tag: u64,
    row: Result<proto::ReadResponse, Problem>,
    permit: OwnedSemaphorePermit,
    taken: Taken,
) {
    let result = match row {
        Ok(row) => Answered::Read(row),
        Err(problem) => Answered::Failure(problem.into()),
    };
    send(outlet, tag, result, Held { _place: permit, _room: taken });
}

/// With anything that is small.
fn answer(outlet: &Outlet, tag: u64, result: Answered, permit: OwnedSemaphorePermit) {
    send(outlet, tag, result, Held { _place: permit, _room: Taken::default() });
}

/// Never waits: the permit is a place in the channel. Fails only when the client is gone.
fn send(outlet: &Outlet, tag: u64, result: Answered, held: Held) {
    let response = PipelineResponse { tag, result: Some(result) };
    let _ = outlet.answers.try_send((Ok(response), Some(held)));
}
