//! The row cache: joined states of the tables on disk, below the memtables.
//!
//! | file | what |
//! |---|---|
//! | `row_cache` | what the engine sees: epochs, fills, fixes |
//! | `shard` | one lock's worth of it: the map and the S3-FIFO queues |

pub mod row_cache;
mod shard;

pub use row_cache::{Cached, RowCache, RowCacheStats};
