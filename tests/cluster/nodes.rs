//! A cluster of processes on free ports of loopback.

use std::collections::HashMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tonic::transport::Channel;

use crate::node::{CliNode, Done, refused};

/// How often something that takes a while is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// Longest wait for a change of the cluster that nothing is in the way of.
const PATIENCE: Duration = Duration::from_secs(60);

/// The nodes; each may be gone.
pub struct Nodes {
    nodes: Vec<CliNode>,
    ports: Vec<Ports>,
    /// Where their directories are: one for each, the last one for all others too.
    disks: Vec<PathBuf>,
    /// The start that each that came back is in: what others say of an earlier one is not of it.
    /// They may take a while to see that the earlier one is gone.
    starts: HashMap<String, u64>,
}

/// Where a node listens, at every start.
#[derive(Clone, Copy)]
struct Ports {
    peer: u16,
    client: u16,
}

/// The values of a row, sorted.
pub fn values(row: &Value) -> Vec<&str> {
    let siblings = row["siblings"].as_array().expect("siblings");
    let mut values: Vec<&str> =
        siblings.iter().map(|one| one["value"].as_str().expect("text")).collect();
    values.sort_unstable();
    values
}

/// Where ports are taken from: below those that the system gives to connections, which could take
/// one while its node is down.
const PORTS: std::ops::Range<u32> = 12_000..32_000;
/// The next one to try. Other tests run as other processes and begin elsewhere.
static NEXT_PORT: AtomicU32 = AtomicU32::new(0);

/// Ports that are free: peers and clients must know them before a node starts, and find them again
/// when it comes back.
fn free_ports(count: usize) -> Vec<Ports> {
    let begin = std::process::id().wrapping_mul(7919);
    let span = PORTS.end - PORTS.start;
    let mut free = (0..span).filter_map(|_| {
        let next = begin.wrapping_add(NEXT_PORT.fetch_add(1, Ordering::Relaxed)) % span;
        let port = u16::try_from(PORTS.start + next).expect("in the range");
        TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(port)
    });
    let mut port = || free.next().expect("a free port");
    (0..count).map(|_| Ports { peer: port(), client: port() }).collect()
}

fn settings(ports: &[Ports], at: usize, expect: usize) -> Vec<(String, String)> {
    let seeds: Vec<String> = ports
        .iter()
        .enumerate()
        .filter(|(other, _)| *other != at)
        .map(|(_, ports)| format!("127.0.0.1:{}", ports.peer))
        .collect();
    [
        ("NODE__NAME", format!("n{at}")),
        ("NODE__ZONE", format!("z{at}")),
        ("LISTEN__PEER", format!("127.0.0.1:{}", ports[at].peer)),
        ("LISTEN__CLIENT", format!("127.0.0.1:{}", ports[at].client)),
        ("CLUSTER__SEEDS", seeds.join(",")),
        ("CLUSTER__BOOTSTRAP_EXPECT", expect.to_string()),
    ]
    .map(|(name, value)| (format!("PAIRDB__{name}"), value))
    .to_vec()
}

fn disk_of(disks: &[PathBuf], at: usize) -> &Path {
    disks.get(at).or(disks.last()).expect("there is one")
}

