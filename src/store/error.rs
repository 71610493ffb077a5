//! The store's errors, named by what a client can do about them.
//!
//! Each has a stable [`reason`](Error::reason) for programs and an [`outcome`](Error::outcome) for
//! writes. Promises:
//! 1. an error counts as "not applied" unless it is [`Error::Unknown`]; whoever waits for a write
//!    that may already lie in the log wraps what it got with [`Error::unknown`];
//! 2. a wrapped error keeps the reason of what is inside, so a client sees why as well;
//! 3. reasons never change once released: clients compare them.
//!
//! It is `Clone` because one failed sync answers every write of its batch.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::engine;

/// Result with the store's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What became of a write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did not happen and never will.
    NotApplied,
    /// It may be there already or appear later. A retry with the same idempotency key is safe.
    Unknown,
}

impl Outcome {
    /// The name clients see: `not_applied` or `unknown`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotApplied => "not_applied",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why the store could not do what it was asked. `found` is what was given, `limit` what it may be
/// at most; both in the unit the variant names, bytes where it names none.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields are explained on the enum and by the messages")]
pub enum Error {
    /// A key must have at least one byte.
    #[error("the key is empty")]
    EmptyKey,
    /// The key is over its limit.
    #[error("the key has {found} bytes, the limit is {limit}")]
    KeyTooLong { found: u64, limit: u64 },
    /// The value is over its limit.
    #[error("the value has {found} bytes, the limit is {limit}")]
    ValueTooLong { found: u64, limit: u64 },
    /// The content type is over its limit.
    #[error("the content type has {found} bytes, the limit is {limit}")]
    ContentTypeTooLong { found: u64, limit: u64 },
    /// An idempotency key has 1 byte to the limit.
    #[error("the idempotency key has {found} bytes, it must have 1 to {limit}")]
    InvalidIdempotencyKey { found: u64, limit: u64 },
    /// A tenant's name has 1 to 63 bytes of `a-z`, `0-9` and `-`.
    #[error("the tenant name {name:?} is invalid: {why}")]
    InvalidTenantName { name: String, why: String },
    /// No tenant of this name exists.
    #[error("there is no tenant {name:?}")]
    UnknownTenant { name: String },
    /// No tenant has this id: the sender knows of a tenant that this node does not.
    #[error("there is no tenant with id {id}")]
    UnknownTenantId { id: u32 },
    /// A tenant of this name exists already.
    #[error("the tenant {name:?} exists already")]
    TenantExists { name: String },
    /// The catalog is full.
    #[error("there are {found} tenants, the limit is {limit}")]
    TooManyTenants { found: u64, limit: u64 },
    /// The context is not one that a read of this store gave out.
    #[error("the context is invalid: {why}")]
    InvalidContext { why: String },
    /// A time to live is at least 1 ms and at most the limit. In milliseconds.
    #[error("the ttl is {found} ms, it must be 1 to {limit} ms")]
    InvalidTtl { found: u64, limit: u64 },
    /// The row has as many concurrent versions as it may; write with the context of a read.
    #[error("the row would have {found} siblings, the limit is {limit}; write with a context")]
    TooManySiblings { found: u64, limit: u64 },
    /// All versions of the row together are over the limit.
    #[error("the row would have {found} bytes, the limit is {limit}")]
    RowTooLarge { found: u64, limit: u64 },
    /// The batch is over a limit. `what` is "items" or "bytes".
    #[error("the batch has {found} {what}, the limit is {limit}")]
    BatchTooLarge { what: &'static str, found: u64, limit: u64 },
    /// The cursor is not one that a page of this scan gave out.
    #[error("the cursor is invalid: {why}")]
    InvalidCursor { why: String },
    /// The idempotency key was used for another write.
    #[error("the idempotency key was used before with another value")]
    IdempotencyConflict,
    /// The idempotency key is older than keys are remembered. In milliseconds.
    #[error("the idempotency key is {age_ms} ms old, keys are remembered for {limit_ms} ms")]
    TokenExpired { age_ms: u64, limit_ms: u64 },
    /// An argument or option is wrong in a way that no other variant names.
    #[error("{what} is invalid: {why}")]
    InvalidArgument { what: &'static str, why: String },
    /// The node cannot keep up; nothing was written, try again later.
    #[error("the store is overloaded: waited {waited_ms} ms")]
    Overloaded { waited_ms: u64 },
    /// The rows that a batch changed before this item are all that one call may; this item was not
    /// written, try it again. In bytes.
    #[error("the batch has changed rows of {found} bytes, one call may change {limit}")]
    RowsTooLarge { found: u64, limit: u64 },
    /// Too little free space; nothing was written. In bytes.
    #[error("{} has {available} bytes free, below the reserve of {reserve}", path.display())]
    DiskFull { path: PathBuf, available: u64, reserve: u64 },
    /// Writes are refused since a write or sync failed; the node must be restarted.
    #[error("the store has failed and has to be started again: {cause}")]
    ReadOnly { cause: String },
    /// The row is so old that it may have been deleted and forgotten here.
    #[error("the row is at or below the safe point of its partition")]
    BelowSafePoint,
    /// The wall clock is too far from what the store has seen to mint times. In milliseconds.
    #[error("the clock is off by {skew_ms} ms, the limit is {limit_ms} ms")]
    ClockUnsafe { skew_ms: u64, limit_ms: u64 },
    /// The operating system gave no random bytes.
    #[error("no random bytes from the system: {why}")]
    NoRandomness { why: String },
    /// Bytes on disk are not what was written there.
    #[error("{} is corrupt at byte {offset}: {what}", file.display())]
    Corruption { file: PathBuf, offset: u64, what: String },
    /// This replica has lost data of the partition and waits for the others to give it back: its
    /// absence of a row means nothing.
    #[error("partition {partition} has lost data here and is being repaired")]
    Damaged { partition: u32 },
    /// The file was written by a newer version of the program.
    #[error(
        "{} has format version {found}; this program reads up to {supported}", file.display()
    )]
    FormatTooNew { file: PathBuf, found: u32, supported: u32 },
    /// Another process (or this one) has the directory open.
    #[error("{} is in use by another process", path.display())]
    Locked { path: PathBuf },
    /// The data directory belongs to another cluster. Both as UUIDs.
    #[error("{} belongs to cluster {found}, not to {expected}", file.display())]
    WrongCluster { file: PathBuf, expected: String, found: String },
    /// The engine failed in a way a client can do nothing about.
    #[error(transparent)]
    Engine(Arc<engine::Error>),
    /// The cluster refused a change. `reason` is for programs, in `UPPER_SNAKE`, and never changes.
    #[error("{message}")]
    Refused { reason: &'static str, message: String },
    /// The store is closing or closed.
    #[error("the store is closed")]
    Closed,
    /// A write failed so late that it may have happened.
    #[error("the outcome of the write is unknown: {source}")]
    Unknown { source: Box<Error> },
}

impl Error {
    /// Says of a write that failed with `error` that it may have happened nevertheless.
    #[must_use]
    pub fn unknown(error: impl Into<Self>) -> Self {
        match error.into() {
            already @ Self::Unknown { .. } => already,
            error => Self::Unknown { source: Box::new(error) },
        }
    }

