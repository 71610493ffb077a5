//! `pairdb serve`

use std::path::PathBuf;
use std::{panic, process};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::config::{environment, load_or_fail};
use super::failure::Failure;
use crate::cluster::work::{Background, Work};
use crate::engine::priority;
use crate::ops::config::{Config, List, Source, Value as _};
use crate::ops::node::{Error, Node};
use crate::ops::shutdown::Shutdown;
use crate::ops::world::World;
use crate::ops::{VERSION, leave, logging};

/// Run a node
///
/// Settings come from the defaults, the file, the environment (PAIRDB__SECTION__KEY) and these
/// flags, in that order. SIGTERM stops gracefully, a second one fast.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The configuration file [default: PAIRDB_CONFIG, then /etc/pairdb/pairdb.toml]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// Where the node keeps its data
    #[arg(long, value_name = "PATH")]
    data_dir: Option<String>,
    /// Address for clients, gRPC
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Address for peers, gRPC
    #[arg(long, value_name = "ADDRESS")]
    peer_listen: Option<String>,
    /// Address for metrics and health, HTTP
    #[arg(long, value_name = "ADDRESS")]
    admin_listen: Option<String>,
    /// Peer address of a node to join; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    seed: Vec<String>,
    /// Nodes that form a new cluster together
    #[arg(long, value_name = "COUNT")]
    bootstrap_expect: Option<String>,
    /// The node's name in listings
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The failure zone
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Written as JSON when the node serves
    #[arg(long, value_name = "PATH")]
    ready_file: Option<String>,
}

impl Args {
    /// # Errors
    /// A seed is empty.
    fn source(self) -> Result<Source, Failure> {
        if self.seed.iter().any(|seed| List::parse(seed).is_none_or(|list| list.0.is_empty())) {
            // As if there were none: the node would form a cluster of its own.
            let message = "--seed is empty: it must be the peer address of a node to join";
            return Err(Failure::with_code(78, message));
        }
        let seeds = (!self.seed.is_empty()).then(|| self.seed.join(","));
        let flags = [
            ("--data-dir", "node.data_dir", self.data_dir),
            ("--listen", "listen.client", self.listen),
            ("--peer-listen", "listen.peer", self.peer_listen),
            ("--admin-listen", "listen.admin", self.admin_listen),
            ("--seed", "cluster.seeds", seeds),
            ("--bootstrap-expect", "cluster.bootstrap_expect", self.bootstrap_expect),
            ("--node-name", "node.name", self.node_name),
            ("--zone", "node.zone", self.zone),
            ("--ready-file", "node.ready_file", self.ready_file),
        ];
        let given = flags
            .into_iter()
            .filter_map(|(flag, setting, value)| value.map(|value| (flag, setting, value)));
        Ok(Source { file: self.config, environment: environment(), flags: given.collect() })
    }
}

pub(super) fn run(args: Args) -> Result<(), Failure> {
    let config = load_or_fail(&args.source()?)?.config;
    logging::init(&config.log).map_err(|error| Failure::with_code(78, error))?;
    end_on_panic();
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if config.node.worker_threads > 0 {
        runtime.worker_threads(usize::try_from(config.node.worker_threads).unwrap_or(usize::MAX));
    }
    runtime.enable_all().thread_name("pairdb-async").on_thread_start(priority::take_short_turns);
    let runtime = runtime.build();
    let runtime = runtime.map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    let background = Background::start();
    let background =
        background.map_err(|error| Failure::error(format!("cannot start: {error}")))?;
    raise_descriptors();
    let served = runtime.block_on(serve(config, background.work()));
    // Work on the blocking pools that nobody waits for any more must not hold up the exit.
    runtime.shutdown_background();
    background.stop();
    served.map_err(|error| Failure::with_code(error.exit_code(), error.to_string()))
}

/// A panic is a fault of this program, and what it leaves behind fits no promise: a loop of this
/// node's duties that has ended for good while its health says that all is well, a lock that is
/// held for ever. So the process ends with it, as if it had been killed, which costs nothing that
/// was acknowledged; who supervises it starts it anew.
fn end_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        process::abort();
    }));
}

/// Each connection and each table takes a file descriptor, and 1,024 are what a process is usually
/// given: that is kept low for those who use `select`, which this one does not. It takes as many as
/// it may have.
fn raise_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    match raised {
        Ok(()) => tracing::info!(descriptors, "file descriptors"),
        Err(error) => tracing::warn!(descriptors, %error, "cannot take more file descriptors"),
    }
}

async fn serve(config: Config, background: Work) -> Result<(), Error> {
    let handlers = |source| Error::System { what: "handle signals".to_owned(), source };
    let shutdown = Shutdown::on_signals().map_err(handlers)?;
    tracing::info!(version = VERSION, data_dir = %config.node.data_dir.display(), "starting");
    if config.security.insecure {
        tracing::warn!("security.insecure is set: plain text may leave this machine");
    }
    let world = World { background, ..World::real() };
    let starting = Node::start_in(config.clone(), world.clone());
    let node = tokio::select! {
        node = starting => node?,
        // Asked to stop before it served: the process ends, what was recovered is on disk.
        () = shutdown.graceful.cancelled() => {
            return leave::end_before_serving(&config, &world, &shutdown.fast).await;
        }
    };
    let at = &node.ready;
    tracing::info!(
        listen = at.listen,
        peer_listen = at.peer_listen,
        admin_listen = at.admin_listen,
        node_id = at.node_id,
        "serving"
    );
    node.run(shutdown).await
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Stdio};

    use super::*;

    /// Run by the test below, in a process of its own.
    #[test]
    #[ignore = "ends its process"]
    fn panics_on_a_thread() {
        end_on_panic();
        let _ = std::thread::spawn(|| panic!("on purpose")).join();
    }

    #[test]
    fn a_panic_on_any_thread_ends_the_process() {
        let tests = std::env::current_exe().expect("it runs");
        let name = "cli::serve::tests::panics_on_a_thread";
        let mut one = Command::new(tests);
        one.args(["--exact", name, "--ignored"]).stdout(Stdio::null()).stderr(Stdio::null());
        let status = one.status().expect("it is started");
        assert_eq!(status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{status}");
    }
}
