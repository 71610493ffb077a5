//! Which tenants there are.
//!
//! [`TenantCatalog`] is what the store needs to know of tenants; [`LocalCatalog`] keeps them in the
//! data directory of a single node, in the document `TENANTS` (see
//! `document.rs` for its bytes). A cluster keeps them elsewhere, behind the same
//! trait.
//!
//! 1. Look-ups take no lock.
//! 2. A change is durable before anybody can see it.
//! 3. An id is never given to a second tenant: its rows would appear there.
//! 4. After a change whose outcome is unknown no other change is taken until the next start: it
//!    could give the same id away again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::document::Document;
use super::environment::Environment;
use super::error::{Error, Outcome, Result};
use super::tenant::{DEFAULT_TENANT, Tenant, TenantChange, TenantId, TenantSpec, validate_name};

/// Most tenants of one catalog: every change writes them all.
pub const TENANTS_MAX: usize = 10_000;

const NAME: &str = "TENANTS";
const FORMAT: u32 = 1;

/// The tenants of a store.
pub trait TenantCatalog: std::fmt::Debug + Send + Sync + 'static {
    /// The tenant of this name. `InvalidTenantName` if none can ever have it.
    fn get(&self, name: &str) -> Result<Arc<Tenant>>;

    /// The tenant with this id.
    fn by_id(&self, id: TenantId) -> Result<Arc<Tenant>>;

    /// All of them, by name.
    fn list(&self) -> Vec<Arc<Tenant>>;

    /// Adds a tenant; durable when it returns.
    fn create(&self, spec: TenantSpec) -> Result<Arc<Tenant>>;

    /// Alters a tenant; durable when it returns.
    fn alter(&self, name: &str, change: TenantChange) -> Result<Arc<Tenant>>;

    /// Grows with every change.
    fn version(&self) -> u64;
}

/// What stands in the document.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u64,
    next_id: u32,
    tenants: Vec<Tenant>,
}

/// One version of the catalog, never changed.
#[derive(Clone, Debug, Default)]
struct Snapshot {
    version: u64,
    next_id: u32,
    by_name: BTreeMap<String, Arc<Tenant>>,
    by_id: HashMap<TenantId, Arc<Tenant>>,
}

/// The tenants of a node that is its own cluster.
#[derive(Debug)]
pub struct LocalCatalog {
    // Constant after open.
    environment: Environment,
    document: Document,
    // Replaced as a whole, under the lock.
    snapshot: ArcSwap<Snapshot>,
    /// Held while a change is written; why changes are refused, if they are.
    change: Mutex<Option<String>>,
}

impl LocalCatalog {
    /// Opens the catalog in `dir`, which exists. A missing document is corruption: to start anew
    /// would give the ids of the lost tenants away.
    pub fn open(environment: &Environment, dir: &Path) -> Result<Self> {
        let document = Document::new(dir, NAME, FORMAT);
        let Some(contents) = document.read::<Contents>(&*environment.vfs)? else {
            return Err(document.missing());
        };
        let snapshot = Snapshot::check(contents).map_err(|why| document.invalid(0, why))?;
        Ok(Self {
            environment: environment.clone(),
            document,
            snapshot: ArcSwap::from_pointee(snapshot),
            change: Mutex::new(None),
        })
    }

    /// As [`LocalCatalog::open`], but a missing document is written, with the tenant
    /// [`DEFAULT_TENANT`]. Only for a directory in which the store never ran
    /// ([`IdentityFile::exists`](super::identity::IdentityFile::exists) says no).
    pub fn open_or_create(environment: &Environment, dir: &Path) -> Result<Self> {
        let document = Document::new(dir, NAME, FORMAT);
        let path = document.path();
        let exists = environment.vfs.exists(path);
        if !exists.map_err(crate::engine::Error::io("look for", path))? {
            let first = TenantId(1);
            let now_ms = environment.clock.now_ms();
            let tenant = Tenant::create(first, now_ms, TenantSpec::new(DEFAULT_TENANT))?;
            let snapshot = Snapshot { next_id: first.0, ..Snapshot::default() };
            let contents = snapshot.with(tenant, first.0 + 1).contents();
            document.replace(&*environment.vfs, &contents)?;
        }
        Self::open(environment, dir)
    }

