//! Figures that are read, not counted: name, help, labels, value.

use std::collections::BTreeMap;

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use crate::store::StoreStats;

/// How a figure moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only up, from 0 at the start.
    Counter,
    /// Up and down.
    Gauge,
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// `pairdb_<subsystem>_<name>_<unit>`
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
    /// A label and its value.
    pub label: Option<(&'static str, String)>,
    /// The value, in base units.
    pub value: f64,
}

impl Figure {
    /// A figure that goes up and down.
    pub fn gauge(name: &'static str, value: f64) -> Self {
        Self { name, help: "", kind: Kind::Gauge, label: None, value }
    }

    /// A figure that only goes up.
    pub fn counter(name: &'static str, value: f64) -> Self {
        Self { kind: Kind::Counter, ..Self::gauge(name, value) }
    }

    /// Says what it is.
    #[must_use]
    pub fn help(mut self, help: &'static str) -> Self {
        self.help = help;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, name: &'static str, value: impl ToString) -> Self {
        self.label = Some((name, value.to_string()));
        self
    }

    /// The name with the label, as it stands in the text format.
    pub fn full_name(&self) -> String {
        match &self.label {
            None => self.name.to_owned(),
            Some((label, value)) => format!("{}{{{label}=\"{value}\"}}", self.name),
        }
    }
}

/// Groups figures of one name into a family.
pub(super) fn families(figures: Vec<Figure>) -> Vec<MetricFamily> {
    let mut families: BTreeMap<&str, MetricFamily> = BTreeMap::new();
    for figure in figures {
        let family = families.entry(figure.name).or_insert_with(|| {
            let mut family = MetricFamily::default();
            family.set_name(figure.name.to_owned());
            family.set_help(figure.help.to_owned());
            family.set_field_type(match figure.kind {
                Kind::Counter => MetricType::COUNTER,
                Kind::Gauge => MetricType::GAUGE,
            });
            family
        });
        let mut metric = Metric::default();
        if let Some((name, value)) = figure.label {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value);
            metric.set_label(vec![pair]);
        }
        match figure.kind {
            Kind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(figure.value);
                metric.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = Gauge::default();
                gauge.set_value(figure.value);
                metric.set_gauge(gauge);
            }
        }
        family.mut_metric().push(metric);
    }
    families.into_values().collect()
}

pub(super) fn counter(name: &'static str, value: u64, help: &'static str) -> Figure {
    Figure::counter(name, value as f64).help(help)
}

pub(super) fn gauge(name: &'static str, value: u64, help: &'static str) -> Figure {
    Figure::gauge(name, value as f64).help(help)
}

