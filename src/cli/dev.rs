//! `pairdb dev`
//!
//! Each node is a process of its own, as in production: killing one of them is a good way to see
//! what a cluster does about it.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::args::signals;
use super::failure::Failure;
use crate::client::{Admin, Client, Options};
use crate::ops::shutdown::Shutdown;
use crate::proto::ClusterStatusRequest;

/// How long a node may take to serve, and later to stop.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of a log that are looked at for its last line.
const LINE_BYTES: u64 = 4 << 10;
/// How long one node may take to say whom it hears of.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

/// Run a cluster on this machine, until Ctrl-C
///
/// Every node is a process of its own, in a zone of its own, with its data and log below the data
/// directory. Node n listens on the ports given plus n - 1. Started again, it goes on with the data
/// that is there.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// Where the nodes keep their data
    #[arg(long, default_value = "pairdb-dev", value_name = "PATH")]
    data_dir: PathBuf,
    /// Port for clients of the first node
    #[arg(long, default_value_t = 8080)]
    client_port: u16,
    /// Port for peers of the first node
    #[arg(long, default_value_t = 7946)]
    peer_port: u16,
    /// Port for metrics and health of the first node
    #[arg(long, default_value_t = 9091)]
    admin_port: u16,
}

/// A node that was started.
struct Started {
    name: String,
    child: Child,
    ready_file: PathBuf,
    log: PathBuf,
}

/// Ends the nodes however the command ends.
struct Nodes(Vec<Started>);

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.0 {
            // Those that have stopped are past killing.
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    super::block_on(async {
        let shutdown = signals()?;
        let mut nodes = start_all(args)?;
        let end = Instant::now() + PATIENCE;
        let ready = wait_until_ready(&mut nodes, &shutdown, end).await?;
        wait_until_heard(&mut nodes, &ready, &shutdown, end).await?;
        // Who does not read it has a cluster all the same.
        let _ = present(&nodes, &ready, args.client_port);
        shutdown.graceful.cancelled().await;
        stop_all(&mut nodes, &shutdown).await
    })
}

fn present(nodes: &Nodes, ready: &[Ready], client_port: u16) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (node, Ready { listen, admin, .. }) in nodes.0.iter().zip(ready) {
        let (name, pid) = (&node.name, node.child.id());
        writeln!(out, "{name}  {listen}  admin http://{admin}  process {pid}")?;
    }
    writeln!(out, "{} nodes serve; Ctrl-C stops them. Try:", nodes.0.len())?;
    writeln!(out, "  pairdb status --endpoint http://127.0.0.1:{client_port}")?;
    out.flush()
}

fn start_all(args: &Args) -> Result<Nodes, Failure> {
    let failed = |what: &str, path: &Path| {
        let what = format!("cannot {what} {}", path.display());
        move |error: io::Error| Failure::error(format!("{what}: {error}"))
    };
    let program = std::env::current_exe()
        .map_err(|error| Failure::error(format!("cannot find this program: {error}")))?;
    fs::create_dir_all(&args.data_dir).map_err(failed("create", &args.data_dir))?;
    let port = |base: u16, n: u16| {
        let port = base.checked_add(n);
        port.ok_or_else(|| Failure::usage(format!("port {base} leaves no room for the nodes")))
    };
    let mut nodes = Nodes(Vec::new());
    for n in 0..args.nodes {
        let name = format!("node-{}", n + 1);
        let log_path = args.data_dir.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(failed("open", &log_path))?;
        let err = log.try_clone().map_err(failed("open", &log_path))?;
        let ready_file = args.data_dir.join(format!("{name}.ready"));
        if let Err(error) = fs::remove_file(&ready_file)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(failed("remove", &ready_file)(error));
        }
        let mut command = Command::new(&program);
        // Ctrl-C is for this process; it tells the nodes.
        command.process_group(0);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PAIRDB") {
                command.env_remove(name);
            }
        }
        command.arg("serve").stdin(Stdio::null()).stdout(log).stderr(err);
        command.arg("--data-dir").arg(args.data_dir.join(&name));
        command.arg("--ready-file").arg(&ready_file);
        command.args(["--node-name", &name, "--zone", &format!("zone-{}", n + 1)]);
        command.args(["--bootstrap-expect", &args.nodes.to_string()]);
        command.args(["--listen", &format!("127.0.0.1:{}", port(args.client_port, n)?)]);
        command.args(["--peer-listen", &format!("127.0.0.1:{}", port(args.peer_port, n)?)]);
        command.args(["--admin-listen", &format!("127.0.0.1:{}", port(args.admin_port, n)?)]);
        for seed in (0..args.nodes).filter(|seed| *seed != n) {
            command.args(["--seed", &format!("127.0.0.1:{}", port(args.peer_port, seed)?)]);
        }
        let child = command.spawn().map_err(failed("run", &program))?;
        nodes.0.push(Started { name, child, ready_file, log: log_path });
    }
    Ok(nodes)
}

