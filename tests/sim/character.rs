//! What kind of run a seed makes: no two kinds fail for the same reasons.

use std::time::Duration;

use pairdb::replication::anti_entropy;
use pairdb::replication::hints::HintOptions;
use pairdb::verify::dice::Dice;
use pairdb::verify::history::{Level, Mode};
use pairdb::verify::workload::Plan;

/// Drawn once for each seed.
pub struct Character {
    /// How wrong clocks may be for a while.
    pub clock_jump_ms_max: u64,
    /// Whether things go wrong already while the cluster forms.
    pub rough_birth: bool,
    /// Whether hints and the comparison of replicas are hurried, so that they are caught in the
    /// middle: as they are by default, they begin when a short run is over.
    pub hurried: bool,
    /// How long after the last fault nobody is accused of what fails: peers find each other again,
    /// and what runs every so often has its turn.
    pub quiet: Duration,
    ttl_max: Duration,
    keys: u64,
    pause_max: Duration,
}

impl Character {
    pub fn draw(dice: &Dice) -> Self {
        // Lifetimes can be judged only where clocks can be trusted a little.
        let (clock_jump_ms_max, ttl_max) = match dice.below(10) {
            0..2 => (3_600_000, Duration::ZERO),
            2..5 => (1_000, Duration::from_secs(20)),
            _ => (1_800, Duration::ZERO),
        };
        // A node whose clock is too far off is not let into a cluster.
        let rough_birth = dice.percent(30) && clock_jump_ms_max <= 1_000;
        let hurried = dice.percent(75);
        let keys = 2 + dice.below(6);
        Self {
            clock_jump_ms_max,
            rough_birth,
            hurried,
            quiet: Duration::from_secs(if hurried { 6 } else { 12 }),
            ttl_max,
            keys,
            pause_max: Duration::from_millis(10 << dice.below(4)),
        }
    }

    /// What the clients do.
    pub fn plan(&self) -> Plan {
        Plan {
            tenants: vec![
                ("default".to_owned(), Mode::Siblings),
                ("latest".to_owned(), Mode::LastWriteWins),
            ],
            prefix: String::new(),
            keys: self.keys,
            levels: vec![Level::One, Level::Quorum, Level::Quorum, Level::All],
            pause_max: self.pause_max,
            ttl_max: self.ttl_max,
        }
    }

    pub fn hints(&self) -> HintOptions {
        match self.hurried {
            true => HintOptions {
                calm: Duration::from_millis(300),
                segment_bytes: 2 << 10,
                ..HintOptions::default()
            },
            false => HintOptions::default(),
        }
    }

    pub fn anti_entropy(&self) -> anti_entropy::Settings {
        match self.hurried {
            true => anti_entropy::Settings {
                interval: Duration::from_secs(1),
                settle: Duration::from_millis(200),
                timeout: Duration::from_secs(2),
                ..anti_entropy::Settings::default()
            },
            false => anti_entropy::Settings::default(),
        }
    }
}
