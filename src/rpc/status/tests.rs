//! The table of errors.

use std::collections::HashSet;
use std::sync::Arc;

use super::*;
use crate::engine;

#[test]
fn every_status_has_error_info_and_a_write_its_outcome() {
    let error = store::Error::EmptyKey;
    let status = Status::from(Problem::from(&error));
    let details = status.get_error_details();
    let info = details.error_info().expect("there is always one");
    assert_eq!(info.domain, DOMAIN);
    assert_eq!(info.reason, "EMPTY_KEY");
    assert_eq!(info.metadata["outcome"], "not_applied");
    assert!(details.retry_info().is_none());

    let of_read = Status::from(Problem::of_read(&error));
    let details = of_read.get_error_details();
    assert!(!details.error_info().expect("always").metadata.contains_key("outcome"));
}

/// One error of every variant, with its code, reason and whether a retry may help.
fn table() -> Vec<(store::Error, Code, &'static str, bool)> {
    use Code::{FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable};
    use store::Error as E;
    let (found, limit) = (2, 1);
    let text = || "x".to_owned();
    vec![
        (E::EmptyKey, InvalidArgument, "EMPTY_KEY", false),
        (E::KeyTooLong { found, limit }, InvalidArgument, "KEY_TOO_LONG", false),
        (E::ValueTooLong { found, limit }, InvalidArgument, "VALUE_TOO_LONG", false),
        (E::ContentTypeTooLong { found, limit }, InvalidArgument, "CONTENT_TYPE_TOO_LONG", false),
        (
            E::InvalidIdempotencyKey { found, limit },
            InvalidArgument,
            "INVALID_IDEMPOTENCY_KEY",
            false,
        ),
        (
            E::InvalidTenantName { name: text(), why: text() },
            InvalidArgument,
            "INVALID_TENANT_NAME",
            false,
        ),
        (E::UnknownTenant { name: text() }, NotFound, "UNKNOWN_TENANT", false),
        (E::UnknownTenantId { id: 7 }, NotFound, "UNKNOWN_TENANT_ID", false),
        (E::TenantExists { name: text() }, Code::AlreadyExists, "TENANT_EXISTS", false),
        (E::TooManyTenants { found, limit }, FailedPrecondition, "TOO_MANY_TENANTS", false),
        (E::InvalidContext { why: text() }, InvalidArgument, "INVALID_CONTEXT", false),
        (E::InvalidTtl { found, limit }, InvalidArgument, "INVALID_TTL", false),
        (E::TooManySiblings { found, limit }, FailedPrecondition, "TOO_MANY_SIBLINGS", false),
        (E::RowTooLarge { found, limit }, FailedPrecondition, "ROW_TOO_LARGE", false),
        (
            E::BatchTooLarge { what: "items", found, limit },
            InvalidArgument,
            "BATCH_TOO_LARGE",
            false,
        ),
        (E::InvalidCursor { why: text() }, InvalidArgument, "INVALID_CURSOR", false),
        (E::IdempotencyConflict, FailedPrecondition, "IDEMPOTENCY_CONFLICT", false),
        (E::TokenExpired { age_ms: 2, limit_ms: 1 }, FailedPrecondition, "TOKEN_EXPIRED", false),
        (E::InvalidArgument { what: "w", why: text() }, InvalidArgument, "INVALID_ARGUMENT", false),
        (E::Overloaded { waited_ms: 1 }, ResourceExhausted, "OVERLOADED", true),
        (E::RowsTooLarge { found, limit }, ResourceExhausted, "BATCH_ROWS_TOO_LARGE", true),
        (
            E::DiskFull { path: "d".into(), available: 1, reserve: 2 },
            ResourceExhausted,
            "DISK_FULL",
            true,
        ),
        (E::ReadOnly { cause: text() }, Unavailable, "READ_ONLY", false),
        (E::BelowSafePoint, FailedPrecondition, "BELOW_SAFE_POINT", false),
        (E::ClockUnsafe { skew_ms: 2, limit_ms: 1 }, Unavailable, "CLOCK_UNSAFE", true),
        (E::NoRandomness { why: text() }, Unavailable, "NO_RANDOMNESS", true),
        (
            E::Corruption { file: "f".into(), offset: 7, what: text() },
            Code::DataLoss,
            "CORRUPTION",
            false,
        ),
        (
            E::FormatTooNew { file: "f".into(), found: 2, supported: 1 },
            FailedPrecondition,
            "FORMAT_TOO_NEW",
            false,
        ),
        (E::Locked { path: "d".into() }, Unavailable, "LOCKED", false),
        (
            E::WrongCluster { file: "f".into(), expected: text(), found: text() },
            FailedPrecondition,
            "WRONG_CLUSTER",
            false,
        ),
        (
            E::Engine(Arc::new(engine::Error::Io {
                operation: "read",
                path: "f".into(),
                source: std::io::ErrorKind::Other.into(),
            })),
            Code::Internal,
            "ENGINE",
            false,
        ),
        (E::Closed, Unavailable, "CLOSED", true),
    ]
}

#[test]
fn every_error_has_its_row_and_doubt_changes_only_the_outcome() {
    let mut reasons = HashSet::new();
    for (error, code, reason, retry) in table() {
        let problem = Problem::from(&error);
        assert_eq!((problem.code, &*problem.reason), (code, reason));
        assert_eq!(problem.retry_after.is_some(), retry, "{reason}");
        assert_eq!(problem.outcome, Some(Outcome::NotApplied), "{reason}");
        assert!(reasons.insert(reason), "{reason} stands twice");

        let status = Status::from(Problem::from(&error));
        let info = status.get_error_details().error_info().cloned().expect("always");
        assert_eq!(info.reason, reason);
        assert!(status.details().len() < 4096, "{reason}");

        let doubt = Problem::from(&store::Error::unknown(error));
        assert_eq!((doubt.code, &*doubt.reason), (code, reason));
        assert_eq!(doubt.outcome, Some(Outcome::Unknown), "{reason}");
    }
}

#[test]
fn a_broken_limit_is_told_in_figures() {
    let status =
        Status::from(Problem::from(&store::Error::KeyTooLong { found: 5000, limit: 4096 }));
    let metadata = status.get_error_details().error_info().cloned().expect("always").metadata;
    assert_eq!((metadata["found"].as_str(), metadata["limit"].as_str()), ("5000", "4096"));
}

#[test]
fn an_item_says_what_a_status_says() {
    let problem = Problem::overloaded("OVERLOADED", "busy").of_write(Outcome::Unknown);
    let failure = proto::Failure::from(problem);
    assert_eq!(failure.code, Code::ResourceExhausted as i32);
    assert_eq!(failure.outcome(), proto::Outcome::Unknown);
    assert_eq!(failure.metadata["outcome"], "unknown");
    assert_eq!(failure.retry_after_ms, 100);
}

#[test]
fn a_status_of_the_library_is_completed_and_ours_is_left_alone() {
    let bare = complete(Status::out_of_range("too large"), true);
    let details = bare.get_error_details();
    let info = details.error_info().expect("completed");
    assert_eq!((bare.code(), info.reason.as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert_eq!(info.metadata["outcome"], "not_applied");

    let ours = Status::from(Problem::new(Code::OutOfRange, "X", "y"));
    assert_eq!(complete(ours, true).code(), Code::OutOfRange);
}

#[test]
fn a_long_message_is_cut_between_characters() {
    let status = Status::from(Problem::new(Code::Internal, "X", "\u{e9}".repeat(1000)));
    assert!(status.message().len() <= MESSAGE_BYTES_MAX);
    assert!(!status.message().is_empty());
}
