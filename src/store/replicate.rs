//! Rows from other replicas.
//!
//! They come as whole rows and are joined without being read: blind Deltas. What a client sent was
//! checked at its own door; here only what would harm this node is refused.

use super::Store;
use super::error::{Error, Result};
use super::limits::KEY_BYTES_CEILING;
use super::row::causal_mode;
use super::tenant::TenantId;
use crate::causality::codec;
use crate::engine;

impl Store {
    /// Joins rows and waits until they are durable. Each is the row's tenant, key and state; each
    /// has its own outcome.
    pub fn replicate(&self, rows: Vec<(TenantId, Vec<u8>, Vec<u8>)>) -> Vec<Result<()>> {
        let placed: Vec<Result<Vec<u8>>> =
            rows.iter().map(|(tenant, key, row)| self.place(*tenant, key, row)).collect();
        let records: Vec<(&[u8], &[u8])> = placed
            .iter()
            .zip(&rows)
            .filter_map(|(place, (_, _, row))| Some((place.as_deref().ok()?, &row[..])))
            .collect();
        let mut joined = self.join_durably(&records).into_iter();
        placed
            .iter()
            .map(|place| match place {
                Ok(_) => joined.next().unwrap_or(Err(Error::Closed)),
                Err(error) => Err(error.clone()),
            })
            .collect()
    }

    /// The engine key of a row that may be joined here.
    fn place(&self, tenant: TenantId, key: &[u8], row: &[u8]) -> Result<Vec<u8>> {
        self.check_open()?;
        let tenant = self.catalog.by_id(tenant)?;
        if key.is_empty() {
            return Err(Error::EmptyKey);
        }
        if key.len() > KEY_BYTES_CEILING {
            let (found, limit) = (key.len() as u64, KEY_BYTES_CEILING as u64);
            return Err(Error::KeyTooLong { found, limit });
        }
        let invalid = |why: String| Error::InvalidArgument { what: "row", why };
        let decoded = codec::decode(row).map_err(|error| invalid(error.to_string()))?;
        if decoded.mode() != causal_mode(tenant.mode) {
            return Err(invalid(format!("its mode is not that of tenant {}", tenant.name)));
        }
        // A time that cannot be would drive this clock, and all that read from it, ahead for ever.
        let time = decoded.time_max();
        self.minter.check_ahead(time)?;
        self.minter.observe(time);
        Ok(tenant.engine_key(key))
    }

    /// One outcome for each record. One that is too old for its partition does not keep the others
    /// out.
    fn join_durably(&self, records: &[(&[u8], &[u8])]) -> Vec<Result<()>> {
        if records.is_empty() {
            return Vec::new();
        }
        match self.engine.apply(records) {
            Ok(position) => {
                let durable = self.engine.wait_durable(position).map_err(Error::unknown);
                records.iter().map(|_| durable.clone()).collect()
            }
            Err(engine::Error::BelowSafePoint) if records.len() > 1 => {
                records.iter().flat_map(|record| self.join_durably(&[*record])).collect()
            }
            Err(error) => {
                let error = self.failed(error);
                records.iter().map(|_| Err(error.clone())).collect()
            }
        }
    }
}
