//! The row cache: joined states of the tables on disk, below the memtables.
//!
//! | file | what |
//! |---|---|
//! | `admission` | what is worth an entry |
//! | `row_cache` | what the engine sees: epochs, fills, fixes |
//! | `shard` | one lock's worth of it: the map and the S3-FIFO queues |

mod admission;
pub mod row_cache;
mod shard;

pub use admission::Admission;
pub use row_cache::{Cached, RowCache, RowCacheStats};
