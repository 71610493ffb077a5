//! What state the node is in, and what that means: live (do not kill it) and ready (send it work).
//!
//! Live never depends on peers, load or a full disk: a restart would not mend them. Ready is false
//! while the node starts, stops, or takes no writes for a reason that is its own; a full disk is
//! told, but reads and deletes go on. Whoever says elsewhere how the node is, `grpc.health.v1` and
//! gossip, follows this: [`Health::watch`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::Serialize;
use tokio::sync::watch;

use crate::store::{self, DiskState};

/// What the node is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Opening, replaying.
    #[default]
    Starting,
    /// Serving.
    Serving,
    /// Finishing what runs; new work should go elsewhere.
    Stopping,
    /// Serving reads only: a write to the log, or of the clock's lease, failed.
    ReadOnly,
    /// Serving reads only until its clock is right again.
    ClockUnsafe,
    /// Handing over what it holds, to leave: new work should go elsewhere.
    Draining,
}

impl State {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::ReadOnly => "read_only",
            Self::ClockUnsafe => "clock_unsafe",
            Self::Draining => "draining",
        }
    }
}

/// The state, shared.
#[derive(Clone, Debug)]
pub struct Health(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    condition: watch::Sender<Condition>,
    // Relaxed would do, it orders nothing else; the strongest costs nothing at this rate.
    disk: AtomicU8,
}

/// All that readiness depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// What the node is doing.
    pub state: State,
    /// Why the node no longer follows the layout, if so: it may serve what is not its own any more.
    layout_lost: Option<String>,
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

impl Default for Health {
    fn default() -> Self {
        let condition = watch::Sender::default();
        Self(Arc::new(Shared { condition, disk: AtomicU8::default() }))
    }
}

impl Health {
    /// The state.
    pub fn state(&self) -> State {
        self.0.condition.borrow().state
    }

    /// Is told of every change of what readiness depends on.
    pub fn watch(&self) -> watch::Receiver<Condition> {
        self.0.condition.subscribe()
    }

    /// Changes the state. A node that stops never serves again.
    pub fn set(&self, state: State) {
        self.change(|now| if now == State::Stopping { now } else { state });
    }

    /// Notes whether the store takes writes: what it said when it was asked. Whether that is a
    /// change. What failed on the disk stays so until the next start; a clock may be set right.
    pub fn note_store(&self, said: &store::Result<()>) -> bool {
        use store::Error as E;
        self.change(|now| match (now, said) {
            (State::Serving | State::ClockUnsafe, Err(E::ReadOnly { .. })) => State::ReadOnly,
            (State::Serving, Err(E::ClockUnsafe { .. })) => State::ClockUnsafe,
            (State::ClockUnsafe, Ok(())) => State::Serving,
            _ => now,
        })
    }

    fn change(&self, to: impl FnOnce(State) -> State) -> bool {
        self.0.condition.send_if_modified(|condition| {
            let before = condition.state;
            condition.state = to(before);
            condition.state != before
        })
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
        self.0.condition.send_if_modified(|condition| {
            // The first cause is the one that counts.
            let is_first = condition.layout_lost.is_none();
            condition.layout_lost.get_or_insert(why);
            is_first
        });
    }

    /// Whether the process is worth keeping: always, while it can answer.
    pub fn live(&self) -> Report {
        Report { ok: true, state: self.state(), reasons: Vec::new() }
    }

    /// Whether the node should be sent work.
    pub fn ready(&self) -> Report {
        self.0.condition.borrow().ready()
    }
}

impl Condition {
    /// Whether the node should be sent work.
    pub fn ready(&self) -> Report {
        let reason = match self.state {
            State::Serving => None,
            State::Starting => Some("the node is starting"),
            State::Stopping => Some("the node is stopping"),
            State::Draining => Some("the node hands over what it holds, to leave"),
            State::ReadOnly => Some("a write to the disk failed; restart the node"),
            State::ClockUnsafe => Some("the clock is behind the times of what is stored; set it"),
        };
        let mut reasons: Vec<String> = reason.into_iter().map(str::to_owned).collect();
        if let Some(why) = &self.layout_lost {
            reasons.push(format!("the layout is not followed any more; restart the node: {why}"));
        }
        Report { ok: reasons.is_empty(), state: self.state, reasons }
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
            (State::ClockUnsafe, false),
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

    /// A disk that has failed stays so, a clock does not; who starts, leaves or stops says that.
    #[test]
    fn what_the_store_says_is_noted_while_the_node_serves() {
        let health = Health::default();
        let read_only = || Err(store::Error::ReadOnly { cause: "EIO".to_owned() });
        let unsafe_clock = || Err(store::Error::ClockUnsafe { skew_ms: 2, limit_ms: 1 });
        let full = || Err(store::Error::DiskFull { path: "d".into(), available: 1, reserve: 2 });
        assert!(!health.note_store(&read_only()), "it starts");
        health.set(State::Serving);
        for (said, changes, state) in [
            (Ok(()), false, State::Serving),
            (full(), false, State::Serving),
            (unsafe_clock(), true, State::ClockUnsafe),
            (full(), false, State::ClockUnsafe),
            (Ok(()), true, State::Serving),
            (unsafe_clock(), true, State::ClockUnsafe),
            (read_only(), true, State::ReadOnly),
            (Ok(()), false, State::ReadOnly),
            (unsafe_clock(), false, State::ReadOnly),
        ] {
            assert_eq!((health.note_store(&said), health.state()), (changes, state), "{said:?}");
        }
        health.set(State::Draining);
        assert!(!health.note_store(&Ok(())) && health.state() == State::Draining);
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
