//! The Rust client: several connections, taken in turn; deadlines; retries where they are safe.
//!
//! | file | what |
//! |---|---|
//! | `connections` | connections, taken in turn |
//! | `ring` | who holds which keys |
//! | `routes` | which node each key goes to, and how it is learnt |
//! | `batches` | a batch to one node, or to the few that hold all of it |
//! | `pages` | what a scan gives, up to its last page |
//! | `retry`, `error` | what is tried again; what a call that failed says |
//!
//! With [`Options::direct`] a key's request goes to a node that holds it, the fastest of those that
//! are up, and a batch falls apart into one for each node it takes. When such a node fails the
//! next holder is tried, then any other node, then any of the endpoints. Without it, and for scans,
//! the endpoints are taken in turn: any node serves any request.
//!
//! - A read is retried when the node could not be reached or was overloaded.
//! - A write is retried only under an idempotency key (the client makes one unless the caller gives
//!   one or turns retries off), so that a retry of a write whose outcome was unknown is the same
//!   write.
//! - A call of an operator goes to the next endpoint where one cannot be reached, to each once; it
//!   is not made again once it may have arrived.
//! - Retries share a budget: when most calls fail, they are not multiplied.

mod batches;
mod connections;
mod error;
mod pages;
mod retry;
mod ring;
mod routes;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use connections::{Connection, Connections, Connector};
use ring::Ring;
use routes::{Routes, Way};

pub use error::{Error, Outcome};
pub use pages::Pages;

use crate::cluster::net::Net;
use crate::proto;
use crate::proto::admin_client::AdminClient;
use crate::proto::key_value_client::KeyValueClient;
use crate::resilience::deadline::Deadline;
use crate::resilience::retry::{Budget, Retry};
use crate::rpc::LAYOUT_HEADER;

/// The raw client of the `Admin` service.
pub type Admin = AdminClient<Channel>;

/// What can be set.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes, as URIs (`http://host:port`). At least one.
    pub endpoints: Vec<String>,
    /// Connections to each.
    pub channels: usize,
    /// Time for a call with all its retries.
    pub timeout: Duration,
    /// Time for a connection to be made.
    pub connect_timeout: Duration,
    /// Retries of a call; 0 turns them off, and with them the idempotency keys made here.
    pub retries_max: u32,
    /// Largest answer taken, in bytes. A row may be larger than a value.
    pub message_bytes_max: usize,
    /// How many replicas take part in calls that do not say it themselves.
    pub consistency: proto::ConsistencyLevel,
    /// Whether requests go to the nodes that hold their keys, at the addresses that the cluster
    /// says; the endpoints are then where it is asked, and where requests go when all else fails.
    pub direct: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            endpoints: vec!["http://127.0.0.1:8080".to_owned()],
            channels: 1,
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(3),
            retries_max: 4,
            message_bytes_max: 64 << 20,
            consistency: proto::ConsistencyLevel::Unspecified,
            direct: false,
        }
    }
}

/// A client. Cheap to share by reference; all calls may run at once.
#[derive(Debug)]
pub struct Client {
    /// To the endpoints.
    given: Arc<Connections>,
    /// With [`Options::direct`].
    routes: Option<Arc<Routes>>,
    options: Options,
    budget: Budget,
}

/// Where a call goes.
#[derive(Clone, Copy)]
enum To<'t> {
    /// To any endpoint.
    Any,
    /// To a holder of this tenant's key.
    Key(&'t str, &'t [u8]),
    /// To this node, which holds all keys of a batch of the tenant.
    Node(&'t str, &'t Ring, &'t str),
}

/// What an attempt at a node that does not answer counts for, when nodes are chosen.
const SILENCE: Duration = Duration::from_secs(1);
/// An attempt at one of several nodes gets this share of the time that is left, and not less than
/// [`SILENCE`], so that there is time for another.
const ATTEMPT_SHARE: u32 = 3;

