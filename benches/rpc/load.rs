//! The client side: the same for every server.
//!
//! Each worker has keys of its own, so that a write can carry the context of the write before it
//! and no siblings pile up. Every answer is looked at: a failure ends the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use pairdb::proto::key_value_client::KeyValueClient;
use pairdb::proto::pipeline_request::Operation;
use pairdb::proto::{self, batch_read_result, batch_write_result, mutation, pipeline_response};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::keys::{self, Random};

pub const VALUE_BYTES: usize = 100;
/// Pairs of a batch call.
pub const BATCH: u64 = 100;
/// Operations in flight on each pipeline.
pub const WINDOW: u64 = 256;

/// The tenant of last-write-wins rows.
pub const LWW: &str = "lww";
/// The tenant of rows with siblings.
pub const SIBLINGS: &str = "siblings";

const CONNECTIONS: usize = 4;
static VALUE: [u8; VALUE_BYTES] = [b'v'; VALUE_BYTES];

/// What a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Read,
    Write,
    BatchRead,
    BatchWrite,
    PipelineRead,
    PipelineWrite,
}

/// One kind of load.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub shape: Shape,
    pub tenant: &'static str,
    /// Calls in flight; streams for pipelines.
    pub concurrency: u64,
    /// Keys there are.
    pub keys: u64,
}

impl Load {
    /// Pairs that one latency stands for.
    pub fn pairs(&self) -> u64 {
        match self.shape {
            Shape::BatchRead | Shape::BatchWrite => BATCH,
            _ => 1,
        }
    }
}

/// A server, with what its last answer for each key said a client has seen.
#[derive(Debug)]
pub struct Target {
    clients: Vec<KeyValueClient<Channel>>,
    contexts: Vec<Mutex<Bytes>>,
}

/// The i-th key: 16 bytes.
fn key(i: u64) -> Bytes {
    Bytes::copy_from_slice(&keys::key(i))
}

fn latencies() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("the bounds are constants")
}

