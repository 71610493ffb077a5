//! The one table from errors to what a client sees: gRPC code, reason, outcome, retry.
//!
//! A reason is part of the API: it may be added, never renamed.
//!
//! # Invariants
//! 1. Every status made here has `ErrorInfo{reason, domain: "pairdb", metadata}`.
//! 2. The status of a failed write also says `outcome` in the metadata.
//! 3. `RetryInfo` is there only where the same request may succeed later.
//! 4. Details stay far below the 8 KiB that many peers allow for headers, and hold no value.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::proto;
use crate::engine;
use crate::store::{self, Outcome};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "pairdb";

/// Longest message sent, in bytes.
const MESSAGE_BYTES_MAX: usize = 1024;

/// An error as clients see it, before it becomes a [`Status`] or a [`proto::Failure`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The gRPC code.
    pub code: Code,
    /// `UPPER_SNAKE`, stable.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// When a retry may succeed.
    pub retry_after: Option<Duration>,
    /// What became of it, if it was a write.
    pub outcome: Option<Outcome>,
    /// The figures of the message.
    pub metadata: Vec<(&'static str, String)>,
}

const SOON: Option<Duration> = Some(Duration::from_millis(100));
const LATER: Option<Duration> = Some(Duration::from_secs(1));
const NO: Option<Duration> = None;

impl Problem {
    /// A problem without figures, outcome or retry.
    pub fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            retry_after: None,
            outcome: None,
            metadata: Vec::new(),
        }
    }

    /// A request that says too little or too much; `what` names the field.
    pub fn invalid(what: &'static str, why: impl std::fmt::Display) -> Self {
        Self::new(Code::InvalidArgument, "INVALID_ARGUMENT", format!("{what}: {why}"))
            .with("field", what)
    }

    /// Too much is going on; nothing was done.
    pub fn overloaded(reason: &'static str, message: impl Into<String>) -> Self {
        Self { retry_after: SOON, ..Self::new(Code::ResourceExhausted, reason, message) }
    }

    /// The deadline passed.
    pub fn deadline(message: impl Into<String>) -> Self {
        Self::new(Code::DeadlineExceeded, "DEADLINE_EXCEEDED", message)
    }

    /// Adds a figure.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.metadata.push((name, value.to_string()));
        self
    }

    /// Says what became of the write.
    #[must_use]
    pub fn of_write(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// The problem of a read: the error without an outcome.
    pub fn of_read(error: &store::Error) -> Self {
        Self { outcome: None, ..Self::from(error) }
    }

    fn figures(&self) -> HashMap<String, String> {
        let mut figures: HashMap<String, String> =
            self.metadata.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        if let Some(outcome) = self.outcome {
            figures.insert("outcome".to_owned(), outcome_name(outcome).to_owned());
        }
        figures
    }
}

/// The word for an outcome in metadata, logs and metrics.
pub fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotApplied => "not_applied",
        Outcome::Unknown => "unknown",
    }
}

/// The table. Every variant of [`store::Error`] has its row.
fn row_of(error: &store::Error) -> (Code, &'static str, Option<Duration>) {
    use store::Error as E;
    match error {
        E::EmptyKey { .. } => (Code::InvalidArgument, "EMPTY_KEY", NO),
        E::KeyTooLong { .. } => (Code::InvalidArgument, "KEY_TOO_LONG", NO),
        E::ValueTooLong { .. } => (Code::InvalidArgument, "VALUE_TOO_LONG", NO),
        E::InvalidTenantName { .. } => (Code::InvalidArgument, "INVALID_TENANT_NAME", NO),
        E::UnknownTenant { .. } => (Code::NotFound, "UNKNOWN_TENANT", NO),
        E::TenantExists { .. } => (Code::AlreadyExists, "TENANT_EXISTS", NO),
        E::InvalidContext { .. } => (Code::InvalidArgument, "INVALID_CONTEXT", NO),
        E::InvalidTtl { .. } => (Code::InvalidArgument, "INVALID_TTL", NO),
        E::TooManySiblings { .. } => (Code::FailedPrecondition, "TOO_MANY_SIBLINGS", NO),
        E::RowTooLarge { .. } => (Code::FailedPrecondition, "ROW_TOO_LARGE", NO),
        E::BatchTooLarge { .. } => (Code::InvalidArgument, "BATCH_TOO_LARGE", NO),
        E::InvalidCursor { .. } => (Code::InvalidArgument, "INVALID_CURSOR", NO),
        E::IdempotencyConflict { .. } => (Code::FailedPrecondition, "IDEMPOTENCY_CONFLICT", NO),
        E::TokenExpired { .. } => (Code::FailedPrecondition, "IDEMPOTENCY_KEY_EXPIRED", NO),
        E::InvalidArgument { .. } => (Code::InvalidArgument, "INVALID_ARGUMENT", NO),
        E::Overloaded { .. } => (Code::ResourceExhausted, "OVERLOADED", SOON),
        E::DiskFull { .. } => (Code::ResourceExhausted, "DISK_FULL", LATER),
        E::ReadOnly { .. } => (Code::Unavailable, "READ_ONLY", NO),
        E::BelowSafePoint { .. } => (Code::FailedPrecondition, "BELOW_SAFE_POINT", NO),
        E::ClockUnsafe { .. } => (Code::Unavailable, "CLOCK_UNSAFE", LATER),
        E::Corruption { .. } => (Code::DataLoss, "CORRUPTION", NO),
        E::Engine(engine) => row_of_engine(engine),
        E::Closed { .. } => (Code::Unavailable, "STOPPING", LATER),
    }
}

