//! What state the node is in, and what that means: live (do not kill it) and ready (send it work).
//!
//! Live never depends on peers, load or a full disk: a restart would not mend them. Ready is false
//! while the node starts, stops, or takes no writes for a reason that is its own; a full disk is
//! told, but reads and deletes go on. Whoever says elsewhere how the node is, `grpc.health.v1`,
//! `Admin.NodeStatus` and gossip, follows this: [`Health::state`] is "serving" just while it is
//! ready.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::Serialize;
use tokio::sync::watch;

use crate::store::{self, DiskState};

/// How the node is, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Opening, replaying.
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
    /// It no longer follows the layout: it may serve what is not its own any more.
    LayoutLost,
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
            Self::LayoutLost => "layout_lost",
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
    doing: Doing,
    /// Whether the node hands over what it holds, to leave. It may be right or wrong otherwise.
    leaving: bool,
    /// Why the node no longer follows the layout, if so.
    layout_lost: Option<String>,
}

/// What the node itself is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doing {
    #[default]
    Starting,
    Serving,
    Stopping,
    ReadOnly,
    ClockUnsafe,
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
        self.0.condition.borrow().state()
    }

    /// Is told of every change of what readiness depends on.
    pub fn watch(&self) -> watch::Receiver<Condition> {
        self.0.condition.subscribe()
    }

    /// The node serves, unless it stops already: then it never serves again.
    pub fn serve(&self) {
        self.now_does(|now| if now == Doing::Stopping { now } else { Doing::Serving });
    }

    /// The node stops.
    pub fn stop(&self) {
        self.now_does(|_| Doing::Stopping);
    }

    /// Says whether the node hands over what it holds, to leave. Whether that is a change.
    pub fn set_leaving(&self, leaving: bool) -> bool {
        self.change(|condition| condition.leaving = leaving)
    }

    /// Notes whether the store takes writes: what it said when it was asked. Whether that is a
    /// change. What failed on the disk stays so until the next start; a clock may be set right.
    pub fn note_store(&self, said: &store::Result<()>) -> bool {
        use store::Error as E;
        self.now_does(|now| match (now, said) {
            (Doing::Serving | Doing::ClockUnsafe, Err(E::ReadOnly { .. })) => Doing::ReadOnly,
            (Doing::Serving, Err(E::ClockUnsafe { .. })) => Doing::ClockUnsafe,
            (Doing::ClockUnsafe, Ok(())) => Doing::Serving,
            _ => now,
        })
    }

    fn now_does(&self, to: impl FnOnce(Doing) -> Doing) -> bool {
        self.change(|condition| condition.doing = to(condition.doing))
    }

    /// Whether it is a change.
    fn change(&self, by: impl FnOnce(&mut Condition)) -> bool {
        self.0.condition.send_if_modified(|condition| {
            let before = condition.clone();
            by(condition);
            *condition != before
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
        // The first cause is the one that counts.
        self.change(|condition| _ = condition.layout_lost.get_or_insert(why));
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
    /// The state: of all that holds, what there is most to be done about.
    pub fn state(&self) -> State {
        match self.doing {
            Doing::Starting => State::Starting,
            Doing::Stopping => State::Stopping,
            Doing::ReadOnly => State::ReadOnly,
            Doing::Serving | Doing::ClockUnsafe if self.layout_lost.is_some() => State::LayoutLost,
            Doing::Serving | Doing::ClockUnsafe if self.leaving => State::Draining,
            Doing::ClockUnsafe => State::ClockUnsafe,
            Doing::Serving => State::Serving,
        }
    }

    /// Whether the node should be sent work.
    pub fn ready(&self) -> Report {
        let reason = match self.doing {
            Doing::Serving => None,
            Doing::Starting => Some("the node is starting"),
            Doing::Stopping => Some("the node is stopping"),
            Doing::ReadOnly => Some("a write to the disk failed; restart the node"),
            Doing::ClockUnsafe => Some("the clock is behind the times of what is stored; set it"),
        };
        let mut reasons: Vec<String> = reason.into_iter().map(str::to_owned).collect();
        if self.leaving {
            reasons.push("the node hands over what it holds, to leave".to_owned());
        }
        if let Some(why) = &self.layout_lost {
            reasons.push(format!("the layout is not followed any more; restart the node: {why}"));
        }
        Report { ok: reasons.is_empty(), state: self.state(), reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unsafe_clock() -> store::Result<()> {
        Err(store::Error::ClockUnsafe { skew_ms: 2, limit_ms: 1 })
    }

    #[test]
    fn a_node_is_ready_only_while_it_serves_and_live_always() {
        let health = Health::default();
        let is = |state: State, ready: bool| {
            let report = health.ready();
            assert_eq!((report.state, health.state(), report.ok), (state, state, ready));
            assert_eq!(report.reasons.is_empty(), ready, "{state:?}");
            assert!(health.live().ok);
        };
        is(State::Starting, false);
        health.serve();
        is(State::Serving, true);
        assert!(health.set_leaving(true));
        is(State::Draining, false);
        assert!(health.set_leaving(false) && !health.set_leaving(false));
        is(State::Serving, true);
        health.stop();
        is(State::Stopping, false);
        health.serve();
        is(State::Stopping, false);
    }

    /// Whatever else is wrong meanwhile, and right again: who leaves is sent no work.
    #[test]
    fn a_node_that_leaves_is_not_ready_when_its_clock_is_right_again() {
        let health = Health::default();
        health.serve();
        health.note_store(&unsafe_clock());
        health.set_leaving(true);
        assert_eq!(health.ready().reasons.len(), 2);
        assert!(health.note_store(&Ok(())));
        assert_eq!((health.ready().ok, health.state()), (false, State::Draining));
        health.set_leaving(false);
        assert_eq!((health.ready().ok, health.state()), (true, State::Serving));
    }

    /// A disk that has failed stays so, a clock does not; who starts, leaves or stops says that.
    #[test]
    fn what_the_store_says_is_noted_while_the_node_serves() {
        let health = Health::default();
        let read_only = || Err(store::Error::ReadOnly { cause: "EIO".to_owned() });
        let full = || Err(store::Error::DiskFull { path: "d".into(), available: 1, reserve: 2 });
        assert!(!health.note_store(&read_only()), "it starts");
        health.serve();
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
        health.stop();
        assert!(!health.note_store(&Ok(())) && health.state() == State::Stopping);
    }

    /// It would go on to answer for partitions that have moved.
    #[test]
    fn a_node_that_no_longer_follows_the_layout_is_not_ready_and_says_why() {
        let health = Health::default();
        health.serve();
        health.set_layout_lost("cannot write LAYOUT".to_owned());
        health.set_layout_lost("later".to_owned());
        let ready = health.ready();
        assert!(!ready.ok && ready.reasons.len() == 1, "{ready:?}");
        assert!(ready.reasons[0].contains("cannot write LAYOUT"), "{ready:?}");
        assert_eq!(health.state(), State::LayoutLost, "whoever asks for one word is told");
        assert!(health.live().ok);
    }
}
