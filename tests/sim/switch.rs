//! The switch that stops a machine between two of its steps.
//!
//! A step is a call that may change the machine's disk, or a piece of bytes handed to its network;
//! `step` names them. Within one tick of the simulation a process takes many, and between two of
//! them nothing of it is seen outside. So to stop it before the n-th step of a kind, or right after
//! it, with the disk as it is then and nothing sent from then on, is to kill it at any of its
//! awaits, though the simulator only kills between ticks: what the process believes to do until the
//! tick ends reaches nobody.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::step::Step;

/// Takes the picture of the disk that the next process finds.
type Stop = Box<dyn FnOnce() + Send>;

/// At which step a machine is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aim {
    /// Only these count; `None`: all.
    pub step: Option<Step>,
    /// So many are taken before.
    pub skip: u64,
    /// Not before the step, but right after.
    pub after: bool,
}

/// Of one process. Clones are the same switch.
#[derive(Clone, Default)]
pub struct Switch(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    armed: Option<(Aim, Stop)>,
    /// It was to stop after this one, which was taken.
    after: Option<Step>,
    stopped: Option<Stopped>,
}

/// Where a machine stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Between two of its ticks.
    Idle,
    /// Before this step.
    Before(Step),
    /// After it.
    After(Step),
}

impl Switch {
    /// Stops the machine as `aim` says, by calling `stop` at that moment.
    pub fn arm(&self, aim: Aim, stop: Stop) {
        self.0.lock().armed = Some((aim, stop));
    }

    /// Does not stop it any more.
    pub fn disarm(&self) {
        self.0.lock().armed = None;
    }

    /// Before each step: `false` if it is not taken any more.
    pub fn step(&self, step: Step) -> bool {
        self.steps(&[step])
    }

    /// The same for several that nobody can tell apart.
    pub fn steps(&self, steps: &[Step]) -> bool {
        let mut state = self.0.lock();
        if state.stopped.is_some() {
            return false;
        }
        let Some((aim, _)) = &mut state.armed else { return true };
        let counts = |step: &&Step| aim.step.is_none_or(|kind| kind == **step);
        let Some(hit) = steps.iter().find(counts).copied() else { return true };
        if aim.skip > 0 {
            aim.skip -= 1;
            return true;
        }
        if std::mem::take(&mut aim.after) {
            // The next one, whatever it is.
            aim.step = None;
            state.after = Some(hit);
            return true;
        }
        let stopped = state.after.map_or(Stopped::Before(hit), Stopped::After);
        drop(state);
        self.stop(stopped);
        false
    }

    /// Stops the machine now, if it is armed.
    pub fn fire(&self) {
        let is_armed = self.0.lock().armed.is_some();
        if is_armed {
            self.stop(Stopped::Idle);
        }
    }

    fn stop(&self, at: Stopped) {
        let armed = {
            let mut state = self.0.lock();
            state.stopped = Some(at);
            state.armed.take()
        };
        if let Some((_, stop)) = armed {
            stop();
        }
    }

    /// Where it has stopped, if it has.
    pub fn stopped(&self) -> Option<Stopped> {
        self.0.lock().stopped
    }
}
