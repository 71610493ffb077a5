//! The asking half of one stream: what waits to be sent, and what waits for its answer.
//!
//! 1. A request is sent once: it leaves the queue before a byte of it is written, and ids grow in
//!    the order of the queue. An id up to `sent` may have reached the peer, a higher one has not.
//! 2. Every call ends: by its answer, by its time, or with the stream.
//! 3. At most `in_flight_max` calls and `bytes_max` of them are taken; the next is refused. Of
//!    messages that are not answered the oldest is lost.
//! 4. Nothing is sent before the other side has said who it is.
//! 5. Whatever is queued when the connection takes more goes out together: tonic writes all that is
//!    ready into one frame.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_stream::Stream;

use super::Options;
use super::failure::from_failure;
use crate::cluster::NodeId;
use crate::cluster::peer::{PeerError, Reply, Request};
use crate::proto::{Hello, PeerReply, PeerRequest};

/// Requests the connection takes at once: what it took counts as sent.
const TAKEN_MAX: usize = 128;
/// Messages in the queue that are not answered.
const POSTS_MAX: usize = 64;

/// Who answered, and what.
type Outcome = Result<(NodeId, Reply), PeerError>;

/// The asking half of a stream.
#[derive(Debug)]
pub(super) struct Exchange {
    // Constant after creation.
    name: String,
    in_flight_max: usize,
    bytes_max: usize,
    message_bytes_max: usize,
    // Held for a few instructions by callers, the connection and the reader of answers.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    queue: VecDeque<PeerRequest>,
    waiting: BTreeMap<u64, Waiting>,
    /// Of all in `waiting`.
    bytes: usize,
    posts: usize,
    last_id: u64,
    sent: u64,
    phase: Phase,
    partner: NodeId,
    /// Of the connection, when it waits for something to send.
    waker: Option<Waker>,
    used: bool,
}

#[derive(Debug, Default)]
enum Phase {
    /// The other side has not said yet who it is.
    #[default]
    Opening,
    Open,
    /// No new requests; those that wait are answered.
    Closing,
    /// With the reason.
    Ended(PeerError),
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Outcome>,
    bytes: usize,
}

impl Exchange {
    /// To the peer that `name` names in errors.
    pub fn new(name: String, options: &Options, in_flight_max: usize) -> Self {
        Self {
            name,
            in_flight_max,
            bytes_max: options.stream_bytes_max,
            message_bytes_max: options.message_bytes_max,
            state: Mutex::default(),
        }
    }

