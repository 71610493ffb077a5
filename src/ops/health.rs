//! What state the node is in, and what that means: live (do not kill it) and ready (send it work).
//!
//! Live never depends on peers, load or a full disk: a restart would not mend them. Ready is false
//! while the node starts, stops, or takes no writes for a reason that does not pass by itself; a
//! full disk is told, but reads and deletes go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

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
}

/// The answer of the health pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether the asked-for property holds.
    pub ok: bool,
    /// The state.
    pub state: State,
    /// Why it does not hold.
    pub reasons: Vec<&'static str>,
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

    /// Whether the process is worth keeping: always, while it can answer.
    pub fn live(&self) -> Report {
        Report { ok: true, state: self.state(), reasons: Vec::new() }
    }

    /// Whether the node should be sent work.
    pub fn ready(&self) -> Report {
        let state = self.state();
        let reasons = match state {
            State::Serving => Vec::new(),
            State::Starting => vec!["the node is starting"],
            State::Stopping => vec!["the node is stopping"],
            State::Draining => vec!["the node hands over what it holds, to leave"],
            State::ReadOnly => vec!["a write to the commit log failed; restart the node"],
        };
        Report { ok: state == State::Serving, state, reasons }
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
}
