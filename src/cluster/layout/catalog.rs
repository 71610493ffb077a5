//! The tenants of the layout's document, as the store wants them.
//!
//! 1. Look-ups take no lock and ask nobody: they see the last document that was adopted here.
//! 2. A change is proposed to consensus, and durable with a majority when its call returns.
//! 3. A tenant can be used on this node as soon as the call that created it here has returned,
//!    even before the document with it arrives. An alteration shows when its document does.
//! 4. Versions never go backwards.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::store::catalog::{TENANTS_MAX, Tenants};
use crate::store::{
    self, Error, Tenant, TenantCatalog, TenantChange, TenantId, TenantSpec, WallClock,
};

use super::refusal::reason;
use super::{Answer, Command, Document};

/// Puts commands in their order.
pub trait Proposer: fmt::Debug + Send + Sync + 'static {
    /// Proposes a command and waits until it was applied, for a bounded time. It blocks: never
    /// called on a thread that consensus itself needs.
    ///
    /// # Errors
    /// [`Error::Refused`] if it certainly was not and will not be applied, such as without a
    /// leader; [`Error::Unknown`] if it may have been.
    fn propose(&self, command: Command) -> store::Result<Answer>;
}

/// See the module page.
#[derive(Debug)]
pub struct LayoutCatalog {
    tenants: ArcSwap<Tenants>,
    proposer: Arc<dyn Proposer>,
    clock: Arc<dyn WallClock>,
}

impl LayoutCatalog {
    /// The tenants of `document`, which may be empty: then there are none yet.
    pub fn new(
        document: &Document,
        proposer: Arc<dyn Proposer>,
        clock: Arc<dyn WallClock>,
    ) -> Self {
        Self { tenants: ArcSwap::from_pointee(tenants_of(document)), proposer, clock }
    }

    /// Shows the tenants of `document` from here on, unless it shows those of a later one.
    pub fn adopt(&self, document: &Document) {
        if self.tenants.load().version() >= document.version {
            return;
        }
        let adopted = tenants_of(document);
        self.tenants.rcu(|shown| {
            if shown.version() >= document.version {
                return Arc::clone(shown);
            }
            let mut next = adopted.clone();
            // Those created through this node and not in the document yet.
            let ahead = shown.list().into_iter().filter(|tenant| tenant.id.0 >= next.next_id());
            let ahead: Vec<_> = ahead.collect();
            ahead.into_iter().for_each(|tenant| next.insert(tenant));
            Arc::new(next)
        });
    }

    fn propose(&self, name: &str, command: Command) -> store::Result<Arc<Tenant>> {
        match self.proposer.propose(command)? {
            Answer::Tenant(tenant) => Ok(Arc::new(*tenant)),
            Answer::Refused { reason, message } => Err(error_of(name, &reason, message)),
            Answer::Done { .. } => {
                let why = "consensus answered it as another command".to_owned();
                let inside = Error::InvalidArgument { what: "tenant", why };
                Err(Error::unknown(inside))
            }
        }
    }
}

impl TenantCatalog for LayoutCatalog {
    fn get(&self, name: &str) -> store::Result<Arc<Tenant>> {
        self.tenants.load().get(name).cloned()
    }

    fn by_id(&self, id: TenantId) -> store::Result<Arc<Tenant>> {
        self.tenants.load().by_id(id).cloned()
    }

    fn list(&self) -> Vec<Arc<Tenant>> {
        self.tenants.load().list()
    }

    fn create(&self, spec: TenantSpec) -> store::Result<Arc<Tenant>> {
        let now_ms = self.clock.now_ms();
        // What is wrong by itself is said with all its figures, without asking anybody.
        Tenant::create(TenantId::default(), now_ms, spec.clone())?;
        let name = spec.name.clone();
        let created = self.propose(&name, Command::CreateTenant { spec, now_ms })?;
        self.tenants.rcu(|shown| {
            let mut next = Tenants::clone(shown);
            if next.by_id(created.id).is_err() {
                next.insert(Arc::clone(&created));
            }
            next
        });
        Ok(created)
    }

    fn alter(&self, name: &str, change: TenantChange) -> store::Result<Arc<Tenant>> {
        if let Ok(tenant) = self.get(name) {
            tenant.altered(change.clone())?;
        }
        self.propose(name, Command::AlterTenant { name: name.to_owned(), change })
    }

    fn version(&self) -> u64 {
        self.tenants.load().version()
    }
}

fn tenants_of(document: &Document) -> Tenants {
    Tenants::new(document.version, document.tenant_id_next, document.tenants.values().cloned())
}

/// The error that a refusal of a tenant's change was made from, as far as its reason says.
pub fn error_of(name: &str, found: &str, message: String) -> Error {
    let name = name.to_owned();
    let limit = TENANTS_MAX as u64;
    match found {
        "TENANT_EXISTS" => Error::TenantExists { name },
        "UNKNOWN_TENANT" => Error::UnknownTenant { name },
        "INVALID_TENANT_NAME" => Error::InvalidTenantName { name, why: message },
        "TOO_MANY_TENANTS" => Error::TooManyTenants { found: limit + 1, limit },
        _ => {
            let known = reason::ALL.into_iter().find(|reason| *reason == found);
            Error::Refused { reason: known.unwrap_or("REFUSED"), message }
        }
    }
}

#[cfg(test)]
mod tests;
