//! The tree of tables: which there are, where, and how that changes.
//!
//! | part | what it is |
//! |---|---|
//! | [`TableMeta`] | what the manifest says of a table |
//! | [`VersionEdit`] | one atomic change |
//! | [`VersionState`] | the shape of the tree, pure data, judged at every change |
//! | [`Manifest`] | the edits on disk |
//! | [`Version`] | a state with its tables open: what readers pin |
//! | [`VersionSet`] | the current version, and the one way to change it |

mod edit;
mod handle;
mod manifest;
mod safe_point;
mod set;
mod state;
mod table_meta;
mod tree;
mod wire;

#[cfg(test)]
mod tests;

pub use edit::{Quarantined, VersionEdit};
pub use handle::{BuiltTable, FileCounters, TableHandle, TableRef};
pub use manifest::{Manifest, Recovered};
pub use safe_point::{SafePoint, WHOEVER_HOLDS_IT, partition_of};
pub use set::{RecoveryReport, VersionSet};
pub use state::{EditError, VersionState};
pub use table_meta::TableMeta;
pub use tree::{Candidates, Level, Version};
pub use wire::WireError;
