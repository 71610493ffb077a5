//! The metrics registry: what the services count, and figures of store, disk and process that are
//! read when somebody asks, never in between.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder as _, Gauge, Opts, Registry, TextEncoder};

use super::VERSION;
use super::health::Health;
use crate::store::Store;

mod figures;
mod member;

pub use figures::{Figure, Kind, of_store};
pub use member::MemberParts;

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
    pub fn new(registry: Registry, node: NodeParts) -> prometheus::Result<Self> {
        registry.register(Box::new(NodeCollector(node)))?;
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

/// The parts whose figures are shown.
#[derive(Clone)]
pub struct NodeParts {
    /// The node's state.
    pub health: Health,
    /// Its rows.
    pub store: Arc<Store>,
    /// What makes it a member.
    pub member: Arc<MemberParts>,
}

impl NodeParts {
    /// All figures of a node: of its store, its disk, its state and its part in the cluster.
    pub fn figures(&self) -> Vec<Figure> {
        let mut all = of_store(&self.store.stats());
        all.push(
            Figure::gauge("pairdb_store_pressure_ratio", self.store.pressure())
                .help("How far the store is behind: 0 idle, 1 refuses writes."),
        );
        let ready = f64::from(u8::from(self.health.ready().ok));
        all.push(Figure::gauge("pairdb_node_ready", ready).help("1 while the node serves."));
        all.extend(self.member.figures());
        all
    }
}

/// Reads the figures at every scrape.
struct NodeCollector(NodeParts);

impl Collector for NodeCollector {
    fn desc(&self) -> Vec<&Desc> {
        // The figures are not fixed before they are read; the registry takes a collector without
        // descriptions as "unchecked".
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        figures::families(self.0.figures())
    }
}
