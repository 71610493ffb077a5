//! Immutable sorted tables, read through a memory map without copying.
//!
//! ```text
//! data block | data block | ... | filter | index | properties | footer
//! ```
//!
//! | file | its bytes or its part |
//! |---|---|
//! | `format` | frames, checksums, the footer |
//! | `block`, `block_builder` | data blocks: records behind columns of key prefixes and offsets |
//! | `index` | which block may hold a key |
//! | `filter` | the Bloom filter, probed in the mapping |
//! | `properties` | counts, bounds, times |
//! | `column` | the search that blocks and index share |
//! | `builder`, `reader`, `iter` | write a table; look up a key; walk all of it |
//! | `read_ahead` | what a walk has in memory before it comes there |
//! | `verify` | reads all of a table again, to find damage |
//!
//! Tables have no names, levels or ages here; see `version` for those. Nothing is cached: the
//! page cache holds the bytes, and the row cache above holds hot rows.
//!
//! # Invariants
//! 1. A table is never changed after [`TableBuilder::finish`]; the mapping relies on it.
//! 2. Keys ascend strictly: one record per key.
//! 3. Damage is found before it is believed: sections are checked at open, each block at its first
//!    touch (or every touch, if asked), and no byte of the file can cause a panic.

mod block;
mod block_builder;
mod builder;
mod column;
mod filter;
mod format;
mod index;
mod iter;
mod properties;
mod read_ahead;
mod reader;
mod verify;

#[cfg(test)]
mod tests;

pub use builder::{RowInfo, TableBuilder, TableOptions};
pub use filter::KeyHash;
pub use iter::TableIter;
pub use properties::Properties;
#[cfg(test)]
pub(crate) use tests::test_table;

pub use reader::{RowRef, Table, TableRecord};
pub use verify::KeyRange;
