//! The answering half: serves the streams that others open.
//!
//! A stream is one task. It reads requests, runs their handlers side by side and puts the answers,
//! in the order they are ready, where the connection takes them. Most handlers are done at once:
//! they cost neither a task nor a timer.
//!
//! 1. A request holds one of the stream's places from its receipt until the connection has taken
//!    its answer. Without a free place, or with too many bytes of requests under way, nothing is
//!    read: the sender's window fills up.
//! 2. Over all streams of a class no more than its share is served at once; what is more is refused
//!    and was not done.
//! 3. A handler ends by the sender's deadline, and when the sender has gone.
//! 4. The first message says who the sender is. What he may ask is decided for each request anew.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::time::timeout;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Response, Status, Streaming, async_trait};

use super::Options;
use super::counters::{Counters, count};
use super::failure::to_failure;
use super::hello::{self, Partner, Refusal};
use crate::cluster::NodeId;
use crate::cluster::local::Local;
use crate::cluster::peer::{Class, PeerError, PeerHandler, Reply, Request};
use crate::proto::peer_server::Peer;
use crate::proto::{PeerReply, PeerRequest};
use crate::replication::reason::REPLY_TOO_LARGE;
use crate::resilience::bulkhead::{Bulkhead, Place};

/// Requests begun before the answers so far are handed over, and others get their turn.
const TURN_MAX: usize = 128;

/// See the module. Clones are the same service.
#[derive(Clone)]
pub struct PeerService(Arc<Served>);

struct Served {
    local: Arc<Local>,
    handler: Arc<dyn PeerHandler>,
    options: Options,
    counters: Arc<Counters>,
    classes: [Bulkhead; Class::ALL.len()],
    stopping: CancellationToken,
    tasks: TaskTracker,
}

