//! Opens the store as the settings say.

use std::sync::{Arc, OnceLock};

use super::config::Config;
use super::node::Error;
use super::world::World;
use crate::cluster::NodeId;
use crate::cluster::fence::Fence;
use crate::cluster::layout::{Answer, Command, LayoutCatalog, Proposer};
use crate::replication::transfer::Newcomer;
use crate::store::{self, IdentityOptions, Store, StoreOptions};

/// The store and what it is opened under.
pub(super) struct Opened {
    pub store: Arc<Store>,
    pub fence: Arc<Fence>,
}

/// Tenants of a node are changed through consensus, by the admin service; nobody asks the store.
#[derive(Debug)]
struct ByConsensusOnly;

impl Proposer for ByConsensusOnly {
    fn propose(&self, _command: Command) -> store::Result<Answer> {
        let why = "tenants of a node are changed through its admin service".to_owned();
        Err(store::Error::InvalidArgument { what: "tenant", why })
    }
}

/// Opens the store in the data directory, under the layout that is kept there.
pub(super) fn open_store(config: &Config, world: &World) -> Result<Opened, Error> {
    let dir = config.node.data_dir.clone();
    let mut engine = config.engine_options()?;
    engine.partition_bits = world.partition_bits;
    if world.work.is_inline() {
        engine.compaction_threads = 0;
    }
    let open = || {
        let environment = &world.environment;
        let fence = Arc::new(Fence::open(Arc::clone(&environment.vfs), &dir)?);
        let (proposer, clock) = (Arc::new(ByConsensusOnly), Arc::clone(&environment.clock));
        let catalog = Arc::new(LayoutCatalog::new(&fence.document(), proposer, clock));
        // Before anybody can adopt a document: none is missed, none is shown without its tenants.
        let tenants = Arc::clone(&catalog);
        let newcomer: Arc<OnceLock<Arc<Newcomer>>> = Arc::default();
        let begins = Arc::clone(&newcomer);
        fence.before_shown(move |document| {
            tenants.adopt(document);
            if let Some(newcomer) = begins.get() {
                newcomer.begin_anew(document);
            }
        });
        let options = StoreOptions {
            engine,
            limits: config.store_limits(),
            identity: IdentityOptions {
                cluster_id: config.cluster.id.0,
                // It is formed or joined, also by a node that is alone.
                cluster_later: true,
                ..IdentityOptions::default()
            },
            catalog: Some(catalog),
            ..StoreOptions::default()
        };
        let store = Arc::new(Store::open_in(&dir, options, environment.clone())?);
        // From here on no other process writes in the directory; one may have until now.
        fence.reload()?;
        let node = NodeId(store.identity().node_id);
        let newcomer = newcomer.get_or_init(|| Arc::new(Newcomer::new(node, Arc::clone(&store))));
        newcomer.begin_again(&fence.document());
        Ok(Opened { store, fence })
    };
    open().map_err(|source| Error::Open { dir: dir.clone(), source })
}
