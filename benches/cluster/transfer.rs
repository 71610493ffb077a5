//! How fast rows move when nodes come and go, and what clients notice of it.
//!
//! Three nodes hold the rows three times. A fourth joins and is drained again, at the default rate
//! (or at others) under a steady load, and once more with no limit and no load. What moves is
//! counted by the nodes: bytes of rows that were fetched or given away. Before each change the load
//! runs alone, and once more when the change has begun and no row moves yet: under a Joint layout
//! calls need a quorum of both sets, which costs what it costs at any rate. How far a change is, is
//! asked over a connection that stays open: to start a program that asks takes a core for tens of
//! milliseconds, which is as much as clients notice of the change.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pairdb::proto::admin_client::AdminClient;
use pairdb::proto::key_value_client::KeyValueClient;
use pairdb::proto::{self, TransitionPhase};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

use crate::figures::{cpu_s, tables_written, transferred};
use crate::host::Host;
use crate::keys::{self, Random};
use crate::nodes::Nodes;
use crate::steady::{self, Steady};
use crate::{floor, load};

/// Rows of a batch when the nodes are filled.
const BATCH: u64 = 100;
/// Batches under way.
const BATCHES: u64 = 8;
/// How long the load is watched while nothing moves.
const HEALTHY: Duration = Duration::from_secs(30);
/// No flush and no compaction for so long, and there is none to come: tables of level 0 that are a
/// minute old are compacted.
const AT_REST: Duration = Duration::from_secs(70);
/// How often it is looked how far a change is.
const LOOK: Duration = Duration::from_millis(250);
/// Longest wait for a change.
const PATIENCE: Duration = Duration::from_secs(3600);
/// So many bytes a second that after the first pages no row moves.
const HELD: u64 = 1;
/// The rate limit of a node that joins, as a setting.
const RATE: &str = "PAIRDB__CLUSTER__TRANSFER_RATE_BYTES";

const MIB: f64 = (1 << 20) as f64;

/// What moves, and beside what.
pub struct Plan<'a> {
    /// Of all rows.
    pub bytes: u64,
    pub value_bytes: usize,
    /// Beside a load too, at each of these rates in MiB a second.
    pub beside: &'a [u64],
    /// Of the nodes, in their order.
    pub disks: &'a [PathBuf],
}

/// All of it.
pub fn run(runtime: &Runtime, plan: &Plan<'_>) {
    let Plan { bytes, value_bytes, beside, disks } = *plan;
    let floor = (floor::disk_mib_per_s(&disks[0]), floor::stream_mib_per_s(runtime, value_bytes));
    println!(
        "{{\"workload\":\"floor\",\"disk_mib_per_s\":{:.0},\"stream_mib_per_s\":{:.0}}}",
        floor.0, floor.1
    );
    let floor = floor.0.min(floor.1);
    let mut nodes = Nodes::start_on(disks, 3);
    nodes.ok(0, &["tenant", "create", load::LWW, "--mode", "last-write-wins"]);
    let rows = bytes / (value_bytes as u64 + 16);
    let began = Instant::now();
    runtime.block_on(fill(&nodes, rows, value_bytes));
    let fill = (rows + steady::KEYS) as f64 * (value_bytes + 16) as f64 / MIB;
    println!(
        "{{\"workload\":\"fill\",\"rows\":{rows},\"mib\":{fill:.0},\"mib_per_s\":{:.1}}}",
        fill / began.elapsed().as_secs_f64()
    );
    let share = fill * 3.0 / 4.0;
    until_at_rest(&nodes);
    // The second one, so that clients of the first are served meanwhile.
    let began = Instant::now();
    assert_eq!(nodes.stop(1), 0, "a clean stop");
    let stopped = began.elapsed();
    nodes.restart(1);
    println!(
        "{{\"workload\":\"restart\",\"mib\":{fill:.0},\"stopped_ms\":{},\"ready_ms\":{}}}",
        stopped.as_millis(),
        (began.elapsed() - stopped).as_millis()
    );
    (0..3).for_each(|at| nodes.wait_until_up(at, 3));
    let host = Host::watch();
    let moving = Moving { runtime, host, share, floor };
    for rate in beside {
        moving.there_and_back(&mut nodes, Some(value_bytes), *rate);
    }
    moving.there_and_back(&mut nodes, None, 0);
}

