//! The services beside a bare gRPC echo:
//! `cargo bench --bench rpc -- [--seconds S] [--rounds N] [--keys N] [workload ...]`.
//!
//! A workload is measured when its name holds one of those given. Echo and node run in this
//! process on one runtime, the client on another; the client talks to one of them at a time, in
//! turns. Each workload prints two lines of JSON (the median round of each server) and a line
//! `RATIO <workload> <node / echo> cpu <echo / node>`: the median over the rounds of operations a
//! second, and of the CPU time of client and server together for an operation. On a machine that
//! is shared the second is the steadier one. benches/README.md says how to read it.

mod cpu;
mod echo;
#[path = "../common/keys.rs"]
mod keys;
mod load;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use echo::Echo;
use hdrhistogram::Histogram;
use load::{LWW, Load, SIBLINGS, Shape, Target};
use pairdb::engine::SyncMode;
use pairdb::ops::config::Config;
use pairdb::ops::node::Node;
use pairdb::proto;
use pairdb::proto::admin_client::AdminClient;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

// As the binary has it.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is asked for on the command line.
struct Arguments {
    time: Duration,
    rounds: usize,
    keys: u64,
    wanted: Vec<String>,
}

impl Arguments {
    fn parse() -> Self {
        let mut parsed =
            Self { time: Duration::from_secs(1), rounds: 3, keys: 100_000, wanted: Vec::new() };
        let mut all = std::env::args().skip(1).filter(|argument| argument != "--bench");
        while let Some(argument) = all.next() {
            let mut figure = || -> f64 {
                let next = all.next().and_then(|next| next.parse().ok());
                next.unwrap_or_else(|| panic!("{argument} needs a figure"))
            };
            match argument.as_str() {
                "--seconds" => parsed.time = Duration::from_secs_f64(figure()),
                "--rounds" => parsed.rounds = (figure() as usize).max(1),
                "--keys" => parsed.keys = (figure() as u64).max(10_000),
                _ => parsed.wanted.push(argument),
            }
        }
        parsed
    }

    fn wants(&self, name: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|wanted| name.contains(wanted.as_str()))
    }
}

struct Workload {
    name: String,
    load: Load,
    sync_mode: SyncMode,
}

fn workloads(keys: u64) -> Vec<Workload> {
    use Shape::{BatchRead, BatchWrite, PipelineRead, PipelineWrite, Read, Write};
    let unary_and_always = [
        ("read", Read, 1, SyncMode::Interval),
        ("read", Read, 64, SyncMode::Interval),
        ("write", Write, 1, SyncMode::Interval),
        ("write", Write, 64, SyncMode::Interval),
        ("write", Write, 1, SyncMode::Always),
        ("write", Write, 64, SyncMode::Always),
        ("batch_read", BatchRead, 16, SyncMode::Interval),
        ("batch_write", BatchWrite, 16, SyncMode::Interval),
        ("pipeline_read", PipelineRead, 4, SyncMode::Interval),
        ("pipeline_write", PipelineWrite, 4, SyncMode::Interval),
        ("pipeline_write", PipelineWrite, 4, SyncMode::Always),
    ];
    let mut all = Vec::new();
    for (what, shape, concurrency, sync_mode) in unary_and_always {
        for tenant in [LWW, SIBLINGS] {
            let sync = match sync_mode {
                SyncMode::Always => "/always",
                _ if what.contains("write") => "/interval",
                _ => "",
            };
            let name = format!("{what}/{tenant}{sync}/{concurrency}");
            all.push(Workload { name, load: Load { shape, tenant, concurrency, keys }, sync_mode });
        }
    }
    all
}

/// One round of one workload on one server.
struct Outcome {
    latency_ns: Histogram<u64>,
    operations_per_s: f64,
    client_us: f64,
    server_us: f64,
}

fn measure(
    client: &Runtime,
    target: &Arc<Target>,
    load: Load,
    time: Duration,
    seed: u64,
) -> Outcome {
    let before = cpu::read();
    let (latency_ns, took) = client.block_on(target.run(load, time, seed));
    let used = cpu::read().since(&before);
    let operations = (latency_ns.len() * load.pairs()) as f64;
    Outcome {
        operations_per_s: operations / took.as_secs_f64(),
        client_us: used.client.as_secs_f64() * 1e6 / operations,
        server_us: used.server.as_secs_f64() * 1e6 / operations,
        latency_ns,
    }
}

