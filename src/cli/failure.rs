//! How a command ends when it does not end well.

use std::fmt;
use std::io::{self, Write as _};
use std::process::ExitCode;

use tonic::Code;

use crate::client::{self, Outcome};

/// An exit code and what to say on standard error.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Exit code 1.
    pub fn error(message: impl Into<String>) -> Self {
        Self::with_code(1, message)
    }

    /// Exit code 2: what clap cannot see is still wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::with_code(2, message)
    }

    /// Exit code 3.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::with_code(3, message)
    }

    /// Exit code 5: a change of the cluster that cannot be, or is not meant as it was asked for.
    pub fn refused(message: impl fmt::Display) -> Self {
        Self::with_code(5, format!("{message}; nothing was changed"))
    }

    /// Any exit code.
    pub fn with_code(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// Of a write of rows: it says what became of it.
    pub fn of_write(error: client::Error) -> Self {
        let became = match error.outcome() {
            Some(Outcome::Unknown) => "; the outcome of the write is unknown",
            Some(Outcome::NotApplied) => "; the write was not applied",
            None => "",
        };
        let mut failure = Self::from(error);
        failure.message += became;
        failure
    }

    /// Of a change of the layout: what became of it is no write's outcome. A node that was reached
    /// and did not answer in time may have begun it.
    pub fn of_change(error: client::Error) -> Self {
        match (error.outcome(), error.reason()) {
            (None, "TIMEOUT" | "DEADLINE_EXCEEDED" | "CONNECTION_LOST") => {
                Self::unknown_change(&error)
            }
            _ => Self::of_plan(error),
        }
    }

    /// Of what would be changed, and of what may be asked for as often as one likes.
    pub fn of_plan(error: client::Error) -> Self {
        match error.outcome() {
            Some(Outcome::NotApplied) => Self::refused(error),
            Some(Outcome::Unknown) => Self::unknown_change(&error),
            None => error.into(),
        }
    }

    fn unknown_change(error: &client::Error) -> Self {
        Self::with_code(4, format!("{error}; it is not known whether it was begun"))
    }

    /// Whether it may be otherwise soon: the node could not be reached, or has no time.
    pub fn may_pass(&self) -> bool {
        self.code == 5
    }

    /// Whether there is nothing to say of it: who read standard output has seen enough.
    pub fn is_silent(&self) -> bool {
        self.code == 0
    }

    /// Says that it is the value that is too long.
    pub fn of_value(mut self, bytes: usize) -> Self {
        let limit = "a node takes 1 MiB unless its limits.value_bytes_max says otherwise";
        self.message = format!("the value has {bytes} bytes, {limit}: {}", self.message);
        self
    }

    /// Names the line of the input.
    pub fn at(mut self, line: u64) -> Self {
        self.message = format!("line {line}: {}", self.message);
        self
    }

    /// Says it, and gives the code.
    pub fn report(self) -> ExitCode {
        if !self.message.is_empty() {
            say(&self.message);
        }
        ExitCode::from(self.code)
    }
}

/// Says something on standard error. Where nobody listens the command goes on: it is not what was
/// asked for.
pub(super) fn say(what: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "pairdb: {what}");
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        let code = match (error.outcome(), error.code()) {
            (Some(Outcome::Unknown), _) => 4,
            (Some(Outcome::NotApplied), _) => 5,
            (None, Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded) => 5,
            (None, _) if error.is_no_answer() => 5,
            (None, _) if error.reason() == "INVALID_ENDPOINT" => 2,
            (None, _) => 1,
        };
        Self::with_code(code, error.to_string())
    }
}

/// Standard output went away or cannot be written.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // The reader has seen enough: not an error, nothing to say.
            io::ErrorKind::BrokenPipe => Self::with_code(0, ""),
            _ => Self::error(format!("cannot write the output: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    /// A change that a node may have begun was not refused: a script would take it for undone.
    #[test]
    fn a_change_that_was_not_answered_is_not_called_undone() {
        for status in [Status::cancelled("timeout"), Status::unknown("the connection is gone")] {
            let failed = |of: fn(client::Error) -> Failure| of(client::Error::of(&status, false));
            assert_eq!(failed(Failure::of_change).code, 4);
            assert_ne!(failed(Failure::of_plan).code, 4);
        }
    }

    /// A node refuses upkeep with the same errors as a write, and says the same of them.
    #[test]
    fn only_of_a_write_it_is_said_that_it_was_not_applied() {
        let full = client::Error::Call {
            code: Code::ResourceExhausted,
            reason: "DISK_FULL".to_owned(),
            message: "no room".to_owned(),
            outcome: Some(Outcome::NotApplied),
            retry_after: None,
        };
        let flush = Failure::from(full.clone());
        assert_eq!((flush.code, &*flush.message), (5, "no room (DISK_FULL)"));
        let write = Failure::of_write(full);
        assert_eq!(write.code, 5);
        assert_eq!(write.message, "no room (DISK_FULL); the write was not applied");
    }

    /// What is reached may be the port of peers, or no node at all.
    #[test]
    fn who_is_no_node_cannot_be_reached() {
        let other = client::Error::of(&Status::unimplemented(""), true);
        assert_eq!((Failure::from(other.clone()).code, other.reason()), (5, "UNIMPLEMENTED"));
        assert!(other.to_string().starts_with("this is no client port"), "{other}");
        let lost = client::Error::of(&Status::unknown("the connection is gone"), false);
        assert_eq!(Failure::from(lost).code, 5);
    }
}