/// What a node that serves says of itself.
struct Ready {
    node_id: String,
    listen: String,
    admin: String,
}

/// Waits until every node serves.
async fn wait_until_ready(
    nodes: &mut Nodes,
    shutdown: &Shutdown,
    end: Instant,
) -> Result<Vec<Ready>, Failure> {
    let mut all = Vec::new();
    for at in 0..nodes.0.len() {
        let ready = loop {
            let node = &nodes.0[at];
            if let Some(ready) = read_ready(&node.ready_file) {
                break ready;
            }
            if Instant::now() >= end {
                let log = node.log.display();
                return Err(Failure::error(format!("{} does not serve; see {log}", node.name)));
            }
            all_run(nodes)?;
            look_again(shutdown).await?;
        };
        let at = |name: &str| ready[name].as_str().unwrap_or("?").to_owned();
        let (node_id, admin) = (at("node_id"), at("admin_listen"));
        all.push(Ready { node_id, listen: format!("http://{}", at("listen")), admin });
    }
    Ok(all)
}

/// Waits until each of them has heard of all: what is written before becomes hints for those that
/// seem to be down.
async fn wait_until_heard(
    started: &mut Nodes,
    nodes: &[Ready],
    shutdown: &Shutdown,
    end: Instant,
) -> Result<(), Failure> {
    for node in nodes {
        let endpoints = vec![node.listen.clone()];
        let options = Options { endpoints, timeout: STATUS_TIMEOUT, ..Options::default() };
        let client = Client::new(options)?;
        let hears_all = async || {
            let call = async |admin: &mut Admin, request| admin.cluster_status(request).await;
            let heard = client.admin_call(ClusterStatusRequest {}, call).await?.nodes;
            let is_up = |id: &str| heard.iter().any(|node| node.node_id == id && node.up);
            Ok::<_, Failure>(nodes.iter().all(|node| is_up(&node.node_id)))
        };
        while !hears_all().await? {
            if Instant::now() >= end {
                let listen = &node.listen;
                return Err(Failure::error(format!("{listen} does not hear of all nodes")));
            }
            all_run(started)?;
            look_again(shutdown).await?;
        }
    }
    Ok(())
}

/// Fails if a node has ended: the others wait for it, whichever it is.
fn all_run(nodes: &mut Nodes) -> Result<(), Failure> {
    for node in &mut nodes.0 {
        if let Ok(Some(status)) = node.child.try_wait() {
            let (name, log) = (&node.name, node.log.display());
            let last = last_line(&node.log);
            return Err(Failure::error(format!("{name} ended: {status}; see {log}: {last}")));
        }
    }
    Ok(())
}

/// The last line of a log, which may be long: where a node says why it ends.
fn last_line(log: &Path) -> String {
    let read = || {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(LINE_BYTES);
        file.seek(SeekFrom::Start(from))?;
        let mut end = Vec::new();
        file.take(LINE_BYTES).read_to_end(&mut end)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&end).into_owned())
    };
    // The log's place is said either way.
    let end = read().unwrap_or_default();
    end.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default().to_owned()
}

async fn look_again(shutdown: &Shutdown) -> Result<(), Failure> {
    tokio::select! {
        () = tokio::time::sleep(LOOK) => Ok(()),
        () = shutdown.graceful.cancelled() => {
            Err(Failure::error("stopped before all nodes served"))
        }
    }
}

/// The ready file is renamed into place: what is there is whole.
fn read_ready(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Asks all to stop, and waits; a second signal cuts that short.
async fn stop_all(nodes: &mut Nodes, shutdown: &Shutdown) -> Result<(), Failure> {
    for node in &nodes.0 {
        let pid = i32::try_from(node.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended: the wait below sees that.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    let end = Instant::now() + PATIENCE;
    let mut look = tokio::time::interval(LOOK);
    for node in &mut nodes.0 {
        while let Ok(None) = node.child.try_wait() {
            if Instant::now() >= end {
                return Err(Failure::error(format!("{} did not stop in time", node.name)));
            }
            tokio::select! {
                _ = look.tick() => {}
                () = shutdown.fast.cancelled() => return Ok(()),
            }
        }
    }
    Ok(())
}
