//! The tree of tables: which there are, where, and how that changes.
//!
//! | part | what it is |
//! |---|---|
//! | [`TableMeta`] | what the manifest says of a table |
//! | [`VersionEdit`] | one atomic change |
//! | [`VersionState`] | the shape of the tree, pure data, judged at every change |
//! | [`Manifest`] | the edits on disk |

mod edit;
mod manifest;
mod safe_point;
mod state;
mod table_meta;
mod wire;

pub use edit::{Quarantined, VersionEdit};
pub use manifest::{Manifest, Recovered};
pub use safe_point::{SafePoint, key_prefix, partition_of};
pub use state::{EditError, VersionState};
pub use table_meta::TableMeta;
pub use wire::WireError;
