//! A disk that hangs: what writers are told while their write is on its way to it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use pairdb::engine::vfs::fault::{Fault, FaultVfs, Operation};
use pairdb::engine::vfs::mem::MemVfs;
use pairdb::ops::node::Node;
use pairdb::ops::world::World;
use pairdb::proto::key_value_client::KeyValueClient;
use pairdb::proto::mutation::Change;
use pairdb::proto::{
    BatchReadRequest, BatchWriteRequest, Mutation, Outcome, PipelineRequest, PipelineResponse,
    ReadRequest, ScanRequest, WriteResponse, pipeline_request, pipeline_response,
};
use pairdb::store::environment::{Environment, SeededRandom, SystemClock};
use parking_lot::{Condvar, Mutex};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::admin;
use crate::node::{config, connect, read, refusal, values, write};

/// Longest wait for what nothing is in the way of.
const PATIENCE: Duration = Duration::from_secs(30);
/// Times that others are answered while a reader is not: it is not only late.
const OTHERS: usize = 20;

/// Syncs of the commit log wait while it is closed.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock() = closed;
        self.opened.notify_all();
    }

    fn pass(&self) {
        let mut closed = self.closed.lock();
        self.opened.wait_while(&mut closed, |closed| *closed);
    }
}

/// Opens the gate at the end, however a test ends: the runtime waits for the threads behind it.
struct OpenAtEnd(Arc<Gate>);

impl Drop for OpenAtEnd {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl std::ops::Deref for OpenAtEnd {
    type Target = Gate;

    fn deref(&self) -> &Gate {
        &self.0
    }
}

fn batch(keys: [&'static str; 2]) -> BatchReadRequest {
    let keys = keys.map(|key| Bytes::from_static(key.as_bytes())).to_vec();
    BatchReadRequest { tenant: read("").tenant, keys, ..Default::default() }
}

/// A write that waits for the disk.
type Writing = JoinHandle<Result<Response<WriteResponse>, Status>>;

/// A node on a disk in memory that hangs when it is told to.
struct Stalling {
    gate: OpenAtEnd,
    /// Tables are not written while it is closed.
    tables: OpenAtEnd,
    /// A message for every sync of the log that begins.
    syncs: mpsc::UnboundedReceiver<()>,
    disk: FaultVfs,
    node: Node,
    client: KeyValueClient<Channel>,
}

impl Stalling {
    async fn start() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let (gate, tables) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let (told, syncs) = mpsc::unbounded_channel();
        let disk = FaultVfs::new(Arc::new(MemVfs::new()));
        disk.hold_calls({
            let (gate, tables) = (Arc::clone(&gate), Arc::clone(&tables));
            move |call| {
                if call.path.extension().is_some_and(|end| end == "sst") {
                    tables.pass();
                }
                let is_log = call.path.extension().is_some_and(|end| end == "log");
                if call.operation == Operation::SyncData && is_log {
                    // The test may be over.
                    let _ = told.send(());
                    gate.pass();
                }
            }
        });
        let clock = Arc::new(SystemClock::new());
        let environment = Environment {
            vfs: Arc::new(disk.clone()),
            clock: Arc::clone(&clock) as _,
            monotonic: clock,
            random: Arc::new(SeededRandom::new(1)),
        };
        let world = World { environment, ..World::real() };
        let node = Node::start_in(config("/node".as_ref(), settings), world).await;
        let node = node.expect("starts");
        let client = KeyValueClient::new(connect(&node.ready.listen).await);
        let (gate, tables) = (OpenAtEnd(gate), OpenAtEnd(tables));
        Self { gate, tables, syncs, disk, node, client }
    }

    /// Returns when the next sync hangs at the closed gate.
    async fn hang(&mut self) {
        self.syncs.recv().await.expect("a sync begins");
    }

    /// The next sync of the log hangs.
    fn close_gate(&mut self) {
        self.gate.set(true);
        while self.syncs.try_recv().is_ok() {}
    }

    /// Begins to write a key; returns when the value is in memory. The gate is closed: it is on its
    /// way to the disk, and does not arrive.
    async fn begin(&self, key: &'static str) -> Writing {
        let before = self.figure("pairdb_memtable_entries").await;
        let mut client = self.client.clone();
        let writing = tokio::spawn(async move { client.write(write(key, "v")).await });
        let taken = async {
            while self.figure("pairdb_memtable_entries").await == before {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, taken).await.expect("the write arrives");
        writing
    }

    /// A figure that is shown to operators; none is 0.
    async fn figure(&self, name: &str) -> u64 {
        let (_, text) = admin::get(&self.node.ready.admin_listen, "/metrics").await;
        let value = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(value).unwrap_or(0)
    }

    /// Writes whose outcome was counted as `outcome`.
    async fn counted(&self, outcome: &str) -> u64 {
        self.figure(&format!("pairdb_rpc_writes_total{{outcome=\"{outcome}\"}}")).await
    }

    /// The answers of a pipeline with one read.
    async fn pipelined(&self, read: ReadRequest) -> Streaming<PipelineResponse> {
        let operation = Some(pipeline_request::Operation::Read(read));
        let request = PipelineRequest { tag: 1, operation };
        let requests = tokio_stream::iter([request]);
        self.client.clone().pipeline(requests).await.expect("opens").into_inner()
    }

    async fn stop(self) {
        self.node.stop(&CancellationToken::new()).await.expect("stops cleanly");
    }
}

/// A write that was submitted and is not durable when its time is over is unknown to its writer.
/// When the disk goes on it is there, and it is counted as what it became.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_passes_after_the_submission_leaves_the_outcome_unknown() {
    // The server's own limit: a client's would end the call on both sides at once, and who is first
    // is chance. Long enough for the writes that do not hang.
    let mut node = Stalling::with(&[("limits.deadline_max", "2s")]).await;
    node.client.write(write("before", "v")).await.expect("written");
    node.close_gate();
    let status = node.client.write(write("late", "v")).await.expect_err("the disk hangs");
    let expected = (Code::DeadlineExceeded, "DEADLINE_EXCEEDED".to_owned(), Some("unknown".into()));
    assert_eq!(refusal(&status), expected);
    assert_eq!(node.counted("ok").await, 1, "nobody knows yet what becomes of it");
    node.gate.set(false);
    node.client.write(write("after", "v")).await.expect("the disk is back");
    assert_eq!(values(&node.client.read(read("late")).await.expect("read").into_inner()), ["v"]);
    assert_eq!(node.counted("ok").await, 3);
    node.stop().await;
}

/// A value whose sync is under way is shown when the sync has ended, whichever way it is read: who
/// saw it before could miss it after a power loss. Other values are shown meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_shown_when_it_is_durable() {
    let mut node = Stalling::start().await;
    node.client.write(write("old", "v")).await.expect("written");
    node.close_gate();
    let call = node.begin("new").await;

