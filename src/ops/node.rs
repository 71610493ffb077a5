//! The life of a node: start and serve.
//!
//! Start: bind all addresses, so that a port in use is found before anything is written; open the
//! store, while `/health/ready` says "starting"; serve; write the ready file.
//! `stop` is the rest of it.
//!
//! # Exit codes of `pairdb serve`
//! See [`Error::exit_code`].

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use prometheus::Registry;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::admin_http::{self, Pages};
use super::config::{self, Config};
use super::health::Health;
use super::kubernetes::Pod;
use super::member::{self, Joined, Running};
use super::metrics::{Exposition, NodeParts};
use super::ticks::Ticks;
use super::world::World;
use super::{VERSION, open, rolled_back, scrub};
use crate::cluster::NodeId;
use crate::cluster::incoming::Incoming;
use crate::cluster::layout::Layout;
use crate::cluster::net::Net;
use crate::cluster::view::Addresses;
use crate::cluster::work::Work;
use crate::engine;
use crate::engine::vfs::Vfs;
use crate::rpc::{Listeners, Metrics, NodeFacts, Parts, Server, Serving};
use crate::store::identity::uuid;
use crate::store::{self, DiskState, Store};

/// How often safe points advance and the store's health is looked at.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// How often an engine without threads is asked for background work.
const STEP: Duration = Duration::from_millis(10);

/// Pieces of background work done at one go.
const STEPS_MAX: usize = 8;

/// Why a node could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings cannot be used.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// An address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The store cannot be opened.
    #[error("cannot open the store in {}: {source}", dir.display())]
    Open {
        /// The data directory.
        dir: PathBuf,
        /// Why.
        source: store::Error,
    },
    /// The store could not be closed cleanly. What was acknowledged is in the log.
    #[error("cannot close the store: {0}")]
    Close(store::Error),
    /// Another process acts as this node: a copy of its directory was started later.
    #[error("another process acts as this node: its directory was copied, or started twice")]
    Superseded,
    /// Its directory was put back to an earlier state, of which others know a later one.
    #[error(
        "the data directory was put back to an earlier state than the cluster knows of; replace \
         the node by an empty one"
    )]
    RolledBack,
    /// The node was to leave the cluster before it ended, and has not: its data is still needed.
    #[error("the node was to leave the cluster and has not: {why}; its data is still needed")]
    NotDrained {
        /// Why.
        why: String,
    },
    /// The node is no member any more: its id is never taken again.
    #[error(
        "FENCED: this node {}; its data stays where it is, its id is not taken again",
        if *has_left { "has left the cluster" } else { "was removed from the cluster" }
    )]
    Fenced {
        /// It handed over all it had; else it was removed without its help.
        has_left: bool,
    },
    /// The system refused something else.
    #[error("cannot {what}: {source}")]
    System {
        /// A verb and its object.
        what: String,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    /// The exit code of `pairdb serve`:
    ///
    /// | code | meaning |
    /// |--:|---|
    /// | 1 | any other error |
    /// | 70 | the data is corrupt: file and offset are named; or older than the cluster knows |
    /// | 71 | an address is in use or cannot be bound |
    /// | 72 | the data directory is in use by another process |
    /// | 73 | the data directory cannot be written (permission, read-only, full) |
    /// | 74 | an I/O error |
    /// | 75 | the data was written by a newer version |
    /// | 76 | the data belongs to another cluster |
    /// | 77 | the node has left the cluster, or was removed from it |
    /// | 78 | the settings are wrong |
    /// | 79 | it was to leave the cluster before it ended, and has not |
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 78,
            Self::Bind { .. } => 71,
            Self::Superseded => 72,
            Self::RolledBack => 70,
            Self::NotDrained { .. } => 79,
            Self::Fenced { .. } => 77,
            Self::System { source, .. } => exit_code_of_io(source),
            Self::Open { source, .. } | Self::Close(source) => exit_code_of_store(source),
        }
    }
}

fn exit_code_of_store(error: &store::Error) -> u8 {
    match error {
        store::Error::Corruption { .. } => 70,
        store::Error::Locked { .. } => 72,
        store::Error::DiskFull { .. } => 73,
        store::Error::FormatTooNew { .. } => 75,
        store::Error::WrongCluster { .. } => 76,
        store::Error::InvalidArgument { .. } => 78,
        store::Error::Engine(engine) => match &**engine {
            engine::Error::Io { source, .. } => exit_code_of_io(source),
            _ => 1,
        },
        store::Error::Unknown { source } => exit_code_of_store(source),
        _ => 1,
    }
}

fn exit_code_of_io(error: &io::Error) -> u8 {
    match error.kind() {
        io::ErrorKind::PermissionDenied
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::NotADirectory
        // A file where the directory should be.
        | io::ErrorKind::AlreadyExists => 73,
        _ => 74,
    }
}