/// Prints the median round.
fn report(name: &str, server: &str, outcomes: &mut [Outcome]) {
    outcomes.sort_by(|a, b| a.operations_per_s.total_cmp(&b.operations_per_s));
    let outcome = &outcomes[outcomes.len() / 2];
    let us = |quantile: f64| outcome.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{{\"workload\":\"{name}\",\"server\":\"{server}\",\"ops_per_s\":{:.0},\"p50_us\":{:.0},\
         \"p99_us\":{:.0},\"p999_us\":{:.0},\"max_us\":{:.0},\"client_cpu_us_per_op\":{:.2},\
         \"server_cpu_us_per_op\":{:.2}}}",
        outcome.operations_per_s,
        us(0.5),
        us(0.99),
        us(0.999),
        us(1.0),
        outcome.client_us,
        outcome.server_us,
    );
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A node on free ports with the two tenants.
async fn start_node(dir: &Path, sync_mode: SyncMode) -> Node {
    let mut config = Config::default();
    config.node.data_dir = dir.to_path_buf();
    let free = "127.0.0.1:0".parse().expect("an address");
    (config.listen.client, config.listen.peer, config.listen.admin) = (free, free, free);
    config.engine.sync_mode = sync_mode;
    let node = Node::start(config).await.expect("the node starts");
    let address = format!("http://{}", node.ready.listen);
    let mut admin = AdminClient::connect(address).await.expect("it listens");
    let modes = [(LWW, proto::TenantMode::LastWriteWins), (SIBLINGS, proto::TenantMode::Siblings)];
    for (name, mode) in modes {
        let tenant = proto::Tenant { name: name.into(), mode: mode.into(), ..Default::default() };
        let request = proto::CreateTenantRequest { tenant: Some(tenant) };
        admin.create_tenant(request).await.expect("a new tenant");
    }
    node
}

fn runtime(name: &str) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.thread_name(name).enable_all().build().expect("threads")
}

async fn filled(address: &str, keys: u64) -> Arc<Target> {
    let target = Target::connect(address, keys).await;
    target.fill(LWW).await;
    target.fill(SIBLINGS).await;
    target
}

fn main() {
    let arguments = Arguments::parse();
    let (server, client) = (runtime("server"), runtime(cpu::CLIENT));
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another")];
    let interval = server.block_on(start_node(dirs[0].path(), SyncMode::Interval));
    let always = server.block_on(start_node(dirs[1].path(), SyncMode::Always));
    let keys = arguments.keys;
    let interval_target = client.block_on(filled(&interval.ready.listen, keys));
    let always_target = client.block_on(filled(&always.ready.listen, keys));
    let samples = [LWW, SIBLINGS]
        .map(|tenant| (tenant.to_owned(), client.block_on(interval_target.sample(tenant))));
    let echo = Echo(Arc::new(BTreeMap::from(samples)));
    let echo_address = server.block_on(echo.serve()).to_string();
    let echo_target = client.block_on(filled(&echo_address, keys));

    for (at, workload) in workloads(keys).iter().enumerate() {
        if !arguments.wants(&workload.name) {
            continue;
        }
        let node_target = match workload.sync_mode {
            SyncMode::Always => &always_target,
            _ => &interval_target,
        };
        let (mut echoes, mut nodes) = (Vec::new(), Vec::new());
        for round in 0..arguments.rounds {
            let seed = (at * 1000 + round) as u64;
            let run = |target| measure(&client, target, workload.load, arguments.time, seed);
            // Each goes first in turns.
            if round % 2 == 0 {
                echoes.push(run(&echo_target));
                nodes.push(run(node_target));
            } else {
                nodes.push(run(node_target));
                echoes.push(run(&echo_target));
            }
        }
        let pairs = || nodes.iter().zip(&echoes);
        let speed = median(
            pairs().map(|(node, echo)| node.operations_per_s / echo.operations_per_s).collect(),
        );
        let cpu_us = |outcome: &Outcome| outcome.client_us + outcome.server_us;
        let cpu = median(pairs().map(|(node, echo)| cpu_us(echo) / cpu_us(node)).collect());
        report(&workload.name, "echo", &mut echoes);
        report(&workload.name, "pairdb", &mut nodes);
        println!("RATIO {} {speed:.2} cpu {cpu:.2}", workload.name);
    }
    drop((interval_target, always_target, echo_target));
    for node in [interval, always] {
        server.block_on(node.stop(&CancellationToken::new())).expect("a clean stop");
    }
}
