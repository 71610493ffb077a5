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

/// The figures of the store.
pub fn of_store(stats: &StoreStats) -> Vec<Figure> {
    vec![Figure::gauge("pairdb_store_keys", stats.keys as f64).help("Keys.")]
}