/// The content of the ready file: bound addresses and the node's id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ready {
    /// Clients and operators, gRPC.
    pub listen: String,
    /// Peers, gRPC.
    pub peer_listen: String,
    /// Metrics and health, HTTP.
    pub admin_listen: String,
    /// The node's id.
    pub node_id: String,
}

/// A running node.
pub struct Node {
    /// Where it is reached.
    pub ready: Ready,
    pub(super) config: Config,
    pub(super) health: Health,
    pub(super) store: Arc<Store>,
    pub(super) server: Server,
    pub(super) joined: Joined,
    pub(super) closing: CancellationToken,
    pub(super) admin: JoinHandle<io::Result<()>>,
    pub(super) upkeep: Vec<JoinHandle<()>>,
    pub(super) work: Work,
    pub(super) asked_to_stop: CancellationToken,
    pub(super) net: Arc<dyn Net>,
    pub(super) vfs: Arc<dyn Vfs>,
    pub(super) pod: Option<Pod>,
}

/// What runs once the services are served.
struct Started {
    config: Config,
    store: Arc<Store>,
    server: Server,
    joined: Joined,
    ready: Ready,
    asked_to_stop: CancellationToken,
}

/// All three listeners, bound.
struct Bound {
    rpc: Listeners,
    admin: Incoming,
    admin_addr: SocketAddr,
}

impl Bound {
    async fn bind(config: &Config, world: &World) -> Result<Self, Error> {
        let bind = |(address, source)| Error::Bind { address, source };
        let (listen, net) = (&config.listen, &*world.net);
        let rpc = Listeners::bind(net, listen.client, listen.peer).await.map_err(bind)?;
        let admin = net.bind(listen.admin).await;
        let admin = Incoming::new(admin.map_err(|source| bind((listen.admin, source)))?);
        let admin_addr = admin.local_addr().map_err(|source| bind((listen.admin, source)))?;
        Ok(Self { rpc, admin, admin_addr })
    }
}

impl Node {
    /// Starts a node in the real world; it serves when this returns.
    ///
    /// # Errors
    /// See [`Error`]. Nothing is left running.
    pub async fn start(config: Config) -> Result<Self, Error> {
        Self::start_in(config, World::real()).await
    }