fn borrowed(settings: &[(String, String)]) -> Vec<(&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

impl Nodes {
    /// A new cluster.
    pub fn start(count: usize) -> Self {
        Self::start_on(&[std::env::temp_dir()], count)
    }

    /// A new cluster, each node's directory made in its own one of these; those that are left over
    /// share the last.
    pub fn start_on(disks: &[PathBuf], count: usize) -> Self {
        let ports = free_ports(count);
        // All at once: each waits for the others before it serves.
        let nodes = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..count)
                .map(|at| {
                    let settings = settings(&ports, at, count);
                    scope.spawn(move || CliNode::below(disk_of(disks, at), &borrowed(&settings)))
                })
                .collect();
            starting.into_iter().map(|node| node.join().expect("it starts")).collect()
        });
        let nodes = Self { nodes, ports, disks: disks.to_vec(), starts: HashMap::new() };
        // Who serves has heard of all: what is written now makes no hints, and nothing is refused.
        for at in 0..count {
            let status = nodes.json(at, &["status", "--output", "json"]);
            assert_eq!(nodes.up(&status), count, "{status:#}");
        }
        nodes
    }

    /// How many there are, up or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// The process of a node.
    pub fn id(&self, at: usize) -> u32 {
        self.nodes[at].id()
    }

    /// A path beside the data of a node.
    pub fn path(&self, at: usize, name: &str) -> String {
        self.nodes[at].path(name)
    }

    /// Where the clients of a node connect.
    pub fn endpoint(&self, at: usize) -> String {
        self.nodes[at].endpoint()
    }

    /// A connection of a client to a node.
    pub async fn channel(&self, at: usize) -> Channel {
        let endpoint = Channel::from_shared(self.endpoint(at)).expect("an endpoint");
        endpoint.connect().await.expect("it listens")
    }

    /// Code and body of a page for operators.
    pub fn page(&self, at: usize, path: &str) -> (u16, String) {
        self.nodes[at].page(path)
    }

    /// One more node; its place.
    pub fn join(&mut self) -> usize {
        self.join_with(&[])
    }

    /// One more node, with settings of its own.
    pub fn join_with(&mut self, more: &[(String, String)]) -> usize {
        let at = self.nodes.len();
        self.ports.extend(free_ports(1));
        let mut settings = settings(&self.ports, at, 1);
        settings.extend_from_slice(more);
        self.nodes.push(CliNode::below(disk_of(&self.disks, at), &borrowed(&settings)));
        at
    }

    /// SIGTERM.
    pub fn signal(&self, at: usize) {
        self.nodes[at].signal();
    }

    pub fn kill(&mut self, at: usize) {
        self.nodes[at].kill();
    }

    /// `pairdb stop`, until the process has ended; its exit code.
    pub fn stop(&mut self, at: usize) -> i32 {
        self.nodes[at].ok(&["stop"]);
        self.nodes[at].wait()
    }

    pub fn restart(&mut self, at: usize) {
        self.restart_with(at, &[]);
    }

    pub fn restart_with(&mut self, at: usize, more: &[(String, String)]) {
        let mut settings = settings(&self.ports, at, self.ports.len());
        settings.extend_from_slice(more);
        self.nodes[at].restart_with(&borrowed(&settings));
        let name = format!("n{at}");
        let status = self.json(at, &["status", "--output", "json"]);
        let mut nodes = status["nodes"].as_array().expect("nodes").iter();
        let own = nodes.find(|node| node["name"] == *name).expect("it knows itself");
        self.starts.insert(name, own["generation"].as_u64().expect("a number"));
    }

    /// The exit code of a node that ends by itself.
    pub fn wait(&mut self, at: usize) -> i32 {
        self.nodes[at].wait()
    }

    /// Where a node keeps what it has.
    pub fn data_dir(&self, at: usize) -> &Path {
        Path::new(&self.nodes[at].data_dir)
    }

    /// Deletes what a node has left on its disk. A process that still closes its files may put one
    /// there meanwhile.
    pub fn delete(&self, at: usize) {
        let patience = Instant::now() + PATIENCE;
        while let Err(error) = std::fs::remove_dir_all(&self.nodes[at].data_dir) {
            let is_busy = error.kind() == std::io::ErrorKind::DirectoryNotEmpty;
            assert!(is_busy && Instant::now() < patience, "it is there, and can go: {error}");
        }
    }

    /// Starts a node again that must not be: its exit code, and what it says.
    pub fn restart_refused(&self, at: usize) -> (i32, String) {
        let settings = settings(&self.ports, at, self.ports.len());
        let done = refused(&self.nodes[at].data_dir, &borrowed(&settings));
        (done.code, done.stderr)
    }

    /// Any signal.
    pub fn send(&self, at: usize, signal: rustix::process::Signal) {
        self.nodes[at].send(signal);
    }

    pub fn pause(&self, at: usize) {
        self.send(at, rustix::process::Signal::STOP);
    }

    pub fn resume(&self, at: usize) {
        self.send(at, rustix::process::Signal::CONT);
    }

    /// Where a node listens, by its name in the ready file: `listen`, `peer_listen`.
    pub fn address(&self, at: usize, listener: &str) -> String {
        self.nodes[at].ready[listener].as_str().expect("an address").to_owned()
    }

    pub fn run(&self, at: usize, arguments: &[&str]) -> Done {
        self.nodes[at].run(arguments)
    }

    pub fn ok(&self, at: usize, arguments: &[&str]) -> String {
        self.nodes[at].ok(arguments)
    }

    pub fn json(&self, at: usize, arguments: &[&str]) -> Value {
        self.nodes[at].json(arguments)
    }

    /// Writes keys at QUORUM through one node; each holds its own name. Returns them.
    pub fn write_keys(&self, prefix: &str, count: usize, at: usize) -> Vec<String> {
        let keys: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
        for key in &keys {
            self.ok(at, &["put", key, key]);
        }
        keys
    }

    /// Waits until every replica of every key holds the same row.
    pub fn wait_until_equal(&self, keys: &[String], at: usize, within: Duration) {
        let end = Instant::now() + within;
        for key in keys {
            loop {
                let told = self.json(at, &["explain", "default", key, "--output", "json"]);
                let replicas = told["replicas"].as_array().expect("replicas");
                let digest = &replicas[0]["digest"];
                let is_equal =
                    |one: &Value| one["error"] == "" && one["digest"] == *digest && *digest != "";
                if replicas.iter().all(is_equal) {
                    break;
                }
                assert!(Instant::now() < end, "{key} differs: {told:#}");
                std::thread::park_timeout(LOOK);
            }
        }
    }

    pub fn wait_for(&self, at: usize, what: &str, is_so: impl Fn(&Value) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.json(at, &["status", "--output", "json"]);
            if is_so(&status) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {status:#}");
            std::thread::park_timeout(LOOK);
        }
    }

    /// How many are up, in the start that they are in.
    fn up(&self, status: &Value) -> usize {
        let is_now = |node: &&Value| {
            let start = self.starts.get(node["name"].as_str().expect("text"));
            start.is_none_or(|start| node["generation"].as_u64() >= Some(*start))
        };
        Self::told_up(status).filter(is_now).count()
    }

    /// Those that are said to be up, in whichever start.
    fn told_up(status: &Value) -> impl Iterator<Item = &Value> {
        let nodes = status["nodes"].as_array().expect("nodes");
        nodes.iter().filter(|node| node["up"] == true)
    }

    /// How many are up in the eyes of one.
    pub fn seen_up(&self, at: usize) -> usize {
        Self::told_up(&self.json(at, &["status", "--output", "json"])).count()
    }

    pub fn wait_until_up(&self, at: usize, count: usize) {
        self.wait_for(at, "not all are up", |status| self.up(status) >= count);
    }

    /// Waits until only one node is up in the eyes of `at`, with `gone` others down.
    pub fn wait_until_down(&self, at: usize, gone: usize) {
        let left = self.nodes.len() - gone;
        self.wait_for(at, "too many are up", |status| Self::told_up(status).count() <= left);
    }

    /// Waits until the layout is stable with so many owners, and the newest of them is heard of: a
    /// node that has just come may own its share before the others know that it is up.
    pub fn wait_until_stable(&self, at: usize, owners: usize) {
        let newest = format!("n{}", self.nodes.len() - 1);
        self.wait_for(at, "the layout does not settle", |status| {
            let nodes = status["nodes"].as_array().expect("nodes");
            let normal = || nodes.iter().filter(|node| node["state"] == "normal");
            let is_heard_of = normal().all(|node| node["name"] != newest || node["up"] == true);
            normal().count() == owners && is_heard_of && status["layout"]["transition"] == ""
        });
    }
}