struct Moving<'r> {
    runtime: &'r Runtime,
    host: Host,
    /// MiB that a fourth node owns.
    share: f64,
    /// MiB a second of the slower of disk and stream.
    floor: f64,
}

impl Moving<'_> {
    /// A node joins and is drained, at so many MiB a second for each node (0: as fast as it goes),
    /// alone or beside a load of so large values.
    fn there_and_back(&self, nodes: &mut Nodes, load: Option<usize>, mib_per_s: u64) {
        let start = |nodes: &Nodes| load.map(|bytes| Steady::start(self.runtime, nodes, bytes));
        let alone = |nodes: &Nodes, phase: &str, count: usize| {
            let Some(steady) = start(nodes) else { return };
            std::thread::sleep(HEALTHY);
            let told = steady.end(self.runtime, &self.host);
            println!(
                "{{\"workload\":\"load alone\",\"nodes\":{count},\"phase\":\"{phase}\",{told}}}"
            );
        };
        // By those that stay, and by the newcomer while it is there.
        let used = |nodes: &Nodes, newcomer: Option<usize>| {
            let which = || [Some(0..3), newcomer.map(|at| at..at + 1)].into_iter().flatten();
            let cpu: f64 = which().map(|some| cpu_s(nodes, some)).sum();
            (cpu, which().map(|some| transferred(nodes, some)).sum::<f64>())
        };
        let rate = mib_per_s << 20;
        // Beside a load no row moves before it was seen what the change costs without.
        let at_first = if load.is_some() { HELD } else { rate };
        let is_joint = |phase, _: &[proto::NodeEntry]| phase == TransitionPhase::Joint;
        let is_stable = |phase, _: &[proto::NodeEntry]| phase == TransitionPhase::Stable;
        // What was used before rows move, when that is, and the load beside them. Of a change that
        // is held, it is seen first what it costs.
        let at_once = |nodes: &Nodes| (used(nodes, None), Instant::now(), None);
        let let_go = |nodes: &Nodes, joined: usize, newcomer: Option<usize>| {
            self.until(nodes, Instant::now(), is_joint);
            alone(nodes, "joint", 4);
            let begun = (used(nodes, newcomer), Instant::now(), start(nodes));
            self.set_rate(nodes, (0..3).chain([joined]), rate);
            begun
        };
        let limit = format!("{mib_per_s}MiB");

        self.set_rate(nodes, 0..3, at_first);
        alone(nodes, "stable", 3);
        let mut begun = at_once(nodes);
        let joined = nodes.join_with(&[(RATE.to_owned(), format!("{at_first}B"))]);
        let name = format!("n{joined}");
        if load.is_some() {
            begun = let_go(nodes, joined, Some(joined));
        }
        let (before, began, running) = begun;
        let owned = self.until(nodes, began, |phase, nodes| {
            let is_owner = |node: &proto::NodeEntry| node.name == name && node.state == "normal";
            phase != TransitionPhase::Joint && nodes.iter().any(is_owner)
        });
        let settled = self.until(nodes, began, is_stable);
        let after = used(nodes, Some(joined));
        let moved = (after.0 - before.0, after.1 - before.1);
        self.tell(("join", &limit), running, moved, (owned, settled));

        self.set_rate(nodes, (0..3).chain([joined]), at_first);
        alone(nodes, "stable", 4);
        let (before, began, running) = match load {
            None => at_once(nodes),
            Some(_) => {
                nodes.ok(0, &["drain", &name]);
                let_go(nodes, joined, None)
            }
        };
        nodes.ok(0, &["drain", &name, "--wait"]);
        let left = began.elapsed();
        assert_eq!(nodes.wait(joined), 0, "it has left");
        let settled = self.until(nodes, began, is_stable);
        let after = used(nodes, None);
        let moved = (after.0 - before.0, after.1 - before.1);
        self.tell(("drain", &limit), running, moved, (left, settled));
    }

    /// How fast rows may move: bytes a second.
    fn set_rate(&self, nodes: &Nodes, which: impl IntoIterator<Item = usize>, rate: u64) {
        for at in which {
            self.runtime.block_on(async {
                let request = proto::SetTransferRateRequest { bytes_per_second: Some(rate) };
                let mut admin = AdminClient::new(nodes.channel(at).await);
                admin.set_transfer_rate(request).await.expect("it is set");
            });
        }
    }

    /// Waits until the layout is so: its phase, and the nodes. When it was.
    fn until(
        &self,
        nodes: &Nodes,
        began: Instant,
        is_so: impl Fn(TransitionPhase, &[proto::NodeEntry]) -> bool,
    ) -> Duration {
        self.runtime.block_on(async {
            let mut admin = AdminClient::new(nodes.channel(0).await);
            loop {
                let told = admin.cluster_status(proto::ClusterStatusRequest::default()).await;
                let told = told.expect("it answers").into_inner();
                let layout = told.layout.expect("there is a layout");
                if is_so(layout.state.expect("it has a state").phase(), &told.nodes) {
                    return began.elapsed();
                }
                assert!(began.elapsed() < PATIENCE, "it does not end: {:?}", told.nodes);
                tokio::time::sleep(LOOK).await;
            }
        })
    }

    fn tell(
        &self,
        (what, limit): (&str, &str),
        load: Option<Steady>,
        (cpu_s, moved): (f64, f64),
        (done, settled): (Duration, Duration),
    ) {
        let rate = moved / MIB / done.as_secs_f64();
        let load = match load {
            Some(load) => format!(",{}", load.end(self.runtime, &self.host)),
            None => format!(",\"of_floor\":{:.2}", rate / self.floor),
        };
        println!(
            "{{\"workload\":\"{what}\",\"limit\":\"{limit}\",\"moved_mib\":{:.0},\
             \"of_ideal\":{:.3},\"seconds\":{:.1},\"settled_after_s\":{:.1},\
             \"mib_per_s\":{rate:.1},\"cpu_s\":{cpu_s:.1}{load}}}",
            moved / MIB,
            moved / MIB / self.share,
            done.as_secs_f64(),
            settled.as_secs_f64(),
        );
    }
}