    /// Starts a node in a world of the caller's choice.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_in(config: Config, world: World) -> Result<Self, Error> {
        config.validate()?;
        let pod = Pod::of(&config.kubernetes, |name| std::env::var(name).ok())
            .map_err(|error| config::Error::Invalid(error.to_string()))?;
        let (work, net) = (world.work.clone(), Arc::clone(&world.net));
        let vfs = Arc::clone(&world.environment.vfs);
        let background = world.background.clone();
        let bound = Bound::bind(&config, &world).await?;
        let health = Health::default();
        let closing = CancellationToken::new();
        let pages = Pages {
            health: health.clone(),
            exposition: Arc::new(OnceLock::new()),
            node_id: Arc::new(OnceLock::new()),
            work: work.clone(),
        };
        let connections_max = usize::try_from(config.limits.admin_connections_max);
        let connections_max = connections_max.expect("validated to be a small number");
        let admin = admin_http::Listener::new(bound.admin, connections_max);
        let admin = admin_http::serve(admin, pages.clone(), closing.clone());
        let admin = tokio::spawn(admin);
        let started =
            Self::start_services(config, world, bound.rpc, bound.admin_addr, &pages).await;
        let Started { config, store, server, joined, ready, asked_to_stop } = match started {
            Ok(started) => started,
            Err(error) => {
                closing.cancel();
                // The listener is closed when this ends. One that panicked has said so.
                let _ = tokio::time::timeout(TICK, admin).await;
                return Err(error);
            }
        };
        joined.tell_health(health.clone());
        let announced = announce(server.serving(), health.clone(), closing.clone());
        let solo = (NodeId(store.identity().node_id), joined.layout());
        let tick = tick(Arc::clone(&store), health.clone(), work.clone(), solo, closing.clone());
        let mut upkeep = vec![tokio::spawn(tick), tokio::spawn(announced)];
        let pace = scrub::Pace {
            interval: config.engine.scrub_interval,
            bytes_per_second: config.engine.scrub_bytes_per_second.0,
        };
        let scrub = scrub::run(Arc::clone(&store), background, pace, closing.clone());
        upkeep.push(tokio::spawn(scrub));
        if work.is_inline() {
            upkeep.push(tokio::spawn(step(Arc::clone(&store), closing.clone())));
        }
        let node = Self {
            ready,
            config,
            health,
            store,
            server,
            joined,
            closing,
            admin,
            upkeep,
            work,
            asked_to_stop,
            net,
            vfs,
            pod,
        };
        if let Err(error) = node.enter().await {
            if let Err(stopping) = node.stop(&CancellationToken::new()).await {
                tracing::error!(error = %stopping, "and the stop that follows from it");
            }
            return Err(error);
        }
        Ok(node)
    }

    /// Enters the cluster and serves clients.
    async fn enter(&self) -> Result<(), Error> {
        // Peers are answered from here on: who forms a cluster needs the others' answers.
        self.joined.enter(&self.config).await?;
        self.health.serve();
        self.show_health().await;
        self.write_ready_file()
    }

    async fn start_services(
        config: Config,
        world: World,
        listeners: Listeners,
        admin_addr: SocketAddr,
        pages: &Pages,
    ) -> Result<Started, Error> {
        let (work, health) = (world.work.clone(), &pages.health);
        let around = world.clone();
        let (config, opened) = blocking(&work, move || open_all(config, &around)).await??;
        let store = Arc::clone(&opened.store);
        let node_id = uuid::to_text(store.identity().node_id);
        let registry = Registry::new();
        let twice = "each name is registered once, in this function";
        let rpc_metrics = Arc::new(Metrics::register(&registry).expect(twice));
        let unreadable = |source| Error::System { what: "read a bound address".to_owned(), source };
        let (client_addr, peer_addr) = listeners.addresses().map_err(unreadable)?;
        let addresses = Addresses {
            client: client_addr.to_string(),
            admin: admin_addr.to_string(),
            ..Addresses::default()
        };
        let running = member::start(&config, &world, opened, addresses, peer_addr, health).await?;
        let Running { cluster, service: peers, figures, joined } = running;
        let shown =
            NodeParts { health: health.clone(), store: Arc::clone(&store), member: figures };
        let exposition = Exposition::new(registry, shown.clone()).expect(twice);
        let facts = facts(&config, &node_id, shown);
        let options = config.rpc_options();
        let asked_to_stop = CancellationToken::new();
        let parts = Parts {
            store: Arc::clone(&store),
            cluster,
            options,
            metrics: rpc_metrics,
            facts,
            peers,
            work,
            asked_to_stop: asked_to_stop.clone(),
        };
        let server = match Server::start(listeners, parts).await {
            Ok(server) => server,
            Err(error) => {
                joined.stop().await;
                return Err(unreadable(error));
            }
        };
        // Set once: `pages` is of this start alone.
        let _ = pages.exposition.set(exposition);
        let _ = pages.node_id.set(node_id.clone());
        let ready = Ready {
            listen: server.client_addr.to_string(),
            peer_listen: server.peer_addr.to_string(),
            admin_listen: admin_addr.to_string(),
            node_id,
        };
        Ok(Started { config, store, server, joined, ready, asked_to_stop })
    }

    /// Has `grpc.health.v1` say what the health pages do, before it returns.
    pub(super) async fn show_health(&self) {
        let health = &self.health;
        self.server.serving().update(|| health.ready().ok).await;
    }

    /// Written aside and renamed: who sees the file sees all of it.
    fn write_ready_file(&self) -> Result<(), Error> {
        let path = &self.config.node.ready_file;
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        let mut aside = path.clone().into_os_string();
        aside.push(".new");
        let aside = PathBuf::from(aside);
        let text = serde_json::to_string(&self.ready).expect("plain fields always serialize");
        std::fs::write(&aside, text + "\n").and_then(|()| std::fs::rename(&aside, path)).map_err(
            |source| Error::System {
                what: format!("write the ready file {}", path.display()),
                source,
            },
        )
    }
}

/// Opens the store, and makes the directories beside it.
fn open_all(config: Config, world: &World) -> Result<(Config, open::Opened), Error> {
    let dir = config.node.data_dir.clone();
    let vfs = &*world.environment.vfs;
    rolled_back::check(vfs, &dir)?;
    let system = |what: &str, path: &Path| {
        let what = format!("{what} {}", path.display());
        move |source| Error::System { what, source }
    };
    vfs.create_dir_all(&dir).map_err(system("create", &dir))?;
    // The store first: in a directory that it refuses nothing is made.
    let opened = open::open_store(&config, world)?;
    let checkpoints = dir.join("checkpoints");
    vfs.create_dir_all(&checkpoints).map_err(system("create", &checkpoints))?;
    Ok((config, opened))
}

fn facts(config: &Config, node_id: &str, shown: NodeParts) -> NodeFacts {
    let health = shown.health.clone();
    NodeFacts {
        node_id: node_id.to_owned(),
        node_name: match config.node.name.as_str() {
            "" => node_id.to_owned(),
            name => name.to_owned(),
        },
        zone: config.node.zone.clone(),
        version: VERSION.to_owned(),
        state: Box::new(move || health.state().name().to_owned()),
        figures: Box::new(move || {
            shown.figures().into_iter().map(|figure| (figure.full_name(), figure.value)).collect()
        }),
    }
}

