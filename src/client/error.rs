//! What a call that failed says.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::proto;

/// What is said of an answer that no PairDB node gives to its clients.
const NO_CLIENT_PORT: &str = "this is no client port of a PairDB node, or one of an older version";

/// What became of a write that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has not happened and never will.
    NotApplied,
    /// It may have happened, or may still.
    Unknown,
}

/// Why a call failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The client cannot use this endpoint.
    #[error("{uri:?} is not an endpoint: {why}")]
    Endpoint {
        /// As it was given.
        uri: String,
        /// Why not.
        why: String,
    },
    /// The node refused, failed, or could not be reached.
    #[error("{message} ({reason})")]
    Call {
        /// The gRPC code.
        code: Code,
        /// The stable reason: the server's, or `UNREACHABLE`, `CONNECTION_LOST`, `TIMEOUT`.
        reason: String,
        /// For people.
        message: String,
        /// For a write: what became of it.
        outcome: Option<Outcome>,
        /// A retry may succeed after this.
        retry_after: Option<Duration>,
    },
}

impl Error {
    /// The error of a status.
    pub fn of(status: &Status, is_write: bool) -> Self {
        let details = status.get_error_details();
        let Some(info) = details.error_info() else {
            return Self::of_transport(status, is_write);
        };
        // The port of peers has other services, and no words for one that it has not.
        let is_other = status.code() == Code::Unimplemented && status.message().is_empty();
        Self::Call {
            code: status.code(),
            reason: info.reason.clone(),
            message: if is_other { NO_CLIENT_PORT } else { status.message() }.to_owned(),
            outcome: match info.metadata.get("outcome").map(String::as_str) {
                Some("not_applied") => Some(Outcome::NotApplied),
                Some(_) => Some(Outcome::Unknown),
                None => None,
            },
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }

    /// A status without details was made on this side of the wire.
    fn of_transport(status: &Status, is_write: bool) -> Self {
        let unreachable = is_connect_error(status);
        let (code, reason) = match status.code() {
            _ if unreachable => (Code::Unavailable, "UNREACHABLE"),
            // The client's timer ran out; tonic calls it a cancellation.
            Code::Cancelled | Code::DeadlineExceeded => (Code::DeadlineExceeded, "TIMEOUT"),
            Code::OutOfRange => (Code::OutOfRange, "ANSWER_TOO_LARGE"),
            // A server that is none of gRPC, such as the one for metrics: it has done nothing.
            Code::Unimplemented => (Code::Unimplemented, "UNIMPLEMENTED"),
            code => (code, "CONNECTION_LOST"),
        };
        let outcome = match unreachable || code == Code::Unimplemented {
            true => Outcome::NotApplied,
            false => Outcome::Unknown,
        };
        let message = match status.source().and_then(|source| deepest(source)) {
            _ if code == Code::Unimplemented => NO_CLIENT_PORT.to_owned(),
            Some(cause) => format!("{}: {cause}", status.message()),
            None => status.message().to_owned(),
        };
        Self::Call {
            code,
            reason: reason.to_owned(),
            message,
            outcome: is_write.then_some(outcome),
            retry_after: None,
        }
    }

    /// A stream of pages ended, and none was the last: as good as a broken connection.
    pub fn ended_early() -> Self {
        Self::of(&Status::unavailable("the stream ended before the last page"), false)
    }

    /// The error of one item of a batch or pipeline.
    pub fn of_item(failure: &proto::Failure) -> Self {
        Self::Call {
            code: Code::from_i32(failure.code),
            reason: failure.reason.clone(),
            message: failure.message.clone(),
            outcome: match failure.outcome() {
                proto::Outcome::Unspecified => None,
                proto::Outcome::NotApplied => Some(Outcome::NotApplied),
                proto::Outcome::Unknown => Some(Outcome::Unknown),
            },
            retry_after: (failure.retry_after_ms > 0)
                .then(|| Duration::from_millis(failure.retry_after_ms)),
        }
    }

    /// The error of each item of a part of a batch that failed as a whole.
    pub(super) fn to_item(&self) -> proto::Failure {
        let outcome = match self.outcome() {
            None => proto::Outcome::Unspecified,
            Some(Outcome::NotApplied) => proto::Outcome::NotApplied,
            Some(Outcome::Unknown) => proto::Outcome::Unknown,
        };
        proto::Failure {
            code: self.code() as i32,
            reason: self.reason().to_owned(),
            message: match self {
                Self::Endpoint { .. } => self.to_string(),
                Self::Call { message, .. } => message.clone(),
            },
            outcome: outcome.into(),
            retry_after_ms: self.retry_after().map_or(0, |wait| wait.as_millis() as u64),
            ..proto::Failure::default()
        }
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::Endpoint { .. } => Code::InvalidArgument,
            Self::Call { code, .. } => *code,
        }
    }

    /// The stable reason.
    pub fn reason(&self) -> &str {
        match self {
            Self::Endpoint { .. } => "INVALID_ENDPOINT",
            Self::Call { reason, .. } => reason,
        }
    }

    /// For a write: what became of it.
    pub fn outcome(&self) -> Option<Outcome> {
        match self {
            Self::Endpoint { .. } => None,
            Self::Call { outcome, .. } => *outcome,
        }
    }

    /// A retry may succeed after this.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Endpoint { .. } => None,
            Self::Call { retry_after, .. } => *retry_after,
        }
    }

    /// Whether the same request may succeed later. For a write this supposes an idempotency key.
    pub fn may_retry(&self) -> bool {
        self.retry_after().is_some()
            || matches!(self.reason(), "UNREACHABLE" | "CONNECTION_LOST")
            || (self.code() == Code::Unavailable && self.reason() == "STOPPING")
    }

    /// Whether no node has answered: none was reached, or what was reached is none.
    pub fn is_no_answer(&self) -> bool {
        matches!(self.reason(), "UNREACHABLE" | "CONNECTION_LOST" | "TIMEOUT" | "UNIMPLEMENTED")
    }

    /// Names the endpoints that were tried, if no node has answered: what a node says of itself
    /// is true of whichever it is.
    pub(super) fn at(mut self, uris: &[Arc<str>]) -> Self {
        let is_no_answer = self.is_no_answer() && !uris.is_empty();
        if let Self::Call { message, .. } = &mut self
            && is_no_answer
        {
            *message = format!("{}: {message}", uris.join(", "));
        }
        self
    }

    pub(super) fn with_outcome(mut self, known: Outcome) -> Self {
        if let Self::Call { outcome, .. } = &mut self {
            *outcome = Some(known);
        }
        self
    }
}

/// Whether no connection was made: nothing was sent.
fn is_connect_error(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The last error of the chain says most: "Connection refused" instead of "transport error".
fn deepest<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a (dyn std::error::Error + 'static)> {
    let mut last = None;
    let mut next = Some(error);
    while let Some(error) = next {
        last = Some(error);
        next = error.source();
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_node_answers_the_endpoints_are_named() {
        let uris = ["http://a:1", "http://b:2"].map(Arc::from);
        let lost = Error::of(&Status::unknown("the connection is gone"), false).at(&uris);
        let told = "http://a:1, http://b:2: the connection is gone (CONNECTION_LOST)";
        assert_eq!(lost.to_string(), told);
        let refusal = proto::Failure { reason: "EMPTY_KEY".to_owned(), ..Default::default() };
        let refused = Error::of_item(&refusal);
        assert_eq!(refused.clone().at(&uris).to_string(), refused.to_string(), "a node answered");
    }
}
