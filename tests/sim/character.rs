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
    /// Whether bits flip on disks, where others have what is on them.
    pub rots: bool,
    /// How long after the last fault nobody is accused of what fails: peers find each other again,
    /// and what runs every so often has its turn.
    pub quiet: Duration,
    /// How old what is forgotten must be; far less than clocks may be wrong.
    round_margin: Duration,
    ttl_max: Duration,
    keys: u64,
    pause_max: Duration,
    deletes_percent: u64,
    tokens_percent: u64,
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
            round_margin: Duration::from_millis(10 << dice.below(10)),
            ttl_max,
            keys,
            pause_max: Duration::from_millis(10 << dice.below(4)),
            deletes_percent: *dice.pick(&[10, 30]),
            // A row with an idempotency key in it is not forgotten within a short run.
            tokens_percent: *dice.pick(&[0, 20, 60]),
            rots: dice.percent(40),
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
            deletes_percent: self.deletes_percent,
            tokens_percent: self.tokens_percent,
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
                round_interval: Some(Duration::from_secs(2)),
                round_retry: Duration::from_millis(500),
                round_margin: self.round_margin,
                ..anti_entropy::Settings::default()
            },
            false => anti_entropy::Settings::default(),
        }
    }
}
