//! Arguments that client commands share.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use clap::ValueEnum;

use super::failure::Failure;
use crate::client::{Client, Options};
use crate::ops::config::{Size, Value as _};
use crate::ops::shutdown::Shutdown;
use crate::proto::ConsistencyLevel;

/// Time for what a node does at once, unless `--timeout` says otherwise.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How answers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people and simple scripts.
    Text,
    /// One JSON document.
    Json,
}

/// Where the node is and how to talk to it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Connect {
    /// The node; several, comma-separated, are taken in turn, and passed over if out of reach
    #[arg(
        long,
        env = "PAIRDB_ENDPOINT",
        default_value = "http://127.0.0.1:8080",
        value_name = "URI"
    )]
    endpoint: String,
    /// Time for a call with its retries, such as 10s [default: 10s; import and migrate to a cluster
    /// 60s; verify run 5s; upkeep 1h; --wait 24h]
    #[arg(long, value_parser = duration, value_name = "DURATION")]
    timeout: Option<Duration>,
    /// How the answer is written
    #[arg(long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Whose data, and how many replicas are to vouch for it.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Tenant {
    /// The tenant
    #[arg(long, env = "PAIRDB_TENANT", default_value = "default")]
    pub tenant: String,
    /// How many of a key's replicas must take part
    #[arg(long, value_enum, env = "PAIRDB_CONSISTENCY", default_value = "quorum")]
    consistency: Consistency,
}

/// How many replicas take part in a read or write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Consistency {
    /// One.
    One,
    /// A majority.
    Quorum,
    /// Every one.
    All,
}

impl From<Consistency> for ConsistencyLevel {
    fn from(level: Consistency) -> Self {
        match level {
            Consistency::One => Self::One,
            Consistency::Quorum => Self::Quorum,
            Consistency::All => Self::All,
        }
    }
}

/// A key on the command line.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Key {
    /// The key
    key: String,
    /// The key is given in base64
    #[arg(long)]
    key_base64: bool,
}

impl Key {
    /// Its bytes.
    pub fn bytes(&self) -> Result<Bytes, Failure> {
        match self.key_base64 {
            true => decode("the key", &self.key),
            false => Ok(self.key.clone().into()),
        }
    }
}

/// Hears Ctrl-C and SIGTERM from here on: for who looks on at what goes on by itself, and has to
/// say so when it ends.
pub(super) fn signals() -> Result<Shutdown, Failure> {
    Shutdown::on_signals()
        .map_err(|error| Failure::error(format!("cannot handle signals: {error}")))
}

/// Bytes from base64.
pub(super) fn decode(what: &str, text: &str) -> Result<Bytes, Failure> {
    let bytes = STANDARD.decode(text.trim());
    bytes.map(Bytes::from).map_err(|error| Failure::usage(format!("{what} is not base64: {error}")))
}

/// A context. An empty one would count as none, and the write would replace nothing: it is what a
/// command in `$(...)` leaves that has failed.
pub(super) fn context(text: &str) -> Result<Bytes, Failure> {
    let bytes = decode("the context", text)?;
    match bytes.is_empty() {
        true => Err(Failure::usage("--context is empty: it is base64, as get and put write it")),
        false => Ok(bytes),
    }
}

/// Bytes as base64.
pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// A size with a unit, for clap.
pub(super) fn size(text: &str) -> Result<Size, String> {
    Size::parse(text).ok_or_else(|| format!("expected {}", Size::EXPECTED))
}

/// A duration with a unit, for clap.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    Duration::parse(text).ok_or_else(|| format!("expected {}", Duration::EXPECTED))
}

impl Connect {
    /// A client of the tenant's rows.
    pub fn rows_client(&self, tenant: &Tenant) -> Result<Client, Failure> {
        self.client(Duration::from_secs(10), tenant.consistency.into())
    }

    /// A client of the tenant's rows, with time for large batches, that goes to the nodes that hold
    /// them.
    pub fn import_client(&self, tenant: &Tenant) -> Result<Client, Failure> {
        let consistency = tenant.consistency.into();
        let options = self.options(Duration::from_secs(60))?;
        Ok(Client::new(Options { consistency, direct: true, ..options })?)
    }

    /// A client whose calls end within the timeout, or `default` if none is given.
    fn client(&self, default: Duration, consistency: ConsistencyLevel) -> Result<Client, Failure> {
        Ok(Client::new(Options { consistency, ..self.options(default)? })?)
    }

    /// The options of such a client.
    pub fn options(&self, default: Duration) -> Result<Options, Failure> {
        let timeout = self.timeout.unwrap_or(default);
        if timeout.is_zero() {
            return Err(Failure::usage("--timeout must be more than 0"));
        }
        let endpoints = self.endpoint.split(',').map(|uri| uri.trim().to_owned()).collect();
        Ok(Options { endpoints, timeout, ..Options::default() })
    }

    /// A client for questions to the node.
    pub fn admin_client(&self) -> Result<Client, Failure> {
        self.client(ADMIN_TIMEOUT, ConsistencyLevel::Unspecified)
    }

    /// A client of one node and no other: what is asked of it is not asked of its neighbour.
    pub fn one_node_client(&self) -> Result<Client, Failure> {
        match self.endpoint.contains(',') {
            true => Err(Failure::usage("--endpoint must name one node here")),
            false => self.admin_client(),
        }
    }

    /// An [`Self::admin_client`] of another endpoint, with the same settings.
    pub fn client_of(&self, endpoint: String) -> Result<Client, Failure> {
        Ok(Client::new(Options { endpoints: vec![endpoint], ..self.options(ADMIN_TIMEOUT)? })?)
    }

    /// How long to follow what goes on by itself.
    pub fn patience(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(24 * 3600))
    }

    /// A client for flush, compaction and the like.
    pub fn upkeep_client(&self) -> Result<Client, Failure> {
        self.client(Duration::from_secs(3600), ConsistencyLevel::Unspecified)
    }

    /// Writes an answer: `text` as it is, or the JSON document.
    pub fn print(&self, text: &str, json: &serde_json::Value) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        match self.output {
            Output::Text if text.is_empty() => {}
            Output::Text => writeln!(out, "{text}")?,
            Output::Json => writeln!(out, "{json}")?,
        }
        Ok(out.flush()?)
    }

    /// Writes an answer, and gives what became of the command: who does not read the answer is
    /// told that all the same.
    pub fn conclude(
        &self,
        text: &str,
        json: &serde_json::Value,
        outcome: Result<(), Failure>,
    ) -> Result<(), Failure> {
        let printed = self.print(text, json);
        outcome.and(printed)
    }
}

/// Writes bytes to standard output as they are; on a terminal, with an end of line.
pub(super) fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    if out.is_terminal() {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Bytes for JSON: as text under `name` if they are UTF-8, else in base64 under `name_base64`.
pub(super) fn put_bytes(
    object: &mut serde_json::Map<String, serde_json::Value>,
    name: &str,
    bytes: &[u8],
) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), encode(bytes).into()),
    };
}
