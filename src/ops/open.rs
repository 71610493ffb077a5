//! Opens the store as the settings say.

use super::config::Config;
use super::node::Error;
use crate::store::{Limits, Store, StoreOptions};

/// Opens the store in the data directory.
pub(super) fn open_store(config: &Config) -> Result<Store, Error> {
    let dir = config.node.data_dir.join("store");
    let l = &config.limits;
    let limits = Limits {
        key_bytes_max: l.key_bytes_max.0 as usize,
        value_bytes_max: l.value_bytes_max.0 as usize,
        siblings_max: l.siblings_max as usize,
        batch_max: l.batch_max as usize,
        ttl_ms_max: l.ttl_max.as_millis() as u64,
        ..Limits::default()
    };
    let options = StoreOptions { engine: config.engine_options()?, limits };
    Store::open(&dir, options).map_err(|source| Error::Open { dir, source })
}