/// The figures of the store.
pub fn of_store(stats: &StoreStats) -> Vec<Figure> {
    let e = &stats.engine;
    let mut all = vec![
        gauge("pairdb_memtable_size_bytes", e.memtable_bytes, "Memory of the memtables."),
        gauge("pairdb_memtable_entries", e.memtable_entries, "Keys in the memtables."),
        gauge("pairdb_memtable_sealed", e.memtables_sealed, "Memtables that wait for their flush."),
        counter(
            "pairdb_commit_log_written_bytes_total",
            e.log.bytes,
            "Bytes written to the commit log.",
        ),
        counter(
            "pairdb_commit_log_frames_total",
            e.log.frames,
            "Groups written to the commit log.",
        ),
        counter(
            "pairdb_commit_log_records_total",
            e.log.records,
            "Records written to the commit log.",
        ),
        counter("pairdb_commit_log_syncs_total", e.log.syncs, "Syncs of the commit log."),
        counter("pairdb_commit_log_segments_total", e.log.segments, "Segments begun."),
        counter("pairdb_cache_hits_total", e.cache.hits, "Rows found in the row cache."),
        counter("pairdb_cache_misses_total", e.cache.misses, "Rows not found in the row cache."),
        counter("pairdb_cache_evictions_total", e.cache.evictions, "Rows that left the row cache."),
        gauge("pairdb_cache_size_bytes", e.cache.bytes, "Memory of the row cache."),
        gauge("pairdb_cache_entries", e.cache.entries, "Rows in the row cache."),
        counter("pairdb_flush_total", e.flushes, "Memtables written to tables."),
        counter(
            "pairdb_flush_written_bytes_total",
            e.flushed_bytes,
            "Bytes of tables that flushes wrote.",
        ),
        counter("pairdb_compaction_total", e.compactions, "Compactions that merged tables."),
        counter(
            "pairdb_compaction_trivial_moves_total",
            e.trivial_moves,
            "Tables moved down unread.",
        ),
        counter(
            "pairdb_compaction_read_bytes_total",
            e.compacted_bytes_read,
            "Bytes that compactions read.",
        ),
        counter(
            "pairdb_compaction_written_bytes_total",
            e.compacted_bytes_written,
            "Bytes that compactions wrote.",
        ),
        counter(
            "pairdb_compaction_put_off_total",
            e.compactions_put_off,
            "Times a compaction that was due had no room on the disk.",
        ),
        counter("pairdb_compaction_rows_purged_total", e.rows_purged, "Deleted rows forgotten."),
        gauge(
            "pairdb_compaction_debt_bytes",
            e.compaction_debt_bytes,
            "Bytes that compaction is behind.",
        ),
        counter("pairdb_engine_stalls_total", e.stalls, "Writes that had to wait."),
        counter("pairdb_engine_corruptions_total", e.corruptions, "Damaged blocks met."),
        counter(
            "pairdb_engine_background_errors_total",
            e.background_errors,
            "Flushes and compactions that failed, or left a flushed part of the log where it was.",
        ),
        counter("pairdb_engine_files_removed_total", e.files_removed, "Obsolete tables removed."),
        gauge(
            "pairdb_engine_pinned_versions",
            e.pinned_versions,
            "Old versions that readers hold.",
        ),
        gauge("pairdb_manifest_size_bytes", e.manifest_bytes, "Length of the manifest."),
        gauge("pairdb_store_tenants", stats.tenants, "Tenants."),
        counter(
            "pairdb_store_tokens_evicted_total",
            stats.tokens_evicted,
            "Idempotency keys forgotten early.",
        ),
        counter(
            "pairdb_store_actor_rotations_total",
            stats.actor_rotations,
            "Actors replaced because of damage.",
        ),
        Figure::counter("pairdb_engine_stall_seconds_total", e.stall_ms as f64 / 1e3)
            .help("Time that writes had to wait."),
        Figure::gauge("pairdb_store_clock_ahead_seconds", stats.clock_ahead_ms as f64 / 1e3)
            .help("How far the hybrid clock runs ahead of the wall clock."),
        Figure::gauge("pairdb_engine_poisoned", f64::from(u8::from(e.poisoned.is_some())))
            .help("1 if a failed write has made the store read-only."),
        Figure::gauge("pairdb_disk_used_ratio", stats.disk_used)
            .help("The fraction of the disk that is in use."),
        Figure::gauge("pairdb_disk_state", f64::from(stats.disk_state as u8))
            .help("0 ok, 1 warning, 2 large values are refused, 3 all values are refused."),
    ];
    all.extend(of_damage(stats));
    for (level, tables) in e.levels.iter().enumerate() {
        let by_level = |name, value: u64, help| gauge(name, value, help).label("level", level);
        all.push(by_level("pairdb_sstable_count", tables.tables, "Tables."));
        all.push(by_level("pairdb_sstable_size_bytes", tables.bytes, "Bytes of tables."));
        all.push(by_level("pairdb_sstable_entries", tables.entries, "Records of tables."));
        let help = "Bytes of tables that are of keys which were removed, and are to be free.";
        all.push(by_level("pairdb_sstable_excised_bytes", tables.excised_bytes, help));
    }
    if let Some(disk) = &e.disk {
        all.push(gauge("pairdb_disk_free_bytes", disk.available, "Free bytes of the disk."));
        all.push(gauge("pairdb_disk_size_bytes", disk.total, "Size of the disk."));
    }
    all
}

/// What is damaged, and what became of it.
fn of_damage(stats: &StoreStats) -> [Figure; 5] {
    [
        counter(
            "pairdb_scrub_read_bytes_total",
            stats.engine.scrubbed_bytes,
            "Bytes of tables read to find damage before a reader does.",
        ),
        gauge(
            "pairdb_store_blocks_unreadable",
            stats.blocks_unreadable,
            "Damaged blocks of tables whose keys fail, because there may be no other copy.",
        ),
        counter(
            "pairdb_store_blocks_discarded_total",
            stats.blocks_discarded,
            "Damaged blocks given up, because other replicas have their rows.",
        ),
        gauge(
            "pairdb_store_partitions_damaged",
            stats.partitions_damaged,
            "Partitions that have lost data and have not got all of it back from the others yet.",
        ),
        counter(
            "pairdb_store_versions_below_safe_point_total",
            stats.below_safe_point,
            "Versions that one replica had and another had not, though both had vouched for all of \
             that age: one of them has lost data without noticing. They are kept.",
        ),
    ]
}
