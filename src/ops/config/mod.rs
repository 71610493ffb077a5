//! The node's settings: defaults < file < environment < flags, each value with its origin.
//!
//! - File: TOML, from `--config`, else `PAIRDB_CONFIG`, else `/etc/pairdb/pairdb.toml` if
//!   it exists.
//! - Environment: `PAIRDB__SECTION__KEY`, e.g. `PAIRDB__ENGINE__SYNC_MODE=interval`.
//! - Flags: those of `pairdb serve`.
//!
//! # Invariants
//! 1. An unknown key is an error that names it, wherever it stands; so is a value of a wrong form.
//! 2. Every setting can be shown as it would stand in a file, and read again from that.

mod bounds;
mod load;
mod value;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use load::{Loaded, Origin, Source, load};
pub use value::{ClusterId, List, LogFormat, Size, Value};

use super::{kubernetes, logging};
use crate::cluster::layout::{MEMBER_TEXT_BYTES_MAX, OWNERS_MAX};
use crate::engine::options::{Compression, Options as EngineOptions, SyncMode};
use crate::{rpc, store};

/// Far more than any machine has cores; beyond it a start fails for want of threads.
const WORKER_THREADS_MAX: u64 = 1024;

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{} is not valid TOML: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        why: String,
    },
    /// No setting has this name.
    #[error("unknown setting {key:?} in {origin}{}", similar.map(|name|
        format!(" (did you mean {name:?}?)")).unwrap_or_default())]
    UnknownKey {
        /// As it was given.
        key: String,
        /// Where.
        origin: Origin,
        /// A setting with a similar name.
        similar: Option<&'static str>,
    },
    /// The value has a wrong form.
    #[error("{key} = {found:?} in {origin}: expected {expected}")]
    Value {
        /// The setting.
        key: &'static str,
        /// What was given.
        found: String,
        /// What would do.
        expected: &'static str,
        /// Where.
        origin: Origin,
    },
    /// Settings that do not go together or are out of bounds.
    #[error("{0}")]
    Invalid(String),
}

/// A setting as `config show` and the documentation present it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// `section.key`
    pub name: &'static str,
    /// What it does.
    pub doc: &'static str,
    /// The value as text.
    pub value: String,
    /// Whether TOML writes it without quotes.
    pub bare: bool,
}

