//! The switch that stops a machine between two of its steps.
//!
//! A step is a call that may change the machine's disk, or a piece of bytes handed to its network.
//! Within one tick of the simulation a process takes many, and between two of them nothing of it is
//! seen outside. So to stop it after the n-th step, with the disk as it is then and nothing sent
//! from then on, is to kill it at any of its awaits, though the simulator only kills between ticks:
//! what the process believes to do until the tick ends reaches nobody.

use std::sync::Arc;

use parking_lot::Mutex;

/// Takes the picture of the disk that the next process finds.
type Stop = Box<dyn FnOnce() + Send>;

/// Of one process. Clones are the same switch.
#[derive(Clone, Default)]
pub struct Switch(Arc<Mutex<State>>);

#[derive(Default)]
enum State {
    #[default]
    Running,
    Armed {
        steps: u64,
        stop: Stop,
    },
    Stopped,
}

impl Switch {
    /// Stops the machine after so many more steps, by calling `stop` at that moment.
    pub fn arm(&self, steps: u64, stop: Stop) {
        *self.0.lock() = State::Armed { steps, stop };
    }

    /// Before each step: `false` if it is not taken any more.
    pub fn step(&self) -> bool {
        let mut state = self.0.lock();
        match &mut *state {
            State::Running => true,
            State::Stopped => false,
            State::Armed { steps: 0, .. } => {
                drop(state);
                self.fire();
                false
            }
            State::Armed { steps, .. } => {
                *steps -= 1;
                true
            }
        }
    }

    /// Stops the machine now, if it is armed and has not stopped.
    pub fn fire(&self) {
        let before = std::mem::replace(&mut *self.0.lock(), State::Stopped);
        if let State::Armed { stop, .. } = before {
            stop();
        }
    }

    pub fn is_stopped(&self) -> bool {
        matches!(&*self.0.lock(), State::Stopped)
    }
}
