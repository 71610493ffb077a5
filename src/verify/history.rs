//! What clients did and saw, as it is recorded and checked.
//!
//! A history is a file of JSON lines, one [`Event`] a line, in any order:
//!
//! ```text
//! {"event":"tenant","name":"default","mode":"siblings","replicas":3}
//! {"event":"fault","at_us":1200000,"what":"kill n1"}
//! {"event":"op","id":7,"client":2,"node":"n1","tenant":"default","key":"k3","level":"quorum",
//!  "action":{"write":{"value":"2.14","token":"t2.14"}},"context_in":"9f3a...",
//!  "invoked_us":1,"returned_us":2,"outcome":"ok","context_out":"04c1..."}
//! ```
//!
//! # Invariants
//! 1. A value names the write that made it: no two writes have the same one, except repetitions of
//!    a write under its token.
//! 2. A context is named by a hash: equal names are equal bytes.
//! 3. An operation without an answer has the outcome `unknown` and no `returned_us`.

use serde::{Deserialize, Serialize};

/// A line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A tenant that the operations use.
    Tenant {
        /// Its name.
        name: String,
        /// How it treats concurrent writes.
        mode: Mode,
        /// How many replicas its rows have. With one, every level is as good as the others.
        replicas: u32,
    },
    /// Something was broken or mended.
    Fault {
        /// When, in microseconds.
        at_us: u64,
        /// What.
        what: String,
    },
    /// All faults are over and all replicas hold the same: from here on all must go well.
    Agreed {
        /// When, in microseconds.
        at_us: u64,
    },
    /// What a node's disk was found to hold, where somebody could look.
    Row {
        /// Its name in the history.
        id: u64,
        /// When, in microseconds.
        at_us: u64,
        /// The node.
        node: String,
        /// The tenant.
        tenant: String,
        /// The key.
        key: String,
        /// The live versions.
        versions: Vec<Version>,
        /// What the whole row hashes to, seen or not; given when all is over, for every key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// A client's operation.
    Op(Op),
}

/// How a tenant treats concurrent writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// All are kept.
    Siblings,
    /// The latest is kept.
    LastWriteWins,
}

/// How many replicas answer an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// One.
    One,
    /// A majority.
    Quorum,
    /// All of them.
    All,
}

/// What an operation was to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Write a value.
    Write {
        /// The value: the name of the write.
        value: String,
        /// The idempotency key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
        /// Its time to live.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ttl_ms: Option<u64>,
    },
    /// Delete the key.
    Delete {
        /// The idempotency key.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<String>,
    },
    /// Read the key.
    Read {
        /// A context that the answer must reflect.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        min_context: Option<String>,
        /// Made when all faults were over and the replicas had had their time.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        last: bool,
    },
}

impl Action {
    /// Whether it reads.
    pub fn is_read(&self) -> bool {
        matches!(self, Self::Read { .. })
    }
}

/// What became of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Ok,
    /// Not done, and never will be. A read that failed is this.
    NotApplied,
    /// It may have happened, or may still.
    Unknown,
}

/// A version that a read returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    /// Its value.
    pub value: String,
    /// Its hybrid time.
    pub hlc: u64,
    /// Its dot, where the recorder can see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dot: Option<String>,
}

/// A client's operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Op {
    /// Its name in the history.
    pub id: u64,
    /// The client; it has one operation at a time.
    pub client: u32,
    /// The node that was asked.
    pub node: String,
    /// The tenant.
    pub tenant: String,
    /// The key.
    pub key: String,
    /// How many replicas had to answer.
    pub level: Level,
    /// What was to be done.
    pub action: Action,
    /// The context given with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_in: Option<String>,
    /// When it began, in microseconds of one clock for all clients.
    pub invoked_us: u64,
    /// When its answer came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returned_us: Option<u64>,
    /// What became of it.
    pub outcome: Outcome,
    /// The error's reason, if it failed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The context of the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_out: Option<String>,
    /// The hybrid time of a write, as answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hlc: Option<u64>,
    /// Live siblings after a write, as answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub siblings: Option<u32>,
    /// What a read returned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<Version>,
}

impl Op {
    /// The value it writes.
    pub fn value(&self) -> Option<&str> {
        match &self.action {
            Action::Write { value, .. } => Some(value),
            _ => None,
        }
    }

    /// Its idempotency key.
    pub fn token(&self) -> Option<&str> {
        match &self.action {
            Action::Write { token, .. } | Action::Delete { token } => token.as_deref(),
            Action::Read { .. } => None,
        }
    }

    /// Whether it reads.
    pub fn is_read(&self) -> bool {
        self.action.is_read()
    }

    /// Whether it is a read after all faults.
    pub fn is_last_read(&self) -> bool {
        matches!(self.action, Action::Read { last: true, .. })
    }

    /// Whether it returned `value`.
    pub fn saw(&self, value: &str) -> bool {
        self.seen.iter().any(|version| version.value == value)
    }

    /// The end of the time in which it may have taken effect.
    pub fn end_us(&self) -> u64 {
        match self.outcome {
            Outcome::Unknown => u64::MAX,
            _ => self.returned_us.unwrap_or(u64::MAX),
        }
    }
}

/// A line that is no event.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {source}")]
pub struct ParseError {
    line: usize,
    source: serde_json::Error,
}

/// Reads a history. Empty lines are passed over.
///
/// # Errors
/// The first line that is no event.
pub fn parse(text: &str) -> Result<Vec<Event>, ParseError> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let event = |(at, line)| {
        serde_json::from_str(line).map_err(|source| ParseError { line: at + 1, source })
    };
    lines.map(event).collect()
}

/// The line of an event, without its end.
pub fn line(event: &Event) -> String {
    serde_json::to_string(event).expect("plain fields always serialize")
}

/// The name of a context's bytes; none for no bytes.
pub fn context_name(bytes: &[u8]) -> Option<String> {
    let hash = || format!("{:032x}", xxhash_rust::xxh3::xxh3_128(bytes));
    (!bytes.is_empty()).then(hash)
}