impl PeerService {
    /// Lets `handler` answer for `local`.
    pub fn new(
        local: Arc<Local>,
        handler: Arc<dyn PeerHandler>,
        options: Options,
        counters: Arc<Counters>,
    ) -> Self {
        let classes = options.served.map(|served| Bulkhead::new(served, 0, Duration::ZERO));
        Self(Arc::new(Served {
            local,
            handler,
            options,
            counters,
            classes,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Largest message it takes, in bytes.
    pub fn message_bytes_max(&self) -> usize {
        self.0.options.message_bytes_max
    }

    /// Largest frame it takes, in bytes.
    pub fn frame_bytes(&self) -> u32 {
        self.0.options.frame_bytes
    }

    /// Reads no more requests: streams end when what they began is answered.
    pub fn stop(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
    }

    /// Returns when all streams have ended.
    pub async fn stopped(&self) {
        self.0.tasks.wait().await;
    }
}

#[async_trait]
impl Peer for PeerService {
    type ExchangeStream = Replies;

    async fn exchange(
        &self,
        requests: tonic::Request<Streaming<PeerRequest>>,
    ) -> Result<Response<Replies>, Status> {
        count(&self.0.counters.streams_accepted);
        let whom = requests.remote_addr().map(|address| address.to_string());
        let outbox = Arc::new(Outbox::default());
        let replies = Replies { outbox: Arc::clone(&outbox), taken: VecDeque::new() };
        let served = Arc::clone(&self.0);
        let requests = requests.into_inner();
        self.0.tasks.spawn(async move {
            let whom = whom.unwrap_or_default();
            served.serve(requests, &whom, &outbox).await;
            outbox.finish();
        });
        Ok(Response::new(replies))
    }
}

impl Served {
    async fn serve(
        self: &Arc<Self>,
        mut requests: Streaming<PeerRequest>,
        whom: &str,
        outbox: &Arc<Outbox>,
    ) {
        let first = timeout(self.options.open_timeout, requests.message()).await;
        let Ok(Ok(Some(PeerRequest { body: Some(Request::Hello(theirs)), .. }))) = first else {
            return outbox.put([self.reply(0, Err(unnamed()))]);
        };
        let partner = match hello::check(&self.local, &theirs, None) {
            Ok(partner) => partner,
            Err(refusal) => {
                self.counters.refuse(&refusal, whom);
                return outbox.put([self.reply(0, Err(refusal.into()))]);
            }
        };
        let own = hello::hello(&self.local, Some(partner.node), partner.class);
        outbox.put([self.reply(0, Ok(Reply::Hello(own)))]);
        let places = self.options.in_flight_max(partner.class);
        let mut stream = Serving {
            served: self,
            whom,
            partner,
            places,
            requests,
            outbox,
            running: FuturesUnordered::new(),
            bytes: 0,
            ready: Vec::new(),
            input: Input::Open,
        };
        let mut stopping = std::pin::pin!(self.stopping.cancelled());
        poll_fn(|cx| {
            if stopping.as_mut().poll(cx).is_ready() {
                stream.input = Input::Over;
            }
            stream.poll(cx)
        })
        .await;
    }

    fn reply(&self, id: u64, outcome: Result<Reply, PeerError>) -> PeerReply {
        let body = outcome.unwrap_or_else(|error| Reply::Failure(to_failure(error)));
        PeerReply { id, epoch: self.local.epoch(), body: Some(body) }
    }

    /// Runs one handler. The place in the class is free again when the future is gone.
    async fn answer(
        self: Arc<Self>,
        (from, class): (NodeId, Class),
        request: PeerRequest,
        body: Request,
        _place: Place,
    ) -> PeerReply {
        let PeerRequest { id, epoch, timeout_ms, .. } = request;
        let asked = Duration::from_millis(u64::from(timeout_ms));
        let limit = asked.min(self.options.deadline_max);
        let only_reads = matches!(
            body,
            Request::ReadRows(_)
                | Request::ScanRows(_)
                | Request::Page(_)
                | Request::Tree(_)
                | Request::Leaves(_)
        );
        let handled = self.handler.handle(from, class, epoch, body, limit);
        let handled = timeout(limit, handled).await;
        let late = || PeerError::NoAnswer { why: "its time is over at the peer".to_owned() };
        let reply = self.reply(id, handled.unwrap_or_else(|_| Err(late())));
        let (bytes, bytes_max) = (reply.encoded_len(), self.options.message_bytes_max);
        if bytes <= bytes_max {
            return reply;
        }
        // Sent, it would end the stream, and leave all calls on it without an answer.
        let why = format!("the answer has {bytes} bytes, the limit is {bytes_max}");
        self.reply(
            id,
            Err(match only_reads {
                true => PeerError::Refused { reason: REPLY_TOO_LARGE.to_owned(), message: why },
                false => PeerError::NoAnswer { why },
            }),
        )
    }
}

fn unnamed() -> PeerError {
    let message = "the stream does not begin with who speaks".to_owned();
    PeerError::Refused { reason: "PROTOCOL".to_owned(), message }
}

/// An answer in the making, and the bytes of its request.
type Answering = Pin<Box<dyn Future<Output = (PeerReply, usize)> + Send>>;

#[derive(PartialEq)]
enum Input {
    Open,
    Over,
}

/// A stream that is served.
struct Serving<'a> {
    served: &'a Arc<Served>,
    whom: &'a str,
    partner: Partner,
    places: usize,
    requests: Streaming<PeerRequest>,
    outbox: &'a Arc<Outbox>,
    running: FuturesUnordered<Answering>,
    /// Of the requests in `running`.
    bytes: usize,
    ready: Vec<PeerReply>,
    input: Input,
}

impl Serving<'_> {
    /// Ready when the stream is over: all is answered, or nobody takes answers any more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut begun = 0;
        loop {
            while let Poll::Ready(Some((reply, bytes))) = self.running.poll_next_unpin(cx) {
                self.bytes -= bytes;
                self.ready.push(reply);
            }
            let taken = self.running.len() + self.ready.len();
            let bytes_max = self.served.options.stream_bytes_max;
            let room = match self.outbox.room(taken, self.places, bytes_max, cx) {
                Ok(room) => room,
                Err(Gone) => return Poll::Ready(()),
            };
            if self.input == Input::Over && self.running.is_empty() {
                self.hand_over();
                return Poll::Ready(());
            }
            let room = room && self.bytes < bytes_max;
            let may_begin = room && begun < TURN_MAX && self.input == Input::Open;
            if !may_begin || !self.begin(cx) {
                break;
            }
            begun += 1;
        }
        self.hand_over();
        if begun == TURN_MAX {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    fn hand_over(&mut self) {
        if !self.ready.is_empty() {
            self.outbox.put(self.ready.drain(..));
        }
    }

    /// Begins the next request. Says whether there may be another.
    fn begin(&mut self, cx: &mut Context<'_>) -> bool {
        let mut request = match Pin::new(&mut self.requests).poll_next(cx) {
            Poll::Pending => return false,
            Poll::Ready(Some(Ok(request))) => request,
            Poll::Ready(Some(Err(_)) | None) => {
                self.input = Input::Over;
                return true;
            }
        };
        let served = self.served;
        count(&served.counters.requests_received);
        served.local.hear_epoch(request.epoch);
        let (id, bytes) = (request.id, request.encoded_len());
        let Some(body) = request.body.take().filter(|body| !matches!(body, Request::Hello(_)))
        else {
            self.ready.push(served.reply(id, Err(unknown())));
            return true;
        };
        if let Err(refusal) = hello::admit(&served.local, &self.partner, &body) {
            self.refuse(id, refusal);
            return true;
        }
        if matches!(body, Request::Gossip(_)) {
            served.handler.take_post(self.partner.node, body);
            return true;
        }
        let class = &served.classes[self.partner.class as usize];
        let Some(place) = class.try_enter() else {
            count(&served.counters.requests_overloaded);
            let node = served.local.node().to_string();
            let served_max = served.options.served[self.partner.class as usize];
            let why = format!("{served_max} requests are served, which is the limit");
            self.ready.push(served.reply(id, Err(PeerError::Overloaded { node, why })));
            return true;
        };
        let asker = (self.partner.node, self.partner.class);
        let answer = Arc::clone(served).answer(asker, request, body, place);
        let mut answering: Answering = Box::pin(async move { (answer.await, bytes) });
        match answering.as_mut().poll(cx) {
            Poll::Ready((reply, _)) => self.ready.push(reply),
            Poll::Pending => {
                self.bytes += bytes;
                self.running.push(answering);
            }
        }
        true
    }

    fn refuse(&mut self, id: u64, refusal: Refusal) {
        self.served.counters.refuse(&refusal, self.whom);
        self.ready.push(self.served.reply(id, Err(refusal.into())));
    }
}

fn unknown() -> PeerError {
    let message = "the request is of no kind that this node knows".to_owned();
    PeerError::Refused { reason: "UNIMPLEMENTED".to_owned(), message }
}

/// Nobody takes answers any more.
struct Gone;

/// Answers between the task that serves and the connection.
#[derive(Default)]
struct Outbox(Mutex<Answers>);

#[derive(Default)]
struct Answers {
    queue: VecDeque<PeerReply>,
    /// Of those in the queue.
    bytes: usize,
    /// Of those the connection has taken, until it asks for more.
    taken_bytes: usize,
    finished: bool,
    gone: bool,
    /// Of the connection, when it waits for answers.
    taker: Option<Waker>,
    /// Of the task that serves.
    server: Option<Waker>,
    /// It waits for a place.
    starved: bool,
}

impl Outbox {
    fn put(&self, replies: impl IntoIterator<Item = PeerReply>) {
        let mut answers = self.0.lock();
        for reply in replies {
            answers.bytes += reply.encoded_len();
            answers.queue.push_back(reply);
        }
        let taker = answers.taker.take();
        drop(answers);
        taker.into_iter().for_each(Waker::wake);
    }

    /// Whether one of `places` is free when `taken` are in use elsewhere, and less than `bytes_max`
    /// wait for a connection that may be slow. The task is woken when it has taken answers, or has
    /// gone.
    fn room(
        &self,
        taken: usize,
        places: usize,
        bytes_max: usize,
        cx: &Context<'_>,
    ) -> Result<bool, Gone> {
        let mut answers = self.0.lock();
        if answers.gone {
            return Err(Gone);
        }
        let known = answers.server.as_ref().is_some_and(|server| server.will_wake(cx.waker()));
        if !known {
            answers.server = Some(cx.waker().clone());
        }
        let waits = answers.bytes + answers.taken_bytes;
        answers.starved = taken + answers.queue.len() >= places || waits >= bytes_max;
        Ok(!answers.starved)
    }

    fn finish(&self) {
        let mut answers = self.0.lock();
        answers.finished = true;
        let taker = answers.taker.take();
        drop(answers);
        taker.into_iter().for_each(Waker::wake);
    }
}

/// The answers of a stream.
pub struct Replies {
    outbox: Arc<Outbox>,
    taken: VecDeque<PeerReply>,
}

impl Stream for Replies {
    type Item = Result<PeerReply, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(reply) = self.taken.pop_front() {
            return Poll::Ready(Some(Ok(reply)));
        }
        let this = &mut *self;
        let mut answers = this.outbox.0.lock();
        answers.taken_bytes = std::mem::take(&mut answers.bytes);
        let is_empty = answers.queue.is_empty();
        if is_empty {
            if answers.finished {
                return Poll::Ready(None);
            }
            answers.taker = Some(cx.waker().clone());
        }
        std::mem::swap(&mut this.taken, &mut answers.queue);
        let starved = std::mem::take(&mut answers.starved);
        let server = starved.then(|| answers.server.take()).flatten();
        drop(answers);
        server.into_iter().for_each(Waker::wake);
        match is_empty {
            true => Poll::Pending,
            false => Poll::Ready(this.taken.pop_front().map(Ok)),
        }
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        let mut answers = self.outbox.0.lock();
        answers.gone = true;
        let server = answers.server.take();
        drop(answers);
        server.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use futures_util::task::noop_waker;

    use super::*;

    /// Answers may be far larger than what they answer, and whoever asked may read slowly: a stream
    /// holds so many bytes of them, not only so many answers.
    #[tokio::test]
    async fn a_connection_that_does_not_read_is_served_no_more_when_its_answers_are_large() {
        let outbox = Arc::new(Outbox::default());
        let mut replies = Replies { outbox: Arc::clone(&outbox), taken: VecDeque::new() };
        let waker = noop_waker();
        let cx = Context::from_waker(&waker);
        let room = || matches!(outbox.room(0, 100, 1000, &cx), Ok(true));
        let reply = || PeerReply { body: Some(Reply::Raft(vec![0; 400].into())), ..<_>::default() };
        outbox.put([reply(), reply()]);
        assert!(room());
        outbox.put([reply()]);
        assert!(!room(), "three answers of a hundred, but 1,200 bytes of 1,000");
        for _ in 0..3 {
            assert!(replies.next().await.is_some());
            assert!(!room(), "the connection may not have sent it yet");
        }
        let next = futures_util::poll!(replies.next());
        assert!(next.is_pending() && room(), "it asks for more");
    }
}
