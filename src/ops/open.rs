//! Opens the store as the settings say.

use super::config::Config;
use super::node::Error;
use crate::store::{IdentityOptions, Store, StoreOptions};

/// Opens the store in the data directory.
pub(super) fn open_store(config: &Config) -> Result<Store, Error> {
    let dir = config.node.data_dir.clone();
    let options = StoreOptions {
        engine: config.engine_options()?,
        limits: config.store_limits(),
        identity: IdentityOptions { cluster_id: config.cluster.id.0, ..IdentityOptions::default() },
        ..StoreOptions::default()
    };
    Store::open(&dir, options).map_err(|source| Error::Open { dir, source })
}
