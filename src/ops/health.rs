//! What state the node is in, and what that means: live (do not kill it) and ready (send it work).
//!
//! Live never depends on peers, load or a full disk: a restart would not mend them. Ready is false
//! while the node starts, stops, or takes no writes for a reason that does not pass by itself; a
//! full disk is told, but reads and deletes go on.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use serde::Serialize;

use crate::store::DiskState;

/// What the node is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Opening, replaying.
    Starting = 0,
    /// Serving.
    Serving = 1,
    /// Finishing what runs; new work should go elsewhere.
    Stopping = 2,
    /// Serving reads only: a write to the log failed.
    ReadOnly = 3,
    /// Handing over what it holds, to leave: new work should go elsewhere.
    Draining = 4,
}

impl State {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::ReadOnly => "read_only",
            Self::Draining => "draining",
        }
    }
}

/// The state, shared.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Shared>);

// Atomics: relaxed would do, they order nothing else; the strongest costs nothing at this rate.
#[derive(Debug, Default)]
struct Shared {
    state: AtomicU8,
    disk: AtomicU8,
    /// Why the node no longer follows the layout, if so: it may serve what is not its own any more.
    layout_lost: OnceLock<String>,
}

/// The answer of the health pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the asked-for property holds.
    pub ok: bool,
    /// The state.
    pub state: State,
    /// Why it does not hold.
    pub reasons: Vec<String>,
}

impl Health {
    /// The state.
    pub fn state(&self) -> State {
        match self.0.state.load(Ordering::SeqCst) {
            0 => State::Starting,
            1 => State::Serving,
            2 => State::Stopping,
            4 => State::Draining,
            _ => State::ReadOnly,
        }
    }

    /// Changes the state. A node that stops never serves again.
    pub fn set(&self, state: State) {
        let change = |now: u8| (now != State::Stopping as u8).then_some(state as u8);
        let _ = self.0.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
    }

    /// What the disk's filling allows.
    pub fn disk(&self) -> DiskState {
        match self.0.disk.load(Ordering::SeqCst) {
            0 => DiskState::Ok,
            1 => DiskState::Warn,
            2 => DiskState::LargeRefused,
            _ => DiskState::WritesRefused,
        }
    }

    /// Says what the disk's filling allows. Whether that is a change.
    pub fn set_disk(&self, disk: DiskState) -> bool {
        self.0.disk.swap(disk as u8, Ordering::SeqCst) != disk as u8
    }

    /// Says that the node no longer follows the layout, and why. That lasts until the next start.
    pub fn set_layout_lost(&self, why: String) {
        // The first cause is the one that counts.
        let _ = self.0.layout_lost.set(why);
    }

    /// Whether the process is worth keeping: always, while it can answer.
    pub fn live(&self) -> Report {
        Report { ok: true, state: self.state(), reasons: Vec::new() }
    }

    /// Whether the node should be sent work.
    pub fn ready(&self) -> Report {
        let state = self.state();
        let reason = match state {
            State::Serving => None,
            State::Starting => Some("the node is starting"),
            State::Stopping => Some("the node is stopping"),
            State::Draining => Some("the node hands over what it holds, to leave"),
            State::ReadOnly => Some("a write to the commit log failed; restart the node"),
        };
        let mut reasons: Vec<String> = reason.into_iter().map(str::to_owned).collect();
        if let Some(why) = self.0.layout_lost.get() {
            reasons.push(format!("the layout is not followed any more; restart the node: {why}"));
        }
        Report { ok: reasons.is_empty(), state, reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_only_while_it_serves_and_live_always() {
        let health = Health::default();
        assert_eq!(health.state(), State::Starting);
        for (state, ready) in [
            (State::Starting, false),
            (State::Serving, true),
            (State::ReadOnly, false),
            (State::Draining, false),
            (State::Stopping, false),
        ] {
            health.set(state);
            assert_eq!(health.ready().ok, ready, "{state:?}");
            assert_eq!(health.ready().reasons.is_empty(), ready, "{state:?}");
            assert!(health.live().ok);
        }
        health.set(State::Serving);
        assert_eq!(health.state(), State::Stopping, "a stopping node never serves again");
    }

    /// It would go on to answer for partitions that have moved.
    #[test]
    fn a_node_that_no_longer_follows_the_layout_is_not_ready_and_says_why() {
        let health = Health::default();
        health.set(State::Serving);
        health.set_layout_lost("cannot write LAYOUT".to_owned());
        health.set_layout_lost("later".to_owned());
        let ready = health.ready();
        assert!(!ready.ok && ready.reasons.len() == 1, "{ready:?}");
        assert!(ready.reasons[0].contains("cannot write LAYOUT"), "{ready:?}");
        assert!(health.live().ok);
    }
}