/// Waits until the engines have nothing left to do of what was filled.
fn until_at_rest(nodes: &Nodes) {
    let (began, mut since) = (Instant::now(), Instant::now());
    let mut before = 0.0;
    while since.elapsed() < AT_REST {
        assert!(began.elapsed() < PATIENCE, "they do not come to rest");
        std::thread::sleep(LOOK);
        let written = tables_written(nodes, 0..nodes.len());
        if written > before {
            (before, since) = (written, Instant::now());
        }
    }
}

/// The keys that move, then those of the steady load.
fn key_of(i: u64, rows: u64) -> Bytes {
    match i.checked_sub(rows) {
        None => Bytes::copy_from_slice(&keys::key(i)),
        Some(i) => format!("load-{i}").into(),
    }
}

/// Writes rows that nothing makes shorter, and the keys of the steady load.
async fn fill(nodes: &Nodes, rows: u64, value_bytes: usize) {
    let all = rows + steady::KEYS;
    let mut workers = Vec::new();
    for worker in 0..BATCHES {
        let channel = nodes.channel(worker as usize % nodes.len()).await;
        let mut client = KeyValueClient::new(channel);
        workers.push(tokio::spawn(async move {
            for first in (worker * BATCH..all).step_by((BATCHES * BATCH) as usize) {
                let mutation = |i: u64| {
                    let mut random = Random(i);
                    let mut value = Vec::with_capacity(value_bytes + 8);
                    while value.len() < value_bytes {
                        value.extend_from_slice(&random.next().to_le_bytes());
                    }
                    value.truncate(value_bytes);
                    proto::Mutation {
                        key: key_of(i, rows),
                        change: Some(proto::mutation::Change::Value(value.into())),
                        ..Default::default()
                    }
                };
                let batch = proto::BatchWriteRequest {
                    tenant: load::LWW.to_owned(),
                    mutations: (first..all.min(first + BATCH)).map(mutation).collect(),
                    ..Default::default()
                };
                write_all(&mut client, batch).await;
            }
        }));
    }
    for worker in workers {
        worker.await.expect("no worker panics");
    }
}

/// Writes a batch; what is refused because too much waits already is written again.
async fn write_all(client: &mut KeyValueClient<Channel>, batch: proto::BatchWriteRequest) {
    loop {
        if let Ok(answer) = client.batch_write(batch.clone()).await {
            use proto::batch_write_result::Result as Item;
            let is_written =
                |one: &proto::BatchWriteResult| matches!(one.result, Some(Item::Written(_)));
            if answer.into_inner().results.iter().all(is_written) {
                return;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}
