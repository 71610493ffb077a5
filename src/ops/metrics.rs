//! The metrics registry: what the services count, and figures of store, disk and process that are
//! read when somebody asks, never in between.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder as _, Gauge, Opts, Registry, TextEncoder};

use super::VERSION;
use super::health::{Health, State};
use crate::store::Store;

mod figures;

pub use figures::{Figure, Kind, of_store};

/// The type of the text that [`Exposition::text`] gives.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything that `/metrics` shows.
#[derive(Clone, Debug)]
pub struct Exposition {
    registry: Registry,
}

impl Exposition {
    /// Puts the node's figures beside what is registered already.
    ///
    /// # Errors
    /// A name is registered twice.
    pub fn new(registry: Registry, store: Arc<Store>, health: Health) -> prometheus::Result<Self> {
        registry.register(Box::new(NodeCollector { store, health }))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        let info = Gauge::with_opts(
            Opts::new("pairdb_build_info", "The program; always 1.")
                .const_label("version", VERSION),
        )?;
        info.set(1.0);
        registry.register(Box::new(info))?;
        Ok(Self { registry })
    }

    /// All figures in the text format.
    ///
    /// # Errors
    /// A figure cannot be written (a name or label is malformed).
    pub fn text(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// Reads the figures of the store at every scrape.
struct NodeCollector {
    store: Arc<Store>,
    health: Health,
}

/// All figures of a node: of its store, its disk and its state.
pub fn of_node(store: &Store, health: &Health) -> Vec<Figure> {
    let mut all = of_store(&store.stats());
    all.push(
        Figure::gauge("pairdb_store_pressure_ratio", store.pressure())
            .help("How far the store is behind: 0 idle, 1 refuses writes."),
    );
    let ready = f64::from(u8::from(health.state() == State::Serving));
    all.push(Figure::gauge("pairdb_node_ready", ready).help("1 while the node serves."));
    all
}

impl Collector for NodeCollector {
    fn desc(&self) -> Vec<&Desc> {
        // The figures are not fixed before they are read; the registry takes a collector without
        // descriptions as "unchecked".
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        figures::families(of_node(&self.store, &self.health))
    }
}
