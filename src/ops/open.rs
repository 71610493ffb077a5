//! Opens the store as the settings say.

use super::config::Config;
use super::node::Error;
use super::world::World;
use crate::cluster::work::Work;
use crate::store::{IdentityOptions, Store, StoreOptions};

/// Opens the store in the data directory.
pub(super) fn open_store(config: &Config, world: &World) -> Result<Store, Error> {
    let dir = config.node.data_dir.clone();
    let mut engine = config.engine_options()?;
    if world.work == Work::Inline {
        engine.compaction_threads = 0;
    }
    let options = StoreOptions {
        engine,
        limits: config.store_limits(),
        identity: IdentityOptions { cluster_id: config.cluster.id.0, rotate: false },
        ..StoreOptions::default()
    };
    let opened = Store::open_in(&dir, options, world.environment.clone());
    opened.map_err(|source| Error::Open { dir, source })
}
