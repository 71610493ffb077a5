//! Clients in a closed loop, each with one call under way, spread over the nodes.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use pairdb::client::{Client, Options};
use pairdb::proto;
use pairdb::proto::key_value_client::KeyValueClient;
use parking_lot::Mutex;
use tonic::transport::Channel;

use crate::keys::{self, Random};
use crate::nodes::Nodes;

/// The tenant of last-write-wins rows.
pub const LWW: &str = "lww";
/// The tenant of rows with siblings.
pub const SIBLINGS: &str = "default";
/// Keys that are written and read.
const KEYS: u64 = 20_000;
/// Connections to each node.
const CONNECTIONS: usize = 2;

/// What a call is.
#[derive(Clone, Copy)]
pub enum Shape {
    Read,
    Write,
}

/// How many replicas take part.
#[derive(Clone, Copy)]
pub enum Level {
    One,
    Quorum,
    All,
}

/// One kind of load.
#[derive(Clone, Copy)]
pub struct Load {
    pub shape: Shape,
    pub tenant: &'static str,
    pub level: Level,
    /// Calls under way.
    pub concurrency: u64,
}

impl Load {
    pub fn name(&self) -> String {
        let shape = match self.shape {
            Shape::Read => "read",
            Shape::Write => "write",
        };
        let level = match self.level {
            Level::One => "one",
            Level::Quorum => "quorum",
            Level::All => "all",
        };
        let mode = if self.tenant == LWW { "lww" } else { "siblings" };
        format!("{shape}/{mode}/{level}/{}", self.concurrency)
    }

    fn consistency(&self) -> i32 {
        match self.level {
            Level::One => proto::ConsistencyLevel::One.into(),
            Level::Quorum => proto::ConsistencyLevel::Quorum.into(),
            Level::All => proto::ConsistencyLevel::All.into(),
        }
    }
}

/// What became of the calls.
pub struct Outcome {
    pub latency_ns: Histogram<u64>,
    pub failed: u64,
}

/// Connections to some nodes.
pub struct Target {
    clients: Vec<KeyValueClient<Channel>>,
    /// Takes all calls instead, to nodes that hold the keys.
    direct: Option<Client>,
    /// What the last answer for each key of [`SIBLINGS`] said that a client has seen: each write
    /// replaces the one before.
    contexts: Vec<Mutex<Bytes>>,
    value: Bytes,
}

impl Target {
    /// Connects to those of the nodes.
    pub async fn connect(
        nodes: &Nodes,
        which: Range<usize>,
        value_bytes: usize,
        direct: bool,
    ) -> Arc<Self> {
        let options = || Options {
            endpoints: which.clone().map(|at| nodes.endpoint(at)).collect(),
            channels: CONNECTIONS,
            direct: true,
            // As the plain clients: without idempotency keys.
            retries_max: 0,
            ..Options::default()
        };
        let direct = direct.then(|| Client::new(options()).expect("addresses"));
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            for at in which.clone() {
                clients.push(KeyValueClient::new(nodes.channel(at).await));
            }
        }
        let contexts = (0..KEYS).map(|_| Mutex::default()).collect();
        Arc::new(Self { clients, direct, contexts, value: Bytes::from(vec![b'v'; value_bytes]) })
    }

    /// Writes every key of a tenant once.
    pub async fn fill(self: &Arc<Self>, tenant: &'static str, concurrency: u64) {
        let load = Load { shape: Shape::Write, tenant, level: Level::Quorum, concurrency };
        let worker = |worker: u64| {
            let target = Arc::clone(self);
            tokio::spawn(async move {
                let mut client = target.clients[worker as usize % target.clients.len()].clone();
                for i in (worker..KEYS).step_by(concurrency as usize) {
                    target.write(&mut client, load, i).await.expect("all nodes are up");
                }
            })
        };
        let workers: Vec<_> = (0..concurrency).map(worker).collect();
        for worker in workers {
            worker.await.expect("no worker panics");
        }
    }

    /// Calls for so long.
    pub async fn run(self: &Arc<Self>, load: Load, time: Duration) -> Outcome {
        let end = Instant::now() + time;
        let workers: Vec<_> = (0..load.concurrency)
            .map(|worker| tokio::spawn(Arc::clone(self).work(load, worker, end)))
            .collect();
        let mut outcome = Outcome { latency_ns: latencies(), failed: 0 };
        for worker in workers {
            let of_one = worker.await.expect("no worker panics");
            outcome.latency_ns.add(&of_one.latency_ns).expect("of the same bounds");
            outcome.failed += of_one.failed;
        }
        outcome
    }

    async fn work(self: Arc<Self>, load: Load, worker: u64, end: Instant) -> Outcome {
        let mut client = self.clients[worker as usize % self.clients.len()].clone();
        let mut random = Random(worker);
        let mut outcome = Outcome { latency_ns: latencies(), failed: 0 };
        let mut began = Instant::now();
        while began < end {
            // Each worker has keys of its own.
            let i = random.below(KEYS / load.concurrency) * load.concurrency + worker;
            let ended = match load.shape {
                Shape::Read => self.read(&mut client, load, i).await,
                Shape::Write => self.write(&mut client, load, i).await,
            };
            let now = Instant::now();
            match ended {
                Ok(()) => {
                    outcome.latency_ns.saturating_record((now - began).as_nanos() as u64);
                }
                Err(()) => outcome.failed += 1,
            }
            began = now;
        }
        outcome
    }

    async fn read(
        &self,
        client: &mut KeyValueClient<Channel>,
        load: Load,
        i: u64,
    ) -> Result<(), ()> {
        let read = proto::ReadRequest {
            tenant: load.tenant.to_owned(),
            key: Bytes::copy_from_slice(&keys::key(i)),
            consistency: load.consistency(),
            ..Default::default()
        };
        let row = match &self.direct {
            Some(direct) => direct.read_as(read).await.map_err(drop)?,
            None => client.read(read).await.map_err(drop)?.into_inner(),
        };
        assert_eq!(row.siblings.len(), 1, "every key was written, and each write replaced one");
        Ok(())
    }

    async fn write(
        &self,
        client: &mut KeyValueClient<Channel>,
        load: Load,
        i: u64,
    ) -> Result<(), ()> {
        let context = &self.contexts[i as usize];
        let has_context = load.tenant == SIBLINGS;
        let write = proto::WriteRequest {
            tenant: load.tenant.to_owned(),
            key: Bytes::copy_from_slice(&keys::key(i)),
            value: self.value.clone(),
            context: if has_context { context.lock().clone() } else { Bytes::new() },
            consistency: load.consistency(),
            ..Default::default()
        };
        let written = match &self.direct {
            Some(direct) => direct.write(write).await.map_err(drop)?,
            None => client.write(write).await.map_err(drop)?.into_inner(),
        };
        if has_context {
            *context.lock() = written.context;
        }
        Ok(())
    }
}

/// For what calls take.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_max(60_000_000_000, 3).expect("the bounds are constants")
}