fn row_of_engine(error: &engine::Error) -> (Code, &'static str, Option<Duration>) {
    use engine::Error as E;
    match error {
        E::Io { .. } => (Code::Internal, "IO", NO),
        E::Corruption(_) => (Code::DataLoss, "CORRUPTION", NO),
        E::Poisoned { .. } => (Code::Unavailable, "READ_ONLY", NO),
        E::Locked { .. } => (Code::Unavailable, "LOCKED", NO),
        E::FormatTooNew { .. } => (Code::FailedPrecondition, "FORMAT_TOO_NEW", NO),
        E::OutOfBounds { .. } => (Code::InvalidArgument, "OUT_OF_BOUNDS", NO),
        E::BelowSafePoint => (Code::FailedPrecondition, "BELOW_SAFE_POINT", NO),
        E::Stalled { .. } => (Code::ResourceExhausted, "STALLED", LATER),
        E::DiskFull { .. } => (Code::ResourceExhausted, "DISK_FULL", LATER),
        E::Closed => (Code::Unavailable, "STOPPING", LATER),
        E::Merge(_) => (Code::Internal, "INVALID_ROW", NO),
    }
}

impl From<&store::Error> for Problem {
    fn from(error: &store::Error) -> Self {
        use store::Error as E;
        let (code, reason, retry_after) = row_of(error);
        let mut problem = Self {
            retry_after,
            outcome: Some(error.outcome()),
            ..Self::new(code, reason, error.to_string())
        };
        match error {
            E::KeyTooLong { found, limit, .. }
            | E::ValueTooLong { found, limit, .. }
            | E::TooManySiblings { found, limit, .. }
            | E::RowTooLarge { found, limit, .. }
            | E::BatchTooLarge { found, limit, .. } => {
                problem = problem.with("found", found).with("limit", limit);
            }
            E::InvalidTtl { found, limit, .. } => {
                problem = problem.with("found", found).with("limit", limit);
            }
            _ => {}
        }
        problem
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let mut details = ErrorDetails::with_error_info(problem.reason, DOMAIN, problem.figures());
        if problem.retry_after.is_some() {
            details.set_retry_info(problem.retry_after);
        }
        Self::with_error_details(problem.code, cut(problem.message), details)
    }
}

impl From<Problem> for proto::Failure {
    fn from(problem: Problem) -> Self {
        let outcome = match problem.outcome {
            None => proto::Outcome::Unspecified,
            Some(Outcome::NotApplied) => proto::Outcome::NotApplied,
            Some(Outcome::Unknown) => proto::Outcome::Unknown,
        };
        Self {
            code: problem.code as i32,
            reason: problem.reason.to_owned(),
            outcome: outcome.into(),
            retry_after_ms: problem.retry_after.map_or(0, |wait| wait.as_millis() as u64),
            metadata: problem.figures(),
            message: cut(problem.message),
        }
    }
}

/// At most [`MESSAGE_BYTES_MAX`] of `message`, cut between characters.
fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at));
        message.truncate(end.unwrap_or(0));
    }
    message
}

/// A status that tonic made by itself (a malformed or oversized message, a missing method) has no
/// `ErrorInfo`; this gives it one. Statuses that have details are left alone.
pub fn complete(status: Status, is_write: bool) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    let (code, reason) = match status.code() {
        // tonic answers OUT_OF_RANGE for a message over the limit.
        Code::OutOfRange => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        Code::ResourceExhausted => (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"),
        // What cannot be decoded arrives as INTERNAL; our own internal errors have details.
        Code::Internal => (Code::InvalidArgument, "MALFORMED_MESSAGE"),
        Code::Unimplemented => (Code::Unimplemented, "UNIMPLEMENTED"),
        Code::Cancelled => (Code::Cancelled, "CANCELLED"),
        Code::DeadlineExceeded => (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        Code::InvalidArgument => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        code => (code, "TRANSPORT"),
    };
    let mut problem = Problem::new(code, reason, status.message());
    if is_write {
        // The message never reached a handler.
        problem = problem.of_write(Outcome::NotApplied);
    }
    problem.into()
}

#[cfg(test)]
mod tests;
