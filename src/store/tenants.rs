//! All tenants at one moment, found by name and by id: what every catalog looks its answers up in.
//!
//! It is replaced as a whole, never changed while others see it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::error::{Error, Result};
use super::tenant::{Tenant, TenantId, TenantSpec, validate_name};

/// Most tenants of one catalog: every change writes them all.
pub const TENANTS_MAX: usize = 10_000;

/// One version of a catalog.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenants {
    version: u64,
    next_id: u32,
    by_name: BTreeMap<String, Arc<Tenant>>,
    by_id: HashMap<TenantId, Arc<Tenant>>,
}

impl Tenants {
    /// `next_id` is that of the next tenant.
    pub(crate) fn new(version: u64, next_id: u32, list: impl IntoIterator<Item = Tenant>) -> Self {
        let mut tenants = Self { version, next_id, ..Self::default() };
        list.into_iter().for_each(|tenant| tenants.insert(Arc::new(tenant)));
        tenants
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn next_id(&self) -> u32 {
        self.next_id
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn has_name(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The tenant of this name. `InvalidTenantName` if none can ever have it.
    pub(crate) fn get(&self, name: &str) -> Result<&Arc<Tenant>> {
        if let Some(tenant) = self.by_name.get(name) {
            return Ok(tenant);
        }
        validate_name(name)?;
        Err(Error::UnknownTenant { name: name.to_owned() })
    }

    pub(crate) fn by_id(&self, id: TenantId) -> Result<&Arc<Tenant>> {
        self.by_id.get(&id).ok_or(Error::UnknownTenantId { id: id.0 })
    }

    /// All of them, by name.
    pub(crate) fn list(&self) -> Vec<Arc<Tenant>> {
        self.by_name.values().cloned().collect()
    }

    /// The next version, with `tenant` added or in the place of its former self.
    pub(crate) fn with(&self, tenant: Tenant, next_id: u32) -> Self {
        let mut next = self.clone();
        next.version += 1;
        next.next_id = next_id;
        next.insert(Arc::new(tenant));
        next
    }

    /// Adds a tenant, or puts it in the place of its former self.
    pub(crate) fn insert(&mut self, tenant: Arc<Tenant>) {
        self.by_id.insert(tenant.id, Arc::clone(&tenant));
        self.by_name.insert(tenant.name.clone(), tenant);
    }
}

impl Tenant {
    /// The tenant `spec` describes, as the next one of a catalog that has `count` tenants, and the
    /// id of the one after it. `taken` knows the names there are.
    pub(crate) fn create_next(
        next_id: u32,
        now_ms: u64,
        spec: TenantSpec,
        count: usize,
        taken: impl FnOnce(&str) -> bool,
    ) -> Result<(Self, u32)> {
        let tenant = Self::create(TenantId(next_id), now_ms, spec)?;
        if taken(&tenant.name) {
            return Err(Error::TenantExists { name: tenant.name });
        }
        let (found, limit) = (count as u64 + 1, TENANTS_MAX as u64);
        match next_id.checked_add(1) {
            Some(next_id) if found <= limit => Ok((tenant, next_id)),
            _ => Err(Error::TooManyTenants { found, limit }),
        }
    }
}
