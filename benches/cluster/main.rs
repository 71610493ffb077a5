//! What a cluster costs and how it bears a loss:
//! `cargo bench --bench cluster -- [--nodes 1,3,5] [--seconds S] [--concurrency N] [--value BYTES]
//! [--direct 1]`; how fast rows move between owners: `... --transfer MIB [--beside MIB/S,...]
//! [--disks DIR,...]`.
//!
//! Each size is a cluster of processes on loopback with durable writes (`always`). Unary calls at
//! the named level go to all nodes in turn, or with `--direct 1` to nodes that hold the key. Each
//! workload prints a line of JSON: operations a second, latencies, and for one operation, summed
//! over the nodes: CPU time, requests between nodes, syncs, bytes of the log, bytes over loopback
//! (clients' and peers', both ways counted once; everything else on the machine's loopback counts
//! too). Then the cluster is left alone, and from three nodes on one is killed under load and
//! started again. benches/README.md says how to read it.

mod figures;
mod floor;
mod host;
#[path = "../common/keys.rs"]
mod keys;
mod load;
#[path = "../../tests/node/mod.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod node;
#[path = "../../tests/cluster/nodes.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod nodes;
mod steady;
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use figures::Figures;
use load::{Level, Load, Shape, Target};
use nodes::Nodes;
use tokio::runtime::Runtime;

/// How long an idle cluster is watched, and how long it is given to become idle.
const IDLE: Duration = Duration::from_secs(10);
/// Longest wait for the hints of a node that came back.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// What is asked for on the command line.
struct Arguments {
    nodes: Vec<usize>,
    time: Duration,
    concurrency: u64,
    value_bytes: usize,
    direct: bool,
    /// Bytes of rows that move; 0: what else there is to measure.
    transfer_bytes: u64,
    /// MiB a second, for each node, at which they also move beside a load.
    beside: Vec<u64>,
    /// Where the nodes' directories are made while rows move, one for each node; those that are
    /// left over share the last.
    disks: Vec<PathBuf>,
}

impl Arguments {
    fn parse() -> Self {
        let time = Duration::from_secs(5);
        let mut parsed = Self {
            nodes: vec![1, 3, 5],
            time,
            concurrency: 64,
            value_bytes: 1024,
            direct: false,
            transfer_bytes: 0,
            beside: vec![8],
            disks: vec![std::env::temp_dir()],
        };
        let mut all = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(argument) = all.next() {
            let given = all.next().unwrap_or_else(|| panic!("{argument} needs a value"));
            let figure = |text: &str| -> usize {
                text.parse().unwrap_or_else(|_| panic!("{argument} needs numbers, not {text:?}"))
            };
            match argument.as_str() {
                "--nodes" => parsed.nodes = given.split(',').map(figure).collect(),
                "--seconds" => parsed.time = Duration::from_secs(figure(&given) as u64),
                "--concurrency" => parsed.concurrency = figure(&given).max(1) as u64,
                "--value" => parsed.value_bytes = figure(&given),
                "--transfer" => parsed.transfer_bytes = (figure(&given) as u64) << 20,
                "--beside" => {
                    let rates = given.split(',').map(|rate| figure(rate) as u64);
                    parsed.beside = rates.filter(|rate| *rate > 0).collect();
                }
                "--disks" => parsed.disks = given.split(',').map(PathBuf::from).collect(),
                "--direct" => parsed.direct = figure(&given) > 0,
                _ => panic!("{argument} is not known"),
            }
        }
        parsed
    }
}

fn us(latency_ns: &hdrhistogram::Histogram<u64>, quantile: f64) -> f64 {
    latency_ns.value_at_quantile(quantile) as f64 / 1e3
}

/// One workload, and what it took of all nodes.
fn measure(runtime: &Runtime, nodes: &Nodes, target: &Arc<Target>, load: Load, time: Duration) {
    let before = Figures::of(nodes);
    let outcome = runtime.block_on(target.run(load, time));
    let used = Figures::of(nodes).since(&before);
    let operations = outcome.latency_ns.len().max(1) as f64;
    println!(
        "{{\"nodes\":{},\"workload\":\"{}\",\"ops_per_s\":{:.0},\"p50_us\":{:.0},\"p99_us\":{:.0},\
         \"max_us\":{:.0},\"failed\":{},\"cpu_us_per_op\":{:.1},\"requests_per_op\":{:.2},\
         \"syncs_per_op\":{:.3},\"log_bytes_per_op\":{:.0},\"loopback_bytes_per_op\":{:.0}}}",
        nodes.len(),
        load.name(),
        operations / time.as_secs_f64(),
        us(&outcome.latency_ns, 0.5),
        us(&outcome.latency_ns, 0.99),
        us(&outcome.latency_ns, 1.0),
        outcome.failed,
        used.cpu_s * 1e6 / operations,
        used.requests / operations,
        used.syncs / operations,
        used.log_bytes / operations,
        used.loopback_bytes / operations,
    );
}