/// A pipeline: operations go in, answers come out, in any order, told apart by their tags.
#[derive(Debug)]
pub struct Pipeline {
    /// Takes operations; waits while the server is behind. Drop it to end the stream.
    pub requests: mpsc::Sender<proto::PipelineRequest>,
    /// Gives answers, until all are given and `requests` is dropped.
    pub answers: Streaming<proto::PipelineResponse>,
}

impl Client {
    /// A client that connects when it is first used, and again whenever it must. Call it within a
    /// runtime.
    ///
    /// # Errors
    /// [`Error::Endpoint`] if an endpoint is not a URI or none is given.
    pub fn new(options: Options) -> Result<Self, Error> {
        Self::with(None, options)
    }

    /// The same over a network of the caller's choice.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn over(net: &Arc<dyn Net>, options: Options) -> Result<Self, Error> {
        Self::with(Some(Arc::clone(net)), options)
    }

    fn with(net: Option<Arc<dyn Net>>, options: Options) -> Result<Self, Error> {
        let connector = Connector::new(net, &options);
        let given = Arc::new(connector.to(&options.endpoints)?);
        let routes = options.direct.then(|| Routes::new(connector, Arc::clone(&given)));
        Ok(Self { given, routes, options, budget: retry::budget() })
    }

    /// The raw client of the `KeyValue` service, on the next connection.
    pub fn key_value(&self) -> KeyValueClient<Channel> {
        self.key_value_at(&self.given.next())
    }

    fn key_value_at(&self, at: &Connection) -> KeyValueClient<Channel> {
        KeyValueClient::new(at.channel.clone())
            .max_decoding_message_size(self.options.message_bytes_max)
    }

    /// Reads a row.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read(&self, tenant: &str, key: Bytes) -> Result<proto::ReadResponse, Error> {
        let consistency = self.options.consistency.into();
        let tenant = tenant.to_owned();
        let message = proto::ReadRequest { tenant, key, consistency, ..Default::default() };
        self.read_as(message).await
    }

    /// Reads a row as the message says.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn read_as(&self, message: proto::ReadRequest) -> Result<proto::ReadResponse, Error> {
        let (tenant, key) = (message.tenant.clone(), message.key.clone());
        let call = async |client: &mut KeyValueClient<Channel>, request| client.read(request).await;
        self.call(To::Key(&tenant, &key), message, Kind::Read, call).await
    }

    /// Writes a value.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::outcome`] says what became of the write.
    pub async fn write(
        &self,
        mut message: proto::WriteRequest,
    ) -> Result<proto::WriteResponse, Error> {
        self.name_write(&mut message.idempotency_key);
        self.level(&mut message.consistency);
        let (tenant, key) = (message.tenant.clone(), message.key.clone());
        let call =
            async |client: &mut KeyValueClient<Channel>, request| client.write(request).await;
        self.call(To::Key(&tenant, &key), message, Kind::Write, call).await
    }

    /// Deletes a key.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::outcome`] says what became of the delete.
    pub async fn delete(
        &self,
        mut message: proto::DeleteRequest,
    ) -> Result<proto::DeleteResponse, Error> {
        self.name_write(&mut message.idempotency_key);
        self.level(&mut message.consistency);
        let (tenant, key) = (message.tenant.clone(), message.key.clone());
        let call =
            async |client: &mut KeyValueClient<Channel>, request| client.delete(request).await;
        self.call(To::Key(&tenant, &key), message, Kind::Write, call).await
    }

    /// Begins a scan. It has no timeout and no retry: a cursor goes on where it broke.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn scan(&self, mut message: proto::ScanRequest) -> Result<Pages, Error> {
        self.level(&mut message.consistency);
        let limit = message.limit;
        let at = self.given.next();
        let answer = self.key_value_at(&at).scan(message).await;
        let from = std::slice::from_ref(&at.uri);
        let stream = answer.map_err(|status| Error::of(&status, false).at(from))?.into_inner();
        Ok(Pages::new(stream, at.uri, limit))
    }

    /// Reads a page of keys.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn key_range(
        &self,
        mut message: proto::GetKeyRangeRequest,
    ) -> Result<proto::GetKeyRangeResponse, Error> {
        self.level(&mut message.consistency);
        let call = async |client: &mut KeyValueClient<Channel>, request| {
            client.get_key_range(request).await
        };
        self.call(To::Any, message, Kind::Read, call).await
    }

    /// Opens a pipeline that takes `ahead` operations before the sender waits.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pipeline(&self, ahead: usize) -> Result<Pipeline, Error> {
        let (requests, receiver) = mpsc::channel(ahead.max(1));
        let at = self.given.next();
        let answers = self.key_value_at(&at).pipeline(ReceiverStream::new(receiver)).await;
        let answers = answers.map_err(|status| Error::of(&status, false).at(&[at.uri]))?;
        let answers = answers.into_inner();
        Ok(Pipeline { requests, answers })
    }

    /// Calls the `Admin` service once, within the timeout: at the first endpoint that can be
    /// reached.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn admin_call<M: Clone, T>(
        &self,
        message: M,
        call: impl AsyncFn(&mut Admin, Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        self.admin_at_one(message, Deadline::after(self.options.timeout), call).await
    }

    /// The same for a call that is answered by a stream. It has no timeout: the stream ends when
    /// what it tells of does.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn admin_stream<M: Clone, T>(
        &self,
        message: M,
        call: impl AsyncFn(&mut Admin, Request<M>) -> Result<Response<Streaming<T>>, Status>,
    ) -> Result<Streaming<T>, Error> {
        self.admin_at_one(message, Deadline::NEVER, call).await
    }

    /// Tries the endpoints in turn, each once, until one is reached.
    async fn admin_at_one<M: Clone, T>(
        &self,
        message: M,
        deadline: Deadline,
        call: impl AsyncFn(&mut Admin, Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let (mut at, mut others) = self.given.turn();
        let mut silent = Vec::new();
        loop {
            let limit = self.options.message_bytes_max;
            let mut admin = Admin::new(at.channel).max_decoding_message_size(limit);
            let mut request = Request::new(message.clone());
            if let Some(left) = deadline.remaining() {
                request.set_timeout(left);
            }
            let error = match call(&mut admin, request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => Error::of(&status, false),
            };
            silent.push(at.uri);
            // Nothing was sent: it is not made twice.
            at = match others.next() {
                Some(other) if error.reason() == "UNREACHABLE" && !deadline.passed() => other,
                _ => return Err(error.at(&silent)),
            };
        }
    }

    /// Gives a write a name, if it may be retried and has none.
    fn name_write(&self, key: &mut Bytes) {
        if key.is_empty() && self.options.retries_max > 0 {
            *key = retry::idempotency_key();
        }
    }

    /// Gives a call the client's level, if it names none.
    fn level(&self, consistency: &mut i32) {
        if *consistency == i32::from(proto::ConsistencyLevel::Unspecified) {
            *consistency = self.options.consistency.into();
        }
    }

    /// Calls with retries, within the timeout.
    async fn call<M: Clone, T>(
        &self,
        to: To<'_>,
        message: M,
        kind: Kind,
        call: impl AsyncFn(&mut KeyValueClient<Channel>, Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        self.call_by(Deadline::after(self.options.timeout), to, message, kind, call).await
    }

    /// Calls with retries, each with time of what is left.
    async fn call_by<M: Clone, T>(
        &self,
        deadline: Deadline,
        to: To<'_>,
        message: M,
        kind: Kind,
        call: impl AsyncFn(&mut KeyValueClient<Channel>, Request<M>) -> Result<Response<T>, Status>,
    ) -> Result<T, Error> {
        let mut retry = Retry::new(retry::WAITS, self.options.retries_max, deadline, &self.budget);
        let mut unknown = false;
        let mut tried = Vec::new();
        let mut silent: Vec<Arc<str>> = Vec::new();
        let ring = self.ring_of(to).await;
        loop {
            let way = self.way(to, ring.as_deref(), &tried);
            let left = deadline.remaining().unwrap_or(self.options.timeout);
            let time = match &way.node {
                Some(_) if self.options.retries_max > 0 => {
                    (left / ATTEMPT_SHARE).max(SILENCE).min(left)
                }
                _ => left,
            };
            let mut request = Request::new(message.clone());
            request.set_timeout(time);
            let error = match self.attempt(to, &way, request, &call).await {
                Ok(answer) => {
                    retry.succeeded();
                    return Ok(answer);
                }
                Err(status) => Error::of(&status, kind == Kind::Write),
            };
            // Once an attempt may have been applied, a later refusal says nothing about it.
            unknown |= error.outcome() == Some(Outcome::Unknown);
            let error = if unknown { error.with_outcome(Outcome::Unknown) } else { error };
            // A node that was chosen and is silent, or takes no writes: another one may.
            let is_its_own = ran_out(&error) || takes_no_writes(&error);
            let may_retry = error.may_retry() || way.node.is_some() && is_its_own;
            tried.extend(way.node);
            if error.is_no_answer() && !silent.contains(&way.at.uri) {
                silent.push(way.at.uri);
            }
            let least = may_retry.then(|| error.retry_after().unwrap_or_default());
            match retry.failed(least, retry::random()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error.at(&silent)),
            }
        }
    }

    /// One attempt, and what is learnt from it of its node.
    async fn attempt<M, T, C>(
        &self,
        to: To<'_>,
        way: &Way,
        mut request: Request<M>,
        call: &C,
    ) -> Result<T, Status>
    where
        C: AsyncFn(&mut KeyValueClient<Channel>, Request<M>) -> Result<Response<T>, Status>,
    {
        let mut client = self.key_value_at(&way.at);
        let (Some(routes), To::Key(tenant, _) | To::Node(tenant, ..), Some(_)) =
            (&self.routes, to, &way.node)
        else {
            return Ok(call(&mut client, request).await?.into_inner());
        };
        request.metadata_mut().insert(LAYOUT_HEADER, way.epoch.into());
        let began = Instant::now();
        routes.begin(way);
        let answer = call(&mut client, request).await;
        let took = began.elapsed();
        let (is_lost, has_hint) = match &answer {
            Ok(response) => (false, response.metadata().contains_key(LAYOUT_HEADER)),
            Err(status) => {
                let error = Error::of(status, false);
                let is_lost =
                    matches!(error.reason(), "UNREACHABLE" | "CONNECTION_LOST" | "STOPPING")
                        || ran_out(&error);
                let has_hint = status.metadata().contains_key(LAYOUT_HEADER);
                (is_lost || takes_no_writes(&error), has_hint)
            }
        };
        // A refused connection is quick, and no reason to come back.
        routes.end(way, if is_lost { took.max(SILENCE) } else { took });
        if is_lost || has_hint {
            routes.doubt(tenant);
        }
        Ok(answer?.into_inner())
    }

    /// The ring by which a call goes, if it goes by one.
    async fn ring_of(&self, to: To<'_>) -> Option<Arc<Ring>> {
        match (&self.routes, to) {
            (Some(routes), To::Key(tenant, _)) => routes.ring(tenant).await,
            _ => None,
        }
    }

    fn way(&self, to: To<'_>, ring: Option<&Ring>, tried: &[String]) -> Way {
        let any = || Way { at: self.given.next(), node: None, epoch: 0 };
        let Some(routes) = &self.routes else { return any() };
        match (to, ring) {
            (To::Key(_, key), Some(ring)) => routes.way(ring, Some(key), tried).unwrap_or_else(any),
            (To::Node(_, ring, node), _) if tried.is_empty() => {
                routes.way_to(ring, node).unwrap_or_else(any)
            }
            (To::Node(_, ring, _), _) => routes.way(ring, None, tried).unwrap_or_else(any),
            _ => any(),
        }
    }
}

/// Whether the time of an attempt ran out: a node that can says so just before the timer here does.
fn ran_out(error: &Error) -> bool {
    matches!(error.reason(), "TIMEOUT" | "DEADLINE_EXCEEDED")
}

/// Whether a node refuses all writes: its disk has failed, or its clock is wrong.
fn takes_no_writes(error: &Error) -> bool {
    matches!(error.reason(), "READ_ONLY" | "CLOCK_UNSAFE")
}

/// What a failure of the transport means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}