    /// Writes what `edit` makes of the current snapshot, then shows it.
    fn change(&self, edit: impl FnOnce(&Snapshot) -> Result<(Tenant, u32)>) -> Result<Arc<Tenant>> {
        let mut refused = self.change.lock();
        if let Some(cause) = &*refused {
            return Err(Error::ReadOnly { cause: cause.clone() });
        }
        let current = self.snapshot.load();
        let (tenant, next_id) = edit(&current)?;
        let id = tenant.id;
        let next = current.with(tenant, next_id);
        let written = self.document.replace(&*self.environment.vfs, &next.contents());
        if let Err(error) = written {
            if error.outcome() == Outcome::Unknown {
                *refused = Some(error.to_string());
            }
            return Err(error);
        }
        let tenant = Arc::clone(&next.by_id[&id]);
        self.snapshot.store(Arc::new(next));
        Ok(tenant)
    }
}

impl TenantCatalog for LocalCatalog {
    fn get(&self, name: &str) -> Result<Arc<Tenant>> {
        self.snapshot.load().get(name).cloned()
    }

    fn by_id(&self, id: TenantId) -> Result<Arc<Tenant>> {
        let found = self.snapshot.load().by_id.get(&id).cloned();
        found.ok_or(Error::UnknownTenantId { id: id.0 })
    }

    fn list(&self) -> Vec<Arc<Tenant>> {
        self.snapshot.load().by_name.values().cloned().collect()
    }

    fn create(&self, spec: TenantSpec) -> Result<Arc<Tenant>> {
        let now_ms = self.environment.clock.now_ms();
        self.change(|current| {
            let tenant = Tenant::create(TenantId(current.next_id), now_ms, spec)?;
            if current.by_name.contains_key(&tenant.name) {
                return Err(Error::TenantExists { name: tenant.name });
            }
            let (found, limit) = (current.by_name.len() as u64 + 1, TENANTS_MAX as u64);
            match current.next_id.checked_add(1) {
                Some(next_id) if found <= limit => Ok((tenant, next_id)),
                _ => Err(Error::TooManyTenants { found, limit }),
            }
        })
    }

    fn alter(&self, name: &str, change: TenantChange) -> Result<Arc<Tenant>> {
        self.change(|current| {
            let tenant = current.get(name)?.altered(change)?;
            Ok((tenant, current.next_id))
        })
    }

    fn version(&self) -> u64 {
        self.snapshot.load().version
    }
}

impl Snapshot {
    fn get(&self, name: &str) -> Result<&Arc<Tenant>> {
        if let Some(tenant) = self.by_name.get(name) {
            return Ok(tenant);
        }
        validate_name(name)?;
        Err(Error::UnknownTenant { name: name.to_owned() })
    }

    /// The next version, with `tenant` added or in the place of its former self.
    fn with(&self, tenant: Tenant, next_id: u32) -> Self {
        let mut next = self.clone();
        next.version += 1;
        next.next_id = next_id;
        next.insert(Arc::new(tenant));
        next
    }

    fn insert(&mut self, tenant: Arc<Tenant>) {
        self.by_id.insert(tenant.id, Arc::clone(&tenant));
        self.by_name.insert(tenant.name.clone(), tenant);
    }

    fn contents(&self) -> Contents {
        let tenants = self.by_name.values().map(|tenant| (**tenant).clone()).collect();
        Contents { version: self.version, next_id: self.next_id, tenants }
    }

    /// Holds what was read to the rules of what is written; says which is broken.
    fn check(contents: Contents) -> Result<Self, String> {
        let Contents { version, next_id, tenants } = contents;
        let mut snapshot = Self { version, next_id, ..Self::default() };
        if version == 0 || version == u64::MAX {
            return Err(format!("version {version}"));
        }
        for tenant in tenants {
            let (id, name) = (tenant.id, &tenant.name);
            tenant.validate().map_err(|error| format!("tenant {id}: {error}"))?;
            if id.0 >= next_id {
                return Err(format!("tenant {id} has an id that is still to be given"));
            }
            if snapshot.by_name.contains_key(name) || snapshot.by_id.contains_key(&id) {
                return Err(format!("tenant {id} ({name}) stands there twice"));
            }
            snapshot.insert(Arc::new(tenant));
        }
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests;
