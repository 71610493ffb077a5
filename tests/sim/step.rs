//! The steps a machine takes, by kind.

use std::fmt;

use pairdb::cluster::layout::Command;
use pairdb::cluster::peer::{Reply, Request};
use pairdb::engine::vfs::fault::Call;
use pairdb::proto::RowsCause;

/// What is asked of another node, or put into the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    Hello,
    Join,
    Document,
    Page,
    Rows,
    Write,
    /// Rows that the sender does not own.
    Push,
    Hint,
    Certificate,
    /// A change of owners.
    Change,
    Abort,
    Fenced,
    Synced,
    Cleared,
    Left,
    Append,
    Vote,
    Gossip,
    Other,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File {
    /// The document the node acts under: its fence.
    Document,
    /// The layout group's entries and votes.
    Entries,
    /// Rows, as they come.
    Rows,
    /// Which tables there are; what was removed is gone with it.
    Tables,
    Certificate,
    Hints,
    Identity,
    Other,
}

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    Write(File),
    Ask(Topic),
    Answer(Topic),
    /// A connection is made, or bytes go out that are no message.
    Bytes,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(file) => write!(f, "write-{file:?}"),
            Self::Ask(topic) => write!(f, "ask-{topic:?}"),
            Self::Answer(topic) => write!(f, "answer-{topic:?}"),
            Self::Bytes => f.write_str("bytes"),
        }
    }
}

impl Step {
    /// That of a call that changes a disk.
    pub fn of_call(call: &Call) -> Self {
        let path = call.path.to_string_lossy();
        let has = |text: &str| path.contains(text);
        Self::Write(match () {
            () if has("/raft/") => File::Entries,
            () if has("LAYOUT") => File::Document,
            () if has("/certificates/") => File::Certificate,
            () if has("/hints/") => File::Hints,
            () if has("MANIFEST") || has(".sst") => File::Tables,
            () if has("IDENTITY") || has("FORMATION") || has("LEASE") => File::Identity,
            () if has("/engine/") => File::Rows,
            () => File::Other,
        })
    }
}

impl Topic {
    /// What a request is about.
    pub fn of_request(request: &Request) -> Self {
        match request {
            Request::Hello(_) => Self::Hello,
            Request::Join(_) => Self::Join,
            Request::Document(_) => Self::Document,
            Request::Page(_) => Self::Page,
            Request::ReadRows(_) => Self::Rows,
            Request::WriteRows(rows) if rows.cause() == RowsCause::Unowned => Self::Push,
            Request::WriteRows(rows) if rows.cause() == RowsCause::Hint => Self::Hint,
            Request::WriteRows(_) | Request::RepairRows(_) => Self::Write,
            Request::Certificate(_) => Self::Certificate,
            Request::Propose(command) => Self::of_command(command),
            Request::Raft(message) if message.first() == Some(&1) => Self::Append,
            Request::Raft(_) => Self::Vote,
            Request::Gossip(_) => Self::Gossip,
            _ => Self::Other,
        }
    }

    fn of_command(command: &[u8]) -> Self {
        match serde_json::from_slice(command) {
            Ok(Command::Change { .. } | Command::Join { .. } | Command::GiveUp { .. }) => {
                Self::Change
            }
            Ok(Command::Abort { .. }) => Self::Abort,
            Ok(Command::Fenced { .. }) => Self::Fenced,
            Ok(Command::Synced { .. }) => Self::Synced,
            Ok(Command::Cleared { .. }) => Self::Cleared,
            Ok(Command::Left { .. }) => Self::Left,
            _ => Self::Other,
        }
    }
}

/// Whether an answer says that rows were taken or given under the stamp of the request.
pub fn has_passed(reply: &Reply) -> bool {
    match reply {
        Reply::WriteRows(reply) => reply.results.iter().any(|one| one.failure.is_none()),
        Reply::ReadRows(reply) => reply.answers.iter().any(|one| one.failure.is_none()),
        Reply::Page(_) | Reply::ScanRows(_) => true,
        _ => false,
    }
}