/// Runs work that waits for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    place: &Work,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    place.run(work).await.map_err(|error| Error::System {
        what: "run a task".to_owned(),
        source: io::Error::other(error),
    })
}

/// Has `grpc.health.v1` follow the node's health.
async fn announce(serving: Serving, health: Health, closing: CancellationToken) {
    let mut changes = health.watch();
    loop {
        serving.update(|| health.ready().ok).await;
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = closing.cancelled() => return,
        }
    }
}

/// Looks after the store every so often.
async fn tick(
    store: Arc<Store>,
    health: Health,
    work: Work,
    (node, layout): (NodeId, watch::Receiver<Arc<Layout>>),
    closing: CancellationToken,
) {
    let mut ticks = Ticks::every(TICK, closing);
    while ticks.next().await {
        let (store, health) = (Arc::clone(&store), health.clone());
        let is_alone = {
            let layout = layout.borrow();
            layout.document().is_owned_by(node) && layout.safe_points_may_move()
        };
        if let Err(error) = work.run(move || look_after(&store, &health, is_alone)).await {
            tracing::error!(%error, "looking after the store panicked");
        }
    }
}

/// Does the background work of an engine without threads. What fails here has failed for good, as
/// it would on a thread, except for want of space or on a damaged table, which is left alone later.
async fn step(store: Arc<Store>, closing: CancellationToken) {
    let mut ticks = Ticks::every(STEP, closing);
    while ticks.next().await {
        for _ in 0..STEPS_MAX {
            match store.step() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error @ (store::Error::Corruption { .. } | store::Error::DiskFull { .. })) => {
                    tracing::warn!(%error, "background work failed");
                    break;
                }
                Err(error) => {
                    tracing::error!(%error, "background work failed, and is not tried again");
                    return;
                }
            }
        }
    }
}

/// Advances the safe points, where no other replica has to agree; notices when the store takes no
/// writes, or none that begin here, and when the disk fills up.
fn look_after(store: &Store, health: &Health, is_alone: bool) {
    let checked = match is_alone {
        true => store.advance_safe_points().map(|_| ()),
        false => store.check_writable(),
    };
    let is_read_only = matches!(checked, Err(store::Error::ReadOnly { .. }));
    // Whatever else is wrong: a clock is set right meanwhile, or goes wrong.
    let said = if is_read_only { checked.clone() } else { store.check_mints() };
    if health.note_store(&said) {
        match &said {
            Ok(()) => tracing::info!("the store takes writes again"),
            Err(error) => tracing::error!(%error, "the store takes no more writes"),
        }
    }
    if let Err(error) = checked
        && !is_read_only
    {
        tracing::warn!(%error, "cannot advance the safe points");
    }
    let disk = store.disk_state();
    if health.set_disk(disk) {
        let used = store.stats().disk_used;
        match disk {
            DiskState::Ok => tracing::info!(used, "the disk has room"),
            _ => tracing::warn!(used, disk = disk.name(), "the disk fills up"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts act upon them: each kind of failure has a code of its own, whoever wraps it.
    #[test]
    fn exit_codes_tell_failures_to_open_apart() {
        let io = |kind: io::ErrorKind| {
            let path = PathBuf::from("data");
            let source = io::Error::from(kind);
            store::Error::from(engine::Error::Io { operation: "create", path, source })
        };
        let file = || PathBuf::from("IDENTITY");
        let (expected, found) = ("a".to_owned(), "b".to_owned());
        let codes = [
            (store::Error::Corruption { file: file(), offset: 7, what: "torn".into() }, 70),
            (store::Error::Locked { path: file() }, 72),
            (io(io::ErrorKind::ReadOnlyFilesystem), 73),
            (io(io::ErrorKind::StorageFull), 73),
            (io(io::ErrorKind::PermissionDenied), 73),
            (io(io::ErrorKind::NotADirectory), 73),
            (store::Error::unknown(io(io::ErrorKind::StorageFull)), 73),
            (store::Error::DiskFull { path: file(), available: 1, reserve: 2 }, 73),
            (io(io::ErrorKind::Other), 74),
            (store::Error::FormatTooNew { file: file(), found: 2, supported: 1 }, 75),
            (store::Error::WrongCluster { file: file(), expected, found }, 76),
            (store::Error::InvalidArgument { what: "x", why: "y".into() }, 78),
            (store::Error::Closed, 1),
        ];
        for (source, code) in codes {
            let text = source.to_string();
            let error = Error::Open { dir: PathBuf::from("data"), source };
            assert_eq!(error.exit_code(), code, "{text}");
            assert!(error.to_string().contains(&text), "{error}");
        }
    }
}