/// What the nodes take when nobody asks them anything.
fn idle(nodes: &Nodes) {
    // What the load has left to do ends first.
    std::thread::sleep(IDLE);
    let before = Figures::of(nodes);
    let began = Instant::now();
    std::thread::sleep(IDLE);
    let used = Figures::of(nodes).since(&before);
    println!(
        "{{\"nodes\":{},\"workload\":\"idle\",\"cpu_of_a_core_per_node\":{:.4},\
         \"requests_per_s_per_node\":{:.1},\"loopback_bytes_per_s_per_node\":{:.0}}}",
        nodes.len(),
        used.cpu_s / began.elapsed().as_secs_f64() / nodes.len() as f64,
        used.requests / began.elapsed().as_secs_f64() / nodes.len() as f64,
        used.loopback_bytes / began.elapsed().as_secs_f64() / nodes.len() as f64,
    );
}

/// One of the nodes is killed under load and comes back.
fn lose_one(runtime: &Runtime, nodes: &mut Nodes, load: Load, arguments: &Arguments) {
    let victim = nodes.len() - 1;
    // Clients of a node that is gone go elsewhere; what is shown is how the others bear it.
    let left = runtime.block_on(Target::connect(
        nodes,
        0..victim,
        arguments.value_bytes,
        arguments.direct,
    ));
    let second = Duration::from_secs(1);
    let healthy = runtime.block_on(left.run(load, arguments.time));
    nodes.kill(victim);
    let at_once = runtime.block_on(left.run(load, second));
    let adapted = runtime.block_on(left.run(load, arguments.time));
    let began = Instant::now();
    nodes.restart(victim);
    let serving = began.elapsed();
    let pending = |nodes: &Nodes| (0..nodes.len()).map(|at| figures::hints(nodes, at)).sum::<f64>();
    while pending(nodes) > 0.0 {
        assert!(began.elapsed() < PATIENCE, "hints are not delivered");
        std::thread::sleep(LOOK);
    }
    let delivered = began.elapsed();
    let p99 = |outcome: &load::Outcome| us(&outcome.latency_ns, 0.99);
    println!(
        "{{\"nodes\":{},\"workload\":\"lose-one/{}\",\"p99_us_healthy\":{:.0},\
         \"p99_us_first_second\":{:.0},\"failed_first_second\":{},\"p99_us_adapted\":{:.0},\
         \"failed_adapted\":{},\"serves_after_ms\":{},\"hints_delivered_after_ms\":{},\
         \"missed_writes\":{}}}",
        nodes.len(),
        load.name(),
        p99(&healthy),
        p99(&at_once),
        at_once.failed,
        p99(&adapted),
        adapted.failed,
        serving.as_millis(),
        delivered.as_millis(),
        at_once.latency_ns.len() + adapted.latency_ns.len(),
    );
}

fn main() {
    if std::env::args().any(|argument| argument == host::ARGUMENT) {
        return host::watch_core();
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.expect("threads");
    let concurrency = arguments.concurrency;
    if arguments.transfer_bytes > 0 {
        let Arguments { transfer_bytes: bytes, value_bytes, .. } = arguments;
        let (beside, disks) = (&arguments.beside[..], &arguments.disks[..]);
        transfer::run(&runtime, &transfer::Plan { bytes, value_bytes, beside, disks });
        return;
    }
    for &count in &arguments.nodes {
        let mut nodes = Nodes::start(count);
        nodes.ok(0, &["tenant", "create", load::LWW, "--mode", "last-write-wins"]);
        let all = Target::connect(&nodes, 0..count, arguments.value_bytes, arguments.direct);
        let all = runtime.block_on(all);
        let load = |shape, tenant, level| Load { shape, tenant, level, concurrency };
        for tenant in [load::LWW, load::SIBLINGS] {
            runtime.block_on(all.fill(tenant, concurrency));
            let of = [
                (Shape::Write, Level::Quorum),
                (Shape::Write, Level::All),
                (Shape::Read, Level::One),
                (Shape::Read, Level::Quorum),
            ];
            for (shape, level) in of {
                measure(&runtime, &nodes, &all, load(shape, tenant, level), arguments.time);
            }
        }
        idle(&nodes);
        if count >= 3 {
            for shape in [Shape::Write, Shape::Read] {
                let load = load(shape, load::LWW, Level::Quorum);
                lose_one(&runtime, &mut nodes, load, &arguments);
            }
        }
    }
}
