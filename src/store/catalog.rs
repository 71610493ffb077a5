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

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::engine::vfs::Vfs;

use super::document::Document;
use super::environment::Environment;
use super::error::{Error, Outcome, Result};
use super::tenant::{DEFAULT_TENANT, Tenant, TenantChange, TenantId, TenantSpec};

pub use super::tenants::TENANTS_MAX;
pub(crate) use super::tenants::Tenants;

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

/// The tenants of a node that is its own cluster.
#[derive(Debug)]
pub struct LocalCatalog {
    // Constant after open.
    environment: Environment,
    document: Document,
    // Replaced as a whole, under the lock.
    snapshot: ArcSwap<Tenants>,
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
        let snapshot = contents.check().map_err(|why| document.invalid(0, why))?;
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
        if !Self::exists(&*environment.vfs, dir)? {
            let first = TenantId(1);
            let now_ms = environment.clock.now_ms();
            let tenant = Tenant::create(first, now_ms, TenantSpec::new(DEFAULT_TENANT))?;
            let tenants = Tenants::new(1, first.0 + 1, [tenant]);
            document.replace(&*environment.vfs, &Contents::of(&tenants))?;
        }
        Self::open(environment, dir)
    }

    /// Whether `dir` has a catalog of its own.
    pub(super) fn exists(vfs: &dyn Vfs, dir: &Path) -> Result<bool> {
        let document = Document::new(dir, NAME, FORMAT);
        let path = document.path();
        Ok(vfs.exists(path).map_err(crate::engine::Error::io("look for", path))?)
    }

    /// Writes what `edit` makes of the current snapshot, then shows it.
    fn change(&self, edit: impl FnOnce(&Tenants) -> Result<(Tenant, u32)>) -> Result<Arc<Tenant>> {
        let mut refused = self.change.lock();
        if let Some(cause) = &*refused {
            return Err(Error::ReadOnly { cause: cause.clone() });
        }
        let current = self.snapshot.load();
        let (tenant, next_id) = edit(&current)?;
        let id = tenant.id;
        let next = current.with(tenant, next_id);
        let written = self.document.replace(&*self.environment.vfs, &Contents::of(&next));
        if let Err(error) = written {
            if error.outcome() == Outcome::Unknown {
                *refused = Some(error.to_string());
            }
            return Err(error);
        }
        self.snapshot.store(Arc::new(next));
        self.by_id(id)
    }
}

impl TenantCatalog for LocalCatalog {
    fn get(&self, name: &str) -> Result<Arc<Tenant>> {
        self.snapshot.load().get(name).cloned()
    }

    fn by_id(&self, id: TenantId) -> Result<Arc<Tenant>> {
        self.snapshot.load().by_id(id).cloned()
    }

    fn list(&self) -> Vec<Arc<Tenant>> {
        self.snapshot.load().list()
    }

    fn create(&self, spec: TenantSpec) -> Result<Arc<Tenant>> {
        let now_ms = self.environment.clock.now_ms();
        self.change(|current| {
            let taken = |name: &str| current.has_name(name);
            Tenant::create_next(current.next_id(), now_ms, spec, current.len(), taken)
        })
    }

    fn alter(&self, name: &str, change: TenantChange) -> Result<Arc<Tenant>> {
        self.change(|current| {
            let tenant = current.get(name)?.altered(change)?;
            Ok((tenant, current.next_id()))
        })
    }

    fn version(&self) -> u64 {
        self.snapshot.load().version()
    }
}

impl Contents {
    fn of(tenants: &Tenants) -> Self {
        let list = tenants.list().iter().map(|tenant| Tenant::clone(tenant)).collect();
        Self { version: tenants.version(), next_id: tenants.next_id(), tenants: list }
    }

    /// Holds what was read to the rules of what is written; says which is broken.
    fn check(self) -> Result<Tenants, String> {
        let Self { version, next_id, tenants } = self;
        if version == 0 || version == u64::MAX {
            return Err(format!("version {version}"));
        }
        let mut checked = Tenants::new(version, next_id, []);
        for tenant in tenants {
            let (id, name) = (tenant.id, &tenant.name);
            tenant.validate().map_err(|error| format!("tenant {id}: {error}"))?;
            if id.0 >= next_id {
                return Err(format!("tenant {id} has an id that is still to be given"));
            }
            if checked.has_name(name) || checked.by_id(id).is_ok() {
                return Err(format!("tenant {id} ({name}) stands there twice"));
            }
            checked.insert(Arc::new(tenant));
        }
        Ok(checked)
    }
}

#[cfg(test)]
mod tests;
