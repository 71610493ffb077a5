//! The Rust client: several connections, taken in turn; deadlines; retries where they are safe.
//!
//! - A read is retried when the node could not be reached or was overloaded.
//! - A write is retried only under an idempotency key (the client makes one unless the caller gives
//!   one or turns retries off), so that a retry of a write whose outcome was unknown is the same
//!   write.
//! - Retries share a budget: when most calls fail, they are not multiplied.
//!
//! It does not know which node owns a key: any node coordinates any request.

mod error;
mod retry;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};

pub use error::{Error, Outcome};

use crate::cluster::net::Net;
use crate::proto;
use crate::proto::admin_client::AdminClient;
use crate::proto::key_value_client::KeyValueClient;
use crate::resilience::deadline::Deadline;
use crate::resilience::retry::{Budget, Retry};

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
        }
    }
}

/// A client. Cheap to share by reference; all calls may run at once.
#[derive(Debug)]
pub struct Client {
    channels: Vec<Channel>,
    // Relaxed: only spreads load.
    next: AtomicUsize,
    options: Options,
    budget: Budget,
}

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
        Self::with_connections(options, |endpoint| endpoint.connect_lazy())
    }

    /// The same over a network of the caller's choice.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn over(net: &Arc<dyn Net>, options: Options) -> Result<Self, Error> {
        let connect = |endpoint: Endpoint| {
            let net = Arc::clone(net);
            endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
                let net = Arc::clone(&net);
                async move {
                    let address = uri.authority().map_or("", |authority| authority.as_str());
                    net.connect(address).await.map(TokioIo::new)
                }
            }))
        };
        Self::with_connections(options, connect)
    }

    fn with_connections(
        options: Options,
        connect: impl Fn(Endpoint) -> Channel,
    ) -> Result<Self, Error> {
        let mut channels = Vec::new();
        for _ in 0..options.channels.max(1) {
            for uri in &options.endpoints {
                let invalid = |why: String| Error::Endpoint { uri: uri.clone(), why };
                if !uri.starts_with("http://") {
                    return Err(invalid("it must begin with http://".to_owned()));
                }
                let endpoint =
                    Endpoint::from_shared(uri.clone()).map_err(|e| invalid(e.to_string()))?;
                let endpoint = endpoint
                    .user_agent(concat!("pairdb-client/", env!("CARGO_PKG_VERSION")))
                    .map_err(|e| invalid(e.to_string()))?
                    .connect_timeout(options.connect_timeout)
                    .initial_stream_window_size(1 << 20)
                    .initial_connection_window_size(8 << 20)
                    .http2_keep_alive_interval(Duration::from_secs(30))
                    .keep_alive_timeout(Duration::from_secs(10))
                    .tcp_nodelay(true);
                channels.push(connect(endpoint));
            }
        }
        if channels.is_empty() {
            let why = "none is given".to_owned();
            return Err(Error::Endpoint { uri: String::new(), why });
        }
        Ok(Self { channels, next: AtomicUsize::new(0), options, budget: retry::budget() })
    }

    fn channel(&self) -> Channel {
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        self.channels[at].clone()
    }

    /// The raw client of the `KeyValue` service, on the next connection.
    pub fn key_value(&self) -> KeyValueClient<Channel> {
        KeyValueClient::new(self.channel())
            .max_decoding_message_size(self.options.message_bytes_max)
    }

    /// The raw client of the `Admin` service, on the next connection.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel()).max_decoding_message_size(self.options.message_bytes_max)
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
        self.call(message, Kind::Read, async |client, request| client.read(request).await).await
    }

    /// Reads many rows.
    ///
    /// # Errors
    /// See [`Error`]; a row that cannot be read fails alone, in the answer.
    pub async fn batch_read(
        &self,
        tenant: &str,
        keys: Vec<Bytes>,
    ) -> Result<Vec<proto::BatchReadResult>, Error> {
        let (tenant, consistency) = (tenant.to_owned(), self.options.consistency.into());
        let message = proto::BatchReadRequest { tenant, keys, consistency, ..Default::default() };
        let call =
            async |client: &mut KeyValueClient<Channel>, request| client.batch_read(request).await;
        Ok(self.call(message, Kind::Read, call).await?.results)
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
        self.call(message, Kind::Write, async |client, request| client.write(request).await).await
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
        self.call(message, Kind::Write, async |client, request| client.delete(request).await).await
    }

    /// Writes and deletes many keys.
    ///
    /// # Errors
    /// See [`Error`]; a mutation that fails does so alone, in the answer.
    pub async fn batch_write(
        &self,
        tenant: &str,
        mut mutations: Vec<proto::Mutation>,
    ) -> Result<Vec<proto::BatchWriteResult>, Error> {
        for mutation in &mut mutations {
            self.name_write(&mut mutation.idempotency_key);
        }
        let tenant = tenant.to_owned();
        let consistency = self.options.consistency.into();
        let message = proto::BatchWriteRequest { tenant, mutations, consistency };
        let call =
            async |client: &mut KeyValueClient<Channel>, request| client.batch_write(request).await;
        Ok(self.call(message, Kind::Write, call).await?.results)
    }

    /// Begins a scan. It has no timeout and no retry: a cursor goes on where it broke.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn scan(
        &self,
        mut message: proto::ScanRequest,
    ) -> Result<Streaming<proto::ScanResponse>, Error> {
        self.level(&mut message.consistency);
        let answer = self.key_value().scan(message).await;
        Ok(answer.map_err(|status| Error::of(&status, false))?.into_inner())
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
        self.call(message, Kind::Read, call).await
    }

    /// Opens a pipeline that takes `ahead` operations before the sender waits.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn pipeline(&self, ahead: usize) -> Result<Pipeline, Error> {
        let (requests, receiver) = mpsc::channel(ahead.max(1));
        let answers = self.key_value().pipeline(ReceiverStream::new(receiver)).await;
        let answers = answers.map_err(|status| Error::of(&status, false))?.into_inner();
        Ok(Pipeline { requests, answers })
    }

    /// Calls the `Admin` service once, within the timeout.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn admin_call<M, T>(
        &self,
        message: M,
        call: impl AsyncFnOnce(
            &mut AdminClient<Channel>,
            Request<M>,
        ) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, Error> {
        let mut request = Request::new(message);
        request.set_timeout(self.options.timeout);
        let answer = call(&mut self.admin(), request).await;
        Ok(answer.map_err(|status| Error::of(&status, false))?.into_inner())
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

    /// Calls with retries, each with the time that is left.
    async fn call<M: Clone, T>(
        &self,
        message: M,
        kind: Kind,
        call: impl AsyncFn(
            &mut KeyValueClient<Channel>,
            Request<M>,
        ) -> Result<tonic::Response<T>, tonic::Status>,
    ) -> Result<T, Error> {
        let deadline = Deadline::after(self.options.timeout);
        let mut retry = Retry::new(retry::WAITS, self.options.retries_max, deadline, &self.budget);
        let mut unknown = false;
        loop {
            let mut request = Request::new(message.clone());
            request.set_timeout(deadline.remaining().unwrap_or(self.options.timeout));
            let error = match call(&mut self.key_value(), request).await {
                Ok(response) => {
                    retry.succeeded();
                    return Ok(response.into_inner());
                }
                Err(status) => Error::of(&status, kind == Kind::Write),
            };
            // Once an attempt may have been applied, a later refusal says nothing about it.
            unknown |= error.outcome() == Some(Outcome::Unknown);
            let error = if unknown { error.with_outcome(Outcome::Unknown) } else { error };
            let least = error.may_retry().then(|| error.retry_after().unwrap_or_default());
            match retry.failed(least, retry::random()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
        }
    }
}

/// What a failure of the transport means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
}
