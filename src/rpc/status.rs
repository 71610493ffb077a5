//! The one table from errors to what a client sees: gRPC code, reason, outcome, retry.
//!
//! A reason is part of the API: it may be added, never renamed.
//!
//! # Invariants
//! 1. Every status made here has `ErrorInfo{reason, domain: "pairdb", metadata}`.
//! 2. The status of a failed write also says `outcome` in the metadata.
//! 3. `RetryInfo` is there only where the same request may succeed later.
//! 4. Details stay far below the 8 KiB that many peers allow for headers, and hold no value.

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::proto;
use crate::replication;
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
    pub reason: Cow<'static, str>,
    /// For people.
    pub message: String,
    /// When a retry may succeed.
    pub retry_after: Option<Duration>,
    /// What became of it, if it was a write.
    pub outcome: Option<Outcome>,
    /// The figures of the message.
    pub metadata: Vec<(Cow<'static, str>, String)>,
}

const SOON: Option<Duration> = Some(Duration::from_millis(100));
const LATER: Option<Duration> = Some(Duration::from_secs(1));
const NO: Option<Duration> = None;

impl Problem {
    /// A problem without figures, outcome or retry.
    pub fn new(
        code: Code,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            code,
            reason: reason.into(),
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

    /// The node has no cluster yet.
    pub fn starting() -> Self {
        let message = "the node starts: it has no cluster yet";
        let problem = Self::new(Code::Unavailable, "STARTING", message);
        Self { retry_after: LATER, ..problem }
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
        self.metadata.push((name.into(), value.to_string()));
        self
    }

    /// Says what became of the write.
    #[must_use]
    pub fn of_write(mut self, outcome: Outcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// The problem of a read: the error without an outcome.
    pub fn of_read<'e, E>(error: &'e E) -> Self
    where
        Self: From<&'e E>,
    {
        Self { outcome: None, ..Self::from(error) }
    }

    fn figures(&self) -> HashMap<String, String> {
        let mut figures: HashMap<String, String> =
            self.metadata.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        if let Some(outcome) = self.outcome {
            figures.insert("outcome".to_owned(), outcome.as_str().to_owned());
        }
        figures
    }
}

/// The table: the code of every [`store::Error`], and when a retry may help. The reason is the
/// error's own.
fn row_of(error: &store::Error) -> (Code, Option<Duration>) {
    use store::Error as E;
    match error {
        E::EmptyKey
        | E::KeyTooLong { .. }
        | E::ValueTooLong { .. }
        | E::ContentTypeTooLong { .. }
        | E::InvalidIdempotencyKey { .. }
        | E::InvalidTenantName { .. }
        | E::InvalidContext { .. }
        | E::InvalidTtl { .. }
        | E::BatchTooLarge { .. }
        | E::InvalidCursor { .. }
        | E::InvalidArgument { .. } => (Code::InvalidArgument, NO),
        E::UnknownTenant { .. } | E::UnknownTenantId { .. } => (Code::NotFound, NO),
        E::TenantExists { .. } => (Code::AlreadyExists, NO),
        E::TooManySiblings { .. }
        | E::RowTooLarge { .. }
        | E::TooManyTenants { .. }
        | E::IdempotencyConflict
        | E::TokenExpired { .. }
        | E::BelowSafePoint
        | E::Refused { .. }
        | E::FormatTooNew { .. }
        | E::WrongCluster { .. } => (Code::FailedPrecondition, NO),
        E::Overloaded { .. } | E::RowsTooLarge { .. } => (Code::ResourceExhausted, SOON),
        E::DiskFull { .. } => (Code::ResourceExhausted, LATER),
        E::ReadOnly { .. } | E::Locked { .. } => (Code::Unavailable, NO),
        E::Damaged { .. } | E::ClockUnsafe { .. } | E::NoRandomness { .. } | E::Closed => {
            (Code::Unavailable, LATER)
        }
        E::Corruption { .. } => (Code::DataLoss, NO),
        E::Engine(_) => (Code::Internal, NO),
        // Why it is unknown says whether it may be tried again.
        E::Unknown { source } => row_of(source),
    }
}

/// The figures of an error, for programs.
fn figures_of(error: &store::Error) -> Vec<(&'static str, String)> {
    use store::Error as E;
    match error {
        E::KeyTooLong { found, limit }
        | E::ValueTooLong { found, limit }
        | E::ContentTypeTooLong { found, limit }
        | E::InvalidIdempotencyKey { found, limit }
        | E::TooManyTenants { found, limit }
        | E::InvalidTtl { found, limit }
        | E::TooManySiblings { found, limit }
        | E::RowTooLarge { found, limit }
        | E::RowsTooLarge { found, limit }
        | E::BatchTooLarge { found, limit, .. } => {
            vec![("found", found.to_string()), ("limit", limit.to_string())]
        }
        E::DiskFull { available, reserve, .. } => {
            vec![("available", available.to_string()), ("reserve", reserve.to_string())]
        }
        E::Corruption { file, offset, .. } => {
            vec![("file", file.display().to_string()), ("offset", offset.to_string())]
        }
        E::Unknown { source } => figures_of(source),
        _ => Vec::new(),
    }
}

impl From<&store::Error> for Problem {
    fn from(error: &store::Error) -> Self {
        let (code, retry_after) = row_of(error);
        Self {
            retry_after,
            outcome: Some(error.outcome()),
            metadata: figures_of(error)
                .into_iter()
                .map(|(name, value)| (name.into(), value))
                .collect(),
            ..Self::new(code, error.reason(), error.to_string())
        }
    }
}

/// What a coordinator could not do. A write's outcome is told; [`Problem::of_read`] has none.
impl From<&replication::Error> for Problem {
    fn from(error: &replication::Error) -> Self {
        use replication::Error as E;
        let (code, retry_after) = match error {
            E::Store(error) => return Self::from(error),
            E::Partition { partition, source } => {
                let message = error.to_string();
                return Self { message, ..Self::from(&**source) }.with("partition", partition);
            }
            E::Forwarded(failure) => return Self::from((**failure).clone()),
            E::Unavailable { .. } | E::TooFewAcks { .. } | E::TooFewAnswers { .. } => {
                (Code::Unavailable, SOON)
            }
            E::LayoutUnknown | E::NotForwarded { .. } | E::Lost { .. } => (Code::Unavailable, SOON),
            E::WriteTimeout { .. } | E::ReadTimeout { .. } => (Code::DeadlineExceeded, SOON),
            E::Stale => (Code::FailedPrecondition, LATER),
        };
        let problem = Self::new(code, error.reason().to_owned(), error.to_string());
        Self { retry_after, outcome: Some(error.outcome()), ..problem }
    }
}

/// What another node said, passed on as it is.
impl From<proto::Failure> for Problem {
    fn from(failure: proto::Failure) -> Self {
        let outcome = match failure.outcome() {
            proto::Outcome::Unspecified => None,
            proto::Outcome::NotApplied => Some(Outcome::NotApplied),
            proto::Outcome::Unknown => Some(Outcome::Unknown),
        };
        let wait = failure.retry_after_ms;
        let mut metadata: Vec<_> =
            failure.metadata.into_iter().map(|(name, value)| (name.into(), value)).collect();
        metadata.retain(|(name, _): &(Cow<'_, str>, String)| name != "outcome");
        metadata.sort();
        Self {
            retry_after: (wait > 0).then(|| Duration::from_millis(wait)),
            outcome,
            metadata,
            ..Self::new(Code::from_i32(failure.code), failure.reason, failure.message)
        }
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let mut details =
            ErrorDetails::with_error_info(&*problem.reason, DOMAIN, problem.figures());
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
            reason: problem.reason.to_string(),
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
    let message = match reason {
        "MESSAGE_TOO_LARGE" => too_large(status.message()),
        _ => status.message().to_owned(),
    };
    let mut problem = Problem::new(code, reason, message);
    if is_write {
        // The message never reached a handler.
        problem = problem.of_write(Outcome::NotApplied);
    }
    problem.into()
}

/// What tonic says of a message over the limit, with its two figures, as all else here is said.
fn too_large(said: &str) -> String {
    let mut figures = said.split(|c: char| !c.is_ascii_digit()).filter(|text| !text.is_empty());
    match (figures.next(), figures.next()) {
        (Some(found), Some(limit)) => {
            format!("the request has {found} bytes, the limit is {limit}")
        }
        _ => said.to_owned(),
    }
}

#[cfg(test)]
mod tests;
