//! What a node takes from around it, so that a simulation can be all of it.

use std::sync::Arc;

use crate::cluster::net::{Net, TokioNet};
use crate::cluster::work::Work;
use crate::engine;
use crate::replication::hints::HintOptions;
use crate::replication::{anti_entropy, departure, transfer};
use crate::store::Environment;

/// Network, files, time, chance, and where work runs. Timers are tokio's, which a simulation drives
/// with its runtime. Only the ready file is written past it: it speaks to scripts of this machine.
#[derive(Clone)]
pub struct World {
    /// Connections.
    pub net: Arc<dyn Net>,
    /// Files, clocks, randomness.
    pub environment: Environment,
    /// Work that waits for the disk. [`Work::Inline`] also means an engine without threads: a task
    /// does its background work step by step.
    pub work: Work,
    /// The same for what no client waits for.
    pub background: Work,
    /// How hints are kept and delivered. Like `anti_entropy` no setting: a simulation hurries them,
    /// so that they happen while things go wrong.
    pub hints: HintOptions,
    /// How replicas are compared.
    pub anti_entropy: anti_entropy::Settings,
    /// How newcomers merge rows.
    pub transfer: transfer::Settings,
    /// How rows are given away.
    pub departure: departure::Settings,
    /// A cluster that is formed here has `2^partition_bits` partitions; a simulation wants few, so
    /// that all of them have rows and a transition is over soon.
    pub partition_bits: u32,
}

impl World {
    /// The machine's. Nothing has a priority.
    pub fn real() -> Self {
        Self {
            net: Arc::new(TokioNet),
            environment: Environment::system(),
            work: Work::Threads,
            background: Work::Threads,
            hints: HintOptions::default(),
            anti_entropy: anti_entropy::Settings::default(),
            transfer: transfer::Settings::default(),
            departure: departure::Settings::default(),
            partition_bits: engine::Options::default().partition_bits,
        }
    }
}