    /// What became of the write that got this error. Means nothing for reads.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether a write was refused for what earlier writes have left in its row.
    pub(super) fn tells_of_row(&self) -> bool {
        matches!(
            self,
            Self::IdempotencyConflict | Self::TooManySiblings { .. } | Self::RowTooLarge { .. }
        )
    }

    /// A name for programs, in `UPPER_SNAKE`; it never changes.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::EmptyKey => "EMPTY_KEY",
            Self::KeyTooLong { .. } => "KEY_TOO_LONG",
            Self::ValueTooLong { .. } => "VALUE_TOO_LONG",
            Self::ContentTypeTooLong { .. } => "CONTENT_TYPE_TOO_LONG",
            Self::InvalidIdempotencyKey { .. } => "INVALID_IDEMPOTENCY_KEY",
            Self::InvalidTenantName { .. } => "INVALID_TENANT_NAME",
            Self::UnknownTenant { .. } => "UNKNOWN_TENANT",
            Self::UnknownTenantId { .. } => "UNKNOWN_TENANT_ID",
            Self::TenantExists { .. } => "TENANT_EXISTS",
            Self::TooManyTenants { .. } => "TOO_MANY_TENANTS",
            Self::InvalidContext { .. } => "INVALID_CONTEXT",
            Self::InvalidTtl { .. } => "INVALID_TTL",
            Self::TooManySiblings { .. } => "TOO_MANY_SIBLINGS",
            Self::RowTooLarge { .. } => "ROW_TOO_LARGE",
            Self::BatchTooLarge { .. } => "BATCH_TOO_LARGE",
            Self::InvalidCursor { .. } => "INVALID_CURSOR",
            Self::IdempotencyConflict => "IDEMPOTENCY_CONFLICT",
            Self::TokenExpired { .. } => "TOKEN_EXPIRED",
            Self::InvalidArgument { .. } => "INVALID_ARGUMENT",
            Self::Overloaded { .. } => "OVERLOADED",
            Self::RowsTooLarge { .. } => "BATCH_ROWS_TOO_LARGE",
            Self::DiskFull { .. } => "DISK_FULL",
            Self::ReadOnly { .. } => "READ_ONLY",
            Self::BelowSafePoint => "BELOW_SAFE_POINT",
            Self::ClockUnsafe { .. } => "CLOCK_UNSAFE",
            Self::NoRandomness { .. } => "NO_RANDOMNESS",
            Self::Corruption { .. } => "CORRUPTION",
            Self::Damaged { .. } => "DAMAGED",
            Self::FormatTooNew { .. } => "FORMAT_TOO_NEW",
            Self::Locked { .. } => "LOCKED",
            Self::WrongCluster { .. } => "WRONG_CLUSTER",
            Self::Engine(_) => "ENGINE",
            Self::Refused { reason, .. } => reason,
            Self::Closed => "CLOSED",
            Self::Unknown { source } => source.reason(),
        }
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Self {
        match error {
            engine::Error::Corruption(engine::Corruption { file, offset, what }) => {
                Self::Corruption { file, offset, what }
            }
            engine::Error::Poisoned { cause } => Self::ReadOnly { cause },
            engine::Error::Locked { path } => Self::Locked { path },
            engine::Error::FormatTooNew { file, found, supported } => {
                Self::FormatTooNew { file, found, supported }
            }
            engine::Error::OutOfBounds { what, found, limit } => {
                Self::InvalidArgument { what, why: format!("it is {found}, the limit is {limit}") }
            }
            engine::Error::BelowSafePoint => Self::BelowSafePoint,
            engine::Error::Stalled { waited_ms } => Self::Overloaded { waited_ms },
            engine::Error::DiskFull { path, available, reserve } => {
                Self::DiskFull { path, available, reserve }
            }
            engine::Error::Closed => Self::Closed,
            error @ (engine::Error::Io { .. }
            | engine::Error::Merge(_)
            | engine::Error::Edit(_)) => Self::Engine(Arc::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_failed_sync_is_unknown_to_whoever_waited_and_not_applied_to_whoever_had_not_written() {
        let sync = || engine::Error::io("sync", Path::new("log"))(io::ErrorKind::Other.into());
        let before = Error::from(sync());
        assert_eq!((before.outcome(), before.reason()), (Outcome::NotApplied, "ENGINE"));
        let after = Error::unknown(sync());
        assert_eq!((after.outcome(), after.reason()), (Outcome::Unknown, "ENGINE"));
        assert!(after.to_string().contains("cannot sync log"), "{after}");
    }

    #[test]
    fn doubt_is_said_once() {
        let error = Error::unknown(Error::unknown(Error::Closed));
        let Error::Unknown { source } = error else { panic!("{error}") };
        assert!(matches!(*source, Error::Closed));
    }

    #[test]
    fn what_a_client_can_act_upon_is_not_hidden_in_an_engine_error() {
        let cases = [
            (engine::Error::Poisoned { cause: "eio".into() }, "READ_ONLY"),
            (engine::Error::Stalled { waited_ms: 5 }, "OVERLOADED"),
            (engine::Error::BelowSafePoint, "BELOW_SAFE_POINT"),
            (engine::Error::Closed, "CLOSED"),
            (engine::Error::DiskFull { path: "d".into(), available: 1, reserve: 2 }, "DISK_FULL"),
            (engine::Error::corrupt(Path::new("f"), 7, "torn"), "CORRUPTION"),
        ];
        for (error, reason) in cases {
            let text = error.to_string();
            let mapped = Error::from(error);
            assert_eq!(mapped.reason(), reason, "{text}");
            assert_eq!(mapped.outcome(), Outcome::NotApplied, "{text}");
        }
        let corruption = Error::from(engine::Error::corrupt(Path::new("f"), 7, "torn"));
        assert_eq!(corruption.to_string(), "f is corrupt at byte 7: torn");
    }
}
