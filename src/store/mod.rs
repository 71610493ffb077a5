//! A versioned store: rows with a causal history, in tenants, on the engine.
//!
//! It joins [`causality`](crate::causality) and [`engine`](crate::engine): what a row means comes
//! from the one, where its bytes are from the other. It knows nothing of networks, other nodes and
//! async runtimes; all its calls are synchronous.

pub mod catalog;
mod document;
pub mod environment;
pub mod error;
pub mod identity;
pub mod key;
pub mod limits;
pub mod tenant;

pub use catalog::{LocalCatalog, TenantCatalog};
pub use environment::{Environment, MonotonicClock, Random, WallClock};
pub use error::{Error, Outcome, Result};
pub use identity::{Identity, IdentityFile, IdentityOptions, Lease, Start};
pub use key::{EngineKey, KeyRange};
pub use limits::Limits;
pub use tenant::{Mode, Retention, Tenant, TenantChange, TenantId, TenantSpec};