    let mut client = node.client.clone();
    let one = tokio::spawn(async move { client.read(read("new")).await });
    let mut client = node.client.clone();
    let both = tokio::spawn(async move { client.batch_read(batch(["old", "new"])).await });
    let mut client = node.client.clone();
    let page = tokio::spawn(async move {
        let tenant = read("new").tenant;
        let scan = ScanRequest { tenant, ..Default::default() };
        let mut pages = client.scan(scan).await.expect("scans").into_inner();
        pages.message().await.expect("a page").expect("a page").rows.len()
    });
    let mut pipelined = node.pipelined(read("new")).await;
    let others = async {
        for _ in 0..OTHERS {
            for (key, expected) in [("old", &["v"][..]), ("none", &[])] {
                let row = node.client.clone().read(read(key)).await.expect("read").into_inner();
                assert_eq!(values(&row), expected);
            }
            node.client.clone().batch_read(batch(["old", "none"])).await.expect("read");
            let mut answers = node.pipelined(read("old")).await;
            answers.message().await.expect("open").expect("an answer");
        }
    };
    tokio::time::timeout(PATIENCE, others).await.expect("other values are shown meanwhile");
    assert!(pipelined.message().now_or_never().is_none(), "it may be lost yet");
    assert!(!one.is_finished() && !both.is_finished() && !page.is_finished());

    node.gate.set(false);
    call.await.expect("no panic").expect("written");
    assert_eq!(values(&one.await.expect("no panic").expect("read").into_inner()), ["v"]);
    let both = both.await.expect("no panic").expect("read").into_inner();
    assert_eq!(both.results.len(), 2);
    assert_eq!(page.await.expect("no panic"), 2);
    let answer = pipelined.message().await.expect("open").expect("an answer");
    assert!(matches!(answer.result, Some(pipeline_response::Result::Read(_))), "{answer:?}");
    node.stop().await;
}

/// A caller that goes away takes nothing back and nothing with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_dropped_loses_nothing() {
    let mut node = Stalling::start().await;
    node.close_gate();
    let call = node.begin("dropped").await;
    call.abort();
    assert!(call.await.expect_err("it was aborted").is_cancelled());
    node.gate.set(false);
    node.client.write(write("after", "v")).await.expect("the disk is back");
    let row = node.client.read(read("dropped")).await.expect("read").into_inner();
    assert_eq!(values(&row), ["v"]);
    assert_eq!(node.counted("ok").await, 2);
    node.stop().await;
}

