//! The table of errors.

use std::collections::HashSet;

use super::*;

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

#[test]
fn what_passes_by_itself_says_when_to_retry() {
    for (error, passes) in [
        (engine::Error::Stalled { waited_ms: 1 }, true),
        (engine::Error::Closed, true),
        (engine::Error::BelowSafePoint, false),
        (engine::Error::Poisoned { cause: "EIO".into() }, false),
    ] {
        let status = Status::from(Problem::from(&store::Error::Engine(error)));
        assert_eq!(status.get_error_details().retry_info().is_some(), passes, "{status:?}");
    }
}

#[test]
fn engine_errors_have_their_codes() {
    let io = || std::io::Error::other("x");
    let rows = [
        (
            engine::Error::Io { operation: "read", path: "f".into(), source: io() },
            Code::Internal,
            "IO",
        ),
        (engine::Error::Poisoned { cause: String::new() }, Code::Unavailable, "READ_ONLY"),
        (engine::Error::Locked { path: "d".into() }, Code::Unavailable, "LOCKED"),
        (
            engine::Error::FormatTooNew { file: "f".into(), found: 2, supported: 1 },
            Code::FailedPrecondition,
            "FORMAT_TOO_NEW",
        ),
        (
            engine::Error::DiskFull { path: "d".into(), available: 1, reserve: 2 },
            Code::ResourceExhausted,
            "DISK_FULL",
        ),
        (
            engine::Error::Corruption(engine::Corruption {
                file: "f".into(),
                offset: 7,
                what: "w".into(),
            }),
            Code::DataLoss,
            "CORRUPTION",
        ),
    ];
    let mut reasons = HashSet::new();
    for (error, code, reason) in rows {
        let problem = Problem::from(&store::Error::Engine(error));
        assert_eq!((problem.code, problem.reason), (code, reason));
        assert!(reasons.insert(problem.reason));
    }
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