impl Target {
    /// Connects to a server.
    pub async fn connect(address: &str, keys: u64) -> Arc<Self> {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            let endpoint = endpoint
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(8 << 20);
            clients.push(KeyValueClient::new(endpoint.connect().await.expect("it listens")));
        }
        let contexts = (0..keys).map(|_| Mutex::default()).collect();
        Arc::new(Self { clients, contexts })
    }

    fn client(&self, at: u64) -> KeyValueClient<Channel> {
        self.clients[at as usize % CONNECTIONS].clone()
    }

    /// Writes every key of a tenant once.
    pub async fn fill(&self, tenant: &'static str) {
        let load = Load {
            shape: Shape::BatchWrite,
            tenant,
            concurrency: 1,
            keys: self.contexts.len() as u64,
        };
        let mut client = self.client(0);
        for first in (0..load.keys).step_by(BATCH as usize) {
            let own: Vec<u64> = (first..load.keys.min(first + BATCH)).collect();
            self.batch_write(&mut client, &load, &own).await;
        }
    }

    /// One answer of each kind.
    pub async fn sample(&self, tenant: &'static str) -> super::echo::Sample {
        let mut client = self.client(0);
        let write = client.write(self.write_request(tenant, 0)).await.expect("a write");
        let write = write.into_inner();
        self.seen(tenant, 0, &write.context);
        let read = client.read(read_request(tenant, 0)).await.expect("a read").into_inner();
        super::echo::Sample { read, write }
    }

    /// Puts the load on the server for about `time`: latencies and the time it took.
    pub async fn run(
        self: &Arc<Self>,
        load: Load,
        time: Duration,
        seed: u64,
    ) -> (Histogram<u64>, Duration) {
        let start = Instant::now();
        let until = start + time;
        let workers: Vec<_> = (0..load.concurrency)
            .map(|index| {
                let target = Arc::clone(self);
                tokio::spawn(async move {
                    match load.shape {
                        Shape::PipelineRead | Shape::PipelineWrite => {
                            target.pipeline(load, index, until, seed).await
                        }
                        _ => target.calls(load, index, until, seed).await,
                    }
                })
            })
            .collect();
        let mut all = latencies();
        for worker in workers {
            all.add(worker.await.expect("no call failed")).expect("the same bounds");
        }
        (all, start.elapsed())
    }

    /// One call after the other.
    async fn calls(&self, load: Load, index: u64, until: Instant, seed: u64) -> Histogram<u64> {
        let mut client = self.client(index);
        let mut random = Random(seed ^ index.wrapping_mul(0xA076_1D64_78BD_642F));
        let mut latency = latencies();
        let own = load.keys / load.concurrency;
        let mut before = Instant::now();
        while before < until {
            let of_own = |at: u64| index + load.concurrency * (at % own);
            let at = random.below(own);
            match load.shape {
                Shape::Read => {
                    let request = read_request(load.tenant, of_own(at));
                    check_row(client.read(request).await.expect("a read").get_ref());
                }
                Shape::Write => {
                    let request = self.write_request(load.tenant, of_own(at));
                    let written = client.write(request).await.expect("a write").into_inner();
                    self.seen(load.tenant, of_own(at), &written.context);
                }
                Shape::BatchRead => {
                    let keys = (0..BATCH).map(|next| key(of_own(at + next))).collect();
                    let tenant = load.tenant.to_owned();
                    let request = proto::BatchReadRequest { tenant, keys, ..Default::default() };
                    let rows = client.batch_read(request).await.expect("a batch").into_inner();
                    assert_eq!(rows.results.len() as u64, BATCH);
                    for row in &rows.results {
                        match &row.result {
                            Some(batch_read_result::Result::Row(row)) => check_row(row),
                            other => panic!("{other:?}"),
                        }
                    }
                }
                _ => {
                    let own: Vec<u64> = (0..BATCH).map(|next| of_own(at + next)).collect();
                    self.batch_write(&mut client, &load, &own).await;
                }
            }
            let now = Instant::now();
            latency.saturating_record((now - before).as_nanos() as u64);
            before = now;
        }
        latency
    }

    async fn batch_write(&self, client: &mut KeyValueClient<Channel>, load: &Load, own: &[u64]) {
        let mutation = |at: &u64| proto::Mutation {
            key: key(*at),
            change: Some(mutation::Change::Value(Bytes::from_static(&VALUE))),
            context: self.context(load.tenant, *at),
            ..Default::default()
        };
        let request = proto::BatchWriteRequest {
            tenant: load.tenant.to_owned(),
            mutations: own.iter().map(mutation).collect(),
            ..Default::default()
        };
        let answer = client.batch_write(request).await.expect("a batch").into_inner();
        assert_eq!(answer.results.len(), own.len());
        for (at, result) in own.iter().zip(&answer.results) {
            match &result.result {
                Some(batch_write_result::Result::Written(written)) => {
                    self.seen(load.tenant, *at, &written.context);
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// A stream with a window of operations in flight, one a message.
    async fn pipeline(&self, load: Load, index: u64, until: Instant, seed: u64) -> Histogram<u64> {
        let mut client = self.client(index);
        let mut random = Random(seed ^ index.wrapping_mul(0xA076_1D64_78BD_642F));
        let mut latency = latencies();
        // A key is in flight once at most: each slot has its own.
        let slots = load.concurrency * WINDOW;
        let own = load.keys / slots;
        let mut pick = |slot: u64| index * WINDOW + slot + slots * random.below(own);
        let request = |slot: u64, at: u64| proto::PipelineRequest {
            tag: slot,
            operation: Some(match load.shape {
                Shape::PipelineRead => Operation::Read(read_request(load.tenant, at)),
                _ => Operation::Write(self.write_request(load.tenant, at)),
            }),
        };
        let (sender, receiver) = mpsc::channel(WINDOW as usize);
        let mut in_flight: Vec<(Instant, u64)> = Vec::new();
        for slot in 0..WINDOW {
            let at = pick(slot);
            in_flight.push((Instant::now(), at));
            sender.try_send(request(slot, at)).expect("a place for each slot");
        }
        let answers = client.pipeline(ReceiverStream::new(receiver)).await.expect("a stream");
        let mut answers = answers.into_inner();
        let mut open = WINDOW;
        while open > 0 {
            let answer = answers.message().await.expect("an answer").expect("one for each slot");
            let (before, at) = in_flight[answer.tag as usize];
            match &answer.result {
                Some(pipeline_response::Result::Read(row)) => check_row(row),
                Some(pipeline_response::Result::Written(written)) => {
                    self.seen(load.tenant, at, &written.context);
                }
                other => panic!("{other:?}"),
            }
            let now = Instant::now();
            latency.saturating_record((now - before).as_nanos() as u64);
            if now >= until {
                open -= 1;
                continue;
            }
            let at = pick(answer.tag);
            in_flight[answer.tag as usize] = (now, at);
            sender.try_send(request(answer.tag, at)).expect("a place for each slot");
        }
        latency
    }

    fn write_request(&self, tenant: &str, at: u64) -> proto::WriteRequest {
        proto::WriteRequest {
            tenant: tenant.to_owned(),
            key: key(at),
            value: Bytes::from_static(&VALUE),
            context: self.context(tenant, at),
            ..Default::default()
        }
    }

    fn context(&self, tenant: &str, at: u64) -> Bytes {
        if tenant == SIBLINGS { self.contexts[at as usize].lock().clone() } else { Bytes::new() }
    }

    fn seen(&self, tenant: &str, at: u64, context: &Bytes) {
        if tenant == SIBLINGS {
            // A copy: a slice would keep the whole receive buffer.
            *self.contexts[at as usize].lock() = Bytes::copy_from_slice(context);
        }
    }
}

fn read_request(tenant: &str, at: u64) -> proto::ReadRequest {
    proto::ReadRequest { tenant: tenant.to_owned(), key: key(at), ..Default::default() }
}

fn check_row(row: &proto::ReadResponse) {
    assert!(row.siblings.len() == 1 && row.siblings[0].value.len() == VALUE_BYTES, "{row:?}");
}