    /// Sends a request and waits for its answer. Says who answered.
    pub async fn call(
        &self,
        epoch: u64,
        body: Request,
        timeout: Duration,
    ) -> Result<(NodeId, Reply), PeerError> {
        let until = Instant::now() + timeout;
        let (id, mut answer) = self.push(epoch, body, timeout)?;
        let mut ticket = Ticket { exchange: self, id: Some(id) };
        let outcome = match timeout_at(until, &mut answer).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(self.no_answer("the stream ended"))),
            Err(_) => match self.give_up(id) {
                // It came while the time ran out.
                None => answer.try_recv().unwrap_or_else(|_| Err(self.no_answer("it is lost"))),
                Some(true) => Err(self.no_answer("its time is over")),
                Some(false) => Err(self.unreachable("it could not be sent in time")),
            },
        };
        ticket.id = None;
        outcome
    }

    fn push(
        &self,
        epoch: u64,
        body: Request,
        timeout: Duration,
    ) -> Result<(u64, oneshot::Receiver<Outcome>), PeerError> {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        let mut request = PeerRequest { id: 0, epoch, timeout_ms, body: Some(body) };
        let bytes = request.encoded_len();
        // The id is not in it yet.
        if bytes + 16 > self.message_bytes_max {
            let limit = self.message_bytes_max;
            let message = format!("the message has {bytes} bytes, the limit is {limit}");
            return Err(PeerError::Refused { reason: "MESSAGE_TOO_LARGE".into(), message });
        }
        let (answer, receiver) = oneshot::channel();
        let mut state = self.state.lock();
        state.check_open(self)?;
        let full =
            state.waiting.len() >= self.in_flight_max || state.bytes + bytes > self.bytes_max;
        // One message always fits, whatever its size.
        if full && !state.waiting.is_empty() {
            let (calls, waiting) = (state.waiting.len(), state.bytes);
            let (calls_max, bytes_max) = (self.in_flight_max, self.bytes_max);
            let why = format!("{calls} of {calls_max} calls, {waiting} of {bytes_max} bytes");
            return Err(PeerError::Overloaded { node: self.name.clone(), why });
        }
        state.last_id += 1;
        let id = state.last_id;
        request.id = id;
        state.bytes += bytes;
        state.used = true;
        state.waiting.insert(id, Waiting { answer, bytes });
        let waker = state.enqueue(request);
        drop(state);
        wake(waker);
        Ok((id, receiver))
    }

    /// Sends what is not answered. Says whether an older one was lost for it, or it itself was.
    pub fn post(&self, epoch: u64, body: Request) -> bool {
        let mut state = self.state.lock();
        if state.check_open(self).is_err() {
            return true;
        }
        let lost = state.posts >= POSTS_MAX;
        if lost {
            let State { queue, waiting, .. } = &mut *state;
            let oldest = queue.iter().position(|request| !waiting.contains_key(&request.id));
            oldest.and_then(|at| queue.remove(at));
        } else {
            state.posts += 1;
        }
        state.last_id += 1;
        state.used = true;
        let id = state.last_id;
        let waker = state.enqueue(PeerRequest { id, epoch, timeout_ms: 0, body: Some(body) });
        drop(state);
        wake(waker);
        lost
    }

    /// Takes back what nobody waits for. Says whether it was sent; `None` if it was answered.
    fn give_up(&self, id: u64) -> Option<bool> {
        let mut state = self.state.lock();
        let waiting = state.waiting.remove(&id)?;
        state.bytes -= waiting.bytes;
        if id <= state.sent {
            return Some(true);
        }
        if let Ok(at) = state.queue.binary_search_by_key(&id, |request| request.id) {
            state.queue.remove(at);
        }
        Some(false)
    }

    /// An answer has come. One that nobody waits for any more is dropped.
    pub fn answer(&self, reply: PeerReply) {
        let mut state = self.state.lock();
        let Some(waiting) = state.waiting.remove(&reply.id) else { return };
        state.bytes -= waiting.bytes;
        let (partner, waker) = (state.partner, state.last_one());
        drop(state);
        let outcome = match reply.body {
            Some(Reply::Failure(failure)) => Err(from_failure(failure, &self.name)),
            Some(body) => Ok((partner, body)),
            None => Err(self.no_answer("the answer has no body")),
        };
        // The caller may have gone this very moment.
        let _ = waiting.answer.send(outcome);
        wake(waker);
    }

    /// The other side is who it should be: requests go out.
    pub fn open(&self, partner: NodeId) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Opening) {
            state.phase = Phase::Open;
        }
        state.partner = partner;
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// Whether it takes requests.
    pub fn takes(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Opening | Phase::Open)
    }

    /// Takes no more requests; the stream ends when all are answered.
    pub fn close(&self) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Opening | Phase::Open) {
            state.phase = Phase::Closing;
        }
        let waker = state.waker.take();
        drop(state);
        wake(waker);
    }

    /// Whether nothing was asked since the last call and nothing waits.
    pub fn was_idle(&self) -> bool {
        let mut state = self.state.lock();
        !std::mem::take(&mut state.used) && state.waiting.is_empty()
    }

    /// The stream is over: what was sent has no answer, what was not has not been done.
    pub fn end(&self, why: &PeerError) -> usize {
        let mut state = self.state.lock();
        state.phase = Phase::Ended(why.clone());
        state.queue.clear();
        state.bytes = 0;
        let (waiting, waker) = (std::mem::take(&mut state.waiting), state.waker.take());
        let sent = state.sent;
        drop(state);
        wake(waker);
        let text = why.to_string();
        let mut unanswered = 0;
        for (id, waiting) in waiting {
            let error = if id <= sent { self.no_answer(&text) } else { why.clone() };
            unanswered += usize::from(id <= sent);
            let _ = waiting.answer.send(Err(error));
        }
        unanswered
    }

    fn no_answer(&self, why: &str) -> PeerError {
        PeerError::NoAnswer { why: format!("{}: {why}", self.name) }
    }

    /// The error that says that nothing was sent.
    pub fn unreachable(&self, why: &str) -> PeerError {
        PeerError::Unreachable { node: self.name.clone(), why: why.to_owned() }
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl State {
    fn check_open(&self, exchange: &Exchange) -> Result<(), PeerError> {
        match &self.phase {
            Phase::Opening | Phase::Open => Ok(()),
            Phase::Closing => Err(exchange.unreachable("the stream is closing")),
            Phase::Ended(why) => Err(why.clone()),
        }
    }

    /// Returns the connection's waker, if it waits for this.
    fn enqueue(&mut self, request: PeerRequest) -> Option<Waker> {
        self.queue.push_back(request);
        // While it is opening, the waker is kept for the moment it is open.
        matches!(self.phase, Phase::Open).then(|| self.waker.take()).flatten()
    }

    /// Returns the connection's waker, if it only waits for the last answer.
    fn last_one(&mut self) -> Option<Waker> {
        let last = matches!(self.phase, Phase::Closing) && self.waiting.is_empty();
        last.then(|| self.waker.take()).flatten()
    }
}

/// Takes a call back whose caller went away.
struct Ticket<'a> {
    exchange: &'a Exchange,
    id: Option<u64>,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.exchange.give_up(id);
        }
    }
}

/// What the connection sends.
pub(super) struct Requests {
    exchange: Arc<Exchange>,
    hello: Option<Hello>,
    taken: VecDeque<PeerRequest>,
}

impl Requests {
    /// Begins with `hello`.
    pub fn new(exchange: Arc<Exchange>, hello: Hello) -> Self {
        Self { exchange, hello: Some(hello), taken: VecDeque::new() }
    }
}

impl Stream for Requests {
    type Item = PeerRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<PeerRequest>> {
        if let Some(hello) = self.hello.take() {
            let body = Some(Request::Hello(hello));
            return Poll::Ready(Some(PeerRequest { body, ..PeerRequest::default() }));
        }
        if let Some(request) = self.taken.pop_front() {
            return Poll::Ready(Some(request));
        }
        let this = &mut *self;
        let mut state = this.exchange.state.lock();
        let goes = match &state.phase {
            Phase::Opening => false,
            Phase::Ended(_) => return Poll::Ready(None),
            Phase::Closing if state.waiting.is_empty() => return Poll::Ready(None),
            Phase::Open | Phase::Closing => !state.queue.is_empty(),
        };
        if !goes {
            state.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = state.queue.len().min(TAKEN_MAX);
        this.taken.extend(state.queue.drain(..count));
        let sent = this.taken.back().map_or(0, |request| request.id);
        state.sent = state.sent.max(sent);
        // Posts are a few at most; counting them anew is cheaper than to mark each.
        let State { queue, waiting, posts, .. } = &mut *state;
        if *posts > 0 {
            *posts = queue.iter().filter(|request| !waiting.contains_key(&request.id)).count();
        }
        Poll::Ready(this.taken.pop_front())
    }
}
