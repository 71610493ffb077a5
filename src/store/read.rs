//! Point reads.
//!
//! A read is one look at the engine; what has expired by now is left out at the very end, so that
//! no stored state depends on the time of a read. A key without a value is an answer and no error:
//! it has a context too, which a write needs that must not become a sibling of the delete.
//!
//! What was read once is there ever after: a node that syncs every write shows none whose sync has
//! not ended. Who may not block on the disk takes what it finds as [`Early`], and tells nobody of
//! it before it is durable.

use super::Store;
use super::error::Result;
use super::row::{ReadRow, View};
use super::tenant::Tenant;
use crate::engine::Position;

/// What was found, perhaps in memory alone: nobody may be told of it before
/// [`Store::on_durable`] says that all is durable up to `upto`.
#[derive(Clone, Debug)]
#[must_use]
pub struct Early<T> {
    /// What was found.
    pub found: T,
    /// [`Position::ZERO`]: it is durable.
    pub upto: Position,
}

impl<T> Early<T> {
    /// What is durable.
    pub fn durable(found: T) -> Self {
        Self { found, upto: Position::ZERO }
    }

    /// The same of something else that was found with it.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Early<U> {
        Early { found: change(self.found), upto: self.upto }
    }
}

impl Store {
    /// Reads a key. May wait for a sync of the log that is under way.
    ///
    /// # Errors
    /// [`Error::UnknownTenant`](super::Error::UnknownTenant), a key out of its limits, a source
    /// that cannot be read, or a log that cannot be synced.
    pub fn read(&self, tenant: &str, key: &[u8]) -> Result<ReadRow> {
        let Early { found, upto } = self.peek(tenant, key);
        if upto != Position::ZERO {
            self.engine.wait_durable(upto)?;
        }
        found
    }

    /// [`Store::read`] for callers that must not block on the log.
    pub fn peek(&self, tenant: &str, key: &[u8]) -> Early<Result<ReadRow>> {
        match self.catalog.get(tenant) {
            Ok(tenant) => self.peek_one(&tenant, key, self.now_ms()),
            Err(error) => Early::durable(Err(error)),
        }
    }

    /// Reads keys, as [`Store::peek`] does; each has its own outcome, in the order of `keys`. It is
    /// no snapshot: each row is whole, but a write may come between two of them.
    pub fn peek_batch<K: AsRef<[u8]>>(
        &self,
        tenant: &str,
        keys: &[K],
    ) -> Early<Vec<Result<ReadRow>>> {
        let bytes = keys.iter().map(|key| key.as_ref().len()).sum();
        let tenant =
            self.limits.check_batch(keys.len(), bytes).and_then(|()| self.catalog.get(tenant));
        let tenant = match tenant {
            Ok(tenant) => tenant,
            Err(error) => {
                return Early::durable(keys.iter().map(|_| Err(error.clone())).collect());
            }
        };
        if keys.iter().all(|key| self.limits.check_key(key.as_ref()).is_ok()) {
            return self.peek_checked(&tenant, keys);
        }
        let now_ms = self.now_ms();
        let mut all = Early::durable(Vec::with_capacity(keys.len()));
        for key in keys {
            let Early { found, upto } = self.peek_one(&tenant, key.as_ref(), now_ms);
            all.found.push(found);
            all.upto = all.upto.max(upto);
        }
        all
    }

    /// Reads keys that are within their limits.
    fn peek_checked<K: AsRef<[u8]>>(
        &self,
        tenant: &Tenant,
        keys: &[K],
    ) -> Early<Vec<Result<ReadRow>>> {
        let now_ms = self.now_ms();
        let keys: Vec<_> = keys.iter().map(|key| tenant.engine_key(key.as_ref())).collect();
        let mut found = Vec::with_capacity(keys.len());
        let upto = self.engine.peek_newest_each(&keys, |at, row| {
            let context_key = self.context_key(&keys[at]);
            let view = View { context_key, now_ms, keys_only: false };
            found.push(self.watch(row.map_err(Into::into).and_then(|row| view.show(row))));
        });
        Early { found, upto }
    }

    fn peek_one(&self, tenant: &Tenant, key: &[u8], now_ms: u64) -> Early<Result<ReadRow>> {
        if let Err(error) = self.limits.check_key(key) {
            return Early::durable(Err(error));
        }
        let engine_key = tenant.engine_key(key);
        let view = View { context_key: self.context_key(&engine_key), now_ms, keys_only: false };
        match self.engine.peek_newest_with(&engine_key, |row| view.show(row)) {
            Ok((row, upto)) => Early { found: self.watch(row), upto },
            Err(error) => Early::durable(self.watch(Err(error.into()))),
        }
    }
}