/// A stop is bounded although a write hangs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_does_not_wait_for_a_disk_that_hangs() {
    let mut node = Stalling::with(&[("node.shutdown_timeout", "300ms")]).await;
    node.close_gate();
    let mut client = node.client.clone();
    let call = tokio::spawn(async move { client.write(write("k", "v")).await });
    node.hang().await;
    // It would wait for ever: the gate is closed until the node has stopped.
    node.node.stop(&CancellationToken::new()).await.expect("stops without a flush");
    node.gate.set(false);
    // Answered after all, or cut: the connection ends some time after the listener.
    let _ = call.await.expect("no panic");
}

/// A sync that fails leaves its write unknown; every later write is refused as what it is, and not
/// as if the store were only behind. Nothing is read any more: the failed write may be on disk or
/// not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_log_failed_says_so_and_not_that_it_is_busy() {
    let mut node = Stalling::start().await;
    node.client.write(write("before", "v")).await.expect("written");
    node.disk.inject(Fault {
        operation: Some(Operation::SyncData),
        path_contains: ".log".to_owned(),
        ..Fault::default()
    });
    let status = node.client.write(write("failed", "v")).await.expect_err("the sync fails");
    assert_eq!(refusal(&status).2.as_deref(), Some("unknown"));
    for _ in 0..2 {
        let status = node.client.write(write("later", "v")).await.expect_err("read-only");
        let expected = (Code::Unavailable, "READ_ONLY".to_owned(), Some("not_applied".to_owned()));
        assert_eq!(refusal(&status), expected);
    }
    for key in ["before", "failed"] {
        let status =
            node.client.read(read(key)).await.expect_err("it knows no more what is on disk");
        assert_eq!(refusal(&status).0, Code::Unavailable);
        assert_eq!(refusal(&status).1, "READ_ONLY");
    }
    assert_eq!((node.counted("ok").await, node.counted("unknown").await), (1, 1));
    assert_eq!(node.counted("not_applied").await, 2);
    let closed = node.node.stop(&CancellationToken::new()).await;
    closed.expect_err("what the log lost cannot be flushed");
}

/// A write that waits for the store to catch up was not submitted. When the node stops it is not
/// kept waiting, and its client is told what became of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_held_back_on_a_pipeline_is_told_of_a_stop() {
    let settings = [
        ("limits.delay_max", "1h"),
        ("engine.memtable_bytes", "1MiB"),
        ("engine.sealed_memtables_max", "1"),
    ];
    let mut node = Stalling::with(&settings).await;
    node.tables.set(true);
    // Two fill a memtable; with the third, one waits for its flush and one is more than half full.
    for key in ["1", "2", "3"] {
        node.client.write(write(key, &"v".repeat(600 << 10))).await.expect("written");
    }
    // Its delay is longer than a unary call may take.
    let change = Some(Change::Value("v".into()));
    let mutation = Mutation { key: "k".into(), change, ..Default::default() };
    let (tenant, mutations) = ("default".into(), vec![mutation; 3]);
    let batch = BatchWriteRequest { tenant, mutations, ..Default::default() };
    let status = node.client.batch_write(batch).await.expect_err("no time");
    assert_eq!(refusal(&status).2.as_deref(), Some("not_applied"));
    assert_eq!(node.counted("not_applied").await, 3, "each of a batch");

    let (sender, requests) = mpsc::channel(1);
    let operation = Some(pipeline_request::Operation::Write(write("held", "v")));
    sender.send(PipelineRequest { tag: 1, operation }).await.expect("open");
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut stream = node.client.pipeline(requests).await.expect("opens").into_inner();
    while node.figure("pairdb_rpc_pipeline_operations_total").await == 0 {}
    let early = tokio::time::timeout(Duration::from_millis(200), stream.message()).await;
    early.expect_err("it is held back");
    let Stalling { node, tables, .. } = node;
    let stopping = tokio::spawn(async move { node.stop(&CancellationToken::new()).await });
    let answer = stream.message().await.expect("the answer comes first").expect("an answer");
    let Some(pipeline_response::Result::Failure(failure)) = answer.result else {
        panic!("{answer:?}")
    };
    assert_eq!((failure.reason.as_str(), failure.outcome()), ("STOPPING", Outcome::NotApplied));
    let status = stream.message().await.expect_err("the node stops");
    assert_eq!(refusal(&status).1, "STOPPING");
    tables.set(false);
    stopping.await.expect("no panic").expect("stops");
}