macro_rules! settings {
    ($(
        #[doc = $section_doc:literal]
        $section:ident: $Section:ident {
            $( #[doc = $doc:literal] $key:ident: $type:ty = $default:literal, )*
        }
    )*) => {
        /// All settings.
        #[derive(Clone, Debug)]
        pub struct Config {
            $( #[doc = $section_doc] pub $section: $Section, )*
        }

        $(
            #[doc = $section_doc]
            #[derive(Clone, Debug)]
            pub struct $Section {
                $( #[doc = $doc] pub $key: $type, )*
            }
        )*

        impl Default for Config {
            fn default() -> Self {
                Self {
                    $( $section: $Section {
                        $( $key: <$type as Value>::parse($default)
                            .expect("a default in the table has the right form"), )*
                    }, )*
                }
            }
        }

        impl Config {
            /// The names of all settings.
            pub const NAMES: &'static [&'static str] = &[
                $( $( concat!(stringify!($section), ".", stringify!($key)), )* )*
            ];

            /// Sets one setting from text. `Err` holds what would have been expected; `None` means
            /// that there is no such setting.
            fn set(&mut self, name: &str, text: &str) -> Option<Result<(), &'static str>> {
                match name {
                    $( $(
                        concat!(stringify!($section), ".", stringify!($key)) => {
                            Some(match <$type as Value>::parse(text) {
                                Some(value) => {
                                    self.$section.$key = value;
                                    Ok(())
                                }
                                None => Err(<$type as Value>::EXPECTED),
                            })
                        }
                    )* )*
                    _ => None,
                }
            }

            /// All settings with their values.
            pub fn settings(&self) -> Vec<Setting> {
                vec![
                    $( $( Setting {
                        name: concat!(stringify!($section), ".", stringify!($key)),
                        doc: $doc.trim_ascii(),
                        value: Value::show(&self.$section.$key),
                        bare: <$type as Value>::BARE,
                    }, )* )*
                ]
            }
        }
    };
}

settings! {
    /// The node itself.
    node: Node {
        /// Where the node keeps its data.
        data_dir: PathBuf = "pairdb-data",
        /// The node's name in listings; empty for its id.
        name: String = "",
        /// The failure zone; replicas are spread over zones.
        zone: String = "",
        /// Written as JSON when the node serves; empty for none.
        ready_file: PathBuf = "",
        /// Threads that serve calls; 0 for one a core.
        worker_threads: u64 = "0",
        /// At SIGTERM, how long to go on serving while readiness says no.
        shutdown_grace: Duration = "0s",
        /// At SIGTERM, how long finishing calls and flushing may take together.
        shutdown_timeout: Duration = "30s",
    }
    /// Addresses to listen on. Port 0 takes any free port.
    listen: Listen {
        /// Clients and operators, gRPC.
        client: SocketAddr = "127.0.0.1:8080",
        /// Other nodes, gRPC.
        peer: SocketAddr = "127.0.0.1:7946",
        /// Metrics and health, HTTP.
        admin: SocketAddr = "127.0.0.1:9091",
    }
    /// The cluster to form or join.
    cluster: Cluster {
        /// The cluster's id, a UUID: a directory of another is refused; empty for any.
        id: ClusterId = "",
        /// Peer addresses of nodes to join.
        seeds: List = "",
        /// Nodes that form a new cluster together.
        bootstrap_expect: u64 = "1",
        /// Where other nodes reach this one's peer port, ip:port; empty for where it listens.
        advertise: String = "",
        /// How long to look for the cluster before giving up.
        join_timeout: Duration = "10m",
        /// Bytes a second the node fetches, or gives away, when owners change; 0 for no limit.
        transfer_rate_bytes: Size = "8MiB",
        /// Rows that may wait in memory for one other node; more becomes hints.
        queue_bytes_max: Size = "64MiB",
        /// Rows that may wait in memory to be kept as hints; comparison finds the rest.
        hint_queue_bytes_max: Size = "64MiB",
    }
    /// Bounds on what clients may ask. More is refused, by name.
    limits: Limits {
        /// Longest key.
        key_bytes_max: Size = "4KiB",
        /// Longest value.
        value_bytes_max: Size = "1MiB",
        /// Siblings of a row.
        siblings_max: u64 = "32",
        /// Siblings of a row from which answers carry a warning.
        siblings_warn: u64 = "8",
        /// Size of a row with all its siblings.
        row_bytes_max: Size = "4MiB",
        /// Items of a batch.
        batch_max: u64 = "1000",
        /// Keys, values and contexts of a batch together, and of the answer to one that reads.
        batch_bytes_max: Size = "16MiB",
        /// Size of a request.
        message_bytes_max: Size = "4MiB",
        /// Greatest time to live.
        ttl_max: Duration = "3650d",
        /// How far the birth of an idempotency key may be ahead of this node's clock.
        clock_skew_max: Duration = "2s",
        /// Percentage of the disk in use from which there is a warning.
        disk_warn_percent: u64 = "80",
        /// Percentage of the disk in use from which large values are refused.
        disk_large_percent: u64 = "90",
        /// Percentage of the disk in use from which only deletes are taken.
        disk_full_percent: u64 = "95",
        /// A longer value is large.
        large_value_bytes: Size = "64KiB",
        /// How long an idempotency key is remembered.
        idempotency_window: Duration = "24h",
        /// Unary reads and writes served at once.
        concurrency_max: u64 = "1024",
        /// Unary reads and writes that may wait for their turn.
        queue_max: u64 = "1024",
        /// How long they may wait.
        queue_wait_max: Duration = "2s",
        /// Streams of one connection.
        streams_per_connection_max: u64 = "1024",
        /// Connections for metrics and health served at once; more wait.
        admin_connections_max: u64 = "64",
        /// Pipelines open at once.
        pipelines_max: u64 = "1024",
        /// Operations in flight on one pipeline.
        pipeline_in_flight_max: u64 = "1024",
        /// Threads that read scans and streams.
        scan_threads: u64 = "4",
        /// Cap on the time of a unary call.
        deadline_max: Duration = "30s",
        /// Greatest delay of a write when the store falls behind.
        delay_max: Duration = "100ms",
    }
    /// The storage engine.
    engine: Engine {
        /// When a write is acknowledged: synced (always), soon to be (interval), or by the system.
        sync_mode: SyncMode = "always",
        /// Interval of sync_mode = "interval".
        sync_interval: Duration = "100ms",
        /// Size of a commit log segment.
        log_segment_bytes: Size = "64MiB",
        /// A memtable is flushed when it holds this much.
        memtable_bytes: Size = "50MiB",
        /// Memtables that may wait for their flush before writes wait.
        sealed_memtables_max: u64 = "3",
        /// How long a write may wait for a memtable.
        stall_timeout: Duration = "10s",
        /// Size of the row cache; 0 turns it off.
        row_cache_bytes: Size = "256MiB",
        /// Age at which a row leaves the cache.
        row_cache_ttl: Duration = "1h",
        /// Size of a block of a table.
        block_bytes: Size = "4KiB",
        /// Bits of filter for each key.
        filter_bits_per_key: u64 = "10",
        /// Size of a table.
        table_bytes: Size = "32MiB",
        /// Compression of levels 0 and 1.
        compression_upper: Compression = "none",
        /// Compression of the levels below.
        compression_lower: Compression = "none",
        /// Tables at level 0 that start a compaction.
        level0_tables_trigger: u64 = "6",
        /// Tables at level 0 at which writes wait.
        level0_tables_stop: u64 = "24",
        /// Most bytes of the level that level 0 is compacted into.
        base_level_bytes: Size = "512MiB",
        /// Size ratio of a level to the one above.
        level_ratio: u64 = "10",
        /// Bytes a second that compaction may write while it is not behind; 0 for no limit.
        compaction_bytes_per_second: Size = "0",
        /// Threads that compact.
        compaction_threads: u64 = "1",
        /// Space that values leave free beside what memtables hold; deletes may have 3/4 of it.
        disk_reserve_bytes: Size = "64MiB",
        /// Check blocks at every read instead of at the first.
        verify_every_read: bool = "false",
        /// All tables are read again this long after the last time, to find damage; 0 for never.
        scrub_interval: Duration = "7d",
        /// How fast they are read.
        scrub_bytes_per_second: Size = "8MiB",
        /// Open although the commit log is damaged, and lose what follows the damage.
        accept_log_corruption: bool = "false",
    }
    /// Logs.
    log: Log {
        /// A level, or directives such as "info,pairdb::rpc=debug".
        level: String = "info",
        /// auto (pretty on a terminal), json or pretty.
        format: LogFormat = "auto",
        /// Calls that take longer are logged.
        slow_request: Duration = "500ms",
    }
    /// The services.
    rpc: Rpc {
        /// Serve gRPC reflection.
        reflection: bool = "true",
    }
    /// A pod of a StatefulSet, which may be taken out of it.
    kubernetes: Kubernetes {
        /// At SIGTERM, ask whether the pod is to come back, and drain if it is not.
        enabled: bool = "false",
        /// URL of the API server; empty for the one that the pod is told of.
        api: String = "",
        /// The pod's name: its StatefulSet's, a dash, its ordinal; empty for the host's.
        pod_name: String = "",
        /// Directory of the service account's files: token, namespace, ca.crt.
        service_account_dir: PathBuf = "/var/run/secrets/kubernetes.io/serviceaccount",
        /// How long an answer of the API server may take; it is asked three times.
        timeout: Duration = "5s",
        /// How long the drain may take; then the node ends, keeps its data, and can go on later.
        drain_timeout: Duration = "23h",
    }
    /// Protection.
    security: Security {
        /// Allow plain text on addresses that are not loopback.
        insecure: bool = "false",
    }
}

/// A setting that counts things in memory.
fn count(figure: u64) -> usize {
    usize::try_from(figure).unwrap_or(usize::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Whether a text names a host and a port that can be connected to.
fn is_peer_address(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let is_host = match host.strip_prefix('[') {
        Some(address) => address.ends_with(']'),
        None => !host.is_empty() && !host.contains(':'),
    };
    is_host && port.parse::<u16>().is_ok_and(|port| port != 0)
}

impl Cluster {
    /// Where other nodes reach this one, if that is said.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it is no address that others can connect to.
    pub fn advertised(&self) -> Result<Option<SocketAddr>, Error> {
        let text = &self.advertise;
        if text.is_empty() {
            return Ok(None);
        }
        let invalid = |why: &str| Error::Invalid(format!("cluster.advertise = {text:?} {why}"));
        let address: SocketAddr = text
            .parse()
            .map_err(|_| invalid("must be ip:port, an IPv6 address in brackets: [fd00::1]:7946"))?;
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(invalid(
                "reaches nobody: it must be one address, and a port that is not 0",
            ));
        }
        Ok(Some(address))
    }
}

impl Config {
    /// Checks bounds and what settings say of each other.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first that does not hold.
    pub fn validate(&self) -> Result<(), Error> {
        let invalid = |what: String| Err(Error::Invalid(what));
        if self.node.data_dir.as_os_str().is_empty() {
            // It would be whatever directory the node is started in.
            return invalid("node.data_dir is empty: it must name a directory".to_owned());
        }
        self.check_bounds()?;
        let limits = &self.limits;
        let least = limits.value_bytes_max.0.saturating_add(limits.key_bytes_max.0) + (64 << 10);
        if limits.message_bytes_max.0 < least {
            return invalid(format!(
                "limits.message_bytes_max = {} must leave room for a value and a key: at least {}",
                limits.message_bytes_max,
                Size(least)
            ));
        }
        let positive = [
            ("limits.key_bytes_max", limits.key_bytes_max.0),
            ("limits.siblings_max", limits.siblings_max),
            ("limits.batch_max", limits.batch_max),
            ("limits.concurrency_max", limits.concurrency_max),
            ("limits.admin_connections_max", limits.admin_connections_max),
            ("limits.pipelines_max", limits.pipelines_max),
            ("limits.pipeline_in_flight_max", limits.pipeline_in_flight_max),
            ("limits.scan_threads", limits.scan_threads),
            // No call would be admitted on any connection.
            ("limits.streams_per_connection_max", limits.streams_per_connection_max),
            ("cluster.bootstrap_expect", self.cluster.bootstrap_expect),
            ("engine.scrub_bytes_per_second", self.engine.scrub_bytes_per_second.0),
            // Without threads nobody would flush.
            ("engine.compaction_threads", self.engine.compaction_threads),
        ];
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return invalid(format!("{name} = 0 must be at least 1"));
        }
        let lasting = [
            ("node.shutdown_timeout", self.node.shutdown_timeout),
            ("limits.deadline_max", limits.deadline_max),
            ("cluster.join_timeout", self.cluster.join_timeout),
            ("kubernetes.timeout", self.kubernetes.timeout),
        ];
        let is_off = |name: &str| name.starts_with("kubernetes.") && !self.kubernetes.enabled;
        let is_bad = |(name, time): &&(&str, Duration)| time.is_zero() && !is_off(name);
        if let Some((name, _)) = lasting.iter().find(is_bad) {
            return invalid(format!("{name} = 0 must be at least 1ms"));
        }
        let texts = [("node.name", &self.node.name), ("node.zone", &self.node.zone)];
        if let Some((name, text)) = texts.iter().find(|(_, t)| t.len() > MEMBER_TEXT_BYTES_MAX) {
            let (found, limit) = (text.len(), MEMBER_TEXT_BYTES_MAX);
            return invalid(format!("{name} has {found} bytes, the limit is {limit}"));
        }
        if self.cluster.bootstrap_expect > OWNERS_MAX as u64 {
            let found = self.cluster.bootstrap_expect;
            return invalid(format!(
                "cluster.bootstrap_expect = {found} must be at most {OWNERS_MAX}"
            ));
        }
        // What the semaphores behind these can count.
        let counted = [
            ("limits.concurrency_max", limits.concurrency_max),
            ("limits.admin_connections_max", limits.admin_connections_max),
            ("limits.pipelines_max", limits.pipelines_max),
            ("limits.pipeline_in_flight_max", limits.pipeline_in_flight_max),
            ("limits.scan_threads", limits.scan_threads),
            ("limits.streams_per_connection_max", limits.streams_per_connection_max),
        ];
        if let Some((name, value)) = counted.iter().find(|(_, value)| *value > 1_000_000) {
            return invalid(format!("{name} = {value} must be at most 1000000"));
        }
        let threads = self.node.worker_threads;
        if threads > WORKER_THREADS_MAX {
            return invalid(format!(
                "node.worker_threads = {threads} must be at most {WORKER_THREADS_MAX}"
            ));
        }
        logging::check(&self.log).map_err(Error::Invalid)?;
        if self.kubernetes.enabled {
            let judged = kubernetes::check(&self.kubernetes);
            judged.map_err(|error| Error::Invalid(error.to_string()))?;
        }
        self.validate_addresses()
    }

    fn validate_addresses(&self) -> Result<(), Error> {
        let listen = &self.listen;
        let all = [("client", listen.client), ("peer", listen.peer), ("admin", listen.admin)];
        for (at, (name, address)) in all.iter().enumerate() {
            if !self.security.insecure && !address.ip().is_loopback() {
                return Err(Error::Invalid(format!(
                    "listen.{name} = {address} would serve plain text beyond this machine; \
                     set security.insecure = true to allow it"
                )));
            }
            let same = all[..at].iter().find(|(_, other)| other == address && other.port() != 0);
            if let Some((other, _)) = same {
                return Err(Error::Invalid(format!(
                    "listen.{name} and listen.{other} are both {address}"
                )));
            }
        }
        if let Some(seed) = self.cluster.seeds.0.iter().find(|seed| !is_peer_address(seed)) {
            let what = "must be host:port, an IPv6 address in brackets, with a port of 1 to 65535";
            return Err(Error::Invalid(format!("cluster.seeds: {seed:?} {what}")));
        }
        self.cluster.advertised().map(drop)
    }

    /// The engine's options.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a figure does not fit its type.
    pub fn engine_options(&self) -> Result<EngineOptions, Error> {
        let e = &self.engine;
        let small = |name: &str, value: u64| {
            let over = |_| Error::Invalid(format!("{name} = {value} must be at most {}", u32::MAX));
            u32::try_from(value).map_err(over)
        };
        Ok(EngineOptions {
            sync_mode: e.sync_mode,
            sync_interval_ms: millis(e.sync_interval),
            log_segment_bytes: small("engine.log_segment_bytes", e.log_segment_bytes.0)?,
            memtable_bytes: count(e.memtable_bytes.0),
            sealed_memtables_max: count(e.sealed_memtables_max),
            stall_timeout_ms: millis(e.stall_timeout),
            row_cache_bytes: count(e.row_cache_bytes.0),
            row_cache_ttl_ms: millis(e.row_cache_ttl),
            block_bytes: count(e.block_bytes.0),
            filter_bits_per_key: small("engine.filter_bits_per_key", e.filter_bits_per_key)?,
            table_bytes: e.table_bytes.0,
            compression_upper: e.compression_upper,
            compression_lower: e.compression_lower,
            level0_tables_trigger: count(e.level0_tables_trigger),
            level0_tables_stop: count(e.level0_tables_stop),
            base_level_bytes: e.base_level_bytes.0,
            level_ratio: e.level_ratio,
            compaction_bytes_per_second: e.compaction_bytes_per_second.0,
            disk_reserve_bytes: e.disk_reserve_bytes.0,
            verify_every_read: e.verify_every_read,
            accept_log_corruption: e.accept_log_corruption,
            compaction_threads: count(e.compaction_threads),
            ..EngineOptions::default()
        })
    }

    /// The store's limits.
    pub fn store_limits(&self) -> store::Limits {
        let l = &self.limits;
        store::Limits {
            key_bytes_max: count(l.key_bytes_max.0),
            value_bytes_max: count(l.value_bytes_max.0),
            siblings_max: count(l.siblings_max),
            siblings_warn: count(l.siblings_warn),
            row_bytes_max: count(l.row_bytes_max.0),
            batch_items_max: count(l.batch_max),
            batch_bytes_max: count(l.batch_bytes_max.0),
            ttl_ms_max: millis(l.ttl_max),
            clock_skew_ms_max: millis(l.clock_skew_max),
            token_window_ms: millis(l.idempotency_window),
            disk_warn_percent: l.disk_warn_percent,
            disk_large_percent: l.disk_large_percent,
            disk_full_percent: l.disk_full_percent,
            large_value_bytes: count(l.large_value_bytes.0),
            ..store::Limits::default()
        }
    }

    /// The services' options.
    pub fn rpc_options(&self) -> rpc::Options {
        let l = &self.limits;
        rpc::Options {
            message_bytes_max: count(l.message_bytes_max.0),
            batch_max: count(l.batch_max),
            concurrency_max: count(l.concurrency_max),
            queue_max: count(l.queue_max),
            queue_wait_max: l.queue_wait_max,
            pipelines_max: count(l.pipelines_max),
            pipeline_in_flight_max: count(l.pipeline_in_flight_max),
            scan_threads: count(l.scan_threads),
            streams_per_connection_max: u32::try_from(l.streams_per_connection_max)
                .unwrap_or(u32::MAX),
            deadline_max: l.deadline_max,
            delay_max: l.delay_max,
            slow: self.log.slow_request,
            reflection: self.rpc.reflection,
            checkpoint_dir: self.node.data_dir.join("checkpoints"),
            stop_max: self.node.shutdown_grace + self.node.shutdown_timeout,
        }
    }
}

#[cfg(test)]
mod tests;
