//! Point reads.
//!
//! A read is one look at the engine; what has expired by now is left out at the very end, so that
//! no stored state depends on the time of a read. A key without a value is an answer and no error:
//! it has a context too, which a write needs that must not become a sibling of the delete.

use super::Store;
use super::error::Result;
use super::row::{ReadRow, View};
use super::tenant::Tenant;

impl Store {
    /// Reads a key.
    ///
    /// # Errors
    /// [`Error::UnknownTenant`](super::Error::UnknownTenant), a key out of its limits, or a source
    /// that cannot be read.
    pub fn read(&self, tenant: &str, key: &[u8]) -> Result<ReadRow> {
        let tenant = self.catalog.get(tenant)?;
        self.read_one(&tenant, key, self.now_ms())
    }

    /// Reads keys; each has its own outcome, in the order of `keys`. It is no snapshot: each row
    /// is whole, but a write may come between two of them.
    pub fn read_batch<K: AsRef<[u8]>>(&self, tenant: &str, keys: &[K]) -> Vec<Result<ReadRow>> {
        let bytes = keys.iter().map(|key| key.as_ref().len()).sum();
        let tenant =
            self.limits.check_batch(keys.len(), bytes).and_then(|()| self.catalog.get(tenant));
        let tenant = match tenant {
            Ok(tenant) => tenant,
            Err(error) => return keys.iter().map(|_| Err(error.clone())).collect(),
        };
        if keys.iter().all(|key| self.limits.check_key(key.as_ref()).is_ok()) {
            self.read_checked(&tenant, keys)
        } else {
            let now_ms = self.now_ms();
            keys.iter().map(|key| self.read_one(&tenant, key.as_ref(), now_ms)).collect()
        }
    }

    /// Reads keys that are within their limits.
    fn read_checked<K: AsRef<[u8]>>(&self, tenant: &Tenant, keys: &[K]) -> Vec<Result<ReadRow>> {
        let now_ms = self.now_ms();
        let keys: Vec<_> = keys.iter().map(|key| tenant.engine_key(key.as_ref())).collect();
        let mut rows = Vec::with_capacity(keys.len());
        self.engine.get_newest_each(&keys, |at, row| {
            let context_key = self.context_key(&keys[at]);
            let view = View { context_key, now_ms, keys_only: false };
            rows.push(self.watch(row.map_err(Into::into).and_then(|row| view.show(row))));
        });
        rows
    }

    fn read_one(&self, tenant: &Tenant, key: &[u8], now_ms: u64) -> Result<ReadRow> {
        self.limits.check_key(key)?;
        let engine_key = tenant.engine_key(key);
        let view = View { context_key: self.context_key(&engine_key), now_ms, keys_only: false };
        let row = self.engine.get_newest_with(&engine_key, |row| view.show(row));
        self.watch(row.map_err(Into::into).flatten())
    }
}
