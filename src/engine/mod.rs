//! An ordered, durable byte store with a merge operator.
//!
//! It knows keys, opaque row states and a [`MergeOperator`] that joins them. It does not know
//! what a row is, nor clocks, tenants, networks or an async runtime: its threads are its own.

pub mod compaction;
pub mod error;
pub mod iter;
pub mod merge;
pub mod options;
pub mod position;
pub mod record;
pub mod sstable;
pub mod version;
pub mod vfs;

pub use error::{Corruption, Error, Result};
pub use merge::MergeOperator;
pub use options::Options;
pub use position::Position;
pub use record::{Kind, Record};
