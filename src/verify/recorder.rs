//! Records what clients do, and hashes it.

use std::io::Write;

use parking_lot::Mutex;
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3Default;

use super::history::{Event, Op, line};

/// A history in the making. All clients share one; its clock is the runtime's.
pub struct Recorder {
    origin: Instant,
    state: Mutex<State>,
}

struct State {
    events: Vec<Event>,
    next_op: u64,
    hash: Xxh3Default,
    out: Option<Box<dyn Write + Send>>,
    failed: Option<std::io::Error>,
}

impl Recorder {
    /// Begins a history now; its lines also go to `out` as they come.
    pub fn new(out: Option<Box<dyn Write + Send>>) -> Self {
        let state =
            State { events: Vec::new(), next_op: 1, hash: Xxh3Default::new(), out, failed: None };
        Self { origin: Instant::now(), state: Mutex::new(state) }
    }

    /// Microseconds since the history began.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Names an operation, before it is sent.
    pub fn next_op(&self) -> u64 {
        let mut state = self.state.lock();
        let id = state.next_op;
        state.next_op += 1;
        id
    }

    /// Adds an operation that has ended.
    pub fn op(&self, op: Op) {
        self.event(Event::Op(op));
    }

    /// Adds an event.
    pub fn event(&self, event: Event) {
        let mut state = self.state.lock();
        let text = line(&event) + "\n";
        state.hash.update(text.as_bytes());
        let written = state.out.as_mut().map_or(Ok(()), |out| out.write_all(text.as_bytes()));
        if let Err(error) = written {
            state.failed.get_or_insert(error);
        }
        state.events.push(event);
    }

    /// The hash of all lines so far, in the order in which they came.
    pub fn hash(&self) -> u64 {
        self.state.lock().hash.digest()
    }

    /// All events so far, in the order in which they came.
    ///
    /// # Errors
    /// A line could not be written out.
    pub fn finish(&self) -> std::io::Result<Vec<Event>> {
        let mut state = self.state.lock();
        if let Some(error) = state.failed.take() {
            return Err(error);
        }
        if let Some(out) = &mut state.out {
            out.flush()?;
        }
        Ok(state.events.clone())
    }
}
