//! A disk that hangs for some calls.
//!
//! [`Hold::of`] has calls of one operation on files of one kind wait while it is closed; all others
//! go on. It begins open. Dropping it opens it: a test that fails must not leave an engine that
//! waits for its disk for ever.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::fault::{FaultVfs, Operation};

/// See the module. Not to be cloned: whoever has it decides.
#[derive(Debug)]
pub struct Hold(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_closed: bool,
    /// Calls that came to it so far.
    arrived: u64,
}

impl Hold {
    /// Of the calls for `operation` on files whose names begin or end with `kind` ("sst", "log",
    /// "MANIFEST"), from now on. Takes the place of what [`FaultVfs::hold_calls`] was given.
    pub fn of(vfs: &FaultVfs, operation: Operation, kind: &'static str) -> Self {
        let gate = Arc::new(Gate::default());
        let held = Arc::clone(&gate);
        vfs.hold_calls(move |call| {
            let name = call.path.file_name().unwrap_or_default().to_string_lossy();
            let concerns = name.starts_with(kind) || name.ends_with(kind);
            if concerns && call.operation == operation {
                held.pass();
            }
        });
        Self(gate)
    }

    /// Calls that come from now on wait.
    pub fn close(&self) {
        self.0.state.lock().is_closed = true;
    }

    /// All calls go on.
    pub fn open(&self) {
        self.0.state.lock().is_closed = false;
        self.0.changed.notify_all();
    }

    /// Calls that came so far, whether they had to wait or not.
    pub fn arrived(&self) -> u64 {
        self.0.state.lock().arrived
    }

    /// Waits for a call that is not among the first `before`.
    pub fn wait_for_more_than(&self, before: u64) {
        self.0.changed.wait_while(&mut self.0.state.lock(), |state| state.arrived <= before);
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.open();
    }
}

impl Gate {
    fn pass(&self) {
        let mut state = self.state.lock();
        state.arrived += 1;
        self.changed.notify_all();
        self.changed.wait_while(&mut state, |state| state.is_closed);
    }
}
